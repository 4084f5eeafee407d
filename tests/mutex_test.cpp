// SPDX-License-Identifier: BSL-1.0
// The mutex that is biased towards the thread which nearly always locks it. A thread has it biased towards itself when
// it has locked it a thousand times in a row.
#include <bulkhead/detail/mutex.hpp>

#include "support/catch.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"

#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <csignal>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

using bulkhead::detail::Mutex;
using bulkhead::test::poll_until;

namespace {

constexpr int kEnoughForABias = 3000;

void bias(Mutex& mutex) {
  Mutex::allow_bias();
  for (int i = 0; i < kEnoughForABias; ++i) const std::lock_guard lock(mutex);
}

bool sleeps(pid_t thread, const std::string& process = "self") {
  std::ifstream file("/proc/" + process + "/task/" + std::to_string(thread) + "/stat");
  std::string text;
  std::getline(file, text);
  const auto name_end = text.rfind(')');
  return name_end != std::string::npos && text.compare(name_end, 3, ") S") == 0;
}

}  // namespace

TEST_CASE("what several threads do under the mutex in long and short rows is never done at once", "[mutex]") {
  Mutex mutex;
  // Not atomic: two at once would lose some, or see the two differ.
  long first = 0;
  long second = 0;
  std::atomic<bool> torn{false};
  const auto work = [&](int row) {
    for (int i = 0; i < row; ++i) {
      const std::lock_guard lock(mutex);
      if (first != second) torn = true;
      ++first;
      asm volatile("" ::: "memory");
      ++second;
    }
  };
  Mutex::allow_bias();
  constexpr int kRounds = 100;
  std::vector<std::thread> threads;
  for (const int row : {kEnoughForABias, 1, 7}) {
    threads.emplace_back([&work, row] {
      for (int i = 0; i < kRounds; ++i) {
        work(row);
        std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(!torn);
  CHECK(first == kRounds * (kEnoughForABias + 1 + 7));
  CHECK(second == first);
}

TEST_CASE("a thread that wants the mutex sleeps until the biased thread unlocks it", "[mutex]") {
  Mutex mutex;
  bias(mutex);
  bool unlocked = false;
  bool seen_unlocked = false;
  std::atomic<pid_t> thread{0};
  std::atomic<bool> over{false};
  mutex.lock();
  std::thread other([&] {
    thread = static_cast<pid_t>(::syscall(SYS_gettid));
    mutex.lock();
    seen_unlocked = unlocked;
    mutex.unlock();
    over = true;
  });
  CHECK(poll_until([&] { return thread != 0 && sleeps(thread); }, bulkhead::test::kDeadline));
  CHECK(!over);
  unlocked = true;
  mutex.unlock();
  CHECK(poll_until([&] { return over.load(); }, bulkhead::test::kDeadline));
  other.join();
  CHECK(seen_unlocked);
  // And the thread that had it biased shares it from now on.
  for (int i = 0; i < 10; ++i) const std::lock_guard lock(mutex);
}

TEST_CASE("the biased thread waits for another that holds the mutex", "[mutex]") {
  Mutex mutex;
  std::atomic<pid_t> thread{0};
  std::atomic<bool> go{false};
  bool unlocked = false;
  bool seen_unlocked = false;
  std::atomic<bool> over{false};
  std::thread biased([&] {
    bias(mutex);
    thread = static_cast<pid_t>(::syscall(SYS_gettid));
    while (!go) std::this_thread::yield();
    mutex.lock();
    seen_unlocked = unlocked;
    mutex.unlock();
    over = true;
  });
  CHECK(poll_until([&] { return thread != 0; }, bulkhead::test::kDeadline));
  mutex.lock();
  go = true;
  CHECK(poll_until([&] { return sleeps(thread); }, bulkhead::test::kDeadline));
  CHECK(!over);
  unlocked = true;
  mutex.unlock();
  CHECK(poll_until([&] { return over.load(); }, bulkhead::test::kDeadline));
  biased.join();
  CHECK(seen_unlocked);
}

TEST_CASE("a forked copy of the process can lock a mutex that is biased towards a thread it does not have", "[mutex]") {
  Mutex mutex;
  std::thread(bias, std::ref(mutex)).join();
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(20);
    mutex.lock();
    mutex.unlock();
    bias(mutex);
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

#if !WITH_SANITIZER
namespace {

// Enough to step through a whole `lock`, and out of the signal before it.
constexpr int kSteps = 120;

struct Board {
  std::atomic<pid_t> other{0};
  std::atomic<int> go{0};      // the round in which the other thread may begin
  std::atomic<int> inside{0};  // the round in which it holds the mutex
  std::atomic<int> leave{0};
  std::atomic<int> done{0};
  std::atomic<int> both_inside{0};
};

void await(const std::atomic<int>& value, int round) {
  while (value < round) std::this_thread::yield();
}

// The process that is stepped through: its first thread has the mutex biased, locks it, and is stopped in between for
// as long as the other one locks it so often that it could have it biased, and holds it.
void be_stepped(Board& board) {
  ::alarm(100);
  Mutex mutex;
  std::thread other([&] {
    board.other = static_cast<pid_t>(::syscall(SYS_gettid));
    for (int round = 1; round <= kSteps; ++round) {
      await(board.go, round);
      for (int i = 0; i < kEnoughForABias; ++i) const std::lock_guard lock(mutex);
      mutex.lock();
      board.inside = round;
      await(board.leave, round);
      board.inside = 0;
      mutex.unlock();
      board.done = round;
    }
  });
  ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
  ::raise(SIGSTOP);
  for (int round = 1; round <= kSteps; ++round) {
    bias(mutex);
    ::raise(SIGUSR1);
    mutex.lock();
    if (board.inside != 0) ++board.both_inside;
    mutex.unlock();
    ::raise(SIGUSR2);
  }
  other.join();
}

int stopped_by(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) return -1;
  return WSTOPSIG(status);
}

}  // namespace

TEST_CASE("wherever a biased thread loses its CPU while it locks, it is never inside together with another",
          "[mutex]") {
  void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  Board& board = *::new (memory) Board;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    be_stepped(board);
    ::_exit(0);
  }
  REQUIRE(stopped_by(child) == SIGSTOP);
  const std::string process = std::to_string(child);
  const auto soon = [](auto condition) { return poll_until(condition, bulkhead::test::kDeadline); };
  for (int round = 1; round <= kSteps; ++round) {
    CAPTURE(round);
    REQUIRE(::ptrace(PTRACE_CONT, child, nullptr, nullptr) == 0);
    REQUIRE(stopped_by(child) == SIGUSR1);
    int signal = 0;
    for (int step = 0; step < round && signal != SIGUSR2; ++step) {
      REQUIRE(::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
      signal = stopped_by(child);
      REQUIRE((signal == SIGTRAP || signal == SIGUSR2));
    }
    board.go = round;
    // It is inside, or waits for the thread that is stopped.
    REQUIRE(soon([&] { return board.inside == round || sleeps(board.other, process); }));
    pid_t stopped = child;
    if (signal != SIGUSR2) {
      REQUIRE(::ptrace(PTRACE_CONT, child, nullptr, nullptr) == 0);
      int status = 0;
      REQUIRE(soon([&] {
        stopped = ::waitpid(child, &status, WNOHANG);
        return stopped == child || sleeps(child, process);
      }));
    }
    board.leave = round;
    if (stopped != child) REQUIRE(stopped_by(child) == SIGUSR2);
    REQUIRE(soon([&] { return board.done == round; }));
  }
  CHECK(board.both_inside == 0);
  REQUIRE(::ptrace(PTRACE_CONT, child, nullptr, nullptr) == 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  ::munmap(memory, sizeof(Board));
}
#endif
