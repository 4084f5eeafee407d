// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <cstdint>
#include <random>
#include <set>
#include <utility>

namespace bulkhead::detail {

// The tasks of an executor that wait for their next run. The timer is one of the Asio context's, whose threads start
// the runs: what encodes arguments is user code.
struct ExecutorCore::Retries {
  explicit Retries(const asio::any_io_executor& io) : timer(io) {}

  void add(TaskNode& node, std::uint64_t at) {
    node.retry_at_ns = at;
    by_time.emplace(at, &node);
  }
  void remove(TaskNode& node) {
    by_time.erase({node.retry_at_ns, &node});
    node.retry_at_ns = 0;
    // The event loop has nothing to wait for here any more.
    if (by_time.empty()) timer.cancel();
  }

  std::set<std::pair<std::uint64_t, TaskNode*>> by_time;
  asio::steady_timer timer;
  std::minstd_rand random{std::random_device{}()};
};

}  // namespace bulkhead::detail
