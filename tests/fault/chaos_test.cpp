// SPDX-License-Identifier: BSL-1.0
// Everything at once, at random: submits, cancellations, time limits, crashes, kills and stops of workers and
// templates, recycling, retries, shutdowns and restarts, over workers and in bypass, with exact accounting; and at last
// the death of the fork server. A day of it is the first line with 86400.
//
//   BULKHEAD_CHAOS_SECONDS=3600 BULKHEAD_CHAOS_SEED=7 fault_chaos_test     60 seconds and a random seed by default
#include <bulkhead/local_executor.hpp>
#include <bulkhead/this_task.hpp>

#include "support/catch.hpp"
#include "support/environment.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <malloc.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::CaptureOutput;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOverloadError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::OverloadPolicy;
using bulkhead::RetryError;
using bulkhead::RetryPolicy;
using bulkhead::ShutdownOptions;
using bulkhead::Started;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::TaskTimeoutError;
using bulkhead::WorkerCrashedError;
using bulkhead::test::adds_up;
using bulkhead::test::cancelled_stage;
using bulkhead::test::descendants;
using bulkhead::test::error_as;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::number_from;
using bulkhead::test::open_descriptors;
using bulkhead::test::parent_of;
using bulkhead::test::poll_until;
using bulkhead::test::Process;
using bulkhead::test::resident_kib;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kMostTasks = 1U << 16U;

// How often each task of an episode has begun.
struct Board {
  std::array<std::atomic<std::uint8_t>, kMostTasks> runs{};
};
Board& board = shared_object<Board>();

enum class Kind { add, bytes, sleep, spin, polite, report, throws, segv, abort, exit, kill, stop, count };

using Bytes = std::vector<std::byte>;

// What runs in workers. In bypass only what leaves the host alive is submitted.
int act(std::uint32_t id, int kind, int value) {
  ++board.runs[id];
  switch (static_cast<Kind>(kind)) {
    case Kind::sleep:
      ::usleep(static_cast<useconds_t>(value));
      break;
    case Kind::spin:
      for (const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(value);
           std::chrono::steady_clock::now() < end;) {
      }
      break;
    case Kind::polite:
      for (const auto end = std::chrono::steady_clock::now() + 10s;
           !bulkhead::this_task::stop_requested() && std::chrono::steady_clock::now() < end;) {
        ::usleep(50);
      }
      break;
    case Kind::report:
      for (int i = 0; i < 50; ++i) bulkhead::this_task::report_progress(static_cast<std::uint64_t>(i), 50, "report");
      break;
    case Kind::throws:
      throw std::out_of_range("as asked");
    case Kind::segv:
      std::raise(SIGSEGV);
      break;
    case Kind::abort:
      std::abort();
    case Kind::exit:
      std::exit(5);
    case Kind::kill:
      std::raise(SIGKILL);
      break;
    case Kind::stop:
      std::raise(SIGSTOP);
      break;
    default:
      break;
  }
  return value + 1;
}

Bytes echo(std::uint32_t id, Bytes bytes) {
  ++board.runs[id];
  return bytes;
}

struct Given {
  Kind kind{};
  int value = 0;
  bool retried = false;
  bool limited = false;
  bool cancelled = false;
  int calls = 0;
  std::exception_ptr error;
  int result = 0;
  std::size_t size = 0;
  std::uint64_t last_progress = 0;
  asio::cancellation_signal signal;
};

class Episode {
 public:
  Episode(asio::io_context& context, std::uint64_t seed, int fork_server)
      : context_(context), random_(seed), fork_server_(fork_server) {
    for (auto& runs : board.runs) runs = 0;
    options_.name = "chaos";
    options_.max_workers = pick(1, 4);
    options_.bypass = chance(20);
    calm_ = chance(35);
    options_.max_pending = pick(1, 60);
    options_.overload = chance(50) ? OverloadPolicy::wait : OverloadPolicy::reject;
    if (chance(30)) options_.min_workers = pick(0, options_.max_workers);
    options_.idle_timeout = std::chrono::milliseconds(pick(1, 30));
    options_.spare_workers = chance(30) ? pick(1, 2) : 0;
    if (chance(30)) options_.max_tasks_per_worker = pick(1, 40);
    options_.cancel_grace = std::chrono::milliseconds(chance(50) ? 0 : pick(1, 10));
    options_.capture_output = chance(50) ? CaptureOutput::capture : CaptureOutput::discard;
    options_.max_message_size = std::size_t{4} << 20;
    if (chance(10)) options_.quarantine_after = 3;
    executor_.emplace(context.get_executor(), options_);
  }

  // The first rule that was broken; empty if none was.
  const std::string& violation() const { return violation_; }
  std::size_t submitted() const { return tasks_.size(); }

  void step() {
    for (std::uint32_t i = pick(0, 4); i > 0 && tasks_.size() < kMostTasks; --i) submit();
    if (chance(20)) cancel();
    // What tasks do to their workers can be told exactly only where nobody else does anything to them.
    if (!calm_) {
      if (chance(5)) signal_worker(SIGKILL);
      if (chance(3)) signal_worker(SIGSTOP);
      if (chance(1)) signal_template(SIGKILL);
      if (chance(1)) signal_template(SIGSTOP);
    }
    if (chance(15)) resume();
    context_.restart();
    context_.run_for(std::chrono::microseconds(pick(0, 400)));
    check_counts();
  }

  // Everything below the host dies.
  void kill_fork_server() {
    disturbed_ = true;
    fork_server_.signal(SIGKILL);
  }

  void end() {
    const std::uint32_t way = pick(0, 9);
    ShutdownOptions options;
    options.cancel_pending = chance(50);
    options.wait = !chance(20);
    if (chance(70)) options.timeout = std::chrono::milliseconds(pick(0, 50));
    // What never ends by itself must be ended.
    if (!options.timeout) {
      resume();
      for (Given* task : open()) task->signal.emit(asio::cancellation_type::terminal);
    }
    bool down = false;
    if (way > 0) {
      asio::co_spawn(context_, executor_->shutdown(options), [&](std::exception_ptr error) {
        down = true;
        if (error) broken("shutdown failed: " + message(error));
      });
      if (chance(30)) {
        asio::co_spawn(context_, executor_->shutdown(), [](std::exception_ptr) {});
      }
      if (options.wait && !run_until(context_, [&] { return down; })) broken("shutdown did not end");
      check_counts();
    }
    resume();
    if (way < 5) executor_.reset();
    if (!options.wait && executor_) executor_.reset();
    if (!run_until(context_, [&] { return open().empty(); })) broken("a task has no outcome");
    if (executor_) check_totals();
    executor_.reset();
    bulkhead::test::settle(context_);
    for (std::size_t i = 0; i < tasks_.size(); ++i) check_task(i);
  }

 private:
  std::uint32_t pick(std::uint32_t least, std::uint32_t most) {
    return std::uniform_int_distribution<std::uint32_t>(least, most)(random_);
  }
  bool chance(std::uint32_t percent) { return pick(1, 100) <= percent; }

  void broken(const std::string& rule) {
    if (violation_.empty()) violation_ = rule;
  }

  Kind kind() {
    const auto any = static_cast<Kind>(pick(0, static_cast<std::uint32_t>(Kind::count) - 1));
    if (options_.bypass && any >= Kind::segv) return Kind::add;
    if (options_.bypass && any == Kind::polite) return Kind::add;
    // Half of the tasks are harmless.
    return chance(50) ? Kind::add : any;
  }

  void submit() {
    tasks_.push_back(std::make_unique<Given>());
    Given& task = *tasks_.back();
    const auto id = static_cast<std::uint32_t>(tasks_.size() - 1);
    task.kind = kind();
    task.value = static_cast<int>(pick(0, 3000));
    TaskOptions options;
    options.priority(static_cast<int>(pick(0, 2)));
    if (chance(20) || task.kind == Kind::stop || task.kind == Kind::polite) {
      options.timeout(std::chrono::microseconds(pick(100, 20000)));
      task.limited = true;
    }
    if (chance(10)) {
      options.queue_timeout(std::chrono::microseconds(pick(10, 5000)));
      task.limited = true;
    }
    if (chance(10)) {
      options.cpu_timeout(std::chrono::microseconds(pick(500, 5000)));
      task.limited = true;
    }
    if (chance(10)) {
      options.total_timeout(std::chrono::microseconds(pick(10, 30000)));
      task.limited = true;
    }
    if (chance(15)) {
      options.retry(RetryPolicy(pick(1, 3)).delay(std::chrono::microseconds(pick(0, 2000))).jitter(0.5));
      task.retried = true;
    }
    if (chance(20)) options.on_progress([&task](const bulkhead::Progress& p) { task.last_progress = p.done + 1; });
    if (chance(10)) options.name("named");
    const auto done = [&task](std::exception_ptr error, std::optional<int> result, std::size_t size) {
      ++task.calls;
      task.error = std::move(error);
      task.result = result.value_or(-1);
      task.size = size;
    };
    if (task.kind == Kind::bytes) {
      const std::size_t size = chance(10) ? pick(0, 3U << 20U) : pick(0, 3000);
      task.value = static_cast<int>(size);
      executor_->async_submit(
          std::move(options), bulkhead::call(echo, id, Bytes(size, std::byte{7})),
          asio::bind_cancellation_slot(task.signal.slot(), [done](std::exception_ptr error, const Bytes& bytes) {
            done(std::move(error), std::nullopt, bytes.size());
          }));
    } else {
      executor_->async_submit(
          std::move(options), bulkhead::call(act, id, static_cast<int>(task.kind), task.value),
          asio::bind_cancellation_slot(
              task.signal.slot(), [done](std::exception_ptr error, int result) { done(std::move(error), result, 0); }));
    }
  }

  std::vector<Given*> open() {
    std::vector<Given*> found;
    for (const auto& task : tasks_) {
      if (task->calls == 0) found.push_back(task.get());
    }
    return found;
  }

  void cancel() {
    const auto candidates = open();
    if (candidates.empty()) return;
    Given& task = *candidates[pick(0, static_cast<std::uint32_t>(candidates.size() - 1))];
    const asio::cancellation_type types[] = {asio::cancellation_type::total, asio::cancellation_type::partial,
                                             asio::cancellation_type::terminal, asio::cancellation_type::all};
    task.cancelled = true;
    task.signal.emit(types[pick(0, 3)]);
  }

  void signal_worker(int number) {
    const auto pids = executor_->worker_pids();
    if (pids.empty()) return;
    disturbed_ = true;
    const int pid = pids[pick(0, static_cast<std::uint32_t>(pids.size() - 1))];
    // It may have been replaced this instant: then there is nothing to signal.
    try {
      Process process(pid);
      const auto now = executor_->worker_pids();
      if (std::find(now.begin(), now.end(), pid) == now.end()) return;
      process.signal(number);
      if (number == SIGSTOP) stopped_.push_back(std::move(process));
    } catch (const std::exception&) {
      return;
    }
  }

  void signal_template(int number) {
    const auto pids = executor_->worker_pids();
    if (pids.empty()) return;
    const int pid = pids[pick(0, static_cast<std::uint32_t>(pids.size() - 1))];
    try {
      // Its parent is the template, or the fork server if the template has died.
      const Process worker(pid);
      Process worker_template(parent_of(pid));
      const bool is_template = worker_template.pid() > 1 && worker_template.pid() != fork_server_.pid() &&
                               parent_of(worker_template.pid()) == fork_server_.pid() &&
                               parent_of(pid) == worker_template.pid() && !worker.gone();
      if (!is_template) return;
      disturbed_ = true;
      worker_template.signal(number);
      if (number == SIGSTOP) stopped_.push_back(std::move(worker_template));
    } catch (const std::exception&) {
      return;
    }
  }

  void resume() {
    for (const Process& process : stopped_) process.signal(SIGCONT);
    stopped_.clear();
  }

  void check_counts() {
    const auto metrics = executor_->metrics();
    if (!adds_up(metrics)) broken("the counts do not add up: " + to_string(metrics));
    if (metrics.pending + metrics.running > options_.max_pending) broken("more tasks than max_pending");
    // Each may have one beside it that leaves.
    if (metrics.workers > 2 * (options_.max_workers + options_.spare_workers)) broken("too many workers");
  }

  // Each caller was told what its task counts as.
  void check_totals() {
    std::uint64_t completed = 0;
    std::uint64_t cancelled = 0;
    std::uint64_t timed_out = 0;
    for (const auto& task : tasks_) {
      const auto error = error_as<RetryError>(task->error) ? error_as<RetryError>(task->error)->last() : task->error;
      if (!error) ++completed;
      if (cancelled_stage(error)) ++cancelled;
      if (holds<TaskTimeoutError>(error)) ++timed_out;
    }
    const auto metrics = executor_->metrics();
    const bool same = metrics.completed == completed && metrics.cancelled == cancelled &&
                      metrics.timed_out == timed_out &&
                      metrics.failed + metrics.rejected == tasks_.size() - completed - cancelled - timed_out;
    if (!same) {
      broken("callers were told of " + std::to_string(completed) + " completed, " + std::to_string(cancelled) +
             " cancelled and " + std::to_string(timed_out) + " timed out of " + std::to_string(tasks_.size()) +
             ", and the metrics are " + to_string(metrics));
    }
  }

  void check_task(std::size_t id) {
    const Given& task = *tasks_[id];
    const auto rule = [&](bool kept, const std::string& what) {
      if (kept) return;
      broken("task " + std::to_string(id) + " of kind " + std::to_string(static_cast<int>(task.kind)) + " " + what +
             ", it began " + std::to_string(board.runs[id]) + " times and ended with: " + message(task.error));
    };
    const int runs = board.runs[id];
    rule(task.calls == 1, "has " + std::to_string(task.calls) + " outcomes");
    rule(task.retried || runs <= 1, "ran more than once");
    const auto error = error_as<RetryError>(task.error) ? error_as<RetryError>(task.error)->last() : task.error;
    if (!error) {
      rule(runs >= 1, "ended without having run");
      rule(task.kind == Kind::bytes ? task.size == static_cast<std::size_t>(task.value) : task.result == task.value + 1,
           "has a wrong result");
      rule(task.kind < Kind::throws || task.kind == Kind::stop, "returned, which it cannot");
      return;
    }
    if (const auto crash = error_as<WorkerCrashedError>(error)) {
      rule(crash->started() != Started::never || runs == 0 || task.retried, "is said not to have begun");
      rule(disturbed_ || (task.kind >= Kind::segv && task.kind != Kind::stop), "crashed, and nothing did it");
      const auto rule_of_signal = [&](Kind kind, int signal) {
        if (!disturbed_ && task.kind == kind) rule(crash->signal() == signal, "has the wrong signal");
      };
      rule_of_signal(Kind::segv, SIGSEGV);
      rule_of_signal(Kind::abort, SIGABRT);
      rule_of_signal(Kind::kill, SIGKILL);
      if (!disturbed_ && task.kind == Kind::exit) rule(crash->exit_code() == 5, "has the wrong exit code");
    } else if (const auto late = error_as<TaskTimeoutError>(error)) {
      rule(task.limited, "timed out without a limit");
      rule(late->which() != TaskTimeoutError::Which::queue || runs == 0 || task.retried,
           "ran although it was too late");
    } else if (const auto stage = cancelled_stage(error)) {
      const bool said_so =
          *stage == TaskCancelledError::Stage::running || *stage == TaskCancelledError::Stage::retrying;
      rule(said_so || runs == 0, "ran although it was taken back");
    } else if (holds<std::out_of_range>(error)) {
      rule(task.kind == Kind::throws, "threw, which it does not");
    } else {
      const bool refused = holds<ExecutorOverloadError>(error) || holds<ExecutorNotRunningError>(error) ||
                           holds<bulkhead::TaskQuarantinedError>(error);
      // Workers may be killed in their start, three times in a row.
      rule(refused || (disturbed_ && holds<bulkhead::WorkerStartError>(error)), "has an error that nothing explains");
      rule(runs == 0 || task.retried, "ran although it was refused");
    }
  }

  asio::io_context& context_;
  std::mt19937_64 random_;
  const Process fork_server_;
  LocalExecutorOptions options_;
  std::optional<LocalExecutor> executor_;
  std::vector<std::unique_ptr<Given>> tasks_;
  std::vector<Process> stopped_;
  bool calm_ = false;
  bool disturbed_ = false;
  std::string violation_;
};

std::size_t heap_in_use() { return ::mallinfo2().uordblks; }

// What the host and the fork server hold: it must not grow with the episodes.
struct Held {
  explicit Held(int fork_server)
      : descriptors(open_descriptors()),
        fork_server_descriptors(bulkhead::test::descriptors_of(fork_server).size()),
        heap(heap_in_use()),
        resident(resident_kib()),
        fork_server_resident(resident_kib(fork_server)) {}
  std::size_t descriptors;
  std::size_t fork_server_descriptors;
  std::size_t heap;
  std::size_t resident;
  std::size_t fork_server_resident;
};

}  // namespace

TEST_CASE("74: whatever happens at random, every task ends once and truthfully, and nothing is left behind",
          "[fault]") {
  const std::uint64_t seed = number_from("BULKHEAD_CHAOS_SEED", std::random_device()());
  const std::chrono::seconds time(number_from("BULKHEAD_CHAOS_SECONDS", 60));
  std::cout << "BULKHEAD_CHAOS_SEED=" << seed << std::endl;
  const auto end = std::chrono::steady_clock::now() + time;
  asio::io_context context;
  {
    // What the event loop opens once, it keeps.
    LocalExecutor pool(context.get_executor(), bulkhead::test::workers(1));
    bulkhead::test::run(context, pool.submit([](int x) { return x; }, 1));
  }
  bulkhead::test::settle(context);
  REQUIRE(poll_until([] { return descendants().size() == 1; }, kGone));
  const int fork_server = *descendants().begin();
  const Held first(fork_server);
  // Once everything has happened that takes memory once.
  constexpr std::uint64_t kWarm = 20;
  std::optional<Held> warm;
  std::size_t tasks = 0;
  std::uint64_t number = 0;
  const auto run_episode = [&](int fork_server_dies_at) {
    INFO("BULKHEAD_CHAOS_SEED=" << seed << ", episode " << number);
    Episode episode(context, seed + number, fork_server);
    for (int i = 0; i < 150 && episode.violation().empty(); ++i) {
      if (i == fork_server_dies_at) episode.kill_fork_server();
      episode.step();
    }
    episode.end();
    REQUIRE(episode.violation() == "");
    tasks += episode.submitted();
  };
  for (; std::chrono::steady_clock::now() < end || number <= kWarm; ++number) {
    run_episode(-1);
    INFO("BULKHEAD_CHAOS_SEED=" << seed << ", episode " << number);
    // The fork server stays; templates and workers go.
    REQUIRE(poll_until([] { return descendants().size() == 1; }, kGone));
    CHECK(open_descriptors() == first.descriptors);
    if (number == kWarm) warm.emplace(fork_server);
  }
  const Held last(fork_server);
  std::cout << number << " episodes, " << tasks << " tasks; the host has " << last.resident
            << " KiB (before: " << warm->resident << "), the fork server " << last.fork_server_resident
            << " KiB (before: " << warm->fork_server_resident << ")" << std::endl;
  CHECK(tasks > 100);
  CHECK(last.fork_server_descriptors == first.fork_server_descriptors);
  // What is lost with every episode adds up to more than this within a few hundred of them. Sanitizers keep memory that
  // was given back, and the heap is theirs.
  if (WITH_SANITIZER == 0) {
    CHECK(last.heap < warm->heap + (std::size_t{1} << 20));
    CHECK(last.resident < warm->resident + 8 * 1024);
    CHECK(last.fork_server_resident < warm->fork_server_resident + 1024);
  }

  // The fork server's death ends all of its pools, and no task in silence.
  run_episode(static_cast<int>(seed % 150));
  CHECK_THROWS_AS(bulkhead::start_fork_server(), bulkhead::WorkerStartError);
  CHECK(poll_until([] { return descendants().empty(); }, kGone));
  CHECK(open_descriptors() <= first.descriptors);
}
