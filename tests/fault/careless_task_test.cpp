// SPDX-License-Identifier: BSL-1.0
// Tasks that do to their process what a program of its own might do, and starts that do not end.
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <chrono>
#include <csignal>
#include <string>
#include <vector>

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::error_as;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::twice;
using bulkhead::test::wait_at_gate;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

namespace {

// What runs in workers. None of it asserts: results, deaths and the board tell.

// As daemons do.
int close_all_descriptors() {
  ::syscall(SYS_close_range, 3U, ~0U, 0);
  return 1;
}

// The sizes of the empty files that the tasks of this worker have opened.
int file_size() {
  static std::vector<int> files;
  files.push_back(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  off_t size = 0;
  for (const int fd : files) size += ::lseek(fd, 0, SEEK_END);
  return static_cast<int>(size);
}

// The forked process returns, too; it should not have.
int come_back_twice(int value) {
  const pid_t child = ::fork();
  if (child == 0) return -1;
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? value : -2;
}

int count_run() { return ++board.begun; }

int kill_own_group() {
  ::kill(0, SIGKILL);
  return 0;
}

int pool_in_a_task(int value) {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  return run(context, pool.submit(twice, value));
}

void hang() {
  for (;;) ::poll(nullptr, 0, 1000);
}

}  // namespace

TEST_CASE("a task that closes all descriptors costs its worker at most, and no other task waits for ever", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (int round = 0; round < 3; ++round) {
    CHECK(run(context, pool.submit(close_all_descriptors)) == 1);
    // Each is awaited alone, so that the host sleeps and has to be rung for.
    for (int i = 0; i < 5; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  }
  CHECK(pool.metrics().completed == 18);
  CHECK(adds_up(pool));
}

TEST_CASE("a worker writes nothing into a file that a task opens after it has closed all descriptors", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  run(context, pool.submit(close_all_descriptors));
  // Each is awaited alone, so that the host sleeps and has to be rung for.
  for (int i = 0; i < 20; ++i) CHECK(run(context, pool.submit(file_size)) == 0);
}

TEST_CASE("a process that a task has forked and that comes back from the task is no second worker", "[fault]") {
  board.begun = 0;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (int i = 0; i < 5; ++i) CHECK(run(context, pool.submit(come_back_twice, i)) == i);
  std::vector<Outcome<>> outcomes(500);
  for (Outcome<>& outcome : outcomes) {
    pool.async_submit(bulkhead::call(count_run), outcome.handler());
    if (pool.metrics().pending > 50) run_until(context, [&] { return pool.metrics().pending < 10; });
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(board.begun == 500);  // each ran once
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("a task that kills its process group kills its own worker and nothing else", "[fault]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  Outcome<> innocent;
  pool.async_submit(bulkhead::call(wait_at_gate, 7), innocent.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  Outcome<> killer;
  pool.async_submit(bulkhead::call(kill_own_group), killer.handler());
  REQUIRE(run_until(context, [&] { return killer.calls == 1; }));
  const auto crash = error_as<WorkerCrashedError>(killer.error);
  REQUIRE(crash);
  CHECK(crash->signal() == SIGKILL);
  CHECK(innocent.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return innocent.calls == 1; }));
  CHECK(innocent.value == 7);
  CHECK(pool.metrics().workers_crashed == 1);
}

TEST_CASE("a task may have a pool of its own, in a worker as in bypass", "[fault]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  CHECK(run(context, pool.submit(pool_in_a_task, 21)) == 42);
  CHECK(run(context, pool.submit(pool_in_a_task, 22)) == 44);
}

TEST_CASE("an initializer or preload that does not end fails the tasks with WorkerStartError that names the limit",
          "[fault]") {
  const bool in_preload = GENERATE(false, true);
  CAPTURE(in_preload);
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.start_timeout = 50ms;
  (in_preload ? options.preload : options.initializer) = hang;
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<>, 3> outcomes;
  for (Outcome<>& outcome : outcomes) pool.async_submit(bulkhead::call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const Outcome<>& outcome : outcomes) {
    INFO(message(outcome.error));
    CHECK(error_as<WorkerStartError>(outcome.error));
    CHECK(message(outcome.error)
              .find(in_preload ? "preload did not end within start_timeout = 0.05 s"
                               : "the initializer did not end within start_timeout = 0.05 s") != std::string::npos);
  }
  CHECK(pool.metrics().workers_started < 30);
  run(context, pool.shutdown());
}
