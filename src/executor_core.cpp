// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/executor_core.hpp>

#include "background.hpp"
#include "context_service.hpp"
#include "event_hub.hpp"
#include "quarantine.hpp"
#include "retries.hpp"
#include "time_limits.hpp"
#include "wait_list.hpp"

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/task_record.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/result_store.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <ctime>
#include <stdexcept>
#include <utility>

// A task's way in, and out.

namespace bulkhead::detail {
namespace {

// Last of all: it may take the executor with it.
void hand_over(TaskNode* node, bool wanted, Delivery from) {
  if (wanted) {
    node->deliver(from);
  } else {
    node->destroy();
  }
}

TaskStatus status_after(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::completed:
      return TaskStatus::succeeded;
    case Outcome::failed:
      return TaskStatus::failed;
    case Outcome::cancelled:
      return TaskStatus::cancelled;
    case Outcome::timed_out:
      return TaskStatus::timed_out;
  }
  return TaskStatus::failed;
}

EventKind event_of(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::completed:
      return EventKind::succeeded;
    case Outcome::failed:
      return EventKind::failed;
    case Outcome::cancelled:
      return EventKind::cancelled;
    case Outcome::timed_out:
      return EventKind::timed_out;
  }
  return EventKind::failed;
}

}  // namespace

// 0.5 to 2.5 µs at the 1 to 5 GHz at which such counters run.
[[maybe_unused]] constexpr std::uint64_t kRecentTicks = 2500;

asio::execution_context::id ContextService::id;

Initiation*& Initiation::current() noexcept {
  thread_local Initiation* current = nullptr;
  return current;
}

// Said once more, by hand: what `renew` leaves out shows here, in builds with assertions.
bool TaskNode::is_as_made() const noexcept {
  const auto linked = [](const ListLink& link) { return link.next != nullptr || link.previous != nullptr; };
  const bool in_a_list = linked(static_cast<const OpenLink&>(*this)) ||
                         linked(static_cast<const AdmissionLink&>(*this)) ||
                         linked(static_cast<const QueuedTask&>(*this));
  const bool holds = error || verdict || progress_relay || held.use_count() != 0 || record || failed_runs ||
                     place.area || place.buffers;
  const bool has_number = id != 0 || order != 0 || priority != 0 || compartment != kSharedCompartment ||
                          instance_wait != 0 || earlier_runs != 0;
  const bool has_time = waits_since_ns != 0 || must_end_ns != 0 || began_ns != 0 || ended_ns != 0 || retry_at_ns != 0 ||
                        cpu_began_ns != 0 || cpu_clock != 0;
  const bool has_state = stop_requested.load() != 0 || outcome != Outcome::completed || waiting || waited_in_vain ||
                         admitted || settled || last_run || runs_here || holds_instance || told_started ||
                         cancel_asked || wants_started || asks_here || cancellable || waits_for_room || renewable ||
                         altered;
  const bool has_place = place.denied_since_ns != 0 || place.denials != 0 || place.placed_ns != 0 ||
                         place.seen_begun_ns != 0 || place.deadline != 0 || place.outlived_by != 0 ||
                         place.kill_at != 0 || place.restarts != 0 || place.progress_version != 0 ||
                         place.worker_pid != 0 || place.worker != 0 || place.sequence != 0 ||
                         place.stage != Stage::none || place.cancel_requested || place.decided || place.fresh ||
                         place.looked_at || !place.answer.empty();
  return !in_a_list && !holds && !has_number && !has_time && !has_state && !has_place;
}

ExecutorCore::ExecutorCore(BaseExecutor& owning, asio::any_io_executor io_executor, CommonOptions options)
    : name(std::move(options.name)),
      io(std::move(io_executor)),
      max_pending(options.max_pending),
      overload(options.overload),
      instances(options.instances ? std::move(options.instances) : std::make_shared<InstanceGroup>()),
      tasks(std::move(options.tasks)),
      results(options.results ? std::move(options.results) : std::make_shared<ResultStore>()),
      owner(&owning),
      idle_waits_(std::make_shared<WaitList>(io)) {}

ExecutorCore::~ExecutorCore() = default;

std::uint64_t ExecutorCore::now() noexcept {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(time.tv_nsec);
}

// Reading the clock takes a tenth of a tiny task's whole way, and stalls the CPU until all that went before is done.
// The CPU's counter, which does not, tells whether the last reading will do. It decides nothing else, so it need not be
// the same on every CPU.
std::uint64_t ExecutorCore::recent_now() noexcept {
#if defined(__x86_64__)
  const std::uint64_t ticks = __builtin_ia32_rdtsc();
  // Those who ask in a row have asked three more times in between.
  looks_to_skip_ = passing_thread_ == __builtin_thread_pointer() && ticks - looked_ticks_ < kRecentTicks ? 3 : 0;
  looked_ticks_ = ticks;
  if (ticks - recent_ticks_ < kRecentTicks) return recent_ns_;
  recent_ticks_ = ticks;
  recent_ns_ = now();
  return recent_ns_;
#else
  return now();
#endif
}

// For a task without limits, whose time of submission is only counted with: reading the CPU's counter takes a tenth of
// a tiny task's way, too, and where four of them come within that time the next three will. If they do not, as a
// handler takes long all of a sudden, three tasks seem to have been submitted when it began.
std::uint64_t ExecutorCore::time_in_passing() noexcept {
  if (looks_to_skip_ == 0 || passing_thread_ != __builtin_thread_pointer()) return recent_now();
  --looks_to_skip_;
  return recent_ns_;
}

ErrorContext ExecutorCore::context_of(const TaskNode& node) const {
  ErrorContext context;
  context.task = node.name();
  context.task_id = node.id;
  context.executor = name;
  return context;
}

std::uint64_t ExecutorCore::make_cancellable(TaskNode& node) {
  const Lock lock(mutex);
  node.id = ++last_id;
  node.cancellable = true;
  cancellable_.emplace(node.id, &node);
  return node.id;
}

std::optional<ExecutorCore::Seen> ExecutorCore::look_at(std::uint64_t id) const {
  Lock lock(mutex);
  const auto found = cancellable_.find(id);
  if (found == cancellable_.end()) return std::nullopt;
  const TaskNode& node = *found->second;
  Seen seen;
  if (owner != nullptr && node.retry_at_ns == 0) {
    if (const auto [holder, number] = owner->passed_on(node); holder) {
      seen.attempt = node.attempt();
      // Without the mutex: the other executor's is to be locked before this one's.
      lock.unlock();
      if (auto there = holder->look_at(number)) {
        there->attempt = seen.attempt;
        return there;
      }
      return seen;
    }
  }
  seen.attempt = node.attempt();
  if (node.retry_at_ns != 0) {
    seen.status = TaskStatus::retrying;
    --seen.attempt;
  } else if (node.runs_here || (owner != nullptr && owner->has_begun(node))) {
    seen.status = TaskStatus::running;
    seen.began_ns = node.began_ns != 0 ? node.began_ns : node.place.seen_begun_ns;
    if (owner != nullptr) seen.progress = owner->progress_of(node);
  }
  return seen;
}

// With the mutex: the event loop is not to end.
void ExecutorCore::hold_work() {
  if (!owner_holds_work && !work_) work_ = asio::prefer(io, asio::execution::outstanding_work.tracked);
}

// It is one of the executor's tasks now.
inline void ExecutorCore::count_in(TaskNode& node) {
  if (!owner_holds_work) hold_work();
  node.admitted = true;
  ++in_flight;
  ++open;
  ++submitted;
  open_tasks.push_back(node);
  if (events_) tell(EventKind::submitted, node);
}

bool ExecutorCore::admit(TaskNode& node) {
  if (in_flight >= max_pending || !waiting.empty()) return false;
  count_in(node);
  return true;
}

// Most tasks: nothing but `max_pending` can keep it from being run at once.
bool ExecutorCore::is_plain(const TaskNode& node) const noexcept {
  return accepting && owner != nullptr && !leaving && !quarantine && !node.options.has_rare() && !node.cancel_asked &&
         !node.may_begin_too_late();
}

void ExecutorCore::submit(TaskNode* node) {
  Lock lock(mutex);
  if (nodes_++ == 0) self_ = shared_from_this();
  if (node->id == 0) node->id = ++last_id;
  const bool plain = is_plain(*node);
  node->submitted_ns = plain ? time_in_passing() : recent_now();
  const bool admitted = plain && admit(*node);
  if (admitted && owner->execute_at_once(*node)) return;
  Initiation initiation;
  if (admitted) {
    start_one(node, lock, initiation);
    return;
  }
  if (node->options.has_rare() && node->must_end_ns == 0) {
    if (const auto limit = node->options.total_timeout())
      node->must_end_ns = deadline_after(node->submitted_ns, *limit);
  }
  if (accepting && node->cancel_asked) {
    // It never became one of the tasks in flight, yet its caller gets an outcome: both sides of the sum count it.
    auto error = cancelled_error(*node, "it was cancelled as it was submitted");
    ++submitted;
    ++cancelled;
    --rejected;  // which `refuse` counts
    if (events_) {
      tell(EventKind::submitted, *node);
      tell(EventKind::cancelled, *node, error);
    }
    if (node->record) node->record->set_status(TaskStatus::cancelled);
    refuse(node, std::move(error), lock, Outcome::cancelled);
    return;
  }
  if (node->options.has_rare() && !node->record && node->options.only_spawned()) {
    refuse(node,
           std::make_exception_ptr(std::invalid_argument(
               "TaskOptions::id and metadata are of tasks that are found again: give them to spawn, submit_at or "
               "submit_after")),
           lock);
    return;
  }
  if (node->options.has_rare() && node->options.retry() != nullptr && !node->repeatable()) {
    refuse(
        node,
        std::make_exception_ptr(std::invalid_argument(
            "TaskOptions::retry: this call would be used up by its first run, since nothing says that it can be "
            "copied, as of a lambda that captures more than plain values; wrap the callable in std::function, or pass "
            "what it captures as arguments")),
        lock);
    return;
  }
  if (const Isolation* const isolation = node->options.has_rare() ? node->options.isolation() : nullptr) {
    const bool reuses = isolation->kind() == Isolation::Kind::reuse;
    if (reuses ? never_reuses_workers : !isolates) {
      refuse(node,
             std::make_exception_ptr(std::invalid_argument(
                 reuses ? "TaskOptions::isolation: reuse is forbidden by this executor's SandboxPolicy "
                          "(never_reuse_workers); use fresh or per_key"
                        : "TaskOptions::isolation: only a LocalExecutor isolates tasks from each other")),
             lock);
      return;
    }
  }
  if (accepting && quarantine && refused_by_quarantine(*node)) {
    refuse(node, std::exchange(node->error, nullptr), lock);
    return;
  }
  if (accepting && node->options.has_rare()) {
    if (auto error = refused_by_instances(*node)) {
      refuse(node, std::move(error), lock);
      return;
    }
  }
  if (accepting && admit(*node)) {
    start_one(node, lock, initiation);
    return;
  }
  if (accepting && (overload == OverloadPolicy::wait || node->waits_for_room)) {
    hold_work();
    waiting.push_back(*node);
    node->waiting = true;
    ++waiting_count;
    if (node->may_begin_too_late()) watch_limits(*node);
    return;
  }
  refuse(node,
         accepting ? std::make_exception_ptr(ExecutorOverloadError(max_pending, context_of(*node)))
                   : std::make_exception_ptr(ExecutorNotRunningError(context_of(*node))),
         lock);
}

// With the mutex: a task is to be handed over. Its executor may be gone, and this be its last task: keep what is given
// until then. The event loop's own handlers keep the core themselves.
std::shared_ptr<ExecutorCore> ExecutorCore::let_go_of_node(Delivery from) {
  if (--nodes_ == 0) return std::move(self_);
  return from == Delivery::on_io_executor ? nullptr : shared_from_this();
}

// With the mutex, which is given back.
void ExecutorCore::refuse(TaskNode* node, std::exception_ptr error, Lock& lock, Outcome as) {
  ++rejected;
  forget(*node);
  if (as == Outcome::failed) {
    if (events_) tell(EventKind::rejected, *node, error);
    if (node->record) {
      node->record->set_status(TaskStatus::failed);
      node->record->set_refused();
    }
  }
  node->outcome = as;
  node->error = std::move(error);
  const bool grants = release_instance(*node);
  const bool over = !context_alive || node->post_outcome();
  const std::optional<Work> work = take_work();  // until the handler has been handed over
  nothing_left();
  const auto keep = let_go_of_node(Delivery::initiating);
  lock.unlock();
  if (grants) pass_grants_on();
  hand_over(node, !over, Delivery::initiating);
}

// With the mutex, which is given back.
void ExecutorCore::start_one(TaskNode* node, Lock& lock, Initiation& initiation) {
  if (owner == nullptr || leaving) {
    lock.unlock();
    fail(node, std::make_exception_ptr(ExecutorNotRunningError(context_of(*node))), Outcome::failed,
         Delivery::initiating);
    return;
  }
  if (node->settled) {
    // It was cancelled on its way here.
    settle(node, Outcome::cancelled, Delivery::initiating, lock);
    return;
  }
  if (node->must_end_ns != 0 && now() >= node->must_end_ns) {
    lock.unlock();
    fail(node,
         std::make_exception_ptr(TaskTimeoutError(TaskTimeoutError::Which::total, *node->options.total_timeout(),
                                                  context_of(*node), not_run_reason(*node))),
         Outcome::timed_out, Delivery::initiating);
    return;
  }
  if (node->options.has_rare() && waits_for_instance(*node)) {
    lock.unlock();
    return;
  }
  if (owner_limits_runs) {
    unwatch(*node);
  } else if (node->may_begin_too_late()) {
    watch_limits(*node);
  }
  initiation.starting = node;
  std::exception_ptr thrown;
  try {
    owner->execute_locked(node, lock);
  } catch (...) {
    // If the executor had given the task away before it threw, the task has its outcome from there, and its submitter
    // needs no second one.
    thrown = std::current_exception();
  }
  if (!initiation.dropped) return;
  if (lock.owns_lock()) lock.unlock();
  if (!thrown) thrown = std::make_exception_ptr(TaskAbandonedError(context_of(*node)));
  fail(node, std::move(thrown), Outcome::failed, Delivery::initiating);
}

namespace {
// Tasks that this thread is to start: one that ends at once lets in the next, and so on, which must not be a recursion.
thread_local ExecutorCore::Admitted* starting_here = nullptr;
}  // namespace

void ExecutorCore::start(Admitted& admitted) {
  if (admitted.empty()) return;
  if (starting_here != nullptr) {
    while (TaskNode* const node = admitted.pop_front()) starting_here->push_back(*node);
    return;
  }
  struct Here {
    explicit Here(Admitted& list) { starting_here = &list; }
    ~Here() { starting_here = nullptr; }
  } const here(admitted);
  while (TaskNode* const node = admitted.pop_front()) {
    const std::shared_ptr<ExecutorCore> core = node->core->shared_from_this();
    Initiation initiation;  // Whoever starts a task is inside an initiating function, or has just settled another task.
    Lock lock(core->mutex);
    core->start_one(node, lock, initiation);
  }
}

// With the mutex: the task leaves all tables.
void ExecutorCore::forget(TaskNode& node) {
  if (node.cancellable) {
    cancellable_.erase(node.id);
    node.cancellable = false;
  }
  unwatch(node);
}

void ExecutorCore::count(TaskNode& node, Outcome outcome, const std::exception_ptr& error) {
  if (node.began_ns != 0 && wants_started(node)) tell_started(node);
  if (events_) tell(event_of(outcome), node, error);
  node.settled = true;
  node.outcome = outcome;
  --open;
  if (std::exchange(node.runs_here, false)) --running;
  static_cast<OpenLink&>(node).unlink();
  if (node.cancellable || node.place.deadline != 0) forget(node);
  if (node.record) {
    node.record->note_run(node.attempt(), node.began_ns);
    node.record->set_status(status_after(outcome));
  }
  switch (outcome) {
    case Outcome::completed:
      ++completed;
      break;
    case Outcome::failed:
      ++failed;
      break;
    case Outcome::cancelled:
      ++cancelled;
      break;
    case Outcome::timed_out:
      ++timed_out;
      break;
  }
}

void ExecutorCore::count_run(const TaskNode& node) {
  if (node.ended_ns == 0) return;
  ++runs;
  total_run_ns += node.ended_ns - node.began_ns;
  total_wait_ns += node.began_ns - node.submitted_ns;
}

void ExecutorCore::admit_waiting(Admitted& admitted) {
  while (in_flight < max_pending) {
    TaskNode* node = waiting.pop_front();
    if (node == nullptr) return;
    --waiting_count;
    unwatch(*node);
    node->waiting = false;
    count_in(*node);
    admitted.push_back(*node);
  }
}

bool ExecutorCore::begin(TaskNode& node) {
  const Lock lock(mutex);
  if (node.settled) return false;
  node.began_ns = now();
  node.runs_here = true;
  ++running;
  if (wants_started(node)) tell_started(node);
  if (!owner_limits_runs && (node.options.timeout() || node.place.deadline != 0 || node.options.has_rare())) {
    watch_limits(node);
  }
  return true;
}

void ExecutorCore::settle(TaskNode* node, Outcome outcome, Delivery from) {
  Lock lock(mutex);
  settle(node, outcome, from, lock);
}

void ExecutorCore::settle(TaskNode* node, Outcome outcome, Delivery from, Lock& lock) {
  if (node->verdict) {
    node->error = std::exchange(node->verdict, nullptr);
    outcome = Outcome::timed_out;
  }
  if (outcomes_from_threads && asks_elsewhere(*node, outcome, from)) {
    lock.unlock();
    return;
  }
  if (quarantine) note_crashes(*node, outcome);
  if (outcome != Outcome::completed && node->options.has_rare() && try_again(*node, outcome, lock)) {
    lock.unlock();
    return;
  }
  count_run(*node);
  const bool settled_before = node->settled;  // and only waits to be destroyed
  if (!settled_before) count(*node, outcome, node->error);
  if (std::exchange(node->admitted, false)) --in_flight;
  const bool grants = node->holds_instance && release_instance(*node);
  // What is posted anyway is posted under the mutex, where it is known whether there still is a context.
  const bool post = outcomes_from_threads || from == Delivery::initiating;
  const bool wanted = !settled_before && !(post && (!context_alive || node->post_outcome()));
  if (grants || !waiting.empty() || in_flight == 0 || open == 0) {
    make_room(node, wanted, from, lock, grants);
    return;
  }
  const auto keep = let_go_of_node(from);
  lock.unlock();
  hand_over(node, wanted, from);
}

// The end of `settle` where others may have waited for it.
void ExecutorCore::make_room(TaskNode* node, bool wanted, Delivery from, Lock& lock, bool grants) {
  Admitted admitted;
  if (!waiting.empty()) admit_waiting(admitted);
  // Until the handler has been handed over.
  std::optional<Work> work;
  if (!admitted.empty() || in_flight == 0 || open == 0) {
    work = take_work();
    complete_idle_waits();
    nothing_left();
    if (outcomes_from_threads) work.reset();
  }
  const auto keep = let_go_of_node(from);
  lock.unlock();
  if (grants) pass_grants_on();
  start(admitted);
  hand_over(node, wanted, from);
}

void ExecutorCore::give_back(std::size_t places, Lock& lock) {
  in_flight -= places;
  Admitted admitted;
  if (!waiting.empty()) admit_waiting(admitted);
  complete_idle_waits();
  if (admitted.empty()) return;
  lock.unlock();
  start(admitted);
  lock.lock();
}

void ExecutorCore::fail(TaskNode* node, std::exception_ptr cause, Outcome outcome, Delivery from) {
  node->error = std::move(cause);
  settle(node, outcome, from);
}

// Posts, so that it may be done with the mutex; and under it, since the context may be destroyed at any other time.
void ExecutorCore::complete_idle_waits() {
  if (in_flight == 0 && waiting.empty() && context_alive) idle_waits_->complete();
}

void ExecutorCore::wait_idle(std::optional<std::chrono::nanoseconds> timeout,
                             asio::any_completion_handler<void(std::exception_ptr, bool)> handler) {
  const Lock lock(mutex);
  if (!context_alive) return;
  if (in_flight == 0 && waiting.empty()) {
    asio::post(io, asio::append(std::move(handler), std::exception_ptr(), true));
    return;
  }
  idle_waits_->wait(timeout, std::move(handler));
}

// With the mutex.
Background& ExecutorCore::background() {
  if (!background_) background_ = Background::get();
  return *background_;
}

Metrics ExecutorCore::snapshot() const {
  Metrics metrics;
  metrics.name = name;
  metrics.waiting = waiting_count;
  metrics.scheduled = *scheduled;
  metrics.max_pending = max_pending;
  metrics.running = running;
  metrics.pending = open - running;
  metrics.lingering = in_flight - std::min(in_flight, open);
  metrics.submitted = submitted;
  metrics.completed = completed;
  metrics.failed = failed;
  metrics.rejected = rejected;
  metrics.cancelled = cancelled;
  metrics.timed_out = timed_out;
  metrics.retried = retried;
  metrics.quarantined = quarantined;
  metrics.runs = runs;
  metrics.total_run_time = std::chrono::nanoseconds(total_run_ns);
  metrics.total_queue_wait = std::chrono::nanoseconds(total_wait_ns);
  if (runs > 0) {
    metrics.average_run_time = metrics.total_run_time / static_cast<std::int64_t>(runs);
    metrics.average_queue_wait = metrics.total_queue_wait / static_cast<std::int64_t>(runs);
  }
  return metrics;
}

TaskOptions ExecutorCore::with_isolation(TaskOptions options) const {
  if (never_reuses_workers && options.isolation() == nullptr) options.isolation(Isolation::fresh());
  return options;
}

}  // namespace bulkhead::detail
