// SPDX-License-Identifier: BSL-1.0
// What all executors share beyond a submit: handles, results, tasks by name, instances, events, timed runs, groups.
#include <bulkhead/events.hpp>
#include <bulkhead/groups.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/this_task.hpp>
#include <bulkhead/thread_executor.hpp>

#include "event_hub.hpp"
#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::DuplicateTaskError;
using bulkhead::Event;
using bulkhead::EventKind;
using bulkhead::ExecutorNotRunningError;
using bulkhead::InstanceGroup;
using bulkhead::IoExecutor;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::MaxInstancesError;
using bulkhead::OnError;
using bulkhead::OverloadPolicy;
using bulkhead::ResultNotFoundError;
using bulkhead::ResultStore;
using bulkhead::ResultStoreOptions;
using bulkhead::RetryPolicy;
using bulkhead::ScheduleOptions;
using bulkhead::Subscription;
using bulkhead::TaskCancelledError;
using bulkhead::TaskHandle;
using bulkhead::TaskId;
using bulkhead::TaskOptions;
using bulkhead::TaskRegistry;
using bulkhead::TaskSignatureError;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::UnknownTaskError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::die;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::Outcome;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::threads;
using bulkhead::test::twice;
using bulkhead::test::twice_later;
using bulkhead::test::wait_at_gate;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

int fail(int) { throw std::out_of_range("nothing there"); }
std::string greet(const std::string& name, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += "hello " + name + ";";
  return text;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Handles and results.

TEST_CASE("task ids are all different, and are read back from their text", "[handle]") {
  std::unordered_set<TaskId> ids;
  for (int i = 0; i < 10'000; ++i) ids.insert(TaskId::make());
  CHECK(ids.size() == 10'000);
  const TaskId id(0x0123456789abcdef, 0xfedcba9876543210);
  CHECK(id.to_string() == "0123456789abcdeffedcba9876543210");
  CHECK(TaskId::parse(id.to_string()) == id);
  for (const char* text : {"", "0123", "0123456789abcdeffedcba987654321g", "0123456789abcdef-fedcba9876543210"}) {
    CHECK_THROWS_AS(TaskId::parse(text), std::invalid_argument);
  }
  CHECK(TaskId().empty());
}

TEST_CASE("a spawned task runs though its handle is dropped", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const TaskId id = executor.spawn(twice, 21).id();
  REQUIRE(run_until(context, [&] { return executor.metrics().completed == 1; }));
  REQUIRE(run_until(context, [&] { return executor.get_result<int>(id).has_value(); }));
  CHECK(executor.get_result<int>(id) == 42);
  CHECK(executor.status(id) == TaskStatus::succeeded);
}

TEST_CASE("a handle tells of a task in a worker process as of any other", "[handle]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  board.gate.reset();
  const auto running = pool.spawn(wait_at_gate, 1);
  const auto queued = pool.spawn(twice, 2);
  REQUIRE(run_until(context, [&] { return running.status() == TaskStatus::running; }));
  CHECK(queued.status() == TaskStatus::queued);
  queued.cancel(asio::cancellation_type::total);
  REQUIRE(run_until(context, [&] { return queued.status() == TaskStatus::cancelled; }));
  board.gate.open = 1;
  CHECK(run(context, running.result()) == 1);
  CHECK(running.status() == TaskStatus::succeeded);
  CHECK(holds<TaskCancelledError>(failure(context, queued.result())));
  const auto crashed = pool.spawn(die, SIGABRT);
  CHECK(holds<bulkhead::WorkerCrashedError>(failure(context, crashed.result())));
  CHECK(crashed.status() == TaskStatus::failed);
}

TEST_CASE("many wait for one result, before it is there and after", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  board.gate.reset();
  const auto handle = executor.spawn(wait_at_gate, 7);
  std::vector<int> results;
  for (int i = 0; i < 5; ++i) {
    asio::co_spawn(context, handle.result(), [&](std::exception_ptr error, int value) {
      if (!error) results.push_back(value);
    });
  }
  settle(context);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return results.size() == 5; }));
  CHECK(run(context, handle.result()) == 7);
}

TEST_CASE("a result that can only be moved goes to the first who takes it", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto handle = executor.spawn([] { return std::make_unique<int>(3); });
  CHECK(*run(context, handle.result()) == 3);
  CHECK(holds<std::logic_error>(failure(context, handle.result())));
}

TEST_CASE("a task that waits for its next run says so, and can be cancelled", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto handle = executor.spawn(TaskOptions().retry(RetryPolicy(2).delay(1h)), fail, 1);
  REQUIRE(run_until(context, [&] { return handle.status() == TaskStatus::retrying; }));
  handle.cancel();
  CHECK(holds<TaskCancelledError>(failure(context, handle.result())));
  CHECK(adds_up(executor));
}

TEST_CASE("a refusal is the outcome of a spawned task", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  run(context, executor.shutdown());
  const auto handle = executor.spawn(twice, 1);
  CHECK(holds<ExecutorNotRunningError>(failure(context, handle.result())));
  CHECK(handle.status() == TaskStatus::failed);
  handle.cancel();
}

TEST_CASE("a handle may outlive its executor", "[handle]") {
  asio::io_context context;
  std::optional<TaskHandle<int>> done;
  std::optional<TaskHandle<int>> cut_off;
  board.gate.reset();
  {
    ThreadExecutor executor(context.get_executor(), threads(1));
    done = executor.spawn(twice, 4);
    REQUIRE(run_until(context, [&] { return done->status() == TaskStatus::succeeded; }));
    cut_off = executor.spawn(wait_at_gate, 1);
    REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  }
  CHECK(run(context, done->result()) == 8);
  CHECK(holds<TaskCancelledError>(failure(context, cut_off->result())));
  cut_off->cancel();
  board.gate.open = 1;
}

TEST_CASE("results are kept within their limits, the newest", "[store]") {
  asio::io_context context;
  ResultStoreOptions limits;
  limits.max_results = 3;
  ThreadExecutorOptions options = threads(1);
  options.results = std::make_shared<ResultStore>(limits);
  ThreadExecutor executor(context.get_executor(), options);
  std::vector<TaskHandle<int>> handles;
  for (int i = 0; i < 10; ++i) {
    handles.push_back(executor.spawn(twice, i));
    run(context, handles.back().result());
  }
  CHECK(options.results->size() == 3);
  CHECK(options.results->unfinished() == 0);
  CHECK(executor.get_result<int>(handles[9].id()) == 18);
  CHECK_THROWS_AS(executor.get_result<int>(handles[0].id()), ResultNotFoundError);
  // A handle has its result all the same.
  CHECK(run(context, handles[0].result()) == 0);
  CHECK(options.results->remove(handles[9].id()));
  CHECK_FALSE(options.results->remove(handles[9].id()));
  CHECK(options.results->clear() == 2);
  CHECK(options.results->bytes() == 0);
}

TEST_CASE("results count for what they take, and go when their time is over", "[store]") {
  asio::io_context context;
  ThreadExecutorOptions options = threads(1);
  SECTION("bytes") {
    ResultStoreOptions limits;
    limits.max_bytes = 10'000;
    options.results = std::make_shared<ResultStore>(limits);
    ThreadExecutor executor(context.get_executor(), options);
    for (int i = 0; i < 5; ++i) {
      run(context, executor.spawn([] { return std::string(4000, 'x'); }).result());
    }
    CHECK(options.results->size() == 2);
    CHECK(options.results->bytes() <= 10'000);
  }
  SECTION("time") {
    ResultStoreOptions limits;
    limits.time_to_live = 1ns;
    options.results = std::make_shared<ResultStore>(limits);
    ThreadExecutor executor(context.get_executor(), options);
    const auto handle = executor.spawn(twice, 1);
    CHECK(run(context, handle.result()) == 2);
    CHECK(holds<ResultNotFoundError>(failure(context, executor.wait_for_result<int>(handle.id()))));
  }
  SECTION("limits of zero") {
    ResultStoreOptions limits;
    limits.max_results = 0;
    CHECK_THROWS_AS(ResultStore(limits), std::invalid_argument);
  }
}

TEST_CASE("a result of another type is an error that names both", "[store]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto handle = executor.spawn(twice, 1);
  run(context, handle.result());
  try {
    executor.get_result<std::string>(handle.id());
    FAIL("it was given");
  } catch (const TaskSignatureError& error) {
    CHECK_THAT(error.what(), ContainsSubstring("int") && ContainsSubstring("string"));
  }
}

TEST_CASE("executors that share a store find each other's results", "[store]") {
  asio::io_context context;
  ThreadExecutorOptions options = threads(1);
  options.results = std::make_shared<ResultStore>();
  ThreadExecutor one(context.get_executor(), options);
  ThreadExecutor other(context.get_executor(), options);
  const auto handle = one.spawn(twice, 2);
  CHECK(run(context, other.wait_for_result<int>(handle.id())) == 4);
}

TEST_CASE("waiting for the result of an unknown id fails where it is awaited", "[result]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  auto waiting = executor.wait_for_result<int>(TaskId::make());
  CHECK(holds<ResultNotFoundError>(failure(context, std::move(waiting))));
}

int report_at_gate(int value) {
  bulkhead::this_task::report_progress(1, 3, "begun");
  board.gate.wait();
  bulkhead::this_task::report_progress(3, 3, "done");
  return value;
}

TEST_CASE("a handle tells all that is known of its task, and a store lists what it knows", "[handle]") {
  const bool in_process = GENERATE(false, true);
  CAPTURE(in_process);
  asio::io_context context;
  const auto results = std::make_shared<ResultStore>();
  ThreadExecutorOptions on_threads = threads(1);
  LocalExecutorOptions in_processes = workers(1);
  on_threads.results = results;
  in_processes.results = results;
  ThreadExecutor on_thread(context.get_executor(), on_threads);
  LocalExecutor pool(context.get_executor(), in_processes);
  BaseExecutor& executor = in_process ? static_cast<BaseExecutor&>(pool) : on_thread;
  board.gate.reset();
  const auto before = std::chrono::system_clock::now();
  const auto first = executor.spawn(TaskOptions().name("first"), report_at_gate, 1);
  REQUIRE(run_until(context, [&] { return first.info().progress.has_value(); }));
  const auto second = executor.spawn(TaskOptions().name("second"), fail, 2);
  bulkhead::TaskInfo info = first.info();
  CHECK(info.id == first.id());
  CHECK(info.number != 0);
  CHECK(info.name == "first");
  CHECK(info.executor == executor.name());
  CHECK(info.status == TaskStatus::running);
  CHECK(info.attempt == 1);
  CHECK(info.spawned >= before);
  CHECK_FALSE(info.ended);
  CHECK(info.progress->text == "begun");
  CHECK(executor.info(first.id())->number == info.number);
  CHECK_FALSE(executor.info(TaskId::make()));
  auto list = results->list();
  REQUIRE(list.size() == 2);
  CHECK(list.front().name == "second");
  CHECK(results->list({}, 1).size() == 1);
  CHECK(results->list(TaskStatus::running).size() == 1);
  board.gate.open = 1;
  CHECK(run(context, first.result()) == 1);
  CHECK(holds<std::out_of_range>(failure(context, second.result())));
  info = first.info();
  CHECK(info.status == TaskStatus::succeeded);
  REQUIRE(info.started);
  REQUIRE(info.ended);
  CHECK(info.spawned <= *info.started);
  CHECK(*info.started <= *info.ended);
  if (!in_process) CHECK(info.progress->text == "done");
  list = results->list(TaskStatus::failed);
  REQUIRE(list.size() == 1);
  CHECK(list.front().id == second.id());
}

TEST_CASE("the attempt of a task that is retried is known, and when it waits for the next", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto handle = executor.spawn(TaskOptions().retry(bulkhead::RetryPolicy(2).delay(1h)), fail, 1);
  REQUIRE(run_until(context, [&] { return handle.status() == TaskStatus::retrying; }));
  CHECK(handle.info().attempt == 1);
  handle.cancel();
  CHECK(holds<TaskCancelledError>(failure(context, handle.result())));
}

TEST_CASE("a handle or a schedule that is none can be asked", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  TaskHandle<int> handle;
  CHECK(handle.empty());
  handle = executor.spawn(twice, 2);
  CHECK_FALSE(handle.empty());
  CHECK(run(context, handle.result()) == 4);
  bulkhead::Schedule schedule;
  CHECK_FALSE(schedule.active());
  CHECK_FALSE(schedule.next());
  CHECK(schedule.runs() + schedule.missed() + schedule.failures() == 0);
  CHECK(schedule.last_error() == nullptr);
  schedule.cancel();
}

// ---------------------------------------------------------------------------------------------------------------------
// Tasks by name.

TEST_CASE("a registered task is called by its name with its defaults, in threads and in processes", "[registry]") {
  asio::io_context context;
  auto tasks = std::make_shared<TaskRegistry>();
  tasks->add("greet", greet, TaskOptions().priority(3).timeout(30s));
  tasks->add("later", twice_later);
  tasks->add("nothing", [] {});
  LocalExecutorOptions in_processes = workers(1);
  in_processes.tasks = tasks;
  LocalExecutor pool(context.get_executor(), in_processes);
  ThreadExecutorOptions on_threads = threads(1);
  on_threads.tasks = tasks;
  ThreadExecutor executor(context.get_executor(), on_threads);
  for (BaseExecutor* any : {static_cast<BaseExecutor*>(&pool), static_cast<BaseExecutor*>(&executor)}) {
    const std::string text = run(context, any->submit("greet", "you", 2));
    CHECK(text == "hello you;hello you;");
    run(context, any->submit("nothing"));
  }
  bulkhead::IoExecutorOptions on_loop;
  on_loop.tasks = tasks;
  IoExecutor io(context.get_executor(), on_loop);
  const int doubled = run(context, io.submit("later", 4));
  CHECK(doubled == 8);
  Outcome<bulkhead::AnyResult> outcome;
  pool.async_submit(TaskOptions().priority(1), bulkhead::call_by_name("greet", "us", 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK(outcome.value->get<std::string>() == "hello us;");
  Outcome<bulkhead::AnyResult> unknown;
  pool.async_submit(bulkhead::call_by_name("great"), unknown.handler());
  CHECK(unknown.calls == 0);
  REQUIRE(run_until(context, [&] { return unknown.calls > 0; }));
  CHECK(holds<UnknownTaskError>(unknown.error));
  const auto handle = pool.spawn("greet", "me", 1);
  CHECK(run(context, handle.result()).get<std::string>() == "hello me;");
  CHECK(handle.name() == "greet");
  CHECK(pool.get_result<std::string>(handle.id()) == "hello me;");
}

TEST_CASE("names and types of registered tasks are checked", "[registry]") {
  asio::io_context context;
  auto tasks = std::make_shared<TaskRegistry>();
  tasks->add("greet", greet);
  CHECK_THROWS_AS(tasks->add("greet", twice), DuplicateTaskError);
  CHECK_THROWS_AS(tasks->add("", twice), std::invalid_argument);
  int (*null)(int) = nullptr;
  CHECK_THROWS_AS(tasks->add("null", null), std::invalid_argument);
  ThreadExecutorOptions options = threads(1);
  options.tasks = tasks;
  ThreadExecutor executor(context.get_executor(), options);
  try {
    run(context, executor.submit("great", 1));
    FAIL("it ran");
  } catch (const UnknownTaskError& error) {
    CHECK(error.known() == std::vector<std::string>{"greet"});
    CHECK_THAT(error.what(), ContainsSubstring("'great'") && ContainsSubstring("greet"));
  }
  try {
    run(context, executor.submit("greet", 1));
    FAIL("it ran");
  } catch (const TaskSignatureError& error) {
    CHECK_THAT(error.what(), ContainsSubstring("takes (std::string, int), and was called with (int)"));
  }
  const auto greet_as_number = [&]() -> int { return run(context, executor.submit("greet", "you", 1)); };
  CHECK_THROWS_AS(greet_as_number(), TaskSignatureError);
  CHECK_THROWS_AS(executor.spawn("great", 1), UnknownTaskError);
  CHECK(tasks->names() == std::vector<std::string>{"greet"});
  CHECK(tasks->remove("greet"));
  CHECK_FALSE(tasks->contains("greet"));
  CHECK(tasks->size() == 0);
  ThreadExecutor without(context.get_executor());
  CHECK(holds<UnknownTaskError>(failure(context, without.submit("greet", "you", 1))));
}

TEST_CASE("a registered task runs at its time, and again and again, by its name", "[registry][schedule]") {
  asio::io_context context;
  auto tasks = std::make_shared<TaskRegistry>();
  std::atomic<int> runs{0};
  tasks->add("greet", greet);
  tasks->add(
      "count", [&runs](const std::string& text) { runs += text == "so" ? 1 : 1000; }, TaskOptions().priority(1));
  tasks->add("once", [](std::unique_ptr<int> number) { return *number; });
  ThreadExecutorOptions options = threads(1);
  options.tasks = tasks;
  ThreadExecutor executor(context.get_executor(), options);
  const auto soon = executor.submit_after(1ms, "greet", "you", 1);
  CHECK(soon.name() == "greet");
  CHECK(run(context, soon.result()).get<std::string>() == "hello you;");
  const auto past = executor.submit_at(std::chrono::system_clock::time_point(), TaskOptions().priority(2), "once",
                                       std::make_unique<int>(7));
  CHECK(run(context, past.result()).get<int>() == 7);
  auto schedule = executor.submit_every(1ms, "count", "so");
  ScheduleOptions thrice;
  thrice.max_runs = 3;
  thrice.first = 0ns;
  auto other = executor.submit_every(1ms, thrice, TaskOptions().timeout(30s), "count", std::string("so"));
  REQUIRE(run_until(context, [&] { return runs >= 10 && !other.active(); }));
  schedule.cancel();
  CHECK(other.runs() == 3);
  CHECK(schedule.failures() + other.failures() == 0);
  CHECK_THROWS_AS(executor.submit_every(1ms, "cuont", "so"), UnknownTaskError);
  CHECK_THROWS_AS(executor.submit_after(1ms, "count", 1), TaskSignatureError);
  CHECK_THROWS_WITH(executor.submit_every(1ms, "once", std::make_unique<int>(7)),
                    ContainsSubstring("cannot be copied"));
  run(context, executor.shutdown());
  CHECK(runs < 1000);
  CHECK(adds_up(executor));
}

TEST_CASE("a registered task's defaults hold where a submit says nothing else", "[registry]") {
  asio::io_context context;
  auto tasks = std::make_shared<TaskRegistry>();
  tasks->add(
      "stuck",
      [] {
        bulkhead::test::poll_until([] { return bulkhead::this_task::stop_requested(); }, 60s);
        return 1;
      },
      TaskOptions().timeout(1ms));
  ThreadExecutorOptions options = threads(1);
  options.tasks = tasks;
  ThreadExecutor executor(context.get_executor(), options);
  try {
    run(context, executor.submit("stuck"));
    FAIL("it returned");
  } catch (const TaskTimeoutError& error) {
    CHECK(error.limit() == 1ms);
    CHECK(error.context().task == "stuck");
  }
  try {
    run(context, executor.submit(TaskOptions().timeout(2ms).name("mine"), "stuck"));
    FAIL("it returned");
  } catch (const TaskTimeoutError& error) {
    CHECK(error.limit() == 2ms);
    CHECK(error.context().task == "mine");
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Instances.

TEST_CASE("instances are counted over all executors of a group, by name or key", "[instances]") {
  asio::io_context context;
  auto group = std::make_shared<InstanceGroup>();
  ThreadExecutorOptions on_threads = threads(4);
  on_threads.instances = group;
  ThreadExecutor executor(context.get_executor(), on_threads);
  LocalExecutorOptions in_processes = workers(2);
  in_processes.instances = group;
  LocalExecutor pool(context.get_executor(), in_processes);
  const auto limited = [] { return TaskOptions().max_instances(2, OverloadPolicy::reject, "report"); };
  board.gate.reset();
  Outcome<> one;
  Outcome<> two;
  Outcome<> three;
  executor.async_submit(limited(), bulkhead::call(wait_at_gate, 1), one.handler());
  pool.async_submit(limited(), bulkhead::call(wait_at_gate, 2), two.handler());
  executor.async_submit(limited(), bulkhead::call(twice, 3), three.handler());
  settle(context);
  REQUIRE(three.calls == 1);
  try {
    std::rethrow_exception(three.error);
  } catch (const MaxInstancesError& error) {
    CHECK(error.limit() == 2);
    CHECK(error.key() == "report");
    CHECK_THAT(error.what(), ContainsSubstring("'report'") && ContainsSubstring("2"));
  }
  CHECK(group->count("report") == 2);
  CHECK(executor.metrics().rejected == 1);
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2; }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return one.calls + two.calls == 2; }));
  CHECK(group->count("report") == 0);
  CHECK(run(context, pool.submit(limited(), twice, 3)) == 6);
}

TEST_CASE("tasks that wait for their instance keep their order and their place among max_pending", "[instances]") {
  asio::io_context context;
  ThreadExecutorOptions options = threads(4);
  options.max_pending = 4;
  ThreadExecutor executor(context.get_executor(), options);
  const auto alone = [] { return TaskOptions().name("alone").max_instances(1, OverloadPolicy::wait); };
  board.gate.reset();
  std::vector<int> order;
  std::deque<Outcome<>> outcomes(5);
  executor.async_submit(alone(), bulkhead::call(wait_at_gate, 0), outcomes[0].handler());
  for (int i = 1; i < 4; ++i) {
    executor.async_submit(alone(), bulkhead::call([&order, i] {
                            order.push_back(i);
                            return i;
                          }),
                          outcomes[static_cast<std::size_t>(i)].handler());
  }
  executor.async_submit(bulkhead::call(twice, 1), outcomes[4].handler());
  settle(context);
  CHECK(holds<bulkhead::ExecutorOverloadError>(outcomes[4].error));
  CHECK(executor.metrics().pending + executor.metrics().running == 4);
  CHECK(adds_up(executor));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("a task that waits for its instance can be cancelled, times out, and ends with its executor", "[instances]") {
  asio::io_context context;
  auto group = std::make_shared<InstanceGroup>();
  ThreadExecutorOptions options = threads(2);
  options.instances = group;
  auto executor = std::make_unique<ThreadExecutor>(context.get_executor(), options);
  const auto alone = [] { return TaskOptions().name("alone").max_instances(1, OverloadPolicy::wait); };
  board.gate.reset();
  Outcome<> holder;
  executor->async_submit(alone(), bulkhead::call(wait_at_gate, 0), holder.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  asio::cancellation_signal signal;
  Outcome<> cancelled;
  Outcome<> late;
  Outcome<> left;
  executor->async_submit(alone(), bulkhead::call(twice, 1),
                         asio::bind_cancellation_slot(signal.slot(), cancelled.handler()));
  executor->async_submit(alone().queue_timeout(1ms), bulkhead::call(twice, 1), late.handler());
  executor->async_submit(alone(), bulkhead::call(twice, 1), left.handler());
  CHECK(group->waiting() == 3);
  signal.emit(asio::cancellation_type::total);
  REQUIRE(run_until(context, [&] { return cancelled.calls + late.calls == 2; }));
  CHECK(holds<TaskCancelledError>(cancelled.error));
  CHECK(holds<TaskTimeoutError>(late.error));
  CHECK(group->waiting() == 1);
  executor.reset();
  REQUIRE(run_until(context, [&] { return left.calls + holder.calls == 2; }));
  CHECK(holds<TaskCancelledError>(left.error));
  CHECK(group->waiting() == 0);
  board.gate.open = 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Events.

namespace {

struct Heard {
  std::vector<Event> events;
  bulkhead::Listener listener() {
    return [this](const Event& event) { events.push_back(event); };
  }
  std::vector<EventKind> kinds() const {
    std::vector<EventKind> all;
    for (const Event& event : events) all.push_back(event.kind);
    return all;
  }
  std::size_t count(EventKind kind) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const Event& event) { return event.kind == kind; }));
  }
};

}  // namespace

TEST_CASE("events tell the whole way of a task that is retried in a worker process", "[events]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Heard heard;
  const Subscription subscription = pool.subscribe(heard.listener(), bulkhead::kTaskEvents);
  CHECK(holds<bulkhead::RetryError>(
      failure(context, pool.submit(TaskOptions().name("doomed").retry(RetryPolicy(2)), fail, 1))));
  REQUIRE(run_until(context, [&] { return heard.count(EventKind::failed) == 1; }));
  using Kinds = std::vector<EventKind>;
  CHECK(heard.kinds() ==
        Kinds{EventKind::submitted, EventKind::started, EventKind::retried, EventKind::started, EventKind::failed});
  CHECK(heard.events[1].attempt == 1);
  CHECK(heard.events[3].attempt == 2);
  CHECK(holds<std::out_of_range>(heard.events[2].error));
  CHECK(holds<bulkhead::RetryError>(heard.events[4].error));
  for (const Event& event : heard.events) {
    CHECK(event.task == "doomed");
    CHECK(event.executor == "default");
    CHECK(event.task_id == 1);
  }
}

TEST_CASE("events of a spawned task have the id that its handle has", "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  Heard heard;
  const Subscription subscription = executor.subscribe(heard.listener(), bulkhead::kTerminalEvents);
  const auto handle = executor.spawn(twice, 1);
  run(context, executor.submit(twice, 1));
  REQUIRE(run_until(context, [&] { return heard.events.size() == 2; }));
  const bool first = heard.events[0].spawned == handle.id();
  CHECK(heard.events[first ? 0 : 1].spawned == handle.id());
  CHECK(heard.events[first ? 0 : 1].task_id == handle.info().number);
  CHECK(heard.events[first ? 1 : 0].spawned.empty());
}

TEST_CASE("an executor to which nobody listens any more makes no events", "[events]") {
  asio::io_context context;
  bulkhead::detail::EventHub hub;
  bulkhead::Listener nothing = [](const Event&) {};
  const auto failures =
      std::make_shared<bulkhead::detail::EventQueue>(nothing, EventKind::failed, context.get_executor(), 10);
  auto all = std::make_shared<bulkhead::detail::EventQueue>(nothing, bulkhead::kAllEvents, context.get_executor(), 10);
  hub.add(failures);
  hub.add(all);
  CHECK(hub.wants(EventKind::started));
  all->cancel();
  bulkhead::detail::EventNote note;
  note.event.kind = EventKind::started;
  hub.emit(note);
  CHECK_FALSE(hub.wants(EventKind::started));
  CHECK(hub.wants(EventKind::failed));
}

TEST_CASE("a long task in a worker process is told of as started while it runs, and its progress too", "[events]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Heard heard;
  const Subscription subscription = pool.subscribe(heard.listener());
  board.gate.reset();
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(
                        +[](int value) {
                          bulkhead::this_task::report_progress(1, 2, "half");
                          board.gate.wait();
                          return value;
                        },
                        3),
                    outcome.handler());
  REQUIRE(run_until(context, [&] { return heard.count(EventKind::progress) == 1; }));
  CHECK(heard.count(EventKind::started) == 1);
  CHECK(outcome.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return heard.count(EventKind::succeeded) == 1; }));
  const Event& end = heard.events.back();
  CHECK(end.run_time > 0ns);
  CHECK(end.queue_wait >= 0ns);
}

TEST_CASE("workers are told of when they come and go, with how they went", "[events]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Heard heard;
  const Subscription subscription = pool.subscribe(heard.listener(), bulkhead::kWorkerEvents);
  CHECK(holds<bulkhead::WorkerCrashedError>(failure(context, pool.submit(die, SIGABRT))));
  REQUIRE(run_until(context, [&] { return heard.count(EventKind::worker_exited) >= 1; }));
  const auto gone = std::find_if(heard.events.begin(), heard.events.end(),
                                 [](const Event& event) { return event.kind == EventKind::worker_exited; });
  CHECK(gone->worker_signal == SIGABRT);
  CHECK(gone->worker.value_or(0) > 0);
  REQUIRE(run_until(context, [&] { return heard.count(EventKind::worker_started) >= 1; }));
}

TEST_CASE("a listener that throws, and one that ends its own subscription, harm nobody", "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  Heard heard;
  const Subscription throwing = executor.subscribe([](const Event&) { throw std::runtime_error("I am no listener"); });
  Subscription once;
  int calls = 0;
  once = executor.subscribe([&](const Event&) {
    ++calls;
    once.cancel();
  });
  const Subscription plain = executor.subscribe(heard.listener(), bulkhead::kTerminalEvents);
  for (int i = 0; i < 3; ++i) run(context, executor.submit(twice, i));
  REQUIRE(run_until(context, [&] { return heard.events.size() == 3 && throwing.failures() >= 9; }));
  CHECK(calls == 1);
  CHECK_FALSE(once.active());
  CHECK_THROWS_WITH(std::rethrow_exception(throwing.last_failure()), "I am no listener");
}

TEST_CASE("a listener that is too slow loses events, is told so, and holds nothing up", "[events]") {
  asio::io_context context;
  asio::io_context slow;
  ThreadExecutor executor(context.get_executor());
  Heard heard;
  bulkhead::SubscribeOptions options;
  options.executor = slow.get_executor();
  options.queue_size = 4;
  const Subscription subscription = executor.subscribe(heard.listener(), bulkhead::kTerminalEvents, options);
  for (int i = 0; i < 10; ++i) run(context, executor.submit(twice, i));
  CHECK(subscription.lost() == 6);
  settle(slow);
  CHECK(heard.events.size() == 4);
  run(context, executor.submit(twice, 1));
  settle(slow);
  REQUIRE(heard.events.size() == 5);
  CHECK(heard.events.back().lost == 6);
}

TEST_CASE("events without a listener, or of a subscription that is gone, cost and do nothing", "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  Heard heard;
  {
    const Subscription subscription = executor.subscribe(heard.listener());
    run(context, executor.submit(twice, 1));
    REQUIRE(run_until(context, [&] { return heard.count(EventKind::succeeded) == 1; }));
  }
  const auto before = heard.events.size();
  run(context, executor.submit(twice, 1));
  settle(context);
  CHECK(heard.events.size() == before);
  CHECK_THROWS_AS(executor.subscribe(nullptr), std::invalid_argument);
  CHECK_THROWS_AS(executor.subscribe(heard.listener(), bulkhead::EventMask()), std::invalid_argument);
  bulkhead::SubscribeOptions none;
  none.queue_size = 0;
  CHECK_THROWS_AS(executor.subscribe(heard.listener(), bulkhead::kAllEvents, none), std::invalid_argument);
}

TEST_CASE("a subscription may outlive its executor and its event loop", "[events]") {
  Heard heard;
  Subscription subscription;
  {
    asio::io_context context;
    ThreadExecutor executor(context.get_executor());
    subscription = executor.subscribe(heard.listener());
    run(context, executor.submit(twice, 1));
  }
  subscription.cancel();
  CHECK_FALSE(subscription.active());
}

// ---------------------------------------------------------------------------------------------------------------------
// Timed runs.

TEST_CASE("a task runs at a time of either clock, and at once if that is past", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit_at(std::chrono::steady_clock::now() + 2ms, twice, 1).result()) == 2);
  CHECK(run(context, executor.submit_at(std::chrono::system_clock::now() + 2ms, twice, 2).result()) == 4);
  CHECK(run(context, executor.submit_at(std::chrono::steady_clock::time_point(), twice, 3).result()) == 6);
  const std::chrono::sys_days long_ago = std::chrono::year(1000) / 1 / 1;
  CHECK(run(context, executor.submit_at(long_ago, twice, 5).result()) == 10);
  CHECK(run(context, executor.submit_after(-1s, TaskOptions().name("late"), twice, 4).result()) == 8);
}

TEST_CASE("a task whose time has not come does not begin after the executor's shutdown", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto handle = executor.submit_after(std::chrono::nanoseconds::max(), twice, 1);
  auto schedule = executor.submit_every(1h, twice, 1);
  CHECK(schedule.active());
  CHECK(schedule.next() > std::chrono::steady_clock::now());
  CHECK(executor.metrics().scheduled == 2);
  const auto cancelled = executor.submit_after(1h, twice, 1);
  auto other = executor.submit_every(1h, TaskOptions().priority(1), twice, 1);
  CHECK(executor.metrics().scheduled == 4);
  cancelled.cancel();
  other.cancel();
  CHECK(executor.metrics().scheduled == 2);
  run(context, executor.shutdown());
  CHECK(executor.metrics().scheduled == 0);
  CHECK(holds<TaskCancelledError>(failure(context, handle.result())));
  CHECK_FALSE(schedule.active());
  CHECK_FALSE(schedule.next());
  CHECK_THROWS_AS(executor.submit_every(1s, twice, 1), ExecutorNotRunningError);
  const auto refused = executor.submit_after(1ms, twice, 1);
  CHECK(holds<ExecutorNotRunningError>(failure(context, refused.result())));
  // Nothing keeps the event loop at work.
  context.restart();
  context.run();
}

TEST_CASE("a repeated task runs until it is cancelled, and tells what its runs failed with", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  std::vector<std::string> errors;
  ScheduleOptions options;
  options.on_error = [&](const std::exception_ptr& error) { errors.push_back(bulkhead::test::message(error)); };
  auto schedule = executor.submit_every(1ms, options, fail, 1);
  REQUIRE(run_until(context, [&] { return errors.size() >= 3; }));
  schedule.cancel();
  CHECK_FALSE(schedule.active());
  CHECK(errors.front() == "nothing there");
  CHECK(schedule.failures() >= 3);
  CHECK(holds<std::out_of_range>(schedule.last_error()));
  run(context, executor.shutdown());
  CHECK(adds_up(executor));
}

TEST_CASE("a repeated task does not overlap itself, and what that makes late is missed", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(4));
  board.gate.reset();
  auto schedule = executor.submit_every(1ms, wait_at_gate, 1);
  REQUIRE(run_until(context, [&] { return schedule.missed() >= 5 && board.gate.waiting > 0; }));
  CHECK(schedule.runs() == 1);
  CHECK(board.gate.waiting == 1);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return schedule.runs() >= 3; }));
  schedule.cancel();
  run(context, executor.shutdown());
}

// A function whose copies fail when they are told to.
struct Uncopied {
  explicit Uncopied(std::atomic<bool>& to_fail) : fails(&to_fail) {}
  Uncopied(const Uncopied& other) : fails(other.fails) {
    if (*fails) throw std::bad_alloc();
  }
  Uncopied& operator=(const Uncopied&) = delete;
  int operator()() const { return 1; }
  std::atomic<bool>* fails;
};

TEST_CASE("a run whose function cannot be copied has failed, and the next runs go on", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  std::atomic<bool> fails{false};
  auto schedule = executor.submit_every(1ms, Uncopied(fails));
  REQUIRE(run_until(context, [&] { return schedule.runs() >= 2; }));
  fails = true;
  REQUIRE(run_until(context, [&] { return schedule.failures() >= 2; }));
  CHECK(holds<std::bad_alloc>(schedule.last_error()));
  fails = false;
  const auto runs = executor.metrics().completed;
  REQUIRE(run_until(context, [&] { return executor.metrics().completed > runs; }));
  schedule.cancel();
}

TEST_CASE("what on_error throws leaves the event loop, and the schedule goes on", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  ScheduleOptions options;
  int thrown = 0;
  options.on_error = [](const std::exception_ptr&) { throw std::domain_error("not handled"); };
  auto schedule = executor.submit_every(1ms, options, fail, 1);
  const auto end = std::chrono::steady_clock::now() + bulkhead::test::kDeadline;
  while (thrown < 3 && std::chrono::steady_clock::now() < end) {
    try {
      context.restart();
      context.run_for(1ms);
    } catch (const std::domain_error&) {
      ++thrown;
    }
  }
  CHECK(thrown == 3);
  CHECK(schedule.active());
  schedule.cancel();
}

TEST_CASE("schedules with options out of range are refused", "[schedule]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  CHECK_THROWS_WITH(executor.submit_every(0ns, twice, 1), ContainsSubstring("period"));
  ScheduleOptions options;
  options.first = -1ns;
  CHECK_THROWS_WITH(executor.submit_every(1s, options, twice, 1), ContainsSubstring("'first'"));
  options.first.reset();
  options.grace = 0ns;
  CHECK_THROWS_WITH(executor.submit_every(1s, options, twice, 1), ContainsSubstring("'grace'"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Groups.

namespace {

asio::awaitable<int> wait_for_ever(int& cancelled) {
  asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::steady_clock::time_point::max());
  try {
    co_await timer.async_wait(asio::use_awaitable);
  } catch (const boost::system::system_error&) {
    ++cancelled;
    throw;
  }
  co_return 1;
}

}  // namespace

TEST_CASE("when_all gives all results in the order of the arguments, whatever executors they come from", "[groups]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  LocalExecutor pool(context.get_executor(), workers(1));
  auto both = bulkhead::when_all(executor.submit(greet, "you", 1), pool.submit(twice, 4), executor.spawn([] {}),
                                 executor.spawn(twice, 1));
  const auto [text, doubled, nothing, spawned] = run(context, std::move(both));
  CHECK(text == "hello you;");
  CHECK(doubled == 8);
  CHECK(spawned == 2);
  static_assert(std::is_same_v<decltype(nothing), const std::monostate>);
  std::vector<asio::awaitable<int>> many;
  for (int i = 0; i < 50; ++i) many.push_back(executor.submit(twice, i));
  const auto results = run(context, bulkhead::when_all(std::move(many)));
  REQUIRE(results.size() == 50);
  for (int i = 0; i < 50; ++i) CHECK(results[static_cast<std::size_t>(i)] == 2 * i);
  CHECK(run(context, bulkhead::when_all(std::vector<TaskHandle<int>>())).empty());
}

TEST_CASE("the first error of a group is thrown when all are over, and cancels the rest if that is asked for",
          "[groups]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  int cancelled = 0;
  auto group = bulkhead::when_all(OnError::cancel_rest, wait_for_ever(cancelled), executor.submit(fail, 1));
  CHECK(holds<std::out_of_range>(failure(context, std::move(group))));
  CHECK(cancelled == 1);
  board.gate.reset();
  const auto slow = executor.spawn(wait_at_gate, 1);
  const auto failing = executor.spawn(fail, 1);
  bool over = false;
  asio::co_spawn(context, bulkhead::when_all(slow, failing),
                 [&](std::exception_ptr, std::tuple<int, int>) { over = true; });
  REQUIRE(run_until(context, [&] { return failing.status() == TaskStatus::failed; }));
  settle(context);
  CHECK_FALSE(over);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return over; }));
}

TEST_CASE("cancelling the wait for a group cancels its members, handles too", "[groups]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto handle = executor.spawn([] {
    bulkhead::test::poll_until([] { return bulkhead::this_task::stop_requested(); }, 60s);
    bulkhead::this_task::throw_if_stop_requested();
    return 1;
  });
  int cancelled = 0;
  asio::cancellation_signal signal;
  bool over = false;
  asio::co_spawn(
      asio::make_strand(context), bulkhead::when_all(handle, wait_for_ever(cancelled)),
      asio::bind_cancellation_slot(signal.slot(), [&](std::exception_ptr, std::tuple<int, int>) { over = true; }));
  REQUIRE(run_until(context, [&] { return handle.status() == TaskStatus::running; }));
  settle(context);
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return over; }));
  CHECK(cancelled == 1);
  CHECK(handle.status() == TaskStatus::cancelled);
}

TEST_CASE("as_completed gives tasks in the order in which they end", "[groups]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  board.gate.reset();
  std::vector<TaskHandle<int>> handles;
  handles.push_back(executor.spawn(wait_at_gate, 1));
  handles.push_back(executor.spawn(fail, 1));
  auto done = bulkhead::as_completed(context.get_executor(), handles);
  CHECK(done.left() == 2);
  auto first = run(context, done.next());
  REQUIRE(first);
  CHECK(first->index == 1);
  CHECK(holds<std::out_of_range>(first->error));
  CHECK_THROWS_AS(first->get(), std::out_of_range);
  board.gate.open = 1;
  auto second = run(context, done.next());
  REQUIRE(second);
  CHECK(second->index == 0);
  CHECK(second->get() == 1);
  CHECK_FALSE(run(context, done.next()));
}

TEST_CASE("destroying the event loop while a group is awaited leaves nothing behind", "[groups]") {
  int cancelled = 0;
  {
    asio::io_context context;
    asio::co_spawn(context, bulkhead::when_all(wait_for_ever(cancelled), wait_for_ever(cancelled)),
                   [](std::exception_ptr, std::tuple<int, int>) {});
    std::vector<asio::awaitable<int>> endless;
    endless.push_back(wait_for_ever(cancelled));
    auto done = bulkhead::as_completed(context.get_executor(), std::move(endless));
    asio::co_spawn(context, done.next(), [](std::exception_ptr, auto) {});
    settle(context);
  }
  CHECK(cancelled == 0);  // LeakSanitizer tells the rest
}
