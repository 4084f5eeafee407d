// SPDX-License-Identifier: BSL-1.0
// Every executor keeps the same contract, one of a user's own too; and one that breaks it is found out.
#include <bulkhead/testing/executor_contract.hpp>

#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"
#include "support/executors.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
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
using bulkhead::ShutdownOptions;
using bulkhead::Task;
using bulkhead::test::make;
using bulkhead::test::named;
using bulkhead::test::ThreadedExecutor;
using bulkhead::test::with;
using bulkhead::testing::ContractSubject;
using bulkhead::testing::ContractViolation;
using bulkhead::testing::executor_contract;
using bulkhead::testing::TaskForm;
using Catch::Matchers::ContainsSubstring;

namespace {

using Make = std::function<std::shared_ptr<BaseExecutor>(asio::any_io_executor, CommonOptions)>;

// Of one of the library's types.
Make maker(const std::string& type, unsigned number) {
  return [type, number](const asio::any_io_executor& io, const CommonOptions& common) {
    return make(type, io, number, common);
  };
}

// A hybrid of two types. The first is full at once, so that tasks go on to the second.
Make hybrid_maker(const std::string& first, const std::string& second) {
  return [first, second](const asio::any_io_executor& io, const CommonOptions& common) {
    CommonOptions of_first = named("first");
    of_first.max_pending = 1;
    CommonOptions of_second = named("second");
    of_second.max_pending = 100'000;
    std::vector members{make(first, io, 1, of_first), make(second, io, 1, of_second)};
    return std::make_shared<HybridExecutor>(io, std::move(members), with<HybridExecutorOptions>(common));
  };
}

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

// Is shut down by other options than it is given; on a thread, or inside `submit`.
class EndsOtherwise final : public BaseExecutor {
 public:
  using Change = ShutdownOptions (*)(ShutdownOptions);
  EndsOtherwise(asio::any_io_executor io, CommonOptions options, Change change, bool threaded)
      : BaseExecutor(std::move(io), std::move(options)), change_(change) {
    if (threaded) thread_.emplace(1);
  }
  ~EndsOtherwise() override {
    close();
    if (thread_) thread_->join();
  }

 protected:
  void execute(Task task) override {
    if (thread_) {
      asio::post(*thread_, [task = std::move(task)]() mutable { task.run(); });
    } else {
      task.run();
    }
  }
  asio::awaitable<void> stop(ShutdownOptions options) override { return BaseExecutor::stop(change_(options)); }

 private:
  const Change change_;
  std::optional<asio::thread_pool> thread_;
};

ShutdownOptions never_wait(ShutdownOptions options) {
  options.wait = false;
  return options;
}
ShutdownOptions no_time_unless_waited_for(ShutdownOptions options) {
  if (!options.wait) options.timeout.reset();
  return options;
}
ContractSubject ends_otherwise(EndsOtherwise::Change change, std::size_t concurrency) {
  const auto make_it = [change, concurrency](auto io, auto options) {
    return std::make_shared<EndsOtherwise>(io, options, change, concurrency > 0);
  };
  return {make_it, concurrency};
}

class Dropping final : public BaseExecutor {
 public:
  Dropping(asio::any_io_executor io, CommonOptions options) : BaseExecutor(std::move(io), std::move(options)) {}
  ~Dropping() override { close(); }

 protected:
  void execute(Task) override {}
};

template <class Executor>
std::shared_ptr<BaseExecutor> made(asio::any_io_executor io, CommonOptions options) {
  return std::make_shared<Executor>(std::move(io), std::move(options));
}

// What keeps the contract, made without one of its options.
template <class Option>
ContractSubject without(Option CommonOptions::*option, std::size_t concurrency) {
  const auto make_it = maker(concurrency > 0 ? "thread" : "inline", 1);
  const auto forgetful = [make_it, option](const auto& io, CommonOptions options) {
    options.*option = {};
    return make_it(io, options);
  };
  return {forgetful, concurrency};
}

// Concurrencies of flawed executors: of one with a thread, and of one that runs its tasks inside `submit`.
constexpr std::array<std::size_t, 2> kThreadedAndInline{1, 0};

// Parts that are named below.
const std::string kFirstInFirstOut = "tasks begin in the order of their submission";
const std::string kRunsInsideSubmit = "a task has run when submit returns";
const std::string kSubmitReturns = "submit returns before the task is over, and does not block";
const std::string kShutdownWaits = "shutdown waits for all, twice and at once, and nothing is accepted afterwards";
const std::string kShutdownEndsByItself = "shutdown ends what is late also if nobody waits for it";
const std::string kInstancesTogether = "executors that share a group count their instances together";
const std::string kResultsTogether = "executors that share a store find each other's results";

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
  check({maker("local", 1), 1});
  check({maker("local", 2), 2});
}

TEST_CASE("LocalExecutor in bypass mode keeps the contract, but for what needs several tasks at once", "[contract]") {
  // It runs its tasks on the event loop, where none can wait at a gate that the test opens.
  check({maker("bypass", 1), 0}, kRunsInsideSubmit);
}

TEST_CASE("ThreadExecutor keeps the contract", "[contract]") {
  check({maker("thread", 1), 1});
  check({maker("thread", 3), 3});
}

TEST_CASE("IoExecutor keeps the contract with plain functions", "[contract]") {
  check({maker("io", 1), 1});
  check({maker("io", 3), 3});
}

TEST_CASE("IoExecutor keeps the contract with coroutines", "[contract]") {
  check({maker("io", 1), 1, TaskForm::coroutine});
  check({maker("io", 3), 3, TaskForm::coroutine});
}

TEST_CASE("InlineExecutor keeps the contract, but for what needs a task to wait", "[contract]") {
  check({made<InlineExecutor>, 0});
}

TEST_CASE("HybridExecutor keeps the contract", "[contract]") { check({hybrid_maker("local", "thread"), 2}); }

TEST_CASE("HybridExecutor of IoExecutors keeps the contract with coroutines", "[contract]") {
  check({hybrid_maker("io", "io"), 2, TaskForm::coroutine});
}

TEST_CASE("An executor of a user's own keeps the contract", "[contract]") { check({made<ThreadedExecutor>, 1}); }

TEST_CASE("An executor that runs the last task first does not keep the contract", "[contract]") {
  const ContractSubject two_at_once{
      [](auto io, auto options) { return std::make_shared<LastInFirstOut>(io, options, 2); }, 2};
  CHECK_THAT(violation({made<LastInFirstOut>, 1}, kFirstInFirstOut),
             ContainsSubstring("submitted first must begin first"));
  CHECK_THAT(violation(two_at_once, kFirstInFirstOut), ContainsSubstring("submitted first must begin first"));
  CHECK_THAT(violation({made<LastInFirstOut>, 1}, "the lower priority number runs first"),
             ContainsSubstring("of the same number the task submitted first"));
}

TEST_CASE("An executor that keeps its submitters waiting does not keep the contract", "[contract]") {
  CHECK_THAT(violation({made<SlowToSubmit>, 1}, kSubmitReturns), ContainsSubstring("submit must not block"));
  CHECK_THAT(violation({made<InlineExecutor>, 1}, kSubmitReturns),
             ContainsSubstring("submit returned when a task was over"));
}

TEST_CASE("An executor that spins while it has nothing to do does not keep the contract", "[contract]") {
  CHECK_THAT(violation({made<Spinning>, 1}, "an idle executor uses no CPU"), ContainsSubstring("must use no CPU"));
}

TEST_CASE("An executor that waits for its threads before it closes does not keep the contract", "[contract]") {
  CHECK_THAT(violation({made<NeverClosed>, 1}, "destruction closes before it waits"),
             ContainsSubstring("must call close()"));
}

TEST_CASE("An executor that runs tasks after submit and claims the contrary does not keep the contract", "[contract]") {
  CHECK_THAT(violation({made<OnEventLoop>, 0}, kRunsInsideSubmit),
             ContainsSubstring("had not run when submit returned"));
}

TEST_CASE("An executor that is made without its options does not keep the contract", "[contract]") {
  const ContractSubject subject{[](auto io, auto) { return made<ThreadedExecutor>(io, {}); }, 1};
  CHECK_THAT(violation(subject, "a task that waits for admission and is cancelled never runs"),
             ContainsSubstring("must wait for admission"));
  CHECK_THAT(violation(subject, "time limits hold"), ContainsSubstring("must fail with ExecutorOverloadError"));
}

TEST_CASE("An executor whose shutdown never waits does not keep the contract", "[contract]") {
  for (const std::size_t concurrency : kThreadedAndInline) {
    CHECK_THAT(violation(ends_otherwise(never_wait, concurrency), kShutdownWaits),
               ContainsSubstring("shutdown must wait for the tasks, and was over before"));
  }
}

TEST_CASE("An executor whose shutdown heeds its time only if somebody waits does not keep the contract", "[contract]") {
  for (const std::size_t concurrency : kThreadedAndInline) {
    CHECK_THAT(violation(ends_otherwise(no_time_unless_waited_for, concurrency), kShutdownEndsByItself),
               ContainsSubstring("outlasts a shutdown which nobody waits for"));
  }
}

TEST_CASE("An executor with an ordinary shutdown of its own keeps the contract of shutdowns", "[contract]") {
  const auto as_given = [](ShutdownOptions options) { return options; };
  for (const std::size_t concurrency : kThreadedAndInline) {
    CHECK(violation(ends_otherwise(as_given, concurrency), kShutdownWaits) == "");
    CHECK(violation(ends_otherwise(as_given, concurrency), kShutdownEndsByItself) == "");
  }
}

TEST_CASE("An executor that is made without its group of instances does not keep the contract", "[contract]") {
  for (const std::size_t concurrency : kThreadedAndInline) {
    CHECK_THAT(violation(without(&CommonOptions::instances, concurrency), kInstancesTogether),
               ContainsSubstring("counted elsewhere in the same group"));
  }
}

TEST_CASE("An executor that is made without its store of results does not keep the contract", "[contract]") {
  for (const std::size_t concurrency : kThreadedAndInline) {
    CHECK_THAT(violation(without(&CommonOptions::results, concurrency), kResultsTogether),
               ContainsSubstring("must be found through an executor with the same store"));
  }
}

TEST_CASE("An executor that drops tasks does not keep the contract, and is told what came of them", "[contract]") {
  CHECK_THAT(violation({made<Dropping>, 1}, "each task has one outcome, and it is true"),
             ContainsSubstring("an error that nobody expects"));
}
