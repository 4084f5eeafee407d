// SPDX-License-Identifier: BSL-1.0
#include "support/told.hpp"

#include <algorithm>
#include <iterator>

namespace bulkhead::test {

Told::Told(BaseExecutor& executor, EventMask mask) {
  SubscribeOptions options;
  options.queue_size = 100'000;
  subscription_ = executor.subscribe([this](const Event& event) { events_.push_back(event); }, mask, options);
}

std::vector<Event> Told::of(const std::string& task) const {
  std::vector<Event> found;
  std::copy_if(events_.begin(), events_.end(), std::back_inserter(found),
               [&](const Event& event) { return event.task == task; });
  return found;
}

std::string Told::story(const std::string& task) const {
  std::string story;
  for (const Event& event : of(task)) {
    story += story.empty() ? "" : " ";
    story += to_string(event.kind);
  }
  return story;
}

std::size_t Told::count(EventMask kinds) const {
  return static_cast<std::size_t>(
      std::count_if(events_.begin(), events_.end(), [&](const Event& event) { return kinds.contains(event.kind); }));
}

}  // namespace bulkhead::test
