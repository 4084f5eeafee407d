// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/any_result.hpp>
#include <bulkhead/base_executor.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/groups.hpp>
#include <bulkhead/schedule.hpp>
#include <bulkhead/task_handle.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_options.hpp>

#include "fault/family_chaos/callers.hpp"
#include "fault/family_chaos/family.hpp"
#include "fault/family_chaos/tasks.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// What happens in an episode of the family.
namespace bulkhead::test::family_chaos {

using namespace std::chrono_literals;

// What callers do with the executor: a step at a time, and each at random.
class Workload : public Family {
 protected:
  using Family::Family;

  void act_somehow() {
    switch (up_to(19)) {
      case 0:
        submit_by_name();
        break;
      case 1:
      case 2:
        spawn();
        break;
      case 3:
      case 4:
        put_off();
        break;
      case 5:
        repeat();
        break;
      case 6:
        gather();
        break;
      case 7:
        take_as_completed();
        break;
      case 8:
      case 9:
        look_up();
        break;
      case 10:
        use_store();
        break;
      case 11:
        use_registries();
        break;
      case 12:
        wait_a_moment();
        break;
      case 13:
      case 14:
      case 15:
        cancel();
        break;
      case 16:
        reuse_id();
        break;
      default:
        submit();
    }
  }

  std::shared_ptr<Given> new_task() {
    auto task = Episode::new_task();
    // A coroutine is refused where it cannot run.
    task->coroutine = chance(type_ == Type::io ? 2 : 15);
    return task;
  }

  void submit() {
    const auto task = new_task();
    auto handler = asio::bind_executor(
        task->strand, asio::bind_cancellation_slot(task->signal.slot(), [task](std::exception_ptr error, int value) {
          task->tell(std::move(error), value);
        }));
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    if (task->coroutine) {
      executor_->async_submit(std::move(options), call(act_later, kind, task->number), std::move(handler));
    } else {
      executor_->async_submit(std::move(options), call(act, kind, task->number), std::move(handler));
    }
  }

  asio::awaitable<int> submitted(const std::shared_ptr<Given>& task) {
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    if (task->coroutine) return executor_->submit(std::move(options), act_later, kind, task->number);
    return executor_->submit(std::move(options), act, kind, task->number);
  }

  void submit_by_name() {
    const auto task = new_task();
    task->in_coroutine = true;
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    std::string name = task->coroutine ? "act later" : "act";
    if (chance(10)) name = "no such task";
    auto result = chance(10) ? executor_->submit(std::move(options), name, kind)
                             : executor_->submit(std::move(options), name, kind, task->number);
    asio::co_spawn(task->strand, std::move(result),
                   asio::bind_cancellation_slot(task->signal.slot(), [task](std::exception_ptr error, AnyResult any) {
                     task->tell(error, error ? 0 : any.get<int>());
                   }));
  }

  // Has the task's caller told what the handle tells.
  template <class R>
  void watch(const std::shared_ptr<Given>& task, const TaskHandle<R>& handle) {
    if (task->id && handle.id() != *task->id) broken(task->name() + " has another id than it was given");
    task->id = handle.id();
    const auto info = executor_->info(handle.id());
    if (info && info->metadata != task->metadata) broken(task->name() + " is found with metadata " + info->metadata);
    task->cancel_handle = [handle](asio::cancellation_type type) { handle.cancel(type); };
    task->status = [handle] { return handle.status(); };
    if (executor_->status(handle.id()) == std::nullopt && !is_over(handle.status())) {
      broken(task->name() + ", which is not over, is not found");
    }
    if (task->grouped) return;
    asio::co_spawn(task->strand, handle.result(), [task](std::exception_ptr error, R value) {
      if constexpr (std::is_same_v<R, AnyResult>) {
        task->tell(error, error ? 0 : value.template get<int>());
      } else {
        task->tell(std::move(error), value);
      }
    });
  }

  // An id, if it is given one, is not known yet.
  TaskOptions any_options_of_spawned(Given& task) {
    auto options = any_options(task);
    if (chance(3)) options.id(task.id.emplace(TaskId::make()));
    if (chance(2)) options.metadata(task.metadata = "about " + task.name());
    return options;
  }

  TaskHandle<int> spawned(const std::shared_ptr<Given>& task) { return spawned(task, any_options_of_spawned(*task)); }
  TaskHandle<int> spawned(const std::shared_ptr<Given>& task, TaskOptions options) {
    const int kind = static_cast<int>(task->kind);
    auto handle = task->coroutine ? executor_->spawn(std::move(options), act_later, kind, task->number)
                                  : executor_->spawn(std::move(options), act, kind, task->number);
    watch(task, handle);
    return handle;
  }
  TaskHandle<AnyResult> spawned_by_name(const std::shared_ptr<Given>& task) {
    return spawned_by_name(task, any_options_of_spawned(*task));
  }
  TaskHandle<AnyResult> spawned_by_name(const std::shared_ptr<Given>& task, TaskOptions options) {
    auto handle = executor_->spawn(std::move(options), task->coroutine ? "act later" : "act",
                                   static_cast<int>(task->kind), task->number);
    watch(task, handle);
    return handle;
  }
  void spawn() {
    if (chance(10)) {
      must_throw<UnknownTaskError>("an unknown task", [&] { executor_->spawn("no such task", 1); });
      must_throw<TaskSignatureError>("a wrong argument", [&] { executor_->spawn("act", 1, "2"); });
    }
    const auto task = new_task();
    if (chance(2)) {
      spawned(task);
    } else {
      spawned_by_name(task);
    }
  }

  void put_off() {
    const auto task = new_task();
    put_off(task, any_options_of_spawned(*task));
  }
  void put_off(const std::shared_ptr<Given>& task, TaskOptions options) {
    task->put_off = true;
    const int kind = static_cast<int>(task->kind);
    const int number = task->number;
    const auto delay = chance(6) ? std::chrono::milliseconds(1h) : milliseconds(6) - 1ms;
    if (task->coroutine) {
      watch(task, executor_->submit_after(delay, std::move(options), act_later, kind, number));
      return;
    }
    switch (up_to(3)) {
      case 0:
        watch(task, executor_->submit_after(delay, std::move(options), act, kind, number));
        break;
      case 1:
        watch(task, executor_->submit_after(delay, std::move(options), "act", kind, number));
        break;
      case 2:
        watch(task,
              executor_->submit_at(std::chrono::steady_clock::now() + delay, std::move(options), "act", kind, number));
        break;
      default:
        watch(task,
              executor_->submit_at(std::chrono::system_clock::now() + delay, std::move(options), act, kind, number));
    }
  }

  std::vector<std::shared_ptr<Given>> with_id() const {
    std::vector<std::shared_ptr<Given>> found;
    for (const auto& task : given_) {
      if (task->id) found.push_back(task);
    }
    return found;
  }

  // Gives a task the id of another, which it is refused as long as that is known.
  void reuse_id() {
    auto found = with_id();
    if (found.empty()) return;
    const auto first = any_of(found);
    const auto task = new_task();
    auto options = any_options_of_spawned(*task);
    options.id(*first->id);
    task->id = first->id;
    // Nobody else gives ids: what is not known now is not known in a moment either.
    const bool forgotten = !executor_->status(*first->id);
    try {
      switch (up_to(2)) {
        case 0:
          spawned(task, std::move(options));
          break;
        case 1:
          spawned_by_name(task, std::move(options));
          break;
        default:
          put_off(task, std::move(options));
      }
    } catch (const DuplicateTaskError&) {
      if (forgotten) broken(task->name() + " is refused an id that nobody has");
      task->id.reset();
      task->tell(std::current_exception(), 0);
      return;
    }
    if (!is_over(first->status())) broken(task->name() + " has the id of " + first->name() + ", which is not over");
    first->id.reset();
    first->heir = task;
  }

  void repeat() {
    if (repeated_.size() >= 4) return;
    const auto task = new_task();
    task->grouped = true;  // nobody is told of a run
    // An event loop that runs what is repeated itself, and takes longer than its period, does nothing else any more.
    if (task->kind == Kind::wait || task->kind == Kind::stubborn) task->kind = Kind::add;
    const auto errors = std::make_shared<std::atomic<std::uint64_t>>(0);
    ScheduleOptions rules;
    if (chance(2)) rules.first = milliseconds(2);
    rules.missed = static_cast<MissedRuns>(up_to(2));
    if (chance(3)) rules.grace = 1ms + milliseconds(2);
    rules.overlap = chance(2);
    if (chance(2)) rules.max_runs = static_cast<std::uint64_t>(1 + up_to(10));
    rules.most_made_up = static_cast<std::uint64_t>(1 + up_to(5));
    rules.on_error = [errors](const std::exception_ptr&) { ++*errors; };
    const std::uint64_t max_runs = rules.max_runs;
    const auto period = std::chrono::microseconds(500 + up_to(5000));
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    try {
      auto schedule =
          task->coroutine ? executor_->submit_every(period, rules, std::move(options), act_later, kind, task->number)
          : chance(2)     ? executor_->submit_every(period, rules, std::move(options), "act", kind, task->number)
                          : executor_->submit_every(period, rules, std::move(options), act, kind, task->number);
      repeated_.emplace_back(task, std::move(schedule), errors, max_runs);
    } catch (const ExecutorNotRunningError&) {
      if (!closing_) broken("a schedule is refused although the executor was not shut down");
    }
  }

  std::shared_ptr<Given> new_member(Grouped& group) {
    auto task = new_task();
    task->grouped = true;
    group.members.push_back(task);
    return task;
  }

  void gather() {
    const auto group = std::make_shared<Grouped>(context_);
    group->in_coroutine = true;
    groups_.push_back(group);
    const auto policy = chance(2) ? OnError::cancel_rest : OnError::wait_for_all;
    if (chance(3)) {
      auto both = when_all(policy, submitted(new_member(*group)), spawned_by_name(new_member(*group)));
      asio::co_spawn(group->strand, std::move(both),
                     asio::bind_cancellation_slot(
                         group->signal.slot(), [group](std::exception_ptr error, std::tuple<int, AnyResult> results) {
                           group->tell(error, error ? 0 : std::get<0>(results) + std::get<1>(results).get<int>());
                         }));
      return;
    }
    const auto told = [group](std::exception_ptr error, const std::vector<int>& results) {
      group->tell(std::move(error), std::accumulate(results.begin(), results.end(), 0));
    };
    auto handler = asio::bind_cancellation_slot(group->signal.slot(), told);
    if (chance(2)) {
      std::vector<TaskHandle<int>> handles;
      for (int i = up_to(4); i > 0; --i) handles.push_back(spawned(new_member(*group)));
      asio::co_spawn(group->strand, when_all(policy, std::move(handles)), std::move(handler));
    } else {
      std::vector<asio::awaitable<int>> awaitables;
      for (int i = up_to(4); i > 0; --i) awaitables.push_back(submitted(new_member(*group)));
      asio::co_spawn(group->strand, when_all(policy, std::move(awaitables)), std::move(handler));
    }
  }

  // Takes so many, and lets go of the others.
  static asio::awaitable<int> take(std::shared_ptr<Grouped> group, Completions<int> completions, int most) {
    for (int taken = 0; taken < most; ++taken) {
      auto item = co_await completions.next();
      if (!item) co_return taken;
      group->members[item->index]->tell(item->error, item->value.value_or(0));
    }
    co_return most;
  }

  void take_as_completed() {
    const auto group = std::make_shared<Grouped>(context_);
    group->in_coroutine = true;
    completions_.push_back(group);
    const auto policy = chance(2) ? OnError::cancel_rest : OnError::wait_for_all;
    const int size = up_to(4);
    const int most = chance(3) ? up_to(4) : size + 1;
    std::optional<Completions<int>> completions;
    if (chance(2)) {
      std::vector<TaskHandle<int>> handles;
      for (int i = 0; i < size; ++i) handles.push_back(spawned(new_member(*group)));
      completions.emplace(as_completed(context_.get_executor(), std::move(handles), policy));
    } else {
      std::vector<asio::awaitable<int>> awaitables;
      for (int i = 0; i < size; ++i) awaitables.push_back(submitted(new_member(*group)));
      completions.emplace(as_completed(context_.get_executor(), std::move(awaitables), policy));
    }
    asio::co_spawn(group->strand, take(group, std::move(*completions), most),
                   asio::bind_cancellation_slot(group->signal.slot(), [group](std::exception_ptr error, int taken) {
                     group->tell(std::move(error), taken);
                   }));
  }

  // Holds the executor no longer than it takes to ask.
  static asio::awaitable<int> wait_for_result(std::shared_ptr<BaseExecutor> executor, TaskId id,
                                              std::optional<std::chrono::nanoseconds> timeout) {
    auto result = executor->wait_for_result<int>(id, timeout);
    executor.reset();
    co_return co_await std::move(result);
  }

  void look_up() {
    auto found = with_id();
    const auto task = found.empty() || chance(5) ? nullptr : any_of(found);
    const TaskId id = task ? *task->id : TaskId::make();
    if (chance(2)) {
      const auto waiting = std::make_shared<LookUp>(context_);
      waiting->in_coroutine = true;
      waiting->of = task;
      waiting->limited = chance(2);
      const auto limit = waiting->limited ? std::optional<std::chrono::nanoseconds>(milliseconds(3)) : std::nullopt;
      asio::co_spawn(
          waiting->strand, wait_for_result(executor_, id, limit),
          asio::bind_cancellation_slot(waiting->signal.slot(), [waiting](std::exception_ptr error, int value) {
            waiting->tell(std::move(error), value);
          }));
      look_ups_.push_back(waiting);
      return;
    }
    if (!task) {
      must_throw<ResultNotFoundError>("an unknown id", [&] { executor_->get_result<int>(id); });
      if (executor_->status(id)) broken("an unknown id has a status");
      return;
    }
    const bool wrong_type = chance(4);
    try {
      if (wrong_type) {
        if (executor_->get_result<std::string>(id)) broken(task->name() + " returned a number, and gives a string");
      } else if (const auto value = executor_->get_result<int>(id); value && *value != task->expected()) {
        broken("get_result gives a wrong result of " + task->name());
      }
    } catch (const std::exception& error) {
      if (!is_over(task->status())) {
        broken("get_result of " + task->name() + ", which is not over, throws: " + error.what());
      }
    }
  }

  void use_store() {
    if (chance(2)) {
      if (parts_.results->size() > most_results_) broken("more results are kept than may be");
    } else if (chance(4)) {
      parts_.results->clear();
    } else {
      const auto task = given_.empty() ? nullptr : any_of(given_);
      if (!task || !task->id || !parts_.results->remove(*task->id)) return;
      if (!is_over(task->status())) broken(task->name() + " was dropped although it was not over");
      if (parts_.results->remove(*task->id)) broken("a result was dropped twice");
    }
  }

  void use_registries() {
    // What goes on under a name that is forgotten goes on.
    if (chance(2) && parts_.tasks->remove("act later")) {
      must_throw<UnknownTaskError>("a forgotten task", [&] { executor_->spawn("act later", 1, 1); });
      parts_.tasks->add("act later", act_later);
    }
    if (!registry_ || closing_) return;
    if (registry_->get("main") != executor_) broken("the registry does not know its executor");
    must_throw<UnknownExecutorTypeError>("an unknown type", [&] { registry_->get_or_create("x", "no such type"); });
    // Whoever comes first makes it.
    const std::string name = "extra " + std::to_string(up_to(2));
    struct Askers {
      std::mutex mutex;
      std::vector<std::shared_ptr<BaseExecutor>> got;
    };
    const auto askers = std::make_shared<Askers>();
    for (int i = 0; i < 3; ++i) {
      asio::post(context_, [askers, name, this] {
        auto executor = registry_->get_or_create(name, "thread");
        const std::lock_guard lock(askers->mutex);
        askers->got.push_back(std::move(executor));
      });
    }
    const bool all = loop_.until([&] {
      const std::lock_guard lock(askers->mutex);
      return askers->got.size() == 3;
    });
    if (!all) {
      broken("get_or_create does not return");
      return;
    }
    if (std::any_of(askers->got.begin(), askers->got.end(), [&](const auto& got) { return got != askers->got[0]; })) {
      broken("several who ask for a name at once get several executors");
    }
    if (chance(2) && registry_->remove(name) != askers->got[0]) broken("remove gives another executor");
  }

  void cancel() {
    const auto type = any_cancellation();
    switch (up_to(7)) {
      case 0:
        if (!groups_.empty()) any_of(groups_)->cancel(type);
        break;
      case 1:
        if (!completions_.empty()) any_of(completions_)->cancel(type);
        break;
      case 2:
        if (!look_ups_.empty()) any_of(look_ups_)->cancel(type);
        break;
      case 3:
        if (!repeated_.empty()) any_of(repeated_).schedule.cancel();
        break;
      default: {
        if (given_.empty()) return;
        const auto& task = any_of(given_);
        if (task->cancel_handle) {
          task->cancel_asked = true;
          task->cancel_handle(type);
        } else if (!task->grouped) {
          task->cancel(type);
        }
      }
    }
  }

  std::vector<std::shared_ptr<Grouped>> groups_;
  std::vector<std::shared_ptr<Grouped>> completions_;
  std::vector<std::shared_ptr<LookUp>> look_ups_;
  std::vector<Repeated> repeated_;
  bool closing_ = false;
};

}  // namespace bulkhead::test::family_chaos
