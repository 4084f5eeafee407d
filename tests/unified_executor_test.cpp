// SPDX-License-Identifier: BSL-1.0
// The unified Executor: threads for what blocks and processes for what computes, between startup and shutdown.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <unistd.h>
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::call;
using bulkhead::Executor;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOptions;
using bulkhead::ShutdownOptions;
using bulkhead::test::add;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::count;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::meet;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::pid_here;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::small;
using bulkhead::test::thread_name;
using bulkhead::test::threads;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;

namespace {

long sum_below(long end) {
  long sum = 0;
  for (long i = 0; i < end; ++i) sum += i;
  return sum;
}
std::size_t write_and_read(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
  std::ifstream file(path);
  std::stringstream read;
  read << file.rdbuf();
  return read.str() == text ? text.size() : 0;
}

}  // namespace

TEST_CASE("The unified Executor runs between startup and shutdown, and each of them twice is once", "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  CHECK_FALSE(executor.is_running());
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());

  run(context, executor.startup());
  CHECK(executor.is_running());
  const auto threads_before = executor.threads();
  const auto processes_before = executor.processes();
  run(context, executor.startup());
  CHECK(executor.threads() == threads_before);
  CHECK(executor.processes() == processes_before);
  CHECK(run(context, executor.run_blocking(twice, 21)) == 42);
  CHECK(executor.metrics().size() == 2);

  run(context, executor.shutdown());
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());
  CHECK(executor.threads() == nullptr);
  CHECK(executor.processes() == nullptr);
  CHECK(executor.metrics().empty());
}

TEST_CASE("Calls of a unified Executor that is not started fail at once, say what to do, and never run", "[unified]") {
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  const auto check_refusals = [&] {
    const auto blocking = failure(context, executor.run_blocking(count, 1));
    const auto process = failure(context, executor.run_process(count, 1));
    CHECK(holds<ExecutorNotRunningError>(blocking));
    CHECK(holds<ExecutorNotRunningError>(process));
    CHECK_THAT(message(blocking), ContainsSubstring("not started. Call startup() first"));
    CHECK_THAT(message(process), ContainsSubstring("not started. Call startup() first"));
  };
  check_refusals();
  run(context, executor.startup());
  run(context, executor.shutdown());
  check_refusals();
  CHECK(board.begun == 0);
}

TEST_CASE("run_blocking takes arguments, gives results and exceptions, and reads and writes files", "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  CHECK(run(context, executor.run_blocking(add, 2, 3)) == 5);
  CHECK(run(context, executor.run_blocking(pid_here)) == ::getpid());
  const auto path = std::filesystem::temp_directory_path() / fmt::format("bulkhead-seed-{}", ::getpid());
  const std::string text(10'000, 't');
  CHECK(run(context, executor.run_blocking(write_and_read, path.string(), text)) == text.size());
  std::filesystem::remove(path);
  const auto error = failure(context, executor.run_blocking(refuse, 3));
  CHECK(holds<std::runtime_error>(error));
  CHECK(message(error) == "refused 3");
  run(context, executor.shutdown());
}

TEST_CASE("run_process computes in another process, and gives its results and exceptions", "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  CHECK(run(context, executor.run_process(add, 2, 3)) == 5);
  CHECK(run(context, executor.run_process(sum_below, 1'000'000L)) == 499'999'500'000L);
  CHECK(run(context, executor.run_process(pid_here)) != ::getpid());
  CHECK(message(failure(context, executor.run_process(refuse, 3))) == "refused 3");
  run(context, executor.shutdown());
}

TEST_CASE("Four blocking calls are under way at the same time, and give their results in order", "[unified]") {
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  std::vector<asio::awaitable<int>> calls;
  for (int i = 0; i < 4; ++i) calls.push_back(executor.run_blocking(meet, i, 4));
  CHECK(run(context, bulkhead::when_all(std::move(calls))) == std::vector<int>{0, 1, 2, 3});
  run(context, executor.shutdown());
}

TEST_CASE("A unified Executor has up to forty threads unless told otherwise, and they carry its name", "[unified]") {
  CHECK(ExecutorOptions().threads.max_threads == 40);
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  CHECK(executor.threads()->options().max_threads == 40);
  CHECK(executor.threads()->metrics().workers == 0);
  CHECK_THAT(run(context, executor.run_blocking(thread_name)), StartsWith("blocking/"));
  run(context, executor.shutdown());
}

TEST_CASE("A unified Executor's shutdown waits for the tasks of both, or lets them end by themselves", "[unified]") {
  const bool wait = GENERATE(true, false);
  CAPTURE(wait);
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  std::array<Outcome<>, 2> tasks;
  executor.threads()->async_submit(call(wait_at_gate, 1), tasks[0].handler());
  executor.processes()->async_submit(call(wait_at_gate, 2), tasks[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  ShutdownOptions options;
  options.wait = wait;
  Outcome<void> shutdown;
  asio::co_spawn(context, executor.shutdown(options), shutdown.handler());
  if (!wait) REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
  settle(context);
  CHECK(shutdown.calls == (wait ? 0 : 1));
  CHECK_FALSE(executor.is_running());
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(tasks) && shutdown.calls == 1; }));
  CHECK(tasks[0].value == 1);
  CHECK(tasks[1].value == 2);
}

TEST_CASE("A unified Executor that is started again lets the tasks of its first life end", "[unified]") {
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  std::array<Outcome<>, 2> tasks;
  asio::co_spawn(context, executor.run_blocking(wait_at_gate, 1), tasks[0].handler());
  asio::co_spawn(context, executor.run_process(wait_at_gate, 2), tasks[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  ShutdownOptions options;
  options.wait = false;
  run(context, executor.shutdown(options));
  run(context, executor.startup());
  CHECK(run(context, executor.run_blocking(twice, 1)) == 2);
  CHECK(run(context, executor.run_process(twice, 1)) == 2);
  CHECK(tasks[0].calls + tasks[1].calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(tasks); }));
  CHECK(tasks[0].value == 1);
  CHECK(tasks[1].value == 2);
  run(context, executor.shutdown());
}

TEST_CASE("Options of a unified Executor that make no sense are refused by startup, and it does not run", "[unified]") {
  asio::io_context context;
  ExecutorOptions options = small();
  options.threads.max_threads = 0;
  Executor executor(context.get_executor(), options);
  const auto error = failure(context, executor.startup());
  CHECK(holds<std::invalid_argument>(error));
  CHECK_THAT(message(error), ContainsSubstring("'max_threads'"));
  CHECK_FALSE(executor.is_running());
  CHECK(holds<ExecutorNotRunningError>(failure(context, executor.run_process(twice, 1))));
}

TEST_CASE("get_executor gives one Executor to all threads, not started, which works once it is", "[unified]") {
  std::array<Executor*, 8> got{};
  {
    std::vector<std::thread> threads;
    for (Executor*& mine : got) threads.emplace_back([&mine] { mine = &bulkhead::get_executor(); });
    for (std::thread& thread : threads) thread.join();
  }
  for (const Executor* mine : got) CHECK(mine == got[0]);
  Executor& executor = bulkhead::get_executor();
  CHECK(&executor == got[0]);
  CHECK_FALSE(executor.is_running());
  asio::io_context context;
  run(context, executor.startup());
  CHECK(run(context, executor.run_blocking(twice, 21)) == 42);
  CHECK(run(context, executor.run_process(twice, 4)) == 8);
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());
}
