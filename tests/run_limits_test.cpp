// SPDX-License-Identifier: BSL-1.0
#include "run_limits.hpp"

#include "support/catch.hpp"

#include <cstdint>
#include <limits>

namespace {

using bulkhead::detail::check_limits;
using bulkhead::detail::LimitPassed;
using bulkhead::detail::RunLimits;
using bulkhead::detail::RunState;

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kForever = std::numeric_limits<std::uint64_t>::max();

struct Row {
  const char* what;
  RunLimits limits;
  RunState state;
  std::uint64_t now;
  LimitPassed passed;
  std::uint64_t look_again;
};

RunLimits queue_end(std::uint64_t time) { return {time, 0, 0, 0, 0}; }
RunLimits timeout(std::uint64_t span) { return {0, span, 0, 0, 0}; }
RunLimits cpu(std::uint64_t span) { return {0, 0, span, 0, 0}; }
RunLimits kill_at(std::uint64_t time) { return {0, 0, 0, time, 0}; }
RunLimits end(std::uint64_t time) { return {0, 0, 0, 0, time}; }

constexpr RunState kQueued{};
RunState begun(std::uint64_t at, std::uint64_t used = 0) { return {true, at, used}; }

}  // namespace

TEST_CASE("every limit ends the task when its time has come, and not before", "[limits]") {
  // On 2 CPUs.
  const Row rows[] = {
      {"no limits", {}, kQueued, 5 * kMs, LimitPassed::none, 0},
      {"waits within its time", queue_end(9 * kMs), kQueued, 5 * kMs, LimitPassed::none, 9 * kMs},
      {"waits until its time is over", queue_end(9 * kMs), kQueued, 9 * kMs, LimitPassed::queue, 0},
      {"has begun in time", queue_end(9 * kMs), begun(8 * kMs), 20 * kMs, LimitPassed::none, 0},
      {"has a timeout and has not begun", timeout(3 * kMs), kQueued, 5 * kMs, LimitPassed::none, 8 * kMs},
      {"runs within its timeout", timeout(3 * kMs), begun(5 * kMs), 7 * kMs, LimitPassed::none, 8 * kMs},
      {"runs as long as its timeout", timeout(3 * kMs), begun(5 * kMs), 8 * kMs, LimitPassed::run, 0},
      {"runs longer than its timeout", timeout(3 * kMs), begun(5 * kMs), 80 * kMs, LimitPassed::run, 0},
      {"has a timeout of centuries", timeout(kForever - 1), begun(5 * kMs), 80 * kMs, LimitPassed::none, kForever},
      {"has CPU time left for both CPUs", cpu(10 * kMs), begun(0, 4 * kMs), 5 * kMs, LimitPassed::none, 8 * kMs},
      {"has little CPU time left", cpu(10 * kMs), begun(0, 9 * kMs + 1), 5 * kMs, LimitPassed::none, 6 * kMs},
      {"has no CPU time left", cpu(10 * kMs), begun(0, 10 * kMs), 5 * kMs, LimitPassed::cpu, 0},
      {"has a limit of CPU time and has not begun", cpu(10 * kMs), kQueued, 5 * kMs, LimitPassed::none, 10 * kMs},
      {"is cancelled and may go on", kill_at(9 * kMs), begun(0), 5 * kMs, LimitPassed::none, 9 * kMs},
      {"is cancelled and goes on too long", kill_at(9 * kMs), begun(0), 9 * kMs, LimitPassed::cancel, 0},
      {"waits, and must be over later", end(9 * kMs), kQueued, 5 * kMs, LimitPassed::none, 9 * kMs},
      {"waits, and must be over", end(9 * kMs), kQueued, 9 * kMs, LimitPassed::total, 0},
      {"runs, and must be over later", end(9 * kMs), begun(5 * kMs), 6 * kMs, LimitPassed::none, 9 * kMs},
      {"runs, and must be over", end(9 * kMs), begun(5 * kMs), 9 * kMs, LimitPassed::total, 0},
      {"has several limits", {1, 30 * kMs, 20 * kMs, 12 * kMs, 0}, begun(0), 2 * kMs, LimitPassed::none, 12 * kMs},
      {"has passed several", {1, 3 * kMs, 2 * kMs, 1 * kMs, 1}, begun(0, 9 * kMs), 9 * kMs, LimitPassed::cancel, 0},
      {"has no time for another run", {0, 3 * kMs, 0, 0, 8 * kMs}, begun(0), 9 * kMs, LimitPassed::total, 0},
  };
  for (const Row& row : rows) {
    INFO("a task that " << row.what);
    const auto decision = check_limits(row.limits, row.state, row.now, 2);
    CHECK(decision.passed == row.passed);
    CHECK(decision.look_again == row.look_again);
  }
}

TEST_CASE("a look that finds nothing is followed by a later one, so that looking comes to an end", "[limits]") {
  std::uint64_t now = 1;
  const RunLimits limits{0, 500 * kMs, 100 * kMs, 0, 0};
  int looks = 0;
  for (; looks < 1000; ++looks) {
    // It spins on one CPU.
    const auto decision = check_limits(limits, begun(1, now - 1), now, 8);
    if (decision.passed != LimitPassed::none) {
      CHECK(decision.passed == LimitPassed::cpu);
      break;
    }
    REQUIRE(decision.look_again > now);
    now = decision.look_again;
  }
  CHECK(looks < 100);
  // Never later than the shortest pause between two looks.
  CHECK(now <= 102 * kMs);
}
