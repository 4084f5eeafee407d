// SPDX-License-Identifier: BSL-1.0
// How a program sets its executors up, and how it ends: options as text, configuration files, the registry's types, and
// the lifecycle.
#include <bulkhead/config_file.hpp>
#include <bulkhead/lifecycle.hpp>
#include <bulkhead/option_map.hpp>
#include <bulkhead/this_task.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

// Boost.JSON itself, in this one source file.
#include <boost/json/src.hpp>

#include <unistd.h>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::CommonOptions;
using bulkhead::ExecutorRegistry;
using bulkhead::from_config;
using bulkhead::from_config_text;
using bulkhead::HybridConfig;
using bulkhead::HybridExecutor;
using bulkhead::InlineExecutor;
using bulkhead::IoExecutor;
using bulkhead::Lifecycle;
using bulkhead::LifecycleOptions;
using bulkhead::LocalExecutor;
using bulkhead::OptionMap;
using bulkhead::OverloadPolicy;
using bulkhead::RegistryConflictError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::test::kGone;
using bulkhead::test::part_of;
using bulkhead::test::poll_until;
using bulkhead::test::Process;
using bulkhead::test::processes_with;
using bulkhead::test::Program;
using bulkhead::test::run;
using bulkhead::test::run_until;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

int twice(int value) { return 2 * value; }

void say(const char* text) {
  std::puts(text);
  std::fflush(stdout);
}

void spin_until_asked() {
  bulkhead::test::poll_until([] { return bulkhead::this_task::stop_requested(); }, 60s);
}

// ---------------------------------------------------------------------------------------------------------------------
// A server of its own, which is sent signals: what the tests below start.

asio::awaitable<void> serve(Lifecycle& lifecycle, bool stubborn) {
  const auto threads = lifecycle.executors().get_or_create<ThreadExecutor>("threads");
  const auto task = threads->spawn(+[] {
    say("task begun");
    bulkhead::test::poll_until([] { return bulkhead::this_task::stop_requested(); }, 300ms);
    say("task ended");
  });
  lifecycle.on_stop([]() -> asio::awaitable<void> {
    say("added first, done last");
    co_return;
  });
  lifecycle.on_stop([stubborn]() -> asio::awaitable<void> {
    say("accepts no more");
    if (!stubborn) co_return;
    asio::steady_timer never(co_await asio::this_coro::executor, std::chrono::steady_clock::time_point::max());
    co_await never.async_wait(asio::use_awaitable);
  });
  say("serving");
  co_return;
}

int server(bool stubborn, std::chrono::nanoseconds patience = LifecycleOptions().drain_timeout) {
  asio::io_context context;
  LifecycleOptions options;
  options.drain_timeout = patience;
  Lifecycle lifecycle(context.get_executor(), options);
  int signal = -1;
  std::string error;
  asio::co_spawn(context, serve(lifecycle, stubborn), [](std::exception_ptr) {});
  asio::co_spawn(context, lifecycle.run(), [&](std::exception_ptr thrown, int number) {
    signal = number;
    error = bulkhead::test::message(thrown);
  });
  context.run();
  std::printf("stopped by %d; %s\n", signal, error.empty() ? "no error" : error.c_str());
  std::fflush(stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (part_of(argc, argv) == "server") return server(false);
  if (part_of(argc, argv) == "stubborn server") return server(true, 50ms);
  if (part_of(argc, argv) == "patient server") return server(true, 1h);
  bulkhead::start_fork_server();
  return run_tests(argc, argv);
}

// ---------------------------------------------------------------------------------------------------------------------
// Options as text.

TEST_CASE("options are read from text, with units", "[options]") {
  const auto local = bulkhead::parse_local_options({{"max_workers", "4"},
                                                    {"min_workers", "1"},
                                                    {"overload", "wait"},
                                                    {"idle_timeout", "5min"},
                                                    {"start_timeout", "250ms"},
                                                    {"memory_limit", "64 MiB"},
                                                    {"max_message_size", "1GiB"},
                                                    {"bypass", "On"},
                                                    {"spin", "never"},
                                                    {"capture_output", "discard"}});
  CHECK(local.max_workers == 4);
  CHECK(local.min_workers == 1U);
  CHECK(local.overload == OverloadPolicy::wait);
  CHECK(local.idle_timeout == 5min);
  CHECK(local.start_timeout == 250ms);
  CHECK(local.memory_limit == 64U << 20);
  CHECK(local.max_message_size == 1U << 30);
  CHECK(local.bypass);
  CHECK(local.spin == bulkhead::SpinPolicy::never);
  CHECK(local.capture_output == bulkhead::CaptureOutput::discard);
  CHECK(bulkhead::parse_thread_options({{"max_threads", "7"}}).max_threads == 7);
  CHECK(bulkhead::parse_io_options({{"max_concurrent", "9"}}).max_concurrent == 9);
  CHECK(bulkhead::parse_common_options({{"max_pending", "3"}}).max_pending == 3);
  const auto hybrid = bulkhead::parse_hybrid_options({{"executors", "a, b"}, {"on_not_running", "yes"}});
  CHECK(hybrid.executors == std::vector<std::string>{"a", "b"});
  CHECK(hybrid.options.on_not_running);
}

TEST_CASE("an unknown option is refused with the known ones, and a value that is none with what is wanted",
          "[options]") {
  CHECK_THROWS_WITH(bulkhead::parse_thread_options({{"max_thread", "7"}}),
                    ContainsSubstring("'max_thread'") && ContainsSubstring("idle_timeout, max_pending, max_threads"));
  const std::vector<std::pair<const char*, const char*>> bad{{"max_workers", "-1"},
                                                             {"max_workers", "4294967296"},
                                                             {"max_workers", "four"},
                                                             {"max_workers", "4x"},
                                                             {"idle_timeout", "5"},
                                                             {"idle_timeout", "-5s"},
                                                             {"idle_timeout", "1e9h"},
                                                             {"idle_timeout", "9999999999999h"},
                                                             {"memory_limit", "64MB"},
                                                             {"memory_limit", "99999999999GiB"},
                                                             {"overload", "maybe"},
                                                             {"bypass", "perhaps"},
                                                             {"spin", ""}};
  for (const auto& [option, value] : bad) {
    INFO(option << " = " << value);
    CHECK_THROWS_WITH(bulkhead::parse_local_options({{option, value}}),
                      ContainsSubstring(std::string("'") + option + "'") && ContainsSubstring("must be"));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The registry's types.

TEST_CASE("the registry makes executors of every type, under every name of it", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  for (const char* type : {"local", "process", "processpool"}) {
    CHECK(std::dynamic_pointer_cast<LocalExecutor>(registry.get_or_create(type, type, OptionMap{{"bypass", "1"}})));
  }
  for (const char* type : {"thread", "threadpool", "pool"}) {
    CHECK(std::dynamic_pointer_cast<ThreadExecutor>(registry.get_or_create(type, type)));
  }
  for (const char* type : {"io", "asyncio"}) {
    CHECK(std::dynamic_pointer_cast<IoExecutor>(registry.get_or_create(type, type)));
  }
  for (const char* type : {"inline", "debug"}) {
    CHECK(std::dynamic_pointer_cast<InlineExecutor>(registry.get_or_create(type, type)));
  }
  const auto hybrid = registry.get_or_create("both", "hybrid", OptionMap{{"executors", "inline,thread"}});
  REQUIRE(std::dynamic_pointer_cast<HybridExecutor>(hybrid));
  for (const auto& [name, executor] : registry.executors()) {
    INFO(name);
    CHECK(executor->name() == name);
    CHECK(run(context, executor->submit(twice, 21)) == 42);
  }
  run(context, registry.shutdown_all());
}

TEST_CASE("the same executor may be asked for under another name of its type, and by text or struct", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  ThreadExecutorOptions options;
  options.max_threads = 3;
  const auto made = registry.get_or_create<ThreadExecutor>("files", options);
  CHECK(registry.get_or_create("files", "threadpool", OptionMap{{"max_threads", "3"}}) == made);
  CHECK(registry.get_or_create<ThreadExecutor>("files") == made);
  CHECK_THROWS_AS(registry.get_or_create("files", "thread", OptionMap{{"max_threads", "4"}}), RegistryConflictError);
  CHECK_THROWS_AS(registry.get_or_create("files", "io"), RegistryConflictError);
  CHECK_THROWS_WITH(registry.get_or_create("files", "thread", OptionMap{{"threads", "4"}}),
                    ContainsSubstring("known options"));
  CHECK_THROWS_WITH(registry.get_or_create("odd", "thread", bulkhead::LocalExecutorOptions()),
                    ContainsSubstring("ThreadExecutorOptions") && ContainsSubstring("LocalExecutorOptions"));
  CHECK_FALSE(registry.contains("odd"));
  CHECK_THROWS_WITH(registry.get_or_create("both", "hybrid", OptionMap{{"executors", "files,nobody"}}),
                    ContainsSubstring("'nobody'"));
  CHECK_FALSE(registry.contains("both"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Configuration files.

TEST_CASE("a JSON file describes all executors of a program, in any order", "[config]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const auto path = std::filesystem::temp_directory_path() / ("bulkhead-" + std::to_string(::getpid()) + ".json");
  {
    std::ofstream file(path);
    file << R"({"executors": {
      "all":   {"type": "hybrid", "executors": ["images", "files"], "on_not_running": true},
      "images": {"max_workers": 2, "bypass": true, "idle_timeout": "30s"},
      "files":  {"type": "thread", "max_threads": 8, "overload": "wait"}}})";
  }
  const auto executors = from_config(registry, path);
  std::filesystem::remove(path);
  REQUIRE(executors.size() == 3);
  CHECK(executors.back()->name() == "all");
  CHECK(registry.get_or_create<ThreadExecutor>("files")->options().max_threads == 8);
  CHECK(registry.get_or_create<LocalExecutor>("images")->options().max_workers == 2);
  CHECK(registry.get_or_create<HybridExecutor>("all")->options().on_not_running);
  CHECK(run(context, registry.get("all")->submit(twice, 4)) == 8);
  // Once more is the same.
  CHECK(from_config_text(registry,
                         R"({"executors": {"files": {"type": "thread", "max_threads": 8, "overload": "wait"}}})")
            .front() == registry.get("files"));
  run(context, registry.shutdown_all());
}

TEST_CASE("executors of a file share what their registry gives them: tasks by name, results, instances", "[config]") {
  asio::io_context context;
  bulkhead::SharedParts shared;
  shared.tasks = std::make_shared<bulkhead::TaskRegistry>();
  shared.tasks->add("twice", twice);
  shared.results = std::make_shared<bulkhead::ResultStore>();
  shared.instances = std::make_shared<bulkhead::InstanceGroup>();
  ExecutorRegistry registry(context.get_executor(), shared);
  constexpr const char* kText = R"({"executors": {
      "both": {"type": "hybrid", "executors": ["images"]}, "images": {"max_workers": 1},
      "files": {"type": "thread"}, "loop": {"type": "io"}, "here": {"type": "inline"}}})";
  const auto executors = from_config_text(registry, kText);
  REQUIRE(executors.size() == 5);
  for (const auto& executor : executors) {
    INFO(executor->name());
    const int doubled = run(context, executor->submit("twice", 21));
    CHECK(doubled == 42);
    const auto handle = executor->spawn("twice", 4);
    CHECK(run(context, registry.get("files")->wait_for_result<int>(handle.id())) == 8);
  }
  // The same again is the same; a registry of options that says otherwise is not.
  CHECK(from_config_text(registry, kText).size() == 5);
  CHECK(registry.get_or_create<ThreadExecutor>("files")->options().instances == shared.instances);
  ThreadExecutorOptions own;
  own.results = std::make_shared<bulkhead::ResultStore>();
  CHECK(registry.get_or_create<ThreadExecutor>("own", own)->options().results == own.results);
  CHECK(registry.get_or_create<ThreadExecutor>("own")->options().tasks == shared.tasks);
  run(context, registry.shutdown_all());
}

TEST_CASE("a configuration that cannot be is refused, says why, and leaves nothing behind", "[config]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const std::vector<std::pair<const char*, const char*>> bad{
      {"{", "not JSON"},
      {"[]", "\"executors\""},
      {R"({"executors": []})", "\"executors\""},
      {R"({"executors": {"a": 1}})", "executor 'a'"},
      {R"({"executors": {"a": {"type": "thread", "max_threads": 1.5}}})", "option 'max_threads'"},
      {R"({"executors": {"a": {"type": "thread", "max_threads": 0}}})", "'max_threads' must be 1 to 4096"},
      {R"({"executors": {"a": {"type": "thread", "threads": 1}}})", "known options"},
      {R"({"executors": {"a": {"type": "thread", "name": null}}})", "option 'name'"},
      {R"({"executors": {"a": {"type": "hybrid", "executors": ["b"]}}})", "'b'"},
      {R"({"executors": {"a": {"type": "hybrid", "executors": ["a"]}}})", "part of itself"},
      {R"({"executors": {"a": {"type": "hybrid", "executors": [1]}}})", "strings"},
      {R"({"executors": {"a": {"type": "thread"}, "b": {"type": "io"}, "a": {"type": "io"}}})",
       R"("executors": "a" is given twice)"},
      {R"({"executors": {"a": {"max_workers": 1, "max_\u0077orkers": 2}}})",
       R"("executors": "a": "max_workers" is given twice)"},
      {R"({"executors": {"good": {"type": "thread"}, "a": {"type": "thread", "max_pending": 0}}})", "'max_pending'"},
  };
  for (const auto& [text, why] : bad) {
    INFO(text);
    CHECK_THROWS_WITH(from_config_text(registry, text), ContainsSubstring(why));
    CHECK(registry.size() == 0);
  }
  CHECK_THROWS_AS(from_config_text(registry, R"({"executors": {"a": {"type": "gpu"}}})"),
                  bulkhead::UnknownExecutorTypeError);
  const auto path = std::filesystem::temp_directory_path() / ("bulkhead-" + std::to_string(::getpid()) + "-bad.json");
  std::ofstream(path) << R"({"executors": {"a": {"type": "gpu"}}})";
  CHECK_THROWS_WITH(from_config(registry, path),
                    ContainsSubstring(path.string() + ": executor 'a'") && ContainsSubstring("known types: asyncio"));
  std::filesystem::remove(path);
  CHECK_THROWS_WITH(from_config(registry, "/there/is/no/such/file.json"),
                    ContainsSubstring("/there/is/no/such/file.json"));
}

// ---------------------------------------------------------------------------------------------------------------------
// The lifecycle.

TEST_CASE("a program that is asked to stop does its steps, drains its executors, and ends", "[lifecycle]") {
  for (const int signal : {SIGTERM, SIGINT}) {
    Program program("server");
    REQUIRE(program.says("serving"));
    REQUIRE(program.says("task begun"));
    REQUIRE(::kill(program.pid(), signal) == 0);
    REQUIRE(program.says("stopped by " + std::to_string(signal) + "; no error"));
    const auto [code, said] = program.finish();
    CHECK(code == 0);
    const auto at = [&](const char* text) { return said.find(text); };
    CHECK(at("accepts no more") < at("added first, done last"));
    CHECK(at("task ended") != std::string::npos);
    CHECK(at("task ended") < at("stopped by"));
  }
}

TEST_CASE("a step that does not end does not keep a program from ending", "[lifecycle]") {
  Program program("stubborn server");
  REQUIRE(program.says("task begun"));
  REQUIRE(::kill(program.pid(), SIGTERM) == 0);
  REQUIRE(program.says("stopped by"));
  const auto [code, said] = program.finish();
  CHECK(code == 0);
  CHECK_THAT(said, ContainsSubstring("added first, done last") && ContainsSubstring("was not over when"));
}

TEST_CASE("a second signal ends a program that still drains, and all of its processes", "[lifecycle]") {
  Program program("patient server");
  const Process process(program.pid());
  REQUIRE(program.says("task begun"));
  REQUIRE(process.signal(SIGTERM));
  REQUIRE(program.says("accepts no more"));
  CHECK_FALSE(process.gone());
  REQUIRE(process.signal(SIGTERM));
  CHECK(process.gone_within(kGone));
  CHECK(poll_until([&] { return processes_with(program.marker()).empty(); }, kGone));
  const auto [code, said] = program.finish();
  CHECK(code == -1);
  CHECK_THAT(said, !ContainsSubstring("stopped by"));
}

TEST_CASE("a program may stop itself, before it waits for that or after", "[lifecycle]") {
  asio::io_context context;
  Lifecycle lifecycle(context.get_executor());
  const auto threads = lifecycle.executors().get_or_create<ThreadExecutor>("threads");
  CHECK(run(context, threads->submit(twice, 1)) == 2);
  CHECK_FALSE(lifecycle.stopping());
  int steps = 0;
  lifecycle.on_stop([&]() -> asio::awaitable<void> {
    ++steps;
    throw std::runtime_error("this step fails");
    co_return;
  });
  lifecycle.on_stop([&]() -> asio::awaitable<void> {
    ++steps;
    co_return;
  });
  lifecycle.request_stop();
  CHECK(lifecycle.stopping());
  CHECK_THROWS_WITH(run(context, lifecycle.run()), "this step fails");
  CHECK_THROWS_AS(lifecycle.run(), std::logic_error);
  CHECK(steps == 2);
  CHECK_THROWS_AS(run(context, threads->submit(twice, 1)), bulkhead::ExecutorNotRunningError);
  CHECK(lifecycle.executors().size() == 0);
  context.restart();
  context.run();  // nothing is left to do
}

TEST_CASE("a step that another step adds is done, too", "[lifecycle]") {
  asio::io_context context;
  Lifecycle lifecycle(context.get_executor());
  std::string done;
  lifecycle.on_stop([&]() -> asio::awaitable<void> {
    done += "first";
    co_return;
  });
  lifecycle.on_stop([&]() -> asio::awaitable<void> {
    done += "last,";
    lifecycle.on_stop([&]() -> asio::awaitable<void> {
      done += "late,";
      co_return;
    });
    co_return;
  });
  lifecycle.on_stop([] { return asio::awaitable<void>(); });
  lifecycle.request_stop();
  CHECK_THROWS_WITH(run(context, lifecycle.run()), ContainsSubstring("without a coroutine"));
  CHECK(done == "last,late,first");
}

TEST_CASE("what a hybrid has accepted is done before the executors that it gives it to are shut down", "[lifecycle]") {
  const bool whole_program = GENERATE(false, true);
  CAPTURE(whole_program);
  asio::io_context context;
  Lifecycle lifecycle(context.get_executor());
  ExecutorRegistry& registry = lifecycle.executors();
  from_config_text(registry, R"({"executors": {
      "outer": {"type": "hybrid", "executors": ["inner"], "shut_down_executors": false},
      "inner": {"type": "hybrid", "executors": ["files"]}, "files": {"type": "thread"}, "alone": {"type": "io"}}})");
  std::vector<bulkhead::TaskHandle<int>> tasks;
  for (const char* name : {"outer", "inner"}) {
    for (int i = 0; i < 3; ++i) {
      bulkhead::TaskOptions options;
      options.name(name).max_instances(1, bulkhead::OverloadPolicy::wait);
      tasks.push_back(registry.get(name)->spawn(std::move(options), twice, i));
    }
  }
  if (whole_program) {
    lifecycle.request_stop();
    CHECK(run(context, lifecycle.run()) == 0);
  } else {
    const bool wait = GENERATE(false, true);
    bulkhead::ShutdownOptions shutdown;
    shutdown.wait = wait;
    run(context, registry.shutdown_all(shutdown));
  }
  for (std::size_t i = 0; i < tasks.size(); ++i) CHECK(run(context, tasks[i].result()) == 2 * static_cast<int>(i % 3));
  CHECK(registry.size() == 0);
}

TEST_CASE("what does not end in time is ended with the program", "[lifecycle]") {
  asio::io_context context;
  LifecycleOptions options;
  options.signals = {};
  options.drain_timeout = 20ms;
  Lifecycle lifecycle(context.get_executor(), options);
  const auto pool = lifecycle.executors().get_or_create<LocalExecutor>("pool", bulkhead::test::workers(1));
  const auto threads = lifecycle.executors().get_or_create<ThreadExecutor>("threads");
  const auto in_process = pool->spawn(spin_until_asked);
  const auto on_thread = threads->spawn(spin_until_asked);
  REQUIRE(run_until(context, [&] {
    return in_process.status() == bulkhead::TaskStatus::running && on_thread.status() == bulkhead::TaskStatus::running;
  }));
  lifecycle.request_stop();
  CHECK(run(context, lifecycle.run()) == 0);
  REQUIRE(run_until(context,
                    [&] { return bulkhead::is_over(in_process.status()) && bulkhead::is_over(on_thread.status()); }));
  CHECK(in_process.status() == bulkhead::TaskStatus::cancelled);
  CHECK(on_thread.status() == bulkhead::TaskStatus::cancelled);
}
