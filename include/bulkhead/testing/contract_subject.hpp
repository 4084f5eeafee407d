// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

namespace bulkhead::testing {

/// An executor does not keep the contract. `what()` says how.
class ContractViolation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What the tasks are that the executor is given.
enum class TaskForm {
  function,  ///< Plain functions.
  coroutine  ///< Functions that return `asio::awaitable<T>`, for executors that run those on the event loop.
};

/// What is tested.
struct ContractSubject {
  /// Makes an executor with these options, on this Asio executor.
  std::function<std::shared_ptr<BaseExecutor>(asio::any_io_executor, CommonOptions)> make;
  /// How many tasks it runs at once; further ones it queues. 0: it runs each task inside `submit`, so that none ever
  /// waits and none can be cancelled; what needs that is left out, and that a task has run when `submit` returns is
  /// tested instead.
  std::size_t concurrency = 1;
  /// Which kind of tasks it is given. An executor that takes both is tested once with each.
  TaskForm form = TaskForm::function;
  /// How long a part waits for something that must come before it calls that a violation. At least a second; the
  /// default is meant for slow and busy machines.
  std::chrono::seconds deadline{60};
};

/// One part of the contract.
struct ContractCase {
  std::string name;
  /// Throws `ContractViolation`.
  std::function<void()> run;
};

}  // namespace bulkhead::testing
