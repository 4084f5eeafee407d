// SPDX-License-Identifier: BSL-1.0
// Tasks at their time, and again and again.
// Numbers such as A1 and F1 are of defects that executors before this family had; see seed_defects_test.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"
#include "support/told.hpp"

#include <boost/asio/io_context.hpp>

#include <chrono>
#include <csignal>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::call;
using bulkhead::EventKind;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOverloadError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::MaxInstancesError;
using bulkhead::MissedRuns;
using bulkhead::OverloadPolicy;
using bulkhead::RetryPolicy;
using bulkhead::ScheduleOptions;
using bulkhead::TaskCancelledError;
using bulkhead::TaskHandle;
using bulkhead::TaskOptions;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::test::board;
using bulkhead::test::cancelled_stage;
using bulkhead::test::count;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::let_pass;
using bulkhead::test::make;
using bulkhead::test::note;
using bulkhead::test::order;
using bulkhead::test::Outcome;
using bulkhead::test::poll_until;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::succeed_at_run;
using bulkhead::test::threads;
using bulkhead::test::Told;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using Catch::Matchers::StartsWith;
using namespace std::chrono_literals;

namespace {

// Its first run returns, and all others do as they are told.
int wait_from_second_run(int value) {
  if (++board.begun > 1) board.gate.wait();
  return value;
}
int die_at_second_run(int value) {
  if (++board.begun == 2) ::raise(SIGKILL);
  return value;
}

}  // namespace

TEST_CASE("Of runs that nobody could begin in time none, one, or all are made up, as the schedule says", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto made = make(type, context, 2);
  BaseExecutor& executor = *made;
  constexpr auto kPeriod = 5ms;
  const auto missed = GENERATE(MissedRuns::skip, MissedRuns::run_once, MissedRuns::run_all);
  CAPTURE(missed);
  ScheduleOptions options;
  options.first = 0ns;
  options.missed = missed;
  options.grace = 1ns;  // nothing that is looked at later is in time
  const auto begin = std::chrono::steady_clock::now();
  auto schedule = executor.submit_every(kPeriod, options, wait_at_gate, 1);
  // Eleven runs become due while the event loop does nothing.
  REQUIRE(poll_until([&] { return std::chrono::steady_clock::now() >= begin + 10 * kPeriod; }, kDeadline));
  if (missed == MissedRuns::skip) {
    REQUIRE(run_until(context, [&] { return schedule.missed() >= 11; }));
    CHECK(schedule.runs() == 0);
  } else {
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
    // No two runs at the same time.
    CHECK(schedule.runs() == 1);
    if (missed == MissedRuns::run_once) {
      CHECK(schedule.missed() >= 10);
    } else {
      board.gate.open = 1;
      REQUIRE(run_until(context, [] { return board.ended >= 11; }));
      CHECK(schedule.missed() == 0);
    }
  }
  schedule.cancel();
  CHECK_FALSE(schedule.active());
  CHECK_FALSE(schedule.next());
  board.gate.open = 1;
  run(context, executor.shutdown());
  CHECK(schedule.failures() == 0);
}

TEST_CASE("A run later than its grace is left out and counted; without one it begins until the next is due",
          "[schedule]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(2));
  ScheduleOptions options;
  options.first = 0ns;
  options.grace = 1ms;
  const auto begin = std::chrono::steady_clock::now();
  auto strict = executor.submit_every(1h, options, count, 1);
  options.grace = std::nullopt;
  auto patient = executor.submit_every(1h, options, count, 2);
  REQUIRE(poll_until([&] { return std::chrono::steady_clock::now() >= begin + 20ms; }, kDeadline));
  REQUIRE(run_until(context, [&] { return strict.missed() == 1 && board.ended == 1; }));
  CHECK(strict.runs() == 0);
  CHECK(patient.runs() == 1);
  CHECK(patient.missed() == 0);
  // Both go on.
  REQUIRE(strict.next());
  CHECK(*strict.next() >= begin + 1h);
  CHECK(patient.active());
  run(context, executor.shutdown());
}

TEST_CASE("A schedule ends after its runs, when it is cancelled, and with its executor", "[schedule]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(2));
  ScheduleOptions options;
  options.first = 0ns;
  options.max_runs = 3;
  options.missed = MissedRuns::run_all;
  auto counted = executor.submit_every(1ms, options, count, 1);
  REQUIRE(run_until(context, [&] { return !counted.active(); }));
  REQUIRE(run_until(context, [] { return board.ended == 3; }));
  CHECK(counted.runs() == 3);

  auto cancelled = executor.submit_every(1h, count, 1);
  auto left = executor.submit_every(1h, count, 1);
  CHECK(cancelled.active());
  cancelled.cancel();
  CHECK_FALSE(cancelled.active());
  CHECK(left.active());
  run(context, executor.shutdown());
  CHECK_FALSE(left.active());
  CHECK_THROWS_AS(executor.submit_every(1h, count, 1), ExecutorNotRunningError);
  auto destroyed = make("thread", context)->submit_every(1us, count, 1);
  CHECK_FALSE(destroyed.active());
  CHECK(board.ended == 3);
  // Nothing keeps the event loop at work.
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
}

TEST_CASE("Runs of one schedule are under way at the same time only if that is asked for", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto made = make(type, context, 3);
  BaseExecutor& executor = *made;
  ScheduleOptions options;
  auto alone = executor.submit_every(1ms, options, wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  let_pass(context, 20ms);
  CHECK(alone.runs() == 1);
  CHECK(board.gate.waiting == 1);
  board.gate.open = 1;
  // What would have been due meanwhile was left out.
  REQUIRE(run_until(context, [&] { return alone.missed() >= 10; }));
  alone.cancel();
  REQUIRE(run_until(context, [&] { return executor.metrics().running + executor.metrics().pending == 0; }));
  board.gate.reset();
  options.overlap = true;
  auto together = executor.submit_every(1ms, options, wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  together.cancel();
  board.gate.open = 1;
  run(context, executor.shutdown());
}

TEST_CASE("A6: a run that is refused is told of, and the schedule goes on", "[schedule]") {
  reset_board();
  asio::io_context context;
  ThreadExecutorOptions full = threads(1);
  full.max_pending = 1;
  ThreadExecutor executor(context.get_executor(), full);
  Told told(executor);
  Outcome<> held;
  executor.async_submit(call(wait_at_gate, 1), held.handler());
  std::exception_ptr seen;
  ScheduleOptions options;
  options.first = 0ns;
  options.on_error = [&](const std::exception_ptr& error) { seen = error; };
  auto schedule = executor.submit_every(1ms, options, TaskOptions().name("again"), count, 1);
  REQUIRE(run_until(context, [&] { return schedule.failures() >= 2 && told.count(EventKind::rejected) >= 2; }));
  CHECK(holds<ExecutorOverloadError>(seen));
  CHECK(holds<ExecutorOverloadError>(schedule.last_error()));
  CHECK(schedule.active());
  CHECK(board.begun == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [] { return board.ended >= 3; }));
  schedule.cancel();
  run(context, executor.shutdown());
}

TEST_CASE("A6: a task at its time that meets max_instances is told so, or waits for its turn", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 2);
  Told told(*executor);
  const auto held = executor->spawn(TaskOptions().name("job").max_instances(1), wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const auto refused = executor->submit_after(1us, TaskOptions().name("job").max_instances(1), count, 2);
  const auto waits =
      executor->submit_after(1us, TaskOptions().name("job").max_instances(1, OverloadPolicy::wait), count, 3);
  const auto impatient = executor->submit_after(
      1us, TaskOptions().name("job").max_instances(1, OverloadPolicy::wait).queue_timeout(1ms), count, 4);
  CHECK(holds<MaxInstancesError>(failure(context, refused.result())));
  CHECK(refused.status() == TaskStatus::failed);
  CHECK(holds<TaskTimeoutError>(failure(context, impatient.result())));
  REQUIRE(run_until(context, [&] { return told.count(EventKind::max_instances) == 3; }));
  CHECK(told.count(EventKind::rejected) == 1);
  CHECK(waits.status() == TaskStatus::queued);
  board.gate.open = 1;
  CHECK(run(context, waits.result()) == 3);
  CHECK(run(context, held.result()) == 1);
  CHECK(board.begun == 1);
}

TEST_CASE("A14: events of a schedule's runs come as they happen, and a crash takes none of them along", "[events]") {
  reset_board();
  asio::io_context context;
  const auto pool = make("local", context, 1);
  Told told(*pool);
  ScheduleOptions options;
  options.first = 0ns;
  options.missed = MissedRuns::run_all;
  options.max_runs = 2;
  pool->submit_every(1us, options, TaskOptions().name("held"), wait_from_second_run, 1);
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && told.ends() == 1; }));
  CHECK_THAT(told.story("held"), StartsWith("submitted started succeeded"));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return told.ends() == 2; }));

  board.begun = 0;
  auto dying = pool->submit_every(1us, options, TaskOptions().name("dying"), die_at_second_run, 1);
  REQUIRE(run_until(context, [&] { return told.ends() == 4; }));
  CHECK(told.story("dying") == "submitted started succeeded submitted started failed");
  CHECK(dying.runs() == 2);
  CHECK(dying.failures() == 1);
  CHECK(holds<WorkerCrashedError>(dying.last_error()));
}

TEST_CASE("F22: a task at its time has its priority and its retries, and one that comes too late is told so",
          "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto held = executor->spawn(wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::vector<TaskHandle<int>> handles;
  for (const int priority : {100, 1, 50}) {
    handles.push_back(executor->submit_after(1us, TaskOptions().priority(priority), note, priority));
  }
  ScheduleOptions once;
  once.first = 0ns;
  once.max_runs = 1;
  auto schedule = executor->submit_every(1h, once, TaskOptions().priority(-5), note, -5);
  REQUIRE(run_until(context, [&] { return executor->metrics().pending == 4; }));
  board.gate.open = 1;
  for (const auto& handle : handles) run(context, handle.result());
  CHECK(order() == std::vector<int>{-5, 1, 50, 100});
  const auto flaky =
      executor->submit_at(std::chrono::system_clock::now(), TaskOptions().retry(RetryPolicy(3)), succeed_at_run, 3U);
  CHECK(run(context, flaky.result()) == 3);

  const auto pending = executor->submit_after(1h, twice, 1);
  run(context, executor->shutdown());
  CHECK(cancelled_stage(failure(context, pending.result())) == TaskCancelledError::Stage::queued);
  CHECK(pending.status() == TaskStatus::cancelled);
  const auto late = executor->submit_after(1us, twice, 1);
  CHECK(holds<ExecutorNotRunningError>(failure(context, late.result())));
  CHECK(is_over(late.status()));
}

TEST_CASE("A repeated task is under way until its function returns, though its caller was told long before",
          "[schedules]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(4));
  // Each begins when there is one already if the end of its time is taken for the end of the run.
  const auto run_for_five_limits = [](int) {
    board.most_running = std::max(board.most_running.load(), ++board.running);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(25);
    while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
    --board.running;
    ++board.ended;
  };
  auto schedule = executor.submit_every(std::chrono::milliseconds(1),
                                        TaskOptions().timeout(std::chrono::milliseconds(5)), run_for_five_limits, 1);
  REQUIRE(run_until(context, [] { return board.ended >= 4; }));
  CHECK(board.most_running == 1);
  CHECK(schedule.failures() >= 3);
  schedule.cancel();
  REQUIRE(run_until(context, [] { return board.running == 0; }));
}

TEST_CASE("The event loop runs for as long as a schedule goes on, though nothing else keeps it at work", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  // The loop has to run out of work between two handlers of one run, which it does most of the times.
  for (int i = 0; i < 30; ++i) {
    asio::io_context context;
    const auto executor = make(type, context);
    ScheduleOptions three;
    three.max_runs = 3;
    const auto schedule = executor->submit_every(1ms, three, twice, 1);
    context.run_for(kDeadline);
    CHECK(context.stopped());
    CHECK(schedule.runs() == 3);
    CHECK_FALSE(schedule.active());
  }
}

TEST_CASE("A schedule that one of its runs cancels begins none of those that are due with it", "[schedule]") {
  asio::io_context context;
  bulkhead::InlineExecutor executor(context.get_executor());
  ScheduleOptions all;
  all.overlap = true;
  all.missed = MissedRuns::run_all;
  int runs = 0;
  bulkhead::Schedule schedule;
  schedule = executor.submit_every(1ms, all, [&] {
    ++runs;
    schedule.cancel();
  });
  // The loop is blocked, until ten are due.
  const auto due = std::chrono::steady_clock::now() + 10ms;
  while (std::chrono::steady_clock::now() < due) std::this_thread::yield();
  context.run_for(kDeadline);
  CHECK(runs == 1);
  CHECK(schedule.runs() == 1);
}

TEST_CASE("A short task is repeated by a worker that always has others to do", "[schedule]") {
  asio::io_context context;
  LocalExecutorOptions one_worker;
  one_worker.max_workers = 1;
  LocalExecutor executor(context.get_executor(), one_worker);
  bool over = false;
  int failures = 0;
  std::function<void()> submit_another = [&] {
    if (over) return;
    executor.async_submit(bulkhead::call(twice, 1), [&](const std::exception_ptr& error, int) {
      if (error) ++failures;
      submit_another();
    });
  };
  constexpr int kInFlight = 64;
  for (int i = 0; i < kInFlight; ++i) submit_another();
  ScheduleOptions options;
  options.first = 0ns;
  options.max_runs = 20;
  auto schedule = executor.submit_every(1ms, options, twice, 1);
  CHECK(run_until(context, [&] { return !schedule.active(); }));
  CHECK(schedule.runs() == 20);
  over = true;
  CHECK(run_until(context, [&] { return executor.metrics().pending + executor.metrics().running == 0; }));
  CHECK(failures == 0);
}
