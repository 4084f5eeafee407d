// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "bench/hops.hpp"
#include "bench/measure.hpp"

#include <bulkhead/local_executor.hpp>

#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// What pools of several workers make of a machine, and what they cost it.
namespace bulkhead::bench {

namespace asio = boost::asio;

// Takes so much of a CPU, whoever else uses it.
inline int use_cpu(int microseconds) {
  const double end = seconds(CLOCK_THREAD_CPUTIME_ID) + microseconds * 1e-6;
  while (seconds(CLOCK_THREAD_CPUTIME_ID) < end) {
  }
  return microseconds;
}

inline LocalExecutorOptions pool_of(unsigned workers, std::size_t pending) {
  LocalExecutorOptions options;
  options.sandbox.non_dumpable = bulkhead::Demand::off;  // its memory is looked at
  options.max_workers = workers;
  options.max_pending = pending;
  options.max_message_size = std::size_t{1} << 20;
  return options;
}

// Seconds that so many tasks take, all outstanding at once.
template <class F>
double seconds_of(asio::io_context& context, LocalExecutor& pool, std::uint64_t tasks, std::size_t in_flight,
                  F function, int argument) {
  struct Slots {
    asio::io_context& context;
    LocalExecutor& pool;
    F function;
    int argument;
    std::uint64_t left;
    std::size_t running;

    void next() {
      if (left == 0) {
        if (--running == 0) context.stop();
        return;
      }
      --left;
      pool.async_submit(call(function, argument), [this](std::exception_ptr error, int) {
        if (error) std::rethrow_exception(error);
        next();
      });
    }
  } slots{context, pool, function, argument, tasks, in_flight};
  context.restart();
  const auto begin = Clock::now();
  for (std::size_t i = 0; i < in_flight; ++i) slots.next();
  context.run();
  return Seconds(Clock::now() - begin).count();
}

// Two plain processes that do the same work: what the machine gives to two. From when both are there until both are
// done: neither their forks nor their ends count.
inline double seconds_of_two_processes(int calls, int microseconds) {
  struct Shared {
    std::atomic<int> there{0};
    std::atomic<bool> go{false};
    Clock::time_point done[2];
  };
  void* const memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("cannot map memory");
  Shared& shared = *::new (memory) Shared;
  pid_t children[2];
  for (int i = 0; i < 2; ++i) {
    children[i] = ::fork();
    if (children[i] < 0) throw std::runtime_error("cannot fork");
    if (children[i] == 0) {
      ++shared.there;
      while (!shared.go) std::this_thread::yield();
      for (int k = 0; k < calls; ++k) use_cpu(microseconds);
      shared.done[i] = Clock::now();
      ::_exit(0);
    }
  }
  while (shared.there < 2) std::this_thread::yield();
  const auto begin = Clock::now();
  shared.go = true;
  for (const pid_t child : children) ::waitpid(child, nullptr, 0);
  const double taken = Seconds(std::max(shared.done[0], shared.done[1]) - begin).count();
  ::munmap(memory, sizeof(Shared));
  return taken;
}

inline void measure_two_workers(asio::io_context& context, Report& report, const Effort& effort) {
  const int tasks = effort.quick ? 4 : 200;
  LocalExecutor pool(context.get_executor(), pool_of(2, 1000));
  std::vector<double> ours;
  std::vector<double> plain;
  seconds_of(context, pool, 4, 4, use_cpu, 100);  // so that the workers are there
  for (int i = 0; i < effort.rounds; ++i) {
    ours.push_back(
        seconds_of(context, pool, static_cast<std::uint64_t>(tasks), static_cast<std::size_t>(tasks), use_cpu, 1000));
    plain.push_back(seconds_of_two_processes(tasks / 2, 1000));
  }
  report.row("2 workers, tasks of 1 ms / two plain processes", median_ratio(ours, plain), Better::lower, 1.1, "×",
             fmt::format("{:.1f} ms; plain {:.1f} ms", median(ours) * 1e3, median(plain) * 1e3));
}

inline void measure_many_workers(asio::io_context& context, Report& report, const Effort& effort) {
  const std::size_t outstanding = effort.quick ? 1000 : 10'000;
  // For some hundred milliseconds: how three processes share two CPUs changes with every slice of a few.
  const std::uint64_t tasks = (effort.quick ? 10 : 100) * outstanding;
  std::vector<double> few;
  std::vector<double> many;
  LocalExecutor two(context.get_executor(), pool_of(2, outstanding));
  LocalExecutor sixty_four(context.get_executor(), pool_of(64, outstanding));
  for (int i = -1; i < effort.rounds; ++i) {
    const double of_two = seconds_of(context, two, tasks, outstanding, add_one, 1);
    const double of_many = seconds_of(context, sixty_four, tasks, outstanding, add_one, 1);
    if (i < 0) continue;
    few.push_back(of_two);
    many.push_back(of_many);
  }
  const double per_task = 1e6 / static_cast<double>(tasks);
  report.row(fmt::format("{} outstanding, 64 workers / 2 workers", outstanding), median_ratio(many, few), Better::lower,
             2, "×", fmt::format("{:.3f} µs; {:.3f} µs per task", median(many) * per_task, median(few) * per_task));
}

struct Memory {
  double own = 0;  // bytes that nobody else has
  double pss = 0;  // and its share of what others have, too
};

inline Memory memory_of(const std::string& process) {
  std::ifstream file("/proc/" + process + "/smaps_rollup");
  Memory memory;
  bool found = false;
  for (std::string line; std::getline(file, line);) {
    const auto kib = [&line] { return std::stod(line.substr(line.find(':') + 1)) * 1024; };
    if (line.rfind("Private_Clean:", 0) == 0 || line.rfind("Private_Dirty:", 0) == 0) memory.own += kib();
    if (line.rfind("Pss:", 0) == 0) {
      memory.pss = kib();
      found = true;
    }
  }
  if (!found) throw std::runtime_error("cannot read what memory process " + process + " has");
  return memory;
}

// This process, and all that have come from it.
inline std::vector<std::string> family() {
  std::multimap<std::string, std::string> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string pid = entry.path().filename().string();
    std::ifstream file(entry.path() / "stat");
    std::string text;
    if (!std::isdigit(static_cast<unsigned char>(pid[0])) || !std::getline(file, text)) continue;
    // proc(5): the name, which may have anything in it, is in parentheses; state and parent follow.
    std::istringstream rest(text.substr(text.rfind(')') + 1));
    std::string state;
    std::string parent;
    if (rest >> state >> parent) children.emplace(parent, pid);
  }
  std::vector<std::string> all{std::to_string(::getpid())};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto [begin, end] = children.equal_range(all[i]);
    for (auto child = begin; child != end; ++child) all.push_back(child->second);
  }
  return all;
}

// Whether it is as little as it is to be, which does not depend on what else the machine does.
inline bool measure_memory(asio::io_context& context, Report& report) {
  constexpr unsigned kWorkers = 64;
  constexpr double kMiB = 1 << 20;
  LocalExecutor pool(context.get_executor(), pool_of(kWorkers, 1000));
  // Each has had a task.
  while (pool.worker_pids().size() < kWorkers) context.run_for(std::chrono::milliseconds(1));
  seconds_of(context, pool, 50 * kWorkers, 4 * kWorkers, use_cpu, 100);
  double own = 0;
  for (const int pid : pool.worker_pids()) own += memory_of(std::to_string(pid)).own;
  const Memory host = memory_of("self");
  double together = 0;
  for (const std::string& process : family()) together += memory_of(process).pss;
  const bool worker = report.row("memory of an idle worker's own", own / kWorkers / kMiB, Better::lower, 1, "MiB",
                                 "private pages, mean of 64");
  const bool host_met = report.row("memory of a host with 64 idle workers", together / kMiB, Better::lower, 64, "MiB",
                                   fmt::format("PSS of all processes; the host alone {:.1f} MiB", host.pss / kMiB));
  return worker && host_met;
}

inline void measure_first_result(asio::io_context& context, Report& report, const Effort& effort) {
  std::vector<double> ms;
  for (int i = 0; i < 5 * effort.rounds; ++i) {
    const auto begin = Clock::now();
    LocalExecutor pool(context.get_executor(), pool_of(2, 1000));
    seconds_of(context, pool, 1, 1, add_one, 1);
    ms.push_back(Seconds(Clock::now() - begin).count() * 1e3);
  }
  report.row("first result of a new pool of 2 workers", median(ms), Better::lower, 3, "ms",
             fmt::format("p90 {:.2f} ms", quantile(ms, 0.9)));
}

}  // namespace bulkhead::bench
