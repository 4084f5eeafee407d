// SPDX-License-Identifier: BSL-1.0
#pragma once

namespace bulkhead::process {

/// Fetches a cache line that is going to be written, so that the write need not wait for another CPU to give it up.
inline void prefetch_for_writing(const void* address) noexcept {
#if defined(__x86_64__)
  // The compiler's builtin only fetches for reading unless it is told that the CPU has this instruction; those that
  // have it not pass over it.
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(address)));
#else
  __builtin_prefetch(address, 1);
#endif
}

}  // namespace bulkhead::process
