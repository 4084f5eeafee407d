// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/system_executor.hpp>

#include <memory>
#include <utility>
#include <vector>

namespace bulkhead {

/// Options of an Executor. They are checked by `startup`.
struct ExecutorOptions {
  /// For `run_blocking`: 40 threads, unless said otherwise.
  ThreadExecutorOptions threads = {.name = "blocking"};
  /// For `run_process`: a worker process per CPU, unless said otherwise.
  LocalExecutorOptions processes = {.name = "process"};
};

/// Threads for calls that block and processes for calls that compute or may crash, in one object that can be started,
/// shut down, and started again.
///
/// Thread safety: shared objects: safe.
class BULKHEAD_EXPORT Executor {
 public:
  /// Starts nothing. Its tasks complete on the awaiting coroutine's executor; `io_executor` is for what is done in
  /// between, and by default that of the system's threads.
  explicit Executor(asio::any_io_executor io_executor = asio::system_executor(), ExecutorOptions options = {});
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Makes the threads' and the processes' executors. Does nothing if it is running. May follow `shutdown`.
  /// Throws `std::invalid_argument` with the option's name and range, `WorkerStartError`; then it is not running.
  asio::awaitable<void> startup();
  /// Ends both, as the options say. Does nothing if it is not running; while another shutdown is under way it waits for
  /// the same end. Never blocks a thread. Cancellation: terminal stops the waiting, not the shutdown.
  asio::awaitable<void> shutdown(ShutdownOptions options = {});
  /// Between `startup` and `shutdown`.
  bool is_running() const;

  /// Runs a function on a thread, and gives what it returned or throws what it threw, as `ThreadExecutor::submit` does.
  /// Lazy. Resumes: on the awaiting coroutine's executor. Cancellation: as `BaseExecutor::submit`. The object may be
  /// destroyed meanwhile. Errors: also `ExecutorNotRunningError` ("not started. Call startup() first").
  template <class F, class... Args>
  requires detail::is_function<F>
  auto run_blocking(F&& function, Args&&... arguments) {
    return run_blocking(TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  auto run_blocking(TaskOptions options, F&& function, Args&&... arguments) {
    using C = detail::call_t<F, Args...>;
    PlainCall::require<C>();
    return run(threads(), "run_blocking", std::move(options),
               bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...));
  }
  /// Runs a function in a worker process, as `LocalExecutor::submit` does. All else as `run_blocking`.
  template <class F, class... Args>
  requires detail::is_function<F>
  auto run_process(F&& function, Args&&... arguments) {
    return run_process(TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  auto run_process(TaskOptions options, F&& function, Args&&... arguments) {
    using C = detail::call_t<F, Args...>;
    SendableCall::require<C>();
    return run(processes(), "run_process", std::move(options),
               bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...));
  }

  /// The two executors; null while it is not running.
  std::shared_ptr<ThreadExecutor> threads() const;
  std::shared_ptr<LocalExecutor> processes() const;
  /// Of both; nothing while it is not running.
  std::vector<Metrics> metrics() const;

 private:
  struct State;

  static asio::awaitable<void> shut_down(std::shared_ptr<State> state, ShutdownOptions options);
  [[noreturn]] static void throw_not_started(const char* function);

  // Holds the executor, which a shutdown may forget meanwhile.
  template <class E, class C>
  static asio::awaitable<detail::task_result_t<C>> run(std::shared_ptr<E> executor, const char* function,
                                                       TaskOptions options, C call) {
    if (!executor) throw_not_started(function);
    co_return co_await detail::await_call(detail::core_of(*executor), std::move(options), std::move(call));
  }

  std::shared_ptr<State> state_;
};

/// One Executor for the whole program, made at the first call, by whichever thread comes first; not started. It runs on
/// the system's threads (`asio::system_executor`) and lives to the program's end. The first call starts the fork server
/// if the program still has one thread; so call it early in `main`.
BULKHEAD_EXPORT Executor& get_executor();

}  // namespace bulkhead
