// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/this_task.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <sys/mman.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

/// What every executor must keep, as tests: for those who write one of their own.
///
///     for (const auto& part : bulkhead::testing::executor_contract(subject)) part.run();  // throws ContractViolation
///
/// They need no test framework; each part makes its own event loop and executor and has a deadline. Functions are run
/// that use a page of shared memory, so that executors in other processes can be tested, too: include this header in a
/// program that starts the fork server in `main` or later. Run the parts one after the other, and in a program that
/// does nothing else: they share that page, and one of them measures the CPU time of the whole process.
namespace bulkhead::testing {

/// An executor does not keep the contract. `what()` says how.
class ContractViolation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What the tasks are that the executor is given.
enum class TaskForm {
  function,  ///< Plain functions.
  coroutine  ///< Functions that return `asio::awaitable<T>`, for executors that run those on the event loop.
};

/// What is tested.
struct ContractSubject {
  /// Makes an executor with these options, on this Asio executor.
  std::function<std::shared_ptr<BaseExecutor>(asio::any_io_executor, CommonOptions)> make;
  /// How many tasks it runs at once; further ones it queues. 0: it runs each task inside `submit`, so that none ever
  /// waits and none can be cancelled; what needs that is left out, and that a task has run when `submit` returns is
  /// tested instead.
  std::size_t concurrency = 1;
  /// Which kind of tasks it is given. An executor that takes both is tested once with each.
  TaskForm form = TaskForm::function;
  /// How long a part waits for something that must come before it calls that a violation. At least a second; the
  /// default is meant for slow and busy machines.
  std::chrono::seconds deadline{60};
};

/// One part of the contract.
struct ContractCase {
  std::string name;
  /// Throws `ContractViolation`.
  std::function<void()> run;
};

namespace contract {

// ---------------------------------------------------------------------------------------------------------------------
// What tasks do, and the page that they and the test share.

inline constexpr std::size_t kMostNotes = 64;

struct Board {
  std::atomic<std::int64_t> deadline_ns{0};
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
  std::atomic<int> open{0};  // the gate
  std::atomic<int> order_size{0};
  std::array<std::atomic<int>, kMostNotes> order{};
  std::atomic<int> turn{0};  // those below it have had theirs
  std::array<std::atomic<int>, kMostNotes> came{};
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

inline void reset_board(std::chrono::nanoseconds deadline) {
  board().deadline_ns = deadline.count();
  board().begun = 0;
  board().ended = 0;
  board().open = 0;
  board().order_size = 0;
  board().turn = 0;
  for (auto& flag : board().came) flag = 0;
}

// Lets everything end that waits here.
inline void let_all_go() {
  board().turn = std::numeric_limits<int>::max();
  board().open = 1;
}

inline std::chrono::steady_clock::time_point end_of_patience() {
  return std::chrono::steady_clock::now() + std::chrono::nanoseconds(board().deadline_ns);
}

inline bool gate_is_open() { return board().open != 0; }

// What tasks do in the form of functions.
namespace functions {

// Looks five times a millisecond, so that a task which waits uses no CPU to speak of; and ends by itself.
template <class Condition>
void wait_until(Condition condition) {
  const timespec pause{0, 200'000};
  const auto end = end_of_patience();
  while (!condition() && std::chrono::steady_clock::now() < end) ::nanosleep(&pause, nullptr);
}

inline int twice(int value) { return 2 * value; }
inline void count() { ++board().ended; }
inline int fail(int value) { throw std::out_of_range("there is no " + std::to_string(value)); }
inline int note_order(int value) {
  board().order.at(static_cast<std::size_t>(board().order_size++)) = value;
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

inline int wait_at_gate(int value) {
  ++board().begun;
  wait_until(gate_is_open);
  ++board().ended;
  return value;
}
inline int take_turn(int place) {
  board().came.at(static_cast<std::size_t>(place)) = 1;
  wait_until([place] { return board().turn > place; });
  return place;
}
inline int run_until_stopped(int value) {
  ++board().begun;
  wait_until(this_task::stop_requested);
  ++board().ended;
  return value;
}
inline int stop_when_asked(int value) {
  ++board().begun;
  wait_until(this_task::stop_requested);
  ++board().ended;
  this_task::throw_if_stop_requested();
  return value;
}

}  // namespace functions

// The same in the form of coroutines: of what waits for nothing by this, of the rest below.
template <auto function>
struct AsCoroutine;
template <class R, class... Args, R (*function)(Args...)>
struct AsCoroutine<function> {
  static asio::awaitable<R> run(Args... arguments) { co_return function(arguments...); }
};

namespace coroutines {

template <class Condition>
asio::awaitable<void> wait_until(Condition condition) {
  asio::steady_timer timer(co_await asio::this_coro::executor);
  const auto end = end_of_patience();
  while (!condition() && std::chrono::steady_clock::now() < end) {
    timer.expires_after(std::chrono::microseconds(200));
    co_await timer.async_wait(asio::use_awaitable);
  }
}

inline asio::awaitable<int> wait_at_gate(int value) {
  ++board().begun;
  co_await wait_until(gate_is_open);
  ++board().ended;
  co_return value;
}
inline asio::awaitable<int> take_turn(int place) {
  board().came.at(static_cast<std::size_t>(place)) = 1;
  // Named, since g++ 12 destroys a lambda with captures inside a co_await expression twice.
  const auto its_turn_is_over = [place] { return board().turn > place; };
  co_await wait_until(its_turn_is_over);
  co_return place;
}
inline asio::awaitable<int> run_until_stopped(int value) {
  ++board().begun;
  co_await wait_until(this_task::stop_requested);
  ++board().ended;
  co_return value;
}
inline asio::awaitable<int> stop_when_asked(int value) {
  ++board().begun;
  co_await wait_until(this_task::stop_requested);
  ++board().ended;
  this_task::throw_if_stop_requested();
  co_return value;
}

}  // namespace coroutines

// What a task does, in both forms.
template <class Function, class Coroutine>
class Job {
 public:
  constexpr Job(Function* function, Coroutine* coroutine) : function_(function), coroutine_(coroutine) {}

  // Gives `use` one of them.
  template <class Use>
  auto in_form(TaskForm form, Use use) const {
    return form == TaskForm::coroutine ? use(coroutine_) : use(function_);
  }

 private:
  Function* function_;
  Coroutine* coroutine_;
};
template <auto function>
inline constexpr Job kJob{function, AsCoroutine<function>::run};

inline constexpr auto twice = kJob<functions::twice>;
inline constexpr auto count = kJob<functions::count>;
inline constexpr auto fail = kJob<functions::fail>;
inline constexpr auto note_order = kJob<functions::note_order>;
inline constexpr auto succeed_at_attempt = kJob<functions::succeed_at_attempt>;
inline constexpr auto report = kJob<functions::report>;
inline constexpr auto own_name = kJob<functions::own_name>;
inline constexpr Job wait_at_gate{functions::wait_at_gate, coroutines::wait_at_gate};
inline constexpr Job take_turn{functions::take_turn, coroutines::take_turn};
inline constexpr Job run_until_stopped{functions::run_until_stopped, coroutines::run_until_stopped};
inline constexpr Job stop_when_asked{functions::stop_when_asked, coroutines::stop_when_asked};

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

// `task`: what was cancelled.
inline void require_cancelled(const std::exception_ptr& error, TaskCancelledError::Stage stage,
                              const std::string& task) {
  require_error<TaskCancelledError>(error, "when cancelled, " + task + " must fail with TaskCancelledError");
  try {
    std::rethrow_exception(error);
  } catch (const TaskCancelledError& cancelled) {
    require(cancelled.stage() == stage,
            "when cancelled, " + task + " must fail with its stage in the error; it gave: " + say(error));
  }
}

inline constexpr std::array kCancellationTypes{asio::cancellation_type::total, asio::cancellation_type::partial,
                                               asio::cancellation_type::terminal};

// One caller: how often it was told, and what. Shared with its handler, which may be called when the part that waits
// has given up.
template <class R>
struct Caller {
  int calls = 0;
  std::exception_ptr error;
  std::optional<std::conditional_t<std::is_void_v<R>, std::monostate, R>> value;
  asio::cancellation_signal signal;
};
template <class R>
using CallerPtr = std::shared_ptr<Caller<R>>;

template <class R>
auto handler_of(CallerPtr<R> caller) {
  return [caller = std::move(caller)](std::exception_ptr error, auto&&... result) {
    ++caller->calls;
    caller->error = std::move(error);
    if (!caller->error) caller->value.emplace(std::move(result)...);
  };
}

template <class R>
bool all_told(const std::vector<CallerPtr<R>>& callers) {
  return std::all_of(callers.begin(), callers.end(), [](const CallerPtr<R>& caller) { return caller->calls > 0; });
}

class Bench {
 public:
  explicit Bench(const ContractSubject& subject, CommonOptions options = {}) : subject_(subject) {
    reset_board(subject_.deadline);
    options.name = "contract";
    executor_ = subject_.make(context_.get_executor(), options);
    require(executor_ != nullptr, "the factory gives no executor");
  }
  ~Bench() {
    let_all_go();
    executor_.reset();
    context_.restart();
    context_.poll();
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  BaseExecutor& executor() { return *executor_; }
  void destroy_executor() { executor_.reset(); }
  std::size_t concurrency() const { return subject_.concurrency; }
  std::chrono::seconds deadline() const { return subject_.deadline; }

  // Submits a task, and gives who waits for it.
  template <class Function, class Coroutine, class... Args>
  auto submit(const Job<Function, Coroutine>& job, Args... arguments) {
    return submit(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto submit(TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    const auto caller = std::make_shared<Caller<std::invoke_result_t<Function, Args...>>>();
    job.in_form(subject_.form, [&](auto form) {
      executor_->async_submit(std::move(options), call(form, arguments...), handler_of(caller));
    });
    return caller;
  }
  // The same for one that can be cancelled by its caller's signal.
  template <class Function, class Coroutine, class... Args>
  auto submit_cancellable(const Job<Function, Coroutine>& job, Args... arguments) {
    return submit_cancellable(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto submit_cancellable(TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    const auto caller = std::make_shared<Caller<std::invoke_result_t<Function, Args...>>>();
    job.in_form(subject_.form, [&](auto form) {
      executor_->async_submit(std::move(options), call(form, arguments...),
                              asio::bind_cancellation_slot(caller->signal.slot(), handler_of(caller)));
    });
    return caller;
  }
  // What a task returns; throws what it fails with.
  template <class Function, class Coroutine, class... Args>
  auto run(const Job<Function, Coroutine>& job, Args... arguments) {
    return run(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto run(TaskOptions options, const Job<Function, Coroutine>& job, Args... arguments) {
    return await(job.in_form(subject_.form,
                             [&](auto form) { return executor_->submit(std::move(options), form, arguments...); }),
                 "a task was over");
  }
  template <class Function, class Coroutine, class... Args>
  auto spawn(const Job<Function, Coroutine>& job, Args... arguments) {
    return spawn(TaskOptions(), job, arguments...);
  }
  template <class Function, class Coroutine, class... Args>
  auto spawn(const TaskOptions& options, const Job<Function, Coroutine>& job, Args... arguments) {
    return job.in_form(subject_.form, [&](auto form) { return executor_->spawn(options, form, arguments...); });
  }

  void run_loop_for(std::chrono::milliseconds time) {
    const timespec pause{0, 200'000};
    context_.restart();
    if (context_.run_for(time) == 0) ::nanosleep(&pause, nullptr);
  }
  void until(const std::function<bool()>& condition, const std::string& what) {
    const auto end = end_of_patience();
    while (!condition()) {
      require(std::chrono::steady_clock::now() < end, "it never came that " + what);
      run_loop_for(std::chrono::milliseconds(1));
    }
  }
  template <class R>
  void until_told(const CallerPtr<R>& caller, const std::string& what) {
    until([&] { return caller->calls > 0; }, what);
  }
  // All the time, whether or not there is something to do.
  void run_loop_until(std::chrono::steady_clock::time_point end) {
    const auto work = asio::make_work_guard(context_);
    context_.restart();
    context_.run_until(end);
  }

  template <class T>
  CallerPtr<T> start(asio::awaitable<T> coroutine) {
    auto caller = std::make_shared<Caller<T>>();
    asio::co_spawn(context_, std::move(coroutine), handler_of(caller));
    return caller;
  }
  template <class T>
  T await(asio::awaitable<T> coroutine, const std::string& what) {
    const auto caller = start(std::move(coroutine));
    until_told(caller, what);
    if (caller->error) std::rethrow_exception(caller->error);
    if constexpr (!std::is_void_v<T>) return std::move(*caller->value);
  }

  // Tasks that wait at the gate, as many as run at once; all of them have begun.
  const std::vector<CallerPtr<int>>& occupy() {
    const int before = board().begun;
    for (std::size_t i = 0; i < concurrency(); ++i) {
      occupants_.push_back(submit(wait_at_gate, static_cast<int>(i)));
    }
    const int all = before + static_cast<int>(concurrency());
    until([all] { return board().begun == all; }, "as many tasks run at once as the subject says");
    return occupants_;
  }
  // Of the tasks that wait at the gate.
  bool none_is_over() const {
    return std::all_of(occupants_.begin(), occupants_.end(), [](const auto& caller) { return caller->calls == 0; });
  }
  void open_gate() {
    board().open = 1;
    for (const auto& caller : occupants_) {
      until_told(caller, "a task that waited at the gate was over");
      require(!caller->error, "a task that waited at the gate failed: " + say(caller->error));
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
    until(
        [&] {
          const Metrics m = executor_->metrics();
          return m.pending + m.running + m.waiting == 0;
        },
        "no task was left");
    require_sum();
  }
  // One task was cancelled, and nothing of it is left.
  void require_one_cancelled() {
    require_nothing_left();
    const Metrics m = executor_->metrics();
    require(m.cancelled == 1 && m.failed == 0 && m.rejected == 0 && m.timed_out == 0,
            "a task that was cancelled must count as cancelled, once: " + to_string(m));
  }

 private:
  ContractSubject subject_;
  asio::io_context context_;
  std::shared_ptr<BaseExecutor> executor_;
  std::vector<CallerPtr<int>> occupants_;
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
  require(bench.run(twice, 21) == 42, "a result is wrong");
  bench.run(count);
  require(board().ended == 1, "a function that returns nothing did not run once");
  try {
    bench.run(fail, 7);
    throw ContractViolation("what a function threw did not reach its caller");
  } catch (const std::out_of_range& error) {
    require(std::string(error.what()) == "there is no 7", std::string("the error's text is wrong: ") + error.what());
  }
  const auto caller = bench.submit(twice, 1);
  require(caller->calls == 0, "the handler was called inside the initiating function");
  bench.until_told(caller, "the handler was called");
  const Metrics metrics = bench.executor().metrics();
  require(metrics.submitted == 4 && metrics.completed == 3 && metrics.failed == 1,
          "the metrics count wrongly: " + to_string(metrics));
}

inline void thousand_tasks(const ContractSubject& subject) {
  Bench bench(subject, limited(1000));
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < 1000; ++i) callers.push_back(bench.submit(twice, i));
  bench.until([&] { return all_told(callers); }, "a thousand tasks were over");
  for (int i = 0; i < 1000; ++i) {
    const auto& caller = *callers[static_cast<std::size_t>(i)];
    require(caller.calls == 1 && !caller.error && caller.value == 2 * i, "one of a thousand results is wrong");
  }
  bench.require_nothing_left();
}

inline void context_of_task(const ContractSubject& subject) {
  Bench bench(subject);
  const std::string name = bench.run(TaskOptions().name("who am I"), own_name);
  require(name.starts_with("who am I/"), "this_task does not know the task's name: " + name);
}

inline void submit_does_not_wait(const ContractSubject& subject) {
  Bench bench(subject);
  // Whether a submit waits for its task is told by the gate, which is closed, and not by a clock.
  const auto require_none_over = [] {
    require(board().ended == 0, "submit returned when a task was over, not before");
  };
  std::vector<CallerPtr<int>> callers;
  for (std::size_t i = 0; i < subject.concurrency; ++i) {
    callers.push_back(bench.submit(wait_at_gate, static_cast<int>(i)));
    require_none_over();
  }
  std::array<std::chrono::steady_clock::duration, 20> times{};
  for (auto& time : times) {
    const auto begin = std::chrono::steady_clock::now();
    callers.push_back(bench.submit(twice, 1));
    time = std::chrono::steady_clock::now() - begin;
    require_none_over();
  }
  // On a busy machine some take long, whatever the executor does; the fastest do not.
  std::sort(times.begin(), times.end());
  const std::chrono::duration<double, std::milli> fast = times[4];
  require(fast < std::chrono::milliseconds(10),
          fmt::format("submit must not block, and the fifth fastest of {} took {:.1f} ms", times.size(), fast.count()));
  board().open = 1;
  bench.until([&] { return all_told(callers); }, "all tasks were over");
}

inline void runs_inside_submit(const ContractSubject& subject) {
  Bench bench(subject);
  const auto caller = bench.submit(count);
  require(board().ended == 1, "a task had not run when submit returned, although the subject's concurrency is 0");
  bench.until_told(caller, "a task was over");
  bench.require_nothing_left();
}

inline void idleness(const ContractSubject& subject) {
  constexpr std::chrono::milliseconds kWindow(200);
  const auto cpu_time = [] {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
  };
  Bench bench(subject);
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < 20; ++i) callers.push_back(bench.submit(twice, i));
  bench.until([&] { return all_told(callers); }, "all tasks were over");
  bench.require_nothing_left();
  // What is left to be tidied up after the tasks takes time once; who spins takes it in every window, and far more.
  std::chrono::nanoseconds least = kWindow;
  for (int i = 0; i < 3 && least > kWindow / 20; ++i) {
    const auto before = cpu_time();
    bench.run_loop_until(std::chrono::steady_clock::now() + kWindow);
    least = std::min<std::chrono::nanoseconds>(least, cpu_time() - before);
  }
  require(least <= kWindow / 20,
          fmt::format("an idle executor must use no CPU, and it used {} ms of it in {} ms",
                      std::chrono::duration_cast<std::chrono::milliseconds>(least).count(), kWindow.count()));
}

inline void overload_rejects(const ContractSubject& subject) {
  Bench bench(subject, limited(subject.concurrency + 1));
  bench.occupy();
  const auto queued = bench.submit(twice, 1);
  const auto refused = bench.submit(twice, 2);
  bench.until_told(refused, "a task beyond max_pending was refused");
  require_error<ExecutorOverloadError>(refused->error,
                                       "a task beyond max_pending must fail with ExecutorOverloadError");
  require(queued->calls == 0, "a queued task ended while all places were taken");
  require(bench.executor().metrics().rejected == 1, "a refused task must count as rejected");
  bench.open_gate();
  bench.until_told(queued, "the queued task was over");
  require(queued->value == 2, "the queued task failed: " + say(queued->error));
  require(bench.run(twice, 3) == 6, "there is no room afterwards");
}

inline void overload_waits(const ContractSubject& subject) {
  Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
  bench.occupy();
  std::vector<CallerPtr<int>> waiting;
  for (int i = 0; i < 3; ++i) waiting.push_back(bench.submit(note_order, i));
  require(bench.executor().metrics().waiting == 3, "tasks beyond max_pending must wait for admission");
  bench.open_gate();
  bench.until([&] { return all_told(waiting); }, "all that waited for admission ran");
  for (const auto& caller : waiting) require(!caller->error, "one that waited failed: " + say(caller->error));
  if (subject.concurrency == 1) {
    for (int i = 0; i < 3; ++i) {
      require(board().order[static_cast<std::size_t>(i)] == i, "who waited first was not admitted first");
    }
  }
}

inline void first_in_first_out(const ContractSubject& subject) {
  constexpr int kTasks = 32;
  static_assert(kTasks <= kMostNotes);
  Bench bench(subject);
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < kTasks; ++i) callers.push_back(bench.submit(take_turn, i));
  // Each task stays until its turn is over, and turns go by the order of submission. So when `turn` is on, only it and
  // those that run beside it can have begun, however slowly one of several threads or processes comes to say so.
  const int at_once = static_cast<int>(subject.concurrency);
  const auto has_come = [](int task) { return board().came[static_cast<std::size_t>(task)] != 0; };
  for (int turn = 0; turn < kTasks; ++turn) {
    const auto next_has_come = [&] {
      for (int later = turn + at_once; later < kTasks; ++later) {
        require(!has_come(later),
                fmt::format("of tasks with the same priority the one submitted first must begin first, and number {} "
                            "began when number {} was not over",
                            later + 1, turn + 1));
      }
      return has_come(turn);
    };
    bench.until(next_has_come, fmt::format("task number {} of {} began", turn + 1, kTasks));
    board().turn = turn + 1;
  }
  bench.until([&] { return all_told(callers); }, "all tasks were over");
  bench.require_nothing_left();
}

inline void priorities(const ContractSubject& subject) {
  constexpr int kRounds = 4;
  constexpr std::array kPriorities{5, 0, -5};
  const auto number = [](int priority, int round) { return 10 * priority + round; };
  Bench bench(subject);
  bench.occupy();
  std::vector<CallerPtr<int>> callers;
  for (int round = 0; round < kRounds; ++round) {
    for (const int priority : kPriorities) {
      callers.push_back(bench.submit(TaskOptions().priority(priority), note_order, number(priority, round)));
    }
  }
  bench.open_gate();
  bench.until([&] { return all_told(callers); }, "all tasks with priorities ran");
  // Who came first of several that run at once cannot be told by what they note.
  if (subject.concurrency > 1) return;
  auto noted = board().order.begin();
  for (const int priority : {-5, 0, 5}) {
    for (int round = 0; round < kRounds; ++round) {
      require(*noted++ == number(priority, round),
              "the lower priority number must run first, and of the same number the task submitted first");
    }
  }
}

inline void cancel_waiting(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
    bench.occupy();
    const auto caller = bench.submit_cancellable(note_order, 1);
    const auto next = bench.submit(note_order, 2);
    require(bench.executor().metrics().waiting == 2, "tasks beyond max_pending must wait for admission");
    caller->signal.emit(type);
    bench.until_told(caller, "a task was over that had waited for admission and was cancelled");
    require_cancelled(caller->error, TaskCancelledError::Stage::waiting, "a task that waits for admission");
    require(bench.executor().metrics().waiting == 1, "a task waits for admission that was cancelled");
    bench.open_gate();
    bench.until_told(next, "the next that waited for admission was over");
    require(next->value == 2, "the next that waited for admission failed: " + say(next->error));
    require(board().order_size == 1, "a task ran although it was cancelled before");
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
}

inline void cancel_queued(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    bench.occupy();
    const auto caller = bench.submit_cancellable(note_order, 1);
    caller->signal.emit(type);
    bench.until_told(caller, "a queued task that was cancelled was over");
    require_cancelled(caller->error, TaskCancelledError::Stage::queued, "a queued task");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although it was cancelled before");
    caller->signal.emit(type);  // harmless
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
}

inline void cancel_instance(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    const auto one = [] { return TaskOptions().max_instances(1, OverloadPolicy::wait, "only one"); };
    const auto first = bench.submit(one(), wait_at_gate, 1);
    const auto second = bench.submit_cancellable(one(), note_order, 2);
    const auto third = bench.submit(one(), note_order, 3);
    bench.until([] { return board().begun == 1; }, "the first instance began");
    second->signal.emit(type);
    bench.until_told(second, "a task was over that had waited for an instance and was cancelled");
    require_cancelled(second->error, TaskCancelledError::Stage::queued, "a task that waits for an instance");
    require(first->calls == 0 && third->calls == 0, "the cancellation of one task ended another");
    board().open = 1;
    bench.until_told(third, "the instance after the one that was cancelled had its turn");
    require(third->value == 3, "the instance after the one that was cancelled failed: " + say(third->error));
    require(board().order_size == 1, "a task ran although it was cancelled before");
    bench.require_one_cancelled();
    require(first->calls == 1 && second->calls == 1, "a caller was not told once");
  }
}

inline void cancel_running(const ContractSubject& subject) {
  {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(stop_when_asked, 1);
    bench.until([] { return board().begun == 1; }, "a task began");
    caller->signal.emit(asio::cancellation_type::terminal);
    bench.until_told(caller, "a running task that was cancelled was over");
    require_cancelled(caller->error, TaskCancelledError::Stage::running, "a running task");
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
  {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(run_until_stopped, 5);
    bench.until([] { return board().begun == 1; }, "a task began");
    caller->signal.emit(asio::cancellation_type::total);
    require(caller->calls == 0, "total must not end a running task");
    caller->signal.emit(asio::cancellation_type::partial);
    bench.until_told(caller, "a task that was asked to stop was over");
    require(caller->value == 5,
            "what a task returns that was asked to stop is its result; it gave: " + say(caller->error));
  }
}

inline void cancel_retry(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(TaskOptions().retry(RetryPolicy(3).delay(std::chrono::hours(1))),
                                                 succeed_at_attempt, 3U);
    bench.until([&] { return bench.executor().metrics().retried == 1; }, "a task that failed waited for its next run");
    require(caller->calls == 0, "a caller was told of a failure after which there is another run");
    caller->signal.emit(type);
    bench.until_told(caller, "a task was over that had waited for its next run and was cancelled");
    require_cancelled(caller->error, TaskCancelledError::Stage::queued, "a task that waits for its next run");
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().begun == 1, "a task ran again although it was cancelled before");
    bench.require_one_cancelled();
    require(caller->calls == 1, "a caller was told twice");
  }
}

inline void cancel_over(const ContractSubject& subject) {
  for (const auto type : kCancellationTypes) {
    Bench bench(subject);
    const auto caller = bench.submit_cancellable(twice, 2);
    bench.until_told(caller, "a task was over");
    caller->signal.emit(type);
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(caller->calls == 1, "a caller was told twice, of a result and of a cancellation that came later");
    require(caller->value == 4, "a task failed that was cancelled when it was over: " + say(caller->error));
    bench.require_nothing_left();
    const Metrics metrics = bench.executor().metrics();
    require(metrics.completed == 2 && metrics.cancelled == 0,
            "a task that was cancelled when it was over must count as completed: " + to_string(metrics));
  }
}

inline void time_limits(const ContractSubject& subject) {
  constexpr std::chrono::milliseconds kLimit(20);
  {
    Bench bench(subject);
    const auto caller = bench.submit(TaskOptions().timeout(kLimit), run_until_stopped, 1);
    bench.until_told(caller, "a task with a timeout was over");
    require_error<TaskTimeoutError>(caller->error, "a task that runs too long must fail with TaskTimeoutError");
    require(bench.executor().metrics().timed_out == 1, "a task that ran too long must count as timed out");
    require(bench.run(twice, 4) == 8, "a result is wrong");
  }
  {
    Bench bench(subject);
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().queue_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a task with a queue_timeout was over");
    require_error<TaskTimeoutError>(caller->error, "a task that waits too long must fail with TaskTimeoutError");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its queue_timeout had passed");
  }
  {
    Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().queue_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a task with a queue_timeout that waited for admission was over");
    require_error<ExecutorOverloadError>(
        caller->error, "a task that waits too long for admission must fail with ExecutorOverloadError");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its queue_timeout had passed");
    bench.require_nothing_left();
    const Metrics metrics = bench.executor().metrics();
    require(metrics.rejected == 1 && metrics.submitted == subject.concurrency + 1 && metrics.timed_out == 0,
            "a task that waited too long for admission must count as rejected only: " + to_string(metrics));
  }
}

inline void total_time_limit(const ContractSubject& subject) {
  constexpr std::chrono::milliseconds kLimit(20);
  const auto require_total = [kLimit](const std::exception_ptr& error, const std::string& what) {
    require_error<TaskTimeoutError>(error, what + " must fail with TaskTimeoutError when its total_timeout is over");
    try {
      std::rethrow_exception(error);
    } catch (const TaskTimeoutError& timeout) {
      require(timeout.which() == TaskTimeoutError::Which::total && timeout.limit() == kLimit,
              what + " must be told of the total_timeout, not: " + timeout.what());
    }
  };
  {
    Bench bench(subject);
    const auto caller = bench.submit(TaskOptions().total_timeout(kLimit).retry(RetryPolicy(3)), run_until_stopped, 1);
    bench.until_told(caller, "a task with a total_timeout was over");
    require_total(caller->error, "a task that runs too long");
    require(board().begun == 1, "a task ran again although there was no time for that");
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(bench.executor().metrics().timed_out == 1, "a task whose time was over must count as timed out");
  }
  {
    Bench bench(subject);
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().total_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a queued task with a total_timeout was over");
    require_total(caller->error, "a task that waits too long");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its total_timeout had passed");
  }
  {
    Bench bench(subject, limited(subject.concurrency, OverloadPolicy::wait));
    bench.occupy();
    const auto caller = bench.submit(TaskOptions().total_timeout(kLimit), note_order, 1);
    bench.until_told(caller, "a task with a total_timeout that waited for admission was over");
    require_error<ExecutorOverloadError>(
        caller->error, "a task that waits too long for admission must fail with ExecutorOverloadError");
    bench.open_gate();
    require(bench.run(twice, 4) == 8, "a result is wrong");
    require(board().order_size == 0, "a task ran although its total_timeout had passed");
  }
  {
    Bench bench(subject);
    const auto caller = bench.submit(
        TaskOptions().total_timeout(std::chrono::hours(1)).retry(RetryPolicy(2).delay(std::chrono::hours(2))),
        succeed_at_attempt, 2U);
    bench.until_told(caller, "a task that failed was over whose next run would begin too late");
    require(caller->error && board().begun == 1, "a task whose next run would begin too late must fail at once");
  }
  {
    Bench bench(subject);
    constexpr int kRuns = 1000;
    const auto caller =
        bench.submit(TaskOptions().total_timeout(kLimit).retry(RetryPolicy(1000).delay(std::chrono::milliseconds(7))),
                     succeed_at_attempt, 1000U);
    bench.until_told(caller, "a task that failed again and again was over");
    require(caller->error && board().begun < kRuns, "a task must not be run again when its total_timeout is over");
    bench.require_nothing_left();
  }
}

inline void retries(const ContractSubject& subject) {
  Bench bench(subject);
  const auto policy = [] { return TaskOptions().retry(RetryPolicy(3).delay(std::chrono::milliseconds(1))); };
  require(bench.run(policy(), succeed_at_attempt, 3U) == 3, "the third run must see that it is the third");
  require(board().begun == 3, "a task that may run three times did not run three times");
  require(bench.executor().metrics().retried == 2, "two further runs must count as retried");
  try {
    bench.run(policy(), succeed_at_attempt, 9U);
    throw ContractViolation("a task that fails each time succeeded");
  } catch (const RetryError& error) {
    require(error.attempts().size() == 3, "the error must have all runs");
  }
}

inline void shutdown_waits(const ContractSubject& subject) {
  Bench bench(subject);
  std::vector<CallerPtr<int>> callers;
  for (int i = 0; i < 10; ++i) callers.push_back(bench.submit(twice, i));
  const std::vector both{bench.start(bench.executor().shutdown()), bench.start(bench.executor().shutdown())};
  bench.until([&] { return all_told(both); }, "two shutdowns at once were over");
  for (const auto& shutdown : both) require(!shutdown->error, "shutdown failed: " + say(shutdown->error));
  for (const auto& caller : callers) {
    require(caller->calls == 1 && !caller->error, "shutdown must wait for the tasks: " + say(caller->error));
  }
  try {
    bench.run(twice, 1);
    throw ContractViolation("a task was accepted after shutdown");
  } catch (const ExecutorNotRunningError&) {
    // as it must be
  }
  bench.await(bench.executor().shutdown(), "a further shutdown was over");
  Bench again(subject);
  require(again.run(twice, 5) == 10, "a new executor of the same name must work");
}

inline void shutdown_ends(const ContractSubject& subject) {
  {
    Bench bench(subject);
    bench.occupy();
    const auto queued = bench.submit(note_order, 1);
    const auto over = bench.start(bench.executor().shutdown({.wait = true, .timeout = {}, .cancel_pending = true}));
    bench.until_told(queued, "a queued task was cancelled by shutdown");
    require_error<TaskCancelledError>(queued->error, "cancel_pending must cancel queued tasks");
    bench.open_gate();
    bench.until_told(over, "shutdown was over");
    require(board().order_size == 0, "a task ran although cancel_pending had cancelled it");
  }
  {
    Bench bench(subject);
    const auto running = bench.submit(run_until_stopped, 1);
    bench.until([] { return board().begun == 1; }, "a task began");
    bench.await(
        bench.executor().shutdown({.wait = true, .timeout = std::chrono::milliseconds(20), .cancel_pending = false}),
        "a shutdown with a limit was over");
    bench.until_told(running, "the caller of a task that outlasts the shutdown was told");
    require_error<TaskCancelledError>(running->error, "a task that outlasts the shutdown must fail");
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
  const auto& running = bench.occupy();
  const auto queued = bench.submit(twice, 1);
  board().open = 1;  // so that threads end
  bench.destroy_executor();
  bench.until([&] { return queued->calls > 0 && all_told(running); },
              "every caller was told that the executor was destroyed");
  require(
      queued->calls == 1 && std::all_of(running.begin(), running.end(), [](const auto& c) { return c->calls == 1; }),
      "a caller was told twice");
}

// The caller of a task that waits for its next run is told by `close`. No other task waits here: when one that runs
// ends, none follows for which a hook would be called of an executor that is half destroyed. So this finds who does not
// close, if he waits for what runs, without undefined behaviour.
inline void destruction_closes(const ContractSubject& subject) {
  Bench bench(subject);
  const auto waiting =
      bench.submit(TaskOptions().retry(RetryPolicy(2).delay(std::chrono::hours(1))), succeed_at_attempt, 2U);
  bench.until([&] { return bench.executor().metrics().retried == 1; }, "a task that failed waited for its next run");
  bench.occupy();
  bool closed = false;
  std::thread loop([&] {
    const auto end = end_of_patience();
    while (waiting->calls == 0 && board().ended == 0 && std::chrono::steady_clock::now() < end) {
      bench.run_loop_for(std::chrono::milliseconds(1));
    }
    closed = waiting->calls > 0 && board().ended == 0;
    board().open = 1;
  });
  bench.destroy_executor();
  loop.join();
  require(closed, "the destructor must call close() before it waits for tasks that run");
}

inline void events(const ContractSubject& subject) {
  Bench bench(subject);
  Listening listening(bench.executor());
  bench.run(twice, 1);
  try {
    bench.run(fail, 1);
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
    bench.run(twice, 1);
  } catch (const ExecutorNotRunningError&) {
    // as it must be
  }
  bench.until([&] { return listening.count(EventKind::rejected) == 1; }, "a refusal was told");
}

inline void events_of_ends(const ContractSubject& subject) {
  Bench bench(subject);
  Listening listening(bench.executor());
  bench.occupy();
  const auto cancelled = bench.submit_cancellable(twice, 1);
  const auto late = bench.submit(TaskOptions().queue_timeout(std::chrono::milliseconds(1)), twice, 2);
  cancelled->signal.emit(asio::cancellation_type::terminal);
  bench.until([&] { return late->calls + cancelled->calls == 2; }, "two tasks ended without having run");
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
  const auto seen = std::make_shared<std::vector<std::uint64_t>>();
  auto options = TaskOptions().on_progress([seen](const Progress& told) { seen->push_back(told.done); });
  require(bench.run(std::move(options), report, 1000) == 1000, "a result is wrong");
  require(!seen->empty() && seen->back() == 1000, "the last progress must come before the result");
  require(std::is_sorted(seen->begin(), seen->end()), "progress must come in order");
}

inline void handles(const ContractSubject& subject) {
  Bench bench(subject);
  const auto handle = bench.spawn(twice, 21);
  require(bench.await(handle.result(bench.deadline()), "a spawned task was over") == 42, "a result is wrong");
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
  const auto failing = bench.spawn(fail, 1);
  try {
    bench.await(failing.result(), "a spawned task was over");
    throw ContractViolation("a spawned task's error was lost");
  } catch (const std::out_of_range&) {
    require(failing.status() == TaskStatus::failed, "a spawned task that threw must have failed");
  }
}

inline void handles_of_own_id(const ContractSubject& subject) {
  Bench bench(subject);
  const TaskId id = TaskId::make();
  const auto options = TaskOptions().id(id).metadata("for the first customer");
  const auto handle = bench.spawn(options, twice, 3);
  require(handle.id() == id, "a task must have the id that it was given");
  const auto require_taken = [&](const std::string& when) {
    try {
      bench.spawn(options, twice, 4);
      throw ContractViolation("two tasks had one id, the first of which " + when);
    } catch (const DuplicateTaskError&) {
      // as it must be
    }
  };
  require_taken("was not over");
  require(bench.await(handle.result(bench.deadline()), "a spawned task was over") == 6, "a result is wrong");
  require_taken("was over");
  require(bench.executor().get_result<int>(id) == 6, "a result was lost to a task that was refused its id");
  const auto info = bench.executor().info(id);
  require(info && info->metadata == "for the first customer", "a task's metadata must be there when it is over");
  require(bench.executor().metrics().submitted == 1, "a task that was refused its id must not be submitted");
}

inline void handles_of_running(const ContractSubject& subject) {
  Bench bench(subject);
  const auto running = bench.spawn(stop_when_asked, 1);
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
  const auto one = [](OverloadPolicy policy) { return TaskOptions().max_instances(1, policy, "only one"); };
  const auto first = bench.submit(one(OverloadPolicy::reject), wait_at_gate, 1);
  const auto refused = bench.submit(one(OverloadPolicy::reject), twice, 2);
  const auto waiting = bench.submit(one(OverloadPolicy::wait), twice, 3);
  bench.until_told(refused, "a second instance was refused");
  require_error<MaxInstancesError>(refused->error, "a second instance must fail with MaxInstancesError");
  bench.until([] { return board().begun == 1; }, "the first instance began");
  require(bench.run(twice, 4) == 8, "a result is wrong");
  require(waiting->calls == 0, "an instance ran beside the only one that may");
  board().open = 1;
  bench.until([&] { return waiting->calls > 0 && first->calls > 0; }, "the instance that waited had its turn");
  require(waiting->value == 6, "the instance that waited failed: " + say(waiting->error));
  bench.require_nothing_left();
}

inline void by_name(const ContractSubject& subject) {
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  twice.in_form(subject.form, [&](auto form) { options.tasks->add("double", form); });
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
  const auto after = [&](std::chrono::nanoseconds delay) {
    return twice.in_form(subject.form, [&](auto form) { return bench.executor().submit_after(delay, form, 4); });
  };
  const auto later = after(std::chrono::milliseconds(5));
  require(later.status() == TaskStatus::queued, "a task whose time has not come must be queued");
  require(bench.await(later.result(), "a task at its time was over") == 8, "a result is wrong");
  const auto never = after(std::chrono::hours(1));
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
  const auto schedule = count.in_form(subject.form, [&](auto form) {
    return bench.executor().submit_every(std::chrono::milliseconds(1), three, form);
  });
  bench.until([] { return board().ended == 3; }, "a repeated task ran three times");
  bench.until([&] { return !schedule.active(); }, "a schedule of three runs ended");
  require(schedule.runs() == 3 && schedule.failures() == 0, "a schedule counts wrongly");
}

inline void threads(const ContractSubject& subject) {
  reset_board(subject.deadline);
  std::atomic<int> good{0};
  std::atomic<int> told{0};
  asio::io_context context;
  CommonOptions options = limited(100'000);
  options.name = "contract";
  auto executor = subject.make(context.get_executor(), options);
  constexpr int kThreads = 4;
  constexpr int kTasks = 200;
  auto work = asio::make_work_guard(context);
  std::vector<std::thread> all;
  for (int i = 0; i < 2; ++i) all.emplace_back([&] { context.run(); });
  for (int i = 0; i < kThreads; ++i) {
    all.emplace_back([&] {
      for (int n = 0; n < kTasks; ++n) {
        twice.in_form(subject.form, [&](auto form) {
          executor->async_submit(call(form, n), [&, n](std::exception_ptr error, int value) {
            if (!error && value == 2 * n) ++good;
            ++told;
          });
        });
      }
    });
  }
  functions::wait_until([&] { return told == kThreads * kTasks; });
  work.reset();
  context.stop();
  for (std::thread& thread : all) thread.join();
  require(told == kThreads * kTasks, "a task that was submitted by one of several threads was not over");
  require(good == kThreads * kTasks, "a task that was submitted by one of several threads failed");
  const Metrics metrics = executor->metrics();
  require(metrics.completed == static_cast<std::uint64_t>(kThreads * kTasks), "the metrics count wrongly");
}

// Of which executors a part holds.
enum class Holds {
  always,        // of all
  where_queued,  // of those that run tasks beside the submitter, and queue what is too much
  where_inline   // of those that run each task inside `submit`
};

struct Part {
  const char* name;
  void (*run)(const ContractSubject&);
  Holds holds;

  bool is_for(const ContractSubject& subject) const {
    return holds == Holds::always || (holds == Holds::where_inline) == (subject.concurrency == 0);
  }
};

// What an executor does that nobody expects is a violation, too.
inline void run_part(const Part& part, const ContractSubject& subject) {
  try {
    part.run(subject);
  } catch (const ContractViolation&) {
    throw;
  } catch (const std::exception& error) {
    throw ContractViolation(std::string("an error that nobody expects: ") + error.what());
  }
}

}  // namespace contract

/// The parts of the contract for this executor, in an order that goes from the simple to the rest.
inline std::vector<ContractCase> executor_contract(const ContractSubject& subject) {
  using namespace contract;
  static constexpr std::array kParts{
      Part{"each task has one outcome, and it is true", outcomes, Holds::always},
      Part{"a thousand tasks give a thousand results", thousand_tasks, Holds::always},
      Part{"a task knows its name", context_of_task, Holds::always},
      Part{"submit returns before the task is over, and does not block", submit_does_not_wait, Holds::where_queued},
      Part{"a task has run when submit returns", runs_inside_submit, Holds::where_inline},
      Part{"an idle executor uses no CPU", idleness, Holds::always},
      Part{"beyond max_pending tasks are refused", overload_rejects, Holds::where_queued},
      Part{"beyond max_pending tasks wait for their turn", overload_waits, Holds::where_queued},
      Part{"tasks begin in the order of their submission", first_in_first_out, Holds::where_queued},
      Part{"the lower priority number runs first", priorities, Holds::where_queued},
      Part{"a task that waits for admission and is cancelled never runs", cancel_waiting, Holds::where_queued},
      Part{"a queued task that is cancelled never runs", cancel_queued, Holds::where_queued},
      Part{"a task that waits for an instance and is cancelled never runs", cancel_instance, Holds::where_queued},
      Part{"a running task that is cancelled is asked to stop", cancel_running, Holds::where_queued},
      Part{"a task that waits for its next run and is cancelled has no further run", cancel_retry, Holds::always},
      Part{"a task that is over and is cancelled keeps its outcome", cancel_over, Holds::always},
      Part{"time limits hold", time_limits, Holds::where_queued},
      Part{"a limit of the whole time holds for all that a task does", total_time_limit, Holds::where_queued},
      Part{"a task that fails is run again as its policy says", retries, Holds::always},
      Part{"shutdown waits for all, twice and at once, and nothing is accepted afterwards", shutdown_waits,
           Holds::always},
      Part{"shutdown cancels what waits, ends what is late, and need not wait", shutdown_ends, Holds::where_queued},
      Part{"destruction tells every caller once", destruction, Holds::where_queued},
      Part{"destruction closes before it waits", destruction_closes, Holds::where_queued},
      Part{"events come in order, with one end for each task", events, Holds::always},
      Part{"events tell of each end what it was", events_of_ends, Holds::where_queued},
      Part{"progress comes in order, the last of it before the result", progress, Holds::always},
      Part{"a handle has the result, and so has the store", handles, Holds::always},
      Part{"a task may be given an id, which no other may have then", handles_of_own_id, Holds::always},
      Part{"a handle tells where its task is, and cancels it", handles_of_running, Holds::where_queued},
      Part{"no more instances than there may be", instances, Holds::where_queued},
      Part{"tasks are called by their names, with types that are checked", by_name, Holds::always},
      Part{"tasks run at their time, and again and again", timed, Holds::always},
      Part{"any number of threads may submit", threads, Holds::always},
  };
  std::vector<ContractCase> cases;
  for (const Part& part : kParts) {
    if (!part.is_for(subject)) continue;
    cases.push_back({part.name, [part, subject] { run_part(part, subject); }});
  }
  return cases;
}

}  // namespace bulkhead::testing
