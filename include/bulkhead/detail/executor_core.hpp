// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/intrusive_list.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/retry_policy.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/prefer.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bulkhead {

class BaseExecutor;
enum class OverloadPolicy : std::uint8_t;

namespace detail {

class Background;
class Initiation;
class Quarantine;

// What every executor shares: admission, accounting, outcomes and cancellation. Lives as long as any of its tasks.
//
// The path of a task: submit → admit (or wait, or refuse) → start → [the executor] → settle → deliver.
class BULKHEAD_EXPORT ExecutorCore : public std::enable_shared_from_this<ExecutorCore> {
 public:
  using Lock = std::unique_lock<std::mutex>;
  // Tasks that a released slot let in: start them once the mutex is free.
  using Admitted = std::vector<TaskNode*>;

  ExecutorCore(BaseExecutor& owner, asio::any_io_executor io, std::string name, std::size_t max_pending,
               OverloadPolicy overload);
  ~ExecutorCore();

  // Takes a task from its caller: admits it, lets it wait, or refuses it.
  void submit(TaskNode* node);
  // Asks for the task's end; called by the caller's cancellation slot at any time, from any thread.
  void cancel(std::uint64_t id, asio::cancellation_type type);
  // Makes a task known to `cancel` before it is submitted, and gives it its number.
  std::uint64_t make_cancellable(TaskNode& node);

  // So many tasks that have their outcome do not hold a place among `max_pending` any more. With the mutex, which is
  // given back in between.
  void give_back(std::size_t places, Lock& lock);
  // Gives a task its outcome and its caller the result.
  void settle(TaskNode* node, Outcome outcome, Delivery from);
  // The same with the mutex, which is given back.
  void settle(TaskNode* node, Outcome outcome, Delivery from, Lock& lock);
  // The same with an error.
  void fail(TaskNode* node, std::exception_ptr error, Outcome outcome, Delivery from);
  // Whether a run that failed so will be followed by another, as far as that is known without asking the policy's
  // predicate. With the mutex.
  bool would_retry(const TaskNode& node, RetryOn kind) const noexcept;
  // Why the task may not run now, if its key is in quarantine. With the mutex.
  std::exception_ptr quarantine_error(const TaskNode& node) const;
  // The accounting part of `settle`, for executors that hold the mutex. False: it had been settled early, and only
  // waits to be destroyed.
  bool account(TaskNode& node, Outcome outcome, Admitted& admitted);
  // Hands admitted tasks to the executor. Without the mutex.
  void start(const Admitted& admitted);
  // Counts the task as running; false if nobody wants it any more.
  bool begin(TaskNode& node);

  // Cancels the tasks that have not begun, or all: their callers get TaskCancelledError now.
  void cancel_open(bool running_too, const std::string& reason);
  // Refuses further tasks, and those that wait for admission.
  void stop_accepting();
  // Completes with true once no task is left, or with false after `timeout`.
  void wait_idle(std::optional<std::chrono::nanoseconds> timeout,
                 asio::any_completion_handler<void(std::exception_ptr, bool)> handler);
  // Completes those who wait for the executor to be idle, if it is. With the mutex; call the result without it.
  std::vector<asio::any_completion_handler<void(std::exception_ptr, bool)>> take_idle_waiters();

  // The owner is being destroyed: no virtual call any more.
  void disown();
  // The Asio context is being destroyed: all handlers go, none is called.
  void context_gone() noexcept;

  Metrics snapshot() const;
  ErrorContext context_of(const TaskNode& node) const;
  static std::uint64_t now() noexcept;

  const std::string name;
  const asio::any_io_executor io;
  const std::size_t max_pending;
  const OverloadPolicy overload;

  mutable std::mutex mutex;

  // Guarded by the mutex, all below.
  BaseExecutor* owner;
  bool accepting = true;
  bool context_alive = true;
  // Called by `context_gone`, without the mutex: lets go of Asio objects.
  std::function<void()> on_context_gone;
  // If keys that crash worker after worker are refused.
  std::unique_ptr<Quarantine> quarantine;
  // Whether the executor itself keeps the Asio context at work while tasks are in flight; else the core does.
  bool owner_holds_work = false;
  std::size_t in_flight = 0;  // admitted tasks whose slot is not free yet
  std::size_t open = 0;       // submitted tasks without an outcome
  std::size_t running = 0;    // those of them that run, as told by `begin`
  std::size_t waiting_count = 0;
  std::uint64_t last_id = 0;
  std::uint64_t submitted = 0;
  std::uint64_t completed = 0;
  std::uint64_t failed = 0;
  std::uint64_t rejected = 0;
  std::uint64_t cancelled = 0;
  std::uint64_t timed_out = 0;
  std::uint64_t retried = 0;
  std::uint64_t quarantined = 0;
  std::uint64_t runs = 0;
  std::uint64_t total_run_ns = 0;
  std::uint64_t total_wait_ns = 0;
  IntrusiveList<TaskNode, OpenLink> open_tasks;
  IntrusiveList<TaskNode, QueuedTask> waiting;

 private:
  using Work = std::decay_t<
      asio::prefer_result<const asio::any_io_executor&, asio::execution::outstanding_work_t::tracked_t>::type>;
  struct IdleWait;
  struct Deadlines;
  struct Retries;

  bool refused_by_quarantine(TaskNode& node);
  void note_crashes(const TaskNode& node, Outcome outcome);
  void count_run(const TaskNode& node);
  bool try_again(TaskNode& node, Outcome outcome, Lock& lock);
  void retry_later(TaskNode& node);
  void arm_retry_timer();
  void retries_due();
  Admitted take_retries();
  void end_retries(const Admitted& nodes);
  bool admit(TaskNode& node);
  void start_one(TaskNode* node, Lock& lock, Initiation& initiation);
  void forget(TaskNode& node);
  void count(TaskNode& node, Outcome outcome);
  void admit_waiting(Admitted& admitted);
  void arm_queue_deadline(TaskNode& node);
  void queue_deadline_passed();
  Background& background();
  void cancel_early(TaskNode& node, const std::string& reason, const Lock&);
  std::uint64_t recent_now() noexcept;

  std::unordered_map<std::uint64_t, TaskNode*> cancellable_;
  std::vector<std::unique_ptr<IdleWait>> idle_waits_;
  std::shared_ptr<Background> background_;  // once a time limit was needed; given back by `disown`
  std::unique_ptr<Deadlines> deadlines_;
  std::unique_ptr<Retries> retries_;
  std::uint64_t last_idle_wait_ = 0;
  std::optional<Work> work_;  // while tasks are open
  std::uint64_t recent_ns_ = 0;
  std::uint64_t recent_ticks_ = 0;
};

// While an initiating function runs on this thread: what it started must not complete inside it.
class BULKHEAD_EXPORT Initiation {
 public:
  Initiation() noexcept : outer_(current()) { current() = this; }
  ~Initiation() { current() = outer_; }
  Initiation(const Initiation&) = delete;
  Initiation& operator=(const Initiation&) = delete;

  // The task that is being handed to its executor, and whether it was dropped there.
  TaskNode* starting = nullptr;
  bool dropped = false;

  static Initiation*& current() noexcept;
  static Delivery delivery() noexcept { return current() ? Delivery::initiating : Delivery::elsewhere; }

 private:
  Initiation* outer_;
};

}  // namespace detail
}  // namespace bulkhead
