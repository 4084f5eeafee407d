// SPDX-License-Identifier: BSL-1.0
// What Asio asks of an asynchronous operation, over real worker processes.
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_allocator.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/experimental/parallel_group.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>

#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace asio = boost::asio;
using asio::experimental::awaitable_operators::operator||;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::TaskCancelledError;
using bulkhead::test::adds_up;
using bulkhead::test::board;
using bulkhead::test::cancelled_stage;
using bulkhead::test::count;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::Process;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

namespace {

// What runs in workers. None of it asserts: results and the board tell.

void nothing() {}
int refuse(int value) { throw std::invalid_argument("refused " + std::to_string(value)); }
int use_cpu_for(int microseconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(microseconds);
  while (std::chrono::steady_clock::now() < end) {
  }
  return microseconds;
}
std::size_t length_of(const std::string& text) { return text.size(); }
void refuse_void() { throw std::out_of_range("refused"); }
std::unique_ptr<int> boxed(int value) { return std::make_unique<int>(value); }

struct NoDefault {
  explicit NoDefault(int number) : value(number) {}
  int value;
};
}  // namespace

template <>
struct bulkhead::codec<NoDefault> {
  static void encode(Encoder& encoder, const NoDefault& object) { encoder.write_value(object.value); }
  static NoDefault decode(Decoder& decoder) { return NoDefault(decoder.read_value<int>()); }
};

namespace {

NoDefault without_default(int value) { return NoDefault(value); }

bool is_aborted(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const boost::system::system_error& caught) {
    return caught.code() == asio::error::operation_aborted;
  } catch (...) {
    return false;
  }
  return false;
}

// Waits for all workers: one may have begun a task before the host has heard its number.
std::vector<Process> processes_of(asio::io_context& context, const LocalExecutor& pool) {
  if (!run_until(context, [&] { return pool.bypass() || whole(pool); })) throw std::runtime_error("no workers");
  std::vector<Process> processes;
  for (const int pid : pool.worker_pids()) processes.emplace_back(pid);
  return processes;
}

// Whether this thread runs the executor's handlers. Not inline: clang 16 keeps the address of a thread-local variable
// across a coroutine's suspension, and would look at the thread that it was on before.
template <class Executor>
[[gnu::noinline]] bool runs_here(const Executor& executor) {
  return executor.running_in_this_thread();
}

// Threads that run a context until it has no work, or until the deadline.
class Threads {
 public:
  Threads(asio::io_context& context, int number) : context_(context) {
    for (int i = 0; i < number; ++i) {
      threads_.emplace_back([&context] { context.run_for(kDeadline); });
    }
  }
  ~Threads() { join(); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // True: the context ran out of work by itself.
  bool join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return context_.stopped();
  }

 private:
  asio::io_context& context_;
  std::vector<std::thread> threads_;
};

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Completion tokens.

TEST_CASE("use_awaitable gives the value or throws what the function threw", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto awaits = [&]() -> asio::awaitable<int> {
    co_await pool.async_submit(bulkhead::call(nothing), asio::use_awaitable);
    co_return co_await pool.async_submit(bulkhead::call(twice, 21), asio::use_awaitable);
  };
  CHECK(run(context, awaits()) == 42);
  const auto throws = [&]() -> asio::awaitable<int> {
    co_return co_await pool.async_submit(bulkhead::call(refuse, 7), asio::use_awaitable);
  };
  CHECK_THROWS_AS(run(context, throws()), std::invalid_argument);
  const auto throws_void = [&]() -> asio::awaitable<void> {
    co_await pool.async_submit(bulkhead::call(refuse_void), asio::use_awaitable);
  };
  CHECK_THROWS_AS(run(context, throws_void()), std::out_of_range);
}

TEST_CASE("use_future is ready once another thread has run the context", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  std::future<int> value = pool.async_submit(bulkhead::call(twice, 21), asio::use_future);
  std::future<void> empty = pool.async_submit(bulkhead::call(nothing), asio::use_future);
  std::future<int> error = pool.async_submit(bulkhead::call(refuse, 7), asio::use_future);
  Threads threads(context, 1);
  REQUIRE(value.wait_for(kDeadline) == std::future_status::ready);
  CHECK(value.get() == 42);
  REQUIRE(empty.wait_for(kDeadline) == std::future_status::ready);
  CHECK_NOTHROW(empty.get());
  REQUIRE(error.wait_for(kDeadline) == std::future_status::ready);
  CHECK_THROWS_AS(error.get(), std::invalid_argument);
  CHECK(threads.join());
}

TEST_CASE("deferred can be started later, with any other token", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));

  auto operation = pool.async_submit(bulkhead::call(twice, 21), asio::deferred);
  CHECK(pool.metrics().submitted == 0);
  Outcome<> outcome;
  std::move(operation)(outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK(outcome.value == 42);
  CHECK_FALSE(outcome.error);

  const auto awaits = [&]() -> asio::awaitable<int> {
    // Boost 1.81 can await a deferred operation by itself only if nothing follows the exception_ptr.
    co_await pool.async_submit(bulkhead::call(nothing), asio::deferred);
    auto later = pool.async_submit(bulkhead::call(twice, 4), asio::deferred);
    co_return co_await std::move(later)(asio::use_awaitable);
  };
  CHECK(run(context, awaits()) == 8);
}

TEST_CASE("as_tuple gives the exception as a value, over deferred and over use_awaitable", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto over_deferred = [&](int value) -> asio::awaitable<std::tuple<std::exception_ptr, int>> {
    co_return co_await pool.async_submit(bulkhead::call(twice, value), asio::as_tuple(asio::deferred));
  };
  const auto over_awaitable = [&]() -> asio::awaitable<std::tuple<std::exception_ptr, int>> {
    co_return co_await pool.async_submit(bulkhead::call(refuse, 7), asio::as_tuple(asio::use_awaitable));
  };
  const auto over_void = [&]() -> asio::awaitable<std::exception_ptr> {
    auto [error] = co_await pool.async_submit(bulkhead::call(refuse_void), asio::as_tuple(asio::use_awaitable));
    co_return error;
  };
  const auto [no_error, value] = run(context, over_deferred(21));
  CHECK_FALSE(no_error);
  CHECK(value == 42);
  const auto [error, none] = run(context, over_awaitable());
  CHECK(message(error) == "refused 7");
  CHECK(none == 0);
  CHECK(holds<std::out_of_range>(run(context, over_void())));
}

TEST_CASE("a callback may be a lambda, move-only, or a reference to a function object", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  int sum = 0;
  auto owned = std::make_unique<int>(1);
  pool.async_submit(bulkhead::call(twice, 10), [&sum, owned = std::move(owned)](std::exception_ptr error, int value) {
    if (!error) sum += value + *owned;
  });
  std::function<void(std::exception_ptr, int)> stored = [&sum](std::exception_ptr error, int value) {
    if (!error) sum += value;
  };
  pool.async_submit(bulkhead::call(twice, 100), stored);
  pool.async_submit(bulkhead::call(nothing), [&sum](std::exception_ptr error) {
    if (!error) sum += 1000;
  });
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(sum == 1221);
}

TEST_CASE("a result that can only be moved arrives, and one without a default arrives as an optional", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  std::unique_ptr<int> box;
  std::optional<NoDefault> plain;
  pool.async_submit(bulkhead::call(boxed, 5),
                    [&](std::exception_ptr, std::unique_ptr<int> result) { box = std::move(result); });
  pool.async_submit(bulkhead::call(without_default, 6),
                    [&](std::exception_ptr, std::optional<NoDefault> result) { plain = std::move(result); });
  context.run_for(kDeadline);
  REQUIRE(box);
  CHECK(*box == 5);
  REQUIRE(plain);
  CHECK(plain->value == 6);
  const auto awaits = [&]() -> asio::awaitable<int> {
    const NoDefault result = co_await pool.submit(without_default, 7);
    co_return result.value;
  };
  CHECK(run(context, awaits()) == 7);
}

TEST_CASE("redirect_error lets an exception_ptr through and works over a deferred translation to error_code",
          "[asio]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));

  // The signature has no error_code to redirect: the exception is thrown as without it.
  boost::system::error_code code;
  const auto direct = [&]() -> asio::awaitable<int> {
    co_return co_await pool.async_submit(bulkhead::call(refuse, 7), asio::redirect_error(asio::use_awaitable, code));
  };
  CHECK_THROWS_AS(run(context, direct()), std::invalid_argument);
  CHECK_FALSE(code);

  // For code that thinks in error codes: every error of the library has one.
  const auto with_code = [](std::exception_ptr error, int value) {
    boost::system::error_code translated;
    try {
      if (error) std::rethrow_exception(error);
    } catch (const boost::system::system_error& caught) {
      translated = caught.code();
    } catch (...) {
      translated = bulkhead::Errc::remote_exception;
    }
    return asio::deferred.values(translated, value);
  };
  const auto redirected = [&](int (*function)(int), boost::system::error_code& into) -> asio::awaitable<int> {
    auto operation = pool.async_submit(bulkhead::call(function, 21), asio::deferred(with_code));
    co_return co_await std::move(operation)(asio::redirect_error(asio::use_awaitable, into));
  };
  CHECK(run(context, redirected(twice, code)) == 42);
  CHECK_FALSE(code);
  CHECK(run(context, redirected(refuse, code)) == 0);
  CHECK(code == bulkhead::Errc::remote_exception);
  run(context, pool.shutdown());
  CHECK(run(context, redirected(twice, code)) == 0);
  CHECK(code == bulkhead::Errc::not_running);
}

TEST_CASE("a handler bound to a strand runs in the strand, and a coroutine resumes in its own", "[asio]") {
  asio::io_context context;
  auto guard = asio::make_work_guard(context);
  LocalExecutor pool(context.get_executor(), workers(2));
  Threads threads(context, 2);
  auto strand = asio::make_strand(context);

  constexpr int kTasks = 50;
  std::latch called(kTasks);
  std::atomic<int> outside{0};
  int in_strand = 0;  // not atomic: the strand protects it
  for (int i = 0; i < kTasks; ++i) {
    pool.async_submit(bulkhead::call(twice, i), asio::bind_executor(strand, [&](std::exception_ptr, int) {
                        if (!runs_here(strand)) ++outside;
                        ++in_strand;
                        called.count_down();
                      }));
  }
  const auto coroutine = [&]() -> asio::awaitable<bool> {
    bool always = runs_here(strand);
    for (int i = 0; i < 20; ++i) {
      co_await pool.submit(twice, i);
      always = always && runs_here(strand);
    }
    co_return always;
  };
  std::future<bool> resumed = asio::co_spawn(strand, coroutine(), asio::use_future);
  called.wait();
  CHECK(outside == 0);
  REQUIRE(resumed.wait_for(kDeadline) == std::future_status::ready);
  CHECK(resumed.get());
  guard.reset();
  CHECK(threads.join());
  CHECK(in_strand == kTasks);
}

TEST_CASE("a handler without an executor runs on the executor's context, one with runs on its own", "[asio]") {
  asio::io_context ours;
  asio::io_context theirs;
  LocalExecutor pool(ours.get_executor(), workers(1));
  bool unbound = false;
  bool bound = false;
  pool.async_submit(bulkhead::call(twice, 1),
                    [&](std::exception_ptr, int) { unbound = runs_here(ours.get_executor()); });
  pool.async_submit(bulkhead::call(twice, 2), asio::bind_executor(theirs.get_executor(), [&](std::exception_ptr, int) {
                      bound = runs_here(theirs.get_executor());
                    }));
  // The other context waits for it, though all the work is done here.
  CHECK(theirs.run_for(10ms) == 0);
  CHECK_FALSE(theirs.stopped());
  ours.run_for(kDeadline);
  CHECK(ours.stopped());
  CHECK(unbound);
  CHECK_FALSE(bound);
  theirs.run_for(kDeadline);
  CHECK(theirs.stopped());
  CHECK(bound);
}

namespace {

struct Allocations {
  std::atomic<int> made{0};
  std::atomic<int> live{0};
};

template <class T>
struct CountingAllocator {
  using value_type = T;
  Allocations* allocations;

  explicit CountingAllocator(Allocations& counted) : allocations(&counted) {}
  template <class U>
  CountingAllocator(const CountingAllocator<U>& other) : allocations(other.allocations) {}  // NOLINT

  T* allocate(std::size_t number) {
    ++allocations->made;
    ++allocations->live;
    return std::allocator<T>().allocate(number);
  }
  void deallocate(T* memory, std::size_t number) {
    --allocations->live;
    std::allocator<T>().deallocate(memory, number);
  }
  template <class U>
  bool operator==(const CountingAllocator<U>& other) const {
    return allocations == other.allocations;
  }
};

}  // namespace

TEST_CASE("the task lies in the handler's allocator and is freed before the handler is called", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Allocations allocations;
  int live_in_handler = -1;
  pool.async_submit(bulkhead::call(twice, 21),
                    asio::bind_allocator(CountingAllocator<void*>(allocations),
                                         [&](std::exception_ptr, int) { live_in_handler = allocations.live; }));
  CHECK(allocations.made > 0);
  context.run_for(kDeadline);
  CHECK(live_in_handler == 0);
  CHECK(allocations.live == 0);

  // A refused submit takes the same way.
  run(context, pool.shutdown());
  allocations.made = 0;
  live_in_handler = -1;
  pool.async_submit(bulkhead::call(twice, 21),
                    asio::bind_allocator(CountingAllocator<void*>(allocations),
                                         [&](std::exception_ptr, int) { live_in_handler = allocations.live; }));
  CHECK(allocations.made > 0);
  context.restart();
  context.run_for(kDeadline);
  CHECK(live_in_handler == 0);
  CHECK(allocations.live == 0);
}

TEST_CASE("a bound cancellation slot cancels the task, over a callback, use_awaitable and use_future", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> first;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), first.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));

  asio::cancellation_signal of_callback;
  asio::cancellation_signal of_awaitable;
  asio::cancellation_signal of_future;
  Outcome<> callback;
  pool.async_submit(bulkhead::call(count, 1), asio::bind_cancellation_slot(of_callback.slot(), callback.handler()));
  const auto coroutine = [&]() -> asio::awaitable<int> {
    co_return co_await pool.async_submit(bulkhead::call(count, 2),
                                         asio::bind_cancellation_slot(of_awaitable.slot(), asio::use_awaitable));
  };
  std::exception_ptr awaited;
  asio::co_spawn(context, coroutine(), [&](std::exception_ptr error, int) { awaited = error; });
  std::future<int> future =
      pool.async_submit(bulkhead::call(count, 3), asio::bind_cancellation_slot(of_future.slot(), asio::use_future));
  REQUIRE(run_until(context, [&] { return pool.metrics().submitted == 4; }));
  of_callback.emit(asio::cancellation_type::terminal);
  of_awaitable.emit(asio::cancellation_type::terminal);
  of_future.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(
      context, [&] { return callback.calls == 1 && awaited && future.wait_for(0s) == std::future_status::ready; }));
  CHECK(is_aborted(callback.error));
  CHECK(is_aborted(awaited));
  CHECK_THROWS_AS(future.get(), TaskCancelledError);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return first.calls == 1; }));
  CHECK(first.value == 1);
  CHECK(board.begun == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Groups.

TEST_CASE("operator|| with a timer cancels the task, and its worker is killed and replaced", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  auto strand = asio::make_strand(context);
  const std::vector<int> before = pool.worker_pids();

  const auto late = [&]() -> asio::awaitable<std::size_t> {
    asio::steady_timer timer(co_await asio::this_coro::executor);
    // Not before the task runs: it is to be cancelled while it does.
    const auto expire = [&]() -> asio::awaitable<void> {
      while (board.gate.waiting == 0) {
        timer.expires_after(1ms);
        co_await timer.async_wait(asio::use_awaitable);
      }
    };
    const auto result = co_await (pool.submit(wait_at_gate, 1) || expire());
    co_return result.index();
  };
  std::optional<std::size_t> winner;
  asio::co_spawn(strand, late(), [&](std::exception_ptr, std::size_t index) { winner = index; });
  REQUIRE(run_until(context, [&] { return winner.has_value(); }));
  CHECK(*winner == 1);
  REQUIRE(run_until(context, [&] { return whole(pool) && pool.worker_pids() != before; }));
  const auto metrics = pool.metrics();
  CHECK(metrics.cancelled == 1);
  CHECK(metrics.running + metrics.pending == 0);
  CHECK(metrics.workers == 2);
  CHECK(adds_up(metrics));

  // In time: the timer is cancelled and the value arrives.
  const auto in_time = [&]() -> asio::awaitable<int> {
    asio::steady_timer timer(co_await asio::this_coro::executor, kDeadline);
    const auto result = co_await (pool.submit(twice, 21) || timer.async_wait(asio::use_awaitable));
    co_return result.index() == 0 ? std::get<0>(result) : -1;
  };
  std::optional<int> value;
  asio::co_spawn(strand, in_time(), [&](std::exception_ptr, int result) { value = result; });
  REQUIRE(run_until(context, [&] { return value.has_value(); }));
  CHECK(*value == 42);
}

TEST_CASE("operator|| of two tasks returns the first and cancels the other", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  auto strand = asio::make_strand(context);
  const auto race = [&]() -> asio::awaitable<std::size_t> {
    const auto result = co_await (pool.submit(wait_at_gate, 1) || pool.submit(twice, 2));
    co_return result.index();
  };
  std::optional<std::size_t> winner;
  asio::co_spawn(strand, race(), [&](std::exception_ptr, std::size_t index) { winner = index; });
  REQUIRE(run_until(context, [&] { return winner.has_value(); }));
  CHECK(*winner == 1);
  CHECK(pool.metrics().completed == 1);
  CHECK(pool.metrics().cancelled == 1);
}

TEST_CASE("a parallel group waits for all deferred tasks, or for the first success and cancels the rest", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  namespace experimental = asio::experimental;

  bool all = false;
  experimental::make_parallel_group(pool.async_submit(bulkhead::call(twice, 1), asio::deferred),
                                    pool.async_submit(bulkhead::call(refuse, 2), asio::deferred))
      .async_wait(experimental::wait_for_all(),
                  [&](std::array<std::size_t, 2>, std::exception_ptr first, int value, std::exception_ptr second, int) {
                    all = !first && value == 2 && holds<std::invalid_argument>(second);
                  });
  context.run_for(kDeadline);
  CHECK(all);

  bool one = false;
  experimental::make_parallel_group(pool.async_submit(bulkhead::call(wait_at_gate, 1), asio::deferred),
                                    pool.async_submit(bulkhead::call(twice, 2), asio::deferred))
      .async_wait(experimental::wait_for_one_success(),
                  [&](std::array<std::size_t, 2> order, std::exception_ptr first, int, std::exception_ptr second,
                      int value) { one = order[0] == 1 && is_aborted(first) && !second && value == 4; });
  context.restart();
  context.run_for(kDeadline);
  CHECK(one);
  CHECK(adds_up(pool.metrics()));
}

// ---------------------------------------------------------------------------------------------------------------------
// Threads and contexts.

TEST_CASE("two threads run one io_context and every task completes once", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(2, bypass);
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<std::atomic<int>> calls(1000);
  std::atomic<int> wrong{0};
  for (int i = 0; i < 1000; ++i) {
    pool.async_submit(bulkhead::call(twice, i), [&, i](std::exception_ptr error, int value) {
      if (error || value != 2 * i) ++wrong;
      ++calls[static_cast<std::size_t>(i)];
    });
  }
  Threads threads(context, 2);
  CHECK(threads.join());
  CHECK(wrong == 0);
  CHECK(std::all_of(calls.begin(), calls.end(), [](const auto& number) { return number == 1; }));
  const auto metrics = pool.metrics();
  CHECK(metrics.completed == 1000);
  CHECK(adds_up(metrics));
}

TEST_CASE("short calls, longer ones and refusals wait for four workers, and each completes once", "[asio]") {
  const int threads = GENERATE(1, 2);
  CAPTURE(threads);
  constexpr int kTasks = 20'000;
  constexpr int kOutstanding = 3000;  // more than the rings of all workers hold
  asio::io_context context;
  LocalExecutorOptions options = workers(4);
  options.max_pending = kOutstanding;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<std::atomic<int>> calls(kTasks);
  std::atomic<int> next{0};
  std::atomic<int> wrong{0};
  const std::string text(1000, 'x');
  std::function<void()> submit_next = [&] {
    const int i = next++;
    if (i >= kTasks) return;
    const auto over = [&, i](bool right) {
      if (!right) ++wrong;
      ++calls[static_cast<std::size_t>(i)];
      submit_next();
    };
    if (i % 100 == 50) {
      pool.async_submit(bulkhead::call(length_of, text),
                        [over](std::exception_ptr error, std::size_t length) { over(!error && length == 1000); });
    } else if (i % 100 == 99) {
      pool.async_submit(bulkhead::call(refuse, i), [over](std::exception_ptr error, int) { over(error != nullptr); });
    } else {
      pool.async_submit(bulkhead::call(twice, i),
                        [over, i](std::exception_ptr error, int value) { over(!error && value == 2 * i); });
    }
  };
  for (int i = 0; i < kOutstanding; ++i) submit_next();
  Threads runners(context, threads);
  CHECK(runners.join());
  CHECK(wrong == 0);
  CHECK(std::all_of(calls.begin(), calls.end(), [](const auto& number) { return number == 1; }));
  const auto metrics = pool.metrics();
  CHECK(metrics.completed == kTasks - kTasks / 100);
  CHECK(metrics.failed == kTasks / 100);
  CHECK(adds_up(metrics));
}

TEST_CASE("a handler that blocks until other tasks are over holds up no other thread of the event loop", "[asio]") {
  constexpr int kTasks = 50;
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 2 * kTasks;
  LocalExecutor pool(context.get_executor(), options);
  std::promise<void> all_others;
  std::future<int> later;
  std::atomic<bool> first{true};
  std::atomic<int> others{0};
  bool delivered = false;
  bool came_later = false;
  for (int i = 0; i < kTasks; ++i) {
    pool.async_submit(bulkhead::call(twice, i), [&](std::exception_ptr, int) {
      if (first.exchange(false)) {
        later = pool.async_submit(bulkhead::call(twice, 21), asio::use_future);
        delivered = all_others.get_future().wait_for(kDeadline) == std::future_status::ready;
        came_later = delivered && later.wait_for(kDeadline) == std::future_status::ready;
      } else if (++others == kTasks - 1) {
        all_others.set_value();
      }
    });
  }
  Threads runners(context, 2);
  CHECK(runners.join());
  CHECK(delivered);
  REQUIRE(came_later);
  CHECK(later.get() == 42);
}

TEST_CASE("a task that a handler submits begins while the handler goes on, behind another of its worker", "[asio]") {
  const int microseconds = GENERATE(0, 20);  // tiny tasks are shown to a worker several at once
  CAPTURE(microseconds);
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 100;
  LocalExecutor pool(context.get_executor(), options);
  // Some turns, as a machine that others use may have made tasks so long that the ring takes one at a time: then the
  // handler waits in vain, and that for some hundred times as long as it takes otherwise.
  bool begun = false;
  for (int turn = 0; turn < 20 && !begun; ++turn) {
    reset_board();
    for (int i = 0; i < 100; ++i) run(context, pool.submit(use_cpu_for, microseconds));
    std::array<Outcome<>, 6> outcomes;
    pool.async_submit(bulkhead::call(use_cpu_for, microseconds), [&](std::exception_ptr, int) {
      // One after the other: also those that are submitted when it has been seen that this handler takes its time.
      for (int k = 1; k <= 5 && (k == 1 || begun); ++k) {
        pool.async_submit(bulkhead::call(count, k), outcomes[static_cast<std::size_t>(k)].handler());
        begun = bulkhead::test::poll_until([k] { return board.ended == k; }, 1s);
      }
    });
    pool.async_submit(bulkhead::call(use_cpu_for, microseconds), outcomes[0].handler());
    const auto all_over = [&] {
      const auto metrics = pool.metrics();
      return outcomes[0].calls == 1 && metrics.pending + metrics.running == 0;
    };
    REQUIRE(run_until(context, all_over));
    settle(context);
  }
  CHECK(begun);
}

TEST_CASE("a handler that waits for a task gets it though the executor's handlers are on a strand", "[asio]") {
  asio::io_context context;
  LocalExecutor pool(asio::make_strand(context), workers(1));
  bool came = false;
  asio::post(context, [&] {
    std::future<int> result = pool.async_submit(bulkhead::call(twice, 21), asio::use_future);
    came = result.wait_for(kDeadline) == std::future_status::ready && result.get() == 42;
  });
  Threads runners(context, 2);
  CHECK(runners.join());
  CHECK(came);
}

TEST_CASE("eight threads submit while two run the io_context", "[asio]") {
  constexpr int kThreads = 8;
  constexpr int kTasks = 200;
  asio::io_context context;
  auto guard = asio::make_work_guard(context);
  LocalExecutorOptions options = workers(2);
  options.max_pending = 64;
  options.overload = bulkhead::OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  std::atomic<int> wrong{0};
  std::atomic<int> completed{0};
  std::atomic<int> unbalanced{0};
  Threads runners(context, 2);
  std::vector<std::thread> submitters;
  for (int t = 0; t < kThreads; ++t) {
    submitters.emplace_back([&, t] {
      for (int i = 0; i < kTasks; ++i) {
        pool.async_submit(bulkhead::call(twice, t * kTasks + i),
                          [&, expected = 2 * (t * kTasks + i)](std::exception_ptr error, int value) {
                            if (error || value != expected) ++wrong;
                            ++completed;
                          });
        if (!adds_up(pool.metrics())) ++unbalanced;
      }
    });
  }
  for (std::thread& thread : submitters) thread.join();
  guard.reset();
  CHECK(runners.join());
  CHECK(wrong == 0);
  CHECK(unbalanced == 0);
  CHECK(completed == kThreads * kTasks);
  CHECK(pool.metrics().completed == kThreads * kTasks);
}

TEST_CASE("two io_contexts in one process each have a pool and await the other's", "[asio]") {
  asio::io_context first;
  asio::io_context second;
  LocalExecutor of_first(first.get_executor(), workers(1));
  LocalExecutor of_second(second.get_executor(), workers(1));
  const auto crosswise = [](LocalExecutor& own, LocalExecutor& other, asio::io_context& home) -> asio::awaitable<int> {
    int sum = 0;
    for (int i = 0; i < 50; ++i) {
      sum += co_await own.submit(twice, 1);
      if (!runs_here(home.get_executor())) co_return -1;
      sum += co_await other.submit(twice, 1);
      if (!runs_here(home.get_executor())) co_return -2;
    }
    co_return sum;
  };
  // A pool's context must run for its tasks to come back, whoever awaits them.
  auto first_guard = asio::make_work_guard(first);
  auto second_guard = asio::make_work_guard(second);
  std::future<int> one = asio::co_spawn(first, crosswise(of_first, of_second, first), asio::use_future);
  std::future<int> two = asio::co_spawn(second, crosswise(of_second, of_first, second), asio::use_future);
  Threads first_thread(first, 1);
  Threads second_thread(second, 1);
  REQUIRE(one.wait_for(kDeadline) == std::future_status::ready);
  REQUIRE(two.wait_for(kDeadline) == std::future_status::ready);
  CHECK(one.get() == 200);
  CHECK(two.get() == 200);
  first_guard.reset();
  second_guard.reset();
  CHECK(first_thread.join());
  CHECK(second_thread.join());
}

TEST_CASE("an io_context stopped and destroyed with tasks in flight calls no handler and leaves no worker", "[asio]") {
  const bool executor_first = GENERATE(true, false);
  CAPTURE(executor_first);
  reset_board();
  auto context = std::make_unique<asio::io_context>();
  auto pool = std::make_unique<LocalExecutor>(context->get_executor(), workers(2));
  const auto token = std::make_shared<int>();
  int called = 0;
  for (int i = 0; i < 5; ++i) {
    pool->async_submit(bulkhead::call(wait_at_gate, i), [&called, token](std::exception_ptr, int) { ++called; });
  }
  // The coroutine refers to the executor as little as the handlers do.
  const auto coroutine = [](LocalExecutor& executor, std::shared_ptr<int> held) -> asio::awaitable<void> {
    co_await executor.submit(wait_at_gate, 5);
    ++*held;
  };
  asio::co_spawn(*context, coroutine(*pool, token), asio::detached);
  REQUIRE(run_until(*context, [] { return board.gate.waiting == 2; }));
  REQUIRE(run_until(*context, [&] { return pool->metrics().submitted == 6; }));
  const std::vector<Process> processes = processes_of(*context, *pool);
  CHECK(processes.size() == 2);
  CHECK(token.use_count() == 7);

  context->stop();
  if (executor_first) {
    pool.reset();
    context.reset();
  } else {
    context.reset();
    CHECK(token.use_count() == 1);
    const auto metrics = pool->metrics();
    CHECK(metrics.cancelled == 6);
    CHECK(adds_up(metrics));
    pool.reset();
  }
  CHECK(called == 0);
  CHECK(*token == 0);
  CHECK(token.use_count() == 1);
  for (const Process& process : processes) CHECK(process.gone_within(kGone));
}

TEST_CASE("destroying the executor completes its tasks with operation_aborted, later and not inline", "[asio]") {
  reset_board();
  asio::io_context context;
  auto pool = std::make_unique<LocalExecutor>(context.get_executor(), workers(1));
  std::array<Outcome<>, 3> outcomes;
  for (Outcome<>& outcome : outcomes) pool->async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const std::vector<Process> processes = processes_of(context, *pool);
  pool.reset();
  for (const Outcome<>& outcome : outcomes) CHECK(outcome.calls == 0);
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
  for (const Outcome<>& outcome : outcomes) {
    CHECK(outcome.calls == 1);
    CHECK(is_aborted(outcome.error));
  }
  for (const Process& process : processes) CHECK(process.gone_within(kGone));
}

// ---------------------------------------------------------------------------------------------------------------------
// When nothing happens, and when the context may end.

TEST_CASE("a dropped awaitable or deferred operation starts nothing", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  {
    const auto awaitable = pool.submit(count, 1);
    const auto by_token = pool.async_submit(bulkhead::call(count, 2), asio::use_awaitable);
    const auto deferred = pool.async_submit(bulkhead::call(count, 3), asio::deferred);
    auto wrapped = pool(count);
    const auto by_wrapper = wrapped(4);
  }
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(pool.metrics().submitted == 0);
  // A task that does run is behind them all.
  CHECK(run(context, pool.submit(count, 5)) == 5);
  CHECK(board.begun == 1);
}

TEST_CASE("a handler is never called inside the initiating function, whatever the outcome", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_pending = 4;
  LocalExecutor pool(context.get_executor(), options);
  int inside = 0;
  int calls = 0;
  bool initiating = false;
  const auto submit = [&](int (*function)(int)) {
    initiating = true;
    pool.async_submit(bulkhead::call(function, 1), [&](std::exception_ptr, int) {
      ++calls;
      if (initiating) ++inside;
    });
    initiating = false;
  };
  // From outside, and from a handler on the context's own thread, where a dispatch would run at once.
  const auto submit_all = [&] {
    submit(twice);
    submit(refuse);
    submit(nullptr);
    submit(twice);
    submit(twice);  // one too many
  };
  submit_all();
  REQUIRE(run_until(context, [&] { return calls == 5; }));
  asio::post(context, submit_all);
  REQUIRE(run_until(context, [&] { return calls == 10; }));
  pool.async_submit(bulkhead::call(twice, 1), [&](std::exception_ptr, int) { submit_all(); });
  REQUIRE(run_until(context, [&] { return calls == 15; }));
  run(context, pool.shutdown());
  asio::post(context, submit_all);  // refused
  REQUIRE(run_until(context, [&] { return calls == 20; }));
  CHECK(inside == 0);
}

TEST_CASE("io_context::run returns when nothing is in flight, and not while a task is", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, bypass));
  // An idle pool holds no work, before its first task and after it.
  context.run_for(kDeadline);
  CHECK(context.stopped());
  Outcome<> quick;
  pool.async_submit(bulkhead::call(twice, 21), quick.handler());
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(quick.value == 42);
  if (bypass) return;  // There the context's own thread runs the task.

  Outcome<> slow;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), slow.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  settle(context);
  CHECK_FALSE(context.stopped());
  CHECK(slow.calls == 0);
  board.gate.open = 1;
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(slow.calls == 1);
}

TEST_CASE("io_context::run does not return while a killed worker's task has no outcome", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> outcome;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  signal.emit(asio::cancellation_type::terminal);
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(outcome.calls == 1);
  CHECK(is_aborted(outcome.error));
}

// ---------------------------------------------------------------------------------------------------------------------
// What handlers may do.

TEST_CASE("what a handler throws leaves run, and no other task's result is lost", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, bypass));
  constexpr int kTasks = 60;
  int calls = 0;
  int thrown = 0;
  for (int i = 0; i < kTasks; ++i) {
    pool.async_submit(bulkhead::call(twice, i), [&calls, i](std::exception_ptr, int) {
      ++calls;
      if (i % 3 == 0) throw std::runtime_error("the handler's own");
    });
  }
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!context.stopped() && std::chrono::steady_clock::now() < end) {
    try {
      context.run_until(end);
    } catch (const std::runtime_error& error) {
      if (std::string(error.what()) == "the handler's own") ++thrown;
    }
  }
  CHECK(calls == kTasks);
  CHECK(thrown == kTasks / 3);
  const auto metrics = pool.metrics();
  CHECK(metrics.completed == kTasks);
  CHECK(adds_up(metrics));
}

TEST_CASE("a handler may submit again, also when its own slot was the last one", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_pending = 1;
  LocalExecutor pool(context.get_executor(), options);
  int rounds = 0;
  std::exception_ptr failure;
  std::function<void(std::exception_ptr, int)> again = [&](std::exception_ptr error, int value) {
    if (error || value != 2 * rounds) {
      failure = error;
      return;
    }
    if (++rounds < 200) pool.async_submit(bulkhead::call(twice, rounds), again);
  };
  pool.async_submit(bulkhead::call(twice, 0), again);
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(message(failure).empty());
  CHECK(rounds == 200);
  CHECK(pool.metrics().rejected == 0);
}

TEST_CASE("a handler may destroy the executor; the other tasks complete with operation_aborted or their value",
          "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  auto pool = std::make_unique<LocalExecutor>(context.get_executor(), workers(2, bypass));
  const std::vector<Process> processes = processes_of(context, *pool);
  int destroyed = 0;
  pool->async_submit(bulkhead::call(twice, 1), [&](std::exception_ptr, int) {
    pool.reset();
    ++destroyed;
  });
  constexpr int kOthers = 20;
  std::array<Outcome<>, kOthers> others;
  for (Outcome<>& other : others) pool->async_submit(bulkhead::call(twice, 21), other.handler());
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(destroyed == 1);
  for (const Outcome<>& other : others) {
    CHECK(other.calls == 1);
    CHECK((is_aborted(other.error) || (!other.error && other.value == 42)));
  }
  for (const Process& process : processes) CHECK(process.gone_within(kGone));
}

TEST_CASE("a handler that blocks keeps no other thread of the context from delivering", "[asio]") {
  asio::io_context context;
  auto guard = asio::make_work_guard(context);
  LocalExecutor pool(context.get_executor(), workers(1));
  Threads threads(context, 2);
  std::promise<void> release;
  std::future<void> released = release.get_future();
  std::atomic<bool> blocked{false};
  pool.async_submit(bulkhead::call(twice, 1), [&](std::exception_ptr, int) {
    blocked = true;
    released.wait_for(kDeadline);
  });
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!blocked && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  std::future<int> other = pool.async_submit(bulkhead::call(twice, 21), asio::use_future);
  const bool delivered = other.wait_for(kDeadline) == std::future_status::ready;
  release.set_value();
  guard.reset();
  CHECK(delivered);
  CHECK(threads.join());
}

// ---------------------------------------------------------------------------------------------------------------------
// Cancellation, by stage and type.

TEST_CASE("a queued task cancelled by any type never reaches a worker", "[asio]") {
  const auto type =
      GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
  CAPTURE(static_cast<unsigned>(type));
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> running;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), running.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && whole(pool); }));
  const std::vector<int> before = pool.worker_pids();

  Outcome<> queued;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(count, 2), asio::bind_cancellation_slot(signal.slot(), queued.handler()));
  signal.emit(type);
  CHECK(queued.calls == 0);  // not inline
  REQUIRE(run_until(context, [&] { return queued.calls > 0; }));
  CHECK(is_aborted(queued.error));
  CHECK(cancelled_stage(queued.error) == TaskCancelledError::Stage::queued);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return running.calls > 0; }));
  CHECK(running.value == 1);
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(queued.calls == 1);
  CHECK(board.begun == 0);
  CHECK(pool.worker_pids() == before);
  const auto metrics = pool.metrics();
  CHECK(metrics.cancelled == 1);
  CHECK(metrics.workers_started == 1);
  CHECK(adds_up(metrics));
}

TEST_CASE("a task cancelled by any type while it waits for admission is not admitted", "[asio]") {
  const auto type =
      GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
  CAPTURE(static_cast<unsigned>(type));
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 1;
  options.overload = bulkhead::OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> running;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), running.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  Outcome<> waiting;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(count, 2), asio::bind_cancellation_slot(signal.slot(), waiting.handler()));
  CHECK(pool.metrics().waiting == 1);
  signal.emit(type);
  CHECK(waiting.calls == 0);
  REQUIRE(run_until(context, [&] { return waiting.calls > 0; }));
  CHECK(is_aborted(waiting.error));
  CHECK(cancelled_stage(waiting.error) == TaskCancelledError::Stage::waiting);
  CHECK(pool.metrics().waiting == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return running.calls > 0; }));
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
  CHECK(waiting.calls == 1);
  CHECK(board.begun == 0);
  const auto metrics = pool.metrics();
  CHECK(metrics.completed == 1);
  CHECK(metrics.cancelled == 1);
  CHECK(adds_up(metrics));
}

TEST_CASE("a running task cancelled by terminal loses its worker, which is replaced", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> running;
  Outcome<> behind;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), asio::bind_cancellation_slot(signal.slot(), running.handler()));
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  pool.async_submit(bulkhead::call(twice, 21), behind.handler());
  const std::vector<Process> processes = processes_of(context, pool);
  signal.emit(asio::cancellation_type::terminal);
  CHECK(running.calls == 0);
  REQUIRE(run_until(context, [&] { return running.calls > 0 && behind.calls > 0; }));
  CHECK(is_aborted(running.error));
  CHECK(cancelled_stage(running.error) == TaskCancelledError::Stage::running);
  CHECK(behind.value == 42);
  for (const Process& process : processes) CHECK(process.gone_within(kGone));
  const auto metrics = pool.metrics();
  CHECK(metrics.cancelled == 1);
  CHECK(metrics.completed == 1);
  CHECK(metrics.workers == 1);
  CHECK(metrics.workers_started == 2);
  CHECK(metrics.workers_crashed == 0);  // We did it.
  CHECK(adds_up(metrics));
  // A second signal finds nothing.
  signal.emit(asio::cancellation_type::all);
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(running.calls == 1);
}

TEST_CASE("a running task ignores partial and total cancellation and returns its value", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> running;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(wait_at_gate, 7), asio::bind_cancellation_slot(signal.slot(), running.handler()));
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  signal.emit(asio::cancellation_type::partial);
  signal.emit(asio::cancellation_type::total);
  signal.emit(asio::cancellation_type::partial | asio::cancellation_type::total);
  context.restart();
  context.run_for(20ms);
  CHECK(running.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return running.calls > 0; }));
  CHECK_FALSE(running.error);
  CHECK(running.value == 7);
  CHECK(pool.metrics().workers_started == 1);
  CHECK(pool.metrics().cancelled == 0);
}

TEST_CASE("cancelling after completion has no effect, also when the memory serves another task", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Outcome<> first;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(twice, 1), asio::bind_cancellation_slot(signal.slot(), first.handler()));
  REQUIRE(run_until(context, [&] { return first.calls == 1; }));
  // The recycling allocator gives the first task's memory to the second.
  Outcome<> second;
  pool.async_submit(bulkhead::call(count, 2), second.handler());
  signal.emit(asio::cancellation_type::all);
  REQUIRE(run_until(context, [&] { return second.calls == 1; }));
  CHECK_FALSE(second.error);
  CHECK(board.begun == 1);
  CHECK(first.calls == 1);
  CHECK(pool.metrics().cancelled == 0);
}

TEST_CASE("cancelling after the executor is destroyed is harmless", "[asio]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  reset_board();
  asio::io_context context;
  auto pool = std::make_unique<LocalExecutor>(context.get_executor(), workers(1, bypass));
  std::array<asio::cancellation_signal, 2> signals;
  Outcome<> done;
  pool->async_submit(bulkhead::call(twice, 21), asio::bind_cancellation_slot(signals[0].slot(), done.handler()));
  REQUIRE(run_until(context, [&] { return done.calls == 1; }));
  Outcome<> in_flight;
  // One that cannot end by itself before the executor is gone.
  pool->async_submit(bulkhead::call(wait_at_gate, 1),
                     asio::bind_cancellation_slot(signals[1].slot(), in_flight.handler()));
  pool.reset();
  for (auto& signal : signals) signal.emit(asio::cancellation_type::all);  // Before the handler was called.
  REQUIRE(run_until(context, [&] { return in_flight.calls == 1; }));
  for (auto& signal : signals) signal.emit(asio::cancellation_type::all);  // And after.
  context.restart();
  context.run_for(kDeadline);
  INFO(bulkhead::test::message(in_flight.error));
  CHECK(is_aborted(in_flight.error));
  CHECK(in_flight.calls == 1);
  CHECK(done.calls == 1);
  CHECK(done.value == 42);
}

TEST_CASE("a running task can be cancelled from another thread while nobody runs the context", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> running;
  asio::cancellation_signal signal;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), asio::bind_cancellation_slot(signal.slot(), running.handler()));
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const std::vector<Process> processes = processes_of(context, pool);
  std::thread([&] { signal.emit(asio::cancellation_type::terminal); }).join();
  for (const Process& process : processes) CHECK(process.gone_within(kGone));
  CHECK(running.calls == 0);
  REQUIRE(run_until(context, [&] { return running.calls == 1; }));
  CHECK(is_aborted(running.error));
}

TEST_CASE("cancelling races with completion on two threads and every task has exactly one outcome", "[asio]") {
  constexpr int kTasks = 300;
  asio::io_context context;
  auto guard = asio::make_work_guard(context);
  LocalExecutorOptions options = workers(2);
  options.max_pending = kTasks;
  LocalExecutor pool(context.get_executor(), options);
  Threads threads(context, 2);
  std::vector<asio::cancellation_signal> signals(kTasks);
  std::vector<std::atomic<int>> calls(kTasks);
  std::atomic<int> values{0};
  std::atomic<int> aborted{0};
  std::latch over(kTasks);
  for (std::size_t i = 0; i < kTasks; ++i) {
    pool.async_submit(bulkhead::call(twice, 1),
                      asio::bind_cancellation_slot(signals[i].slot(), [&, i](std::exception_ptr error, int) {
                        if (!error) ++values;
                        if (is_aborted(error)) ++aborted;
                        if (++calls[i] == 1) over.count_down();
                      }));
    // Now the newest, now one of those that may be about to complete.
    if (i % 3 == 0) signals[i].emit(asio::cancellation_type::terminal);
    if (i % 3 == 1) signals[i / 2].emit(asio::cancellation_type::total);
  }
  over.wait();
  guard.reset();
  CHECK(threads.join());
  CHECK(std::all_of(calls.begin(), calls.end(), [](const auto& number) { return number == 1; }));
  const auto metrics = pool.metrics();
  CHECK(values + aborted == kTasks);
  CHECK(metrics.completed == static_cast<std::uint64_t>(values.load()));
  CHECK(metrics.cancelled == static_cast<std::uint64_t>(aborted.load()));
  CHECK(adds_up(metrics));
}

TEST_CASE("a coroutine's own cancellation reaches its task at both stages", "[asio]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto coroutine = [](LocalExecutor& executor, int value) -> asio::awaitable<int> {
    co_return co_await executor.submit(wait_at_gate, value);
  };
  std::array<asio::cancellation_signal, 2> signals;
  std::array<std::exception_ptr, 2> errors;
  for (std::size_t i = 0; i < 2; ++i) {
    asio::co_spawn(
        context, coroutine(pool, static_cast<int>(i)),
        asio::bind_cancellation_slot(signals[i].slot(), [&, i](std::exception_ptr error, int) { errors[i] = error; }));
  }
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && pool.metrics().submitted == 2; }));
  signals[1].emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return bool(errors[1]); }));
  CHECK(cancelled_stage(errors[1]) == TaskCancelledError::Stage::queued);
  signals[0].emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return bool(errors[0]); }));
  CHECK(cancelled_stage(errors[0]) == TaskCancelledError::Stage::running);
}
