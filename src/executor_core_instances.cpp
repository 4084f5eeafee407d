// SPDX-License-Identifier: BSL-1.0
#include "process/symbols.hpp"

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/instance_group.hpp>

#include <fmt/format.h>

#include <utility>
#include <vector>

// TaskOptions::max_instances. A task that may wait for its turn is admitted first and keeps its place among
// `max_pending`: so the number of those that wait is bounded, and all of them are counted.

namespace bulkhead::detail {
namespace {

std::string instance_key(const TaskNode& node) {
  const std::string& key = node.options.max_instances()->key;
  if (!key.empty()) return key;
  const NameSource source = node.name_source();
  // In a program without symbols many functions have the name of their type.
  if (node.options.name().empty() && source.code != nullptr && process::symbol_name(source.code).empty()) {
    return fmt::format("{} at {}", node.name(), source.code);
  }
  return node.name();
}

void call_all(const std::vector<InstanceGroup::Grant>& grants) {
  for (const auto& grant : grants) grant();
}

}  // namespace

// With the mutex. The error, if there are as many as may be and the task is not to wait.
std::exception_ptr ExecutorCore::refused_by_instances(TaskNode& node) {
  const auto* const rule = node.options.max_instances();
  if (rule == nullptr || rule->policy == OverloadPolicy::wait || node.holds_instance) return nullptr;
  const std::string key = instance_key(node);
  node.holds_instance = instances->try_acquire(key, rule->limit);
  if (node.holds_instance) return nullptr;
  auto error = std::make_exception_ptr(MaxInstancesError(key, rule->limit, context_of(node)));
  if (events_) tell(EventKind::max_instances, node, error);
  return error;
}

// With the mutex. True: the task is started by whoever gives an instance back.
bool ExecutorCore::waits_for_instance(TaskNode& node) {
  const auto* const rule = node.options.max_instances();
  if (rule == nullptr || node.holds_instance) return false;
  const std::string key = instance_key(node);
  node.instance_wait =
      instances->acquire_or_wait(key, rule->limit, [weak = weak_from_this(), group = instances, id = node.id, key] {
        if (const auto self = weak.lock()) {
          self->instance_granted(id, key);
        } else {
          call_all(group->release(key));
        }
      });
  node.holds_instance = node.instance_wait == 0;
  if (node.holds_instance) return false;
  parked_.emplace(node.id, &node);
  if (events_) tell(EventKind::max_instances, node);
  if (node.may_begin_too_late()) watch_limits(node);
  return true;
}

void ExecutorCore::instance_granted(std::uint64_t id, const std::string& key) {
  Lock lock(mutex);
  const auto found = parked_.find(id);
  if (found == parked_.end()) {
    // It was cancelled in the same instant.
    lock.unlock();
    call_all(instances->release(key));
    return;
  }
  TaskNode* const node = found->second;
  parked_.erase(found);
  node->instance_wait = 0;
  node->holds_instance = true;
  lock.unlock();
  Admitted granted;
  granted.push_back(*node);
  start(granted);
}

// With the mutex. True: the task waited for an instance, and does not any more.
bool ExecutorCore::unpark(TaskNode& node) {
  if (node.instance_wait == 0) return false;
  parked_.erase(node.id);
  // If its turn comes just now, `instance_granted` finds it gone.
  for (auto& grant : instances->forget(std::exchange(node.instance_wait, 0))) grants_.push_back(std::move(grant));
  return true;
}

// Without the mutex: those whom a forgotten wait kept from going on may be tasks of any executor.
void ExecutorCore::pass_grants_on() {
  std::vector<std::function<void()>> grants;
  {
    const Lock lock(mutex);
    grants.swap(grants_);
  }
  call_all(grants);
}

// With the mutex, and before the task's caller is told, who may count on it. True: `pass_grants_on` is to be called.
bool ExecutorCore::release_instance(TaskNode& node) {
  if (!std::exchange(node.holds_instance, false)) return false;
  for (auto& grant : instances->release(instance_key(node))) grants_.push_back(std::move(grant));
  return !grants_.empty();
}

}  // namespace bulkhead::detail
