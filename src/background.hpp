// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <memory>
#include <thread>

namespace bulkhead::detail {

/// One thread for all executors of the program, for what must happen whether or not the program's own event loop has
/// time: time limits, and the birth and death of workers. It never runs user code. Idle, it sleeps in the kernel.
///
/// Started with the first executor, joined with the last.
class Background {
 public:
  static std::shared_ptr<Background> get();

  Background();
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  boost::asio::io_context& context() noexcept { return context_; }

 private:
  boost::asio::io_context context_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace bulkhead::detail
