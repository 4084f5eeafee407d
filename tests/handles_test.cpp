// SPDX-License-Identifier: BSL-1.0
// Handles of tasks that are spawned, and their results.
// Numbers such as A1 and F1 are of defects that executors before this family had; see seed_defects_test.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"
#include "support/told.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_future.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <exception>
#include <future>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace asio = boost::asio;
using bulkhead::CommonOptions;
using bulkhead::Event;
using bulkhead::EventKind;
using bulkhead::OverloadPolicy;
using bulkhead::ResultNotFoundError;
using bulkhead::ResultStore;
using bulkhead::ResultStoreOptions;
using bulkhead::RetryPolicy;
using bulkhead::SerializationError;
using bulkhead::ShutdownOptions;
using bulkhead::TaskCancelledError;
using bulkhead::TaskHandle;
using bulkhead::TaskId;
using bulkhead::TaskOptions;
using bulkhead::TaskSignatureError;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::cancelled_stage;
using bulkhead::test::count;
using bulkhead::test::echo;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::kLongBeforeTheGate;
using bulkhead::test::let_go;
using bulkhead::test::limited;
using bulkhead::test::make;
using bulkhead::test::message;
using bulkhead::test::named;
using bulkhead::test::Outcome;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::stubborn;
using bulkhead::test::threads;
using bulkhead::test::Told;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using namespace std::chrono_literals;

TEST_CASE("A spawned task is queued, then running, then succeeded, and its result stays", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto first = executor->spawn(wait_at_gate, 1);
  const auto second = executor->spawn(TaskOptions().name("second"), wait_at_gate, 2);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(first.status() == TaskStatus::running);
  CHECK(second.status() == TaskStatus::queued);
  CHECK(executor->status(second.id()) == TaskStatus::queued);
  CHECK(second.name() == "second");
  CHECK_FALSE(executor->get_result<int>(second.id()));
  board.gate.open = 1;
  CHECK(run(context, first.result()) == 1);
  CHECK(run(context, second.result()) == 2);
  CHECK(first.status() == TaskStatus::succeeded);
  CHECK(executor->status(second.id()) == TaskStatus::succeeded);
  // Once more, and from the store.
  CHECK(run(context, second.result()) == 2);
  CHECK(executor->get_result<int>(second.id()) == 2);
  CHECK(run(context, executor->wait_for_result<int>(first.id())) == 1);
}

TEST_CASE("Each status has a name, and four of them are ends", "[handle]") {
  std::string names;
  int ends = 0;
  for (const auto status : {TaskStatus::queued, TaskStatus::running, TaskStatus::retrying, TaskStatus::succeeded,
                            TaskStatus::failed, TaskStatus::cancelled, TaskStatus::timed_out}) {
    names += fmt::format("{}, ", to_string(status));
    if (is_over(status)) ++ends;
  }
  CHECK(names == "queued, running, retrying, succeeded, failed, cancelled, timed out, ");
  CHECK(ends == 4);
}

TEST_CASE("A spawned task that throws has failed, and gives its error to everyone who waits", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  const auto handle = executor->spawn(refuse, 7);
  std::array<Outcome<>, 3> waiters;
  for (auto& waiter : waiters) asio::co_spawn(context, handle.result(), waiter.handler());
  REQUIRE(run_until(context, [&] { return all_over(waiters); }));
  for (const auto& waiter : waiters) {
    CHECK(holds<std::runtime_error>(waiter.error));
    CHECK(message(waiter.error) == "refused 7");
  }
  CHECK(handle.status() == TaskStatus::failed);
  CHECK_THROWS_AS(executor->get_result<int>(handle.id()), std::runtime_error);
}

TEST_CASE("A wait for a result ends at its limit, and the task goes on", "[handle]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  const auto handle = executor.spawn(wait_at_gate, 5);
  const auto early = error_as<TaskTimeoutError>(failure(context, handle.result(1ms)));
  REQUIRE(early);
  CHECK(early->which() == TaskTimeoutError::Which::wait);
  const auto late = error_as<TaskTimeoutError>(failure(context, executor.wait_for_result<int>(handle.id(), 1ms)));
  REQUIRE(late);
  CHECK(late->which() == TaskTimeoutError::Which::wait);
  CHECK_FALSE(is_over(handle.status()));
  board.gate.open = 1;
  CHECK(run(context, handle.result(kDeadline)) == 5);
}

TEST_CASE("An id that belongs to no task has neither a status nor a result", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  const TaskId unknown = TaskId::make();
  CHECK_FALSE(executor.status(unknown));
  CHECK_THROWS_AS(executor.get_result<int>(unknown), ResultNotFoundError);
  CHECK_THROWS_AS(run(context, executor.wait_for_result<int>(unknown)), ResultNotFoundError);
}

TEST_CASE("A store counts and clears the tasks that are over, and keeps those that run", "[handle]") {
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.results = std::make_shared<ResultStore>();
  const auto executor = make("thread", context, 2, options);
  const auto held = executor->spawn(wait_at_gate, 1);
  std::vector<TaskHandle<int>> handles;
  for (int i = 0; i < 5; ++i) handles.push_back(executor->spawn(i % 2 == 0 ? twice : refuse, i));
  REQUIRE(run_until(context, [&] {
    return std::all_of(handles.begin(), handles.end(), [](const auto& handle) { return is_over(handle.status()); });
  }));
  REQUIRE(run_until(context, [&] { return options.results->size() == 5; }));
  CHECK(options.results->unfinished() == 1);
  CHECK(options.results->remove(handles[0].id()));
  CHECK_FALSE(options.results->remove(handles[0].id()));
  CHECK_FALSE(options.results->remove(held.id()));
  CHECK(options.results->clear() == 4);
  CHECK(options.results->size() == 0);
  CHECK(options.results->unfinished() == 1);
  CHECK_THROWS_AS(executor->get_result<int>(handles[2].id()), ResultNotFoundError);
  // A handle has its task's result all the same.
  CHECK(run(context, handles[2].result()) == 4);
  board.gate.open = 1;
  CHECK(run(context, held.result()) == 1);
}

TEST_CASE("A task that has not begun is cancelled for sure, and one that is over is not", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto over = executor->spawn(twice, 1);
  CHECK(run(context, over.result()) == 2);
  const auto held = executor->spawn(wait_at_gate, 1);
  const auto queued = executor->spawn(count, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  over.cancel();
  queued.cancel();
  CHECK(cancelled_stage(failure(context, queued.result())) == TaskCancelledError::Stage::queued);
  CHECK(queued.status() == TaskStatus::cancelled);
  CHECK(over.status() == TaskStatus::succeeded);
  CHECK(run(context, over.result()) == 2);
  board.gate.open = 1;
  CHECK(run(context, held.result()) == 1);
  run(context, executor->shutdown());
  CHECK(board.begun == 0);
}

TEST_CASE("Every task has an id of its own that text carries, so that none takes the place of another", "[handle]") {
  asio::io_context context;
  CommonOptions options = limited(10'000);
  options.results = std::make_shared<ResultStore>();
  const auto one = make("thread", context, 2, options);
  const auto other = make("thread", context, 2, options);
  std::set<TaskId> ids;
  for (int i = 0; i < 200; ++i) {
    ids.insert(one->spawn(TaskOptions().name("the same"), twice, i).id());
    ids.insert(other->spawn(TaskOptions().name("the same"), twice, i).id());
  }
  CHECK(ids.size() == 400);
  for (const TaskId& id : ids) CHECK(TaskId::parse(id.to_string()) == id);
  // Of a shared store each finds the other's.
  const auto handle = one->spawn(twice, 4);
  CHECK(run(context, other->wait_for_result<int>(handle.id())) == 8);
}

TEST_CASE("A result is there for those who wait before it, after it, and many at once", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto handle = executor->spawn(wait_at_gate, 6);
  std::array<Outcome<>, 20> before;
  for (auto& waiter : before) {
    asio::co_spawn(context, executor->wait_for_result<int>(handle.id()), waiter.handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  for (const auto& waiter : before) CHECK(waiter.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(before); }));
  for (const auto& waiter : before) CHECK(waiter.value == 6);
  CHECK(run(context, executor->wait_for_result<int>(handle.id(), 1ns)) == 6);
  CHECK_THROWS_AS(executor->get_result<double>(handle.id()), TaskSignatureError);
}

TEST_CASE("F5: a result that cannot be kept fails its task, and the worker goes on", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  for (int i = 0; i < 5; ++i) {
    const auto handle = executor->spawn(stubborn, false);
    CHECK(holds<SerializationError>(failure(context, handle.result())));
    CHECK(handle.status() == TaskStatus::failed);
    CHECK(run(context, executor->spawn(twice, i).result()) == 2 * i);
  }
  CHECK(board.begun == 5);
  // Broken code around the task stops nobody either.
  const auto listener = executor->subscribe([](const Event&) { throw std::runtime_error("broken"); });
  const auto picky = TaskOptions().retry(
      RetryPolicy(3).when([](const std::exception_ptr&) -> bool { throw std::logic_error("a broken predicate"); }));
  CHECK(failure(context, executor->submit(picky, refuse, 1)));
  CHECK(run(context, executor->submit(twice, 5)) == 10);
  CHECK(executor->metrics().running == 0);
  run(context, executor->shutdown());
}

TEST_CASE("F10: no handle says queued, running or retrying once its executor is down or gone", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  const bool shut_down = GENERATE(true, false);
  CAPTURE(type, shut_down);
  reset_board();
  asio::io_context context;
  auto executor = make(type, context, 1, limited(4, OverloadPolicy::wait));
  Told told(*executor);
  std::vector<TaskHandle<int>> handles;
  handles.push_back(executor->spawn(TaskOptions().retry(RetryPolicy(2).delay(1h)), refuse, 1));
  REQUIRE(run_until(context, [&] { return handles[0].status() == TaskStatus::retrying; }));
  handles.push_back(executor->spawn(TaskOptions().name("one").max_instances(1), wait_at_gate, 1));
  handles.push_back(executor->spawn(TaskOptions().name("one").max_instances(1, OverloadPolicy::wait), count, 1));
  handles.push_back(executor->spawn(count, 2));
  handles.push_back(executor->spawn(count, 3));  // beyond max_pending
  handles.push_back(executor->submit_after(1h, count, 4));
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && executor->metrics().waiting == 1; }));
  for (const auto& handle : handles) CHECK_FALSE(is_over(handle.status()));
  Outcome<void> shutdown;
  if (shut_down) {
    ShutdownOptions options;
    options.cancel_pending = true;
    options.timeout = 1ms;
    asio::co_spawn(context, executor->shutdown(options), shutdown.handler());
  } else {
    executor.reset();
  }
  const auto all = [&] {
    return std::all_of(handles.begin(), handles.end(), [](const auto& handle) { return is_over(handle.status()); });
  };
  REQUIRE(run_until(context, all, kLongBeforeTheGate));
  for (const auto& handle : handles) CHECK(failure(context, handle.result()));
  // Each that was accepted has one end; one was refused, and one was never submitted.
  REQUIRE(run_until(context, [&] { return told.ends() == 4 && told.count(EventKind::rejected) == 1; }));
  CHECK(told.count(EventKind::submitted) == 4);
  CHECK(board.begun == 0);
  let_go(type);
  if (shut_down) REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
}

TEST_CASE("F13: whoever waits for a result gets it, however close its end and the wait are", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  constexpr int kTasks = 500;
  asio::thread_pool context(2);
  int wrong = 0;
  {
    const auto executor = make(type, context.get_executor(), 2, limited(kTasks));
    std::vector<std::future<int>> waits;
    for (int i = 0; i < kTasks; ++i) {
      const auto handle = executor->spawn(twice, i);
      waits.push_back(asio::co_spawn(context, handle.result(), asio::use_future));
      waits.push_back(asio::co_spawn(context, executor->wait_for_result<int>(handle.id()), asio::use_future));
    }
    for (std::size_t i = 0; i < waits.size(); ++i) {
      const bool ready = waits[i].wait_for(kDeadline) == std::future_status::ready;
      if (!ready || waits[i].get() != 2 * static_cast<int>(i / 2)) ++wrong;
    }
    CHECK(wrong == 0);
  }
  context.join();
}

TEST_CASE("F14: what is known of a task is known in all of its states", "[handle][events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 1, named("archive"));
  Told told(*executor);
  const auto held = executor->spawn(wait_at_gate, 1);
  const auto handle = executor->spawn(TaskOptions().name("the job"), wait_at_gate, 2);
  const TaskId id = handle.id();
  const auto known = [&] { return handle.id() == id && handle.name() == "the job"; };
  CHECK(handle.status() == TaskStatus::queued);
  CHECK(known());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  board.gate.open = 1;
  CHECK(run(context, handle.result()) == 2);
  CHECK(handle.status() == TaskStatus::succeeded);
  CHECK(known());
  REQUIRE(run_until(context, [&] { return told.ends() == 2; }));
  const auto events = told.of("the job");
  REQUIRE(events.size() == 3);
  for (const Event& event : events) {
    CHECK(event.task_id == events[0].task_id);
    CHECK(event.executor == "archive");
    CHECK(event.attempt == 1);
    CHECK(event.time.time_since_epoch().count() > 0);
  }
  REQUIRE(events.back().queue_wait);
  REQUIRE(events.back().run_time);
  CHECK(events.back().queue_wait->count() > 0);
  CHECK(events.back().run_time->count() > 0);
}

TEST_CASE("F15: results are bounded by number, size and age, and one that is gone is an error at once", "[handle]") {
  asio::io_context context;
  CommonOptions options = limited(5000);
  const auto fill = [&](ResultStoreOptions limits) {
    options.results = std::make_shared<ResultStore>(limits);
    const auto executor = make("thread", context, 2, options);
    std::vector<TaskHandle<std::string>> handles;
    for (int i = 0; i < 2000; ++i) handles.push_back(executor->spawn(echo<std::string>, std::string(100, 'r')));
    run(context, executor->shutdown());
    const auto over = [](const auto& handle) { return is_over(handle.status()); };
    REQUIRE(run_until(context, [&] {
      return options.results->unfinished() == 0 && std::all_of(handles.begin(), handles.end(), over);
    }));
    const auto is_kept = [&](const auto& handle) { return executor->status(handle.id()).has_value(); };
    const auto kept = std::count_if(handles.begin(), handles.end(), is_kept);
    CHECK(static_cast<std::size_t>(kept) == options.results->size());
    const auto gone = std::find_if_not(handles.begin(), handles.end(), is_kept);
    REQUIRE(gone != handles.end());
    CHECK_THROWS_AS(run(context, executor->wait_for_result<std::string>(gone->id())), ResultNotFoundError);
    CHECK_THROWS_AS(executor->get_result<std::string>(gone->id()), ResultNotFoundError);
  };
  ResultStoreOptions few;
  few.max_results = 10;
  fill(few);
  CHECK(options.results->size() == 10);
  ResultStoreOptions little;
  little.max_bytes = 4000;
  fill(little);
  CHECK(options.results->size() < 40);
  CHECK(options.results->bytes() <= 4000);
  ResultStoreOptions young;
  young.time_to_live = 1ns;
  fill(young);
  CHECK(options.results->size() == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Ids of the caller's own.

TEST_CASE("A UUID's text names a task, and nothing else does", "[handles]") {
  const TaskId id(0x0123456789abcdefU, 0xfedcba9876543210U);
  CHECK(TaskId::parse("0123456789abcdeffedcba9876543210") == id);
  CHECK(TaskId::parse("01234567-89ab-cdef-fedc-ba9876543210") == id);
  CHECK(TaskId::parse("01234567-89AB-CDEF-FEDC-BA9876543210") == id);
  for (const char* text : {"", "0123456789abcdeffedcba987654321", "0123456789abcdeffedcba987654321g",
                           "0123456-789ab-cdef-fedc-ba9876543210", "01234567-89ab-cdef-fedc-ba987654321",
                           "01234567089ab0cdef0fedc0ba9876543210", "0123456789abcdeffedcba98765432100000"}) {
    INFO(text);
    CHECK_THROWS_AS(TaskId::parse(text), std::invalid_argument);
  }
}

TEST_CASE("A task is cancelled by its id, from anywhere", "[handles]") {
  const std::string type = GENERATE("local", "bypass", "thread", "io", "hybrid");
  INFO(type);
  asio::io_context context;
  const auto executor = make(type, context);
  const auto id = executor->submit_after(std::chrono::hours(1), twice, 1).id();
  CHECK(executor->cancel(id));
  CHECK(executor->status(id) == TaskStatus::cancelled);
  CHECK_FALSE(executor->cancel(id));
  CHECK_FALSE(executor->cancel(TaskId::make()));
}

TEST_CASE("An id or metadata is refused where nobody could find the task again", "[handles]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const auto with_id = [] { return TaskOptions().id(TaskId(1, 2)); };
  const auto with_metadata = [] { return TaskOptions().metadata("for nobody"); };
  CHECK_THROWS_AS(run(context, executor.submit(with_id(), twice, 1)), std::invalid_argument);
  CHECK_THROWS_AS(run(context, executor.submit(with_metadata(), twice, 1)), std::invalid_argument);
  CHECK_THROWS_AS(executor.submit_every(std::chrono::hours(1), with_id(), twice, 1), std::invalid_argument);
  CHECK(executor.metrics().submitted == 0);
}

TEST_CASE("The id of a task that was refused is free for another attempt", "[handles]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("thread", context, 1, limited(1));
  const auto running = executor->spawn(wait_at_gate, 1);
  const TaskId id(3, 4);
  const auto refused = executor->spawn(TaskOptions().id(id), twice, 1);
  CHECK(holds<bulkhead::ExecutorOverloadError>(failure(context, refused.result(kDeadline))));
  let_go("thread");
  CHECK(run(context, running.result(kDeadline)) == 1);
  const auto again = executor->spawn(TaskOptions().id(id), twice, 2);
  CHECK(run(context, again.result(kDeadline)) == 4);
  CHECK_THROWS_AS(executor->spawn(TaskOptions().id(id), twice, 3), bulkhead::DuplicateTaskError);
}

TEST_CASE("A store counts what metadata and errors say", "[handles]") {
  asio::io_context context;
  CommonOptions options;
  options.results = std::make_shared<ResultStore>(
      ResultStoreOptions{.max_results = 1000, .max_bytes = 100'000, .time_to_live = std::chrono::hours(1)});
  const auto executor = make("thread", context, 1, options);
  for (int i = 0; i < 30; ++i) {
    const auto large = executor->spawn(TaskOptions().metadata(std::string(10'000, 'm')), twice, i);
    CHECK(run(context, large.result(kDeadline)) == 2 * i);
    const auto failing = executor->spawn(
        +[](int) -> int { throw std::runtime_error(std::string(10'000, 'e')); }, i);
    CHECK(holds<std::runtime_error>(failure(context, failing.result(kDeadline))));
    CHECK(options.results->bytes() <= 100'000);
    CHECK(options.results->size() <= 10);
  }
}

namespace {

// Whose move throws from a certain time on.
struct Unmovable {
  int moves_left;
  explicit Unmovable(int moves) : moves_left(moves) {}
  Unmovable(const Unmovable& other) : Unmovable(other.moves_left) { count_down(); }
  Unmovable(Unmovable&& other) : Unmovable(other.moves_left) { count_down(); }
  void count_down() {
    if (--moves_left < 0) throw std::runtime_error("it cannot be moved");
  }
  int operator()() const { return 1; }
};

}  // namespace

TEST_CASE("A delayed task whose function cannot be moved has an end all the same", "[handles]") {
  asio::io_context context;
  CommonOptions options;
  options.results = std::make_shared<ResultStore>();
  const auto executor = make("thread", context, 1, options);
  int begun = 0;
  int thrown = 0;
  for (int moves = 0; moves < 12; ++moves) {
    try {
      const auto handle = executor->submit_after(std::chrono::milliseconds(1), Unmovable(moves));
      ++begun;
      const auto error = failure(context, handle.result(kDeadline));
      CHECK((!error || message(error) == "it cannot be moved"));
    } catch (const std::runtime_error&) {
      ++thrown;
    }
    CHECK(options.results->unfinished() == 0);
  }
  CHECK(begun > 0);
  CHECK(thrown > 0);
}

namespace {

// As of a type that is not to be made without an argument, and has to be all the same.
struct NoDefault {
  NoDefault() { throw std::logic_error("there is no default"); }
  explicit NoDefault(int number) : value(number) {}
  int value = 0;
};

NoDefault refuse_with_no_default(int value) {
  refuse(value);
  return NoDefault(value);
}
NoDefault make_no_default(int value) { return NoDefault(value); }

// Since co_spawn makes a default, too.
asio::awaitable<std::string> told(asio::awaitable<NoDefault> task) {
  try {
    const NoDefault result = co_await std::move(task);
    co_return std::to_string(result.value);
  } catch (const std::exception& error) {
    co_return error.what();
  }
}

}  // namespace

template <>
struct bulkhead::codec<NoDefault> {
  static void encode(Encoder& encoder, const NoDefault& value) { bulkhead::encode(encoder, value.value); }
  static NoDefault decode(Decoder& decoder) { return NoDefault(bulkhead::decode<int>(decoder)); }
};

TEST_CASE("A failure is told though a result of the function's type cannot be made beside it", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  CHECK(run(context, told(executor->submit(refuse_with_no_default, 3))) == "refused 3");
  CHECK(run(context, told(executor->spawn(refuse_with_no_default, 4).result())) == "refused 4");
  const std::vector<int> five{5};
  CHECK(message(failure(context, executor->map(refuse_with_no_default, five))) == "refused 5");
  CHECK(run(context, told(executor->submit(make_no_default, 6))) == "6");
  CHECK(run(context, told(executor->spawn(make_no_default, 7).result())) == "7");
}

TEST_CASE("What is asked of a handle of no task is an error that says so", "[handle]") {
  const TaskHandle<int> none;
  CHECK(none.empty());
  CHECK_THROWS_AS(none.id(), std::logic_error);
  CHECK_THROWS_AS(none.status(), std::logic_error);
  CHECK_THROWS_AS(none.cancel(), std::logic_error);
  CHECK_THROWS_AS(none.result(), std::logic_error);
}

TEST_CASE("A result that is larger than the whole store is not kept, and costs no other", "[handle]") {
  asio::io_context context;
  ResultStoreOptions limits;
  limits.max_bytes = 1000;
  CommonOptions options;
  options.results = std::make_shared<ResultStore>(limits);
  const auto executor = make("thread", context, 1, options);
  const auto small = executor->spawn(echo<std::string>, std::string(100, 'x'));
  CHECK(run(context, small.result()).size() == 100);
  const auto large = executor->spawn(echo<std::string>, std::string(2000, 'x'));
  CHECK(run(context, large.result()).size() == 2000);
  CHECK(executor->get_result<std::string>(small.id()).value().size() == 100);
  CHECK_THROWS_AS(executor->get_result<std::string>(large.id()), ResultNotFoundError);
}

TEST_CASE("A hybrid's handle tells at once that its task runs in a process, and how far it is", "[handle]") {
  reset_board();
  asio::io_context context;
  bulkhead::HybridExecutor hybrid(context.get_executor(), {make("local", context)});
  const auto handle = hybrid.spawn(
      [](int value) {
        bulkhead::this_task::report_progress(3, 7, "under way");
        return wait_at_gate(value);
      },
      1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(handle.status() == TaskStatus::running);
  const auto progress = handle.info().progress;
  REQUIRE(progress);
  CHECK(progress->done == 3);
  CHECK(progress->text == "under way");
  board.gate.open = 1;
  CHECK(run(context, handle.result()) == 1);
}
