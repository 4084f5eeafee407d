// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/config.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bulkhead {

/// Options of a HybridExecutor. They are checked in its constructor.
struct HybridExecutorOptions {
  /// The name in metrics and errors. 1 to 200 characters.
  std::string name = "hybrid";
  /// Whether a task also goes on to the next executor when one is not running, or cannot start a worker.
  bool on_not_running = false;
  /// Whether it also goes on when a worker crashed before it had begun the task, or could not be given it at all. (A
  /// LocalExecutor reports that only when four workers in a row have died so: it tries others itself.)
  bool on_crash_before_start = false;
  /// Whether `shutdown` shuts the executors down, too.
  bool shut_down_executors = true;
  /// The most tasks that may be in it at once. 1 to 1,000,000,000.
  std::size_t max_pending = 1000;
  /// What happens beyond `max_pending`.
  OverloadPolicy overload = OverloadPolicy::reject;
  /// As in CommonOptions.
  std::shared_ptr<InstanceGroup> instances = nullptr;
  std::shared_ptr<TaskRegistry> tasks = nullptr;
  std::shared_ptr<ResultStore> results = nullptr;

  bool operator==(const HybridExecutorOptions&) const = default;
};

/// Gives each task to the first of several executors, and on to the next when that is full: a pool of processes first,
/// say, and then another, or threads. When all refuse, the task fails with what the last one said.
///
/// The executors have their own metrics, limits and events, in which the task appears, too; those of the hybrid count
/// it once, and it tells of no workers. Retries, `max_instances` and results of spawned tasks belong to the hybrid;
/// time limits and cancellation to the executor that has the task. `TaskOptions::isolation` is passed on, and
/// executors that do not isolate are passed over for such a task. Where one of them never reuses workers
/// (`SandboxPolicy::never_reuse_workers`), all must isolate. The sandbox is that of the executor that has the task. An
/// executor with `OverloadPolicy::wait` is never full, so that nothing goes on beyond it. Thread safety: as
/// BaseExecutor. It shares the executors' ownership.
class BULKHEAD_EXPORT HybridExecutor final : public BaseExecutor {
 public:
  /// `executors` in order of preference: at least one, none of them null.
  /// Throws `std::invalid_argument` with the option's name and range.
  HybridExecutor(asio::any_io_executor io_executor, std::vector<std::shared_ptr<BaseExecutor>> executors,
                 HybridExecutorOptions options = {});
  ~HybridExecutor() override;

  const HybridExecutorOptions& options() const noexcept { return options_; }
  const std::vector<std::shared_ptr<BaseExecutor>>& executors() const noexcept { return executors_; }
  /// Its own metrics, and then those of its executors.
  std::vector<Metrics> all_metrics() const;

 protected:
  void execute(Task task) override;
  asio::awaitable<void> stop(ShutdownOptions options) override;
  void add_metrics(Metrics& metrics) const override;
  bool cancel_in_flight(detail::TaskNode& node, asio::cancellation_type type) override;
  std::pair<std::shared_ptr<detail::ExecutorCore>, std::uint64_t> passed_on(
      const detail::TaskNode& node) const override;

 private:
  struct Engine;
  using Executors = std::vector<std::shared_ptr<BaseExecutor>>;

  static asio::awaitable<void> shut_down(std::shared_ptr<Engine> engine, Executors executors, ShutdownOptions options);

  HybridExecutorOptions options_;
  Executors executors_;
  std::shared_ptr<Engine> engine_;
};

}  // namespace bulkhead
