// SPDX-License-Identifier: BSL-1.0
#include "event_hub.hpp"
#include "quarantine.hpp"
#include "retries.hpp"

#include <bulkhead/errors.hpp>

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

// What comes after a failed run: another one, or a key in quarantine.

namespace bulkhead::detail {
namespace {

// What the failure is to a retry policy; empty: nothing that another run could mend, or that may be run again.
std::optional<RetryOn> kind_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const WorkerCrashedError&) {
    return RetryOn::crash;
  } catch (const ProtocolError&) {
    return RetryOn::crash;
  } catch (const TaskTimeoutError& timeout) {
    const bool ran_too_long =
        timeout.which() == TaskTimeoutError::Which::run || timeout.which() == TaskTimeoutError::Which::cpu;
    return ran_too_long ? std::optional(RetryOn::timeout) : std::nullopt;
  } catch (const RemoteTaskError&) {
    return RetryOn::exception;
  } catch (const ExecutorError&) {
    return std::nullopt;
  } catch (...) {
    return RetryOn::exception;
  }
}

bool is_violation(const std::exception_ptr& error) noexcept {
  try {
    std::rethrow_exception(error);
  } catch (const PolicyViolationError&) {
    return true;
  } catch (...) {
    return false;
  }
}

const std::string& key_or_name(const TaskNode& node, std::string& own_name) {
  if (!node.options.quarantine_key().empty()) return node.options.quarantine_key();
  own_name = node.name();
  return own_name;
}

// Settles a task on the Asio context, and also if that is destroyed before.
class SettleLater {
 public:
  SettleLater(std::shared_ptr<ExecutorCore> core, TaskNode& node, Outcome outcome, Delivery from)
      : core_(std::move(core)), node_(&node), outcome_(outcome), from_(from) {}
  SettleLater(SettleLater&& other) noexcept
      : core_(std::move(other.core_)),
        node_(std::exchange(other.node_, nullptr)),
        outcome_(other.outcome_),
        from_(other.from_) {}
  SettleLater& operator=(SettleLater&&) = delete;
  ~SettleLater() { (*this)(); }

  void operator()() {
    if (TaskNode* const node = std::exchange(node_, nullptr)) core_->settle(node, outcome_, from_);
  }

 private:
  std::shared_ptr<ExecutorCore> core_;
  TaskNode* node_;
  Outcome outcome_;
  Delivery from_;
};

std::chrono::nanoseconds time_now() { return std::chrono::nanoseconds(static_cast<std::int64_t>(ExecutorCore::now())); }

}  // namespace

std::exception_ptr ExecutorCore::quarantine_error(const TaskNode& node) const {
  if (!quarantine || quarantine->empty()) return nullptr;
  std::string own_name;
  const std::string& key = key_or_name(node, own_name);
  const auto refusal = quarantine->refused(key, time_now());
  if (!refusal) return nullptr;
  return std::make_exception_ptr(TaskQuarantinedError(key, refusal->crashes, refusal->remaining, context_of(node)));
}

// With the mutex. True: the task has its error and is to be refused.
bool ExecutorCore::refused_by_quarantine(TaskNode& node) {
  node.error = quarantine_error(node);
  if (!node.error) return false;
  ++quarantined;
  return true;
}

void ExecutorCore::note_crashes(const TaskNode& node, Outcome outcome) {
  if (outcome == Outcome::completed && quarantine->empty()) return;
  std::string own_name;
  if (outcome == Outcome::completed) {
    quarantine->survived(key_or_name(node, own_name));
  } else if (outcome == Outcome::failed && node.error) {
    const auto kind = kind_of(node.error);
    const bool ended_worker = kind == RetryOn::crash || is_violation(node.error);
    if (ended_worker && node.began_ns != 0) quarantine->crashed(key_or_name(node, own_name), time_now());
    if (kind == RetryOn::exception && !quarantine->empty()) quarantine->survived(key_or_name(node, own_name));
  }
}

bool ExecutorCore::would_retry(const TaskNode& node, RetryOn kind) const noexcept {
  const RetryPolicy* const policy = node.options.retry();
  return policy != nullptr && policy->covers(kind) && node.attempt() < policy->attempts() && accepting &&
         owner != nullptr && context_alive && !node.settled && !node.last_run && node.repeatable();
}

// What a task is cancelled with, and the runs of it that had failed.
std::exception_ptr ExecutorCore::with_failed_runs(const TaskNode& node, const std::exception_ptr& error) {
  if (!node.failed_runs || !error) return error;
  try {
    std::rethrow_exception(error);
  } catch (const TaskCancelledError& cancelled) {
    return std::make_exception_ptr(TaskCancelledError(cancelled, *node.failed_runs));
  } catch (...) {
    return error;
  }
}

// With the mutex, on a thread that user code of the Asio context must not run on. True: it is settled there.
bool ExecutorCore::asks_elsewhere(TaskNode& node, Outcome outcome, Delivery from) {
  if (outcome != Outcome::failed || !node.options.has_rare() || !node.error || node.asks_here) return false;
  const RetryPolicy* const policy = node.options.retry();
  if (policy == nullptr || !policy->predicate() || !would_retry(node, RetryOn::exception)) return false;
  unwatch(node);  // the run is over
  node.asks_here = true;
  asio::post(io, SettleLater(shared_from_this(), node, outcome, from));
  return true;
}

// With the mutex, which it gives back while it asks the policy's predicate. True: the task waits for its next run.
bool ExecutorCore::try_again(TaskNode& node, Outcome outcome, Lock& lock) {
  const RetryPolicy* const policy = node.options.retry();
  if (policy == nullptr || node.settled || !node.error) return false;
  if (outcome == Outcome::cancelled) {
    node.error = with_failed_runs(node, node.error);
    return false;
  }
  const auto kind = kind_of(node.error);
  bool again = kind && would_retry(node, *kind);
  if (again && kind == RetryOn::exception && policy->predicate()) {
    unwatch(node);  // the run is over
    lock.unlock();
    try {
      again = policy->predicate()(node.error);
    } catch (...) {
      node.error = std::current_exception();
      again = false;
    }
    lock.lock();
    again = again && would_retry(node, *kind);
  }
  std::chrono::nanoseconds pause{0};
  if (again) {
    pause = pause_before_next(node);
    // It would begin when it must have ended.
    again = node.must_end_ns == 0 || now() + static_cast<std::uint64_t>(pause.count()) < node.must_end_ns;
  }
  if (!again && !node.failed_runs) return false;
  if (node.began_ns != 0 && wants_started(node)) tell_started(node);
  if (again && events_) tell(EventKind::retried, node, node.error);
  if (!node.failed_runs) node.failed_runs = std::make_unique<std::vector<RetryError::Attempt>>();
  const auto run_time = std::chrono::nanoseconds(node.ended_ns == 0 ? 0 : node.ended_ns - node.began_ns);
  node.failed_runs->push_back({std::exchange(node.error, nullptr), run_time, node.began_ns != 0});
  if (again) {
    retry_later(node, pause);
    return true;
  }
  node.earlier_runs += static_cast<unsigned>(node.failed_runs->size()) - 1;
  node.error = std::make_exception_ptr(RetryError(std::move(*node.failed_runs), context_of(node)));
  node.failed_runs.reset();
  return false;
}

// With the mutex.
std::chrono::nanoseconds ExecutorCore::pause_before_next(const TaskNode& node) {
  if (!retries_) retries_ = std::make_unique<Retries>(io);
  const double random = std::generate_canonical<double, 32>(retries_->random);
  return node.options.retry()->pause_after(node.attempt(), random);
}

// With the mutex. It keeps its place among `max_pending`: so a full executor cannot keep it out, and it keeps nobody
// out whom the limit would let in.
void ExecutorCore::retry_later(TaskNode& node, std::chrono::nanoseconds pause) {
  count_run(node);
  ++retried;
  unwatch(node);
  node.verdict = nullptr;
  node.told_started = false;
  node.asks_here = false;
  node.cpu_clock = 0;
  node.cpu_began_ns = 0;
  node.began_ns = 0;
  node.ended_ns = 0;
  if (std::exchange(node.runs_here, false)) --running;
  node.stop_requested.store(0, std::memory_order_relaxed);
  node.place.stage = TaskNode::Stage::none;
  node.place.cancel_requested = false;
  node.place.decided = false;
  node.place.restarts = 0;
  node.place.deadline = 0;
  node.place.kill_at = 0;
  node.order = 0;
  retries_->add(node, now() + static_cast<std::uint64_t>(pause.count()));
  if (retries_->by_time.begin()->second == &node) arm_retry_timer();
  if (node.must_end_ns != 0) watch_limits(node);
}

void ExecutorCore::arm_retry_timer() {
  const std::uint64_t due = retries_->by_time.begin()->first;
  retries_->timer.expires_at(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(due)));
  retries_->timer.async_wait([weak = weak_from_this()](boost::system::error_code error) {
    if (error) return;
    if (const auto self = weak.lock()) self->retries_due();
  });
}

void ExecutorCore::retries_due() {
  Admitted due;
  {
    const Lock lock(mutex);
    if (!retries_) return;
    const std::uint64_t time = now();
    auto& by_time = retries_->by_time;
    while (!by_time.empty() && by_time.begin()->first <= time) {
      TaskNode& node = *by_time.begin()->second;
      retries_->remove(node);
      // What it waits from here on is its next run's wait.
      node.submitted_ns = time;
      due.push_back(node);
    }
    if (!by_time.empty()) arm_retry_timer();
  }
  start(due);
}

// With the mutex: they do not wait any more.
std::vector<TaskNode*> ExecutorCore::take_retries() {
  std::vector<TaskNode*> taken;
  if (!retries_) return taken;
  while (!retries_->by_time.empty()) {
    taken.push_back(retries_->by_time.begin()->second);
    retries_->remove(*taken.back());
  }
  retries_->timer.cancel();
  return taken;
}

// With the mutex, since others may look at the tasks until they are failed: the executor shuts down, and what they
// failed with is what they end with.
std::vector<ExecutorCore::Withdrawn> ExecutorCore::end_retries() {
  std::vector<Withdrawn> ended;
  for (TaskNode* node : take_retries()) {
    const auto runs_so_far = std::exchange(node->failed_runs, nullptr);
    node->earlier_runs += static_cast<unsigned>(runs_so_far->size()) - 1;
    const auto kind = kind_of(runs_so_far->back().error);
    auto error = runs_so_far->size() == 1
                     ? runs_so_far->front().error
                     : std::make_exception_ptr(RetryError(std::move(*runs_so_far), context_of(*node)));
    ended.push_back({node, std::move(error), kind == RetryOn::timeout ? Outcome::timed_out : Outcome::failed});
  }
  return ended;
}

}  // namespace bulkhead::detail
