// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/mutex.hpp>

#include "process/pause.hpp"

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <chrono>
#include <ctime>
#include <thread>

namespace bulkhead::detail {
namespace {

// Taking a bias away costs some microseconds, an uncontended lock some hundredths: shared among so many, the former is
// less than the latter.
constexpr std::uint32_t kTimesInARow = 1000;

// Looks at a held lock before this thread sleeps: one or two µs, in which most that is done under it is over. To sleep
// and be woken takes 10.
constexpr int kLooks = 50;

// A biased thread that was about to unlock when its bias was taken does not wake who waits for that. It has only some
// instructions to go then.
constexpr timespec kLookAgain{0, 100'000};

bool membarrier(int command) noexcept { return ::syscall(SYS_membarrier, command, 0, 0) >= 0; }

std::atomic<bool> bias_allowed{false};

}  // namespace

void Mutex::allow_bias() noexcept {
  if (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)) bias_allowed.store(true, std::memory_order_relaxed);
}

void Mutex::lock_without_bias(std::uintptr_t self) noexcept {
  lock_state();
  if (bias_.load(std::memory_order_relaxed) != 0) take_bias();
  locked_by_bias_ = false;
  if (last_ != self) {
    last_ = self;
    times_in_a_row_ = 0;
  } else if (++times_in_a_row_ == kTimesInARow) {
    times_in_a_row_ = 0;
    if (favourite_ == 0 && bias_allowed.load(std::memory_order_relaxed)) favourite_ = self;
    if (favourite_ == self) bias_.store(self, std::memory_order_release);
  }
}

// Not std::atomic::wait: that yields before it sleeps (libstdc++), which where others want the CPU costs the time
// slice.
void Mutex::lock_state() noexcept {
  for (int look = 0; look < kLooks; ++look) {
    std::uint32_t expected = kFree;
    if (state_.compare_exchange_strong(expected, kLocked, std::memory_order_acquire, std::memory_order_relaxed)) return;
    if (expected == kWaitedFor) break;  // others sleep already
    process::pause();
  }
  while (state_.exchange(kWaitedFor, std::memory_order_acquire) != kFree) {
    ::syscall(SYS_futex, &state_, FUTEX_WAIT_PRIVATE, kWaitedFor, nullptr, nullptr, 0);
  }
}

// By the biased thread, which found that it is that no longer.
void Mutex::give_up_bias() noexcept {
  held_.store(0, std::memory_order_release);
  wake_revoker();
}

// By another thread, which holds `state_`.
void Mutex::take_bias() noexcept {
  bias_.store(0, std::memory_order_release);
  // A forked copy of the process may have to register by itself.
  if (!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) &&
      !(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) && membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED))) {
    // A sandbox has taken it away. No CPU keeps to itself what is written for longer than some microseconds.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  while (held_.load(std::memory_order_acquire) != 0) {
    ::syscall(SYS_futex, &held_, FUTEX_WAIT_PRIVATE, 1, &kLookAgain, nullptr, 0);
  }
}

// The address only: the mutex may be gone.
void Mutex::wake_revoker() noexcept { ::syscall(SYS_futex, &held_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

void Mutex::wake_one() noexcept { ::syscall(SYS_futex, &state_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

}  // namespace bulkhead::detail
