// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/schedule.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>

#include "fault/family_chaos/accounts.hpp"
#include "fault/family_chaos/callers.hpp"
#include "fault/family_chaos/workload.hpp"
#include "support/outcome.hpp"

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// How an episode of the family goes and ends, and what must hold then.
namespace bulkhead::test::family_chaos {

// One executor, whatever it consists of.
class FamilyEpisode : public Workload {
 public:
  using Workload::Workload;

  // A sentence about what is wrong; empty: nothing.
  std::string play() {
    set_up();
    const int steps = 20 + up_to(150);
    const int close_at = chance(5) ? up_to(steps) : steps;
    for (int step = 0; step < steps && wrong_.empty(); ++step) {
      if (step == close_at) begin_shutdown({.wait = chance(2)});
      act_somehow();
      check_counts();
      loop_.turn();
    }
    if (wrong_.empty()) end();
    if (wrong_.empty()) check_end();
    return wrong_;
  }

 private:
  enum End : std::size_t { drain, cancel_pending, timeout, destroy };

  // -------------------------------------------------------------------------------------------------------------------
  // How it ends.

  std::shared_ptr<Caller> begin_shutdown(const ShutdownOptions& options) {
    closing_ = true;
    harsh_ = harsh_ || options.cancel_pending || options.timeout;
    const auto waiting = std::make_shared<Caller>(context_);
    asio::co_spawn(waiting->strand, executor_->shutdown(options),
                   [waiting](std::exception_ptr error) { waiting->tell(std::move(error), 0); });
    shutdowns_.push_back(waiting);
    return waiting;
  }

  void end() {
    const auto way = static_cast<End>(up_to(3));
    about_ += std::array{", drained", ", without what had not begun", ", within a time", ", destroyed"}[way];
    if (way == destroy) {
      harsh_ = true;
      members_.clear();
      registry_.reset();
      executor_.reset();
      return;
    }
    ShutdownOptions options;
    options.wait = !chance(4);
    options.cancel_pending = way == cancel_pending;
    if (way == timeout) options.timeout = milliseconds(5);
    members_follow_later_ = !options.wait;
    if (registry_ && chance(2)) {
      closing_ = true;
      harsh_ = harsh_ || way != drain;
      members_go_too_ = true;
      members_close_first_ = true;
      const auto waiting = std::make_shared<Caller>(context_);
      asio::co_spawn(waiting->strand, registry_->shutdown_all(options),
                     [waiting](std::exception_ptr error) { waiting->tell(std::move(error), 0); });
      shutdowns_.push_back(waiting);
    } else {
      if (registry_ && registry_->remove("main") != executor_) broken("remove gives another executor");
      begin_shutdown(options);
      if (chance(3)) begin_shutdown(options);
    }
    await_shutdowns();
    if (wrong_.empty() && options.wait) {
      const Metrics m = executor_->metrics();
      if (m.pending + m.running != 0) broken("tasks are left after shutdown: " + to_string(m));
    }
    if (registry_ && members_close_first_ && registry_->size() != 0) broken("the registry has executors after its end");
  }

  void await_shutdowns() {
    if (!loop_.until([&] { return all_told(shutdowns_); })) {
      broken("shutdown does not end: " + to_string(executor_->metrics()) + "; instances " +
             std::to_string(parts_.instances->count("a")) + " and " + std::to_string(parts_.instances->count("b")) +
             ", waiting " + std::to_string(parts_.instances->waiting()));
    }
    for (const auto& shutdown : shutdowns_) {
      if (shutdown->error) broken("shutdown failed: " + message(shutdown->error));
    }
  }

  template <class Callers>
  static bool all_told(const Callers& callers) {
    return std::all_of(callers.begin(), callers.end(), [](const auto& caller) { return caller->told > 0; });
  }

  // -------------------------------------------------------------------------------------------------------------------
  // What must hold.

  void check_counts() {
    const auto check_one = [&](const BaseExecutor& executor) {
      const Metrics m = executor.metrics();
      if (!adds_up(m)) broken("the metrics do not add up: " + to_string(m));
      if (m.pending + m.running + m.lingering > m.max_pending) broken("more tasks than there may be: " + to_string(m));
    };
    check_one(*executor_);
    for (const auto& member : members_) check_one(*member);
    if (parts_.instances->count("a") > 3 || parts_.instances->count("b") > 3) {
      broken("more instances than there may be");
    }
  }

  void check_end() {
    std::string last = executor_ ? "; at the end: " + to_string(executor_->metrics()) : "; the executor is destroyed";
    const auto must_come = [&](const std::string& what, const std::function<bool()>& condition) {
      if (wrong_.empty() && !loop_.until(condition)) broken(what + last);
    };
    must_come("a caller is never told", [&] {
      return std::all_of(given_.begin(), given_.end(), [](const auto& task) {
        return task->told > 0 || (task->grouped && (!task->status || is_over(task->status())));
      });
    });
    must_come("a group never ends", [&] { return all_told(groups_) && all_told(completions_); });
    must_come("somebody waits for ever for a result", [&] { return all_told(look_ups_); });
    must_come("a schedule goes on", [&] {
      return std::all_of(repeated_.begin(), repeated_.end(),
                         [](const Repeated& repeated) { return !repeated.schedule.active(); });
    });
    // Functions that were left to themselves end within milliseconds, and give their instances back.
    must_come("an instance was never given back", [&] {
      return parts_.instances->count("a") + parts_.instances->count("b") + parts_.instances->waiting() == 0;
    });
    must_come("a result is kept as that of a task that is not over", [&] { return parts_.results->unfinished() == 0; });
    must_come("a task has no end in the events", [&] { return heard_->ended() == heard_->submitted(); });
    if (!wrong_.empty()) return;
    if (parts_.results->size() > most_results_) broken("more results are kept than may be");
    if (executor_) check_executor();
    if (subscription_.lost() > 0) broken("events were lost");
    broken(heard_->wrong());
    check_tasks();
    check_groups();
    check_look_ups();
    check_store();
    if (executor_) check_members();
  }

  void check_executor() {
    // Who does not wait for the shutdown may come before the events.
    const auto as_heard = [&] {
      const Metrics m = executor_->metrics();
      return m.pending + m.running + m.waiting == 0 && heard_->submitted() == m.submitted &&
             heard_->rejected() == m.rejected && heard_->ended_as(EventKind::succeeded) == m.completed &&
             heard_->ended_as(EventKind::failed) == m.failed && heard_->ended_as(EventKind::cancelled) == m.cancelled &&
             heard_->ended_as(EventKind::timed_out) == m.timed_out;
    };
    if (loop_.until(as_heard)) return;
    broken("events tell of " + std::to_string(heard_->submitted()) + " tasks and " +
           std::to_string(heard_->rejected()) +
           " refusals, and differ from the metrics: " + to_string(executor_->metrics()));
  }

  void check_tasks() {
    for (const auto& repeated : repeated_) check(repeated);
    const auto by_name = heard_->by_name();
    for (const auto& task : given_) {
      broken(Episode::check(*task));
      if (task->told == 0) continue;
      const auto found = by_name.find(task->name());
      const Heard::Ends ends = found == by_name.end() ? Heard::Ends() : found->second;
      broken(compare(*task, ends));
    }
  }

  // What the caller was told, and what became of the task in the events.
  std::string compare(const Given& task, const Heard::Ends& ends) const {
    const auto wrong = [&](const std::string& what) {
      return task.name() + " " + what + "; its caller was told: " + message(task.error);
    };
    if (ends.last.size() + ends.rejected > 1) return wrong("was submitted more than once");
    const Ending told = ending_of(task.error);
    if (task.status && !is_over(task.status())) return wrong("is over, and its handle does not say so");
    if (task.status && (task.status() == TaskStatus::succeeded) != (told == Ending::succeeded)) {
      return wrong("is said to be " + std::string(to_string(task.status())));
    }
    if (ends.rejected == 1) return told == Ending::refused ? "" : wrong("was refused");
    if (ends.last.empty()) {
      // What waits for its time ends with its executor; a submit that is awaited later finds none.
      const bool put_off = task.put_off && (told == Ending::cancelled || told == Ending::refused);
      return put_off || told == Ending::never_submitted ? "" : wrong("was never submitted");
    }
    if (told == Ending::cancelled && !task.cancel_asked && !task.grouped && !harsh_ && !task.put_off) {
      return wrong("was cancelled, and nobody asked for it");
    }
    const auto crash = error_as<WorkerCrashedError>(last_of(task.error));
    if (goes_on_after_crash_ && !task.retried && crash && crash->started() == Started::never) {
      return wrong("had not begun, and did not go on");
    }
    const Ending in_events = ending_of(ends.last.front());
    // A hybrid accepts what its executors may refuse, and what is to begin just when its executor is destroyed cannot.
    if (told == Ending::refused && in_events == Ending::failed) {
      return type_ == Type::hybrid || task.retried || !executor_ ? "" : wrong("was accepted and then refused");
    }
    return told == in_events ? "" : wrong("ended as " + std::string(to_string(ends.last.front())));
  }

  void check(const Repeated& repeated) {
    const Schedule& schedule = repeated.schedule;
    std::uint64_t runs = 0;
    std::uint64_t failures = 0;
    // A schedule is over when its last run is to begin, on another thread, say; and the last runs tell it of their end
    // when they have told everybody else.
    const bool as_heard = loop_.until([&] {
      const auto by_name = heard_->by_name();
      const auto found = by_name.find(repeated.task->name());
      const Heard::Ends ends = found == by_name.end() ? Heard::Ends() : found->second;
      const auto bad = std::count_if(ends.last.begin(), ends.last.end(),
                                     [](EventKind kind) { return kind != EventKind::succeeded; });
      runs = ends.last.size() + ends.rejected;
      failures = static_cast<std::uint64_t>(bad) + ends.rejected;
      return schedule.runs() == runs && schedule.failures() == failures && *repeated.errors == failures;
    });
    const auto numbers = [](std::uint64_t number, std::uint64_t failed) {
      return std::to_string(number) + " runs, " + std::to_string(failed) + " of them failed";
    };
    if (!as_heard) {
      broken("the schedule of " + repeated.task->name() + " tells of " + numbers(schedule.runs(), schedule.failures()) +
             " and " + std::to_string(*repeated.errors) + " told, and events of " + numbers(runs, failures));
    }
    if (repeated.max_runs > 0 && runs > repeated.max_runs) broken("a schedule ran more often than it may");
    if (!tells_of_its_limits(*repeated.task, schedule.last_error())) {
      broken("a run of " + repeated.task->name() + " exceeded a time limit that it does not have");
    }
    if ((schedule.last_error() != nullptr) != (failures > 0)) broken("a schedule does not know its last error");
    if (schedule.next()) broken("a schedule that has ended has a next run");
  }

  void check_groups() {
    for (const auto& group : groups_) {
      if (group->told != 1) broken("a group has " + std::to_string(group->told) + " outcomes");
      if (group->error) continue;
      int sum = 0;
      for (const auto& member : group->members) sum += member->expected();
      if (group->value != sum) broken("a group has a wrong result");
    }
    for (const auto& group : completions_) {
      if (group->told != 1) broken("as_completed has " + std::to_string(group->told) + " outcomes");
      const auto told = std::count_if(group->members.begin(), group->members.end(),
                                      [](const auto& member) { return member->told == 1; });
      if (!group->error && told != group->value) broken("as_completed gives a task twice");
      if (group->error && !group->cancel_asked) broken("as_completed failed: " + message(group->error));
    }
  }

  // Of a task and of those that had its id later.
  template <class Condition>
  static bool any_with_its_id(const std::shared_ptr<Given>& first, Condition condition) {
    for (const Given* task = first.get(); task != nullptr; task = task->heir.get()) {
      if (condition(*task)) return true;
    }
    return false;
  }

  void check_look_ups() {
    for (const auto& waiting : look_ups_) {
      const auto name = waiting->of ? waiting->of->name() : "no task";
      if (waiting->told != 1) broken("a wait for a result has " + std::to_string(waiting->told) + " outcomes");
      if (!waiting->error) {
        const auto is_of = [&](const Given& task) { return waiting->value == task.expected(); };
        if (!any_with_its_id(waiting->of, is_of)) broken("wait_for_result gives a wrong result");
        continue;
      }
      // Everything is over by now, so any result may have been dropped.
      if (holds<ResultNotFoundError>(waiting->error)) continue;
      if (const auto late = error_as<TaskTimeoutError>(waiting->error);
          late && late->which() == TaskTimeoutError::Which::wait && waiting->limited) {
        continue;
      }
      if (waiting->cancel_asked && ending_of(waiting->error) == Ending::never_submitted) continue;
      const auto is_of = [&](const Given& task) { return task.grouped || waiting->error == task.error; };
      if (any_with_its_id(waiting->of, is_of)) continue;
      broken("a wait for the result of " + name + " fails with: " + message(waiting->error));
    }
  }

  // What is known of tasks is what they were given.
  void check_store() {
    std::map<TaskId, const Given*> by_id;
    for (const auto& task : given_) {
      if (task->id) by_id[*task->id] = task.get();
    }
    for (const TaskInfo& info : parts_.results->list()) {
      const auto found = by_id.find(info.id);
      if (found == by_id.end()) {
        broken("the store has a task that nobody spawned: " + info.name);
      } else if (info.name != found->second->name() || info.metadata != found->second->metadata) {
        broken(found->second->name() + " is kept as " + info.name + " with metadata " + info.metadata);
      }
    }
  }

  // The executors of a hybrid: shut down with it, or as good as before.
  void check_members() {
    for (const auto& member : members_) {
      if (!wrong_.empty()) return;
      const auto idle = [&] {
        const Metrics m = member->metrics();
        return m.pending + m.running + m.waiting == 0;
      };
      if (!loop_.until(idle)) broken("an executor of a hybrid keeps tasks: " + to_string(member->metrics()));
      if (!adds_up(*member)) broken("the metrics do not add up at the end: " + to_string(member->metrics()));
      const auto refuses = [&] {
        const auto task = Episode::new_task();
        task->kind = Kind::add;
        member->async_submit(call(act, 0, task->number),
                             asio::bind_executor(task->strand, [task](std::exception_ptr error, int value) {
                               task->tell(std::move(error), value);
                             }));
        if (!loop_.until([&] { return task->told > 0; })) broken("an executor of a hybrid does not answer");
        return holds<ExecutorNotRunningError>(task->error);
      };
      // A hybrid within the hybrid decides by itself about its executors.
      const bool nested = std::any_of(members_.begin(), members_.end(), [](const auto& other) {
        return dynamic_cast<const HybridExecutor*>(other.get()) != nullptr;
      });
      // Who does not wait for the shutdown of all may come before the hybrid's is over, which they follow.
      const bool refused = members_follow_later_ && members_go_too_ && !nested ? loop_.until(refuses) : refuses();
      if (!nested && refused != members_go_too_) {
        broken(std::string("an executor of a hybrid ") + (refused ? "was shut down" : "was left running"));
      }
      const auto waiting = std::make_shared<Caller>(context_);
      asio::co_spawn(waiting->strand, member->shutdown(),
                     [waiting](std::exception_ptr error) { waiting->tell(std::move(error), 0); });
      if (!loop_.until([&] { return waiting->told > 0; })) broken("the shutdown of a hybrid's executor does not end");
      const Metrics m = member->metrics();
      if (!adds_up(m) || m.pending + m.running != 0) broken("after its shutdown an executor has " + to_string(m));
    }
  }

  bool members_close_first_ = false;
  bool members_follow_later_ = false;
  std::vector<std::shared_ptr<Caller>> shutdowns_;
  bool harsh_ = false;
};

}  // namespace bulkhead::test::family_chaos
