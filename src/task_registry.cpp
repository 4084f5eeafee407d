// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/task_registry.hpp>

#include <bulkhead/serialization.hpp>

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace bulkhead {
namespace {

// "std::tuple<int, std::string>" as "(int, std::string)".
std::string argument_list(const std::type_info& tuple) {
  const std::string text = demangle(tuple.name());
  const auto begin = text.find('<');
  const auto end = text.rfind('>');
  if (begin == std::string::npos || end == std::string::npos) return text;
  return "(" + text.substr(begin + 1, end - begin - 1) + ")";
}

}  // namespace

void detail::throw_not_repeatable(const std::string& name) {
  throw TaskSignatureError(
      fmt::format("task '{}' cannot be repeated: a run gets copies of the arguments, and one of them cannot be copied",
                  name),
      {});
}

struct TaskRegistry::State {
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, task] : tasks) all.push_back(name);
    return all;
  }

  mutable std::mutex mutex;
  std::map<std::string, std::shared_ptr<const detail::RegisteredTask>, std::less<>> tasks;
};

TaskRegistry::TaskRegistry() : state_(std::make_unique<State>()) {}
TaskRegistry::~TaskRegistry() = default;

void TaskRegistry::require_function(const std::string& name, bool given) {
  if (!given) throw std::invalid_argument(fmt::format("TaskRegistry::add: the function of '{}' is null", name));
}

void TaskRegistry::insert(std::shared_ptr<const detail::RegisteredTask> task) {
  const std::lock_guard lock(state_->mutex);
  const std::string& name = task->name();
  if (state_->tasks.contains(name)) throw DuplicateTaskError(name);
  state_->tasks.emplace(name, std::move(task));
}

bool TaskRegistry::remove(std::string_view name) {
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->tasks.find(name);
  if (found == state_->tasks.end()) return false;
  state_->tasks.erase(found);
  return true;
}

bool TaskRegistry::contains(std::string_view name) const {
  const std::lock_guard lock(state_->mutex);
  return state_->tasks.contains(name);
}

std::size_t TaskRegistry::size() const {
  const std::lock_guard lock(state_->mutex);
  return state_->tasks.size();
}

std::vector<std::string> TaskRegistry::names() const {
  const std::lock_guard lock(state_->mutex);
  return state_->names();
}

std::shared_ptr<const detail::RegisteredTask> TaskRegistry::find(std::string_view name, const std::type_info& arguments,
                                                                 const ErrorContext& context) const {
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->tasks.find(name);
  if (found == state_->tasks.end()) throw UnknownTaskError(std::string(name), state_->names(), context);
  const auto& task = found->second;
  if (task->arguments() != arguments) {
    throw TaskSignatureError(fmt::format("task '{}' takes {}, and was called with {}; the types must be the same", name,
                                         argument_list(task->arguments()), argument_list(arguments)),
                             context);
  }
  return task;
}

}  // namespace bulkhead
