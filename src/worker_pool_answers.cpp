// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "run_here.hpp"

#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/remote_call.hpp>

#include <boost/asio/defer.hpp>
#include <boost/asio/post.hpp>

#include <sys/epoll.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <utility>

// The program's side of the pool: answers come out, and progress is looked at.

namespace bulkhead::detail {
namespace {

using process::ResponseKind;

// Tasks that are delivered before other handlers of the event loop get their turn: some 10 µs of tiny ones, of which
// the event loop's look at the system takes a thirtieth.
constexpr unsigned kDeliveriesPerRound = 128;

// A look at how far a worker has come takes the line that it writes to from its cache, and the worker waits for it
// after its next task, for as long as two tiny tasks take where the CPUs are far from each other. So a worker that has
// much to do, and has not come far since the last look, is left alone for some rounds of the event loop, which take
// about as long as so few tasks.
constexpr std::uint32_t kFewAnswers = 8;
constexpr std::size_t kManyRequests = 32;
constexpr unsigned kRoundsBetween = 2;

// Answers of one worker that are read before the first of them is delivered: their callers may have the next requests,
// which the worker is to get before it runs dry.
constexpr unsigned kCollectedTogether = 64;

// How long a handler may hold up other threads of the event loop: twice that at most. A look costs the background
// thread some microseconds.
constexpr auto kHandlerPatience = std::chrono::milliseconds(2);

// How often a backlog is looked at: five times the work that may lie in a ring (Dispatcher::Limits::ring_budget), so
// that a ring that works is never mistaken for one that is stuck.
constexpr auto kBacklogInterval = std::chrono::milliseconds(1);

// What lies beside the head of a response in its first cache line, and beyond it only if that is not enough: most
// answers are a number or two. After this nobody looks at the slot again.
static_assert(offsetof(process::ResponseSlot, payload) + kShortAnswer == process::kCacheLine);
void copy_short_answer(std::byte* to, std::span<const std::byte> payload) {
  std::memcpy(to, payload.data(), kShortAnswer);
  // Lest the compiler look there again.
  asm volatile("" : : "r"(to) : "memory");
}
void copy_answer(std::byte* to, std::span<const std::byte> payload) {
  if (payload.size() <= kShortAnswer) return copy_short_answer(to, payload);
  std::memcpy(to, payload.data(), payload.size());
  asm volatile("" : : "r"(to) : "memory");
}

}  // namespace

auto WorkerPool::posted_drain() {
  return [self = shared_from_this(), number = last_drain_.load(std::memory_order_relaxed)] {
    Lock lock(self->core_->mutex);
    // It may have been posted twice.
    if (!self->drain_posted_ || number != self->last_drain_.load(std::memory_order_relaxed)) return;
    self->drain_posted_ = false;
    self->drain_deferred_.store(false, std::memory_order_relaxed);
    self->drain(lock);
  };
}

// Has `drain` called by the event loop. Deferred, so that a thread of the loop that calls this goes on with it itself
// and no other is woken. Until the handler that it is at is over, no other can have it: see `watch_drain`. Of a strand,
// that would be true of all that is posted to it later, too.
void WorkerPool::schedule_drain() {
  if (drain_posted_ || !core_->context_alive || closed_) return;
  last_drain_.store(last_drain_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  if (may_defer_) {
    asio::defer(core_->io, posted_drain());
  } else {
    asio::post(core_->io, posted_drain());
  }
  drain_posted_ = true;
  drain_deferred_.store(true, std::memory_order_relaxed);
  if (!drain_watched_) watch_drain();
}

// A handler may block, and wait for another task even. Then workers get what was held back for them, and a drain that
// lies behind the handler is given to all threads of the event loop. Seen by the background thread, without the mutex
// as long as drains follow one another.
void WorkerPool::watch_drain() {
  try {
    look_at_drain_later(drain_timer_, last_drain_.load(std::memory_order_relaxed));
  } catch (const std::bad_alloc&) {
    drain_deferred_.store(false, std::memory_order_relaxed);  // nothing is held back for it
    return;
  }
  drain_watched_ = true;
}

// Without the mutex, which guards `drain_timer_`: the timer is held by who waits for it, too.
void WorkerPool::look_at_drain_later(std::shared_ptr<asio::steady_timer> timer, std::uint64_t seen) {
  asio::steady_timer& waited_for = *timer;
  waited_for.expires_after(kHandlerPatience);
  waited_for.async_wait(
      [weak = weak_from_this(), timer = std::move(timer), seen](boost::system::error_code error) mutable {
        const auto self = error ? nullptr : weak.lock();
        if (self) self->look_at_drain(std::move(timer), seen);
      });
}

void WorkerPool::look_at_drain(std::shared_ptr<asio::steady_timer> timer, std::uint64_t seen) {
  std::uint64_t last = last_drain_.load(std::memory_order_relaxed);
  if (last == seen) {
    const Lock lock(core_->mutex);
    if (closed_ || !core_->context_alive) return;
    last = last_drain_.load(std::memory_order_relaxed);
    if (last == seen) {
      drain_watched_ = false;
      if (!drain_posted_ || !drain_deferred_.load(std::memory_order_relaxed)) return;
      publish_all();
      asio::post(core_->io, posted_drain());
      drain_deferred_.store(false, std::memory_order_relaxed);
      return;
    }
  }
  look_at_drain_later(std::move(timer), last);
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
      pool.core_->set_in_passing(false);
      if (std::uncaught_exceptions() > exceptions) pool.schedule_drain();
    }
    int exceptions = std::uncaught_exceptions();
  } guard{*this, lock};

  if (freed_places_ > 0) core_->give_back(std::exchange(freed_places_, 0), lock);
  core_->set_in_passing(true);
  ++round_;
  bool progress = false;
  for (unsigned delivered = 0; !closed_; ++delivered) {
    if (delivered == kDeliveriesPerRound) {
      ++turn_;  // When what was found of this worker's is delivered.
      schedule_drain();
      break;
    }
    if (deliver_next(lock)) {
      progress = true;
      continue;
    }
    if (ready_.empty()) {
      collect();
      pump(lock, keep);
      if (closed_) break;
      relieve();
      pump(lock, keep);
    }
    TaskNode* const node = ready_.pop_front();
    if (node == nullptr) break;
    --ready_count_;
    progress = true;
    if (!ready_.empty() || in_rings_ > 0 || dispatcher_.queued() > 0) schedule_drain();
    finish(node, lock);
  }
  if (closed_) return;
  publish_all();
  for (const unsigned index : dispatcher_.busy()) workers_[index]->channel.show_consumed();
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
  for (const unsigned index : dispatcher_.busy()) {
    Worker& worker = *workers_[index];
    // Of one that was killed the background thread tells.
    if (worker.killed != Killed::no) continue;
    worker.channel.arm();
    // Whatever was answered before the worker could see that we sleep, we must see now.
    try {
      answered = answered || worker.channel.committed() != worker.collected;
    } catch (const process::ProtocolViolation& violation) {
      violated(worker, violation.what());
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
      if (const WorkerPtr& worker = self->workers_[index]) self->take_all_back(*worker);
    }
    self->drain(lock);
    if (!self->closed_) self->watch_backlog();
  });
}

// From the back, as those that have no requests any more leave `busy` meanwhile.
void WorkerPool::collect() {
  for (std::size_t i = dispatcher_.busy().size(); i-- > 0;) collect_from(*workers_[dispatcher_.busy()[i]]);
}

// Whether there are answers to be read.
bool WorkerPool::has_answers(Worker& worker) {
  if (worker.readable != worker.collected) return true;
  if (worker.untrusted || round_ < worker.next_look) return false;
  try {
    worker.readable = worker.channel.committed();
  } catch (const process::ProtocolViolation& violation) {
    violated(worker, violation.what());
    return false;
  }
  const std::uint32_t found = worker.readable - worker.collected;
  if (found < kFewAnswers && dispatcher_.load(worker.index) >= kManyRequests)
    worker.next_look = round_ + kRoundsBetween;
  if (found == 0) return false;
  worker.looked_ns = ExecutorCore::now();
  if (!dispatcher_.ready(worker.index)) {
    dispatcher_.worker_ready(worker.index, time_of(worker.looked_ns));
    dispatcher_.start_succeeded();
  }
  return true;
}

// Its next answer is taken, and the task is ready if it has its outcome by that.
void WorkerPool::take_next_answer(Worker& worker, const process::Response& response) {
  const std::uint32_t sequence = worker.collected;
  if (TaskNode* const node = take_answer(worker, sequence, response, worker.looked_ns)) push_ready(*node);
  ++worker.collected;
  if (worker.channel.consumed() == sequence && worker.entry(sequence).answered) worker.channel.free_slot();
  // Otherwise at the end of the drain.
  if (dispatcher_.load(worker.index) == 0) worker.channel.show_consumed();
}

void WorkerPool::read_answer(Worker& worker) {
  try {
    take_next_answer(worker, worker.channel.response(worker.collected));
  } catch (const process::ProtocolViolation& violation) {
    violated(worker, violation.what());
  }
}

void WorkerPool::push_ready(TaskNode& node) {
  ready_.push_back(node);
  ++ready_count_;
}

// What one look finds. To look again until there is nothing would be to wait for a worker until it has run dry, and to
// wake it for every task then.
void WorkerPool::collect_from(Worker& worker) {
  if (!has_answers(worker)) return;
  for (unsigned i = 0; i < kCollectedTogether && worker.readable != worker.collected; ++i) read_answer(worker);
}

// All that there is, for those who will not come again.
void WorkerPool::collect_all(Worker& worker) {
  for (worker.next_look = round_; has_answers(worker); worker.next_look = round_) read_answer(worker);
  worker.channel.show_consumed();
}

// The worker whose turn it is, or the next one that has any answers.
WorkerPool::Worker* WorkerPool::next_to_read() {
  const std::span<const unsigned> busy = dispatcher_.busy();
  for (std::size_t i = 0; i < busy.size(); ++i, ++turn_) {
    if (turn_ >= busy.size()) turn_ = 0;
    Worker& worker = *workers_[busy[turn_]];
    if (!has_answers(worker)) continue;
    reading_ = worker.index;
    return &worker;
  }
  return nullptr;
}

// Whether an answer is a short value, of a task with nothing special about it, and its worker has more to do.
bool WorkerPool::is_plain_answer(const Worker& worker, const Entry& entry, const process::Response& response) const {
  const TaskNode* const node = entry.node;
  return node != nullptr && node->plain_answer != 0 && response.payload.size() == node->plain_answer &&
         response.in_slot && !response.over_memory && node->place.deadline == 0 && node->place.outlived_by == 0 &&
         entry.block_size == 0 && entry.buffers.empty() && worker.doomed.empty() &&
         worker.channel.consumed() == worker.collected && dispatcher_.load(worker.index) > 1 &&
         !dispatcher_.leaving(worker.index) && core_->may_settle_at_once(*node);
}

// Most answers: read, accounted for and delivered one by one. False: it takes a look at all workers, or there is
// nothing to deliver.
bool WorkerPool::deliver_next(Lock& lock) {
  if (!ready_.empty() || (dispatcher_.queued() > 0 && !may_deliver_at_once())) return false;
  Worker* worker = workers_[reading_].get();
  if (worker == nullptr || worker->readable == worker->collected) {
    worker = next_to_read();
    if (worker == nullptr) return false;
  }
  const std::uint32_t sequence = worker->collected;
  Entry& entry = worker->entry(sequence);
  std::byte copy[kShortAnswer];
  try {
    process::Response response = worker->channel.response(sequence);
    if (!is_plain_answer(*worker, entry, response)) {
      take_next_answer(*worker, response);
      return false;
    }
    copy_short_answer(copy, response.payload);
    response.payload = {copy, response.payload.size()};
    if (static_cast<AnswerKind>(copy[0]) != AnswerKind::value) {
      take_next_answer(*worker, response);
      return false;
    }
    // The worker's clock readings are only believed as far as they are possible.
    TaskNode& node = *entry.node;
    const std::uint64_t now = std::max(worker->looked_ns, node.submitted_ns);
    const std::uint64_t began = std::clamp(response.began_ns, node.submitted_ns, now);
    const std::uint64_t ended = std::clamp(response.ended_ns, began, now);
    dispatcher_.left(worker->index, std::chrono::nanoseconds(ended - began), time_of(now));
    core_->settle_at_once(node, began, ended);
  } catch (const process::ProtocolViolation& violation) {
    violated(*worker, violation.what());
    return false;
  }
  TaskNode* const node = std::exchange(entry.node, nullptr);
  ++worker->collected;
  worker->channel.free_slot();
  --in_rings_;
  if (dispatcher_.queued() > 0) place_next_at_once();
  if (!drain_posted_) schedule_drain();
  lock.unlock();
  node->deliver_value(copy + sizeof(AnswerKind));
  lock.lock();
  return true;
}

TaskNode* WorkerPool::take_answer(Worker& worker, std::uint32_t sequence, const process::Response& response,
                                  std::uint64_t now) {
  Entry& entry = worker.entry(sequence);
  TaskNode* const node = entry.node;
  if (response.kind == ResponseKind::skipped) {
    // Nor may it skip the request to leave.
    if (!entry.revoked) throw process::ProtocolViolation("it skipped a request that was not taken back");
    entry.answered = true;
    --in_rings_;
    if (node != nullptr) dispatcher_.taken_back(worker.index);
    dispatcher_.left(worker.index, std::nullopt, time_of(now));
    if (dispatcher_.leaving(worker.index) && dispatcher_.load(worker.index) == 0) ask_maintenance();
    if (node == nullptr) return nullptr;
    // We and the worker saw each other: it had taken the task up when we looked, and then found it taken back.
    free_entry(worker, entry);
    worker.doomed.erase(node);
    if (node->place.cancel_requested) {
      decide(*node, cancelled_error(*node, TaskCancelledError::Stage::queued, shutdown_reason_), Outcome::cancelled);
    } else {
      queue_again(*node);
    }
    return nullptr;
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
    std::byte copy[sizeof(node->place.copy)];
    copy_answer(copy, response.payload);
    entry.answered = true;
    const std::span<const std::byte> answer(copy, response.payload.size());
    if (node->library_decoding && decode_short_answer(*node, answer)) {
      node->outcome = node->error ? Outcome::failed : Outcome::completed;
      node->place.decided = true;
    } else {
      std::memcpy(node->place.copy, copy, answer.size());
      node->place.answer = {node->place.copy, answer.size()};
    }
  } else {
    // Decoded where it lies, since a copy of 64 MiB takes as long as decoding it: the decoder copies each piece into
    // private memory before it looks at it, and never goes back.
    node->place.answer = response.payload;
    node->place.area = workers_[worker.index];
  }
  return node;
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
  if (node->place.outlived_by != 0) hold_place(*node);
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
  push_ready(node);
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
      node->altered = true;
      node->renewable = false;
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
