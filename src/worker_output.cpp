// SPDX-License-Identifier: BSL-1.0
#include "worker_output.hpp"

#include "process/standard_error.hpp"

#include <unistd.h>
#include <array>
#include <cerrno>
#include <cstddef>
#include <string_view>
#include <utility>

namespace bulkhead::detail {
namespace {

// What an error shows of it: some screens full.
constexpr std::size_t kTailSize = 4096;

// Read at a time, so that a worker that prints without end leaves the thread to others in between.
constexpr std::size_t kReadSize = 4096;

// What a pipe holds by default: more cannot be in it when its worker has died.
constexpr std::size_t kPipeSize = 65536;

}  // namespace

WorkerOutput::WorkerOutput(boost::asio::io_context& background, process::FileDescriptor pipe, bool pass_on)
    : background_(background), passes_on_(pass_on), pipe_(std::move(pipe)) {}

void WorkerOutput::start() {
  const std::lock_guard lock(mutex_);
  readable_ = std::make_unique<DescriptorWatch>(background_, pipe_.get());
  wait();
}

void WorkerOutput::wait() {
  readable_->async_wait([self = shared_from_this()](boost::system::error_code error) {
    if (error) return;
    const std::lock_guard lock(self->mutex_);
    if (!self->pipe_) return;
    if (self->read_some() && self->pass_on()) self->wait();
  });
}

// False: nobody can print any more.
bool WorkerOutput::read_some() {
  std::array<char, kReadSize> buffer;
  const ssize_t size = ::read(pipe_.get(), buffer.data(), buffer.size());
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (size <= 0) return false;
  const std::string_view text(buffer.data(), static_cast<std::size_t>(size));
  read_ += text.size();
  tail_ += text;
  if (tail_.size() > kTailSize) tail_.erase(0, tail_.size() - kTailSize);
  if (passes_on_) held_ += text;
  return true;
}

// False: not all could be passed on now; it goes on by itself.
bool WorkerOutput::pass_on() {
  held_.erase(0, process::write_standard_error(held_));
  if (held_.empty()) return true;
  if (writable_) return false;
  to_wait_for_ = process::standard_error_to_wait_for();
  if (!to_wait_for_) {
    held_.clear();  // There is no standard error any more.
    return true;
  }
  writable_ = std::make_unique<DescriptorWatch>(background_, to_wait_for_.get());
  writable_->async_wait_writable([self = shared_from_this()](boost::system::error_code error) {
    if (error) return;
    const std::lock_guard lock(self->mutex_);
    self->writable_.reset();
    if (self->pass_on() && self->pipe_) self->wait();
  });
  return false;
}

void WorkerOutput::end() {
  tail();
  const std::lock_guard lock(mutex_);
  readable_.reset();
  pipe_.reset();
}

std::string WorkerOutput::tail() {
  const std::lock_guard lock(mutex_);
  if (!pipe_) return tail_;
  std::size_t before;
  std::size_t read = 0;
  do {
    before = read_;
    if (!read_some()) break;
    read += read_ - before;
  } while (read_ != before && read < kPipeSize);
  pass_on();
  return tail_;
}

}  // namespace bulkhead::detail
