// SPDX-License-Identifier: BSL-1.0
// What a sandbox costs: a worker's start, and a task in a worker that is there.
//
//   bench_sandbox [--quick] [--json FILE]
//
// First result: `Isolation::fresh` tasks, one after the other, in a pool of one worker. Each waits for a new worker, so
// its time is that of the old one's end, a fork, the sandbox, and the task. Its peer is the least that a new process
// can cost: this program, while it is small and has one thread, forks a child that leaves at once, and waits for it.
//
// Per task: tasks in one worker that is there already; under a policy that never reuses workers, with
// `Isolation::per_key` and one key.
//
// Profiles take turns, each in a pool of its own which is gone before the next begins, so that each has the CPUs to
// itself.
#include "bench/measure.hpp"

#include <bulkhead/errors.hpp>
#include <bulkhead/local_executor.hpp>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <sys/wait.h>
#include <unistd.h>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace bulkhead::bench;
using bulkhead::Isolation;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::SandboxPolicy;
using bulkhead::SandboxReport;
using bulkhead::TaskOptions;

constexpr double kFreshAim = 1;  // millisecond: far below what a picture or a document takes to decode
constexpr std::size_t kMany = 64;

int add_one(int x) { return x + 1; }

// How many tasks this worker has run: 1 in a fresh one.
int count_runs(int) {
  static int runs = 0;
  return ++runs;
}

struct Figures {
  std::vector<double> fresh_ms;
  std::vector<double> one_us;  // with one task in flight
  std::vector<double> many_us;
};

struct Profile {
  SandboxPolicy policy;
  Figures figures;
  std::optional<SandboxReport> report;
  std::string missing;  // why this machine cannot do it
};

double bare_fork_ms() {
  const auto begin = Clock::now();
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("cannot fork");
  if (child == 0) ::_exit(0);
  if (::waitpid(child, nullptr, 0) != child) throw std::runtime_error("the child was not waited for");
  return Seconds(Clock::now() - begin).count() * 1e3;
}

// Runs so many tasks, so many at a time, and gives the seconds that this takes. `each`: called with every result.
template <class Each>
class Run {
 public:
  Run(asio::io_context& context, LocalExecutor& pool, const TaskOptions& options, int (*function)(int), Each each)
      : context_(context), pool_(pool), options_(options), function_(function), each_(std::move(each)) {}

  double seconds(std::size_t tasks, std::size_t in_flight) {
    left_ = tasks;
    running_ = in_flight;
    context_.restart();
    const auto work = asio::make_work_guard(context_);  // callbacks keep no work while they are in the pool
    const auto begin = Clock::now();
    for (std::size_t i = 0; i < in_flight; ++i) next();
    context_.run();
    return Seconds(Clock::now() - begin).count();
  }

 private:
  void next() {
    if (left_ == 0) {
      if (--running_ == 0) context_.stop();
      return;
    }
    --left_;
    pool_.async_submit(TaskOptions(options_), bulkhead::call(function_, 1),
                       [this](const std::exception_ptr& error, int result) {
                         if (error) std::rethrow_exception(error);
                         each_(result);
                         next();
                       });
  }

  asio::io_context& context_;
  LocalExecutor& pool_;
  const TaskOptions& options_;
  int (*function_)(int);
  Each each_;
  std::size_t left_ = 0;
  std::size_t running_ = 0;
};

void measure_fresh(asio::io_context& context, LocalExecutor& pool, std::size_t tasks, std::vector<double>& ms) {
  const TaskOptions options = TaskOptions().isolation(Isolation::fresh());
  const auto check = [](int runs) {
    if (runs != 1) throw std::runtime_error("a worker ran a second task");
  };
  Run run(context, pool, options, count_runs, check);
  run.seconds(1, 1);  // in the worker that the pool began with
  for (std::size_t i = 0; i < tasks; ++i) ms.push_back(run.seconds(1, 1) * 1e3);
}

void measure_reuse(asio::io_context& context, LocalExecutor& pool, const Effort& effort, Figures& figures) {
  TaskOptions options;
  if (pool.options().sandbox.never_reuse_workers) options.isolation(Isolation::per_key("one"));
  const auto check = [](int result) {
    if (result != 2) throw std::runtime_error("wrong result");
  };
  Run run(context, pool, options, add_one, check);
  const std::size_t tasks = effort.quick ? 500 : 20'000;
  run.seconds(tasks, 1);  // until the worker is there, and warm
  const double per_task = 1e6 / static_cast<double>(tasks);
  figures.one_us.push_back(run.seconds(tasks, 1) * per_task);
  run.seconds(tasks, kMany);
  figures.many_us.push_back(run.seconds(tasks, kMany) * per_task);
}

void measure(asio::io_context& context, Profile& profile, const Effort& effort) {
  if (!profile.missing.empty()) return;
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.sandbox = profile.policy;
  try {
    LocalExecutor pool(context.get_executor(), options);
    if (!profile.report) profile.report = pool.sandbox_report();
    measure_reuse(context, pool, effort, profile.figures);
    measure_fresh(context, pool, effort.quick ? 5 : 100, profile.figures.fresh_ms);
  } catch (const bulkhead::WorkerStartError& error) {
    profile.missing = error.what();
  }
}

void print_table(const std::vector<Profile>& profiles, double fork_ms) {
  fmt::print("{:<12} {:>12} {:>12} {:>12} {:>16} {:>16} {:>14}\n", "profile", "fresh ms", "p99 ms", "/ bare fork",
             "reused, 1: µs", "reused, 64: µs", "fresh / reused");
  for (const Profile& profile : profiles) {
    if (!profile.missing.empty()) {
      fmt::print("{:<12} not on this machine: {}\n", profile.policy.profile, profile.missing);
      continue;
    }
    const Figures& figures = profile.figures;
    const double fresh = median(figures.fresh_ms);
    const double one = median(figures.one_us);
    fmt::print("{:<12} {:>12.3f} {:>12.3f} {:>12.1f} {:>16.2f} {:>16.2f} {:>14.0f}\n", profile.policy.profile, fresh,
               quantile(figures.fresh_ms, 0.99), fresh / fork_ms, one, median(figures.many_us), fresh * 1e3 / one);
  }
}

// What was not in force has cost nothing.
void print_missing(const std::vector<Profile>& profiles) {
  for (const Profile& profile : profiles) {
    if (!profile.report) continue;
    for (const SandboxReport::Entry& entry : profile.report->entries) {
      if (entry.state != SandboxReport::State::unavailable) continue;
      fmt::print("{} was measured without {}: {}\n", profile.policy.profile, name_of(entry.item), entry.detail);
    }
  }
}

void report_aims(Report& report, const std::vector<Profile>& profiles, double fork_ms) {
  fmt::print("\n");
  Report::head();
  for (const Profile& profile : profiles) {
    if (!profile.missing.empty()) continue;
    const Figures& figures = profile.figures;
    report.row(
        fmt::format("first result of a fresh worker, {}", profile.policy.profile), median(figures.fresh_ms),
        Better::lower, kFreshAim, "ms",
        fmt::format("p99 {:.3f} ms; bare fork {:.3f} ms; reused {:.2f} µs, {:.2f} µs with {} in flight",
                    quantile(figures.fresh_ms, 0.99), fork_ms, median(figures.one_us), median(figures.many_us), kMany));
  }
}

void run(const Arguments& arguments, double fork_ms) {
  const Effort effort = arguments.quick ? quick_effort() : Effort();
  const Machine machine;
  fmt::print("{}\n\n", machine.text());
  std::vector<Profile> profiles;
  for (SandboxPolicy policy : {SandboxPolicy::trusted(), SandboxPolicy::contained(), SandboxPolicy::untrusted()}) {
    profiles.push_back({std::move(policy), {}, {}, {}});
  }
  asio::io_context context(1);
  for (int i = 0; i < effort.rounds; ++i) {
    for (Profile& profile : profiles) measure(context, profile, effort);
  }
  print_table(profiles, fork_ms);
  fmt::print("{:<12} {:>12.3f}\n", "bare fork", fork_ms);
  print_missing(profiles);
  Report report;
  report_aims(report, profiles, fork_ms);
  if (!arguments.json.empty()) report.write_json(arguments.json, machine);
}

}  // namespace

int main(int argc, char** argv) {
  const auto arguments = parse({argv, static_cast<std::size_t>(argc)});
  if (!arguments) {
    fmt::print(stderr, "usage: {} [--quick] [--json FILE]\n", argv[0]);
    return EXIT_FAILURE;
  }
  try {
    std::vector<double> forks;
    for (int i = 0; i < (arguments->quick ? 10 : 500); ++i) forks.push_back(bare_fork_ms());
    bulkhead::start_fork_server();
    run(*arguments, median(forks));
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return EXIT_FAILURE;
  }
}
