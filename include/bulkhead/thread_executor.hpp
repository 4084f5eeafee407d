// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/config.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

namespace bulkhead {

/// Options of a ThreadExecutor. They are checked in its constructor.
struct ThreadExecutorOptions {
  /// The name in metrics and errors, and of its threads (`top -H`): `name/1`, `name/2` and so on, of a longer name the
  /// beginning, since Linux shows 15 characters. 1 to 200 characters.
  std::string name = "thread";
  /// The most threads. They are started when tasks wait. 1 to 4096.
  unsigned max_threads = 40;
  /// How long a thread may have nothing to do before it ends. More than zero.
  std::chrono::nanoseconds idle_timeout = std::chrono::seconds(10);
  /// The most tasks that may be queued or running at once. 1 to 1,000,000,000.
  std::size_t max_pending = 100;
  /// What happens beyond `max_pending`.
  OverloadPolicy overload = OverloadPolicy::reject;
  /// How long a running task that was cancelled with `terminal` may go on to end itself (`this_task::stop_requested`),
  /// before its caller is told and nobody waits for it any more. Not negative.
  std::chrono::nanoseconds cancel_grace = std::chrono::milliseconds(100);
  /// As in CommonOptions.
  std::shared_ptr<InstanceGroup> instances = nullptr;
  std::shared_ptr<TaskRegistry> tasks = nullptr;
  std::shared_ptr<ResultStore> results = nullptr;

  bool operator==(const ThreadExecutorOptions&) const = default;
};

namespace detail {
class ThreadPool;
}

/// What can run on a thread: everything but a coroutine, which needs an event loop.
struct PlainCall {
  template <class C>
  static constexpr void require() {
    static_assert(!detail::is_awaitable<detail::call_result_t<C>>,
                  "bulkhead: a coroutine cannot run on a thread without an event loop: submit it to an IoExecutor.");
  }
  template <class C>
  static constexpr bool accepts = !detail::is_awaitable<detail::call_result_t<C>>;
};

/// Runs blocking functions on threads of its own, so that the event loop goes on. Takes any callable and arguments that
/// can be moved; nothing is encoded. What crashes here ends the program: see LocalExecutor for code that may.
///
/// Limits: a function cannot be ended from outside. When its `timeout` or `cpu_timeout` passes, or it was cancelled
/// with `terminal` and `cancel_grace` is over, it is asked to stop and its caller is told; its thread, its place among
/// `max_pending` and its `max_instances` are taken until it returns.
/// Cancellation: as BaseExecutor says; a queued task is removed at once.
/// Thread safety: as BaseExecutor. Destruction waits for no function: the callers of what has not ended get
/// `TaskCancelledError`, and a function that still runs goes on by itself until it returns. Await `shutdown` first.
class BULKHEAD_EXPORT ThreadExecutor final : public BaseExecutor, public TaskInterface<ThreadExecutor, PlainCall> {
 public:
  using Tasks = TaskInterface<ThreadExecutor, PlainCall>;
  using Tasks::async_submit;
  using Tasks::map;
  using Tasks::map_stream;
  using Tasks::spawn;
  using Tasks::submit;
  using Tasks::submit_after;
  using Tasks::submit_at;
  using Tasks::submit_every;
  using Tasks::operator();

  /// Starts no thread yet. Throws `std::invalid_argument` with the option's name and range.
  explicit ThreadExecutor(asio::any_io_executor io_executor, ThreadExecutorOptions options = {});
  ~ThreadExecutor() override;

  const ThreadExecutorOptions& options() const noexcept { return options_; }

 protected:
  void execute(Task task) override;
  void execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) override;
  asio::awaitable<void> stop(ShutdownOptions options) override;
  void add_metrics(Metrics& metrics) const override;
  bool withdraw(detail::TaskNode& node) override;

 private:
  ThreadExecutorOptions options_;
  std::shared_ptr<detail::ThreadPool> pool_;
};

}  // namespace bulkhead
