// SPDX-License-Identifier: BSL-1.0
// Every executor keeps the same contract, one of a user's own too.
#include <bulkhead/testing/executor_contract.hpp>

#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::CommonOptions;
using bulkhead::HybridExecutor;
using bulkhead::HybridExecutorOptions;
using bulkhead::InlineExecutor;
using bulkhead::IoExecutor;
using bulkhead::IoExecutorOptions;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Task;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::testing::ContractSubject;
using bulkhead::testing::ContractViolation;
using bulkhead::testing::executor_contract;

namespace {

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

std::shared_ptr<BaseExecutor> make_local(asio::any_io_executor io, const CommonOptions& common, unsigned workers,
                                         bool bypass = false) {
  auto options = with<LocalExecutorOptions>(common);
  options.max_workers = workers;
  options.bypass = bypass;
  return std::make_shared<LocalExecutor>(std::move(io), std::move(options));
}

std::shared_ptr<BaseExecutor> make_threads(asio::any_io_executor io, const CommonOptions& common, unsigned threads) {
  auto options = with<ThreadExecutorOptions>(common);
  options.max_threads = threads;
  return std::make_shared<ThreadExecutor>(std::move(io), std::move(options));
}

std::shared_ptr<BaseExecutor> make_io(asio::any_io_executor io, const CommonOptions& common, unsigned threads) {
  auto options = with<IoExecutorOptions>(common);
  options.max_threads = threads;
  return std::make_shared<IoExecutor>(std::move(io), std::move(options));
}

// The first is full at once, so that tasks go on to the second.
std::shared_ptr<BaseExecutor> make_hybrid(asio::any_io_executor io, const CommonOptions& common) {
  CommonOptions of_members;
  of_members.name = "first";
  of_members.max_pending = 1;
  auto first = make_local(io, of_members, 1);
  of_members.name = "second";
  of_members.max_pending = 100'000;
  auto second = make_threads(io, of_members, 1);
  return std::make_shared<HybridExecutor>(io, std::vector<std::shared_ptr<BaseExecutor>>{first, second},
                                          with<HybridExecutorOptions>(common));
}

// As a user would write it: one thread, and a queue by priority.
class OwnExecutor final : public BaseExecutor {
 public:
  OwnExecutor(asio::any_io_executor io, CommonOptions options)
      : BaseExecutor(std::move(io), std::move(options)), thread_([this] { work(); }) {}
  ~OwnExecutor() override {
    close();
    {
      const std::lock_guard lock(mutex_);
      end_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 protected:
  void execute(Task task) override {
    {
      const std::lock_guard lock(mutex_);
      const int priority = task.options().priority();
      queue_.emplace(priority, std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void work() {
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

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<int, Task> queue_;
  bool end_ = false;
  std::thread thread_;
};

void check(const ContractSubject& subject) {
  for (const auto& part : executor_contract(subject)) {
    INFO(part.name);
    std::string violation;
    try {
      part.run();
    } catch (const ContractViolation& caught) {
      violation = caught.what();
    } catch (const std::exception& caught) {
      violation = std::string("an error that nobody expects: ") + caught.what();
    }
    CHECK(violation == "");
  }
}

}  // namespace

TEST_CASE("LocalExecutor keeps the contract", "[contract]") {
  check({[](auto io, auto options) { return make_local(io, options, 1); }, 1});
  check({[](auto io, auto options) { return make_local(io, options, 2); }, 2});
}

TEST_CASE("LocalExecutor in bypass mode keeps the contract, but for what needs several tasks at once", "[contract]") {
  check({[](auto io, auto options) { return make_local(io, options, 1, true); }, 0});
}

TEST_CASE("ThreadExecutor keeps the contract", "[contract]") {
  check({[](auto io, auto options) { return make_threads(io, options, 1); }, 1});
  check({[](auto io, auto options) { return make_threads(io, options, 3); }, 3});
}

TEST_CASE("IoExecutor keeps the contract with plain functions", "[contract]") {
  check({[](auto io, auto options) { return make_io(io, options, 1); }, 1});
  check({[](auto io, auto options) { return make_io(io, options, 3); }, 3});
}

TEST_CASE("InlineExecutor keeps the contract, but for what needs a task to wait", "[contract]") {
  check({[](auto io, auto options) { return std::make_shared<InlineExecutor>(io, options); }, 0});
}

TEST_CASE("HybridExecutor keeps the contract", "[contract]") {
  check({[](auto io, auto options) { return make_hybrid(io, options); }, 2});
}

TEST_CASE("An executor of a user's own keeps the contract", "[contract]") {
  check({[](auto io, auto options) { return std::make_shared<OwnExecutor>(io, options); }, 1});
}
