// SPDX-License-Identifier: BSL-1.0
#include "background.hpp"
#include "process/posix.hpp"
#include "run_limits.hpp"
#include "time_limits.hpp"

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/executor_core.hpp>

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

// Time limits of tasks in this process. A function that runs here cannot be ended: its caller is told at the limit, and
// the task keeps its place until the function returns.

namespace bulkhead::detail {

namespace {

std::uint64_t cpu_used(const TaskNode& node) noexcept {
  const std::uint64_t read = process::clock_ns(node.cpu_clock);
  return read - std::min(read, node.cpu_began_ns);
}

}  // namespace

// With the mutex: sees to it that the task is looked at when its next limit may have passed.
void ExecutorCore::watch_limits(TaskNode& node) {
  const auto span = [](const std::optional<TaskOptions::Duration>& limit) {
    return limit ? static_cast<std::uint64_t>(limit->count()) : 0;
  };
  RunLimits limits;
  RunState state;
  state.begun = node.runs_here;
  state.begun_ns = node.began_ns;
  limits.end = node.must_end_ns;
  if (!state.begun && node.retry_at_ns == 0) {
    limits.queue_end = node.must_begin_ns();
  } else if (state.begun) {
    limits.timeout = span(node.options.timeout());
    limits.kill_at = node.place.kill_at;
    if (node.options.has_rare() && node.cpu_clock != 0) {
      limits.cpu = span(node.options.cpu_timeout());
      state.cpu_used = cpu_used(node);
    }
  }
  unwatch(node);
  if (!limits.any() || owner == nullptr) return;
  // A function runs on one thread.
  const LimitDecision decision = check_limits(limits, state, now(), 1);
  const std::uint64_t at = decision.passed != LimitPassed::none ? now() : decision.look_again;
  if (at == 0) return;
  if (!limits_) limits_ = std::make_unique<Limits>(background());
  node.place.deadline = at;
  // A statement of its own: what is the first may change with it.
  const auto place = limits_->by_time.emplace(at, &node).first;
  if (place != limits_->by_time.begin()) return;
  // The timer stays set when a task ends, for the next one: they would wake the background thread each.
  if (limits_->set_for != 0 && limits_->set_for <= at) return;
  limits_->set_for = at;
  asio::post(limits_->timer.get_executor(), [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->limits_passed();
  });
}

void ExecutorCore::unwatch(TaskNode& node) {
  if (node.place.deadline == 0 || !limits_) return;
  // It may be in another's table: then the deadline is not ours.
  if (limits_->by_time.erase({node.place.deadline, &node}) > 0) node.place.deadline = 0;
}

// On the background thread: looks at whose time has come, and sets the timer for the next.
void ExecutorCore::limits_passed() {
  std::vector<Withdrawn> withdrawn;
  std::vector<TaskNode*> not_admitted;
  {
    const Lock lock(mutex);
    if (!limits_ || !context_alive) return;
    const std::uint64_t time = now();
    auto& by_time = limits_->by_time;
    while (!by_time.empty() && by_time.begin()->first <= time) {
      TaskNode& node = *by_time.begin()->second;
      by_time.erase(by_time.begin());
      node.place.deadline = 0;
      if (node.waiting) {
        waiting.erase(node);
        node.waiting = false;
        node.waited_in_vain = true;
        --waiting_count;
        not_admitted.push_back(&node);
      } else {
        limit_passed(node, withdrawn);
      }
    }
    limits_->set_for = by_time.empty() ? 0 : by_time.begin()->first;
    if (!by_time.empty()) {
      // A century is for ever, and can be added to any time of the clock.
      const std::uint64_t pause = by_time.begin()->first - time;
      constexpr std::chrono::nanoseconds kForEver = std::chrono::hours(24 * 365 * 100);
      limits_->timer.expires_after(std::chrono::nanoseconds(
          static_cast<std::int64_t>(std::min(pause, static_cast<std::uint64_t>(kForEver.count())))));
      limits_->timer.async_wait([weak = weak_from_this()](boost::system::error_code error) {
        if (error) return;
        if (const auto self = weak.lock()) self->limits_passed();
      });
    }
  }
  for (TaskNode* node : not_admitted) {
    Lock lock(mutex);
    const bool ended = node->must_end_ns != 0 && now() >= node->must_end_ns;
    const auto limit = ended ? node->options.total_timeout() : node->options.queue_timeout();
    refuse(node,
           std::make_exception_ptr(ExecutorOverloadError(
               max_pending, context_of(*node),
               fmt::format("it was not admitted within its {} of {} ms", ended ? "total_timeout" : "queue_timeout",
                           std::chrono::duration<double, std::milli>(*limit).count()))),
           lock);
  }
  if (!not_admitted.empty()) {
    const Lock lock(mutex);
    complete_idle_waits();
  }
  fail_all(withdrawn);
}

// With the mutex: a task in the executor whose time has come.
void ExecutorCore::limit_passed(TaskNode& node, std::vector<Withdrawn>& withdrawn) {
  using Which = TaskTimeoutError::Which;
  const auto timeout = [&](Which which, const std::optional<TaskOptions::Duration>& limit) {
    return std::make_exception_ptr(TaskTimeoutError(which, *limit, context_of(node)));
  };
  if (node.settled) return;
  const std::uint64_t time = now();
  const bool ended = node.must_end_ns != 0 && time >= node.must_end_ns;
  if (!node.runs_here) {
    const auto limit = ended                   ? node.options.total_timeout()
                       : node.retry_at_ns != 0 ? std::nullopt  // its next run's wait has not begun
                                               : node.options.queue_timeout();
    if (!ended && (!limit || time < node.must_begin_ns())) {
      watch_limits(node);
      return;
    }
    auto error =
        ended ? std::make_exception_ptr(TaskTimeoutError(Which::total, *limit, context_of(node), not_run_reason(node)))
              : timeout(Which::queue, limit);
    if (withdraw(node)) {
      withdrawn.push_back({&node, std::move(error), Outcome::timed_out});
    } else {
      end_early(node, Outcome::timed_out, error);
    }
    return;
  }
  const auto passed = [&](const std::optional<TaskOptions::Duration>& limit, std::uint64_t used) {
    return limit && used >= static_cast<std::uint64_t>(limit->count());
  };
  std::exception_ptr error;
  if (node.place.kill_at != 0 && time >= node.place.kill_at) {
    end_early(node, Outcome::cancelled, cancelled_error(node, {}));
    return;
  }
  if (ended) {
    // There is no time for another run.
    node.last_run = true;
    error = timeout(Which::total, node.options.total_timeout());
  } else if (passed(node.options.timeout(), time - node.began_ns)) {
    error = timeout(Which::run, node.options.timeout());
  } else if (node.cpu_clock != 0 && node.options.has_rare() && passed(node.options.cpu_timeout(), cpu_used(node))) {
    error = timeout(Which::cpu, node.options.cpu_timeout());
  }
  if (!error) {
    watch_limits(node);
    return;
  }
  stop_running(node, asio::cancellation_type::terminal);
  if (would_retry(node, RetryOn::timeout)) {
    // The next run must not begin before this one is over; that is when the verdict counts.
    node.verdict = std::move(error);
  } else {
    if (node.failed_runs) {
      auto runs_so_far = *node.failed_runs;
      runs_so_far.push_back({std::move(error), std::chrono::nanoseconds(time - node.began_ns), true});
      error = std::make_exception_ptr(RetryError(std::move(runs_so_far), context_of(node)));
    }
    end_early(node, Outcome::timed_out, error);
  }
}

}  // namespace bulkhead::detail
