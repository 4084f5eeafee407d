// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/hybrid_executor.hpp>

#include "deadline.hpp"
#include "time_limits.hpp"

#include <bulkhead/detail/task_impl.hpp>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace bulkhead {
namespace {

using detail::Deadline;
using detail::Delivery;
using detail::ExecutorCore;
using detail::Initiation;
using detail::Outcome;
using detail::TaskNode;

// When the time for a shutdown is over, the executors end their tasks at the same moment, and tell within milliseconds
// how: that is truer than what is known here.
constexpr auto kMemberPatience = std::chrono::milliseconds(100);

CommonOptions common(const HybridExecutorOptions& options,
                     const std::vector<std::shared_ptr<BaseExecutor>>& executors) {
  if (executors.empty()) throw std::invalid_argument("a HybridExecutor needs at least one executor");
  if (std::any_of(executors.begin(), executors.end(), [](const auto& executor) { return !executor; })) {
    throw std::invalid_argument("an executor of a HybridExecutor is null");
  }
  for (auto executor = executors.begin(); executor != executors.end(); ++executor) {
    if (std::find(executors.begin(), executor, *executor) == executor) continue;
    throw std::invalid_argument(fmt::format(
        "executor '{}' is given to a HybridExecutor twice: it would only be asked twice", (*executor)->name()));
  }
  const auto strict = std::find_if(executors.begin(), executors.end(), [](const auto& executor) {
    return detail::core_of(*executor)->never_reuses_workers;
  });
  const auto open = std::find_if(executors.begin(), executors.end(),
                                 [](const auto& executor) { return !detail::core_of(*executor)->always_isolates; });
  if (strict != executors.end() && open != executors.end()) {
    throw std::invalid_argument(
        fmt::format("executor '{}' must not have what is meant for '{}' when that is full: its tasks are hostile "
                    "(SandboxPolicy::never_reuse_workers), and '{}' isolates nothing",
                    (*open)->name(), (*strict)->name(), (*open)->name()));
  }
  return {.name = options.name,
          .max_pending = options.max_pending,
          .overload = options.overload,
          .instances = options.instances,
          .tasks = options.tasks,
          .results = options.results};
}

// What the executor that has the task must know; the rest is the hybrid's business.
TaskOptions forwarded_options(const TaskOptions& given) {
  TaskOptions options;
  options.priority(given.priority());
  if (const auto limit = given.timeout()) options.timeout(*limit);
  if (const auto limit = given.queue_timeout()) options.queue_timeout(*limit);
  if (!given.has_rare()) return options;
  if (!given.name().empty()) options.name(given.name());
  if (const auto limit = given.total_timeout()) options.total_timeout(*limit);
  if (const auto limit = given.cpu_timeout()) options.cpu_timeout(*limit);
  if (!given.trace_parent().empty()) options.trace_parent(given.trace_parent());
  if (!given.quarantine_key().empty()) options.quarantine_key(given.quarantine_key());
  if (given.isolation() != nullptr) options.isolation(*given.isolation());
  return options;
}

// Why executors have refused a task, in the order in which they were asked.
using Refusals = std::vector<std::string>;

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& refusal) {
    return refusal.what();
  }
}

// The last of several refusals, which tells of the others, too. Other failures, and errors of a user's own, stay what
// they are.
std::exception_ptr with_earlier(Refusals earlier, const std::exception_ptr& last) {
  if (earlier.empty() || !last) return last;
  const auto is = []<class E>(const E& error) { return typeid(error) == typeid(E); };
  const auto reason = [&] {
    earlier.push_back(text_of(last));
    return fmt::format("none of the executors that were asked took it: {}", fmt::join(earlier, "; "));
  };
  try {
    std::rethrow_exception(last);
  } catch (const ExecutorOverloadError& error) {
    if (is(error)) {
      return std::make_exception_ptr(ExecutorOverloadError(error.limit(), error.context(), reason()));
    }
  } catch (const ExecutorNotRunningError& error) {
    if (is(error)) return std::make_exception_ptr(ExecutorNotRunningError(error.context(), reason()));
  } catch (const WorkerStartError& error) {
    if (is(error)) {
      return std::make_exception_ptr(WorkerStartError(reason(), error.failures_in_a_row(), error.context()));
    }
  } catch (...) {
    return last;
  }
  return last;
}

// Whether another executor may have the task, which has not begun, and was refused so.
bool may_go_on(const std::exception_ptr& error, const HybridExecutorOptions& options) {
  if (!error) return false;
  try {
    std::rethrow_exception(error);
  } catch (const ExecutorOverloadError&) {
    return true;
  } catch (const ExecutorNotRunningError&) {
    return options.on_not_running;
  } catch (const WorkerStartError&) {
    return options.on_not_running;
  } catch (const WorkerCrashedError& crash) {
    return options.on_crash_before_start && crash.started() == Started::never;
  } catch (...) {
    return false;
  }
}

}  // namespace

// What the hybrid's tasks need, and they may be the last to have it: on a pool's thread, say, while the event loop is
// destroyed elsewhere. So it owns no executor: those end with the hybrid, or with whoever else owns them.
struct HybridExecutor::Engine : std::enable_shared_from_this<Engine> {
  class Forwarded;

  // Where a task is now.
  struct Place {
    std::weak_ptr<ExecutorCore> core;
    std::uint64_t id = 0;
  };

  Engine(std::shared_ptr<ExecutorCore> hybrid, const std::vector<std::shared_ptr<BaseExecutor>>& executors,
         const HybridExecutorOptions& given)
      : core(std::move(hybrid)), options(given) {
    for (const auto& executor : executors) members.push_back(detail::core_of(*executor));
  }

  static asio::awaitable<void> shut_down_executors(std::shared_ptr<ExecutorCore> tasks, Executors executors,
                                                   Deadline deadline);

  // The first executor from this one on that may have the task; their number if there is none.
  std::size_t next_for(const TaskNode& node, std::size_t index) const {
    const Isolation* const isolation = node.options.isolation();
    if (isolation == nullptr || isolation->kind() == Isolation::Kind::reuse) return index;
    while (index < members.size() && !members[index]->isolates) ++index;
    return index;
  }

  // Gives the task to this executor. Without any mutex.
  void submit(TaskNode* node, std::size_t index, Refusals refusals);

  // How an executor has ended its task.
  struct Ending {
    Ending(std::exception_ptr failure, Outcome as) : error(std::move(failure)), outcome(as) {}

    std::exception_ptr error;
    Outcome outcome;
    bool begun = true;
    // It was not refused at once: it waited for admission for as long as it may.
    bool waited_in_vain = false;
  };

  // `refusals` is by the executors before this one.
  void ended(TaskNode* node, std::size_t index, Refusals refusals, Ending ending) {
    bool cancelled = false;
    {
      const std::lock_guard lock(mutex);
      places.erase(node);
    }
    {
      const ExecutorCore::Lock lock(core->mutex);
      // Or nobody wants it any more: whoever destroys the hybrid cannot find it in this moment.
      cancelled = node->place.cancel_requested || core->owner == nullptr;
    }
    if (!ending.begun && !cancelled && index < members.size()) {
      const bool goes_on = may_go_on(ending.error, options);
      const std::size_t next = next_for(*node, index + 1);
      if (goes_on && has_passed(node->must_end_ns)) {
        // Refused for that, or too late for the next.
        ending.error =
            std::make_exception_ptr(TaskTimeoutError(TaskTimeoutError::Which::total, *node->options.total_timeout(),
                                                     core->context_of(*node), detail::not_run_reason(*node)));
        ending.outcome = Outcome::timed_out;
      } else if (goes_on && next < members.size() && !ending.waited_in_vain) {
        refusals.push_back(text_of(ending.error));
        if (!has_passed(node->must_begin_ns())) {
          submit(node, next, std::move(refusals));
          return;
        }
        ending.error = std::make_exception_ptr(TaskTimeoutError(
            TaskTimeoutError::Which::queue, *node->options.queue_timeout(), core->context_of(*node),
            fmt::format("that passed before another executor was asked: {}", fmt::join(refusals, "; "))));
        ending.outcome = Outcome::timed_out;
      } else {
        ending.error = with_earlier(std::move(refusals), ending.error);
      }
    }
    node->error = std::move(ending.error);
    core->settle(node, ending.outcome, Initiation::delivery());
  }

  // 0 never does.
  static bool has_passed(std::uint64_t time) { return time != 0 && ExecutorCore::now() >= time; }

  std::vector<Place> all_places() const {
    const std::lock_guard lock(mutex);
    std::vector<Place> all;
    for (const auto& [node, place] : places) all.push_back(place);
    return all;
  }
  void cancel_all(asio::cancellation_type type) const {
    for (const Place& place : all_places()) {
      if (const auto holder = place.core.lock()) holder->cancel(place.id, type);
    }
  }

  const std::shared_ptr<ExecutorCore> core;
  const HybridExecutorOptions options;
  std::vector<std::shared_ptr<ExecutorCore>> members;  // of the executors, in order of preference
  mutable std::mutex mutex;
  std::map<const TaskNode*, Place> places;  // guarded by `mutex`
};

// A task as the executor sees it that the hybrid has given it to. What it does is done to the hybrid's task.
//
// That executor's mutex may be held where this takes the hybrid's, and never the other way round.
class HybridExecutor::Engine::Forwarded final : public TaskNode {
 public:
  Forwarded(std::shared_ptr<Engine> engine, std::size_t index, TaskNode* outer, Refusals refusals)
      : TaskNode(*engine->members[index], engine->core->with_isolation(forwarded_options(outer->options))),
        engine_(std::move(engine)),
        index_(index),
        outer_(outer),
        refusals_(std::move(refusals)) {
    library_encoding = outer->library_encoding;
    library_decoding = outer->library_decoding;
    progress_relay = outer->progress_relay;
    wants_started = true;
    must_end_ns = outer->must_end_ns;
    waits_since_ns = outer->waits_since_ns != 0 ? outer->waits_since_ns : outer->submitted_ns;
    earlier_runs = outer->attempt() - 1;
  }

  Outcome run() noexcept override {
    const Outcome ending = outer_->run();
    error = std::exchange(outer_->error, nullptr);
    return ending;
  }
  bool is_coroutine() const noexcept override { return outer_->is_coroutine(); }
  std::atomic<std::size_t>* large_size() noexcept override { return outer_->large_size(); }
  void start_coroutine(const asio::any_io_executor& on, asio::cancellation_slot slot,
                       std::unique_ptr<detail::CoroutineRun> run) override {
    // So that a coroutine which is told to stop says so as the caller asked.
    class Run final : public detail::CoroutineRun {
     public:
      Run(Forwarded* node, std::unique_ptr<detail::CoroutineRun> inner) : node_(node), inner_(std::move(inner)) {}
      void done(Outcome outcome) override {
        auto thrown = std::exchange(node_->outer_->error, nullptr);
        // This one was asked to stop, and not the hybrid's: so it knows why the coroutine was cancelled.
        if (outcome == Outcome::failed) {
          outcome = detail::coroutine_outcome(*node_, std::move(thrown));
        } else {
          node_->error = std::move(thrown);
        }
        inner_->done(outcome);
      }

     private:
      Forwarded* node_;
      std::unique_ptr<detail::CoroutineRun> inner_;
    };
    outer_->start_coroutine(on, slot, std::make_unique<Run>(this, std::move(run)));
  }
  void encode(Encoder& encoder) override { outer_->encode(encoder); }
  void decode_result(Decoder& decoder) override { outer_->decode_result(decoder); }
  bool repeatable() const noexcept override { return outer_->repeatable(); }
  detail::NameSource name_source() const noexcept override { return outer_->name_source(); }

  void note_started() noexcept override { outer_->core->begin(*outer_); }
  void deliver_progress(Progress&& progress) override {
    const ExecutorCore::Lock lock(outer_->core->mutex);
    outer_->core->tell_progress(*outer_, std::move(progress));
  }

  // What comes next takes other mutexes.
  bool post_outcome() override { return false; }

  void deliver(Delivery) override {
    {
      // The hybrid's shutdown may tell of the task in this moment.
      const ExecutorCore::Lock lock(outer_->core->mutex);
      if (began_ns != 0) {
        outer_->began_ns = std::max(began_ns, outer_->submitted_ns);
        outer_->ended_ns = std::max(ended_ns, outer_->began_ns);
      }
      outer_->place.worker_pid = place.worker_pid;
    }
    const auto engine = std::move(engine_);
    TaskNode* const outer = outer_;
    const std::size_t index = index_;
    Refusals refusals = std::move(refusals_);
    Ending ending(std::move(error), outcome);
    ending.begun = began_ns != 0;
    ending.waited_in_vain = waited_in_vain;
    delete this;
    engine->ended(outer, index, std::move(refusals), std::move(ending));
  }
  // The caller is told, and the task runs on.
  void deliver_early(std::exception_ptr cause, Delivery) override {
    told_early_ = true;
    ExecutorCore& hybrid = *outer_->core;
    const ExecutorCore::Lock lock(hybrid.mutex);
    if (must_end_ns != 0 && ExecutorCore::now() >= must_end_ns) outer_->last_run = true;
    if (outcome == Outcome::timed_out && began_ns != 0 && hybrid.would_retry(*outer_, RetryOn::timeout)) {
      // The next run must not begin before this one is over.
      outer_->verdict = std::move(cause);
    } else {
      if (!outer_->settled) hybrid.end_early(*outer_, outcome, cause);
    }
  }
  // The handler is the outer task's.
  std::shared_ptr<void> take_handler() override { return nullptr; }
  void destroy() noexcept override {
    const auto engine = std::move(engine_);
    TaskNode* const outer = outer_;
    std::exception_ptr cause;
    if (!told_early_) cause = std::make_exception_ptr(TaskAbandonedError(outer->core->context_of(*outer)));
    if (told_early_ && began_ns != 0) outer->ended_ns = ExecutorCore::now();
    delete this;
    Ending ending(std::move(cause), cause ? Outcome::failed : Outcome::completed);
    engine->ended(outer, engine->members.size(), {}, std::move(ending));
  }

 private:
  ~Forwarded() = default;

  std::shared_ptr<Engine> engine_;
  const std::size_t index_;
  TaskNode* const outer_;
  Refusals refusals_;
  bool told_early_ = false;
};

void HybridExecutor::Engine::submit(TaskNode* node, std::size_t index, Refusals refusals) {
  auto* const forwarded = new Forwarded(shared_from_this(), index, node, std::move(refusals));
  const auto holder = members[index];
  const std::uint64_t id = holder->make_cancellable(*forwarded);
  {
    const std::lock_guard lock(mutex);
    places[node] = {holder, id};
  }
  bool cancelled = false;
  {
    const ExecutorCore::Lock lock(core->mutex);
    cancelled = node->place.cancel_requested || core->owner == nullptr;
  }
  // Asked for before it could be found there.
  if (cancelled) holder->cancel(id, asio::cancellation_type::terminal);
  holder->submit(forwarded);
}

HybridExecutor::HybridExecutor(asio::any_io_executor io_executor, std::vector<std::shared_ptr<BaseExecutor>> executors,
                               HybridExecutorOptions options)
    : BaseExecutor(std::move(io_executor), common(options, executors)),
      options_(std::move(options)),
      executors_(std::move(executors)),
      engine_(std::make_shared<Engine>(core(), executors_, options_)) {
  core()->owner_limits_runs = true;
  core()->isolates = std::any_of(executors_.begin(), executors_.end(),
                                 [](const auto& executor) { return detail::core_of(*executor)->isolates; });
  core()->always_isolates = std::all_of(executors_.begin(), executors_.end(), [](const auto& executor) {
    return detail::core_of(*executor)->always_isolates;
  });
  core()->never_reuses_workers = std::any_of(executors_.begin(), executors_.end(), [](const auto& executor) {
    return detail::core_of(*executor)->never_reuses_workers;
  });
  core()->outcomes_from_threads = true;
}

HybridExecutor::~HybridExecutor() {
  close();
  engine_->cancel_all(asio::cancellation_type::terminal);
}

std::vector<Metrics> HybridExecutor::all_metrics() const {
  std::vector<Metrics> all{metrics()};
  for (const auto& executor : executors_) all.push_back(executor->metrics());
  return all;
}

void HybridExecutor::execute(Task task) {
  TaskNode* const node = TaskAccess::release(task);
  // One of them isolates: else the hybrid had refused the task.
  engine_->submit(node, engine_->next_for(*node, 0), {});
}

namespace {

using Failures = std::vector<ShutdownFailedError::Failure>;

void throw_if_any(Failures failures) {
  if (failures.empty()) return;
  if (failures.size() == 1) std::rethrow_exception(failures.front().error);
  throw ShutdownFailedError(std::move(failures));
}

// All at once if they need not be waited for, else one after the other.
asio::awaitable<void> shut_down_each(std::vector<std::shared_ptr<BaseExecutor>> executors, ShutdownOptions options,
                                     Deadline deadline, Failures& failures) {
  for (const auto& executor : executors) {
    options.timeout = deadline.left();
    try {
      co_await executor->shutdown(options);
    } catch (...) {
      failures.push_back({executor->name(), std::current_exception()});
    }
  }
}

}  // namespace

// Ends each of the executors: when no task of this one can need them any more, or when the time is over.
asio::awaitable<void> HybridExecutor::Engine::shut_down_executors(std::shared_ptr<ExecutorCore> tasks,
                                                                  Executors executors, Deadline deadline) {
  co_await wait_until_idle(std::move(tasks), deadline.left());
  ShutdownOptions options;
  // First all of them, without waiting: what is to happen at the end of the time happens to all at once. Who fails at
  // that fails when waited for.
  Failures ignored;
  options.wait = false;
  co_await shut_down_each(executors, options, deadline, ignored);
  Failures failures;
  options.wait = true;
  co_await shut_down_each(executors, options, deadline, failures);
  throw_if_any(std::move(failures));
}

asio::awaitable<void> HybridExecutor::stop(ShutdownOptions options) { return shut_down(engine_, executors_, options); }

asio::awaitable<void> HybridExecutor::shut_down(std::shared_ptr<Engine> engine, Executors executors,
                                                ShutdownOptions options) {
  const auto tasks = engine->core;
  const Deadline deadline(options.timeout);
  const std::string late = "it had not ended when the time for the shutdown was over";
  if (options.timeout) {
    tasks->wait_idle(options.timeout,
                     asio::bind_executor(tasks->io, [engine, tasks, late](std::exception_ptr, bool idle) {
                       if (idle) return;
                       // Executors that are shut down end what is late themselves, whatever it makes of a stop.
                       if (!engine->options.shut_down_executors) {
                         engine->cancel_all(asio::cancellation_type::terminal);
                       }
                       tasks->cancel_open_after(kMemberPatience, late);
                     }));
  }
  if (options.cancel_pending) {
    if (engine->options.shut_down_executors) {
      ShutdownOptions begin = options;
      begin.wait = false;
      Failures ignored;  // as below
      co_await shut_down_each(executors, begin, deadline, ignored);
    } else {
      engine->cancel_all(asio::cancellation_type::total);
    }
    tasks->cancel_parked("the executor was shut down");
  }
  std::exception_ptr failure;
  if (engine->options.shut_down_executors) {
    if (!options.wait) {
      // Who wants to know how it ends waits for the shutdown, and that asks each of the executors again.
      asio::co_spawn(tasks->io, Engine::shut_down_executors(tasks, executors, deadline), [](std::exception_ptr) {});
      co_return;
    }
    try {
      co_await Engine::shut_down_executors(tasks, executors, deadline);
    } catch (...) {
      failure = std::current_exception();
    }
  }
  if (!options.wait) co_return;
  std::optional<std::chrono::nanoseconds> left = deadline.left();
  if (left) *left += kMemberPatience;
  const bool idle = co_await wait_until_idle(tasks, left);
  if (!idle) tasks->cancel_open(true, late);
  if (failure) std::rethrow_exception(failure);
}

void HybridExecutor::add_metrics(Metrics& metrics) const { metrics.mode = "hybrid"; }

std::pair<std::shared_ptr<ExecutorCore>, std::uint64_t> HybridExecutor::passed_on(const TaskNode& node) const {
  const std::lock_guard lock(engine_->mutex);
  const auto found = engine_->places.find(&node);
  if (found == engine_->places.end()) return {};
  return {found->second.core.lock(), found->second.id};
}

// Posts, since the other executor's mutex must not be taken under this one's.
bool HybridExecutor::cancel_in_flight(TaskNode& node, asio::cancellation_type type) {
  node.place.cancel_requested = true;
  if (!core()->context_alive) return true;
  Engine::Place place;
  {
    const std::lock_guard lock(engine_->mutex);
    const auto found = engine_->places.find(&node);
    if (found == engine_->places.end()) return true;
    place = found->second;
  }
  asio::post(core()->io, [place, type] {
    if (const auto holder = place.core.lock()) holder->cancel(place.id, type);
  });
  return true;
}

}  // namespace bulkhead
