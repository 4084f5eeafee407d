// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/config.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>

namespace bulkhead {

/// Options of an IoExecutor. They are checked in its constructor.
struct IoExecutorOptions {
  /// The name in metrics and errors, and of its threads. 1 to 200 characters.
  std::string name = "io";
  /// Coroutines that may run at once; others wait. 1 to 1,000,000.
  std::size_t max_concurrent = 100;
  /// The Asio executor that coroutines run on, each on a strand of its own. Empty: that of the IoExecutor. Its context
  /// must outlive the executor.
  asio::any_io_executor run_on = {};
  /// The most threads for plain functions. 1 to 4096.
  unsigned max_threads = 40;
  /// How long a thread may have nothing to do before it ends. More than zero.
  std::chrono::nanoseconds idle_timeout = std::chrono::seconds(10);
  /// The most tasks that may be queued or running at once. 1 to 1,000,000,000.
  std::size_t max_pending = 1000;
  /// What happens beyond `max_pending`.
  OverloadPolicy overload = OverloadPolicy::reject;
  /// How long a running task that was cancelled with `terminal` may take to end, before its caller is told and nobody
  /// waits for it any more. Not negative.
  std::chrono::nanoseconds cancel_grace = std::chrono::milliseconds(100);
  /// As in CommonOptions.
  std::shared_ptr<InstanceGroup> instances = nullptr;
  std::shared_ptr<TaskRegistry> tasks = nullptr;
  std::shared_ptr<ResultStore> results = nullptr;

  bool operator==(const IoExecutorOptions&) const = default;
};

/// Runs coroutines on the event loop: `submit(function, arguments...)` with a function that returns
/// `asio::awaitable<T>`, and gives `T`. A plain function runs on a thread, as in a ThreadExecutor.
///
/// Each coroutine has a strand of its own. While it runs, `this_task` knows it, in whatever handler it goes on.
/// Cancellation: as BaseExecutor says. A coroutine that runs gets terminal and partial cancellations through its own
/// slot, so that what it awaits is cancelled (by default coroutines let only terminal pass), and
/// `this_task::stop_requested` is set; its caller is told when it has ended, or after `cancel_grace`. When its
/// `timeout` passes it is cancelled in the same way, and its caller is told at once. It keeps its place until it has
/// ended. `cpu_timeout` holds for plain functions only: coroutines share the event loop's threads, and a task with one
/// is refused with `std::invalid_argument`. Thread safety: as BaseExecutor. Destruction cancels what runs and waits for
/// nothing; await `shutdown` first.
class BULKHEAD_EXPORT IoExecutor final : public BaseExecutor {
 public:
  /// Throws `std::invalid_argument` with the option's name and range.
  explicit IoExecutor(asio::any_io_executor io_executor, IoExecutorOptions options = {});
  ~IoExecutor() override;

  const IoExecutorOptions& options() const noexcept { return options_; }

 protected:
  void execute(Task task) override;
  void execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) override;
  asio::awaitable<void> stop(ShutdownOptions options) override;
  void add_metrics(Metrics& metrics) const override;
  bool withdraw(detail::TaskNode& node) override;
  void stop_running(detail::TaskNode& node, asio::cancellation_type type) override;

 private:
  struct Engine;
  IoExecutorOptions options_;
  std::shared_ptr<Engine> engine_;
};

}  // namespace bulkhead
