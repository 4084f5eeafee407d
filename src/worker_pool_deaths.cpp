// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "crash_report.hpp"
#include "process/printable.hpp"
#include "process/seccomp_filter.hpp"

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <sys/epoll.h>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <exception>
#include <utility>

// The background thread's side of the pool: the death of workers, and what becomes of their tasks.

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1  // asm-generic/siginfo.h: SIGSYS was raised by a filter
#endif

namespace bulkhead::detail {
namespace {

// How long a dead worker's exit status may take to arrive from its template. It is one system call away; a second
// means that the template is stopped or gone.
constexpr auto kStatusPatience = std::chrono::seconds(1);

// A worker that has lived so long counts as started for good, task or not.
constexpr std::uint64_t kProbation = 1'000'000'000;

// How often a task that never began is given to another worker. Each time a worker died with the task in its ring;
// after three the deaths are no coincidence any more.
constexpr unsigned kMostRestarts = 3;

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

void WorkerPool::worker_died(const WorkerPtr& worker) {
  worker->dying = true;
  dispatcher_.worker_died(worker->index);
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
  // What it was shown it may have taken up, whatever it says.
  const bool shown_nothing = worker->channel.published() == 0;
  const bool died_young =
      unasked && shown_nothing && !worker->orphaned && ExecutorCore::now() - worker->started_ns < kProbation;
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
    const bool counts_as_begun = taken_up(*worker, sequence);
    TaskNode* const node = clear(worker->entry(sequence));
    // Not when its memory is unmapped: whoever is told of the death may want theirs at once.
    if (dead) worker->entry(sequence).buffers.clear();
    const bool published = static_cast<std::int32_t>(sequence - worker->channel.published()) < 0;
    const bool refused = published && !worker->channel.take_back(sequence);
    const bool begun = (refused || counts_as_begun) && node != nullptr && (!dead || sequence == worker->collected);
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
