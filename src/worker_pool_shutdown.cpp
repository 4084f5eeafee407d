// SPDX-License-Identifier: BSL-1.0
#include "worker_pool.hpp"

#include "run_here.hpp"

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <exception>
#include <utility>

// How the pool ends: with its tasks, without them, at once, or since its event loop is gone.

namespace bulkhead::detail {
namespace {

// How long a worker may take to leave when it is told to and has nothing to do: it only flushes standard output.
constexpr auto kStopPatience = std::chrono::seconds(1);

// After a kill the pool gives a task's place back within 5 s at the latest, whether its worker is gone or hangs in the
// kernel; twice that is never reached.
constexpr auto kKillPatience = std::chrono::seconds(10);

}  // namespace

void WorkerPool::cancel_pending(const std::string& reason) {
  if (is_forked_copy()) return;
  const Lock lock(core_->mutex);
  shutdown_reason_ = reason;
  const auto cancel = [&](TaskNode& node) {
    decide(node, cancelled_error(node, TaskCancelledError::Stage::queued, reason), Outcome::cancelled);
  };
  while (QueuedTask* task = dispatcher_.front()) {
    auto& node = static_cast<TaskNode&>(*task);
    dispatcher_.remove(node);
    cancel(node);
  }
  for (const WorkerPtr& worker : workers_) {
    if (!worker) continue;
    for (std::uint32_t sequence = worker->reserved; sequence != worker->collected;) {
      --sequence;
      TaskNode* const node = worker->entry(sequence).node;
      if (node == nullptr) continue;
      if (!take_back(*worker, sequence)) break;
      cancel(*node);
    }
  }
  // Those that are in no list: whose arguments are being written, or that are on their way here.
  for (TaskNode* node = core_->open_tasks.front(); node != nullptr; node = core_->open_tasks.next(*node)) {
    const auto stage = node->place.stage;
    if (stage == TaskNode::Stage::none || stage == TaskNode::Stage::encoding) node->place.cancel_requested = true;
  }
}

void WorkerPool::kill_all(const std::string& reason) {
  cancel_pending(reason);
  const Lock lock(core_->mutex);
  for (const WorkerPtr& worker : workers_) {
    if (!worker || dispatcher_.load(worker->index) == 0) continue;
    collect_all(*worker);
    for (std::uint32_t sequence = worker->collected; sequence != worker->reserved; ++sequence) {
      TaskNode* const node = worker->entry(sequence).node;
      if (node == nullptr) continue;
      node->place.worker_pid = worker->pid;
      end_run(*node, Killed::shut_down, reason, cancelled_error(*node, TaskCancelledError::Stage::running, reason),
              Outcome::cancelled);
    }
    kill(*worker, Killed::shut_down, reason);
  }
  dispatcher_.stop_starting();
  // While preload runs there are no workers yet, and it may never end.
  if (template_wait_ && !template_ready_) {
    template_gone();
    return;
  }
  // A template that is stopped never makes the workers that it was asked for.
  const auto unborn = [](const WorkerPtr& worker) { return worker && !worker->pidfd; };
  if (stopping_ || std::none_of(workers_.begin(), workers_.end(), unborn)) return;
  stop_timer_->expires_after(kStopPatience);
  stop_timer_->async_wait(in_background([unborn](WorkerPool& self, Lock&, boost::system::error_code error) {
    const bool late = std::any_of(self.workers_.begin(), self.workers_.end(), unborn);
    if (!error && late && self.template_wait_) self.template_gone();
  }));
}

void WorkerPool::kill_all_after(std::chrono::nanoseconds timeout, const std::string& reason) {
  core_->wait_idle(timeout,
                   asio::bind_executor(core_->io, [self = shared_from_this(), reason](std::exception_ptr, bool idle) {
                     if (idle) return;
                     self->core_->cancel_parked(reason);
                     self->kill_all(reason);
                     self->core_->cancel_open_after(kKillPatience, "its worker could not be killed");
                   }));
}

void WorkerPool::dismiss_when_idle() {
  // The pool has a reference to the background only, and its executor may be destroyed before the tasks are over.
  auto background = Background::get();
  core_->wait_idle({}, asio::bind_executor(core_->io, [background = std::move(background), self = shared_from_this()](
                                                          std::exception_ptr, bool) {
                     asio::post(background->context(),
                                self->in_background([](WorkerPool& pool, Lock&) { pool.stop_workers(); }));
                   }));
}

void WorkerPool::wait_gone(Handler handler) {
  const Lock lock(core_->mutex);
  gone_->wait({}, std::move(handler));
  if (closed_) {
    gone_->complete();
  } else if (stopping_) {
    asio::post(background_, in_background([](WorkerPool& self, Lock&) { self.all_gone_if_so(); }));
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
    if (worker && !worker->told_to_stop && worker->killed == Killed::no) stop_worker(*worker);
  }
  stop_timer_->expires_after(kStopPatience);
  stop_timer_->async_wait(in_background([](WorkerPool& self, Lock&, boost::system::error_code error) {
    if (error) return;
    for (const WorkerPtr& worker : self.workers_) {
      if (worker) self.kill(*worker, Killed::shut_down, "it did not leave when it was told to");
    }
    // Those that are not born yet go with the template.
    if (self.template_wait_) self.template_gone();
  }));
  all_gone_if_so();
}

void WorkerPool::all_gone_if_so() {
  if (!stopping_ || unmapping_ > 0 || closed_) return;
  std::vector<int> stuck;
  for (const WorkerPtr& worker : workers_) {
    if (worker && !worker->stuck) return;
    if (worker) stuck.push_back(worker->pid);
  }
  stop_timer_->cancel();
  end_template();
  ErrorContext context;
  context.executor = core_->name;
  const auto report = stuck.empty() ? std::exception_ptr()
                                    : std::make_exception_ptr(WorkerStuckError(std::move(stuck), std::move(context)));
  if (core_->context_alive) gone_->complete(report);
}

void WorkerPool::close() {
  // The memory may be needed for longer, and the background thread may not be there then.
  if (settings_.shared) settings_.shared->on_unused(nullptr);
  std::vector<TaskNode*> left;
  std::vector<WorkerPtr> dead;
  {
    const Lock lock(core_->mutex);
    if (closed_) return;
    for (const WorkerPtr& worker : workers_) {
      if (worker) collect_all(*worker);
    }
    // These have their outcome, and keep it.
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
    while (TaskNode* node = reporting_.pop_front()) abandon(*node, TaskCancelledError::Stage::running);
    while (TaskNode* node = growing_.pop_front()) abandon(*node, TaskCancelledError::Stage::queued);
    for (WorkerPtr& worker : workers_) {
      if (!worker) continue;
      process::kill_process(worker->pidfd);
      if (worker->output) worker->output->end();
      worker->buried = true;
      worker->death.reset();
      worker->status_timer.reset();
      worker->limit_timer.reset();
      worker->tell_timer.reset();
      for (std::uint32_t sequence = worker->collected; sequence != worker->reserved; ++sequence) {
        TaskNode* const node = clear(worker->entry(sequence));
        if (node == nullptr) continue;
        const bool published = static_cast<std::int32_t>(sequence - worker->channel.published()) < 0;
        const bool begun = !worker->channel.take_back(sequence) && published;
        abandon(*node, begun ? TaskCancelledError::Stage::running : TaskCancelledError::Stage::queued);
      }
      dead.push_back(std::move(worker));
    }
    closed_ = true;
    // Whoever waits for the workers' end need not wait any longer.
    if (core_->context_alive) gone_->complete();
    deadlines_.clear();
    doorbell_wait_.reset();
    backlog_timer_.reset();
    start_timer_.reset();
    answer_timer_.reset();
    stop_timer_.reset();
    deadline_timer_.reset();
    shared_timer_.reset();
    dismissal_timer_.reset();
    head_timer_.reset();
    drain_timer_.reset();
    progress_timer_.reset();
    end_template();
  }
  // As in `bury`: not on this thread, which is the event loop's.
  if (!dead.empty()) asio::post(slow_, [dead = std::move(dead)] {});
  for (TaskNode* node : left) {
    if (!node->place.decided) decode(*node);
    node->place.area.reset();
    core_->settle(node, node->outcome, Delivery::initiating);
  }
}

void WorkerPool::context_gone() {
  // Without the mutex: a coroutine that waits for this may be the last owner of an executor.
  gone_->context_gone();
  const Lock lock(core_->mutex);
  doorbell_wait_.reset();
  backlog_timer_.reset();
  for (const WorkerPtr& worker : workers_) {
    if (worker && dispatcher_.load(worker->index) > 0) {
      kill(*worker, Killed::shut_down, "the event loop was destroyed");
    }
  }
}

void WorkerPool::add_metrics(Metrics& metrics) const {
  metrics.mode = "process";
  metrics.workers = 0;
  // Answered, and about to be delivered; or its worker is dead, and its end is being described.
  std::size_t busy = ready_count_ + reporting_count_;
  for (const WorkerPtr& worker : workers_) {
    if (!worker) continue;
    // Only the first in a ring can be running.
    const bool has_head = worker->collected != worker->reserved && worker->entry(worker->collected).node != nullptr;
    if (has_head && !worker->buried && worker->channel.begun(worker->collected)) ++busy;
    if (worker->killed != Killed::no) ++metrics.workers_dying;
    if (!worker->dying && worker->killed == Killed::no) ++metrics.workers;
  }
  metrics.running = std::min(busy, core_->open);
  metrics.pending = core_->open - metrics.running;
  metrics.workers_started = workers_started_;
  metrics.workers_crashed = workers_crashed_;
  metrics.workers_recycled = workers_recycled_;
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
