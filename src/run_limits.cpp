// SPDX-License-Identifier: BSL-1.0
#include "run_limits.hpp"

#include <algorithm>
#include <limits>

namespace bulkhead::detail {
namespace {

// How often CPU time is looked at when little is left of it. A look is one system call, so this takes a thousandth of a
// CPU; and so much a task may go beyond its limit.
constexpr std::uint64_t kCpuInterval = 1'000'000;

// A limit of centuries is none, and must not wrap around.
std::uint64_t after(std::uint64_t time, std::uint64_t span) noexcept {
  return span > std::numeric_limits<std::uint64_t>::max() - time ? std::numeric_limits<std::uint64_t>::max()
                                                                 : time + span;
}

}  // namespace

LimitDecision check_limits(const RunLimits& limits, const RunState& state, std::uint64_t now, unsigned cpus) noexcept {
  LimitDecision decision;
  const auto look_at = [&](std::uint64_t time) {
    if (decision.look_again == 0 || time < decision.look_again) decision.look_again = time;
  };
  if (!state.begun) {
    if (limits.end != 0) {
      if (now >= limits.end) return {LimitPassed::total, 0};
      look_at(limits.end);
    }
    if (limits.queue_end != 0) {
      if (now >= limits.queue_end) return {LimitPassed::queue, 0};
      look_at(limits.queue_end);
    }
    // It may begin any moment, and cannot have used up anything sooner than after the whole of it.
    if (limits.timeout != 0) look_at(after(now, limits.timeout));
    if (limits.cpu != 0) look_at(after(now, limits.cpu / cpus));
    if (limits.kill_at != 0) look_at(std::max(limits.kill_at, after(now, kCpuInterval)));
    return decision;
  }
  if (limits.kill_at != 0) {
    if (now >= limits.kill_at) return {LimitPassed::cancel, 0};
    look_at(limits.kill_at);
  }
  if (limits.end != 0) {
    if (now >= limits.end) return {LimitPassed::total, 0};
    look_at(limits.end);
  }
  if (limits.timeout != 0) {
    const std::uint64_t end = after(state.begun_ns, limits.timeout);
    if (now >= end) return {LimitPassed::run, 0};
    look_at(end);
  }
  if (limits.cpu != 0) {
    if (state.cpu_used >= limits.cpu) return {LimitPassed::cpu, 0};
    look_at(after(now, std::max((limits.cpu - state.cpu_used) / cpus, kCpuInterval)));
  }
  return decision;
}

}  // namespace bulkhead::detail
