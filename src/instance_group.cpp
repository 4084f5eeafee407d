// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/instance_group.hpp>

#include <algorithm>
#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace bulkhead {

struct InstanceGroup::State {
  struct Wait {
    std::uint64_t number;
    unsigned limit;
    Grant grant;
  };
  struct Key {
    std::size_t count = 0;
    std::list<Wait> waits;
  };

  mutable std::mutex mutex;
  std::unordered_map<std::string, Key> keys;
  std::uint64_t last_wait = 0;
};

InstanceGroup::InstanceGroup() : state_(std::make_unique<State>()) {}
InstanceGroup::~InstanceGroup() = default;

std::size_t InstanceGroup::count(const std::string& key) const {
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->keys.find(key);
  return found == state_->keys.end() ? 0 : found->second.count;
}

std::size_t InstanceGroup::waiting() const {
  const std::lock_guard lock(state_->mutex);
  std::size_t number = 0;
  for (const auto& [name, key] : state_->keys) number += key.waits.size();
  return number;
}

bool InstanceGroup::try_acquire(const std::string& key, unsigned limit) {
  const std::lock_guard lock(state_->mutex);
  State::Key& counted = state_->keys[key];
  // Those that wait came first.
  if (counted.count >= limit || !counted.waits.empty()) return false;
  ++counted.count;
  return true;
}

std::uint64_t InstanceGroup::acquire_or_wait(const std::string& key, unsigned limit, Grant grant) {
  const std::lock_guard lock(state_->mutex);
  State::Key& counted = state_->keys[key];
  if (counted.count < limit && counted.waits.empty()) {
    ++counted.count;
    return 0;
  }
  counted.waits.push_back({++state_->last_wait, limit, std::move(grant)});
  return state_->last_wait;
}

bool InstanceGroup::forget(std::uint64_t wait) {
  const std::lock_guard lock(state_->mutex);
  for (auto& [name, key] : state_->keys) {
    if (std::erase_if(key.waits, [&](const State::Wait& waiting) { return waiting.number == wait; }) > 0) return true;
  }
  return false;
}

void InstanceGroup::release(const std::string& key) {
  std::list<State::Wait> granted;
  {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->keys.find(key);
    if (found == state_->keys.end()) return;
    State::Key& counted = found->second;
    --counted.count;
    while (!counted.waits.empty() && counted.count < counted.waits.front().limit) {
      ++counted.count;
      granted.splice(granted.end(), counted.waits, counted.waits.begin());
    }
    if (counted.count == 0 && counted.waits.empty()) state_->keys.erase(found);
  }
  for (const State::Wait& wait : granted) wait.grant();
}

}  // namespace bulkhead
