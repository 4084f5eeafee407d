// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/testing/contract_subject.hpp>
#include <bulkhead/testing/detail/contract_tasks.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace bulkhead::testing::contract {

// The tests' tools.

inline void require(bool holds, const std::string& what) {
  if (!holds) throw ContractViolation(what);
}

inline std::string say(const std::exception_ptr& error) {
  if (!error) return "no error";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& caught) {
    return caught.what();
  } catch (...) {
    return "something that is no std::exception";
  }
}

template <class E>
bool is(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const E&) {
    return true;
  } catch (...) {
    return false;
  }
  return false;
}

template <class E>
void require_error(const std::exception_ptr& error, const std::string& what) {
  require(is<E>(error), what + "; it gave: " + say(error));
}

// `task`: what was cancelled.
inline void require_cancelled(const std::exception_ptr& error, TaskCancelledError::Stage stage,
                              const std::string& task) {
  require_error<TaskCancelledError>(error, "when cancelled, " + task + " must fail with TaskCancelledError");
  try {
    std::rethrow_exception(error);
  } catch (const TaskCancelledError& cancelled) {
    require(cancelled.stage() == stage,
            "when cancelled, " + task + " must fail with its stage in the error; it gave: " + say(error));
  }
}

inline constexpr std::array kCancellationTypes{asio::cancellation_type::total, asio::cancellation_type::partial,
                                               asio::cancellation_type::terminal};

// One caller: how often it was told, and what. Shared with its handler, which may be called when the part that waits
// has given up.
template <class R>
struct Caller {
  int calls = 0;
  std::exception_ptr error;
  std::optional<std::conditional_t<std::is_void_v<R>, std::monostate, R>> value;
  asio::cancellation_signal signal;
};
template <class R>
using CallerPtr = std::shared_ptr<Caller<R>>;

template <class R>
auto handler_of(CallerPtr<R> caller) {
  return [caller = std::move(caller)](std::exception_ptr error, auto&&... result) {
    ++caller->calls;
    caller->error = std::move(error);
    if (!caller->error) caller->value.emplace(std::move(result)...);
  };
}

template <class R>
bool all_told(const std::vector<CallerPtr<R>>& callers) {
  return std::all_of(callers.begin(), callers.end(), [](const CallerPtr<R>& caller) { return caller->calls > 0; });
}

class Bench {
 public:
  explicit Bench(const ContractSubject& subject, CommonOptions options = {}) : subject_(subject) {
    reset_board(subject_.deadline);
    options.name = "contract";
    executor_ = subject_.make(context_.get_executor(), options);
    require(executor_ != nullptr, "the factory gives no executor");
  }
  ~Bench() {
    let_all_go();
    others_.clear();
    executor_.reset();
    context_.restart();
    context_.poll();
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  BaseExecutor& executor() { return *executor_; }
  // Makes another executor on the same event loop.
  BaseExecutor& add_executor(CommonOptions options) {
    options.name = "contract " + std::to_string(others_.size() + 2);
    others_.push_back(subject_.make(context_.get_executor(), options));
    require(others_.back() != nullptr, "the factory gives no executor");
    return *others_.back();
  }
  void destroy_executor() { executor_.reset(); }
  std::size_t concurrency() const { return subject_.concurrency; }
  std::chrono::seconds deadline() const { return subject_.deadline; }

  // Submits a task, and gives who waits for it.
  template <class Function, class Coroutine, class... Args>
  auto submit(const Job<Function, Coroutine>& job, Args... arguments) {
    return submit(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto submit(TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    return submit_to(*executor_, std::move(options), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto submit_to(BaseExecutor& executor, TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    const auto caller = std::make_shared<Caller<std::invoke_result_t<Function, Args...>>>();
    job.in_form(subject_.form, [&](auto form) {
      executor.async_submit(std::move(options), call(form, arguments...), handler_of(caller));
    });
    return caller;
  }
  // The same for one that can be cancelled by its caller's signal.
  template <class Function, class Coroutine, class... Args>
  auto submit_cancellable(const Job<Function, Coroutine>& job, Args... arguments) {
    return submit_cancellable(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto submit_cancellable(TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    const auto caller = std::make_shared<Caller<std::invoke_result_t<Function, Args...>>>();
    job.in_form(subject_.form, [&](auto form) {
      executor_->async_submit(std::move(options), call(form, arguments...),
                              asio::bind_cancellation_slot(caller->signal.slot(), handler_of(caller)));
    });
    return caller;
  }
  // What a task returns; throws what it fails with.
  template <class Function, class Coroutine, class... Args>
  auto run(const Job<Function, Coroutine>& job, Args... arguments) {
    return run(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto run(TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    return await(job.in_form(subject_.form,
                             [&](auto form) { return executor_->submit(std::move(options), form, arguments...); }),
                 "a task was over");
  }
  template <class Function, class Coroutine, class... Args>
  auto spawn(const Job<Function, Coroutine>& job, Args... arguments) {
    return spawn(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto spawn(const TaskOptions& options, const Job<Function, Coroutine>& job, Args... arguments) {
    return spawn_in(*executor_, options, job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto spawn_in(BaseExecutor& executor, const TaskOptions& options, const Job<Function, Coroutine>& job,
                Args... arguments) {
    return job.in_form(subject_.form, [&](auto form) { return executor.spawn(options, form, arguments...); });
  }

  void run_loop_for(std::chrono::milliseconds time) {
    const timespec pause{0, 200'000};
    context_.restart();
    if (context_.run_for(time) == 0) ::nanosleep(&pause, nullptr);
  }
  void until(const std::function<bool()>& condition, const std::string& what) {
    const auto end = end_of_patience();
    while (!condition()) {
      require(std::chrono::steady_clock::now() < end, "it never came that " + what);
      run_loop_for(std::chrono::milliseconds(1));
    }
  }
  template <class R>
  void until_told(const CallerPtr<R>& caller, const std::string& what) {
    until([&] { return caller->calls > 0; }, what);
  }
  // All the time, whether or not there is something to do.
  void run_loop_until(std::chrono::steady_clock::time_point end) {
    const auto work = asio::make_work_guard(context_);
    context_.restart();
    context_.run_until(end);
  }

  template <class T>
  CallerPtr<T> start(asio::awaitable<T> coroutine) {
    auto caller = std::make_shared<Caller<T>>();
    asio::co_spawn(context_, std::move(coroutine), handler_of(caller));
    return caller;
  }
  template <class T>
  T await(asio::awaitable<T> coroutine, const std::string& what) {
    const auto caller = start(std::move(coroutine));
    until_told(caller, what);
    if (caller->error) std::rethrow_exception(caller->error);
    if constexpr (!std::is_void_v<T>) return std::move(*caller->value);
  }

  // Tasks that wait at the gate, as many as run at once; all of them have begun.
  const std::vector<CallerPtr<int>>& occupy() {
    const int before = board().begun;
    for (std::size_t i = 0; i < concurrency(); ++i) {
      occupants_.push_back(submit(wait_at_gate, static_cast<int>(i)));
    }
    const int all = before + static_cast<int>(concurrency());
    until([all] { return board().begun == all; }, "as many tasks run at once as the subject says");
    return occupants_;
  }
  // Of the tasks that wait at the gate.
  bool none_is_over() const {
    return std::all_of(occupants_.begin(), occupants_.end(), [](const auto& caller) { return caller->calls == 0; });
  }
  void open_gate() {
    board().open = 1;
    for (const auto& caller : occupants_) {
      until_told(caller, "a task that waited at the gate was over");
      require(!caller->error, "a task that waited at the gate failed: " + say(caller->error));
    }
    occupants_.clear();
    require_sum();
  }

  void require_sum() {
    const Metrics m = executor_->metrics();
    require(m.submitted == m.completed + m.failed + m.cancelled + m.timed_out + m.pending + m.running,
            "the metrics do not add up: " + to_string(m));
  }
  void require_nothing_left() {
    require_nothing_left_in(*executor_);
    require_sum();
  }
  void require_nothing_left_in(const BaseExecutor& executor) {
    until(
        [&] {
          const Metrics m = executor.metrics();
          return m.pending + m.running + m.waiting == 0;
        },
        "no task was left");
  }
  // One task was cancelled, and nothing of it is left.
  void require_one_cancelled() {
    require_nothing_left();
    const Metrics m = executor_->metrics();
    require(m.cancelled == 1 && m.failed == 0 && m.rejected == 0 && m.timed_out == 0,
            "a task that was cancelled must count as cancelled, once: " + to_string(m));
  }

 private:
  ContractSubject subject_;
  asio::io_context context_;
  std::shared_ptr<BaseExecutor> executor_;
  std::vector<std::shared_ptr<BaseExecutor>> others_;
  std::vector<CallerPtr<int>> occupants_;
};

inline CommonOptions limited(std::size_t max_pending, OverloadPolicy overload = OverloadPolicy::reject) {
  CommonOptions options;
  options.max_pending = max_pending;
  options.overload = overload;
  return options;
}

// The only instance of a kind of task, held by the test: so a task waits for it also in an executor that runs each task
// inside `submit`.
class OnlyInstance {
 public:
  OnlyInstance() { require(group_->try_acquire(kKey, 1), "the first instance must be counted"); }

  // For executors in which it counts.
  CommonOptions common() const {
    CommonOptions options;
    options.instances = group_;
    return options;
  }
  // For tasks of that kind.
  static TaskOptions task(OverloadPolicy policy = OverloadPolicy::wait) {
    return TaskOptions().max_instances(1, policy, kKey);
  }
  void give_back() {
    for (const auto& grant : group_->release(kKey)) grant();
  }
  bool left() const { return group_->count(kKey) + group_->waiting() > 0; }

 private:
  static constexpr const char* kKey = "only one";

  const std::shared_ptr<InstanceGroup> group_ = std::make_shared<InstanceGroup>();
};

// Events as they came.
class Listening {
 public:
  explicit Listening(BaseExecutor& executor, EventMask mask = kTaskEvents)
      : subscription_(executor.subscribe([this](const Event& event) { events_.push_back(event); }, mask)) {}

  std::vector<EventKind> kinds_of(std::uint64_t task) const {
    std::vector<EventKind> kinds;
    for (const Event& event : events_) {
      if (event.task_id == task) kinds.push_back(event.kind);
    }
    return kinds;
  }
  const std::vector<Event>& events() const { return events_; }
  std::size_t count(EventKind kind) const {
    return static_cast<std::size_t>(
        std::count_if(events_.begin(), events_.end(), [&](const Event& event) { return event.kind == kind; }));
  }
  std::size_t terminal() const {
    return static_cast<std::size_t>(std::count_if(
        events_.begin(), events_.end(), [](const Event& event) { return kTerminalEvents.contains(event.kind); }));
  }

 private:
  std::vector<Event> events_;
  Subscription subscription_;
};

}  // namespace bulkhead::testing::contract
