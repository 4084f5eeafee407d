// SPDX-License-Identifier: BSL-1.0
// Workers that are replaced in time, come and go with the load, stand by, and what they print.
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <map>
#include <new>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace asio = boost::asio;
using bulkhead::CaptureOutput;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::count_start;
using bulkhead::test::error_as;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::overlap;
using bulkhead::test::pid_here;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using bulkhead::test::wait_at_gate;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

// What a worker has started and left, as the host sees it.
std::atomic<int>& child_left = shared_object<std::atomic<int>>();

// Functions of the tasks. None of them asserts.

// A value of each worker's own, which its first task chooses.
int own_number(int) {
  static int number = 0;
  if (number == 0) number = ++board.starts;
  return number;
}

int count_at_once(int) {
  overlap(0);
  return own_number(0);
}

std::size_t leak(std::size_t size) {
  auto* memory = new char[size];
  std::memset(memory, 1, size);
  asm volatile("" : : "r"(memory) : "memory");
  return size;
}

// Free again at its end.
std::size_t allocate(std::size_t size) {
  std::vector<char> memory(size, 'x');
  asm volatile("" : : "r"(memory.data()) : "memory");
  return memory.size();
}

// Takes memory in small pieces until there is none, and keeps it.
int leak_all(int) {
  static std::vector<char*>* const kept = new std::vector<char*>(std::size_t{1} << 24);
  for (std::size_t i = 0;; i = (i + 1) % kept->size()) (*kept)[i] = new char[64];
}

void start_slowly() { ::usleep(20'000); }

void keep_memory(std::size_t size) { leak(size); }

int crash_at_once() {
  std::raise(SIGKILL);
  return 0;
}

// The child has all that the worker has, and waits for the end of the test.
int leave_a_child_and_crash() {
  board.gate.open = 0;
  const int child = ::fork();
  if (child == 0) {
    board.gate.wait();
    ::_exit(0);
  }
  child_left = child;
  std::raise(SIGKILL);
  return 0;
}

int print(const std::string& text) {
  if (::write(STDERR_FILENO, text.data(), text.size()) < 0) return -1;
  std::printf("printed to standard output\n");
  std::fflush(stdout);
  return 1;
}

int print_and_die(const std::string& text) {
  print(text);
  std::raise(SIGKILL);
  return 0;
}

int print_for_ever(int) {
  const std::string line(1000, 'y');
  for (;;) {
    if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return -1;
  }
}

// A line of one letter, written in pieces.
int print_line(char letter, std::size_t size) {
  std::string line(size, letter);
  line += '\n';
  for (std::size_t done = 0; done < line.size();) {
    const ssize_t written = ::write(STDERR_FILENO, line.data() + done, std::min<std::size_t>(line.size() - done, 1000));
    if (written < 0) return -1;
    done += static_cast<std::size_t>(written);
  }
  return 1;
}

std::size_t size_of(std::string_view text) { return text.size(); }
std::string make_text(std::size_t size) { return std::string(size, 'x'); }

// Memory of all message areas of this process, in bytes.
std::size_t area_memory() {
  std::istringstream maps(bulkhead::test::read_file("/proc/self/smaps"));
  std::size_t kib = 0;
  bool area = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("-") < line.find(" ")) {
      area = line.find("memfd:bulkhead-re") != std::string::npos;
    } else if (area && line.compare(0, 4, "Rss:") == 0) {
      kib += std::stoul(line.substr(4));
    }
  }
  return kib * 1024;
}

// While it lives, standard error is this pipe.
class CapturedError {
 public:
  CapturedError() : saved_(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10)) {
    if (::pipe2(pipe_.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    ::fcntl(pipe_[0], F_SETFL, O_NONBLOCK);
    ::dup2(pipe_[1], STDERR_FILENO);
  }
  ~CapturedError() {
    ::dup2(saved_, STDERR_FILENO);
    for (const int fd : {saved_, pipe_[0], pipe_[1]}) ::close(fd);
  }
  const std::string& text() {
    std::array<char, 4096> buffer;
    for (ssize_t size; (size = ::read(pipe_[0], buffer.data(), buffer.size())) > 0;) {
      text_.append(buffer.data(), static_cast<std::size_t>(size));
    }
    return text_;
  }

 private:
  int saved_;
  std::array<int, 2> pipe_{};
  std::string text_;
};

}  // namespace

TEST_CASE("Options for recycling that make no sense are refused with the option's name", "[recycling]") {
  asio::io_context context;
  const auto refused = [&](const auto& change, const std::string& name) {
    LocalExecutorOptions options = workers(2);
    change(options);
    CHECK_THROWS_WITH(LocalExecutor(context.get_executor(), options), ContainsSubstring("'" + name + "'"));
  };
  refused([](auto& o) { o.min_workers = 3; }, "min_workers");
  refused([](auto& o) { o.idle_timeout = 0ns; }, "idle_timeout");
  refused([](auto& o) { o.spare_workers = 65; }, "spare_workers");
  refused([](auto& o) { o.cancel_grace = -1ns; }, "cancel_grace");
  refused([](auto& o) { o.quarantine_time = 0ns; }, "quarantine_time");
  refused([](auto& o) { o.capture_output = static_cast<CaptureOutput>(7); }, "capture_output");
}

TEST_CASE("A worker is replaced after max_tasks_per_worker, no task is lost, and no more run at once", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 1000;
  options.max_tasks_per_worker = 20;
  LocalExecutor pool(context.get_executor(), options);
  reset_board();
  std::vector<Outcome<>> outcomes(500);
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(count_at_once, 0), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  std::map<int, int> tasks_of;
  for (const auto& outcome : outcomes) {
    REQUIRE(outcome.value);
    ++tasks_of[*outcome.value];
  }
  for (const auto& [worker, tasks] : tasks_of) CHECK(tasks <= 20);
  CHECK(tasks_of.size() >= 25);
  CHECK(board.most_running <= 2);
  REQUIRE(run_until(context, [&] { return pool.metrics().workers_recycled >= 23 && pool.metrics().workers == 2; }));
  const auto metrics = pool.metrics();
  CHECK(metrics.completed == 500);
  CHECK(metrics.workers_crashed == 0);
  CHECK(adds_up(metrics));
}

TEST_CASE("With max_tasks_per_worker = 1 every task has a worker of its own", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_tasks_per_worker = 1;
  options.max_pending = 100;
  LocalExecutor pool(context.get_executor(), options);
  board.starts = 0;
  std::vector<Outcome<>> outcomes(60);
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(own_number, 0), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  std::set<int> numbers;
  for (const auto& outcome : outcomes) numbers.insert(outcome.value.value_or(-1));
  CHECK(numbers.size() == 60);
}

TEST_CASE("With max_tasks_per_worker = 1 a task whose arguments need much new memory runs as any other",
          "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_tasks_per_worker = 1;
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 3; ++i) {
    const std::vector<std::uint8_t> bytes(std::size_t{4} << 20, std::uint8_t{1});
    CHECK(run(context, pool.submit([](const std::vector<std::uint8_t>& given) { return given.size(); }, bytes)) ==
          bytes.size());
  }
  CHECK(pool.metrics().workers_started <= 5);
}

TEST_CASE("With max_tasks_per_worker = 1 no worker is started for nothing, however long a start takes", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_tasks_per_worker = 1;
  options.initializer = bulkhead::call(start_slowly);
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 10; ++i) CHECK(run(context, pool.submit(pid_here)) > 0);
  // One for each task, one that stands by, and some for a replacement that came before a task was taken back.
  CHECK(pool.metrics().workers_started < 20);
}

TEST_CASE("For ever is a time like others: nothing happens at once for it", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.min_workers = 0;
  options.idle_timeout = std::chrono::nanoseconds::max();
  options.start_timeout = std::chrono::nanoseconds::max();
  options.cancel_grace = std::chrono::nanoseconds::max();
  options.quarantine_after = 1;
  options.quarantine_time = std::chrono::nanoseconds::max();
  options.preload = start_slowly;
  options.initializer = start_slowly;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(pid_here)) > 0);
  CHECK(run(context, pool.submit(pid_here)) > 0);
  CHECK(pool.metrics().workers_started <= 2);
  CHECK(pool.metrics().workers_recycled == 0);
  CHECK_THROWS_AS(run(context, pool.submit(crash_at_once)), WorkerCrashedError);
  CHECK_THROWS_AS(run(context, pool.submit(crash_at_once)), bulkhead::TaskQuarantinedError);
}

TEST_CASE("max_worker_memory does not count what a worker shares with preload", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.preload = bulkhead::call(keep_memory, std::size_t{200} << 20);
  options.max_worker_memory = std::size_t{WITH_SANITIZER ? 150 : 100} << 20;
  LocalExecutor pool(context.get_executor(), options);
  board.starts = 0;
  CHECK(run(context, pool.submit(own_number, 0)) == 1);
  CHECK(run(context, pool.submit(own_number, 0)) == 1);
  CHECK(pool.metrics().workers_recycled == 0);
}

TEST_CASE("A process that a worker leaves behind costs the host no descriptor", "[output]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(pid_here)) > 0);
  REQUIRE(run_until(context, [&] { return bulkhead::test::whole(pool); }));
  const std::size_t before = bulkhead::test::open_descriptors();
  for (int i = 0; i < 8; ++i) {
    child_left = 0;
    CHECK_THROWS_AS(run(context, pool.submit(leave_a_child_and_crash)), WorkerCrashedError);
    CHECK(child_left > 0);
  }
  CHECK(run(context, pool.submit(pid_here)) > 0);
  CHECK(
      run_until(context, [&] { return bulkhead::test::whole(pool) && bulkhead::test::open_descriptors() <= before; }));
  board.gate.open = 1;  // the children end by themselves
}

TEST_CASE("A worker that leaks is replaced when it is over max_worker_memory, and one that only used it is not",
          "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_worker_memory = std::size_t{WITH_SANITIZER ? 2000 : 100} << 20;
  LocalExecutor pool(context.get_executor(), options);
  board.starts = 0;
  CHECK(run(context, pool.submit(own_number, 0)) == 1);
  CHECK(run(context, pool.submit(allocate, options.max_worker_memory / 2)) == options.max_worker_memory / 2);
  CHECK(run(context, pool.submit(own_number, 0)) == 1);
  CHECK(run(context, pool.submit(leak, options.max_worker_memory)) == options.max_worker_memory);
  CHECK(run(context, pool.submit(own_number, 0)) == 2);
  REQUIRE(run_until(context, [&] { return pool.metrics().workers_recycled == 1; }));
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("A max_worker_memory that a fresh worker exceeds is a WorkerStartError that says so", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_worker_memory = 1000;
  options.initializer = bulkhead::call(keep_memory, std::size_t{1} << 20);
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(pid_here), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK(error_as<WorkerStartError>(outcome.error));
  CHECK_THAT(message(outcome.error), ContainsSubstring("max_worker_memory is 1000 bytes"));
}

TEST_CASE("6: beyond memory_limit an allocation fails as bad_alloc, and the worker goes on", "[recycling]") {
#if WITH_SANITIZER
  // A sanitizer's shadow memory is larger than any limit.
  return;
#endif
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.memory_limit = std::size_t{256} << 20;
  LocalExecutor pool(context.get_executor(), options);
  board.starts = 0;
  CHECK(run(context, pool.submit(own_number, 0)) == 1);
  CHECK_THROWS_AS(run(context, pool.submit(allocate, std::size_t{300} << 20)), std::bad_alloc);
  CHECK(run(context, pool.submit(allocate, std::size_t{100} << 20)) == std::size_t{100} << 20);
  CHECK(run(context, pool.submit(own_number, 0)) == 1);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("6: tasks that leak until there is no memory at all fail as bad_alloc, and their worker is replaced",
          "[recycling]") {
#if WITH_SANITIZER
  return;
#endif
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.memory_limit = std::size_t{256} << 20;
  if (GENERATE(false, true)) options.max_worker_memory = std::size_t{1} << 30;
  CAPTURE(options.max_worker_memory);
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 3; ++i) {
    CHECK_THROWS_AS(run(context, pool.submit(leak_all, 0)), std::bad_alloc);
    REQUIRE(run_until(context, [&] { return pool.metrics().workers_recycled == static_cast<std::uint64_t>(i) + 1; }));
  }
  CHECK(run(context, pool.submit(allocate, std::size_t{100} << 20)) == std::size_t{100} << 20);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("A memory_limit that a fresh worker exceeds is a WorkerStartError that says so", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.memory_limit = 1000;
  LocalExecutor pool(context.get_executor(), options);
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(pid_here), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  CHECK_THAT(message(outcome.error), ContainsSubstring("memory_limit is 1000 bytes"));
}

TEST_CASE("What large messages have left with an idle worker goes back to the system after a while", "[recycling]") {
  // One that was sent them is replaced, and one that answered with them is not.
  asio::io_context context;
  const std::size_t before = area_memory();
  constexpr std::size_t kSize = std::size_t{8} << 20;
  LocalExecutor taking(context.get_executor(), workers(1));
  LocalExecutor giving(context.get_executor(), workers(1));
  LocalExecutorOptions keeps_all = workers(1);
  keeps_all.kept_message_memory = keeps_all.max_message_size;
  LocalExecutor keeping(context.get_executor(), keeps_all);
  const std::string large(kSize, 'x');
  CHECK(run(context, taking.submit(size_of, large)) == kSize);
  CHECK(run(context, giving.submit(make_text, kSize)) == large);
  CHECK(run(context, keeping.submit(make_text, kSize)) == large);
  CHECK(run(context, keeping.submit(size_of, large)) == kSize);
  CHECK(area_memory() > before + 4 * kSize);
  const int taker = run(context, taking.submit(pid_here));
  const int giver = run(context, giving.submit(pid_here));
  const int keeper = run(context, keeping.submit(pid_here));
  CHECK(run_until(context, [&] { return area_memory() < before + 2 * kSize + kSize / 2; }));
  CHECK(area_memory() > before + 2 * kSize);
  CHECK(run(context, taking.submit(pid_here)) != taker);
  CHECK(run(context, giving.submit(pid_here)) == giver);
  CHECK(run(context, keeping.submit(pid_here)) == keeper);
  // And it is there again when it is wanted.
  CHECK(run(context, taking.submit(size_of, large)) == kSize);
  CHECK(run(context, giving.submit(make_text, kSize)) == large);
}

TEST_CASE("Workers come with the load and leave when they were idle for idle_timeout", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(4);
  options.min_workers = GENERATE(0U, 1U);
  options.idle_timeout = 50ms;
  LocalExecutor pool(context.get_executor(), options);
  CAPTURE(*options.min_workers);
  REQUIRE(run_until(context, [&] { return pool.metrics().workers == *options.min_workers; }));
  for (int round = 0; round < 2; ++round) {
    board.gate.reset();
    std::array<Outcome<>, 6> outcomes;
    for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(wait_at_gate, 3), outcome.handler());
    REQUIRE(run_until(context, [] { return board.gate.waiting == 4; }));
    CHECK(pool.metrics().workers == 4);
    CHECK(pool.metrics().pending == 2);
    board.gate.open = 1;
    REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
    for (const auto& outcome : outcomes) CHECK(outcome.value == 3);
    REQUIRE(run_until(context, [&] { return pool.metrics().workers == *options.min_workers; }));
  }
  CHECK(pool.metrics().workers_crashed == 0);
  CHECK(run(context, pool.submit(pid_here)) > 0);
}

TEST_CASE("A spare worker takes the place of one that dies, without a start in between", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.spare_workers = 1;
  options.initializer = bulkhead::call(count_start);
  board.starts = 0;
  LocalExecutor pool(context.get_executor(), options);
  REQUIRE(run_until(context, [&] { return pool.metrics().workers == 2 && board.starts == 2; }));
  const int first = run(context, pool.submit(pid_here));
  // No third worker can come before this is over.
  const auto second = run(context, [](LocalExecutor& executor) -> asio::awaitable<int> {
    try {
      co_await executor.submit(print_and_die, std::string());
    } catch (const WorkerCrashedError&) {
    }
    co_return co_await executor.submit(pid_here);
  }(pool));
  CHECK(second != first);
  REQUIRE(run_until(context, [&] { return pool.metrics().workers == 2 && board.starts == 3; }));
}

TEST_CASE("A pool that recycles all the time under load shuts down like any other", "[recycling]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(3);
  options.max_tasks_per_worker = 3;
  options.min_workers = 1;
  options.idle_timeout = 1ms;
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<Outcome<>> outcomes(300);
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(own_number, 0), outcome.handler());
  run(context, pool.shutdown());
  CHECK(all_over(outcomes));
  for (const auto& outcome : outcomes) CHECK(outcome.value);
  CHECK(pool.metrics().workers == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// What workers print.

TEST_CASE("What a worker prints to standard error appears on the host's, and the end of it in the error of a crash",
          "[output]") {
  CapturedError captured;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(print, std::string("first words\n"))) == 1);
  REQUIRE(run_until(context, [&] { return captured.text().find("first words\n") != std::string::npos; }));
  Outcome<> outcome;
  const std::string last = std::string(5000, 'z') + "\x1b[31mlast words\n";
  pool.async_submit(bulkhead::call(print_and_die, last), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto crash = error_as<WorkerCrashedError>(outcome.error);
  REQUIRE(crash);
  const std::string& tail = crash->ending().error_output;
  CHECK(tail.size() == 4096);
  CHECK(tail.ends_with("z?[31mlast words\n"));
  CHECK_THAT(message(outcome.error), ContainsSubstring("| zzz") && ContainsSubstring("last words"));
  REQUIRE(run_until(context, [&] { return captured.text().find("last words\n") != std::string::npos; }));
}

TEST_CASE("With capture and discard nothing that workers print appears, and with capture the error has it",
          "[output]") {
  const auto policy = GENERATE(CaptureOutput::capture, CaptureOutput::discard);
  CapturedError captured;
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.capture_output = policy;
  Outcome<> outcome;
  {
    LocalExecutor pool(context.get_executor(), options);
    pool.async_submit(bulkhead::call(print_and_die, std::string("secret words\n")), outcome.handler());
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  }
  const auto crash = error_as<WorkerCrashedError>(outcome.error);
  REQUIRE(crash);
  CHECK(crash->ending().error_output ==
        (policy == CaptureOutput::capture ? "secret words\nprinted to standard output\n" : ""));
  CHECK(captured.text() == "");
}

TEST_CASE(
    "37: a worker that prints without end, to a host whose standard error nobody reads, stops neither host nor others",
    "[output]") {
  CapturedError captured;  // 64 KiB, and nobody reads it
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(3));
  std::array<Outcome<>, 2> floods;
  for (auto& flood : floods) {
    pool.async_submit(bulkhead::TaskOptions().timeout(300ms), bulkhead::call(print_for_ever, 0), flood.handler());
  }
  int answered = 0;
  REQUIRE(run_until(context, [&] {
    if (all_over(floods)) return true;
    answered += run(context, pool.submit(pid_here)) > 0 ? 1 : 0;
    return false;
  }));
  CHECK(answered > 10);
  for (const auto& flood : floods) CHECK(error_as<bulkhead::TaskTimeoutError>(flood.error));
  CHECK(run(context, pool.submit(pid_here)) > 0);
}

TEST_CASE("A8: lines that workers print at the same time, longer than a pipe takes at once, arrive whole", "[output]") {
  constexpr std::size_t kLength = 20'000;
  CapturedError captured;
  asio::io_context context;
  LocalExecutorOptions options = workers(3);
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<>, 200> outcomes;
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const auto letter = static_cast<char>('a' + i % 26);
    pool.async_submit(bulkhead::call(print_line, letter, kLength), outcomes[i].handler());
  }
  const std::size_t all = outcomes.size() * (kLength + 1);
  REQUIRE(run_until(context, [&] { return captured.text().size() >= all && all_over(outcomes); }));
  std::istringstream text(captured.text());
  unsigned whole = 0;
  for (std::string line; std::getline(text, line);) {
    if (line.size() == kLength && line.find_first_not_of(line.front()) == std::string::npos) ++whole;
  }
  CHECK(whole == outcomes.size());
  CHECK(captured.text().size() == all);
}

TEST_CASE("What a worker prints without an end of line arrives when the line is long, or when the worker has ended",
          "[output]") {
  CapturedError captured;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(print, std::string(70'000, 'x'))) == 1);
  REQUIRE(run_until(context, [&] { return captured.text().size() >= 65'536; }));
  CHECK(run(context, pool.submit(print, std::string("the rest"))) == 1);
  run(context, pool.shutdown());
  REQUIRE(run_until(context, [&] { return captured.text().ends_with("the rest"); }));
  CHECK(captured.text() == std::string(70'000, 'x') + "the rest");
}

TEST_CASE("A host whose standard error nobody reads any more goes on when its workers print", "[output]") {
  CapturedError captured;
  std::array<int, 2> broken{};
  REQUIRE(::pipe2(broken.data(), O_CLOEXEC) == 0);
  ::close(broken[0]);
  ::dup2(broken[1], STDERR_FILENO);
  ::close(broken[1]);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  for (int i = 0; i < 20; ++i) CHECK(run(context, pool.submit(print, std::string("into the void\n"))) == 1);
  CHECK(pool.metrics().workers_crashed == 0);
}
