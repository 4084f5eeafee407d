// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <condition_variable>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace bulkhead::test {

/// Options of an executor of this name.
CommonOptions named(std::string name);
/// Options of an executor that accepts so many tasks, and of what it does about more.
CommonOptions limited(std::size_t max_pending, OverloadPolicy overload = OverloadPolicy::reject);
/// Options of an executor of so many threads.
ThreadExecutorOptions threads(unsigned number);
/// Of a unified Executor with two processes.
ExecutorOptions small();

/// An executor's own options, with what all executors have in common.
template <class Options>
Options with(const CommonOptions& common) {
  Options options;
  options.name = common.name;
  options.max_pending = common.max_pending;
  options.overload = common.overload;
  options.instances = common.instances;
  options.tasks = common.tasks;
  options.results = common.results;
  return options;
}

/// An executor that runs so many tasks at once: "local", "bypass" (a local one without processes), "thread", "io",
/// "inline", or "hybrid", which has one of threads.
std::shared_ptr<BaseExecutor> make(const std::string& type, const asio::any_io_executor& io, unsigned number = 1,
                                   const CommonOptions& common = {});
std::shared_ptr<BaseExecutor> make(const std::string& type, asio::io_context& context, unsigned number = 1,
                                   const CommonOptions& common = {});

/// As a user would write it: one thread, and a queue by priority.
class ThreadedExecutor final : public BaseExecutor {
 public:
  explicit ThreadedExecutor(asio::any_io_executor io, CommonOptions options = {});
  ~ThreadedExecutor() override;

 protected:
  void execute(Task task) override;
  void add_metrics(Metrics& metrics) const override;

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<int, Task> queue_;
  bool end_ = false;
  std::thread thread_;
};

/// An executor whose shutdown fails: "it is stuck".
class Wedged final : public BaseExecutor {
 public:
  Wedged(asio::any_io_executor io, std::string name);
  ~Wedged() override;

 protected:
  void execute(Task task) override;
  asio::awaitable<void> stop(ShutdownOptions options) override;
};

}  // namespace bulkhead::test
