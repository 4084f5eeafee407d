// SPDX-License-Identifier: BSL-1.0
// The mutex that is biased towards the thread which nearly always locks it. A thread has it biased towards itself when
// it has locked it a thousand times in a row.
#include <bulkhead/detail/mutex.hpp>

#include "support/catch.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <csignal>
#include <fstream>
#include <mutex>
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

bool sleeps(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
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
