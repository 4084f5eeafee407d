// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "process/template_record.hpp"

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <sys/epoll.h>
#include <algorithm>
#include <array>
#include <csignal>
#include <exception>
#include <utility>

// The background thread's side of the pool: the birth of workers, and how many there are.

namespace bulkhead::detail {
namespace {

// How long a worker that is replaced may take to leave when it has nothing to do: it only flushes standard output.
constexpr std::chrono::milliseconds kLeavePatience(1000);

// The same for one that ran isolated tasks, which may be hostile and hold it up: it has a place that others wait for.
constexpr std::chrono::milliseconds kIsolatedLeavePatience(50);

// How long the fork server may take to fork a template, and a template that is done with preload to fork a worker. Both
// are one fork, far below a millisecond; five seconds mean that the process is stopped.
constexpr auto kStartPatience = std::chrono::seconds(5);

constexpr const char* kNoDescriptors =
    "the program has no descriptor left for a worker (Too many open files): raise its limit (ulimit -n), or have fewer "
    "workers";

// How often a start that follows failed ones is looked at; the dispatcher's shortest pause.
constexpr std::chrono::nanoseconds kStartInterval = std::chrono::milliseconds(10);

// Room beside the largest message for its own encoding and for small messages of other tasks.
constexpr std::size_t kHeapMargin = std::size_t{1} << 20;

}  // namespace

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
    const auto patience = dispatcher_.isolated(worker->index) ? kIsolatedLeavePatience : kLeavePatience;
    worker->limit_timer = std::make_unique<asio::steady_timer>(background_, patience);
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
  worker.channel.head(sequence) = process::RequestHead();
  worker.channel.head(sequence).kind = process::RequestKind::stop;
  worker.channel.fill(sequence);
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
  // It may be ready already, and have rung.
  if (dispatcher_.queued() > 0) schedule_drain();
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

}  // namespace bulkhead::detail
