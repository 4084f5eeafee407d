// SPDX-License-Identifier: BSL-1.0
// Whether four tasks that only wait take as long as one of them, on each kind of executor.
//
//   bench_parallel [--quick]
//
// Four sleeps of 0.1 s are submitted at once; the time is until the last has its result. Their peer is one such sleep
// on the same executor, in the same run: the ratio is 1 where they run beside each other, and 4 where they do not.
#include <bulkhead/groups.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr unsigned kSleeps = 4;

void sleep_for(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }

asio::awaitable<void> wait_for(std::chrono::milliseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(asio::use_awaitable);
}

template <class Sleep>
asio::awaitable<double> seconds_of(bulkhead::BaseExecutor& executor, Sleep sleep, unsigned number,
                                   std::chrono::milliseconds time) {
  const auto begin = Clock::now();
  std::vector<asio::awaitable<void>> sleeps;
  for (unsigned i = 0; i < number; ++i) sleeps.push_back(executor.submit(sleep, time));
  co_await bulkhead::when_all(std::move(sleeps));
  co_return Seconds(Clock::now() - begin).count();
}

template <class T>
T run(asio::io_context& context, asio::awaitable<T> coroutine) {
  T result{};
  std::exception_ptr failure;
  context.restart();
  asio::co_spawn(context, std::move(coroutine), [&](std::exception_ptr error, T value) {
    failure = std::move(error);
    result = value;
  });
  context.run();
  if (failure) std::rethrow_exception(failure);
  return result;
}

template <class Sleep>
void measure(asio::io_context& context, const char* name, bulkhead::BaseExecutor& executor, Sleep sleep, bool quick) {
  const auto time = quick ? 20ms : 100ms;
  // The best of a few: a machine that others use, too, only ever makes it longer.
  const int rounds = quick ? 1 : 5;
  double one = 1e9;
  double four = 1e9;
  run(context, seconds_of(executor, sleep, kSleeps, 1ms));  // so that threads and processes are there
  for (int i = 0; i < rounds; ++i) {
    one = std::min(one, run(context, seconds_of(executor, sleep, 1, time)));
    four = std::min(four, run(context, seconds_of(executor, sleep, kSleeps, time)));
  }
  fmt::print("{:<20} {:>10.4f} {:>10.4f} {:>8.3f}\n", name, one, four, four / one);
}

}  // namespace

int main(int argc, char** argv) try {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  bulkhead::start_fork_server();
  asio::io_context context;
  const auto executor = context.get_executor();
  bulkhead::LocalExecutorOptions four_workers;
  four_workers.max_workers = kSleeps;
  const auto processes = std::make_shared<bulkhead::LocalExecutor>(executor, four_workers);
  const auto threads = std::make_shared<bulkhead::ThreadExecutor>(executor);
  bulkhead::IoExecutor io(executor);
  std::vector<std::shared_ptr<bulkhead::BaseExecutor>> members{processes, threads};
  bulkhead::HybridExecutor hybrid(executor, std::move(members));
  fmt::print("{:<20} {:>10} {:>10} {:>8}\n", "sleeps of 0.1 s", "one, s", "four, s", "ratio");
  measure(context, "ThreadExecutor", *threads, sleep_for, quick);
  measure(context, "LocalExecutor", *processes, sleep_for, quick);
  measure(context, "HybridExecutor", hybrid, sleep_for, quick);
  measure(context, "IoExecutor", io, wait_for, quick);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "bench_parallel: {}\n", error.what());
  return 1;
}
