// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>

#include <boost/asio/append.hpp>
#include <boost/asio/defer.hpp>
#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <sys/epoll.h>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <exception>
#include <utility>

namespace bulkhead::detail {
namespace {

using process::ResponseKind;
using Ended = process::ExitStatus;

// Rounds of its event loop that the host looks for answers before it sleeps: a worker that is awake answers a tiny task
// within one or two (0.3 µs each), and other handlers get their turn between them. The prototype's figure.
constexpr unsigned kFruitlessRounds = 5;

// Tasks that are delivered before other handlers of the event loop get their turn.
constexpr unsigned kDeliveriesPerRound = 64;

// How often a backlog is looked at: five times the work that may lie in a ring (Dispatcher::Limits::ring_budget), so
// that a ring that works is never mistaken for one that is stuck.
constexpr auto kBacklogInterval = std::chrono::milliseconds(1);

// How long a dead worker's exit status may take to arrive from its template. It is one system call away; a second
// means that the template is stopped or gone.
constexpr auto kStatusPatience = std::chrono::seconds(1);

// How long a worker may take to leave when it is told to and has nothing to do: it only flushes standard output.
constexpr auto kStopPatience = std::chrono::seconds(1);

// How often a task that never began is given to another worker. Each time a worker died with the task in its ring;
// after three the deaths are no coincidence any more.
constexpr unsigned kMostRestarts = 3;

// Room beside the largest message for its own encoding and for small messages of other tasks.
constexpr std::size_t kHeapMargin = std::size_t{1} << 20;

// Where a worker writes an answer: into its slot, or into a block when it is too large for that.
class ChannelSink final : public AnswerSink {
 public:
  explicit ChannelSink(process::WorkerChannel& channel) : channel_(channel) {}

  void put(Write write, const void* value) override {
    Encoder in_slot(channel_.answer_slot());
    write(in_slot, value);
    if (in_slot.fits()) {
      channel_.commit(in_slot.size());
      return;
    }
    const auto block = channel_.allocate_answer(in_slot.size());
    if (!block) {
      throw SerializationError(
          SerializationError::Part::result, "",
          fmt::format("it takes {} bytes, and max_message_size allows {}", in_slot.size(), channel_.heap_size()));
    }
    Encoder in_block(*block);
    write(in_block, value);
    if (in_block.size() != in_slot.size()) {
      throw SerializationError(SerializationError::Part::result, "", "its encoding differs from one time to the next");
    }
    channel_.commit(in_block.size());
  }

 private:
  process::WorkerChannel& channel_;
};

// The answer of a start call stays where it is; only whether it is an exception counts.
class StartSink final : public AnswerSink {
 public:
  void put(Write write, const void* value) override {
    Encoder counting{std::span<std::byte>()};
    write(counting, value);
    bytes_.resize(counting.size());
    Encoder encoder{std::span<std::byte>(bytes_)};
    write(encoder, value);
  }

  bool failed(std::string& reason) {
    Decoder decoder(bytes_);
    if (decoder.read_value<AnswerKind>() == AnswerKind::value) return false;
    reason = describe_exception(decode_answer_exception(decoder, {}));
    return true;
  }

 private:
  std::vector<std::byte> bytes_;
};

bool run_start_call(std::span<const std::byte> call, std::string& reason) {
  StartSink sink;
  run_encoded(call, sink);
  return !sink.failed(reason);
}

void run_task(std::span<const std::byte> request, process::WorkerChannel& channel) {
  ChannelSink sink(channel);
  run_encoded(request, sink);
}

std::string describe(const Ended& status) {
  if (status.signal == 0) return fmt::format("it left with exit code {}", status.code);
  const char* name = ::sigabbrev_np(status.signal);
  return name != nullptr ? fmt::format("it was killed by SIG{}", name)
                         : fmt::format("it was killed by signal {}", status.signal);
}

}  // namespace

const process::WorkerHooks kWorkerHooks{run_start_call, run_task};

WorkerPool::WorkerPool(std::shared_ptr<ExecutorCore> core, Settings settings, Background& background)
    : core_(std::move(core)),
      settings_(std::move(settings)),
      background_(background.context()),
      dispatcher_([&] {
        Dispatcher::Limits limits;
        limits.max_workers = settings_.max_workers;
        limits.ring_slots = process::kSlots;
        return limits;
      }()),
      workers_(settings_.max_workers),
      doorbells_(::epoll_create1(EPOLL_CLOEXEC)),
      backlog_timer_(std::make_unique<asio::steady_timer>(core_->io)),
      start_timer_(std::make_unique<asio::steady_timer>(background_)),
      stop_timer_(std::make_unique<asio::steady_timer>(background_)),
      deadline_timer_(std::make_unique<asio::steady_timer>(background_)) {
  if (!doorbells_) process::throw_errno("cannot create an epoll descriptor");
  doorbell_wait_ = std::make_unique<DescriptorWatch>(core_->io, doorbells_.get());
}

WorkerPool::~WorkerPool() = default;

// A function for the background thread: it holds the pool weakly, gets the lock, and is skipped once the pool is
// closed.
template <class F>
auto WorkerPool::in_background(F function) {
  return [weak = weak_from_this(), function = std::move(function)](auto&&... arguments) {
    const auto self = weak.lock();
    if (!self) return;
    Lock lock(self->core_->mutex);
    if (!self->closed_) function(*self, lock, arguments...);
  };
}

void WorkerPool::open() {
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

void WorkerPool::execute(TaskNode* node) {
  Lock lock(core_->mutex);
  if (closed_ || process::is_forked_copy()) {
    decide(*node,
           std::make_exception_ptr(ExecutorNotRunningError(
               core_->context_of(*node), "the executor belongs to the process that made it, and this is a fork of it")),
           Outcome::failed);
    TaskNode* const refused = ready_.pop_front();
    --ready_count_;
    lock.unlock();
    core_->settle(refused, Outcome::failed, Delivery::initiating);
    return;
  }
  if (const auto limit = node->options.queue_timeout()) {
    arm_deadline(*node, node->submitted_ns + static_cast<std::uint64_t>(limit->count()));
  }
  enqueue(*node);
  pump(lock);
  if (!waiting_) schedule_drain();
}

void WorkerPool::enqueue(TaskNode& node) {
  node.priority = node.options.priority();
  node.place.stage = TaskNode::Stage::queued;
  dispatcher_.enqueue(node);
}

// Gives queued tasks to workers for as long as there are both.
void WorkerPool::pump(Lock& lock) {
  while (QueuedTask* first = dispatcher_.front()) {
    if (dispatcher_.starting() > 0) {
      for (const WorkerPtr& worker : workers_) {
        if (worker && worker->channel.state() == process::WorkerState::ready) {
          dispatcher_.worker_ready(worker->index);
          dispatcher_.start_succeeded();
        }
      }
    }
    const auto index = dispatcher_.choose_worker();
    if (!index) return;
    const WorkerPtr worker = workers_[*index];
    if (worker->channel.free_slots() == 0) return;  // Answers fill it that are being decoded.
    if (!place(static_cast<TaskNode&>(*first), worker, lock)) return;
  }
}

// Puts a task into a worker's ring. The arguments are encoded without the mutex, since that is user code and may be
// long. False: there is no room for its arguments now.
bool WorkerPool::place(TaskNode& node, const WorkerPtr& worker, Lock& lock) {
  dispatcher_.remove(node);
  dispatcher_.placed(worker->index);
  const std::uint32_t sequence = worker->channel.reserve();
  worker->reserved = sequence + 1;
  ++in_rings_;
  Entry& entry = worker->entry(sequence);
  entry = Entry{};
  node.place.stage = TaskNode::Stage::encoding;
  node.place.worker = worker->index;
  node.place.sequence = sequence;
  node.place.placed_ns = ExecutorCore::now();
  const std::span<std::byte> slot = worker->channel.slot_payload(sequence);
  lock.unlock();

  std::exception_ptr error;
  std::size_t size = 0;
  std::optional<std::size_t> block;
  bool no_room = false;
  try {
    Encoder in_slot(slot);
    node.encode(in_slot);
    size = in_slot.size();
    if (!in_slot.fits()) {
      if (size > settings_.max_message_size) {
        throw SerializationError(
            SerializationError::Part::argument, "",
            fmt::format("they take {} bytes, and max_message_size allows {}", size, settings_.max_message_size));
      }
      lock.lock();
      block = worker->channel.allocate(size);
      lock.unlock();
      no_room = !block;
      if (block) {
        Encoder in_block(worker->channel.block(*block, size));
        node.encode(in_block);
        if (in_block.size() != size) {
          throw SerializationError(SerializationError::Part::argument, "",
                                   "their encoding differs from one time to the next");
        }
      }
    }
  } catch (const SerializationError& failure) {
    error = std::make_exception_ptr(
        SerializationError(failure.part(), failure.type_name(), failure.reason(), core_->context_of(node)));
  } catch (const FunctionUnavailableError& failure) {
    error = std::make_exception_ptr(FunctionUnavailableError(failure.what(), core_->context_of(node)));
  } catch (...) {
    error = std::current_exception();  // a codec of the user's
  }

  lock.lock();
  const bool usable = !worker->buried && !error && !no_room && !node.place.cancel_requested && !closed_;
  if (!usable && block) worker->channel.release(*block, size);
  if (usable) {
    entry.node = &node;
    if (block) {
      entry.block_offset = *block;
      entry.block_size = size;
    }
    node.place.stage = TaskNode::Stage::in_ring;
    if (node.options.timeout()) {
      arm_deadline(node, node.place.placed_ns + static_cast<std::uint64_t>(node.options.timeout()->count()));
    }
  }
  if (!worker->buried && !closed_) {
    // A slot without a task goes its way, too: the worker passes over it.
    worker->channel.fill(sequence, process::RequestKind::task, size, block ? *block : process::kInline, !usable);
    entry.filled = true;
    publish(*worker);
  }
  if (usable) return true;
  if (closed_) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, "the executor was destroyed"),
           Outcome::cancelled);
  } else if (node.place.cancel_requested) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, {}), Outcome::cancelled);
  } else if (error) {
    decide(node, std::move(error), Outcome::failed);
  } else {
    enqueue(node);  // Its worker died meanwhile, or its heap is full.
  }
  return !no_room;
}

// A worker that has something to do gets the new request with others at the end of the drain: one look at its cache
// line for many tasks. One that has nothing gets it now.
void WorkerPool::publish(Worker& worker) {
  if (drain_posted_ && dispatcher_.load(worker.index) > 1) {
    worker.unpublished = true;
  } else {
    publish_filled(worker);
  }
}

void WorkerPool::publish_filled(Worker& worker) {
  worker.unpublished = false;
  std::uint32_t end = worker.channel.published();
  while (end != worker.reserved && worker.entry(end).filled) ++end;
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

  bool progress = false;
  for (unsigned delivered = 0; !closed_; ++delivered) {
    if (ready_.empty()) {
      collect();
      pump(lock);
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
    if (!ready_.empty()) schedule_drain();
    lock.unlock();
    finish(node);
    lock.lock();
  }
  if (closed_) return;
  for (const WorkerPtr& worker : workers_) {
    if (worker && worker->unpublished) publish_filled(*worker);
  }
  if (progress) fruitless_rounds_ = 0;
  if (drain_posted_) return;
  if (core_->in_flight == 0) {
    fruitless_rounds_ = 0;
    // Nothing is left to wait for: the event loop may end.
    if (waiting_ && core_->context_alive) doorbell_wait_->cancel();
    if (dismissing_) asio::post(background_, in_background([](WorkerPool& self, Lock&) { self.stop_workers(); }));
    return;
  }
  if (in_rings_ > 0 && ++fruitless_rounds_ <= kFruitlessRounds) {
    schedule_drain();
  } else {
    wait_for_answers();
  }
}

void WorkerPool::wait_for_answers() {
  fruitless_rounds_ = 0;
  if (!core_->context_alive) return;
  watch_backlog();
  bool answered = false;
  for (const WorkerPtr& worker : workers_) {
    if (!worker || dispatcher_.load(worker->index) == 0) continue;
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
  }
  if (waiting_) return;
  waiting_ = true;
  doorbell_wait_->async_wait([self = shared_from_this()](boost::system::error_code) {
    Lock lock(self->core_->mutex);
    self->waiting_ = false;
    if (self->closed_) return;
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
  if (watching_backlog_ || !dispatcher_.has_backlog()) return;
  watching_backlog_ = true;
  backlog_timer_->expires_after(kBacklogInterval);
  backlog_timer_->async_wait([self = shared_from_this()](boost::system::error_code error) {
    Lock lock(self->core_->mutex);
    self->watching_backlog_ = false;
    if (error || self->closed_) return;
    for (const unsigned index : self->dispatcher_.stalled_workers()) {
      if (self->workers_[index]) self->take_back_all(*self->workers_[index]);
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
  try {
    const std::uint32_t committed = worker.channel.committed();
    if (committed == worker.collected) return;
    if (!dispatcher_.ready(worker.index)) {
      dispatcher_.worker_ready(worker.index);
      dispatcher_.start_succeeded();
    }
    while (worker.collected != committed) {
      const process::Response response = worker.channel.response(worker.collected);
      take_answer(worker, worker.collected, response);
      ++worker.collected;
    }
  } catch (const process::ProtocolViolation& violation) {
    violated(worker, violation.what());
  }
  consume(worker);
}

void WorkerPool::take_answer(Worker& worker, std::uint32_t sequence, const process::Response& response) {
  Entry& entry = worker.entry(sequence);
  TaskNode* const node = entry.node;
  if (response.kind == ResponseKind::skipped) {
    if (node != nullptr) throw process::ProtocolViolation("it skipped a task that was not taken back");
    entry.answered = true;
    --in_rings_;
    dispatcher_.left(worker.index, std::nullopt);
    return;
  }
  if (node == nullptr) throw process::ProtocolViolation("it answered a request that was taken back");
  // The worker's clock readings are only believed as far as they are possible.
  const std::uint64_t now = ExecutorCore::now();
  node->began_ns = std::clamp(response.began_ns, node->submitted_ns, now);
  node->ended_ns = std::clamp(response.ended_ns, node->began_ns, now);
  entry.node = nullptr;
  if (entry.block_size > 0) worker.channel.release(entry.block_offset, entry.block_size);
  entry.block_size = 0;
  --in_rings_;
  dispatcher_.left(worker.index, std::chrono::nanoseconds(node->ended_ns - node->began_ns));
  deadlines_.erase({node->place.deadline, node});
  node->place.stage = TaskNode::Stage::answered;
  if (response.in_slot) {
    std::memcpy(node->place.copy, response.payload.data(), response.payload.size());
    node->place.answer = {node->place.copy, response.payload.size()};
    entry.answered = true;
  } else {
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

// Decodes a task's answer and hands it to the caller. Without the mutex: both are user code.
void WorkerPool::finish(TaskNode* node) {
  if (!node->place.decided) {
    const auto area = std::static_pointer_cast<Worker>(node->place.area);
    decode_answer(*node, area ? area->pid : -1);
    if (area) {
      const Lock lock(core_->mutex);
      area->entry(node->place.sequence).answered = true;
      node->place.area.reset();
      consume(*area);
    }
    node->outcome = node->error ? Outcome::failed : Outcome::completed;
  }
  core_->settle(node, node->outcome, Delivery::on_io_executor);
}

void WorkerPool::decode_answer(TaskNode& node, int worker_pid) {
  const auto context = [&] {
    ErrorContext known = core_->context_of(node);
    if (worker_pid > 0) known.worker_pid = worker_pid;
    return known;
  };
  try {
    Decoder decoder(node.place.answer, Decoder::Source::untrusted);
    switch (decoder.read_value<AnswerKind>()) {
      case AnswerKind::value:
        node.decode_result(decoder);
        return;
      case AnswerKind::exception:
        node.error = decode_answer_exception(decoder, context());
        break;
      default:
        node.error =
            std::make_exception_ptr(ProtocolError("it answered with neither a value nor an exception", context()));
        return;
    }
  } catch (const SerializationError& error) {
    node.error = std::make_exception_ptr(
        SerializationError(SerializationError::Part::result, error.type_name(), error.reason(), context()));
    return;
  } catch (...) {
    node.error = std::current_exception();  // a codec of the user's
    return;
  }
  // The worker does not know the task's name: what it says of values gets it here.
  try {
    std::rethrow_exception(node.error);
  } catch (const SerializationError& error) {
    if (error.context().executor.empty()) {
      node.error =
          std::make_exception_ptr(SerializationError(error.part(), error.type_name(), error.reason(), context()));
    }
  } catch (...) {  // every other error is the task's own and stays as it is
    node.error = std::current_exception();
  }
}

// A task gets its outcome without an answer.
void WorkerPool::decide(TaskNode& node, std::exception_ptr error, Outcome outcome) {
  deadlines_.erase({node.place.deadline, &node});
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
  return std::make_exception_ptr(TaskCancelledError(stage, core_->context_of(node), reason));
}

// ---------------------------------------------------------------------------------------------------------------------
// Taking back and cancelling.

// True: the worker has not begun the request and never will; its node is free.
bool WorkerPool::take_back(Worker& worker, std::uint32_t sequence) {
  Entry& entry = worker.entry(sequence);
  if (static_cast<std::int32_t>(sequence - worker.channel.published()) < 0) {
    if (!worker.channel.take_back(sequence)) return false;
  } else {
    worker.channel.take_back(sequence);  // Not even published: nobody can have begun it.
  }
  entry.node = nullptr;
  if (entry.block_size > 0) worker.channel.release(entry.block_offset, entry.block_size);
  entry.block_size = 0;
  return true;
}

void WorkerPool::take_back_all(Worker& worker) {
  for (std::uint32_t sequence = worker.reserved; sequence != worker.collected;) {
    --sequence;
    TaskNode* const node = worker.entry(sequence).node;
    if (node == nullptr) continue;  // taken back before, or still being written
    if (!take_back(worker, sequence)) return;
    deadlines_.erase({node->place.deadline, node});
    if (const auto limit = node->options.queue_timeout()) {
      arm_deadline(*node, node->submitted_ns + static_cast<std::uint64_t>(limit->count()));
    }
    enqueue(*node);
  }
}

void WorkerPool::cancel(TaskNode& node, asio::cancellation_type type) {
  using Stage = TaskNode::Stage;
  switch (node.place.stage) {
    case Stage::none:
    case Stage::answered:
      return;
    case Stage::queued:
      dispatcher_.remove(node);
      decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, {}), Outcome::cancelled);
      return;
    case Stage::encoding:
      node.place.cancel_requested = true;
      return;
    case Stage::in_ring:
      break;
  }
  Worker& worker = *workers_[node.place.worker];
  if (take_back(worker, node.place.sequence)) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, {}), Outcome::cancelled);
  } else if ((type & asio::cancellation_type::terminal) != asio::cancellation_type::none) {
    kill(worker, Killed::cancelled, node.id, "it was cancelled by its caller, and the worker was killed");
  }
}

void WorkerPool::cancel_pending() {
  const Lock lock(core_->mutex);
  while (QueuedTask* task = dispatcher_.front()) {
    auto& node = static_cast<TaskNode&>(*task);
    dispatcher_.remove(node);
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, "the executor was shut down"),
           Outcome::cancelled);
  }
  for (const WorkerPtr& worker : workers_) {
    if (!worker) continue;
    for (std::uint32_t sequence = worker->reserved; sequence != worker->collected;) {
      --sequence;
      TaskNode* const node = worker->entry(sequence).node;
      if (node == nullptr) continue;
      if (!take_back(*worker, sequence)) break;
      decide(*node, cancelled_error(*node, TaskCancelledError::Stage::queued, "the executor was shut down"),
             Outcome::cancelled);
    }
  }
}

void WorkerPool::kill_all(const std::string& reason) {
  cancel_pending();
  const Lock lock(core_->mutex);
  for (const WorkerPtr& worker : workers_) {
    if (worker && dispatcher_.load(worker->index) > 0) kill(*worker, Killed::shut_down, 0, reason);
  }
}

// Kills the worker for the sake of the task that it has taken up. The lock is held from the decision to the signal, and
// a worker's task only changes under it, so the signal cannot hit the next task.
void WorkerPool::kill(Worker& worker, Killed why, std::uint64_t task, std::string reason) {
  if (worker.killed != Killed::no || worker.buried) return;
  worker.killed = why;
  worker.killed_task = task;
  worker.reason = std::move(reason);
  process::kill_process(worker.pidfd);  // If it is not born yet, `worker_spawned` does it.
}

void WorkerPool::violated(Worker& worker, const std::string& what) { kill(worker, Killed::protocol, 0, what); }

// ---------------------------------------------------------------------------------------------------------------------
// The background thread: birth.

void WorkerPool::start_template(Lock&) {
  process::TemplateConfiguration configuration;
  configuration.hooks = &kWorkerHooks;
  configuration.layout.heap_size = settings_.max_message_size + kHeapMargin;
  core_->name.copy(configuration.name, sizeof(configuration.name) - 1);
  template_ready_ = false;
  template_socket_ =
      process::ForkServer::start().create_template(configuration, settings_.preload, settings_.initializer);
  template_wait_ = std::make_unique<DescriptorWatch>(background_, template_socket_.get());
  watch_template();
}

void WorkerPool::watch_template() {
  template_wait_->async_wait(
      [weak = weak_from_this(), watched = template_wait_.get()](boost::system::error_code error) {
        const auto self = weak.lock();
        if (!self || error) return;
        Lock lock(self->core_->mutex);
        if (self->closed_ || self->template_wait_.get() != watched) return;
        self->read_template();
        if (self->template_wait_) self->watch_template();
        lock.unlock();
        self->maintain();
      });
}

void WorkerPool::read_template() {
  for (;;) {
    process::Record record;
    process::Received received;
    try {
      received = process::receive_record(template_socket_, process::writable_bytes_of(record));
    } catch (const std::system_error& error) {
      last_start_error_ = error.what();
      template_gone();
      return;
    }
    if (received.would_block) return;
    if (received.size != sizeof(record) || record.magic != process::kMagic) {
      template_gone();
      return;
    }
    Worker* const worker = find_worker(record.worker);
    switch (record.type) {
      case process::RecordType::template_ready:
        template_ready_ = true;
        template_pidfd_ = std::move(received.fds[0]);
        break;
      case process::RecordType::template_failed:
        last_start_error_ = record.get_text();
        break;
      case process::RecordType::spawned:
        if (worker != nullptr) worker_spawned(*worker, std::move(received.fds[0]));
        break;
      case process::RecordType::spawn_failed:
        last_start_error_ = record.get_text();
        if (worker != nullptr) bury(workers_[worker->index]);
        break;
      case process::RecordType::exited:
        if (worker != nullptr) {
          worker->status = process::ExitStatus{record.signal, record.exit_code, record.peak_memory};
          if (worker->dying) bury(workers_[worker->index]);
        }
        break;
      default:
        template_gone();
        return;
    }
  }
}

// Its workers die with it: those that we know of say so through their pidfd, the others never came to be.
void WorkerPool::template_gone() {
  template_wait_.reset();
  template_socket_.reset();
  template_pidfd_.reset();
  template_ready_ = false;
  if (last_start_error_.empty()) {
    last_start_error_ = process::ForkServer::start().gone() ? "the fork server has ended" : "the template has ended";
  }
  for (unsigned i = 0; i < workers_.size(); ++i) {
    const WorkerPtr worker = workers_[i];
    if (!worker) continue;
    if (!worker->pidfd || worker->dying) {
      bury(worker);
    } else {
      process::kill_process(worker->pidfd);
    }
  }
}

// Starts what is missing, or sets a timer for when it may be.
void WorkerPool::maintain() {
  Lock lock(core_->mutex);
  if (closed_ || process::is_forked_copy()) return;
  while (!closed_ && !dismissing_) {
    const auto now = std::chrono::nanoseconds(static_cast<std::int64_t>(ExecutorCore::now()));
    const auto index = dispatcher_.worker_to_start(now);
    if (!index) {
      if (const auto next = dispatcher_.next_start(); next && *next > now) {
        start_timer_->expires_after(*next - now);
        start_timer_->async_wait([weak = weak_from_this()](boost::system::error_code error) {
          if (error) return;
          if (const auto self = weak.lock()) self->maintain();
        });
      }
      break;
    }
    start_worker(*index, lock);
  }
  fail_queue_if_hopeless();
}

void WorkerPool::start_worker(unsigned index, Lock& lock) {
  WorkerPtr worker;
  std::string failure;
  try {
    if (!template_socket_) {
      if (process::ForkServer::start().gone()) {
        throw std::runtime_error("the fork server has ended; start the program anew");
      }
      start_template(lock);
    }
    const process::ArenaLayout layout{settings_.max_message_size + kHeapMargin};
    const std::uint64_t generation = ++last_generation_;
    // A dozen system calls that nobody need wait for.
    lock.unlock();
    worker = std::make_shared<Worker>(index, generation, layout);
    worker->channel.set_spin_limit(index < settings_.spinning_workers ? settings_.spin_pauses : 0);
    lock.lock();
    if (closed_ || !template_socket_) return;
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    if (::epoll_ctl(doorbells_.get(), EPOLL_CTL_ADD, worker->channel.doorbell().get(), &event) != 0) {
      process::throw_errno("cannot watch a doorbell");
    }
    process::Record record;
    record.type = process::RecordType::spawn;
    record.worker = generation;
    const std::array<int, process::kMostDescriptors> fds{
        worker->channel.request_fd().get(), worker->channel.response_fd().get(), worker->channel.doorbell().get()};
    if (!process::send_record(template_socket_, process::bytes_of(record), fds)) {
      throw std::runtime_error("the template does not take requests: preload still runs, or it is stopped");
    }
    worker->channel.close_areas();
  } catch (const std::exception& error) {
    failure = error.what();
    if (!lock.owns_lock()) lock.lock();
  }
  if (!failure.empty()) {
    start_failed(failure);
    return;
  }
  workers_[index] = worker;
  dispatcher_.worker_added(index);
  ++workers_started_;
  if (dispatcher_.queued() > 0) schedule_drain();
}

void WorkerPool::start_failed(const std::string& reason) {
  last_start_error_ = reason;
  dispatcher_.start_failed(std::chrono::nanoseconds(static_cast<std::int64_t>(ExecutorCore::now())));
}

void WorkerPool::fail_queue_if_hopeless() {
  if (!dispatcher_.gives_up()) return;
  while (QueuedTask* task = dispatcher_.front()) {
    auto& node = static_cast<TaskNode&>(*task);
    dispatcher_.remove(node);
    decide(node,
           std::make_exception_ptr(
               WorkerStartError(last_start_error_, dispatcher_.failures_in_a_row(), core_->context_of(node))),
           Outcome::failed);
  }
}

void WorkerPool::worker_spawned(Worker& worker, process::FileDescriptor pidfd) {
  worker.pidfd = std::move(pidfd);
  worker.pid = process::pid_of(worker.pidfd);
  if (worker.killed != Killed::no || dismissing_) process::kill_process(worker.pidfd);
  worker.death = std::make_unique<DescriptorWatch>(background_, worker.pidfd.get());
  worker.death->async_wait([weak = weak_from_this(), generation = worker.generation](boost::system::error_code error) {
    const auto self = weak.lock();
    if (!self || error) return;
    {
      const Lock lock(self->core_->mutex);
      Worker* const dead = self->closed_ ? nullptr : self->find_worker(generation);
      if (dead == nullptr) return;
      self->worker_died(self->workers_[dead->index]);
    }
    self->maintain();
  });
}

WorkerPool::Worker* WorkerPool::find_worker(std::uint64_t generation) {
  for (const WorkerPtr& worker : workers_) {
    if (worker && worker->generation == generation) return worker.get();
  }
  return nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// The background thread: death.

void WorkerPool::worker_died(const WorkerPtr& worker) {
  worker->dying = true;
  // The pidfd tells that it is dead, its template how. Both are needed, in whatever order they come.
  if (worker->status || !template_socket_) {
    bury(worker);
    return;
  }
  worker->status_timer = std::make_unique<asio::steady_timer>(background_, kStatusPatience);
  worker->status_timer->async_wait(
      in_background([generation = worker->generation](WorkerPool& self, Lock& lock, boost::system::error_code error) {
        if (error) return;
        Worker* const dead = self.find_worker(generation);
        if (dead == nullptr) return;
        self.bury(self.workers_[dead->index]);
        lock.unlock();
        self.maintain();
        lock.lock();
      }));
}

// What the worker had answered is delivered; what it had taken up has failed with it; what it had not taken up goes to
// another. `mine` is a copy: the pool's own pointer is about to go.
void WorkerPool::bury(const WorkerPtr& worker_reference) {
  const WorkerPtr worker = worker_reference;
  if (worker->buried) return;
  const bool was_ready = worker->channel.state() == process::WorkerState::ready;
  // One last look: what was committed before the death counts, rung or not.
  collect_from(*worker);
  worker->buried = true;
  worker->dying = true;
  const bool never_worked = !was_ready && !worker->told_to_stop;
  if (never_worked) {
    std::string reason = worker->channel.state() == process::WorkerState::failed ? worker->channel.report() : "";
    if (reason.empty() && worker->status) reason = "a worker ended during its start: " + describe(*worker->status);
    if (reason.empty()) reason = last_start_error_;
    start_failed(reason);
  } else if (!worker->told_to_stop && worker->killed == Killed::no) {
    ++workers_crashed_;
  }
  if (was_ready) dispatcher_.start_succeeded();
  for (std::uint32_t sequence = worker->collected; sequence != worker->reserved; ++sequence) {
    Entry& entry = worker->entry(sequence);
    --in_rings_;
    if (entry.node == nullptr) continue;
    TaskNode& node = *std::exchange(entry.node, nullptr);
    const bool published = static_cast<std::int32_t>(sequence - worker->channel.published()) < 0;
    judge(*worker, node, published && sequence == worker->collected && worker->channel.begun(sequence));
  }
  ::epoll_ctl(doorbells_.get(), EPOLL_CTL_DEL, worker->channel.doorbell().get(), nullptr);
  worker->death.reset();
  worker->status_timer.reset();
  dispatcher_.worker_removed(worker->index);
  workers_[worker->index].reset();
  if (dispatcher_.queued() > 0 || ready_count_ > 0) schedule_drain();
  all_gone_if_so();
}

// A task whose worker died without answering it.
void WorkerPool::judge(Worker& worker, TaskNode& node, bool begun) {
  ErrorContext context = core_->context_of(node);
  if (worker.pid > 0) context.worker_pid = worker.pid;
  const std::uint64_t now = ExecutorCore::now();
  if (begun) {
    node.began_ns = std::clamp(worker.channel.begun_ns(), node.submitted_ns, now);
    node.ended_ns = now;
  }
  if (worker.killed == Killed::shut_down) {
    decide(node,
           cancelled_error(node, begun ? TaskCancelledError::Stage::running : TaskCancelledError::Stage::queued,
                           worker.reason),
           Outcome::cancelled);
    return;
  }
  if (!begun && node.place.restarts < kMostRestarts) {
    ++node.place.restarts;
    deadlines_.erase({node.place.deadline, &node});
    if (const auto limit = node.options.queue_timeout()) {
      arm_deadline(node, node.submitted_ns + static_cast<std::uint64_t>(limit->count()));
    }
    enqueue(node);
    return;
  }
  if (begun && worker.killed == Killed::cancelled && worker.killed_task == node.id) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::running, worker.reason), Outcome::cancelled);
    return;
  }
  if (begun && worker.killed == Killed::timed_out && worker.killed_task == node.id) {
    decide(node,
           std::make_exception_ptr(
               TaskTimeoutError(TaskTimeoutError::Which::run, *node.options.timeout(), std::move(context))),
           Outcome::timed_out);
    return;
  }
  if (worker.killed == Killed::protocol) {
    decide(node, std::make_exception_ptr(ProtocolError(worker.reason, std::move(context))), Outcome::failed);
    return;
  }
  WorkerCrashedError::Ending ending;
  ending.started = begun ? Started::maybe : Started::never;
  if (worker.status) {
    ending.signal = worker.status->signal;
    if (worker.status->signal == 0) ending.exit_code = worker.status->code;
    ending.peak_memory = worker.status->peak_memory;
  }
  if (begun) ending.run_time = std::chrono::nanoseconds(node.ended_ns - node.began_ns);
  std::string reason;
  if (!template_socket_) reason = last_start_error_;
  if (!begun) reason = fmt::format("{} workers in a row died before they began the task", kMostRestarts + 1);
  decide(node, std::make_exception_ptr(WorkerCrashedError(ending, std::move(context), reason)), Outcome::failed);
}

// ---------------------------------------------------------------------------------------------------------------------
// The background thread: time limits.

void WorkerPool::arm_deadline(TaskNode& node, std::uint64_t deadline) {
  deadlines_.erase({node.place.deadline, &node});
  node.place.deadline = deadline;
  const auto place = deadlines_.emplace(deadline, &node).first;
  if (place != deadlines_.begin()) return;
  asio::post(background_, in_background([](WorkerPool& self, Lock&) { self.deadlines_passed(); }));
}

void WorkerPool::deadlines_passed() {
  const std::uint64_t now = ExecutorCore::now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    TaskNode& node = *deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    node.place.deadline = 0;
    deadline_passed(node, now);
  }
  if (deadlines_.empty()) return;
  deadline_timer_->expires_after(std::chrono::nanoseconds(deadlines_.begin()->first - now));
  deadline_timer_->async_wait(in_background([](WorkerPool& self, Lock&, boost::system::error_code error) {
    if (!error) self.deadlines_passed();
  }));
}

void WorkerPool::deadline_passed(TaskNode& node, std::uint64_t now) {
  const auto queue_limit = node.options.queue_timeout();
  const auto expired_in_queue = [&] {
    decide(node,
           std::make_exception_ptr(
               TaskTimeoutError(TaskTimeoutError::Which::queue, *queue_limit, core_->context_of(node))),
           Outcome::timed_out);
  };
  const bool queue_over = queue_limit && now >= node.submitted_ns + static_cast<std::uint64_t>(queue_limit->count());
  if (node.place.stage == TaskNode::Stage::queued) {
    if (!queue_over) return;
    dispatcher_.remove(node);
    expired_in_queue();
    return;
  }
  if (node.place.stage != TaskNode::Stage::in_ring) return;
  Worker& worker = *workers_[node.place.worker];
  if (!worker.channel.begun(node.place.sequence)) {
    if (queue_over && take_back(worker, node.place.sequence)) {
      expired_in_queue();
      return;
    }
  }
  if (!node.options.timeout()) return;
  const auto limit = static_cast<std::uint64_t>(node.options.timeout()->count());
  // The clock runs from the start of the run. Not begun: it cannot be over sooner than after the whole limit.
  const std::uint64_t started = worker.channel.begun(node.place.sequence)
                                    ? std::clamp(worker.channel.begun_ns(), node.place.placed_ns, now)
                                    : now;
  if (now >= started + limit) {
    kill(worker, Killed::timed_out, node.id, "its timeout passed");
  } else {
    arm_deadline(node, started + limit);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The end.

void WorkerPool::dismiss(Handler handler) {
  const Lock lock(core_->mutex);
  dismiss_handlers_.push_back(std::move(handler));
  dismissing_ = true;
  if (core_->in_flight == 0) {
    asio::post(background_, in_background([](WorkerPool& self, Lock&) { self.stop_workers(); }));
  }
}

void WorkerPool::dismiss_when_idle() {
  const Lock lock(core_->mutex);
  dismissing_ = true;
  if (core_->in_flight == 0) {
    asio::post(background_, in_background([](WorkerPool& self, Lock&) { self.stop_workers(); }));
  }
}

void WorkerPool::stop_workers() {
  if (stopping_) {
    all_gone_if_so();
    return;
  }
  stopping_ = true;
  dispatcher_.stop_starting();
  for (const WorkerPtr& worker : workers_) {
    if (!worker) continue;
    worker->told_to_stop = true;
    const std::uint32_t sequence = worker->channel.reserve();
    worker->reserved = sequence + 1;
    worker->entry(sequence) = Entry{};
    worker->entry(sequence).filled = true;
    ++in_rings_;
    worker->channel.fill(sequence, process::RequestKind::stop, 0, process::kInline, false);
    publish_filled(*worker);
  }
  stop_timer_->expires_after(kStopPatience);
  stop_timer_->async_wait(in_background([](WorkerPool& self, Lock&, boost::system::error_code error) {
    if (error) return;
    for (const WorkerPtr& worker : self.workers_) {
      if (worker) self.kill(*worker, Killed::shut_down, 0, "it did not leave when it was told to");
    }
    // Those that are not born yet go with the template.
    if (self.template_wait_) self.template_gone();
  }));
  all_gone_if_so();
}

void WorkerPool::all_gone_if_so() {
  if (!stopping_) return;
  for (const WorkerPtr& worker : workers_) {
    if (worker) return;
  }
  stop_timer_->cancel();
  template_wait_.reset();
  template_socket_.reset();
  if (!core_->context_alive) return;
  for (Handler& handler : dismiss_handlers_) {
    asio::post(core_->io, asio::append(std::move(handler), std::exception_ptr(), true));
  }
  dismiss_handlers_.clear();
}

void WorkerPool::close() {
  std::vector<TaskNode*> left;
  std::vector<Handler> handlers;
  {
    const Lock lock(core_->mutex);
    if (closed_) return;
    const bool copy = process::is_forked_copy();
    while (TaskNode* node = ready_.pop_front()) {
      --ready_count_;
      left.push_back(node);
    }
    const auto abandon = [&](TaskNode& node, TaskCancelledError::Stage stage) {
      node.error = cancelled_error(node, stage, "the executor was destroyed");
      node.outcome = Outcome::cancelled;
      node.place.decided = true;
      left.push_back(&node);
    };
    while (QueuedTask* task = dispatcher_.front()) {
      auto& node = static_cast<TaskNode&>(*task);
      dispatcher_.remove(node);
      abandon(node, TaskCancelledError::Stage::queued);
    }
    for (WorkerPtr& worker : workers_) {
      if (!worker) continue;
      // A forked copy holds the descriptors, but the workers are its parent's.
      if (!copy) process::kill_process(worker->pidfd);
      worker->buried = true;
      worker->death.reset();
      worker->status_timer.reset();
      for (std::uint32_t sequence = worker->collected; sequence != worker->reserved; ++sequence) {
        if (TaskNode* node = std::exchange(worker->entry(sequence).node, nullptr)) {
          abandon(*node, TaskCancelledError::Stage::running);
        }
      }
      worker.reset();
    }
    closed_ = true;
    handlers.swap(dismiss_handlers_);
    deadlines_.clear();
    doorbell_wait_.reset();
    backlog_timer_.reset();
    start_timer_.reset();
    stop_timer_.reset();
    deadline_timer_.reset();
    template_wait_.reset();
    template_socket_.reset();
  }
  for (TaskNode* node : left) {
    if (!node->place.decided) {
      node->error = cancelled_error(*node, TaskCancelledError::Stage::running, "the executor was destroyed");
      node->outcome = Outcome::cancelled;
    }
    node->place.area.reset();
    core_->settle(node, node->outcome, Delivery::initiating);
  }
}

void WorkerPool::context_gone() {
  const Lock lock(core_->mutex);
  doorbell_wait_.reset();
  backlog_timer_.reset();
  dismiss_handlers_.clear();
  for (const WorkerPtr& worker : workers_) {
    if (worker && dispatcher_.load(worker->index) > 0) {
      kill(*worker, Killed::shut_down, 0, "the event loop was destroyed");
    }
  }
}

void WorkerPool::add_metrics(Metrics& metrics) const {
  metrics.mode = "process";
  metrics.workers = 0;
  std::size_t busy = ready_count_;  // answered, and about to be delivered
  for (const WorkerPtr& worker : workers_) {
    if (!worker || worker->dying) continue;
    ++metrics.workers;
    if (!worker->told_to_stop && dispatcher_.load(worker->index) > 0) ++busy;
  }
  metrics.running = std::min(busy, core_->open);
  metrics.pending = core_->open - metrics.running;
  metrics.workers_started = workers_started_;
  metrics.workers_crashed = workers_crashed_;
}

std::vector<int> WorkerPool::worker_pids() const {
  const Lock lock(core_->mutex);
  std::vector<int> pids;
  for (const WorkerPtr& worker : workers_) {
    if (worker && worker->pid > 0 && !worker->dying) pids.push_back(worker->pid);
  }
  return pids;
}

}  // namespace bulkhead::detail
