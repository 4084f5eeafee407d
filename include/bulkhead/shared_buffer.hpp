// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/task_impl.hpp>
#include <bulkhead/serialization.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

namespace bulkhead {

namespace detail {

// A block of an executor's shared memory. In a worker it only shows it.
struct SharedBlock;
struct SharedBufferAccess;

}  // namespace detail

/// Memory that an executor's host and workers have in common: it is filled where it lies, by a read from a socket, say,
/// and passed to a task and returned by it without being copied, whatever its size.
///
///     // options.max_shared_memory says how much there is.
///     bulkhead::SharedBuffer image = pool.make_buffer(size);
///     co_await asio::async_read(socket, asio::buffer(image.data(), image.size()), asio::use_awaitable);
///     image = co_await pool.submit(rotate, std::move(image));  // SharedBuffer rotate(SharedBuffer image)
///
/// Copies share the memory. In the host the last of them gives it back, whatever has become of the worker: it is used
/// again when no task can touch it any more. A function may return a buffer that it was passed and no other.
///
/// Whoever has a buffer may write into it, and all workers of the executor can reach all of its buffers. One that has
/// been taken over by an attacker may change what is in them at any time; see the docs.
///
/// Thread safety: distinct objects: safe, also if they share memory; its contents are for the users to guard. May
/// outlive its executor.
class BULKHEAD_EXPORT SharedBuffer {
 public:
  /// No memory.
  SharedBuffer() noexcept = default;
  SharedBuffer(const SharedBuffer&) = default;
  SharedBuffer& operator=(const SharedBuffer&) = default;
  /// What was moved from has no memory.
  SharedBuffer(SharedBuffer&& other) noexcept
      : block_(std::move(other.block_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  SharedBuffer& operator=(SharedBuffer&& other) noexcept {
    block_ = std::move(other.block_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~SharedBuffer() = default;

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  std::byte* begin() const noexcept { return data_; }
  std::byte* end() const noexcept { return data_ + size_; }
  std::byte& operator[](std::size_t index) const noexcept { return data_[index]; }
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

  /// How many bytes it can have.
  std::size_t capacity() const noexcept;
  /// Says how many of the bytes count. Throws `std::length_error` beyond the capacity. New ones are what they were.
  void resize(std::size_t size);

 private:
  friend struct detail::SharedBufferAccess;

  std::shared_ptr<detail::SharedBlock> block_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// It travels as a reference to where it lies. `SerializationError` where there is no such place: in another executor
/// than the one that made it, or outside of any task.
template <>
struct codec<SharedBuffer> {
  BULKHEAD_EXPORT static void encode(Encoder& encoder, const SharedBuffer& buffer);
  BULKHEAD_EXPORT static SharedBuffer decode(Decoder& decoder);
};

namespace detail {
template <>
inline constexpr bool is_surely_copyable<SharedBuffer> = true;
}  // namespace detail

}  // namespace bulkhead
