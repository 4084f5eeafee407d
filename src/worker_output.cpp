// SPDX-License-Identifier: BSL-1.0
#include "worker_output.hpp"

#include "process/standard_error.hpp"

#include <unistd.h>
#include <array>
#include <atomic>
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

// A line that is longer is passed on in pieces: as much as could wait in the worker's own pipe.
constexpr std::size_t kLongestLine = kPipeSize;

// Whose lines are being written, of all workers of the program: standard error may take a part of them only, and nobody
// else's are to come between that and the rest.
std::atomic<const WorkerOutput*> turn{nullptr};

}  // namespace

WorkerOutput::WorkerOutput(boost::asio::io_context& background, process::FileDescriptor pipe, bool pass_on)
    : background_(background), passes_on_(pass_on), pipe_(std::move(pipe)) {}

WorkerOutput::~WorkerOutput() { give_turn_back(); }

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

std::size_t WorkerOutput::whole_lines() const {
  if (ended_ || held_.size() >= kLongestLine) return held_.size();
  const auto end = held_.rfind('\n');
  return end == std::string::npos ? 0 : end + 1;
}

bool WorkerOutput::take_turn() {
  const WorkerOutput* nobody = nullptr;
  return turn.compare_exchange_strong(nobody, this) || nobody == this;
}

void WorkerOutput::give_turn_back() {
  const WorkerOutput* self = this;
  turn.compare_exchange_strong(self, nullptr);
}

// False: not all could be passed on now; it goes on by itself.
bool WorkerOutput::pass_on() {
  if (writable_) return false;
  if (unwritten_ == 0) unwritten_ = whole_lines();
  if (unwritten_ == 0) return true;
  if (take_turn()) {
    const std::size_t written = process::write_standard_error(std::string_view(held_).substr(0, unwritten_));
    held_.erase(0, written);
    unwritten_ -= written;
    if (unwritten_ == 0) {
      give_turn_back();
      return true;
    }
  }
  to_wait_for_ = process::standard_error_to_wait_for();
  if (!to_wait_for_) {
    held_.clear();  // There is no standard error any more.
    unwritten_ = 0;
    give_turn_back();
    return true;
  }
  // Whose turn it is waits for the same, and is served at the latest then: so this comes to an end for all.
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
  const std::lock_guard lock(mutex_);
  read_all();
  ended_ = true;
  pass_on();
  readable_.reset();
  pipe_.reset();
}

std::string WorkerOutput::tail() {
  const std::lock_guard lock(mutex_);
  read_all();
  pass_on();
  return tail_;
}

void WorkerOutput::read_all() {
  if (!pipe_) return;
  std::size_t before;
  std::size_t read = 0;
  do {
    before = read_;
    if (!read_some()) break;
    read += read_ - before;
  } while (read_ != before && read < kPipeSize);
}

}  // namespace bulkhead::detail
