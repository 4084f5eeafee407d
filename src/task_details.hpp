// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/task_context.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <cstddef>
#include <span>

namespace bulkhead::detail {

// What follows the call in a request, for tasks that have it: the name that the caller gave, and the trace context.
// First the length of the name in one byte, since it has 200 characters at most; then the name; the rest is the other.

std::size_t details_size(const TaskNode& node) noexcept;
void write_details(const TaskNode& node, std::span<std::byte> to) noexcept;
/// The context's texts stay where the bytes are.
void read_details(std::span<const std::byte> from, TaskContext& context) noexcept;

}  // namespace bulkhead::detail
