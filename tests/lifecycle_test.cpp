// SPDX-License-Identifier: BSL-1.0
// How executors are made, shut down, forgotten and destroyed.
// Numbers such as A1 and F1 are of defects that executors before this family had; see seed_defects_test.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/tasks.hpp"
#include "support/told.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::call;
using bulkhead::CaptureOutput;
using bulkhead::CommonOptions;
using bulkhead::EventKind;
using bulkhead::Executor;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOptions;
using bulkhead::ExecutorRegistry;
using bulkhead::IoExecutor;
using bulkhead::IoExecutorOptions;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::OptionMap;
using bulkhead::ShutdownOptions;
using bulkhead::TaskCancelledError;
using bulkhead::TaskStatus;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::cancelled_stage;
using bulkhead::test::count;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::kGone;
using bulkhead::test::kLongBeforeTheGate;
using bulkhead::test::let_go;
using bulkhead::test::let_pass;
using bulkhead::test::make;
using bulkhead::test::message;
using bulkhead::test::note;
using bulkhead::test::open_gate_after;
using bulkhead::test::order;
using bulkhead::test::Outcome;
using bulkhead::test::Process;
using bulkhead::test::Program;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::small;
using bulkhead::test::threads;
using bulkhead::test::Told;
using bulkhead::test::twice;
using bulkhead::test::twice_later;
using bulkhead::test::wait_at_gate;
using bulkhead::test::wait_at_gate_there;
using bulkhead::test::Wedged;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

TEST_CASE("A shutdown's limit cancels coroutines that wait, and each has one end", "[io]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("io", context, 3);
  Told told(*executor);
  std::array<Outcome<>, 5> outcomes;  // three run, two are queued
  for (auto& outcome : outcomes) executor->async_submit(call(wait_at_gate_there, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  ShutdownOptions options;
  options.timeout = 1ms;
  run(context, executor->shutdown(options));
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && told.ends() == 5; }));
  for (const auto& outcome : outcomes) CHECK(holds<TaskCancelledError>(outcome.error));
  CHECK(told.count(EventKind::cancelled) == 5);
  CHECK(board.ended == 0);
  CHECK(adds_up(*executor));
}

TEST_CASE("Every name of a type makes its executor, with options as text", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const std::map<std::string, std::string> modes{
      {"local", "process"}, {"process", "process"},   {"processpool", "process"},
      {"thread", "thread"}, {"threadpool", "thread"}, {"pool", "thread"},
      {"io", "io"},         {"asyncio", "io"},        {"inline", "inline"},
      {"debug", "inline"}};
  for (const auto& [type, mode] : modes) {
    CAPTURE(type);
    OptionMap options{{"max_pending", "7"}};
    if (mode == "process") options["max_workers"] = "1";
    const auto executor = registry.get_or_create("of " + type, type, options);
    REQUIRE(executor);
    CHECK(executor->metrics().mode == mode);
    CHECK(executor->metrics().max_pending == 7);
    CHECK(executor->name() == "of " + type);
    CHECK(run(context, executor->submit(twice, 2)) == 4);
    // The same name is the same executor, also by the type's other name.
    CHECK(registry.get_or_create("of " + type, type) == executor);
  }
  OptionMap of_hybrid{{"executors", "of local,of thread"}};
  const auto hybrid = registry.get_or_create("both", "hybrid", of_hybrid);
  CHECK(hybrid->metrics().mode == "hybrid");
  CHECK(run(context, hybrid->submit(twice, 2)) == 4);
  const auto known = registry.types();
  for (const auto& [type, mode] : modes) CHECK(std::count(known.begin(), known.end(), type) == 1);
  run(context, registry.shutdown_all());
  CHECK(registry.size() == 0);
}

TEST_CASE("A3: shutdown can be told to cancel what waits, and whether to wait", "[registry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  const bool wait = GENERATE(true, false);
  CAPTURE(type, wait);
  reset_board();
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  OptionMap options{{type == "local" ? "max_workers" : "max_threads", "1"}};
  const auto executor = registry.get_or_create("pool", type, options);
  Outcome<> held;
  Outcome<> queued;
  executor->async_submit(call(wait_at_gate, 1), held.handler());
  executor->async_submit(call(count, 2), queued.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions how;
  how.cancel_pending = true;
  how.wait = wait;
  Outcome<void> shutdown;
  asio::co_spawn(context, registry.shutdown_all(how), shutdown.handler());
  REQUIRE(run_until(context, [&] { return queued.calls == 1; }));
  CHECK(cancelled_stage(queued.error) == TaskCancelledError::Stage::queued);
  if (!wait) REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
  settle(context);
  CHECK(shutdown.calls == (wait ? 0 : 1));
  CHECK(held.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1 && held.calls == 1; }));
  CHECK_FALSE(shutdown.error);
  CHECK(held.value == 1);
  CHECK(board.begun == 0);
}

TEST_CASE("A3: tasks that a shutdown does not wait for go on, though only the registry had their executor",
          "[registry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  OptionMap options{{type == "local" ? "max_workers" : "max_threads", "1"}};
  std::array<Outcome<>, 2> outcomes;
  for (auto& outcome : outcomes) {
    registry.get_or_create("pool", type, options)->async_submit(call(wait_at_gate, 1), outcome.handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions how;
  how.wait = false;
  run(context, registry.shutdown_all(how));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const auto& outcome : outcomes) {
    INFO(message(outcome.error));
    CHECK(outcome.value == 1);
    CHECK_FALSE(outcome.error);
  }
}

TEST_CASE("A5: the unified Executor works again after shutdown; the others say that they are not running",
          "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  for (int i = 0; i < 3; ++i) {
    run(context, executor.startup());
    CHECK(run(context, executor.run_blocking(twice, i)) == 2 * i);
    CHECK(run(context, executor.run_process(twice, i)) == 2 * i);
    run(context, executor.shutdown());
  }
  for (const char* type : {"local", "thread", "io", "hybrid", "inline"}) {
    CAPTURE(type);
    const auto single = make(type, context);
    run(context, single->shutdown());
    CHECK(holds<ExecutorNotRunningError>(failure(context, single->submit(twice, 1))));
    const auto handle = single->spawn(twice, 1);
    CHECK(holds<ExecutorNotRunningError>(failure(context, handle.result())));
    CHECK(handle.status() == TaskStatus::failed);
    CHECK(single->metrics().rejected == 2);
  }
  // A registry makes a new one of the same name.
  ExecutorRegistry registry(context.get_executor());
  for (int i = 0; i < 2; ++i) {
    const auto pool = registry.get_or_create<ThreadExecutor>("pool", threads(1));
    CHECK(run(context, pool->submit(twice, 2)) == 4);
    run(context, registry.shutdown_all());
  }
}

TEST_CASE("A7: tasks of an executor that a registry forgets go on, or are told that it is gone", "[registry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  OptionMap options{{type == "local" ? "max_workers" : "max_threads", "1"}};
  auto executor = registry.get_or_create("pool", type, options);
  std::array<Outcome<>, 3> outcomes;
  executor->async_submit(call(wait_at_gate, 1), outcomes[0].handler());
  executor->async_submit(call(count, 2), outcomes[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(registry.remove("pool") == executor);
  CHECK_FALSE(registry.contains("pool"));
  run(context, registry.shutdown_all());
  executor->async_submit(call(count, 3), outcomes[2].handler());
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (int i = 0; i < 3; ++i) CHECK(outcomes[static_cast<std::size_t>(i)].value == i + 1);

  reset_board();
  std::array<Outcome<>, 2> dropped;
  executor->async_submit(call(wait_at_gate, 1), dropped[0].handler());
  executor->async_submit(call(count, 2), dropped[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  executor.reset();
  REQUIRE(run_until(context, [&] { return all_over(dropped); }));
  CHECK(cancelled_stage(dropped[0].error) == TaskCancelledError::Stage::running);
  CHECK(cancelled_stage(dropped[1].error) == TaskCancelledError::Stage::queued);
  let_go(type);
}

TEST_CASE("A10: a shutdown of processes that is not to wait does not wait, for their output neither", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.capture_output = CaptureOutput::capture;
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<>, 2> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(call(wait_at_gate, 4), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2 && whole(pool); }));
  ShutdownOptions how;
  how.wait = false;
  run(context, pool.shutdown(how));
  CHECK(board.ended == 0);
  CHECK(outcomes[0].calls + outcomes[1].calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && pool.worker_pids().empty(); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == 4);
}

TEST_CASE("A10: an executor may be destroyed right after a shutdown that does not wait", "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  const bool limited_time = GENERATE(false, true);
  CAPTURE(type, limited_time);
  reset_board();
  asio::io_context context;
  auto executor = make(type, context);
  std::array<Outcome<>, 2> outcomes;
  executor->async_submit(call(wait_at_gate, 1), outcomes[0].handler());
  executor->async_submit(call(count, 2), outcomes[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions how;
  how.wait = false;
  if (limited_time) how.timeout = 1ms;
  run(context, executor->shutdown(how));
  executor.reset();
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  let_pass(context, 5ms);
  for (const auto& outcome : outcomes) CHECK(holds<TaskCancelledError>(outcome.error));
  CHECK(board.begun == 0);
  let_go(type);
  CHECK(run(context, make(type, context)->submit(twice, 2)) == 4);
}

TEST_CASE("A11: a shutdown that waits lets coroutines end instead of cancelling them", "[io]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("io", context, 2);
  std::array<Outcome<>, 3> outcomes;  // two run, one is queued
  for (auto& outcome : outcomes) executor->async_submit(call(wait_at_gate_there, 3), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  Outcome<void> shutdown;
  asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  let_pass(context, 20ms);
  CHECK(shutdown.calls == 0);
  CHECK(outcomes[0].calls + outcomes[1].calls + outcomes[2].calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1 && all_over(outcomes); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == 3);
}

TEST_CASE("A16: shutdown before anything, twice and at once ends each time, and the event loop goes on meanwhile",
          "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  {
    const auto unused = make(type, context);
    run(context, unused->shutdown());
    run(context, unused->shutdown());
  }
  const auto executor = make(type, context);
  Outcome<> outcome;
  executor->async_submit(call(wait_at_gate, 3), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::array<Outcome<void>, 3> shutdowns;
  for (auto& shutdown : shutdowns) asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  // Only the event loop opens the gate: a shutdown that blocked it would never end.
  open_gate_after(context, 100);
  REQUIRE(run_until(context, [&] { return all_over(shutdowns); }));
  for (const auto& shutdown : shutdowns) CHECK_FALSE(shutdown.error);
  CHECK(board.gate.open == 1);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(outcome.value == 3);
}

TEST_CASE("A16: a shutdown with a limit ends at it, though a function does not return", "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "unified");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  std::array<Outcome<>, 2> tasks;
  std::shared_ptr<BaseExecutor> executor;
  ExecutorOptions one_thread = small();
  one_thread.threads.max_threads = 1;
  Executor unified(context.get_executor(), one_thread);
  if (type == "unified") {
    run(context, unified.startup());
    executor = unified.threads();
  } else {
    executor = make(type, context);
  }
  executor->async_submit(call(wait_at_gate, 1), tasks[0].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  executor->async_submit(call(count, 1), tasks[1].handler());
  ShutdownOptions options;
  options.timeout = 1ms;
  Outcome<void> shutdown;
  auto ending = type == "unified" ? unified.shutdown(options) : executor->shutdown(options);
  asio::co_spawn(context, std::move(ending), shutdown.handler());
  const auto is_over = [&] { return shutdown.calls == 1; };
  CHECK(run_until(context, is_over, kLongBeforeTheGate));
  REQUIRE(run_until(context, [&] { return all_over(tasks); }));
  for (const auto& task : tasks) CHECK(holds<TaskCancelledError>(task.error));
  CHECK(board.begun + board.ended == 0);
  let_go(type);
  REQUIRE(run_until(context, is_over));
}

TEST_CASE("A16: what goes wrong in a shutdown reaches whoever awaits it, and surplus shutdowns count for nothing",
          "[shutdown]") {
  asio::io_context context;
  Wedged wedged(context.get_executor(), "wedged");
  for (int i = 0; i < 2; ++i) CHECK(message(failure(context, wedged.shutdown())) == "it is stuck");
  CHECK(holds<ExecutorNotRunningError>(failure(context, wedged.submit(twice, 1))));

  Executor executor(context.get_executor(), small());
  for (int i = 0; i < 3; ++i) run(context, executor.shutdown());
  run(context, executor.startup());
  const auto pool = executor.processes();
  run(context, executor.startup());
  CHECK(executor.processes() == pool);
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());
}

namespace {

int forget_executors() {
  // Static, so that a leak checker does not take them for lost.
  static auto* const context = new asio::io_context;
  LocalExecutorOptions options = workers(2);
  options.capture_output = CaptureOutput::capture;
  static auto* const pool = new LocalExecutor(context->get_executor(), options);
  static auto* const threads = new ThreadExecutor(context->get_executor());
  static auto* const io = new IoExecutor(context->get_executor());
  const bool good = run(*context, pool->submit(twice, 1)) == 2 && run(*context, threads->submit(twice, 1)) == 2 &&
                    run(*context, io->submit(twice_later, 1)) == 2 && run_until(*context, [&] { return whole(*pool); });
  for (const int pid : pool->worker_pids()) std::printf("worker %d\n", pid);
  std::printf("%s\n", good ? "ready" : "bad");
  std::fflush(stdout);
  return good ? 0 : 1;
}

}  // namespace

TEST_CASE("A18: a program that forgets its executors ends all the same, and leaves no process", "[lifetime]") {
  Program program("forget_executors");
  REQUIRE(program.says("ready"));
  std::vector<Process> left;
  std::istringstream words(program.said());
  for (std::string word; words >> word;) {
    int pid = 0;
    if (word == "worker" && words >> pid) left.emplace_back(pid);
  }
  const auto [code, said] = program.finish();
  INFO(said);
  CHECK(code == 0);
  CHECK(left.size() == 2);
  for (const Process& process : left) CHECK(process.gone_within(kGone));
}

TEST_CASE("F9: a shutdown that waits lets all end that was accepted, each in one run", "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  Outcome<> held;
  executor->async_submit(call(wait_at_gate, 1), held.handler());
  std::array<Outcome<>, 10> queued;
  for (int i = 0; i < 10; ++i) executor->async_submit(call(note, i), queued[static_cast<std::size_t>(i)].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  Outcome<void> shutdown;
  asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  settle(context);
  CHECK(shutdown.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1 && held.calls == 1 && all_over(queued); }));
  CHECK(held.value == 1);
  for (int i = 0; i < 10; ++i) CHECK(queued[static_cast<std::size_t>(i)].value == i);
  CHECK(order() == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  CHECK(board.gate.waiting == 1);
  CHECK(executor->metrics().completed == 11);
}

TEST_CASE("F16: every executor can be made from no options at all, and is what its defaults say", "[registry]") {
  CHECK(bulkhead::parse_local_options({}) == LocalExecutorOptions());
  CHECK(bulkhead::parse_thread_options({}) == ThreadExecutorOptions());
  CHECK(bulkhead::parse_io_options({}) == IoExecutorOptions());
  CHECK(bulkhead::parse_common_options({}) == CommonOptions());
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  for (const char* type : {"local", "thread", "io", "inline"}) {
    CAPTURE(type);
    const auto executor = registry.get_or_create(type, type, OptionMap());
    CHECK(run(context, executor->submit(twice, 2)) == 4);
  }
  const auto pool = registry.get_or_create<LocalExecutor>("local");
  CHECK(pool->options().max_workers >= 1);
  run(context, registry.shutdown_all());
}

TEST_CASE("F20: the event loop turns while processes that are busy are shut down without waiting", "[shutdown]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> held;
  Outcome<> queued;
  pool.async_submit(call(wait_at_gate, 1), held.handler());
  pool.async_submit(call(twice, 2), queued.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions options;
  options.wait = false;
  Outcome<void> shutdown;
  asio::co_spawn(context, pool.shutdown(options), shutdown.handler());
  int turns = 0;
  std::function<void()> turn = [&] {
    if (++turns < 1000) asio::post(context, turn);
  };
  asio::post(context, turn);
  // The task waits all the time: whatever happens here happens beside it.
  REQUIRE(run_until(context, [&] { return turns == 1000 && shutdown.calls == 1; }));
  CHECK(board.ended == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return held.calls == 1 && queued.calls == 1; }));
  CHECK(held.value == 1);
  CHECK(queued.value == 4);
}

int main(int argc, char** argv) {
  bulkhead::start_fork_server();
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  if (part == "forget_executors") return forget_executors();
  return run_tests(argc, argv);
}
