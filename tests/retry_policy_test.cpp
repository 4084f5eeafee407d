// SPDX-License-Identifier: BSL-1.0
// Failed runs are followed by others as a policy says, and keys that crash worker after worker are refused.
#include <bulkhead/retry_policy.hpp>

#include <bulkhead/base_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/this_task.hpp>

#include "quarantine.hpp"
#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <chrono>
#include <csignal>
#include <ctime>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace asio = boost::asio;
namespace this_task = bulkhead::this_task;
using bulkhead::BaseExecutor;
using bulkhead::Errc;
using bulkhead::ExecutorOverloadError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::RetryError;
using bulkhead::RetryOn;
using bulkhead::RetryPolicy;
using bulkhead::SerializationError;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::TaskQuarantinedError;
using bulkhead::WorkerCrashedError;
using bulkhead::detail::Quarantine;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::cancelled_stage;
using bulkhead::test::error_as;
using bulkhead::test::holds;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::wait_at_gate;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

int throw_until(unsigned attempt) {
  ++board.begun;
  if (this_task::attempt() < attempt) throw std::out_of_range("run " + std::to_string(this_task::attempt()));
  return static_cast<int>(this_task::attempt());
}

int crash_until(unsigned attempt) {
  ++board.begun;
  if (this_task::attempt() < attempt) std::raise(SIGKILL);
  return static_cast<int>(this_task::attempt());
}

int hang_until(unsigned attempt) {
  ++board.begun;
  if (this_task::attempt() < attempt) board.gate.wait();
  return static_cast<int>(this_task::attempt());
}

int one(int) { return 1; }
int give_back(int value) { return value; }
int fail_when_stopped(bool crashes) {
  ++board.begun;
  const timespec pause{0, 200'000};
  while (!this_task::stop_requested()) ::nanosleep(&pause, nullptr);
  if (crashes) std::raise(SIGKILL);
  throw std::out_of_range("stopped");
}
int crash(int value) {
  if (value != 0) std::raise(SIGKILL);
  return value;
}

TaskOptions retried(RetryPolicy policy) { return TaskOptions().retry(std::move(policy)); }

}  // namespace

TEST_CASE("A policy that makes no sense is refused with the setter's name and range", "[retry]") {
  CHECK_THROWS_WITH(RetryPolicy(0), ContainsSubstring("1 to 1000"));
  CHECK_THROWS_WITH(RetryPolicy(1001), ContainsSubstring("1 to 1000"));
  CHECK_THROWS_WITH(RetryPolicy(2).delay(-1ns), ContainsSubstring("delay"));
  CHECK_THROWS_WITH(RetryPolicy(2).backoff(0.5), ContainsSubstring("backoff"));
  CHECK_THROWS_WITH(RetryPolicy(2).backoff(1e9), ContainsSubstring("backoff"));
  CHECK_THROWS_WITH(RetryPolicy(2).backoff(2, 0ns), ContainsSubstring("backoff"));
  CHECK_THROWS_WITH(RetryPolicy(2).jitter(-0.1), ContainsSubstring("jitter"));
  CHECK_THROWS_WITH(RetryPolicy(2).jitter(1.1), ContainsSubstring("jitter"));
  CHECK_THROWS_WITH(RetryPolicy(2).only_on(static_cast<RetryOn>(0)), ContainsSubstring("only_on"));
  CHECK_THROWS_WITH(RetryPolicy(2).only_on(static_cast<RetryOn>(8)), ContainsSubstring("only_on"));
}

TEST_CASE("Pauses grow by the factor up to the longest, and jitter makes them shorter or longer", "[retry]") {
  const auto policy = RetryPolicy(10).delay(100ms).backoff(3, 1s);
  CHECK(policy.pause_after(1, 0.5) == 100ms);
  CHECK(policy.pause_after(2, 0.5) == 300ms);
  CHECK(policy.pause_after(3, 0.5) == 900ms);
  CHECK(policy.pause_after(4, 0.5) == 1s);
  CHECK(policy.pause_after(999, 0.5) == 1s);
  CHECK(RetryPolicy(3).pause_after(1, 0) == 0ns);
  CHECK(RetryPolicy(3).delay(5min).pause_after(1, 0.5) == 5min);
  const auto shaken = RetryPolicy(3).delay(100ms).jitter(0.5);
  CHECK(shaken.pause_after(1, 0) == 50ms);
  CHECK(shaken.pause_after(1, 0.5) == 100ms);
  CHECK(shaken.pause_after(1, 0.99) > 148ms);
  CHECK(shaken.pause_after(1, 0.99) < 150ms);
  // Longer than 64 bits of nanoseconds can tell.
  CHECK(
      RetryPolicy(1000).delay(std::chrono::hours(24 * 365 * 200)).backoff(1000, 250h).jitter(1).pause_after(999, 0.9) >
      0ns);
}

TEST_CASE("A run that throws is followed by another until one returns, over workers and in bypass", "[retry]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  CHECK(run(context, pool.submit(retried(RetryPolicy(3).delay(1ms)), throw_until, 3U)) == 3);
  const auto metrics = pool.metrics();
  CHECK(metrics.submitted == 1);
  CHECK(metrics.completed == 1);
  CHECK(metrics.failed == 0);
  CHECK(metrics.retried == 2);
  CHECK(metrics.runs == 3);
  CHECK(adds_up(metrics));
}

TEST_CASE("A run whose worker crashes, or that times out, is followed by another", "[retry]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(retried(RetryPolicy(3)), crash_until, 3U)) == 3);
  board.gate.reset();
  CHECK(run(context, pool.submit(retried(RetryPolicy(3)).timeout(20ms), hang_until, 3U)) == 3);
  const auto metrics = pool.metrics();
  CHECK(metrics.completed == 2);
  CHECK(metrics.timed_out == 0);
  CHECK(metrics.retried == 4);
  CHECK(adds_up(metrics));
}

TEST_CASE("The error of a task that failed for good has all its runs", "[retry]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Outcome<> outcome;
  pool.async_submit(retried(RetryPolicy(3)), bulkhead::call(throw_until, 9U), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = error_as<RetryError>(outcome.error);
  REQUIRE(error);
  REQUIRE(error->attempts().size() == 3);
  CHECK(error->code() == make_error_code(Errc::retries_failed));
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(holds<std::out_of_range>(error->attempts()[i].error));
    CHECK(message(error->attempts()[i].error) == "run " + std::to_string(i + 1));
    CHECK(error->attempts()[i].run_time > 0ns);
  }
  CHECK_THROWS_AS(error->rethrow_last(), std::out_of_range);
  CHECK_THAT(error->what(), ContainsSubstring("ran 3 times") && ContainsSubstring("run 2"));
  CHECK(error->context().executor == "default");
  CHECK(pool.metrics().failed == 1);
}

TEST_CASE("A task that may run once only has its own error, and one that is not retried, too", "[retry]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  board.begun = 0;
  CHECK_THROWS_AS(run(context, pool.submit(retried(RetryPolicy(1)), throw_until, 9U)), std::out_of_range);
  CHECK_THROWS_AS(run(context, pool.submit(retried(RetryPolicy(5).only_on(RetryOn::crash)), throw_until, 9U)),
                  std::out_of_range);
  CHECK_THROWS_AS(run(context, pool.submit(retried(RetryPolicy(5).only_on(RetryOn::exception)), crash_until, 9U)),
                  WorkerCrashedError);
  CHECK(board.begun == 3);
  const auto oversized = [](int) { return std::string(std::size_t{300} << 20, 'x'); };
  CHECK_THROWS_AS(run(context, pool.submit(retried(RetryPolicy(5)), oversized, 0)), SerializationError);
  CHECK(pool.metrics().retried == 0);
}

TEST_CASE("The predicate decides about what the function threw, on a thread of the event loop", "[retry]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto here = std::this_thread::get_id();
  int asked = 0;
  const auto policy = RetryPolicy(5).when([&](const std::exception_ptr& error) {
    CHECK(std::this_thread::get_id() == here);
    ++asked;
    return message(error) != "run 2";
  });
  Outcome<> outcome;
  pool.async_submit(retried(policy), bulkhead::call(throw_until, 9U), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = error_as<RetryError>(outcome.error);
  REQUIRE(error);
  CHECK(error->attempts().size() == 2);
  CHECK(asked == 2);
}

TEST_CASE("What the predicate throws is the task's error", "[retry]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto policy =
      RetryPolicy(5).when([](const std::exception_ptr&) -> bool { throw std::domain_error("no idea"); });
  CHECK_THROWS_AS(run(context, pool.submit(retried(policy), throw_until, 9U)), std::domain_error);
  CHECK(adds_up(pool));
}

TEST_CASE("A task that waits for its next run holds no worker, and keeps its place among max_pending", "[retry]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 2;
  LocalExecutor pool(context.get_executor(), options);
  board.begun = 0;
  asio::cancellation_signal signal;
  Outcome<> waiting;
  pool.async_submit(retried(RetryPolicy(2).delay(10min)), bulkhead::call(throw_until, 9U),
                    asio::bind_cancellation_slot(signal.slot(), waiting.handler()));
  REQUIRE(run_until(context, [&] { return pool.metrics().retried == 1; }));
  CHECK(pool.metrics().pending == 1);
  CHECK(pool.metrics().running == 0);
  CHECK(run(context, pool.submit(one, 0)) == 1);
  Outcome<> second;
  board.gate.reset();
  pool.async_submit(bulkhead::call(wait_at_gate, 2), second.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK_THROWS_AS(run(context, pool.submit(one, 0)), ExecutorOverloadError);
  signal.emit(asio::cancellation_type::total);
  REQUIRE(run_until(context, [&] { return waiting.calls > 0; }));
  CHECK(cancelled_stage(waiting.error) == TaskCancelledError::Stage::retrying);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return second.calls > 0; }));
  CHECK(board.begun == 1);
  CHECK(adds_up(pool));
}

TEST_CASE("Many retries in a full executor neither deadlock nor let anybody in beyond the limit", "[retry]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_pending = 4;
  options.overload = bulkhead::OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<Outcome<>> outcomes(60);
  for (auto& outcome : outcomes) {
    pool.async_submit(retried(RetryPolicy(3).delay(100us).jitter(1)), bulkhead::call(throw_until, 3U),
                      outcome.handler());
  }
  bool within = true;
  REQUIRE(run_until(context, [&] {
    const auto metrics = pool.metrics();
    within = within && metrics.pending + metrics.running <= 4 && adds_up(metrics);
    return all_over(outcomes);
  }));
  CHECK(within);
  for (const auto& outcome : outcomes) CHECK(outcome.value == 3);
  CHECK(pool.metrics().retried == 120);
}

TEST_CASE("A task whose caller asks for its end is not run again, whatever it fails with then", "[retry]") {
  const auto type = GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial);
  const bool crashes = GENERATE(false, true);
  CAPTURE(static_cast<int>(type), crashes);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  board.begun = 0;
  asio::cancellation_signal signal;
  Outcome<> outcome;
  pool.async_submit(retried(RetryPolicy(5)), bulkhead::call(fail_when_stopped, crashes),
                    asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [] { return board.begun == 1; }));
  signal.emit(type);
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  INFO(message(outcome.error));
  CHECK(outcome.error);
  CHECK(board.begun == 1);
  CHECK(pool.metrics().retried == 0);
  CHECK(adds_up(pool));
}

TEST_CASE("A task that is cancelled when it has failed, and before it is delivered, is not run again", "[retry]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  CHECK(run(context, pool.submit(one, 0)) == 1);
  REQUIRE(run_until(context, [&] { return bulkhead::test::whole(pool); }));
  board.begun = 0;
  asio::cancellation_signal signal;
  Outcome<> outcome;
  int first = 0;
  pool.async_submit(bulkhead::call(one, 0), [&](std::exception_ptr, int) {
    ++first;
    signal.emit(asio::cancellation_type::terminal);
  });
  pool.async_submit(retried(RetryPolicy(5).delay(10min)), bulkhead::call(throw_until, 9U),
                    asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  // The event loop takes the least part in it until both have run: then it hears of them together. If it was quicker,
  // the second is cancelled before it runs, which comes to the same.
  const auto both_have_run = [&] {
    context.restart();
    if (board.begun == 0) context.poll_one();
    return board.begun == 1 || first == 1;
  };
  REQUIRE(bulkhead::test::poll_until(both_have_run, 30s));
  REQUIRE(run_until(context, [&] { return first == 1 && outcome.calls == 1; }));
  CHECK(outcome.error);
  CHECK(board.begun <= 1);
  CHECK(adds_up(pool));
}

TEST_CASE("Shutdown ends what waits for its next run with what it failed with", "[retry]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Outcome<> outcome;
  pool.async_submit(retried(RetryPolicy(9).delay(10min)), bulkhead::call(throw_until, 9U), outcome.handler());
  REQUIRE(run_until(context, [&] { return pool.metrics().retried == 1; }));
  run(context, pool.shutdown());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK(holds<std::out_of_range>(outcome.error));
  CHECK(pool.metrics().failed == 1);
  CHECK(adds_up(pool));
}

TEST_CASE("A task that shutdown ends after several timeouts counts as timed out, as it would at its end", "[retry]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  board.gate.reset();
  Outcome<> outcome;
  pool.async_submit(retried(RetryPolicy(9).delay(20ms).backoff(1000, 10min)).timeout(20ms),
                    bulkhead::call(hang_until, 9U), outcome.handler());
  REQUIRE(run_until(context, [&] { return pool.metrics().retried == 2; }));
  run(context, pool.shutdown());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = error_as<RetryError>(outcome.error);
  REQUIRE(error);
  CHECK(error->attempts().size() == 2);
  CHECK(pool.metrics().timed_out == 1);
  CHECK(adds_up(pool));
}

TEST_CASE("An executor or event loop that is destroyed takes what waits for its next run with it", "[retry]") {
  const bool context_first = GENERATE(false, true);
  CAPTURE(context_first);
  auto context = std::make_unique<asio::io_context>();
  auto pool = std::make_unique<LocalExecutor>(context->get_executor(), workers(1));
  auto alive = std::make_shared<int>(0);
  std::exception_ptr ended;
  pool->async_submit(retried(RetryPolicy(9).delay(10min)), bulkhead::call(throw_until, 9U),
                     [alive, &ended](std::exception_ptr error, int) { ended = error; });
  REQUIRE(run_until(*context, [&] { return pool->metrics().retried == 1; }));
  if (context_first) {
    context.reset();
    pool.reset();
    CHECK_FALSE(ended);
  } else {
    pool.reset();
    bulkhead::test::settle(*context);
    CHECK(ended);
  }
  CHECK(alive.use_count() == 1);
}

namespace {

// Ten lines that run tasks on the event loop, as a user would write them.
class LoopExecutor final : public BaseExecutor {
 public:
  explicit LoopExecutor(asio::any_io_executor io) : BaseExecutor(std::move(io), {.name = "loop"}) {}
  ~LoopExecutor() override { close(); }

 protected:
  void execute(bulkhead::Task task) override {
    asio::post(get_executor(), [task = std::move(task)]() mutable { task.run(); });
  }
};

}  // namespace

TEST_CASE("An executor of the user's own retries, too, and refuses that for arguments that cannot be kept", "[retry]") {
  asio::io_context context;
  LoopExecutor loop(context.get_executor());
  CHECK(run(context, loop.submit(retried(RetryPolicy(3)), throw_until, 3U)) == 3);
  int runs = 0;
  const auto take = [&runs](std::unique_ptr<int>) {
    ++runs;
    throw std::out_of_range("gone");
  };
  CHECK_THROWS_AS(run(context, loop.submit(retried(RetryPolicy(3)), take, std::make_unique<int>(1))),
                  std::invalid_argument);
  CHECK(runs == 0);
  CHECK(adds_up(loop));
}

// ---------------------------------------------------------------------------------------------------------------------
// Quarantine.

TEST_CASE("A key is refused after so many crashes in a row, for so long, and one good run clears it", "[quarantine]") {
  Quarantine quarantine(3, 10s);
  CHECK(quarantine.empty());
  quarantine.crashed("a", 1s);
  quarantine.crashed("a", 2s);
  CHECK_FALSE(quarantine.refused("a", 2s));
  quarantine.survived("a");
  CHECK(quarantine.empty());
  for (int i = 0; i < 3; ++i) quarantine.crashed("a", 5s);
  quarantine.crashed("b", 5s);
  const auto refusal = quarantine.refused("a", 7s);
  REQUIRE(refusal);
  CHECK(refusal->crashes == 3);
  CHECK(refusal->remaining == 8s);
  CHECK_FALSE(quarantine.refused("b", 7s));
  CHECK(quarantine.count(7s) == 1);
  // Let in again, it has one chance.
  CHECK_FALSE(quarantine.refused("a", 15s));
  quarantine.crashed("a", 16s);
  CHECK(quarantine.refused("a", 25s));
  CHECK_FALSE(quarantine.refused("a", 26s));
}

TEST_CASE("A flood of keys that crash does not fill the memory", "[quarantine]") {
  Quarantine quarantine(1, 1s);
  for (int i = 0; i < 30000; ++i) quarantine.crashed(std::to_string(i), 1s);
  CHECK(quarantine.count(1s) == 10000);
  CHECK(quarantine.refused("29999", 1s));
}

TEST_CASE("A function that crashed workers in a row is refused for a while, and no other", "[quarantine]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.quarantine_after = 2;
  options.quarantine_time = 10min;
  LocalExecutor pool(context.get_executor(), options);
  CHECK_THROWS_AS(run(context, pool.submit(crash, 1)), WorkerCrashedError);
  CHECK(run(context, pool.submit(crash, 0)) == 0);
  CHECK_THROWS_AS(run(context, pool.submit(crash, 1)), WorkerCrashedError);
  CHECK_THROWS_AS(run(context, pool.submit(crash, 1)), WorkerCrashedError);
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(crash, 0), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = error_as<TaskQuarantinedError>(outcome.error);
  REQUIRE(error);
  CHECK_THAT(error->key(), ContainsSubstring("crash"));
  CHECK(error->crashes() == 2);
  CHECK(error->remaining() > 9min);
  CHECK(error->code() == make_error_code(Errc::quarantined));
  CHECK(run(context, pool.submit(one, 0)) == 1);
  CHECK(run(context, pool.submit(TaskOptions().quarantine_key("other input"), crash, 0)) == 0);
  const auto metrics = pool.metrics();
  CHECK(metrics.quarantined == 1);
  CHECK(metrics.rejected == 1);
  CHECK(adds_up(metrics));
}

TEST_CASE("Keys are counted apart, and queued tasks of a refused key fail when their turn comes", "[quarantine]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.quarantine_after = 2;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<Outcome<>> bad(20);
  std::vector<Outcome<>> good(20);
  for (std::size_t i = 0; i < bad.size(); ++i) {
    pool.async_submit(TaskOptions().quarantine_key("bad"), bulkhead::call(crash, 1), bad[i].handler());
    pool.async_submit(TaskOptions().quarantine_key("good"), bulkhead::call(give_back, 7), good[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(bad) && all_over(good); }));
  int crashed = 0;
  int refused = 0;
  for (const auto& outcome : bad) {
    crashed += holds<WorkerCrashedError>(outcome.error) ? 1 : 0;
    refused += holds<TaskQuarantinedError>(outcome.error) ? 1 : 0;
  }
  CHECK(crashed == 2);
  CHECK(refused == 18);
  for (const auto& outcome : good) CHECK(outcome.value == 7);
  CHECK(pool.metrics().quarantined == 18);
  CHECK(adds_up(pool));
}

TEST_CASE("A retry into quarantine ends the task with all its runs", "[quarantine]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.quarantine_after = 2;
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> outcome;
  pool.async_submit(retried(RetryPolicy(9)), bulkhead::call(crash, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = error_as<RetryError>(outcome.error);
  REQUIRE(error);
  REQUIRE(error->attempts().size() == 3);
  CHECK(holds<WorkerCrashedError>(error->attempts()[1].error));
  CHECK(holds<TaskQuarantinedError>(error->last()));
}

TEST_CASE("The event loop ends when nothing is left, however the last task ended", "[retry]") {
  const std::string type = GENERATE("local", "bypass", "thread", "io", "hybrid");
  const std::string way = GENERATE("cancelled in a pause", "shut down in a pause", "too late in a pause",
                                   "cancelled while it waited for an instance");
  INFO(type << ", " << way);
  bulkhead::test::reset_board();
  asio::io_context context;
  const auto executor = bulkhead::test::make(type, context);
  // So that the executor has waited for answers before.
  CHECK(run(context, executor->submit(give_back, 1)) == 1);
  asio::cancellation_signal signal;
  Outcome<> outcome;
  Outcome<> first;
  Outcome<void> shutdown;
  if (way == "cancelled while it waited for an instance") {
    if (type == "bypass") return;  // its event loop would wait at the gate
    const auto only_one = [] { return TaskOptions().max_instances(1, bulkhead::OverloadPolicy::wait, "one"); };
    executor->async_submit(only_one(), bulkhead::call(wait_at_gate, 1), first.handler());
    executor->async_submit(only_one(), bulkhead::call(give_back, 1),
                           asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
    signal.emit(asio::cancellation_type::terminal);
    board.gate.open = 1;
  } else {
    auto options = retried(RetryPolicy(2).delay(1h));
    if (way == "too late in a pause") options.retry(RetryPolicy(2).delay(40ms)).total_timeout(50ms);
    executor->async_submit(std::move(options), bulkhead::call(throw_until, 9U),
                           asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
    REQUIRE(run_until(context, [&] { return executor->metrics().retried == 1 || outcome.calls == 1; }));
    if (way == "cancelled in a pause") signal.emit(asio::cancellation_type::terminal);
    if (way == "shut down in a pause") asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  }
  context.restart();
  context.run_for(bulkhead::test::kDeadline);
  CHECK(context.stopped());
  CHECK(outcome.calls == 1);
}

TEST_CASE("A task that is cancelled before its next run tells of the runs that failed", "[retry]") {
  const std::string type = GENERATE("local", "bypass", "thread", "io", "inline", "hybrid");
  INFO(type);
  bulkhead::test::reset_board();
  asio::io_context context;
  const auto executor = bulkhead::test::make(type, context);
  asio::cancellation_signal signal;
  Outcome<> outcome;
  executor->async_submit(retried(RetryPolicy(2).delay(1h)), bulkhead::call(throw_until, 9U),
                         asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [&] { return executor->metrics().retried == 1; }));
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  const auto error = error_as<TaskCancelledError>(outcome.error);
  REQUIRE(error);
  CHECK(error->stage() == TaskCancelledError::Stage::retrying);
  CHECK(error->code() == asio::error::operation_aborted);
  REQUIRE(error->failed_runs().size() == 1);
  CHECK(holds<std::out_of_range>(error->failed_runs()[0].error));
  CHECK_THAT(error->what(), ContainsSubstring("before its next run began") && ContainsSubstring("run 1") &&
                                !ContainsSubstring("never ran"));
}

TEST_CASE("The pause before a run does not count as its wait for the run to begin", "[retry]") {
  const std::string type = GENERATE("local", "bypass", "thread", "io", "hybrid");
  INFO(type);
  bulkhead::test::reset_board();
  asio::io_context context;
  const auto executor = bulkhead::test::make(type, context);
  // The wait for a run is far shorter than the limit, and the pause far longer.
  auto options = retried(RetryPolicy(2).delay(1500ms)).queue_timeout(1s).total_timeout(1h);
  CHECK(run(context, executor->submit(std::move(options), throw_until, 2U)) == 2);
}
