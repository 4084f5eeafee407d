// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/executor_registry.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <latch>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::CommonOptions;
using bulkhead::ExecutorConfig;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorRegistry;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::RegistryConflictError;
using bulkhead::ShutdownFailedError;
using bulkhead::ShutdownOptions;
using bulkhead::Task;
using bulkhead::UnknownExecutorTypeError;
using bulkhead::test::kDeadline;
using bulkhead::test::poll_until;
using bulkhead::test::run;
using Catch::Matchers::ContainsSubstring;

namespace {

int twice(int value) { return 2 * value; }

struct InlineOptions {
  int argument = 0;
  bool operator==(const InlineOptions&) const = default;
};

// What a user registers: runs tasks inline, and may fail to stop.
class InlineExecutor final : public BaseExecutor {
 public:
  InlineExecutor(asio::any_io_executor io, std::string name, InlineOptions options, std::vector<std::string>* log)
      : BaseExecutor(std::move(io), common(std::move(name))), options_(options), log_(log) {}
  ~InlineExecutor() override { close(); }

  int argument() const { return options_.argument; }

 protected:
  void execute(Task task) override { task.run(); }
  asio::awaitable<void> stop(ShutdownOptions options) override {
    if (log_ != nullptr) log_->push_back(name());
    // Below zero: it cannot be stopped.
    if (options_.argument == -2) throw 7;
    if (options_.argument < 0) throw std::runtime_error("the line of " + name() + " is dead");
    co_await BaseExecutor::stop(options);
  }

 private:
  static CommonOptions common(std::string name) {
    CommonOptions options;
    options.name = std::move(name);
    return options;
  }

  InlineOptions options_;
  std::vector<std::string>* log_;
};

ExecutorRegistry::Factory inline_factory(std::vector<std::string>* log = nullptr) {
  return [log](asio::any_io_executor io, const std::string& name, const ExecutorConfig& config) {
    const auto* options = config.get<InlineOptions>();
    return std::make_shared<InlineExecutor>(std::move(io), name, options != nullptr ? *options : InlineOptions(), log);
  };
}

InlineOptions argument(int value) {
  InlineOptions options;
  options.argument = value;
  return options;
}

LocalExecutorOptions local(bool bypass, unsigned workers = 1) {
  LocalExecutorOptions options;
  options.max_workers = workers;
  options.bypass = bypass;
  return options;
}

template <class E, class Function>
std::optional<E> thrown_by(Function function) {
  try {
    function();
  } catch (const E& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE("A new registry is empty and knows the type local", "[registry]") {
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<ExecutorRegistry>);
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  CHECK(registry.size() == 0);
  CHECK_FALSE(registry.contains("default"));
  CHECK(registry.get("default") == nullptr);
  CHECK(registry.remove("default") == nullptr);
  CHECK(registry.executors().empty());
  CHECK(registry.all_metrics().empty());
  run(context, registry.shutdown_all());
}

TEST_CASE("get_or_create makes a LocalExecutor of the name, which runs tasks", "[registry]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const std::shared_ptr<BaseExecutor> executor = registry.get_or_create("images", "local", local(bypass));
  REQUIRE(executor);
  CHECK(executor->name() == "images");
  CHECK(executor->get_executor() == context.get_executor());
  const auto pool = std::dynamic_pointer_cast<LocalExecutor>(executor);
  REQUIRE(pool);
  CHECK(pool->bypass() == bypass);
  CHECK(run(context, executor->submit(twice, 21)) == 42);
  CHECK(registry.size() == 1);
  CHECK(registry.contains("images"));
  CHECK(registry.get("images") == executor);
  CHECK_FALSE(registry.contains("image"));
  run(context, registry.shutdown_all());
}

TEST_CASE("The same name with the same type and options is the same object; an empty config fits any", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  const auto first = registry.get_or_create("a", "local", local(true, 2));
  CHECK(registry.get_or_create("a", "local", local(true, 2)) == first);
  CHECK(registry.get_or_create("a") == first);
  CHECK(registry.get_or_create("a", "local") == first);
  CHECK(registry.get_or_create("a", "local", {}) == first);
  const auto other = registry.get_or_create("b", "inline", argument(3));
  CHECK(other != first);
  CHECK(registry.get_or_create("b", "inline", argument(3)) == other);
  CHECK(registry.get_or_create("b", "inline") == other);
  CHECK(registry.size() == 2);
}

TEST_CASE("The same name with another type is RegistryConflictError with both", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  const auto existing = registry.get_or_create("a", "inline");
  const auto error = thrown_by<RegistryConflictError>([&] { registry.get_or_create("a", "local", local(true)); });
  REQUIRE(error);
  CHECK(error->code() == bulkhead::Errc::registry_conflict);
  CHECK_THAT(error->existing(), ContainsSubstring("'inline'"));
  CHECK_THAT(error->requested(), ContainsSubstring("'local'"));
  CHECK_THAT(error->what(), ContainsSubstring("'a'"));
  CHECK(registry.get("a") == existing);
  CHECK(registry.size() == 1);
}

TEST_CASE("The same name with other options is RegistryConflictError", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  registry.get_or_create("a", "local", local(true, 2));
  CHECK_THROWS_AS(registry.get_or_create("a", "local", local(true, 3)), RegistryConflictError);
  CHECK_THROWS_AS(registry.get_or_create("a", "local", local(false, 2)), RegistryConflictError);
  CHECK_THROWS_AS(registry.get_or_create("a", "local", argument(2)), RegistryConflictError);
  LocalExecutorOptions initialized = local(true, 2);
  initialized.initializer = bulkhead::call(twice, 1);
  CHECK_THROWS_AS(registry.get_or_create("a", "local", initialized), RegistryConflictError);

  registry.get_or_create("b", "local", initialized);
  LocalExecutorOptions otherwise = initialized;
  otherwise.initializer = bulkhead::call(twice, 2);
  CHECK_THROWS_AS(registry.get_or_create("b", "local", otherwise), RegistryConflictError);
  otherwise.initializer = bulkhead::call(twice, 1);
  CHECK(registry.get_or_create("b", "local", otherwise) == registry.get("b"));

  registry.get_or_create("c", "inline", argument(1));
  CHECK_THROWS_AS(registry.get_or_create("c", "inline", argument(2)), RegistryConflictError);
  CHECK(registry.size() == 3);
}

TEST_CASE("RegistryConflictError tells which options differ", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.get_or_create("a", "local", local(true, 2));
  const auto conflict = thrown_by<RegistryConflictError>([&] {
    registry.get_or_create("a", "local",
                           bulkhead::OptionMap{{"bypass", "yes"}, {"max_workers", "3"}, {"idle_timeout", "1500ms"}});
  });
  REQUIRE(conflict);
  CHECK(conflict->existing() == "an executor of type 'local' with idle_timeout = 60s, max_workers = 2");
  CHECK(conflict->requested() == "an executor of type 'local' with idle_timeout = 1500ms, max_workers = 3");
  LocalExecutorOptions initialized = local(true, 2);
  initialized.initializer = bulkhead::call(twice, 1);
  const auto other = thrown_by<RegistryConflictError>([&] { registry.get_or_create("a", "local", initialized); });
  REQUIRE(other);
  CHECK(other->requested() == "an executor of type 'local' with other options");
}

TEST_CASE("Spelled-out defaults are the same options as none", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const auto made = registry.get_or_create("a");
  CHECK(registry.get_or_create<LocalExecutor>("a") == made);
}

TEST_CASE("An unknown type is an error that lists the known ones, also for a name that exists", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  const auto error = thrown_by<UnknownExecutorTypeError>([&] { registry.get_or_create("a", "gpu"); });
  REQUIRE(error);
  CHECK(error->known() == registry.types());
  CHECK(error->code() == bulkhead::Errc::unknown_executor_type);
  CHECK_THAT(error->what(), ContainsSubstring("executor 'a': there is no executor type 'gpu'") &&
                                ContainsSubstring("inline, io, local"));
  CHECK(registry.size() == 0);
  registry.get_or_create("a", "inline");
  CHECK_THROWS_AS(registry.get_or_create("a", "gpu"), UnknownExecutorTypeError);
  CHECK(registry.size() == 1);
}

TEST_CASE("Names and types must not be empty, nor a factory", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  CHECK_THROWS_AS(registry.get_or_create(""), std::invalid_argument);
  CHECK_THROWS_AS(registry.register_factory("", inline_factory()), std::invalid_argument);
  CHECK_THROWS_AS(registry.register_factory("inline", nullptr), std::invalid_argument);
  CHECK_THROWS_AS(registry.get_or_create("a", ""), UnknownExecutorTypeError);
  CHECK_THROWS_AS(registry.get_or_create(std::string(201, 'n'), "local", local(true)), std::invalid_argument);
  CHECK(registry.size() == 0);
}

TEST_CASE("Options that make no sense, or of another type, leave nothing behind", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  LocalExecutorOptions options = local(true);
  options.max_pending = 0;
  CHECK_THROWS_AS(registry.get_or_create("a", "local", options), std::invalid_argument);
  const auto error = thrown_by<std::invalid_argument>([&] { registry.get_or_create("a", "local", argument(1)); });
  REQUIRE(error);
  CHECK_THAT(error->what(), ContainsSubstring("LocalExecutorOptions") && ContainsSubstring("InlineOptions"));
  CHECK_FALSE(registry.contains("a"));
  CHECK(registry.size() == 0);
  CHECK(registry.get_or_create("a", "local", local(true)) != nullptr);
}

TEST_CASE("A custom factory gets Asio's executor, the name and its options", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  const auto executor = std::dynamic_pointer_cast<InlineExecutor>(registry.get_or_create("a", "inline", argument(9)));
  REQUIRE(executor);
  CHECK(executor->argument() == 9);
  CHECK(executor->name() == "a");
  CHECK(executor->get_executor() == context.get_executor());
  CHECK(run(context, executor->submit(twice, 4)) == 8);
}

TEST_CASE("A replaced factory makes the executors from now on; those that exist stay", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("x", inline_factory());
  const auto before = registry.get_or_create("before", "x");
  registry.register_factory("x", [](asio::any_io_executor io, const std::string& name, const ExecutorConfig&) {
    return std::make_shared<InlineExecutor>(std::move(io), name, argument(77), nullptr);
  });
  CHECK(registry.get_or_create("before", "x") == before);
  const auto after = std::dynamic_pointer_cast<InlineExecutor>(registry.get_or_create("after", "x"));
  REQUIRE(after);
  CHECK(after->argument() == 77);
  // "local", too.
  registry.register_factory("local", inline_factory());
  CHECK(std::dynamic_pointer_cast<InlineExecutor>(registry.get_or_create("mine")) != nullptr);
}

TEST_CASE("A factory that throws or gives null leaves nothing behind", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  int calls = 0;
  registry.register_factory("moody",
                            [&calls](asio::any_io_executor io, const std::string& name,
                                     const ExecutorConfig& config) -> std::shared_ptr<BaseExecutor> {
                              ++calls;
                              if (calls == 1) throw std::domain_error("not in the mood");
                              if (calls == 2) return nullptr;
                              if (calls == 3) throw 5;
                              return inline_factory()(std::move(io), name, config);
                            });
  CHECK_THROWS_AS(registry.get_or_create("a", "moody"), std::domain_error);
  CHECK(registry.size() == 0);
  const auto null = thrown_by<std::exception>([&] { registry.get_or_create("a", "moody"); });
  CHECK(null);
  CHECK_FALSE(registry.contains("a"));
  CHECK_THROWS_AS(registry.get_or_create("a", "moody"), int);
  CHECK(registry.get("a") == nullptr);
  CHECK(registry.executors().empty());
  CHECK(registry.get_or_create("a", "moody") != nullptr);
  CHECK(calls == 4);
  CHECK(registry.size() == 1);
}

TEST_CASE("A factory may use the registry for other names", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  registry.register_factory("pair",
                            [&](asio::any_io_executor io, const std::string& name, const ExecutorConfig& config) {
                              registry.get_or_create(name + "-helper", "inline");
                              return inline_factory()(std::move(io), name, config);
                            });
  CHECK(registry.get_or_create("a", "pair") != nullptr);
  CHECK(registry.size() == 2);
  CHECK(registry.contains("a-helper"));
}

TEST_CASE("A factory that asks for the name it is making gets an error, and nothing is left", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("snake", [&](const asio::any_io_executor&, const std::string& name, const ExecutorConfig&) {
    return registry.get_or_create(name, "snake");
  });
  CHECK_THROWS_AS(registry.get_or_create("tail", "snake"), std::logic_error);
  CHECK(registry.size() == 0);
}

TEST_CASE("Factories on two threads that ask for each other's executors get an error, and none waits for ever",
          "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  std::atomic<int> making{0};
  registry.register_factory("inline", inline_factory());
  registry.register_factory("needy",
                            [&](asio::any_io_executor io, const std::string& name, const ExecutorConfig& config) {
                              ++making;
                              if (!bulkhead::test::poll_until([&] { return making >= 2; }, std::chrono::seconds(60)))
                                return inline_factory()(io, name, config);
                              registry.get_or_create(name == "a" ? "b" : "a", "needy");
                              return inline_factory()(std::move(io), name, config);
                            });
  std::array<std::exception_ptr, 2> errors;
  std::array<std::thread, 2> threads;
  for (std::size_t i = 0; i < 2; ++i) {
    threads[i] = std::thread([&, i] {
      try {
        registry.get_or_create(i == 0 ? "a" : "b", "needy");
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  // One sees that they wait for each other. The other then makes what it wanted, whose factory asks for its own.
  CHECK((errors[0] || errors[1]));
  for (const auto& error : errors) {
    if (error) CHECK_THAT(bulkhead::test::message(error), ContainsSubstring("making"));
  }
}

TEST_CASE("A type whose factory was replaced makes no null pointer of another class, under any of its names",
          "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("thread", inline_factory());
  CHECK_THROWS_AS(registry.get_or_create<bulkhead::ThreadExecutor>("files"), RegistryConflictError);
  registry.get_or_create("other", "threadpool");
  CHECK_THROWS_AS(registry.get<bulkhead::ThreadExecutor>("other"), RegistryConflictError);
  CHECK(registry.get<BaseExecutor>("other") == registry.get("other"));
  CHECK(registry.get<bulkhead::ThreadExecutor>("nobody") == nullptr);
}

TEST_CASE("Eight threads that ask for one name at the same time get one executor", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  constexpr std::size_t kThreads = 8;
  std::atomic<std::size_t> asking{0};
  std::atomic<int> made{0};
  registry.register_factory("slow",
                            [&](asio::any_io_executor io, const std::string& name, const ExecutorConfig& config) {
                              ++made;
                              poll_until([&] { return asking == kThreads; }, kDeadline);
                              return inline_factory()(std::move(io), name, config);
                            });
  std::vector<std::shared_ptr<BaseExecutor>> got(kThreads);
  std::latch start(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      ++asking;
      got[i] = registry.get_or_create("one", "slow");
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(made == 1);
  for (const auto& executor : got) CHECK(executor == got[0]);
  CHECK(got[0] != nullptr);
  CHECK(registry.size() == 1);
}

TEST_CASE("When the factory fails one of several threads, another one's call makes the executor", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  constexpr int kThreads = 8;
  std::atomic<int> asking{0};
  std::atomic<int> calls{0};
  registry.register_factory("flaky",
                            [&](asio::any_io_executor io, const std::string& name, const ExecutorConfig& config) {
                              if (++calls == 1) {
                                poll_until([&] { return asking == kThreads; }, kDeadline);
                                throw std::runtime_error("the first one fails");
                              }
                              return inline_factory()(std::move(io), name, config);
                            });
  std::atomic<int> failed{0};
  std::atomic<int> succeeded{0};
  std::latch start(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      start.arrive_and_wait();
      ++asking;
      try {
        if (registry.get_or_create("one", "flaky")) ++succeeded;
      } catch (const std::runtime_error&) {
        ++failed;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(failed == 1);
  CHECK(succeeded == kThreads - 1);
  CHECK(calls == 2);
}

TEST_CASE("Threads may use every function at the same time", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  constexpr int kThreads = 8;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        const std::string name = fmt::format("{}", (t + i) % 5);
        const auto executor = registry.get_or_create(name, "inline");
        if (!executor || executor->name() != name) ++wrong;
        if (registry.executors().size() > 5 || registry.all_metrics().size() > 5 || registry.size() > 5) ++wrong;
        const auto found = registry.get(name);
        if (found && found->name() != name) ++wrong;
        registry.contains(name);
        if (i % 10 == t) registry.remove(name);
        if (i % 25 == t) registry.register_factory("inline", inline_factory());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("remove forgets an executor, which goes on until it is let go", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  const auto first = registry.get_or_create("a", "inline");
  CHECK(registry.remove("a") == first);
  CHECK_FALSE(registry.contains("a"));
  CHECK(registry.get("a") == nullptr);
  CHECK(registry.size() == 0);
  CHECK(registry.remove("a") == nullptr);
  CHECK(run(context, first->submit(twice, 2)) == 4);
  const auto second = registry.get_or_create("a", "local", local(true));
  CHECK(second != first);
}

TEST_CASE("executors gives a copy", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  registry.get_or_create("a", "inline");
  registry.get_or_create("b", "inline");
  auto copy = registry.executors();
  REQUIRE(copy.size() == 2);
  CHECK(copy.at("a") == registry.get("a"));
  copy.clear();
  CHECK(registry.size() == 2);
  copy = registry.executors();
  registry.remove("a");
  CHECK(copy.size() == 2);
}

TEST_CASE("all_metrics has each executor once, in the order of their making", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  registry.get_or_create("z", "inline");
  registry.get_or_create("a", "local", local(true));
  registry.get_or_create("m", "inline");
  CHECK(run(context, registry.get("a")->submit(twice, 2)) == 4);
  const auto metrics = registry.all_metrics();
  REQUIRE(metrics.size() == 3);
  CHECK(metrics[0].name == "z");
  CHECK(metrics[0].mode == "custom");
  CHECK(metrics[1].name == "a");
  CHECK(metrics[1].mode == "bypass");
  CHECK(metrics[1].completed == 1);
  CHECK(metrics[2].name == "m");
  const std::string page = to_prometheus(metrics);
  for (const char* name : {"\"z\"", "\"a\"", "\"m\""}) CHECK_THAT(page, ContainsSubstring(name));
}

TEST_CASE("The typed get_or_create gives a LocalExecutor of the name with these options", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  LocalExecutorOptions options = local(false, 2);
  options.name = "ignored";
  options.max_pending = 17;
  const std::shared_ptr<LocalExecutor> pool = registry.get_or_create<LocalExecutor>("images", options);
  REQUIRE(pool);
  CHECK(pool->name() == "images");
  CHECK(pool->options().max_workers == 2);
  CHECK(pool->metrics().max_pending == 17);
  // Not through BaseExecutor: this submit checks at compile time.
  CHECK(run(context, pool->submit(twice, 3)) == 6);
  CHECK(registry.get_or_create<LocalExecutor>("images", options) == pool);
  CHECK(registry.get_or_create<LocalExecutor>("images") == pool);
  CHECK(registry.get_or_create("images") == pool);
  options.max_pending = 18;
  CHECK_THROWS_AS(registry.get_or_create<LocalExecutor>("images", options), RegistryConflictError);
  run(context, registry.shutdown_all());
  CHECK(pool->metrics().workers == 0);
}

TEST_CASE("The untyped and the typed get_or_create mean the same executor by the same options", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const auto typed = registry.get_or_create<LocalExecutor>("a", local(true, 3));
  CHECK(registry.get_or_create("a", "local", local(true, 3)) == typed);
  const auto untyped = registry.get_or_create("b", "local", local(true, 3));
  CHECK(registry.get_or_create<LocalExecutor>("b", local(true, 3)) == untyped);
}

TEST_CASE("shutdown_all stops every executor in order; the names are free afterwards", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  std::vector<std::string> log;
  registry.register_factory("inline", inline_factory(&log));
  registry.get_or_create("z", "inline");
  registry.get_or_create("a", "inline");
  const auto pool = registry.get_or_create<LocalExecutor>("pool", local(false, 2));
  const auto first = registry.get_or_create("m", "inline");
  CHECK(run(context, pool->submit(twice, 1)) == 2);
  run(context, registry.shutdown_all());
  CHECK(log == std::vector<std::string>{"z", "a", "m"});
  CHECK(registry.size() == 0);
  CHECK(registry.executors().empty());
  CHECK(pool->metrics().workers == 0);
  CHECK_THROWS_AS(run(context, first->submit(twice, 1)), ExecutorNotRunningError);
  const auto second = registry.get_or_create("m", "inline", argument(4));
  CHECK(second != first);
  CHECK(run(context, second->submit(twice, 1)) == 2);
  run(context, registry.shutdown_all());
  run(context, registry.shutdown_all());
}

TEST_CASE("shutdown_all stops all even if some fail, and reports all failures with names", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  std::vector<std::string> log;
  registry.register_factory("inline", inline_factory(&log));
  registry.get_or_create("bad", "inline", argument(-1));
  registry.get_or_create("good", "inline", argument(1));
  registry.get_or_create("worse", "inline", argument(-1));
  const auto pool = registry.get_or_create<LocalExecutor>("pool", local(false));
  const auto error = thrown_by<ShutdownFailedError>([&] { run(context, registry.shutdown_all()); });
  REQUIRE(error);
  REQUIRE(error->failures().size() == 2);
  CHECK(error->failures()[0].executor == "bad");
  CHECK(error->failures()[1].executor == "worse");
  CHECK_THROWS_WITH(std::rethrow_exception(error->failures()[0].error), "the line of bad is dead");
  CHECK_THAT(error->what(), ContainsSubstring("the line of bad is dead") && ContainsSubstring("worse"));
  CHECK(log == std::vector<std::string>{"bad", "good", "worse"});
  CHECK(pool->metrics().workers == 0);
  CHECK(registry.size() == 0);
  CHECK_THROWS_AS(run(context, pool->submit(twice, 1)), ExecutorNotRunningError);
  CHECK(registry.get_or_create("bad", "inline") != nullptr);
  run(context, registry.shutdown_all());
}

TEST_CASE("shutdown_all reports what is thrown even if it is not an exception", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  registry.register_factory("inline", inline_factory());
  registry.get_or_create("odd", "inline", argument(-2));
  registry.get_or_create("good", "inline");
  const auto error = thrown_by<ShutdownFailedError>([&] { run(context, registry.shutdown_all()); });
  REQUIRE(error);
  REQUIRE(error->failures().size() == 1);
  CHECK(error->failures()[0].executor == "odd");
  CHECK_THROWS_AS(std::rethrow_exception(error->failures()[0].error), int);
  CHECK(registry.size() == 0);
}

TEST_CASE("shutdown_all passes its options on", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const auto pool = registry.get_or_create<LocalExecutor>("pool", local(true));
  int calls = 0;
  for (int i = 0; i < 3; ++i) {
    pool->async_submit(bulkhead::call(twice, i), [&](std::exception_ptr, int) { ++calls; });
  }
  ShutdownOptions options;
  options.wait = false;
  run(context, registry.shutdown_all(options));
  CHECK(registry.size() == 0);
  CHECK(bulkhead::test::run_until(context, [&] { return calls == 3; }));
  CHECK(pool->metrics().completed == 3);
}

TEST_CASE("A second shutdown_all waits for the executors that the first one is shutting down", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  bulkhead::test::reset_board();
  const auto executor = registry.get_or_create<bulkhead::ThreadExecutor>("threads");
  bool ended = false;
  executor->async_submit(bulkhead::call(bulkhead::test::wait_at_gate, 1),
                         [&](std::exception_ptr, int) { ended = true; });
  REQUIRE(bulkhead::test::run_until(context, [] { return bulkhead::test::board.gate.waiting == 1; }));
  int over = 0;
  for (int i = 0; i < 2; ++i) {
    boost::asio::co_spawn(context, registry.shutdown_all(), [&](std::exception_ptr error) {
      if (!error && ended) ++over;
    });
  }
  bulkhead::test::settle(context);
  CHECK(over == 0);
  bulkhead::test::board.gate.open = 1;
  CHECK(bulkhead::test::run_until(context, [&] { return over == 2; }));
}

TEST_CASE("Destroying a registry lets go of its executors", "[registry]") {
  asio::io_context context;
  std::weak_ptr<BaseExecutor> weak;
  std::shared_ptr<BaseExecutor> kept;
  {
    ExecutorRegistry registry(context.get_executor());
    weak = registry.get_or_create("a", "local", local(false));
    kept = registry.get_or_create("b", "local", local(false));
  }
  CHECK(weak.expired());
  CHECK(run(context, kept->submit(twice, 5)) == 10);
}
