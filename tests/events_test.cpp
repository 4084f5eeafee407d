// SPDX-License-Identifier: BSL-1.0
// What listeners and callers are told of tasks: events and errors.
// Numbers such as A1 and F1 are of defects that executors before this family had; see seed_defects_test.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/tasks.hpp"
#include "support/told.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/system/system_error.hpp>

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::call;
using bulkhead::Event;
using bulkhead::EventKind;
using bulkhead::FunctionUnavailableError;
using bulkhead::IoExecutor;
using bulkhead::kTaskEvents;
using bulkhead::LocalExecutor;
using bulkhead::RemoteTaskError;
using bulkhead::RetryError;
using bulkhead::RetryPolicy;
using bulkhead::SerializationError;
using bulkhead::SubscribeOptions;
using bulkhead::Subscription;
using bulkhead::TaskOptions;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::WorkerCrashedError;
using bulkhead::test::board;
using bulkhead::test::count;
using bulkhead::test::die;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::HandleError;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::leave;
using bulkhead::test::limited;
using bulkhead::test::make;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::pause_for;
using bulkhead::test::poll_until;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::stubborn;
using bulkhead::test::Stubborn;
using bulkhead::test::take;
using bulkhead::test::threads;
using bulkhead::test::throw_handle;
using bulkhead::test::Told;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

int throw_number(int value) { throw value; }
int throw_nested(int value) {
  try {
    throw std::out_of_range("the inner cause");
  } catch (...) {
    std::throw_with_nested(HandleError(fmt::format("the handle of {} is lost", value)));
  }
}
asio::awaitable<int> refuse_later(int value) {
  co_await pause_for(1us);
  co_return refuse(value);
}

}  // namespace

TEST_CASE("A task that returns, throws or is too late is told of as that, with what belongs to it", "[asyncz]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  Told told(*executor);
  const auto good = executor->spawn(TaskOptions().name("good"), twice, 4);
  const auto bad = executor->spawn(TaskOptions().name("bad"), refuse, 5);
  CHECK(run(context, good.result()) == 8);
  CHECK(message(failure(context, bad.result())) == "refused 5");
  const auto held = executor->spawn(wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const auto late = executor->spawn(TaskOptions().name("late").queue_timeout(1ms), count, 6);
  CHECK(holds<TaskTimeoutError>(failure(context, late.result())));
  REQUIRE(run_until(context, [&] { return told.ends() == 3; }));
  board.gate.open = 1;
  CHECK(run(context, held.result()) == 1);
  CHECK(board.begun == 0);

  CHECK(told.story("good") == "submitted started succeeded");
  CHECK(told.story("bad") == "submitted started failed");
  CHECK(told.story("late") == "submitted timed out");
  CHECK(message(told.of("bad").back().error) == "refused 5");
  const auto error = error_as<TaskTimeoutError>(told.of("late").back().error);
  REQUIRE(error);
  CHECK(error->which() == TaskTimeoutError::Which::queue);
  CHECK(good.status() == TaskStatus::succeeded);
  CHECK(bad.status() == TaskStatus::failed);
  CHECK(late.status() == TaskStatus::timed_out);
}

TEST_CASE("A listener gets what its mask says until it ends its subscription, and one that throws stops no other",
          "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  Told all(executor);
  Told ends(executor, EventKind::failed | EventKind::succeeded);
  int thrown = 0;
  const auto throws = executor.subscribe([&](const Event&) {
    ++thrown;
    throw std::runtime_error("the listener is broken");
  });
  int once = 0;
  Subscription self;
  self = executor.subscribe([&](const Event&) {
    ++once;
    self.cancel();
  });
  CHECK(run(context, executor.submit(TaskOptions().name("good"), twice, 1)) == 2);
  CHECK(failure(context, executor.submit(TaskOptions().name("bad"), refuse, 1)));
  REQUIRE(run_until(context, [&] { return all.ends() == 2 && ends.ends() == 2 && throws.failures() >= 6; }));
  CHECK(all.story("good") == "submitted started succeeded");
  CHECK(ends.story("good") == "succeeded");
  CHECK(ends.story("bad") == "failed");
  CHECK(static_cast<std::uint64_t>(thrown) == throws.failures());
  CHECK(message(throws.last_failure()) == "the listener is broken");
  CHECK(once == 1);
  CHECK_FALSE(self.active());
  CHECK_THROWS_AS(executor.subscribe(nullptr), std::invalid_argument);
}

TEST_CASE("Who subscribes later hears of what comes later, and an executor without listeners tells nobody",
          "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  CHECK(run(context, executor.submit(TaskOptions().name("unheard"), twice, 1)) == 2);
  std::optional<Told> first(std::in_place, executor);
  CHECK(run(context, executor.submit(TaskOptions().name("one"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return first->ends() == 1; }));
  Told second(executor);
  CHECK(run(context, executor.submit(TaskOptions().name("two"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return first->ends() == 2 && second.ends() == 1; }));
  CHECK(first->story("unheard") == "");
  CHECK(first->story("one") == second.story("two"));
  CHECK(second.story("one") == "");
  first.reset();
  CHECK(run(context, executor.submit(TaskOptions().name("three"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return second.ends() == 2; }));
}

TEST_CASE("A1: a crash, an exit, and values that cannot be carried each end in one event, which has the error",
          "[local][events]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Told told(pool);
  CHECK(failure(context, pool.submit(TaskOptions().name("crash"), die, SIGKILL)));
  CHECK(failure(context, pool.submit(TaskOptions().name("exit"), leave, 3)));
  Stubborn never;
  never.encodable = false;
  CHECK(failure(context, pool.submit(TaskOptions().name("argument"), take, never)));
  CHECK(failure(context, pool.submit(TaskOptions().name("result"), stubborn, false)));
  int (*const nothing)(int) = nullptr;
  CHECK(failure(context, pool.submit(TaskOptions().name("function"), nothing, 1)));
  CHECK(run(context, pool.submit(TaskOptions().name("good"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return told.ends() == 6; }));
  CHECK(told.story("crash") == "submitted started failed");
  CHECK(told.story("exit") == "submitted started failed");
  CHECK(told.story("argument") == "submitted failed");
  CHECK(told.story("result") == "submitted started failed");
  CHECK(told.story("function") == "submitted failed");
  CHECK(told.story("good") == "submitted started succeeded");
  CHECK(holds<WorkerCrashedError>(told.of("crash").back().error));
  CHECK(holds<WorkerCrashedError>(told.of("exit").back().error));
  CHECK(holds<SerializationError>(told.of("argument").back().error));
  CHECK(holds<SerializationError>(told.of("result").back().error));
  CHECK(holds<FunctionUnavailableError>(told.of("function").back().error));
  CHECK(pool.metrics().failed == 5);
}

TEST_CASE("A12: each task's events come in order, however short the tasks are", "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  constexpr int kTasks = 1000;
  asio::io_context context;
  const auto executor = make(type, context, 3, limited(kTasks));
  Told told(*executor);
  for (int i = 0; i < kTasks; ++i) executor->spawn(TaskOptions().name(fmt::format("task {}", i)), twice, i);
  REQUIRE(run_until(context, [&] { return told.ends() == kTasks; }));
  std::map<std::uint64_t, std::string> stories;
  for (const Event& event : told.events()) {
    stories[event.task_id] += fmt::format("{} ", to_string(event.kind));
    CHECK(event.lost == 0);
  }
  CHECK(stories.size() == kTasks);
  for (const auto& [task, story] : stories) CHECK(story == "submitted started succeeded ");
}

TEST_CASE("A14: a listener runs where it was asked to, and one that never runs costs the tasks nothing", "[events]") {
  asio::io_context context;
  asio::io_context elsewhere;
  const auto executor = make("thread", context, 2);
  SubscribeOptions options;
  options.executor = elsewhere.get_executor();
  options.queue_size = 10;
  std::vector<std::thread::id> heard_on;
  const auto subscription =
      executor->subscribe([&](const Event&) { heard_on.push_back(std::this_thread::get_id()); }, kTaskEvents, options);
  for (int i = 0; i < 100; ++i) CHECK(run(context, executor->submit(twice, i)) == 2 * i);
  run(context, executor->shutdown());
  // Nobody has heard anything, and the queue is bounded.
  CHECK(heard_on.empty());
  CHECK(subscription.lost() == 290);
  std::thread::id listening;
  std::thread listener([&] {
    listening = std::this_thread::get_id();
    elsewhere.run_for(kDeadline);
  });
  listener.join();
  CHECK(heard_on == std::vector<std::thread::id>(10, listening));
}

TEST_CASE("A17: whatever a task throws, and if it exits, it is told of as failed, with its error", "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  Told told(*executor);
  const auto number = failure(context, executor->submit(TaskOptions().name("number"), throw_number, 5));
  CHECK(number);
  CHECK(
      failure(context, executor->submit(
                           TaskOptions().name("stop"),
                           [](int) -> int { throw boost::system::system_error(asio::error::operation_aborted); }, 1)));
  std::size_t ends = 2;
  if (type == "local") {
    CHECK(holds<WorkerCrashedError>(failure(context, executor->submit(TaskOptions().name("exit"), leave, 0))));
    ++ends;
  }
  if (type == "io") {
    CHECK(message(failure(context, executor->submit(TaskOptions().name("coroutine"), refuse_later, 1))) == "refused 1");
    ++ends;
  }
  REQUIRE(run_until(context, [&] { return told.ends() == ends; }));
  CHECK(told.count(EventKind::failed) == ends);
  CHECK(told.story("number") == "submitted started failed");
  CHECK(told.story("stop") == "submitted started failed");
  for (const Event& event : told.events()) CHECK(static_cast<bool>(event.error) == (event.kind == EventKind::failed));
  CHECK(executor->metrics().failed == ends);
  if (type == "local") CHECK(told.story("exit") == "submitted started failed");
  if (type == "local" || type == "bypass") {
    const auto remote = error_as<RemoteTaskError>(number);
    REQUIRE(remote);
    CHECK(remote->type_name() == "int");
  } else {
    CHECK(error_as<int>(number) == 5);
  }
}

TEST_CASE("A17: the error of a failed task keeps nothing that the task had", "[thread][io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  const auto sync = [](std::shared_ptr<std::string> held) -> int { throw std::runtime_error("without " + *held); };
  const auto async = [](std::shared_ptr<std::string> held) -> asio::awaitable<int> {
    co_await pause_for(1us);
    throw std::runtime_error("without " + *held);
  };
  for (const bool coroutine : {false, true}) {
    CAPTURE(coroutine);
    auto object = std::make_shared<std::string>("the object");
    const std::weak_ptr<std::string> watched = object;
    Outcome<> outcome;
    if (coroutine) {
      executor.async_submit(call(async, std::move(object)), outcome.handler());
    } else {
      executor.async_submit(call(sync, std::move(object)), outcome.handler());
    }
    REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
    CHECK(message(outcome.error) == "without the object");
    CHECK(run_until(context, [&] { return watched.expired(); }));
  }
}

TEST_CASE("F19: errors have their type and what they carry, their causes, and of a crash the signal and the way there",
          "[errors]") {
  asio::io_context context;
  for (const char* type : {"thread", "io", "hybrid", "inline"}) {
    CAPTURE(type);
    const auto executor = make(type, context);
    const auto error = error_as<HandleError>(failure(context, executor->submit(throw_handle, 4)));
    REQUIRE(error);
    CHECK(error->handle() == 3);
  }
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto nested = error_as<RemoteTaskError>(failure(context, pool.submit(throw_nested, 4)));
  REQUIRE(nested);
  CHECK_THAT(nested->type_name(), ContainsSubstring("HandleError"));
  CHECK(nested->remote_what() == "the handle of 4 is lost");
  REQUIRE(nested->causes().size() == 1);
  CHECK(nested->causes()[0].type == "std::out_of_range");
  CHECK(nested->causes()[0].what == "the inner cause");
  const auto crash = error_as<WorkerCrashedError>(failure(context, pool.submit(die, SIGABRT)));
  REQUIRE(crash);
  CHECK(crash->signal() == SIGABRT);
#if !WITH_SANITIZER
  CHECK_FALSE(crash->ending().backtrace.empty());
#endif
}

TEST_CASE("F19: what a function on a thread throws keeps its type when it may be run again, too", "[errors]") {
  const auto type = GENERATE(as<std::string>{}, "thread", "io", "hybrid", "inline");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  bool asked_about_itself = false;
  const auto policy = RetryPolicy(2).when([&](const std::exception_ptr& error) {
    asked_about_itself = holds<HandleError>(error);
    return true;
  });
  const auto thrown = failure(context, executor->submit(TaskOptions().retry(policy), throw_handle, 4));
  CHECK(asked_about_itself);
  const auto error = error_as<RetryError>(thrown);
  REQUIRE(error);
  CHECK(error->attempts().size() == 2);
  INFO(message(error->last()));
  CHECK(holds<HandleError>(error->last()));
}

TEST_CASE("F21: a listener that hangs holds up no task and no other listener, and hears of its executor only",
          "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  asio::thread_pool elsewhere(1);
  {
    const auto executor = make(type, context, 2);
    const auto other = make("thread", context, 1);
    SubscribeOptions options;
    options.executor = elsewhere.get_executor();
    std::atomic<int> heard{0};
    const auto slow = executor->subscribe(
        [&](const Event&) {
          ++heard;
          board.gate.wait();
        },
        kTaskEvents, options);
    Told quick(*executor);
    Told of_other(*other);
    for (int i = 0; i < 50; ++i) CHECK(run(context, executor->submit(TaskOptions().name("a"), twice, i)) == 2 * i);
    CHECK(run(context, other->submit(TaskOptions().name("b"), twice, 1)) == 2);
    REQUIRE(run_until(context, [&] { return quick.ends() == 50 && of_other.ends() == 1 && heard == 1; }));
    run(context, executor->shutdown());
    CHECK(heard == 1);
    CHECK(of_other.story("a") == "");
    CHECK(quick.story("b") == "");
    board.gate.open = 1;
    CHECK(poll_until([&] { return heard == 150; }, kDeadline));
  }
  elsewhere.join();
}
