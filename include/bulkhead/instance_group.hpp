// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace bulkhead {

/// Counts how many tasks of one name or key are in executors, for `TaskOptions::max_instances`. Executors that are
/// given the same group (`CommonOptions::instances`) count together.
///
/// An instance is counted from when the task may run until it is really over: a running task that was cancelled counts
/// until its function has returned. Thread safety: shared objects: safe.
class BULKHEAD_EXPORT InstanceGroup {
 public:
  InstanceGroup();
  ~InstanceGroup();
  InstanceGroup(const InstanceGroup&) = delete;
  InstanceGroup& operator=(const InstanceGroup&) = delete;

  /// How many tasks of this key are counted now.
  std::size_t count(const std::string& key) const;
  /// How many tasks wait for their turn, of all keys.
  std::size_t waiting() const;

  // For executors of this library.

  /// Tells a task that it is one of the instances now; called without any lock of the group's.
  using Grant = std::function<void()>;
  /// Counts one more, if there are fewer than `limit`.
  bool try_acquire(const std::string& key, unsigned limit);
  /// The same; if there are `limit`, `grant` is called when there is room, first come, first served. Gives the number
  /// of the wait, or 0 if it was counted at once.
  std::uint64_t acquire_or_wait(const std::string& key, unsigned limit, Grant grant);
  /// Nobody waits any more; if a grant is under way, whoever gets it has to release. Gives the grants of those whom it
  /// kept from going on: call them without any lock.
  [[nodiscard]] std::vector<Grant> forget(std::uint64_t wait);
  /// One less. Gives the grants of those that may go on now: call them without any lock.
  [[nodiscard]] std::vector<Grant> release(const std::string& key);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bulkhead
