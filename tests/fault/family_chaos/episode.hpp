// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/common_options.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/task_options.hpp>

#include "fault/family_chaos/accounts.hpp"
#include "fault/family_chaos/callers.hpp"
#include "fault/family_chaos/tasks.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"

#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// What all episodes have: chance, an event loop, tasks, and what holds of each task by itself.
namespace bulkhead::test::family_chaos {

using namespace std::chrono_literals;

// An event loop with several threads, or with none: then whoever waits runs it.
class EventLoop {
 public:
  explicit EventLoop(int threads) : work_(asio::make_work_guard(context_)) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { context_.run(); });
  }
  ~EventLoop() {
    work_.reset();
    turn();
    context_.stop();
    for (std::thread& thread : threads_) thread.join();
  }
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  asio::io_context& context() { return context_; }
  bool threaded() const { return !threads_.empty(); }
  void turn() {
    if (!threads_.empty()) {
      std::this_thread::yield();
      return;
    }
    // What is repeated, and runs in the loop for longer than its period, leaves no moment without something to do.
    const auto end = std::chrono::steady_clock::now() + 1ms;
    while (context_.poll_one() > 0 && std::chrono::steady_clock::now() < end) {
    }
  }
  bool until(const std::function<bool()>& condition, std::chrono::milliseconds deadline = kDeadline) {
    return poll_until(
        [&] {
          turn();
          return condition();
        },
        deadline);
  }

 private:
  asio::io_context context_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;
};

class Episode {
 public:
  explicit Episode(std::uint64_t seed)
      : random_(seed),
        loop_(chance(2) ? 3 : 0),
        context_(loop_.context()),
        about_(loop_.threaded() ? "threads: " : "one thread: ") {
    for (auto& runs : board.runs) runs = 0;
  }

  std::uint64_t tasks() const { return given_.size(); }
  // What there was, and how it ended.
  const std::string& about() const { return about_; }

 protected:
  bool chance(int of) { return up_to(of - 1) == 0; }
  int up_to(int most) { return std::uniform_int_distribution<int>(0, most)(random_); }
  std::chrono::milliseconds milliseconds(int most) { return std::chrono::milliseconds(up_to(most)); }
  template <class T>
  T& any_of(std::vector<T>& all) {
    return all[static_cast<std::size_t>(up_to(static_cast<int>(all.size()) - 1))];
  }
  asio::cancellation_type any_cancellation() { return static_cast<asio::cancellation_type>(1 << up_to(2)); }
  OverloadPolicy any_policy() { return chance(2) ? OverloadPolicy::wait : OverloadPolicy::reject; }

  std::shared_ptr<Given> new_task() {
    auto task = std::make_shared<Given>(context_, static_cast<int>(given_.size()));
    task->kind = chance(15) ? Kind::crash : static_cast<Kind>(up_to(4));
    given_.push_back(task);
    return task;
  }

  TaskOptions any_options(Given& task) {
    TaskOptions options;
    options.name(task.name());
    if (chance(3)) options.priority(up_to(4) - 2);
    if (chance(4)) task.timeout = 1ms + milliseconds(3);
    if (chance(5)) task.queue_timeout = 1ms + milliseconds(3);
    if (chance(5)) task.total_timeout = 1ms + milliseconds(5);
    if (task.timeout) options.timeout(*task.timeout);
    if (task.queue_timeout) options.queue_timeout(*task.queue_timeout);
    if (task.total_timeout) options.total_timeout(*task.total_timeout);
    if (chance(4)) {
      options.retry(RetryPolicy(static_cast<unsigned>(1 + up_to(2))).delay(milliseconds(2)));
      task.retried = true;
    }
    if (chance(4)) {
      options.max_instances(static_cast<unsigned>(1 + up_to(2)), any_policy(), chance(2) ? "a" : "b");
    }
    if (chance(6)) options.on_progress([](const Progress&) {});
    return options;
  }

  void wait_a_moment() {
    if (given_.empty()) return;
    const auto& task = any_of(given_);
    loop_.until([&] { return task->told > 0; }, 2ms);
  }

  // A time limit that the task is said to have exceeded in one of its runs must be one that it was given.
  static bool tells_of_its_limits(const Given& task, const std::exception_ptr& error) {
    if (const auto retries = error_as<RetryError>(error)) {
      return std::all_of(retries->attempts().begin(), retries->attempts().end(),
                         [&](const auto& attempt) { return tells_of_its_limits(task, attempt.error); });
    }
    const auto late = error_as<TaskTimeoutError>(error);
    if (!late) return true;
    switch (late->which()) {
      case TaskTimeoutError::Which::run:
        return task.timeout == late->limit();
      case TaskTimeoutError::Which::queue:
        return task.queue_timeout == late->limit();
      case TaskTimeoutError::Which::total:
        return task.total_timeout == late->limit();
      default:
        return false;
    }
  }

  // What holds of every task by itself.
  std::string check(const Given& task) const {
    const int runs = board.runs[static_cast<std::size_t>(task.number)];
    const auto wrong = [&](const std::string& what) {
      return task.name() + " of kind " + std::to_string(static_cast<int>(task.kind)) + " " + what + "; it began " +
             std::to_string(runs) + " times, and its caller was told: " + message(task.error);
    };
    if (task.told > 1 || (task.told == 0 && !task.grouped)) {
      return wrong("has " + std::to_string(task.told) + " outcomes");
    }
    if (task.told == 0) return "";
    if (!task.retried && runs > 1) return wrong("ran more than once");
    const Ending ending = ending_of(task.error);
    if (ending == Ending::succeeded) {
      if (task.value != task.expected()) return wrong("has a wrong result");
      if (runs == 0) return wrong("returned without having run");
      if (task.kind == Kind::throws) return wrong("returned, which it cannot");
    }
    if (ending == Ending::refused && runs > 0 && !task.retried) return wrong("ran although it was refused");
    if (ending == Ending::never_submitted && runs > 0)
      return wrong("ran, and its caller is told as if it had never been submitted");
    if (!tells_of_its_limits(task, task.error)) return wrong("exceeded a time limit that it does not have");
    const auto error = last_of(task.error);
    if (holds<std::out_of_range>(error) && task.kind != Kind::throws) return wrong("threw, which it does not");
    if (holds<FunctionUnavailableError>(error) && !task.coroutine) return wrong("is refused as a coroutine");
    if (!task.retried && runs > 0) {
      if (const auto cancelled = error_as<TaskCancelledError>(error);
          cancelled && cancelled->stage() != TaskCancelledError::Stage::running) {
        return wrong("ran although it was taken back");
      }
      if (const auto late = error_as<TaskTimeoutError>(error);
          late && late->which() == TaskTimeoutError::Which::queue) {
        return wrong("ran although it was too late");
      }
      if (const auto crash = error_as<WorkerCrashedError>(error); crash && crash->started() == Started::never) {
        return wrong("is said not to have begun");
      }
    }
    return "";
  }

  std::mt19937_64 random_;
  EventLoop loop_;
  asio::io_context& context_;
  std::vector<std::shared_ptr<Given>> given_;
  std::string about_;
};

}  // namespace bulkhead::test::family_chaos
