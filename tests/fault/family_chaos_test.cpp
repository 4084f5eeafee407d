// SPDX-License-Identifier: BSL-1.0
// The whole family at random: every kind of executor, a user's own among them, alone, in hybrids, in a registry and in
// the unified Executor; one or three threads in the event loop; tasks that are submitted, spawned, called by their
// name, put off, repeated and grouped, with all options; results that are looked up, cancellations, time limits,
// retries, instances, crashes, shutdowns, restarts and destruction. With exact accounting: each caller is told once,
// and what it is told is the end of its task in the events, the metrics add up at every instant, and no thread,
// process or descriptor is left.
//
//   BULKHEAD_CHAOS_SECONDS=3600 BULKHEAD_CHAOS_SEED=7 fault_family_chaos_test    10 seconds and a random seed by
//   default; the seed of an episode that fails begins with that episode
#include <bulkhead/executor.hpp>
#include <bulkhead/executor_registry.hpp>
#include <bulkhead/groups.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/this_task.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"

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

#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::AnyResult;
using bulkhead::BaseExecutor;
using bulkhead::CommonOptions;
using bulkhead::Completions;
using bulkhead::Event;
using bulkhead::EventKind;
using bulkhead::Executor;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOverloadError;
using bulkhead::ExecutorRegistry;
using bulkhead::FunctionUnavailableError;
using bulkhead::HybridExecutor;
using bulkhead::HybridExecutorOptions;
using bulkhead::InlineExecutor;
using bulkhead::InstanceGroup;
using bulkhead::IoExecutor;
using bulkhead::IoExecutorOptions;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::MaxInstancesError;
using bulkhead::Metrics;
using bulkhead::MissedRuns;
using bulkhead::OnError;
using bulkhead::OverloadPolicy;
using bulkhead::RegistryConflictError;
using bulkhead::ResultNotFoundError;
using bulkhead::ResultStore;
using bulkhead::RetryError;
using bulkhead::RetryPolicy;
using bulkhead::Schedule;
using bulkhead::ShutdownOptions;
using bulkhead::Started;
using bulkhead::TaskCancelledError;
using bulkhead::TaskHandle;
using bulkhead::TaskId;
using bulkhead::TaskOptions;
using bulkhead::TaskSignatureError;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::UnknownExecutorTypeError;
using bulkhead::UnknownTaskError;
using bulkhead::WorkerCrashedError;
using bulkhead::test::adds_up;
using bulkhead::test::error_as;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::message;
using bulkhead::test::poll_until;
using bulkhead::test::shared_object;
using namespace std::chrono_literals;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// What tasks do.

constexpr std::size_t kMostTasks = 4096;

// How often each task of an episode has begun, in whatever process.
struct Board {
  std::array<std::atomic<int>, kMostTasks> runs{};
};
Board& board = shared_object<Board>();

const int host = ::getpid();

enum class Kind { add, throws, wait, stubborn, report, crash };

int act(int kind, int number) {
  ++board.runs[static_cast<std::size_t>(number)];
  switch (static_cast<Kind>(kind)) {
    case Kind::add:
      break;
    case Kind::throws:
      throw std::out_of_range("as asked");
    case Kind::wait:
      poll_until([] { return bulkhead::this_task::stop_requested(); }, 3ms);
      bulkhead::this_task::throw_if_stop_requested();
      break;
    case Kind::stubborn:
      poll_until([] { return false; }, 2ms);
      break;
    case Kind::report:
      for (int i = 0; i < 20; ++i) bulkhead::this_task::report_progress(static_cast<std::uint64_t>(i), 20);
      break;
    case Kind::crash:
      if (::getpid() != host) std::raise(SIGKILL);
      break;
  }
  return number + 1;
}

asio::awaitable<int> act_later(int kind, int number) {
  ++board.runs[static_cast<std::size_t>(number)];
  asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
  co_await timer.async_wait(asio::use_awaitable);
  if (static_cast<Kind>(kind) == Kind::throws) throw std::out_of_range("as asked");
  co_return number + 1;
}

// What a user's own executor may do with a task, good or bad.
class OwnExecutor final : public BaseExecutor {
 public:
  OwnExecutor(const asio::any_io_executor& io, CommonOptions options, unsigned seed)
      : BaseExecutor(io, std::move(options)), next_(seed) {}
  ~OwnExecutor() override { close(); }

 protected:
  void execute(bulkhead::Task task) override {
    switch (next_++ % 8) {
      case 0:
        fail(std::move(task), Started::never);
        break;
      case 1:
        fail(std::move(task), Started::maybe);
        break;
      case 2:
        throw std::runtime_error("not this one");
      case 3:
        break;  // It is forgotten.
      case 4:
        asio::post(get_executor(), [kept = std::make_shared<bulkhead::Task>(std::move(task))] { kept->run(); });
        break;
      default:
        task.run();
    }
  }

 private:
  static void fail(bulkhead::Task task, Started started) {
    WorkerCrashedError::Ending ending;
    ending.signal = SIGSEGV;
    ending.started = started;
    task.fail(std::make_exception_ptr(WorkerCrashedError(ending, {})));
  }

  std::atomic<unsigned> next_;
};

// ---------------------------------------------------------------------------------------------------------------------
// What callers are told, and what events tell.

// Who waits for something. Its strand is its own, so that its cancellation and completion do not meet.
struct Caller : std::enable_shared_from_this<Caller> {
  explicit Caller(asio::io_context& context) : strand(asio::make_strand(context)) {}

  void tell(std::exception_ptr thrown, int result) {
    error = std::move(thrown);
    value = result;
    ++told;
  }
  void cancel(asio::cancellation_type type) {
    cancel_asked = true;
    asio::post(strand, [self = shared_from_this(), type] {
      // Boost 1.81's co_spawn passes a cancellation on to what may be gone; async_submit does not.
      if (self->told == 0 || !self->in_coroutine) self->signal.emit(type);
    });
  }

  const asio::any_io_executor strand;
  asio::cancellation_signal signal;
  bool in_coroutine = false;
  bool cancel_asked = false;
  std::atomic<int> told{0};
  std::exception_ptr error;
  int value = 0;
};

// One task, and who waits for its result.
struct Given : Caller {
  Given(asio::io_context& context, int own_number) : Caller(context), number(own_number) {}

  std::string name() const { return "task " + std::to_string(number); }
  int expected() const { return number + 1; }

  const int number;
  Kind kind = Kind::add;
  bool coroutine = false;  // what it calls is one
  bool retried = false;
  bool put_off = false;
  bool grouped = false;  // told by the group, if by anybody
  // Of a task that was spawned.
  std::optional<TaskId> id;
  std::function<void(asio::cancellation_type)> cancel_handle;
  std::function<TaskStatus()> status;
};

struct Grouped : Caller {
  using Caller::Caller;
  std::vector<std::shared_ptr<Given>> members;
};

struct LookUp : Caller {
  using Caller::Caller;
  std::shared_ptr<Given> of;  // null: an id that there is not
  bool limited = false;
};

struct Repeated {
  Repeated(std::shared_ptr<Given> run_again, Schedule given, std::shared_ptr<std::atomic<std::uint64_t>> told_errors,
           std::uint64_t most)
      : task(std::move(run_again)), schedule(std::move(given)), errors(std::move(told_errors)), max_runs(most) {}
  std::shared_ptr<Given> task;
  Schedule schedule;
  std::shared_ptr<std::atomic<std::uint64_t>> errors;
  std::uint64_t max_runs;
};

// How a caller sees the end of its task.
enum class Ending { succeeded, failed, cancelled, timed_out, refused, never_submitted };

std::exception_ptr last_of(const std::exception_ptr& error) {
  const auto retries = error_as<RetryError>(error);
  return retries ? retries->last() : error;
}

Ending ending_of(const std::exception_ptr& error) {
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
  } catch (const bulkhead::ExecutorError&) {
    return Ending::failed;
  } catch (const boost::system::system_error& aborted) {
    return aborted.code() == asio::error::operation_aborted ? Ending::never_submitted : Ending::failed;
  } catch (const std::exception&) {
    return Ending::failed;
  }
}

Ending ending_of(EventKind kind) {
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
    if (!kinds.empty() && bulkhead::kTerminalEvents.contains(kinds.back())) {
      wrong_ = "task " + number + " was told of as " + std::string(to_string(event.kind)) + " after its end";
    }
    if (kinds.empty() != (event.kind == EventKind::submitted)) {
      wrong_ = "the first event of task " + number + " is " +
               std::string(to_string(kinds.empty() ? event.kind : kinds.front()));
    }
    if (bulkhead::kTerminalEvents.contains(event.kind)) ++ended_;
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

// ---------------------------------------------------------------------------------------------------------------------
// Episodes.

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
    if (chance(4)) options.timeout(1ms + milliseconds(3));
    if (chance(5)) options.queue_timeout(1ms + milliseconds(3));
    if (chance(4)) {
      options.retry(RetryPolicy(static_cast<unsigned>(1 + up_to(2))).delay(milliseconds(2)));
      task.retried = true;
    }
    if (chance(4)) {
      options.max_instances(static_cast<unsigned>(1 + up_to(2)), any_policy(), chance(2) ? "a" : "b");
    }
    if (chance(6)) options.on_progress([](const bulkhead::Progress&) {});
    return options;
  }

  void wait_a_moment() {
    if (given_.empty()) return;
    const auto& task = any_of(given_);
    loop_.until([&] { return task->told > 0; }, 2ms);
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

// One executor, whatever it consists of.
class FamilyEpisode : public Episode {
 public:
  using Episode::Episode;

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
  enum class Type { thread, io, in_place, process, bypass, own, hybrid };
  enum End : std::size_t { drain, cancel_pending, timeout, destroy };

  void broken(const std::string& what) {
    if (wrong_.empty()) wrong_ = what;
  }
  template <class E, class F>
  void must_throw(const std::string& what, F function) {
    try {
      function();
    } catch (const E&) {
      return;
    }
    broken(what + " is not refused");
  }

  // -------------------------------------------------------------------------------------------------------------------
  // What there is.

  void set_up() {
    parts_.instances = std::make_shared<InstanceGroup>();
    parts_.tasks = std::make_shared<bulkhead::TaskRegistry>();
    parts_.tasks->add("act", act);
    parts_.tasks->add("act later", act_later, TaskOptions().priority(1));
    bulkhead::ResultStoreOptions kept;
    kept.max_results = static_cast<std::size_t>(1 + up_to(30));
    if (chance(2)) kept.time_to_live = 1ms + milliseconds(4);
    most_results_ = kept.max_results;
    parts_.results = std::make_shared<ResultStore>(kept);
    if (chance(3)) {
      registry_ = std::make_unique<ExecutorRegistry>(context_.get_executor(), parts_);
      registry_->register_factory(
          "own", [parts = parts_, seed = static_cast<unsigned>(up_to(7))](
                     const asio::any_io_executor& io, const std::string& name, const bulkhead::ExecutorConfig& config) {
            CommonOptions options = *config.get<CommonOptions>();
            options.name = name;
            options.instances = parts.instances;
            options.tasks = parts.tasks;
            options.results = parts.results;
            return std::make_shared<OwnExecutor>(io, options, seed);
          });
    }
    type_ = static_cast<Type>(up_to(chance(2) ? 6 : 5));
    executor_ = make(type_, "main", true);
    about_ += (registry_ ? "registry, " : "") + executor_->metrics().mode;
    for (const auto& member : members_) about_ += ", " + member->name() + " " + member->metrics().mode;
    heard_ = std::make_shared<Heard>();
    bulkhead::SubscribeOptions listening;
    listening.queue_size = 100'000;
    listening.executor = asio::make_strand(context_);
    subscription_ = executor_->subscribe([heard = heard_](const Event& event) { heard->hear(event); },
                                         bulkhead::kTaskEvents, listening);
  }

  // Members of a hybrid count no instances: the hybrid does.
  template <class Options>
  Options any_common(const std::string& name, bool outermost) {
    Options options;
    options.name = name;
    options.max_pending = static_cast<std::size_t>(1 + up_to(40));
    options.overload = any_policy();
    if (registry_) return options;
    options.results = parts_.results;
    if (!outermost) return options;
    options.instances = parts_.instances;
    options.tasks = parts_.tasks;
    return options;
  }

  template <class E, class Options>
  std::shared_ptr<BaseExecutor> made(const Options& options) {
    if (!registry_) return std::make_shared<E>(context_.get_executor(), options);
    const auto executor = registry_->get_or_create<E>(options.name, options);
    // The same options are the same executor, and others are not.
    if (registry_->get_or_create<E>(options.name, options) != executor) broken("a name has two executors");
    Options others = options;
    ++others.max_pending;
    must_throw<RegistryConflictError>("a name with other options",
                                      [&] { registry_->get_or_create<E>(options.name, others); });
    return executor;
  }

  std::shared_ptr<BaseExecutor> make(Type type, const std::string& name, bool outermost) {
    switch (type) {
      case Type::thread: {
        auto options = any_common<ThreadExecutorOptions>(name, outermost);
        options.max_threads = static_cast<unsigned>(1 + up_to(3));
        options.idle_timeout = 1ms + milliseconds(5);
        options.cancel_grace = milliseconds(2);
        return made<ThreadExecutor>(options);
      }
      case Type::io: {
        auto options = any_common<IoExecutorOptions>(name, outermost);
        options.max_threads = static_cast<unsigned>(1 + up_to(3));
        options.max_concurrent = static_cast<std::size_t>(1 + up_to(5));
        options.cancel_grace = milliseconds(2);
        return made<IoExecutor>(options);
      }
      case Type::in_place:
        return made<InlineExecutor>(any_common<CommonOptions>(name, outermost));
      case Type::process:
      case Type::bypass: {
        auto options = any_common<LocalExecutorOptions>(name, outermost);
        options.max_workers = static_cast<unsigned>(1 + up_to(1));
        options.bypass = type == Type::bypass;
        options.cancel_grace = milliseconds(2);
        return made<LocalExecutor>(options);
      }
      case Type::own: {
        const auto options = any_common<CommonOptions>(name, outermost);
        if (registry_) return registry_->get_or_create(name, "own", options);
        return std::make_shared<OwnExecutor>(context_.get_executor(), options, static_cast<unsigned>(up_to(7)));
      }
      case Type::hybrid:
        break;
    }
    return make_hybrid(name, outermost);
  }

  std::shared_ptr<BaseExecutor> make_hybrid(const std::string& name, bool outermost) {
    auto options = any_common<HybridExecutorOptions>(name, outermost);
    options.on_not_running = chance(2);
    options.on_crash_before_start = chance(2);
    options.shut_down_executors = !chance(3);
    std::vector<std::shared_ptr<BaseExecutor>> members;
    std::vector<std::string> names;
    Type last = Type::thread;
    for (int i = 1 + up_to(2); i > 0; --i) {
      const bool nested = outermost && chance(8);
      last = nested ? Type::hybrid : static_cast<Type>(up_to(5));
      names.push_back(name + "/" + std::to_string(i));
      members.push_back(make(last, names.back(), false));
      members_.push_back(members.back());
    }
    if (outermost) {
      members_go_too_ = options.shut_down_executors;
      goes_on_after_crash_ = options.on_crash_before_start && last != Type::own && last != Type::hybrid;
    }
    if (!registry_) return std::make_shared<HybridExecutor>(context_.get_executor(), std::move(members), options);
    return registry_->get_or_create<HybridExecutor>(name, {std::move(names), options});
  }

  // -------------------------------------------------------------------------------------------------------------------
  // What happens.

  void act_somehow() {
    switch (up_to(19)) {
      case 0:
        submit_by_name();
        break;
      case 1:
      case 2:
        spawn();
        break;
      case 3:
      case 4:
        put_off();
        break;
      case 5:
        repeat();
        break;
      case 6:
        gather();
        break;
      case 7:
        take_as_completed();
        break;
      case 8:
      case 9:
        look_up();
        break;
      case 10:
        use_store();
        break;
      case 11:
        use_registries();
        break;
      case 12:
        wait_a_moment();
        break;
      case 13:
      case 14:
      case 15:
        cancel();
        break;
      default:
        submit();
    }
  }

  std::shared_ptr<Given> new_task() {
    auto task = Episode::new_task();
    // A coroutine is refused where it cannot run.
    task->coroutine = chance(type_ == Type::io ? 2 : 15);
    return task;
  }

  void submit() {
    const auto task = new_task();
    auto handler = asio::bind_executor(
        task->strand, asio::bind_cancellation_slot(task->signal.slot(), [task](std::exception_ptr error, int value) {
          task->tell(std::move(error), value);
        }));
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    if (task->coroutine) {
      executor_->async_submit(std::move(options), bulkhead::call(act_later, kind, task->number), std::move(handler));
    } else {
      executor_->async_submit(std::move(options), bulkhead::call(act, kind, task->number), std::move(handler));
    }
  }

  asio::awaitable<int> submitted(const std::shared_ptr<Given>& task) {
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    if (task->coroutine) return executor_->submit(std::move(options), act_later, kind, task->number);
    return executor_->submit(std::move(options), act, kind, task->number);
  }

  void submit_by_name() {
    const auto task = new_task();
    task->in_coroutine = true;
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    std::string name = task->coroutine ? "act later" : "act";
    if (chance(10)) name = "no such task";
    auto result = chance(10) ? executor_->submit(std::move(options), name, kind)
                             : executor_->submit(std::move(options), name, kind, task->number);
    asio::co_spawn(task->strand, std::move(result),
                   asio::bind_cancellation_slot(task->signal.slot(), [task](std::exception_ptr error, AnyResult any) {
                     task->tell(error, error ? 0 : any.get<int>());
                   }));
  }

  // Has the task's caller told what the handle tells.
  template <class R>
  void watch(const std::shared_ptr<Given>& task, const TaskHandle<R>& handle) {
    task->id = handle.id();
    task->cancel_handle = [handle](asio::cancellation_type type) { handle.cancel(type); };
    task->status = [handle] { return handle.status(); };
    if (executor_->status(handle.id()) == std::nullopt && !is_over(handle.status())) {
      broken(task->name() + ", which is not over, is not found");
    }
    if (task->grouped) return;
    asio::co_spawn(task->strand, handle.result(), [task](std::exception_ptr error, R value) {
      if constexpr (std::is_same_v<R, AnyResult>) {
        task->tell(error, error ? 0 : value.template get<int>());
      } else {
        task->tell(std::move(error), value);
      }
    });
  }

  TaskHandle<int> spawned(const std::shared_ptr<Given>& task) {
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    auto handle = task->coroutine ? executor_->spawn(std::move(options), act_later, kind, task->number)
                                  : executor_->spawn(std::move(options), act, kind, task->number);
    watch(task, handle);
    return handle;
  }
  TaskHandle<AnyResult> spawned_by_name(const std::shared_ptr<Given>& task) {
    auto handle = executor_->spawn(any_options(*task), task->coroutine ? "act later" : "act",
                                   static_cast<int>(task->kind), task->number);
    watch(task, handle);
    return handle;
  }
  void spawn() {
    if (chance(10)) {
      must_throw<UnknownTaskError>("an unknown task", [&] { executor_->spawn("no such task", 1); });
      must_throw<TaskSignatureError>("a wrong argument", [&] { executor_->spawn("act", 1, "2"); });
    }
    const auto task = new_task();
    if (chance(2)) {
      spawned(task);
    } else {
      spawned_by_name(task);
    }
  }

  void put_off() {
    const auto task = new_task();
    task->put_off = true;
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    const int number = task->number;
    const auto delay = chance(6) ? std::chrono::milliseconds(1h) : milliseconds(6) - 1ms;
    if (task->coroutine) {
      watch(task, executor_->submit_after(delay, std::move(options), act_later, kind, number));
      return;
    }
    switch (up_to(3)) {
      case 0:
        watch(task, executor_->submit_after(delay, std::move(options), act, kind, number));
        break;
      case 1:
        watch(task, executor_->submit_after(delay, std::move(options), "act", kind, number));
        break;
      case 2:
        watch(task,
              executor_->submit_at(std::chrono::steady_clock::now() + delay, std::move(options), "act", kind, number));
        break;
      default:
        watch(task,
              executor_->submit_at(std::chrono::system_clock::now() + delay, std::move(options), act, kind, number));
    }
  }

  void repeat() {
    if (repeated_.size() >= 4) return;
    const auto task = new_task();
    task->grouped = true;  // nobody is told of a run
    // An event loop that runs what is repeated itself, and takes longer than its period, does nothing else any more.
    if (task->kind == Kind::wait || task->kind == Kind::stubborn) task->kind = Kind::add;
    const auto errors = std::make_shared<std::atomic<std::uint64_t>>(0);
    bulkhead::ScheduleOptions rules;
    if (chance(2)) rules.first = milliseconds(2);
    rules.missed = static_cast<MissedRuns>(up_to(2));
    if (chance(3)) rules.grace = 1ms + milliseconds(2);
    rules.overlap = chance(2);
    if (chance(2)) rules.max_runs = static_cast<std::uint64_t>(1 + up_to(10));
    rules.most_made_up = static_cast<std::uint64_t>(1 + up_to(5));
    rules.on_error = [errors](const std::exception_ptr&) { ++*errors; };
    const std::uint64_t max_runs = rules.max_runs;
    const auto period = std::chrono::microseconds(500 + up_to(5000));
    auto options = any_options(*task);
    const int kind = static_cast<int>(task->kind);
    try {
      auto schedule =
          task->coroutine ? executor_->submit_every(period, rules, std::move(options), act_later, kind, task->number)
          : chance(2)     ? executor_->submit_every(period, rules, std::move(options), "act", kind, task->number)
                          : executor_->submit_every(period, rules, std::move(options), act, kind, task->number);
      repeated_.emplace_back(task, std::move(schedule), errors, max_runs);
    } catch (const ExecutorNotRunningError&) {
      if (!closing_) broken("a schedule is refused although the executor was not shut down");
    }
  }

  std::shared_ptr<Given> new_member(Grouped& group) {
    auto task = new_task();
    task->grouped = true;
    group.members.push_back(task);
    return task;
  }

  void gather() {
    const auto group = std::make_shared<Grouped>(context_);
    group->in_coroutine = true;
    groups_.push_back(group);
    const auto policy = chance(2) ? OnError::cancel_rest : OnError::wait_for_all;
    if (chance(3)) {
      auto both = bulkhead::when_all(policy, submitted(new_member(*group)), spawned_by_name(new_member(*group)));
      asio::co_spawn(group->strand, std::move(both),
                     asio::bind_cancellation_slot(
                         group->signal.slot(), [group](std::exception_ptr error, std::tuple<int, AnyResult> results) {
                           group->tell(error, error ? 0 : std::get<0>(results) + std::get<1>(results).get<int>());
                         }));
      return;
    }
    const auto told = [group](std::exception_ptr error, const std::vector<int>& results) {
      group->tell(std::move(error), std::accumulate(results.begin(), results.end(), 0));
    };
    auto handler = asio::bind_cancellation_slot(group->signal.slot(), told);
    if (chance(2)) {
      std::vector<TaskHandle<int>> handles;
      for (int i = up_to(4); i > 0; --i) handles.push_back(spawned(new_member(*group)));
      asio::co_spawn(group->strand, bulkhead::when_all(policy, std::move(handles)), std::move(handler));
    } else {
      std::vector<asio::awaitable<int>> awaitables;
      for (int i = up_to(4); i > 0; --i) awaitables.push_back(submitted(new_member(*group)));
      asio::co_spawn(group->strand, bulkhead::when_all(policy, std::move(awaitables)), std::move(handler));
    }
  }

  // Takes so many, and lets go of the others.
  static asio::awaitable<int> take(std::shared_ptr<Grouped> group, Completions<int> completions, int most) {
    for (int taken = 0; taken < most; ++taken) {
      auto item = co_await completions.next();
      if (!item) co_return taken;
      group->members[item->index]->tell(item->error, item->value.value_or(0));
    }
    co_return most;
  }

  void take_as_completed() {
    const auto group = std::make_shared<Grouped>(context_);
    group->in_coroutine = true;
    completions_.push_back(group);
    const auto policy = chance(2) ? OnError::cancel_rest : OnError::wait_for_all;
    const int size = up_to(4);
    const int most = chance(3) ? up_to(4) : size + 1;
    std::optional<Completions<int>> completions;
    if (chance(2)) {
      std::vector<TaskHandle<int>> handles;
      for (int i = 0; i < size; ++i) handles.push_back(spawned(new_member(*group)));
      completions.emplace(bulkhead::as_completed(context_.get_executor(), std::move(handles), policy));
    } else {
      std::vector<asio::awaitable<int>> awaitables;
      for (int i = 0; i < size; ++i) awaitables.push_back(submitted(new_member(*group)));
      completions.emplace(bulkhead::as_completed(context_.get_executor(), std::move(awaitables), policy));
    }
    asio::co_spawn(group->strand, take(group, std::move(*completions), most),
                   asio::bind_cancellation_slot(group->signal.slot(), [group](std::exception_ptr error, int taken) {
                     group->tell(std::move(error), taken);
                   }));
  }

  // Holds the executor no longer than it takes to ask.
  static asio::awaitable<int> wait_for_result(std::shared_ptr<BaseExecutor> executor, TaskId id,
                                              std::optional<std::chrono::nanoseconds> timeout) {
    auto result = executor->wait_for_result<int>(id, timeout);
    executor.reset();
    co_return co_await std::move(result);
  }

  void look_up() {
    std::vector<std::shared_ptr<Given>> found;
    for (const auto& task : given_) {
      if (task->id) found.push_back(task);
    }
    const auto task = found.empty() || chance(5) ? nullptr : any_of(found);
    const TaskId id = task ? *task->id : TaskId::make();
    if (chance(2)) {
      const auto waiting = std::make_shared<LookUp>(context_);
      waiting->in_coroutine = true;
      waiting->of = task;
      waiting->limited = chance(2);
      const auto limit = waiting->limited ? std::optional<std::chrono::nanoseconds>(milliseconds(3)) : std::nullopt;
      asio::co_spawn(
          waiting->strand, wait_for_result(executor_, id, limit),
          asio::bind_cancellation_slot(waiting->signal.slot(), [waiting](std::exception_ptr error, int value) {
            waiting->tell(std::move(error), value);
          }));
      look_ups_.push_back(waiting);
      return;
    }
    if (!task) {
      must_throw<ResultNotFoundError>("an unknown id", [&] { executor_->get_result<int>(id); });
      if (executor_->status(id)) broken("an unknown id has a status");
      return;
    }
    const bool wrong_type = chance(4);
    try {
      if (wrong_type) {
        if (executor_->get_result<std::string>(id)) broken(task->name() + " returned a number, and gives a string");
      } else if (const auto value = executor_->get_result<int>(id); value && *value != task->expected()) {
        broken("get_result gives a wrong result of " + task->name());
      }
    } catch (const std::exception& error) {
      if (!is_over(task->status())) {
        broken("get_result of " + task->name() + ", which is not over, throws: " + error.what());
      }
    }
  }

  void use_store() {
    if (chance(2)) {
      if (parts_.results->size() > most_results_) broken("more results are kept than may be");
    } else if (chance(4)) {
      parts_.results->clear();
    } else {
      const auto task = given_.empty() ? nullptr : any_of(given_);
      if (!task || !task->id || !parts_.results->remove(*task->id)) return;
      if (!is_over(task->status())) broken(task->name() + " was dropped although it was not over");
      if (parts_.results->remove(*task->id)) broken("a result was dropped twice");
    }
  }

  void use_registries() {
    // What goes on under a name that is forgotten goes on.
    if (chance(2) && parts_.tasks->remove("act later")) {
      must_throw<UnknownTaskError>("a forgotten task", [&] { executor_->spawn("act later", 1, 1); });
      parts_.tasks->add("act later", act_later);
    }
    if (!registry_ || closing_) return;
    if (registry_->get("main") != executor_) broken("the registry does not know its executor");
    must_throw<UnknownExecutorTypeError>("an unknown type", [&] { registry_->get_or_create("x", "no such type"); });
    // Whoever comes first makes it.
    const std::string name = "extra " + std::to_string(up_to(2));
    struct Askers {
      std::mutex mutex;
      std::vector<std::shared_ptr<BaseExecutor>> got;
    };
    const auto askers = std::make_shared<Askers>();
    for (int i = 0; i < 3; ++i) {
      asio::post(context_, [askers, name, this] {
        auto executor = registry_->get_or_create(name, "thread");
        const std::lock_guard lock(askers->mutex);
        askers->got.push_back(std::move(executor));
      });
    }
    const bool all = loop_.until([&] {
      const std::lock_guard lock(askers->mutex);
      return askers->got.size() == 3;
    });
    if (!all) {
      broken("get_or_create does not return");
      return;
    }
    if (std::any_of(askers->got.begin(), askers->got.end(), [&](const auto& got) { return got != askers->got[0]; })) {
      broken("several who ask for a name at once get several executors");
    }
    if (chance(2) && registry_->remove(name) != askers->got[0]) broken("remove gives another executor");
  }

  void cancel() {
    const auto type = any_cancellation();
    switch (up_to(7)) {
      case 0:
        if (!groups_.empty()) any_of(groups_)->cancel(type);
        break;
      case 1:
        if (!completions_.empty()) any_of(completions_)->cancel(type);
        break;
      case 2:
        if (!look_ups_.empty()) any_of(look_ups_)->cancel(type);
        break;
      case 3:
        if (!repeated_.empty()) any_of(repeated_).schedule.cancel();
        break;
      default: {
        if (given_.empty()) return;
        const auto& task = any_of(given_);
        if (task->cancel_handle) {
          task->cancel_asked = true;
          task->cancel_handle(type);
        } else if (!task->grouped) {
          task->cancel(type);
        }
      }
    }
  }

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
      // A shutdown that is only just beginning still needs the executor.
      await_shutdowns();
      members_.clear();
      registry_.reset();
      executor_.reset();
      return;
    }
    ShutdownOptions options;
    options.wait = !chance(4);
    options.cancel_pending = way == cancel_pending;
    if (way == timeout) options.timeout = milliseconds(5);
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
    const auto by_name = heard_->by_name();
    for (const auto& repeated : repeated_) check(repeated, by_name);
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

  void check(const Repeated& repeated, const std::map<std::string, Heard::Ends>& by_name) {
    const auto found = by_name.find(repeated.task->name());
    const Heard::Ends ends = found == by_name.end() ? Heard::Ends() : found->second;
    const auto bad = static_cast<std::uint64_t>(
        std::count_if(ends.last.begin(), ends.last.end(), [](EventKind kind) { return kind != EventKind::succeeded; }));
    const Schedule& schedule = repeated.schedule;
    const std::uint64_t runs = ends.last.size() + ends.rejected;
    const std::uint64_t failures = bad + ends.rejected;
    // The last runs tell the schedule of their end when they have told everybody else.
    const bool as_heard = loop_.until(
        [&] { return schedule.runs() == runs && schedule.failures() == failures && *repeated.errors == failures; });
    const auto numbers = [](std::uint64_t number, std::uint64_t failed) {
      return std::to_string(number) + " runs, " + std::to_string(failed) + " of them failed";
    };
    if (!as_heard) {
      broken("the schedule of " + repeated.task->name() + " tells of " + numbers(schedule.runs(), schedule.failures()) +
             " and " + std::to_string(*repeated.errors) + " told, and events of " + numbers(runs, failures));
    }
    if (repeated.max_runs > 0 && runs > repeated.max_runs) broken("a schedule ran more often than it may");
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

  void check_look_ups() {
    for (const auto& waiting : look_ups_) {
      const auto name = waiting->of ? waiting->of->name() : "no task";
      if (waiting->told != 1) broken("a wait for a result has " + std::to_string(waiting->told) + " outcomes");
      if (!waiting->error) {
        if (!waiting->of || waiting->value != waiting->of->expected()) broken("wait_for_result gives a wrong result");
        continue;
      }
      // Everything is over by now, so any result may have been dropped.
      if (holds<ResultNotFoundError>(waiting->error)) continue;
      if (const auto late = error_as<TaskTimeoutError>(waiting->error);
          late && late->which() == TaskTimeoutError::Which::wait && waiting->limited) {
        continue;
      }
      if (waiting->cancel_asked && ending_of(waiting->error) == Ending::never_submitted) continue;
      if (waiting->of && (waiting->of->grouped || waiting->error == waiting->of->error)) continue;
      broken("a wait for the result of " + name + " fails with: " + message(waiting->error));
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
      const auto task = Episode::new_task();
      task->kind = Kind::add;
      member->async_submit(bulkhead::call(act, 0, task->number),
                           asio::bind_executor(task->strand, [task](std::exception_ptr error, int value) {
                             task->tell(std::move(error), value);
                           }));
      if (!loop_.until([&] { return task->told > 0; })) broken("an executor of a hybrid does not answer");
      // A hybrid within the hybrid decides by itself about its executors.
      const bool nested = std::any_of(members_.begin(), members_.end(), [](const auto& other) {
        return dynamic_cast<const HybridExecutor*>(other.get()) != nullptr;
      });
      const bool refused = holds<ExecutorNotRunningError>(task->error);
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

  std::string wrong_;
  Type type_ = Type::thread;
  bulkhead::SharedParts parts_;
  std::size_t most_results_ = 0;
  std::unique_ptr<ExecutorRegistry> registry_;
  std::vector<std::shared_ptr<BaseExecutor>> members_;
  std::shared_ptr<BaseExecutor> executor_;
  bool members_go_too_ = true;
  bool members_close_first_ = false;
  bool goes_on_after_crash_ = false;
  std::shared_ptr<Heard> heard_;
  bulkhead::Subscription subscription_;
  std::vector<std::shared_ptr<Grouped>> groups_;
  std::vector<std::shared_ptr<Grouped>> completions_;
  std::vector<std::shared_ptr<LookUp>> look_ups_;
  std::vector<Repeated> repeated_;
  std::vector<std::shared_ptr<Caller>> shutdowns_;
  bool closing_ = false;
  bool harsh_ = false;
};

// The unified Executor, started and shut down and started again while others use it.
class UnifiedEpisode : public Episode {
 public:
  explicit UnifiedEpisode(std::uint64_t seed) : Episode(seed), lifecycle_(asio::make_strand(context_)) {
    about_ += "unified";
  }

  std::string play() {
    bulkhead::ExecutorOptions options;
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

// ---------------------------------------------------------------------------------------------------------------------
// What is left.

struct Resources {
  std::size_t threads = 0;
  std::size_t processes = 0;
  std::size_t descriptors = 0;

  static Resources now() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    const auto threads = static_cast<std::size_t>(std::distance(begin(tasks), end(tasks)));
#if WITH_THREAD_SANITIZER
    // It starts a symbolizer, with two pipes to it, when it first has something to look up.
    return {threads, 0, 0};
#else
    return {threads, bulkhead::test::descendants().size(), bulkhead::test::open_descriptors()};
#endif
  }
  bool operator==(const Resources&) const = default;
  std::string to_string() const {
    return std::to_string(threads) + " threads, " + std::to_string(processes) + " processes, " +
           std::to_string(descriptors) + " descriptors";
  }
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
  {
    // What is opened once is kept: the fork server, for one.
    asio::io_context context;
    LocalExecutor first(context.get_executor(), bulkhead::test::workers(1));
    bulkhead::test::run(context, first.submit(act, 0, 0));
  }
  REQUIRE(poll_until([] { return bulkhead::test::descendants().size() == 1; }, bulkhead::test::kGone));
  const Resources before = Resources::now();
  std::uint64_t tasks = 0;
  std::uint64_t episodes = 0;
  for (; std::chrono::steady_clock::now() < end; ++episodes) {
    const std::uint64_t own = seed + episodes;
    INFO("BULKHEAD_CHAOS_SEED=" << own);
    std::string about;
    const auto play = [&](auto episode) {
      const std::string wrong = episode->play();
      about = episode->about();
      INFO(about);
      REQUIRE(wrong == "");
      tasks += episode->tasks();
    };
    if (own % 8 == 0) {
      play(std::make_unique<UnifiedEpisode>(own));
    } else {
      play(std::make_unique<FamilyEpisode>(own));
    }
    const bool all_gone = poll_until([&] { return Resources::now() == before; }, bulkhead::test::kGone);
    INFO(about << "; left are " << Resources::now().to_string() << "; before there were " << before.to_string());
    REQUIRE(all_gone);
  }
  std::cout << episodes << " episodes, " << tasks << " tasks" << std::endl;
  CHECK(tasks > 0);
}
