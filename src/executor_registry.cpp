// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/executor_registry.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

namespace bulkhead {
namespace {

std::string describe(const std::string& type, const ExecutorConfig& config) {
  if (config.empty()) return fmt::format("an executor of type '{}' with its default options", type);
  if (const auto* options = config.get<LocalExecutorOptions>()) {
    return fmt::format(
        "an executor of type '{}' with LocalExecutorOptions of max_workers = {}, max_pending = {}, bypass = {} and its "
        "other "
        "options",
        type, options->max_workers, options->max_pending, options->bypass);
  }
  return fmt::format("an executor of type '{}' with other {}", type, config.type_name());
}

std::string describe(const std::vector<ShutdownFailedError::Failure>& failures) {
  std::string text = fmt::format("{} executors failed to shut down; all others are down: ", failures.size());
  for (const auto& failure : failures) {
    if (&failure != &failures.front()) text += "; ";
    text += failure.executor + ": ";
    try {
      std::rethrow_exception(failure.error);
    } catch (const std::exception& error) {
      text += error.what();
    } catch (...) {
      text += "something that is no std::exception";
    }
  }
  return text;
}

// Spelled-out defaults are the same options as none, and an executor's name is the one that it is registered under.
ExecutorConfig local_config(const std::string& name, const ExecutorConfig& config) {
  const auto* given = config.get<LocalExecutorOptions>();
  if (given == nullptr && !config.empty()) return config;
  LocalExecutorOptions options = given != nullptr ? *given : LocalExecutorOptions();
  options.name = name;
  return options;
}

std::shared_ptr<BaseExecutor> make_local(asio::any_io_executor io_executor, const std::string& name,
                                         const ExecutorConfig& config) {
  LocalExecutorOptions options;
  if (const auto* given = config.get<LocalExecutorOptions>()) {
    options = *given;
  } else if (!config.empty()) {
    throw std::invalid_argument(
        fmt::format("an executor of type 'local' takes LocalExecutorOptions, not {}", config.type_name()));
  }
  options.name = name;
  return std::make_shared<LocalExecutor>(std::move(io_executor), std::move(options));
}

}  // namespace

std::string ExecutorConfig::type_name() const { return empty() ? "nothing" : demangle(options_.type().name()); }

ShutdownFailedError::ShutdownFailedError(std::vector<Failure> failures)
    : ExecutorError(Errc::not_running, describe(failures)),
      failures_(std::make_shared<const std::vector<Failure>>(std::move(failures))) {}
ShutdownFailedError::~ShutdownFailedError() = default;

struct ExecutorRegistry::State {
  struct Entry {
    std::string name;
    std::string type;
    ExecutorConfig config;
    std::shared_ptr<BaseExecutor> executor;  // null while its factory runs
    std::thread::id maker;                   // where
  };

  explicit State(asio::any_io_executor executor) : io(std::move(executor)) {}

  Entry* find(const std::string& name) {
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
    return found == entries.end() ? nullptr : &*found;
  }

  void erase(const std::string& name) {
    std::erase_if(entries, [&](const Entry& entry) { return entry.name == name; });
  }

  const asio::any_io_executor io;
  std::mutex mutex;
  std::condition_variable made;
  std::map<std::string, Factory> factories;
  std::vector<Entry> entries;  // in the order of their making
};

ExecutorRegistry::ExecutorRegistry(asio::any_io_executor io_executor)
    : state_(std::make_unique<State>(std::move(io_executor))) {
  state_->factories.emplace("local", make_local);
}

ExecutorRegistry::~ExecutorRegistry() = default;

void ExecutorRegistry::register_factory(std::string type, Factory factory) {
  if (type.empty()) throw std::invalid_argument("register_factory: the type must not be empty");
  if (!factory) throw std::invalid_argument(fmt::format("register_factory: the factory of '{}' is empty", type));
  const std::lock_guard lock(state_->mutex);
  state_->factories.insert_or_assign(std::move(type), std::move(factory));
}

std::shared_ptr<BaseExecutor> ExecutorRegistry::get_or_create(const std::string& name, const std::string& type,
                                                              ExecutorConfig config) {
  if (name.empty()) throw std::invalid_argument("get_or_create: the executor's name must not be empty");
  Factory factory;
  {
    std::unique_lock lock(state_->mutex);
    if (const auto* entry = state_->find(name);
        entry != nullptr && entry->executor == nullptr && entry->maker == std::this_thread::get_id()) {
      throw std::logic_error(
          fmt::format("get_or_create: the factory of '{}' asks for the very executor that it is "
                      "making",
                      name));
    }
    // One that is being made by another thread is there in a moment, or its factory throws.
    state_->made.wait(lock, [&] {
      const auto* entry = state_->find(name);
      return entry == nullptr || entry->executor != nullptr;
    });
    const auto known = state_->factories.find(type);
    if (known == state_->factories.end()) {
      std::vector<std::string> types;
      for (const auto& [known_type, unused] : state_->factories) types.push_back(known_type);
      throw UnknownExecutorTypeError(type, std::move(types));
    }
    const bool fits_any = config.empty();
    if (type == "local") config = local_config(name, config);
    if (const auto* entry = state_->find(name)) {
      if (entry->type != type || !(fits_any || config == entry->config)) {
        throw RegistryConflictError(name, describe(entry->type, entry->config), describe(type, config));
      }
      return entry->executor;
    }
    factory = known->second;
    state_->entries.push_back({name, type, config, nullptr, std::this_thread::get_id()});
  }
  std::shared_ptr<BaseExecutor> executor;
  try {
    executor = factory(state_->io, name, config);
    if (!executor) throw std::logic_error(fmt::format("the factory of executor type '{}' returned null", type));
  } catch (...) {
    {
      const std::lock_guard lock(state_->mutex);
      state_->erase(name);
    }
    state_->made.notify_all();
    throw;
  }
  {
    const std::lock_guard lock(state_->mutex);
    // Still there: nothing removes an entry that is being made.
    state_->find(name)->executor = executor;
  }
  state_->made.notify_all();
  return executor;
}

std::shared_ptr<BaseExecutor> ExecutorRegistry::get(const std::string& name) const {
  const std::lock_guard lock(state_->mutex);
  const auto* entry = state_->find(name);
  return entry == nullptr ? nullptr : entry->executor;
}

std::shared_ptr<BaseExecutor> ExecutorRegistry::remove(const std::string& name) {
  const std::lock_guard lock(state_->mutex);
  auto* entry = state_->find(name);
  if (entry == nullptr || entry->executor == nullptr) return nullptr;
  auto executor = std::move(entry->executor);
  state_->erase(name);
  return executor;
}

asio::awaitable<void> ExecutorRegistry::shutdown_all(ShutdownOptions options) {
  std::vector<std::shared_ptr<BaseExecutor>> executors;
  {
    const std::lock_guard lock(state_->mutex);
    std::erase_if(state_->entries, [&](State::Entry& entry) {
      if (!entry.executor) return false;
      executors.push_back(std::move(entry.executor));
      return true;
    });
  }
  std::vector<ShutdownFailedError::Failure> failures;
  for (const auto& executor : executors) {
    try {
      co_await executor->shutdown(options);
    } catch (...) {
      failures.push_back({executor->name(), std::current_exception()});
    }
  }
  if (!failures.empty()) throw ShutdownFailedError(std::move(failures));
}

std::vector<Metrics> ExecutorRegistry::all_metrics() const {
  std::vector<std::shared_ptr<BaseExecutor>> executors;
  {
    const std::lock_guard lock(state_->mutex);
    for (const auto& entry : state_->entries) {
      if (entry.executor) executors.push_back(entry.executor);
    }
  }
  std::vector<Metrics> metrics;
  for (const auto& executor : executors) metrics.push_back(executor->metrics());
  return metrics;
}

std::map<std::string, std::shared_ptr<BaseExecutor>> ExecutorRegistry::executors() const {
  const std::lock_guard lock(state_->mutex);
  std::map<std::string, std::shared_ptr<BaseExecutor>> copy;
  for (const auto& entry : state_->entries) {
    if (entry.executor) copy.emplace(entry.name, entry.executor);
  }
  return copy;
}

std::size_t ExecutorRegistry::size() const {
  const std::lock_guard lock(state_->mutex);
  return state_->entries.size();
}

bool ExecutorRegistry::contains(const std::string& name) const {
  const std::lock_guard lock(state_->mutex);
  return state_->find(name) != nullptr;
}

}  // namespace bulkhead
