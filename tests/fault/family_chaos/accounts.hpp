// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>

#include "support/outcome.hpp"

#include <boost/asio/error.hpp>

#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

// How tasks end: as callers see it, and as events tell it.
namespace bulkhead::test::family_chaos {

// How a caller sees the end of its task.
enum class Ending { succeeded, failed, cancelled, timed_out, refused, never_submitted };

inline std::exception_ptr last_of(const std::exception_ptr& error) {
  const auto retries = error_as<RetryError>(error);
  return retries ? retries->last() : error;
}

inline Ending ending_of(const std::exception_ptr& error) {
  if (!error) return Ending::succeeded;
  try {
    std::rethrow_exception(last_of(error));
  } catch (const TaskCancelledError&) {
    return Ending::cancelled;
  } catch (const TaskTimeoutError&) {
    return Ending::timed_out;
  } catch (const ExecutorOverloadError&) {
    return Ending::refused;
  } catch (const MaxInstancesError&) {
    return Ending::refused;
  } catch (const ExecutorNotRunningError& refusal) {
    // The unified Executor had none to give the task to.
    return refusal.context().executor.empty() ? Ending::never_submitted : Ending::refused;
  } catch (const UnknownTaskError&) {
    return Ending::never_submitted;
  } catch (const TaskSignatureError&) {
    return Ending::never_submitted;
  } catch (const DuplicateTaskError&) {
    return Ending::never_submitted;
  } catch (const ExecutorError&) {
    return Ending::failed;
  } catch (const boost::system::system_error& aborted) {
    return aborted.code() == asio::error::operation_aborted ? Ending::never_submitted : Ending::failed;
  } catch (const std::exception&) {
    return Ending::failed;
  }
}

inline Ending ending_of(EventKind kind) {
  switch (kind) {
    case EventKind::succeeded:
      return Ending::succeeded;
    case EventKind::cancelled:
      return Ending::cancelled;
    case EventKind::timed_out:
      return Ending::timed_out;
    default:
      return Ending::failed;
  }
}

class Heard {
 public:
  // What became of the tasks of one name.
  struct Ends {
    std::vector<EventKind> last;
    std::uint64_t rejected = 0;
  };

  void hear(const Event& event) {
    const std::lock_guard lock(mutex_);
    if (event.kind == EventKind::rejected) {
      ++rejected_;
      ++rejected_by_name_[event.task];
      return;
    }
    if (event.kind == EventKind::max_instances) return;
    auto& [name, kinds] = by_task_[event.task_id];
    const auto number = std::to_string(event.task_id);
    if (!kinds.empty() && kTerminalEvents.contains(kinds.back())) {
      wrong_ = "task " + number + " was told of as " + std::string(to_string(event.kind)) + " after its end";
    }
    if (kinds.empty() != (event.kind == EventKind::submitted)) {
      wrong_ = "the first event of task " + number + " is " +
               std::string(to_string(kinds.empty() ? event.kind : kinds.front()));
    }
    if (kTerminalEvents.contains(event.kind)) ++ended_;
    name = event.task;
    kinds.push_back(event.kind);
  }

  std::uint64_t submitted() const {
    const std::lock_guard lock(mutex_);
    return by_task_.size();
  }
  std::uint64_t ended() const {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  std::uint64_t rejected() const {
    const std::lock_guard lock(mutex_);
    return rejected_;
  }
  std::uint64_t ended_as(EventKind kind) const {
    const std::lock_guard lock(mutex_);
    std::uint64_t number = 0;
    for (const auto& [task, events] : by_task_) number += events.second.back() == kind ? 1 : 0;
    return number;
  }
  std::map<std::string, Ends> by_name() const {
    const std::lock_guard lock(mutex_);
    std::map<std::string, Ends> all;
    for (const auto& [task, events] : by_task_) all[events.first].last.push_back(events.second.back());
    for (const auto& [name, number] : rejected_by_name_) all[name].rejected = number;
    return all;
  }
  std::string wrong() const {
    const std::lock_guard lock(mutex_);
    return wrong_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::uint64_t, std::pair<std::string, std::vector<EventKind>>> by_task_;
  std::map<std::string, std::uint64_t> rejected_by_name_;
  std::uint64_t rejected_ = 0;
  std::uint64_t ended_ = 0;
  std::string wrong_;
};

}  // namespace bulkhead::test::family_chaos
