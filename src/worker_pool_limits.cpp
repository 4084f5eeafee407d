// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "run_limits.hpp"
#include "time_limits.hpp"

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <exception>
#include <utility>

// Ends tasks before they end themselves: taking back, cancelling, time limits.

namespace bulkhead::detail {
namespace {

// How often it is looked whether workers take up what lies in their rings. One that is awake does so within
// microseconds; one that has not after this time is stopped, or the machine is overloaded: others may be quicker.
constexpr std::uint64_t kHeadInterval = 100'000'000;  // ns

// A worker that has taken nothing up for so long is stopped: not even an overloaded machine makes it wait so long.
constexpr std::uint64_t kStopped = 5'000'000'000;  // ns

// So often a task is taken back from a worker that was ready and does not take it up, and for so long at the least.
// Workers that are stopped are no task's fault, but it is not stopped ten times in a row by chance; where the machine
// is overloaded, ten may follow within milliseconds.
constexpr unsigned kMostDenials = 10;

// A task with a shorter time limit is not to keep its worker longer by pretending never to have begun, and a stopped
// worker costs it less. Still ten looks.
constexpr std::uint64_t kLeastPatience = 10 * kHeadInterval;

std::uint64_t patience(const TaskNode* node) {
  if (node == nullptr) return kLeastPatience;  // what it had was taken back: nothing is lost with it
  if (!node->options.timeout()) return kStopped;
  return std::clamp(static_cast<std::uint64_t>(node->options.timeout()->count()), kLeastPatience, kStopped);
}

// How long the caller of a task whose worker was killed waits for its death, so that usually its place is free again
// when it is told: a small worker takes 0.1 ms. Much longer, and limits would be kept late.
constexpr auto kTellPatience = std::chrono::milliseconds(2);

// After a kill the kernel takes about 0.1 ms, and 100 ms per GiB that the worker had. What lasts longer hangs in the
// kernel.
constexpr auto kKillPatience = std::chrono::seconds(5);

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Taking back.

// The task is not in the ring any more.
TaskNode* WorkerPool::clear(Entry& entry) {
  TaskNode* const node = std::exchange(entry.node, nullptr);
  if (node != nullptr && (node->progress_relay || node->wants_started)) --observed_;
  return node;
}

void WorkerPool::free_entry(Worker& worker, Entry& entry) {
  clear(entry);
  if (entry.block_size > 0) worker.channel.release(entry.block_offset, entry.block_size);
  entry.block_size = 0;
  entry.buffers.clear();
}

// True: the worker has not begun the request and never will; its node is free. False: the worker has taken it up; it
// runs, or will be answered with `skipped`.
bool WorkerPool::take_back(Worker& worker, std::uint32_t sequence) {
  Entry& entry = worker.entry(sequence);
  const bool counts_as_begun = taken_up(worker, sequence);
  entry.revoked = true;
  const bool taken_back = worker.channel.take_back(sequence) && !counts_as_begun;
  const bool published = static_cast<std::int32_t>(sequence - worker.channel.published()) < 0;
  if (published && !taken_back) return false;
  if (entry.node != nullptr) dispatcher_.taken_back(worker.index);
  free_entry(worker, entry);
  return true;
}

// Takes back all that lies behind a request. False: one of them has been taken up, so the request itself is over.
bool WorkerPool::take_back_behind(Worker& worker, std::uint32_t first) {
  for (std::uint32_t sequence = worker.reserved; sequence != first + 1;) {
    --sequence;
    TaskNode* const node = worker.entry(sequence).node;
    if (node == nullptr) continue;  // taken back before, or still being written
    if (!take_back(worker, sequence)) return false;
    queue_again(*node);
  }
  return true;
}

// All that it has not begun.
void WorkerPool::take_all_back(Worker& worker) {
  const std::uint32_t head = worker.collected;
  TaskNode* const node = head != worker.reserved ? worker.entry(head).node : nullptr;
  take_back_behind(worker, taken_up(worker, head) ? head : head - 1);
  if (node != nullptr && node->place.stage == TaskNode::Stage::queued) count_denial(worker, *node);
}

// A worker that was ready has not taken the task up, or denies it. If that goes on, the task is failed, and the last of
// them is not trusted any more.
void WorkerPool::count_denial(Worker& worker, TaskNode& node) {
  const std::uint64_t now = ExecutorCore::now();
  if (node.place.denials++ == 0) node.place.denied_since_ns = now;
  if (node.place.denials < kMostDenials || now - node.place.denied_since_ns < kLeastPatience) return;
  dispatcher_.remove(node);
  WorkerCrashedError::Ending ending;
  ending.signal = SIGKILL;
  ErrorContext context = core_->context_of(node);
  if (worker.pid > 0) context.worker_pid = worker.pid;
  const std::string reason = fmt::format(
      "it was killed, the last of {} workers in a row that did not take the task up, or deny it", node.place.denials);
  decide(node, std::make_exception_ptr(WorkerCrashedError(std::move(ending), std::move(context), reason)),
         Outcome::failed);
  kill(worker, Killed::stopped, reason);
}

// A task that has not begun waits once more, in its old place.
void WorkerPool::queue_again(TaskNode& node) {
  node.altered = true;
  node.renewable = false;
  node.began_ns = 0;
  disarm_deadline(node);
  enqueue(node);
  watch_limits(node);
}

// Sees to it that a worker that is stopped keeps no task from those that are not.
void WorkerPool::watch_heads() {
  if (watching_heads_ || in_rings_ == 0) return;
  watching_heads_ = true;
  head_timer_->expires_after(std::chrono::nanoseconds(kHeadInterval));
  head_timer_->async_wait(in_background([](WorkerPool& self, Lock&, boost::system::error_code error) {
    self.watching_heads_ = false;
    if (error) return;
    const std::uint64_t now = ExecutorCore::now();
    const bool late = fired_late(*self.head_timer_);
    for (const WorkerPtr& worker : self.workers_) {
      if (worker && late) worker->unbegun_since = 0;
      if (worker) self.look_at_head(*worker, now);
    }
    if (self.core_->open > 0) self.watch_heads();
  }));
}

void WorkerPool::look_at_head(Worker& worker, std::uint64_t now) {
  const std::uint32_t head = worker.collected;
  const bool waits = dispatcher_.ready(worker.index) && worker.killed == Killed::no && head != worker.reserved &&
                     static_cast<std::int32_t>(head - worker.channel.published()) < 0 && !worker.channel.begun(head);
  if (!waits || worker.unbegun != head || worker.unbegun_since == 0) {
    worker.unbegun = head;
    worker.unbegun_since = waits ? now : 0;
    return;
  }
  if (now - worker.unbegun_since >= patience(worker.entry(head).node)) {
    kill(worker, Killed::stopped, "it took no task up: it was stopped");
  } else {
    dispatcher_.stall(worker.index);
    take_all_back(worker);
    schedule_drain();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Cancelling.

bool WorkerPool::has_begun(const TaskNode& node) const {
  if (node.place.stage == TaskNode::Stage::answered) return node.began_ns != 0;
  return node.place.stage == TaskNode::Stage::in_ring && taken_up(*workers_[node.place.worker], node.place.sequence);
}

std::optional<Progress> WorkerPool::progress_of(const TaskNode& node) const {
  if (node.place.stage != TaskNode::Stage::in_ring) return std::nullopt;
  auto note = workers_[node.place.worker]->channel.progress(node.place.sequence, 0);
  if (!note) return std::nullopt;
  return Progress{note->done, note->total, std::move(note->text)};
}

void WorkerPool::cancel(TaskNode& node, asio::cancellation_type type) {
  if (is_forked_copy()) return;
  using Stage = TaskNode::Stage;
  switch (node.place.stage) {
    case Stage::none:
      // On its way here: it was admitted, or its next run is due, and its turn to be handed over has not come.
      node.place.cancel_requested = true;
      return;
    case Stage::answered:
      return;
    case Stage::queued:
      dispatcher_.remove(node);
      decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, {}), Outcome::cancelled);
      return;
    case Stage::encoding:
      node.place.cancel_requested = true;
      return;
    case Stage::in_ring:
      break;
  }
  node.place.cancel_requested = true;
  Worker& worker = *workers_[node.place.worker];
  if (take_back(worker, node.place.sequence)) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, {}), Outcome::cancelled);
    return;
  }
  const auto asked = [type](asio::cancellation_type kind) { return (type & kind) != asio::cancellation_type::none; };
  if (asked(asio::cancellation_type::terminal | asio::cancellation_type::partial)) {
    worker.channel.request_stop(node.place.sequence);
  }
  if (!asked(asio::cancellation_type::terminal) || node.place.kill_at != 0) return;
  const std::uint64_t now = ExecutorCore::now();
  node.place.kill_at = now + static_cast<std::uint64_t>(settings_.cancel_grace.count());
  if (settings_.cancel_grace.count() == 0) {
    limit_passed(node, LimitPassed::cancel, now);
  } else {
    watch_limits(node);
  }
}

// The worker is killed, and the task has this outcome once it is dead, unless its answer turns out to be there already.
// Where dying takes its time the caller is told before; the task's place in the executor is only free afterwards.
void WorkerPool::end_run(TaskNode& node, Killed why, std::string reason, std::exception_ptr error, Outcome outcome) {
  Worker& worker = *workers_[node.place.worker];
  kill(worker, why, std::move(reason));
  worker.doomed.emplace(&node, Verdict{std::move(error), outcome});
  worker.tell_timer = std::make_unique<asio::steady_timer>(background_, kTellPatience);
  worker.tell_timer->async_wait(
      in_background([generation = worker.generation](WorkerPool& self, Lock&, boost::system::error_code failure) {
        Worker* const dying = failure ? nullptr : self.find_worker(generation);
        if (dying != nullptr) self.tell_doomed(*dying);
      }));
}

void WorkerPool::tell_doomed(Worker& worker) {
  collect_all(worker);
  for (auto& [node, verdict] : std::exchange(worker.doomed, {})) {
    clear(worker.entry(node->place.sequence));
    const bool again = verdict.outcome == Outcome::timed_out && core_->would_retry(*node, RetryOn::timeout);
    if (!again) node->place.outlived_by = worker.generation;
    decide(*node, std::move(verdict.error), verdict.outcome);
  }
}

void WorkerPool::kill(Worker& worker, Killed why, std::string reason) {
  if (worker.killed != Killed::no || worker.buried) return;
  worker.killed = why;
  worker.reason = std::move(reason);
  process::kill_process(worker.pidfd);  // If it is not born yet, `worker_spawned` does it.
  dispatcher_.worker_killed(worker.index);
  ask_maintenance();
  worker.limit_timer = std::make_unique<asio::steady_timer>(background_, kKillPatience);
  worker.limit_timer->async_wait(
      in_background([generation = worker.generation](WorkerPool& self, Lock&, boost::system::error_code error) {
        Worker* const stuck = error ? nullptr : self.find_worker(generation);
        // One that is not born yet is its template's affair, and that has its own time to answer.
        if (stuck == nullptr || !stuck->pidfd) return;
        stuck->stuck = true;
        self.give_back_places(*stuck);
        self.all_gone_if_so();
      }));
}

// A task gets its outcome while the worker that was killed for it may still be there: that keeps its place among
// `max_pending`.
void WorkerPool::hold_place(TaskNode& node) {
  Worker* const dying = find_worker(node.place.outlived_by);
  if (dying == nullptr || dying->stuck) return;
  if (std::exchange(node.admitted, false)) ++dying->held_places;
}

// What the worker's killed task held is free.
void WorkerPool::give_back_places(Worker& worker) {
  freed_places_ += std::exchange(worker.held_places, 0);
  if (freed_places_ > 0) schedule_drain();
}

void WorkerPool::violated(Worker& worker, const std::string& what) {
  // What else it has answered is not looked at, whatever it may have been killed for before.
  worker.untrusted = true;
  worker.readable = worker.collected;
  kill(worker, Killed::protocol, what);
}

// ---------------------------------------------------------------------------------------------------------------------
// Time limits.

RunLimits WorkerPool::limits_of(const TaskNode& node) const {
  const auto span = [](const std::optional<TaskOptions::Duration>& limit) {
    return limit ? static_cast<std::uint64_t>(limit->count()) : 0;
  };
  RunLimits limits;
  limits.queue_end = node.must_begin_ns();
  limits.end = node.must_end_ns;
  limits.timeout = span(node.options.timeout());
  if (node.options.has_rare()) limits.cpu = span(node.options.cpu_timeout());
  limits.kill_at = node.place.kill_at;
  return limits;
}

RunState WorkerPool::state_of(TaskNode& node, std::uint64_t now) {
  RunState state;
  if (node.place.stage != TaskNode::Stage::in_ring) return state;
  const Worker& worker = *workers_[node.place.worker];
  state.begun = taken_up(worker, node.place.sequence);
  if (!state.begun) return state;
  // When it began is what the worker says, as far as that is possible.
  if (node.place.seen_begun_ns == 0) node.place.seen_begun_ns = now;
  // Where it only counts as begun, that is of the request before it.
  const std::uint64_t told =
      worker.channel.begun(node.place.sequence) ? worker.channel.begun_ns() : node.place.seen_begun_ns;
  state.begun_ns = std::clamp(told, node.place.placed_ns, node.place.seen_begun_ns);
  if (node.options.has_rare() && node.options.cpu_timeout()) {
    const std::uint64_t used = process::cpu_ns(worker.pid).value_or(0);
    // Where it began is the worker's word, too: no later than what was first seen here.
    if (node.cpu_began_ns == 0) node.cpu_began_ns = used;
    state.cpu_used = used - std::min({used, worker.channel.begun_cpu_ns(), node.cpu_began_ns});
  }
  return state;
}

// Looks whether a limit has passed, and sees to it that it is looked again in time.
void WorkerPool::watch_limits(TaskNode& node) {
  const RunLimits limits = limits_of(node);
  if (!limits.any()) return;
  // Its outcome is clear.
  if (node.place.stage == TaskNode::Stage::in_ring && workers_[node.place.worker]->killed != Killed::no) return;
  const std::uint64_t now = ExecutorCore::now();
  const LimitDecision decision = check_limits(limits, state_of(node, now), now, cpus_);
  if (decision.passed != LimitPassed::none) {
    limit_passed(node, decision.passed, now);
  } else if (decision.look_again != 0) {
    arm_deadline(node, decision.look_again);
  }
}

void WorkerPool::limit_passed(TaskNode& node, LimitPassed passed, std::uint64_t now) {
  const auto timeout = [&](TaskTimeoutError::Which which, TaskOptions::Duration limit, const std::string& reason = {}) {
    ErrorContext context = core_->context_of(node);
    if (node.place.stage == TaskNode::Stage::in_ring) context.worker_pid = workers_[node.place.worker]->pid;
    return std::make_exception_ptr(TaskTimeoutError(which, limit, std::move(context), reason));
  };
  if (passed == LimitPassed::total) node.last_run = true;  // There is no time for another.
  const bool queued = node.place.stage == TaskNode::Stage::queued;
  if (passed == LimitPassed::queue || (passed == LimitPassed::total && !has_begun(node))) {
    if (queued) dispatcher_.remove(node);
    if (!queued && !take_back(*workers_[node.place.worker], node.place.sequence)) {
      watch_limits(node);  // It has just begun.
      return;
    }
    const bool no_worker = dispatcher_.failures_in_a_row() > 0 && !dispatcher_.has_ready_worker();
    const std::string reason = no_worker ? "no worker could be started: " + last_start_error_ : "";
    decide(node,
           passed == LimitPassed::queue ? timeout(TaskTimeoutError::Which::queue, *node.options.queue_timeout(), reason)
                                        : timeout(TaskTimeoutError::Which::total, *node.options.total_timeout(),
                                                  no_worker ? reason : not_run_reason(node)),
           Outcome::timed_out);
    return;
  }
  const WorkerPtr worker = workers_[node.place.worker];
  // It may have ended in the same instant: then that is its outcome.
  collect_all(*worker);
  if (node.place.stage != TaskNode::Stage::in_ring || !take_back_behind(*worker, node.place.sequence)) {
    schedule_drain();
    return;
  }
  node.began_ns = std::clamp(worker->channel.begun_ns(), node.submitted_ns, now);
  node.ended_ns = now;
  node.place.worker_pid = worker->pid;
  switch (passed) {
    case LimitPassed::cancel: {
      const std::string reason = "it was cancelled by its caller, and the worker was killed";
      end_run(node, Killed::cancelled, reason, cancelled_error(node, TaskCancelledError::Stage::running, reason),
              Outcome::cancelled);
      break;
    }
    case LimitPassed::cpu:
      end_run(node, Killed::timed_out, "its cpu_timeout passed",
              timeout(TaskTimeoutError::Which::cpu, *node.options.cpu_timeout()), Outcome::timed_out);
      break;
    case LimitPassed::total:
      end_run(node, Killed::timed_out, "its total_timeout passed",
              timeout(TaskTimeoutError::Which::total, *node.options.total_timeout()), Outcome::timed_out);
      break;
    default:
      end_run(node, Killed::timed_out, "its timeout passed",
              timeout(TaskTimeoutError::Which::run, *node.options.timeout()), Outcome::timed_out);
  }
}

void WorkerPool::arm_deadline(TaskNode& node, std::uint64_t deadline) {
  if (node.place.deadline != 0) {
    if (node.place.deadline <= deadline) return;
    disarm_deadline(node);
  }
  node.place.deadline = deadline;
  deadlines_.emplace(deadline, &node);
  // The timer stays set when a task ends, for the next one: they would wake the background thread each.
  if (deadline_timer_set_for_ != 0 && deadline_timer_set_for_ <= deadline) return;
  deadline_timer_set_for_ = deadline;
  asio::post(background_, in_background([](WorkerPool& self, Lock&) { self.deadlines_passed(); }));
}

void WorkerPool::disarm_deadline(TaskNode& node) {
  if (node.place.deadline == 0) return;
  deadlines_.erase({node.place.deadline, &node});
  node.place.deadline = 0;
}

void WorkerPool::deadlines_passed() {
  const std::uint64_t now = ExecutorCore::now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    TaskNode& node = *deadlines_.begin()->second;
    disarm_deadline(node);
    // While its arguments are being encoded nothing can be done; what comes then looks again.
    const bool here = node.place.stage == TaskNode::Stage::queued || node.place.stage == TaskNode::Stage::in_ring;
    if (here) watch_limits(node);
  }
  deadline_timer_set_for_ = deadlines_.empty() ? 0 : deadlines_.begin()->first;
  if (deadlines_.empty()) return;
  deadline_timer_->expires_after(std::chrono::nanoseconds(deadline_timer_set_for_ - now));
  deadline_timer_->async_wait(in_background([](WorkerPool& self, Lock&, boost::system::error_code error) {
    if (!error) self.deadlines_passed();
  }));
}

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory.

// Gives it back to the system when there has been no buffer for a while.
void WorkerPool::watch_shared_memory() {
  if (!settings_.shared) return;
  auto unused = in_background([](WorkerPool& self, Lock&) {
    self.shared_timer_->expires_after(process::kUnusedMemoryKept);
    self.shared_timer_->async_wait(
        self.in_background([](WorkerPool& pool, Lock& lock, boost::system::error_code error) {
          if (error) return;
          lock.unlock();
          pool.settings_.shared->give_back_unused();  // may take milliseconds
          lock.lock();
        }));
  });
  settings_.shared->on_unused([&context = background_, unused] { asio::post(context, unused); });
}

}  // namespace bulkhead::detail
