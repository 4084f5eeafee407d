// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace bulkhead {

class InstanceGroup;
class ResultStore;
class TaskRegistry;

/// What happens to a submit when `max_pending` tasks are in the executor.
enum class OverloadPolicy : std::uint8_t {
  reject,  ///< It fails at once with `ExecutorOverloadError`.
  wait     ///< It waits for its turn, first come, first served.
};

/// Options that every executor has.
struct CommonOptions {
  /// The name in metrics and errors. 1 to 200 characters, none of them a control character.
  std::string name = "default";
  /// The most tasks that may be queued or running at once. 1 to 1,000,000,000.
  std::size_t max_pending = 100;
  /// What happens beyond `max_pending`.
  OverloadPolicy overload = OverloadPolicy::reject;
  /// Where the instances of `TaskOptions::max_instances` are counted: executors with the same group count together.
  /// Null: a group of its own.
  std::shared_ptr<InstanceGroup> instances = nullptr;
  /// The tasks that can be submitted by their name. Null: none.
  std::shared_ptr<TaskRegistry> tasks = nullptr;
  /// Where the results of spawned tasks are kept. Null: a store of its own, with the default limits.
  std::shared_ptr<ResultStore> results = nullptr;

  bool operator==(const CommonOptions&) const = default;
};

/// How an executor is shut down.
struct ShutdownOptions {
  /// Whether `shutdown` waits until everything is over. If not, it returns at once, and the rest goes on by itself.
  bool wait = true;
  /// When what still runs is ended (a worker process is killed) and fails with `TaskCancelledError`, from now; also if
  /// nobody waits. Empty: never. Not negative.
  std::optional<std::chrono::nanoseconds> timeout = std::nullopt;
  /// Whether tasks that have not begun are cancelled.
  bool cancel_pending = false;
};

}  // namespace bulkhead
