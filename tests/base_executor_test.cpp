// SPDX-License-Identifier: BSL-1.0
// Executors as a user would write them, and what BaseExecutor does for each of them.
#include <bulkhead/base_executor.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/run.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::CommonOptions;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOverloadError;
using bulkhead::Metrics;
using bulkhead::OverloadPolicy;
using bulkhead::SerializationError;
using bulkhead::ShutdownOptions;
using bulkhead::Task;
using bulkhead::TaskAbandonedError;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::test::adds_up;
using bulkhead::test::cancelled_stage;
using bulkhead::test::error_as;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::ThreadedExecutor;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;
using namespace std::chrono_literals;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Executors.

CommonOptions limits(std::size_t max_pending, OverloadPolicy overload) {
  CommonOptions options;
  options.name = "custom";
  options.max_pending = max_pending;
  options.overload = overload;
  return options;
}

// Runs each task at once, on the thread that submits it.
class InlineExecutor final : public BaseExecutor {
 public:
  explicit InlineExecutor(asio::any_io_executor io, CommonOptions options = {})
      : BaseExecutor(std::move(io), std::move(options)) {}
  ~InlineExecutor() override { close(); }

 protected:
  void execute(Task task) override { task.run(); }
};

// Keeps tasks until the test does something with them.
class KeepingExecutor final : public BaseExecutor {
 public:
  explicit KeepingExecutor(asio::any_io_executor io, CommonOptions options = {})
      : BaseExecutor(std::move(io), std::move(options)) {}
  ~KeepingExecutor() override { close(); }

  Task take(std::size_t index = 0) {
    Task task = std::move(kept[index]);
    kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(index));
    return task;
  }
  void run_next() { take().run(); }

  std::deque<Task> kept;

 protected:
  void execute(Task task) override { kept.push_back(std::move(task)); }
};

// Sends tasks through bytes and back, as one does that has other processes.
class EncodingExecutor final : public BaseExecutor {
 public:
  explicit EncodingExecutor(asio::any_io_executor io, CommonOptions options = {})
      : BaseExecutor(std::move(io), std::move(options)) {}
  ~EncodingExecutor() override { close(); }

  std::function<void(std::vector<std::byte>&)> tamper = [](std::vector<std::byte>&) {};

 protected:
  void execute(Task task) override {
    std::vector<std::byte> answer;
    try {
      std::vector<std::byte> request(task.encode({}));
      task.encode(request);
      answer = bulkhead::run_encoded_task(request);
    } catch (...) {
      task.fail(std::current_exception());
      return;
    }
    tamper(answer);
    task.complete(answer);
  }
};

// Cannot even take a task.
class ThrowingExecutor final : public BaseExecutor {
 public:
  explicit ThrowingExecutor(asio::any_io_executor io) : BaseExecutor(std::move(io), CommonOptions()) {}
  ~ThrowingExecutor() override { close(); }

  bool gives_away = false;
  std::vector<Task> given_away;

 protected:
  void execute(Task task) override {
    if (gives_away) given_away.push_back(std::move(task));
    throw std::length_error("the lift is full");
  }
};

// Forgets its tasks.
class DroppingExecutor final : public BaseExecutor {
 public:
  explicit DroppingExecutor(asio::any_io_executor io, CommonOptions options = {})
      : BaseExecutor(std::move(io), std::move(options)) {}
  ~DroppingExecutor() override { close(); }

 protected:
  void execute(Task) override {}
};

// Holds something that must be ended, which may go wrong.
class StoppingExecutor final : public BaseExecutor {
 public:
  explicit StoppingExecutor(asio::any_io_executor io) : BaseExecutor(std::move(io), CommonOptions()) {}
  ~StoppingExecutor() override { close(); }

  int stops = 0;
  bool fails = false;

 protected:
  void execute(Task task) override { task.run(); }
  asio::awaitable<void> stop(ShutdownOptions options) override {
    ++stops;
    if (fails) throw std::runtime_error("the connection could not be closed");
    co_await BaseExecutor::stop(options);
  }
};

class Incomplete : public BaseExecutor {};

// ---------------------------------------------------------------------------------------------------------------------
// What is submitted.

int twice(int value) { return 2 * value; }
int refuse(int value) { throw std::invalid_argument(fmt::format("refused {}", value)); }
std::unique_ptr<int> boxed(int value) { return std::make_unique<int>(value); }
std::string joined(const std::string& left, const std::string& right) { return left + right; }

struct NoDefault {
  explicit NoDefault(int number) : value(number) {}
  int value;
};
NoDefault without_default(int value) {
  if (value < 0) throw std::invalid_argument("negative");
  return NoDefault(value);
}

struct MoveOnlyAdder {
  explicit MoveOnlyAdder(int value) : summand(std::make_unique<int>(value)) {}
  int operator()(std::unique_ptr<int> other) { return *summand + *other; }
  std::unique_ptr<int> summand;
};

// A door that tasks on another thread wait at.
class Gate {
 public:
  void pass() {
    begun_.store(true);
    opened_.wait_for(kDeadline);
  }
  bool begun() const { return begun_; }
  void open() {
    if (!open_.exchange(true)) promise_.set_value();
  }
  ~Gate() { open(); }

 private:
  std::atomic<bool> begun_{false};
  std::atomic<bool> open_{false};
  std::promise<void> promise_;
  std::shared_future<void> opened_ = promise_.get_future().share();
};

// ---------------------------------------------------------------------------------------------------------------------
// What became of it.

template <class Executor>
void submit_named(Executor& executor, const std::string& name, Outcome<int>& outcome) {
  executor.async_submit(TaskOptions().name(name), bulkhead::call(twice, 1), outcome.handler());
}

// A shutdown that somebody waits for.
struct Ending {
  bool over = false;
  std::exception_ptr error;

  Ending(asio::io_context& context, BaseExecutor& executor, ShutdownOptions options = {}) {
    asio::co_spawn(context, executor.shutdown(options), [this](std::exception_ptr thrown) {
      over = true;
      error = std::move(thrown);
    });
  }
};

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// What an executor is.

TEST_CASE("An executor without `execute` cannot be made, and none can be copied", "[base]") {
  STATIC_REQUIRE(std::is_abstract_v<BaseExecutor>);
  STATIC_REQUIRE(std::is_abstract_v<Incomplete>);
  STATIC_REQUIRE_FALSE(std::is_abstract_v<InlineExecutor>);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<InlineExecutor>);
  STATIC_REQUIRE_FALSE(std::is_copy_assignable_v<InlineExecutor>);
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<Task>);
  STATIC_REQUIRE(std::is_nothrow_move_constructible_v<Task>);
  STATIC_REQUIRE(std::has_virtual_destructor_v<BaseExecutor>);
}

TEST_CASE("An executor knows its name and Asio's executor, and begins with zeros", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor(), limits(7, OverloadPolicy::wait));
  CHECK(executor.name() == "custom");
  CHECK(executor.get_executor() == context.get_executor());
  const Metrics m = executor.metrics();
  CHECK(m.name == "custom");
  CHECK(m.mode == "custom");
  CHECK(m.max_pending == 7);
  CHECK(m.workers + m.pending + m.running + m.waiting == 0);
  CHECK(m.submitted + m.completed + m.failed + m.rejected + m.cancelled + m.timed_out + m.runs == 0);
  CHECK(m.average_run_time == 0ns);
  CHECK(m.average_queue_wait == 0ns);
}

TEST_CASE("Options that make no sense are refused with the option's name and range", "[base]") {
  asio::io_context context;
  const auto refused = [&](const CommonOptions& options) -> std::string {
    try {
      InlineExecutor executor(context.get_executor(), options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  CommonOptions options;
  options.max_pending = 0;
  CHECK_THAT(refused(options), ContainsSubstring("'max_pending'") && ContainsSubstring("1 to 1000000000, not 0"));
  options.max_pending = static_cast<std::size_t>(-1);
  CHECK_THAT(refused(options), ContainsSubstring("'max_pending'") && ContainsSubstring("18446744073709551615"));
  options.max_pending = 1'000'000'001;
  CHECK_THAT(refused(options), ContainsSubstring("'max_pending'"));
  options.max_pending = 1'000'000'000;
  CHECK(refused(options) == "");
  options = {};
  options.name = "";
  CHECK_THAT(refused(options), ContainsSubstring("'name'") && ContainsSubstring("1 to 200"));
  options.name = std::string(201, 'n');
  CHECK_THAT(refused(options), ContainsSubstring("'name'") && ContainsSubstring("201"));
  for (const char control : {'\0', '\n', '\x7f'}) {
    options.name = std::string("a") + control + "b";
    CHECK_THAT(refused(options), ContainsSubstring("'name'") && ContainsSubstring("control characters"));
  }
  options.name = std::string(200, 'n');
  CHECK(refused(options) == "");
  options.overload = static_cast<OverloadPolicy>(7);
  CHECK_THAT(refused(options), ContainsSubstring("'overload'"));
}

TEST_CASE("A shutdown with a negative timeout is refused, and the executor goes on", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor(), {});
  ShutdownOptions options;
  options.timeout = -1s;
  CHECK_THROWS_AS(run(context, executor.shutdown(options)), std::invalid_argument);
  CHECK(run(context, executor.submit([] { return 1; })) == 1);
}

TEST_CASE("Task options that make no sense are refused with the option's name", "[base]") {
  const auto refused = [](const auto& setter) -> std::string {
    try {
      setter();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  CHECK_THAT(refused([] { TaskOptions().name(""); }), ContainsSubstring("name") && ContainsSubstring("1 to 200"));
  CHECK_THAT(refused([] { TaskOptions().name(std::string(201, 'n')); }), ContainsSubstring("name"));
  CHECK_THAT(refused([] { TaskOptions().timeout(0ns); }), ContainsSubstring("TaskOptions::timeout"));
  CHECK_THAT(refused([] { TaskOptions().timeout(-1s); }), ContainsSubstring("TaskOptions::timeout"));
  CHECK_THAT(refused([] { TaskOptions().queue_timeout(0ns); }), ContainsSubstring("TaskOptions::queue_timeout"));
  // What 400 years of hours become on their way to nanoseconds.
  CHECK_THAT(refused([] { TaskOptions().timeout(std::chrono::nanoseconds(-5'832'344'073'709'551'616)); }),
             ContainsSubstring("292 years"));
  const TaskOptions options = TaskOptions().name("thumbnail").priority(-3).timeout(2s).queue_timeout(1ms);
  CHECK(options.name() == "thumbnail");
  CHECK(options.priority() == -3);
  CHECK(options.timeout() == 2s);
  CHECK(options.queue_timeout() == 1ms);
}

// ---------------------------------------------------------------------------------------------------------------------
// Submit.

TEST_CASE("A ten-line executor that runs tasks inline gives results and exceptions", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit(twice, 21)) == 42);
  CHECK(run(context, executor.submit(joined, "bulk", std::string("head"))) == "bulkhead");
  bool called = false;
  run(context, executor.submit([&called] { called = true; }));
  CHECK(called);
  CHECK_THROWS_WITH(run(context, executor.submit(refuse, 3)), "refused 3");
  CHECK_THROWS_AS(run(context, executor.submit(refuse, 3)), std::invalid_argument);
  CHECK_THROWS_AS(run(context, executor.submit([]() -> int { throw 5; })), int);
  const Metrics m = executor.metrics();
  CHECK(m.submitted == 6);
  CHECK(m.completed == 3);
  CHECK(m.failed == 3);
  CHECK(m.runs == 6);
  CHECK(adds_up(m));
}

TEST_CASE("Tasks run on the executor's own thread, and results come back on the event loop's", "[base]") {
  asio::io_context context;
  ThreadedExecutor executor(context.get_executor());
  const auto here = std::this_thread::get_id();
  CHECK(run(context, executor.submit([] { return std::this_thread::get_id(); })) != here);
  std::thread::id handler_thread;
  executor.async_submit(bulkhead::call(twice, 1),
                        [&](std::exception_ptr, int) { handler_thread = std::this_thread::get_id(); });
  REQUIRE(run_until(context, [&] { return handler_thread != std::thread::id(); }));
  CHECK(handler_thread == here);
}

TEST_CASE("submit is lazy: nothing happens until it is awaited, and not after the executor is gone", "[base]") {
  asio::io_context context;
  std::optional<InlineExecutor> executor(std::in_place, context.get_executor());
  int calls = 0;
  const auto count = [&calls] { return ++calls; };
  auto first = executor->submit(count);
  auto second = executor->submit(count);
  settle(context);
  CHECK(calls == 0);
  CHECK(executor->metrics().submitted == 0);
  CHECK(run(context, std::move(first)) == 1);
  executor.reset();
  CHECK_THROWS_AS(run(context, std::move(second)), ExecutorNotRunningError);
  CHECK(calls == 1);
}

TEST_CASE("No executor completes a task inside the initiating function", "[base]") {
  asio::io_context context;
  const auto check = [&](auto& executor, bool succeeds) {
    Outcome<int> outcome;
    executor.async_submit(bulkhead::call(twice, 21), outcome.handler());
    CHECK(outcome.calls == 0);
    settle(context);
    CHECK(outcome.calls == 1);
    CHECK(!outcome.error == succeeds);
    // And not inside one that is called by a handler of the event loop, either.
    Outcome<int> inner;
    int calls_inside = -1;
    asio::post(context, [&] {
      executor.async_submit(bulkhead::call(twice, 21), inner.handler());
      calls_inside = inner.calls;
    });
    settle(context);
    CHECK(calls_inside == 0);
    CHECK(inner.calls == 1);
    CHECK(adds_up(executor));
  };
  InlineExecutor runs(context.get_executor());
  check(runs, true);
  EncodingExecutor encodes(context.get_executor());
  check(encodes, true);
  DroppingExecutor drops(context.get_executor());
  check(drops, false);
  ThrowingExecutor throws(context.get_executor());
  check(throws, false);
  InlineExecutor down(context.get_executor());
  run(context, down.shutdown());
  check(down, false);
}

TEST_CASE("A refused submit does not complete inside the initiating function either", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::reject));
  Outcome<int> kept;
  Outcome<int> refused;
  executor.async_submit(bulkhead::call(twice, 1), kept.handler());
  executor.async_submit(bulkhead::call(twice, 2), refused.handler());
  CHECK(refused.calls == 0);
  settle(context);
  CHECK(refused.calls == 1);
  executor.run_next();
}

TEST_CASE("Tasks that an inline executor is given by another's completion run after it, in order", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  const auto chain = [&]() -> asio::awaitable<int> {
    int sum = 0;
    for (int i = 0; i < 1000; ++i) sum += co_await executor.submit(twice, i);
    co_return sum;
  };
  CHECK(run(context, chain()) == 999'000);
  CHECK(executor.metrics().completed == 1000);
}

TEST_CASE("A task may submit another one from inside its run", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  Outcome<int> inner;
  Outcome<int> outer;
  int inner_calls_in_task = -1;
  executor.async_submit(bulkhead::call([&] {
                          executor.async_submit(bulkhead::call(twice, 4), inner.handler());
                          inner_calls_in_task = inner.calls;
                          return 1;
                        }),
                        outer.handler());
  settle(context);
  CHECK(inner_calls_in_task == 0);
  CHECK(inner.value == 8);
  CHECK(outer.value == 1);
  CHECK(adds_up(executor));
}

TEST_CASE("Callables, arguments and results that can only be moved are moved", "[base]") {
  asio::io_context context;
  ThreadedExecutor executor(context.get_executor());
  const std::unique_ptr<int> result = run(context, executor.submit(boxed, 5));
  REQUIRE(result);
  CHECK(*result == 5);
  CHECK(run(context, executor.submit(MoveOnlyAdder(30), std::make_unique<int>(12))) == 42);
  auto captured = std::make_unique<int>(7);
  auto lambda = [captured = std::move(captured)] { return *captured; };
  CHECK(run(context, executor.submit(std::move(lambda))) == 7);
  Outcome<std::unique_ptr<int>> outcome;
  executor.async_submit(bulkhead::call(boxed, 9), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  REQUIRE(outcome.value);
  CHECK(**outcome.value == 9);
}

TEST_CASE("A result without default constructor comes as itself from submit, and as optional otherwise", "[base]") {
  STATIC_REQUIRE_FALSE(std::is_default_constructible_v<NoDefault>);
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  const auto awaits = [&](int value) -> asio::awaitable<int> {
    const NoDefault result = co_await executor.submit(without_default, value);
    co_return result.value;
  };
  CHECK(run(context, awaits(5)) == 5);
  CHECK_THROWS_WITH(run(context, awaits(-1)), "negative");

  Outcome<std::optional<NoDefault>> good;
  Outcome<std::optional<NoDefault>> bad;
  executor.async_submit(bulkhead::call(without_default, 6), good.handler());
  executor.async_submit(bulkhead::call(without_default, -1), bad.handler());
  settle(context);
  REQUIRE(good.value);
  REQUIRE(good.value->has_value());
  CHECK((*good.value)->value == 6);
  REQUIRE(bad.value);
  CHECK_FALSE(bad.value->has_value());
  CHECK(message(bad.error) == "negative");
}

TEST_CASE("A reference that a function returns arrives as a copy", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  const auto first = [](const std::vector<std::string>& words) -> const std::string& { return words.front(); };
  Outcome<std::string> outcome;
  executor.async_submit(bulkhead::call(first, std::vector<std::string>(1, std::string(100, 'w'))), outcome.handler());
  executor.run_next();
  settle(context);
  CHECK(outcome.value == std::string(100, 'w'));
}

TEST_CASE("Views and literals are kept as owners until the task runs", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  Outcome<std::size_t> outcome;
  {
    std::string text(100, 'x');
    std::vector<int> numbers(50, 1);
    executor.async_submit(
        bulkhead::call([](std::string_view seen, std::span<const int> counted,
                          const std::string& word) { return seen.size() + counted.size() + word.size(); },
                       std::string_view(text), std::span<const int>(numbers), "word"),
        outcome.handler());
    std::fill(text.begin(), text.end(), 'y');
    numbers.clear();
  }
  executor.run_next();
  settle(context);
  CHECK(outcome.value == std::size_t{154});
}

TEST_CASE("A decorated function goes through submit each time, from every copy", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  const auto wrapped = executor(twice);
  const auto copy = wrapped;
  CHECK(run(context, wrapped(4)) == 8);
  CHECK(run(context, wrapped(5)) == 10);
  CHECK(run(context, copy(6)) == 12);
  CHECK(wrapped.function()(7) == 14);
  CHECK(executor.metrics().submitted == 3);
  const auto failing = executor(refuse);
  CHECK_THROWS_WITH(run(context, failing(1)), "refused 1");
  const auto text = executor([](const std::string& a, const std::string& b) { return a + b; });
  CHECK(run(context, text("a", "b")) == "ab");
}

TEST_CASE("Tasks carry their name, options and number", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  std::array<Outcome<int>, 3> outcomes;
  executor.async_submit(TaskOptions().name("first").priority(4).timeout(3s), bulkhead::call(twice, 1),
                        outcomes[0].handler());
  executor.async_submit(bulkhead::call(twice, 1), outcomes[1].handler());
  executor.async_submit(bulkhead::call(refuse, 1), outcomes[2].handler());
  REQUIRE(executor.kept.size() == 3);
  CHECK(executor.kept[0].name() == "first");
  CHECK(executor.kept[0].options().priority() == 4);
  CHECK(executor.kept[0].options().timeout() == 3s);
  CHECK_FALSE(executor.kept[1].name().empty());
  CHECK(executor.kept[1].options().priority() == 0);
  for (std::size_t i = 0; i < 3; ++i) CHECK(executor.kept[i].id() == i + 1);
  executor.take(2).fail(std::make_exception_ptr(std::domain_error("not today")));
  executor.run_next();
  executor.run_next();
  settle(context);
  CHECK(message(outcomes[2].error) == "not today");
  CHECK(outcomes[0].value == 2);
  CHECK(outcomes[1].value == 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// Executors that send tasks elsewhere.

TEST_CASE("An executor that encodes gets results, exceptions and views back through bytes", "[base]") {
  asio::io_context context;
  EncodingExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit(twice, 21)) == 42);
  CHECK(run(context, executor.submit(joined, "a", "b")) == "ab");
  CHECK(*run(context, executor.submit(boxed, 3)) == 3);
  run(context, executor.submit([] {}));
  CHECK(run(context, executor.submit([](std::string_view text) { return text.size(); }, "four")) == 4);
  CHECK_THROWS_AS(run(context, executor.submit(refuse, 8)), std::invalid_argument);
  CHECK_THROWS_WITH(run(context, executor.submit(refuse, 8)), "refused 8");
  CHECK(executor.metrics().completed == 5);
  CHECK(executor.metrics().failed == 2);
}

TEST_CASE("What cannot be sent fails with SerializationError from encode, and the task is still there", "[base]") {
  asio::io_context context;
  EncodingExecutor executor(context.get_executor());
  const auto what_part = [&](auto task) {
    Outcome<int> outcome;
    executor.async_submit(std::move(task), outcome.handler());
    settle(context);
    REQUIRE(outcome.calls == 1);
    const auto error = error_as<SerializationError>(outcome.error);
    REQUIRE(error);
    CHECK(error->context().executor == "default");
    CHECK(error->code() == bulkhead::Errc::serialization);
  };
  int captured = 3;
  what_part(bulkhead::call([captured] { return captured; }));
  what_part(bulkhead::call([](const int* pointer) { return *pointer; }, &captured));
  what_part(bulkhead::call(std::function<int()>([] { return 1; })));

  // `encode` leaves the task as it is: it can still be run here.
  KeepingExecutor keeper(context.get_executor());
  Outcome<int> outcome;
  keeper.async_submit(bulkhead::call([captured] { return captured; }), outcome.handler());
  Task task = keeper.take();
  CHECK_THROWS_AS(task.encode({}), SerializationError);
  CHECK_THROWS_AS(task.encode({}), SerializationError);
  task.run();
  settle(context);
  CHECK(outcome.value == 3);
}

TEST_CASE("A null function is FunctionUnavailableError from encode", "[base]") {
  asio::io_context context;
  EncodingExecutor executor(context.get_executor());
  int (*const nothing)(int) = nullptr;
  CHECK_THROWS_AS(run(context, executor.submit(nothing, 1)), bulkhead::FunctionUnavailableError);
  CHECK(executor.metrics().failed == 1);
}

TEST_CASE("encode says how many bytes are needed and writes nothing beyond the buffer", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  Outcome<std::string> outcome;
  executor.async_submit(bulkhead::call(joined, std::string(300, 'a'), std::string(300, 'b')), outcome.handler());
  Task task = executor.take();
  const std::size_t needed = task.encode({});
  CHECK(needed > 600);
  constexpr auto kMark = std::byte{0x5a};
  std::vector<std::byte> buffer(needed + 64, kMark);
  CHECK(task.encode(std::span(buffer).first(100)) == needed);
  CHECK(std::all_of(buffer.begin() + 100, buffer.end(), [](std::byte b) { return b == kMark; }));
  CHECK(task.encode(std::span(buffer).first(needed)) == needed);
  CHECK(std::all_of(buffer.begin() + static_cast<std::ptrdiff_t>(needed), buffer.end(),
                    [](std::byte b) { return b == kMark; }));
  task.complete(bulkhead::run_encoded_task(std::span(buffer).first(needed)));
  settle(context);
  CHECK(outcome.value == std::string(300, 'a') + std::string(300, 'b'));
}

TEST_CASE("An answer that makes no sense fails the task with SerializationError of the result", "[base]") {
  asio::io_context context;
  EncodingExecutor executor(context.get_executor());
  const std::vector<std::function<void(std::vector<std::byte>&)>> ways{
      [](std::vector<std::byte>& answer) { answer.clear(); },
      [](std::vector<std::byte>& answer) { answer.pop_back(); },
      [](std::vector<std::byte>& answer) { answer.push_back(std::byte{0}); },
      [](std::vector<std::byte>& answer) { answer.assign(200, std::byte{0xff}); },
      [](std::vector<std::byte>& answer) { answer.front() = std::byte{1}; },
      [](std::vector<std::byte>& answer) { answer.front() = std::byte{77}; }};
  for (const auto& way : ways) {
    executor.tamper = way;
    Outcome<std::string> outcome;
    executor.async_submit(bulkhead::call(joined, "a", "b"), outcome.handler());
    settle(context);
    CAPTURE(&way - ways.data(), message(outcome.error));
    CHECK(outcome.calls == 1);
    CHECK(holds<SerializationError>(outcome.error));
  }
  CHECK(executor.metrics().failed == ways.size());
}

// ---------------------------------------------------------------------------------------------------------------------
// Executors that misbehave.

TEST_CASE("What execute throws fails the task", "[base]") {
  asio::io_context context;
  ThrowingExecutor executor(context.get_executor());
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  settle(context);
  CHECK(outcome.calls == 1);
  CHECK(holds<std::length_error>(outcome.error));
  CHECK(message(outcome.error) == "the lift is full");
  CHECK(executor.metrics().failed == 1);
  CHECK(adds_up(executor));
}

TEST_CASE("What execute throws after it gave the task away changes nothing for the task", "[base]") {
  asio::io_context context;
  ThrowingExecutor executor(context.get_executor());
  executor.gives_away = true;
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call(twice, 4), outcome.handler());
  settle(context);
  CHECK(outcome.calls == 0);
  CHECK(executor.metrics().pending == 1);
  REQUIRE(executor.given_away.size() == 1);
  executor.given_away.front().run();
  settle(context);
  CHECK(outcome.calls == 1);
  CHECK(outcome.value == 8);
}

TEST_CASE("A task that its executor drops fails with TaskAbandonedError, at once or later", "[base]") {
  asio::io_context context;
  DroppingExecutor drops(context.get_executor());
  Outcome<int> at_once;
  drops.async_submit(TaskOptions().name("forgotten"), bulkhead::call(twice, 1), at_once.handler());
  settle(context);
  const auto error = error_as<TaskAbandonedError>(at_once.error);
  REQUIRE(error);
  CHECK(error->code() == bulkhead::Errc::abandoned);
  CHECK(error->context().task == "forgotten");
  CHECK(error->context().task_id == 1);
  CHECK_THAT(error->what(), ContainsSubstring("forgotten") && ContainsSubstring("default"));

  KeepingExecutor keeps(context.get_executor(), limits(1, OverloadPolicy::reject));
  Outcome<int> later;
  keeps.async_submit(bulkhead::call(twice, 1), later.handler());
  settle(context);
  CHECK(later.calls == 0);
  keeps.kept.clear();
  settle(context);
  CHECK(holds<TaskAbandonedError>(later.error));
  CHECK(keeps.metrics().failed == 1);
  CHECK(adds_up(keeps));
  CHECK(keeps.metrics().pending == 0);
}

TEST_CASE("Assigning over a task abandons the one that was there", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  std::array<Outcome<int>, 2> outcomes;
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  Task first = executor.take();
  first = executor.take();
  first.run();
  settle(context);
  CHECK(holds<TaskAbandonedError>(outcomes[0].error));
  CHECK(outcomes[1].value == 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// Admission.

TEST_CASE("Under reject, a submit beyond max_pending fails with ExecutorOverloadError and is not counted", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(2, OverloadPolicy::reject));
  std::array<Outcome<int>, 4> outcomes;
  submit_named(executor, "a", outcomes[0]);
  submit_named(executor, "b", outcomes[1]);
  submit_named(executor, "c", outcomes[2]);
  settle(context);
  CHECK(executor.kept.size() == 2);
  CHECK(outcomes[0].calls + outcomes[1].calls == 0);
  const auto error = error_as<ExecutorOverloadError>(outcomes[2].error);
  REQUIRE(error);
  CHECK(error->limit() == 2);
  CHECK(error->code() == bulkhead::Errc::overload);
  CHECK(error->context().task == "c");
  CHECK(error->context().executor == "custom");
  Metrics m = executor.metrics();
  CHECK(m.submitted == 2);
  CHECK(m.rejected == 1);
  CHECK(m.pending == 2);
  CHECK(adds_up(m));

  executor.run_next();
  submit_named(executor, "d", outcomes[3]);
  settle(context);
  CHECK(outcomes[3].calls == 0);
  REQUIRE(executor.kept.size() == 2);
  CHECK(executor.kept[1].name() == "d");
  executor.run_next();
  executor.run_next();
  settle(context);
  CHECK(outcomes[3].value == 2);
  m = executor.metrics();
  CHECK(m.submitted == 3);
  CHECK(m.completed == 3);
  CHECK(adds_up(m));
}

TEST_CASE("Under wait, submits beyond max_pending are admitted first come, first served", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(2, OverloadPolicy::wait));
  std::array<Outcome<int>, 6> outcomes;
  for (std::size_t i = 0; i < outcomes.size(); ++i) submit_named(executor, fmt::format("{}", i), outcomes[i]);
  CHECK(executor.kept.size() == 2);
  CHECK(executor.metrics().waiting == 4);
  CHECK(executor.metrics().submitted == 2);
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    REQUIRE_FALSE(executor.kept.empty());
    CHECK(executor.kept.front().name() == fmt::format("{}", i));
    executor.run_next();
    settle(context);
    const Metrics m = executor.metrics();
    CHECK(m.waiting == (i < 4 ? 3 - i : 0));
    CHECK(m.pending <= 2);
    CHECK(adds_up(m));
    CHECK(outcomes[i].value == 2);
  }
  CHECK(executor.metrics().rejected == 0);
  CHECK(executor.metrics().completed == 6);
}

TEST_CASE("A newcomer does not overtake those who wait", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  std::array<Outcome<int>, 3> outcomes;
  submit_named(executor, "0", outcomes[0]);
  submit_named(executor, "1", outcomes[1]);
  executor.run_next();
  submit_named(executor, "2", outcomes[2]);
  REQUIRE(executor.kept.size() == 1);
  CHECK(executor.kept.front().name() == "1");
  executor.run_next();
  CHECK(executor.kept.front().name() == "2");
  executor.run_next();
  settle(context);
  for (const auto& outcome : outcomes) CHECK(outcome.calls == 1);
}

TEST_CASE("A slot that an executor frees by failing or dropping a task admits the next", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  std::array<Outcome<int>, 3> outcomes;
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  executor.take().fail(std::make_exception_ptr(std::runtime_error("no")));
  REQUIRE(executor.kept.size() == 1);
  { const Task dropped = executor.take(); }
  REQUIRE(executor.kept.size() == 1);
  executor.run_next();
  settle(context);
  CHECK(message(outcomes[0].error) == "no");
  CHECK(holds<TaskAbandonedError>(outcomes[1].error));
  CHECK(outcomes[2].value == 2);
}

TEST_CASE("A dropping executor with a waiting queue fails every task and does not recurse without end", "[base]") {
  asio::io_context context;
  KeepingExecutor keeps(context.get_executor(), limits(1, OverloadPolicy::wait));
  constexpr std::size_t kMany = 10'000;
  std::vector<Outcome<int>> outcomes(kMany);
  for (auto& outcome : outcomes) keeps.async_submit(bulkhead::call(twice, 1), outcome.handler());
  while (!keeps.kept.empty()) keeps.kept.pop_front();
  settle(context);
  CHECK(std::all_of(outcomes.begin(), outcomes.end(), [](const auto& o) { return o.calls == 1; }));
  CHECK(keeps.metrics().failed == kMany);
  CHECK(adds_up(keeps));
}

TEST_CASE("A waiter that is cancelled leaves the queue, whatever the kind of cancellation", "[base]") {
  const auto type =
      GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  std::array<Outcome<int>, 4> outcomes;
  asio::cancellation_signal signal;
  submit_named(executor, "0", outcomes[0]);
  submit_named(executor, "1", outcomes[1]);
  executor.async_submit(TaskOptions().name("2"), bulkhead::call(twice, 1),
                        asio::bind_cancellation_slot(signal.slot(), outcomes[2].handler()));
  submit_named(executor, "3", outcomes[3]);
  CHECK(executor.metrics().waiting == 3);
  signal.emit(type);
  CHECK(outcomes[2].calls == 0);
  CHECK(executor.metrics().waiting == 2);
  settle(context);
  CHECK(outcomes[2].calls == 1);
  CHECK(cancelled_stage(outcomes[2].error) == TaskCancelledError::Stage::waiting);
  const auto error = error_as<boost::system::system_error>(outcomes[2].error);
  REQUIRE(error);
  CHECK(error->code() == asio::error::operation_aborted);
  CHECK(executor.metrics().cancelled == 1);
  CHECK(adds_up(executor));
  std::string order;
  while (!executor.kept.empty()) {
    order += executor.kept.front().name();
    executor.run_next();
  }
  settle(context);
  CHECK(order == "013");
  CHECK(executor.metrics().completed == 3);
  CHECK(adds_up(executor));
}

TEST_CASE("A submit that waits for admission beyond its queue_timeout fails with ExecutorOverloadError", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  std::array<Outcome<int>, 4> outcomes;
  submit_named(executor, "holder", outcomes[0]);
  executor.async_submit(TaskOptions().name("late").queue_timeout(5ms), bulkhead::call(twice, 1), outcomes[1].handler());
  executor.async_submit(TaskOptions().name("later").queue_timeout(1ms), bulkhead::call(twice, 1),
                        outcomes[2].handler());
  executor.async_submit(TaskOptions().name("patient").queue_timeout(std::chrono::nanoseconds::max()),
                        bulkhead::call(twice, 1), outcomes[3].handler());
  REQUIRE(run_until(context, [&] { return outcomes[1].calls == 1 && outcomes[2].calls == 1; }));
  for (const std::size_t i : {1U, 2U}) {
    const auto error = error_as<ExecutorOverloadError>(outcomes[i].error);
    REQUIRE(error);
    CHECK(error->limit() == 1);
    CHECK_THAT(error->what(), ContainsSubstring("queue_timeout"));
  }
  const Metrics m = executor.metrics();
  CHECK(m.rejected == 2);
  CHECK(m.submitted == 1);
  CHECK(m.waiting == 1);
  CHECK(adds_up(m));
  executor.run_next();
  CHECK(executor.kept.front().name() == "patient");
  executor.run_next();
  settle(context);
  CHECK(outcomes[3].value == 2);
  CHECK(outcomes[1].calls + outcomes[2].calls == 2);
}

TEST_CASE("A handler of a refused submit can submit again", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::reject));
  Outcome<int> holder;
  Outcome<int> retried;
  executor.async_submit(bulkhead::call(twice, 1), holder.handler());
  executor.async_submit(bulkhead::call(twice, 2), [&](std::exception_ptr error, int) {
    if (holds<ExecutorOverloadError>(error)) {
      executor.run_next();
      executor.async_submit(bulkhead::call(twice, 2), retried.handler());
    }
  });
  settle(context);
  REQUIRE(executor.kept.size() == 1);
  executor.run_next();
  settle(context);
  CHECK(retried.value == 4);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cancellation.

TEST_CASE("A queued task that is cancelled never runs, and keeps its slot until its executor lets go", "[base]") {
  const auto type =
      GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::reject));
  asio::cancellation_signal signal;
  int calls = 0;
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call([&calls] { return ++calls; }),
                        asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  signal.emit(type);
  CHECK(outcome.calls == 0);
  settle(context);
  CHECK(outcome.calls == 1);
  CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  CHECK(executor.metrics().cancelled == 1);
  CHECK(executor.metrics().pending == 0);
  CHECK(adds_up(executor));
  Outcome<int> refused;
  submit_named(executor, "refused", refused);
  settle(context);
  CHECK(holds<ExecutorOverloadError>(refused.error));

  executor.run_next();
  CHECK(calls == 0);
  Outcome<int> accepted;
  submit_named(executor, "accepted", accepted);
  executor.run_next();
  settle(context);
  CHECK(accepted.value == 2);
  CHECK(outcome.calls == 1);
  CHECK(adds_up(executor));
}

TEST_CASE("A cancelled task may be failed, completed or dropped by its executor without a second outcome", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  std::array<asio::cancellation_signal, 3> signals;
  std::array<Outcome<int>, 3> outcomes;
  for (std::size_t i = 0; i < 3; ++i) {
    executor.async_submit(bulkhead::call(twice, 1),
                          asio::bind_cancellation_slot(signals[i].slot(), outcomes[i].handler()));
  }
  std::vector<std::byte> request(executor.kept[1].encode({}));
  executor.kept[1].encode(request);
  for (auto& signal : signals) signal.emit(asio::cancellation_type::terminal);
  executor.take().fail(std::make_exception_ptr(std::runtime_error("too late")));
  executor.take().complete(bulkhead::run_encoded_task(request));
  executor.kept.clear();
  settle(context);
  for (const auto& outcome : outcomes) {
    CHECK(outcome.calls == 1);
    CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  }
  CHECK(executor.metrics().cancelled == 3);
  CHECK(executor.metrics().failed + executor.metrics().completed == 0);
  CHECK(adds_up(executor));
}

TEST_CASE("A running task that is cancelled: the caller knows at once, the slot is taken until it ends", "[base]") {
  asio::io_context context;
  Gate gate;
  ThreadedExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  asio::cancellation_signal signal;
  Outcome<int> outcome;
  Outcome<int> next;
  executor.async_submit(bulkhead::call([&gate] {
                          gate.pass();
                          return 1;
                        }),
                        asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [&] { return gate.begun(); }));
  CHECK(executor.metrics().running == 1);
  signal.emit(asio::cancellation_type::total);
  signal.emit(asio::cancellation_type::partial);
  settle(context);
  CHECK(outcome.calls == 0);
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::running);
  CHECK(executor.metrics().cancelled == 1);
  CHECK(adds_up(executor));

  executor.async_submit(bulkhead::call(twice, 3), next.handler());
  CHECK(executor.metrics().waiting == 1);
  gate.open();
  REQUIRE(run_until(context, [&] { return next.calls == 1; }));
  CHECK(next.value == 6);
  CHECK(outcome.calls == 1);
  CHECK(adds_up(executor));
}

TEST_CASE("Cancelling after the end, and twice, changes nothing", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  asio::cancellation_signal signal;
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call(twice, 2), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  executor.run_next();
  signal.emit(asio::cancellation_type::terminal);
  signal.emit(asio::cancellation_type::terminal);
  settle(context);
  signal.emit(asio::cancellation_type::terminal);
  settle(context);
  CHECK(outcome.calls == 1);
  CHECK(outcome.value == 4);

  asio::cancellation_signal twice_signal;
  Outcome<int> cancelled;
  executor.async_submit(bulkhead::call(twice, 2),
                        asio::bind_cancellation_slot(twice_signal.slot(), cancelled.handler()));
  twice_signal.emit(asio::cancellation_type::terminal);
  twice_signal.emit(asio::cancellation_type::terminal);
  settle(context);
  CHECK(cancelled.calls == 1);
  CHECK(executor.metrics().cancelled == 1);
}

TEST_CASE("A signal may be emitted after the executor is gone", "[base]") {
  asio::io_context context;
  asio::cancellation_signal signal;
  Outcome<int> outcome;
  {
    KeepingExecutor executor(context.get_executor());
    executor.async_submit(bulkhead::call(twice, 2), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  }
  signal.emit(asio::cancellation_type::terminal);
  settle(context);
  CHECK(outcome.calls == 1);
  CHECK(outcome.error);
}

// ---------------------------------------------------------------------------------------------------------------------
// Accounting.

TEST_CASE("A task is pending, then running, then counted by its outcome", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  Metrics inside;
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call([&] {
                          inside = executor.metrics();
                          return 0;
                        }),
                        outcome.handler());
  const Metrics before = executor.metrics();
  CHECK(before.pending == 1);
  CHECK(before.running == 0);
  CHECK(adds_up(before));
  executor.run_next();
  CHECK(inside.pending == 0);
  CHECK(inside.running == 1);
  CHECK(adds_up(inside));
  const Metrics after = executor.metrics();
  CHECK(after.pending + after.running == 0);
  CHECK(after.completed == 1);
  CHECK(after.runs == 1);
  CHECK(adds_up(after));
  settle(context);
}

TEST_CASE("Run time and queue wait are counted apart, for failed runs, too", "[base]") {
  using Clock = std::chrono::steady_clock;
  struct Seen {
    Clock::time_point submitting, submitted, running, begun, ending, over;
  };
  // So that what is counted for the wrong one is seen. Nothing depends on how long it really takes.
  const auto be_busy_for = [](Clock::duration time) {
    for (const auto end = Clock::now() + time; Clock::now() < end;) {
    }
  };
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  std::array<Seen, 2> tasks;
  std::array<Outcome<int>, 2> outcomes;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].submitting = Clock::now();
    executor.async_submit(bulkhead::call([&, i] {
                            tasks[i].begun = Clock::now();
                            be_busy_for(2ms);
                            tasks[i].ending = Clock::now();
                            if (i == 1) throw std::runtime_error("no");
                            return 0;
                          }),
                          outcomes[i].handler());
    tasks[i].submitted = Clock::now();
  }
  be_busy_for(10ms);
  std::chrono::nanoseconds least_run{0}, most_run{0}, least_wait{0}, most_wait{0};
  for (Seen& task : tasks) {
    task.running = Clock::now();
    executor.run_next();
    task.over = Clock::now();
    least_run += task.ending - task.begun;
    most_run += task.over - task.running;
    least_wait += task.running - task.submitted;
    most_wait += task.begun - task.submitting;
  }
  const Metrics m = executor.metrics();
  CHECK(m.runs == 2);
  CHECK(m.total_run_time >= least_run);
  CHECK(m.total_run_time <= most_run);
  CHECK(m.total_queue_wait >= least_wait);
  CHECK(m.total_queue_wait <= most_wait);
  CHECK(m.average_run_time == m.total_run_time / 2);
  CHECK(m.average_queue_wait == m.total_queue_wait / 2);
  settle(context);
}

TEST_CASE("The sum holds after every step of a long mixture, and every task has one outcome", "[base]") {
  const auto policy = GENERATE(OverloadPolicy::reject, OverloadPolicy::wait);
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(8, policy));
  constexpr std::size_t kTasks = 2000;
  std::vector<Outcome<int>> outcomes(kTasks);
  std::vector<std::unique_ptr<asio::cancellation_signal>> signals;
  std::mt19937 random(20240229);
  const auto pick = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  std::size_t next = 0;
  bool held = true;
  while (next < kTasks || !executor.kept.empty()) {
    const std::size_t step = pick(10);
    if (step < 5 && next < kTasks) {
      signals.push_back(std::make_unique<asio::cancellation_signal>());
      executor.async_submit(bulkhead::call(next % 3 == 0 ? refuse : twice, 1),
                            asio::bind_cancellation_slot(signals.back()->slot(), outcomes[next].handler()));
      ++next;
    } else if (step == 5 && !signals.empty()) {
      signals[pick(signals.size())]->emit(asio::cancellation_type::terminal);
    } else if (step == 6) {
      settle(context);
    } else if (!executor.kept.empty()) {
      Task task = executor.take(pick(executor.kept.size()));
      if (step == 7) task.fail(std::make_exception_ptr(std::runtime_error("no")));
      if (step == 8) {
        std::vector<std::byte> request(task.encode({}));
        task.encode(request);
        task.complete(bulkhead::run_encoded_task(request));
      }
      if (step == 9) task.run();
    }
    held = held && adds_up(executor) && executor.metrics().pending <= 8;
  }
  settle(context);
  CHECK(held);
  CHECK(std::all_of(outcomes.begin(), outcomes.end(), [](const auto& o) { return o.calls == 1; }));
  const Metrics m = executor.metrics();
  CHECK(adds_up(m));
  CHECK(m.pending + m.running + m.waiting == 0);
  CHECK(m.submitted + m.rejected == kTasks);
  CHECK(m.completed > 0);
  CHECK(m.failed > 0);
  CHECK(m.cancelled > 0);
}

TEST_CASE("Threads may submit at the same time; the sum holds for whoever looks", "[base]") {
  asio::io_context context;
  ThreadedExecutor executor(context.get_executor(), limits(4, OverloadPolicy::wait));
  constexpr int kThreads = 4;
  constexpr int kEach = 250;
  std::atomic<int> handled{0};
  std::atomic<bool> held{true};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        executor.async_submit(bulkhead::call(twice, t), [&, t](std::exception_ptr error, int value) {
          if (!error && value == 2 * t) ++handled;
        });
        if (!adds_up(executor)) held = false;
      }
    });
  }
  CHECK(run_until(context, [&] { return handled == kThreads * kEach; }));
  for (auto& thread : threads) thread.join();
  CHECK(held);
  CHECK(executor.metrics().completed == kThreads * kEach);
}

// ---------------------------------------------------------------------------------------------------------------------
// Shutdown.

TEST_CASE("An executor that was never used shuts down, any number of times", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  run(context, executor.shutdown());
  run(context, executor.shutdown());
  ShutdownOptions options;
  options.wait = false;
  run(context, executor.shutdown(options));
  options.cancel_pending = true;
  options.timeout = 0ns;
  run(context, executor.shutdown(options));
  CHECK(executor.metrics().submitted == 0);
}

TEST_CASE("A submit after shutdown fails with ExecutorNotRunningError and counts as rejected", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit(twice, 1)) == 2);
  run(context, executor.shutdown());
  CHECK_THROWS_AS(run(context, executor.submit(twice, 1)), ExecutorNotRunningError);
  Outcome<int> outcome;
  submit_named(executor, "late", outcome);
  settle(context);
  const auto error = error_as<ExecutorNotRunningError>(outcome.error);
  REQUIRE(error);
  CHECK(error->code() == bulkhead::Errc::not_running);
  CHECK(error->context().task == "late");
  const Metrics m = executor.metrics();
  CHECK(m.submitted == 1);
  CHECK(m.rejected == 2);
  CHECK(adds_up(m));
}

TEST_CASE("shutdown waits until every task has its outcome", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  std::array<Outcome<int>, 2> outcomes;
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  Ending ending(context, executor);
  settle(context);
  CHECK_FALSE(ending.over);
  executor.run_next();
  settle(context);
  CHECK_FALSE(ending.over);
  executor.run_next();
  REQUIRE(run_until(context, [&] { return ending.over; }));
  CHECK_FALSE(ending.error);
  for (const auto& outcome : outcomes) CHECK(outcome.value == 2);
}

TEST_CASE("Two shutdowns at the same time both wait, and both end", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  Ending first(context, executor);
  Ending second(context, executor);
  settle(context);
  CHECK_FALSE(first.over);
  CHECK_FALSE(second.over);
  executor.run_next();
  REQUIRE(run_until(context, [&] { return first.over && second.over; }));
  CHECK_FALSE(first.error);
  CHECK_FALSE(second.error);
  CHECK(outcome.value == 2);
}

TEST_CASE("shutdown without wait returns at once, and what runs ends by itself", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  ShutdownOptions options;
  options.wait = false;
  run(context, executor.shutdown(options));
  CHECK(outcome.calls == 0);
  CHECK_THROWS_AS(run(context, executor.submit(twice, 1)), ExecutorNotRunningError);
  executor.run_next();
  settle(context);
  CHECK(outcome.value == 2);
}

TEST_CASE("shutdown with a timeout cancels what has not ended by then", "[base]") {
  const auto timeout = GENERATE(0ms, 5ms);
  asio::io_context context;
  Gate gate;
  ThreadedExecutor executor(context.get_executor());
  Outcome<int> running;
  Outcome<int> queued;
  executor.async_submit(bulkhead::call([&gate] {
                          gate.pass();
                          return 1;
                        }),
                        running.handler());
  executor.async_submit(bulkhead::call(twice, 1), queued.handler());
  REQUIRE(run_until(context, [&] { return gate.begun(); }));
  ShutdownOptions options;
  options.timeout = timeout;
  run(context, executor.shutdown(options));
  REQUIRE(run_until(context, [&] { return running.calls == 1 && queued.calls == 1; }));
  CHECK(cancelled_stage(running.error) == TaskCancelledError::Stage::running);
  CHECK(cancelled_stage(queued.error) == TaskCancelledError::Stage::queued);
  CHECK_THAT(message(running.error), ContainsSubstring("shutdown"));
  CHECK(executor.metrics().cancelled == 2);
  CHECK(adds_up(executor));
  gate.open();
}

TEST_CASE("shutdown that cancels what is pending lets the running task end", "[base]") {
  asio::io_context context;
  Gate gate;
  ThreadedExecutor executor(context.get_executor());
  Outcome<int> running;
  std::array<Outcome<int>, 2> queued;
  executor.async_submit(bulkhead::call([&gate] {
                          gate.pass();
                          return 1;
                        }),
                        running.handler());
  for (auto& outcome : queued) executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return gate.begun(); }));
  ShutdownOptions options;
  options.cancel_pending = true;
  Ending ending(context, executor, options);
  REQUIRE(run_until(context, [&] { return queued[0].calls == 1 && queued[1].calls == 1; }));
  for (const auto& outcome : queued) CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  CHECK(running.calls == 0);
  CHECK_FALSE(ending.over);
  CHECK(adds_up(executor));
  gate.open();
  REQUIRE(run_until(context, [&] { return ending.over; }));
  CHECK(running.value == 1);
  CHECK(executor.metrics().cancelled == 2);
  CHECK(executor.metrics().completed == 1);
}

TEST_CASE("Those who wait for admission are refused at shutdown", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
  std::array<Outcome<int>, 3> outcomes;
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  Ending ending(context, executor);
  settle(context);
  CHECK(outcomes[0].calls == 0);
  CHECK(holds<ExecutorNotRunningError>(outcomes[1].error));
  CHECK(holds<ExecutorNotRunningError>(outcomes[2].error));
  CHECK(executor.metrics().waiting == 0);
  CHECK(executor.metrics().rejected == 2);
  CHECK(adds_up(executor));
  CHECK_FALSE(ending.over);
  executor.run_next();
  CHECK(executor.kept.empty());
  REQUIRE(run_until(context, [&] { return ending.over; }));
  CHECK(outcomes[0].value == 2);
}

TEST_CASE("Cancelling a shutdown stops the waiting, not the shutdown", "[base]") {
  asio::io_context context;
  KeepingExecutor executor(context.get_executor());
  Outcome<int> outcome;
  executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  asio::cancellation_signal signal;
  bool over = false;
  std::exception_ptr error;
  asio::co_spawn(context, executor.shutdown(),
                 asio::bind_cancellation_slot(signal.slot(), [&](std::exception_ptr thrown) {
                   over = true;
                   error = std::move(thrown);
                 }));
  settle(context);
  CHECK_FALSE(over);
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return over; }));
  const auto aborted = error_as<boost::system::system_error>(error);
  REQUIRE(aborted);
  CHECK(aborted->code() == asio::error::operation_aborted);
  CHECK(outcome.calls == 0);
  CHECK_THROWS_AS(run(context, executor.submit(twice, 1)), ExecutorNotRunningError);
  executor.run_next();
  settle(context);
  CHECK(outcome.value == 2);
  run(context, executor.shutdown());
}

TEST_CASE("shutdown can be started by a task's completion handler", "[base]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  std::optional<Ending> ending;
  executor.async_submit(bulkhead::call(twice, 1), [&](std::exception_ptr, int) { ending.emplace(context, executor); });
  REQUIRE(run_until(context, [&] { return ending && ending->over; }));
  CHECK_FALSE(ending->error);
}

TEST_CASE("What an executor's own stop throws comes out of shutdown, and it is down all the same", "[base]") {
  asio::io_context context;
  StoppingExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit(twice, 1)) == 2);
  executor.fails = true;
  CHECK_THROWS_WITH(run(context, executor.shutdown()), "the connection could not be closed");
  CHECK_THROWS_AS(run(context, executor.submit(twice, 1)), ExecutorNotRunningError);
  executor.fails = false;
  run(context, executor.shutdown());
  CHECK(executor.stops == 2);
}

TEST_CASE("Destroying an executor without shutdown gives every task an outcome", "[base]") {
  asio::io_context context;
  std::array<Outcome<int>, 3> outcomes;
  {
    KeepingExecutor executor(context.get_executor(), limits(1, OverloadPolicy::wait));
    for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(twice, 1), outcome.handler());
  }
  for (const auto& outcome : outcomes) CHECK(outcome.calls == 0);
  settle(context);
  CHECK(holds<TaskAbandonedError>(outcomes[0].error));
  CHECK(holds<ExecutorNotRunningError>(outcomes[1].error));
  CHECK(holds<ExecutorNotRunningError>(outcomes[2].error));
}

// ---------------------------------------------------------------------------------------------------------------------
// Metrics as text.

namespace {

Metrics example() {
  Metrics m;
  m.name = "images";
  m.mode = "process";
  m.workers = 4;
  m.pending = 3;
  m.running = 2;
  m.waiting = 1;
  m.max_pending = 100;
  m.submitted = 1005;
  m.completed = 900;
  m.failed = 60;
  m.rejected = 7;
  m.cancelled = 30;
  m.timed_out = 10;
  m.workers_started = 9;
  m.workers_crashed = 5;
  m.runs = 1000;
  m.total_run_time = 2500ms;
  m.total_queue_wait = 500ms;
  m.average_run_time = 2500us;
  m.average_queue_wait = 500us;
  return m;
}

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("Metrics print themselves through fmt on one line, with everything that counts", "[base][metrics]") {
  REQUIRE(adds_up(example()));
  const std::string line = fmt::format("{}", example());
  CHECK(line == to_string(example()));
  CHECK(line.find('\n') == std::string::npos);
  CHECK_THAT(line, StartsWith("images (process): 4 workers, 3 pending, 2 running"));
  for (const char* part : {"1005 submitted", "900 completed", "60 failed", "30 cancelled", "10 timed out", "7 rejected",
                           "run 2.500 ms", "queue wait 0.500 ms"}) {
    CHECK_THAT(line, ContainsSubstring(part));
  }
}

TEST_CASE("Metrics as JSON are one object with every field, and strings are escaped", "[base][metrics]") {
  CHECK(
      to_json(example()) ==
      R"({"name":"images","mode":"process","workers":4,"pending":3,"running":2,"lingering":0,"waiting":1,"scheduled":0,"max_pending":100,)"
      R"("submitted":1005,"completed":900,"failed":60,"rejected":7,"cancelled":30,"timed_out":10,)"
      R"("workers_started":9,"workers_crashed":5,"workers_recycled":0,"workers_dying":0,"retried":0,"quarantined":0,"runs":1000,"total_run_seconds":2.500000000,)"
      R"("total_queue_wait_seconds":0.500000000,"average_run_ms":2.500000,"average_queue_wait_ms":0.500000})");
  Metrics odd = example();
  odd.name = "a\"b\\c\nd\x01";
  CHECK_THAT(to_json(odd), StartsWith(R"({"name":"a\"b\\c\u000ad\u0001",)"));
}

TEST_CASE("Metrics in Prometheus' format name each series once, and one line per executor", "[base][metrics]") {
  const std::string one = to_prometheus(example());
  for (const char* line : {"# HELP bulkhead_workers Workers that are alive.\n# TYPE bulkhead_workers gauge\n"
                           "bulkhead_workers{executor=\"images\",mode=\"process\"} 4\n",
                           "bulkhead_pending{executor=\"images\",mode=\"process\"} 3\n",
                           "bulkhead_running{executor=\"images\",mode=\"process\"} 2\n",
                           "# TYPE bulkhead_submitted_total "
                           "counter\nbulkhead_submitted_total{executor=\"images\",mode=\"process\"} 1005\n",
                           "bulkhead_completed_total{executor=\"images\",mode=\"process\"} 900\n",
                           "bulkhead_failed_total{executor=\"images\",mode=\"process\"} 60\n",
                           "bulkhead_rejected_total{executor=\"images\",mode=\"process\"} 7\n",
                           "bulkhead_cancelled_total{executor=\"images\",mode=\"process\"} 30\n",
                           "bulkhead_timed_out_total{executor=\"images\",mode=\"process\"} 10\n",
                           "bulkhead_workers_crashed_total{executor=\"images\",mode=\"process\"} 5\n",
                           "bulkhead_run_seconds_total{executor=\"images\",mode=\"process\"} 2.500000000\n",
                           "bulkhead_queue_wait_seconds_total{executor=\"images\",mode=\"process\"} 0.500000000\n"}) {
    CHECK_THAT(one, ContainsSubstring(line));
  }
  CHECK(one.back() == '\n');

  std::array<Metrics, 2> several{example(), example()};
  several[1].name = "odd \"name\"\\\n";
  const std::string page = to_prometheus(several);
  CHECK(occurrences(page, "# HELP bulkhead_workers ") == 1);
  CHECK(occurrences(page, "# TYPE bulkhead_submitted_total ") == 1);
  CHECK(occurrences(page, "\nbulkhead_submitted_total{") == 2);
  CHECK_THAT(page, ContainsSubstring("bulkhead_workers{executor=\"odd \\\"name\\\"\\\\\\n\",mode=\"process\"} 4\n"));
  CHECK(occurrences(page, "\n") == occurrences(page, "# HELP ") * 4);
  CHECK(to_prometheus(std::span<const Metrics>()).find('{') == std::string::npos);
}

TEST_CASE("What only an executor knows is in its metrics", "[base][metrics]") {
  asio::io_context context;
  ThreadedExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit(twice, 2)) == 4);
  run(context, executor.shutdown());
  const Metrics m = executor.metrics();
  CHECK(m.mode == "thread");
  CHECK(m.workers == 1);
  CHECK(m.completed == 1);
  CHECK_THAT(to_json(m), ContainsSubstring(R"("mode":"thread")"));
}
