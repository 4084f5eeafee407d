// SPDX-License-Identifier: BSL-1.0
// `map` and `map_stream`: one function for the items of a range.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <list>
#include <memory>
#include <numeric>
#include <optional>
#include <ranges>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::MapOptions;
using bulkhead::MapOrder;
using bulkhead::OnError;
using bulkhead::SerializationError;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::TaskTimeoutError;
using bulkhead::WorkerCrashedError;
using bulkhead::test::adds_up;
using bulkhead::test::board;
using bulkhead::test::count;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::limited;
using bulkhead::test::make;
using bulkhead::test::message;
using bulkhead::test::note;
using bulkhead::test::Outcome;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::threads;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

std::vector<int> numbers(int size) {
  std::vector<int> all(static_cast<std::size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

LocalExecutorOptions workers(unsigned number) {
  LocalExecutorOptions options;
  options.max_workers = number;
  return options;
}

// The fifth ends its worker.
int abort_at_five(int value) {
  if (value == 5) std::abort();
  ++board.begun;
  return 2 * value;
}
int abort_always(int) { std::abort(); }
int refuse_odd(int value) {
  ++board.begun;
  if (value % 2 == 1) refuse(value);
  return value;
}
// The first waits for the gate.
int wait_if_zero(int value) { return value == 0 ? wait_at_gate(value) : value; }
int wait_if_three(int value) { return value == 3 ? wait_at_gate(value) : value; }
void count_only(int value) { count(value); }
std::size_t length(std::string_view text) { return text.size(); }
// Negative items take long: longer than a chunk may.
std::uint64_t task_of(int value) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(value < 0 ? 300 : 0);
  while (std::chrono::steady_clock::now() < end) {
  }
  return bulkhead::this_task::id();
}
bool is_even(int value) { return value % 2 == 0; }
int unpack(std::unique_ptr<int> value) { return *value; }
int in_worker(int) { return bulkhead::this_task::is_running() ? 1 : 0; }
asio::awaitable<int> twice_there(const int& value) {
  co_await asio::post(asio::use_awaitable);
  co_return 2 * value;
}

// A range without an end that counts what is taken.
auto counted(std::atomic<int>& taken) {
  return std::views::iota(0) | std::views::transform([&taken](int value) {
           ++taken;
           return value;
         });
}

template <class R>
asio::awaitable<std::vector<std::size_t>> indices_of(bulkhead::MapStream<R>& stream) {
  std::vector<std::size_t> indices;
  for (;;) {
    auto next = stream.next();
    auto item = co_await std::move(next);
    if (!item) co_return indices;
    indices.push_back(item->index);
  }
}

// A task of its own, so that the test can do something meanwhile.
template <class T>
struct Waiting {
  std::optional<T> value;
  std::exception_ptr error;
  bool over = false;

  void start(asio::io_context& context, asio::awaitable<T> task, asio::cancellation_slot slot = {}) {
    asio::co_spawn(context, std::move(task),
                   asio::bind_cancellation_slot(slot, [this](std::exception_ptr thrown, T result) {
                     error = std::move(thrown);
                     if (!error) value.emplace(std::move(result));
                     over = true;
                   }));
  }
};

}  // namespace

TEST_CASE("map gives the results of all items in the order of the range, in every executor", "[map]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context, 2);
  const auto results = run(context, executor->map(twice, numbers(1000)));
  REQUIRE(results.size() == 1000);
  bool right = true;
  for (int i = 0; i < 1000; ++i) right = right && results[static_cast<std::size_t>(i)] == 2 * i;
  CHECK(right);
  CHECK(adds_up(*executor));
  // With sizes of one's own.
  for (const std::size_t chunk : {1U, 7U, 1000U}) {
    const MapOptions options = MapOptions().chunk(chunk).window(1000);
    CHECK(run(context, executor->map(twice, numbers(20), options)).size() == 20);
  }
}

TEST_CASE("map of nothing gives nothing", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.map(twice, std::vector<int>())).empty());
  CHECK(pool.metrics().submitted == 0);
  auto stream = pool.map_stream(twice, std::vector<int>());
  CHECK_FALSE(run(context, stream.next()).has_value());
  CHECK_FALSE(run(context, stream.next()).has_value());
}

TEST_CASE("map takes functions of every kind, and ranges of every kind", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  reset_board();
  run(context, pool.map(count_only, numbers(100)));
  CHECK(board.begun == 100);
  const std::vector<std::string> texts{"a", "", "three"};
  CHECK(run(context, pool.map(length, texts)) == std::vector<std::size_t>{1, 0, 5});
  CHECK(run(context, pool.map([](int value) { return std::to_string(value); }, std::list<int>{7, 8})) ==
        std::vector<std::string>{"7", "8"});
  CHECK(run(context, pool.map(is_even, std::set<int>{3, 4})) == std::vector<bool>{false, true});
  CHECK(run(context, pool.map([](bool value) { return !value; }, std::vector<bool>{true, false})) ==
        std::vector<bool>{false, true});
  CHECK(run(context, pool.map(twice, std::views::iota(1, 4))) == std::vector<int>{2, 4, 6});
  CHECK(run(context, pool.map(twice, std::span<const int>(numbers(3)))) == std::vector<int>{0, 2, 4});
  CHECK(run(context, pool.map(in_worker, numbers(3))) == std::vector<int>{1, 1, 1});
}

TEST_CASE("items that cannot be copied are moved out of the range", "[map]") {
  const auto chunk = GENERATE(as<std::size_t>{}, 1, 2);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  bulkhead::ThreadExecutor blocking(context.get_executor(), threads(1));
  for (int i = 0; i < 2; ++i) {
    std::vector<std::unique_ptr<int>> items;
    for (int value = 0; value < 5; ++value) items.push_back(std::make_unique<int>(value));
    const MapOptions options = MapOptions().chunk(chunk);
    const auto results = i == 0 ? run(context, pool.map(unpack, std::move(items), options))
                                : run(context, blocking.map(unpack, std::move(items), options));
    CHECK(results == numbers(5));
  }
}

TEST_CASE("coroutines are mapped one by one, and may refer to their item", "[map]") {
  asio::io_context context;
  bulkhead::IoExecutor executor(context.get_executor());
  CHECK(run(context, executor.map(twice_there, numbers(100))).back() == 198);
  const MapOptions options = MapOptions().chunk(2);
  CHECK_THROWS_AS(run(context, executor.map(twice_there, numbers(3), options)), std::invalid_argument);
}

TEST_CASE("items of a chunk travel in one task", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const MapOptions options = MapOptions().chunk(8);
  run(context, pool.map(twice, numbers(20), options));
  CHECK(pool.metrics().submitted == 3);
  // And small ones come to do so by themselves.
  LocalExecutor other(context.get_executor(), workers(1));
  run(context, other.map(twice, numbers(20'000)));
  CHECK(other.metrics().submitted < 20'000);
}

TEST_CASE("a stream gives results in the order of the range", "[map]") {
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(2));
  const MapOptions options = MapOptions().chunk(1);
  auto stream = pool.map_stream(wait_if_zero, numbers(4), options);
  REQUIRE(run_until(context, [&] { return pool.metrics().completed == 3; }));
  Waiting<std::vector<std::size_t>> waiting;
  waiting.start(context, indices_of(stream));
  settle(context);
  CHECK_FALSE(waiting.over);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  CHECK(*waiting.value == std::vector<std::size_t>{0, 1, 2, 3});
}

TEST_CASE("a stream as completed does not wait for what comes first in the range", "[map]") {
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(2));
  const MapOptions options = MapOptions().chunk(1).order(MapOrder::as_completed);
  auto stream = pool.map_stream(wait_if_zero, numbers(3), options);
  std::set<std::size_t> indices;
  for (int i = 0; i < 2; ++i) indices.insert(run(context, stream.next())->index);
  CHECK(indices == std::set<std::size_t>{1, 2});
  board.gate.open = 1;
  const auto last = run(context, stream.next());
  REQUIRE(last);
  CHECK(last->index == 0);
  CHECK_FALSE(run(context, stream.next()).has_value());
}

TEST_CASE("no more is taken from a range than the window allows, until results are taken", "[map]") {
  const auto chunk = GENERATE(as<std::size_t>{}, 0, 1, 3);
  CAPTURE(chunk);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::atomic<int> taken{0};
  MapOptions options;
  options.window(6);
  if (chunk > 0) options.chunk(chunk);
  auto stream = pool.map_stream(twice, counted(taken), options);
  REQUIRE(run_until(context, [&] { return taken == 6; }));
  REQUIRE(run_until(context, [&] { return pool.metrics().pending + pool.metrics().running == 0; }));
  settle(context);
  CHECK(taken == 6);
  for (int i = 0; i < 100; ++i) {
    const auto item = run(context, stream.next());
    REQUIRE(item);
    REQUIRE(item->index == static_cast<std::size_t>(i));
    REQUIRE(*item->value == 2 * i);
    REQUIRE(taken <= 6 + i + 1);
  }
}

TEST_CASE("when an item fails, map cancels the rest and throws its error", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::atomic<int> taken{0};
  reset_board();
  // There is no end but this one.
  const auto error = failure(context, pool.map(refuse_odd, counted(taken)));
  CHECK(message(error) == "refused 1");
  CHECK(adds_up(pool));
  CHECK(pool.metrics().pending + pool.metrics().running == 0);
}

TEST_CASE("if that is asked for, map goes on when an item fails, and throws the first error in the end", "[map]") {
  const auto chunk = GENERATE(as<std::size_t>{}, 1, 4);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  reset_board();
  const MapOptions options = MapOptions().on_error(OnError::wait_for_all).chunk(chunk);
  const auto error = failure(context, pool.map(refuse_odd, numbers(20), options));
  CHECK(message(error) == "refused 1");
  CHECK(board.begun == 20);
}

TEST_CASE("a stream gives an item's error in its place and goes on", "[map]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "bypass");
  const auto chunk = GENERATE(as<std::size_t>{}, 1, 4);
  CAPTURE(type, chunk);
  asio::io_context context;
  const auto executor = make(type, context, 1, bulkhead::test::named("mapper"));
  const MapOptions options = MapOptions().chunk(chunk);
  auto stream = executor->map_stream(refuse_odd, numbers(6), options);
  for (std::size_t i = 0; i < 6; ++i) {
    auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(item->index == i);
    if (i % 2 == 0) {
      CHECK(item->get() == static_cast<int>(i));
    } else {
      CHECK(holds<std::runtime_error>(item->error));
      CHECK(message(item->error) == "refused " + std::to_string(i));
    }
  }
}

TEST_CASE("an exception that only the worker knows says which executor and which function it comes from", "[map]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.name = "mapper";
  LocalExecutor pool(context.get_executor(), options);
  const MapOptions two = MapOptions().chunk(2);
  const auto error = error_as<bulkhead::RemoteTaskError>(
      failure(context, pool.map(bulkhead::test::throw_handle, std::vector<int>{4}, two)));
  REQUIRE(error);
  CHECK(error->remote_what() == "the handle of 4 is lost");
  CHECK(error->context().executor == "mapper");
  CHECK_THAT(error->context().task, ContainsSubstring("throw_handle"));
}

TEST_CASE("a crash fails the one item that ran, and the rest of its chunk is run elsewhere", "[map]") {
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(1));
  const MapOptions options = MapOptions().chunk(8);
  auto stream = pool.map_stream(abort_at_five, numbers(16), options);
  for (std::size_t i = 0; i < 16; ++i) {
    CAPTURE(i);
    auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(item->index == i);
    if (i == 5) {
      const auto crash = error_as<WorkerCrashedError>(item->error);
      REQUIRE(crash);
      CHECK(crash->signal() == SIGABRT);
      CHECK(crash->ending().item == 5);
      CHECK_THAT(crash->context().task, ContainsSubstring("abort_at_five"));
    } else {
      REQUIRE(item->value);
      CHECK(*item->value == 2 * static_cast<int>(i));
    }
  }
  CHECK_FALSE(run(context, stream.next()).has_value());
  CHECK(pool.metrics().workers_crashed == 1);
  // Those before it have run twice, as is documented.
  CHECK(board.begun == 15 + 5);
}

TEST_CASE("where every item crashes its worker, each one fails, and the map ends", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const MapOptions options = MapOptions().chunk(3);
  auto stream = pool.map_stream(abort_always, numbers(3), options);
  for (int i = 0; i < 3; ++i) {
    auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(holds<WorkerCrashedError>(item->error));
  }
  CHECK_FALSE(run(context, stream.next()).has_value());
  CHECK(pool.metrics().workers_crashed == 3);
}

TEST_CASE("a time limit holds for each item", "[map]") {
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(1));
  auto stream = pool.map_stream(TaskOptions().timeout(200ms), wait_if_three, numbers(6));
  for (std::size_t i = 0; i < 6; ++i) {
    auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(item->index == i);
    CHECK(holds<TaskTimeoutError>(item->error) == (i == 3));
  }
  const MapOptions options = MapOptions().chunk(2);
  CHECK_THROWS_AS(pool.map_stream(TaskOptions().timeout(1s), twice, numbers(3), options), std::invalid_argument);
}

TEST_CASE("a retry policy holds for each item", "[map]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread");
  asio::io_context context;
  const auto executor = make(type, context);
  const auto results = run(context, executor->map(TaskOptions().retry(bulkhead::RetryPolicy(3)),
                                                  bulkhead::test::succeed_at_run, std::vector<unsigned>{1, 2, 3}));
  CHECK(results == std::vector<unsigned>{1, 2, 3});
  CHECK(executor->metrics().retried == 3);
}

TEST_CASE("a map that is cancelled cancels its tasks, takes no more, and is over when they are", "[map]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread");
  CAPTURE(type);
  asio::io_context context;
  reset_board();
  const auto executor = make(type, context);
  std::atomic<int> taken{0};
  Waiting<std::vector<int>> waiting;
  asio::cancellation_signal signal;
  const MapOptions options = MapOptions().window(10).chunk(1);
  waiting.start(context, executor->map(wait_at_gate, counted(taken), options), signal.slot());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  CHECK(waiting.error);
  CHECK(taken <= 10);
  CHECK(executor->metrics().pending + executor->metrics().running == 0);
  CHECK(adds_up(*executor));
  bulkhead::test::let_go(type);
}

TEST_CASE("a map that is never idle is cancelled all the same, and leaves its caller's cancellation as it was",
          "[map]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "inline");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  // Whether the second cancellation is noticed, which comes when the first has been dealt with.
  const auto twice_cancelled = [](bulkhead::BaseExecutor& used, bool& map_over) -> asio::awaitable<bool> {
    const bool throws_before = co_await asio::this_coro::throw_if_cancelled();
    bool cancelled = false;
    try {
      co_await used.map(twice, std::views::iota(0));  // has no end
    } catch (const boost::system::system_error& error) {
      cancelled = error.code() == asio::error::operation_aborted;
    }
    const auto state = co_await asio::this_coro::cancellation_state;
    const bool known = state.cancelled() != asio::cancellation_type::none;
    const bool throws_after = co_await asio::this_coro::throw_if_cancelled();
    map_over = true;
    co_return cancelled&& known&& throws_before&& throws_after;
  };
  bool map_over = false;
  Waiting<bool> waiting;
  asio::cancellation_signal signal;
  waiting.start(context, twice_cancelled(*executor, map_over), signal.slot());
  REQUIRE(run_until(context, [&] { return executor->metrics().completed > 20; }));
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  CHECK(map_over);
  REQUIRE(waiting.value);
  CHECK(*waiting.value);
  CHECK(executor->metrics().pending + executor->metrics().running == 0);
}

TEST_CASE("a stream that is destroyed cancels what has not ended", "[map]") {
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(1));
  {
    const MapOptions options = MapOptions().chunk(1);
    auto stream = pool.map_stream(wait_at_gate, numbers(5), options);
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  }
  REQUIRE(run_until(context, [&] { return pool.metrics().cancelled == 5; }));
  CHECK(adds_up(pool));
}

TEST_CASE("a stream that is cancelled gives what has not ended as cancelled, and then ends", "[map]") {
  const auto order = GENERATE(MapOrder::as_given, MapOrder::as_completed);
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(1));
  const MapOptions options = MapOptions().chunk(1).order(order);
  auto stream = pool.map_stream(wait_at_gate, numbers(3), options);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  stream.cancel();
  for (int i = 0; i < 3; ++i) {
    auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(holds<TaskCancelledError>(item->error));
  }
  CHECK_FALSE(run(context, stream.next()).has_value());
}

TEST_CASE("who stops waiting for a stream loses nothing of it", "[map]") {
  asio::io_context context;
  reset_board();
  LocalExecutor pool(context.get_executor(), workers(1));
  auto stream = pool.map_stream(wait_at_gate, numbers(1));
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  Waiting<std::vector<std::size_t>> waiting;
  asio::cancellation_signal signal;
  waiting.start(context, indices_of(stream), signal.slot());
  settle(context);
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  CHECK(waiting.error);
  board.gate.open = 1;
  auto item = run(context, stream.next());
  REQUIRE(item);
  CHECK(item->get() == 0);
}

TEST_CASE("a map goes on beside others in a full executor that refuses tasks", "[map]") {
  const auto chunk = GENERATE(as<std::size_t>{}, 0, 1);
  asio::io_context context;
  reset_board();
  LocalExecutorOptions options = workers(1);
  options.max_pending = 6;
  LocalExecutor pool(context.get_executor(), options);
  // The map counts on three places, and has one.
  std::vector<Outcome<>> others(5);
  for (auto& other : others) pool.async_submit(bulkhead::call(wait_at_gate, 0), other.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  Waiting<std::vector<int>> waiting;
  MapOptions map;
  if (chunk > 0) map.chunk(chunk);
  waiting.start(context, pool.map(twice, numbers(100), map));
  REQUIRE(run_until(context, [&] { return pool.metrics().waiting == 2; }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  REQUIRE(waiting.value);
  CHECK(pool.metrics().rejected == 0);
  CHECK(waiting.value->size() == 100);
  CHECK(waiting.value->back() == 198);
}

TEST_CASE("a map in an executor that takes nothing ends with its refusal", "[map]") {
  asio::io_context context;
  reset_board();
  std::atomic<int> taken{0};
  LocalExecutor pool(context.get_executor(), workers(1));
  run(context, pool.shutdown());
  CHECK(holds<bulkhead::ExecutorNotRunningError>(failure(context, pool.map(twice, counted(taken)))));
}

TEST_CASE("a map waits for the executors of a hybrid as long as tasks of its own are there", "[map]") {
  asio::io_context context;
  std::vector<std::shared_ptr<bulkhead::BaseExecutor>> members{make("thread", context, 1, limited(2))};
  bulkhead::HybridExecutor hybrid(context.get_executor(), members);
  CHECK(run(context, hybrid.map(twice, numbers(100))).back() == 198);
  CHECK(members[0]->metrics().rejected > 0);
  // When they are full of other tasks, it is refused.
  reset_board();
  std::vector<Outcome<>> others(2);
  for (auto& other : others) members[0]->async_submit(bulkhead::call(wait_at_gate, 0), other.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::atomic<int> taken{0};
  CHECK(holds<bulkhead::ExecutorOverloadError>(failure(context, hybrid.map(twice, counted(taken)))));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return bulkhead::test::all_over(others); }));
}

TEST_CASE("a map that is under way ends when its executor is shut down", "[map]") {
  asio::io_context context;
  reset_board();
  std::atomic<int> taken{0};
  LocalExecutor pool(context.get_executor(), workers(1));
  Waiting<std::vector<int>> waiting;
  waiting.start(context, pool.map(twice, counted(taken)));
  REQUIRE(run_until(context, [&] { return pool.metrics().completed > 100; }));
  run(context, pool.shutdown());
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  CHECK(holds<bulkhead::ExecutorNotRunningError>(waiting.error));
  CHECK(adds_up(pool));
}

TEST_CASE("what a range throws is what map throws", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto range = std::views::iota(0) | std::views::transform([](int value) {
                       if (value == 30) throw std::out_of_range("no more than thirty");
                       return value;
                     });
  const auto error = failure(context, pool.map(twice, range));
  CHECK(holds<std::out_of_range>(error));
  auto stream = pool.map_stream(twice, range);
  for (std::size_t i = 0; i < 30; ++i) REQUIRE(run(context, stream.next())->get() == 2 * static_cast<int>(i));
  CHECK(holds<std::out_of_range>(run(context, stream.next())->error));
  CHECK_FALSE(run(context, stream.next()).has_value());
}

TEST_CASE("items that are too large together are sent one by one", "[map]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_message_size = 1024;
  LocalExecutor pool(context.get_executor(), options);
  const MapOptions map = MapOptions().chunk(4);
  const std::vector<std::string> texts(6, std::string(600, 'x'));
  CHECK(run(context, pool.map(length, texts, map)) == std::vector<std::size_t>(6, 600));
  // One that is too large by itself fails by itself.
  std::vector<std::string> some(4, std::string("small"));
  some[2] = std::string(2000, 'x');
  auto stream = pool.map_stream(length, some, map);
  for (std::size_t i = 0; i < 4; ++i) {
    auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(holds<SerializationError>(item->error) == (i == 2));
  }
}

TEST_CASE("results that are too large together are no error of the items, whoever has chosen the chunk", "[map]") {
  const auto chunk = GENERATE(as<std::size_t>{}, 0, 8);
  CAPTURE(chunk);
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_message_size = 4096;
  LocalExecutor pool(context.get_executor(), options);
  const MapOptions map = chunk == 0 ? MapOptions() : MapOptions().chunk(chunk);
  const auto repeated = [](int value) { return std::string(600, static_cast<char>('a' + value % 26)); };
  const std::vector<std::string> texts = run(context, pool.map(repeated, numbers(2000), map));
  REQUIRE(texts.size() == 2000);
  bool equal = true;
  for (int i = 0; i < 2000; ++i) equal = equal && texts[static_cast<std::size_t>(i)] == repeated(i);
  CHECK(equal);
}

TEST_CASE("a chunk that turns out to take long leaves its other items to further tasks", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  std::vector<int> items(5000, 1);
  items.resize(items.size() + 64, -1);
  const std::vector<std::uint64_t> tasks = run(context, pool.map(task_of, items));
  REQUIRE(tasks.size() == items.size());
  // The first ones are quick enough to share tasks, as far as the machine lets them.
  CHECK(std::set<std::uint64_t>(tasks.begin(), tasks.begin() + 5000).size() < 5000);
  CHECK(std::set<std::uint64_t>(tasks.begin() + 5000, tasks.end()).size() == 64);
  // Where the caller has said how many, it is so many.
  const MapOptions eight = MapOptions().chunk(8);
  const std::vector<std::uint64_t> of_eight = run(context, pool.map(task_of, std::vector<int>(16, -1), eight));
  CHECK(std::set<std::uint64_t>(of_eight.begin(), of_eight.end()).size() == 2);
}

TEST_CASE("options of a map that cannot be are refused, and say why", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK_THROWS_AS(MapOptions().window(0), std::invalid_argument);
  CHECK_THROWS_AS(MapOptions().chunk(0), std::invalid_argument);
  const MapOptions too_small = MapOptions().window(3).chunk(4);
  CHECK_THROWS_AS(pool.map_stream(twice, numbers(1), too_small), std::invalid_argument);
  CHECK_THAT(message(failure(context, pool.map(twice, numbers(1), too_small))), ContainsSubstring("window"));
  CHECK_THROWS_AS(pool.map_stream(TaskOptions().metadata("x"), twice, numbers(1)), std::invalid_argument);
  CHECK(pool.metrics().submitted == 0);
}

TEST_CASE("an event loop may be destroyed while somebody waits for a map", "[map]") {
  reset_board();
  auto context = std::make_unique<asio::io_context>();
  auto pool = std::make_unique<LocalExecutor>(context->get_executor(), workers(1));
  const auto alive = std::make_shared<int>(1);
  const auto wait = [](LocalExecutor& executor, std::shared_ptr<int>) -> asio::awaitable<void> {
    const MapOptions options = MapOptions().chunk(1);
    auto stream = executor.map_stream(wait_at_gate, numbers(3), options);
    auto next = stream.next();
    co_await std::move(next);
  };
  asio::co_spawn(*context, wait(*pool, alive), [](std::exception_ptr) {});
  REQUIRE(run_until(*context, [] { return board.gate.waiting == 1; }));
  CHECK(alive.use_count() == 2);
  const bool executor_first = GENERATE(true, false);
  if (executor_first) pool.reset();
  context.reset();
  CHECK(alive.use_count() == 1);
}

TEST_CASE("maps of several threads do not disturb each other", "[map]") {
  asio::thread_pool threads_of_loop(2);
  LocalExecutor pool(threads_of_loop.get_executor(), workers(2));
  std::atomic<int> right{0};
  std::atomic<int> over{0};
  for (int i = 0; i < 8; ++i) {
    asio::co_spawn(threads_of_loop, pool.map(twice, numbers(500)),
                   [&](std::exception_ptr error, const std::vector<int>& results) {
                     if (!error && results.size() == 500 && results[499] == 998) ++right;
                     ++over;
                   });
  }
  threads_of_loop.join();
  CHECK(over == 8);
  CHECK(right == 8);
}

namespace {

// As a function may be whose captures are copied: at some time that fails.
struct ThrowsWhenCopied {
  explicit ThrowsWhenCopied(int most) : copies_left(std::make_shared<int>(most)) {}
  ThrowsWhenCopied(const ThrowsWhenCopied& other) : copies_left(other.copies_left) {
    if (--*copies_left < 0) throw std::runtime_error("it cannot be copied any more");
  }
  ThrowsWhenCopied(ThrowsWhenCopied&&) = default;
  ThrowsWhenCopied& operator=(const ThrowsWhenCopied&) = delete;
  int operator()(int value) const { return value; }

  std::shared_ptr<int> copies_left;
};

// An item without a default, whose carriage and whose result may crash.
struct Fragile {
  explicit Fragile(int number) : value(number) {}
  int value;
};
constexpr int kCrashWhenRead = 2;
constexpr int kCrashWhenWritten = 3;
Fragile pass_on(Fragile fragile) { return fragile; }

}  // namespace

template <>
struct bulkhead::codec<Fragile> {
  static void encode(Encoder& encoder, const Fragile& fragile) {
    if (fragile.value == kCrashWhenWritten && this_task::is_running()) std::abort();
    bulkhead::encode(encoder, fragile.value);
  }
  static Fragile decode(Decoder& decoder) {
    const Fragile fragile(bulkhead::decode<int>(decoder));
    if (fragile.value == kCrashWhenRead && this_task::is_running()) std::abort();
    return fragile;
  }
};

TEST_CASE("what a copy of the function throws fails the item, and the map ends", "[map]") {
  asio::io_context context;
  bulkhead::ThreadExecutor blocking(context.get_executor(), threads(1));
  const auto error = failure(context, blocking.map(ThrowsWhenCopied(6), numbers(100)));
  CHECK(message(error) == "it cannot be copied any more");
  REQUIRE(run_until(context, [&] { return blocking.metrics().pending + blocking.metrics().running == 0; }));
}

TEST_CASE("retries hold for functions with captures and for coroutines, which get their item whole again", "[map]") {
  asio::io_context context;
  std::atomic<int> calls{0};
  const TaskOptions twice_at_most = TaskOptions().retry(bulkhead::RetryPolicy(2));
  const std::vector<std::string> items{"the item"};
  bulkhead::ThreadExecutor blocking(context.get_executor(), threads(1));
  const auto fail_once = [&calls](std::string item) {
    if (++calls == 1) throw std::runtime_error("first fails");
    return item;
  };
  CHECK(run(context, blocking.map(TaskOptions(twice_at_most), fail_once, items)) == items);
  calls = 0;
  bulkhead::IoExecutor io(context.get_executor());
  const auto fail_once_there = [&calls](const std::string& item) -> asio::awaitable<std::string> {
    co_await asio::post(asio::use_awaitable);
    if (++calls == 1) throw std::runtime_error("first fails");
    co_return item;
  };
  CHECK(run(context, io.map(TaskOptions(twice_at_most), fail_once_there, items)) == items);
  CHECK(calls == 2);
}

TEST_CASE("a refusal that a function throws is its item's error, and nothing is run twice or left out for it",
          "[map]") {
  const auto chunk = GENERATE(as<std::size_t>{}, 1, 2);
  asio::io_context context;
  bulkhead::ThreadExecutor blocking(context.get_executor(), threads(2));
  std::atomic<int> calls{0};
  const auto refused_elsewhere = [&calls](int value) {
    ++calls;
    if (value == 1) throw bulkhead::ExecutorOverloadError(1, bulkhead::ErrorContext());
    if (value == 2) throw bulkhead::WorkerStartError("of another executor", 1);
    if (value == 3) throw bulkhead::ExecutorNotRunningError(bulkhead::ErrorContext());
    return value;
  };
  const MapOptions options = MapOptions().chunk(chunk);
  auto stream = blocking.map_stream(refused_elsewhere, numbers(100), options);
  int values = 0;
  for (int i = 0; i < 100; ++i) {
    const auto item = run(context, stream.next());
    REQUIRE(item);
    if (item->value) ++values;
  }
  CHECK(values == 97);
  CHECK(calls == 100);
}

TEST_CASE("chunks stay as large as they are to be when results are taken one by one", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const MapOptions options = MapOptions().chunk(10);
  auto stream = pool.map_stream(twice, numbers(10'000), options);
  for (int i = 0; i < 10'000; ++i) REQUIRE(run(context, stream.next()));
  // The last may be smaller.
  CHECK(pool.metrics().submitted <= 1001);
}

TEST_CASE("a crash while an item is read or its result written is that item's, too", "[map]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::vector<Fragile> items;
  for (int i = 0; i < 6; ++i) items.emplace_back(i);
  const MapOptions options = MapOptions().chunk(6);
  auto stream = pool.map_stream(pass_on, items, options);
  for (int i = 0; i < 6; ++i) {
    CAPTURE(i);
    const auto item = run(context, stream.next());
    REQUIRE(item);
    CHECK(holds<WorkerCrashedError>(item->error) == (i == kCrashWhenRead || i == kCrashWhenWritten));
  }
  CHECK(pool.metrics().workers_crashed == 2);
}

TEST_CASE("items without a default go through executors that carry nothing", "[map]") {
  asio::io_context context;
  bulkhead::ThreadExecutor blocking(context.get_executor(), threads(1));
  std::vector<Fragile> items;
  for (int i = 0; i < 6; ++i) items.emplace_back(i);
  CHECK(run(context, blocking.map(pass_on, std::move(items))).back().value == 5);
}

TEST_CASE("a window and a chunk that nobody can mean are refused", "[map]") {
  CHECK_THROWS_AS(MapOptions().chunk(std::size_t{1} << 59), std::invalid_argument);
  CHECK_THROWS_AS(MapOptions().window(std::size_t{1} << 62), std::invalid_argument);
}

TEST_CASE("a map in a hybrid is as wide as before when others make room again", "[map]") {
  asio::io_context context;
  reset_board();
  std::vector<std::shared_ptr<bulkhead::BaseExecutor>> members{make("thread", context, 2, limited(4))};
  bulkhead::HybridExecutor hybrid(context.get_executor(), members);
  // Three places are taken for the beginning.
  std::vector<Outcome<>> others(2);
  for (auto& other : others) members[0]->async_submit(bulkhead::call(wait_at_gate, 0), other.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  const MapOptions options = MapOptions().chunk(1);
  Waiting<std::vector<int>> waiting;
  waiting.start(context, hybrid.map(bulkhead::test::overlap, numbers(200), options));
  REQUIRE(run_until(context, [&] { return members[0]->metrics().rejected > 0; }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return waiting.over; }));
  REQUIRE(waiting.value);
  CHECK(board.most_running == 2);
}
