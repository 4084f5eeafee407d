// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/task.hpp>
#include <bulkhead/task_handle.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>
#include <bulkhead/task_interface.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

namespace bulkhead {

/// Something that runs tasks: the base of all executors, and of your own.
///
/// Admission, accounting, outcomes, time limits, cancellation, retries and events live here, once: an executor that
/// only implements `execute` keeps every accepted task's promise of exactly one outcome, and its metrics add up at
/// every instant. What can be done with it (`submit`, `async_submit`, `spawn`, `submit_at`, `submit_after`,
/// `submit_every`, and `operator()`) is in task_interface.hpp.
///
/// Thread safety: distinct objects: safe. Shared objects: safe; any number of threads may submit and run the Asio
/// context. Lifetime: the Asio context should outlive the executor; if it is destroyed first, handlers are destroyed
/// uncalled, as for every Asio object, and only `name`, `metrics` and the destructor may be called afterwards.
/// Destroying an executor needs no `shutdown`.
class BULKHEAD_EXPORT BaseExecutor : public TaskInterface<BaseExecutor, AnyCall> {
 public:
  using executor_type = asio::any_io_executor;

  BaseExecutor(const BaseExecutor&) = delete;
  BaseExecutor& operator=(const BaseExecutor&) = delete;
  virtual ~BaseExecutor();

  /// The name given in the options.
  const std::string& name() const noexcept;

  /// Asio's executor, on which handlers without one of their own are called.
  executor_type get_executor() const noexcept;

  /// The result of a task that was spawned in an executor with the same ResultStore, once it is over.
  ///
  /// Resumes: on the awaiting coroutine's executor. Cancellation: terminal ends the waiting, not the task.
  /// Errors: what the task failed with; `ResultNotFoundError`; `TaskSignatureError` if the result is no R;
  /// `TaskTimeoutError` (`Which::wait`) after `timeout`.
  template <class R>
  asio::awaitable<R> wait_for_result(TaskId id, std::optional<std::chrono::nanoseconds> timeout = std::nullopt) const {
    return wait_for_result<R>(core_, id, timeout);
  }
  /// The same without waiting: empty if the task is not over. For `void`: whether it is over.
  template <class R>
  auto get_result(const TaskId& id) const {
    const auto record = record_of(*core_, id);
    if constexpr (std::is_void_v<R>) {
      if (!record->finished()) return false;
      record->template take<void>();
      return true;
    } else {
      if (!record->finished()) return std::optional<R>();
      return std::optional<R>(record->template take<R>());
    }
  }
  /// Ends a spawned task, as `TaskHandle::cancel` does. False if there is none of this id, or it is over.
  bool cancel(const TaskId& id, asio::cancellation_type type = asio::cancellation_type::terminal);
  /// Where a spawned task is; empty if there is none of this id.
  std::optional<TaskStatus> status(const TaskId& id) const;
  /// That and what else is known of it. All tasks: `ResultStore::list`.
  std::optional<TaskInfo> info(const TaskId& id) const;

  /// Has the listener called for what happens from now on, for as long as the subscription lives. Events of one task
  /// come in order, and exactly one of `kTerminalEvents` is its last; none blocks the executor. An executor for which
  /// nobody listens makes none.
  /// Throws `std::invalid_argument` for an empty listener or mask, or a queue size out of range.
  Subscription subscribe(Listener listener, EventMask mask = kAllEvents, SubscribeOptions options = {});

  /// Takes no more tasks, and ends. Submits that wait for admission fail with `ExecutorNotRunningError`; tasks that
  /// were to begin at some time do not.
  ///
  /// Resumes: on the awaiting coroutine's executor, once everything is over (`wait`) or at once. Never blocks a thread.
  /// Cancellation: terminal stops the waiting, not the shutdown. Any number of calls, also at the same time and after
  /// the end; each waits by its own options, and may wait on while the executor is destroyed, by any thread. It cannot
  /// be used again afterwards: make a new one, of the same name if you like.
  asio::awaitable<void> shutdown(ShutdownOptions options = {});

  /// What the executor has done and is doing, at one instant.
  Metrics metrics() const;

 protected:
  /// Throws `std::invalid_argument` naming the option and its range.
  BaseExecutor(asio::any_io_executor io_executor, CommonOptions options);

  /// The one hook that an executor must implement: runs the task, now or later, here or elsewhere. Called by the
  /// thread that submits, or by one that has just finished another task; must not block. If it throws, and has
  /// not given the task away, the task fails with what it threw.
  virtual void execute(Task task) = 0;

  /// Ends what the executor holds. The default waits for the tasks, as the options say. May run several times at once;
  /// what is to happen whether or not anybody waits must not depend on the coroutine going on. The executor is there
  /// while this function itself runs, and may be destroyed once it has returned: as a coroutine, which only begins
  /// then, it must not look at the executor unless something else keeps that alive. Write a plain function that hands a
  /// coroutine what it needs, as `return wait_for_them(shared_state_, options)`.
  virtual asio::awaitable<void> stop(ShutdownOptions options);

  /// Adds what only this executor knows: mode, workers, running.
  virtual void add_metrics(Metrics& metrics) const;

  /// For a derived class's destructor: no hook is called any more, and further submits are refused.
  void close() noexcept;

  // For executors of this library.

  /// `execute` with the core's mutex, which it gives back in the end.
  virtual void execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock);

  /// The same for a task that neither waits nor has limits, asked first: whether it was taken over without the mutex
  /// being given back. False: `execute_locked` is to be called.
  virtual bool execute_at_once(detail::TaskNode& node);

  /// Asked when a task in flight is to be cancelled, with the core's mutex held. True: the executor sees to it that
  /// the task gets its outcome.
  virtual bool cancel_in_flight(detail::TaskNode& node, asio::cancellation_type type);

  /// With the mutex: takes a task that has not begun out of the executor's own queue. True: it is the core's again.
  virtual bool withdraw(detail::TaskNode& node);

  /// With the mutex: a task that has begun is to stop. Its flag is set already.
  virtual void stop_running(detail::TaskNode& node, asio::cancellation_type type);

  /// With the mutex: no task is left. Called if the executor itself keeps the Asio context at work while there are any.
  virtual void nothing_left();

  /// With the mutex: whether a task has begun elsewhere than in this process.
  virtual bool has_begun(const detail::TaskNode& node) const;

  /// With the mutex: in which other executor the task is, and as what number there; null if in none.
  virtual std::pair<std::shared_ptr<detail::ExecutorCore>, std::uint64_t> passed_on(const detail::TaskNode& node) const;

  /// With the mutex: how far such a task is, if the executor can see that.
  virtual std::optional<Progress> progress_of(const detail::TaskNode& node) const;

  /// Completes with true once no task is left, with false after the timeout. Needs the executor's core only, so that
  /// the executor may be destroyed meanwhile.
  static asio::awaitable<bool> wait_until_idle(std::shared_ptr<detail::ExecutorCore> core,
                                               std::optional<std::chrono::nanoseconds> timeout);

  /// The default `stop`, for the same reason.
  static asio::awaitable<void> stop_core(std::shared_ptr<detail::ExecutorCore> core, ShutdownOptions options);

  const std::shared_ptr<detail::ExecutorCore>& core() const noexcept { return core_; }

 private:
  friend class detail::ExecutorCore;
  friend const std::shared_ptr<detail::ExecutorCore>& detail::core_of(BaseExecutor& executor) noexcept;

  static asio::awaitable<void> begin_stop(detail::ExecutorCore& core, ShutdownOptions options);
  static asio::awaitable<void> shut_down(std::shared_ptr<detail::ExecutorCore> core, ShutdownOptions options);
  static std::shared_ptr<detail::TaskRecord> record_of(const detail::ExecutorCore& core, const TaskId& id);
  template <class R>
  static asio::awaitable<R> wait_for_result(std::shared_ptr<detail::ExecutorCore> core, TaskId id,
                                            std::optional<std::chrono::nanoseconds> timeout) {
    co_return co_await detail::await_result<R>(record_of(*core, id), timeout);
  }

  std::shared_ptr<detail::ExecutorCore> core_;
};

}  // namespace bulkhead
