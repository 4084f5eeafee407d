// SPDX-License-Identifier: BSL-1.0
// What a task knows and tells of itself, and how it is asked to stop.
#include <bulkhead/this_task.hpp>

#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/shared.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_future.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace asio = boost::asio;
namespace this_task = bulkhead::this_task;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Progress;
using bulkhead::RetryPolicy;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::cancelled_stage;
using bulkhead::test::error_as;
using bulkhead::test::Gate;
using bulkhead::test::holds;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

struct Board {
  Gate gate;
  std::atomic<int> stopped{0};
  std::atomic<std::uint64_t> reported{0};
};
Board& board = shared_object<Board>();

const std::string kTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

// Functions of the tasks. None of them asserts.

std::vector<std::string> describe_myself(int) {
  return {this_task::name(),
          this_task::executor_name(),
          this_task::trace_parent(),
          std::to_string(this_task::id()),
          std::to_string(this_task::attempt()),
          this_task::deadline() ? "has a deadline" : "has no deadline",
          this_task::stop_requested() ? "is to stop" : "goes on",
          this_task::is_running() ? "runs" : "does not run"};
}

std::int64_t time_left(int) { return (this_task::deadline().value() - std::chrono::steady_clock::now()).count(); }

std::string name_in_a_thread(int) {
  std::string name;
  std::thread([&] { name = this_task::name(); }).join();
  return name;
}

unsigned fail_until(unsigned attempt) {
  if (this_task::attempt() < attempt) throw std::runtime_error("not yet");
  return this_task::attempt();
}

// Goes on until it is asked to stop, or for a minute.
int stop_politely(int value) {
  ++board.gate.waiting;
  const auto end = std::chrono::steady_clock::now() + 1min;
  while (!this_task::stop_requested()) {
    if (std::chrono::steady_clock::now() > end) return -1;
  }
  ++board.stopped;
  return value;
}

int stop_by_throwing(int) {
  ++board.gate.waiting;
  for (const auto end = std::chrono::steady_clock::now() + 1min; std::chrono::steady_clock::now() < end;) {
    this_task::throw_if_stop_requested();
  }
  return -1;
}

int wait_at_gate(int value) {
  board.gate.wait();
  return value;
}

// Reports 1 to `count`, and waits at the gate after the first half.
int report_all(int count) {
  for (int i = 1; i <= count; ++i) {
    this_task::report_progress(static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(count), "rows");
    if (i == count / 2) board.gate.wait();
  }
  return count;
}

int report_and_crash(int) {
  this_task::report_progress(7, 0, std::string(1000, 'x') + "\n");
  std::raise(SIGKILL);
  return 0;
}

// Does nothing but report: 1, 2, 3, ..., each with a text of that size that is all of one digit.
int report_without_end(std::size_t text_size) {
  ++board.gate.waiting;
  for (std::uint64_t i = 1;; ++i) {
    const std::string text(text_size, static_cast<char>('0' + i % 10));
    this_task::report_progress(i, 0, text);
    board.reported = i;
    if (board.gate.open != 0) return 1;
  }
}

int one(int) { return 1; }

}  // namespace

TEST_CASE("Outside of a task nothing is known, nobody asks to stop, and progress goes nowhere", "[this_task]") {
  CHECK_FALSE(this_task::is_running());
  CHECK(this_task::id() == 0);
  CHECK(this_task::name().empty());
  CHECK(this_task::executor_name().empty());
  CHECK(this_task::attempt() == 0);
  CHECK_FALSE(this_task::deadline());
  CHECK(this_task::trace_parent().empty());
  CHECK_FALSE(this_task::stop_requested());
  this_task::throw_if_stop_requested();
  this_task::report_progress(1, 2, "text");
}

TEST_CASE("A task knows its names, number, run, trace and limits, over workers and in bypass", "[this_task]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.name = "a pool with a name that is longer than what ps shows";
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(one, 0)) == 1);
  TaskOptions given;
  given.name("thumbnail").trace_parent(kTrace).timeout(1min);
  CHECK(run(context, pool.submit(std::move(given), describe_myself, 0)) ==
        std::vector<std::string>{"thumbnail", options.name, kTrace, "2", "1", "has a deadline", "goes on", "runs"});
  const auto plain = run(context, pool.submit(describe_myself, 0));
  CHECK_THAT(plain[0], ContainsSubstring("describe_myself"));
  CHECK(plain[2].empty());
  CHECK(std::vector<std::string>(plain.begin() + 3, plain.end()) ==
        std::vector<std::string>{"3", "1", "has no deadline", "goes on", "runs"});
  TaskOptions traced;
  traced.trace_parent(kTrace);
  CHECK(run(context, pool.submit(std::move(traced), describe_myself, 0))[2] == kTrace);
  const std::int64_t left = run(context, pool.submit(TaskOptions().timeout(1min), time_left, 0));
  CHECK(left > 0);
  CHECK(left <= std::chrono::nanoseconds(1min).count());
  CHECK(run(context, pool.submit(TaskOptions().retry(RetryPolicy(3)), fail_until, 3U)) == 3);
}

TEST_CASE("Arguments too large for a slot leave the task's own name and trace intact", "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto describe = [](const std::string& large) {
    return std::to_string(large.size()) + " " + this_task::name() + " " + this_task::trace_parent();
  };
  for (const std::size_t size : {0U, 100U, 150U, 180U, 192U, 193U, 256U, 5000U, 1U << 20U}) {
    CAPTURE(size);
    TaskOptions options;
    options.name("large").trace_parent(kTrace);
    CHECK(run(context, pool.submit(std::move(options), describe, std::string(size, 'x'))) ==
          std::to_string(size) + " large " + kTrace);
  }
}

TEST_CASE("A task's own threads know it in a worker", "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(TaskOptions().name("threads"), name_in_a_thread, 0)) == "threads");
}

TEST_CASE("What is no W3C trace parent is refused when the option is set", "[this_task]") {
  for (const std::string& text : {std::string(), std::string("00"), kTrace + "0", kTrace.substr(1),
                                  std::string("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
                                  std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01")}) {
    CHECK_THROWS_AS(TaskOptions().trace_parent(text), std::invalid_argument);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Being asked to stop.

namespace {

struct Cancelled {
  asio::io_context context;
  LocalExecutor pool;
  asio::cancellation_signal signal;
  Outcome<> outcome;

  explicit Cancelled(std::chrono::nanoseconds grace, int (*function)(int) = stop_politely)
      : pool(context.get_executor(), [&] {
          LocalExecutorOptions options = workers(1);
          options.cancel_grace = grace;
          return options;
        }()) {
    board.gate.reset();
    board.stopped = 0;
    pool.async_submit(bulkhead::call(function, 5), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
    // A worker may begin before the host has heard what its number is.
    REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && bulkhead::test::whole(pool); }));
  }
  void finish() {
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    CHECK(outcome.calls == 1);
    CHECK(adds_up(pool));
  }
};

}  // namespace

TEST_CASE("A running task that is cancelled with partial may stop by itself, and its value counts", "[this_task]") {
  Cancelled task(0ns);
  const auto before = task.pool.worker_pids();
  task.signal.emit(asio::cancellation_type::partial);
  task.finish();
  CHECK(task.outcome.value == 5);
  CHECK(task.pool.metrics().completed == 1);
  CHECK(run(task.context, task.pool.submit(one, 0)) == 1);
  CHECK(task.pool.worker_pids() == before);
}

TEST_CASE("A running task that is cancelled with terminal may stop by itself within the grace, and its value counts",
          "[this_task]") {
  Cancelled task(1min);
  const auto before = task.pool.worker_pids();
  task.signal.emit(asio::cancellation_type::terminal);
  task.finish();
  CHECK(task.outcome.value == 5);
  CHECK(task.pool.worker_pids() == before);
}

TEST_CASE("A running task that leaves by throw_if_stop_requested is cancelled, and its worker goes on", "[this_task]") {
  Cancelled task(1min, stop_by_throwing);
  const auto before = task.pool.worker_pids();
  task.signal.emit(asio::cancellation_type::partial);
  task.finish();
  CHECK(cancelled_stage(task.outcome.error) == TaskCancelledError::Stage::running);
  CHECK(task.pool.metrics().cancelled == 1);
  CHECK(run(task.context, task.pool.submit(one, 0)) == 1);
  CHECK(task.pool.worker_pids() == before);
}

TEST_CASE("A running task that is cancelled with terminal and does not look is killed after the grace", "[this_task]") {
  const auto grace = GENERATE(0ms, 20ms);
  Cancelled task(grace, wait_at_gate);
  task.signal.emit(asio::cancellation_type::terminal);
  task.signal.emit(asio::cancellation_type::terminal);
  task.finish();
  CHECK(cancelled_stage(task.outcome.error) == TaskCancelledError::Stage::running);
  const auto metrics = task.pool.metrics();
  CHECK(metrics.cancelled == 1);
  CHECK(metrics.workers_crashed == 0);
  CHECK(run(task.context, task.pool.submit(one, 0)) == 1);
}

TEST_CASE("A running task that is cancelled with total goes on and is not even asked", "[this_task]") {
  Cancelled task(0ns, [](int value) {
    board.gate.wait();
    return this_task::stop_requested() ? -1 : value;
  });
  task.signal.emit(asio::cancellation_type::total);
  board.gate.open = 1;
  task.finish();
  CHECK(task.outcome.value == 5);
}

TEST_CASE("The wish to stop is for one task: the next in its worker is not asked", "[this_task]") {
  Cancelled task(1min);
  task.signal.emit(asio::cancellation_type::partial);
  task.finish();
  // As many as the ring has slots, so that each of them is used again.
  for (int i = 0; i < 300; ++i) {
    const bool asked = run(task.context, task.pool.submit([](int) { return this_task::stop_requested(); }, i));
    REQUIRE_FALSE(asked);
  }
}

TEST_CASE("A task behind another one that is killed runs elsewhere, and is not cancelled with it", "[this_task]") {
  Cancelled task(0ns, wait_at_gate);
  std::array<Outcome<>, 5> others;
  for (Outcome<>& other : others) task.pool.async_submit(bulkhead::call(one, 0), other.handler());
  task.signal.emit(asio::cancellation_type::terminal);
  task.finish();
  REQUIRE(run_until(task.context, [&] { return all_over(others); }));
  for (const Outcome<>& other : others) CHECK(other.value == 1);
}

TEST_CASE("In the host's own process a task is asked to stop by another thread", "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, true));
  board.gate.reset();
  board.stopped = 0;
  asio::cancellation_signal signal;
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(stop_politely, 5), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  std::thread canceller([&] {
    while (board.gate.waiting == 0) std::this_thread::yield();
    signal.emit(asio::cancellation_type::partial);
  });
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  canceller.join();
  CHECK(outcome.value == 5);
  CHECK(board.stopped == 1);
}

// ---------------------------------------------------------------------------------------------------------------------
// Progress.

TEST_CASE("The caller gets the latest progress while the task runs, and the last before it completes", "[this_task]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  board.gate.reset();
  if (bypass) board.gate.open = 1;
  std::vector<Progress> seen;
  int calls_at_end = -1;
  TaskOptions options;
  options.on_progress([&](const Progress& progress) { seen.push_back(progress); });
  pool.async_submit(std::move(options), bulkhead::call(report_all, 1000), [&](std::exception_ptr error, int value) {
    CHECK_FALSE(error);
    CHECK(value == 1000);
    calls_at_end = static_cast<int>(seen.size());
  });
  if (!bypass) {
    REQUIRE(run_until(context, [&] { return !seen.empty() && seen.back().done == 500; }));
    board.gate.open = 1;
  }
  REQUIRE(run_until(context, [&] { return calls_at_end >= 0; }));
  bulkhead::test::settle(context);
  CHECK(static_cast<int>(seen.size()) == calls_at_end);
  REQUIRE_FALSE(seen.empty());
  CHECK(seen.back().done == 1000);
  CHECK(seen.back().total == 1000);
  CHECK(seen.back().text == "rows");
  // Not each of a thousand that are told within a moment.
  CHECK(seen.size() < 100);
}

TEST_CASE("Progress that several threads of a task tell at once is never torn, and the last is the last",
          "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (int round = 0; round < 30; ++round) {
    std::uint64_t last = 0;
    auto options = TaskOptions().on_progress([&](const Progress& progress) { last = progress.done; });
    run(context, pool.submit(
                     std::move(options), +[] {
                       std::vector<std::thread> threads;
                       for (int i = 0; i < 4; ++i) {
                         threads.emplace_back([] {
                           for (std::uint64_t n = 0; n < 2000; ++n)
                             bulkhead::this_task::report_progress(n, 0, "one of many");
                         });
                       }
                       for (std::thread& thread : threads) thread.join();
                       bulkhead::this_task::report_progress(1'000'000, 0, "the last");
                     }));
    REQUIRE(last == 1'000'000);
  }
}

TEST_CASE("Of many tasks in one worker each caller gets its own last progress", "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  struct Watched {
    std::uint64_t last = 0;
    Outcome<> outcome;
  };
  std::vector<Watched> tasks(300);
  const auto report = [](int i) {
    this_task::report_progress(static_cast<std::uint64_t>(i), 1000, std::to_string(i));
    return i;
  };
  LocalExecutorOptions options = workers(1);
  options.max_pending = 1000;
  LocalExecutor roomy(context.get_executor(), options);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    TaskOptions watched;
    watched.on_progress([&tasks, i](const Progress& progress) { tasks[i].last = progress.done; });
    roomy.async_submit(std::move(watched), bulkhead::call(report, static_cast<int>(i + 1)), tasks[i].outcome.handler());
  }
  REQUIRE(run_until(context, [&] {
    return std::all_of(tasks.begin(), tasks.end(), [](const Watched& task) { return task.outcome.calls > 0; });
  }));
  for (std::size_t i = 0; i < tasks.size(); ++i) CHECK(tasks[i].last == i + 1);
}

TEST_CASE("Progress arrives on the completion handler's executor and never beside or after the completion",
          "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  auto strand = asio::make_strand(context);
  std::atomic<bool> wrong{false};
  std::atomic<int> finished{0};
  struct State {
    bool completed = false;
    std::uint64_t last = 0;
  };
  constexpr int kTasks = 50;
  std::vector<State> states(kTasks);
  const auto work = [](int count) {
    for (int i = 1; i <= count; ++i) this_task::report_progress(static_cast<std::uint64_t>(i), 0);
    return count;
  };
  for (int i = 0; i < kTasks; ++i) {
    State& state = states[static_cast<std::size_t>(i)];
    TaskOptions options;
    options.on_progress([&](const Progress& progress) {
      if (!strand.running_in_this_thread() || state.completed || progress.done < state.last) wrong = true;
      state.last = progress.done;
    });
    pool.async_submit(std::move(options), bulkhead::call(work, 20000),
                      asio::bind_executor(strand, [&](std::exception_ptr, int) {
                        if (!strand.running_in_this_thread() || state.last != 20000) wrong = true;
                        state.completed = true;
                        ++finished;
                      }));
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { context.run_for(bulkhead::test::kDeadline); });
  for (std::thread& thread : threads) thread.join();
  CHECK(finished == kTasks);
  CHECK_FALSE(wrong);
}

TEST_CASE("An on_progress that throws leaves through run, and the task completes all the same", "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> outcome;
  TaskOptions options;
  options.on_progress([](const Progress&) { throw std::runtime_error("the progress bar fell off"); });
  pool.async_submit(std::move(options),
                    bulkhead::call(
                        [](int value) {
                          this_task::report_progress(1, 1);
                          return value;
                        },
                        3),
                    outcome.handler());
  int thrown = 0;
  for (const auto end = std::chrono::steady_clock::now() + bulkhead::test::kDeadline;
       outcome.calls == 0 && std::chrono::steady_clock::now() < end;) {
    try {
      context.restart();
      context.run_for(1ms);
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()) == "the progress bar fell off");
      ++thrown;
    }
  }
  CHECK(thrown == 1);
  CHECK(outcome.value == 3);
}

TEST_CASE("The error of a crash has the task's last progress, cut and printable", "[this_task]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(report_and_crash, 0), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto crash = error_as<WorkerCrashedError>(outcome.error);
  REQUIRE(crash);
  REQUIRE(crash->ending().progress);
  CHECK(crash->ending().progress->done == 7);
  CHECK(crash->ending().progress->total == 0);
  CHECK(crash->ending().progress->text == std::string(200, 'x'));
  CHECK_THAT(message(outcome.error), ContainsSubstring("its last progress: 7, xxx"));
}

TEST_CASE("A task that does nothing but report is heard while it runs, whole and in order", "[this_task]") {
  const std::size_t text_size = GENERATE(0U, 20U, 200U);
  CAPTURE(text_size);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  board.gate.reset();
  std::vector<Progress> seen;
  TaskOptions options;
  options.on_progress([&](const Progress& progress) { seen.push_back(progress); });
  Outcome<> outcome;
  pool.async_submit(std::move(options), bulkhead::call(report_without_end, text_size), outcome.handler());
  REQUIRE(run_until(context, [&] { return seen.size() >= 5; }));
  CHECK(outcome.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK(seen.back().done == board.reported);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    CHECK(seen[i].text == std::string(text_size, static_cast<char>('0' + seen[i].done % 10)));
    if (i > 0) CHECK(seen[i].done > seen[i - 1].done);
  }
}

TEST_CASE("The error of a worker that is killed while its task reports has the last progress, whole", "[this_task]") {
  constexpr std::size_t kTextSize = 200;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (int round = 0; round < 50; ++round) {
    CAPTURE(round);
    board.gate.reset();
    board.reported = 0;
    Outcome<> outcome;
    pool.async_submit(bulkhead::call(report_without_end, kTextSize), outcome.handler());
    REQUIRE(run_until(context, [&] { return board.reported > 100 && pool.worker_pids().size() == 1; }));
    ::kill(pool.worker_pids().front(), SIGKILL);
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    const auto crash = error_as<WorkerCrashedError>(outcome.error);
    REQUIRE(crash);
    REQUIRE(crash->ending().progress);
    const Progress& last = *crash->ending().progress;
    CHECK((last.done == board.reported || last.done == board.reported + 1));
    CHECK(last.text == std::string(kTextSize, static_cast<char>('0' + last.done % 10)));
  }
}

TEST_CASE("An event loop that is destroyed with progress on its way frees handler and task", "[this_task]") {
  auto context = std::make_unique<asio::io_context>();
  LocalExecutor pool(context->get_executor(), workers(1, true));
  auto alive = std::make_shared<int>(0);
  TaskOptions options;
  options.on_progress([alive](const Progress&) {});
  pool.async_submit(std::move(options),
                    bulkhead::call(
                        [](int value) {
                          this_task::report_progress(1, 1);
                          return value;
                        },
                        3),
                    [alive](std::exception_ptr, int) {});
  // The task runs; what it told is posted, and nobody comes for it.
  context->run_one();
  context.reset();
  CHECK(alive.use_count() == 1);
}
