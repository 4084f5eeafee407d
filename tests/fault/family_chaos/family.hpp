// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/executor_registry.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/thread_executor.hpp>

#include "fault/family_chaos/accounts.hpp"
#include "fault/family_chaos/episode.hpp"
#include "fault/family_chaos/tasks.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/strand.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// What there is in an episode of the family.
namespace bulkhead::test::family_chaos {

using namespace std::chrono_literals;

// The executors of an episode: one that is used, and what it consists of.
class Family : public Episode {
 protected:
  enum class Type { thread, io, in_place, process, bypass, own, hybrid };

  using Episode::Episode;

  void broken(const std::string& what) {
    if (wrong_.empty()) wrong_ = what;
  }
  template <class E, class F>
  void must_throw(const std::string& what, F function) {
    try {
      function();
    } catch (const E&) {
      return;
    }
    broken(what + " is not refused");
  }

  void set_up() {
    parts_.instances = std::make_shared<InstanceGroup>();
    parts_.tasks = std::make_shared<TaskRegistry>();
    parts_.tasks->add("act", act);
    parts_.tasks->add("act later", act_later, TaskOptions().priority(1));
    ResultStoreOptions kept;
    kept.max_results = static_cast<std::size_t>(1 + up_to(30));
    if (chance(2)) kept.time_to_live = 1ms + milliseconds(4);
    most_results_ = kept.max_results;
    parts_.results = std::make_shared<ResultStore>(kept);
    if (chance(3)) {
      registry_ = std::make_unique<ExecutorRegistry>(context_.get_executor(), parts_);
      registry_->register_factory(
          "own", [parts = parts_, seed = static_cast<unsigned>(up_to(7))](
                     const asio::any_io_executor& io, const std::string& name, const ExecutorConfig& config) {
            CommonOptions options = *config.get<CommonOptions>();
            options.name = name;
            options.instances = parts.instances;
            options.tasks = parts.tasks;
            options.results = parts.results;
            return std::make_shared<OwnExecutor>(io, options, seed);
          });
    }
    type_ = static_cast<Type>(up_to(chance(2) ? 6 : 5));
    executor_ = make(type_, "main", true);
    about_ += (registry_ ? "registry, " : "") + executor_->metrics().mode;
    for (const auto& member : members_) about_ += ", " + member->name() + " " + member->metrics().mode;
    heard_ = std::make_shared<Heard>();
    SubscribeOptions listening;
    listening.queue_size = 100'000;
    listening.executor = asio::make_strand(context_);
    subscription_ =
        executor_->subscribe([heard = heard_](const Event& event) { heard->hear(event); }, kTaskEvents, listening);
  }

  // Members of a hybrid count no instances: the hybrid does.
  template <class Options>
  Options any_common(const std::string& name, bool outermost) {
    Options options;
    options.name = name;
    options.max_pending = static_cast<std::size_t>(1 + up_to(40));
    options.overload = any_policy();
    if (registry_) return options;
    options.results = parts_.results;
    if (!outermost) return options;
    options.instances = parts_.instances;
    options.tasks = parts_.tasks;
    return options;
  }

  template <class E, class Options>
  std::shared_ptr<BaseExecutor> made(const Options& options) {
    if (!registry_) return std::make_shared<E>(context_.get_executor(), options);
    const auto executor = registry_->get_or_create<E>(options.name, options);
    // The same options are the same executor, and others are not.
    if (registry_->get_or_create<E>(options.name, options) != executor) broken("a name has two executors");
    Options others = options;
    ++others.max_pending;
    must_throw<RegistryConflictError>("a name with other options",
                                      [&] { registry_->get_or_create<E>(options.name, others); });
    return executor;
  }

  std::shared_ptr<BaseExecutor> make(Type type, const std::string& name, bool outermost) {
    switch (type) {
      case Type::thread: {
        auto options = any_common<ThreadExecutorOptions>(name, outermost);
        options.max_threads = static_cast<unsigned>(1 + up_to(3));
        options.idle_timeout = 1ms + milliseconds(5);
        options.cancel_grace = milliseconds(2);
        return made<ThreadExecutor>(options);
      }
      case Type::io: {
        auto options = any_common<IoExecutorOptions>(name, outermost);
        options.max_threads = static_cast<unsigned>(1 + up_to(3));
        options.max_concurrent = static_cast<std::size_t>(1 + up_to(5));
        options.cancel_grace = milliseconds(2);
        return made<IoExecutor>(options);
      }
      case Type::in_place:
        return made<InlineExecutor>(any_common<CommonOptions>(name, outermost));
      case Type::process:
      case Type::bypass: {
        auto options = any_common<LocalExecutorOptions>(name, outermost);
        options.max_workers = static_cast<unsigned>(1 + up_to(1));
        options.bypass = type == Type::bypass;
        options.cancel_grace = milliseconds(2);
        return made<LocalExecutor>(options);
      }
      case Type::own: {
        const auto options = any_common<CommonOptions>(name, outermost);
        if (registry_) return registry_->get_or_create(name, "own", options);
        return std::make_shared<OwnExecutor>(context_.get_executor(), options, static_cast<unsigned>(up_to(7)));
      }
      case Type::hybrid:
        break;
    }
    return make_hybrid(name, outermost);
  }

  std::shared_ptr<BaseExecutor> make_hybrid(const std::string& name, bool outermost) {
    auto options = any_common<HybridExecutorOptions>(name, outermost);
    options.on_not_running = chance(2);
    options.on_crash_before_start = chance(2);
    options.shut_down_executors = !chance(3);
    std::vector<std::shared_ptr<BaseExecutor>> members;
    std::vector<std::string> names;
    Type last = Type::thread;
    for (int i = 1 + up_to(2); i > 0; --i) {
      const bool nested = outermost && chance(8);
      last = nested ? Type::hybrid : static_cast<Type>(up_to(5));
      names.push_back(name + "/" + std::to_string(i));
      members.push_back(make(last, names.back(), false));
      members_.push_back(members.back());
    }
    if (outermost) {
      members_go_too_ = options.shut_down_executors;
      goes_on_after_crash_ = options.on_crash_before_start && last != Type::own && last != Type::hybrid;
    }
    if (!registry_) return std::make_shared<HybridExecutor>(context_.get_executor(), std::move(members), options);
    return registry_->get_or_create<HybridExecutor>(name, {std::move(names), options});
  }

  std::string wrong_;
  Type type_ = Type::thread;
  SharedParts parts_;
  std::size_t most_results_ = 0;
  std::unique_ptr<ExecutorRegistry> registry_;
  std::vector<std::shared_ptr<BaseExecutor>> members_;
  std::shared_ptr<BaseExecutor> executor_;
  bool members_go_too_ = true;
  bool goes_on_after_crash_ = false;
  std::shared_ptr<Heard> heard_;
  Subscription subscription_;
};

}  // namespace bulkhead::test::family_chaos
