// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

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

// The program's side of the pool: tasks go in.

namespace bulkhead::detail {
namespace {

// Requests that are shown to a busy worker together: showing costs some 100 ns, which so is shared, and 16 tiny tasks
// are made in less time than a worker that has run dry spins before it sleeps.
constexpr unsigned kPublishedTogether = 16;

// Memory that a worker's area may grow by while the event loop waits: the system gives a page in 0.5 to 1 µs, so it
// waits a quarter of a millisecond, which is less than it takes to have another thread wait.
constexpr std::size_t kGrowthAtOnce = 1024 * 1024;

// Keys of Isolation::per_key that are told apart: those of a busy hour, at some 100 bytes each.
constexpr std::size_t kRememberedKeys = 10'000;

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
      may_defer_(core_->io.target<asio::io_context::executor_type>() != nullptr),
      doorbells_(process::above_standard(process::FileDescriptor(::epoll_create1(EPOLL_CLOEXEC)))),
      backlog_timer_(std::make_unique<asio::steady_timer>(core_->io)),
      drain_timer_(std::make_shared<asio::steady_timer>(background_)),
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

// A call of a few bytes that the library encodes itself, beside its head. False: nothing was done.
[[gnu::always_inline]] inline bool WorkerPool::encode_short_call(TaskNode& node, Worker& worker,
                                                                 std::uint32_t sequence) {
  process::RequestHead& head = worker.channel.head(sequence);
  static_assert(sizeof(head.call) == kShortCall);
  try {
    node.encode_short(head.call);
  } catch (...) {
    return false;  // What it was will come again, where it is told.
  }
  head.kind = process::RequestKind::task;
  head.measure_cpu = 0;
  head.attempt = static_cast<std::uint16_t>(node.attempt());
  head.details_size = 0;
  head.size = node.short_call;
  head.heap_offset = process::kInHead;
  head.task_id = node.id;
  return true;
}

// Whether it takes no more than to write a few bytes into a ring.
inline bool WorkerPool::is_short_call(const TaskNode& node) const {
  return node.short_call != 0 && !node.options.has_rare() && !node.options.timeout() && !node.may_begin_too_late() &&
         !node.wants_started && node.compartment == kSharedCompartment && !node.place.cancel_requested;
}

inline bool WorkerPool::has_room(const Worker& worker) const {
  return dispatcher_.has_room(dispatcher_.load(worker.index)) && worker.channel.free_slots() > 0;
}

// False: nothing was done.
[[gnu::always_inline]] inline bool WorkerPool::place_at_once(TaskNode& node, Worker& worker) {
  const std::uint32_t sequence = worker.channel.next_slot();
  if (!encode_short_call(node, worker, sequence)) return false;
  dispatcher_.placed(worker.index, node.options.priority(), kSharedCompartment);
  worker.reserved = worker.channel.reserve() + 1;
  ++in_rings_;
  Entry& entry = worker.entry(sequence);
  entry.reset();
  entry.node = &node;
  node.place.stage = TaskNode::Stage::in_ring;
  node.place.worker = worker.index;
  node.place.sequence = sequence;
  node.renewable = !node.altered;
  show(worker, sequence);
  return true;
}

// Short calls for a worker that is at others: the same as `execute` does with them, without a look at all that cannot
// be.
bool WorkerPool::execute_at_once(TaskNode& node) {
  if (!is_short_call(node) || observed_ > 0 || closed_ || forsaken_ || core_->never_reuses_workers ||
      core_->has_listeners() || is_forked_copy()) {
    return false;
  }
  dispatcher_.set_time(time_of(node.submitted_ns));
  const int index = dispatcher_.quick_choice();
  if (index < 0 || dispatcher_.is_urgent(node.options.priority())) return false;
  Worker& worker = *workers_[static_cast<unsigned>(index)];
  if (!has_room(worker)) {
    enqueue(node);
  } else {
    if (dispatcher_.queued() > 0 || !place_at_once(node, worker)) return false;
    dispatcher_.number(node);
  }
  try {
    expect_answers();
  } catch (const std::bad_alloc&) {
    // The task has been given away: its outcome comes from there, and its submitter needs no second one.
  }
  return true;
}

// Whether no outcome that is delivered keeps a worker waiting for a task of the queue.
bool WorkerPool::may_deliver_at_once() {
  QueuedTask* const first = dispatcher_.front();
  if (first == nullptr) return true;
  return observed_ == 0 && is_short_call(static_cast<TaskNode&>(*first)) && dispatcher_.quick_choice() >= 0;
}

// What a worker's answer makes room for, before the next handler may take its time.
void WorkerPool::place_next_at_once() {
  QueuedTask* const first = dispatcher_.front();
  if (first == nullptr || observed_ > 0) return;
  const int index = dispatcher_.quick_choice();
  if (index < 0) return;
  Worker& worker = *workers_[static_cast<unsigned>(index)];
  TaskNode& node = static_cast<TaskNode&>(*first);
  if (!is_short_call(node) || !has_room(worker)) return;
  dispatcher_.remove(node);
  if (!place_at_once(node, worker)) enqueue(node);
}

// Whoever has put something into a ring, or the queue.
void WorkerPool::expect_answers() {
  if (waiting_) {
    // No drain comes before an answer does, and this task may lie behind a long one.
    watch_backlog();
    watch_heads();
  } else if (!drain_posted_) {
    schedule_drain();
  }
  if (!dispatcher_.is_complete()) ask_for_workers();
}

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
  if (core_->never_reuses_workers || (node->options.has_rare() && node->options.isolation() != nullptr)) {
    assign_compartment(*node);
  }
  // Usually nobody waits, and there is room: no need to queue first.
  Worker* worker = dispatcher_.queued() == 0 ? worker_with_room(node->compartment) : nullptr;
  if (dispatcher_.is_urgent(node->options.priority()) && (worker == nullptr || dispatcher_.load(worker->index) > 0) &&
      overtake(*node)) {
    worker = nullptr;
  }
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
  expect_answers();
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
void WorkerPool::assign_compartment(TaskNode& node) {
  const Isolation* const isolation = node.options.isolation();
  const auto kind = isolation != nullptr          ? isolation->kind()
                    : core_->never_reuses_workers ? Isolation::Kind::fresh
                                                  : Isolation::Kind::reuse;
  if (kind == Isolation::Kind::reuse) return;
  dispatcher_.isolate();
  if (kind == Isolation::Kind::fresh) {
    node.place.fresh = true;
    node.compartment = ++last_compartment_;
    return;
  }
  // Many more than there are workers: who comes again after that gets another worker, as if it had never been here.
  if (keyed_compartments_.size() > kRememberedKeys) keyed_compartments_.clear();
  const auto [known, added] = keyed_compartments_.try_emplace(isolation->key(), last_compartment_);
  if (added) known->second = ++last_compartment_;
  node.compartment = known->second;
}

WorkerPool::Worker* WorkerPool::worker_with_room(Compartment compartment) {
  if (dispatcher_.starting() > 0) notice_ready_workers();
  auto index = dispatcher_.choose_worker(compartment);
  if (!index || (dispatcher_.load(*index) == 0 && dispatcher_.few_are_enough())) {
    // The others seem to be stuck, and we may only not have looked: we are at a long handler, say.
    bool gets_on = false;
    for (const unsigned busy : dispatcher_.busy()) {
      const Worker& worker = *workers_[busy];
      if (!dispatcher_.is_overdue(busy) || !worker.channel.has_unread(worker.collected)) continue;
      dispatcher_.gets_on(busy);
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
    // Not before it is known whom to kill.
    if (!worker || !worker->pidfd || dispatcher_.ready(worker->index)) continue;
    if (worker->channel.state() == process::WorkerState::ready) {
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
  const std::uint32_t sequence = node.place.sequence;
  const std::uint64_t timeout_ns = timeout_of(node);
  if (node.short_call != 0 && timeout_ns == 0 && node.must_end_ns == 0) {
    if (!encode_short_call(node, worker, sequence)) return false;
  } else {
    Encoder encoder(worker.channel.slot_payload(sequence));
    try {
      node.encode(encoder);
    } catch (const ExecutorError&) {
      return false;
    }
    if (!encoder.fits()) return false;
    process::RequestHead& head = worker.channel.head(sequence);
    head = process::RequestHead();
    head.attempt = static_cast<std::uint16_t>(node.attempt());
    head.size = encoder.size();
    head.task_id = node.id;
    head.limits = {timeout_ns, node.must_end_ns};
  }
  if (node.place.fresh) dispatcher_.leave(worker.index);
  note_in_ring(node, worker);
  show(worker, sequence);
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
void WorkerPool::show(Worker& worker, std::uint32_t sequence, bool revoked) {
  worker.channel.fill(sequence, revoked);
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
  // What a worker that was killed is shown now it could still take up, and die with; one that is dead would get the
  // blame for it.
  const bool usable = worker.killed == Killed::no && !worker.dying && !error && !no_room && !grows &&
                      !node.place.cancel_requested && !closed_;
  if (!usable && block) worker.channel.release(*block, block_size);
  // It has the arguments, or a part of them. While its memory grows it is kept for the task.
  if (node.place.fresh && !grows && !no_room && !worker.buried) dispatcher_.leave(worker.index);
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
  // Its limits do not run while the host encodes.
  if (node.place.placed_ns != 0) node.place.placed_ns = ExecutorCore::now();
  if (!worker.buried && !closed_) {
    // A slot without a task goes its way, too: the worker passes over it.
    if (!usable) dispatcher_.taken_back(worker.index);
    process::RequestHead& head = worker.channel.head(sequence);
    head = process::RequestHead();
    head.attempt = static_cast<std::uint16_t>(node.attempt());
    head.details_size = static_cast<std::uint16_t>(details);
    head.size = size;
    head.heap_offset = block ? *block : process::kInline;
    head.task_id = node.id;
    head.limits = {timeout_of(node), node.must_end_ns};
    head.measure_cpu = node.options.has_rare() && node.options.cpu_timeout() ? 1 : 0;
    entry.revoked = !usable;
    show(worker, sequence, !usable);
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
  // It may have died meanwhile, and its place have been given to another.
  if (workers_[worker->index] == worker) dispatcher_.hold(worker->index);
  asio::post(slow_, [weak = weak_from_this(), &node, worker = std::move(worker), offset, size] {
    worker->channel.populate(offset, size);
    const auto self = weak.lock();
    if (!self) return;
    const Lock lock(self->core_->mutex);
    worker->channel.set_populated(offset + size);
    if (self->closed_) return;  // Which has seen to the task.
    if (self->workers_[worker->index] == worker) {
      self->dispatcher_.release(worker->index);
      if (node.place.fresh && node.place.cancel_requested) self->dispatcher_.leave(worker->index);
    }
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

// A worker that is at tiny tasks gets the new request with others, at the latest at the end of the drain: one look at
// its cache line for many tasks. Others may have run dry by then, as handlers take their time, too.
void WorkerPool::publish(Worker& worker) {
  ++worker.unpublished;
  // Not behind a drain that may be kept waiting, unless that is watched.
  if (!drain_deferred_.load(std::memory_order_relaxed) || dispatcher_.load(worker.index) == 1 ||
      worker.unpublished == kPublishedTogether || !dispatcher_.are_tiny()) {
    publish_filled(worker);
  }
}

// What is held back belongs to workers that are busy.
void WorkerPool::publish_all() {
  for (const unsigned index : dispatcher_.busy()) {
    if (workers_[index]->unpublished > 0) publish_filled(*workers_[index]);
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

}  // namespace bulkhead::detail
