// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <atomic>
#include <cassert>
#include <cstdint>

namespace bulkhead::detail {

// A mutex for what is nearly always locked by one thread: an executor's, by that of its event loop. When a thread has
// locked it so many times in a row, it is biased towards that thread, which from then on locks and unlocks with plain
// loads and stores. (A locked instruction also waits until everything written before it has left the CPU; after writing
// into memory that a worker reads, that is long.) Another thread takes the bias away with membarrier(2): a memory
// barrier on all CPUs that run this process, in place of the one that the biased thread leaves out.
//
// In its life it is biased towards one thread only. One that has looked at the bias, and lost its CPU before it could
// write to `held_`, will write there whenever it goes on: by then no other thread may use that word.
//
// Known as biased locking, or a lock with an asymmetric Dekker handshake (Dice, Moir, Scherer: "Quickly Reacquirable
// Locks", 2003). Without a bias it is the three-state mutex of Ulrich Drepper's "Futexes Are Tricky".
//
// Not recursive. To be unlocked by the thread that has locked it. As soon as it is unlocked another thread may destroy
// it: `unlock` does not touch it afterwards.
class BULKHEAD_EXPORT Mutex {
 public:
  Mutex() noexcept = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // Lets mutexes be biased, if the kernel can. May take some ten milliseconds where other threads run.
  static void allow_bias() noexcept;

  void lock() noexcept {
    const std::uintptr_t self = this_thread();
    if (bias_.load(std::memory_order_relaxed) == self) {
      // Who takes the bias sees `held_`, or is seen here: its barrier comes before or after this one, which orders
      // nothing but what the compiler does. (Loaded first since a thread may follow another at its address.)
      [[maybe_unused]] const std::uint32_t held = held_.load(std::memory_order_acquire);
      assert(held == 0);
      held_.store(1, std::memory_order_relaxed);
      std::atomic_signal_fence(std::memory_order_seq_cst);
      if (bias_.load(std::memory_order_acquire) == self) {
        locked_by_bias_ = true;
        return;
      }
      give_up_bias();
    }
    lock_without_bias(self);
  }

  void unlock() noexcept {
    if (locked_by_bias_) {
      // Who takes the bias away after this look, and waits, looks again by itself.
      const bool waited_for = bias_.load(std::memory_order_relaxed) != this_thread();
      held_.store(0, std::memory_order_release);
      if (waited_for) wake_revoker();
      return;
    }
    if (state_.exchange(kFree, std::memory_order_release) == kWaitedFor) wake_one();
  }

 private:
  static constexpr std::uint32_t kFree = 0;
  static constexpr std::uint32_t kLocked = 1;
  static constexpr std::uint32_t kWaitedFor = 2;  // locked, and somebody may wait

  // The address of what the system keeps of this thread.
  static std::uintptr_t this_thread() noexcept { return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()); }

  void lock_without_bias(std::uintptr_t self) noexcept;
  void lock_state() noexcept;
  void give_up_bias() noexcept;
  void take_bias() noexcept;
  void wake_revoker() noexcept;
  void wake_one() noexcept;

  std::atomic<std::uintptr_t> bias_{0};  // the thread; 0: none
  std::atomic<std::uint32_t> held_{0};   // written by that thread only
  std::atomic<std::uint32_t> state_{kFree};
  // Guarded by the mutex itself.
  bool locked_by_bias_ = false;
  std::uint32_t times_in_a_row_ = 0;
  std::uintptr_t last_ = 0;
  std::uintptr_t favourite_ = 0;  // the only thread that it is ever biased towards; 0: not decided yet
};

}  // namespace bulkhead::detail
