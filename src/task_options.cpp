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

Isolation Isolation::per_key(std::string key) {
  return Isolation(Kind::per_key, require_name("isolation: its key", std::move(key)));
}

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

TaskOptions& TaskOptions::total_timeout(Duration value) & {
  change_rare().total_timeout = require_positive("total_timeout", value);
  return *this;
}

TaskOptions& TaskOptions::cpu_timeout(Duration value) & {
  change_rare().cpu_timeout = require_positive("cpu_timeout", value);
  return *this;
}

TaskOptions& TaskOptions::isolation(Isolation value) & {
  change_rare().isolation = std::move(value);
  return *this;
}

TaskOptions& TaskOptions::id(TaskId value) & {
  if (value.empty()) throw std::invalid_argument("TaskOptions::id must not be the empty id, which is no task's");
  change_rare().id = value;
  return *this;
}

TaskOptions& TaskOptions::metadata(std::string value) & {
  change_rare().metadata = std::move(value);
  return *this;
}

TaskOptions& TaskOptions::max_instances(unsigned limit, OverloadPolicy policy, std::string key) & {
  if (limit == 0) throw std::invalid_argument("TaskOptions::max_instances must be at least 1, not 0");
  if (policy != OverloadPolicy::reject && policy != OverloadPolicy::wait) {
    throw std::invalid_argument("TaskOptions::max_instances must have OverloadPolicy::reject or OverloadPolicy::wait");
  }
  if (!key.empty()) key = require_name("max_instances: its key", std::move(key));
  change_rare().instances = Instances{limit, policy, std::move(key)};
  return *this;
}

TaskOptions TaskOptions::with_defaults(const TaskOptions& defaults) const {
  TaskOptions merged(*this);
  if (merged.priority_ == 0) merged.priority_ = defaults.priority_;
  if (merged.timeout_.count() == 0) merged.timeout_ = defaults.timeout_;
  if (merged.queue_timeout_.count() == 0) merged.queue_timeout_ = defaults.queue_timeout_;
  if (!defaults.rare_) return merged;
  Rare& rare = merged.change_rare();
  const Rare& other = *defaults.rare_;
  if (rare.name.empty()) rare.name = other.name;
  if (rare.trace_parent.empty()) rare.trace_parent = other.trace_parent;
  if (rare.quarantine_key.empty()) rare.quarantine_key = other.quarantine_key;
  if (rare.metadata.empty()) rare.metadata = other.metadata;
  if (rare.total_timeout.count() == 0) rare.total_timeout = other.total_timeout;
  if (rare.cpu_timeout.count() == 0) rare.cpu_timeout = other.cpu_timeout;
  if (!rare.retry) rare.retry = other.retry;
  if (!rare.instances) rare.instances = other.instances;
  if (!rare.isolation) rare.isolation = other.isolation;
  if (!rare.on_progress) rare.on_progress = other.on_progress;
  return merged;
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
