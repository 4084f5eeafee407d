// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <string>

namespace bulkhead::detail {

/// Decides which keys are refused since they crash worker after worker. Time is an argument. Not thread-safe.
///
/// A key that has crashed `crashes` workers in a row is refused for `time`. After that its next crash is enough to have
/// it refused again, and one run that does not crash clears it.
class Quarantine {
 public:
  using Duration = std::chrono::nanoseconds;
  using Time = std::chrono::nanoseconds;  // since an epoch of the caller's choice

  Quarantine(unsigned crashes, Duration time) : limit_(crashes), time_(time) {}

  /// Whether nothing has crashed lately: then no key need be made up.
  bool empty() const noexcept { return keys_.empty(); }

  void crashed(const std::string& key, Time now) {
    // A flood of keys that crash once each must not fill the memory.
    constexpr std::size_t kMostKeys = 10'000;
    if (keys_.size() == kMostKeys && !keys_.contains(key)) keys_.erase(least_missed(now));
    State& state = keys_[key];
    ++state.crashes;
    state.last = now;
    if (state.crashes >= limit_) state.until = now + time_;
  }
  void survived(const std::string& key) { keys_.erase(key); }

  struct Refusal {
    unsigned crashes;
    Duration remaining;
  };
  std::optional<Refusal> refused(const std::string& key, Time now) const {
    const auto found = keys_.find(key);
    if (found == keys_.end() || found->second.until <= now) return std::nullopt;
    return Refusal{found->second.crashes, found->second.until - now};
  }
  /// How many keys are refused.
  std::size_t count(Time now) const {
    std::size_t refused_keys = 0;
    for (const auto& [key, state] : keys_) refused_keys += state.until > now ? 1 : 0;
    return refused_keys;
  }

 private:
  struct State {
    unsigned crashes = 0;
    Time last{0};
    Time until{0};
  };

  // Whose crashes lie furthest back, of those that are not refused now; if all are, of all.
  std::map<std::string, State>::iterator least_missed(Time now) {
    return std::min_element(keys_.begin(), keys_.end(), [&](const auto& a, const auto& b) {
      const bool refused_a = a.second.until > now;
      const bool refused_b = b.second.until > now;
      return refused_a != refused_b ? refused_b : a.second.last < b.second.last;
    });
  }

  unsigned limit_;
  Duration time_;
  std::map<std::string, State> keys_;
};

}  // namespace bulkhead::detail
