// SPDX-License-Identifier: BSL-1.0
#include "shared_buffers.hpp"

#include <bulkhead/detail/shared_memory_count.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <typeinfo>

namespace bulkhead {
namespace detail {
namespace {

thread_local BufferTransfer* current_transfer = nullptr;
thread_local SharedMemoryCount* current_count = nullptr;

}  // namespace

BufferTransfer::BufferTransfer(const process::SharedArea* of_executor) noexcept : BufferTransfer(of_executor, {}) {}
BufferTransfer::BufferTransfer(const process::SharedArea* of_executor, std::vector<SharedBuffer> given) noexcept
    : area(of_executor), passed(std::move(given)), outer_(std::exchange(current_transfer, this)) {}
BufferTransfer::~BufferTransfer() { current_transfer = outer_; }
BufferTransfer* BufferTransfer::current() noexcept { return current_transfer; }

SharedMemoryCount::SharedMemoryCount() noexcept : outer_(std::exchange(current_count, this)) {}
SharedMemoryCount::~SharedMemoryCount() { current_count = outer_; }
SharedMemoryCount* SharedMemoryCount::current() noexcept { return current_count; }

}  // namespace detail

using detail::BufferTransfer;
using detail::SharedBlock;
using detail::SharedBufferAccess;

std::size_t SharedBuffer::capacity() const noexcept { return block_ ? block_->capacity : 0; }

void SharedBuffer::resize(std::size_t size) {
  if (size > capacity()) {
    throw std::length_error(fmt::format("a SharedBuffer of {} bytes cannot have {}", capacity(), size));
  }
  size_ = size;
}

namespace {

// What travels. An empty buffer has no capacity.
struct Reference {
  std::uint64_t offset = 0;
  std::uint64_t capacity = 0;
  std::uint64_t size = 0;
};

[[noreturn]] void refuse(const char* reason) { codec_detail::refuse(typeid(SharedBuffer), reason); }

}  // namespace

void codec<SharedBuffer>::encode(Encoder& encoder, const SharedBuffer& buffer) {
  Reference reference;
  if (const auto& block = SharedBufferAccess::block_of(buffer)) {
    if (auto* const count = detail::SharedMemoryCount::current()) {
      count->bytes += block->capacity;
    } else if (BufferTransfer* const transfer = BufferTransfer::current()) {
      if (transfer->area == nullptr || block->area.get() != transfer->area) {
        refuse("It was made by another executor, whose workers alone have its memory.");
      }
      if (transfer->passing) transfer->passed.push_back(buffer);
    } else if (block->area != nullptr) {
      refuse("It can only be passed to a task of the executor that made it, and be returned by that.");
    }
    reference = {block->offset, block->capacity, buffer.size()};
  }
  encoder.write_value(reference);
}

SharedBuffer codec<SharedBuffer>::decode(Decoder& decoder) {
  const auto reference = decoder.read_value<Reference>();
  if (reference.capacity == 0) return {};
  if (reference.size > reference.capacity) decoder.fail("It is larger than its memory.");
  if (const BufferTransfer* const transfer = BufferTransfer::current()) {
    // Whoever wrote the answer may have made it up.
    const auto found = std::find_if(transfer->passed.begin(), transfer->passed.end(), [&](const SharedBuffer& buffer) {
      const auto& block = SharedBufferAccess::block_of(buffer);
      return block->offset == reference.offset && block->capacity == reference.capacity;
    });
    if (found == transfer->passed.end()) decoder.fail("It is none of the buffers that were passed to the task.");
    return SharedBufferAccess::make(SharedBufferAccess::block_of(*found), found->data(), reference.size);
  }
  const std::span<std::byte> memory = process::shared_memory_of_worker();
  if (reference.capacity > memory.size() || reference.offset > memory.size() - reference.capacity) {
    decoder.fail("There is no such memory here.");
  }
  return SharedBufferAccess::make(std::make_shared<SharedBlock>(nullptr, reference.offset, reference.capacity),
                                  memory.data() + reference.offset, reference.size);
}

}  // namespace bulkhead
