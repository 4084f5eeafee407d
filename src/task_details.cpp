// SPDX-License-Identifier: BSL-1.0
#include "task_details.hpp"

#include <cstring>
#include <string_view>

namespace bulkhead::detail {

std::size_t details_size(const TaskNode& node) noexcept {
  if (!node.options.has_rare()) return 0;
  const std::size_t texts = node.options.name().size() + node.options.trace_parent().size();
  return texts == 0 ? 0 : 1 + texts;
}

void write_details(const TaskNode& node, std::span<std::byte> to) noexcept {
  if (to.empty()) return;
  const std::string_view name = node.options.name();
  const std::string_view trace_parent = node.options.trace_parent();
  to[0] = static_cast<std::byte>(name.size());
  std::memcpy(to.data() + 1, name.data(), name.size());
  std::memcpy(to.data() + 1 + name.size(), trace_parent.data(), trace_parent.size());
}

void read_details(std::span<const std::byte> from, TaskContext& context) noexcept {
  if (from.empty()) return;
  const std::string_view texts(reinterpret_cast<const char*>(from.data()) + 1, from.size() - 1);
  context.name = texts.substr(0, static_cast<std::size_t>(from[0]));
  context.trace_parent = texts.substr(context.name.size());
}

}  // namespace bulkhead::detail
