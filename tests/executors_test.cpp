// SPDX-License-Identifier: BSL-1.0
// Threads, coroutines, hybrid, inline, and the unified Executor: what is theirs alone. What all executors have in
// common is in executor_contract_test.
#include <bulkhead/errors.hpp>
#include <bulkhead/executor.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/this_task.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/tasks.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::ErrorContext;
using bulkhead::Executor;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOverloadError;
using bulkhead::FunctionUnavailableError;
using bulkhead::HybridExecutor;
using bulkhead::HybridExecutorOptions;
using bulkhead::InlineExecutor;
using bulkhead::IoExecutor;
using bulkhead::IoExecutorOptions;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::RetryError;
using bulkhead::RetryPolicy;
using bulkhead::ShutdownFailedError;
using bulkhead::Started;
using bulkhead::Task;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::board;
using bulkhead::test::count;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::meet;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::poll_until;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::thread_name;
using bulkhead::test::threads;
using bulkhead::test::twice;
using bulkhead::test::twice_later;
using bulkhead::test::wait_at_gate;
using bulkhead::test::Wedged;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

int throw_out_of_range() { throw std::out_of_range("nothing there"); }

asio::awaitable<void> wait_for_ever(std::atomic<int>& begun, std::atomic<int>& cancelled) {
  asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::steady_clock::time_point::max());
  ++begun;
  try {
    co_await timer.async_wait(asio::use_awaitable);
  } catch (const boost::system::system_error&) {
    ++cancelled;
    throw;
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Threads.

TEST_CASE("four blocking calls on four threads run at the same time", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(4));
  reset_board();
  std::deque<Outcome<>> outcomes(4);
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(meet, 1, 4), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == 1);
  CHECK(executor.metrics().workers == 4);
}

TEST_CASE("a thread executor takes captures, move-only arguments and results, and anything else", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  int captured = 20;
  auto add = [&captured](std::unique_ptr<int> value) { return std::make_unique<int>(*value + captured); };
  CHECK(*run(context, executor.submit(add, std::make_unique<int>(22))) == 42);
  struct NoDefault {
    explicit NoDefault(int given) : value(given) {}
    int value;
  };
  int seven = 0;
  executor.async_submit(bulkhead::call([] { return NoDefault(7); }),
                        [&](std::exception_ptr, std::optional<NoDefault> result) { seven = result->value; });
  REQUIRE(run_until(context, [&] { return seven != 0; }));
  CHECK(seven == 7);
  std::vector<std::unique_ptr<int>> many;
  many.push_back(std::make_unique<int>(3));
  auto first = [](std::vector<std::unique_ptr<int>> values) { return *values.front(); };
  CHECK(run(context, executor.submit(first, std::move(many))) == 3);
}

TEST_CASE("threads are started when tasks wait, carry the executor's name, and end when they are idle", "[thread]") {
  asio::io_context context;
  ThreadExecutorOptions options = threads(3);
  options.name = "a-rather-long-name";
  options.idle_timeout = 20ms;
  ThreadExecutor executor(context.get_executor(), options);
  CHECK(executor.metrics().workers == 0);
  CHECK(run(context, executor.submit(thread_name)) == "a-rather-long/1");
  board.gate.reset();
  std::deque<Outcome<>> outcomes(5);
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 3; }));
  CHECK(executor.metrics().workers == 3);
  CHECK(executor.metrics().running == 3);
  CHECK(executor.metrics().pending == 2);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(run_until(context, [&] { return executor.metrics().workers == 0; }));
  // And again.
  CHECK(run(context, executor.submit(twice, 4)) == 8);
  CHECK(executor.metrics().workers_started >= 4);
}

TEST_CASE("threads that a light load does not need end, although it goes on", "[thread]") {
  asio::io_context context;
  ThreadExecutorOptions options = threads(8);
  options.idle_timeout = 50ms;
  ThreadExecutor executor(context.get_executor(), options);
  board.gate.reset();
  std::deque<Outcome<>> outcomes(8);
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 8; }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  // Task after task, always one.
  REQUIRE(run_until(context, [&] {
    run(context, executor.submit(twice, 1));
    return executor.metrics().workers == 1;
  }));
}

TEST_CASE("a cancelled task keeps its place until its function returns", "[thread]") {
  asio::io_context context;
  ThreadExecutorOptions options = threads(1);
  options.max_pending = 1;
  options.cancel_grace = 0ns;
  ThreadExecutor executor(context.get_executor(), options);
  board.gate.reset();
  asio::cancellation_signal signal;
  Outcome<> outcome;
  executor.async_submit(bulkhead::call(wait_at_gate, 1),
                        asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(holds<TaskCancelledError>(outcome.error));
  CHECK(executor.metrics().cancelled == 1);
  CHECK(executor.metrics().running == 0);
  CHECK(executor.metrics().lingering == 1);
  CHECK(adds_up(executor));
  Outcome<> refused;
  executor.async_submit(bulkhead::call(twice, 1), refused.handler());
  settle(context);
  CHECK(holds<ExecutorOverloadError>(refused.error));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] {
    Outcome<> next;
    executor.async_submit(bulkhead::call(twice, 1), next.handler());
    return run_until(context, [&] { return next.calls == 1; }) && next.value == 2;
  }));
  CHECK(outcome.calls == 1);
  CHECK(executor.metrics().lingering == 0);
}

TEST_CASE("a task on a thread is told when its time limit passes, and does not run again before it is over",
          "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(4));
  std::atomic<int> at_once{0};
  std::atomic<int> most{0};
  std::atomic<int> runs{0};
  auto slow = [&] {
    most = std::max(most.load(), ++at_once);
    ++runs;
    poll_until([] { return bulkhead::this_task::stop_requested(); }, 60s);
    --at_once;
    return 1;
  };
  auto options = TaskOptions().timeout(5ms).retry(RetryPolicy(3));
  const auto error = [&] {
    try {
      run(context, executor.submit(std::move(options), slow));
    } catch (...) {
      return std::current_exception();
    }
    return std::exception_ptr();
  }();
  CHECK(holds<RetryError>(error));  // the last run goes on when its caller is told
  REQUIRE(run_until(context, [&] { return at_once == 0; }));
  CHECK(most == 1);
  CHECK(runs == 3);
}

TEST_CASE("a spinning task on a thread is told when its CPU time is used up, and a sleeping one is not", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(2));
  auto spin = [] {
    while (!bulkhead::this_task::stop_requested()) {
    }
    return 1;
  };
  Outcome<> spinning;
  executor.async_submit(TaskOptions().cpu_timeout(5ms), bulkhead::call(spin), spinning.handler());
  REQUIRE(run_until(context, [&] { return spinning.calls == 1; }));
  const auto error = error_as<TaskTimeoutError>(spinning.error);
  REQUIRE(error);
  CHECK(error->which() == TaskTimeoutError::Which::cpu);
  board.gate.reset();
  Outcome<> sleeping;
  executor.async_submit(TaskOptions().cpu_timeout(10s), bulkhead::call(wait_at_gate, 3), sleeping.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return sleeping.calls == 1; }));
  CHECK(sleeping.value == 3);
}

TEST_CASE("destroying a thread executor waits for no function", "[thread]") {
  asio::io_context context;
  board.gate.reset();
  auto executor = std::make_unique<ThreadExecutor>(context.get_executor(), threads(1));
  Outcome<> running;
  Outcome<> queued;
  executor->async_submit(bulkhead::call(wait_at_gate, 1), running.handler());
  executor->async_submit(bulkhead::call(twice, 1), queued.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  executor.reset();
  settle(context);
  CHECK(holds<TaskCancelledError>(running.error));
  CHECK(holds<TaskCancelledError>(queued.error));
  board.gate.open = 1;
}

TEST_CASE("the program's signals are for the program's threads", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  auto blocked = [] {
    sigset_t mask;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    return ::sigismember(&mask, SIGTERM) == 1 && ::sigismember(&mask, SIGINT) == 1;
  };
  CHECK(run(context, executor.submit(blocked)));
}

TEST_CASE("a fault on a thread of an executor is its own: the program's handler for it is called there", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  auto blocked = [](int signal) {
    sigset_t mask;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    return ::sigismember(&mask, signal) == 1;
  };
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF}) {
    CAPTURE(signal);
    CHECK_FALSE(run(context, executor.submit(blocked, signal)));
  }
}

// ThreadSanitizer blocks all signals around a fork of its own, and gives back what was blocked before, in the child
// too.
#if !WITH_THREAD_SANITIZER
TEST_CASE("a process that a task forks on a thread has the program's signal mask, and heeds SIGTERM", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  auto end_child = [] {
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
    ::kill(child, SIGTERM);
    int status = 0;
    const auto end = std::chrono::steady_clock::now() + bulkhead::test::kDeadline;
    while (::waitpid(child, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > end) {
        ::kill(child, SIGKILL);
        ::waitpid(child, &status, 0);
        break;
      }
      std::this_thread::yield();
    }
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  };
  CHECK(run(context, executor.submit(end_child)) == SIGTERM);
  // Also on a thread that one of the pool's has started: the first holds its own meanwhile.
  auto from_inside = [&] {
    std::promise<int> ended;
    executor.async_submit(bulkhead::call(end_child),
                          [&](const std::exception_ptr&, int signal) { ended.set_value(signal); });
    return ended.get_future().get();
  };
  CHECK(run(context, executor.submit(from_inside)) == SIGTERM);
}
#endif

TEST_CASE("the threads of an executor that was shut down end, though they may be idle for long", "[thread][io]") {
  asio::io_context context;
  ThreadExecutorOptions patient = threads(4);
  patient.idle_timeout = std::chrono::hours(1);
  ThreadExecutor executor(context.get_executor(), patient);
  for (int i = 0; i < 4; ++i) run(context, executor.submit(twice, i));
  CHECK(executor.metrics().workers > 0);
  run(context, executor.shutdown());
  CHECK(run_until(context, [&] { return executor.metrics().workers == 0; }));
}

TEST_CASE("a retry of a call that its first run would use up is refused, and one in a std::function is not",
          "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  const std::string text = "captured";
  int runs = 0;
  const auto fail_twice = [text, &runs] {
    if (++runs < 3) throw std::runtime_error("flaky");
    return text;
  };
  const auto retried = [] { return TaskOptions().retry(bulkhead::RetryPolicy(3)); };
  const auto refused = failure(context, executor.submit(retried(), fail_twice));
  CHECK(holds<std::invalid_argument>(refused));
  CHECK_THAT(message(refused), ContainsSubstring("std::function"));
  CHECK(runs == 0);
  CHECK(run(context, executor.submit(retried(), std::function<std::string()>(fail_twice))) == text);
  CHECK(runs == 3);
  CHECK(adds_up(executor));
}

TEST_CASE("options out of range are refused, and say the range", "[thread][io][hybrid]") {
  asio::io_context context;
  const auto io = context.get_executor();
  CHECK_THROWS_WITH(ThreadExecutor(io, threads(0)), ContainsSubstring("'max_threads' must be 1 to 4096"));
  ThreadExecutorOptions negative;
  negative.idle_timeout = -1s;
  CHECK_THROWS_WITH(ThreadExecutor(io, negative), ContainsSubstring("'idle_timeout'"));
  negative.idle_timeout = 1s;
  negative.cancel_grace = -1s;
  CHECK_THROWS_WITH(ThreadExecutor(io, negative), ContainsSubstring("'cancel_grace'"));
  IoExecutorOptions none;
  none.max_concurrent = 0;
  CHECK_THROWS_WITH(IoExecutor(io, none), ContainsSubstring("'max_concurrent'"));
  CHECK_THROWS_AS(HybridExecutor(io, {}), std::invalid_argument);
  CHECK_THROWS_AS(HybridExecutor(io, {nullptr}), std::invalid_argument);
}

TEST_CASE("a submitted coroutine is refused at run time where the executor's type is not known", "[thread]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor());
  BaseExecutor& base = executor;
  try {
    run(context, base.submit(twice_later, 2));
    FAIL("it ran");
  } catch (const FunctionUnavailableError& error) {
    CHECK_THAT(error.what(), ContainsSubstring("IoExecutor"));
  }
  LocalExecutor bypass(context.get_executor(), bulkhead::test::workers(1, true));
  BaseExecutor& local = bypass;
  CHECK_THROWS_AS(run(context, local.submit(twice_later, 2)), FunctionUnavailableError);
}

// ---------------------------------------------------------------------------------------------------------------------
// Coroutines.

TEST_CASE("coroutines give their results, of any type", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  CHECK(run(context, executor.submit(twice_later, 21)) == 42);
  std::atomic<int> done{0};
  auto nothing = [&done]() -> asio::awaitable<void> {
    ++done;
    co_return;
  };
  run(context, executor.submit(nothing));
  CHECK(done == 1);
  auto moved = [](std::unique_ptr<int> value) -> asio::awaitable<std::unique_ptr<int>> {
    ++*value;
    co_return value;
  };
  CHECK(*run(context, executor.submit(moved, std::make_unique<int>(1))) == 2);
  CHECK_THROWS_WITH(run(context, executor.submit([] { return asio::awaitable<int>(); })),
                    ContainsSubstring("without a coroutine"));
  auto failing = []() -> asio::awaitable<int> {
    throw std::out_of_range("nothing there");
    co_return 1;
  };
  CHECK_THROWS_AS(run(context, executor.submit(failing)), std::out_of_range);
  const auto metrics = executor.metrics();
  CHECK(metrics.completed == 3);
  CHECK(metrics.failed == 2);
  CHECK(metrics.mode == "io");
}

TEST_CASE("a coroutine may refer to its arguments and captures to its end", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  std::string captured = "a captured text that is too long for a small buffer";
  auto later = [captured](const std::string& argument) -> asio::awaitable<std::string> {
    asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
    co_await timer.async_wait(asio::use_awaitable);
    co_return captured + argument;
  };
  CHECK(run(context, executor.submit(later, std::string(100, 'x'))) == captured + std::string(100, 'x'));
}

TEST_CASE("no more coroutines run at once than max_concurrent says", "[io]") {
  asio::io_context context;
  IoExecutorOptions options;
  options.max_concurrent = 2;
  IoExecutor executor(context.get_executor(), options);
  int at_once = 0;
  int most = 0;
  auto work = [&]() -> asio::awaitable<void> {
    most = std::max(most, ++at_once);
    asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
    co_await timer.async_wait(asio::use_awaitable);
    --at_once;
  };
  std::deque<Outcome<void>> outcomes(10);
  for (auto& outcome : outcomes) executor.async_submit(bulkhead::call(work), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(most == 2);
}

TEST_CASE("a coroutine that is cancelled or late is cancelled in what it awaits", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  std::atomic<int> begun{0};
  std::atomic<int> cancelled{0};
  auto endless = [&]() { return wait_for_ever(begun, cancelled); };
  {
    asio::cancellation_signal signal;
    Outcome<void> outcome;
    executor.async_submit(bulkhead::call(endless), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
    REQUIRE(run_until(context, [&] { return begun == 1; }));
    signal.emit(asio::cancellation_type::terminal);
    REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
    CHECK(holds<TaskCancelledError>(outcome.error));
    CHECK(cancelled == 1);
  }
  Outcome<void> late;
  executor.async_submit(TaskOptions().timeout(5ms), bulkhead::call(endless), late.handler());
  REQUIRE(run_until(context, [&] { return late.calls == 1; }));
  CHECK(holds<TaskTimeoutError>(late.error));
  REQUIRE(run_until(context, [&] { return cancelled == 2; }));
  run(context, executor.shutdown());
  CHECK(adds_up(executor));
}

TEST_CASE("this_task knows a coroutine in every handler that it goes on in, and none beside it", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  std::vector<std::string> seen;
  auto look = [&seen]() -> asio::awaitable<std::uint64_t> {
    seen.push_back(bulkhead::this_task::name());
    asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
    co_await timer.async_wait(asio::use_awaitable);
    seen.push_back(bulkhead::this_task::name());
    bulkhead::this_task::report_progress(1, 2, "half");
    co_return bulkhead::this_task::id();
  };
  std::vector<std::string> told;
  auto options = TaskOptions().name("looker").on_progress([&](const auto& progress) { told.push_back(progress.text); });
  CHECK(run(context, executor.submit(std::move(options), look)) == 1);
  CHECK(seen == std::vector<std::string>{"looker", "looker"});
  CHECK(told == std::vector<std::string>{"half"});
  CHECK_FALSE(bulkhead::this_task::is_running());
}

TEST_CASE("what a coroutine leaves behind on its executor knows of no task any more", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  std::atomic<int> asked{0};
  auto leave = [&asked]() -> asio::awaitable<void> {
    const auto own = co_await asio::this_coro::executor;
    auto timer = std::make_shared<asio::steady_timer>(own, 20ms);
    timer->async_wait([timer, &asked](boost::system::error_code) {
      if (!bulkhead::this_task::stop_requested() && bulkhead::this_task::id() == 0) ++asked;
    });
  };
  run(context, executor.submit(leave));
  CHECK(run_until(context, [&] { return asked == 1; }));
}

TEST_CASE("a coroutine is run again as its policy says, with what it was called with", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  int runs = 0;
  auto flaky = [counter = &runs](std::string text) -> asio::awaitable<std::string> {
    if (++*counter < 3) throw std::runtime_error("not yet");
    co_return text + std::to_string(bulkhead::this_task::attempt());
  };
  auto options = TaskOptions().retry(RetryPolicy(3));
  CHECK(run(context, executor.submit(std::move(options), flaky, "run ")) == "run 3");
}

TEST_CASE("a plain function given to an IoExecutor runs on a thread, and leaves the event loop alone", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  board.gate.reset();
  Outcome<> blocking;
  executor.async_submit(bulkhead::call(wait_at_gate, 1), blocking.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  CHECK(run(context, executor.submit(twice_later, 1)) == 2);
  CHECK(blocking.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return blocking.calls == 1; }));
}

TEST_CASE("a coroutine may run on another event loop than the executor's", "[io]") {
  asio::io_context context;
  asio::io_context other;
  auto work = asio::make_work_guard(other);
  std::thread thread([&] { other.run(); });
  {
    IoExecutorOptions options;
    options.run_on = other.get_executor();
    IoExecutor executor(context.get_executor(), options);
    auto where = []() -> asio::awaitable<std::thread::id> { co_return std::this_thread::get_id(); };
    CHECK(run(context, executor.submit(where)) == thread.get_id());
  }
  work.reset();
  thread.join();
}

TEST_CASE("destroying the event loop with coroutines under way leaves nothing behind", "[io]") {
  std::atomic<int> begun{0};
  std::atomic<int> cancelled{0};
  Outcome<void> outcome;
  std::unique_ptr<IoExecutor> executor;
  {
    asio::io_context context;
    executor = std::make_unique<IoExecutor>(context.get_executor());
    executor->async_submit(bulkhead::call([&] { return wait_for_ever(begun, cancelled); }), outcome.handler());
    REQUIRE(run_until(context, [&] { return begun == 1; }));
  }
  CHECK(outcome.calls == 0);  // as with every Asio object
  CHECK(adds_up(*executor));
}

TEST_CASE("a CPU limit for a coroutine is refused, since it could not be kept", "[io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  auto options = TaskOptions().cpu_timeout(1s);
  CHECK_THROWS_AS(run(context, executor.submit(std::move(options), twice_later, 1)), std::invalid_argument);
}

TEST_CASE("many coroutines on several threads of the event loop all end once", "[io]") {
  asio::io_context context;
  IoExecutorOptions options;
  options.max_pending = 10'000;
  options.max_concurrent = 50;
  IoExecutor executor(context.get_executor(), options);
  std::atomic<int> good{0};
  std::atomic<int> told{0};
  constexpr int kTasks = 500;
  for (int i = 0; i < kTasks; ++i) {
    executor.async_submit(bulkhead::call(twice_later, i), [&, i](std::exception_ptr error, int value) {
      if (!error && value == 2 * i) ++good;
      ++told;
    });
  }
  std::vector<std::thread> loop;
  for (int i = 0; i < 3; ++i) loop.emplace_back([&] { context.run(); });
  for (auto& thread : loop) thread.join();
  CHECK(told == kTasks);
  CHECK(good == kTasks);
}

// ---------------------------------------------------------------------------------------------------------------------
// Hybrid.

namespace {

struct Pair {
  explicit Pair(asio::io_context& context, HybridExecutorOptions options = {}) {
    LocalExecutorOptions few = bulkhead::test::workers(1);
    few.name = "processes";
    few.max_pending = 1;
    processes = std::make_shared<LocalExecutor>(context.get_executor(), few);
    ThreadExecutorOptions some = ::threads(2);
    some.name = "threads";
    some.max_pending = 2;
    threads = std::make_shared<ThreadExecutor>(context.get_executor(), some);
    hybrid = std::make_unique<HybridExecutor>(
        context.get_executor(), std::vector<std::shared_ptr<BaseExecutor>>{processes, threads}, std::move(options));
  }

  std::shared_ptr<LocalExecutor> processes;
  std::shared_ptr<ThreadExecutor> threads;
  std::unique_ptr<HybridExecutor> hybrid;
};

std::string where() { return bulkhead::this_task::executor_name(); }

// Its workers crash with every task, as far as its caller can tell.
class CrashingExecutor final : public BaseExecutor {
 public:
  // `begins`: what tells that a task has begun is the task itself.
  CrashingExecutor(asio::io_context& context, Started ending, bool begins)
      : BaseExecutor(context.get_executor(), {.name = "crashing"}), started_(ending), begins_(begins) {}
  ~CrashingExecutor() override { close(); }

 protected:
  void execute(Task task) override {
    if (begins_) task.started();
    WorkerCrashedError::Ending ending;
    ending.signal = SIGSEGV;
    ending.started = started_;
    task.fail(std::make_exception_ptr(WorkerCrashedError(ending, {})));
  }

 private:
  const Started started_;
  const bool begins_;
};

// Tasks go to an executor whose workers crash, and from there, if they may, to one that runs them.
struct CrashingPair {
  CrashingPair(asio::io_context& context, Started ending, bool on_crash_before_start, bool begins = false)
      : crashing(std::make_shared<CrashingExecutor>(context, ending, begins)),
        next(std::make_shared<InlineExecutor>(context.get_executor(), bulkhead::CommonOptions{.name = "next"})) {
    HybridExecutorOptions options;
    options.on_crash_before_start = on_crash_before_start;
    hybrid = std::make_unique<HybridExecutor>(context.get_executor(),
                                              std::vector<std::shared_ptr<BaseExecutor>>{crashing, next}, options);
  }

  std::shared_ptr<BaseExecutor> crashing;
  std::shared_ptr<BaseExecutor> next;
  std::unique_ptr<HybridExecutor> hybrid;
};

}  // namespace

TEST_CASE("a hybrid gives tasks to the first that has room, and refuses when none has", "[hybrid]") {
  asio::io_context context;
  Pair pair(context);
  CHECK(run(context, pair.hybrid->submit(where)) == "processes");
  board.gate.reset();
  std::deque<Outcome<>> outcomes(4);
  for (auto& outcome : outcomes) pair.hybrid->async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcomes[3].calls == 1 && board.gate.waiting == 3; }));
  const auto refused = error_as<ExecutorOverloadError>(outcomes[3].error);
  REQUIRE(refused);
  CHECK(refused->context().executor == "threads");
  CHECK(pair.processes->metrics().pending + pair.processes->metrics().running == 1);
  CHECK(pair.threads->metrics().running == 2);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  const auto all = pair.hybrid->all_metrics();
  REQUIRE(all.size() == 3);
  CHECK(all[0].submitted == 5);
  CHECK(all[0].completed == 4);
  CHECK(all[0].failed == 1);
  CHECK(all[1].name == "processes");
  CHECK(all[1].rejected == 3);
  CHECK(all[2].rejected == 1);
  for (const auto& metrics : all) CHECK(adds_up(metrics));
}

TEST_CASE("a hybrid goes on when one is not running only if that is asked for", "[hybrid]") {
  asio::io_context context;
  HybridExecutorOptions options;
  options.on_not_running = GENERATE(false, true);
  Pair pair(context, options);
  run(context, pair.processes->shutdown());
  if (options.on_not_running) {
    CHECK(run(context, pair.hybrid->submit(where)) == "threads");
  } else {
    CHECK_THROWS_AS(run(context, pair.hybrid->submit(where)), ExecutorNotRunningError);
  }
}

TEST_CASE("a cancelled task of a hybrid is cancelled where it is", "[hybrid]") {
  asio::io_context context;
  Pair pair(context);
  board.gate.reset();
  Outcome<> first;
  asio::cancellation_signal signal;
  Outcome<> second;
  pair.hybrid->async_submit(bulkhead::call(wait_at_gate, 1),
                            asio::bind_cancellation_slot(signal.slot(), first.handler()));
  pair.hybrid->async_submit(bulkhead::call(wait_at_gate, 2), second.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2; }));
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return first.calls == 1; }));
  CHECK(holds<TaskCancelledError>(first.error));
  CHECK(second.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return second.calls == 1; }));
  CHECK(second.value == 2);
  run(context, pair.hybrid->shutdown());
  CHECK(pair.processes->metrics().cancelled == 1);
}

TEST_CASE("a hybrid shuts its executors down, or leaves them", "[hybrid]") {
  asio::io_context context;
  HybridExecutorOptions options;
  options.shut_down_executors = GENERATE(true, false);
  Pair pair(context, options);
  CHECK(run(context, pair.hybrid->submit(twice, 1)) == 2);
  run(context, pair.hybrid->shutdown());
  CHECK_THROWS_AS(run(context, pair.hybrid->submit(twice, 1)), ExecutorNotRunningError);
  if (options.shut_down_executors) {
    CHECK_THROWS_AS(run(context, pair.threads->submit(twice, 1)), ExecutorNotRunningError);
  } else {
    CHECK(run(context, pair.threads->submit(twice, 1)) == 2);
  }
}

TEST_CASE("a hybrid's shutdown runs what waits for an instance before it shuts its executors down", "[hybrid]") {
  asio::io_context context;
  const bool wait = GENERATE(true, false);
  CAPTURE(wait);
  Pair pair(context);
  const auto alone = [] {
    return TaskOptions().name("alone").max_instances(1, bulkhead::OverloadPolicy::wait).timeout(1h);
  };
  board.gate.reset();
  std::deque<Outcome<>> outcomes(3);
  pair.hybrid->async_submit(alone(), bulkhead::call(wait_at_gate, 0), outcomes[0].handler());
  for (int i = 1; i < 3; ++i) {
    pair.hybrid->async_submit(alone(), bulkhead::call(twice, i), outcomes[static_cast<std::size_t>(i)].handler());
  }
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  bulkhead::ShutdownOptions options;
  options.wait = wait;
  bool ended = false;
  asio::co_spawn(context, pair.hybrid->shutdown(options), [&](std::exception_ptr error) {
    CHECK_FALSE(error);
    ended = true;
  });
  settle(context);
  CHECK(ended == !wait);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return ended && all_over(outcomes); }));
  CHECK(outcomes[1].value == 2);
  CHECK(outcomes[2].value == 4);
  const auto closed = [&] { return run_until(context, [&] { return pair.threads->metrics().workers == 0; }); };
  CHECK(closed());
  CHECK_THROWS_AS(run(context, pair.processes->submit(twice, 1)), ExecutorNotRunningError);
}

TEST_CASE("what a task of a hybrid throws and what it tells of its progress reach its caller", "[hybrid]") {
  asio::io_context context;
  Pair pair(context);
  CHECK_THROWS_AS(run(context, pair.hybrid->submit(throw_out_of_range)), std::out_of_range);
  std::uint64_t last = 0;
  auto options = TaskOptions().on_progress([&](const auto& progress) { last = progress.done; });
  CHECK(run(context, pair.hybrid->submit(
                         std::move(options), +[] {
                           bulkhead::this_task::report_progress(7, 9);
                           return 1;
                         })) == 1);
  CHECK(last == 7);
}

TEST_CASE("a crash in a hybrid's process fails the task with the crash", "[hybrid]") {
  asio::io_context context;
  Pair pair(context);
  CHECK_THROWS_AS(run(context, pair.hybrid->submit(+[] { std::abort(); })), WorkerCrashedError);
}

TEST_CASE("a task that had not begun when its worker crashed runs in a hybrid's next executor if that is asked for",
          "[hybrid]") {
  asio::io_context context;
  CrashingPair pair(context, Started::never, true);
  CHECK(run(context, pair.hybrid->submit(where)) == "next");
  const auto all = pair.hybrid->all_metrics();
  CHECK(all[0].submitted == 1);
  CHECK(all[0].completed == 1);
  CHECK(all[1].failed == 1);
  CHECK(all[2].completed == 1);
  for (const auto& metrics : all) CHECK(adds_up(metrics));
}

TEST_CASE("a crash before a task had begun fails the task of a hybrid that is not asked to go on", "[hybrid]") {
  asio::io_context context;
  CrashingPair pair(context, Started::never, false);
  Outcome<std::string> outcome;
  pair.hybrid->async_submit(bulkhead::call(where), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  const auto crash = error_as<WorkerCrashedError>(outcome.error);
  REQUIRE(crash);
  CHECK(crash->started() == Started::never);
  const auto all = pair.hybrid->all_metrics();
  CHECK(all[0].failed == 1);
  CHECK(all[2].submitted == 0);
  for (const auto& metrics : all) CHECK(adds_up(metrics));
}

TEST_CASE("a task that may have begun when its worker crashed never runs in a hybrid's next executor", "[hybrid]") {
  asio::io_context context;
  const auto started = GENERATE(Started::maybe, Started::finished);
  const bool on_crash_before_start = GENERATE(true, false);
  CAPTURE(started, on_crash_before_start);
  CrashingPair pair(context, started, on_crash_before_start);
  Outcome<std::string> outcome;
  pair.hybrid->async_submit(bulkhead::call(where), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  const auto crash = error_as<WorkerCrashedError>(outcome.error);
  REQUIRE(crash);
  CHECK(crash->started() == started);
  CHECK(pair.next->metrics().submitted == 0);
  CHECK(pair.hybrid->metrics().failed == 1);
  CHECK(adds_up(*pair.hybrid));
}

TEST_CASE("a task that has begun stays where it is, even if the crash of its worker is said to have been before",
          "[hybrid]") {
  asio::io_context context;
  CrashingPair pair(context, Started::never, true, true);
  CHECK_THROWS_AS(run(context, pair.hybrid->submit(where)), WorkerCrashedError);
  CHECK(pair.next->metrics().submitted == 0);
}

namespace {

// Fails each task with this error: as if it refused it.
class Refusing final : public BaseExecutor {
 public:
  Refusing(asio::io_context& context, std::string name, std::exception_ptr error)
      : BaseExecutor(context.get_executor(), bulkhead::test::named(std::move(name))), error_(std::move(error)) {}
  ~Refusing() override { close(); }

 protected:
  void execute(Task task) override { task.fail(error_); }

 private:
  const std::exception_ptr error_;
};

ErrorContext by(const std::string& executor) {
  ErrorContext context;
  context.executor = executor;
  return context;
}
template <class E, class... Args>
std::shared_ptr<BaseExecutor> refusing(asio::io_context& context, const std::string& name, Args... arguments) {
  return std::make_shared<Refusing>(context, name, std::make_exception_ptr(E(arguments..., by(name))));
}
std::shared_ptr<BaseExecutor> full(asio::io_context& context, const std::string& name, std::size_t limit) {
  return refusing<ExecutorOverloadError>(context, name, limit);
}
std::shared_ptr<BaseExecutor> closed(asio::io_context& context, const std::string& name) {
  return refusing<ExecutorNotRunningError>(context, name);
}
std::shared_ptr<BaseExecutor> broken(asio::io_context& context, const std::string& name, const std::string& reason) {
  return refusing<WorkerStartError>(context, name, reason, 3U);
}

using Members = std::vector<std::shared_ptr<BaseExecutor>>;

// What a task fails with in a hybrid of these.
std::exception_ptr failure_in(asio::io_context& context, Members members, bool on_not_running = true) {
  HybridExecutorOptions options;
  options.on_not_running = on_not_running;
  HybridExecutor hybrid(context.get_executor(), std::move(members), options);
  const auto error = failure(context, hybrid.submit(twice, 1));
  const auto metrics = hybrid.metrics();
  CHECK(metrics.submitted == 1);
  CHECK(metrics.failed == 1);
  CHECK(adds_up(metrics));
  return error;
}

void check_tells_of_all(const std::exception& error) {
  for (const char* part :
       {"none of the executors that were asked took it", "processes", "remote", "threads", "no memory"}) {
    CHECK_THAT(error.what(), ContainsSubstring(part));
  }
}

}  // namespace

TEST_CASE("when all executors of a hybrid refuse a task, its error is of the last one's kind and tells of each",
          "[hybrid]") {
  asio::io_context context;
  SECTION("the last one is full") {
    const auto error = error_as<ExecutorOverloadError>(failure_in(
        context, {closed(context, "processes"), broken(context, "remote", "no memory"), full(context, "threads", 7)}));
    REQUIRE(error);
    CHECK(error->limit() == 7);
    CHECK(error->context().executor == "threads");
    check_tells_of_all(*error);
  }
  SECTION("the last one is not running") {
    const auto error = error_as<ExecutorNotRunningError>(failure_in(
        context, {full(context, "processes", 7), broken(context, "remote", "no memory"), closed(context, "threads")}));
    REQUIRE(error);
    CHECK(error->context().executor == "threads");
    check_tells_of_all(*error);
  }
  SECTION("the last one starts no worker") {
    const auto error = error_as<WorkerStartError>(failure_in(
        context, {full(context, "processes", 7), closed(context, "remote"), broken(context, "threads", "no memory")}));
    REQUIRE(error);
    CHECK(error->failures_in_a_row() == 3);
    CHECK(error->context().executor == "threads");
    check_tells_of_all(*error);
  }
}

TEST_CASE("when only one executor of a hybrid is asked, its refusal is what the task fails with", "[hybrid]") {
  asio::io_context context;
  const auto own = std::make_exception_ptr(ExecutorNotRunningError(by("alone")));
  const auto alone = std::make_shared<Refusing>(context, "alone", own);
  CHECK(failure_in(context, {alone}) == own);
  // Others are not asked, for it is not to go on.
  CHECK(failure_in(context, {alone, full(context, "threads", 7)}, false) == own);
}

TEST_CASE("a hybrid's shutdown tells of each executor that fails to shut down, and shuts the others down", "[hybrid]") {
  asio::io_context context;
  const auto wedged = [&](const std::string& name) { return std::make_shared<Wedged>(context.get_executor(), name); };
  const auto good = std::make_shared<InlineExecutor>(context.get_executor());
  const bool cancel_pending = GENERATE(false, true);
  CAPTURE(cancel_pending);
  bulkhead::ShutdownOptions options;
  options.cancel_pending = cancel_pending;
  const auto require_failures = [&](const std::vector<std::string>& names) {
    Members members;
    for (const std::string& name : names) members.push_back(wedged(name));
    members.push_back(good);
    HybridExecutor hybrid(context.get_executor(), std::move(members));
    // Whoever asks later is told, too.
    for (int i = 0; i < 2; ++i) {
      const auto error = error_as<ShutdownFailedError>(failure(context, hybrid.shutdown(options)));
      REQUIRE(error);
      std::vector<std::string> told;
      for (const auto& failed : error->failures()) {
        told.push_back(failed.executor);
        CHECK(message(failed.error) == "it is stuck");
        CHECK_THAT(error->what(), ContainsSubstring(failed.executor));
      }
      std::sort(told.begin(), told.end());
      CHECK(told == names);
    }
    CHECK(holds<ExecutorNotRunningError>(failure(context, good->submit(twice, 1))));
  };
  SECTION("of several names") { require_failures({"first", "second"}); }
  SECTION("of one name") { require_failures({"twin", "twin"}); }
}

TEST_CASE("when one executor of a hybrid fails to shut down, the hybrid's shutdown fails with the same error",
          "[hybrid]") {
  asio::io_context context;
  const auto good = std::make_shared<InlineExecutor>(context.get_executor());
  HybridExecutor hybrid(context.get_executor(), {std::make_shared<Wedged>(context.get_executor(), "wedged"), good});
  const auto error = failure(context, hybrid.shutdown());
  CHECK(holds<std::runtime_error>(error));
  CHECK_FALSE(holds<ShutdownFailedError>(error));
  CHECK(message(error) == "it is stuck");
  CHECK(holds<ExecutorNotRunningError>(failure(context, good->submit(twice, 1))));
}

// A hybrid whose first executor is full and lets others wait.
struct FullFirst {
  explicit FullFirst(asio::io_context& io_context) : context(io_context) {
    reset_board();
    ThreadExecutorOptions one = threads(1);
    one.max_pending = 1;
    one.overload = bulkhead::OverloadPolicy::wait;
    const auto first = std::make_shared<ThreadExecutor>(context.get_executor(), one);
    const auto next = std::make_shared<InlineExecutor>(context.get_executor());
    first->async_submit(bulkhead::call(wait_at_gate, 1), occupant.handler());
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
    hybrid = std::make_unique<HybridExecutor>(context.get_executor(),
                                              std::vector<std::shared_ptr<bulkhead::BaseExecutor>>{first, next});
  }
  void make_room() {
    board.gate.open = 1;
    REQUIRE(run_until(context, [&] { return occupant.calls == 1; }));
  }

  asio::io_context& context;
  Outcome<> occupant;
  std::unique_ptr<HybridExecutor> hybrid;
};

TEST_CASE("a task whose total_timeout passes while it waits for admission to a hybrid's first executor never runs",
          "[hybrid]") {
  asio::io_context context;
  FullFirst full(context);
  const auto late = failure(context, full.hybrid->submit(TaskOptions().total_timeout(20ms), count, 1));
  const auto timeout = error_as<TaskTimeoutError>(late);
  CAPTURE(message(late));
  CHECK(timeout);
  if (timeout) {
    CHECK(timeout->which() == TaskTimeoutError::Which::total);
    CHECK(timeout->limit() == 20ms);
  }
  CHECK(board.begun == 0);
  CHECK(full.hybrid->metrics().timed_out == 1);
  CHECK(adds_up(*full.hybrid));
  full.make_room();
  CHECK(run(context, full.hybrid->submit(twice, 1)) == 2);
}

TEST_CASE("the queue_timeout of a hybrid's task is one for all of its executors", "[hybrid]") {
  asio::io_context context;
  FullFirst full(context);
  const auto late = failure(context, full.hybrid->submit(TaskOptions().queue_timeout(20ms), count, 1));
  CHECK(holds<bulkhead::ExecutorOverloadError>(late));
  CHECK_THAT(message(late), ContainsSubstring("queue_timeout"));
  CHECK(board.begun == 0);
  full.make_room();
}

TEST_CASE("a task whose queue_timeout has passed when a hybrid's first executor refuses it at once has timed out",
          "[hybrid]") {
  reset_board();
  asio::io_context context;
  ThreadExecutorOptions one = threads(1);
  one.max_pending = 1;
  const auto first = std::make_shared<ThreadExecutor>(context.get_executor(), one);
  const auto next = std::make_shared<InlineExecutor>(context.get_executor());
  Outcome<> occupant;
  first->async_submit(bulkhead::call(wait_at_gate, 1), occupant.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  HybridExecutor hybrid(context.get_executor(), std::vector<std::shared_ptr<bulkhead::BaseExecutor>>{first, next});
  const auto late = failure(context, hybrid.submit(TaskOptions().queue_timeout(1ns), count, 1));
  CAPTURE(message(late));
  const auto timeout = error_as<TaskTimeoutError>(late);
  CHECK(timeout);
  if (timeout) CHECK(timeout->which() == TaskTimeoutError::Which::queue);
  CHECK_THAT(message(late), ContainsSubstring("max_pending"));
  CHECK(board.begun == 0);
  CHECK(hybrid.metrics().timed_out == 1);
  CHECK(adds_up(hybrid));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return occupant.calls == 1; }));
}

TEST_CASE("executors that only a hybrid owns are destroyed with it, while a function still runs on a thread",
          "[hybrid]") {
  reset_board();
  asio::io_context context;
  auto member = std::make_shared<ThreadExecutor>(context.get_executor(), threads(1));
  const std::weak_ptr<ThreadExecutor> seen = member;
  auto hybrid = std::make_unique<HybridExecutor>(
      context.get_executor(), std::vector<std::shared_ptr<bulkhead::BaseExecutor>>{std::move(member)});
  Outcome<> outcome;
  hybrid->async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  hybrid.reset();
  CHECK(seen.expired());
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
}

// ---------------------------------------------------------------------------------------------------------------------
// Inline, and the unified Executor.

TEST_CASE("an inline executor runs a task on the thread that submits it, before submit returns", "[inline]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  std::thread::id where_it_ran;
  Outcome<void> outcome;
  executor.async_submit(bulkhead::call([&] { where_it_ran = std::this_thread::get_id(); }), outcome.handler());
  CHECK(where_it_ran == std::this_thread::get_id());
  CHECK(outcome.calls == 0);
  settle(context);
  CHECK(outcome.calls == 1);
}

TEST_CASE("the unified executor must be started, can be started again, and does both twice without harm",
          "[executor]") {
  asio::io_context context;
  bulkhead::ExecutorOptions options;
  options.processes.max_workers = 1;
  Executor executor(context.get_executor(), options);
  CHECK_FALSE(executor.is_running());
  for (const bool blocking : {true, false}) {
    try {
      if (blocking) {
        run(context, executor.run_blocking(twice, 1));
      } else {
        run(context, executor.run_process(twice, 1));
      }
      FAIL("it ran");
    } catch (const ExecutorNotRunningError& error) {
      CHECK_THAT(error.what(), ContainsSubstring("not started. Call startup() first"));
    }
  }
  run(context, executor.shutdown());
  for (int round = 0; round < 2; ++round) {
    run(context, executor.startup());
    run(context, executor.startup());
    CHECK(executor.is_running());
    CHECK(run(context, executor.run_blocking(twice, 21)) == 42);
    CHECK(run(context, executor.run_process(twice, 21)) == 42);
    CHECK_THROWS_AS(run(context, executor.run_process(throw_out_of_range)), std::out_of_range);
    CHECK(executor.metrics().size() == 2);
    run(context, executor.shutdown());
    run(context, executor.shutdown());
    CHECK_FALSE(executor.is_running());
  }
}

TEST_CASE("get_executor gives one executor, whoever asks and however many at once", "[executor]") {
  std::mutex mutex;
  std::set<Executor*> seen;
  std::vector<std::thread> askers;
  for (int i = 0; i < 8; ++i) {
    askers.emplace_back([&] {
      Executor& given = bulkhead::get_executor();
      const std::lock_guard lock(mutex);
      seen.insert(&given);
    });
  }
  for (auto& asker : askers) asker.join();
  CHECK(seen.size() == 1);
  CHECK_FALSE(bulkhead::get_executor().is_running());
}
