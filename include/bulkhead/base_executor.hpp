// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_impl.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/task.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace bulkhead {

/// What happens to a submit when `max_pending` tasks are in the executor.
enum class OverloadPolicy : std::uint8_t {
  reject,  ///< It fails at once with `ExecutorOverloadError`.
  wait     ///< It waits for its turn, first come, first served.
};

/// Options that every executor has.
struct CommonOptions {
  /// The name in metrics and errors. 1 to 200 characters, none of them a control character.
  std::string name = "default";
  /// The most tasks that may be queued or running at once. 1 to 1,000,000,000.
  std::size_t max_pending = 100;
  /// What happens beyond `max_pending`.
  OverloadPolicy overload = OverloadPolicy::reject;
};

/// How an executor is shut down.
struct ShutdownOptions {
  /// Whether `shutdown` waits until every task has its outcome. If not, it returns at once and the rest goes on by
  /// itself.
  bool wait = true;
  /// How long it waits; then what still runs is killed and fails with `TaskCancelledError`. Empty: as long as it takes.
  /// Not negative.
  std::optional<std::chrono::nanoseconds> timeout = std::nullopt;
  /// Whether tasks that have not begun are cancelled.
  bool cancel_pending = false;
};

class BaseExecutor;

template <class F, class Executor = BaseExecutor>
class Wrapped;

namespace detail {

template <class T>
inline constexpr bool is_task_options = std::is_same_v<std::remove_cvref_t<T>, TaskOptions>;

// Creates the task and hands it to the executor; what a completion token starts.
struct InitiateSubmit {
  using executor_type = asio::any_io_executor;
  std::shared_ptr<ExecutorCore> core;

  explicit InitiateSubmit(std::shared_ptr<ExecutorCore> executor) : core(std::move(executor)) {}
  executor_type get_executor() const noexcept { return core->io; }

  template <class Handler, class C>
  void operator()(Handler&& handler, TaskOptions&& options, C&& call) && {
    using Node = TaskImpl<C, std::decay_t<Handler>>;
    ExecutorCore& executor = *core;
    Node* node = Node::create(std::move(core), std::move(options), std::move(call), std::forward<Handler>(handler));
    auto slot = asio::get_associated_cancellation_slot(node->handler());
    if (slot.is_connected()) {
      const std::uint64_t id = executor.make_cancellable(*node);
      slot.assign([weak = executor.weak_from_this(), id](asio::cancellation_type type) {
        if (const auto alive = weak.lock()) alive->cancel(id, type);
      });
    }
    executor.submit(node);
  }
};

}  // namespace detail

/// Something that runs tasks: the base of all executors, and of your own.
///
/// Admission, accounting, outcomes and cancellation live here, once: an executor that only implements `execute` keeps
/// every accepted task's promise of exactly one outcome, and its metrics add up at every instant.
///
/// Thread safety: distinct objects: safe. Shared objects: safe; any number of threads may submit and run the Asio
/// context. Lifetime: the Asio context should outlive the executor; if it is destroyed first, handlers are destroyed
/// uncalled, as for every Asio object, and only `name`, `metrics` and the destructor may be called afterwards.
/// Destroying an executor needs no `shutdown`.
class BULKHEAD_EXPORT BaseExecutor {
 public:
  using executor_type = asio::any_io_executor;

  BaseExecutor(const BaseExecutor&) = delete;
  BaseExecutor& operator=(const BaseExecutor&) = delete;
  virtual ~BaseExecutor();

  /// The name given in the options.
  const std::string& name() const noexcept;

  /// Asio's executor, on which handlers without one of their own are called.
  executor_type get_executor() const noexcept;

  /// Runs `std::invoke(function, arguments...)` in this executor and returns what it returned, or throws what it threw.
  /// Lazy: nothing happens until the result is awaited. Arguments are copied or moved in; views and string literals are
  /// kept as owners.
  ///
  /// Resumes: on the awaiting coroutine's executor.
  /// Cancellation: waiting or queued: terminal, partial and total, the task never runs. Running: terminal; the caller
  /// gets `TaskCancelledError`; what becomes of the run is the executor's business (LocalExecutor kills the worker).
  /// Errors: what the function threw, or an `ExecutorError` (errors.hpp).
  /// Lifetime: awaiting it after the executor is gone fails with `ExecutorNotRunningError`.
  template <class F, class... Args>
  requires(!detail::is_task_options<F>) auto submit(F&& function, Args&&... arguments) {
    return submit(TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  auto submit(TaskOptions options, F&& function, Args&&... arguments) {
    return submit_call(std::move(options), bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...));
  }

  /// The same for any completion token: `async_submit(call(function, arguments...), token)`.
  ///
  /// Completion signature: `void(std::exception_ptr, R)`; `void(std::exception_ptr)` for a function that returns
  /// nothing; `void(std::exception_ptr, std::optional<R>)` where R has no default constructor.
  /// Executor: the handler's associated executor, by default `get_executor()`; never inside this function.
  /// Cancellation and errors: as for `submit`.
  template <class F, class... Args, class CompletionToken>
  auto async_submit(Call<F, Args...> call, CompletionToken&& token) {
    return async_submit(TaskOptions(), std::move(call), std::forward<CompletionToken>(token));
  }
  template <class F, class... Args, class CompletionToken>
  auto async_submit(TaskOptions options, Call<F, Args...> call, CompletionToken&& token) {
    static_assert(detail::CallTraits<Call<F, Args...>>::invocable,
                  "bulkhead: the function cannot be called with these arguments; it gets them as rvalues, so a "
                  "parameter cannot be a reference to non-const: return what it is to change.");
    using Result = detail::call_result_t<Call<F, Args...>>;
    using Signature = typename detail::CompletionSignature<Result>::type;
    return asio::async_initiate<CompletionToken, Signature>(detail::InitiateSubmit(core_), token, std::move(options),
                                                            std::move(call));
  }

  /// Decorator: a copyable callable; `wrapped(arguments...)` is `submit(function, arguments...)`. The executor must
  /// outlive the awaits.
  template <class F>
  Wrapped<std::decay_t<F>> operator()(F&& function) {
    return Wrapped<std::decay_t<F>>(*this, std::forward<F>(function));
  }

  /// Takes no more tasks, and ends. Submits that wait for admission fail with `ExecutorNotRunningError`.
  ///
  /// Resumes: on the awaiting coroutine's executor, once everything is over (`wait`) or at once. Never blocks a thread.
  /// Cancellation: terminal stops the waiting, not the shutdown. Any number of calls, also at the same time and after
  /// the end; each waits by its own options, and may wait on while the executor is destroyed. It cannot be used again
  /// afterwards: make a new one, of the same name if you like.
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

  /// The same for executors of this library: with the core's mutex, which it gives back in the end.
  virtual void execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock);

  /// Ends what the executor holds. The default waits for the tasks, as the options say. May run several times at once.
  virtual asio::awaitable<void> stop(ShutdownOptions options);

  /// Adds what only this executor knows: mode, workers, running.
  virtual void add_metrics(Metrics& metrics) const;

  /// Completes with true once no task is left, with false after the timeout. Needs the executor's core only, so that
  /// the executor may be destroyed meanwhile.
  static asio::awaitable<bool> wait_until_idle(std::shared_ptr<detail::ExecutorCore> core,
                                               std::optional<std::chrono::nanoseconds> timeout);

  /// For a derived class's destructor: no hook is called any more, and further submits are refused.
  void close() noexcept;

  /// Asked when a task in flight is to be cancelled, with the core's mutex held. True: the executor sees to it that
  /// the task gets its outcome. False: the caller gets `TaskCancelledError` at once; if the task has begun, it runs on
  /// and keeps its slot until it ends.
  virtual bool cancel_in_flight(detail::TaskNode& node, asio::cancellation_type type);

  const std::shared_ptr<detail::ExecutorCore>& core() const noexcept { return core_; }

 private:
  friend class detail::ExecutorCore;

  static asio::awaitable<void> shut_down(std::shared_ptr<detail::ExecutorCore> core, ShutdownOptions options);

  template <class F, class... Args>
  auto submit_call(TaskOptions options, Call<F, Args...> call)
      -> asio::awaitable<detail::call_result_t<Call<F, Args...>>> {
    using Result = detail::call_result_t<Call<F, Args...>>;
    if constexpr (std::is_void_v<Result>) {
      return async_submit(std::move(options), std::move(call), asio::use_awaitable);
    } else if constexpr (std::is_default_constructible_v<Result>) {
      return async_submit(std::move(options), std::move(call), asio::use_awaitable);
    } else {
      return unwrap(async_submit(std::move(options), std::move(call), asio::use_awaitable));
    }
  }

  template <class R>
  static asio::awaitable<R> unwrap(asio::awaitable<std::optional<R>> result) {
    std::optional<R> value = co_await std::move(result);
    co_return std::move(*value);
  }

  std::shared_ptr<detail::ExecutorCore> core_;
};

/// A function bound to an executor: made once, called many times. Copyable; the executor must outlive its calls.
template <class F, class Executor>
class Wrapped {
 public:
  Wrapped(Executor& executor, F wrapped) : executor_(&executor), function_(std::move(wrapped)) {}

  /// `executor.submit(function, arguments...)`.
  template <class... Args>
  auto operator()(Args&&... arguments) const {
    return executor_->submit(function_, std::forward<Args>(arguments)...);
  }

  /// The function itself, to call it here.
  const F& function() const noexcept { return function_; }

 private:
  Executor* executor_;
  F function_;
};

}  // namespace bulkhead
