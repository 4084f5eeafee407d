// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/executor.hpp>

#include "fault/family_chaos/accounts.hpp"
#include "fault/family_chaos/callers.hpp"
#include "fault/family_chaos/episode.hpp"
#include "fault/family_chaos/tasks.hpp"
#include "support/outcome.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/strand.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

// An episode of the unified Executor.
namespace bulkhead::test::family_chaos {

using namespace std::chrono_literals;

// The unified Executor, started and shut down and started again while others use it.
class UnifiedEpisode : public Episode {
 public:
  explicit UnifiedEpisode(std::uint64_t seed) : Episode(seed), lifecycle_(asio::make_strand(context_)) {
    about_ += "unified";
  }

  std::string play() {
    ExecutorOptions options;
    options.threads.max_threads = static_cast<unsigned>(1 + up_to(3));
    options.threads.max_pending = static_cast<std::size_t>(1 + up_to(20));
    options.threads.overload = any_policy();
    options.threads.cancel_grace = milliseconds(2);
    options.threads.idle_timeout = 1ms + milliseconds(5);
    options.processes.max_workers = static_cast<unsigned>(1 + up_to(1));
    options.processes.max_pending = static_cast<std::size_t>(1 + up_to(20));
    options.processes.overload = any_policy();
    options.processes.cancel_grace = milliseconds(2);
    executor_ = std::make_shared<Executor>(context_.get_executor(), options);
    for (int step = 20 + up_to(80); step > 0; --step) {
      switch (up_to(9)) {
        case 0:
          start();
          break;
        case 1:
          shut_down(chance(3));
          break;
        case 2:
          wait_a_moment();
          break;
        case 3:
        case 4:
          if (!given_.empty()) any_of(given_)->cancel(any_cancellation());
          break;
        default:
          submit();
      }
      for (const Metrics& m : executor_->metrics()) {
        if (!adds_up(m)) return "the metrics do not add up: " + to_string(m);
      }
      loop_.turn();
    }
    return end();
  }

 private:
  // What one startup made.
  struct Made {
    std::mutex mutex;
    std::vector<std::shared_ptr<BaseExecutor>> executors;
  };

  // On a strand with the shutdowns, so that none can come between the startup and the look at what it made.
  static asio::awaitable<void> start_and_note(std::shared_ptr<Executor> executor, std::shared_ptr<Made> made) {
    co_await executor->startup();
    const std::lock_guard lock(made->mutex);
    for (const std::shared_ptr<BaseExecutor>& one :
         {std::shared_ptr<BaseExecutor>(executor->threads()), std::shared_ptr<BaseExecutor>(executor->processes())}) {
      if (std::find(made->executors.begin(), made->executors.end(), one) == made->executors.end()) {
        made->executors.push_back(one);
      }
    }
  }

  void start() { begin(start_and_note(executor_, made_)); }
  void shut_down(bool harshly) {
    ShutdownOptions options;
    options.wait = chance(2);
    options.cancel_pending = harshly && chance(2);
    if (harshly && chance(2)) options.timeout = milliseconds(5);
    begin(executor_->shutdown(options));
  }
  void begin(asio::awaitable<void> change) {
    const auto waiting = std::make_shared<Caller>(context_);
    asio::co_spawn(lifecycle_, std::move(change),
                   [waiting](std::exception_ptr error) { waiting->tell(std::move(error), 0); });
    changes_.push_back(waiting);
  }

  void submit() {
    const auto task = new_task();
    task->in_coroutine = true;
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    auto result = chance(2) ? executor_->run_blocking(std::move(options), act, kind, task->number)
                            : executor_->run_process(std::move(options), act, kind, task->number);
    asio::co_spawn(task->strand, std::move(result),
                   asio::bind_cancellation_slot(task->signal.slot(), [task](std::exception_ptr error, int value) {
                     task->tell(std::move(error), value);
                   }));
  }

  std::string end() {
    const auto all_told = [](const auto& callers) {
      return std::all_of(callers.begin(), callers.end(), [](const auto& caller) { return caller->told > 0; });
    };
    const bool destroy = chance(4);
    if (destroy) {
      if (!loop_.until([&] { return all_told(changes_); })) return "a startup or shutdown does not end";
      made_->executors.clear();
      executor_.reset();
    } else {
      begin(executor_->shutdown());
      if (!loop_.until([&] { return all_told(changes_); })) return "a startup or shutdown does not end";
      if (executor_->is_running() || !executor_->metrics().empty()) return "it runs after its shutdown";
    }
    for (const auto& change : changes_) {
      if (change->error) return "a startup or shutdown failed: " + message(change->error);
    }
    if (!loop_.until([&] { return all_told(given_); })) return "a caller is never told";
    for (const auto& task : given_) {
      if (const std::string wrong = check(*task); !wrong.empty()) return wrong;
    }
    return destroy ? "" : compare();
  }

  // What callers were told in all, and what all that was ever started has counted.
  std::string compare() {
    Metrics sum;
    const auto count = [&] {
      sum = {};
      for (const auto& executor : made_->executors) {
        const Metrics m = executor->metrics();
        sum.submitted += m.submitted;
        sum.completed += m.completed;
        sum.failed += m.failed;
        sum.cancelled += m.cancelled;
        sum.timed_out += m.timed_out;
        sum.rejected += m.rejected;
        sum.pending += m.pending;
        sum.running += m.running;
      }
      return sum.pending + sum.running == 0;
    };
    if (!loop_.until(count)) return "tasks are left after the shutdown: " + to_string(sum);
    std::map<Ending, std::uint64_t> told;
    for (const auto& task : given_) ++told[ending_of(task->error)];
    if (adds_up(sum) && told[Ending::succeeded] == sum.completed && told[Ending::failed] == sum.failed &&
        told[Ending::cancelled] == sum.cancelled && told[Ending::timed_out] == sum.timed_out &&
        told[Ending::refused] == sum.rejected) {
      return "";
    }
    std::string numbers;
    for (const auto& [ending, number] : told) {
      numbers += " " + std::to_string(static_cast<int>(ending)) + ": " + std::to_string(number);
    }
    return "callers were told otherwise (" + numbers + " ) than was counted: " + to_string(sum);
  }

  const asio::any_io_executor lifecycle_;
  std::shared_ptr<Executor> executor_;
  std::shared_ptr<Made> made_ = std::make_shared<Made>();
  std::vector<std::shared_ptr<Caller>> changes_;
};

}  // namespace bulkhead::test::family_chaos
