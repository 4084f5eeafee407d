// SPDX-License-Identifier: BSL-1.0
#include "shared_area.hpp"

#include <fcntl.h>
#include <algorithm>
#include <utility>

namespace bulkhead::process {
namespace {

// Blocks begin at pages, so that what is read into them by the kernel or viewed as anything is aligned for it, and two
// blocks never share a cache line.
constexpr std::size_t kPage = 4096;

// Given back at once: some milliseconds' work, for which whoever wants a block may have to wait.
constexpr std::size_t kPiece = std::size_t{64} << 20;

std::span<std::byte> of_worker;

}  // namespace

std::size_t whole_pages(std::size_t size) noexcept {
  return (std::max<std::size_t>(size, 1) + kPage - 1) / kPage * kPage;
}

SharedArea::SharedArea(std::size_t size)
    : descriptor_(create_memfd("bulkhead-shared", whole_pages(size))),
      mapping_(descriptor_, whole_pages(size), Mapping::Access::read_write),
      heap_(whole_pages(size)) {
  // Nobody can cut it short, which would make reading it a SIGBUS.
  seal(descriptor_, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  mapping_.keep_private();
}

std::optional<std::size_t> SharedArea::allocate(std::size_t size) {
  if (size > mapping_.size()) return std::nullopt;
  const std::lock_guard lock(mutex_);
  const auto offset = heap_.allocate(whole_pages(size));
  if (offset) used_ += whole_pages(size);
  used_since_ = true;
  return offset;
}

void SharedArea::release(std::size_t offset, std::size_t size) {
  const std::lock_guard lock(mutex_);
  heap_.release(offset, whole_pages(size));
  used_ -= whole_pages(size);
  if (used_ == 0) tell_unused();
}

std::size_t SharedArea::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

void SharedArea::on_unused(std::function<void()> handler) {
  const std::lock_guard lock(mutex_);
  on_unused_ = std::move(handler);
}

void SharedArea::tell_unused() {
  if (told_ || !on_unused_) return;
  told_ = true;
  used_since_ = false;
  on_unused_();
}

void SharedArea::give_back_unused() {
  for (std::size_t offset = 0; offset < mapping_.size(); offset += kPiece) {
    const std::lock_guard lock(mutex_);
    told_ = false;
    if (used_ != 0) return;
    if (used_since_) {
      tell_unused();
      return;
    }
    // What cannot be given back is used again.
    [[maybe_unused]] const int result =
        ::fallocate(descriptor_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(std::min(kPiece, mapping_.size() - offset)));
  }
}

std::span<std::byte> shared_memory_of_worker() noexcept { return of_worker; }
void set_shared_memory_of_worker(std::span<std::byte> memory) noexcept { of_worker = memory; }

}  // namespace bulkhead::process
