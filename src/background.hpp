// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "process/fork_server.hpp"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <memory>
#include <thread>

namespace bulkhead::detail {

/// Two threads for all executors of the program. Neither ever runs user code; idle, they sleep in the kernel.
///
/// Started with the first executor, joined with the last.
class Background {
 public:
  static std::shared_ptr<Background> get();

  Background();
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  /// For what must happen at once, whether or not the program's own event loop has time: time limits, and the birth and
  /// death of workers.
  boost::asio::io_context& context() noexcept { return prompt_.context; }
  /// For what may take its time: reading the program's symbols for reports of crashes.
  boost::asio::io_context& slow() noexcept { return slow_.context; }

 private:
  struct Thread {
    explicit Thread(const char* name);
    ~Thread();
    process::MadeHere made_here;
    boost::asio::io_context context{1};
    boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{context.get_executor()};
    std::thread thread;
  };

  process::MadeHere made_here_;
  Thread prompt_;
  Thread slow_;
};

}  // namespace bulkhead::detail
