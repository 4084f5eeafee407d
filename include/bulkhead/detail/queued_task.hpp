// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/intrusive_list.hpp>

#include <cstdint>

namespace bulkhead::detail {

// A task as a queue sees it.
struct QueuedTask : ListLink {
  int priority = 0;
  // Its place among all tasks of its priority; given by `Dispatcher::enqueue` the first time, and kept.
  std::uint64_t order = 0;
};

}  // namespace bulkhead::detail
