// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/common_options.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/intrusive_list.hpp>
#include <bulkhead/detail/mutex.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/task_id.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/prefer.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bulkhead {

class BaseExecutor;

namespace detail {

class Background;
class EventHub;
class Initiation;
class Quarantine;
class ScheduledRuns;
class WaitList;

// What every executor shares: admission, accounting, outcomes, time limits, cancellation, retries and events. Lives as
// long as any of its tasks.
//
// The path of a task: submit → admit (or wait, or refuse) → start → [the executor] → settle → deliver.
class BULKHEAD_EXPORT ExecutorCore : public std::enable_shared_from_this<ExecutorCore> {
 public:
  using Lock = std::unique_lock<Mutex>;
  // Tasks that a released slot let in: start them once the mutex is free.
  using Admitted = IntrusiveList<TaskNode, AdmissionLink>;

  // While this thread is in a hook of the owner's without the mutex; the owner is not destroyed meanwhile by another.
  class BULKHEAD_EXPORT HookCall {
   public:
    // Gives the mutex back.
    HookCall(ExecutorCore& core, Lock& lock);
    ~HookCall();
    HookCall(const HookCall&) = delete;
    HookCall& operator=(const HookCall&) = delete;

   private:
    ExecutorCore& core_;
  };

  ExecutorCore(BaseExecutor& owner, asio::any_io_executor io, CommonOptions options);
  ~ExecutorCore();

  // Takes a task from its caller: admits it, lets it wait, or refuses it.
  void submit(TaskNode* node);
  // Asks for the task's end; called by the caller's cancellation slot at any time, from any thread.
  void cancel(std::uint64_t id, asio::cancellation_type type);
  // Makes a task known to `cancel` before it is submitted, and gives it its number.
  std::uint64_t make_cancellable(TaskNode& node);
  // A task with this number, if it is known to `cancel` and not over.
  struct Seen {
    TaskStatus status = TaskStatus::queued;
    unsigned attempt = 1;
    std::uint64_t began_ns = 0;  // 0: it has not, or nobody has seen it
    std::optional<Progress> progress;
  };
  std::optional<Seen> look_at(std::uint64_t id) const;

  // So many tasks that have their outcome do not hold a place among `max_pending` any more. With the mutex, which is
  // given back in between.
  void give_back(std::size_t places, Lock& lock);
  // Gives a task its outcome and its caller the result.
  void settle(TaskNode* node, Outcome outcome, Delivery from);
  // The same with the mutex, which is given back.
  void settle(TaskNode* node, Outcome outcome, Delivery from, Lock& lock);
  // The same for a task that has completed, and has nothing special about it: `settle_at_once` accounts for it, and the
  // caller gives the mutex back and delivers its result on the executor's own Asio executor. With the mutex.
  bool may_settle_at_once(const TaskNode& node) const noexcept;
  void settle_at_once(TaskNode& node, std::uint64_t began_ns, std::uint64_t ended_ns) noexcept;
  // The same with an error.
  void fail(TaskNode* node, std::exception_ptr error, Outcome outcome, Delivery from);
  // Whether a run that failed so will be followed by another, as far as that is known without asking the policy's
  // predicate. With the mutex.
  bool would_retry(const TaskNode& node, RetryOn kind) const noexcept;
  // Why the task may not run now, if its key is in quarantine. With the mutex.
  std::exception_ptr quarantine_error(const TaskNode& node) const;
  // Hands admitted tasks to the executor, and leaves the list empty. Without the mutex.
  void start(Admitted& admitted);
  // Counts the task as running; false if nobody wants it any more.
  bool begin(TaskNode& node);

  // Gives a task its outcome whose node stays where it is, and holds its place until it is settled. With the mutex.
  void end_early(TaskNode& node, Outcome outcome, const std::exception_ptr& error);
  // Cancels the tasks that have not begun, or all: their callers get TaskCancelledError now.
  void cancel_open(bool running_too, const std::string& reason);
  // The same once `timeout` is over, if tasks are left then, whether or not anybody waits for that.
  void cancel_open_after(std::chrono::nanoseconds timeout, const std::string& reason);
  // Cancels the tasks that wait for one of their instances.
  void cancel_parked(const std::string& reason);
  // Refuses further tasks, and those that wait for admission.
  void stop_accepting();
  // Completes with true once no task is left, or with false after `timeout`.
  void wait_idle(std::optional<std::chrono::nanoseconds> timeout,
                 asio::any_completion_handler<void(std::exception_ptr, bool)> handler);
  // Something that goes on by itself, and ends when the executor stops accepting. False: it has.
  bool add_schedule(const std::shared_ptr<ScheduledRuns>& schedule);

  // The owner is being destroyed: no virtual call any more. Waits for those of other threads.
  void disown();
  // The Asio context is being destroyed: all handlers go, none is called.
  void context_gone() noexcept;

  // Events. All with the mutex.
  Subscription subscribe(Listener listener, EventMask mask, SubscribeOptions options);
  bool has_listeners() const noexcept { return events_ != nullptr; }
  bool wants(EventKind kind) const noexcept;
  bool wants_any(EventMask kinds) const noexcept;
  // Tells those who listen; what is known of the task is added.
  void tell(EventKind kind, const TaskNode& node, const std::exception_ptr& error = nullptr,
            const Progress* progress = nullptr);
  // A run of the task has begun, if that has not been told.
  void tell_started(TaskNode& node);
  // Whether anybody wants to know that.
  bool wants_started(const TaskNode& node) const noexcept {
    return (events_ != nullptr || node.wants_started) && !node.told_started;
  }
  // How far the task is; nobody is told of one that is over.
  void tell_progress(TaskNode& node, Progress&& progress);
  void tell_worker(EventKind kind, int worker, std::optional<int> signal = {}, std::optional<int> exit_code = {});

  Metrics snapshot() const;
  ErrorContext context_of(const TaskNode& node) const;
  static std::uint64_t now() noexcept;
  // Whether this thread delivers one outcome after another, whose handlers submit the next tasks. With the mutex.
  void set_in_passing(bool in_passing) noexcept {
    passing_thread_ = in_passing ? __builtin_thread_pointer() : nullptr;
    looks_to_skip_ = 0;
  }

  const std::string name;
  const asio::any_io_executor io;
  const std::size_t max_pending;
  const OverloadPolicy overload;
  const std::shared_ptr<InstanceGroup> instances;
  const std::shared_ptr<TaskRegistry> tasks;
  const std::shared_ptr<ResultStore> results;
  // What is to begin by itself. Shared: a schedule may outlive the executor.
  const std::shared_ptr<std::atomic<std::size_t>> scheduled = std::make_shared<std::atomic<std::size_t>>(0);

  mutable Mutex mutex;

  // Held by who calls `owner` without the other mutex, and to change it; to be locked before the other one.
  std::mutex owner_mutex;

  // Guarded by the mutex, all below.
  BaseExecutor* owner;
  bool accepting = true;
  bool leaving = false;  // the owner waits for the last calls of its hooks
  bool context_alive = true;
  // Called by `context_gone`, without the mutex: lets go of Asio objects.
  std::function<void()> on_context_gone;
  // If keys that crash worker after worker are refused.
  std::unique_ptr<Quarantine> quarantine;
  // Whether the executor itself keeps the Asio context at work while tasks are in flight; else the core does.
  bool owner_holds_work = false;
  // Whether the executor itself ends runs that last too long; else the core tells their callers, and lets them run on.
  bool owner_limits_runs = false;
  // The options with the isolation that a task without one has here.
  TaskOptions with_isolation(TaskOptions options) const;

  // Whether tasks may ask for an Isolation, whether they have it wherever they come to, and whether they must have one.
  // Set by the constructor of the owner.
  bool isolates = false;
  bool always_isolates = false;
  bool never_reuses_workers = false;
  // Whether outcomes come from threads that nobody waits for when the Asio context is destroyed: then they are posted
  // under the mutex, where it is known whether there still is a context.
  bool outcomes_from_threads = false;
  // How long a running task that was cancelled may go on before its caller is told, where the core does that.
  std::chrono::nanoseconds cancel_grace{0};
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
  IntrusiveList<TaskNode, AdmissionLink> waiting;

 private:
  using Work = std::decay_t<
      asio::prefer_result<const asio::any_io_executor&, asio::execution::outstanding_work_t::tracked_t>::type>;
  struct Limits;
  struct Retries;
  // A task that leaves without having run, and why: to be failed without the mutex.
  struct Withdrawn {
    TaskNode* node;
    std::exception_ptr error;
    Outcome outcome;
  };

  // Submitting and settling.
  std::shared_ptr<ExecutorCore> let_go_of_node(Delivery from);
  void refuse(TaskNode* node, std::exception_ptr error, Lock& lock, Outcome as = Outcome::failed);
  bool admit(TaskNode& node);
  bool is_plain(const TaskNode& node) const noexcept;
  void count_in(TaskNode& node);
  void start_one(TaskNode* node, Lock& lock, Initiation& initiation);
  void make_room(TaskNode* node, bool wanted, Delivery from, Lock& lock, bool grants);
  void count(TaskNode& node, Outcome outcome, const std::exception_ptr& error);
  void count_run(const TaskNode& node);
  void forget(TaskNode& node);
  void admit_waiting(Admitted& admitted);
  void complete_idle_waits();
  void nothing_left();
  void hold_work();
  std::optional<Work> take_work();
  std::uint64_t recent_now() noexcept;
  std::uint64_t time_in_passing() noexcept;

  // Ends that come from elsewhere.
  bool withdraw(TaskNode& node);
  void fail_all(const std::vector<Withdrawn>& withdrawn);
  void stop_running(TaskNode& node, asio::cancellation_type type);
  std::exception_ptr cancelled_error(const TaskNode& node, const std::string& reason) const;

  // Time limits.
  void watch_limits(TaskNode& node);
  void unwatch(TaskNode& node);
  void limits_passed();
  void limit_passed(TaskNode& node, std::vector<Withdrawn>& withdrawn);
  Background& background();

  // Instances.
  std::exception_ptr refused_by_instances(TaskNode& node);
  bool waits_for_instance(TaskNode& node);
  void instance_granted(std::uint64_t id, const std::string& key);
  bool unpark(TaskNode& node);
  void pass_grants_on();
  bool release_instance(TaskNode& node);

  // Retries and quarantine.
  bool refused_by_quarantine(TaskNode& node);
  bool asks_elsewhere(TaskNode& node, Outcome outcome, Delivery from);
  void note_crashes(const TaskNode& node, Outcome outcome);
  bool try_again(TaskNode& node, Outcome outcome, Lock& lock);
  static std::exception_ptr with_failed_runs(const TaskNode& node, const std::exception_ptr& error);
  std::chrono::nanoseconds pause_before_next(const TaskNode& node);
  void retry_later(TaskNode& node, std::chrono::nanoseconds pause);
  void arm_retry_timer();
  void retries_due();
  std::vector<TaskNode*> take_retries();
  std::vector<Withdrawn> end_retries();

  // Keeps this for as long as there are nodes: a reference of each one's would cost it two locked instructions.
  std::shared_ptr<ExecutorCore> self_;
  std::size_t nodes_ = 0;
  // For the tables of tasks: what one gives back is the next one's, and no task costs an allocation.
  std::pmr::unsynchronized_pool_resource tables_memory_;
  std::pmr::unordered_map<std::uint64_t, TaskNode*> cancellable_{&tables_memory_};
  // Those that are admitted, and wait for one of their instances.
  std::pmr::unordered_map<std::uint64_t, TaskNode*> parked_{&tables_memory_};
  std::vector<std::function<void()>> grants_;  // to be called without the mutex
  std::shared_ptr<WaitList> idle_waits_;
  std::shared_ptr<Background> background_;  // once a time limit was needed; given back by `disown`
  std::unique_ptr<Limits> limits_;
  std::unique_ptr<Retries> retries_;
  std::unique_ptr<EventHub> events_;
  std::vector<std::weak_ptr<ScheduledRuns>> schedules_;
  std::size_t schedules_cleared_at_ = 64;
  std::optional<Work> work_;  // while tasks are open
  std::vector<std::thread::id> hook_calls_;
  std::condition_variable_any hook_call_over_;
  std::uint64_t recent_ns_ = 0;
  std::uint64_t recent_ticks_ = 0;
  std::uint64_t looked_ticks_ = 0;
  unsigned looks_to_skip_ = 0;
  const void* passing_thread_ = nullptr;
};

inline bool ExecutorCore::may_settle_at_once(const TaskNode& node) const noexcept {
  return in_flight > 1 && open > 1 && waiting.empty() && !events_ && !quarantine && node.admitted && !node.settled &&
         !node.cancellable && !node.holds_instance && !node.record && !node.verdict && !node.options.has_rare();
}

inline void ExecutorCore::settle_at_once(TaskNode& node, std::uint64_t began_ns, std::uint64_t ended_ns) noexcept {
  ++runs;
  total_run_ns += ended_ns - began_ns;
  total_wait_ns += began_ns - node.submitted_ns;
  ++completed;
  --open;
  --in_flight;
  --nodes_;
  static_cast<OpenLink&>(node).unlink();
}

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
