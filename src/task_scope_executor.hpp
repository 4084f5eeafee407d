// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/task_context.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/require.hpp>

#include <memory>
#include <type_traits>
#include <utility>

namespace bulkhead::detail {

/// An Asio executor whose functions run as a task: `this_task` knows it, on whatever thread they are called. What a
/// coroutine runs on that goes on in one handler after another.
class TaskScopeExecutor {
 public:
  TaskScopeExecutor(asio::any_io_executor inner, std::shared_ptr<TaskContext> context) noexcept
      : inner_(std::move(inner)), context_(std::move(context)) {}

  template <class F>
  void execute(F function) const {
    inner_.execute([context = context_, function = std::move(function)]() mutable {
      const RunningTask running(*context, RunningTask::Scope::thread);
      std::move(function)();
    });
  }

  asio::execution_context& query(asio::execution::context_t property) const { return asio::query(inner_, property); }
  template <class Property>
  requires asio::can_query<const asio::any_io_executor&, Property>::value decltype(auto) query(
      const Property& property) const {
    return asio::query(inner_, property);
  }
  template <class Property>
  requires asio::can_require<const asio::any_io_executor&, Property>::value TaskScopeExecutor
  require(const Property& property)
  const { return TaskScopeExecutor(asio::require(inner_, property), context_); }
  template <class Property>
  requires asio::can_prefer<const asio::any_io_executor&, Property>::value TaskScopeExecutor
  prefer(const Property& property)
  const { return TaskScopeExecutor(asio::prefer(inner_, property), context_); }

  bool operator==(const TaskScopeExecutor& other) const noexcept {
    return context_ == other.context_ && inner_ == other.inner_;
  }
  bool operator!=(const TaskScopeExecutor& other) const noexcept { return !(*this == other); }

 private:
  asio::any_io_executor inner_;
  std::shared_ptr<TaskContext> context_;
};

}  // namespace bulkhead::detail
