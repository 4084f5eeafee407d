// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/executor_registry.hpp>

#include "deadline.hpp"
#include "option_text.hpp"
#include "wait_list.hpp"

#include <boost/asio/co_spawn.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <initializer_list>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

namespace bulkhead {
namespace {

// What tells this executor from the other one: its type, or the options that differ.
std::string describe(const std::string& type, const ExecutorConfig& config, const std::string& other_type,
                     const ExecutorConfig& other) {
  std::string text = fmt::format("an executor of type '{}'", type);
  if (type != other_type) return text;
  const auto add = [&]<class Options>(const Options* options) {
    const auto* others = other.get<Options>();
    if (options == nullptr || others == nullptr) return false;
    text += " with " + detail::differing_options(*options, *others);
    return true;
  };
  const bool known = add(config.get<LocalExecutorOptions>()) || add(config.get<ThreadExecutorOptions>()) ||
                     add(config.get<IoExecutorOptions>()) || add(config.get<CommonOptions>()) ||
                     add(config.get<HybridConfig>());
  if (!known) text += config.empty() ? " with its default options" : fmt::format(" with other {}", config.type_name());
  return text;
}

template <class Options>
Options& common_of(Options& options) {
  return options;
}
HybridExecutorOptions& common_of(HybridConfig& config) { return config.options; }

// A type of this library's. Spelled-out defaults are the same options as none, an OptionMap is the same as the struct
// that it describes, and an executor's name is the one that it is registered under.
template <class Options>
struct BuiltIn {
  Options (*parse)(const OptionMap&);

  ExecutorConfig normalise(const std::string& type, const std::string& name, const ExecutorConfig& config,
                           const SharedParts& shared) const {
    Options options{};
    if (const auto* map = config.get<OptionMap>()) {
      options = parse(*map);
    } else if (const auto* given = config.get<Options>()) {
      options = *given;
    } else if (!config.empty()) {
      throw std::invalid_argument(fmt::format("an executor of type '{}' takes {} or an OptionMap, not {}", type,
                                              demangle(typeid(Options).name()), config.type_name()));
    }
    auto& common = common_of(options);
    common.name = name;
    if (!common.instances) common.instances = shared.instances;
    if (!common.tasks) common.tasks = shared.tasks;
    if (!common.results) common.results = shared.results;
    return options;
  }
};

// What `config` holds once it is normalised.
template <class E>
std::shared_ptr<BaseExecutor> make(asio::any_io_executor io_executor, const std::string&,
                                   const ExecutorConfig& config) {
  return std::make_shared<E>(std::move(io_executor), *config.get<typename detail::RegisteredType<E>::options>());
}

}  // namespace

std::string ExecutorConfig::type_name() const { return empty() ? "nothing" : demangle(options_.type().name()); }

struct ExecutorRegistry::State {
  struct Entry {
    std::string name;
    std::string type;
    ExecutorConfig config;
    std::shared_ptr<BaseExecutor> executor;  // null while its factory runs
    std::thread::id maker;                   // where
  };

  State(asio::any_io_executor executor, SharedParts parts) : io(std::move(executor)), shared(std::move(parts)) {}

  std::vector<std::weak_ptr<BaseExecutor>> leaving;  // are being shut down, or have been

  Entry* find(const std::string& name) {
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
    return found == entries.end() ? nullptr : &*found;
  }

  void erase(const std::string& name) {
    std::erase_if(entries, [&](const Entry& entry) { return entry.name == name; });
  }

  // Whether the thread that makes this executor waits, maybe for others in between, for what this thread makes.
  bool waits_for_me(std::string name) {
    for (;;) {
      const Entry* const entry = find(name);
      if (entry == nullptr || entry->executor != nullptr) return false;
      if (entry->maker == std::this_thread::get_id()) return true;
      const auto waits = waiting_for.find(entry->maker);
      if (waits == waiting_for.end()) return false;
      name = waits->second;
    }
  }

  struct Type {
    std::string name;  // not an alias
    Factory factory;
    // Null: configs are compared as they are given.
    std::function<ExecutorConfig(const std::string& name, const ExecutorConfig& config)> normalise;
  };

  template <class Options>
  void add(std::initializer_list<const char*> names, BuiltIn<Options> options, Factory factory) {
    const std::string type = *names.begin();
    for (const char* alias : names) {
      types[alias] = {type, factory, [this, type, options](const std::string& name, const ExecutorConfig& config) {
                        return options.normalise(type, name, config, shared);
                      }};
    }
  }

  const asio::any_io_executor io;
  const SharedParts shared;
  std::mutex mutex;
  std::condition_variable made;
  std::map<std::string, Type> types;
  std::map<std::thread::id, std::string> waiting_for;  // of the threads that wait, the executor's name
  std::vector<Entry> entries;                          // in the order of their making
};

ExecutorRegistry::ExecutorRegistry(asio::any_io_executor io_executor, SharedParts shared)
    : state_(std::make_unique<State>(std::move(io_executor), std::move(shared))) {
  state_->add<LocalExecutorOptions>({"local", "process", "processpool"}, {parse_local_options}, make<LocalExecutor>);
  state_->add<ThreadExecutorOptions>({"thread", "threadpool", "pool"}, {parse_thread_options}, make<ThreadExecutor>);
  state_->add<IoExecutorOptions>({"io", "asyncio"}, {parse_io_options}, make<IoExecutor>);
  state_->add<CommonOptions>({"inline", "debug"}, {parse_common_options}, make<InlineExecutor>);
  state_->add<HybridConfig>(
      {"hybrid"}, {parse_hybrid_options},
      [this](asio::any_io_executor io, const std::string& name, const ExecutorConfig& config) {
        const auto* hybrid = config.get<HybridConfig>();
        std::vector<std::shared_ptr<BaseExecutor>> members;
        for (const std::string& member : hybrid->executors) {
          members.push_back(get(member));
          if (members.back()) continue;
          throw std::invalid_argument(fmt::format(
              "hybrid executor '{}' is to have executor '{}', which the registry does not have: make that first", name,
              member));
        }
        return std::make_shared<HybridExecutor>(std::move(io), std::move(members), hybrid->options);
      });
}

ExecutorRegistry::~ExecutorRegistry() = default;

void ExecutorRegistry::register_factory(std::string type, Factory factory) {
  if (type.empty()) throw std::invalid_argument("register_factory: the type must not be empty");
  if (!factory) throw std::invalid_argument(fmt::format("register_factory: the factory of '{}' is empty", type));
  const std::lock_guard lock(state_->mutex);
  const auto known = state_->types.find(type);
  const std::string name = known == state_->types.end() ? type : known->second.name;
  const State::Type added{name, std::move(factory), nullptr};
  for (auto& [alias, same] : state_->types) {
    if (same.name == name) same = added;
  }
  state_->types.insert_or_assign(std::move(type), added);
}

void ExecutorRegistry::throw_other_class(const BaseExecutor& executor, const std::type_info& wanted) {
  throw RegistryConflictError(executor.name(), "a " + demangle(typeid(executor).name()),
                              "a " + demangle(wanted.name()));
}

std::vector<std::string> ExecutorRegistry::types() const {
  const std::lock_guard lock(state_->mutex);
  std::vector<std::string> names;
  for (const auto& [name, type] : state_->types) names.push_back(name);
  return names;
}

std::shared_ptr<BaseExecutor> ExecutorRegistry::get_or_create(const std::string& name, const std::string& asked_type,
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
    if (state_->waits_for_me(name)) {
      throw std::logic_error(fmt::format(
          "get_or_create: '{}' is being made by a factory that waits, on another thread, for what this one is making",
          name));
    }
    state_->waiting_for[std::this_thread::get_id()] = name;
    state_->made.wait(lock, [&] {
      const auto* entry = state_->find(name);
      return entry == nullptr || entry->executor != nullptr;
    });
    state_->waiting_for.erase(std::this_thread::get_id());
    const auto known = state_->types.find(asked_type);
    if (known == state_->types.end()) {
      std::vector<std::string> names;
      for (const auto& [known_type, unused] : state_->types) names.push_back(known_type);
      throw UnknownExecutorTypeError(asked_type, std::move(names), name);
    }
    const bool fits_any = config.empty();
    const std::string& type = known->second.name;
    const auto* entry = state_->find(name);
    if (known->second.normalise) {
      try {
        config = known->second.normalise(name, config);
      } catch (const std::invalid_argument&) {
        // Options of another type are other options.
        if (entry == nullptr || config.get<OptionMap>() != nullptr) throw;
      }
    }
    if (entry != nullptr) {
      if (entry->type != type || !(fits_any || config == entry->config)) {
        throw RegistryConflictError(name, describe(entry->type, entry->config, type, config),
                                    describe(type, config, entry->type, entry->config));
      }
      return entry->executor;
    }
    factory = known->second.factory;
    state_->entries.push_back({name, type, config, nullptr, std::this_thread::get_id()});
  }
  std::shared_ptr<BaseExecutor> executor;
  try {
    executor = factory(state_->io, name, config);
    if (!executor) {
      throw std::logic_error(fmt::format("the factory of executor type '{}' returned null", asked_type));
    }
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

namespace {

using Failures = std::vector<ShutdownFailedError::Failure>;

// What several ends, at the same time, come to. Thread-safe.
//
// Whoever waits is in a list that those hold who have not ended, and not whoever waits: when the event loop is
// destroyed, nothing is left that holds it.
class Endings {
 public:
  explicit Endings(std::size_t number) : left_(number) {}

  void one_ended(detail::WaitList& over, const Failures& failures) {
    {
      const std::lock_guard lock(mutex_);
      failures_.insert(failures_.end(), failures.begin(), failures.end());
      --left_;
    }
    over.complete();
  }

  static asio::awaitable<Failures> all(std::shared_ptr<Endings> self, std::weak_ptr<detail::WaitList> waits) {
    for (;;) {
      {
        const std::lock_guard lock(self->mutex_);
        if (self->left_ == 0) co_return self->failures_;
      }
      auto over = waits.lock();
      if (!over) continue;  // the last has just ended
      // Two statements: g++ 12 destroys a capturing lambda inside a `co_await` expression twice (GCC PR 107288).
      auto one_more = detail::wait_for([self, over = std::move(over)](detail::WaitList::Handler handler) mutable {
        const auto list = std::move(over);
        const std::lock_guard lock(self->mutex_);
        list->wait({}, std::move(handler));
        if (self->left_ == 0) list->complete();
      });
      co_await std::move(one_more);
    }
  }

 private:
  std::mutex mutex_;
  std::size_t left_;
  Failures failures_;
};

using Executors = std::vector<std::shared_ptr<BaseExecutor>>;

// Those that no other gives tasks to. There are some, since an executor is made after those that it gives tasks to.
Executors take_unused(Executors& executors) {
  std::set<const BaseExecutor*> used;
  for (const auto& executor : executors) {
    const auto* hybrid = dynamic_cast<const HybridExecutor*>(executor.get());
    if (hybrid == nullptr) continue;
    for (const auto& member : hybrid->executors()) used.insert(member.get());
  }
  const auto unused_begin = std::stable_partition(executors.begin(), executors.end(),
                                                  [&](const auto& executor) { return used.contains(executor.get()); });
  Executors unused(unused_begin, executors.end());
  executors.erase(unused_begin, executors.end());
  return unused;
}

// One by one, if an executor tells of several.
Failures failures_of(const std::string& executor, std::exception_ptr error) {
  if (!error) return {};
  try {
    std::rethrow_exception(error);
  } catch (const ShutdownFailedError& several) {
    return several.failures();
  } catch (...) {
    return {{executor, std::move(error)}};
  }
}

// A hybrid first, and what it gives its tasks to when none of them can come any more.
asio::awaitable<Failures> shut_down(asio::any_io_executor io, Executors executors, ShutdownOptions options) {
  const detail::Deadline deadline(options.timeout);
  options.wait = true;
  Failures failures;
  while (!executors.empty()) {
    const Executors round = take_unused(executors);
    options.timeout = deadline.left();
    const auto endings = std::make_shared<Endings>(round.size());
    auto over = std::make_shared<detail::WaitList>(io);
    auto all = Endings::all(endings, over);
    // All of them at the same time, so that one limit holds for all.
    for (const auto& executor : round) {
      asio::co_spawn(io, executor->shutdown(options), [endings, over, executor](std::exception_ptr error) {
        endings->one_ended(*over, failures_of(executor->name(), std::move(error)));
      });
    }
    over.reset();
    // A hybrid has told already how the executors ended that it gives tasks to.
    Failures failed_now = co_await std::move(all);
    for (auto& failed : failed_now) {
      const bool known = std::any_of(failures.begin(), failures.end(),
                                     [&](const auto& other) { return other.executor == failed.executor; });
      if (!known) failures.push_back(std::move(failed));
    }
  }
  co_return failures;
}

}  // namespace

asio::awaitable<void> ExecutorRegistry::shutdown_all(ShutdownOptions options) {
  Executors executors;
  {
    const std::lock_guard lock(state_->mutex);
    // Those that an earlier call is shutting down are to be waited for, too.
    std::erase_if(state_->leaving, [&](const std::weak_ptr<BaseExecutor>& leaving) {
      if (auto executor = leaving.lock()) executors.push_back(std::move(executor));
      return leaving.expired();
    });
    std::erase_if(state_->entries, [&](State::Entry& entry) {
      if (!entry.executor) return false;
      state_->leaving.push_back(entry.executor);
      executors.push_back(std::move(entry.executor));
      return true;
    });
  }
  // Not in this coroutine, whose end would be that of the shutdown.
  const auto ending = std::make_shared<Endings>(1);
  auto over = std::make_shared<detail::WaitList>(state_->io);
  auto all = Endings::all(ending, over);
  asio::co_spawn(state_->io, shut_down(state_->io, std::move(executors), options),
                 [ending, over](std::exception_ptr error, Failures failures) {
                   if (error) failures.push_back({"", std::move(error)});
                   ending->one_ended(*over, failures);
                 });
  over.reset();
  if (!options.wait) co_return;
  Failures failures = co_await std::move(all);
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
