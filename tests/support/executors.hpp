// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <cstddef>
#include <memory>
#include <string>

namespace bulkhead::test {

CommonOptions named(std::string name);
CommonOptions limited(std::size_t max_pending, OverloadPolicy overload = OverloadPolicy::reject);
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
