// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/errors.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/testing/contract_subject.hpp>
#include <bulkhead/testing/detail/contract_bench.hpp>
#include <bulkhead/testing/detail/contract_tasks.hpp>

#include <boost/asio/cancellation_type.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <thread>
#include <vector>

namespace bulkhead::testing::contract {

// How tasks end otherwise than by themselves: cancelled, too late, run again, with their executor.

inline void cancel_waiting(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
    bench.occupy();
    const auto caller = bench.submit_cancellable(note_order, 1);
    const auto next = bench.submit(note_order, 2);
    require(bench.executor().metrics().waiting == 2, "tasks beyond max_pending must wait for admission");
    caller->signal.emit(type);
    bench.until_told(caller, "a task was over that had waited for admission and was cancelled");
    require_cancelled(caller->error, TaskCancelledError::Stage::waiting, "a task that waits for admission");
    require(bench.executor().metrics().waiting == 1, "a task waits for admission that was cancelled");
    bench.open_gate();
    bench.until_told(next, "the next that waited for admission was over");
    require(next->value == 2, "the next that waited for admission failed: " + say(next->error));
    require(board().order_size == 1, "a task ran although it was cancelled before");
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
}

inline void cancel_queued(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    bench.occupy();
    const auto caller = bench.submit_cancellable(note_order, 1);
    caller->signal.emit(type);
    bench.until_told(caller, "a queued task that was cancelled was over");
    require_cancelled(caller->error, TaskCancelledError::Stage::queued, "a queued task");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although it was cancelled before");
    caller->signal.emit(type);  // harmless
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
}

inline void cancel_instance(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    const auto one = [] { return TaskOptions().max_instances(1, OverloadPolicy::wait, "only one"); };
    const auto first = bench.submit(one(), wait_at_gate, 1);
    const auto second = bench.submit_cancellable(one(), note_order, 2);
    const auto third = bench.submit(one(), note_order, 3);
    bench.until([] { return board().begun == 1; }, "the first instance began");
    second->signal.emit(type);
    bench.until_told(second, "a task was over that had waited for an instance and was cancelled");
    require_cancelled(second->error, TaskCancelledError::Stage::queued, "a task that waits for an instance");
    require(first->calls == 0 && third->calls == 0, "the cancellation of one task ended another");
    board().open = 1;
    bench.until_told(third, "the instance after the one that was cancelled had its turn");
    require(third->value == 3, "the instance after the one that was cancelled failed: " + say(third->error));
    bench.until_told(first, "the first instance was over");
    require(board().order_size == 1, "a task ran although it was cancelled before");
    bench.require_one_cancelled();
    require(first->calls == 1 && second->calls == 1, "a caller was not told once");
  }
}

inline void cancel_running(const ContractSubject& subject) {
  {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(stop_when_asked, 1);
    bench.until([] { return board().begun == 1; }, "a task began");
    caller->signal.emit(asio::cancellation_type::terminal);
    bench.until_told(caller, "a running task that was cancelled was over");
    require_cancelled(caller->error, TaskCancelledError::Stage::running, "a running task");
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
  {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(run_until_stopped, 5);
    bench.until([] { return board().begun == 1; }, "a task began");
    caller->signal.emit(asio::cancellation_type::total);
    require(caller->calls == 0, "total must not end a running task");
    caller->signal.emit(asio::cancellation_type::partial);
    bench.until_told(caller, "a task that was asked to stop was over");
    require(caller->value == 5,
            "what a task returns that was asked to stop is its result; it gave: " + say(caller->error));
  }
}

inline void cancel_retry(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(TaskOptions().retry(RetryPolicy(3).delay(std::chrono::hours(1))),
                                                 succeed_at_attempt, 3U);
    bench.until([&] { return bench.executor().metrics().retried == 1; }, "a task that failed waited for its next run");
    require(caller->calls == 0, "a caller was told of a failure after which there is another run");
    caller->signal.emit(type);
    bench.until_told(caller, "a task was over that had waited for its next run and was cancelled");
    require_cancelled(caller->error, TaskCancelledError::Stage::retrying, "a task that waits for its next run");
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().begun == 1, "a task ran again although it was cancelled before");
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
}

inline void cancel_over(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(twice, 2);
    bench.until_told(caller, "a task was over");
    caller->signal.emit(type);
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(caller->calls == 1, "a caller was told twice, of a result and of a cancellation that came later");
    require(caller->value == 4, "a task failed that was cancelled when it was over: " + say(caller->error));
    bench.require_nothing_left();
    const Metrics metrics = bench.executor().metrics();
    require(metrics.completed == 2 && metrics.cancelled == 0,
            "a task that was cancelled when it was over must count as completed: " + to_string(metrics));
  }
}

inline void time_limits(const ContractSubject& subject) {
  constexpr std::chrono::milliseconds kLimit(20);
  {
    Bench bench(subject);
    const auto caller = bench.submit(TaskOptions().timeout(kLimit), run_until_stopped, 1);
    bench.until_told(caller, "a task with a timeout was over");
    require_error<TaskTimeoutError>(caller->error, "a task that runs too long must fail with TaskTimeoutError");
    require(bench.executor().metrics().timed_out == 1, "a task that ran too long must count as timed out");
    require(bench.run(twice, 4) == 8, "a result is wrong");
  }
  {
    Bench bench(subject);
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().queue_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a task with a queue_timeout was over");
    require_error<TaskTimeoutError>(caller->error, "a task that waits too long must fail with TaskTimeoutError");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its queue_timeout had passed");
  }
  {
    Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().queue_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a task with a queue_timeout that waited for admission was over");
    require_error<ExecutorOverloadError>(
        caller->error, "a task that waits too long for admission must fail with ExecutorOverloadError");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its queue_timeout had passed");
    bench.require_nothing_left();
    const Metrics metrics = bench.executor().metrics();
    require(metrics.rejected == 1 && metrics.submitted == subject.concurrency + 1 && metrics.timed_out == 0,
            "a task that waited too long for admission must count as rejected only: " + to_string(metrics));
  }
}

inline void total_time_limit(const ContractSubject& subject) {
  constexpr std::chrono::milliseconds kLimit(20);
  const auto require_total = [kLimit](const std::exception_ptr& error, const std::string& what) {
    require_error<TaskTimeoutError>(error, what + " must fail with TaskTimeoutError when its total_timeout is over");
    try {
      std::rethrow_exception(error);
    } catch (const TaskTimeoutError& timeout) {
      require(timeout.which() == TaskTimeoutError::Which::total && timeout.limit() == kLimit,
              what + " must be told of the total_timeout, not: " + timeout.what());
    }
  };
  {
    Bench bench(subject);
    const auto caller = bench.submit(TaskOptions().total_timeout(kLimit).retry(RetryPolicy(3)), run_until_stopped, 1);
    bench.until_told(caller, "a task with a total_timeout was over");
    require_total(caller->error, "a task that runs too long");
    require(board().begun <= 1, "a task ran again although there was no time for that");
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(bench.executor().metrics().timed_out == 1, "a task whose time was over must count as timed out");
  }
  {
    Bench bench(subject);
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().total_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a queued task with a total_timeout was over");
    require_total(caller->error, "a task that waits too long");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its total_timeout had passed");
  }
  {
    Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().total_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a task with a total_timeout that waited for admission was over");
    require_error<ExecutorOverloadError>(
        caller->error, "a task that waits too long for admission must fail with ExecutorOverloadError");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its total_timeout had passed");
  }
  {
    Bench bench(subject);
    const auto caller = bench.submit(
        TaskOptions().total_timeout(std::chrono::hours(1)).retry(RetryPolicy(2).delay(std::chrono::hours(2))),
        succeed_at_attempt, 2U);
    bench.until_told(caller, "a task that failed was over whose next run would begin too late");
    require(caller->error && board().begun == 1, "a task whose next run would begin too late must fail at once");
  }
  {
    Bench bench(subject);
    constexpr int kRuns = 1000;
    const auto caller =
        bench.submit(TaskOptions().total_timeout(kLimit).retry(RetryPolicy(1000).delay(std::chrono::milliseconds(7))),
                     succeed_at_attempt, 1000U);
    bench.until_told(caller, "a task that failed again and again was over");
    require(caller->error && board().begun < kRuns, "a task must not be run again when its total_timeout is over");
    bench.require_nothing_left();
  }
}

inline void retries(const ContractSubject& subject) {
  Bench bench(subject);
  const auto policy = [] { return TaskOptions().retry(RetryPolicy(3).delay(std::chrono::milliseconds(1))); };
  require(bench.run(policy(), succeed_at_attempt, 3U) == 3, "the third run must see that it is the third");
  require(board().begun == 3, "a task that may run three times did not run three times");
  require(bench.executor().metrics().retried == 2, "two further runs must count as retried");
  try {
    bench.run(policy(), succeed_at_attempt, 9U);
    throw ContractViolation("a task that fails each time succeeded");
  } catch (const RetryError& error) {
    require(error.attempts().size() == 3, "the error must have all runs");
  }
}

inline void shutdown_waits(const ContractSubject& subject) {
  OnlyInstance instance;
  Bench bench(subject, instance.common());
  const auto& running = bench.occupy();
  std::vector<CallerPtr<int>> callers{bench.submit(instance.task(), twice, 10)};
  for (int i = 0; i < 10; ++i) callers.push_back(bench.submit(twice, i));
  const std::vector both{bench.start(bench.executor().shutdown()), bench.start(bench.executor().shutdown())};
  // What does not wait either is over before this one, which began later.
  bench.await(bench.executor().shutdown({.wait = false, .timeout = {}, .cancel_pending = false}),
              "a shutdown that does not wait was over beside others that do");
  for (const auto& shutdown : both) {
    require(shutdown->calls == 0, "shutdown must wait for the tasks, and was over before: " + say(shutdown->error));
  }
  require(callers.front()->calls == 0, "a task did not wait for its instance: " + say(callers.front()->error));
  instance.give_back();
  board().open = 1;
  bench.until([&] { return all_told(both); }, "two shutdowns at once were over");
  for (const auto& shutdown : both) require(!shutdown->error, "shutdown failed: " + say(shutdown->error));
  callers.insert(callers.end(), running.begin(), running.end());
  for (const auto& caller : callers) {
    require(caller->calls == 1 && !caller->error, "shutdown must wait for the tasks: " + say(caller->error));
  }
  try {
    bench.run(twice, 1);
    throw ContractViolation("a task was accepted after shutdown");
  } catch (const ExecutorNotRunningError&) {
    // as it must be
  }
  bench.await(bench.executor().shutdown(), "a further shutdown was over");
  Bench again(subject);
  require(again.run(twice, 5) == 10, "a new executor of the same name must work");
}

inline void shutdown_ends(const ContractSubject& subject) {
  {
    Bench bench(subject);
    bench.occupy();
    const auto queued = bench.submit(note_order, 1);
    const auto over = bench.start(bench.executor().shutdown({.wait = true, .timeout = {}, .cancel_pending = true}));
    bench.until_told(queued, "a queued task was cancelled by shutdown");
    require_error<TaskCancelledError>(queued->error, "cancel_pending must cancel queued tasks");
    bench.open_gate();
    bench.until_told(over, "shutdown was over");
    require(board().order_size == 0, "a task ran although cancel_pending had cancelled it");
  }
  {
    Bench bench(subject);
    const auto running = bench.submit(run_until_stopped, 1);
    bench.until([] { return board().begun == 1; }, "a task began");
    bench.await(
        bench.executor().shutdown({.wait = true, .timeout = std::chrono::milliseconds(20), .cancel_pending = false}),
        "a shutdown with a limit was over");
    bench.until_told(running, "the caller of a task that outlasts the shutdown was told");
    require_error<TaskCancelledError>(running->error, "a task that outlasts the shutdown must fail");
  }
  {
    Bench bench(subject);
    bench.occupy();
    bench.await(bench.executor().shutdown({.wait = false, .timeout = {}, .cancel_pending = false}),
                "a shutdown that does not wait was over");
    require(bench.none_is_over(), "a shutdown that does not wait waited");
    bench.open_gate();
  }
}

inline void shutdown_ends_by_itself(const ContractSubject& subject) {
  OnlyInstance instance;
  Bench bench(subject, instance.common());
  std::vector callers{bench.submit(instance.task(), twice, 1)};
  if (subject.concurrency > 0) {
    callers.push_back(bench.submit(run_until_stopped, 2));
    bench.until([] { return board().begun == 1; }, "a task began");
  }
  bench.await(
      bench.executor().shutdown({.wait = false, .timeout = std::chrono::milliseconds(20), .cancel_pending = false}),
      "a shutdown that does not wait was over");
  for (const auto& caller : callers) {
    const std::string task = "a task that outlasts a shutdown which nobody waits for";
    bench.until_told(caller, task + " was over");
    require_error<TaskCancelledError>(caller->error, task + " must fail with TaskCancelledError");
  }
  bench.require_nothing_left();
}

inline void destruction(const ContractSubject& subject) {
  Bench bench(subject);
  const auto& running = bench.occupy();
  const auto queued = bench.submit(twice, 1);
  board().open = 1;  // so that threads end
  bench.destroy_executor();
  bench.until([&] { return queued->calls > 0 && all_told(running); },
              "every caller was told that the executor was destroyed");
  require(
      queued->calls == 1 && std::all_of(running.begin(), running.end(), [](const auto& c) { return c->calls == 1; }),
      "a caller was told twice");
}

// The caller of a task that waits for its next run is told by `close`. No other task waits here: when one that runs
// ends, none follows for which a hook would be called of an executor that is half destroyed. So this finds who does not
// close, if he waits for what runs, without undefined behaviour.
inline void destruction_closes(const ContractSubject& subject) {
  Bench bench(subject);
  const auto waiting =
      bench.submit(TaskOptions().retry(RetryPolicy(2).delay(std::chrono::hours(1))), succeed_at_attempt, 2U);
  bench.until([&] { return bench.executor().metrics().retried == 1; }, "a task that failed waited for its next run");
  bench.occupy();
  bool closed = false;
  std::thread loop([&] {
    const auto end = end_of_patience();
    while (waiting->calls == 0 && ended() == 0 && std::chrono::steady_clock::now() < end) {
      bench.run_loop_for(std::chrono::milliseconds(1));
    }
    closed = waiting->calls > 0 && ended() == 0;
    board().open = 1;
  });
  bench.destroy_executor();
  loop.join();
  require(closed, "the destructor must call close() before it waits for tasks that run");
}

}  // namespace bulkhead::testing::contract
