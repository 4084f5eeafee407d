// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <cstddef>

namespace bulkhead::detail {

// While it lives, shared buffers that this thread encodes are counted, and do not travel.
class BULKHEAD_EXPORT SharedMemoryCount {
 public:
  SharedMemoryCount() noexcept;
  ~SharedMemoryCount();
  SharedMemoryCount(const SharedMemoryCount&) = delete;
  SharedMemoryCount& operator=(const SharedMemoryCount&) = delete;

  static SharedMemoryCount* current() noexcept;

  // Of the buffers' memory.
  std::size_t bytes = 0;

 private:
  SharedMemoryCount* const outer_;
};

}  // namespace bulkhead::detail
