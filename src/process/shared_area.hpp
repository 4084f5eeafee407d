// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "arena.hpp"
#include "posix.hpp"

#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>
#include <span>

namespace bulkhead::process {

/// Memory of a pool that the host and all its workers map, and blocks in it that the host hands out. Thread-safe.
///
/// Its book-keeping is the host's own: whatever a worker does, it can only spoil what is in the blocks.
class SharedArea {
 public:
  /// Sparse: memory is used only where something was written. Throws `std::system_error`.
  explicit SharedArea(std::size_t size);
  SharedArea(const SharedArea&) = delete;
  SharedArea& operator=(const SharedArea&) = delete;

  const FileDescriptor& descriptor() const noexcept { return descriptor_; }
  std::byte* data() const noexcept { return mapping_.data(); }
  std::size_t size() const noexcept { return mapping_.size(); }

  /// Empty if there is no block of that size left.
  std::optional<std::size_t> allocate(std::size_t size);
  void release(std::size_t offset, std::size_t size);

  /// Bytes in blocks.
  std::size_t used() const;
  /// Called when the last block has been given back, and then not again until `give_back_unused` was; null: nobody
  /// wants to know.
  void on_unused(std::function<void()> handler);
  /// Gives the memory back to the system, if there is no block and has been none since `on_unused` was called.
  void give_back_unused();

 private:
  void tell_unused();

  mutable std::mutex mutex_;
  FileDescriptor descriptor_;
  Mapping mapping_;
  Heap heap_;
  std::size_t used_ = 0;
  std::function<void()> on_unused_;
  bool told_ = false;
  bool used_since_ = false;
};

/// What a block of so many bytes takes.
std::size_t whole_pages(std::size_t size) noexcept;

/// What this process sees of its pool's area, if it is a worker; else empty.
std::span<std::byte> shared_memory_of_worker() noexcept;
void set_shared_memory_of_worker(std::span<std::byte> memory) noexcept;

}  // namespace bulkhead::process
