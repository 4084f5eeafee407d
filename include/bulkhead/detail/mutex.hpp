// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <atomic>
#include <cstdint>

namespace bulkhead::detail {

// A mutex whose free case is one instruction to lock and one to unlock, inline: every task passes it twice, and
// std::mutex took a tenth of a tiny task's whole way. The three-state mutex of Ulrich Drepper's "Futexes Are Tricky".
class BULKHEAD_EXPORT Mutex {
 public:
  Mutex() noexcept = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() noexcept {
    if (!try_lock()) wait_and_lock();
  }
  bool try_lock() noexcept {
    std::uint32_t expected = kFree;
    return state_.compare_exchange_strong(expected, kLocked, std::memory_order_acquire, std::memory_order_relaxed);
  }
  void unlock() noexcept {
    if (state_.exchange(kFree, std::memory_order_release) == kWaitedFor) wake_one();
  }

 private:
  static constexpr std::uint32_t kFree = 0;
  static constexpr std::uint32_t kLocked = 1;
  static constexpr std::uint32_t kWaitedFor = 2;  // locked, and somebody may wait

  void wait_and_lock() noexcept;
  void wake_one() noexcept;

  std::atomic<std::uint32_t> state_{kFree};
};

}  // namespace bulkhead::detail
