// SPDX-License-Identifier: BSL-1.0
// Every executor keeps the same contract, one of a user's own too; and one that breaks it is found out.
#include <bulkhead/testing/executor_contract.hpp>

#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

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
using bulkhead::testing::TaskForm;
using Catch::Matchers::ContainsSubstring;

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

std::shared_ptr<BaseExecutor> make_io(asio::any_io_executor io, const CommonOptions& common, unsigned at_once) {
  auto options = with<IoExecutorOptions>(common);
  options.max_concurrent = at_once;
  options.max_threads = at_once;
  return std::make_shared<IoExecutor>(std::move(io), std::move(options));
}

// The first is full at once, so that tasks go on to the second.
CommonOptions options_of_first() {
  CommonOptions options;
  options.name = "first";
  options.max_pending = 1;
  return options;
}
CommonOptions options_of_second() {
  CommonOptions options;
  options.name = "second";
  options.max_pending = 100'000;
  return options;
}

std::shared_ptr<BaseExecutor> make_hybrid(asio::any_io_executor io, const CommonOptions& common) {
  std::vector members{make_local(io, options_of_first(), 1), make_threads(io, options_of_second(), 1)};
  return std::make_shared<HybridExecutor>(io, std::move(members), with<HybridExecutorOptions>(common));
}

std::shared_ptr<BaseExecutor> make_hybrid_of_io(asio::any_io_executor io, const CommonOptions& common) {
  std::vector members{make_io(io, options_of_first(), 1), make_io(io, options_of_second(), 1)};
  return std::make_shared<HybridExecutor>(io, std::move(members), with<HybridExecutorOptions>(common));
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

// Runs the task that came last.
class LastInFirstOut final : public BaseExecutor {
 public:
  LastInFirstOut(asio::any_io_executor io, CommonOptions options, std::size_t threads = 1)
      : BaseExecutor(std::move(io), std::move(options)), threads_(threads) {}
  ~LastInFirstOut() override {
    close();
    threads_.join();
  }

 protected:
  void execute(Task task) override {
    {
      const std::lock_guard lock(mutex_);
      stack_.push_back(std::move(task));
    }
    asio::post(threads_, [this] { take().run(); });
  }

 private:
  // By priority, so that nothing else is wrong with it.
  Task take() {
    const std::lock_guard lock(mutex_);
    const auto last = std::min_element(stack_.rbegin(), stack_.rend(), [](const Task& a, const Task& b) {
      return a.options().priority() < b.options().priority();
    });
    Task task = std::move(*last);
    stack_.erase(std::next(last).base());
    return task;
  }

  std::mutex mutex_;
  std::vector<Task> stack_;
  asio::thread_pool threads_;
};

class SlowToSubmit final : public BaseExecutor {
 public:
  SlowToSubmit(asio::any_io_executor io, CommonOptions options) : BaseExecutor(std::move(io), std::move(options)) {}
  ~SlowToSubmit() override {
    close();
    thread_.join();
  }

 protected:
  void execute(Task task) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    asio::post(thread_, [task = std::move(task)]() mutable { task.run(); });
  }

 private:
  asio::thread_pool thread_{1};
};

class Spinning final : public BaseExecutor {
 public:
  Spinning(asio::any_io_executor io, CommonOptions options)
      : BaseExecutor(std::move(io), std::move(options)), thread_([this] { work(); }) {}
  ~Spinning() override {
    close();
    end_ = true;
    thread_.join();
  }

 protected:
  void execute(Task task) override {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
  }

 private:
  void work() {
    std::vector<Task> taken;
    while (!end_) {
      {
        const std::lock_guard lock(mutex_);
        taken.swap(queue_);
      }
      for (Task& task : taken) task.run();
      taken.clear();
    }
  }

  std::mutex mutex_;
  std::vector<Task> queue_;
  std::atomic<bool> end_ = false;
  std::thread thread_;
};

class NeverClosed final : public BaseExecutor {
 public:
  NeverClosed(asio::any_io_executor io, CommonOptions options) : BaseExecutor(std::move(io), std::move(options)) {}
  ~NeverClosed() override { thread_.join(); }

 protected:
  void execute(Task task) override {
    asio::post(thread_, [task = std::move(task)]() mutable { task.run(); });
  }

 private:
  asio::thread_pool thread_{1};
};

class OnEventLoop final : public BaseExecutor {
 public:
  OnEventLoop(asio::any_io_executor io, CommonOptions options) : BaseExecutor(std::move(io), std::move(options)) {}
  ~OnEventLoop() override { close(); }

 protected:
  void execute(Task task) override {
    asio::post(get_executor(), [task = std::move(task)]() mutable { task.run(); });
  }
};

class Dropping final : public BaseExecutor {
 public:
  Dropping(asio::any_io_executor io, CommonOptions options) : BaseExecutor(std::move(io), std::move(options)) {}
  ~Dropping() override { close(); }

 protected:
  void execute(Task) override {}
};

template <class Executor>
std::shared_ptr<BaseExecutor> make(asio::any_io_executor io, CommonOptions options) {
  return std::make_shared<Executor>(std::move(io), std::move(options));
}

// Parts that are named below.
const std::string kFirstInFirstOut = "tasks begin in the order of their submission";
const std::string kRunsInsideSubmit = "a task has run when submit returns";
const std::string kSubmitReturns = "submit returns before the task is over, and does not block";

// What the part finds wrong; empty: nothing.
std::string violation(const bulkhead::testing::ContractCase& part) {
  try {
    part.run();
  } catch (const ContractViolation& caught) {
    return caught.what();
  }
  return {};
}

// `but`: a part that does not hold.
void check(const ContractSubject& subject, const std::string& but = {}) {
  for (const auto& part : executor_contract(subject)) {
    if (part.name == but) continue;
    INFO(part.name);
    CHECK(violation(part) == "");
  }
}

// What the part of that name finds wrong with an executor, which need not be given much time for it.
std::string violation(ContractSubject subject, const std::string& part) {
  subject.deadline = std::chrono::seconds(1);
  const auto parts = executor_contract(subject);
  const auto found = std::find_if(parts.begin(), parts.end(), [&](const auto& each) { return each.name == part; });
  REQUIRE(found != parts.end());
  return violation(*found);
}

}  // namespace

TEST_CASE("LocalExecutor keeps the contract", "[contract]") {
  check({[](auto io, auto options) { return make_local(io, options, 1); }, 1});
  check({[](auto io, auto options) { return make_local(io, options, 2); }, 2});
}

TEST_CASE("LocalExecutor in bypass mode keeps the contract, but for what needs several tasks at once", "[contract]") {
  // It runs its tasks on the event loop, where none can wait at a gate that the test opens.
  check({[](auto io, auto options) { return make_local(io, options, 1, true); }, 0}, kRunsInsideSubmit);
}

TEST_CASE("ThreadExecutor keeps the contract", "[contract]") {
  check({[](auto io, auto options) { return make_threads(io, options, 1); }, 1});
  check({[](auto io, auto options) { return make_threads(io, options, 3); }, 3});
}

TEST_CASE("IoExecutor keeps the contract with plain functions", "[contract]") {
  check({[](auto io, auto options) { return make_io(io, options, 1); }, 1});
  check({[](auto io, auto options) { return make_io(io, options, 3); }, 3});
}

TEST_CASE("IoExecutor keeps the contract with coroutines", "[contract]") {
  check({[](auto io, auto options) { return make_io(io, options, 1); }, 1, TaskForm::coroutine});
  check({[](auto io, auto options) { return make_io(io, options, 3); }, 3, TaskForm::coroutine});
}

TEST_CASE("InlineExecutor keeps the contract, but for what needs a task to wait", "[contract]") {
  check({make<InlineExecutor>, 0});
}

TEST_CASE("HybridExecutor keeps the contract", "[contract]") { check({make_hybrid, 2}); }

TEST_CASE("HybridExecutor of IoExecutors keeps the contract with coroutines", "[contract]") {
  check({make_hybrid_of_io, 2, TaskForm::coroutine});
}

TEST_CASE("An executor of a user's own keeps the contract", "[contract]") { check({make<OwnExecutor>, 1}); }

TEST_CASE("An executor that runs the last task first does not keep the contract", "[contract]") {
  const ContractSubject two_at_once{
      [](auto io, auto options) { return std::make_shared<LastInFirstOut>(io, options, 2); }, 2};
  CHECK_THAT(violation({make<LastInFirstOut>, 1}, kFirstInFirstOut),
             ContainsSubstring("submitted first must begin first"));
  CHECK_THAT(violation(two_at_once, kFirstInFirstOut), ContainsSubstring("submitted first must begin first"));
  CHECK_THAT(violation({make<LastInFirstOut>, 1}, "the lower priority number runs first"),
             ContainsSubstring("of the same number the task submitted first"));
}

TEST_CASE("An executor that keeps its submitters waiting does not keep the contract", "[contract]") {
  CHECK_THAT(violation({make<SlowToSubmit>, 1}, kSubmitReturns), ContainsSubstring("submit must not block"));
  CHECK_THAT(violation({make<InlineExecutor>, 1}, kSubmitReturns),
             ContainsSubstring("submit returned when a task was over"));
}

TEST_CASE("An executor that spins while it has nothing to do does not keep the contract", "[contract]") {
  CHECK_THAT(violation({make<Spinning>, 1}, "an idle executor uses no CPU"), ContainsSubstring("must use no CPU"));
}

TEST_CASE("An executor that waits for its threads before it closes does not keep the contract", "[contract]") {
  CHECK_THAT(violation({make<NeverClosed>, 1}, "destruction closes before it waits"),
             ContainsSubstring("must call close()"));
}

TEST_CASE("An executor that runs tasks after submit and claims the contrary does not keep the contract", "[contract]") {
  CHECK_THAT(violation({make<OnEventLoop>, 0}, kRunsInsideSubmit),
             ContainsSubstring("had not run when submit returned"));
}

TEST_CASE("An executor that is made without its options does not keep the contract", "[contract]") {
  const ContractSubject subject{[](auto io, auto) { return make<OwnExecutor>(io, {}); }, 1};
  CHECK_THAT(violation(subject, "a task that waits for admission and is cancelled never runs"),
             ContainsSubstring("must wait for admission"));
  CHECK_THAT(violation(subject, "time limits hold"), ContainsSubstring("must fail with ExecutorOverloadError"));
}

TEST_CASE("An executor that drops tasks does not keep the contract, and is told what came of them", "[contract]") {
  CHECK_THAT(violation({make<Dropping>, 1}, "each task has one outcome, and it is true"),
             ContainsSubstring("an error that nobody expects"));
}
