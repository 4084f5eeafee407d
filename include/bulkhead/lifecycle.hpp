// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/executor_registry.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <vector>

namespace bulkhead {

/// Options of a Lifecycle.
struct LifecycleOptions {
  /// What stops the program. None: only `request_stop`.
  std::vector<int> signals = {SIGINT, SIGTERM};
  /// How long stopping may take in all: the steps first, then the executors' tasks. What still runs is ended then. Not
  /// negative.
  std::chrono::nanoseconds drain_timeout = std::chrono::seconds(10);
  /// What its executors share.
  SharedParts shared = {};
};

/// The life of a server: starts the fork server, owns the executors, waits for the signal to stop, and then lets all
/// that is under way end within a limit.
///
///     int main() {
///       asio::io_context io;
///       bulkhead::Lifecycle lifecycle(io.get_executor());  // the fork server: before the program has threads
///       asio::co_spawn(io, serve(lifecycle), rethrow);     // lifecycle.on_stop(stop accepting) ...
///       asio::co_spawn(io, lifecycle.run(), rethrow);      // ... and ends when the program is to end
///       io.run();
///     }
///
/// Thread safety: shared objects: safe. It must outlive `run`.
class BULKHEAD_EXPORT Lifecycle {
 public:
  using Step = std::function<asio::awaitable<void>()>;

  /// Starts the fork server, and catches the signals from here on, so that none is lost before `run`.
  /// Throws `WorkerStartError` if the program has several threads; `std::invalid_argument` for a negative limit;
  /// `boost::system::system_error` for a signal that cannot be caught.
  explicit Lifecycle(asio::any_io_executor io_executor, LifecycleOptions options = {});
  ~Lifecycle();
  Lifecycle(const Lifecycle&) = delete;
  Lifecycle& operator=(const Lifecycle&) = delete;

  /// The program's executors.
  ExecutorRegistry& executors() noexcept;

  /// Adds what is to be done when the program stops, before its executors are shut down: close the listening sockets,
  /// say, and wait for the sessions. Steps run one after the other, the last added first, and one that is added
  /// while the program stops is the next; after `run` it is not done any more. Each is cancelled (terminal) when the
  /// time for stopping is over, and not waited for any longer. What one throws does not keep the others from running.
  void on_stop(Step step);

  /// Stops the program as a signal does. The signals are still caught then, until the first one comes or all is over.
  void request_stop();
  /// Whether it is stopping, or has stopped.
  bool stopping() const noexcept;

  /// Waits for a signal or `request_stop`, runs the steps, shuts all executors down, and gives the signal's number, or
  /// 0. From the signal on its default action holds again: a second Ctrl-C ends the program the hard way.
  ///
  /// Resumes: on the awaiting coroutine's executor. Cancellation: terminal, while it waits for a signal; not later.
  /// Errors: the first that a step threw, or `ShutdownFailedError`, when all is over; `std::logic_error` if it
  /// is called while another call waits or after one has ended.
  asio::awaitable<int> run();

 private:
  struct State;
  static asio::awaitable<int> run(std::shared_ptr<State> state);

  std::shared_ptr<State> state_;
};

}  // namespace bulkhead
