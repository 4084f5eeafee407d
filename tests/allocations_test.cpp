// SPDX-License-Identifier: BSL-1.0
// What a task costs in allocations, counted where they are made.
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_allocator.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <list>
#include <memory>
#include <new>
#include <string>

namespace {
std::atomic<long> allocations{0};
}  // namespace

// Not inline, where g++ 12 takes new and free for a pair that does not belong together.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size == 0 ? 1 : size);
}
// std::pmr's resources use this one.
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  ++allocations;
  const auto least = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(least, (size + least - 1) / least * least)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

namespace asio = boost::asio;
using namespace std::chrono_literals;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::twice;

namespace {

// Enough that one for each task cannot be taken for what background threads allocate now and then; and enough before
// them that everything has its size.
constexpr int kTasks = 10'000;
constexpr int kBefore = 2'000;
constexpr long kNowAndThen = kTasks / 100;

LocalExecutorOptions one_worker() {
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.max_pending = 1000;
  return options;
}

asio::awaitable<void> submit_each(LocalExecutor& pool, int tasks) {
  for (int i = 0; i < tasks; ++i) co_await pool.submit(twice, i);
}

long allocations_here(int) { return allocations; }

// Too long for a slot of a ring: it lies in a block of an area's heap, on both ways.
using Long = std::array<int, 64>;
Long same(Long value) { return value; }

enum class Kind { plain, with_timeout, with_cancellation_slot, long_message };

// So many tasks in flight until all have run.
class Callbacks {
 public:
  Callbacks(asio::io_context& context, LocalExecutor& pool, Kind kind = Kind::plain)
      : context_(context), pool_(pool), kind_(kind) {}

  bool run(int tasks, int in_flight) {
    left_ = tasks;
    under_way_ = in_flight;
    while (signals_.size() < static_cast<std::size_t>(in_flight)) signals_.emplace_back();
    for (auto& signal : signals_) next(signal);
    return run_until(context_, [this] { return under_way_ == 0; });
  }

 private:
  void next(asio::cancellation_signal& signal) {
    if (left_ == 0) {
      --under_way_;
      return;
    }
    --left_;
    const auto go_on = [this, &signal](std::exception_ptr, auto&&) { next(signal); };
    switch (kind_) {
      case Kind::plain:
        pool_.async_submit(bulkhead::call(twice, 1), go_on);
        break;
      case Kind::with_timeout:
        pool_.async_submit(bulkhead::TaskOptions().timeout(1min).queue_timeout(1min), bulkhead::call(twice, 1), go_on);
        break;
      case Kind::with_cancellation_slot:
        pool_.async_submit(bulkhead::call(twice, 1), asio::bind_cancellation_slot(signal.slot(), go_on));
        break;
      case Kind::long_message:
        pool_.async_submit(bulkhead::call(same, Long{}), go_on);
    }
  }

  asio::io_context& context_;
  LocalExecutor& pool_;
  Kind kind_;
  std::list<asio::cancellation_signal> signals_;  // one for each in flight
  int left_ = 0;
  int under_way_ = 0;
};

// In the long run.
void check_no_allocations(Callbacks& callbacks, int in_flight) {
  REQUIRE(callbacks.run(kBefore, in_flight));
  const long before = allocations;
  REQUIRE(callbacks.run(kTasks, in_flight));
  const long made = allocations - before;
  CAPTURE(made);
  // Asio keeps two blocks of a thread for the next handlers: what is started first and all together needs more.
  CHECK(made < kNowAndThen + 2 * in_flight);
}

// As users have them: it counts.
template <class T>
struct CountingAllocator {
  using value_type = T;

  explicit CountingAllocator(long& counter) : count(&counter) {}
  template <class U>
  CountingAllocator(const CountingAllocator<U>& other) : count(other.count) {}  // NOLINT: as the standard wants it
  T* allocate(std::size_t n) {
    ++*count;
    return static_cast<T*>(std::malloc(n * sizeof(T)));
  }
  void deallocate(T* memory, std::size_t) { std::free(memory); }
  template <class U>
  bool operator==(const CountingAllocator<U>& other) const {
    return count == other.count;
  }

  long* count;
};

}  // namespace

TEST_CASE("allocations are counted: a task with a name has some", "[cost]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  const long before = allocations;
  for (int i = 0; i < 100; ++i) run(context, pool.submit(bulkhead::TaskOptions().name("named"), twice, i));
  CHECK(allocations - before >= 100);
}

TEST_CASE("a task that is awaited allocates nothing in the long run: its coroutine's frame is used again", "[cost]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  run(context, submit_each(pool, kBefore));
  const long before = allocations;
  run(context, submit_each(pool, kTasks));
  const long made = allocations - before;
  CAPTURE(made);
  CHECK(made < kNowAndThen);
}

TEST_CASE("tasks that many coroutines await at once allocate nothing in the long run", "[cost]") {
  const int in_flight = GENERATE(16, 256);
  CAPTURE(in_flight);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  long before = 0;
  long after = 0;
  int warm = 0;
  int over = 0;
  const auto each = [&]() -> asio::awaitable<void> {
    for (int i = 0; i < kBefore / in_flight + 10; ++i) co_await pool.submit(twice, i);
    if (++warm == in_flight) before = allocations;
    for (int i = 0; i < kTasks / in_flight; ++i) co_await pool.submit(twice, i);
    // While all others are still at it: their ends are not to count.
    if (over++ == 0) after = allocations;
  };
  for (int i = 0; i < in_flight; ++i) asio::co_spawn(context, each(), asio::detached);
  REQUIRE(run_until(context, [&] { return over == in_flight; }));
  const long made = after - before;
  CAPTURE(made);
  CHECK(made < kNowAndThen);
}

TEST_CASE("a worker allocates nothing for a task", "[cost]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  run(context, submit_each(pool, 100));
  const long before = run(context, pool.submit(allocations_here, 0));
  run(context, submit_each(pool, 1000));
  CHECK(run(context, pool.submit(allocations_here, 0)) - before < 10);
}

TEST_CASE("a task with a callback allocates nothing in the long run, if one is in flight or many are", "[cost]") {
  const int in_flight = GENERATE(1, 16, 256, 1000);
  CAPTURE(in_flight);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  Callbacks callbacks(context, pool);
  check_no_allocations(callbacks, in_flight);
}

TEST_CASE("a time limit, a cancellation slot and a message that fits no slot cost no allocation either", "[cost]") {
  const auto kind = GENERATE(Kind::with_timeout, Kind::with_cancellation_slot, Kind::long_message);
  CAPTURE(static_cast<int>(kind));
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  constexpr int kInFlight = 100;
  Callbacks callbacks(context, pool, kind);
  check_no_allocations(callbacks, kInFlight);
}

TEST_CASE("a task that waits since too many are in flight costs no allocation", "[cost]") {
  asio::io_context context;
  LocalExecutorOptions options = one_worker();
  options.max_pending = 16;
  options.overload = bulkhead::OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  constexpr int kInFlight = 100;
  Callbacks callbacks(context, pool);
  check_no_allocations(callbacks, kInFlight);
}

TEST_CASE("a task's memory comes from its handler's allocator", "[cost]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), one_worker());
  long counted = 0;
  int over = 0;
  for (int i = 0; i < 100; ++i) {
    pool.async_submit(bulkhead::call(twice, i),
                      asio::bind_allocator(CountingAllocator<void>(counted), [&](std::exception_ptr, int) { ++over; }));
  }
  CHECK(counted == 100);
  REQUIRE(run_until(context, [&] { return over == 100; }));
}
