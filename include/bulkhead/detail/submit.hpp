// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_impl.hpp>
#include <bulkhead/detail/task_record.hpp>
#include <bulkhead/detail/timed_runs.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

// From a call to a task of an executor.

namespace bulkhead::detail {

// The core that a submit is for. The submit itself, which its executor outlives, needs no reference of its own, which
// would cost it two locked instructions; what is moved away from there, into a coroutine, say, which may be awaited at
// any time, has one.
class CoreReference {
 public:
  explicit CoreReference(const std::shared_ptr<ExecutorCore>& core) noexcept : core_(core.get()) {}
  CoreReference(const CoreReference& other) : core_(other.core_), own_(core_->shared_from_this()) {}
  CoreReference(CoreReference&& other)
      : core_(other.core_), own_(other.own_ ? std::move(other.own_) : core_->shared_from_this()) {}
  CoreReference& operator=(const CoreReference&) = delete;

  ExecutorCore& operator*() const noexcept { return *core_; }
  ExecutorCore* operator->() const noexcept { return core_; }

 private:
  ExecutorCore* core_;
  std::shared_ptr<ExecutorCore> own_;
};

// Creates the task and hands it to the executor; what a completion token starts.
struct InitiateSubmit {
  using executor_type = asio::any_io_executor;
  CoreReference core;
  std::shared_ptr<TaskRecord> record;
  std::shared_ptr<void> held;
  bool waits_for_room = false;

  explicit InitiateSubmit(const std::shared_ptr<ExecutorCore>& executor, std::shared_ptr<TaskRecord> spawned = nullptr)
      : core(executor), record(std::move(spawned)) {}
  executor_type get_executor() const noexcept { return core->io; }

  template <class Handler, class C>
  void operator()(Handler&& handler, TaskOptions&& options, C&& call) && {
    using Node = TaskImpl<C, std::decay_t<Handler>>;
    ExecutorCore& executor = *core;
    Node* node = Node::create(executor, std::move(options), std::move(call), std::forward<Handler>(handler));
    if (held.use_count() != 0) node->held = std::move(held);  // it may hold a null pointer
    if (waits_for_room) node->waits_for_room = true;
    if (record) {
      const std::uint64_t id = executor.make_cancellable(*node);
      node->record = record;
      record->set_number(id);
    }
    auto slot = asio::get_associated_cancellation_slot(node->handler());
    if (slot.is_connected()) {
      const std::uint64_t id = record ? node->id : executor.make_cancellable(*node);
      slot.assign([weak = executor.weak_from_this(), id](asio::cancellation_type type) {
        if (const auto alive = weak.lock()) alive->cancel(id, type);
      });
    }
    executor.submit(node);
  }
};

template <class C>
constexpr void require_invocable() {
  static_assert(CallTraits<C>::invocable,
                "bulkhead: the function cannot be called with these arguments; it gets them as rvalues, so a parameter "
                "cannot be a reference to non-const: return what it is to change.");
}

template <class C, class CompletionToken>
auto initiate_call(const std::shared_ptr<ExecutorCore>& core, TaskOptions&& options, C&& call,
                   CompletionToken&& token) {
  require_invocable<C>();
  using Signature = typename CompletionSignature<task_result_t<C>>::type;
  return asio::async_initiate<CompletionToken, Signature>(InitiateSubmit(core), token, std::move(options),
                                                          std::move(call));
}

struct InitiateWithOptional {
  using executor_type = asio::any_io_executor;
  InitiateSubmit submit;

  executor_type get_executor() const noexcept { return submit.get_executor(); }

  template <class Handler, class C>
  void operator()(Handler&& handler, TaskOptions&& options, C&& call) && {
    std::move(submit)(OptionalHandler<std::decay_t<Handler>>{std::forward<Handler>(handler)}, std::move(options),
                      std::move(call));
  }
};

template <class R>
asio::awaitable<R> unwrap(asio::awaitable<std::optional<R>> result) {
  std::optional<R> value = co_await std::move(result);
  co_return std::move(*value);
}

template <class C>
auto await_call(const std::shared_ptr<ExecutorCore>& core, TaskOptions&& options, C&& call)
    -> asio::awaitable<task_result_t<C>> {
  using Result = task_result_t<C>;
  if constexpr (std::is_void_v<Result>) {
    return initiate_call(core, std::move(options), std::move(call), asio::use_awaitable);
  } else if constexpr (std::is_nothrow_default_constructible_v<Result>) {
    return initiate_call(core, std::move(options), std::move(call), asio::use_awaitable);
  } else {
    require_invocable<C>();
    auto token = asio::use_awaitable;
    return unwrap(asio::async_initiate<asio::use_awaitable_t<>, void(std::exception_ptr, std::optional<Result>)>(
        InitiateWithOptional{InitiateSubmit(core)}, token, std::move(options), std::move(call)));
  }
}

template <class C>
void spawn_call(const std::shared_ptr<ExecutorCore>& core, std::shared_ptr<TaskRecord> record, TaskOptions&& options,
                C&& call) {
  using Result = task_result_t<C>;
  RecordCompletion<Result> completion(record);
  InitiateSubmit initiation(core, std::move(record));
  std::move(initiation)(std::move(completion), std::move(options), std::move(call));
}

template <class C>
void spawn_call_at(const std::shared_ptr<ExecutorCore>& core, const std::shared_ptr<TaskRecord>& record, StartTime time,
                   TaskOptions&& options, C&& call) {
  using Result = task_result_t<C>;
  // Whatever becomes of it, the record comes to an end. (And std::function wants what can be copied.)
  struct Pending {
    RecordCompletion<Result> completion;
    TaskOptions options;
    C call;
  };
  RecordCompletion<Result> completion(record);
  auto pending = std::make_shared<Pending>(Pending{std::move(completion), std::move(options), std::move(call)});
  start_at(core, time, record, [weak = std::weak_ptr(core), record, pending = std::move(pending)] {
    const auto alive = weak.lock();
    if (!alive) {
      pending->completion.fail(std::make_exception_ptr(ExecutorNotRunningError(record->context())));
      return;
    }
    try {
      InitiateSubmit initiation(alive, record);
      std::move(initiation)(std::move(pending->completion), std::move(pending->options), std::move(pending->call));
    } catch (...) {
      // The move of the function or of an argument threw.
      pending->completion.fail(std::current_exception());
    }
  });
}

template <class C>
Schedule repeat_call(const std::shared_ptr<ExecutorCore>& core, std::chrono::nanoseconds period,
                     ScheduleOptions&& schedule, TaskOptions&& options, C&& call) {
  static_assert(std::is_copy_constructible_v<C>,
                "bulkhead: a task that is repeated is called with copies of its function and arguments: they must be "
                "copyable.");
  require_invocable<C>();
  if (options.only_spawned()) {
    throw std::invalid_argument("submit_every: TaskOptions::id and metadata are of one task, and not of many");
  }
  struct Repeated {
    TaskOptions options;
    C call;
  };
  auto repeated = std::make_shared<const Repeated>(Repeated{std::move(options), std::move(call)});
  return start_every(
      core, period, std::move(schedule),
      [weak = std::weak_ptr(core), repeated = std::move(repeated)](RunOutcome told, std::shared_ptr<void> under_way) {
        const auto alive = weak.lock();
        if (!alive) return;
        TaskOptions run_options(repeated->options);
        C run_call(repeated->call);
        InitiateSubmit initiation(alive);
        initiation.held = std::move(under_way);
        std::move(initiation)([told = std::move(told)](const std::exception_ptr& error, auto&&...) { told(error); },
                              std::move(run_options), std::move(run_call));
      });
}

}  // namespace bulkhead::detail
