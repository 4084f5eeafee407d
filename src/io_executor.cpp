// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/io_executor.hpp>

#include "run_end.hpp"
#include "run_here.hpp"
#include "task_queue.hpp"
#include "task_scope_executor.hpp"
#include "thread_pool.hpp"

#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>

#include <fmt/format.h>

#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

namespace bulkhead {
namespace {

using detail::Delivery;
using detail::ExecutorCore;
using detail::Outcome;
using detail::TaskNode;

// More were no limit any more.
constexpr std::size_t kMostConcurrent = 1'000'000;

CommonOptions common(const IoExecutorOptions& options) {
  detail::check_thread_limits(options.max_threads, options.idle_timeout, options.cancel_grace);
  if (options.max_concurrent == 0 || options.max_concurrent > kMostConcurrent) {
    throw std::invalid_argument(
        fmt::format("option 'max_concurrent' must be 1 to {}, not {}", kMostConcurrent, options.max_concurrent));
  }
  return {.name = options.name,
          .max_pending = options.max_pending,
          .overload = options.overload,
          .instances = options.instances,
          .tasks = options.tasks,
          .results = options.results};
}

}  // namespace

// Runs the coroutines. All members are guarded by the core's mutex.
struct IoExecutor::Engine : std::enable_shared_from_this<Engine> {
  // A coroutine that runs: how it is cancelled, and what `this_task` knows. Used on its strand only.
  struct Running {
    asio::any_io_executor strand;
    asio::cancellation_signal signal;
  };

  // Gives the task its outcome; without `done`, when the event loop is gone, it is dropped.
  class Run final : public detail::CoroutineRun {
   public:
    Run(std::shared_ptr<Engine> engine, TaskNode* node, std::shared_ptr<detail::HostTaskContext> host)
        : engine_(std::move(engine)), node_(node), host_(std::move(host)) {}
    ~Run() override {
      if (node_ != nullptr) end(Outcome::failed, true);
    }
    void done(Outcome outcome) override { end(outcome, false); }

   private:
    void end(Outcome outcome, bool dropped) {
      TaskNode* const node = std::exchange(node_, nullptr);
      host_->finish();  // the last progress, before the outcome
      detail::note_run_end(*node);
      if (dropped) node->error = std::make_exception_ptr(TaskAbandonedError(engine_->core->context_of(*node)));
      engine_->left(*node);
      engine_->core->settle(node, outcome, Delivery::elsewhere);
      engine_->start_next();
    }

    std::shared_ptr<Engine> engine_;
    TaskNode* node_;
    std::shared_ptr<detail::HostTaskContext> host_;
  };

  Engine(std::shared_ptr<ExecutorCore> executor, const IoExecutorOptions& options)
      : core(std::move(executor)),
        run_on(options.run_on ? options.run_on : core->io),
        max_concurrent(options.max_concurrent),
        threads(std::make_shared<detail::ThreadPool>(core, options.max_threads, options.idle_timeout)) {}

  // With the mutex, which is given back.
  void execute(TaskNode* node, ExecutorCore::Lock& lock) {
    if (!node->is_coroutine()) {
      threads->execute(node, lock);
      return;
    }
    if (node->options.has_rare() && node->options.cpu_timeout()) {
      lock.unlock();
      core->fail(node,
                 std::make_exception_ptr(std::invalid_argument(
                     "TaskOptions::cpu_timeout is for plain functions: coroutines share the event loop's threads; use "
                     "timeout")),
                 Outcome::failed, Delivery::initiating);
      return;
    }
    node->priority = node->options.priority();
    queue.enqueue(*node);
    lock.unlock();
    start_next();
  }

  // Starts what may run now. Posts, so that nothing runs inside whoever calls this.
  void start_next() {
    const ExecutorCore::Lock lock(core->mutex);
    while (active < max_concurrent && !closed && core->context_alive) {
      auto* const node = static_cast<TaskNode*>(queue.front());
      if (node == nullptr) return;
      queue.remove(*node);
      ++active;
      const auto started = std::make_shared<Running>();
      started->strand = asio::make_strand(run_on);
      running.emplace(node, started);
      asio::post(started->strand, [self = shared_from_this(), task = Pending(shared_from_this(), node),
                                   started]() mutable { self->start(task.take(), *started); });
    }
  }

  // On the coroutine's strand.
  void start(TaskNode* node, Running& started) {
    if (!core->begin(*node)) {
      left(*node);
      core->settle(node, Outcome::cancelled, Delivery::elsewhere);
      start_next();
      return;
    }
    auto host = std::make_shared<detail::HostTaskContext>(*node);
    const std::shared_ptr<detail::TaskContext> context(host, &host->context());
    node->start_coroutine(detail::TaskScopeExecutor(started.strand, context), started.signal.slot(),
                          std::make_unique<Run>(shared_from_this(), node, std::move(host)));
  }

  void left(TaskNode& node) {
    const ExecutorCore::Lock lock(core->mutex);
    --active;
    running.erase(&node);
  }

  // With the mutex.
  void stop(TaskNode& node, asio::cancellation_type type) {
    const auto found = running.find(&node);
    if (found == running.end() || !core->context_alive) return;
    asio::post(found->second->strand, [started = found->second, type] { started->signal.emit(type); });
  }

  // A task on its way to its strand; if the event loop is destroyed, it is dropped.
  class Pending {
   public:
    Pending(std::shared_ptr<Engine> engine, TaskNode* node) : engine_(std::move(engine)), node_(node) {}
    Pending(Pending&& other) noexcept : engine_(std::move(other.engine_)), node_(std::exchange(other.node_, nullptr)) {}
    ~Pending() {
      if (node_ == nullptr) return;
      engine_->left(*node_);
      engine_->core->fail(node_, std::make_exception_ptr(TaskAbandonedError(engine_->core->context_of(*node_))),
                          Outcome::failed, Delivery::elsewhere);
    }
    TaskNode* take() noexcept { return std::exchange(node_, nullptr); }

   private:
    std::shared_ptr<Engine> engine_;
    TaskNode* node_;
  };

  void close() {
    std::vector<TaskNode*> queued;
    {
      const ExecutorCore::Lock lock(core->mutex);
      closed = true;
      while (detail::QueuedTask* task = queue.front()) {
        queue.remove(*task);
        queued.push_back(static_cast<TaskNode*>(task));
      }
      for (const auto& [node, started] : running) {
        node->stop_requested.store(1, std::memory_order_release);
        stop(*node, asio::cancellation_type::terminal);
      }
    }
    for (TaskNode* node : queued) {
      core->fail(node,
                 std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::queued, core->context_of(*node),
                                                            "the executor was destroyed")),
                 Outcome::cancelled, Delivery::initiating);
    }
    threads->close();
  }

  const std::shared_ptr<ExecutorCore> core;
  const asio::any_io_executor run_on;
  const std::size_t max_concurrent;
  const std::shared_ptr<detail::ThreadPool> threads;
  detail::TaskQueue queue;
  std::map<TaskNode*, std::shared_ptr<Running>> running;
  std::size_t active = 0;
  bool closed = false;
};

IoExecutor::IoExecutor(asio::any_io_executor io_executor, IoExecutorOptions options)
    : BaseExecutor(std::move(io_executor), common(options)),
      options_(std::move(options)),
      engine_(std::make_shared<Engine>(core(), options_)) {
  core()->cancel_grace = options_.cancel_grace;
  core()->outcomes_from_threads = true;
}

IoExecutor::~IoExecutor() {
  close();
  engine_->close();
}

void IoExecutor::execute(Task task) {
  ExecutorCore::Lock lock(core()->mutex);
  engine_->execute(TaskAccess::release(task), lock);
}

void IoExecutor::execute_locked(TaskNode* node, ExecutorCore::Lock& lock) {
  // Another thread may destroy this executor once the mutex is free.
  const auto engine = engine_;
  engine->execute(node, lock);
}

void IoExecutor::add_metrics(Metrics& metrics) const {
  metrics.mode = "io";
  engine_->threads->add_metrics(metrics);
}

asio::awaitable<void> IoExecutor::stop(ShutdownOptions options) {
  engine_->threads->end_idle_threads();
  return stop_core(core(), options);
}

bool IoExecutor::withdraw(TaskNode& node) {
  if (!node.is_coroutine()) return engine_->threads->withdraw(node);
  if (!static_cast<detail::QueuedTask&>(node).linked()) return false;
  engine_->queue.remove(node);
  return true;
}

void IoExecutor::stop_running(TaskNode& node, asio::cancellation_type type) { engine_->stop(node, type); }

}  // namespace bulkhead
