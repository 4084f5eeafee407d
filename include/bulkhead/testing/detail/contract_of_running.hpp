// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/errors.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/testing/contract_subject.hpp>
#include <bulkhead/testing/detail/contract_bench.hpp>
#include <bulkhead/testing/detail/contract_tasks.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <stdexcept>
#include <string>
#include <vector>

namespace bulkhead::testing::contract {

// How tasks get in, wait for their turn, and run.

inline void outcomes(const ContractSubject& subject) {
  Bench bench(subject);
  require(bench.run(twice, 21) == 42, "a result is wrong");
  bench.run(count);
  require(ended() == 1, "a function that returns nothing did not run once");
  try {
    bench.run(fail, 7);
    throw ContractViolation("what a function threw did not reach its caller");
  } catch (const std::out_of_range& error) {
    require(std::string(error.what()) == "there is no 7", std::string("the error's text is wrong: ") + error.what());
  }
  const auto caller = bench.submit(twice, 1);
  require(caller->calls == 0, "the handler was called inside the initiating function");
  bench.until_told(caller, "the handler was called");
  const Metrics metrics = bench.executor().metrics();
  require(metrics.submitted == 4 && metrics.completed == 3 && metrics.failed == 1,
          "the metrics count wrongly: " + to_string(metrics));
}

inline void thousand_tasks(const ContractSubject& subject) {
  Bench bench(subject, limited(1000));
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < 1000; ++i) callers.push_back(bench.submit(twice, i));
  bench.until([&] { return all_told(callers); }, "a thousand tasks were over");
  for (int i = 0; i < 1000; ++i) {
    const auto& caller = *callers[static_cast<std::size_t>(i)];
    require(caller.calls == 1 && !caller.error && caller.value == 2 * i, "one of a thousand results is wrong");
  }
  bench.require_nothing_left();
}

inline void context_of_task(const ContractSubject& subject) {
  Bench bench(subject);
  const std::string name = bench.run(TaskOptions().name("who am I"), own_name);
  require(name.starts_with("who am I/"), "this_task does not know the task's name: " + name);
}

inline void submit_does_not_wait(const ContractSubject& subject) {
  Bench bench(subject);
  // Whether a submit waits for its task is told by the gate, which is closed, and not by a clock.
  const auto require_none_over = [] { require(ended() == 0, "submit returned when a task was over, not before"); };
  std::vector<CallerPtr<int>> callers;
  for (std::size_t i = 0; i < subject.concurrency; ++i) {
    callers.push_back(bench.submit(wait_at_gate, static_cast<int>(i)));
    require_none_over();
  }
  std::array<std::chrono::steady_clock::duration, 20> times{};
  for (auto& time : times) {
    const auto begin = std::chrono::steady_clock::now();
    callers.push_back(bench.submit(twice, 1));
    time = std::chrono::steady_clock::now() - begin;
    require_none_over();
  }
  // On a busy machine some take long, whatever the executor does; the fastest do not.
  std::sort(times.begin(), times.end());
  const std::chrono::duration<double, std::milli> fast = times[4];
  require(fast < std::chrono::milliseconds(10),
          fmt::format("submit must not block, and the fifth fastest of {} took {:.1f} ms", times.size(), fast.count()));
  board().open = 1;
  bench.until([&] { return all_told(callers); }, "all tasks were over");
}

inline void runs_inside_submit(const ContractSubject& subject) {
  Bench bench(subject);
  const auto caller = bench.submit(count);
  require(ended() == 1, "a task had not run when submit returned, although the subject's concurrency is 0");
  bench.until_told(caller, "a task was over");
  bench.require_nothing_left();
}

inline void idleness(const ContractSubject& subject) {
  constexpr std::chrono::milliseconds kWindow(200);
  const auto cpu_time = [] {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
  };
  Bench bench(subject);
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < 20; ++i) callers.push_back(bench.submit(twice, i));
  bench.until([&] { return all_told(callers); }, "all tasks were over");
  bench.require_nothing_left();
  // What is left to be tidied up after the tasks takes time once; who spins takes it in every window, and far more.
  std::chrono::nanoseconds least = kWindow;
  for (int i = 0; i < 3 && least > kWindow / 20; ++i) {
    const auto before = cpu_time();
    bench.run_loop_until(std::chrono::steady_clock::now() + kWindow);
    least = std::min<std::chrono::nanoseconds>(least, cpu_time() - before);
  }
  require(least <= kWindow / 20,
          fmt::format("an idle executor must use no CPU, and it used {} ms of it in {} ms",
                      std::chrono::duration_cast<std::chrono::milliseconds>(least).count(), kWindow.count()));
}

inline void overload_rejects(const ContractSubject& subject) {
  Bench bench(subject, limited(subject.concurrency + 1));
  bench.occupy();
  const auto queued = bench.submit(twice, 1);
  const auto refused = bench.submit(twice, 2);
  bench.until_told(refused, "a task beyond max_pending was refused");
  require_error<ExecutorOverloadError>(refused->error,
                                       "a task beyond max_pending must fail with ExecutorOverloadError");
  require(queued->calls == 0, "a queued task ended while all places were taken");
  require(bench.executor().metrics().rejected == 1, "a refused task must count as rejected");
  bench.open_gate();
  bench.until_told(queued, "the queued task was over");
  require(queued->value == 2, "the queued task failed: " + say(queued->error));
  require(bench.run(twice, 3) == 6, "there is no room afterwards");
}

inline void overload_waits(const ContractSubject& subject) {
  Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
  bench.occupy();
  std::vector<CallerPtr<int>> waiting;
  for (int i = 0; i < 3; ++i) waiting.push_back(bench.submit(note_order, i));
  require(bench.executor().metrics().waiting == 3, "tasks beyond max_pending must wait for admission");
  bench.open_gate();
  bench.until([&] { return all_told(waiting); }, "all that waited for admission ran");
  for (const auto& caller : waiting) require(!caller->error, "one that waited failed: " + say(caller->error));
  if (subject.concurrency == 1) {
    for (int i = 0; i < 3; ++i) {
      require(board().order[static_cast<std::size_t>(i)] == i, "who waited first was not admitted first");
    }
  }
}

inline void first_in_first_out(const ContractSubject& subject) {
  constexpr int kTasks = 32;
  static_assert(kTasks <= kMostNotes);
  Bench bench(subject);
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < kTasks; ++i) callers.push_back(bench.submit(take_turn, i));
  // Each task stays until its turn is over, and turns go by the order of submission. So when `turn` is on, only it and
  // those that run beside it can have begun, however slowly one of several threads or processes comes to say so.
  const int at_once = static_cast<int>(subject.concurrency);
  const auto has_come = [](int task) { return board().came[static_cast<std::size_t>(task)] != 0; };
  for (int turn = 0; turn < kTasks; ++turn) {
    const auto next_has_come = [&] {
      for (int later = turn + at_once; later < kTasks; ++later) {
        require(!has_come(later),
                fmt::format("of tasks with the same priority the one submitted first must begin first, and number {} "
                            "began when number {} was not over",
                            later + 1, turn + 1));
      }
      return has_come(turn);
    };
    bench.until(next_has_come, fmt::format("task number {} of {} began", turn + 1, kTasks));
    board().turn = turn + 1;
  }
  bench.until([&] { return all_told(callers); }, "all tasks were over");
  bench.require_nothing_left();
}

inline void priorities(const ContractSubject& subject) {
  constexpr int kRounds = 4;
  constexpr std::array kPriorities{5, 0, -5};
  const auto number = [](int priority, int round) { return 10 * priority + round; };
  Bench bench(subject);
  bench.occupy();
  std::vector<CallerPtr<int>> callers;
  for (int round = 0; round < kRounds; ++round) {
    for (const int priority : kPriorities) {
      callers.push_back(bench.submit(TaskOptions().priority(priority), note_order, number(priority, round)));
    }
  }
  bench.open_gate();
  bench.until([&] { return all_told(callers); }, "all tasks with priorities ran");
  // Who came first of several that run at once cannot be told by what they note.
  if (subject.concurrency > 1) return;
  auto noted = board().order.begin();
  for (const int priority : {-5, 0, 5}) {
    for (int round = 0; round < kRounds; ++round) {
      require(*noted++ == number(priority, round),
              "the lower priority number must run first, and of the same number the task submitted first");
    }
  }
}

}  // namespace bulkhead::testing::contract
