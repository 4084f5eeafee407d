// SPDX-License-Identifier: BSL-1.0
// The whole family at random: every kind of executor, one or three threads in the event loop, submits and spawns with
// all options, cancellations, time limits, retries, instances, crashes, shutdowns and destruction, with exact
// accounting: each caller is told once, each task has one end in the events, and the metrics add up at every instant.
//
//   BULKHEAD_CHAOS_SECONDS=3600 BULKHEAD_CHAOS_SEED=7 fault_family_chaos_test    10 seconds and a random seed by
//   default
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/this_task.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::Event;
using bulkhead::EventKind;
using bulkhead::HybridExecutor;
using bulkhead::HybridExecutorOptions;
using bulkhead::InlineExecutor;
using bulkhead::InstanceGroup;
using bulkhead::IoExecutor;
using bulkhead::IoExecutorOptions;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Metrics;
using bulkhead::OverloadPolicy;
using bulkhead::RetryPolicy;
using bulkhead::TaskHandle;
using bulkhead::TaskOptions;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::test::adds_up;
using bulkhead::test::kDeadline;
using bulkhead::test::poll_until;
using namespace std::chrono_literals;

namespace {

// What tasks do. In the host nothing crashes.
enum class Kind { add, throws, wait, stubborn, report, crash };

int act(int kind, int value) {
  switch (static_cast<Kind>(kind)) {
    case Kind::add:
      break;
    case Kind::throws:
      throw std::out_of_range("as asked");
    case Kind::wait:
      poll_until([] { return bulkhead::this_task::stop_requested(); }, 5ms);
      bulkhead::this_task::throw_if_stop_requested();
      break;
    case Kind::stubborn:
      poll_until([] { return false; }, 3ms);
      break;
    case Kind::report:
      for (int i = 0; i < 20; ++i) bulkhead::this_task::report_progress(static_cast<std::uint64_t>(i), 20);
      break;
    case Kind::crash:
      std::raise(SIGKILL);
      break;
  }
  return value + 1;
}

asio::awaitable<int> act_later(int kind, int value) {
  asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
  co_await timer.async_wait(asio::use_awaitable);
  if (static_cast<Kind>(kind) == Kind::throws) throw std::out_of_range("as asked");
  co_return value + 1;
}

class Chaos {
 public:
  explicit Chaos(std::uint64_t seed) : random_(seed) {}

  // A sentence about what is wrong; empty: nothing.
  std::string episode() {
    const bool threaded = chance(2);
    asio::io_context context;
    auto work = asio::make_work_guard(context);
    std::vector<std::thread> loop;
    if (threaded) {
      for (int i = 0; i < 3; ++i) loop.emplace_back([&] { context.run(); });
    }
    const auto turn = [&] {
      if (threaded) {
        std::this_thread::yield();
      } else {
        context.poll();
      }
    };
    const auto until = [&](const std::function<bool()>& condition) {
      return poll_until(
          [&] {
            if (!threaded) context.poll();
            return condition();
          },
          kDeadline);
    };
    std::string wrong = play(context, turn, until);
    work.reset();
    if (!threaded) context.poll();
    context.stop();
    for (std::thread& thread : loop) thread.join();
    return wrong;
  }

  std::uint64_t tasks() const { return all_tasks_; }

 private:
  // What a caller of a task was told. Its strand is its own, so that its cancellation and completion do not meet.
  struct Call {
    explicit Call(asio::io_context& context) : strand(asio::make_strand(context)) {}
    asio::any_io_executor strand;
    asio::cancellation_signal signal;
    std::atomic<int> told{0};
    std::atomic<bool> failed{false};
    int value = 0;
    int expected = 0;
  };

  // The ends that events tell of.
  struct Heard {
    std::mutex mutex;
    std::map<std::uint64_t, std::vector<EventKind>> by_task;
    std::uint64_t rejected = 0;
    std::string wrong;

    void hear(const Event& event) {
      const std::lock_guard lock(mutex);
      if (event.kind == EventKind::rejected) {
        ++rejected;
        return;
      }
      if (event.kind == EventKind::max_instances) return;
      auto& kinds = by_task[event.task_id];
      if (!kinds.empty() && bulkhead::kTerminalEvents.contains(kinds.back())) {
        wrong = "task " + std::to_string(event.task_id) + " was told of as " + std::string(to_string(event.kind)) +
                " after its end";
      }
      if (kinds.empty() != (event.kind == EventKind::submitted)) {
        wrong = "the first event of task " + std::to_string(event.task_id) + " is " +
                std::string(to_string(kinds.empty() ? event.kind : kinds.front()));
      }
      kinds.push_back(event.kind);
    }
    std::uint64_t count(EventKind kind) {
      const std::lock_guard lock(mutex);
      std::uint64_t number = 0;
      for (const auto& [task, kinds] : by_task) number += !kinds.empty() && kinds.back() == kind ? 1 : 0;
      return number;
    }
    std::uint64_t ends() {
      return count(EventKind::succeeded) + count(EventKind::failed) + count(EventKind::cancelled) +
             count(EventKind::timed_out);
    }
  };

  bool chance(int of) { return up_to(of - 1) == 0; }
  int up_to(int most) { return std::uniform_int_distribution<int>(0, most)(random_); }

  template <class Options>
  Options with_common(std::shared_ptr<InstanceGroup> group) {
    Options options;
    options.max_pending = static_cast<std::size_t>(1 + up_to(40));
    options.overload = chance(2) ? OverloadPolicy::wait : OverloadPolicy::reject;
    options.instances = std::move(group);
    return options;
  }

  std::shared_ptr<BaseExecutor> make(asio::io_context& context, int kind, const std::shared_ptr<InstanceGroup>& group) {
    const auto io = context.get_executor();
    switch (kind) {
      case 0: {
        auto options = with_common<ThreadExecutorOptions>(group);
        options.max_threads = static_cast<unsigned>(1 + up_to(3));
        options.idle_timeout = std::chrono::milliseconds(1 + up_to(5));
        options.cancel_grace = std::chrono::milliseconds(up_to(2));
        return std::make_shared<ThreadExecutor>(io, options);
      }
      case 1: {
        auto options = with_common<IoExecutorOptions>(group);
        options.max_threads = static_cast<unsigned>(1 + up_to(3));
        options.max_concurrent = static_cast<std::size_t>(1 + up_to(5));
        options.cancel_grace = std::chrono::milliseconds(up_to(2));
        return std::make_shared<IoExecutor>(io, options);
      }
      case 2:
        return std::make_shared<InlineExecutor>(io, with_common<bulkhead::CommonOptions>(group));
      case 3:
      case 4: {
        auto options = with_common<LocalExecutorOptions>(group);
        options.max_workers = static_cast<unsigned>(1 + up_to(1));
        options.bypass = kind == 4;
        options.cancel_grace = std::chrono::milliseconds(up_to(2));
        return std::make_shared<LocalExecutor>(io, options);
      }
      default: {
        std::vector<std::shared_ptr<BaseExecutor>> members{make(context, up_to(4), nullptr),
                                                           make(context, up_to(1), nullptr)};
        auto options = with_common<HybridExecutorOptions>(group);
        options.on_not_running = chance(2);
        return std::make_shared<HybridExecutor>(io, std::move(members), options);
      }
    }
  }

  TaskOptions random_options() {
    TaskOptions options;
    if (chance(3)) options.priority(up_to(4) - 2);
    if (chance(4)) options.timeout(std::chrono::milliseconds(1 + up_to(3)));
    if (chance(5)) options.queue_timeout(std::chrono::milliseconds(1 + up_to(3)));
    if (chance(4))
      options.retry(RetryPolicy(static_cast<unsigned>(1 + up_to(2))).delay(std::chrono::milliseconds(up_to(2))));
    if (chance(4)) {
      options.max_instances(static_cast<unsigned>(1 + up_to(2)),
                            chance(2) ? OverloadPolicy::wait : OverloadPolicy::reject, chance(2) ? "a" : "b");
    }
    if (chance(6)) options.on_progress([](const bulkhead::Progress&) {});
    return options;
  }

  template <class Turn, class Until>
  std::string play(asio::io_context& context, const Turn& turn, const Until& until) {
    const auto group = std::make_shared<InstanceGroup>();
    const int kind = up_to(5);
    auto executor = make(context, kind, group);
    const bool coroutines = kind == 1;
    const bool crashes = kind == 3;
    auto heard = std::make_shared<Heard>();
    bulkhead::SubscribeOptions listening;
    listening.queue_size = 100'000;
    listening.executor = asio::make_strand(context);
    const auto subscription =
        executor->subscribe([heard](const Event& event) { heard->hear(event); }, bulkhead::kTaskEvents, listening);
    std::deque<std::shared_ptr<Call>> calls;
    std::vector<TaskHandle<int>> handles;
    const int steps = 20 + up_to(150);
    for (int step = 0; step < steps; ++step) {
      const int what = up_to(9);
      if (what < 6) {
        const int action = chance(20) && crashes ? static_cast<int>(Kind::crash) : up_to(4);
        const auto call = std::make_shared<Call>(context);
        call->expected = step + 1;
        calls.push_back(call);
        auto handler = asio::bind_executor(
            call->strand,
            asio::bind_cancellation_slot(call->signal.slot(), [call](std::exception_ptr error, int value) {
              call->failed = error != nullptr;
              call->value = value;
              ++call->told;
            }));
        if (coroutines && chance(2)) {
          executor->async_submit(random_options(), bulkhead::call(act_later, action, step), std::move(handler));
        } else {
          executor->async_submit(random_options(), bulkhead::call(act, action, step), std::move(handler));
        }
      } else if (what < 7) {
        handles.push_back(executor->spawn(random_options(), act, up_to(4), step));
      } else if (what < 9 && !calls.empty()) {
        const auto& victim = calls[static_cast<std::size_t>(up_to(static_cast<int>(calls.size()) - 1))];
        const auto type = static_cast<asio::cancellation_type>(1 << up_to(2));
        asio::post(victim->strand, [victim, type] { victim->signal.emit(type); });
      } else if (!handles.empty()) {
        handles[static_cast<std::size_t>(up_to(static_cast<int>(handles.size()) - 1))].cancel();
      }
      if (!adds_up(*executor)) return "the metrics do not add up: " + to_string(executor->metrics());
      if (group->count("a") > 3 || group->count("b") > 3) return "more instances than there may be";
      turn();
    }
    all_tasks_ += calls.size() + handles.size();

    const int end = up_to(3);
    bool ended = true;
    if (end < 3) {
      bulkhead::ShutdownOptions options;
      options.cancel_pending = end == 1;
      if (end == 2) options.timeout = std::chrono::milliseconds(up_to(5));
      std::atomic<bool> over{false};
      asio::co_spawn(context, executor->shutdown(options), [&](std::exception_ptr) { over = true; });
      ended = until([&] { return over.load(); });
    }
    if (!ended) {
      return "shutdown does not end: " + to_string(executor->metrics()) + "; instances " +
             std::to_string(group->count("a")) + " and " + std::to_string(group->count("b")) + ", waiting " +
             std::to_string(group->waiting());
    }
    const Metrics last = executor->metrics();
    if (!adds_up(last)) return "the metrics do not add up at the end: " + to_string(last);
    if (end == 3) executor.reset();

    if (!until(
            [&] { return std::all_of(calls.begin(), calls.end(), [](const auto& call) { return call->told > 0; }); })) {
      return "a caller is never told; at the end: " + to_string(last);
    }
    if (!until([&] {
          return std::all_of(handles.begin(), handles.end(),
                             [](const auto& handle) { return is_over(handle.status()); });
        })) {
      return "a spawned task never ends";
    }
    for (const auto& call : calls) {
      if (call->told != 1) return "a caller was told " + std::to_string(call->told) + " times";
      if (!call->failed && call->value != call->expected) return "a result is wrong";
    }
    // Functions that were left to themselves end within milliseconds, and give their instances back.
    if (!until([&] { return group->count("a") + group->count("b") + group->waiting() == 0; })) {
      return "an instance was never given back";
    }
    if (executor) {
      const Metrics m = executor->metrics();
      if (m.pending + m.running != 0) return "tasks are left after shutdown: " + to_string(m);
      if (!until([&] { return heard->ends() == m.submitted; })) {
        return "events tell of " + std::to_string(heard->ends()) + " ends: " + to_string(m);
      }
      const std::lock_guard lock(heard->mutex);
      if (heard->rejected != m.rejected) return "events tell of other refusals than the metrics: " + to_string(m);
    }
    if (!executor && subscription.lost() > 0) return "events were lost";
    const std::lock_guard lock(heard->mutex);
    return heard->wrong;
  }

  std::mt19937_64 random_;
  std::uint64_t all_tasks_ = 0;
};

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace

TEST_CASE("74: whatever happens to the whole family, every task has one end and everything adds up", "[fault]") {
  const std::uint64_t seed = number_from("BULKHEAD_CHAOS_SEED", std::random_device()());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(number_from("BULKHEAD_CHAOS_SECONDS", 10));
  std::cout << "BULKHEAD_CHAOS_SEED=" << seed << std::endl;
  std::mt19937_64 seeds(seed);
  std::uint64_t tasks = 0;
  int episodes = 0;
  for (; std::chrono::steady_clock::now() < end; ++episodes) {
    const std::uint64_t own = seeds();
    INFO("episode " << episodes << " of seed " << seed);
    Chaos chaos(own);
    REQUIRE(chaos.episode() == "");
    tasks += chaos.tasks();
  }
  std::cout << episodes << " episodes, " << tasks << " tasks" << std::endl;
  CHECK(tasks > 0);
}
