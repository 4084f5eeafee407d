// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/option_map.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/thread_executor.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <any>
#include <concepts>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace bulkhead {

/// Options of an executor of any type: a typed options struct, an OptionMap, or nothing for that type's defaults.
class BULKHEAD_EXPORT ExecutorConfig {
 public:
  /// The type's defaults; on an executor that exists, whatever it has.
  ExecutorConfig() = default;

  template <class Options>
  requires(!std::same_as<std::remove_cvref_t<Options>, ExecutorConfig> &&
           std::equality_comparable<std::remove_cvref_t<Options>>)
      ExecutorConfig(Options&& options)  // NOLINT(google-explicit-constructor): options are passed as they are
      : options_(std::forward<Options>(options)), equal_([](const std::any& a, const std::any& b) {
          using T = std::remove_cvref_t<Options>;
          const T* left = std::any_cast<T>(&a);
          const T* right = std::any_cast<T>(&b);
          return left != nullptr && right != nullptr && *left == *right;
        }) {}

  bool empty() const noexcept { return !options_.has_value(); }
  /// The options, or null if they are of another type.
  template <class Options>
  const Options* get() const noexcept {
    return std::any_cast<Options>(&options_);
  }
  /// The name of the options' type, for errors.
  std::string type_name() const;
  bool operator==(const ExecutorConfig& other) const {
    if (empty() || other.empty()) return empty() == other.empty();
    return equal_(options_, other.options_);
  }

 private:
  std::any options_;
  bool (*equal_)(const std::any&, const std::any&) = nullptr;
};

namespace detail {

// The registry's type of an executor class, and its options.
template <class E>
struct RegisteredType;
template <>
struct RegisteredType<LocalExecutor> {
  static constexpr const char* name = "local";
  using options = LocalExecutorOptions;
};
template <>
struct RegisteredType<ThreadExecutor> {
  static constexpr const char* name = "thread";
  using options = ThreadExecutorOptions;
};
template <>
struct RegisteredType<IoExecutor> {
  static constexpr const char* name = "io";
  using options = IoExecutorOptions;
};
template <>
struct RegisteredType<InlineExecutor> {
  static constexpr const char* name = "inline";
  using options = CommonOptions;
};
template <>
struct RegisteredType<HybridExecutor> {
  static constexpr const char* name = "hybrid";
  using options = HybridConfig;
};

}  // namespace detail

/// What the executors of a registry share: each whose own options have none of it gets this. So what one JSON file
/// configures can take tasks by name, count instances together, and find each other's results.
struct SharedParts {
  /// As in CommonOptions.
  std::shared_ptr<InstanceGroup> instances = nullptr;
  std::shared_ptr<TaskRegistry> tasks = nullptr;
  std::shared_ptr<ResultStore> results = nullptr;
};

/// The executors of a program, by name. An ordinary object that the program makes and passes on.
///
/// It knows these types, under any of their names:
///
/// | type | also | executor | options |
/// |---|---|---|---|
/// | `local` | `process`, `processpool` | LocalExecutor | LocalExecutorOptions |
/// | `thread` | `threadpool`, `pool` | ThreadExecutor | ThreadExecutorOptions |
/// | `io` | `asyncio` | IoExecutor | IoExecutorOptions |
/// | `inline` | `debug` | InlineExecutor | CommonOptions |
/// | `hybrid` | | HybridExecutor, of executors that the registry has | HybridConfig |
///
/// config_file.hpp makes all executors of a JSON file.
///
/// Thread safety: shared objects: safe. A factory is called without the registry's lock and may use the registry; for
/// the name that it is making it gets `std::logic_error`.
class BULKHEAD_EXPORT ExecutorRegistry {
 public:
  /// Makes an executor of its type. `config` is empty, holds an OptionMap, or that type's options.
  using Factory = std::function<std::shared_ptr<BaseExecutor>(asio::any_io_executor io_executor,
                                                              const std::string& name, const ExecutorConfig& config)>;

  /// `shared` goes to executors of the types above; a custom factory gives its own what it likes.
  explicit ExecutorRegistry(asio::any_io_executor io_executor, SharedParts shared = {});
  ~ExecutorRegistry();
  ExecutorRegistry(const ExecutorRegistry&) = delete;
  ExecutorRegistry& operator=(const ExecutorRegistry&) = delete;

  /// Adds a type, or replaces its factory, under all its names, for executors made from now on.
  /// Throws `std::invalid_argument` for an empty type or factory.
  void register_factory(std::string type, Factory factory);

  /// The executor of this name, made if there is none. Two calls at once make one.
  /// Errors: `RegistryConflictError` if the name is taken by another type or with other options (an empty config fits
  /// any); `UnknownExecutorTypeError`; what the factory threw, which leaves nothing behind.
  std::shared_ptr<BaseExecutor> get_or_create(const std::string& name, const std::string& type = "local",
                                              ExecutorConfig config = {});

  /// The same by C++ type: `get_or_create<ThreadExecutor>("files", {.max_threads = 4})`. The options' name is set to
  /// `name`; without options, those of an executor that is there fit. Errors: also `RegistryConflictError` if the type
  /// has a factory that makes another class.
  template <class E>
  std::shared_ptr<E> get_or_create(const std::string& name, typename detail::RegisteredType<E>::options options) {
    return of_class<E>(get_or_create(name, detail::RegisteredType<E>::name, std::move(options)));
  }
  template <class E>
  requires requires { detail::RegisteredType<E>::name; }
  std::shared_ptr<E> get_or_create(const std::string& name) {
    return of_class<E>(get_or_create(name, detail::RegisteredType<E>::name));
  }

  /// The types that there are, sorted: those above with their other names, and those that were registered.
  std::vector<std::string> types() const;

  /// The executor of this name, or null.
  std::shared_ptr<BaseExecutor> get(const std::string& name) const;

  /// The same as what it is: `get<ThreadExecutor>("files")`. Null if there is none; `RegistryConflictError` if it is of
  /// another class.
  template <class E>
  std::shared_ptr<E> get(const std::string& name) const {
    auto executor = get(name);
    return executor ? of_class<E>(executor) : nullptr;
  }

  /// Forgets the executor and returns it; it is not shut down. Null if there is none.
  std::shared_ptr<BaseExecutor> remove(const std::string& name);

  /// Forgets all executors and shuts every one down, all at the same time, but for those that a HybridExecutor gives
  /// tasks to: they follow when that is over. The names are free at once.
  /// Resumes: on the awaiting coroutine's executor, when all are over. Cancellation: terminal, as
  /// `BaseExecutor::shutdown`. Errors: `ShutdownFailedError` with all failures, after the last.
  asio::awaitable<void> shutdown_all(ShutdownOptions options = {});

  /// The metrics of all executors, in the order of their making.
  std::vector<Metrics> all_metrics() const;

  /// A copy of what is registered.
  std::map<std::string, std::shared_ptr<BaseExecutor>> executors() const;

  std::size_t size() const;
  bool contains(const std::string& name) const;

 private:
  struct State;

  template <class E>
  static std::shared_ptr<E> of_class(const std::shared_ptr<BaseExecutor>& executor) {
    auto wanted = std::dynamic_pointer_cast<E>(executor);
    if (!wanted) throw_other_class(*executor, typeid(E));
    return wanted;
  }
  [[noreturn]] static void throw_other_class(const BaseExecutor& executor, const std::type_info& wanted);

  std::unique_ptr<State> state_;
};

}  // namespace bulkhead
