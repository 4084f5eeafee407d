// SPDX-License-Identifier: BSL-1.0
#include "thread_pool.hpp"

#include "run_here.hpp"
#include "signal_mask.hpp"

#include <bulkhead/base_executor.hpp>
#include <bulkhead/task.hpp>

#include <fmt/format.h>

#include <pthread.h>
#include <csignal>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace bulkhead::detail {
namespace {

// Far more than blocking calls that a program has at once; beyond it memory for stacks and the kernel's limits run out.
constexpr unsigned kMostThreads = 4096;

// Of a thread of a pool: what the thread that made its executor had blocked.
thread_local std::optional<sigset_t> mask_of_program;

// Threads are also started by those of pools, and by the library's own, which block nearly all.
sigset_t current_mask_of_program() {
  if (mask_of_program) return *mask_of_program;
  sigset_t mask;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  return mask;
}

}  // namespace

void check_thread_limits(unsigned max_threads, std::chrono::nanoseconds idle_timeout,
                         std::chrono::nanoseconds cancel_grace) {
  if (max_threads == 0 || max_threads > kMostThreads) {
    throw std::invalid_argument(fmt::format("option 'max_threads' must be 1 to {}, not {}", kMostThreads, max_threads));
  }
  if (idle_timeout <= std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'idle_timeout' must be more than zero, not {} ns", idle_timeout.count()));
  }
  if (cancel_grace < std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'cancel_grace' must not be negative, and is {} ns", cancel_grace.count()));
  }
}

ThreadPool::ThreadPool(std::shared_ptr<ExecutorCore> core, unsigned max_threads, std::chrono::nanoseconds idle_timeout)
    : core_(std::move(core)),
      max_threads_(max_threads),
      // A century is for ever, and can be added to any time of the clock.
      idle_timeout_(std::min<std::chrono::nanoseconds>(idle_timeout, std::chrono::hours(24 * 365 * 100))),
      mask_of_program_(current_mask_of_program()) {}

void ThreadPool::execute(TaskNode* node, Lock& lock) {
  node->priority = node->options.priority();
  queue_.enqueue(*node);
  // The one that fell idle last, so that those which are not needed stay idle, and end.
  if (!idle_.empty()) {
    const auto thread = std::move(idle_.back());
    idle_.pop_back();
    thread->woken = true;
    lock.unlock();
    thread->changed.notify_one();
    return;
  }
  std::exception_ptr failure;
  if (numbers_.size() < max_threads_) {
    try {
      start_thread();
    } catch (const std::system_error& error) {
      // With other threads there it only takes longer.
      if (numbers_.empty()) {
        queue_.remove(*node);
        failure = std::make_exception_ptr(
            WorkerStartError(std::string("cannot start a thread: ") + error.what(), 1, core_->context_of(*node)));
      }
    }
  }
  lock.unlock();
  if (failure) core_->fail(node, std::move(failure), Outcome::failed, Delivery::initiating);
}

bool ThreadPool::withdraw(TaskNode& node) {
  if (!static_cast<QueuedTask&>(node).linked()) return false;
  queue_.remove(node);
  return true;
}

void ThreadPool::add_metrics(Metrics& metrics) const {
  metrics.workers = numbers_.size();
  metrics.workers_started = started_;
}

// With the mutex.
void ThreadPool::start_thread() {
  unsigned number = 1;
  while (numbers_.contains(number)) ++number;
  // A process that a task forks, to start a program, is to have the program's mask.
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] {
    if (mask_of_program) ::pthread_sigmask(SIG_SETMASK, &*mask_of_program, nullptr);
  });
  if (registered != 0) throw std::system_error(registered, std::system_category(), "cannot prepare for forks");
  const SignalsBlocked blocked;
  std::thread([self = shared_from_this(), number] {
    mask_of_program = self->mask_of_program_;
    self->work(number);
  }).detach();
  numbers_.insert(number);
  ++started_;
  core_->tell_worker(EventKind::worker_started, static_cast<int>(number));
}

std::string ThreadPool::thread_name(unsigned number) const {
  // pthread_setname_np(3): 15 characters at most.
  const std::string suffix = fmt::format("/{}", number);
  return core_->name.substr(0, 15 - suffix.size()) + suffix;
}

void ThreadPool::work(unsigned number) {
  ::pthread_setname_np(::pthread_self(), thread_name(number).c_str());
  const auto self = std::make_shared<IdleThread>();
  Lock lock(core_->mutex);
  for (;;) {
    const auto end = std::chrono::steady_clock::now() + idle_timeout_;
    bool in_time = true;
    // Whoever is awake takes what there is, so that it may be woken for nothing.
    while (queue_.size() == 0 && !ends() && in_time) {
      self->woken = false;
      idle_.push_back(self);
      in_time = self->changed.wait_until(lock, end, [&] { return self->woken || ends(); });
      if (!self->woken) std::erase(idle_, self);
    }
    auto* const node = static_cast<TaskNode*>(queue_.front());
    if (node == nullptr) break;
    queue_.remove(*node);
    lock.unlock();
    TaskAccess::wrap(node).run();
    lock.lock();
  }
  numbers_.erase(number);
  core_->tell_worker(EventKind::worker_exited, static_cast<int>(number));
}

// With the mutex. A task that waits for its next run gets another thread.
bool ThreadPool::ends() const noexcept { return closed_ || !core_->accepting; }

void ThreadPool::end_idle_threads() {
  const Lock lock(core_->mutex);
  for (const auto& thread : idle_) thread->changed.notify_one();
}

void ThreadPool::close() {
  std::vector<TaskNode*> queued;
  {
    const Lock lock(core_->mutex);
    closed_ = true;
    while (QueuedTask* task = queue_.front()) {
      queue_.remove(*task);
      queued.push_back(static_cast<TaskNode*>(task));
    }
    for (const auto& thread : idle_) thread->changed.notify_one();
  }
  for (TaskNode* node : queued) {
    core_->fail(node,
                std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::queued, core_->context_of(*node),
                                                           "the executor was destroyed")),
                Outcome::cancelled, Delivery::initiating);
  }
  core_->cancel_open(true, "the executor was destroyed");
}

}  // namespace bulkhead::detail
