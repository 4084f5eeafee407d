// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <atomic>
#include <chrono>
#include <ctime>
#include <new>

namespace bulkhead::test {

/// An object that the test and all its workers share. Make it before the fork server starts: with static storage
/// duration.
template <class T>
T& shared_object() {
  void* page = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) throw std::bad_alloc();
  return *new (page) T;
}

/// A gate that tasks wait at, so that a test decides when they end. Waiting uses no CPU to speak of, and ends by itself
/// after a minute, so that no worker is left behind by a test that fails.
struct Gate {
  std::atomic<int> waiting{0};  // how many have come
  std::atomic<int> open{0};

  void reset() {
    waiting = 0;
    open = 0;
  }
  void wait() {
    ++waiting;
    const timespec pause{0, 200'000};
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (open == 0 && std::chrono::steady_clock::now() < end) ::nanosleep(&pause, nullptr);
  }
};

}  // namespace bulkhead::test
