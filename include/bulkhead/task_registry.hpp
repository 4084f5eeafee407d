// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/any_result.hpp>
#include <bulkhead/call.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/submit.hpp>
#include <bulkhead/detail/timed_runs.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/schedule.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/associated_allocator.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/bind_executor.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace bulkhead {

namespace detail {

// A task that is called by its name, and its arguments.
template <class... Args>
struct NamedCall {
  NamedCall(std::string task, std::tuple<Args...> values) : name(std::move(task)), arguments(std::move(values)) {}
  std::string name;
  std::tuple<Args...> arguments;
};

// The arguments of a task that is called by its name.
template <class... Args>
std::tuple<kept_t<Args>...> kept_arguments(Args&&... arguments) {
  return std::tuple<kept_t<Args>...>(keep(std::forward<Args>(arguments))...);
}

using AnyHandler = asio::any_completion_handler<void(std::exception_ptr, AnyResult)>;

// A registered function, whose types are known at run time only.
class RegisteredTask {
 public:
  RegisteredTask(std::string name, TaskOptions defaults) : name_(std::move(name)), defaults_(std::move(defaults)) {}
  virtual ~RegisteredTask() = default;
  RegisteredTask(const RegisteredTask&) = delete;
  RegisteredTask& operator=(const RegisteredTask&) = delete;

  const std::string& name() const noexcept { return name_; }
  TaskOptions options(const TaskOptions& given) const { return given.with_defaults(defaults_); }
  // The tuple of arguments that it is called with.
  virtual const std::type_info& arguments() const noexcept = 0;
  virtual const std::type_info& result() const noexcept = 0;
  // `arguments` is that tuple, and is moved from.
  virtual void submit(const std::shared_ptr<ExecutorCore>& core, TaskOptions&& options, void* arguments,
                      AnyHandler handler) const = 0;
  virtual void spawn(const std::shared_ptr<ExecutorCore>& core, const std::shared_ptr<TaskRecord>& record,
                     TaskOptions&& options, void* arguments) const = 0;
  virtual void spawn_at(const std::shared_ptr<ExecutorCore>& core, const std::shared_ptr<TaskRecord>& record,
                        StartTime time, TaskOptions&& options, void* arguments) const = 0;
  virtual Schedule repeat(const std::shared_ptr<ExecutorCore>& core, std::chrono::nanoseconds period,
                          ScheduleOptions&& schedule, TaskOptions&& options, void* arguments) const = 0;

 private:
  const std::string name_;
  const TaskOptions defaults_;
};

[[noreturn]] BULKHEAD_EXPORT void throw_not_repeatable(const std::string& name);

// How a function with these parameters is called by its name.
template <class F, class Parameters = typename Signature<F>::parameters>
struct CallByName;
template <class F, class... P>
struct CallByName<F, std::tuple<P...>> {
  using arguments = std::tuple<kept_t<P>...>;
  using type = Call<F, kept_t<P>...>;
};

template <class F>
class RegisteredFunction final : public RegisteredTask {
  using Arguments = typename CallByName<F>::arguments;
  using C = typename CallByName<F>::type;
  using Result = task_result_t<C>;

 public:
  RegisteredFunction(std::string name, F function, TaskOptions defaults)
      : RegisteredTask(std::move(name), std::move(defaults)), function_(std::move(function)) {}

  const std::type_info& arguments() const noexcept override { return typeid(Arguments); }
  const std::type_info& result() const noexcept override { return typeid(Result); }

  void submit(const std::shared_ptr<ExecutorCore>& core, TaskOptions&& options, void* arguments,
              AnyHandler handler) const override {
    if constexpr (std::is_void_v<Result>) {
      auto completion = adapt(std::move(handler), [](AnyHandler&& to, std::exception_ptr error) {
        std::move(to)(std::move(error), AnyResult());
      });
      initiate(core, std::move(options), arguments, std::move(completion));
    } else {
      auto completion = adapt(std::move(handler), [](AnyHandler&& to, std::exception_ptr error, auto result) {
        AnyValue value;
        if (!error) {
          try {
            if constexpr (std::is_same_v<decltype(result), Result>) {
              value = make_any_value(std::move(result));
            } else {
              value = make_any_value(std::move(*result));
            }
          } catch (...) {
            error = std::current_exception();  // a move of the user's
          }
        }
        std::move(to)(std::move(error), AnyResult(std::move(value)));
      });
      initiate(core, std::move(options), arguments, std::move(completion));
    }
  }

  void spawn(const std::shared_ptr<ExecutorCore>& core, const std::shared_ptr<TaskRecord>& record,
             TaskOptions&& options, void* arguments) const override {
    spawn_call(core, record, std::move(options), make_call(arguments));
  }

  void spawn_at(const std::shared_ptr<ExecutorCore>& core, const std::shared_ptr<TaskRecord>& record, StartTime time,
                TaskOptions&& options, void* arguments) const override {
    spawn_call_at(core, record, time, std::move(options), make_call(arguments));
  }

  Schedule repeat(const std::shared_ptr<ExecutorCore>& core, std::chrono::nanoseconds period,
                  ScheduleOptions&& schedule, TaskOptions&& options, void* arguments) const override {
    if constexpr (std::is_copy_constructible_v<C>) {
      return repeat_call(core, period, std::move(schedule), std::move(options), make_call(arguments));
    } else {
      throw_not_repeatable(name());
    }
  }

 private:
  // A handler that keeps the associations of the one that it calls.
  template <class Function>
  struct Adapted {
    AnyHandler handler;
    Function function;

    using allocator_type = asio::associated_allocator_t<AnyHandler>;
    using cancellation_slot_type = asio::associated_cancellation_slot_t<AnyHandler>;
    allocator_type get_allocator() const noexcept { return asio::get_associated_allocator(handler); }
    cancellation_slot_type get_cancellation_slot() const noexcept {
      return asio::get_associated_cancellation_slot(handler);
    }

    template <class... T>
    void operator()(std::exception_ptr error, T... result) {
      function(std::move(handler), std::move(error), std::move(result)...);
    }
  };
  template <class Function>
  static Adapted<Function> adapt(AnyHandler&& handler, Function function) {
    return {std::move(handler), std::move(function)};
  }

  template <class Completion>
  void initiate(const std::shared_ptr<ExecutorCore>& core, TaskOptions&& options, void* arguments,
                Completion&& completion) const {
    auto executor = asio::get_associated_executor(completion.handler, core->io);
    InitiateSubmit initiation(core);
    std::move(initiation)(asio::bind_executor(executor, std::move(completion)), std::move(options),
                          make_call(arguments));
  }

  C make_call(void* arguments) const {
    return std::apply([this](auto&... argument) { return C(std::in_place, F(function_), std::move(argument)...); },
                      *static_cast<Arguments*>(arguments));
  }

  const F function_;
};

}  // namespace detail

/// Binds the name of a registered task to copies of its arguments, for `async_submit`; as `call` does for a function.
template <class... Args>
auto call_by_name(std::string name, Args&&... arguments) {
  return detail::NamedCall<detail::kept_t<Args>...>(std::move(name),
                                                    detail::kept_arguments(std::forward<Args>(arguments)...));
}

/// The tasks of a program by name, each with its function and default options: executors that have it
/// (`CommonOptions::tasks`) take tasks by their name. An ordinary object that the program makes and passes on.
///
/// Thread safety: shared objects: safe.
class BULKHEAD_EXPORT TaskRegistry {
 public:
  TaskRegistry();
  ~TaskRegistry();
  TaskRegistry(const TaskRegistry&) = delete;
  TaskRegistry& operator=(const TaskRegistry&) = delete;

  /// Adds a function under a name. `defaults` hold where a submit says nothing else; the task's own name is `name`.
  /// Errors: `DuplicateTaskError`; `std::invalid_argument` for an empty name, one over 200 characters, or a null
  /// function.
  template <class F>
  void add(std::string name, F function, TaskOptions defaults = {}) {
    static_assert(detail::Signature<std::decay_t<F>>::known,
                  "bulkhead: a task that is called by its name needs a function with one signature: no overloaded or "
                  "generic callable.");
    if constexpr (callable_by_name<std::decay_t<F>>()) {
      if constexpr (std::is_pointer_v<F>) require_function(name, function != nullptr);
      defaults.name(name);
      insert(std::make_shared<detail::RegisteredFunction<std::decay_t<F>>>(std::move(name), std::move(function),
                                                                           std::move(defaults)));
    }
  }

  /// Forgets a task; those that were submitted go on. False if there is none.
  bool remove(std::string_view name);
  bool contains(std::string_view name) const;
  std::size_t size() const;
  /// All names, sorted.
  std::vector<std::string> names() const;

  /// For the library: the task, whose arguments are checked. Throws `UnknownTaskError` or `TaskSignatureError`.
  std::shared_ptr<const detail::RegisteredTask> find(std::string_view name, const std::type_info& arguments,
                                                     const ErrorContext& context) const;

 private:
  template <class F>
  static constexpr bool callable_by_name() {
    if constexpr (detail::Signature<F>::known) {
      constexpr bool callable = detail::CallTraits<typename detail::CallByName<F>::type>::invocable;
      static_assert(callable,
                    "bulkhead: a task that is called by its name gets its arguments as values of its own: a parameter "
                    "cannot be a pointer to characters (take std::string_view) or a reference to non-const.");
      return callable;
    } else {
      return false;
    }
  }

  struct State;
  static void require_function(const std::string& name, bool given);
  void insert(std::shared_ptr<const detail::RegisteredTask> task);

  std::unique_ptr<State> state_;
};

}  // namespace bulkhead
