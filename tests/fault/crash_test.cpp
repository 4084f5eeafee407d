// SPDX-License-Identifier: BSL-1.0
// Workers, templates and the fork server die in every way there is; only the task that a worker held fails.
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/check_part.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Started;
using bulkhead::TaskOptions;
using bulkhead::TaskTimeoutError;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::check_part;
using bulkhead::test::descendants;
using bulkhead::test::error_as;
using bulkhead::test::Gate;
using bulkhead::test::kDeadline;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::open_descriptors;
using bulkhead::test::Outcome;
using bulkhead::test::parent_of;
using bulkhead::test::pid_in_host;
using bulkhead::test::poll_until;
using bulkhead::test::Process;
using bulkhead::test::Report;
using bulkhead::test::resident_kib;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

namespace {

// What tasks in all processes share with the test.
struct Board {
  Gate gate;
  std::atomic<int> victim{0};     // the process that is to be killed, as the host sees it
  std::atomic<int> host_ends{0};  // destructors and exit handlers of the host that ran
  std::atomic<int> failures{0};   // starts that are still to fail
  std::atomic<int> starts{0};     // starts that were tried
};

Board& board = shared_object<Board>();

void reset_board() {
  board.gate.reset();
  board.victim = 0;
  board.failures = 0;
  board.starts = 0;
}

// What a process tells when it leaves by exit() as if it were the host, or is unwound as if it were.
struct CountsItsEnd {
  ~CountsItsEnd() { ++board.host_ends; }
};
const CountsItsEnd static_object;
[[maybe_unused]] const int registered = std::atexit([] { ++board.host_ends; });

// ---------------------------------------------------------------------------------------------------------------------
// What runs in workers. None of it asserts: results, deaths and the board tell.

// The sanitizers would turn these into reports of their own, or would not survive them.
#if defined(__clang__)
#define NOT_SANITIZED __attribute__((noinline, no_sanitize("undefined", "address", "thread")))
#else
#define NOT_SANITIZED __attribute__((noinline, no_sanitize_undefined, no_sanitize_address, no_sanitize_thread))
#endif

NOT_SANITIZED void dereference_null() {
  volatile int* volatile nowhere = nullptr;
  *nowhere = 1;
}

NOT_SANITIZED int recurse(int depth) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(depth);
  const int below = depth == 0 ? 0 : recurse(depth - 1);
  return below + frame[0];
}

void overflow_stack() {
  // However large the limit is here: this much is used up quickly.
  rlimit limit{};
  ::getrlimit(RLIMIT_STACK, &limit);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_cur, rlim_t{1} << 20);
  ::setrlimit(RLIMIT_STACK, &limit);
  recurse(1 << 30);
}

int twice(int value) { return 2 * value; }

int wait_at_gate(int value) {
  board.gate.wait();
  return value;
}

enum class Death {
  none,
  null,
  abort,
  exit_0,
  exit_status_0,
  exit_3,
  exit_status_3,
  killed,
  stack,
  floating_point,
  breakpoint
};

int die(Death death, int value) {
  switch (death) {
    case Death::none:
      return 2 * value;
    case Death::null:
      dereference_null();
      break;
    case Death::abort:
      std::abort();
    case Death::exit_0:
      std::exit(0);
    case Death::exit_status_0:
      ::_exit(0);
    case Death::exit_3:
      std::exit(3);
    case Death::exit_status_3:
      ::_exit(3);
    case Death::killed:
      board.victim = pid_in_host();
      for (;;) ::poll(nullptr, 0, 1000);
    case Death::stack:
      overflow_stack();
      break;
    case Death::floating_point:
      ::raise(SIGFPE);
      break;
    case Death::breakpoint:
#if defined(__x86_64__)
      asm volatile("int3");
#elif defined(__aarch64__)
      asm volatile("brk #0");
#endif
      break;
  }
  return -1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Looking at processes.

// One of 100 tasks in flight dies. Gives its error; everything else is checked here.
WorkerCrashedError crash_one_of_100(Death death) {
  constexpr std::size_t kTasks = 100;
  constexpr std::size_t kVictim = 50;
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(3));
  std::array<Outcome<>, kTasks> outcomes;
  for (std::size_t i = 0; i < kTasks; ++i) {
    pool.async_submit(TaskOptions().name("task " + std::to_string(i)),
                      bulkhead::call(die, i == kVictim ? death : Death::none, static_cast<int>(i)),
                      outcomes[i].handler());
  }
  CHECK(pool.metrics().pending + pool.metrics().running == kTasks);
  if (death == Death::killed) {
    REQUIRE(run_until(context, [] { return board.victim != 0; }));
    const Process victim(board.victim);
    REQUIRE(run_until(context, [&] { return whole(pool); }));
    const std::vector<int> pids = pool.worker_pids();
    REQUIRE(std::count(pids.begin(), pids.end(), victim.pid()) == 1);
    REQUIRE(victim.signal(SIGKILL));
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (std::size_t i = 0; i < kTasks; ++i) {
    CAPTURE(i, message(outcomes[i].error));
    CHECK(outcomes[i].calls == 1);
    if (i == kVictim) continue;
    CHECK_FALSE(outcomes[i].error);
    CHECK(outcomes[i].value == 2 * static_cast<int>(i));
  }
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const auto metrics = pool.metrics();
  CHECK(metrics.workers == 3);
  CHECK(metrics.workers_crashed == 1);
  CHECK(metrics.workers_started == 4);
  CHECK(metrics.completed == kTasks - 1);
  CHECK(metrics.failed == 1);
  CHECK(adds_up(metrics));
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  INFO(message(outcomes[kVictim].error));
  const auto crash = error_as<WorkerCrashedError>(outcomes[kVictim].error);
  REQUIRE(crash.has_value());
  CHECK(crash->started() == Started::maybe);
  CHECK(crash->code() == bulkhead::Errc::worker_crashed);
  CHECK(crash->context().task == "task 50");
  return *crash;
}

// Its encoding is more than its worker survives.
struct Poison {
  int value = 0;
  template <class Archive>
  void serialize(Archive& archive) {
    if (Archive::is_saving::value && value == 1) std::abort();
    archive(value);
  }
};

Poison make_poison(int value) { return {value}; }

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// One of many.

TEST_CASE("a worker that dies while it writes the result is said to have finished the task", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(make_poison, 2)).value == 2);
  Outcome<Poison> outcome;
  pool.async_submit(bulkhead::call(make_poison, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto crash = error_as<WorkerCrashedError>(outcome.error);
  INFO(message(outcome.error));
  REQUIRE(crash.has_value());
  CHECK(crash->signal() == SIGABRT);
  CHECK(crash->started() == Started::finished);
  CHECK(std::string(crash->what()).find("had finished, but its result is lost") != std::string::npos);
  CHECK(run(context, pool.submit(make_poison, 3)).value == 3);
}

TEST_CASE("1: of 100 tasks the one that dereferences null fails with SIGSEGV and no other", "[fault]") {
  const WorkerCrashedError crash = crash_one_of_100(Death::null);
  CHECK(crash.signal() == SIGSEGV);
  CHECK_FALSE(crash.exit_code());
  CHECK(std::string(crash.what()).find("SIGSEGV") != std::string::npos);
  CHECK(crash.peak_memory() > 0);
  CHECK(crash.context().worker_pid);
}

TEST_CASE("2: of 100 tasks the one that aborts fails with SIGABRT and no other", "[fault]") {
  const WorkerCrashedError crash = crash_one_of_100(Death::abort);
  CHECK(crash.signal() == SIGABRT);
  CHECK_FALSE(crash.exit_code());
}

TEST_CASE("3: of 100 tasks the one that calls _exit(0) fails with exit code 0, never with success", "[fault]") {
  const WorkerCrashedError crash = crash_one_of_100(Death::exit_status_0);
  CHECK(crash.signal() == 0);
  CHECK(crash.exit_code() == 0);
}

TEST_CASE(
    "3: of 100 tasks the one that calls exit(0) fails with it, never with success, and nothing of the host ends in the "
    "worker",
    "[fault]") {
  const int ends = board.host_ends;
  const WorkerCrashedError crash = crash_one_of_100(Death::exit_0);
  CHECK(crash.signal() == 0);
  CHECK(crash.exit_code() == 0);
  CHECK(board.host_ends == ends);
}

TEST_CASE("3: of 100 tasks the one that calls exit(3) fails with it, and nothing of the host ends in the worker",
          "[fault]") {
  const int ends = board.host_ends;
  const WorkerCrashedError crash = crash_one_of_100(Death::exit_3);
  CHECK(crash.signal() == 0);
  CHECK(crash.exit_code() == 3);
  CHECK(board.host_ends == ends);
}

TEST_CASE("of 100 tasks the one whose worker is killed from outside fails with SIGKILL and no other", "[fault]") {
  const WorkerCrashedError crash = crash_one_of_100(Death::killed);
  CHECK(crash.signal() == SIGKILL);
  CHECK_FALSE(crash.exit_code());
  CHECK(crash.context().worker_pid == board.victim);
}

TEST_CASE("4: of 100 tasks the one that overflows its stack fails with SIGSEGV and no other", "[fault]") {
  const WorkerCrashedError crash = crash_one_of_100(Death::stack);
  CHECK(crash.signal() == SIGSEGV);
}

TEST_CASE("of 100 tasks the one that raises SIGFPE fails with SIGFPE and no other", "[fault]") {
  CHECK(crash_one_of_100(Death::floating_point).signal() == SIGFPE);
}

TEST_CASE("of 100 tasks the one that meets a breakpoint fails with SIGTRAP and no other, and does not go on behind it",
          "[fault]") {
  for (int time = 0; time < 2; ++time) CHECK(crash_one_of_100(Death::breakpoint).signal() == SIGTRAP);
}

TEST_CASE("half of 100 tasks crash one worker after another, and the other half returns", "[fault]") {
  // With short tasks known, many lie in one ring at once: those behind a crash must not pay for it.
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::vector<Outcome<>> warm(100);
  for (int round = 0; round < 10; ++round) {
    for (Outcome<>& outcome : warm) pool.async_submit(bulkhead::call(twice, 1), outcome.handler());
    REQUIRE(run_until(context, [&] { return all_over(warm); }));
    std::fill(warm.begin(), warm.end(), Outcome());
  }
  std::array<Outcome<>, 50> crashing;
  std::array<Outcome<>, 50> returning;
  for (Outcome<>& outcome : crashing) pool.async_submit(bulkhead::call(die, Death::null, 0), outcome.handler());
  for (Outcome<>& outcome : returning) pool.async_submit(bulkhead::call(twice, 21), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(crashing) && all_over(returning); }));
  for (const Outcome<>& outcome : crashing) {
    INFO(message(outcome.error));
    const auto crash = error_as<WorkerCrashedError>(outcome.error);
    REQUIRE(crash);
    // Each of them has run, and none is blamed for another's crash.
    CHECK(crash->signal() == SIGSEGV);
    CHECK(crash->started() == Started::maybe);
  }
  for (const Outcome<>& outcome : returning) {
    INFO(message(outcome.error));
    CHECK(outcome.value == 42);
  }
  const auto metrics = pool.metrics();
  CHECK(metrics.failed == 50);
  CHECK(metrics.workers_crashed == 50);
  CHECK(adds_up(metrics));
}

// ---------------------------------------------------------------------------------------------------------------------
// Deaths without a task.

TEST_CASE("7: idle workers killed from outside are replaced and no task fails", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(3));
  for (int i = 0; i < 10; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const std::vector<int> before = pool.worker_pids();
  for (const int pid : before) {
    const Process worker(pid);
    REQUIRE(worker.signal(SIGKILL));
    CHECK(worker.gone_within(kGone));
  }
  REQUIRE(run_until(context, [&] {
    const std::vector<int> now = pool.worker_pids();
    return whole(pool) && std::none_of(now.begin(), now.end(),
                                       [&](int pid) { return std::count(before.begin(), before.end(), pid) > 0; });
  }));
  for (int i = 0; i < 10; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  const auto metrics = pool.metrics();
  CHECK(metrics.failed == 0);
  CHECK(metrics.completed == 20);
  CHECK(metrics.workers == 3);
  CHECK(adds_up(metrics));
}

TEST_CASE("7: a task submitted the moment an idle worker is killed does not fail", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (int i = 0; i < 20; ++i) {
    REQUIRE(run(context, pool.submit(twice, i)) == 2 * i);
    REQUIRE(run_until(context, [&] { return whole(pool); }));
    const Process worker(pool.worker_pids().front());
    REQUIRE(worker.signal(SIGKILL));
    // It never began there, so it is safe to run it elsewhere.
    CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  }
  CHECK(pool.metrics().failed == 0);
}

namespace {

int leave_thread(int) { ::pthread_exit(nullptr); }

#if !WITH_SANITIZER
int leave_thread_beside_another(int) {
  std::thread([] {
    for (;;) ::poll(nullptr, 0, 1000);
  }).detach();
  ::pthread_exit(nullptr);
}
#endif

}  // namespace

TEST_CASE("13: a worker that calls pthread_exit fails its task, and nothing of the host is unwound in it", "[fault]") {
  const int ends = board.host_ends;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(leave_thread, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  INFO(message(outcome.error));
  CHECK(error_as<WorkerCrashedError>(outcome.error));
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  CHECK(board.host_ends == ends);
}

#if !WITH_SANITIZER
// The sanitizers' runtimes do not support threads started in a process forked beside threads of theirs.
TEST_CASE("13: a worker whose main thread ends beside another thread fails its task, at the latest by its timeout",
          "[fault]") {
  const int ends = board.host_ends;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const Process worker(pool.worker_pids().front());
  Outcome<> outcome;
  pool.async_submit(TaskOptions().timeout(2s), bulkhead::call(leave_thread_beside_another, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  INFO(message(outcome.error));
  CHECK((error_as<WorkerCrashedError>(outcome.error) || error_as<TaskTimeoutError>(outcome.error)));
  CHECK(worker.gone_within(kGone));
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  CHECK(board.host_ends == ends);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Deaths during the start.

namespace {

// Starts fail while the board says so.
void fail_to_start(Death death) {
  ++board.starts;
  if (board.failures > 0) {
    --board.failures;
    die(death, 0);
  }
}

void leave_thread_at_start() {
  ++board.starts;
  ::pthread_exit(nullptr);
}

void exit_at_start() {
  ++board.starts;
  std::exit(3);
}

void throw_at_start() {
  ++board.starts;
  throw std::runtime_error("no licence today");
}

constexpr int kAlways = 1'000'000'000;

}  // namespace

TEST_CASE("11: an initializer that crashes each time fails the tasks with WorkerStartError and makes no fork storm",
          "[fault]") {
  const Death death = GENERATE(Death::null, Death::abort, Death::exit_status_3, Death::exit_3);
  reset_board();
  board.failures = kAlways;
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.initializer = bulkhead::call(fail_to_start, death);
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<>, 5> outcomes;
  for (Outcome<>& outcome : outcomes) pool.async_submit(bulkhead::call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const Outcome<>& outcome : outcomes) {
    INFO(message(outcome.error));
    const auto error = error_as<WorkerStartError>(outcome.error);
    REQUIRE(error);
    const std::string expected = death == Death::null ? "SIGSEGV" : death == Death::abort ? "SIGABRT" : "code 3";
    CHECK(message(outcome.error).find(expected) != std::string::npos);
  }
  // Pauses of 10, 20, 40 ms up to a second: tens of attempts would need seconds.
  CHECK(board.starts < 20);
  const auto metrics = pool.metrics();
  CHECK(metrics.failed == 5);
  CHECK(adds_up(metrics));
  run(context, pool.shutdown());
}

TEST_CASE("11: an initializer that throws fails the tasks with its words", "[fault]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.initializer = throw_at_start;
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK(error_as<WorkerStartError>(outcome.error));
  CHECK(message(outcome.error).find("no licence today") != std::string::npos);
}

TEST_CASE("an initializer or preload that calls exit or pthread_exit is a failed start, and nothing of the host ends",
          "[fault]") {
  const bool in_template = GENERATE(false, true);
  const bool of_process = GENERATE(false, true);
  CAPTURE(in_template, of_process);
  reset_board();
  const int ends = board.host_ends;
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  (in_template ? options.preload : options.initializer) = of_process ? exit_at_start : leave_thread_at_start;
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  INFO(message(outcome.error));
  CHECK(error_as<WorkerStartError>(outcome.error));
  CHECK(board.starts > 0);
  CHECK(board.host_ends == ends);
}

TEST_CASE("a pool recovers from an initializer that crashes a few times", "[fault]") {
  const int failures = GENERATE(1, 2, 6);
  CAPTURE(failures);
  reset_board();
  board.failures = failures;
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.initializer = bulkhead::call(fail_to_start, Death::null);
  LocalExecutor pool(context.get_executor(), options);
  // Tasks may fail while no worker can be had, and must not once one can.
  bool worked = false;
  REQUIRE(run_until(context, [&] {
    try {
      worked = run(context, pool.submit(twice, 21)) == 42;
    } catch (const WorkerStartError&) {
      worked = false;
    }
    return worked;
  }));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  for (int i = 0; i < 10; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("a preload that crashes fails the tasks with WorkerStartError, and one that recovers does not", "[fault]") {
  reset_board();
  board.failures = kAlways;
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.preload = bulkhead::call(fail_to_start, Death::null);
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  INFO(message(outcome.error));
  CHECK(error_as<WorkerStartError>(outcome.error));
  CHECK(board.starts < 20);
  board.failures = 0;
  REQUIRE(run_until(context, [&] {
    try {
      return run(context, pool.submit(twice, 21)) == 42;
    } catch (const WorkerStartError&) {
      return false;
    }
  }));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("a template killed from outside fails the running tasks and is replaced", "[fault]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  std::array<Outcome<>, 6> outcomes;
  for (Outcome<>& outcome : outcomes) pool.async_submit(bulkhead::call(wait_at_gate, 7), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2 && whole(pool); }));
  const Process worker_template(parent_of(pool.worker_pids().front()));
  REQUIRE(worker_template.pid() > 1);
  REQUIRE(worker_template.pid() != ::getpid());
  REQUIRE(worker_template.signal(SIGKILL));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  // The two that ran are lost with their workers; unless a worker was quicker, since the gate is open.
  std::size_t failed = 0;
  for (const Outcome<>& outcome : outcomes) {
    INFO(message(outcome.error));
    if (outcome.error) {
      ++failed;
      CHECK(error_as<WorkerCrashedError>(outcome.error));
    } else {
      CHECK(outcome.value == 7);
    }
  }
  CHECK(failed <= 2);
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  CHECK(adds_up(pool.metrics()));
}

// ---------------------------------------------------------------------------------------------------------------------
// The fork server itself: in a program of its own, since there is one per process.

namespace {

int fork_server_of(const LocalExecutor& pool) { return parent_of(parent_of(pool.worker_pids().front())); }

constexpr std::chrono::seconds kProgramDeadline{30};
// Less than what the first one waits for an answer.
constexpr std::chrono::seconds kAtOnce{WITH_SANITIZER ? 4 : 1};

int fork_server_killed_under_load() {
  Report report;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  std::array<Outcome<>, 8> outcomes;
  for (Outcome<>& outcome : outcomes) pool.async_submit(bulkhead::call(wait_at_gate, 7), outcome.handler());
  if (!report.expect(run_until(
                         context, [&] { return board.gate.waiting == 2 && whole(pool); }, kProgramDeadline),
                     "two tasks run")) {
    return report.exit_code();
  }
  const Process fork_server(fork_server_of(pool));
  report.expect(parent_of(fork_server.pid()) == ::getpid(), "the fork server is the host's child");
  report.expect(fork_server.signal(SIGKILL), "the fork server can be killed");
  report.expect(run_until(
                    context, [&] { return all_over(outcomes); }, kProgramDeadline),
                "all tasks end");
  for (const Outcome<>& outcome : outcomes) {
    report.expect(error_as<bulkhead::ExecutorError>(outcome.error).has_value(),
                  "each fails clearly: " + message(outcome.error));
    report.expect(message(outcome.error).find("fork server") != std::string::npos ||
                      error_as<WorkerCrashedError>(outcome.error).has_value(),
                  "each says why: " + message(outcome.error));
  }
  Outcome<> later;
  pool.async_submit(bulkhead::call(twice, 21), later.handler());
  report.expect(run_until(
                    context, [&] { return later.calls > 0; }, kProgramDeadline),
                "a later task ends");
  report.expect(message(later.error).find("the program must be started anew") != std::string::npos,
                "it says what to do: " + message(later.error));
  report.expect(adds_up(pool.metrics()), "the metrics add up");
  try {
    LocalExecutor another(context.get_executor(), workers(1));
    Outcome<> first;
    another.async_submit(bulkhead::call(twice, 21), first.handler());
    report.expect(run_until(
                      context, [&] { return first.calls > 0; }, kProgramDeadline),
                  "a new pool's task ends");
    report.expect(first.value == 42 || error_as<WorkerStartError>(first.error),
                  "it works or says why: " + message(first.error));
  } catch (const WorkerStartError&) {
    // Clear, and at once.
  }
  try {
    run(context, pool.shutdown(), kProgramDeadline);
  } catch (const std::exception& error) {
    report.expect(false, std::string("the shutdown ends: ") + error.what());
  }
  return report.exit_code();
}

int fork_server_killed_idle() {
  Report report;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "a task returns");
  report.expect(run_until(
                    context, [&] { return whole(pool); }, kProgramDeadline),
                "the pool is whole");
  std::vector<Process> processes;
  for (const int pid : pool.worker_pids()) processes.emplace_back(pid);
  const Process fork_server(fork_server_of(pool));
  report.expect(fork_server.signal(SIGKILL), "the fork server can be killed");
  for (const Process& process : processes) report.expect(process.gone_within(kGone), "the workers go with it");
  for (int i = 0; i < 5; ++i) {
    Outcome<> later;
    pool.async_submit(bulkhead::call(twice, 21), later.handler());
    report.expect(run_until(
                      context, [&] { return later.calls > 0; }, kProgramDeadline),
                  "a later task ends");
    report.expect(later.value == 42 || error_as<bulkhead::ExecutorError>(later.error),
                  "it works or says why: " + message(later.error));
  }
  report.expect(adds_up(pool.metrics()), "the metrics add up");
  report.expect(bulkhead::test::poll_until([] { return bulkhead::test::descendants().empty(); }, kGone),
                "nothing of it is left, not even a zombie");
  try {
    bulkhead::start_fork_server();
    report.expect(false, "another start is refused");
  } catch (const WorkerStartError& error) {
    report.expect(std::string(error.what()).find("the program must be started anew") != std::string::npos,
                  std::string("it says what to do: ") + error.what());
  }
  return report.exit_code();
}

// Submits to the pool until a task returns; false if that does not come.
bool works_again(asio::io_context& context, LocalExecutor& pool) {
  return run_until(
      context,
      [&] {
        Outcome<> outcome;
        pool.async_submit(bulkhead::call(twice, 21), outcome.handler());
        return run_until(
                   context, [&] { return outcome.calls > 0; }, kProgramDeadline) &&
               outcome.value == 42;
      },
      kProgramDeadline);
}

// A stopped fork server or template answers nothing, and must not keep tasks waiting for ever.
int fork_server_stopped() {
  Report report;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "a task returns");
  report.expect(run_until(
                    context, [&] { return whole(pool); }, kProgramDeadline),
                "the pool is whole");
  const Process fork_server(fork_server_of(pool));
  const auto expect_refused = [&](LocalExecutor& executor) {
    Outcome<> outcome;
    executor.async_submit(bulkhead::call(twice, 21), outcome.handler());
    const auto begin = std::chrono::steady_clock::now();
    report.expect(run_until(
                      context, [&] { return outcome.calls > 0; }, kProgramDeadline),
                  "a task that needs it ends");
    report.expect(error_as<WorkerStartError>(outcome.error).has_value() &&
                      message(outcome.error).find("the fork server does not answer") != std::string::npos,
                  "it says why: " + message(outcome.error));
    return std::chrono::steady_clock::now() - begin;
  };
  report.expect(fork_server.signal(SIGSTOP), "the fork server can be stopped");
  report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "workers that run go on");
  LocalExecutor another(context.get_executor(), workers(1));
  expect_refused(another);
  // From here on it counts as dead: nobody waits for it once more.
  for (int i = 0; i < 3; ++i) {
    const auto time = expect_refused(another);
    const auto begin = std::chrono::steady_clock::now();
    try {
      const LocalExecutor third(context.get_executor(), workers(1));
      report.expect(false, "a new pool is refused");
    } catch (const WorkerStartError& error) {
      report.expect(std::string(error.what()).find("the fork server does not answer") != std::string::npos,
                    std::string("a new pool is told why: ") + error.what());
    }
    report.expect(time < kAtOnce, "a task fails at once");
    report.expect(std::chrono::steady_clock::now() - begin < kAtOnce, "a pool fails at once");
    report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "workers that run still go on");
  }
  report.expect(fork_server.signal(SIGCONT), "the fork server can go on");
  report.expect(works_again(context, another), "it answers, and a pool that was refused works");
  LocalExecutor fourth(context.get_executor(), workers(1));
  report.expect(run(context, fourth.submit(twice, 21), kProgramDeadline) == 42, "so does one that is new");
  report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "and the first does as ever");
  return report.exit_code();
}

int template_stopped() {
  Report report;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "a task returns");
  report.expect(run_until(
                    context, [&] { return whole(pool); }, kProgramDeadline),
                "the pool is whole");
  const Process worker(pool.worker_pids().front());
  const Process worker_template(parent_of(worker.pid()));
  report.expect(worker_template.signal(SIGSTOP), "the template can be stopped");
  report.expect(run(context, pool.submit(twice, 21), kProgramDeadline) == 42, "workers that run go on");
  Outcome<> dying;
  Outcome<> next;
  pool.async_submit(bulkhead::call(die, Death::null, 0), dying.handler());
  pool.async_submit(bulkhead::call(twice, 21), next.handler());
  report.expect(run_until(
                    context, [&] { return dying.calls > 0; }, kProgramDeadline),
                "a crash is reported");
  report.expect(error_as<WorkerCrashedError>(dying.error).has_value(), "as a crash: " + message(dying.error));
  // The status is the template's to tell, so it is missing; the next task gets a worker or an error.
  report.expect(run_until(
                    context, [&] { return next.calls > 0; }, kProgramDeadline),
                "the next task ends");
  report.expect(next.value == 42 || error_as<bulkhead::ExecutorError>(next.error),
                "it works or says why: " + message(next.error));
  worker_template.signal(SIGCONT);
  return report.exit_code();
}

int run_part(std::string_view part) {
  if (part == "fork_server_killed_under_load") return fork_server_killed_under_load();
  if (part == "fork_server_killed_idle") return fork_server_killed_idle();
  if (part == "fork_server_stopped") return fork_server_stopped();
  if (part == "template_stopped") return template_stopped();
  return 2;
}

}  // namespace

TEST_CASE("46: a fork server killed under load fails the tasks clearly, and later submits do not hang", "[fault]") {
  check_part("fork_server_killed_under_load");
}

TEST_CASE("46: a fork server killed while idle takes its workers along, and later submits and starts do not hang",
          "[fault]") {
  check_part("fork_server_killed_idle");
}

TEST_CASE("47: a fork server that is stopped fails what needs it, at once after the first time, until it goes on",
          "[fault]") {
  check_part("fork_server_stopped");
}

TEST_CASE("47: a template that is stopped fails what needs it within a bounded time", "[fault]") {
  check_part("template_stopped");
}

// ---------------------------------------------------------------------------------------------------------------------
// Many.

namespace {

#if WITH_SANITIZER
constexpr int kManyTasks = 5'000;  // a fork of a process with shadow memory takes tens of times longer
#else
constexpr int kManyTasks = 100'000;
#endif
constexpr int kTasksAtOnce = 64;

struct Tally {
  int next = 0;
  int returned = 0;
  int crashed = 0;
  int wrong = 0;
  int unbalanced = 0;
  int over = 0;
};

// Every hundredth task dies, each time in another way.
Death death_of(int task) {
  constexpr std::array kDeaths{Death::null, Death::abort, Death::exit_status_0, Death::exit_status_3};
  if (task % 100 != 99) return Death::none;
  return kDeaths[static_cast<std::size_t>(task / 100) % kDeaths.size()];
}

asio::awaitable<void> submit_many(LocalExecutor& pool, Tally& tally, int tasks) {
  while (tally.next < tasks) {
    const int task = tally.next++;
    const Death death = death_of(task);
    int value = -1;
    bool crashed = false;
    try {
      value = co_await pool.submit(die, death, task);
    } catch (const WorkerCrashedError&) {
      crashed = true;
    } catch (const std::exception&) {
      ++tally.wrong;
    }
    if (crashed) ++tally.crashed;
    if (value >= 0) ++tally.returned;
    if (crashed != (death != Death::none) || (!crashed && value != 2 * task)) ++tally.wrong;
    if (task % 64 == 0 && !adds_up(pool.metrics())) ++tally.unbalanced;
  }
  ++tally.over;
}

Tally run_many(asio::io_context& context, LocalExecutor& pool, int tasks) {
  Tally tally;
  for (int i = 0; i < kTasksAtOnce; ++i) {
    asio::co_spawn(context, submit_many(pool, tally, tasks), [](std::exception_ptr) {});
  }
  // Longer than any other test: a sanitizer build forks fifty workers, the others a thousand.
  run_until(
      context, [&] { return tally.over == kTasksAtOnce; }, std::chrono::seconds(240));
  return tally;
}

}  // namespace

TEST_CASE("43: 100,000 tasks with 1 % crashes leave no descriptor, process or memory behind", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  const auto settle = [&] {
    REQUIRE(run_until(context, [&] { return whole(pool) && pool.metrics().workers == 2; }));
    // Dead workers are reaped by their template a moment after the host has seen them die.
    std::size_t processes = 0;
    run_until(context, [&] { return (processes = descendants().size()) <= 4; });
    return processes;
  };

  const Tally warm_up = run_many(context, pool, 2'000);
  REQUIRE(warm_up.wrong == 0);
  const std::size_t processes_before = settle();
  const std::size_t descriptors_before = open_descriptors();
#if !WITH_SANITIZER
  const std::size_t resident_before = resident_kib();
#endif

  const Tally tally = run_many(context, pool, kManyTasks);
  CHECK(tally.over == kTasksAtOnce);
  CHECK(tally.wrong == 0);
  CHECK(tally.unbalanced == 0);
  CHECK(tally.crashed == kManyTasks / 100);
  CHECK(tally.returned == kManyTasks - kManyTasks / 100);

  // The fork server, the template, two workers.
  CHECK(processes_before == 4);
  CHECK(settle() == processes_before);
  // What dead workers had is closed by a thread that has time for that.
  CHECK(poll_until([&] { return open_descriptors() == descriptors_before; }, kGone));
#if !WITH_SANITIZER
  // A thousand crashes that leave one page each would be 4000 KiB, and a hundred thousand tasks that leave the smallest
  // block of malloc each 3125 KiB; the rest is what the allocator's bins and stacks grow by.
  const std::size_t resident_after = resident_kib();
  CAPTURE(resident_before, resident_after);
  CHECK(resident_after < resident_before + 2'500);
#endif
  const auto metrics = pool.metrics();
  CHECK(metrics.submitted == static_cast<std::uint64_t>(kManyTasks + 2'000));
  CHECK(metrics.failed == static_cast<std::uint64_t>(kManyTasks + 2'000) / 100);
  CHECK(metrics.workers_crashed == metrics.failed);
  CHECK(metrics.pending + metrics.running == 0);
  CHECK(adds_up(metrics));

  run(context, pool.shutdown());
  CHECK(pool.metrics().workers == 0);
}

int main(int argc, char** argv) {
  // Must not be unwound in a worker.
  const CountsItsEnd frame;
  bulkhead::start_fork_server();
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  return part.empty() ? run_tests(argc, argv) : run_part(part);
}
