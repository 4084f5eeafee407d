// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/this_task.hpp>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <sys/mman.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// What every executor must keep, as tests: for those who write one of their own.
///
///     for (const auto& part : bulkhead::testing::executor_contract(subject)) part.run();  // throws ContractViolation
///
/// They need no test framework; each part makes its own event loop and executor and has a deadline. Functions are run
/// that use a page of shared memory, so that executors in other processes can be tested, too: include this header in a
/// program that starts the fork server in `main` or later.
namespace bulkhead::testing {

/// An executor does not keep the contract. `what()` says how.
class ContractViolation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What is tested.
struct ContractSubject {
  /// Makes an executor with these options, on this Asio executor.
  std::function<std::shared_ptr<BaseExecutor>(asio::any_io_executor, CommonOptions)> make;
  /// How many tasks it runs at once; further ones it queues. 0: it runs each task inside `submit`, so that none ever
  /// waits and none can be cancelled; what needs that is left out.
  std::size_t concurrency = 1;
};

/// One part of the contract.
struct ContractCase {
  std::string name;
  std::function<void()> run;
};

namespace contract {

inline constexpr std::chrono::seconds kDeadline{60};

// ---------------------------------------------------------------------------------------------------------------------
// What tasks do, and the page that they and the test share.

struct Board {
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
  std::atomic<int> open{0};  // the gate
  std::atomic<int> order_size{0};
  std::array<std::atomic<int>, 64> order{};
};

inline Board& board() {
  static Board& shared = [&]() -> Board& {
    void* page = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) throw std::bad_alloc();
    return *new (page) Board;
  }();
  return shared;
}
// Made with the static objects, before any process is forked.
inline Board* const board_made_early = &board();

inline void reset_board() {
  board().begun = 0;
  board().ended = 0;
  board().open = 0;
  board().order_size = 0;
}

// Looks five times a millisecond, so that a task which waits uses no CPU to speak of; and ends by itself.
template <class Condition>
void wait_until(Condition condition) {
  const timespec pause{0, 200'000};
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!condition() && std::chrono::steady_clock::now() < end) ::nanosleep(&pause, nullptr);
}

inline int twice(int value) { return 2 * value; }
inline void count() { ++board().ended; }
inline int fail(int value) { throw std::out_of_range("there is no " + std::to_string(value)); }
inline int wait_at_gate(int value) {
  ++board().begun;
  wait_until([] { return board().open != 0; });
  ++board().ended;
  return value;
}
inline int run_until_stopped(int value) {
  ++board().begun;
  wait_until([] { return this_task::stop_requested(); });
  ++board().ended;
  return value;
}
inline int stop_when_asked(int value) {
  ++board().begun;
  wait_until([] { return this_task::stop_requested(); });
  ++board().ended;
  this_task::throw_if_stop_requested();
  return value;
}
inline int note_order(int value) {
  board().order[static_cast<std::size_t>(board().order_size++)] = value;
  return value;
}
inline unsigned succeed_at_attempt(unsigned number) {
  ++board().begun;
  if (this_task::attempt() < number) throw std::runtime_error("attempt " + std::to_string(this_task::attempt()));
  return this_task::attempt();
}
inline int report(int steps) {
  for (int i = 1; i <= steps; ++i) {
    this_task::report_progress(static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(steps), "step");
  }
  return steps;
}
inline std::string own_name() { return this_task::name() + "/" + this_task::executor_name(); }

// ---------------------------------------------------------------------------------------------------------------------
// The tests' tools.

inline void require(bool holds, const std::string& what) {
  if (!holds) throw ContractViolation(what);
}

inline std::string say(const std::exception_ptr& error) {
  if (!error) return "no error";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& caught) {
    return caught.what();
  } catch (...) {
    return "something that is no std::exception";
  }
}

template <class E>
bool is(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const E&) {
    return true;
  } catch (...) {
    return false;
  }
  return false;
}

template <class E>
void require_error(const std::exception_ptr& error, const std::string& what) {
  require(is<E>(error), what + "; it gave: " + say(error));
}

// One caller: how often it was told, and what.
template <class R>
struct Caller {
  int calls = 0;
  std::exception_ptr error;
  std::optional<R> value;

  auto handler() {
    return [this](std::exception_ptr thrown, R result) {
      ++calls;
      error = std::move(thrown);
      value.emplace(std::move(result));
    };
  }
};

class Bench {
 public:
  Bench(const ContractSubject& subject, CommonOptions options = {}) : subject_(subject) {
    reset_board();
    options.name = "contract";
    executor_ = subject_.make(context_.get_executor(), options);
    require(executor_ != nullptr, "the factory gives no executor");
  }
  ~Bench() {
    board().open = 1;
    executor_.reset();
    context_.restart();
    context_.poll();
  }

  asio::io_context& context() { return context_; }
  BaseExecutor& executor() { return *executor_; }
  void destroy_executor() { executor_.reset(); }
  std::size_t concurrency() const { return subject_.concurrency; }

  void until(const std::function<bool()>& condition, const std::string& what) {
    const auto end = std::chrono::steady_clock::now() + kDeadline;
    while (!condition()) {
      require(std::chrono::steady_clock::now() < end, "it never came that " + what);
      context_.restart();
      const timespec pause{0, 200'000};
      if (context_.run_for(std::chrono::milliseconds(1)) == 0) ::nanosleep(&pause, nullptr);
    }
  }

  template <class T>
  T await(asio::awaitable<T> coroutine, const std::string& what) {
    bool over = false;
    std::exception_ptr error;
    if constexpr (std::is_void_v<T>) {
      asio::co_spawn(context_, std::move(coroutine), [&](std::exception_ptr thrown) {
        error = thrown;
        over = true;
      });
      until([&] { return over; }, what);
      if (error) std::rethrow_exception(error);
    } else {
      std::optional<T> result;
      asio::co_spawn(context_, std::move(coroutine), [&](std::exception_ptr thrown, T value) {
        error = thrown;
        if (!thrown) result.emplace(std::move(value));
        over = true;
      });
      until([&] { return over; }, what);
      if (error) std::rethrow_exception(error);
      return std::move(*result);
    }
  }

  // Tasks that wait at the gate, as many as run at once; all of them have begun.
  std::deque<Caller<int>>& occupy() {
    const int before = board().begun;
    for (std::size_t i = 0; i < concurrency(); ++i) {
      occupants_.emplace_back();
      executor_->async_submit(call(wait_at_gate, static_cast<int>(i)), occupants_.back().handler());
    }
    const int all = before + static_cast<int>(concurrency());
    until([all] { return board().begun == all; }, "as many tasks run at once as the subject says");
    return occupants_;
  }
  // Of the tasks that wait at the gate.
  bool none_is_over() const {
    return std::all_of(occupants_.begin(), occupants_.end(),
                       [](const Caller<int>& caller) { return caller.calls == 0; });
  }
  void open_gate() {
    board().open = 1;
    for (Caller<int>& caller : occupants_) {
      until([&] { return caller.calls > 0; }, "a task that waited at the gate was over");
      require(!caller.error, "a task that waited at the gate failed: " + say(caller.error));
    }
    occupants_.clear();
    require_sum();
  }

  void require_sum() {
    const Metrics m = executor_->metrics();
    require(m.submitted == m.completed + m.failed + m.cancelled + m.timed_out + m.pending + m.running,
            "the metrics do not add up: " + to_string(m));
  }
  void require_nothing_left() {
    until([&] { return executor_->metrics().pending + executor_->metrics().running == 0; }, "no task was left");
    require_sum();
  }

 private:
  ContractSubject subject_;
  asio::io_context context_;
  std::shared_ptr<BaseExecutor> executor_;
  std::deque<Caller<int>> occupants_;
};

inline CommonOptions limited(std::size_t max_pending, OverloadPolicy overload = OverloadPolicy::reject) {
  CommonOptions options;
  options.max_pending = max_pending;
  options.overload = overload;
  return options;
}

// Events as they came.
class Listening {
 public:
  explicit Listening(BaseExecutor& executor, EventMask mask = kTaskEvents)
      : subscription_(executor.subscribe([this](const Event& event) { events_.push_back(event); }, mask)) {}

  std::vector<EventKind> kinds_of(std::uint64_t task) const {
    std::vector<EventKind> kinds;
    for (const Event& event : events_) {
      if (event.task_id == task) kinds.push_back(event.kind);
    }
    return kinds;
  }
  const std::vector<Event>& events() const { return events_; }
  std::size_t count(EventKind kind) const {
    return static_cast<std::size_t>(
        std::count_if(events_.begin(), events_.end(), [&](const Event& event) { return event.kind == kind; }));
  }
  std::size_t terminal() const {
    return static_cast<std::size_t>(std::count_if(
        events_.begin(), events_.end(), [](const Event& event) { return kTerminalEvents.contains(event.kind); }));
  }

 private:
  std::vector<Event> events_;
  Subscription subscription_;
};

// ---------------------------------------------------------------------------------------------------------------------
// The parts.

inline void outcomes(const ContractSubject& subject) {
  Bench bench(subject);
  require(bench.await(bench.executor().submit(twice, 21), "a task was over") == 42, "a result is wrong");
  bench.await(bench.executor().submit(count), "a task that returns nothing was over");
  require(board().ended == 1, "a function that returns nothing did not run once");
  try {
    bench.await(bench.executor().submit(fail, 7), "a task that throws was over");
    throw ContractViolation("what a function threw did not reach its caller");
  } catch (const std::out_of_range& error) {
    require(std::string(error.what()) == "there is no 7", std::string("the error's text is wrong: ") + error.what());
  }
  bool called = false;
  bench.executor().async_submit(call(twice, 1), [&](std::exception_ptr, int) { called = true; });
  require(!called, "the handler was called inside the initiating function");
  bench.until([&] { return called; }, "the handler was called");
  const Metrics metrics = bench.executor().metrics();
  require(metrics.submitted == 4 && metrics.completed == 3 && metrics.failed == 1,
          "the metrics count wrongly: " + to_string(metrics));
}

inline void thousand_tasks(const ContractSubject& subject) {
  Bench bench(subject, limited(1000));
  std::deque<Caller<int>> callers;
  for (int i = 0; i < 1000; ++i) {
    callers.emplace_back();
    bench.executor().async_submit(call(twice, i), callers.back().handler());
  }
  bench.until([&] { return std::all_of(callers.begin(), callers.end(), [](const auto& c) { return c.calls > 0; }); },
              "a thousand tasks were over");
  for (int i = 0; i < 1000; ++i) {
    const auto& caller = callers[static_cast<std::size_t>(i)];
    require(caller.calls == 1 && !caller.error && caller.value == 2 * i, "one of a thousand results is wrong");
  }
  bench.require_nothing_left();
}

inline void context_of_task(const ContractSubject& subject) {
  Bench bench(subject);
  const std::string name =
      bench.await(bench.executor().submit(TaskOptions().name("who am I"), own_name), "a task was over");
  require(name.starts_with("who am I/"), "this_task does not know the task's name: " + name);
}

inline void overload_rejects(const ContractSubject& subject) {
  Bench bench(subject, limited(subject.concurrency + 1));
  bench.occupy();
  Caller<int> queued;
  Caller<int> refused;
  bench.executor().async_submit(call(twice, 1), queued.handler());
  bench.executor().async_submit(call(twice, 2), refused.handler());
  bench.until([&] { return refused.calls > 0; }, "a task beyond max_pending was refused");
  require_error<ExecutorOverloadError>(refused.error, "a task beyond max_pending must fail with ExecutorOverloadError");
  require(queued.calls == 0, "a queued task ended while all places were taken");
  require(bench.executor().metrics().rejected == 1, "a refused task must count as rejected");
  bench.open_gate();
  bench.until([&] { return queued.calls > 0; }, "the queued task was over");
  require(queued.value == 2 && !queued.error, "the queued task failed: " + say(queued.error));
  require(bench.await(bench.executor().submit(twice, 3), "a later task was over") == 6, "there is no room afterwards");
}

inline void overload_waits(const ContractSubject& subject) {
  Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
  bench.occupy();
  std::deque<Caller<int>> waiting(3);
  for (int i = 0; i < 3; ++i) {
    bench.executor().async_submit(call(note_order, i), waiting[static_cast<std::size_t>(i)].handler());
  }
  require(bench.executor().metrics().waiting == 3, "tasks beyond max_pending must wait for admission");
  bench.open_gate();
  bench.until([&] { return std::all_of(waiting.begin(), waiting.end(), [](const auto& c) { return c.calls > 0; }); },
              "all that waited for admission ran");
  for (const auto& caller : waiting) require(!caller.error, "one that waited failed: " + say(caller.error));
  if (subject.concurrency == 1) {
    for (int i = 0; i < 3; ++i) {
      require(board().order[static_cast<std::size_t>(i)] == i, "who waited first was not admitted first");
    }
  }
}

inline void priorities(const ContractSubject& subject) {
  Bench bench(subject);
  bench.occupy();
  std::deque<Caller<int>> callers(3);
  const std::array<int, 3> given{5, 0, -5};
  for (std::size_t i = 0; i < given.size(); ++i) {
    bench.executor().async_submit(TaskOptions().priority(given[i]), call(note_order, given[i]), callers[i].handler());
  }
  bench.open_gate();
  bench.until([&] { return std::all_of(callers.begin(), callers.end(), [](const auto& c) { return c.calls > 0; }); },
              "all tasks with priorities ran");
  if (subject.concurrency == 1) {
    require(board().order[0] == -5 && board().order[1] == 0 && board().order[2] == 5,
            "the lower priority number must run first");
  }
}

inline void cancel_queued(const ContractSubject& subject) {
  for (const auto type :
       {asio::cancellation_type::total, asio::cancellation_type::partial, asio::cancellation_type::terminal}) {
    Bench bench(subject);
    bench.occupy();
    Caller<int> caller;
    asio::cancellation_signal signal;
    bench.executor().async_submit(call(note_order, 1), asio::bind_cancellation_slot(signal.slot(), caller.handler()));
    signal.emit(type);
    bench.until([&] { return caller.calls > 0; }, "a queued task that was cancelled was over");
    require_error<TaskCancelledError>(caller.error,
                                      "a queued task that is cancelled must fail with TaskCancelledError");
    bench.open_gate();
    require(bench.await(bench.executor().submit(twice, 4), "a later task was over") == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although it was cancelled before");
    signal.emit(type);  // harmless
    require(bench.executor().metrics().cancelled == 1, "a cancelled task must count as cancelled");
    require(caller.calls == 1, "a caller was told twice");
  }
}

inline void cancel_running(const ContractSubject& subject) {
  {
    Bench bench(subject);
    Caller<int> caller;
    asio::cancellation_signal signal;
    bench.executor().async_submit(call(stop_when_asked, 1),
                                  asio::bind_cancellation_slot(signal.slot(), caller.handler()));
    bench.until([] { return board().begun == 1; }, "a task began");
    signal.emit(asio::cancellation_type::terminal);
    bench.until([&] { return caller.calls > 0; }, "a running task that was cancelled was over");
    require_error<TaskCancelledError>(caller.error,
                                      "a running task that is cancelled must fail with TaskCancelledError");
    bench.require_nothing_left();
    require(caller.calls == 1, "a caller was told twice");
  }
  {
    Bench bench(subject);
    Caller<int> caller;
    asio::cancellation_signal signal;
    bench.executor().async_submit(call(run_until_stopped, 5),
                                  asio::bind_cancellation_slot(signal.slot(), caller.handler()));
    bench.until([] { return board().begun == 1; }, "a task began");
    signal.emit(asio::cancellation_type::total);
    require(caller.calls == 0, "total must not end a running task");
    signal.emit(asio::cancellation_type::partial);
    bench.until([&] { return caller.calls > 0; }, "a task that was asked to stop was over");
    require(!caller.error && caller.value == 5,
            "what a task returns that was asked to stop is its result; it gave: " + say(caller.error));
  }
}

inline void time_limits(const ContractSubject& subject) {
  {
    Bench bench(subject);
    Caller<int> caller;
    bench.executor().async_submit(TaskOptions().timeout(std::chrono::milliseconds(20)), call(run_until_stopped, 1),
                                  caller.handler());
    bench.until([&] { return caller.calls > 0; }, "a task with a timeout was over");
    require_error<TaskTimeoutError>(caller.error, "a task that runs too long must fail with TaskTimeoutError");
    require(bench.executor().metrics().timed_out == 1, "a task that ran too long must count as timed out");
    require(bench.await(bench.executor().submit(twice, 4), "a later task was over") == 8, "a result is wrong");
  }
  {
    Bench bench(subject);
    bench.occupy();
    Caller<int> caller;
    bench.executor().async_submit(TaskOptions().queue_timeout(std::chrono::milliseconds(20)), call(note_order, 1),
                                  caller.handler());
    bench.until([&] { return caller.calls > 0; }, "a task with a queue_timeout was over");
    require_error<TaskTimeoutError>(caller.error, "a task that waits too long must fail with TaskTimeoutError");
    bench.open_gate();
    require(bench.await(bench.executor().submit(twice, 4), "a later task was over") == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its queue_timeout had passed");
  }
}

inline void retries(const ContractSubject& subject) {
  Bench bench(subject);
  const auto policy = [] { return TaskOptions().retry(RetryPolicy(3).delay(std::chrono::milliseconds(1))); };
  require(bench.await(bench.executor().submit(policy(), succeed_at_attempt, 3U), "a retried task was over") == 3,
          "the third run must see that it is the third");
  require(board().begun == 3, "a task that may run three times did not run three times");
  require(bench.executor().metrics().retried == 2, "two further runs must count as retried");
  try {
    bench.await(bench.executor().submit(policy(), succeed_at_attempt, 9U), "a retried task was over");
    throw ContractViolation("a task that fails each time succeeded");
  } catch (const RetryError& error) {
    require(error.attempts().size() == 3, "the error must have all runs");
  }
}

inline void shutdown_waits(const ContractSubject& subject) {
  Bench bench(subject);
  std::deque<Caller<int>> callers(10);
  for (int i = 0; i < 10; ++i) {
    bench.executor().async_submit(call(twice, i), callers[static_cast<std::size_t>(i)].handler());
  }
  int over = 0;
  for (int i = 0; i < 2; ++i) {
    asio::co_spawn(bench.context(), bench.executor().shutdown(), [&](std::exception_ptr error) {
      require(!error, "shutdown failed: " + say(error));
      ++over;
    });
  }
  bench.until([&] { return over == 2; }, "two shutdowns at once were over");
  for (const auto& caller : callers) {
    require(caller.calls == 1 && !caller.error, "shutdown must wait for the tasks: " + say(caller.error));
  }
  try {
    bench.await(bench.executor().submit(twice, 1), "a late task was refused");
    throw ContractViolation("a task was accepted after shutdown");
  } catch (const ExecutorNotRunningError&) {
    // as it must be
  }
  bench.await(bench.executor().shutdown(), "a further shutdown was over");
  Bench again(subject);
  require(again.await(again.executor().submit(twice, 5), "a task of a new executor was over") == 10,
          "a new executor of the same name must work");
}

inline void shutdown_ends(const ContractSubject& subject) {
  {
    Bench bench(subject);
    bench.occupy();
    Caller<int> queued;
    bench.executor().async_submit(call(note_order, 1), queued.handler());
    Caller<int> running;
    bool over = false;
    asio::co_spawn(bench.context(), bench.executor().shutdown({.wait = true, .timeout = {}, .cancel_pending = true}),
                   [&](std::exception_ptr) { over = true; });
    bench.until([&] { return queued.calls > 0; }, "a queued task was cancelled by shutdown");
    require_error<TaskCancelledError>(queued.error, "cancel_pending must cancel queued tasks");
    bench.open_gate();
    bench.until([&] { return over; }, "shutdown was over");
    require(board().order_size == 0, "a task ran although cancel_pending had cancelled it");
  }
  {
    Bench bench(subject);
    Caller<int> running;
    bench.executor().async_submit(call(run_until_stopped, 1), running.handler());
    bench.until([] { return board().begun == 1; }, "a task began");
    bench.await(
        bench.executor().shutdown({.wait = true, .timeout = std::chrono::milliseconds(20), .cancel_pending = false}),
        "a shutdown with a limit was over");
    bench.until([&] { return running.calls > 0; }, "the caller of a task that outlasts the shutdown was told");
    require_error<TaskCancelledError>(running.error, "a task that outlasts the shutdown must fail");
  }
  {
    Bench bench(subject);
    bench.occupy();
    bench.await(bench.executor().shutdown({.wait = false, .timeout = {}, .cancel_pending = false}),
                "a shutdown that does not wait was over");
    require(bench.none_is_over(), "a shutdown that does not wait waited");
    bench.open_gate();
  }
}

inline void destruction(const ContractSubject& subject) {
  Bench bench(subject);
  auto& running = bench.occupy();
  Caller<int> queued;
  bench.executor().async_submit(call(twice, 1), queued.handler());
  board().open = 1;  // so that threads end
  bench.destroy_executor();
  bench.context().restart();
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  const auto told = [&] {
    return queued.calls > 0 &&
           std::all_of(running.begin(), running.end(), [](const Caller<int>& c) { return c.calls > 0; });
  };
  while (!told() && std::chrono::steady_clock::now() < end) {
    bench.context().restart();
    bench.context().run_for(std::chrono::milliseconds(1));
  }
  require(told(), "a caller was not told that the executor was destroyed");
  require(queued.calls == 1, "a caller was told twice");
}

inline void events(const ContractSubject& subject) {
  Bench bench(subject);
  Listening listening(bench.executor());
  bench.await(bench.executor().submit(twice, 1), "a task was over");
  try {
    bench.await(bench.executor().submit(fail, 1), "a task was over");
  } catch (const std::out_of_range&) {
    // as it must be
  }
  bench.until([&] { return listening.terminal() == 2; }, "the ends of two tasks were told");
  using Kinds = std::vector<EventKind>;
  require(listening.kinds_of(1) == Kinds{EventKind::submitted, EventKind::started, EventKind::succeeded},
          "a task that returns must be told of as submitted, started, succeeded");
  require(listening.kinds_of(2) == Kinds{EventKind::submitted, EventKind::started, EventKind::failed},
          "a task that throws must be told of as submitted, started, failed");
  for (const Event& event : listening.events()) {
    require(event.executor == "contract" && !event.task.empty(), "an event must name its executor and task");
    if (event.kind == EventKind::failed) {
      require_error<std::out_of_range>(event.error, "the event of a failure must have the error");
    }
  }
  bench.await(bench.executor().shutdown(), "shutdown was over");
  try {
    bench.await(bench.executor().submit(twice, 1), "a late task was refused");
  } catch (const ExecutorNotRunningError&) {
    // as it must be
  }
  bench.until([&] { return listening.count(EventKind::rejected) == 1; }, "a refusal was told");
}

inline void events_of_ends(const ContractSubject& subject) {
  Bench bench(subject);
  Listening listening(bench.executor());
  bench.occupy();
  asio::cancellation_signal signal;
  Caller<int> cancelled;
  Caller<int> late;
  bench.executor().async_submit(call(twice, 1), asio::bind_cancellation_slot(signal.slot(), cancelled.handler()));
  bench.executor().async_submit(TaskOptions().queue_timeout(std::chrono::milliseconds(1)), call(twice, 2),
                                late.handler());
  signal.emit(asio::cancellation_type::terminal);
  bench.until([&] { return late.calls + cancelled.calls == 2; }, "two tasks ended without having run");
  bench.open_gate();
  bench.require_nothing_left();
  bench.until([&] { return listening.terminal() == subject.concurrency + 2; }, "the ends of all tasks were told");
  require(listening.count(EventKind::cancelled) == 1 && listening.count(EventKind::timed_out) == 1,
          "each end must be told as what it was");
  std::map<std::uint64_t, int> ends;
  for (const Event& event : listening.events()) {
    if (kTerminalEvents.contains(event.kind)) ++ends[event.task_id];
    require(ends[event.task_id] <= 1, "a task was told of as ended twice");
    require(ends[event.task_id] == 0 || kTerminalEvents.contains(event.kind), "an event came after the task's end");
  }
}

inline void progress(const ContractSubject& subject) {
  Bench bench(subject);
  std::vector<std::uint64_t> seen;
  auto options = TaskOptions().on_progress([&](const Progress& told) { seen.push_back(told.done); });
  require(bench.await(bench.executor().submit(std::move(options), report, 1000), "a task was over") == 1000,
          "a result is wrong");
  require(!seen.empty() && seen.back() == 1000, "the last progress must come before the result");
  require(std::is_sorted(seen.begin(), seen.end()), "progress must come in order");
}

inline void handles(const ContractSubject& subject) {
  Bench bench(subject);
  const auto handle = bench.executor().spawn(TaskOptions().name("double"), twice, 21);
  require(bench.await(handle.result(std::chrono::seconds(60)), "a spawned task was over") == 42, "a result is wrong");
  require(handle.status() == TaskStatus::succeeded, "a spawned task that returned must have succeeded");
  require(bench.executor().get_result<int>(handle.id()) == 42, "the store must have the result");
  require(bench.await(bench.executor().wait_for_result<int>(TaskId::parse(handle.id().to_string())),
                      "a stored result came") == 42,
          "the store must have the result");
  try {
    bench.await(bench.executor().wait_for_result<int>(TaskId::make()), "an unknown id was an error");
    throw ContractViolation("a result came of a task that there is not");
  } catch (const ResultNotFoundError&) {
    // as it must be
  }
  const auto failing = bench.executor().spawn(fail, 1);
  try {
    bench.await(failing.result(), "a spawned task was over");
    throw ContractViolation("a spawned task's error was lost");
  } catch (const std::out_of_range&) {
    require(failing.status() == TaskStatus::failed, "a spawned task that threw must have failed");
  }
}

inline void handles_of_running(const ContractSubject& subject) {
  Bench bench(subject);
  const auto running = bench.executor().spawn(stop_when_asked, 1);
  bench.until([] { return board().begun == 1; }, "a task began");
  bench.until([&] { return running.status() == TaskStatus::running; }, "a running task said so");
  try {
    bench.await(running.result(std::chrono::milliseconds(5)), "a wait with a limit was over");
    throw ContractViolation("a wait with a limit gave a result that there is not");
  } catch (const TaskTimeoutError& error) {
    require(error.which() == TaskTimeoutError::Which::wait, "the end of a wait must be told as that");
  }
  running.cancel();
  try {
    bench.await(running.result(), "a cancelled task was over");
    throw ContractViolation("a cancelled task gave a result");
  } catch (const TaskCancelledError&) {
    require(running.status() == TaskStatus::cancelled, "a cancelled task must say so");
  }
  bench.require_nothing_left();
}

inline void instances(const ContractSubject& subject) {
  if (subject.concurrency < 2) return;
  Bench bench(subject);
  const auto one = [](OverloadPolicy policy) { return TaskOptions().name("only one").max_instances(1, policy); };
  Caller<int> first;
  Caller<int> refused;
  Caller<int> waiting;
  bench.executor().async_submit(one(OverloadPolicy::reject), call(wait_at_gate, 1), first.handler());
  bench.executor().async_submit(one(OverloadPolicy::reject), call(twice, 2), refused.handler());
  bench.executor().async_submit(one(OverloadPolicy::wait), call(twice, 3), waiting.handler());
  bench.until([&] { return refused.calls > 0; }, "a second instance was refused");
  require_error<MaxInstancesError>(refused.error, "a second instance must fail with MaxInstancesError");
  bench.until([] { return board().begun == 1; }, "the first instance began");
  require(bench.await(bench.executor().submit(twice, 4), "another task was over") == 8, "a result is wrong");
  require(waiting.calls == 0, "an instance ran beside the only one that may");
  board().open = 1;
  bench.until([&] { return waiting.calls > 0 && first.calls > 0; }, "the instance that waited had its turn");
  require(waiting.value == 6, "the instance that waited failed: " + say(waiting.error));
  bench.require_nothing_left();
}

inline void by_name(const ContractSubject& subject) {
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  options.tasks->add("double", twice);
  Bench bench(subject, options);
  const int result = bench.await(bench.executor().submit("double", 4), "a task that was called by its name was over");
  require(result == 8, "a result is wrong");
  try {
    bench.await(bench.executor().submit("triple", 4), "an unknown name was an error");
    throw ContractViolation("an unknown task ran");
  } catch (const UnknownTaskError&) {
    // as it must be
  }
  try {
    bench.await(bench.executor().submit("double", 4.5), "wrong arguments were an error");
    throw ContractViolation("a task ran with arguments of a wrong type");
  } catch (const TaskSignatureError&) {
    // as it must be
  }
}

inline void timed(const ContractSubject& subject) {
  Bench bench(subject);
  const auto later = bench.executor().submit_after(std::chrono::milliseconds(5), twice, 4);
  require(later.status() == TaskStatus::queued, "a task whose time has not come must be queued");
  require(bench.await(later.result(), "a task at its time was over") == 8, "a result is wrong");
  const auto never = bench.executor().submit_after(std::chrono::hours(1), twice, 4);
  never.cancel();
  try {
    bench.await(never.result(), "a cancelled task was over");
    throw ContractViolation("a task ran whose time had not come");
  } catch (const TaskCancelledError&) {
    require(never.status() == TaskStatus::cancelled, "a cancelled task must say so");
  }
  ScheduleOptions three;
  three.first = std::chrono::nanoseconds(0);
  three.max_runs = 3;
  three.missed = MissedRuns::run_all;
  auto schedule = bench.executor().submit_every(std::chrono::milliseconds(1), three, count);
  bench.until([] { return board().ended == 3; }, "a repeated task ran three times");
  bench.until([&] { return !schedule.active(); }, "a schedule of three runs ended");
  require(schedule.runs() == 3 && schedule.failures() == 0, "a schedule counts wrongly");
}

inline void threads(const ContractSubject& subject) {
  reset_board();
  asio::io_context context;
  CommonOptions options = limited(100'000);
  options.name = "contract";
  auto executor = subject.make(context.get_executor(), options);
  constexpr int kThreads = 4;
  constexpr int kTasks = 200;
  std::atomic<int> good{0};
  std::atomic<int> told{0};
  auto work = asio::make_work_guard(context);
  std::vector<std::thread> all;
  for (int i = 0; i < 2; ++i) all.emplace_back([&] { context.run(); });
  for (int i = 0; i < kThreads; ++i) {
    all.emplace_back([&] {
      for (int n = 0; n < kTasks; ++n) {
        executor->async_submit(call(twice, n), [&, n](std::exception_ptr error, int value) {
          if (!error && value == 2 * n) ++good;
          ++told;
        });
      }
    });
  }
  wait_until([&] { return told == kThreads * kTasks; });
  work.reset();
  context.stop();
  for (std::thread& thread : all) thread.join();
  require(told == kThreads * kTasks, "a task that was submitted by one of several threads was not over");
  require(good == kThreads * kTasks, "a task that was submitted by one of several threads failed");
  const Metrics metrics = executor->metrics();
  require(metrics.completed == static_cast<std::uint64_t>(kThreads * kTasks), "the metrics count wrongly");
}

}  // namespace contract

/// The parts of the contract for this executor, in an order that goes from the simple to the rest.
inline std::vector<ContractCase> executor_contract(const ContractSubject& subject) {
  struct Part {
    const char* name;
    void (*run)(const ContractSubject&);
    bool needs_concurrency;
  };
  using namespace contract;
  static constexpr std::array kParts{
      Part{"each task has one outcome, and it is true", outcomes, false},
      Part{"a thousand tasks give a thousand results", thousand_tasks, false},
      Part{"a task knows its name", context_of_task, false},
      Part{"beyond max_pending tasks are refused", overload_rejects, true},
      Part{"beyond max_pending tasks wait for their turn", overload_waits, true},
      Part{"the lower priority number runs first", priorities, true},
      Part{"a queued task that is cancelled never runs", cancel_queued, true},
      Part{"a running task that is cancelled is asked to stop", cancel_running, true},
      Part{"time limits hold", time_limits, true},
      Part{"a task that fails is run again as its policy says", retries, false},
      Part{"shutdown waits for all, twice and at once, and nothing is accepted afterwards", shutdown_waits, false},
      Part{"shutdown cancels what waits, ends what is late, and need not wait", shutdown_ends, true},
      Part{"destruction tells every caller once", destruction, true},
      Part{"events come in order, with one end for each task", events, false},
      Part{"events tell of each end what it was", events_of_ends, true},
      Part{"progress comes in order, the last of it before the result", progress, false},
      Part{"a handle has the result, and so has the store", handles, false},
      Part{"a handle tells where its task is, and cancels it", handles_of_running, true},
      Part{"no more instances than there may be", instances, true},
      Part{"tasks are called by their names, with types that are checked", by_name, false},
      Part{"tasks run at their time, and again and again", timed, false},
      Part{"any number of threads may submit", threads, false},
  };
  std::vector<ContractCase> cases;
  for (const Part& part : kParts) {
    if (part.needs_concurrency && subject.concurrency == 0) continue;
    cases.push_back({part.name, [part, subject] { part.run(subject); }});
  }
  return cases;
}

}  // namespace bulkhead::testing
