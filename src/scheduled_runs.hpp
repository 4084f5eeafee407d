// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "run_times.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/timed_runs.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/system_timer.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

namespace bulkhead::detail {

/// What begins tasks of an executor by itself. Thread-safe; its timers are guarded by its mutex.
class ScheduledRuns {
 public:
  /// Counts as one of `count` until it is over.
  explicit ScheduledRuns(std::shared_ptr<std::atomic<std::size_t>> count) : count_(std::move(count)) { ++*count_; }
  virtual ~ScheduledRuns() { note_over(); }
  ScheduledRuns(const ScheduledRuns&) = delete;
  ScheduledRuns& operator=(const ScheduledRuns&) = delete;
  /// No further run begins: its user or its executor ends it.
  virtual void cancel() = 0;
  /// The Asio context is being destroyed.
  virtual void context_gone() noexcept = 0;

 protected:
  /// No further run begins. With the mutex.
  void note_over() noexcept;

 private:
  std::shared_ptr<std::atomic<std::size_t>> count_;
};

/// One run, at a time.
class DelayedRun final : public ScheduledRuns, public std::enable_shared_from_this<DelayedRun> {
 public:
  DelayedRun(const std::shared_ptr<ExecutorCore>& core, std::shared_ptr<TaskRecord> record,
             std::function<void()> start);

  void arm(StartTime time);
  void cancel() override;
  void context_gone() noexcept override;

 private:
  std::function<void()> take();

  const std::weak_ptr<ExecutorCore> core_;
  const std::shared_ptr<TaskRecord> record_;
  const asio::any_io_executor io_;
  std::mutex mutex_;
  std::function<void()> start_;  // null: begun, or cancelled
  std::optional<asio::steady_timer> steady_;
  std::optional<asio::system_timer> system_;
};

/// Run after run.
class RepeatedRuns final : public ScheduledRuns, public std::enable_shared_from_this<RepeatedRuns> {
 public:
  RepeatedRuns(const std::shared_ptr<ExecutorCore>& core, RunTimes times, ScheduleOptions options, StartRun start);

  void begin();
  void cancel() override;
  void context_gone() noexcept override;

  bool active() const;
  std::uint64_t runs() const;
  std::uint64_t missed();
  std::uint64_t failures() const;
  std::exception_ptr last_error() const;
  std::optional<std::chrono::steady_clock::time_point> next() const;

 private:
  using Work = std::decay_t<
      asio::prefer_result<const asio::any_io_executor&, asio::execution::outstanding_work_t::tracked_t>::type>;

  void look();
  bool run_cancelled();
  void arm();
  void told(const std::exception_ptr& error);
  void over();

  const asio::any_io_executor io_;
  const std::function<void(const std::exception_ptr&)> on_error_;
  mutable std::mutex mutex_;
  RunTimes times_;
  StartRun start_;
  std::optional<asio::steady_timer> timer_;  // empty: it is over
  std::optional<Work> work_;                 // until then; no timer runs while it waits for the end of a run
  bool cancelled_ = false;
  std::uint64_t failures_ = 0;
  std::exception_ptr last_error_;
};

}  // namespace bulkhead::detail
