// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "bench/measure.hpp"

#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What a hop to another process costs, beside a hop to a thread: LocalExecutor with one worker against
// asio::thread_pool with one thread, in the same process and run. A slot runs one task after another; as many slots as
// tasks in flight. Both come in two forms, of which the thread pool's are the leanest code that we know:
//   pool coroutine    co_await post(bind_executor(pool, use_awaitable)), the function, co_await post(use_awaitable)
//   pool callback     post(pool, [] { the function; post(context, [] { next }) })
//   local coroutine   co_await executor.submit(function, x)
//   local callback    executor.async_submit(call(function, x), [](error, result) { next })
// Each side is represented by its faster form. CPU time is that of this process and of the worker.
namespace bulkhead::bench {

namespace asio = boost::asio;

inline int add_one(int x) { return x + 1; }

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

inline void ended(Round& round, const std::exception_ptr& error) {
  round.ended();
  if (error) std::rethrow_exception(error);
}

inline asio::awaitable<void> local_slot(Round& round, LocalExecutor& executor) {
  while (round.take()) round.sum += static_cast<std::uint64_t>(co_await executor.submit(add_one, 1));
}

inline void start_local_callback(Round& round, LocalExecutor& executor) {
  if (!round.take()) return round.ended();
  executor.async_submit(call(add_one, 1), [&](std::exception_ptr error, int result) {
    if (error) return bench::ended(round, error);
    round.sum += static_cast<std::uint64_t>(result);
    start_local_callback(round, executor);
  });
}

// Executors with their own types are leaner than any_io_executor.
using IoExecutorType = asio::io_context::executor_type;
using PoolExecutorType = asio::thread_pool::executor_type;

inline asio::awaitable<void, IoExecutorType> pool_slot(Round& round, PoolExecutorType pool) {
  constexpr asio::use_awaitable_t<IoExecutorType> use_awaitable;
  while (round.take()) {
    co_await asio::post(asio::bind_executor(pool, use_awaitable));
    const int result = add_one(1);
    co_await asio::post(use_awaitable);
    round.sum += static_cast<std::uint64_t>(result);
  }
}

inline void start_pool_callback(Round& round, PoolExecutorType pool) {
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
inline constexpr std::array<std::string_view, peers> kPeerNames = {"local coroutine", "local callback",
                                                                   "pool coroutine", "pool callback"};
inline bool is_local(std::size_t peer) { return peer == local_coroutine || peer == local_callback; }

struct Cost {
  double us_per_task;
  double cpu_us_per_task;  // the same number as CPU seconds per million tasks
};

struct HopFigures {
  std::size_t in_flight = 0;
  std::array<Cost, peers> cost{};

  // How many times faster LocalExecutor is, and what share of a thread pool's CPU time it takes.
  double times_faster = 0;
  double cpu_share = 0;

  const Cost& local() const { return faster_of(cost, local_coroutine, local_callback); }
  const Cost& pool() const { return faster_of(cost, pool_coroutine, pool_callback); }
  std::string text() const {
    return fmt::format("{:.3f} µs; thread_pool {:.3f} µs", local().us_per_task, pool().us_per_task);
  }

  static const Cost& faster_of(const std::array<Cost, peers>& cost, Peer one, Peer other) {
    return cost[one].us_per_task < cost[other].us_per_task ? cost[one] : cost[other];
  }
};

class HopBench {
 public:
  HopBench(asio::io_context& context, LocalExecutor& executor, Effort effort)
      : context_(context), executor_(executor), effort_(effort) {}
  ~HopBench() { pool_.join(); }
  HopBench(const HopBench&) = delete;
  HopBench& operator=(const HopBench&) = delete;

  HopFigures measure(std::size_t in_flight) {
    std::array<std::uint64_t, peers> tasks{};
    for (std::size_t peer = 0; peer < peers; ++peer) tasks[peer] = tasks_per_round(static_cast<Peer>(peer), in_flight);
    std::array<std::vector<double>, peers> us;
    std::array<std::vector<double>, peers> cpu_us;
    std::array<std::vector<double>, 2> fastest;  // of LocalExecutor, and of the pool
    std::array<std::vector<double>, 2> fastest_cpu;
    for (int i = 0; i < effort_.rounds; ++i) {
      std::array<Cost, peers> cost{};
      for (std::size_t peer = 0; peer < peers; ++peer) {
        // Once before, unmeasured: who has slept for some time may be woken on the other's CPU, and a kernel takes some
        // 50 ms to notice.
        run(static_cast<Peer>(peer), in_flight, tasks[peer]);
        cost[peer] = run(static_cast<Peer>(peer), in_flight, tasks[peer]);
        us[peer].push_back(cost[peer].us_per_task);
        cpu_us[peer].push_back(cost[peer].cpu_us_per_task);
      }
      const Cost& local = HopFigures::faster_of(cost, local_coroutine, local_callback);
      const Cost& pool = HopFigures::faster_of(cost, pool_coroutine, pool_callback);
      fastest[0].push_back(local.us_per_task);
      fastest[1].push_back(pool.us_per_task);
      fastest_cpu[0].push_back(local.cpu_us_per_task);
      fastest_cpu[1].push_back(pool.cpu_us_per_task);
    }
    HopFigures figures;
    figures.times_faster = median_ratio(fastest[1], fastest[0]);
    figures.cpu_share = median_ratio(fastest_cpu[0], fastest_cpu[1]);
    figures.in_flight = in_flight;
    for (std::size_t peer = 0; peer < peers; ++peer) figures.cost[peer] = {median(us[peer]), median(cpu_us[peer])};
    return figures;
  }

  // Times of single round trips, in microseconds, one after the other; `busy`: while another handler takes half of the
  // event loop's time. Of how much it was then, `busy_share` tells.
  std::vector<double> round_trips(Peer peer, std::size_t number, bool busy) {
    std::vector<double> us;
    us.reserve(number);
    over_ = false;
    context_.restart();
    if (busy) asio::co_spawn(context_, take_half(), [](std::exception_ptr) {});
    auto work = asio::make_work_guard(context_);
    asio::co_spawn(context_, trips(peer, number, us), [&](std::exception_ptr error) {
      over_ = true;
      work.reset();
      if (error) std::rethrow_exception(error);
    });
    context_.run();  // until the other handler is over, too
    return us;
  }

  double busy_share() const noexcept { return busy_share_; }

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
    for (std::size_t i = 0; i < in_flight; ++i) start(peer, round);
    context_.run();
    const Seconds wall = Clock::now() - begin;
    const double cpu = cpu_time(workers) - cpu_before;
    if (round.running != 0 || round.sum != 2 * tasks) throw std::runtime_error("a task was lost, or ran twice");
    const double million = static_cast<double>(tasks) / 1e6;
    return {wall.count() / million, cpu / million};
  }

  void start(Peer peer, Round& round) {
    const auto end = [&round](std::exception_ptr error) { ended(round, error); };
    switch (peer) {
      case local_coroutine:
        asio::co_spawn(context_, local_slot(round, executor_), end);
        break;
      case local_callback:
        start_local_callback(round, executor_);
        break;
      case pool_coroutine:
        asio::co_spawn(context_.get_executor(), pool_slot(round, pool_.get_executor()), end);
        break;
      default:
        start_pool_callback(round, pool_.get_executor());
    }
  }

  asio::awaitable<void> trips(Peer peer, std::size_t number, std::vector<double>& us) {
    // Some to warm up.
    for (std::size_t i = 0; i < number + number / 10; ++i) {
      const auto begin = Clock::now();
      if (is_local(peer)) {
        co_await executor_.submit(add_one, 1);
      } else {
        co_await asio::post(asio::bind_executor(pool_, asio::use_awaitable));
        co_await asio::post(context_, asio::use_awaitable);
      }
      if (i >= number / 10) us.push_back(Seconds(Clock::now() - begin).count() * 1e6);
    }
  }

  // Takes as long as it has been away, however late its timer was.
  asio::awaitable<void> take_half() {
    constexpr Clock::duration kSlice = std::chrono::microseconds(50);
    // When the whole machine was away nothing is to be made up for.
    constexpr Clock::duration kMost = std::chrono::milliseconds(1);
    asio::steady_timer timer(context_);
    Clock::duration busy{0};
    const auto first = Clock::now();
    auto away_since = first - kSlice;
    while (!over_) {
      const auto begin = Clock::now();
      const auto end = begin + std::min(begin - away_since, kMost);
      while (Clock::now() < end) {
      }
      away_since = Clock::now();
      busy += away_since - begin;
      timer.expires_after(kSlice);
      co_await timer.async_wait(asio::use_awaitable);
    }
    busy_share_ = Seconds(busy) / (Clock::now() - first);
  }

  asio::io_context& context_;
  LocalExecutor& executor_;
  Effort effort_;
  bool over_ = false;
  double busy_share_ = 0;
  asio::thread_pool pool_{1};
};

}  // namespace bulkhead::bench
