// SPDX-License-Identifier: BSL-1.0
// What a hop to another process costs, beside a hop to a thread, and an echo of bytes beside a copy of them.
//
//   bench_hop [--quick] [--json FILE]
//
// Hops: LocalExecutor with one worker against asio::thread_pool with one thread, in the same process and run. A slot
// runs one task after another; as many slots as tasks in flight. Both come in two forms, of which the thread pool's are
// the leanest code that we know:
//   pool coroutine    co_await post(bind_executor(pool, use_awaitable)), the function, co_await post(use_awaitable)
//   pool callback     post(pool, [] { the function; post(context, [] { next }) })
//   local coroutine   co_await executor.submit(function, x)
//   local callback    executor.async_submit(call(function, x), [](error, result) { next })
// Each form of LocalExecutor is compared with the faster one of the pool. The peers take turns in short rounds, so that
// the machine's other work hits all of them, and medians are printed. CPU time is that of this process and of the
// worker.
//
// Echo: a std::vector<std::byte> is moved into a task and comes back as its result; "view" takes it as a
// std::span, which the worker sees in place. Beside it, memcpy of the same size into memory in use, and a new vector
// made from it, which has to take its memory from the system if it is large.
#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
using Bytes = std::vector<std::byte>;

constexpr std::size_t kInFlight[] = {1, 16, 256, 1024};
constexpr std::size_t kEchoSizes[] = {std::size_t{1} << 10, std::size_t{64} << 10, std::size_t{1} << 20,
                                      std::size_t{64} << 20};

int add_one(int x) { return x + 1; }
Bytes echo(Bytes bytes) { return bytes; }
Bytes echo_view(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

// How long and how often to measure.
struct Effort {
  Seconds round;
  int rounds;
};
constexpr Effort kFull{Seconds(0.1), 9};
constexpr Effort kQuick{Seconds(0.003), 1};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

// CPU time of this process, all threads, and of the processes given; in seconds.
double cpu_time(const std::vector<int>& workers) {
  rusage self{};
  if (::getrusage(RUSAGE_SELF, &self) != 0) throw std::runtime_error("cannot read this process's CPU time");
  double sum = seconds(self.ru_utime) + seconds(self.ru_stime);
  for (const int pid : workers) {
    clockid_t clock{};
    timespec time{};
    if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) {
      throw std::runtime_error("cannot read a worker's CPU time: has it died?");
    }
    sum += static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
  }
  return sum;
}

// The slots of one round: each takes tasks until none is left; the last one to end stops the context.
struct Round {
  asio::io_context& context;
  std::uint64_t left;
  std::uint64_t sum = 0;
  std::size_t running = 0;

  bool take() { return left != 0 && left-- != 0; }
  void ended() {
    if (--running == 0) context.stop();
  }
};

void ended(Round& round, const std::exception_ptr& error) {
  round.ended();
  if (error) std::rethrow_exception(error);
}

asio::awaitable<void> local_slot(Round& round, bulkhead::LocalExecutor& executor) {
  while (round.take()) round.sum += static_cast<std::uint64_t>(co_await executor.submit(add_one, 1));
}

void start_local_coroutine(Round& round, bulkhead::LocalExecutor& executor) {
  asio::co_spawn(round.context, local_slot(round, executor), [&](std::exception_ptr error) { ended(round, error); });
}

void start_local_callback(Round& round, bulkhead::LocalExecutor& executor) {
  if (!round.take()) return round.ended();
  executor.async_submit(bulkhead::call(add_one, 1), [&](std::exception_ptr error, int result) {
    if (error) return ended(round, error);
    round.sum += static_cast<std::uint64_t>(result);
    start_local_callback(round, executor);
  });
}

// Executors with their own types are leaner than any_io_executor.
using IoExecutor = asio::io_context::executor_type;
using PoolExecutor = asio::thread_pool::executor_type;

asio::awaitable<void, IoExecutor> pool_slot(Round& round, PoolExecutor pool) {
  constexpr asio::use_awaitable_t<IoExecutor> use_awaitable;
  while (round.take()) {
    co_await asio::post(asio::bind_executor(pool, use_awaitable));
    const int result = add_one(1);
    co_await asio::post(use_awaitable);
    round.sum += static_cast<std::uint64_t>(result);
  }
}

void start_pool_coroutine(Round& round, PoolExecutor pool) {
  asio::co_spawn(round.context.get_executor(), pool_slot(round, pool),
                 [&](std::exception_ptr error) { ended(round, error); });
}

void start_pool_callback(Round& round, PoolExecutor pool) {
  if (!round.take()) return round.ended();
  asio::post(pool, [&round, pool] {
    const int result = add_one(1);
    asio::post(round.context.get_executor(), [&round, pool, result] {
      round.sum += static_cast<std::uint64_t>(result);
      start_pool_callback(round, pool);
    });
  });
}

enum Peer : std::size_t { local_coroutine, local_callback, pool_coroutine, pool_callback, peers };
constexpr std::array<std::string_view, peers> kPeerNames = {"local coroutine", "local callback", "pool coroutine",
                                                            "pool callback"};
bool is_local(std::size_t peer) { return peer == local_coroutine || peer == local_callback; }

struct Cost {
  double us_per_task;
  double cpu_us_per_task;  // the same number as CPU seconds per million tasks
};

struct HopFigures {
  std::size_t in_flight = 0;
  std::array<Cost, peers> cost{};

  double pool_us() const { return std::min(cost[pool_coroutine].us_per_task, cost[pool_callback].us_per_task); }
  // Above 1: LocalExecutor is the faster one.
  double ratio(std::size_t peer) const { return pool_us() / cost[peer].us_per_task; }
};

class HopBench {
 public:
  HopBench(asio::io_context& context, bulkhead::LocalExecutor& executor, Effort effort)
      : context_(context), executor_(executor), effort_(effort) {}
  ~HopBench() { pool_.join(); }
  HopBench(const HopBench&) = delete;
  HopBench& operator=(const HopBench&) = delete;

  HopFigures measure(std::size_t in_flight) {
    std::array<std::uint64_t, peers> tasks{};
    for (std::size_t peer = 0; peer < peers; ++peer) tasks[peer] = tasks_per_round(static_cast<Peer>(peer), in_flight);
    std::array<std::vector<double>, peers> us;
    std::array<std::vector<double>, peers> cpu_us;
    for (int i = 0; i < effort_.rounds; ++i) {
      for (std::size_t peer = 0; peer < peers; ++peer) {
        const Cost cost = run(static_cast<Peer>(peer), in_flight, tasks[peer]);
        us[peer].push_back(cost.us_per_task);
        cpu_us[peer].push_back(cost.cpu_us_per_task);
      }
    }
    HopFigures figures;
    figures.in_flight = in_flight;
    for (std::size_t peer = 0; peer < peers; ++peer) figures.cost[peer] = {median(us[peer]), median(cpu_us[peer])};
    return figures;
  }

 private:
  // As many as fill a round; the runs that find it out warm everything up, too.
  std::uint64_t tasks_per_round(Peer peer, std::size_t in_flight) {
    for (std::uint64_t tasks = 4 * in_flight;; tasks *= 4) {
      const double us = run(peer, in_flight, tasks).us_per_task;
      const Seconds taken(us * 1e-6 * static_cast<double>(tasks));
      if (taken * 5 < effort_.round) continue;
      return std::max<std::uint64_t>(in_flight, static_cast<std::uint64_t>(effort_.round.count() / (us * 1e-6)));
    }
  }

  Cost run(Peer peer, std::size_t in_flight, std::uint64_t tasks) {
    const std::vector<int> workers = is_local(peer) ? executor_.worker_pids() : std::vector<int>{};
    Round round{context_, tasks};
    context_.restart();
    const auto work = asio::make_work_guard(context_);  // callbacks keep no work while they are in the pool
    const double cpu_before = cpu_time(workers);
    const auto begin = Clock::now();
    round.running = in_flight;
    for (std::size_t i = 0; i < in_flight; ++i) {
      if (peer == local_coroutine) start_local_coroutine(round, executor_);
      if (peer == local_callback) start_local_callback(round, executor_);
      if (peer == pool_coroutine) start_pool_coroutine(round, pool_.get_executor());
      if (peer == pool_callback) start_pool_callback(round, pool_.get_executor());
    }
    context_.run();
    const Seconds wall = Clock::now() - begin;
    const double cpu = cpu_time(workers) - cpu_before;
    if (round.running != 0 || round.sum != 2 * tasks) throw std::runtime_error("a task was lost, or ran twice");
    const double million = static_cast<double>(tasks) / 1e6;
    return {wall.count() / million, cpu / million};
  }

  asio::io_context& context_;
  bulkhead::LocalExecutor& executor_;
  Effort effort_;
  asio::thread_pool pool_{1};
};

struct EchoFigures {
  std::size_t size = 0;
  double echo_us = 0;
  double view_us = 0;
  double memcpy_us = 0;
  double new_vector_us = 0;
};

asio::awaitable<void> echo_slot(Round& round, bulkhead::LocalExecutor& executor, Bytes& bytes, bool view) {
  while (round.take()) {
    if (view) {
      bytes = co_await executor.submit(echo_view, std::move(bytes));
    } else {
      bytes = co_await executor.submit(echo, std::move(bytes));
    }
  }
}

class EchoBench {
 public:
  EchoBench(asio::io_context& context, bulkhead::LocalExecutor& executor, Effort effort)
      : context_(context), executor_(executor), effort_(effort) {}

  EchoFigures measure(std::size_t size) {
    Bytes bytes(size, std::byte{0x5a});
    Bytes target(size);
    std::array<std::vector<double>, 4> us;
    // Large echoes take longer than a round, and are noisy at their first touches of memory: once for nothing.
    std::uint64_t times = 1;
    std::optional<Seconds> one;
    for (int i = -1; i < effort_.rounds; ++i) {
      us[0].push_back(echoes(bytes, times, false));
      us[1].push_back(echoes(bytes, times, true));
      us[2].push_back(per_time(times, [&] { copy(target, bytes); }));
      us[3].push_back(per_time(times, [&] { keep(Bytes(bytes)); }));
      if (!one) {
        one = Seconds(us[0].back() * 1e-6);
        times = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(effort_.round / 4 / *one));
        for (auto& values : us) values.clear();
      }
    }
    if (bytes != Bytes(size, std::byte{0x5a})) throw std::runtime_error("an echo changed its bytes");
    return {size, median(us[0]), median(us[1]), median(us[2]), median(us[3])};
  }

 private:
  // Keeps the compiler from leaving out what nobody looks at.
  static void keep(const Bytes& bytes) { asm volatile("" : : "r"(bytes.data()) : "memory"); }
  static void copy(Bytes& to, const Bytes& from) {
    std::memcpy(to.data(), from.data(), from.size());
    keep(to);
  }

  template <class F>
  static double per_time(std::uint64_t times, F f) {
    const auto begin = Clock::now();
    for (std::uint64_t i = 0; i < times; ++i) f();
    return Seconds(Clock::now() - begin).count() / static_cast<double>(times) * 1e6;
  }

  double echoes(Bytes& bytes, std::uint64_t times, bool view) {
    Round round{context_, times};
    round.running = 1;
    context_.restart();
    asio::co_spawn(context_, echo_slot(round, executor_, bytes, view), [&](std::exception_ptr e) { ended(round, e); });
    return per_time(1, [&] { context_.run(); }) / static_cast<double>(times);
  }

  asio::io_context& context_;
  bulkhead::LocalExecutor& executor_;
  Effort effort_;
};

struct Machine {
  std::string cpu = "unknown CPU";
  int cpus = 0;
  std::string system;

  Machine() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
      const std::size_t colon = line.find(": ");
      if (line.rfind("model name", 0) != 0 || colon == std::string::npos) continue;
      cpu = line.substr(colon + 2);
      break;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    if (::sched_getaffinity(0, sizeof(set), &set) == 0) cpus = CPU_COUNT(&set);
    utsname name{};
    if (::uname(&name) == 0) system = fmt::format("{} {}, {}", name.sysname, name.release, name.machine);
  }
};

std::string size_name(std::size_t size) {
  return size >= (std::size_t{1} << 20) ? fmt::format("{} MiB", size >> 20) : fmt::format("{} KiB", size >> 10);
}

void print_hop_header() {
  fmt::print("{:>9}  {:<15}  {:>9}  {:>11}  {:>16}  {:>19}\n", "in flight", "", "µs/task", "tasks/s",
             "CPU s/10^6 tasks", "faster pool / local");
}

void print(const HopFigures& hop) {
  for (std::size_t peer = 0; peer < peers; ++peer) {
    const Cost& cost = hop.cost[peer];
    fmt::print("{:>9}  {:<15}  {:>9.3f}  {:>11.0f}  {:>16.3f}", hop.in_flight, kPeerNames[peer], cost.us_per_task,
               1e6 / cost.us_per_task, cost.cpu_us_per_task);
    if (is_local(peer)) fmt::print("  {:>19.2f}", hop.ratio(peer));
    fmt::print("\n");
  }
  std::fflush(stdout);
}

void print_echo_header() {
  fmt::print("\n{:>9}  {:>14}  {:>14}  {:>14}  {:>14}  {:>15}\n", "size", "echo µs", "echo view µs", "memcpy µs",
             "new vector µs", "echo / memcpy");
}

void print(const EchoFigures& echo) {
  fmt::print("{:>9}  {:>14.1f}  {:>14.1f}  {:>14.2f}  {:>14.2f}  {:>15.1f}\n", size_name(echo.size), echo.echo_us,
             echo.view_us, echo.memcpy_us, echo.new_vector_us, echo.echo_us / echo.memcpy_us);
  std::fflush(stdout);
}

std::string json_string(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return quoted + '"';
}

void write_json(const std::string& path, const Machine& machine, const std::vector<HopFigures>& hops,
                const std::vector<EchoFigures>& echoes) {
  std::string text = fmt::format("{{\n  \"cpu\": {},\n  \"cpus\": {},\n  \"system\": {},\n  \"hops\": [\n",
                                 json_string(machine.cpu), machine.cpus, json_string(machine.system));
  for (std::size_t i = 0; i < hops.size(); ++i) {
    text += fmt::format("    {{\"in_flight\": {}, \"ratio\": {{\"coroutine\": {:.4f}, \"callback\": {:.4f}}}",
                        hops[i].in_flight, hops[i].ratio(local_coroutine), hops[i].ratio(local_callback));
    for (std::size_t peer = 0; peer < peers; ++peer) {
      const Cost& cost = hops[i].cost[peer];
      text += fmt::format(", {}: {{\"us_per_task\": {:.4f}, \"tasks_per_s\": {:.0f}, \"cpu_s_per_million\": {:.4f}}}",
                          json_string(std::string(kPeerNames[peer])), cost.us_per_task, 1e6 / cost.us_per_task,
                          cost.cpu_us_per_task);
    }
    text += i + 1 < hops.size() ? "},\n" : "}\n";
  }
  text += "  ],\n  \"echoes\": [\n";
  for (std::size_t i = 0; i < echoes.size(); ++i) {
    const EchoFigures& echo = echoes[i];
    text += fmt::format(
        "    {{\"bytes\": {}, \"echo_us\": {:.3f}, \"view_us\": {:.3f}, \"memcpy_us\": {:.3f}, "
        "\"new_vector_us\": {:.3f}}}",
        echo.size, echo.echo_us, echo.view_us, echo.memcpy_us, echo.new_vector_us);
    text += i + 1 < echoes.size() ? ",\n" : "\n";
  }
  text += "  ]\n}\n";
  std::ofstream file(path);
  file << text << std::flush;
  if (!file) throw std::runtime_error("cannot write " + path);
}

struct Arguments {
  bool quick = false;
  std::string json;
};

std::optional<Arguments> parse(std::span<char*> words) {
  Arguments arguments;
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (word == "--quick") {
      arguments.quick = true;
    } else if (word == "--json" && i + 1 < words.size()) {
      arguments.json = words[++i];
    } else {
      return std::nullopt;
    }
  }
  return arguments;
}

void run(const Arguments& arguments) {
  const Effort effort = arguments.quick ? kQuick : kFull;
  asio::io_context context(1);
  bulkhead::LocalExecutorOptions options;
  options.max_workers = 1;
  options.max_pending = *std::max_element(std::begin(kInFlight), std::end(kInFlight));
  bulkhead::LocalExecutor executor(context.get_executor(), options);

  const Machine machine;
  fmt::print("{}, {} CPUs, {}\n\n", machine.cpu, machine.cpus, machine.system);
  std::vector<HopFigures> hops;
  print_hop_header();
  {
    HopBench bench(context, executor, effort);
    for (const std::size_t in_flight : kInFlight) print(hops.emplace_back(bench.measure(in_flight)));
  }
  std::vector<EchoFigures> echoes;
  print_echo_header();
  EchoBench bench(context, executor, effort);
  for (const std::size_t size : kEchoSizes) print(echoes.emplace_back(bench.measure(size)));
  if (!arguments.json.empty()) write_json(arguments.json, machine, hops, echoes);
}

}  // namespace

int main(int argc, char** argv) {
  bulkhead::start_fork_server();
  const auto arguments = parse({argv, static_cast<std::size_t>(argc)});
  if (!arguments) {
    fmt::print(stderr, "usage: {} [--quick] [--json FILE]\n", argv[0]);
    return EXIT_FAILURE;
  }
  try {
    run(*arguments);
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return EXIT_FAILURE;
  }
}
