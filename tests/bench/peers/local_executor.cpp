// SPDX-License-Identifier: BSL-1.0
// The functions that the peers call, through a LocalExecutor with one worker: microseconds per call.
#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

namespace {

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using Clock = std::chrono::steady_clock;

int add_one(int x) { return x + 1; }
std::size_t length(std::span<const std::byte> bytes) { return bytes.size(); }

template <class Work>
double microseconds(asio::io_context& context, int calls, Work work) {
  context.restart();
  const auto begin = Clock::now();
  work();
  context.run();
  const std::chrono::duration<double, std::micro> taken = Clock::now() - begin;
  return taken.count() / calls;
}

void rethrow(std::exception_ptr error) {
  if (error) std::rethrow_exception(error);
}

asio::awaitable<void> add_ones(LocalExecutor& pool, int calls) {
  for (int i = 0; i < calls; ++i) {
    if (co_await pool.submit(add_one, 1) != 2) throw std::runtime_error("a result is wrong");
  }
}

asio::awaitable<void> send(LocalExecutor& pool, const std::vector<std::byte>& bytes, int calls) {
  for (int i = 0; i < calls; ++i) {
    if (co_await pool.submit(length, bytes) != bytes.size()) throw std::runtime_error("a result is wrong");
  }
}

}  // namespace

int main() try {
  bulkhead::start_fork_server();
  asio::io_context context(1);
  bulkhead::LocalExecutorOptions options;
  options.max_workers = 1;
  options.max_pending = 256;
  LocalExecutor pool(context.get_executor(), options);
  constexpr int kCalls = 20'000;
  constexpr int kInFlight = 256;
  const std::vector<std::byte> bytes(std::size_t{1} << 20);
  const auto one_by_one = [&] { asio::co_spawn(context, add_ones(pool, kCalls), rethrow); };
  const auto many_at_once = [&] {
    for (int i = 0; i < kInFlight; ++i) asio::co_spawn(context, add_ones(pool, kCalls / 10), rethrow);
  };
  const auto large = [&] { asio::co_spawn(context, send(pool, bytes, 200), rethrow); };
  microseconds(context, kCalls, one_by_one);  // so that the worker is there, and warm
  std::printf("one in flight: %.1f µs\n", microseconds(context, kCalls, one_by_one));
  std::printf("256 in flight: %.2f µs\n", microseconds(context, kInFlight * (kCalls / 10), many_at_once));
  microseconds(context, 200, large);
  std::printf("1 MiB in, its length back: %.0f µs\n", microseconds(context, 200, large));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
