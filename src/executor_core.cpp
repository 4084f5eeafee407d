// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/executor_core.hpp>

#include "background.hpp"
#include "context_service.hpp"
#include "quarantine.hpp"
#include "retries.hpp"

#include <bulkhead/base_executor.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <set>
#include <utility>

namespace bulkhead {
namespace detail {
namespace {

using IdleHandler = asio::any_completion_handler<void(std::exception_ptr, bool)>;

// Last of all: it may take the executor with it.
void hand_over(TaskNode* node, bool wanted, Delivery from) {
  if (wanted) {
    node->deliver(from);
  } else {
    node->destroy();
  }
}

void complete_idle_waits(std::vector<IdleHandler> handlers, const asio::any_io_executor& io) {
  for (IdleHandler& handler : handlers) {
    asio::post(io, asio::append(std::move(handler), std::exception_ptr(), true));
  }
}

}  // namespace

asio::execution_context::id ContextService::id;

Initiation*& Initiation::current() noexcept {
  thread_local Initiation* current = nullptr;
  return current;
}

struct ExecutorCore::IdleWait {
  std::uint64_t id;
  IdleHandler handler;
  std::shared_ptr<asio::steady_timer> timer;

  IdleWait(std::uint64_t number, IdleHandler waiting) : id(number), handler(std::move(waiting)) {}
};

// When tasks that wait for admission give up. The timer belongs to the background thread.
struct ExecutorCore::Deadlines {
  explicit Deadlines(Background& background) : timer(background.context()) {}

  std::set<std::pair<std::uint64_t, std::uint64_t>> by_time;  // (deadline, task id)
  std::map<std::uint64_t, TaskNode*> tasks;
  asio::steady_timer timer;
};

ExecutorCore::ExecutorCore(BaseExecutor& owning, asio::any_io_executor io_executor, std::string executor_name,
                           std::size_t limit, OverloadPolicy policy)
    : name(std::move(executor_name)),
      io(std::move(io_executor)),
      max_pending(limit),
      overload(policy),
      owner(&owning) {}

ExecutorCore::~ExecutorCore() = default;

std::uint64_t ExecutorCore::now() noexcept {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(time.tv_nsec);
}

// Reading the clock takes a tenth of a tiny task's whole way, and stalls the CPU until all that went before is done.
// The CPU's counter, which does not, tells whether the last reading will do: 2500 ticks are 0.5 to 2.5 µs at the 1 to 5
// GHz at which such counters run. It decides nothing else, so it need not be the same on every CPU.
std::uint64_t ExecutorCore::recent_now() noexcept {
#if defined(__x86_64__)
  const std::uint64_t ticks = __builtin_ia32_rdtsc();
  if (ticks - recent_ticks_ < 2500) return recent_ns_;
  recent_ticks_ = ticks;
  recent_ns_ = now();
  return recent_ns_;
#else
  return now();
#endif
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

bool ExecutorCore::admit(TaskNode& node) {
  if (in_flight >= max_pending || !waiting.empty()) return false;
  if (!owner_holds_work && !work_) work_ = asio::prefer(io, asio::execution::outstanding_work.tracked);
  node.admitted = true;
  ++in_flight;
  ++open;
  ++submitted;
  open_tasks.push_back(node);
  return true;
}

void ExecutorCore::submit(TaskNode* node) {
  Initiation initiation;
  Lock lock(mutex);
  node->submitted_ns = recent_now();
  if (node->id == 0) node->id = ++last_id;
  if (accepting && quarantine && refused_by_quarantine(*node)) {
    lock.unlock();
    node->deliver(Delivery::initiating);
    return;
  }
  if (accepting && admit(*node)) {
    start_one(node, lock, initiation);
    return;
  }
  if (accepting && overload == OverloadPolicy::wait) {
    waiting.push_back(*node);
    node->waiting = true;
    ++waiting_count;
    if (node->options.queue_timeout()) arm_queue_deadline(*node);
    return;
  }
  ++rejected;
  forget(*node);
  node->error = accepting ? std::make_exception_ptr(ExecutorOverloadError(max_pending, context_of(*node)))
                          : std::make_exception_ptr(ExecutorNotRunningError(context_of(*node)));
  lock.unlock();
  node->deliver(Delivery::initiating);
}

// With the mutex, which is given back.
void ExecutorCore::start_one(TaskNode* node, Lock& lock, Initiation& initiation) {
  if (owner == nullptr) {
    lock.unlock();
    fail(node, std::make_exception_ptr(ExecutorNotRunningError(context_of(*node))), Outcome::failed,
         Delivery::initiating);
    return;
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
  if (!thrown) thrown = std::make_exception_ptr(TaskAbandonedError(context_of(*node)));
  fail(node, std::move(thrown), Outcome::failed, Delivery::initiating);
}

void ExecutorCore::start(const Admitted& admitted) {
  for (TaskNode* node : admitted) {
    Initiation initiation;  // Whoever starts a task is inside an initiating function, or has just settled another task.
    Lock lock(mutex);
    start_one(node, lock, initiation);
  }
}

// With the mutex: the task leaves all tables.
void ExecutorCore::forget(TaskNode& node) {
  if (node.cancellable) {
    cancellable_.erase(node.id);
    node.cancellable = false;
  }
  if (deadlines_ && deadlines_->tasks.erase(node.id) > 0) {
    const auto deadline =
        node.submitted_ns +
        static_cast<std::uint64_t>(node.options.queue_timeout().value_or(TaskOptions::Duration(0)).count());
    deadlines_->by_time.erase({deadline, node.id});
  }
}

void ExecutorCore::count(TaskNode& node, Outcome outcome) {
  node.settled = true;
  --open;
  if (std::exchange(node.runs_here, false)) --running;
  static_cast<OpenLink&>(node).unlink();
  if (node.cancellable || deadlines_) forget(node);
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

bool ExecutorCore::account(TaskNode& node, Outcome outcome, Admitted& admitted) {
  count_run(node);
  const bool wanted = !node.settled;
  if (wanted) count(node, outcome);
  if (node.admitted) {
    node.admitted = false;
    --in_flight;
    if (!waiting.empty()) admit_waiting(admitted);
  }
  return wanted;
}

void ExecutorCore::admit_waiting(Admitted& admitted) {
  while (in_flight < max_pending) {
    TaskNode* node = waiting.pop_front();
    if (node == nullptr) return;
    --waiting_count;
    if (deadlines_) {
      // From here on the executor sees to the queue timeout.
      const bool cancellable = std::exchange(node->cancellable, false);
      forget(*node);
      node->cancellable = cancellable;
    }
    node->waiting = false;
    node->admitted = true;
    ++in_flight;
    ++open;
    ++submitted;
    open_tasks.push_back(*node);
    admitted.push_back(node);
  }
}

bool ExecutorCore::begin(TaskNode& node) {
  const Lock lock(mutex);
  if (node.settled) return false;
  node.began_ns = now();
  node.runs_here = true;
  ++running;
  return true;
}

void ExecutorCore::settle(TaskNode* node, Outcome outcome, Delivery from) {
  Lock lock(mutex);
  settle(node, outcome, from, lock);
}

void ExecutorCore::settle(TaskNode* node, Outcome outcome, Delivery from, Lock& lock) {
  if (quarantine) note_crashes(*node, outcome);
  if (outcome != Outcome::completed && node->options.has_rare() && try_again(*node, outcome, lock)) {
    lock.unlock();
    return;
  }
  Admitted admitted;
  const bool wanted = account(*node, outcome, admitted);
  if (!admitted.empty() || in_flight == 0 || open == 0) {
    // Until the handler has been handed over.
    std::optional<Work> work;
    if (work_ && open == 0 && waiting.empty()) work.swap(work_);
    auto idle = take_idle_waiters();
    lock.unlock();
    start(admitted);
    if (!idle.empty()) complete_idle_waits(std::move(idle), io);
    hand_over(node, wanted, from);
    return;
  }
  lock.unlock();
  hand_over(node, wanted, from);
}

void ExecutorCore::give_back(std::size_t places, Lock& lock) {
  in_flight -= places;
  Admitted admitted;
  if (!waiting.empty()) admit_waiting(admitted);
  auto idle = take_idle_waiters();
  lock.unlock();
  start(admitted);
  if (!idle.empty()) complete_idle_waits(std::move(idle), io);
  lock.lock();
}

void ExecutorCore::fail(TaskNode* node, std::exception_ptr cause, Outcome outcome, Delivery from) {
  node->error = std::move(cause);
  settle(node, outcome, from);
}

std::vector<IdleHandler> ExecutorCore::take_idle_waiters() {
  std::vector<IdleHandler> handlers;
  if (idle_waits_.empty() || in_flight > 0 || !waiting.empty()) return handlers;
  for (const auto& wait : idle_waits_) {
    if (wait->timer) {
      asio::post(wait->timer->get_executor(), [timer = wait->timer] { timer->cancel(); });
    }
    handlers.push_back(std::move(wait->handler));
  }
  idle_waits_.clear();
  return handlers;
}

void ExecutorCore::wait_idle(std::optional<std::chrono::nanoseconds> timeout, IdleHandler handler) {
  const Lock lock(mutex);
  if (in_flight == 0 && waiting.empty()) {
    asio::post(io, asio::append(std::move(handler), std::exception_ptr(), true));
    return;
  }
  const std::uint64_t id = ++last_idle_wait_;
  const auto give_up = [weak = weak_from_this(), id](bool expired) {
    const auto self = weak.lock();
    if (!self) return;
    std::unique_ptr<IdleWait> found;
    const Lock guard(self->mutex);
    const auto place = std::find_if(self->idle_waits_.begin(), self->idle_waits_.end(),
                                    [&](const auto& wait) { return wait->id == id; });
    if (place == self->idle_waits_.end() || !self->context_alive) return;
    found = std::move(*place);
    self->idle_waits_.erase(place);
    auto cause = expired ? std::exception_ptr()
                         : std::make_exception_ptr(boost::system::system_error(asio::error::operation_aborted));
    asio::post(self->io, asio::append(std::move(found->handler), std::move(cause), false));
  };
  auto slot = asio::get_associated_cancellation_slot(handler);
  idle_waits_.push_back(std::make_unique<IdleWait>(id, std::move(handler)));
  if (slot.is_connected()) {
    slot.assign([give_up](asio::cancellation_type) { give_up(false); });
  }
  if (timeout) {
    auto timer = std::make_shared<asio::steady_timer>(background().context());
    idle_waits_.back()->timer = timer;
    asio::post(timer->get_executor(), [timer, limit = *timeout, give_up] {
      timer->expires_after(limit);
      timer->async_wait([timer, give_up](boost::system::error_code error) {
        if (!error) give_up(true);
      });
    });
  }
}

void ExecutorCore::stop_accepting() {
  std::vector<TaskNode*> refused;
  std::vector<IdleHandler> idle;
  Admitted to_retry;
  {
    const Lock lock(mutex);
    accepting = false;
    to_retry = take_retries();
    while (TaskNode* node = waiting.pop_front()) {
      --waiting_count;
      ++rejected;
      forget(*node);
      refused.push_back(node);
    }
    idle = take_idle_waiters();
  }
  for (TaskNode* node : refused) {
    node->error = std::make_exception_ptr(
        ExecutorNotRunningError(context_of(*node), "the executor was shut down while the task waited for admission"));
    node->deliver(Delivery::initiating);
  }
  end_retries(to_retry);
  complete_idle_waits(std::move(idle), io);
}

// With the mutex: cancels a task whose node stays where it is. Posting and not dispatching, since user code must not
// run under the mutex; and under the mutex, since the context may be destroyed at any other time.
void ExecutorCore::cancel_early(TaskNode& node, const std::string& reason, const Lock&) {
  const auto stage = node.runs_here ? TaskCancelledError::Stage::running : TaskCancelledError::Stage::queued;
  count(node, Outcome::cancelled);
  if (!context_alive) return;
  node.deliver_early(std::make_exception_ptr(TaskCancelledError(stage, context_of(node), reason)),
                     Delivery::initiating);
  if (open == 0 && waiting.empty()) work_.reset();
}

void ExecutorCore::cancel_open(bool running_too, const std::string& reason) {
  const Lock lock(mutex);
  for (TaskNode* node = open_tasks.front(); node != nullptr;) {
    TaskNode* const following = open_tasks.next(*node);
    if (running_too || !node->runs_here) cancel_early(*node, reason, lock);
    node = following;
  }
}

void ExecutorCore::cancel(std::uint64_t id, asio::cancellation_type type) {
  constexpr auto any =
      asio::cancellation_type::terminal | asio::cancellation_type::partial | asio::cancellation_type::total;
  if ((type & any) == asio::cancellation_type::none) return;
  TaskNode* finished = nullptr;
  TaskNode* not_retried = nullptr;
  {
    const Lock lock(mutex);
    const auto found = cancellable_.find(id);
    if (found == cancellable_.end()) return;
    TaskNode& node = *found->second;
    if (node.waiting) {
      static_cast<QueuedTask&>(node).unlink();
      --waiting_count;
      // It never became one of the tasks in flight, yet its caller gets an outcome: both sides of the sum count it.
      ++submitted;
      ++cancelled;
      forget(node);
      node.error = std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::waiting, context_of(node)));
      finished = &node;
    } else if (!static_cast<OpenLink&>(node).linked()) {
      return;  // Not submitted yet: its initiation is under way.
    } else if (node.retry_at_ns != 0) {
      retries_->remove(node);
      not_retried = &node;
    } else {
      constexpr auto stopping = asio::cancellation_type::terminal | asio::cancellation_type::partial;
      const bool stop = (type & stopping) != asio::cancellation_type::none;
      // It may have failed already, and be about to wait for another run.
      if (stop) node.last_run = true;
      if (owner != nullptr && owner->cancel_in_flight(node, type)) return;
      if (stop) node.stop_requested.store(1, std::memory_order_release);
      if (node.runs_here && (type & asio::cancellation_type::terminal) == asio::cancellation_type::none) return;
      cancel_early(node, {}, lock);
    }
  }
  // Never inside the call to `emit`: the caller may hold locks of its own.
  if (finished != nullptr) finished->deliver(Delivery::initiating);
  if (not_retried != nullptr) {
    fail(not_retried,
         std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::queued, context_of(*not_retried),
                                                    "it had failed, and waited for its next run")),
         Outcome::cancelled, Delivery::initiating);
  }
}

void ExecutorCore::arm_queue_deadline(TaskNode& node) {
  if (!deadlines_) deadlines_ = std::make_unique<Deadlines>(background());
  const auto deadline = node.submitted_ns + static_cast<std::uint64_t>(node.options.queue_timeout()->count());
  deadlines_->by_time.emplace(deadline, node.id);
  deadlines_->tasks.emplace(node.id, &node);
  if (deadlines_->by_time.begin()->second != node.id) return;
  asio::post(deadlines_->timer.get_executor(), [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->queue_deadline_passed();
  });
}

// On the background thread: refuses what has waited too long, and sets the timer for the next.
void ExecutorCore::queue_deadline_passed() {
  const Lock lock(mutex);
  if (!deadlines_ || !context_alive) return;
  const std::uint64_t time = now();
  while (!deadlines_->by_time.empty() && deadlines_->by_time.begin()->first <= time) {
    TaskNode& node = *deadlines_->tasks.at(deadlines_->by_time.begin()->second);
    static_cast<QueuedTask&>(node).unlink();
    --waiting_count;
    ++rejected;
    forget(node);
    node.error = std::make_exception_ptr(ExecutorOverloadError(
        max_pending, context_of(node),
        fmt::format("it was not admitted within its queue_timeout of {} ms",
                    std::chrono::duration<double, std::milli>(*node.options.queue_timeout()).count())));
    node.deliver(Delivery::initiating);
  }
  if (deadlines_->by_time.empty()) return;
  deadlines_->timer.expires_after(std::chrono::nanoseconds(deadlines_->by_time.begin()->first - time));
  deadlines_->timer.async_wait([weak = weak_from_this()](boost::system::error_code error) {
    if (error) return;
    if (const auto self = weak.lock()) self->queue_deadline_passed();
  });
}

// With the mutex.
Background& ExecutorCore::background() {
  if (!background_) background_ = Background::get();
  return *background_;
}

void ExecutorCore::disown() {
  stop_accepting();
  // Here and not in the destructor, which may run on the background thread: that thread cannot join itself.
  std::shared_ptr<Background> released;
  std::unique_ptr<Deadlines> timers;
  std::unique_ptr<Retries> retries;
  {
    const Lock lock(mutex);
    retries.swap(retries_);
    owner = nullptr;
    on_context_gone = nullptr;
    for (const auto& wait : idle_waits_) wait->timer.reset();
    timers.swap(deadlines_);
    released.swap(background_);
  }
  timers.reset();
}

void ExecutorCore::context_gone() noexcept {
  std::vector<TaskNode*> refused;
  std::vector<std::unique_ptr<IdleWait>> idle;
  std::function<void()> let_go;
  std::unique_ptr<Retries> retries;
  {
    const Lock lock(mutex);
    accepting = false;
    context_alive = false;
    for (TaskNode* node : take_retries()) {
      count(*node, Outcome::cancelled);
      refused.push_back(node);
    }
    retries.swap(retries_);
    while (TaskNode* node = waiting.pop_front()) {
      --waiting_count;
      forget(*node);
      refused.push_back(node);
    }
    while (TaskNode* node = open_tasks.front()) {
      count(*node, Outcome::cancelled);
      node->drop_handler();
    }
    idle.swap(idle_waits_);
    work_.reset();
    let_go = on_context_gone;
  }
  for (TaskNode* node : refused) node->destroy();
  if (let_go) let_go();
}

Metrics ExecutorCore::snapshot() const {
  Metrics metrics;
  metrics.name = name;
  metrics.waiting = waiting_count;
  metrics.max_pending = max_pending;
  metrics.running = running;
  metrics.pending = open - running;
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

}  // namespace detail
}  // namespace bulkhead
