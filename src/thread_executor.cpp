// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/thread_executor.hpp>

#include "thread_pool.hpp"

#include <utility>

namespace bulkhead {
namespace {

CommonOptions common(const ThreadExecutorOptions& options) {
  detail::check_thread_limits(options.max_threads, options.idle_timeout, options.cancel_grace);
  return {.name = options.name,
          .max_pending = options.max_pending,
          .overload = options.overload,
          .instances = options.instances,
          .tasks = options.tasks,
          .results = options.results};
}

}  // namespace

ThreadExecutor::ThreadExecutor(asio::any_io_executor io_executor, ThreadExecutorOptions options)
    : BaseExecutor(std::move(io_executor), common(options)),
      options_(std::move(options)),
      pool_(std::make_shared<detail::ThreadPool>(core(), options_.max_threads, options_.idle_timeout)) {
  core()->cancel_grace = options_.cancel_grace;
  core()->outcomes_from_threads = true;
}

ThreadExecutor::~ThreadExecutor() {
  close();
  pool_->close();
}

void ThreadExecutor::execute(Task task) {
  detail::ExecutorCore::Lock lock(core()->mutex);
  pool_->execute(TaskAccess::release(task), lock);
}

void ThreadExecutor::execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) {
  // Another thread may destroy this executor once the mutex is free.
  const auto pool = pool_;
  pool->execute(node, lock);
}

void ThreadExecutor::add_metrics(Metrics& metrics) const {
  metrics.mode = "thread";
  pool_->add_metrics(metrics);
}

asio::awaitable<void> ThreadExecutor::stop(ShutdownOptions options) {
  pool_->end_idle_threads();
  return stop_core(core(), options);
}

bool ThreadExecutor::withdraw(detail::TaskNode& node) { return pool_->withdraw(node); }

}  // namespace bulkhead
