// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/bulkhead.hpp>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/core.h>

#include <exception>

int twice(int number) { return 2 * number; }

bulkhead::asio::awaitable<void> run(bool bypass) {
  bulkhead::LocalExecutorOptions options;
  options.max_workers = 1;
  options.bypass = bypass;
  bulkhead::LocalExecutor pool(co_await bulkhead::asio::this_coro::executor, options);
  const int result = co_await pool.submit(twice, 21);
  fmt::print("{}: {}\n", bypass ? "bypass" : "worker", result);
  co_await pool.shutdown();
}

int main() {
  bulkhead::start_fork_server();
  bulkhead::asio::io_context io;
  for (const bool bypass : {true, false}) {
    bulkhead::asio::co_spawn(io, run(bypass), [](std::exception_ptr error) {
      if (error) std::rethrow_exception(error);
    });
    io.run();
    io.restart();
  }
}
