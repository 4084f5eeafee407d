// SPDX-License-Identifier: BSL-1.0
// What a submit may ask for: retries, priorities, limits, instances, a name.
// Numbers such as A1 and F1 are of defects that executors before this family had; see seed_defects_test.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"
#include "support/told.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::call;
using bulkhead::CommonOptions;
using bulkhead::DuplicateTaskError;
using bulkhead::EventKind;
using bulkhead::ExecutorNotRunningError;
using bulkhead::FunctionUnavailableError;
using bulkhead::InlineExecutor;
using bulkhead::InstanceGroup;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::MaxInstancesError;
using bulkhead::OptionMap;
using bulkhead::OverloadPolicy;
using bulkhead::RetryPolicy;
using bulkhead::ScheduleOptions;
using bulkhead::SerializationError;
using bulkhead::ShutdownOptions;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::TaskRegistry;
using bulkhead::TaskSignatureError;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::UnknownTaskError;
using bulkhead::test::add;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::cancelled_stage;
using bulkhead::test::count;
using bulkhead::test::die;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::kLongBeforeTheGate;
using bulkhead::test::let_go;
using bulkhead::test::limited;
using bulkhead::test::make;
using bulkhead::test::message;
using bulkhead::test::note;
using bulkhead::test::order;
using bulkhead::test::Outcome;
using bulkhead::test::overlap;
using bulkhead::test::pause_for;
using bulkhead::test::pid_here;
using bulkhead::test::poll_until;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::Stubborn;
using bulkhead::test::stubborn;
using bulkhead::test::succeed_at_run;
using bulkhead::test::take;
using bulkhead::test::threads;
using bulkhead::test::Told;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using bulkhead::test::wait_at_gate_there;
using bulkhead::test::workers;
using Catch::Matchers::EndsWith;
using namespace std::chrono_literals;
namespace this_task = bulkhead::this_task;

namespace {

int count_and_refuse(int value) {
  ++board.begun;
  throw std::runtime_error(fmt::format("refused {}", value));
}
std::string trace_seen() { return this_task::trace_parent(); }
asio::awaitable<std::string> trace_seen_there() {
  co_await pause_for(1us);
  co_return trace_seen();
}
asio::awaitable<int> note_there(int value) {
  co_await pause_for(1us);
  co_return note(value);
}
asio::awaitable<unsigned> succeed_at_run_there(unsigned number) {
  co_await pause_for(1us);
  co_return succeed_at_run(number);
}

struct AddTo {
  int left = 0;
  int operator()(int right) const { return left + right; }
};

// Two functions of one name.
namespace left {
int answer() { return 1; }
}  // namespace left
namespace right {
int answer() { return 2; }
}  // namespace right

}  // namespace

TEST_CASE("A task sees the trace context that its caller gave: on threads, in processes and in coroutines", "[trace]") {
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  CHECK(run(context, executor->submit(TaskOptions().trace_parent(trace), trace_seen)) == trace);
  CHECK(run(context, executor->submit(trace_seen)) == "");
  if (type != "io") return;
  CHECK(run(context, executor->submit(TaskOptions().trace_parent(trace), trace_seen_there)) == trace);
}

TEST_CASE("Of three tasks where two may be at once the third is refused, and the two have their events", "[asyncz]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 4);
  Told told(*executor);
  std::array<Outcome<>, 3> outcomes;
  for (auto& outcome : outcomes) {
    executor->async_submit(TaskOptions().name("job").max_instances(2), call(wait_at_gate, 7), outcome.handler());
  }
  REQUIRE(run_until(context, [&] { return outcomes[2].calls == 1 && board.gate.waiting == 2; }));
  const auto refused = error_as<MaxInstancesError>(outcomes[2].error);
  REQUIRE(refused);
  CHECK(refused->key() == "job");
  CHECK(refused->limit() == 2);
  board.gate.open = 1;
  run(context, executor->shutdown());
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && told.ends() == 2; }));
  CHECK(outcomes[0].value == 7);
  CHECK(outcomes[1].value == 7);
  CHECK(told.count(EventKind::succeeded) == 2);
  CHECK(told.count(EventKind::max_instances) == 1);
  CHECK(told.count(EventKind::rejected) == 1);
}

TEST_CASE("Where tasks of one key have different limits, each is refused by its own, whoever waits", "[asyncz]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("thread", context, 4);
  const auto limited = [](unsigned limit, OverloadPolicy policy) {
    return TaskOptions().max_instances(limit, policy, "key");
  };
  std::array<Outcome<>, 3> outcomes;
  executor->async_submit(limited(1, OverloadPolicy::reject), call(wait_at_gate, 7), outcomes[0].handler());
  executor->async_submit(limited(1, OverloadPolicy::wait), call(wait_at_gate, 7), outcomes[1].handler());
  executor->async_submit(limited(2, OverloadPolicy::reject), call(wait_at_gate, 7), outcomes[2].handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2; }));
  CHECK(outcomes[2].calls == 0);
  const auto refused = failure(context, executor->submit(limited(2, OverloadPolicy::reject), wait_at_gate, 7));
  CHECK(holds<MaxInstancesError>(refused));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
}

TEST_CASE("Without retries a failure is the end, and with them a flaky task succeeds at its third run", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  Told told(*executor);
  reset_board();
  CHECK(message(failure(context, executor->submit(count_and_refuse, 4))) == "refused 4");
  CHECK(board.begun == 1);
  reset_board();
  const auto options = TaskOptions().name("flaky").retry(RetryPolicy(5).delay(1ms));
  CHECK(run(context, executor->submit(options, succeed_at_run, 3U)) == 3);
  CHECK(board.begun == 3);
  REQUIRE(run_until(context, [&] { return told.ends() == 2; }));
  CHECK(told.story("flaky") == "submitted started retried started retried started succeeded");
  CHECK(executor->metrics().retried == 2);
  CHECK(executor->metrics().failed == 1);
  if (type != "io") return;
  reset_board();
  CHECK(run(context, executor->submit(options, succeed_at_run_there, 3U)) == 3);
  CHECK(board.begun == 3);
}

TEST_CASE("A task on a thread that is run again has what it shares with its caller, not a copy", "[flowrra]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  const auto flaky = [](const std::shared_ptr<int>& calls) {
    if (++*calls < 3) throw std::runtime_error("not yet");
    return *calls;
  };
  const auto calls = std::make_shared<int>(0);
  Outcome<> outcome;
  executor.async_submit(TaskOptions().retry(RetryPolicy(5)), call(flaky, calls), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  INFO(message(outcome.error));
  CHECK(*calls == 3);
  CHECK_FALSE(outcome.error);
}

TEST_CASE("A retry policy's predicate and a schedule's on_error are called on the event loop's thread", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  std::atomic<int> here{0};
  std::atomic<int> elsewhere{0};
  const auto note_thread = [&, loop = std::this_thread::get_id()](const std::exception_ptr&) {
    ++(std::this_thread::get_id() == loop ? here : elsewhere);
    return true;
  };
  CHECK(failure(context, executor->submit(TaskOptions().retry(RetryPolicy(2).when(note_thread)), refuse, 1)));
  CHECK(here == 1);
  CHECK(elsewhere == 0);
  here = 0;
  elsewhere = 0;
  ScheduleOptions options;
  options.first = 0ns;
  options.max_runs = 1;
  options.on_error = note_thread;
  auto schedule = executor->submit_every(1h, options, refuse, 1);
  REQUIRE(run_until(context, [&] { return here + elsewhere == 1; }));
  CHECK(here == 1);
}

TEST_CASE("With one worker the lower number runs first, in every executor", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  Outcome<> held;
  executor->async_submit(call(wait_at_gate, 0), held.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::array<Outcome<>, 4> outcomes;
  std::size_t i = 0;
  for (const int priority : {100, 1, 50, -3}) {
    executor->async_submit(TaskOptions().priority(priority), call(note, priority), outcomes[i++].handler());
  }
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(order() == std::vector<int>{-3, 1, 50, 100});
}

TEST_CASE("Tasks are registered once, found by name with what was said of them, and forgotten", "[flowrra]") {
  asio::io_context context;
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  TaskRegistry& registry = *options.tasks;
  CHECK(registry.size() == 0);
  registry.add("add", add);
  registry.add("flaky", succeed_at_run, TaskOptions().retry(RetryPolicy(3)));
  registry.add("square", [](int value) { return value * value; });
  registry.add("pid", pid_here);
  CHECK(registry.size() == 4);
  CHECK(registry.contains("add"));
  CHECK(registry.names() == std::vector<std::string>{"add", "flaky", "pid", "square"});
  CHECK_THROWS_AS(registry.add("add", twice), DuplicateTaskError);
  CHECK_THROWS_AS(registry.add("", twice), std::invalid_argument);
  CHECK_THROWS_AS(registry.add(std::string(201, 'n'), twice), std::invalid_argument);
  int (*const nothing)(int) = nullptr;
  CHECK_THROWS_AS(registry.add("nothing", nothing), std::invalid_argument);
  CHECK(registry.size() == 4);

  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  const auto executor = make(type, context, 1, options);
  const int sum = run(context, executor->submit("add", 2, 3));
  CHECK(sum == 5);
  const int square = run(context, executor->submit(std::string("square"), 4));
  CHECK(square == 16);
  const unsigned runs = run(context, executor->submit("flaky", 3U));
  CHECK(runs == 3);
  const auto handle = executor->spawn("add", 20, 22);
  const int spawned = run(context, handle.result());
  CHECK(spawned == 42);
  CHECK(handle.name() == "add");
  CHECK(holds<TaskSignatureError>(failure(context, executor->submit("add", 2))));
  CHECK(holds<TaskSignatureError>(failure(context, executor->submit("add", 2.5, 3))));

  CHECK(registry.remove("add"));
  CHECK_FALSE(registry.remove("add"));
  const auto unknown = error_as<UnknownTaskError>(failure(context, executor->submit("add", 2, 3)));
  REQUIRE(unknown);
  CHECK(unknown->known() == std::vector<std::string>{"flaky", "pid", "square"});
  CHECK_THROWS_AS(executor->spawn("add", 2, 3), UnknownTaskError);
}

TEST_CASE("A4: tasks that shutdown cancels are told of, and count no longer as instances", "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.instances = std::make_shared<InstanceGroup>();
  const auto executor = make(type, context, 1, options);
  Told told(*executor);
  const auto once = [](const char* name) { return TaskOptions().name(name).max_instances(1); };
  CHECK(failure(context, executor->submit(once("bad"), type == "local" ? die : refuse, SIGKILL)));
  CHECK(run_until(context, [&] { return options.instances->count("bad") == 0; }));
  std::array<Outcome<>, 4> outcomes;
  executor->async_submit(once("held"), call(wait_at_gate, 1), outcomes[0].handler());
  executor->async_submit(once("c1"), call(count, 1), outcomes[1].handler());
  executor->async_submit(once("c2"), call(count, 1), outcomes[2].handler());
  executor->async_submit(TaskOptions().name("c3").max_instances(1, OverloadPolicy::wait, "held"), call(count, 1),
                         outcomes[3].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(options.instances->count("c1") == 1);
  CHECK(options.instances->waiting() == 1);
  ShutdownOptions how;
  how.cancel_pending = true;
  how.wait = false;
  run(context, executor->shutdown(how));
  const auto told_of_the_end = [&] { return outcomes[1].calls + outcomes[2].calls + outcomes[3].calls == 3; };
  REQUIRE(run_until(context, told_of_the_end, kLongBeforeTheGate));
  CHECK(options.instances->waiting() == 0);
  CHECK(options.instances->count("c1") == 0);
  CHECK(options.instances->count("c2") == 0);
  CHECK(options.instances->count("held") == 1);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && told.ends() == 5; }));
  CHECK(run_until(context, [&] { return options.instances->count("held") == 0; }));
  CHECK(told.story("c1") == "submitted cancelled");
  CHECK(told.story("c2") == "submitted cancelled");
  CHECK_THAT(told.story("c3"), EndsWith("cancelled"));
  CHECK(told.story("held") == "submitted started succeeded");
  // Another executor that counts together with the first has room for them.
  const auto next = make("thread", context, 1, options);
  CHECK(run(context, next->submit(once("c1"), count, 5)) == 5);
}

TEST_CASE("A4: tasks whose event loop is destroyed count no longer as instances", "[instances]") {
  reset_board();
  const auto group = std::make_shared<InstanceGroup>();
  std::optional<asio::io_context> context(std::in_place);
  CommonOptions options = limited(2, OverloadPolicy::wait);
  options.instances = group;
  const auto executor = make("thread", *context, 1, options);
  // One that waits for its next run, one that runs, one that waits for its turn, and one that waits for admission.
  const auto again = TaskOptions().name("again").max_instances(1).retry(RetryPolicy(2).delay(1h));
  const auto retrying = executor->spawn(again, refuse, 1);
  REQUIRE(run_until(*context, [&] { return retrying.status() == TaskStatus::retrying; }));
  const auto held = executor->spawn(TaskOptions().name("held").max_instances(1), wait_at_gate, 1);
  REQUIRE(run_until(*context, [] { return board.gate.waiting == 1; }));
  const auto outside = executor->spawn(TaskOptions().name("outside").max_instances(1), count, 1);
  CHECK(executor->metrics().waiting == 1);
  CHECK(group->count("again") == 1);
  context.reset();
  board.gate.open = 1;
  CHECK(poll_until([&] { return group->count("held") == 0; }, kDeadline));
  CHECK(group->count("again") == 0);
  CHECK(group->count("outside") == 0);
  CHECK(board.begun == 0);
}

TEST_CASE("A11: a function that goes on after it was cancelled counts as an instance until it returns", "[instances]") {
  const auto type = GENERATE(as<std::string>{}, "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.instances = std::make_shared<InstanceGroup>();
  const auto executor = make(type, context, 2, options);
  const auto once = TaskOptions().name("held").max_instances(1);
  const auto held = executor->spawn(once, wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  held.cancel();
  CHECK(cancelled_stage(failure(context, held.result())) == TaskCancelledError::Stage::running);
  CHECK(options.instances->count("held") == 1);
  CHECK(holds<MaxInstancesError>(failure(context, executor->submit(once, count, 1))));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return options.instances->count("held") == 0; }));
  CHECK(run(context, executor->submit(once, count, 1)) == 1);
}

TEST_CASE("A13: executors on several threads that share a group never run more instances than there may be",
          "[instances]") {
  reset_board();
  CommonOptions options = limited(1000);
  options.instances = std::make_shared<InstanceGroup>();
  asio::io_context context;
  {
    std::vector<std::shared_ptr<BaseExecutor>> executors;
    for (const char* type : {"local", "thread", "io"}) executors.push_back(make(type, context, 3, options));
    const auto at_most_two = TaskOptions().name("shared").max_instances(2, OverloadPolicy::wait);
    constexpr int kTasks = 300;
    std::atomic<int> good{0};
    std::atomic<int> over{0};
    auto work = asio::make_work_guard(context);
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) threads.emplace_back([&] { context.run_for(kDeadline); });
    for (const auto& executor : executors) {
      threads.emplace_back([&, executor] {
        for (int i = 0; i < kTasks / 3; ++i) {
          executor->async_submit(at_most_two, call(overlap, i), [&, i](std::exception_ptr error, int value) {
            if (!error && value == i) ++good;
            ++over;
          });
        }
      });
    }
    CHECK(poll_until([&] { return over == kTasks; }, kDeadline));
    work.reset();
    context.stop();
    for (std::thread& thread : threads) thread.join();
    CHECK(good == kTasks);
    CHECK(board.most_running <= 2);
    CHECK(poll_until([&] { return options.instances->count("shared") == 0; }, kDeadline));
    CHECK(options.instances->waiting() == 0);
    CHECK(options.instances->count("never seen") == 0);
  }
}

TEST_CASE("A13: who is told that a task is over finds its instance free", "[instances]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context, 2);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    if (failure(context, executor->submit(TaskOptions().name("one").max_instances(1), twice, i))) ++refused;
  }
  CHECK(refused == 0);
}

TEST_CASE("A13: a task that runs inside submit is counted while it runs, and not any more afterwards", "[instances]") {
  asio::io_context context;
  CommonOptions options;
  options.instances = std::make_shared<InstanceGroup>();
  InlineExecutor executor(context.get_executor(), options);
  InstanceGroup& group = *options.instances;
  const auto once = [] { return TaskOptions().name("inline").max_instances(1); };
  Outcome<> inner;
  Outcome<std::size_t> outer;
  executor.async_submit(once(), call([&] {
                          executor.async_submit(once(), call(twice, 1), inner.handler());
                          return group.count("inline");
                        }),
                        outer.handler());
  CHECK(group.count("inline") == 0);
  REQUIRE(run_until(context, [&] { return inner.calls == 1 && outer.calls == 1; }));
  CHECK(outer.value == 1U);
  CHECK(holds<MaxInstancesError>(inner.error));
}

TEST_CASE("A15: on a busy executor tasks wait for longer than a second and run, unless they have a limit of their own",
          "[limits]") {
  reset_board();
  asio::io_context context;
  std::vector<std::shared_ptr<BaseExecutor>> executors;
  std::deque<Outcome<>> patient;
  std::deque<Outcome<>> strict;
  std::deque<Told> told;
  for (const char* type : {"local", "thread", "io"}) {
    executors.push_back(make(type, context));
    told.emplace_back(*executors.back());
    executors.back()->async_submit(call(wait_at_gate, 1), patient.emplace_back().handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  for (const auto& executor : executors) {
    for (int i = 0; i < 3; ++i) executor->async_submit(call(count, 1), patient.emplace_back().handler());
    executor->async_submit(TaskOptions().name("strict").queue_timeout(1s), call(count, 1),
                           strict.emplace_back().handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(strict); }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(patient); }));
  for (const auto& outcome : patient) CHECK(outcome.value == 1);
  for (const auto& outcome : strict) CHECK(holds<TaskTimeoutError>(outcome.error));
  CHECK(board.begun == 9);
  for (const Told& listener : told) {
    REQUIRE(run_until(context, [&] { return listener.ends() == 5; }));
    CHECK(listener.story("strict") == "submitted timed out");
  }
}

TEST_CASE("F3: a task that waits for its next run holds no worker", "[retry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  const auto flaky = executor->spawn(TaskOptions().retry(RetryPolicy(2).delay(1h)), refuse, 1);
  REQUIRE(run_until(context, [&] { return flaky.status() == TaskStatus::retrying; }));
  for (int i = 0; i < 5; ++i) CHECK(run(context, executor->submit(twice, i)) == 2 * i);
  CHECK(executor->metrics().running == 0);
  CHECK(flaky.status() == TaskStatus::retrying);
  flaky.cancel();
  CHECK(holds<TaskCancelledError>(failure(context, flaky.result())));
  CHECK(adds_up(*executor));
}

TEST_CASE("F4: a task comes to its next run though its executor is full, and so do those that wait", "[retry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 1, limited(1, OverloadPolicy::wait));
  Outcome<unsigned> flaky;
  executor->async_submit(TaskOptions().retry(RetryPolicy(3).delay(1ms)), call(succeed_at_run, 3U), flaky.handler());
  std::deque<Outcome<>> waiting(20);
  for (auto& outcome : waiting) executor->async_submit(call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return flaky.calls == 1 && all_over(waiting); }));
  CHECK(flaky.value == 3U);
  for (const auto& outcome : waiting) CHECK(outcome.value == 2);

  // A shutdown does not wait for a run that never comes, nor for those behind it.
  const auto never = executor->spawn(TaskOptions().retry(RetryPolicy(3).delay(1h)), refuse, 1);
  const auto behind = executor->spawn(twice, 1);
  REQUIRE(run_until(context, [&] { return never.status() == TaskStatus::retrying; }));
  run(context, executor->shutdown());
  CHECK(message(failure(context, never.result())) == "refused 1");
  CHECK(holds<ExecutorNotRunningError>(failure(context, behind.result())));
}

TEST_CASE("F6: a value that cannot be carried ends its task without another run", "[retry]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("local", context);
  const auto five = TaskOptions().retry(RetryPolicy(5));
  const auto result = error_as<SerializationError>(failure(context, executor->submit(five, stubborn, false)));
  REQUIRE(result);
  CHECK(result->part() == SerializationError::Part::result);
  CHECK(board.begun == 1);
  Stubborn never;
  never.encodable = false;
  const auto argument = error_as<SerializationError>(failure(context, executor->submit(five, take, never)));
  REQUIRE(argument);
  CHECK(argument->part() == SerializationError::Part::argument);
  CHECK(board.begun == 1);
  CHECK(executor->metrics().retried == 0);
}

TEST_CASE("F11: tasks of the same priority run in the order of their submission, in every executor", "[priority]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "coroutines");
  CAPTURE(type);
  const bool coroutines = type == "coroutines";
  reset_board();
  asio::io_context context;
  const auto executor = make(coroutines ? "io" : type, context);
  Outcome<> held;
  if (coroutines) {
    executor->async_submit(call(wait_at_gate_there, 0), held.handler());
  } else {
    executor->async_submit(call(wait_at_gate, 0), held.handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::deque<Outcome<>> outcomes(24);
  std::vector<int> expected;
  for (int i = 0; i < 24; ++i) {
    auto& outcome = outcomes[static_cast<std::size_t>(i)];
    const auto options = TaskOptions().priority(i % 2);
    if (coroutines) {
      executor->async_submit(options, call(note_there, i), outcome.handler());
    } else {
      executor->async_submit(options, call(note, i), outcome.handler());
    }
  }
  for (int i = 0; i < 24; i += 2) expected.push_back(i);
  for (int i = 1; i < 24; i += 2) expected.push_back(i);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(order() == expected);
}

TEST_CASE("F12: limits below a second, and below a millisecond, are kept and not taken for none", "[limits]") {
  reset_board();
  asio::io_context context;
  ThreadExecutorOptions options = threads(1);
  options.idle_timeout = 1us;
  ThreadExecutor executor(context.get_executor(), options);
  CHECK(run(context, executor.submit(twice, 1)) == 2);
  CHECK(run_until(context, [&] { return executor.metrics().workers == 0; }));
  const auto held = executor.spawn(TaskOptions().timeout(999us), wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const auto queued = executor.spawn(TaskOptions().queue_timeout(1ns), count, 1);
  const auto which = [](const std::exception_ptr& error) {
    const auto timeout = error_as<TaskTimeoutError>(error);
    return timeout ? std::optional(timeout->which()) : std::nullopt;
  };
  CHECK(which(failure(context, queued.result())) == TaskTimeoutError::Which::queue);
  CHECK(which(failure(context, held.result())) == TaskTimeoutError::Which::run);
  const auto endless = executor.spawn(twice, 1);  // its thread is taken by the function that is too late
  CHECK(which(failure(context, endless.result(1us))) == TaskTimeoutError::Which::wait);
  CHECK(run(context, make("inline", context)->submit_after(1ns, twice, 2).result()) == 4);

  LocalExecutorOptions of_pool = workers(1);
  of_pool.cancel_grace = 1us;
  LocalExecutor pool(context.get_executor(), of_pool);
  const auto killed = failure(context, pool.submit(TaskOptions().timeout(500us), wait_at_gate, 1));
  CHECK(which(killed) == TaskTimeoutError::Which::run);
  ShutdownOptions at_once;
  at_once.timeout = 1ns;
  const auto cancelled = pool.spawn(wait_at_gate, 1);
  run(context, pool.shutdown(at_once));
  CHECK(holds<TaskCancelledError>(failure(context, cancelled.result())));
  run(context, executor.shutdown(at_once));
  CHECK(holds<TaskCancelledError>(failure(context, endless.result())));
  CHECK(board.begun == 0);
  let_go("thread");
}

TEST_CASE("F17: options are used or refused: retries and limits by default, unknown names, and the end", "[options]") {
  asio::io_context context;
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  options.tasks->add("flaky", succeed_at_run, TaskOptions().retry(RetryPolicy(3)));
  options.tasks->add("held", wait_at_gate, TaskOptions().timeout(1ms));
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  const auto executor = make(type, context, 1, options);
  const unsigned runs = run(context, executor->submit("flaky", 3U));
  CHECK(runs == 3);
  // What the submit says holds before the default.
  const auto once = TaskOptions().retry(RetryPolicy(1));
  CHECK(message(failure(context, executor->submit(once, "flaky", 3U))) == "run 1");
  const auto late = error_as<TaskTimeoutError>(failure(context, executor->submit("held", 1)));
  REQUIRE(late);
  CHECK(late->which() == TaskTimeoutError::Which::run);
  CHECK(late->limit() == 1ms);
  CHECK(late->context().task == "held");
  board.gate.open = 1;

  const OptionMap unknown{{"retry_delay", "1s"}};
  CHECK_THROWS_AS(bulkhead::parse_local_options(unknown), std::invalid_argument);
  CHECK_THROWS_AS(bulkhead::parse_thread_options(unknown), std::invalid_argument);
  CHECK_THROWS_AS(bulkhead::parse_io_options(unknown), std::invalid_argument);
  CHECK_THROWS_AS(bulkhead::parse_common_options(unknown), std::invalid_argument);
  run(context, executor->shutdown());
  const auto* const pool = dynamic_cast<const LocalExecutor*>(executor.get());
  if (pool != nullptr) CHECK(pool->worker_pids().empty());
}

TEST_CASE("F18: each function is itself, whatever it is called, and one that nobody knows is no task", "[local]") {
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  options.tasks->add("answer", left::answer);
  CHECK_THROWS_AS(options.tasks->add("answer", right::answer), DuplicateTaskError);
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "inline");
  CAPTURE(type);
  const auto executor = make(type, context, 1, options);
  CHECK(run(context, executor->submit(left::answer)) == 1);
  CHECK(run(context, executor->submit(right::answer)) == 2);
  CHECK(run(context, executor->submit(TaskOptions().name("answer"), right::answer)) == 2);
  const int by_name = run(context, executor->submit("answer"));
  CHECK(by_name == 1);
  AddTo forty;
  forty.left = 40;
  CHECK(run(context, executor->submit(forty, 2)) == 42);
  if (type != "local") CHECK(run(context, executor->submit(std::bind_front(add, 40), 2)) == 42);

  const auto retried = TaskOptions().retry(RetryPolicy(3));
  CHECK(holds<UnknownTaskError>(failure(context, executor->submit(retried, "question"))));
  if (type == "local") {
    int (*const nothing)(int) = nullptr;
    CHECK(holds<FunctionUnavailableError>(failure(context, executor->submit(retried, nothing, 1))));
  }
  CHECK(executor->metrics().retried == 0);
}

TEST_CASE("Tasks that wait for admission keep the event loop at work, though the task before them has its outcome",
          "[options]") {
  const auto type = GENERATE(as<std::string>{}, "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 1, bulkhead::test::limited(1, bulkhead::OverloadPolicy::wait));
  bool second = false;
  bulkhead::TaskHandle<int> third;
  executor->async_submit(TaskOptions().timeout(5ms), bulkhead::call(wait_at_gate, 1), [&](std::exception_ptr, int) {
    executor->async_submit(bulkhead::call(twice, 1), [&](std::exception_ptr error, int) { second = !error; });
    third = executor->spawn(twice, 1);
    board.gate.open = 1;
  });
  context.run_for(bulkhead::test::kDeadline);
  CHECK(context.stopped());
  CHECK(second);
  REQUIRE_FALSE(third.empty());
  CHECK(third.status() == bulkhead::TaskStatus::succeeded);
  // And they let it end when they go.
  reset_board();
  asio::cancellation_signal signal;
  Outcome<> waiting;
  executor->async_submit(TaskOptions().timeout(5ms), bulkhead::call(wait_at_gate, 1), [&](std::exception_ptr, int) {
    executor->async_submit(bulkhead::call(twice, 1), asio::bind_cancellation_slot(signal.slot(), waiting.handler()));
    signal.emit(asio::cancellation_type::total);
    board.gate.open = 1;
  });
  context.restart();
  context.run_for(bulkhead::test::kDeadline);
  CHECK(context.stopped());
  CHECK(waiting.calls == 1);
}
