// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/task_options.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <string_view>
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

std::string require_name(const char* option, std::string value) {
  if (value.empty() || value.size() > kLongestName) {
    throw std::invalid_argument(
        fmt::format("TaskOptions::{} must have 1 to {} characters, not {}", option, kLongestName, value.size()));
  }
  return value;
}

// W3C Trace Context, 3.2: version, trace id, parent id and flags in lower-case hexadecimal digits.
bool is_trace_parent(std::string_view text) {
  constexpr std::string_view kShape = "xx-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
  return std::equal(text.begin(), text.end(), kShape.begin(), kShape.end(), [](char c, char shape) {
    return shape == '-' ? c == '-' : (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
}

}  // namespace

TaskOptions::TaskOptions(const TaskOptions& other)
    : rare_(other.rare_ ? std::make_unique<Rare>(*other.rare_) : nullptr),
      timeout_(other.timeout_),
      queue_timeout_(other.queue_timeout_),
      priority_(other.priority_) {}

TaskOptions& TaskOptions::operator=(const TaskOptions& other) { return *this = TaskOptions(other); }

const TaskOptions::Rare& TaskOptions::none() noexcept {
  static const Rare none;
  return none;
}

TaskOptions::Rare& TaskOptions::change_rare() {
  if (!rare_) rare_ = std::make_unique<Rare>();
  return *rare_;
}

TaskOptions& TaskOptions::name(std::string value) & {
  change_rare().name = require_name("name", std::move(value));
  return *this;
}

TaskOptions& TaskOptions::quarantine_key(std::string value) & {
  change_rare().quarantine_key = require_name("quarantine_key", std::move(value));
  return *this;
}

TaskOptions& TaskOptions::trace_parent(std::string value) & {
  if (!is_trace_parent(value)) {
    throw std::invalid_argument(fmt::format(
        "TaskOptions::trace_parent must look like 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, not '{}'", value));
  }
  change_rare().trace_parent = std::move(value);
  return *this;
}

TaskOptions& TaskOptions::cpu_timeout(Duration value) & {
  change_rare().cpu_timeout = require_positive("cpu_timeout", value);
  return *this;
}

TaskOptions& TaskOptions::retry(RetryPolicy policy) & {
  change_rare().retry = std::move(policy);
  return *this;
}

TaskOptions& TaskOptions::on_progress(std::function<void(const Progress&)> handler) & {
  change_rare().on_progress = std::move(handler);
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
