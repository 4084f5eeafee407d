// SPDX-License-Identifier: BSL-1.0
#include "background.hpp"
#include "event_hub.hpp"
#include "retries.hpp"
#include "scheduled_runs.hpp"
#include "time_limits.hpp"
#include "wait_list.hpp"

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_record.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/bind_executor.hpp>

#include <algorithm>
#include <thread>
#include <utility>

// Ends that do not come from the task itself: its caller cancels it, the executor shuts down, is destroyed, or loses
// its Asio context.

namespace bulkhead::detail {
namespace {

constexpr auto kStopping = asio::cancellation_type::terminal | asio::cancellation_type::partial;

bool has(asio::cancellation_type type, asio::cancellation_type asked) noexcept {
  return (type & asked) != asio::cancellation_type::none;
}

}  // namespace

// With the mutex.
std::exception_ptr ExecutorCore::cancelled_error(const TaskNode& node, const std::string& reason) const {
  // An executor that is being destroyed cannot be asked any more: then it may have begun.
  const bool begun = node.runs_here || owner == nullptr || owner->has_begun(node);
  const auto stage = node.waiting ? TaskCancelledError::Stage::waiting
                     : begun      ? TaskCancelledError::Stage::running
                                  : TaskCancelledError::Stage::queued;
  return std::make_exception_ptr(TaskCancelledError(stage, context_of(node), reason));
}

// With the mutex: gives a task its outcome whose node stays where it is, and holds its place until it comes from there.
// Posting and not dispatching, since user code must not run under the mutex; and under the mutex, since the context may
// be destroyed at any other time.
void ExecutorCore::end_early(TaskNode& node, Outcome outcome, const std::exception_ptr& cause) {
  const std::exception_ptr error = outcome == Outcome::cancelled ? with_failed_runs(node, cause) : cause;
  count(node, outcome, error);
  if (!context_alive) return;
  node.deliver_early(error, Delivery::initiating);
  take_work();
  nothing_left();
}

// With the mutex: what has kept the event loop at work, if there is nothing to wait for any more.
std::optional<ExecutorCore::Work> ExecutorCore::take_work() {
  std::optional<Work> work;
  if (open == 0 && waiting.empty()) work.swap(work_);
  return work;
}

// With the mutex: lets the event loop end, if there is nothing to wait for.
void ExecutorCore::nothing_left() {
  if (owner_holds_work && owner != nullptr && context_alive && open == 0 && waiting.empty()) owner->nothing_left();
}

// With the mutex: takes the task from where it waits. True: the caller has to give it its outcome.
bool ExecutorCore::withdraw(TaskNode& node) {
  if (node.runs_here) return false;
  if (node.retry_at_ns != 0) {
    retries_->remove(node);
    return true;
  }
  return unpark(node) || (owner != nullptr && owner->withdraw(node));
}

void ExecutorCore::fail_all(const std::vector<Withdrawn>& withdrawn) {
  for (const Withdrawn& task : withdrawn) fail(task.node, task.error, task.outcome, Delivery::initiating);
  if (!withdrawn.empty()) pass_grants_on();
}

// With the mutex: asks a task that runs in this process to stop.
void ExecutorCore::stop_running(TaskNode& node, asio::cancellation_type type) {
  node.stop_requested.store(1, std::memory_order_release);
  if (owner != nullptr) owner->stop_running(node, type);
}

void ExecutorCore::cancel_open(bool running_too, const std::string& reason) {
  std::vector<Withdrawn> withdrawn;
  {
    const Lock lock(mutex);
    for (TaskNode* node = open_tasks.front(); node != nullptr;) {
      TaskNode* const following = open_tasks.next(*node);
      const auto error = [&] { return cancelled_error(*node, reason); };
      if (withdraw(*node)) {
        node->last_run = true;
        withdrawn.push_back({node, error(), Outcome::cancelled});
      } else if (running_too || !node->runs_here) {
        if (node->runs_here) stop_running(*node, asio::cancellation_type::terminal);
        end_early(*node, Outcome::cancelled, error());
      }
      node = following;
    }
  }
  fail_all(withdrawn);
}

void ExecutorCore::cancel_parked(const std::string& reason) {
  std::vector<Withdrawn> withdrawn;
  {
    const Lock lock(mutex);
    while (!parked_.empty()) {
      TaskNode& node = *parked_.begin()->second;
      withdrawn.push_back({&node, cancelled_error(node, reason), Outcome::cancelled});
      unpark(node);
    }
  }
  fail_all(withdrawn);
}

void ExecutorCore::cancel_open_after(std::chrono::nanoseconds timeout, const std::string& reason) {
  wait_idle(timeout, asio::bind_executor(io, [self = shared_from_this(), reason](std::exception_ptr, bool idle) {
              if (!idle) self->cancel_open(true, reason);
            }));
}

void ExecutorCore::cancel(std::uint64_t id, asio::cancellation_type type) {
  if (!has(type, kStopping | asio::cancellation_type::total)) return;
  const bool stop = has(type, kStopping);
  TaskNode* never_admitted = nullptr;
  std::vector<Withdrawn> withdrawn;
  std::optional<Work> work;  // until the handler has been handed over
  std::shared_ptr<ExecutorCore> keep;
  {
    Lock lock(mutex);
    const auto found = cancellable_.find(id);
    if (found == cancellable_.end()) return;
    TaskNode& node = *found->second;
    if (node.waiting) {
      node.outcome = Outcome::cancelled;
      node.error = cancelled_error(node, {});
      waiting.erase(node);
      node.waiting = false;
      --waiting_count;
      // It never became one of the tasks in flight, yet its caller gets an outcome: both sides of the sum count it.
      ++submitted;
      ++cancelled;
      if (events_) {
        tell(EventKind::submitted, node);
        tell(EventKind::cancelled, node, node.error);
      }
      if (node.record) node.record->set_status(TaskStatus::cancelled);
      forget(node);
      complete_idle_waits();
      work = take_work();
      nothing_left();
      never_admitted = &node;
      keep = let_go_of_node(Delivery::initiating);
      release_instance(node);
    } else if (!static_cast<OpenLink&>(node).linked()) {
      node.cancel_asked = true;  // Its initiation is under way.
      return;
    } else {
      const bool waits_for_retry = node.retry_at_ns != 0;
      if (withdraw(node)) {
        withdrawn.push_back({&node,
                             cancelled_error(node, waits_for_retry ? "it had failed, and waited for its next run" : ""),
                             Outcome::cancelled});
        node.last_run = true;
      } else {
        // It may have failed already, and be about to wait for another run.
        if (stop) node.last_run = true;
        if (owner != nullptr && owner->cancel_in_flight(node, type)) return;
        if (!node.runs_here) {
          if (stop) node.stop_requested.store(1, std::memory_order_release);
          end_early(node, Outcome::cancelled, cancelled_error(node, {}));
          return;
        }
        if (!stop) return;
        stop_running(node, type);
        if (!has(type, asio::cancellation_type::terminal)) return;
        if (cancel_grace.count() == 0) {
          end_early(node, Outcome::cancelled, cancelled_error(node, {}));
        } else if (node.place.kill_at == 0) {
          node.place.kill_at = now() + static_cast<std::uint64_t>(cancel_grace.count());
          watch_limits(node);
        }
        return;
      }
    }
  }
  // Never inside the call to `emit`: the caller may hold locks of its own.
  if (never_admitted != nullptr) {
    pass_grants_on();
    never_admitted->deliver(Delivery::initiating);
  }
  fail_all(withdrawn);
}

void ExecutorCore::stop_accepting() {
  std::vector<TaskNode*> refused;
  std::vector<std::weak_ptr<ScheduledRuns>> schedules;
  std::vector<Withdrawn> to_retry;
  {
    const Lock lock(mutex);
    accepting = false;
    schedules.swap(schedules_);
    to_retry = end_retries();
    while (TaskNode* node = waiting.pop_front()) {
      --waiting_count;
      node->waiting = false;
      unwatch(*node);
      refused.push_back(node);
    }
    complete_idle_waits();
  }
  for (const auto& weak : schedules) {
    if (const auto schedule = weak.lock()) schedule->cancel();
  }
  for (TaskNode* node : refused) {
    Lock lock(mutex);
    refuse(node,
           std::make_exception_ptr(ExecutorNotRunningError(
               context_of(*node), "the executor was shut down while the task waited for admission")),
           lock);
  }
  fail_all(to_retry);
}

bool ExecutorCore::add_schedule(const std::shared_ptr<ScheduledRuns>& schedule) {
  const Lock lock(mutex);
  if (!accepting || owner == nullptr) return false;
  // Now and then, so that each costs little.
  if (schedules_.size() >= schedules_cleared_at_) {
    std::erase_if(schedules_, [](const auto& known) { return known.expired(); });
    schedules_cleared_at_ = std::max<std::size_t>(64, 2 * schedules_.size());
  }
  schedules_.push_back(schedule);
  return true;
}

ExecutorCore::HookCall::HookCall(ExecutorCore& core, Lock& lock) : core_(core) {
  core_.hook_calls_.push_back(std::this_thread::get_id());
  lock.unlock();
}

ExecutorCore::HookCall::~HookCall() {
  const Lock lock(core_.mutex);
  core_.hook_calls_.erase(std::find(core_.hook_calls_.begin(), core_.hook_calls_.end(), std::this_thread::get_id()));
  core_.hook_call_over_.notify_all();
}

void ExecutorCore::disown() {
  stop_accepting();
  cancel_parked("the executor was destroyed");
  // Here and not in the destructor, which may run on the background thread: that thread cannot join itself.
  std::shared_ptr<Background> released;
  std::unique_ptr<Limits> timers;
  std::unique_ptr<Retries> retries;
  {
    Lock lock(mutex);
    leaving = true;
    // Not for this thread's own: a task that an executor runs inside `submit` may destroy the executor. And without
    // `owner_mutex`: a task that another thread runs so may begin a shutdown.
    hook_call_over_.wait(lock, [this] {
      const auto self = std::this_thread::get_id();
      return std::all_of(hook_calls_.begin(), hook_calls_.end(), [self](auto thread) { return thread == self; });
    });
  }
  {
    const std::lock_guard nobody_stops_it(owner_mutex);
    const Lock lock(mutex);
    retries.swap(retries_);
    owner = nullptr;
    on_context_gone = nullptr;
    for (TaskNode* node = open_tasks.front(); node != nullptr; node = open_tasks.next(*node)) {
      if (!owner_limits_runs) node->place.deadline = 0;
    }
    timers.swap(limits_);
    released.swap(background_);
  }
  timers.reset();
}

void ExecutorCore::context_gone() noexcept {
  std::vector<TaskNode*> refused;
  std::vector<std::shared_ptr<void>> handlers;
  std::function<void()> let_go;
  std::unique_ptr<Retries> retries;
  std::unique_ptr<EventHub> events;
  std::vector<std::weak_ptr<ScheduledRuns>> schedules;
  {
    const Lock lock(mutex);
    accepting = false;
    context_alive = false;
    schedules.swap(schedules_);
    events.swap(events_);
    for (TaskNode* node : take_retries()) {
      count(*node, Outcome::cancelled, nullptr);
      refused.push_back(node);
    }
    retries.swap(retries_);
    while (!parked_.empty()) {
      TaskNode& node = *parked_.begin()->second;
      unpark(node);
      count(node, Outcome::cancelled, nullptr);
      refused.push_back(&node);
    }
    while (TaskNode* node = waiting.pop_front()) {
      --waiting_count;
      forget(*node);
      refused.push_back(node);
    }
    while (TaskNode* node = open_tasks.front()) {
      count(*node, Outcome::cancelled, nullptr);
      handlers.push_back(node->take_handler());
    }
    work_.reset();
    let_go = on_context_gone;
  }
  // What users gave is destroyed without the mutex: its destructors may ask this executor something, or be its last
  // owner's.
  if (events) events->context_gone();
  for (const auto& weak : schedules) {
    if (const auto schedule = weak.lock()) schedule->context_gone();
  }
  idle_waits_->context_gone();
  for (TaskNode* node : refused) {
    std::shared_ptr<ExecutorCore> keep;
    {
      const Lock lock(mutex);
      release_instance(*node);
      keep = let_go_of_node(Delivery::initiating);
    }
    node->destroy();
  }
  pass_grants_on();
  if (let_go) let_go();
}

}  // namespace bulkhead::detail
