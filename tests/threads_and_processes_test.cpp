// SPDX-License-Identifier: BSL-1.0
// Where tasks run: on threads, on the event loop, in processes; what that costs, and what a crash does.
// Numbers such as A1 and F1 are of defects that executors before this family had; see seed_defects_test.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::call;
using bulkhead::CaptureOutput;
using bulkhead::InlineExecutor;
using bulkhead::IoExecutor;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Metrics;
using bulkhead::RetryPolicy;
using bulkhead::TaskOptions;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::test::add;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::count;
using bulkhead::test::count_start;
using bulkhead::test::die;
using bulkhead::test::echo;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::limited;
using bulkhead::test::make;
using bulkhead::test::meet;
using bulkhead::test::message;
using bulkhead::test::named;
using bulkhead::test::note;
using bulkhead::test::open_descriptors;
using bulkhead::test::Outcome;
using bulkhead::test::pause_for;
using bulkhead::test::refuse;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::succeed_at_run;
using bulkhead::test::thread_name;
using bulkhead::test::threads;
using bulkhead::test::twice;
using bulkhead::test::twice_later;
using bulkhead::test::wait_at_gate;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::StartsWith;
using namespace std::chrono_literals;

namespace {

int count_and_die(int signal) {
  ++board.begun;
  return ::raise(signal);
}
asio::awaitable<int> meet_there(int value, int number) {
  ++board.begun;
  while (board.begun < number) co_await pause_for(100us);
  co_return value;
}
bool write_whole(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t size = ::write(fd, text.data(), text.size());
    if (size < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(size));
  }
  return true;
}
// One large record, as a logger would write it.
int print_record(char letter, std::size_t size, bool to_output) {
  std::string record(size, letter);
  record.back() = '\n';
  const bool good = write_whole(STDERR_FILENO, record) && (!to_output || write_whole(STDOUT_FILENO, record));
  return good ? 1 : 0;
}
int print_and_abort(char letter, std::size_t size) {
  print_record(letter, size, false);
  ::raise(SIGKILL);
  return 0;
}

}  // namespace

TEST_CASE("Plain functions run on threads that carry the executor's name, and coroutines on the event loop", "[io]") {
  asio::io_context context;
  const auto executor = make("io", context, 2, named("seed-io"));
  CHECK_THAT(run(context, executor->submit(thread_name)), StartsWith("seed-io/"));
  const auto here = [](std::thread::id loop) -> asio::awaitable<bool> {
    co_await pause_for(1us);
    co_return std::this_thread::get_id() == loop;
  };
  CHECK(run(context, executor->submit(here, std::this_thread::get_id())));
}

TEST_CASE("No thread is started before the first task, and never more than max_threads", "[thread]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(3));
  CHECK(executor.metrics().workers == 0);
  CHECK(executor.metrics().running == 0);
  std::array<Outcome<>, 10> outcomes;
  for (auto& outcome : outcomes) executor.async_submit(call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  const Metrics during = executor.metrics();
  CHECK(during.workers == 3);
  CHECK(during.running == 3);
  CHECK(during.pending == 7);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  const Metrics after = executor.metrics();
  CHECK(after.running + after.pending == 0);
  CHECK(after.completed == 10);
  CHECK(after.workers_started == 3);
}

TEST_CASE("An executor for debugging runs each task in its caller's thread, and completes it later", "[inline]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  bool ran = false;
  Outcome<bool> outcome;
  executor.async_submit(call(
                            [&ran](std::thread::id caller) {
                              ran = true;
                              return std::this_thread::get_id() == caller;
                            },
                            std::this_thread::get_id()),
                        outcome.handler());
  CHECK(ran);
  CHECK(outcome.calls == 0);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(outcome.value == true);
}

TEST_CASE("Ten coroutines wait at the same time on one thread, and give their results in order", "[flowrra]") {
  reset_board();
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  std::vector<asio::awaitable<int>> tasks;
  for (int i = 0; i < 10; ++i) tasks.push_back(executor.submit(meet_there, i, 10));
  const auto results = run(context, bulkhead::when_all(std::move(tasks)));
  CHECK(results == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
}

namespace {

asio::awaitable<int> workflow(BaseExecutor& waiting, BaseExecutor& computing) {
  const int fetched = co_await waiting.submit(twice_later, 5);
  std::vector<asio::awaitable<int>> parts;
  for (int i = 0; i < 3; ++i) parts.push_back(computing.submit(add, fetched, i));
  const std::vector<int> added = co_await bulkhead::when_all(std::move(parts));
  co_return co_await computing.submit(add, added[0] + added[1], added[2]);
}

}  // namespace

TEST_CASE("Two executors make a workflow: one fetches, the other computes in processes", "[flowrra]") {
  asio::io_context context;
  const auto waiting = make("io", context, 2, named("waiting"));
  const auto computing = make("local", context, 2, named("computing"));
  CHECK(run(context, workflow(*waiting, *computing)) == 10 + 11 + 12);
  CHECK(waiting->metrics().completed == 1);
  CHECK(computing->metrics().completed == 4);
}

TEST_CASE("Of fifty tasks over four workers each ends as it should, and the sum is right", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context, 4, limited(100));
  std::array<Outcome<>, 50> outcomes;
  for (int i = 0; i < 50; ++i) {
    executor->async_submit(call(i % 3 == 0 ? refuse : twice, i), outcomes[static_cast<std::size_t>(i)].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (int i = 0; i < 50; ++i) {
    const auto& outcome = outcomes[static_cast<std::size_t>(i)];
    CHECK(outcome.calls == 1);
    if (i % 3 == 0) {
      CHECK(message(outcome.error) == fmt::format("refused {}", i));
    } else {
      CHECK_FALSE(outcome.error);
      CHECK(outcome.value == 2 * i);
    }
  }
  const Metrics metrics = executor->metrics();
  CHECK(metrics.completed == 33);
  CHECK(metrics.failed == 17);
  CHECK(adds_up(metrics));
}

TEST_CASE("A2: a task behind a crash is not lost, the new worker is as the old one was, and a bad call costs none",
          "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.initializer = count_start;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(board.starts == 1);
  Outcome<> crash;
  Outcome<> behind;
  pool.async_submit(call(die, SIGKILL), crash.handler());
  pool.async_submit(call(twice, 4), behind.handler());
  REQUIRE(run_until(context, [&] { return crash.calls == 1 && behind.calls == 1; }));
  CHECK(holds<WorkerCrashedError>(crash.error));
  CHECK(behind.value == 8);
  CHECK(board.starts == 2);
  const auto started = pool.metrics().workers_started;
  const auto bad_call = [](int) -> int { throw std::bad_function_call(); };
  CHECK(holds<std::bad_function_call>(failure(context, pool.submit(bad_call, 1))));
  CHECK(run(context, pool.submit(twice, 4)) == 8);
  CHECK(pool.metrics().workers_started == started);
  CHECK(pool.metrics().workers_crashed == 1);
}

TEST_CASE("A8: workers that print large records that nobody reads neither block nor mix them", "[local][output]") {
  const auto policy = GENERATE(CaptureOutput::capture, CaptureOutput::discard);
  CAPTURE(policy);
  constexpr std::size_t kRecord = 100'000;  // more than a pipe holds
  asio::io_context context;
  LocalExecutorOptions options = workers(3);
  options.capture_output = policy;
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  std::deque<Outcome<>> outcomes(400);
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    pool.async_submit(call(print_record, static_cast<char>('a' + i % 26), kRecord, true), outcomes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.value == 1; }));
  CHECK(pool.metrics().workers_crashed == 0);
  if (policy == CaptureOutput::discard) return;
  // All three print at the same time and die: what is known of each is its own.
  std::array<Outcome<>, 3> crashes;
  for (std::size_t i = 0; i < 3; ++i) {
    pool.async_submit(call(print_and_abort, static_cast<char>('A' + i), kRecord), crashes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(crashes); }));
  for (std::size_t i = 0; i < 3; ++i) {
    const auto crash = error_as<WorkerCrashedError>(crashes[i].error);
    REQUIRE(crash);
    const std::string& output = crash->ending().error_output;
    CHECK(output == std::string(output.size() - 1, static_cast<char>('A' + i)) + "\n");
    CHECK(output.size() == 4096);
  }
}

TEST_CASE("A9: tasks cost no descriptor: neither those that run, nor those that are cancelled or crash", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 5000;
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 50; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
  REQUIRE(run_until(context, [&] { return whole(pool) && pool.metrics().workers_dying == 0; }));
  const std::size_t before = open_descriptors();

  std::deque<Outcome<>> outcomes(2000);
  for (auto& outcome : outcomes) pool.async_submit(call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  std::array<Outcome<>, 2> held;
  for (auto& outcome : held) pool.async_submit(call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  std::deque<asio::cancellation_signal> signals(200);
  std::deque<Outcome<>> cancelled(signals.size());
  for (std::size_t i = 0; i < signals.size(); ++i) {
    pool.async_submit(call(count, 1), asio::bind_cancellation_slot(signals[i].slot(), cancelled[i].handler()));
  }
  for (auto& signal : signals) signal.emit(asio::cancellation_type::total);
  REQUIRE(run_until(context, [&] { return all_over(cancelled); }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(held); }));
  for (int i = 0; i < 10; ++i) CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
  CHECK(board.begun == 0);
  CHECK(run_until(context, [&] { return whole(pool) && open_descriptors() <= before; }));
}

TEST_CASE("F1: four workers run four tasks at the same time", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(4));
  std::vector<asio::awaitable<int>> tasks;
  for (int i = 0; i < 4; ++i) tasks.push_back(pool.submit(meet, i, 4));
  CHECK(run(context, bulkhead::when_all(std::move(tasks))) == std::vector<int>{0, 1, 2, 3});
}

TEST_CASE("F2: tasks after crashes succeed in their first run", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  for (int i = 0; i < 5; ++i) {
    CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
    CHECK(run(context, pool.submit(TaskOptions().retry(RetryPolicy(3)), succeed_at_run, 1U)) == 1);
  }
  CHECK(board.begun == 5);
  CHECK(pool.metrics().retried == 0);
  CHECK(run_until(context, [&] { return whole(pool); }));
}

TEST_CASE("F8: a task whose worker dies is told that it may have run, and is not run again by itself", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> crash;
  std::array<Outcome<>, 20> behind;
  pool.async_submit(call(count_and_die, SIGKILL), crash.handler());
  for (auto& outcome : behind) pool.async_submit(call(note, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return crash.calls == 1 && all_over(behind); }));
  const auto error = error_as<WorkerCrashedError>(crash.error);
  REQUIRE(error);
  CHECK(error->started() == bulkhead::Started::maybe);
  CHECK(board.begun == 1);
  // What had not begun is run elsewhere, once.
  CHECK(board.written == 20);
  for (const auto& outcome : behind) CHECK(outcome.value == 1);
}

TEST_CASE("F23: values keep their types and every bit on the way to a process and back", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto same = [&](const auto& value) {
    using T = std::decay_t<decltype(value)>;
    return run(context, pool.submit(echo<T>, value)) == value;
  };
  CHECK(same(std::make_tuple(1, std::string("two"), 3.5)));
  CHECK(same(std::vector<std::byte>{std::byte{0}, std::byte{0x80}, std::byte{0xff}}));
  CHECK(same(std::string("\0\xff not text", 11)));
  CHECK(same(std::chrono::system_clock::time_point(std::chrono::nanoseconds(1'234'567'890'123'456'789))));
  CHECK(same(std::chrono::nanoseconds(-1)));
  CHECK(same(std::map<int, std::vector<std::string>>{{-1, {"a", ""}}, {7, {}}}));
  CHECK(same(std::make_pair(std::optional<int>(), std::optional<std::string>("there"))));
  CHECK(same(0.1));
}

namespace {

// How often each thread of the library, here and in its processes, has given its CPU away, and was made to. A sanitizer
// has threads of its own, which are not looked at.
std::map<std::string, std::string> switches() {
  std::map<std::string, std::string> found;
  const auto look = [&](const std::string& task) {
    std::istringstream status(bulkhead::test::read_file(task + "/status"));
    for (std::string line; std::getline(status, line);) {
      if (line.find("ctxt_switches") != std::string::npos) found[task] += line + ";";
    }
  };
  for (const int pid : bulkhead::test::descendants()) look(fmt::format("/proc/{0}/task/{0}", pid));
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", error)) {
    const std::string name = bulkhead::test::read_file(task.path() / "comm");
    if (name.starts_with("bulkhead") || name.starts_with("idle")) look(task.path());
  }
  return found;
}

}  // namespace

TEST_CASE("F24: processes and threads that have nothing to do do nothing, not even now and then", "[idle]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  ThreadExecutorOptions options = threads(2);
  options.name = "idle";
  options.idle_timeout = 1h;
  ThreadExecutor executor(context.get_executor(), options);
  reset_board();
  // The thread of an event loop that has nothing to do: what is looked at starts with its name.
  const auto work = asio::make_work_guard(context);
  std::vector<asio::awaitable<int>> tasks;
  for (int i = 0; i < 2; ++i) tasks.push_back(executor.submit(meet, i, 4));
  for (int i = 2; i < 4; ++i) tasks.push_back(pool.submit(meet, i, 4));
  CHECK(run(context, bulkhead::when_all(std::move(tasks))) == std::vector<int>{0, 1, 2, 3});
  // Who looks at something at least every ten seconds is seen in each of these times; what ends of earlier tests is not
  // in all of them.
  bool quiet = false;
  std::map<std::string, std::string> before;
  context.restart();
  std::thread loop([&] {
    ::prctl(PR_SET_NAME, "idle-loop");
    context.run();
  });
  for (int i = 0; i < 4 && !quiet; ++i) {
    before = switches();
    ::poll(nullptr, 0, 10'000);
    quiet = switches() == before;
  }
  context.stop();
  loop.join();
  CHECK(quiet);
  // The fork server, the template, two workers, two threads, the event loop's, and the library's own.
  CHECK(before.size() >= 8);
  CHECK(run(context, executor.submit(twice, 2)) == 4);
  CHECK(run(context, pool.submit(twice, 2)) == 4);
}
