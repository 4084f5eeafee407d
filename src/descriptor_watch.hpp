// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/posix/stream_descriptor.hpp>

#include <utility>

namespace bulkhead::detail {

/// Waits until a descriptor that somebody else owns can be read, or written. Destruction ends the wait and leaves the
/// descriptor open.
class DescriptorWatch {
 public:
  template <class Executor>
  DescriptorWatch(Executor&& executor, int fd) : descriptor_(std::forward<Executor>(executor), fd) {}
  ~DescriptorWatch() { descriptor_.release(); }
  DescriptorWatch(const DescriptorWatch&) = delete;
  DescriptorWatch& operator=(const DescriptorWatch&) = delete;

  template <class Handler>
  void async_wait(Handler&& handler) {
    descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read, std::forward<Handler>(handler));
  }
  template <class Handler>
  void async_wait_writable(Handler&& handler) {
    descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_write, std::forward<Handler>(handler));
  }
  void cancel() { descriptor_.cancel(); }

 private:
  boost::asio::posix::stream_descriptor descriptor_;
};

}  // namespace bulkhead::detail
