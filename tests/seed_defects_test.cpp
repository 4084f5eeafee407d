// SPDX-License-Identifier: BSL-1.0
// The defects G1 to G15 that were found in the executors which this library takes further, one test each that shows
// that ours does not share it, over real worker processes. What G16 and G17 tell of older forms is tested by subject:
// bounds and metrics in local_executor_test, the one instance in unified_executor_test, shutdown in shutdown_test,
// results (no thread per waiter, bounded records, ids that are taken) in handles_test, cancellation in the executor
// contract. There is no spool.
//
// A1 to A18 (asyncz) and F1 to F24 (flowrra), the defects of other executors that this family can stand in for, are
// tested under their numbers where they belong by their subject. Without a counterpart here is F7, a consumer that dies
// of any broker error but a timeout: the core has no broker. Nor have what Redis and its broker did wrong in F8 (a task
// popped before it is run), F9 (running tasks pushed back), F11 (priorities ignored) and F13 (a look, and then a
// subscription); what is like it in memory is tested under the number.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/shared.hpp"
#include "support/tasks.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>

#include <fmt/format.h>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::ExecutorOverloadError;
using bulkhead::ExecutorRegistry;
using bulkhead::FunctionUnavailableError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Metrics;
using bulkhead::OverloadPolicy;
using bulkhead::RemoteTaskError;
using bulkhead::SerializationError;
using bulkhead::ShutdownOptions;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::add;
using bulkhead::test::adds_up;
using bulkhead::test::board;
using bulkhead::test::die;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::HandleError;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::leave;
using bulkhead::test::open_gate_after;
using bulkhead::test::Outcome;
using bulkhead::test::overlap;
using bulkhead::test::parent_of;
using bulkhead::test::Process;
using bulkhead::test::processes_of;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::shared_object;
using bulkhead::test::stubborn;
using bulkhead::test::Stubborn;
using bulkhead::test::take;
using bulkhead::test::throw_handle;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using bulkhead::test::Wedged;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

// How many initializers are still to fail.
std::atomic<int>& bad_starts = shared_object<std::atomic<int>>();

// What runs in workers. None of it asserts: results and the board tell.

int leave_at_once(int code) { ::_exit(code); }
int sleep_for(int milliseconds) {
  ::poll(nullptr, 0, milliseconds);
  return milliseconds;
}
int sleep_and_refuse(int milliseconds) {
  ::poll(nullptr, 0, milliseconds);
  throw std::runtime_error("slept in vain");
}
void fail_some_starts() {
  if (bad_starts > 0) {
    --bad_starts;
    throw std::runtime_error("the model cannot be loaded");
  }
}

struct StubbornCallable {
  Stubborn data;
  bool operator()() const { return data.encodable; }
};

}  // namespace

TEST_CASE("G1: a top-level function that is decorated works over real workers", "[base][local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  const auto remote_add = pool(add);
  CHECK(run(context, remote_add(2, 3)) == 5);
  CHECK(run(context, remote_add(20, 22)) == 42);
  // It is still the same function here.
  CHECK(remote_add.function()(1, 1) == 2);
  BaseExecutor& base = pool;
  CHECK(run(context, base(twice)(4)) == 8);
  CHECK(pool.metrics().completed == 3);
  CHECK(pool.metrics().workers_started >= 1);
}

TEST_CASE("G2: a worker that dies fails its own task only, and the pool is whole again", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  // Innocent tasks: one that runs beside the crash, and some that wait in the queue.
  Outcome<int> beside;
  Outcome<int> crash;
  std::array<Outcome<int>, 20> queued;
  pool.async_submit(bulkhead::call(wait_at_gate, 7), beside.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  pool.async_submit(TaskOptions().name("crash"), bulkhead::call(die, SIGKILL), crash.handler());
  for (int i = 0; i < 20; ++i) {
    pool.async_submit(bulkhead::call(twice, i), queued[static_cast<std::size_t>(i)].handler());
  }
  REQUIRE(run_until(context, [&] { return pool.metrics().completed == 20; }));
  settle(context);
  const auto error = error_as<WorkerCrashedError>(crash.error);
  REQUIRE(error);
  CHECK(error->signal() == SIGKILL);
  CHECK(error->started() == bulkhead::Started::maybe);
  CHECK(error->context().task == "crash");
  CHECK(error->context().worker_pid.has_value());
  for (int i = 0; i < 20; ++i) CHECK(queued[static_cast<std::size_t>(i)].value == 2 * i);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return beside.calls == 1; }));
  CHECK(beside.value == 7);
  CHECK(pool.metrics().failed == 1);
  CHECK(pool.metrics().workers_crashed == 1);

  // Again and again: no state is called "broken".
  for (int i = 0; i < 10; ++i) {
    CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
    CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  }
  CHECK(run_until(context, [&] { return whole(pool); }));
  // An exception that cannot be rebuilt here costs nobody anything.
  const auto remote = error_as<RemoteTaskError>(failure(context, pool.submit(throw_handle, 4)));
  REQUIRE(remote);
  CHECK_THAT(remote->type_name(), ContainsSubstring("HandleError"));
  CHECK(pool.metrics().workers_crashed == 11);
  CHECK(run(context, pool.submit(twice, 1)) == 2);
}

TEST_CASE("G2: an initializer that throws breaks nothing for ever", "[local]") {
  reset_board();
  bad_starts = 4;
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.initializer = fail_some_starts;
  LocalExecutor pool(context.get_executor(), options);
  const auto error = error_as<WorkerStartError>(failure(context, pool.submit(twice, 1)));
  REQUIRE(error);
  CHECK_THAT(error->reason(), ContainsSubstring("the model cannot be loaded"));
  REQUIRE(run_until(context, [&] { return bad_starts == 0 && whole(pool); }));
  std::exception_ptr later;
  for (int i = 0; i < 100; ++i) {
    later = failure(context, pool.submit(twice, 1));
    if (!later) break;
  }
  CHECK_FALSE(later);
}

TEST_CASE("G3: an overload is refused, or waits with a limit, as was asked for", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 2;
  LocalExecutor rejects(context.get_executor(), options);
  options.overload = OverloadPolicy::wait;
  LocalExecutor waits(context.get_executor(), options);
  std::array<Outcome<int>, 4> held;
  rejects.async_submit(bulkhead::call(wait_at_gate, 1), held[0].handler());
  rejects.async_submit(bulkhead::call(wait_at_gate, 1), held[1].handler());
  waits.async_submit(bulkhead::call(wait_at_gate, 1), held[2].handler());
  waits.async_submit(bulkhead::call(wait_at_gate, 1), held[3].handler());

  const auto refused = error_as<ExecutorOverloadError>(failure(context, rejects.submit(twice, 1)));
  REQUIRE(refused);
  CHECK(refused->limit() == 2);
  CHECK(rejects.metrics().rejected == 1);

  Outcome<int> impatient;
  Outcome<int> patient;
  waits.async_submit(TaskOptions().queue_timeout(10ms), bulkhead::call(twice, 1), impatient.handler());
  waits.async_submit(bulkhead::call(twice, 2), patient.handler());
  CHECK(waits.metrics().waiting == 2);
  REQUIRE(run_until(context, [&] { return impatient.calls == 1; }));
  CHECK(holds<ExecutorOverloadError>(impatient.error));
  // Those who wait are not counted as tasks of the executor: the limit holds.
  const Metrics m = waits.metrics();
  CHECK(m.waiting == 1);
  CHECK(m.pending + m.running == 2);
  CHECK(m.submitted == 2);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return patient.calls == 1 && held[0].calls + held[1].calls == 2; }));
  CHECK(patient.value == 4);
}

TEST_CASE("G4: a cancelled task keeps its slot until its worker is really free", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 2;
  LocalExecutor pool(context.get_executor(), options);
  std::array<asio::cancellation_signal, 2> signals;
  std::array<Outcome<int>, 2> outcomes;
  for (std::size_t i = 0; i < 2; ++i) {
    pool.async_submit(bulkhead::call(wait_at_gate, 1),
                      asio::bind_cancellation_slot(signals[i].slot(), outcomes[i].handler()));
  }
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2 && whole(pool); }));
  const std::vector<Process> processes = processes_of(pool);
  for (auto& signal : signals) signal.emit(asio::cancellation_type::terminal);
  // Nothing has been told of the workers' deaths yet: their slots are taken.
  Outcome<int> refused;
  pool.async_submit(bulkhead::call(twice, 1), refused.handler());
  CHECK(pool.metrics().rejected == 1);
  REQUIRE(run_until(context, [&] { return outcomes[0].calls == 1 && outcomes[1].calls == 1; }));
  for (const auto& outcome : outcomes) CHECK(holds<TaskCancelledError>(outcome.error));
  settle(context);
  CHECK(holds<ExecutorOverloadError>(refused.error));
  // A worker may take its time to die. Whoever is let in, is let in after that.
  REQUIRE(run_until(context, [&] {
    const auto error = failure(context, pool.submit(twice, 4));
    if (error) CHECK(holds<ExecutorOverloadError>(error));
    return !error;
  }));
  CHECK(std::any_of(processes.begin(), processes.end(), [](const Process& process) { return process.gone(); }));
  REQUIRE(run_until(context, [&] {
    return std::all_of(processes.begin(), processes.end(), [](const Process& process) { return process.gone(); });
  }));
  REQUIRE(run_until(context, [&] { return pool.metrics().workers_dying == 0; }));
  settle(context);

  // A cancellation that is not terminal leaves the run alone, and its slot with it.
  reset_board();
  asio::cancellation_signal signal;
  Outcome<int> runs_on;
  Outcome<int> other;
  pool.async_submit(bulkhead::call(wait_at_gate, 5), asio::bind_cancellation_slot(signal.slot(), runs_on.handler()));
  pool.async_submit(bulkhead::call(wait_at_gate, 6), other.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2; }));
  signal.emit(asio::cancellation_type::total);
  settle(context);
  CHECK(holds<ExecutorOverloadError>(failure(context, pool.submit(twice, 1))));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return runs_on.calls + other.calls == 2; }));
  CHECK(runs_on.value == 5);
}

TEST_CASE("G4: never more tasks run than max_pending allows, however many are cancelled", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(4);
  options.max_pending = 2;
  options.overload = OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  constexpr std::size_t kTasks = 200;
  std::vector<asio::cancellation_signal> signals(kTasks);
  std::vector<Outcome<int>> outcomes(kTasks);
  for (std::size_t i = 0; i < kTasks; ++i) {
    pool.async_submit(bulkhead::call(overlap, 1),
                      asio::bind_cancellation_slot(signals[i].slot(), outcomes[i].handler()));
    // Not terminal: a task that runs is not killed and leaves the board as it should.
    if (i % 3 == 0) signals[i / 2].emit(asio::cancellation_type::total);
    if (i % 10 == 0) settle(context);
  }
  REQUIRE(run_until(context, [&] {
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; });
  }));
  CHECK(board.most_running >= 1);
  CHECK(board.most_running <= 2);
  CHECK(board.running == 0);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("G5: every task is counted by its one outcome, cancelled and exiting ones, too", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  constexpr std::size_t kTasks = 120;
  std::vector<asio::cancellation_signal> signals(kTasks);
  std::vector<Outcome<int>> outcomes(kTasks);
  bool held = true;
  for (std::size_t i = 0; i < kTasks; ++i) {
    int (*const functions[])(int) = {twice, refuse, leave_at_once, twice, throw_handle, twice};
    TaskOptions task_options;
    if (i % 12 == 5) task_options.timeout(5ms);
    auto* const function = i % 12 == 5 ? wait_at_gate : functions[i % 6];
    pool.async_submit(task_options, bulkhead::call(function, 1),
                      asio::bind_cancellation_slot(signals[i].slot(), outcomes[i].handler()));
    held = held && adds_up(pool.metrics());
  }
  for (std::size_t i = 3; i < kTasks; i += 6) signals[i].emit(asio::cancellation_type::terminal);
  held = held && adds_up(pool.metrics());
  REQUIRE(run_until(context, [&] {
    held = held && adds_up(pool.metrics());
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls >= 1; });
  }));
  CHECK(held);
  settle(context);
  CHECK(std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; }));
  const Metrics m = pool.metrics();
  CHECK(m.submitted == kTasks);
  CHECK(m.pending + m.running + m.waiting == 0);
  CHECK(m.failed == kTasks / 2);
  CHECK(m.timed_out == kTasks / 12);
  CHECK(m.cancelled > 0);
  CHECK(adds_up(m));
}

TEST_CASE("G6: errors tell apart the callable, an argument, the result, the exception and the function", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto part = [](const std::exception_ptr& thrown) -> std::optional<SerializationError::Part> {
    const auto error = error_as<SerializationError>(thrown);
    if (!error || error->type_name() != "Stubborn") return std::nullopt;
    return error->part();
  };
  StubbornCallable callable;
  CHECK_FALSE(failure(context, pool.submit(callable)));
  callable.data.encodable = false;
  CHECK(part(failure(context, pool.submit(callable))) == SerializationError::Part::callable);
  CHECK(part(failure(context, pool.submit(take, stubborn(false)))) == SerializationError::Part::argument);
  CHECK(part(failure(context, pool.submit(stubborn, false))) == SerializationError::Part::result);
  // Of an exception that cannot be carried whole, its type and words are.
  const auto exception = error_as<RemoteTaskError>(failure(context, pool.submit(throw_handle, 4)));
  REQUIRE(exception);
  CHECK_THAT(exception->type_name(), ContainsSubstring("HandleError"));
  CHECK(exception->remote_what() == "the handle of 4 is lost");
  int (*const unknown)(int) = nullptr;
  CHECK(holds<FunctionUnavailableError>(failure(context, pool.submit(unknown, 1))));
  // A callable without a name has one in errors, too.
  const auto unnamed =
      error_as<bulkhead::ExecutorError>(failure(context, pool.submit([] { throw HandleError("lost"); })));
  REQUIRE(unnamed);
  CHECK_FALSE(unnamed->context().task.empty());
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("G7: a task that calls exit ends its worker, not the host", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (const int code : {0, 3}) {
    for (auto* const function : {leave, leave_at_once}) {
      const auto error = error_as<WorkerCrashedError>(failure(context, pool.submit(function, code)));
      REQUIRE(error);
      CHECK(error->exit_code() == code);
      CHECK(error->signal() == 0);
    }
  }
  CHECK(pool.metrics().failed == 4);
  CHECK(adds_up(pool.metrics()));
  CHECK(run(context, pool.submit(twice, 2)) == 4);
}

TEST_CASE("G8: the event loop goes on while a shutdown waits, and a deadline ends the wait", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<int> outcome;
  pool.async_submit(bulkhead::call(wait_at_gate, 3), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  bool over = false;
  asio::co_spawn(context, pool.shutdown(), [&](std::exception_ptr) { over = true; });
  // Only the event loop can open the gate: a shutdown that blocked it would never end.
  open_gate_after(context, 100);
  REQUIRE(run_until(context, [&] { return over; }));
  CHECK(board.gate.open == 1);
  CHECK(outcome.value == 3);

  reset_board();
  LocalExecutor endless(context.get_executor(), workers(1));
  Outcome<int> killed;
  endless.async_submit(bulkhead::call(wait_at_gate, 3), killed.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions options;
  options.timeout = 10ms;
  run(context, endless.shutdown(options));
  settle(context);
  CHECK(holds<TaskCancelledError>(killed.error));
  CHECK(endless.worker_pids().empty());
}

TEST_CASE("G9: max_pending 0, and what was meant to be negative, is refused when the executor is made",
          "[base][local]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = GENERATE(std::size_t{0}, static_cast<std::size_t>(-1));
  std::string words;
  try {
    LocalExecutor pool(context.get_executor(), options);
  } catch (const std::invalid_argument& error) {
    words = error.what();
  }
  CHECK_THAT(words, ContainsSubstring("'max_pending'") && ContainsSubstring("1 to 1000000000"));
}

TEST_CASE("G10: run time and queue wait are counted apart, over all runs", "[base][local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  constexpr int kSleep = 20;
  const auto begin = std::chrono::steady_clock::now();
  std::array<Outcome<int>, 4> outcomes;
  for (std::size_t i = 0; i < 4; ++i) {
    pool.async_submit(bulkhead::call(i % 2 == 0 ? sleep_for : sleep_and_refuse, kSleep), outcomes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return pool.metrics().completed + pool.metrics().failed == 4; }));
  const auto elapsed = std::chrono::steady_clock::now() - begin;
  const Metrics m = pool.metrics();
  CHECK(m.runs == 4);
  CHECK(m.average_run_time >= std::chrono::milliseconds(kSleep));
  // One worker: the runs follow each other, so together they cannot have taken longer than all did.
  CHECK(m.total_run_time <= elapsed);
  // The second waited for one, the third for two, the fourth for three.
  CHECK(m.total_queue_wait >= std::chrono::milliseconds(6 * kSleep));
  CHECK(m.average_run_time == m.total_run_time / 4);
  CHECK(m.average_queue_wait == m.total_queue_wait / 4);
}

TEST_CASE("G11: bypass counts, limits and fails as workers do", "[local]") {
  asio::io_context context;
  // The same session in both modes must leave the same traces.
  const auto session = [&](bool bypass) {
    LocalExecutorOptions options = workers(1);
    options.bypass = bypass;
    options.max_pending = 5;
    options.max_message_size = 64 << 10;
    LocalExecutor pool(context.get_executor(), options);
    std::ostringstream trace;
    std::array<Outcome<int>, 6> outcomes;
    for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(twice, 4), outcome.handler());
    REQUIRE(run_until(context, [&] {
      return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; });
    }));
    for (const auto& outcome : outcomes) trace << (holds<ExecutorOverloadError>(outcome.error) ? "full " : "ok ");
    const auto note = [&](const std::exception_ptr& error) {
      if (const auto serialization = error_as<SerializationError>(error)) {
        trace << "part " << static_cast<int>(serialization->part()) << ": " << serialization->reason() << "; ";
      } else if (const auto executor = error_as<bulkhead::ExecutorError>(error)) {
        trace << executor->code().message() << "; ";
      } else if (const auto other = error_as<std::exception>(error)) {
        trace << "exception; ";
      } else {
        trace << "value; ";
      }
    };
    note(failure(context, pool.submit(refuse, 1)));
    note(failure(context, pool.submit(throw_handle, 1)));
    note(failure(context, pool.submit(take, stubborn(false))));
    note(failure(context, pool.submit(stubborn, false)));
    note(failure(context, pool.submit(stubborn, true)));
    note(failure(context,
                 pool.submit([](const std::string& text) { return text.size(); }, std::string(100 << 10, 'x'))));
    int (*const unknown)(int) = nullptr;
    note(failure(context, pool.submit(unknown, 1)));
    run(context, pool.shutdown());
    note(failure(context, pool.submit(twice, 1)));
    const Metrics m = pool.metrics();
    CHECK(adds_up(m));
    CHECK(m.average_run_time > 0ns);
    trace << fmt::format("submitted {} completed {} failed {} rejected {} cancelled {} timed out {}", m.submitted,
                         m.completed, m.failed, m.rejected, m.cancelled, m.timed_out);
    return trace.str();
  };
  const std::string workers_trace = session(false);
  CHECK(session(true) == workers_trace);
  CHECK_THAT(workers_trace, ContainsSubstring("submitted 12 completed 6 failed 6 rejected 2"));
}

TEST_CASE("G12: the registry sees conflicts, shuts all down and aggregates failures, with any threads", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("wedged",
                            [](asio::any_io_executor io, const std::string& name, const bulkhead::ExecutorConfig&) {
                              return std::make_shared<Wedged>(std::move(io), name);
                            });
  registry.get_or_create("first", "wedged");
  CHECK_THROWS_AS(registry.get_or_create("first", "local"), bulkhead::RegistryConflictError);
  CHECK_THROWS_AS(registry.get_or_create("first", "nonsense"), bulkhead::UnknownExecutorTypeError);

  std::vector<std::shared_ptr<LocalExecutor>> got(8);
  std::vector<std::thread> threads;
  for (auto& executor : got) {
    threads.emplace_back([&] { executor = registry.get_or_create<LocalExecutor>("pool", workers(1)); });
  }
  for (auto& thread : threads) thread.join();
  REQUIRE(got[0]);
  for (const auto& executor : got) CHECK(executor == got[0]);
  CHECK_THROWS_AS(registry.get_or_create<LocalExecutor>("pool", workers(2)), bulkhead::RegistryConflictError);
  CHECK(registry.size() == 2);

  CHECK(run(context, got[0]->submit(twice, 2)) == 4);
  std::vector<std::string> failed;
  try {
    run(context, registry.shutdown_all());
  } catch (const bulkhead::ShutdownFailedError& error) {
    for (const auto& failure : error.failures()) failed.push_back(failure.executor);
  }
  CHECK(failed == std::vector<std::string>{"first"});
  // The one after it is down all the same, and both names are free.
  CHECK(got[0]->worker_pids().empty());
  CHECK(registry.size() == 0);
}

TEST_CASE("G13: coroutines of several event loops can use one executor, also when it is full", "[local]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 1;
  options.overload = OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  const auto sum = [&](int first) -> asio::awaitable<int> {
    int result = 0;
    for (int i = 0; i < 50; ++i) result += co_await pool.submit(twice, first + i);
    co_return result;
  };
  asio::io_context second;
  asio::io_context third;
  std::array<std::future<int>, 3> sums{asio::co_spawn(context, sum(0), asio::use_future),
                                       asio::co_spawn(second, sum(100), asio::use_future),
                                       asio::co_spawn(third, sum(200), asio::use_future)};
  std::vector<std::thread> threads;
  auto work = asio::make_work_guard(context);
  for (asio::io_context* loop : {&context, &second, &third}) {
    threads.emplace_back([loop] { loop->run_for(kDeadline); });
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const bool ready = sums[i].wait_for(kDeadline) == std::future_status::ready;
    CHECK(ready);
    if (ready) CHECK(sums[i].get() == 2 * (50 * 49 / 2 + 50 * 100 * static_cast<int>(i)));
  }
  work.reset();
  for (auto& thread : threads) thread.join();
  CHECK(pool.metrics().completed == 150);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("G14: workers come from a process without threads, however many the host has", "[local]") {
  asio::io_context context;
  // Threads that hold the allocator's locks most of the time: a fork of this process would deadlock soon.
  std::atomic<bool> end{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&end] {
      while (!end) std::vector<std::string>(20, std::string(200, 'm'));
    });
  }
  {
    LocalExecutor pool(context.get_executor(), workers(2));
    const auto allocate = [](std::size_t size) { return std::string(size, 'w').size(); };
    for (int i = 0; i < 20; ++i) {
      CHECK(run(context, pool.submit(allocate, std::size_t{10'000})) == 10'000);
      CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
    }
    CHECK(run_until(context, [&] { return whole(pool); }));
    for (const int pid : pool.worker_pids()) CHECK(parent_of(pid) != ::getpid());
  }
  end = true;
  for (auto& thread : threads) thread.join();
}

TEST_CASE("G14: workers do not outlive a host that is killed", "[local]") {
  // This program again, as a host that says who its workers are and then waits.
  std::array<int, 2> pipe{-1, -1};
  REQUIRE(::pipe2(pipe.data(), O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  std::string program = self;
  std::string test = "[child-host]";
  std::array<char*, 3> arguments{program.data(), test.data(), nullptr};
  pid_t host = -1;
  const int spawned = ::posix_spawn(&host, self.c_str(), &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(pipe[1]);
  REQUIRE(spawned == 0);

  FILE* const output = ::fdopen(pipe[0], "r");
  std::vector<Process> left;
  std::array<char, 256> line{};
  while (std::fgets(line.data(), static_cast<int>(line.size()), output) != nullptr) {
    int first = 0;
    int second = 0;
    if (std::sscanf(line.data(), "workers %d %d", &first, &second) == 2) {
      left.emplace_back(first);
      left.emplace_back(second);
      break;
    }
  }
  CHECK(left.size() == 2);
  for (const Process& process : left) CHECK_FALSE(process.gone_within(0ms));
  CHECK(::kill(host, SIGKILL) == 0);
  int status = 0;
  CHECK(::waitpid(host, &status, 0) == host);
  for (const Process& process : left) CHECK(process.gone_within(kDeadline));
  std::fclose(output);
}

TEST_CASE("Child of the test above: a host that waits to be killed", "[.child-host]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  std::array<Outcome<int>, 2> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2 && whole(pool); }));
  const std::vector<int> pids = pool.worker_pids();
  std::printf("workers %d %d\n", pids[0], pids[1]);
  std::fflush(stdout);
  run_until(context, [&] { return outcomes[0].calls == 1; });
}

TEST_CASE("G15: BULKHEAD_EXECUTOR_BYPASS may say 1, true, yes or on, and is read for each executor", "[local]") {
  constexpr const char* kVariable = "BULKHEAD_EXECUTOR_BYPASS";
  const char* const before = std::getenv(kVariable);
  const std::optional<std::string> saved = before != nullptr ? std::optional<std::string>(before) : std::nullopt;
  asio::io_context context;
  std::vector<bool> bypassed;
  for (const char* value : {"1", "true", "YES", "On", "0", "off"}) {
    ::setenv(kVariable, value, 1);
    LocalExecutor pool(context.get_executor(), workers(1));
    bypassed.push_back(pool.bypass());
    // An executor stays what it was when it was made.
    ::setenv(kVariable, pool.bypass() ? "0" : "1", 1);
    CHECK(run(context, pool.submit(twice, 2)) == 4);
    CHECK(pool.metrics().mode == (pool.bypass() ? "bypass" : "process"));
  }
  if (saved) {
    ::setenv(kVariable, saved->c_str(), 1);
  } else {
    ::unsetenv(kVariable);
  }
  CHECK(bypassed == std::vector<bool>{true, true, true, true, false, false});
}
