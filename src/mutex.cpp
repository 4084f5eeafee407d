// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/mutex.hpp>

namespace bulkhead::detail {

void Mutex::wait_and_lock() noexcept {
  while (state_.exchange(kWaitedFor, std::memory_order_acquire) != kFree) {
    state_.wait(kWaitedFor, std::memory_order_relaxed);
  }
}

void Mutex::wake_one() noexcept { state_.notify_one(); }

}  // namespace bulkhead::detail
