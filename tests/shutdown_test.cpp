// SPDX-License-Identifier: BSL-1.0
// What becomes of tasks, and of those who wait for a shutdown, when the executor is destroyed.
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/this_task.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"
#include "support/tasks.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::cancelled_stage;
using bulkhead::test::failure;
using bulkhead::test::Gate;
using bulkhead::test::holds;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::poll_until;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

namespace {

struct Board {
  Gate gate;
  std::atomic<int> ended{0};
};
Board& board = shared_object<Board>();

int twice(int value) { return 2 * value; }

int wait_at_gate(int value) {
  board.gate.wait();
  return value;
}

// The second to come has a predecessor whose answer is committed: a worker takes one task after the other.
int count_the_end(int value) {
  ++board.ended;
  return value;
}

// Whose encoding waits at a gate of the host's.
Gate encoding;
std::atomic<bool> encoding_waits{false};
struct SlowToWrite {
  int value = 0;
  template <class Archive>
  void serialize(Archive& archive) {
    if (Archive::is_saving::value && encoding_waits) encoding.wait();
    archive(value);
  }
};

int end_with(SlowToWrite argument) { return count_the_end(argument.value); }
int fail_at_first(SlowToWrite argument) {
  if (bulkhead::this_task::attempt() == 1) throw std::runtime_error("the first run fails");
  return count_the_end(argument.value);
}

}  // namespace

TEST_CASE("A shutdown goes on though nobody waits for it any more, or ever did", "[shutdown]") {
  const bool waits = GENERATE(true, false);
  asio::io_context context;
  board.gate.reset();
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  bool told = false;
  asio::cancellation_signal signal;
  bulkhead::ShutdownOptions options;
  options.wait = waits;
  options.timeout = 20ms;
  asio::co_spawn(context, pool.shutdown(options),
                 asio::bind_cancellation_slot(signal.slot(), [&](std::exception_ptr) { told = true; }));
  bulkhead::test::settle(context);
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return told; }));
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::running);
  CHECK(run_until(context, [&] { return pool.worker_pids().empty(); }));
  board.gate.open = 1;
}

#if !WITH_SANITIZER
namespace {

// Threads that have given back memory of a worker's size.
std::atomic<int> unmapped_here{0};
std::atomic<int> unmapped_elsewhere{0};
std::atomic<bool> watches_unmapping{false};
const std::thread::id the_event_loop = std::this_thread::get_id();

}  // namespace

// In place of the C library's: it is a system call, and nothing else.
extern "C" int munmap(void* address, std::size_t size) noexcept {
  constexpr std::size_t kLarge = std::size_t{16} << 20U;
  if (watches_unmapping && size >= kLarge) {
    ++(std::this_thread::get_id() == the_event_loop ? unmapped_here : unmapped_elsewhere);
  }
  return static_cast<int>(::syscall(SYS_munmap, address, size));
}

TEST_CASE("Memory of workers is given back by another thread than the event loop's when their executor ends",
          "[shutdown]") {
  const bool shuts_down = GENERATE(false, true);
  CAPTURE(shuts_down);
  asio::io_context context;
  // So that the threads of the library are there for longer than the executor.
  const LocalExecutor another(context.get_executor(), workers(1));
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(2));
  for (int i = 0; i < 4; ++i) run(context, pool->submit(twice, 1));
  unmapped_here = unmapped_elsewhere = 0;
  watches_unmapping = true;
  if (shuts_down) {
    run(context, pool->shutdown());
    CHECK(unmapped_elsewhere >= 2);  // request and response area
  }
  pool.reset();
  CHECK(unmapped_here == 0);
  CHECK(bulkhead::test::poll_until([] { return unmapped_elsewhere >= 2; }, bulkhead::test::kDeadline));
  watches_unmapping = false;
}
#endif

TEST_CASE("A shutdown reaches a task whose arguments are being written", "[shutdown]") {
  asio::io_context context;
  encoding.reset();
  board.ended = 0;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  encoding_waits = true;
  Outcome<> outcome;
  std::thread other([&] { pool.async_submit(bulkhead::call(end_with, SlowToWrite{7}), outcome.handler()); });
  REQUIRE(poll_until([] { return encoding.waiting == 1; }, bulkhead::test::kDeadline));
  bool over = false;
  asio::co_spawn(context, pool.shutdown({.wait = true, .timeout = {}, .cancel_pending = true}),
                 [&](std::exception_ptr) { over = true; });
  bulkhead::test::settle(context);
  encoding_waits = false;
  encoding.open = 1;
  other.join();
  REQUIRE(run_until(context, [&] { return outcome.calls == 1 && over; }));
  CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  CHECK(board.ended == 0);
}

TEST_CASE("A task that is cancelled while its next run is on its way to a worker does not run", "[shutdown]") {
  asio::io_context context;
  encoding.reset();
  board.ended = 0;
  LocalExecutor pool(context.get_executor(), workers(2));
  const auto options = [] { return bulkhead::TaskOptions().retry(bulkhead::RetryPolicy(2).delay(50ms)); };
  const auto first = pool.spawn(options(), fail_at_first, SlowToWrite{1});
  const auto second = pool.spawn(options(), fail_at_first, SlowToWrite{2});
  using bulkhead::TaskStatus;
  REQUIRE(run_until(context,
                    [&] { return first.status() == TaskStatus::retrying && second.status() == TaskStatus::retrying; }));
  const auto both_due = std::chrono::steady_clock::now() + 60ms;
  REQUIRE(poll_until([&] { return std::chrono::steady_clock::now() > both_due; }, bulkhead::test::kDeadline));
  encoding_waits = true;
  context.restart();
  std::thread loop([&] { context.run(); });
  REQUIRE(poll_until([] { return encoding.waiting == 1; }, bulkhead::test::kDeadline));
  first.cancel();
  second.cancel();
  encoding_waits = false;
  encoding.open = 1;
  loop.join();
  CHECK(first.status() == TaskStatus::cancelled);
  CHECK(second.status() == TaskStatus::cancelled);
  CHECK(board.ended == 0);
}

TEST_CASE("A shutdown that waits for tasks, or for workers, ends though the executor is destroyed", "[shutdown]") {
  const bool for_tasks = GENERATE(true, false);
  CAPTURE(for_tasks);
  board.gate.reset();
  asio::io_context context;
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(2));
  CHECK(run(context, pool->submit(twice, 21)) == 42);
  Outcome<> running;
  if (for_tasks) {
    pool->async_submit(bulkhead::call(wait_at_gate, 1), running.handler());
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  }
  Outcome<void> shutdown;
  asio::co_spawn(context, pool->shutdown(), shutdown.handler());
  context.restart();
  context.poll();
  pool.reset();
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
  INFO(message(shutdown.error));
  CHECK_FALSE(shutdown.error);
  if (for_tasks) CHECK(cancelled_stage(running.error) == TaskCancelledError::Stage::running);
}

TEST_CASE("Destroying the executor tells which tasks have run and which have not, and delivers what had ended",
          "[shutdown]") {
  board.gate.reset();
  asio::io_context context;
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(1));
  // Short tasks, so that many are given to a worker at once.
  for (int i = 0; i < 100; ++i) CHECK(run(context, pool->submit(twice, i)) == 2 * i);
  board.ended = 0;
  std::array<Outcome<>, 2> ended;
  Outcome<> running;
  std::array<Outcome<>, 20> behind;
  for (Outcome<>& outcome : ended) pool->async_submit(bulkhead::call(count_the_end, 5), outcome.handler());
  pool->async_submit(bulkhead::call(wait_at_gate, 1), running.handler());
  for (Outcome<>& outcome : behind) pool->async_submit(bulkhead::call(twice, 1), outcome.handler());
  // That it has come to the gate tells that those before it are answered; nothing of it is collected yet.
  context.restart();
  const bool came = poll_until(
      [&] {
        context.poll_one();
        return board.gate.waiting == 1;
      },
      30s);
  REQUIRE(came);
  pool.reset();
  REQUIRE(run_until(context, [&] { return all_over(ended) && running.calls == 1 && all_over(behind); }));
  for (const Outcome<>& outcome : ended) CHECK(outcome.value == 5);
  CHECK(cancelled_stage(running.error) == TaskCancelledError::Stage::running);
  for (const Outcome<>& outcome : behind) {
    INFO(message(outcome.error));
    CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  }
}

namespace {

// Whose `stop` runs on one thread while another destroys it.
class SlowToStop final : public bulkhead::BaseExecutor {
 public:
  struct Seen {
    std::atomic<bool> stopping{false};
    std::atomic<bool> destroying{false};
    std::atomic<bool> destroyed{false};
    std::atomic<bool> destroyed_while_stopping{false};
  };
  SlowToStop(asio::any_io_executor io, Seen& seen)
      : BaseExecutor(std::move(io), bulkhead::CommonOptions()), seen_(&seen) {}
  ~SlowToStop() override {
    close();
    seen_->destroyed = true;
  }

 protected:
  void execute(bulkhead::Task task) override { task.run(); }
  asio::awaitable<void> stop(bulkhead::ShutdownOptions options) override {
    Seen& seen = *seen_;
    seen.stopping = true;
    poll_until([&] { return seen.destroying.load(); }, bulkhead::test::kDeadline);
    // Time enough for a destructor that does not wait.
    for (int i = 0; i < 10'000 && !seen.destroyed; ++i) std::this_thread::yield();
    seen.destroyed_while_stopping = seen.destroyed.load();
    return BaseExecutor::stop(options);
  }

 private:
  Seen* seen_;
};

}  // namespace

TEST_CASE("An executor that another thread destroys is there until its shutdown has begun", "[shutdown]") {
  asio::io_context context;
  SlowToStop::Seen seen;
  auto executor = std::make_unique<SlowToStop>(context.get_executor(), seen);
  Outcome<void> shutdown;
  asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  std::thread loop([&] { context.run(); });
  const bool stopping = poll_until([&] { return seen.stopping.load(); }, bulkhead::test::kDeadline);
  seen.destroying = true;
  executor.reset();
  loop.join();
  REQUIRE(stopping);
  CHECK(shutdown.calls == 1);
  CHECK_FALSE(shutdown.error);
  CHECK_FALSE(seen.destroyed_while_stopping);
}

TEST_CASE("Executors may be destroyed by one thread while their shutdowns begin on another", "[shutdown]") {
  asio::io_context context;
  auto work = asio::make_work_guard(context);
  std::thread loop([&] { context.run(); });
  for (int round = 0; round < 300; ++round) {
    bulkhead::ThreadExecutor threads(context.get_executor());
    std::optional<LocalExecutor> bypass(std::in_place, context.get_executor(), workers(1, true));
    for (const bool wait : {true, false}) {
      asio::co_spawn(context, threads.shutdown({.wait = wait, .timeout = {}, .cancel_pending = !wait}), asio::detached);
      asio::co_spawn(context, bypass->shutdown({.wait = wait, .timeout = {}, .cancel_pending = wait}), asio::detached);
    }
    bypass.reset();
  }
  work.reset();
  loop.join();
  CHECK(context.stopped());
}

namespace {

// Whose `execute` runs on one thread while another destroys it.
class SlowToExecute final : public bulkhead::BaseExecutor {
 public:
  struct Seen {
    std::atomic<bool> executing{false};
    std::atomic<bool> destroying{false};
    std::atomic<bool> destroyed{false};
    std::atomic<bool> destroyed_while_executing{false};
  };
  SlowToExecute(asio::any_io_executor io, Seen& seen)
      : BaseExecutor(std::move(io), bulkhead::CommonOptions()), seen_(&seen) {}
  ~SlowToExecute() override {
    close();
    seen_->destroyed = true;
  }

 protected:
  void execute(bulkhead::Task task) override {
    Seen& seen = *seen_;
    seen.executing = true;
    poll_until([&] { return seen.destroying.load(); }, bulkhead::test::kDeadline);
    // Time enough for a destructor that does not wait.
    for (int i = 0; i < 10'000 && !seen.destroyed; ++i) std::this_thread::yield();
    seen.destroyed_while_executing = seen.destroyed.load();
    task.run();
  }

 private:
  Seen* seen_;
};

}  // namespace

TEST_CASE("An executor that another thread destroys is there until it has taken the task that is given to it",
          "[shutdown]") {
  asio::io_context context;
  SlowToExecute::Seen seen;
  auto executor = std::make_unique<SlowToExecute>(context.get_executor(), seen);
  const auto handle = executor->submit_after(1ns, twice, 4);
  std::thread loop([&] { context.run(); });
  const bool executing = poll_until([&] { return seen.executing.load(); }, bulkhead::test::kDeadline);
  seen.destroying = true;
  executor.reset();
  loop.join();
  REQUIRE(executing);
  CHECK_FALSE(seen.destroyed_while_executing);
  CHECK(run(context, handle.result(bulkhead::test::kDeadline)) == 8);
}

TEST_CASE("A task that an executor runs inside submit may shut it down while another thread destroys it",
          "[shutdown]") {
  asio::io_context context;
  auto executor = std::make_unique<bulkhead::InlineExecutor>(context.get_executor());
  std::atomic<bool> runs{false};
  std::atomic<bool> destroying{false};
  Outcome<void> shutdown;
  const auto handle = executor->submit_after(1ns, [&, self = executor.get()] {
    runs = true;
    poll_until([&] { return destroying.load(); }, bulkhead::test::kDeadline);
    asio::co_spawn(context, self->shutdown({.wait = false, .timeout = {}, .cancel_pending = false}),
                   shutdown.handler());
    context.poll_one();  // the shutdown begins
  });
  std::thread loop([&] { context.run(); });
  const bool running = poll_until([&] { return runs.load(); }, bulkhead::test::kDeadline);
  destroying = true;
  executor.reset();
  loop.join();
  REQUIRE(running);
  CHECK(shutdown.calls == 1);
  CHECK(handle.status() == bulkhead::TaskStatus::succeeded);
}

TEST_CASE("Executors may be destroyed by one thread while tasks begin by themselves on another", "[shutdown]") {
  const std::string type = GENERATE("inline", "bypass", "thread", "io", "hybrid");
  INFO(type);
  asio::io_context context;
  auto work = asio::make_work_guard(context);
  std::thread loop([&] { context.run(); });
  std::vector<bulkhead::TaskHandle<int>> handles;
  for (int round = 0; round < 100; ++round) {
    auto executor = bulkhead::test::make(type, context);
    for (int i = 0; i < 5; ++i) {
      handles.push_back(executor->submit_after(std::chrono::microseconds(10 * i), twice, i));
      handles.push_back(executor->spawn(
          bulkhead::TaskOptions().retry(bulkhead::RetryPolicy(3).delay(std::chrono::microseconds(10 * i))),
          +[](int value) {
            if (bulkhead::this_task::attempt() < 3) throw std::runtime_error("again");
            return value;
          },
          i));
    }
    for (int i = 0; i < 10 * (round % 10); ++i) std::this_thread::yield();
    executor.reset();
  }
  const bool over = poll_until(
      [&] { return std::all_of(handles.begin(), handles.end(), [](const auto& h) { return is_over(h.status()); }); },
      bulkhead::test::kDeadline);
  CHECK(over);
  work.reset();
  loop.join();
}

TEST_CASE("Tasks that wait for their next run end with a shutdown while other threads look at them or cancel them",
          "[shutdown]") {
  const bool cancel = GENERATE(false, true);
  for (int round = 0; round < 20; ++round) {
    asio::io_context context;
    bulkhead::ThreadExecutorOptions options;
    options.max_pending = 100;
    bulkhead::ThreadExecutor executor(context.get_executor(), options);
    std::vector<bulkhead::TaskHandle<int>> handles;
    for (int i = 0; i < 100; ++i) {
      handles.push_back(executor.spawn(TaskOptions().retry(bulkhead::RetryPolicy(3).delay(1h)).total_timeout(2h),
                                       bulkhead::test::refuse, i));
    }
    REQUIRE(run_until(context, [&] { return executor.metrics().retried == 100; }));
    std::atomic<bool> stop{false};
    std::thread other([&] {
      while (!stop) {
        for (const auto& handle : handles) {
          if (cancel) {
            handle.cancel();
          } else {
            static_cast<void>(handle.info());
          }
        }
      }
    });
    run(context, executor.shutdown());
    stop = true;
    other.join();
    for (const auto& handle : handles) {
      const auto error = failure(context, handle.result());
      // What was cancelled may count the run that it waited for.
      const bool cancelled = holds<TaskCancelledError>(error);
      CHECK((cancelled || message(error).starts_with("refused ")));
      CHECK(handle.info().attempt <= (cancelled ? 2U : 1U));
    }
    CHECK(adds_up(executor));
  }
}
