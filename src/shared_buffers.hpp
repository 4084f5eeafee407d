// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "process/shared_area.hpp"

#include <bulkhead/shared_buffer.hpp>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace bulkhead::detail {

struct SharedBlock {
  SharedBlock(std::shared_ptr<process::SharedArea> owner, std::size_t where, std::size_t size)
      : area(std::move(owner)), offset(where), capacity(size) {}
  ~SharedBlock() {
    if (area) area->release(offset, capacity);
  }
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;

  const std::shared_ptr<process::SharedArea> area;  // null in a worker
  const std::size_t offset;
  const std::size_t capacity;
};

struct SharedBufferAccess {
  static SharedBuffer make(std::shared_ptr<SharedBlock> block, std::byte* data, std::size_t size) noexcept {
    SharedBuffer buffer;
    buffer.block_ = std::move(block);
    buffer.data_ = data;
    buffer.size_ = size;
    return buffer;
  }
  static const std::shared_ptr<SharedBlock>& block_of(const SharedBuffer& buffer) noexcept { return buffer.block_; }
};

/// While it lives, the calling thread encodes or decodes a task of the executor whose area this is. It remembers the
/// buffers that were passed: a task may give back only those.
class BufferTransfer {
 public:
  explicit BufferTransfer(const process::SharedArea* area) noexcept;
  BufferTransfer(const process::SharedArea* area, std::vector<SharedBuffer> passed) noexcept;
  ~BufferTransfer();
  BufferTransfer(const BufferTransfer&) = delete;
  BufferTransfer& operator=(const BufferTransfer&) = delete;

  static BufferTransfer* current() noexcept;

  const process::SharedArea* const area;
  std::vector<SharedBuffer> passed;
  // Whether buffers are being passed; later they are only given back.
  bool passing = true;

 private:
  BufferTransfer* const outer_;
};

}  // namespace bulkhead::detail
