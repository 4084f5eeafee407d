// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/intrusive_list.hpp>

#include <cstdint>

namespace bulkhead::detail {

// Whose tasks share workers: no worker runs tasks of two compartments.
using Compartment = std::uint64_t;
// Of a worker: it has been given no task yet.
inline constexpr Compartment kNoCompartment = 0;
inline constexpr Compartment kSharedCompartment = 1;
inline constexpr Compartment kFirstOwnCompartment = 2;

// A task as a queue sees it.
struct QueuedTask : ListLink {
  int priority = 0;
  // Its place among all tasks of its priority; given by `Dispatcher::enqueue` the first time, and kept.
  std::uint64_t order = 0;
  Compartment compartment = kSharedCompartment;
};

}  // namespace bulkhead::detail
