// SPDX-License-Identifier: BSL-1.0
#include "support/executors.hpp"

#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>

#include <stdexcept>
#include <utility>
#include <vector>

namespace bulkhead::test {

CommonOptions named(std::string name) {
  CommonOptions options;
  options.name = std::move(name);
  return options;
}
CommonOptions limited(std::size_t max_pending, OverloadPolicy overload) {
  CommonOptions options;
  options.max_pending = max_pending;
  options.overload = overload;
  return options;
}
ThreadExecutorOptions threads(unsigned number) {
  ThreadExecutorOptions options;
  options.max_threads = number;
  return options;
}
ExecutorOptions small() {
  ExecutorOptions options;
  options.processes.max_workers = 2;
  return options;
}

std::shared_ptr<BaseExecutor> make(const std::string& type, const asio::any_io_executor& io, unsigned number,
                                   const CommonOptions& common) {
  if (type == "local" || type == "bypass") {
    auto options = with<LocalExecutorOptions>(common);
    options.max_workers = number;
    options.bypass = type == "bypass";
    return std::make_shared<LocalExecutor>(io, options);
  }
  if (type == "io") {
    auto options = with<IoExecutorOptions>(common);
    options.max_concurrent = number;
    options.max_threads = number;
    return std::make_shared<IoExecutor>(io, options);
  }
  if (type == "inline") return std::make_shared<InlineExecutor>(io, common);
  if (type == "hybrid") {
    CommonOptions of_member;
    of_member.max_pending = 100'000;
    std::vector<std::shared_ptr<BaseExecutor>> members{make("thread", io, number, of_member)};
    return std::make_shared<HybridExecutor>(io, std::move(members), with<HybridExecutorOptions>(common));
  }
  if (type != "thread") throw std::invalid_argument("no executor is called " + type);
  auto options = with<ThreadExecutorOptions>(common);
  options.max_threads = number;
  return std::make_shared<ThreadExecutor>(io, options);
}

std::shared_ptr<BaseExecutor> make(const std::string& type, asio::io_context& context, unsigned number,
                                   const CommonOptions& common) {
  return make(type, asio::any_io_executor(context.get_executor()), number, common);
}

ThreadedExecutor::ThreadedExecutor(asio::any_io_executor io, CommonOptions options)
    : BaseExecutor(std::move(io), std::move(options)), thread_([this] { work(); }) {}

ThreadedExecutor::~ThreadedExecutor() {
  close();
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void ThreadedExecutor::execute(Task task) {
  {
    const std::lock_guard lock(mutex_);
    const int priority = task.options().priority();
    queue_.emplace(priority, std::move(task));
  }
  changed_.notify_one();
}

void ThreadedExecutor::add_metrics(Metrics& metrics) const {
  metrics.mode = "thread";
  metrics.workers = 1;
}

void ThreadedExecutor::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return end_ || !queue_.empty(); });
    if (end_) return;
    Task task = std::move(queue_.begin()->second);
    queue_.erase(queue_.begin());
    lock.unlock();
    task.run();
    lock.lock();
  }
}

Wedged::Wedged(asio::any_io_executor io, std::string name) : BaseExecutor(std::move(io), named(std::move(name))) {}
Wedged::~Wedged() { close(); }

void Wedged::execute(Task task) { task.run(); }

asio::awaitable<void> Wedged::stop(ShutdownOptions) {
  throw std::runtime_error("it is stuck");
  co_return;
}

}  // namespace bulkhead::test
