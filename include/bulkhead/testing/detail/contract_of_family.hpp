// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/testing/contract_subject.hpp>
#include <bulkhead/testing/detail/contract_bench.hpp>
#include <bulkhead/testing/detail/contract_tasks.hpp>

#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace bulkhead::testing::contract {

// What all executors offer beside submit: events, progress, handles, instances, tasks by name, timed runs, threads.

inline void events(const ContractSubject& subject) {
  Bench bench(subject);
  Listening listening(bench.executor());
  bench.run(twice, 1);
  try {
    bench.run(fail, 1);
  } catch (const std::out_of_range&) {
    // as it must be
  }
  bench.until([&] { return listening.terminal() == 2; }, "the ends of two tasks were told");
  using Kinds = std::vector<EventKind>;
  require(listening.kinds_of(1) == Kinds{EventKind::submitted, EventKind::started, EventKind::succeeded},
          "a task that returns must be told of as submitted, started, succeeded");
  require(listening.kinds_of(2) == Kinds{EventKind::submitted, EventKind::started, EventKind::failed},
          "a task that throws must be told of as submitted, started, failed");
  for (const Event& event : listening.events()) {
    require(event.executor == "contract" && !event.task.empty(), "an event must name its executor and task");
    if (event.kind == EventKind::failed) {
      require_error<std::out_of_range>(event.error, "the event of a failure must have the error");
    }
  }
  bench.await(bench.executor().shutdown(), "shutdown was over");
  try {
    bench.run(twice, 1);
  } catch (const ExecutorNotRunningError&) {
    // as it must be
  }
  bench.until([&] { return listening.count(EventKind::rejected) == 1; }, "a refusal was told");
}

inline void events_of_ends(const ContractSubject& subject) {
  Bench bench(subject);
  Listening listening(bench.executor());
  bench.occupy();
  const auto cancelled = bench.submit_cancellable(twice, 1);
  const auto late = bench.submit(TaskOptions().queue_timeout(std::chrono::milliseconds(1)), twice, 2);
  cancelled->signal.emit(asio::cancellation_type::terminal);
  bench.until([&] { return late->calls + cancelled->calls == 2; }, "two tasks ended without having run");
  bench.open_gate();
  bench.require_nothing_left();
  bench.until([&] { return listening.terminal() == subject.concurrency + 2; }, "the ends of all tasks were told");
  require(listening.count(EventKind::cancelled) == 1 && listening.count(EventKind::timed_out) == 1,
          "each end must be told as what it was");
  std::map<std::uint64_t, int> ends;
  for (const Event& event : listening.events()) {
    if (kTerminalEvents.contains(event.kind)) ++ends[event.task_id];
    require(ends[event.task_id] <= 1, "a task was told of as ended twice");
    require(ends[event.task_id] == 0 || kTerminalEvents.contains(event.kind), "an event came after the task's end");
  }
}

inline void progress(const ContractSubject& subject) {
  Bench bench(subject);
  const auto seen = std::make_shared<std::vector<std::uint64_t>>();
  auto options = TaskOptions().on_progress([seen](const Progress& told) { seen->push_back(told.done); });
  require(bench.run(std::move(options), report, 1000) == 1000, "a result is wrong");
  require(!seen->empty() && seen->back() == 1000, "the last progress must come before the result");
  require(std::is_sorted(seen->begin(), seen->end()), "progress must come in order");
}

inline void handles(const ContractSubject& subject) {
  Bench bench(subject);
  const auto handle = bench.spawn(twice, 21);
  require(bench.await(handle.result(bench.deadline()), "a spawned task was over") == 42, "a result is wrong");
  require(handle.status() == TaskStatus::succeeded, "a spawned task that returned must have succeeded");
  require(bench.executor().get_result<int>(handle.id()) == 42, "the store must have the result");
  require(bench.await(bench.executor().wait_for_result<int>(TaskId::parse(handle.id().to_string())),
                      "a stored result came") == 42,
          "the store must have the result");
  try {
    bench.await(bench.executor().wait_for_result<int>(TaskId::make()), "an unknown id was an error");
    throw ContractViolation("a result came of a task that there is not");
  } catch (const ResultNotFoundError&) {
    // as it must be
  }
  const auto failing = bench.spawn(fail, 1);
  try {
    bench.await(failing.result(), "a spawned task was over");
    throw ContractViolation("a spawned task's error was lost");
  } catch (const std::out_of_range&) {
    require(failing.status() == TaskStatus::failed, "a spawned task that threw must have failed");
  }
}

inline void handles_of_own_id(const ContractSubject& subject) {
  Bench bench(subject);
  const TaskId id = TaskId::make();
  const auto options = TaskOptions().id(id).metadata("for the first customer");
  const auto handle = bench.spawn(options, twice, 3);
  require(handle.id() == id, "a task must have the id that it was given");
  const auto require_taken = [&](const std::string& when) {
    try {
      bench.spawn(options, twice, 4);
      throw ContractViolation("two tasks had one id, the first of which " + when);
    } catch (const DuplicateTaskError&) {
      // as it must be
    }
  };
  require_taken("was not over");
  require(bench.await(handle.result(bench.deadline()), "a spawned task was over") == 6, "a result is wrong");
  require_taken("was over");
  require(bench.executor().get_result<int>(id) == 6, "a result was lost to a task that was refused its id");
  const auto info = bench.executor().info(id);
  require(info && info->metadata == "for the first customer", "a task's metadata must be there when it is over");
  require(bench.executor().metrics().submitted == 1, "a task that was refused its id must not be submitted");
}

inline void handles_of_running(const ContractSubject& subject) {
  Bench bench(subject);
  const auto running = bench.spawn(stop_when_asked, 1);
  bench.until([] { return board().begun == 1; }, "a task began");
  bench.until([&] { return running.status() == TaskStatus::running; }, "a running task said so");
  try {
    bench.await(running.result(std::chrono::milliseconds(5)), "a wait with a limit was over");
    throw ContractViolation("a wait with a limit gave a result that there is not");
  } catch (const TaskTimeoutError& error) {
    require(error.which() == TaskTimeoutError::Which::wait, "the end of a wait must be told as that");
  }
  running.cancel();
  try {
    bench.await(running.result(), "a cancelled task was over");
    throw ContractViolation("a cancelled task gave a result");
  } catch (const TaskCancelledError&) {
    require(running.status() == TaskStatus::cancelled, "a cancelled task must say so");
  }
  bench.require_nothing_left();
}

inline void instances(const ContractSubject& subject) {
  if (subject.concurrency < 2) return;
  Bench bench(subject);
  const auto one = [](OverloadPolicy policy) { return TaskOptions().max_instances(1, policy, "only one"); };
  const auto first = bench.submit(one(OverloadPolicy::reject), wait_at_gate, 1);
  const auto refused = bench.submit(one(OverloadPolicy::reject), twice, 2);
  const auto waiting = bench.submit(one(OverloadPolicy::wait), twice, 3);
  bench.until_told(refused, "a second instance was refused");
  require_error<MaxInstancesError>(refused->error, "a second instance must fail with MaxInstancesError");
  bench.until([] { return board().begun == 1; }, "the first instance began");
  require(bench.run(twice, 4) == 8, "a result is wrong");
  require(waiting->calls == 0, "an instance ran beside the only one that may");
  board().open = 1;
  bench.until([&] { return waiting->calls > 0 && first->calls > 0; }, "the instance that waited had its turn");
  require(waiting->value == 6, "the instance that waited failed: " + say(waiting->error));
  bench.require_nothing_left();
}

// Each executor must count for itself in a group that is given to it, and heed what others count there.
inline void shared_instances(const ContractSubject& subject) {
  OnlyInstance instance;
  Bench bench(subject, instance.common());
  BaseExecutor& other = bench.add_executor(instance.common());
  for (BaseExecutor* const executor : {&bench.executor(), &other}) {
    const auto refused = bench.submit_to(*executor, instance.task(OverloadPolicy::reject), twice, 1);
    bench.until_told(refused, "an instance beyond those of a shared group was refused");
    require_error<MaxInstancesError>(refused->error,
                                     "an instance must fail with MaxInstancesError beyond those that "
                                     "are counted elsewhere in the same group");
  }
  const auto first = bench.submit(instance.task(), wait_at_gate, 2);
  const auto second = bench.submit_to(other, instance.task(), twice, 3);
  const auto free = bench.submit_to(other, TaskOptions(), twice, 4);
  bench.until_told(free, "a task of another kind was over");
  require(free->value == 8, "a task of another kind failed: " + say(free->error));
  require(first->calls == 0 && second->calls == 0 && board().begun == 0,
          "an instance ran beside the only one that may in executors that count together");
  // In an executor that runs it inside `submit` it cannot wait.
  if (subject.concurrency == 0) board().open = 1;
  instance.give_back();
  bench.until([] { return board().begun == 1; }, "an instance had its turn when one in another executor was over");
  if (subject.concurrency > 0) {
    const auto refused = bench.submit_to(other, instance.task(OverloadPolicy::reject), twice, 5);
    bench.until_told(refused, "an instance beside one in another executor was refused");
    require_error<MaxInstancesError>(refused->error,
                                     "an instance beside one in another executor must fail with MaxInstancesError");
    require(second->calls == 0, "an instance ran beside the only one that may, which runs in another executor");
    board().open = 1;
  }
  bench.until([&] { return first->calls > 0 && second->calls > 0; }, "all instances had their turn");
  require(first->value == 2, "the first instance failed: " + say(first->error));
  require(second->value == 6, "the instance that waited for one in another executor failed: " + say(second->error));
  bench.require_nothing_left();
  bench.require_nothing_left_in(other);
  bench.until([&] { return !instance.left(); }, "all instances were given back");
}

inline void shared_results(const ContractSubject& subject) {
  CommonOptions options;
  options.results = std::make_shared<ResultStore>();
  Bench bench(subject, options);
  BaseExecutor& other = bench.add_executor(options);
  const auto require_shared = [&](BaseExecutor& spawning, BaseExecutor& asked) {
    const auto handle = bench.spawn_in(spawning, TaskOptions().metadata("shared"), twice, 21);
    require(asked.status(handle.id()).has_value(), "a task must be found through an executor with the same store");
    require(bench.await(asked.wait_for_result<int>(handle.id(), bench.deadline()), "a stored result came") == 42,
            "a result that is found through another executor is wrong");
    require(asked.get_result<int>(handle.id()) == 42, "a result that is found through another executor is wrong");
    const auto info = asked.info(handle.id());
    require(info && info->metadata == "shared" && info->status == TaskStatus::succeeded,
            "what is known of a task must be found through an executor with the same store");
    try {
      bench.spawn_in(asked, TaskOptions().id(handle.id()), twice, 1);
      throw ContractViolation("two executors with the same store gave two tasks one id");
    } catch (const DuplicateTaskError&) {
      // as it must be
    }
  };
  require_shared(bench.executor(), other);
  require_shared(other, bench.executor());
  require(options.results->size() == 2, "the store that two executors were given must have the results of both");
}

inline void by_name(const ContractSubject& subject) {
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  twice.in_form(subject.form, [&](auto form) { options.tasks->add("double", form); });
  Bench bench(subject, options);
  const int result = bench.await(bench.executor().submit("double", 4), "a task that was called by its name was over");
  require(result == 8, "a result is wrong");
  try {
    bench.await(bench.executor().submit("triple", 4), "an unknown name was an error");
    throw ContractViolation("an unknown task ran");
  } catch (const UnknownTaskError&) {
    // as it must be
  }
  try {
    bench.await(bench.executor().submit("double", 4.5), "wrong arguments were an error");
    throw ContractViolation("a task ran with arguments of a wrong type");
  } catch (const TaskSignatureError&) {
    // as it must be
  }
}

inline void timed(const ContractSubject& subject) {
  Bench bench(subject);
  const auto after = [&](std::chrono::nanoseconds delay) {
    return twice.in_form(subject.form, [&](auto form) { return bench.executor().submit_after(delay, form, 4); });
  };
  const auto later = after(std::chrono::milliseconds(5));
  require(later.status() == TaskStatus::queued, "a task whose time has not come must be queued");
  require(bench.await(later.result(), "a task at its time was over") == 8, "a result is wrong");
  const auto never = after(std::chrono::hours(1));
  never.cancel();
  try {
    bench.await(never.result(), "a cancelled task was over");
    throw ContractViolation("a task ran whose time had not come");
  } catch (const TaskCancelledError&) {
    require(never.status() == TaskStatus::cancelled, "a cancelled task must say so");
  }
  ScheduleOptions three;
  three.first = std::chrono::nanoseconds(0);
  three.max_runs = 3;
  three.missed = MissedRuns::run_all;
  const auto schedule = count.in_form(subject.form, [&](auto form) {
    return bench.executor().submit_every(std::chrono::milliseconds(1), three, form);
  });
  bench.until([] { return ended() == 3; }, "a repeated task ran three times");
  bench.until([&] { return !schedule.active(); }, "a schedule of three runs ended");
  require(schedule.runs() == 3 && schedule.failures() == 0, "a schedule counts wrongly");
}

inline void threads(const ContractSubject& subject) {
  reset_board(subject.deadline);
  std::atomic<int> good{0};
  std::atomic<int> told{0};
  asio::io_context context;
  CommonOptions options = limited(100'000);
  options.name = "contract";
  auto executor = subject.make(context.get_executor(), options);
  constexpr int kThreads = 4;
  constexpr int kTasks = 200;
  auto work = asio::make_work_guard(context);
  std::vector<std::thread> all;
  for (int i = 0; i < 2; ++i) all.emplace_back([&] { context.run(); });
  for (int i = 0; i < kThreads; ++i) {
    all.emplace_back([&] {
      for (int n = 0; n < kTasks; ++n) {
        twice.in_form(subject.form, [&](auto form) {
          executor->async_submit(call(form, n), [&, n](std::exception_ptr error, int value) {
            if (!error && value == 2 * n) ++good;
            ++told;
          });
        });
      }
    });
  }
  functions::wait_until([&] { return told == kThreads * kTasks; });
  work.reset();
  context.stop();
  for (std::thread& thread : all) thread.join();
  require(told == kThreads * kTasks, "a task that was submitted by one of several threads was not over");
  require(good == kThreads * kTasks, "a task that was submitted by one of several threads failed");
  const Metrics metrics = executor->metrics();
  require(metrics.completed == static_cast<std::uint64_t>(kThreads * kTasks), "the metrics count wrongly");
}

}  // namespace bulkhead::testing::contract
