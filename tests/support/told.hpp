// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/events.hpp>

#include <cstddef>
#include <string>
#include <vector>

namespace bulkhead::test {

/// The events of an executor, as they came.
class Told {
 public:
  explicit Told(BaseExecutor& executor, EventMask mask = kTaskEvents);

  const std::vector<Event>& events() const { return events_; }
  std::vector<Event> of(const std::string& task) const;
  /// What happened to the tasks of this name: "submitted started succeeded".
  std::string story(const std::string& task) const;
  std::size_t count(EventMask kinds) const;
  std::size_t ends() const { return count(kTerminalEvents); }

 private:
  std::vector<Event> events_;
  Subscription subscription_;
};

}  // namespace bulkhead::test
