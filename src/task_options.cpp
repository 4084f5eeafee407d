// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/task_options.hpp>

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace bulkhead {
namespace {

// Names go into every error, metric and process title: longer ones would only be cut somewhere else.
constexpr std::size_t kLongestName = 200;

TaskOptions::Duration require_positive(const char* option, TaskOptions::Duration value) {
  if (value <= TaskOptions::Duration::zero()) {
    throw std::invalid_argument(fmt::format(
        "TaskOptions::{} must be more than zero and at most 292 years, which is what nanoseconds in 64 bits "
        "can tell; it is {} ns",
        option, value.count()));
  }
  return value;
}

}  // namespace

TaskOptions::TaskOptions(const TaskOptions& other)
    : name_(other.name_ ? std::make_unique<const std::string>(*other.name_) : nullptr),
      timeout_(other.timeout_),
      queue_timeout_(other.queue_timeout_),
      priority_(other.priority_) {}

TaskOptions& TaskOptions::operator=(const TaskOptions& other) { return *this = TaskOptions(other); }

const std::string& TaskOptions::name() const noexcept {
  static const std::string none;
  return name_ ? *name_ : none;
}

TaskOptions& TaskOptions::name(std::string value) & {
  if (value.empty() || value.size() > kLongestName) {
    throw std::invalid_argument(
        fmt::format("TaskOptions::name must have 1 to {} characters, not {}", kLongestName, value.size()));
  }
  name_ = std::make_unique<const std::string>(std::move(value));
  return *this;
}

TaskOptions& TaskOptions::priority(int value) & noexcept {
  priority_ = value;
  return *this;
}

TaskOptions& TaskOptions::timeout(Duration value) & {
  timeout_ = require_positive("timeout", value);
  return *this;
}

TaskOptions& TaskOptions::queue_timeout(Duration value) & {
  queue_timeout_ = require_positive("queue_timeout", value);
  return *this;
}

}  // namespace bulkhead
