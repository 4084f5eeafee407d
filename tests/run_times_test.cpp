// SPDX-License-Identifier: BSL-1.0
#include "run_times.hpp"

#include "support/catch.hpp"

#include <chrono>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

using bulkhead::MissedRuns;
using bulkhead::detail::RunTimes;
using namespace std::chrono_literals;

namespace {

RunTimes::Rules every_second(MissedRuns missed = MissedRuns::skip) {
  RunTimes::Rules rules;
  rules.period = 1s;
  rules.grace = 1s;
  rules.missed = missed;
  return rules;
}

}  // namespace

TEST_CASE("runs begin at their times, one period apart from the first", "[run_times]") {
  RunTimes times(every_second(), 5s);
  CHECK(times.next() == RunTimes::Time(5s));
  CHECK(times.runs_to_begin(4s) == 0);
  CHECK(times.runs_to_begin(5s) == 1);
  CHECK_FALSE(times.next());  // but when the run has ended
  CHECK(times.next_due() == RunTimes::Time(6s));
  CHECK(times.runs_to_begin(5500ms) == 0);
  times.run_ended();
  CHECK(times.next() == RunTimes::Time(6s));
  CHECK(times.runs_to_begin(6100ms) == 1);
  // What came late does not put off what comes next.
  CHECK(times.next_due() == RunTimes::Time(7s));
  CHECK(times.begun() == 2);
  CHECK(times.missed() == 0);
}

TEST_CASE("runs that a stopped program missed are skipped, run once together, or all made up for", "[run_times]") {
  const auto missed = GENERATE(MissedRuns::skip, MissedRuns::run_once, MissedRuns::run_all);
  RunTimes times(every_second(missed), 1s);
  // Due at 1 to 5 s; that of 5 s is in time.
  std::uint64_t runs = times.runs_to_begin(5500ms);
  while (times.begun() < 10) {
    times.run_ended();
    const std::uint64_t more = times.runs_to_begin(5500ms);
    if (more == 0) break;
    runs += more;
  }
  switch (missed) {
    case MissedRuns::skip:
    case MissedRuns::run_once:
      CHECK(runs == 1);
      CHECK(times.missed() == 4);
      break;
    case MissedRuns::run_all:
      CHECK(runs == 5);
      CHECK(times.missed() == 0);
      break;
  }
  CHECK(times.next_due() == RunTimes::Time(6s));
}

TEST_CASE("a run does not begin while another goes on, and what that makes late is missed", "[run_times]") {
  const auto missed = GENERATE(MissedRuns::skip, MissedRuns::run_once, MissedRuns::run_all);
  auto rules = every_second(missed);
  rules.grace = 100ms;
  RunTimes times(rules, 1s);
  REQUIRE(times.runs_to_begin(1s) == 1);
  CHECK(times.runs_to_begin(2s) == 0);
  CHECK(times.runs_to_begin(3s) == 0);
  times.run_ended();
  // Due at 2 and 3 s, and the grace is over for both.
  const std::uint64_t runs = times.runs_to_begin(3500ms);
  CHECK(runs == (missed == MissedRuns::skip ? 0 : 1));
  if (missed == MissedRuns::run_all) {
    times.run_ended();
    CHECK(times.runs_to_begin(3500ms) == 1);
  }
  CHECK(times.missed() == (missed == MissedRuns::skip ? 2 : missed == MissedRuns::run_once ? 1 : 0));
}

TEST_CASE("a run that has to wait for another begins after it, within its grace", "[run_times]") {
  RunTimes times(every_second(), 1s);
  REQUIRE(times.runs_to_begin(1s) == 1);
  CHECK(times.runs_to_begin(2s) == 0);
  times.run_ended();
  CHECK(times.runs_to_begin(2800ms) == 1);
  CHECK(times.missed() == 0);
}

TEST_CASE("runs may go on at the same time if that is asked for", "[run_times]") {
  auto rules = every_second();
  rules.overlap = true;
  RunTimes times(rules, 1s);
  CHECK(times.runs_to_begin(1s) == 1);
  CHECK(times.runs_to_begin(2s) == 1);
  CHECK(times.runs_to_begin(3s) == 1);
}

TEST_CASE("a schedule ends after its last run", "[run_times]") {
  auto rules = every_second(MissedRuns::run_all);
  rules.overlap = true;
  rules.max_runs = 3;
  RunTimes times(rules, 1s);
  CHECK(times.runs_to_begin(10s) == 3);
  CHECK(times.over());
  CHECK_FALSE(times.next());
  CHECK(times.runs_to_begin(20s) == 0);
}

TEST_CASE("no more missed runs are remembered than the limit says", "[run_times]") {
  auto rules = every_second(MissedRuns::run_all);
  rules.overlap = true;
  rules.most_made_up = 3;
  RunTimes times(rules, 1s);
  CHECK(times.runs_to_begin(100s) == 4);  // three, and the one that is in time
  CHECK(times.missed() == 96);
}

TEST_CASE("every due run is begun, missed, or still to come, whatever happens", "[run_times]") {
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const auto up_to = [&](int most) { return std::uniform_int_distribution<int>(0, most)(random); };
  for (int round = 0; round < 2000; ++round) {
    RunTimes::Rules rules;
    rules.period = RunTimes::Time(1 + up_to(9));
    rules.grace = RunTimes::Time(1 + up_to(19));
    rules.missed = static_cast<MissedRuns>(up_to(2));
    rules.overlap = up_to(1) == 1;
    rules.most_made_up = static_cast<std::uint64_t>(1 + up_to(5));
    RunTimes times(rules, RunTimes::Time(0));
    RunTimes::Time now{0};
    std::uint64_t under_way = 0;
    for (int step = 0; step < 50; ++step) {
      now += RunTimes::Time(up_to(30));
      if (under_way > 0 && up_to(1) == 1) {
        times.run_ended();
        --under_way;
      }
      under_way += times.runs_to_begin(now);
      const bool alone = rules.overlap || under_way <= 1;
      REQUIRE(alone);
      const auto due = static_cast<std::uint64_t>(now / rules.period) + 1;
      REQUIRE(times.begun() + times.missed() <= due);
      // One in time, and those that are to be made up for.
      REQUIRE(due - times.begun() - times.missed() <= 1 + rules.most_made_up);
      REQUIRE(*times.next_due() > now);
    }
  }
}
