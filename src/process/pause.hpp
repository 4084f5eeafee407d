// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace bulkhead::process {

/// Lets the CPU's other thread have its turn while this one looks for something.
inline void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

/// How many pauses last so long: 10 ns each on some CPUs, 40 ns or more on others. Measured once.
inline std::uint32_t pauses_within(std::chrono::nanoseconds time) {
  static const double nanoseconds = [] {
    // The shortest of some attempts, since an interruption only makes it longer.
    constexpr int kPauses = 100;
    double shortest = 1e6;
    for (int attempt = 0; attempt < 5; ++attempt) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kPauses; ++i) pause();
      const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
      shortest = std::min(shortest, taken.count() / kPauses);
    }
    return std::max(shortest, 1.0);
  }();
  return static_cast<std::uint32_t>(static_cast<double>(time.count()) / nanoseconds);
}

}  // namespace bulkhead::process
