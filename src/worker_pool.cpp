// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "run_here.hpp"
#include "task_details.hpp"

#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/serialization.hpp>

#include <boost/asio/defer.hpp>
#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <sys/epoll.h>
#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <utility>

// The program's side of the pool: tasks go in, answers come out, and what has not begun is taken back.

namespace bulkhead::detail {
namespace {

using process::ResponseKind;

// Tasks that are delivered before other handlers of the event loop get their turn.
constexpr unsigned kDeliveriesPerRound = 64;

// Requests that are shown to a busy worker together: showing costs some 100 ns, which so is shared, and 16 tiny tasks
// are made in less time than a worker that has run dry spins before it sleeps.
constexpr unsigned kPublishedTogether = 16;

// Answers of one worker that are read before the first of them is delivered: their callers may have the next requests,
// which the worker is to get before it runs dry.
constexpr unsigned kCollectedTogether = 64;

// Memory that a worker's area may grow by while the event loop waits: the system gives a page in 0.5 to 1 µs, so it
// waits a quarter of a millisecond, which is less than it takes to have another thread wait.
constexpr std::size_t kGrowthAtOnce = 1024 * 1024;

// Keys of Isolation::per_key that are told apart: those of a busy hour, at some 100 bytes each.
constexpr std::size_t kRememberedKeys = 10'000;

// How often a backlog is looked at: five times the work that may lie in a ring (Dispatcher::Limits::ring_budget), so
// that a ring that works is never mistaken for one that is stuck.
constexpr auto kBacklogInterval = std::chrono::milliseconds(1);

// How long a run may take; 0: any time.
std::uint64_t timeout_of(const TaskNode& node) {
  return static_cast<std::uint64_t>(node.options.timeout().value_or(TaskOptions::Duration(0)).count());
}

}  // namespace

WorkerPool::WorkerPool(std::shared_ptr<ExecutorCore> core, Settings settings, Background& background)
    : core_(std::move(core)),
      settings_(std::move(settings)),
      background_(background.context()),
      slow_(background.slow()),
      dispatcher_([&] {
        Dispatcher::Limits limits;
        limits.max_workers = settings_.max_workers;
        limits.min_workers = settings_.min_workers;
        limits.spare_workers = settings_.spare_workers;
        limits.idle_timeout = settings_.idle_timeout;
        limits.ring_slots = process::kSlots;
        limits.cpus = process::usable_cpus();
        return limits;
      }()),
      workers_(dispatcher_.places()),
      doorbells_(process::above_standard(process::FileDescriptor(::epoll_create1(EPOLL_CLOEXEC)))),
      backlog_timer_(std::make_unique<asio::steady_timer>(core_->io)),
      start_timer_(std::make_unique<asio::steady_timer>(background_)),
      answer_timer_(std::make_unique<asio::steady_timer>(background_)),
      stop_timer_(std::make_unique<asio::steady_timer>(background_)),
      dismissal_timer_(std::make_unique<asio::steady_timer>(background_)),
      head_timer_(std::make_unique<asio::steady_timer>(background_)),
      progress_timer_(std::make_unique<asio::steady_timer>(background_)),
      deadline_timer_(std::make_unique<asio::steady_timer>(background_)),
      shared_timer_(std::make_unique<asio::steady_timer>(background_)),
      gone_(std::make_shared<WaitList>(core_->io)) {
  if (!doorbells_) process::throw_errno("cannot create an epoll descriptor");
  doorbell_wait_ = std::make_unique<DescriptorWatch>(core_->io, doorbells_.get());
}

WorkerPool::~WorkerPool() = default;

void WorkerPool::open() {
  watch_shared_memory();
  Lock lock(core_->mutex);
  start_template(lock);
  asio::post(background_, in_background([](WorkerPool& self, Lock& held) {
               held.unlock();
               self.maintain();
               held.lock();
             }));
}

// ---------------------------------------------------------------------------------------------------------------------
// The program's threads: tasks go in.

void WorkerPool::execute(TaskNode* node, Lock& lock) {
  Keep keep;
  if (closed_ || is_forked_copy() || forsaken_) {
    auto refusal = forsaken_ ? std::make_exception_ptr(WorkerStartError(last_start_error_, 1, core_->context_of(*node)))
                             : std::make_exception_ptr(ExecutorNotRunningError(
                                   core_->context_of(*node),
                                   "the executor belongs to the process that made it, and this is a fork of it"));
    lock.unlock();
    core_->fail(node, std::move(refusal), Outcome::failed, Delivery::initiating);
    return;
  }
  if (node->place.cancel_requested) {
    // Its caller asked for that while it was on its way here.
    decide(*node, cancelled_error(*node, TaskCancelledError::Stage::queued, shutdown_reason_), Outcome::cancelled);
    lock.unlock();
    return;
  }
  dispatcher_.set_time(time_of(node->submitted_ns));
  if (settings_.never_reuse_workers || (node->options.has_rare() && node->options.isolation() != nullptr)) {
    node->compartment = compartment_of(*node);
  }
  // Usually nobody waits, and there is room: no need to queue first.
  Worker* worker = dispatcher_.queued() == 0 ? worker_with_room(node->compartment) : nullptr;
  if ((worker == nullptr || dispatcher_.load(worker->index) > 0) && overtake(*node)) worker = nullptr;
  if (worker != nullptr) {
    dispatcher_.number(*node);
    place(*node, *worker, lock, keep);
  } else {
    enqueue(*node);
    if (node->may_begin_too_late()) watch_limits(*node);
    pump(lock, keep);
  }
  if (closed_) {
    lock.unlock();
    return;
  }
  if (waiting_) {
    // No drain comes before an answer does, and this task may lie behind a long one.
    watch_backlog();
    watch_heads();
  } else {
    schedule_drain();
  }
  ask_for_workers();
  lock.unlock();
}

// Takes less urgent tasks back that lie in a ring, and have not begun. False: there are none for which that is worth
// it.
bool WorkerPool::overtake(const TaskNode& node) {
  const auto index = dispatcher_.worker_to_overtake(node.options.priority(), node.compartment);
  if (!index) return false;
  take_back_behind(*workers_[*index], workers_[*index]->collected);
  return true;
}

// Gives a worker that has nothing to do what another would come to later.
void WorkerPool::relieve() {
  const auto index = dispatcher_.worker_to_relieve();
  if (!index) return;
  Worker& worker = *workers_[*index];
  std::size_t number = dispatcher_.load(*index) / 2;
  for (std::uint32_t sequence = worker.reserved; number > 0 && sequence != worker.collected + 1;) {
    --sequence;
    TaskNode* const node = worker.entry(sequence).node;
    if (node == nullptr) continue;  // taken back before, or still being written
    if (!take_back(worker, sequence)) return;
    queue_again(*node);
    --number;
  }
}

void WorkerPool::enqueue(TaskNode& node) {
  node.priority = node.options.priority();
  node.place.stage = TaskNode::Stage::queued;
  dispatcher_.enqueue(node);
}

// Gives queued tasks to workers for as long as there are both.
void WorkerPool::pump(Lock& lock, Keep& keep) {
  while (QueuedTask* first = dispatcher_.front()) {
    Worker* const worker = worker_with_room(first->compartment);
    if (worker == nullptr) return;
    dispatcher_.remove(*first);
    if (!place(static_cast<TaskNode&>(*first), *worker, lock, keep)) return;
  }
}

// Which workers may run the task.
Compartment WorkerPool::compartment_of(const TaskNode& node) {
  const Isolation* const isolation = node.options.isolation();
  const auto kind = isolation != nullptr            ? isolation->kind()
                    : settings_.never_reuse_workers ? Isolation::Kind::fresh
                                                    : Isolation::Kind::reuse;
  if (kind == Isolation::Kind::reuse) return kSharedCompartment;
  dispatcher_.isolate();
  if (kind == Isolation::Kind::fresh) return kFreshCompartment;
  // Many more than there are workers: who comes again after that gets another worker, as if it had never been here.
  if (keyed_compartments_.size() > kRememberedKeys) keyed_compartments_.clear();
  const auto [known, added] = keyed_compartments_.try_emplace(isolation->key(), last_compartment_);
  if (added) known->second = ++last_compartment_;
  return known->second;
}

WorkerPool::Worker* WorkerPool::worker_with_room(Compartment compartment) {
  if (dispatcher_.starting() > 0) notice_ready_workers();
  auto index = dispatcher_.choose_worker(compartment);
  if (!index || (dispatcher_.load(*index) == 0 && dispatcher_.few_are_enough())) {
    // The others seem to be stuck, and we may only not have looked: we are at a long handler, say.
    bool gets_on = false;
    for (const WorkerPtr& worker : workers_) {
      if (!worker || !dispatcher_.is_overdue(worker->index) || !worker->channel.has_unread()) continue;
      dispatcher_.gets_on(worker->index);
      gets_on = true;
    }
    if (gets_on) index = dispatcher_.choose_worker(compartment);
  }
  if (!index) return nullptr;
  Worker& worker = *workers_[*index];
  return worker.channel.free_slots() > 0 ? &worker : nullptr;  // Answers may fill it that are being decoded.
}

void WorkerPool::notice_ready_workers() {
  for (const WorkerPtr& worker : workers_) {
    if (worker && !dispatcher_.ready(worker->index) && worker->channel.state() == process::WorkerState::ready) {
      dispatcher_.worker_ready(worker->index, time_now());
      dispatcher_.start_succeeded();
    }
  }
}

// Puts a task into a worker's ring. False: there is no room for its arguments now.
bool WorkerPool::place(TaskNode& node, Worker& worker, Lock& lock, Keep& keep) {
  if (std::exception_ptr refusal = core_->quarantine ? core_->quarantine_error(node) : nullptr) {
    ++core_->quarantined;
    decide(node, std::move(refusal), Outcome::failed);
    return true;
  }
  dispatcher_.placed(worker.index, node.options.priority(), node.compartment);
  const std::uint32_t sequence = worker.channel.reserve();
  worker.reserved = sequence + 1;
  ++in_rings_;
  worker.entry(sequence).reset();
  node.place.stage = TaskNode::Stage::encoding;
  node.place.worker = worker.index;
  node.place.sequence = sequence;
  node.place.seen_begun_ns = 0;
  node.place.looked_at = false;
  const bool limited = node.options.timeout() || node.options.queue_timeout() || node.options.has_rare();
  if (limited) node.place.placed_ns = ExecutorCore::now();
  if (!node.library_encoding || !encode_at_once(node, worker)) return encode_unlocked(node, worker, lock, keep);
  if (limited) watch_limits(node);
  return true;
}

// Most tasks: the library encodes their arguments itself, which is quick, and they fit into a slot. False: it is
// another task, and nothing was done.
bool WorkerPool::encode_at_once(TaskNode& node, Worker& worker) {
  if (node.options.has_rare()) return false;
  Encoder encoder(worker.channel.slot_payload(node.place.sequence));
  try {
    node.encode(encoder);
  } catch (const ExecutorError&) {
    return false;  // which will come again
  }
  if (!encoder.fits()) return false;
  process::RequestHead head;
  head.attempt = static_cast<std::uint16_t>(node.attempt());
  head.size = encoder.size();
  head.task_id = node.id;
  head.timeout_ns = timeout_of(node);
  head.end_ns = node.must_end_ns;
  note_in_ring(node, worker);
  show(worker, node.place.sequence, head);
  return true;
}

void WorkerPool::note_in_ring(TaskNode& node, Worker& worker) {
  worker.entry(node.place.sequence).node = &node;
  node.place.stage = TaskNode::Stage::in_ring;
  if (node.progress_relay || node.wants_started) ++observed_;
  node.place.progress_version = 0;
  if (observed_ > 0 || core_->wants_any(EventKind::started | EventKind::progress)) watch_progress();
}

// To the worker: now, or with the requests that follow.
void WorkerPool::show(Worker& worker, std::uint32_t sequence, const process::RequestHead& head) {
  worker.channel.fill(sequence, head);
  worker.entry(sequence).filled = true;
  publish(worker);
}

// The arguments are encoded without the mutex where that is user code, or long. False: there is no room for them now.
bool WorkerPool::encode_unlocked(TaskNode& node, Worker& worker, Lock& lock, Keep& keep) {
  const std::uint32_t sequence = node.place.sequence;
  Entry& entry = worker.entry(sequence);
  const std::span<std::byte> slot = worker.channel.slot_payload(sequence);
  WorkerPtr keep_worker;
  if (!node.library_encoding) {
    keep_worker = workers_[worker.index];
    keep = shared_from_this();
    lock.unlock();
  }

  std::exception_ptr error;
  std::optional<BufferTransfer> transfer;
  if (!node.library_encoding) transfer.emplace(settings_.shared.get());
  const std::size_t details = details_size(node);
  std::size_t size = 0;  // with the details
  std::optional<std::size_t> block;
  std::size_t block_size = 0;
  bool no_room = false;
  bool grows = false;
  const auto encode_in_block = [&] {
    if (transfer) transfer->passed.clear();
    Encoder in_block(worker.channel.block(*block, block_size - details));
    node.encode(in_block);
    size = in_block.size() + details;
    if (in_block.fits()) write_details(node, worker.channel.block(*block + in_block.size(), details));
  };
  bool in_slot = false;
  try {
    // Encoded once where the last one of its type was too large for a slot, too: into as much as that took, and some
    // more, if there is room which need not be grown. What is not written of that takes no memory.
    std::atomic<std::size_t>* const remembered = node.library_encoding ? nullptr : node.large_size();
    const std::size_t last = remembered != nullptr ? remembered->load(std::memory_order_relaxed) : 0;
    if (last > 0 && last + details <= settings_.max_message_size) {
      block_size = std::min(last + last / 4 + details, settings_.max_message_size);
      lock.lock();
      block = worker.channel.allocate_before(worker.channel.populated() + kGrowthAtOnce, block_size);
      lock.unlock();
      if (block) encode_in_block();
      in_slot = block && size <= slot.size();
      if (in_slot) std::memcpy(slot.data(), worker.channel.block(*block, size).data(), size);
      if (block && (in_slot || size > block_size)) {
        lock.lock();
        worker.channel.release(*block, block_size);
        lock.unlock();
        block.reset();
      }
    }
    if (!block && !in_slot) {
      if (transfer) transfer->passed.clear();
      Encoder counting(slot);
      node.encode(counting);
      size = counting.size() + details;
      in_slot = size <= slot.size();
      if (in_slot) {
        write_details(node, slot.subspan(size - details, details));
      } else if (size > settings_.max_message_size) {
        throw SerializationError(
            SerializationError::Part::argument, "",
            fmt::format("they take {} bytes, and max_message_size allows {}", size, settings_.max_message_size));
      } else {
        if (!lock.owns_lock()) lock.lock();
        block_size = size;
        block = worker.channel.allocate(size);
        grows = block && *block + size > worker.channel.populated() + kGrowthAtOnce;
        if (block && !grows) worker.channel.set_populated(*block + size);
        if (!keep_worker) keep_worker = workers_[worker.index];
        keep = shared_from_this();
        lock.unlock();
        no_room = !block;
        if (block && !grows) encode_in_block();
        if (size != block_size) {
          throw SerializationError(SerializationError::Part::argument, "",
                                   "their encoding differs from one time to the next");
        }
      }
    }
    if (remembered != nullptr) {
      const std::size_t call = in_slot ? 0 : size - details;
      if (call != last) remembered->store(call, std::memory_order_relaxed);
    }
  } catch (const SerializationError& failure) {
    error = std::make_exception_ptr(
        SerializationError(failure.part(), failure.type_name(), failure.reason(), core_->context_of(node)));
  } catch (const FunctionUnavailableError& failure) {
    error =
        std::make_exception_ptr(FunctionUnavailableError(failure.reason(), core_->context_of(node), failure.cause()));
  } catch (...) {
    error = std::current_exception();  // a codec of the user's
  }

  if (!lock.owns_lock()) lock.lock();
  // What a worker that was killed is shown now it could still take up, and die with.
  const bool usable = worker.killed == Killed::no && !worker.buried && !error && !no_room && !grows &&
                      !node.place.cancel_requested && !closed_;
  if (!usable && block) worker.channel.release(*block, block_size);
  if (usable && block) {
    worker.channel.shrink(*block, block_size, size);
    block_size = size;
    worker.channel.set_populated(*block + size);
    if (worker.channel.is_beyond_kept(*block + size) && dispatcher_.swell(worker.index, time_now())) ask_maintenance();
  }
  if (usable) {
    note_in_ring(node, worker);
    if (transfer) entry.buffers = std::move(transfer->passed);
    if (block) {
      entry.block_offset = *block;
      entry.block_size = block_size;
    }
  }
  if (!worker.buried && !closed_) {
    // A slot without a task goes its way, too: the worker passes over it.
    if (!usable) dispatcher_.taken_back(worker.index);
    process::RequestHead head;
    head.revoked = !usable;
    head.attempt = static_cast<std::uint16_t>(node.attempt());
    head.details_size = static_cast<std::uint16_t>(details);
    head.size = size;
    head.heap_offset = block ? *block : process::kInline;
    head.task_id = node.id;
    head.timeout_ns = timeout_of(node);
    head.end_ns = node.must_end_ns;
    head.measure_cpu = node.options.has_rare() && node.options.cpu_timeout();
    show(worker, sequence, head);
  }
  if (usable) {
    watch_limits(node);
    return true;
  }
  if (closed_) {
    lock.unlock();
    core_->fail(&node, cancelled_error(node, TaskCancelledError::Stage::queued, "the executor was destroyed"),
                Outcome::cancelled, Delivery::initiating);
    lock.lock();
    return false;
  }
  if (node.place.cancel_requested) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, shutdown_reason_), Outcome::cancelled);
  } else if (error) {
    decide(node, std::move(error), Outcome::failed);
  } else if (grows) {
    grow(node, std::move(keep_worker), *block, block_size);
  } else {
    enqueue(node);  // Its worker died meanwhile, or its heap is full.
    watch_limits(node);
  }
  return !no_room;
}

// Has memory given to a worker's area, which takes milliseconds, without the event loop; then the task is placed anew.
void WorkerPool::grow(TaskNode& node, WorkerPtr worker, std::size_t offset, std::size_t size) {
  node.place.stage = TaskNode::Stage::encoding;
  growing_.push_back(node);
  asio::post(slow_, [weak = weak_from_this(), &node, worker = std::move(worker), offset, size] {
    worker->channel.populate(offset, size);
    const auto self = weak.lock();
    if (!self) return;
    const Lock lock(self->core_->mutex);
    worker->channel.set_populated(offset + size);
    if (self->closed_) return;  // Which has seen to the task.
    self->growing_.erase(node);
    if (node.place.cancel_requested) {
      self->decide(node, self->cancelled_error(node, TaskCancelledError::Stage::queued, self->shutdown_reason_),
                   Outcome::cancelled);
    } else {
      self->enqueue(node);
      self->watch_limits(node);
      self->schedule_drain();
    }
  });
}

// A worker that has something to do gets the new request with others, at the latest at the end of the drain: one look
// at its cache line for many tasks. One that has nothing gets it now.
void WorkerPool::publish(Worker& worker) {
  ++worker.unpublished;
  if (!drain_posted_ || dispatcher_.load(worker.index) == 1 || worker.unpublished == kPublishedTogether) {
    publish_filled(worker);
  }
}

void WorkerPool::publish_filled(Worker& worker) {
  worker.unpublished = 0;
  std::uint32_t end = worker.channel.published();
  while (end != worker.reserved && worker.entry(end).filled) ++end;
  // We sleep already, and had nothing to expect from this one: before it sees the request it must see that.
  if (waiting_ && end != worker.channel.published()) worker.channel.arm();
  worker.channel.publish(end);
}

// ---------------------------------------------------------------------------------------------------------------------
// The program's threads: answers come out.

// Has `drain` called by the event loop. Deferred, so that a thread of the loop that calls this goes on with it itself
// and no other is woken.
void WorkerPool::schedule_drain() {
  if (drain_posted_ || !core_->context_alive || closed_) return;
  drain_posted_ = true;
  asio::defer(core_->io, [self = shared_from_this()] {
    Lock lock(self->core_->mutex);
    self->drain_posted_ = false;
    self->drain(lock);
  });
}

void WorkerPool::drain(Lock& lock) {
  Keep keep;                     // who calls this holds the pool, too
  if (is_forked_copy()) return;  // The areas are not mapped here, and the tasks are the parent's.
  // A handler that throws leaves through here: the rest must still be delivered.
  struct Guard {
    WorkerPool& pool;
    Lock& held;
    ~Guard() {
      if (!held.owns_lock()) held.lock();
      if (std::uncaught_exceptions() > exceptions) pool.schedule_drain();
    }
    int exceptions = std::uncaught_exceptions();
  } guard{*this, lock};

  if (freed_places_ > 0) core_->give_back(std::exchange(freed_places_, 0), lock);
  bool progress = false;
  for (unsigned delivered = 0; !closed_; ++delivered) {
    if (ready_.empty()) {
      collect();
      pump(lock, keep);
      if (closed_) break;
      relieve();
      pump(lock, keep);
    }
    TaskNode* node = ready_.pop_front();
    if (node == nullptr) break;
    --ready_count_;
    progress = true;
    if (delivered == kDeliveriesPerRound) {
      ready_.push_front(*node);
      ++ready_count_;
      schedule_drain();
      break;
    }
    // Other threads of the event loop may help; and if a handler blocks, it blocks nobody else.
    if (!ready_.empty() || in_rings_ > 0 || dispatcher_.queued() > 0) schedule_drain();
    finish(node, lock);
  }
  if (closed_) return;
  for (const WorkerPtr& worker : workers_) {
    if (worker && worker->unpublished > 0) publish_filled(*worker);
  }
  ask_for_workers();
  if (progress) {
    if (!std::exchange(slept_, false)) looking_.found(fruitless_rounds_);
    fruitless_rounds_ = 0;
  }
  // Also while there is always something to deliver: a task may lie behind a long one all that time.
  watch_backlog();
  if (drain_posted_) return;
  if (core_->open == 0 && core_->waiting.empty()) {
    fruitless_rounds_ = 0;
    nothing_left();
    return;
  }
  if (in_rings_ > 0 && fruitless_rounds_ < looking_.looks(settings_.host_rounds)) {
    ++fruitless_rounds_;
    schedule_drain();
  } else {
    if (in_rings_ > 0) looking_.missed(settings_.host_rounds);
    wait_for_answers();
  }
}

void WorkerPool::nothing_left() {
  if (!core_->context_alive || closed_) return;
  if (waiting_) doorbell_wait_->cancel();
  if (watching_backlog_) backlog_timer_->cancel();
}

void WorkerPool::wait_for_answers() {
  fruitless_rounds_ = 0;
  if (!core_->context_alive) return;
  watch_backlog();
  watch_heads();
  bool answered = false;
  for (const WorkerPtr& worker : workers_) {
    // Of one that was killed the background thread tells.
    if (!worker || dispatcher_.load(worker->index) == 0 || worker->killed != Killed::no) continue;
    worker->channel.arm();
    // Whatever was answered before the worker could see that we sleep, we must see now.
    try {
      answered = answered || worker->channel.committed() != worker->collected;
    } catch (const process::ProtocolViolation& violation) {
      violated(*worker, violation.what());
    }
  }
  if (answered) {
    schedule_drain();
    return;
  }
  slept_ = true;
  if (waiting_) return;
  waiting_ = true;
  doorbell_wait_->async_wait([self = shared_from_this()](boost::system::error_code) {
    Lock lock(self->core_->mutex);
    self->waiting_ = false;
    // A forked copy shares the doorbells: what it took note of, its parent would never hear of.
    if (self->closed_ || self->is_forked_copy()) return;
    self->clear_doorbells();
    self->drain(lock);
  });
}

// Doorbells are watched edge-triggered: asking once is enough, they need not be read.
void WorkerPool::clear_doorbells() {
  std::array<epoll_event, 64> events;
  while (::epoll_wait(doorbells_.get(), events.data(), static_cast<int>(events.size()), 0) ==
         static_cast<int>(events.size())) {
  }
}

// Looks after tasks that lie behind another one in a ring, for as long as there are any.
void WorkerPool::watch_backlog() {
  if (watching_backlog_ || core_->open == 0 || !dispatcher_.has_backlog()) return;
  watching_backlog_ = true;
  backlog_timer_->expires_after(kBacklogInterval);
  backlog_timer_->async_wait([self = shared_from_this()](boost::system::error_code error) {
    Lock lock(self->core_->mutex);
    self->watching_backlog_ = false;
    if (self->closed_ || self->is_forked_copy()) return;
    if (error) {
      // When it was cancelled nothing was left; there may be again.
      self->watch_backlog();
      return;
    }
    for (const unsigned index : self->dispatcher_.stalled_workers()) {
      // All that has no answer, but for what it runs.
      if (const WorkerPtr& worker = self->workers_[index]) self->take_back_behind(*worker, worker->collected - 1);
    }
    self->drain(lock);
    if (!self->closed_) self->watch_backlog();
  });
}

void WorkerPool::collect() {
  for (const WorkerPtr& worker : workers_) {
    if (worker && dispatcher_.load(worker->index) > 0) collect_from(*worker);
  }
}

void WorkerPool::collect_from(Worker& worker) {
  if (worker.killed == Killed::protocol) return;
  try {
    const std::uint32_t committed = worker.channel.committed();
    if (committed == worker.collected) return;
    if (!dispatcher_.ready(worker.index)) {
      dispatcher_.worker_ready(worker.index, time_now());
      dispatcher_.start_succeeded();
    }
    const std::uint64_t now = ExecutorCore::now();
    for (unsigned i = 0; i < kCollectedTogether && worker.collected != committed; ++i) {
      const process::Response response = worker.channel.response(worker.collected);
      take_answer(worker, worker.collected, response, now);
      ++worker.collected;
    }
  } catch (const process::ProtocolViolation& violation) {
    violated(worker, violation.what());
  }
  consume(worker);
}

// All that there is, for those who will not come again.
void WorkerPool::collect_all(Worker& worker) {
  std::uint32_t before;
  do {
    before = worker.collected;
    collect_from(worker);
  } while (worker.collected != before);
}

void WorkerPool::take_answer(Worker& worker, std::uint32_t sequence, const process::Response& response,
                             std::uint64_t now) {
  Entry& entry = worker.entry(sequence);
  TaskNode* const node = entry.node;
  if (response.kind == ResponseKind::skipped) {
    if (node != nullptr && !entry.revoked) {
      throw process::ProtocolViolation("it skipped a task that was not taken back");
    }
    entry.answered = true;
    --in_rings_;
    if (node != nullptr) dispatcher_.taken_back(worker.index);
    dispatcher_.left(worker.index, std::nullopt, time_of(now));
    if (dispatcher_.leaving(worker.index) && dispatcher_.load(worker.index) == 0) ask_maintenance();
    if (node == nullptr) return;
    // We and the worker saw each other: it had taken the task up when we looked, and then found it taken back.
    free_entry(worker, entry);
    worker.doomed.erase(node);
    if (node->place.cancel_requested) {
      decide(*node, cancelled_error(*node, TaskCancelledError::Stage::queued, shutdown_reason_), Outcome::cancelled);
    } else {
      queue_again(*node);
    }
    return;
  }
  if (node == nullptr) throw process::ProtocolViolation("it answered a request that was taken back");
  if (!worker.doomed.empty()) worker.doomed.erase(node);  // It had been quicker.
  if (response.over_memory && !dispatcher_.leaving(worker.index)) dispatcher_.leave(worker.index);
  if (node->progress_relay || core_->wants(EventKind::progress)) pass_progress(worker, *node);
  // The worker's clock readings are only believed as far as they are possible.
  now = std::max(now, node->submitted_ns);
  node->began_ns = std::clamp(response.began_ns, node->submitted_ns, now);
  node->ended_ns = std::clamp(response.ended_ns, node->began_ns, now);
  if (!entry.buffers.empty()) {
    node->place.buffers = std::make_shared<std::vector<SharedBuffer>>(std::move(entry.buffers));
    entry.buffers.clear();
  }
  free_entry(worker, entry);
  --in_rings_;
  dispatcher_.left(worker.index, std::chrono::nanoseconds(node->ended_ns - node->began_ns), time_of(now));
  // It has ended what it had, and can go.
  if (dispatcher_.leaving(worker.index) && dispatcher_.load(worker.index) == 0) ask_maintenance();
  disarm_deadline(*node);
  node->place.stage = TaskNode::Stage::answered;
  node->place.worker_pid = worker.pid;
  if (response.in_slot) {
    // Whatever the worker writes there from now on: the copy is what is decoded, and the slot is free at once.
    std::memcpy(node->place.copy, response.payload.data(), response.payload.size());
    asm volatile("" : : "r"(node->place.copy) : "memory");
    node->place.answer = {node->place.copy, response.payload.size()};
    entry.answered = true;
    if (node->library_decoding && decode_short_answer(*node, node->place.answer)) {
      node->outcome = node->error ? Outcome::failed : Outcome::completed;
      node->place.decided = true;
    }
  } else {
    // Decoded where it lies, since a copy of 64 MiB takes as long as decoding it: the decoder copies each piece into
    // private memory before it looks at it, and never goes back.
    node->place.answer = response.payload;
    node->place.area = workers_[worker.index];
  }
  ready_.push_back(*node);
  ++ready_count_;
}

// Gives back what is answered and read, in order.
void WorkerPool::consume(Worker& worker) {
  std::uint32_t end = worker.channel.consumed();
  while (end != worker.collected && worker.entry(end).answered) ++end;
  worker.channel.consume(end);
}

// Without the mutex: what it decodes with is user code.
void WorkerPool::decode(TaskNode& node) const {
  const auto passed = std::static_pointer_cast<std::vector<SharedBuffer>>(std::move(node.place.buffers));
  const BufferTransfer transfer(settings_.shared.get(), passed ? std::move(*passed) : std::vector<SharedBuffer>());
  node.outcome = decode_answer(node, node.place.answer);
}

// Decodes a task's answer if that is not done yet, accounts for it, and hands it to the caller. User code, which codecs
// and handlers are, runs without the mutex.
void WorkerPool::finish(TaskNode* node, Lock& lock) {
  if (!node->place.decided) {
    const auto area = std::static_pointer_cast<Worker>(node->place.area);
    lock.unlock();
    decode(*node);
    lock.lock();
    if (area) {
      area->entry(node->place.sequence).answered = true;
      node->place.area.reset();
      consume(*area);
    }
  }
  core_->settle(node, node->outcome, Delivery::on_io_executor, lock);
  lock.lock();
}

// A task gets its outcome without an answer.
void WorkerPool::decide(TaskNode& node, std::exception_ptr error, Outcome outcome) {
  disarm_deadline(node);
  node.error = std::move(error);
  node.outcome = outcome;
  node.place.decided = true;
  node.place.stage = TaskNode::Stage::answered;
  ready_.push_back(node);
  ++ready_count_;
  schedule_drain();
}

std::exception_ptr WorkerPool::cancelled_error(const TaskNode& node, TaskCancelledError::Stage stage,
                                               const std::string& reason) const {
  ErrorContext context = core_->context_of(node);
  if (node.place.worker_pid > 0) context.worker_pid = node.place.worker_pid;
  return std::make_exception_ptr(TaskCancelledError(stage, std::move(context), reason));
}

// ---------------------------------------------------------------------------------------------------------------------
// Progress.

// Looks at it from time to time for as long as somebody wants to know.
void WorkerPool::watch_progress() {
  if (watching_progress_) return;
  watching_progress_ = true;
  progress_timer_->expires_after(std::chrono::nanoseconds(kProgressInterval));
  progress_timer_->async_wait(in_background([](WorkerPool& self, Lock&, boost::system::error_code error) {
    self.watching_progress_ = false;
    if (error || !self.core_->context_alive) return;
    for (const WorkerPtr& worker : self.workers_) {
      // Only the first in a ring can be running.
      if (!worker || worker->collected == worker->reserved) continue;
      TaskNode* const node = worker->entry(worker->collected).node;
      if (node == nullptr) continue;
      // One that we have tried to take back is either running, or is passed over in the next microseconds.
      const bool sure = !worker->entry(worker->collected).revoked || node->place.looked_at;
      node->place.looked_at = worker->channel.begun(node->place.sequence);
      if (node->place.looked_at && sure) {
        node->began_ns = std::max(node->began_ns, node->submitted_ns);
        self.core_->tell_started(*node);
      }
      if (node->progress_relay || self.core_->wants(EventKind::progress)) self.pass_progress(*worker, *node);
    }
    const bool listened = self.core_->wants_any(EventKind::started | EventKind::progress);
    if (self.observed_ > 0 || (listened && self.in_rings_ > 0)) self.watch_progress();
  }));
}

void WorkerPool::pass_progress(Worker& worker, TaskNode& node) {
  if (node.settled || !core_->context_alive) return;
  auto note = worker.channel.progress(node.place.sequence, node.place.progress_version);
  if (!note) return;
  node.place.progress_version = note->version;
  core_->tell_progress(node, {note->done, note->total, std::move(note->text)});
}

}  // namespace bulkhead::detail
