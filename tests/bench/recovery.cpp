// SPDX-License-Identifier: BSL-1.0
// How fast a pool is whole again, how exactly time limits are kept, and what starting workers costs the event loop.
//
//   bench_recovery [--quick]
//
// Served again: a worker is killed by SIGKILL while it has nothing to do, and a task is submitted the same moment. The
// time is from the kill to the task's result, without a spare worker and with one. Its peer is the least that a new
// process can cost: this program, while it is small and has one thread, forks a child that writes a byte into a pipe.
// Told of the death: the same with a task in the worker; the time is from the kill to the task's error.
//
// Overrun: how long after the end of its timeout a caller is told that its task ran too long, for a task that spins,
// one that sleeps, and one that has stopped itself (SIGSTOP). Its peer is how late a steady_timer of this event loop
// fires.
//
// Stall: how late a timer of 0.1 ms fires at worst while 100 workers are started by a program with 1 GiB of resident
// memory. Its peers are the same without starting anything, and one fork() of that program.
#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::TaskOptions;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;
using Times = std::vector<double>;  // milliseconds

constexpr std::size_t kResident = std::size_t{1} << 30;

struct Board {
  std::atomic<std::int64_t> began{0};  // steady clock, nanoseconds
};
Board& board = *[] {
  void* page = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) throw std::bad_alloc();
  return new (page) Board;
}();

void note_begin() { board.began = Clock::now().time_since_epoch().count(); }

int give_back(int x) { return x; }
int spin(int x) {
  note_begin();
  volatile int turns = x;
  for (;;) turns = turns + 1;
}
int sleep(int x) {
  note_begin();
  for (;;) ::usleep(1'000'000);
  return x;
}
int stop(int x) {
  note_begin();
  std::raise(SIGSTOP);
  return x;
}

double since(Clock::time_point begin) { return Milliseconds(Clock::now() - begin).count(); }

double quantile(Times times, double part) {
  std::sort(times.begin(), times.end());
  return times[std::min(times.size() - 1, static_cast<std::size_t>(part * static_cast<double>(times.size())))];
}

void print_row(std::string_view name, const Times& times, double peer = 0) {
  fmt::print("{:<34} {:>10.3f} {:>10.3f} {:>10.3f}", name, quantile(times, 0.5), quantile(times, 0.99),
             quantile(times, 1));
  if (peer > 0) fmt::print(" {:>12.2f}", quantile(times, 0.5) / peer);
  fmt::print("\n");
}

void print_head(std::string_view what) {
  fmt::print("\n{:<34} {:>10} {:>10} {:>10} {:>12}\n", what, "median ms", "p99 ms", "worst ms", "median/peer");
}

template <class T>
T run(asio::io_context& context, asio::awaitable<T> coroutine) {
  std::exception_ptr error;
  std::optional<T> result;
  asio::co_spawn(context, std::move(coroutine), [&](std::exception_ptr thrown, T value) {
    error = thrown;
    result.emplace(std::move(value));
  });
  context.restart();
  context.run();
  if (error) std::rethrow_exception(error);
  return std::move(*result);
}

// ---------------------------------------------------------------------------------------------------------------------

// A child that lives just long enough to be heard of.
double bare_fork() {
  int ends[2];
  if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
  const auto begin = Clock::now();
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(::write(ends[1], "x", 1) == 1 ? 0 : 1);
  }
  char byte;
  const bool heard = ::read(ends[0], &byte, 1) == 1;
  const double time = since(begin);
  ::waitpid(child, nullptr, 0);
  ::close(ends[0]);
  ::close(ends[1]);
  if (!heard) throw std::runtime_error("the child was not heard of");
  return time;
}

LocalExecutorOptions one_worker(unsigned spare) {
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.spare_workers = spare;
  return options;
}

asio::awaitable<Times> served_again(LocalExecutor& pool, int rounds) {
  Times times;
  asio::steady_timer timer(pool.get_executor());
  const auto whole = 1 + pool.options().spare_workers;
  for (int i = 0; i < rounds; ++i) {
    // All workers are there and idle again, the spare one, too.
    do {
      timer.expires_after(5ms);
      co_await timer.async_wait(asio::use_awaitable);
    } while (pool.worker_pids().size() != whole);
    co_await pool.submit(give_back, 0);
    if (pool.worker_pids().empty()) continue;  // it was just replaced
    const int victim = pool.worker_pids().front();
    const auto begin = Clock::now();
    ::kill(victim, SIGKILL);
    if (co_await pool.submit(give_back, i) != i) throw std::runtime_error("wrong result");
    times.push_back(since(begin));
  }
  co_return times;
}

asio::awaitable<Times> told_of_death(LocalExecutor& pool, int rounds) {
  Times times;
  for (int i = 0; i < rounds; ++i) {
    board.began = 0;
    const auto task = pool.spawn(sleep, 0);
    // It has begun, and its worker is known.
    asio::steady_timer timer(pool.get_executor());
    while (board.began == 0 || pool.worker_pids().empty()) {
      timer.expires_after(1ms);
      co_await timer.async_wait(asio::use_awaitable);
    }
    auto told = task.result();
    const auto killed = Clock::now();
    ::kill(pool.worker_pids().front(), SIGKILL);
    try {
      co_await std::move(told);
    } catch (const bulkhead::WorkerCrashedError&) {
      times.push_back(since(killed));
    }
  }
  co_return times;
}

asio::awaitable<Times> overruns(LocalExecutor& pool, int (*function)(int), int rounds) {
  constexpr auto kLimit = 20ms;
  Times times;
  for (int i = 0; i < rounds; ++i) {
    bool told = false;
    try {
      TaskOptions options;
      options.timeout(kLimit);
      co_await pool.submit(std::move(options), function, 0);
    } catch (const bulkhead::TaskTimeoutError&) {
      told = true;
    }
    if (!told) throw std::runtime_error("the task did not time out");
    const Clock::time_point end(std::chrono::nanoseconds(board.began) + kLimit);
    times.push_back(since(end));
  }
  co_return times;
}

asio::awaitable<Times> timer_lateness(asio::any_io_executor executor, int rounds) {
  Times times;
  asio::steady_timer timer(executor);
  for (int i = 0; i < rounds; ++i) {
    timer.expires_after(20ms);
    co_await timer.async_wait(asio::use_awaitable);
    times.push_back(since(timer.expiry()));
  }
  co_return times;
}

// How late a timer of 0.1 ms fires until `over` says so.
template <class Over>
asio::awaitable<Times> lateness(asio::any_io_executor executor, Over over) {
  Times times;
  asio::steady_timer timer(executor);
  while (!over()) {
    timer.expires_after(100us);
    co_await timer.async_wait(asio::use_awaitable);
    times.push_back(since(timer.expiry()));
  }
  co_return times;
}

void measure_stall(asio::io_context& context, bool quick) {
  const std::size_t resident = quick ? kResident / 64 : kResident;
  const unsigned workers = quick ? 10 : 100;
  auto* const memory =
      static_cast<std::byte*>(::mmap(nullptr, resident, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) throw std::bad_alloc();
  std::memset(memory, 1, resident);
  const auto quiet_end = Clock::now() + (quick ? 20ms : 500ms);
  const Times quiet = run(context, lateness(context.get_executor(), [&] { return Clock::now() > quiet_end; }));
  LocalExecutorOptions options;
  options.max_workers = workers;
  options.max_message_size = std::size_t{1} << 20;
  std::unique_ptr<LocalExecutor> pool;
  const auto begin = Clock::now();
  double constructor = 0;
  double started = 0;
  Times busy = run(context, lateness(context.get_executor(), [&] {
                     if (!pool) {
                       pool = std::make_unique<LocalExecutor>(context.get_executor(), options);
                       constructor = since(begin);
                     }
                     const bool all = pool->worker_pids().size() == workers;
                     if (all && started == 0) started = since(begin);
                     return all;
                   }));
  busy.push_back(constructor);  // nothing else of the loop runs meanwhile
  print_head(fmt::format("stall, {} MiB resident", resident >> 20));
  print_row("timer alone", quiet);
  print_row(fmt::format("while {} workers start", workers), busy, quantile(quiet, 0.5));
  fmt::print("{} workers were there after {:.1f} ms; the constructor took {:.3f} ms of it\n", workers, started,
             constructor);
  pool.reset();
  const auto fork_begin = Clock::now();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  fmt::print("one fork() of this program stalls it for {:.3f} ms\n", since(fork_begin));
  ::waitpid(child, nullptr, 0);
  ::munmap(memory, resident);
}

}  // namespace

int main(int argc, char** argv) try {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  const int rounds = quick ? 3 : 200;
  Times bare;
  for (int i = 0; i < rounds; ++i) bare.push_back(bare_fork());
  bulkhead::start_fork_server();
  asio::io_context context;
  print_head("served again after SIGKILL");
  print_row("bare fork, byte through a pipe", bare);
  const double fork_time = quantile(bare, 0.5);
  for (const unsigned spare : {0U, 1U}) {
    LocalExecutor pool(context.get_executor(), one_worker(spare));
    print_row(spare == 0 ? "without a spare worker" : "with a spare worker", run(context, served_again(pool, rounds)),
              fork_time);
  }
  {
    LocalExecutor pool(context.get_executor(), one_worker(0));
    print_row("told of the death", run(context, told_of_death(pool, rounds)), fork_time);
    print_head("overrun of a timeout of 20 ms");
    const Times timer = run(context, timer_lateness(context.get_executor(), rounds));
    const double peer = quantile(timer, 0.5);
    print_row("steady_timer of 20 ms", timer);
    print_row("a task that spins", run(context, overruns(pool, spin, rounds)), peer);
    print_row("a task that sleeps", run(context, overruns(pool, sleep, rounds)), peer);
    print_row("a task that has stopped itself", run(context, overruns(pool, stop, rounds)), peer);
  }
  measure_stall(context, quick);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "bench_recovery: {}\n", error.what());
  return 1;
}
