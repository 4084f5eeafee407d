// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/instance_group.hpp>

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
  using Keys = std::unordered_map<std::string, Key>;
  struct Place {
    std::string key;
    std::list<Wait>::iterator wait;
  };

  // Who may go on now, the first first.
  std::list<Wait> take_granted(Keys::iterator found) {
    Key& key = found->second;
    std::list<Wait> granted;
    while (!key.waits.empty() && key.count < key.waits.front().limit) {
      ++key.count;
      places.erase(key.waits.front().number);
      granted.splice(granted.end(), key.waits, key.waits.begin());
    }
    if (key.count == 0 && key.waits.empty()) keys.erase(found);
    return granted;
  }

  mutable std::mutex mutex;
  Keys keys;
  std::unordered_map<std::uint64_t, Place> places;  // of those that wait
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
  return state_->places.size();
}

bool InstanceGroup::try_acquire(const std::string& key, unsigned limit) {
  const std::lock_guard lock(state_->mutex);
  State::Key& counted = state_->keys[key];
  // Those that wait could not go on now: else they would have.
  if (counted.count >= limit) return false;
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
  const std::uint64_t number = ++state_->last_wait;
  const auto wait = counted.waits.insert(counted.waits.end(), {number, limit, std::move(grant)});
  state_->places.emplace(number, State::Place{key, wait});
  return number;
}

std::vector<InstanceGroup::Grant> InstanceGroup::forget(std::uint64_t wait) {
  std::list<State::Wait> forgotten;
  std::vector<Grant> granted;
  const std::lock_guard lock(state_->mutex);
  const auto place = state_->places.find(wait);
  if (place == state_->places.end()) return granted;
  const auto found = state_->keys.find(place->second.key);
  forgotten.splice(forgotten.end(), found->second.waits, place->second.wait);
  state_->places.erase(place);
  // It may have kept others from going on whose limit is higher.
  for (State::Wait& next : state_->take_granted(found)) granted.push_back(std::move(next.grant));
  return granted;
}

std::vector<InstanceGroup::Grant> InstanceGroup::release(const std::string& key) {
  std::vector<Grant> granted;
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->keys.find(key);
  if (found == state_->keys.end()) return granted;
  --found->second.count;
  for (State::Wait& next : state_->take_granted(found)) granted.push_back(std::move(next.grant));
  return granted;
}

}  // namespace bulkhead
