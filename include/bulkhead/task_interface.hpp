// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/any_result.hpp>
#include <bulkhead/call.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/submit.hpp>
#include <bulkhead/map.hpp>
#include <bulkhead/schedule.hpp>
#include <bulkhead/task_handle.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/task_registry.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>
#include <concepts>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace bulkhead {

class BaseExecutor;

namespace detail {

// The core of an executor, whatever its type.
BULKHEAD_EXPORT const std::shared_ptr<ExecutorCore>& core_of(BaseExecutor& executor) noexcept;

// What a refused submit seems to return, so that nothing is said about it beside one sentence.
struct Refused {
  template <class T>
  operator T() const;
};

template <class T>
inline constexpr bool is_task_options = std::is_same_v<std::remove_cvref_t<T>, TaskOptions>;
// What names a task, and is no callable.
template <class T>
inline constexpr bool is_task_name = std::convertible_to<T, std::string_view> && !is_task_options<T>;
template <class T>
inline constexpr bool is_function = !is_task_options<T> && !is_task_name<T>;

BULKHEAD_EXPORT std::shared_ptr<const RegisteredTask> find_task(const ExecutorCore& core, std::string_view name,
                                                                const std::type_info& arguments);
// `values` are the arguments, of that type. An unknown task, or one with other arguments, is what the handler gets.
BULKHEAD_EXPORT void submit_by_name(const std::shared_ptr<ExecutorCore>& core, const TaskOptions& options,
                                    std::string_view name, const std::type_info& arguments, void* values,
                                    AnyHandler handler);

struct InitiateByName {
  using executor_type = asio::any_io_executor;
  std::shared_ptr<ExecutorCore> core;

  executor_type get_executor() const noexcept { return core->io; }

  template <class Handler, class... Args>
  void operator()(Handler&& handler, const TaskOptions& options, NamedCall<Args...> call) const {
    submit_by_name(core, options, call.name, typeid(call.arguments), &call.arguments,
                   AnyHandler(std::forward<Handler>(handler)));
  }
};

}  // namespace detail

// Every call that can be made is taken: a task goes wherever the executor sends it.
struct AnyCall {
  template <class C>
  static constexpr void require() {
    static_assert(accepts<C>,
                  "bulkhead: a coroutine must be an asio::awaitable<T>, whose executor is asio::any_io_executor; an "
                  "awaitable of another Asio executor cannot be awaited from there.");
  }
  template <class C>
  static constexpr bool accepts = detail::gives_what_executors_run<C>();
};

template <class F, class Executor>
class Wrapped;

/// What can be done with every executor. `Policy` says at compile time what an executor of this type cannot take.
///
/// Thread safety: as the executor's: safe. A task that is awaited after its executor is gone fails with
/// `ExecutorNotRunningError`.
template <class Executor, class Policy>
class TaskInterface {
 public:
  using Duration = std::chrono::nanoseconds;

  /// Runs `std::invoke(function, arguments...)` in this executor and returns what it returned, or throws what it threw.
  /// Lazy: nothing happens until the result is awaited. Arguments are copied or moved in; views and string literals are
  /// kept as owners.
  ///
  /// Resumes: on the awaiting coroutine's executor.
  /// Cancellation: waiting or queued: terminal, partial and total, the task never runs. Running: partial and terminal
  /// ask it to stop (`this_task::stop_requested`), and terminal gives the caller `TaskCancelledError`; what becomes of
  /// the run is the executor's business (LocalExecutor kills the worker).
  /// Errors: what the function threw, or an `ExecutorError` (errors.hpp).
  template <class F, class... Args>
  requires detail::is_function<F>
  auto submit(F&& function, Args&&... arguments) {
    return submit(TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  requires detail::is_function<F>
  auto submit(TaskOptions options, F&& function, Args&&... arguments) {
    using C = detail::call_t<F, Args...>;
    Policy::template require<C>();
    if constexpr (Policy::template accepts<C>) {
      return detail::await_call(target_core(), std::move(options),
                                bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...));
    } else {
      return asio::awaitable<detail::Refused>();
    }
  }

  /// The same for a task of the executor's TaskRegistry, with the options that it was added with where `options` has
  /// none: `std::string page = co_await pool.submit("render", 7);`. The arguments must have the types of its
  /// parameters; `std::string` for a string literal or view, `std::vector` for a span.
  /// Errors: `UnknownTaskError`, `TaskSignatureError` when it is awaited or its result is taken as another type.
  template <class Name, class... Args>
  requires detail::is_task_name<Name> asio::awaitable<AnyResult> submit(Name&& name, Args&&... arguments) {
    return submit(TaskOptions(), std::forward<Name>(name), std::forward<Args>(arguments)...);
  }
  template <class Name, class... Args>
  requires detail::is_task_name<Name> asio::awaitable<AnyResult> submit(TaskOptions options, Name&& name,
                                                                        Args&&... arguments) {
    auto call = call_by_name(std::string(std::string_view(name)), std::forward<Args>(arguments)...);
    return async_submit(std::move(options), std::move(call), asio::use_awaitable);
  }

  /// `submit` for any completion token: `async_submit(call(function, arguments...), token)`.
  ///
  /// Completion signature: `void(std::exception_ptr, R)`; `void(std::exception_ptr)` for a function that returns
  /// nothing; `void(std::exception_ptr, std::optional<R>)` where R has no default constructor. One that R has must not
  /// throw: beside an error there must be an R.
  /// Executor: the handler's associated executor, by default `get_executor()`; never inside this function.
  /// Cancellation and errors: as for `submit`.
  template <class F, class... Args, class CompletionToken>
  auto async_submit(Call<F, Args...> call, CompletionToken&& token) {
    return async_submit(TaskOptions(), std::move(call), std::forward<CompletionToken>(token));
  }
  template <class F, class... Args, class CompletionToken>
  auto async_submit(TaskOptions options, Call<F, Args...> call, CompletionToken&& token) {
    using C = Call<F, Args...>;
    Policy::template require<C>();
    if constexpr (Policy::template accepts<C>) {
      return detail::initiate_call(target_core(), std::move(options), std::move(call),
                                   std::forward<CompletionToken>(token));
    } else {
      return asio::awaitable<detail::Refused>();
    }
  }

  /// The same for a task of the executor's TaskRegistry: `async_submit(call_by_name("render", 7), token)`.
  /// Completion signature: `void(std::exception_ptr, AnyResult)`. An unknown task, or one with other arguments, is an
  /// error that the handler gets.
  template <class... Args, class CompletionToken>
  auto async_submit(detail::NamedCall<Args...> call, CompletionToken&& token) {
    return async_submit(TaskOptions(), std::move(call), std::forward<CompletionToken>(token));
  }
  template <class... Args, class CompletionToken>
  auto async_submit(TaskOptions options, detail::NamedCall<Args...> call, CompletionToken&& token) {
    return asio::async_initiate<CompletionToken, void(std::exception_ptr, AnyResult)>(
        detail::InitiateByName{target_core()}, token, std::move(options), std::move(call));
  }

  /// Submits the task now, whether or not anybody waits for it, and gives a handle to it. Its result is kept in the
  /// executor's ResultStore. A refusal is the task's outcome.
  /// Throws only what copying the arguments throws, or `std::system_error` if no id can be drawn.
  template <class F, class... Args>
  requires detail::is_function<F>
  auto spawn(F&& function, Args&&... arguments) {
    return spawn(TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  requires detail::is_function<F>
  auto spawn(TaskOptions options, F&& function, Args&&... arguments) {
    return spawned(std::move(options), bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...),
                   [](const auto& core, const auto& record, TaskOptions&& given, auto&& call) {
                     detail::spawn_call(core, record, std::move(given), std::move(call));
                   });
  }
  /// The same for a task of the executor's TaskRegistry. Throws `UnknownTaskError` and `TaskSignatureError`.
  template <class Name, class... Args>
  requires detail::is_task_name<Name> TaskHandle<AnyResult> spawn(Name&& name, Args&&... arguments) {
    return spawn(TaskOptions(), std::forward<Name>(name), std::forward<Args>(arguments)...);
  }
  template <class Name, class... Args>
  requires detail::is_task_name<Name> TaskHandle<AnyResult> spawn(TaskOptions options, Name&& name,
                                                                  Args&&... arguments) {
    return spawned_by_name(options, name, detail::kept_arguments(std::forward<Args>(arguments)...),
                           [](const auto& task, const auto& core, const auto& record, TaskOptions&& given,
                              void* values) { task.spawn(core, record, std::move(given), values); });
  }

  /// Spawns the task at that time of the steady or of the wall clock; at once if it is past. Until then its handle says
  /// `queued`, and cancels it. A change of the wall clock is noticed within five minutes. The task is submitted, and
  /// counts among `max_pending`, when its time has come.
  template <class Clock, class D, class F, class... Args>
  requires detail::is_function<F>
  auto submit_at(std::chrono::time_point<Clock, D> time, F&& function, Args&&... arguments) {
    return submit_at(time, TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class Clock, class D, class F, class... Args>
  requires detail::is_function<F>
  auto submit_at(std::chrono::time_point<Clock, D> time, TaskOptions options, F&& function, Args&&... arguments) {
    return spawned(std::move(options), bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...),
                   [start = start_time(time)](const auto& core, const auto& record, TaskOptions&& given, auto&& call) {
                     detail::spawn_call_at(core, record, start, std::move(given), std::move(call));
                   });
  }
  /// The same for a task of the executor's TaskRegistry. Throws `UnknownTaskError` and `TaskSignatureError`.
  template <class Clock, class D, class Name, class... Args>
  requires detail::is_task_name<Name> TaskHandle<AnyResult> submit_at(std::chrono::time_point<Clock, D> time,
                                                                      Name&& name, Args&&... arguments) {
    return submit_at(time, TaskOptions(), std::forward<Name>(name), std::forward<Args>(arguments)...);
  }
  template <class Clock, class D, class Name, class... Args>
  requires detail::is_task_name<Name> TaskHandle<AnyResult> submit_at(std::chrono::time_point<Clock, D> time,
                                                                      TaskOptions options, Name&& name,
                                                                      Args&&... arguments) {
    return spawned_by_name(
        options, name, detail::kept_arguments(std::forward<Args>(arguments)...),
        [start = start_time(time)](const auto& task, const auto& core, const auto& record, TaskOptions&& given,
                                   void* values) { task.spawn_at(core, record, start, std::move(given), values); });
  }
  /// The same, so long from now.
  template <class F, class... Args>
  requires(!detail::is_task_options<F>) auto submit_after(Duration delay, F&& function, Args&&... arguments) {
    return submit_at(later(delay), TaskOptions(), std::forward<F>(function), std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  auto submit_after(Duration delay, TaskOptions options, F&& function, Args&&... arguments) {
    return submit_at(later(delay), std::move(options), std::forward<F>(function), std::forward<Args>(arguments)...);
  }

  /// Submits the task again and again, with copies of the function and its arguments, until the schedule is cancelled
  /// or the executor shuts down. What the runs return is dropped; what they fail with the schedule tells. Throws
  /// `std::invalid_argument` naming the option, `ExecutorNotRunningError`.
  template <class F, class... Args>
  requires detail::is_function<F> Schedule submit_every(Duration period, F&& function, Args&&... arguments) {
    return submit_every(period, ScheduleOptions(), TaskOptions(), std::forward<F>(function),
                        std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  requires(!detail::is_task_options<F>) Schedule
      submit_every(Duration period, TaskOptions options, F&& function, Args&&... arguments) {
    return submit_every(period, ScheduleOptions(), std::move(options), std::forward<F>(function),
                        std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  requires detail::is_function<F> Schedule submit_every(Duration period, ScheduleOptions schedule, F&& function,
                                                        Args&&... arguments) {
    return submit_every(period, std::move(schedule), TaskOptions(), std::forward<F>(function),
                        std::forward<Args>(arguments)...);
  }
  template <class F, class... Args>
  requires detail::is_function<F> Schedule submit_every(Duration period, ScheduleOptions schedule, TaskOptions options,
                                                        F&& function, Args&&... arguments) {
    using C = detail::call_t<F, Args...>;
    Policy::template require<C>();
    if constexpr (Policy::template accepts<C>) {
      return detail::repeat_call(target_core(), period, std::move(schedule), std::move(options),
                                 bulkhead::call(std::forward<F>(function), std::forward<Args>(arguments)...));
    } else {
      return detail::Refused();
    }
  }

  /// The same for a task of the executor's TaskRegistry. Throws also `UnknownTaskError` and `TaskSignatureError`.
  template <class Name, class... Args>
  requires detail::is_task_name<Name> Schedule submit_every(Duration period, Name&& name, Args&&... arguments) {
    return submit_every(period, ScheduleOptions(), TaskOptions(), std::forward<Name>(name),
                        std::forward<Args>(arguments)...);
  }
  template <class Name, class... Args>
  requires detail::is_task_name<Name> Schedule submit_every(Duration period, ScheduleOptions schedule, Name&& name,
                                                            Args&&... arguments) {
    return submit_every(period, std::move(schedule), TaskOptions(), std::forward<Name>(name),
                        std::forward<Args>(arguments)...);
  }
  template <class Name, class... Args>
  requires detail::is_task_name<Name> Schedule submit_every(Duration period, ScheduleOptions schedule,
                                                            TaskOptions options, Name&& name, Args&&... arguments) {
    auto values = detail::kept_arguments(std::forward<Args>(arguments)...);
    const auto task = detail::find_task(*target_core(), name, typeid(values));
    return task->repeat(target_core(), period, std::move(schedule), task->options(options), &values);
  }

  /// Calls the function with each item of the range and gives all results in their order; nothing for a function that
  /// returns nothing. Lazy, as `submit`. Small items travel together (`MapOptions::chunk`), and only so many are taken
  /// from the range at once (`MapOptions::window`), which may have no end but an error. The range is kept by value; a
  /// view must not outlive what it shows.
  ///
  /// Resumes: on the awaiting coroutine's executor, when all tasks are over.
  /// Cancellation: terminal cancels what has not ended.
  /// Errors: the first item's that failed, or the range's own; `MapOptions::on_error` says what becomes of the rest. A
  /// crash fails the item that ran; other items of its chunk run again elsewhere, also those that had ended, which
  /// `chunk(1)` excludes. With a time limit or a retry policy in `task`, each item is a task by itself.
  template <class F, class Range>
  requires detail::is_function<F> && detail::is_map_range<Range>
  auto map(F&& function, Range&& range, MapOptions options = MapOptions()) {
    return map(TaskOptions(), std::forward<F>(function), std::forward<Range>(range), options);
  }
  template <class F, class Range>
  requires detail::is_function<F> && detail::is_map_range<Range>
  auto map(TaskOptions task, F&& function, Range&& range, MapOptions options = MapOptions()) {
    using Kept = detail::map_range_t<Range>;
    using C = detail::call_t<F, std::ranges::range_value_t<Kept>>;
    Policy::template require<C>();
    detail::require_invocable<C>();
    if constexpr (Policy::template accepts<C>) {
      return detail::map_all<detail::task_result_t<C>>(target_core(), std::move(task),
                                                       std::decay_t<F>(std::forward<F>(function)),
                                                       Kept(detail::keep(std::forward<Range>(range))), options);
    } else {
      return asio::awaitable<detail::Refused>();
    }
  }

  /// The same, begun now, with each result as it comes:
  ///
  ///     auto results = pool.map_stream(render, std::move(pages), MapOptions().window(64));
  ///     while (auto page = co_await results.next()) use(page->get());
  ///
  /// Throws `std::invalid_argument` if the options contradict each other.
  template <class F, class Range>
  requires detail::is_function<F> && detail::is_map_range<Range>
  auto map_stream(F&& function, Range&& range, MapOptions options = MapOptions()) {
    return map_stream(TaskOptions(), std::forward<F>(function), std::forward<Range>(range), options);
  }
  template <class F, class Range>
  requires detail::is_function<F> && detail::is_map_range<Range>
  auto map_stream(TaskOptions task, F&& function, Range&& range, MapOptions options = MapOptions()) {
    using Kept = detail::map_range_t<Range>;
    using C = detail::call_t<F, std::ranges::range_value_t<Kept>>;
    Policy::template require<C>();
    detail::require_invocable<C>();
    using R = detail::task_result_t<C>;
    if constexpr (Policy::template accepts<C>) {
      return MapStream<R>(detail::start_map<R>(target_core(), std::move(task),
                                               std::decay_t<F>(std::forward<F>(function)),
                                               Kept(detail::keep(std::forward<Range>(range))), options));
    } else {
      return detail::Refused();
    }
  }

  /// Decorator: a copyable callable; `wrapped(arguments...)` is `submit(function, arguments...)`. The executor must
  /// outlive the calls.
  template <class F>
  Wrapped<std::decay_t<F>, Executor> operator()(F&& function) {
    return Wrapped<std::decay_t<F>, Executor>(target(), std::forward<F>(function));
  }

 protected:
  TaskInterface() = default;
  ~TaskInterface() = default;

 private:
  Executor& target() noexcept { return static_cast<Executor&>(*this); }
  const std::shared_ptr<detail::ExecutorCore>& target_core() noexcept { return detail::core_of(target()); }

  static std::chrono::steady_clock::time_point later(Duration delay) {
    // A century is for ever, and can be added to any time of the clock.
    return std::chrono::steady_clock::now() + std::min<Duration>(delay, std::chrono::hours(24 * 365 * 100));
  }

  template <class Clock, class D>
  static detail::StartTime start_time(std::chrono::time_point<Clock, D> time) {
    static_assert(std::is_same_v<Clock, std::chrono::steady_clock> || std::is_same_v<Clock, std::chrono::system_clock>,
                  "bulkhead: submit_at takes a time of std::chrono::steady_clock or std::chrono::system_clock.");
    // What lies beyond an end of the clock is that end.
    using Time = typename Clock::time_point;
    if (time <= std::chrono::time_point_cast<D>(Time::min())) return Time::min();
    return time >= std::chrono::time_point_cast<D>(Time::max())
               ? Time::max()
               : std::chrono::time_point_cast<typename Clock::duration>(time);
  }

  template <class Values, class Start>
  TaskHandle<AnyResult> spawned_by_name(const TaskOptions& options, std::string_view name, Values values, Start start) {
    const auto task = detail::find_task(*target_core(), name, typeid(Values));
    TaskOptions merged = task->options(options);
    auto record = detail::TaskRecord::create(target_core(), merged);
    start(*task, target_core(), record, std::move(merged), &values);
    return TaskHandle<AnyResult>(std::move(record));
  }

  template <class C, class Start>
  auto spawned(TaskOptions&& options, C&& call, Start start) {
    Policy::template require<C>();
    detail::require_invocable<C>();
    using Handle = TaskHandle<detail::task_result_t<C>>;
    if constexpr (Policy::template accepts<C>) {
      auto record = detail::TaskRecord::create(target_core(), options);
      start(target_core(), record, std::move(options), std::move(call));
      return Handle(std::move(record));
    } else {
      return Handle(nullptr);
    }
  }
};

/// A function bound to an executor: made once, called many times. Copyable; the executor must outlive its calls.
template <class F, class Executor>
class Wrapped {
 public:
  Wrapped(Executor& executor, F wrapped) : executor_(&executor), function_(std::move(wrapped)) {}

  /// `executor.submit(function, arguments...)`.
  template <class... Args>
  auto operator()(Args&&... arguments) const {
    return executor_->submit(function_, std::forward<Args>(arguments)...);
  }

  /// The function itself, to call it here.
  const F& function() const noexcept { return function_; }

 private:
  Executor* executor_;
  F function_;
};

}  // namespace bulkhead
