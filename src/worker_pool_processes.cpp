// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "crash_report.hpp"
#include "process/printable.hpp"
#include "process/seccomp_filter.hpp"
#include "process/template_record.hpp"

#include <boost/asio/append.hpp>
#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <sys/epoll.h>
#include <algorithm>
#include <array>
#include <csignal>
#include <exception>
#include <utility>

// The background thread's side of the pool: the birth and death of workers, time limits, and the end.

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1  // asm-generic/siginfo.h: SIGSYS was raised by a filter
#endif

namespace bulkhead::detail {
namespace {

// How long a dead worker's exit status may take to arrive from its template. It is one system call away; a second
// means that the template is stopped or gone.
constexpr auto kStatusPatience = std::chrono::seconds(1);

// How long a worker that is replaced may take to leave when it has nothing to do: it only flushes standard output.
constexpr auto kLeavePatience = std::chrono::seconds(1);

// How long the fork server may take to fork a template, and a template that is done with preload to fork a worker. Both
// are one fork, far below a millisecond; five seconds mean that the process is stopped.
constexpr auto kStartPatience = std::chrono::seconds(5);

constexpr const char* kNoDescriptors =
    "the program has no descriptor left for a worker (Too many open files): raise its limit (ulimit -n), or have fewer "
    "workers";

// How often a start that follows failed ones is looked at; the dispatcher's shortest pause.
constexpr std::chrono::nanoseconds kStartInterval = std::chrono::milliseconds(10);

// A worker that has lived so long counts as started for good, task or not.
constexpr std::uint64_t kProbation = 1'000'000'000;

// How often a task that never began is given to another worker. Each time a worker died with the task in its ring;
// after three the deaths are no coincidence any more.
constexpr unsigned kMostRestarts = 3;

// Room beside the largest message for its own encoding and for small messages of other tasks.
constexpr std::size_t kHeapMargin = std::size_t{1} << 20;

std::string describe(const process::ExitStatus& status) {
  if (status.signal == 0) return fmt::format("it left with exit code {}", status.code);
  const char* name = ::sigabbrev_np(status.signal);
  return name != nullptr ? fmt::format("it was killed by SIG{}", name)
                         : fmt::format("it was killed by signal {}", status.signal);
}

// The system call for which a filter ended a worker with SIGSYS; without a name if the worker could not take note of
// it. Nothing: it was another SIGSYS, which somebody has sent.
std::optional<std::string> forbidden_call(const std::optional<process::CrashNote>& note) {
  if (!note || note->signal != SIGSYS) return std::string();
  if (note->code != SYS_SECCOMP) return std::nullopt;
  return process::system_call_name(static_cast<long>(note->address));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The background thread: birth.

process::ArenaLayout WorkerPool::layout() const {
  return {settings_.max_message_size + kHeapMargin, settings_.max_message_size, settings_.kept_message_memory};
}

void WorkerPool::start_template(Lock&) {
  process::TemplateConfiguration configuration;
  configuration.hooks = &kWorkerHooks;
  configuration.layout = layout();
  configuration.streams =
      settings_.capture_output == CaptureOutput::inherit ? process::Streams::standard_error : process::Streams::both;
  configuration.max_worker_memory = settings_.max_worker_memory;
  configuration.memory_limit = settings_.memory_limit;
  core_->name.copy(configuration.name, sizeof(configuration.name) - 1);
  process::TemplateParts parts;
  parts.preload = settings_.preload;
  parts.initializer = settings_.initializer;
  parts.sandbox = settings_.sandbox;
  template_socket_ = process::ForkServer::start().create_template(configuration, parts, settings_.shared.get());
  template_wait_ = std::make_unique<DescriptorWatch>(background_, template_socket_.get());
  template_ready_ = false;
  watch_template();
  expect_answer();
}

// Sees to it that a fork server or template that does not answer is not waited for, and preload only so long as the
// options say.
void WorkerPool::expect_answer() {
  const bool in_preload = template_pidfd_ && !template_ready_;
  if (in_preload) {
    answer_timer_->expires_at(template_started_at_ + settings_.start_timeout);
  } else {
    answer_timer_->expires_after(kStartPatience);
  }
  await_answer();
}

void WorkerPool::await_answer() {
  answer_timer_->async_wait(in_background([](WorkerPool& self, Lock& lock, boost::system::error_code error) {
    if (error || !self.template_wait_) return;
    if (fired_late(*self.answer_timer_)) {
      self.answer_timer_->expires_after(kStartPatience);
      self.await_answer();
      return;
    }
    const bool unborn = std::any_of(self.workers_.begin(), self.workers_.end(),
                                    [](const WorkerPtr& worker) { return worker && !worker->pidfd; });
    if (self.template_ready_ && !unborn) return;
    std::string reason;
    if (!self.template_pidfd_) {
      reason = "the fork server does not answer: it is stopped";
      process::ForkServer::start().note_silence();
    } else if (!self.template_ready_) {
      reason = fmt::format("preload did not end within start_timeout = {} s",
                           std::chrono::duration<double>(self.settings_.start_timeout).count());
    } else {
      reason = "the template does not answer: it is stopped";
    }
    self.template_gone(reason);
    lock.unlock();
    self.maintain();
    lock.lock();
  }));
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
    // The descriptors of a worker's areas, which its template has by now, make room for that of its pidfd.
    for (const WorkerPtr& unborn : workers_) {
      if (unborn && !unborn->pidfd) unborn->channel.close_areas();
    }
    process::Record record;
    process::Received received;
    try {
      received = process::receive_record(template_socket_, process::writable_bytes_of(record));
    } catch (const std::system_error& error) {
      template_gone(error.what());
      return;
    }
    if (received.would_block) return;
    if (const auto violation = process::violation_in(record, received)) {
      // One that has ended says nothing of why.
      template_gone(received.size == 0 ? std::string() : "the template sent something impossible: " + *violation);
      return;
    }
    if (received.descriptors_lost) last_start_error_ = kNoDescriptors;
    Worker* const worker = find_worker(record.worker);
    switch (record.type) {
      case process::RecordType::template_started:
        if (received.descriptors_lost) {
          template_gone();
          return;
        }
        template_pidfd_ = std::move(received.fds[0]);
        template_started_at_ = std::chrono::steady_clock::now();
        expect_answer();
        break;
      case process::RecordType::template_ready:
        template_ready_ = true;
        expect_answer();
        break;
      case process::RecordType::template_failed:
        last_start_error_ = process::text_of(record);
        break;
      case process::RecordType::spawned:
        if (received.descriptors_lost) {
          tell_template(process::RecordType::discard, record.worker);
          if (worker != nullptr) {
            worker->killed = Killed::discarded;
            bury(workers_[worker->index]);
          }
        } else if (worker != nullptr) {
          worker_spawned(*worker, std::move(received.fds[0]));
        }
        break;
      case process::RecordType::spawn_failed:
        last_start_error_ = process::text_of(record);
        if (worker != nullptr) bury(workers_[worker->index]);
        break;
      case process::RecordType::exited:
        tell_template(process::RecordType::reap, record.worker);
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

// If the template does not take the record, it keeps a zombie or an idle worker until it ends itself; that harms
// nobody.
void WorkerPool::tell_template(process::RecordType type, std::uint64_t generation) {
  process::Record record;
  record.type = type;
  record.worker = generation;
  try {
    process::send_record(template_socket_, process::bytes_of(record), {});
  } catch (const std::system_error& error) {
    last_start_error_ = error.what();  // the template is gone, as the socket will say next
  }
}

// It leaves when its socket is closed, unless it hangs in preload. Its workers die with it.
void WorkerPool::end_template() {
  template_wait_.reset();
  template_socket_.reset();
  process::kill_process(template_pidfd_);
  template_pidfd_.reset();
}

// Its workers die with it: those that we know of say so through their pidfd, the others never came to be.
void WorkerPool::template_gone(const std::string& reason) {
  const bool was_ready = template_ready_;
  end_template();
  if (process::ForkServer::start().gone()) {
    // The program has threads by now and cannot fork another.
    forsaken_ = true;
    last_start_error_ = "the fork server has ended; the program must be started anew";
    asio::post(slow_, [] {
      if (const process::ForkServer* server = process::ForkServer::find()) server->reap();
    });
  } else if (!reason.empty()) {
    last_start_error_ = reason;
  } else if (was_ready) {
    // Whatever start had failed before.
    last_start_error_ = "the template has ended";
  } else if (!settings_.preload.empty() && last_start_error_.empty()) {
    last_start_error_ = "the process that ran preload has ended: preload crashed, or called exit";
  } else if (last_start_error_.empty()) {
    last_start_error_ = "the template has ended";
  }
  for (unsigned i = 0; i < workers_.size(); ++i) {
    const WorkerPtr worker = workers_[i];
    if (!worker) continue;
    worker->orphaned = true;
    if (worker->reason.empty()) worker->reason = last_start_error_;
    if (!worker->pidfd || worker->dying) {
      bury(worker);
    } else {
      process::kill_process(worker->pidfd);
    }
  }
}

// Has the background thread look after the number of workers.
void WorkerPool::ask_maintenance() {
  if (std::exchange(maintenance_asked_, true)) return;
  asio::post(background_, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->maintain();
  });
}

void WorkerPool::ask_for_workers() {
  if (dispatcher_.is_complete()) return;
  if ((dispatcher_.lacks_workers() && !start_pending_) || dispatcher_.worker_to_give_up()) ask_maintenance();
}

// Lets go who has to go, and starts what is missing, or sets a timer for when it may be.
void WorkerPool::maintain() {
  Lock lock(core_->mutex);
  maintenance_asked_ = false;
  start_pending_ = false;
  if (closed_ || is_forked_copy()) return;
  while (!closed_ && !stopping_ && !forsaken_) {
    notice_ready_workers();
    const auto now = time_now();
    dispatcher_.look_at_memory(now);
    if (const auto unwanted = dispatcher_.worker_to_give_up()) dispatcher_.leave(*unwanted);
    const auto index = dispatcher_.worker_to_start(now);
    if (!index) {
      if (const auto next = dispatcher_.next_start(); next && dispatcher_.lacks_workers()) {
        start_pending_ = true;
        // Past: a worker is still starting, and nothing tells when it is ready but another look.
        start_timer_->expires_after(std::max(*next - now, kStartInterval));
        start_timer_->async_wait([weak = weak_from_this()](boost::system::error_code error) {
          if (error) return;
          if (const auto self = weak.lock()) self->maintain();
        });
      }
      break;
    }
    start_worker(*index, lock);
  }
  if (!closed_) dismiss_idle_workers();
  fail_queue_if_hopeless();
}

// Who leaves has its replacement by now.
void WorkerPool::dismiss_idle_workers() {
  if (stopping_) return;
  const auto now = time_now();
  while (const auto index = dispatcher_.worker_to_dismiss(now)) dispatcher_.leave(*index);
  for (const WorkerPtr& worker : workers_) {
    if (!worker || !dispatcher_.leaving(worker->index) || !dispatcher_.ready(worker->index)) continue;
    if (dispatcher_.load(worker->index) > 0 || worker->told_to_stop || worker->killed != Killed::no) continue;
    ++workers_recycled_;
    stop_worker(*worker);
    worker->limit_timer = std::make_unique<asio::steady_timer>(background_, kLeavePatience);
    worker->limit_timer->async_wait(
        in_background([generation = worker->generation](WorkerPool& self, Lock&, boost::system::error_code error) {
          Worker* const late = error ? nullptr : self.find_worker(generation);
          if (late != nullptr) self.kill(*late, Killed::leave_timeout, "it did not leave when it was told to");
        }));
  }
  assign_spinners();
  const auto next = dispatcher_.next_dismissal(now);
  if (!next) return;
  dismissal_timer_->expires_after(*next - now);
  dismissal_timer_->async_wait([weak = weak_from_this()](boost::system::error_code error) {
    if (error) return;
    if (const auto self = weak.lock()) self->maintain();
  });
}

// It leaves when it has come to this request.
void WorkerPool::stop_worker(Worker& worker) {
  worker.told_to_stop = true;
  const std::uint32_t sequence = worker.channel.reserve();
  worker.reserved = sequence + 1;
  worker.entry(sequence) = Entry{};
  worker.entry(sequence).filled = true;
  ++in_rings_;
  process::RequestHead head;
  head.kind = process::RequestKind::stop;
  worker.channel.fill(sequence, head);
  publish_filled(worker);
}

// The first ones, which are given tasks first.
void WorkerPool::assign_spinners() {
  unsigned left = settings_.spinning_workers;
  for (const WorkerPtr& worker : workers_) {
    if (!worker || dispatcher_.leaving(worker->index)) continue;
    worker->channel.set_spin_limit(left > 0 ? settings_.spin_pauses : 0);
    if (left > 0) --left;
  }
}

void WorkerPool::start_worker(unsigned index, Lock& lock) {
  WorkerPtr worker;
  std::string failure;
  try {
    if (!template_socket_) {
      start_template(lock);
    }
    const std::uint64_t generation = ++last_generation_;
    // A dozen system calls that nobody need wait for.
    lock.unlock();
    worker = std::make_shared<Worker>(index, generation, layout());
    worker->started_ns = ExecutorCore::now();
    process::FileDescriptor output = open_output(*worker);
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
    const std::array<int, process::kMostDescriptors> fds{worker->channel.request_fd().get(),
                                                         worker->channel.response_fd().get(),
                                                         worker->channel.doorbell().get(), output.get()};
    if (!process::send_record(template_socket_, process::bytes_of(record), fds)) {
      throw std::runtime_error("the template does not take requests: preload still runs, or it is stopped");
    }
    expect_answer();
  } catch (const std::exception& error) {
    failure = error.what();
    if (!lock.owns_lock()) lock.lock();
    if (template_socket_ && !closed_) {
      // A template that does not take the record any more may have told why.
      last_start_error_.clear();
      read_template();
      if (!template_socket_ && !last_start_error_.empty()) failure = last_start_error_;
    }
  }
  if (!failure.empty()) {
    start_failed(failure);
    return;
  }
  workers_[index] = worker;
  dispatcher_.worker_added(index, task_limit(worker->generation));
  ++workers_started_;
  if (dispatcher_.queued() > 0) schedule_drain();
}

// A tenth of them less for some than for others, so that workers that were started together are not replaced together.
std::uint64_t WorkerPool::task_limit(std::uint64_t generation) const {
  const std::uint64_t most = settings_.max_tasks_per_worker;
  // Fibonacci hashing: multiples of 2^64 divided by the golden ratio lie evenly.
  return most - ((generation * 0x9e3779b97f4a7c15U) >> 32U) % (most / 10 + 1);
}

// Where a worker prints to: a pipe that is read here, or nowhere.
process::FileDescriptor WorkerPool::open_output(Worker& worker) {
  if (settings_.capture_output == CaptureOutput::discard) return process::open_null();
  auto [ours, theirs] = process::create_pipe();
  worker.output =
      std::make_shared<WorkerOutput>(background_, std::move(ours), settings_.capture_output == CaptureOutput::inherit);
  worker.output->start();
  return std::move(theirs);
}

void WorkerPool::start_failed(const std::string& reason) {
  last_start_error_ = reason;
  dispatcher_.start_failed(time_now());
}

void WorkerPool::fail_queue_if_hopeless() {
  const bool hopeless =
      forsaken_ || dispatcher_.gives_up() || (!template_socket_ && process::ForkServer::start().silent());
  if (!hopeless) return;
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
  core_->tell_worker(EventKind::worker_started, worker.pid);
  if (worker.killed != Killed::no || stopping_) process::kill_process(worker.pidfd);
  if (worker.killed == Killed::no) limit_start(worker);
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

// An initializer that does not end must not keep tasks waiting for ever, nor a worker that was stopped too soon.
void WorkerPool::limit_start(Worker& worker) {
  const std::chrono::nanoseconds limit = settings_.initializer.empty() ? kStartPatience : settings_.start_timeout;
  worker.limit_timer = std::make_unique<asio::steady_timer>(background_, limit);
  worker.limit_timer->async_wait(
      in_background([generation = worker.generation](WorkerPool& self, Lock&, boost::system::error_code error) {
        Worker* const late = error ? nullptr : self.find_worker(generation);
        // What it was once seen to be it may unsay.
        if (late == nullptr || self.dispatcher_.ready(late->index)) return;
        if (late->channel.state() != process::WorkerState::starting) return;
        if (fired_late(*late->limit_timer)) {
          self.limit_start(*late);
          return;
        }
        self.kill(*late, Killed::start_timeout,
                  self.settings_.initializer.empty()
                      ? "it did not begin to work: it was stopped"
                      : fmt::format("the initializer did not end within start_timeout = {} s",
                                    std::chrono::duration<double>(self.settings_.start_timeout).count()));
      }));
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
  if (worker->status || worker->orphaned) {
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
// another.
void WorkerPool::bury(const WorkerPtr& worker_reference) {
  WorkerPtr worker = worker_reference;  // the pool's own pointer is about to go
  if (worker->buried) return;
  const bool was_ready = dispatcher_.ready(worker->index) || worker->channel.state() == process::WorkerState::ready;
  const bool dead = worker->dying;
  // One last look: what was committed before the death counts, rung or not.
  collect_all(*worker);
  worker->buried = true;
  worker->dying = true;
  // One that dies young, and not of a task, would be replaced by one that does the same. One that has answered a task
  // has shown that it can work: whoever kills those is not to slow the pool down.
  const bool unasked = !worker->told_to_stop && worker->killed == Killed::no;
  const bool took_up_nothing =
      worker->collected == 0 && (worker->reserved == 0 || !worker->channel.begun(worker->collected));
  const bool died_young =
      unasked && took_up_nothing && !worker->orphaned && ExecutorCore::now() - worker->started_ns < kProbation;
  if (was_ready && died_young) dispatcher_.died_young(time_now());
  const bool never_worked = (!was_ready || (died_young && worker->reserved == 0)) && !worker->told_to_stop;
  if (never_worked) {
    std::string reason = worker->killed == Killed::start_timeout                   ? worker->reason
                         : worker->channel.state() == process::WorkerState::failed ? worker->channel.report()
                                                                                   : "";
    if (reason.empty() && worker->status) reason = "a worker ended during its start: " + describe(*worker->status);
    if (reason.empty()) reason = last_start_error_;
    start_failed(reason);
  } else if (was_ready) {
    dispatcher_.start_succeeded();
  }
  if (was_ready && !worker->told_to_stop && worker->killed == Killed::no) ++workers_crashed_;
  // Only the first request without an answer can have been taken up by a worker that is dead: it is to blame, and
  // nothing behind it. One that still lives, of which we know no more than that it must go, is kept from taking up the
  // others.
  bool blamed = false;
  for (std::uint32_t sequence = worker->collected; sequence != worker->reserved; ++sequence) {
    --in_rings_;
    TaskNode* const node = clear(worker->entry(sequence));
    const bool published = static_cast<std::int32_t>(sequence - worker->channel.published()) < 0;
    const bool begun = published && !worker->channel.take_back(sequence) && node != nullptr &&
                       (!dead || sequence == worker->collected);
    blamed = blamed || begun;
    if (node != nullptr) judge(*worker, *node, begun, blamed);
  }
  ::epoll_ctl(doorbells_.get(), EPOLL_CTL_DEL, worker->channel.doorbell().get(), nullptr);
  worker->death.reset();
  worker->status_timer.reset();
  worker->limit_timer.reset();
  worker->tell_timer.reset();
  if (worker->output) worker->output->end();
  give_back_places(*worker);
  dispatcher_.worker_removed(worker->index);
  if (worker->pid > 0) {
    std::optional<int> signal;
    std::optional<int> exit_code;
    if (worker->status && worker->status->signal != 0) signal = worker->status->signal;
    if (worker->status && worker->status->signal == 0) exit_code = worker->status->code;
    core_->tell_worker(EventKind::worker_exited, worker->pid, signal, exit_code);
  }
  workers_[worker->index].reset();
  // Unmapping a large area takes tens of milliseconds, for which nobody is to wait for the mutex. A shutdown is over
  // when that is.
  ++unmapping_;
  asio::post(slow_, [dead = std::move(worker), weak = weak_from_this()]() mutable {
    dead.reset();
    const auto self = weak.lock();
    if (!self) return;
    const Lock lock(self->core_->mutex);
    --self->unmapping_;
    self->all_gone_if_so();
  });
  if (dispatcher_.queued() > 0 || ready_count_ > 0) schedule_drain();
  all_gone_if_so();
}

// A task whose worker died without answering it. `other_begun`: while it ran another.
void WorkerPool::judge(Worker& worker, TaskNode& node, bool begun, bool other_begun) {
  ErrorContext context = core_->context_of(node);
  if (worker.pid > 0) context.worker_pid = worker.pid;
  const std::uint64_t now = ExecutorCore::now();
  if (begun) {
    node.began_ns = std::clamp(worker.channel.begun_ns(), node.submitted_ns, now);
    node.ended_ns = now;
  }
  if (const auto doomed = worker.doomed.find(&node); doomed != worker.doomed.end()) {
    node.place.worker_pid = worker.pid;
    decide(node, std::move(doomed->second.error), doomed->second.outcome);
    return;
  }
  if (worker.killed == Killed::shut_down || stopping_) {
    decide(node,
           cancelled_error(node, begun ? TaskCancelledError::Stage::running : TaskCancelledError::Stage::queued,
                           worker.reason),
           Outcome::cancelled);
    return;
  }
  // One that could not be forked has died of nothing: that is a failed start, and told as such once there are too many.
  const bool innocent = other_begun || !worker.pidfd;
  if (!begun && (innocent || node.place.restarts < kMostRestarts)) {
    if (!innocent) ++node.place.restarts;
    queue_again(node);
    return;
  }
  if (worker.killed == Killed::protocol) {
    decide(node, std::make_exception_ptr(ProtocolError(worker.reason, std::move(context))), Outcome::failed);
    return;
  }
  if (begun && worker.status && worker.status->signal == SIGSYS) {
    if (auto call = forbidden_call(worker.channel.crash())) {
      decide(node,
             std::make_exception_ptr(PolicyViolationError(std::move(*call), std::move(context), worker.channel.item())),
             Outcome::failed);
      return;
    }
  }
  WorkerCrashedError::Ending ending;
  if (!begun) {
    ending.started = Started::never;
  } else if (worker.channel.returned(node.place.sequence)) {
    ending.started = Started::finished;
  }
  if (worker.status) {
    ending.signal = worker.status->signal;
    if (worker.status->signal == 0) ending.exit_code = worker.status->code;
    ending.peak_memory = worker.status->peak_memory;
  }
  if (begun) {
    ending.item = worker.channel.item();
    ending.run_time = std::chrono::nanoseconds(node.ended_ns - node.began_ns);
    if (auto last = worker.channel.progress(node.place.sequence, 0)) {
      ending.progress = Progress{last->done, last->total, std::move(last->text)};
    }
  }
  if (worker.output) {
    ending.error_output = worker.output->tail();
    process::replace_control_characters(ending.error_output);
  }
  std::string reason = worker.killed == Killed::stopped || worker.orphaned ? worker.reason : "";
  if (!begun) reason = fmt::format("{} workers in a row died before they began the task", kMostRestarts + 1);
  auto note = begun ? worker.channel.crash() : std::nullopt;
  if (!note || !add_crash_note(ending, *note)) {
    decide(node, std::make_exception_ptr(WorkerCrashedError(std::move(ending), std::move(context), reason)),
           Outcome::failed);
    return;
  }
  report_crash(node, [frames = std::move(note->frames), ending = std::move(ending), context = std::move(context),
                      reason]() mutable {
    ending.backtrace = describe_calls(frames);
    return std::make_exception_ptr(WorkerCrashedError(std::move(ending), std::move(context), reason));
  });
}

// Reading symbols takes its time: neither the event loop nor other tasks' limits wait for it.
template <class MakeError>
void WorkerPool::report_crash(TaskNode& node, MakeError make_error) {
  disarm_deadline(node);
  node.place.stage = TaskNode::Stage::none;
  reporting_.push_back(node);
  ++reporting_count_;
  asio::post(slow_, [weak = weak_from_this(), &node, make_error = std::move(make_error)]() mutable {
    std::exception_ptr error = make_error();
    const auto self = weak.lock();
    if (!self) return;
    const Lock lock(self->core_->mutex);
    if (self->closed_) return;  // Which has seen to the task.
    static_cast<QueuedTask&>(node).unlink();
    --self->reporting_count_;
    self->decide(node, std::move(error), Outcome::failed);
  });
}

}  // namespace bulkhead::detail
