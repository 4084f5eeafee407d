// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "task_queue.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/metrics.hpp>

#include <signal.h>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace bulkhead::detail {

/// Threads that run tasks of one executor: started when tasks wait, ended when they have been idle for long.
///
/// Everything is guarded by the core's mutex. The threads hold the pool, so that it outlives its executor while a
/// function still runs.
class ThreadPool : public std::enable_shared_from_this<ThreadPool> {
 public:
  ThreadPool(std::shared_ptr<ExecutorCore> core, unsigned max_threads, std::chrono::nanoseconds idle_timeout);

  /// Takes a task over. With the mutex, which is given back.
  void execute(TaskNode* node, ExecutorCore::Lock& lock);
  /// With the mutex: takes a task out of the queue. False: it is not there.
  bool withdraw(TaskNode& node);
  /// With the mutex.
  void add_metrics(Metrics& metrics) const;
  /// The executor takes no more tasks: threads end when they have nothing to do.
  void end_idle_threads();
  /// The executor is being destroyed: what has not begun is cancelled, what runs is left to itself.
  void close();

 private:
  using Lock = ExecutorCore::Lock;

  // A thread that waits for a task. Not on its stack: it may end while it is being notified.
  struct IdleThread {
    std::condition_variable_any changed;
    bool woken = false;  // and taken out of `idle_`
  };

  bool ends() const noexcept;
  void start_thread();
  void work(unsigned number);
  std::string thread_name(unsigned number) const;

  const std::shared_ptr<ExecutorCore> core_;
  const unsigned max_threads_;
  const std::chrono::nanoseconds idle_timeout_;
  const sigset_t mask_of_program_;  // what the thread that made the executor had blocked

  TaskQueue queue_;
  std::set<unsigned> numbers_;                     // of the threads that there are
  std::vector<std::shared_ptr<IdleThread>> idle_;  // of them, the last to fall idle at the end
  std::uint64_t started_ = 0;
  bool closed_ = false;
};

/// Throws `std::invalid_argument` naming the option if it is out of range.
void check_thread_limits(unsigned max_threads, std::chrono::nanoseconds idle_timeout,
                         std::chrono::nanoseconds cancel_grace);

}  // namespace bulkhead::detail
