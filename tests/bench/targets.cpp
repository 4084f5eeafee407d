// SPDX-License-Identifier: BSL-1.0
// What the library is to reach, measured: a table with a line for each, and curves for plots.
//
//   bench_targets [--quick] [--json FILE]
//
// All are ratios to a peer in the same run, or absolute where there is no peer. `bench/run` draws the curves.
#include "bench/hops.hpp"
#include "bench/large_data.hpp"
#include "bench/measure.hpp"
#include "bench/pools.hpp"

#include <bulkhead/local_executor.hpp>

#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace bulkhead::bench;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::SpinPolicy;

constexpr std::array<std::size_t, 9> kInFlight = {1, 4, 16, 64, 256, 512, 1024, 2048, 4096};

LocalExecutorOptions one_worker(SpinPolicy spin) {
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.max_pending = kInFlight.back();
  options.spin = spin;
  return options;
}

using Curve = std::vector<std::pair<double, double>>;

// Microseconds over the percentile, as 1/(1-q): so the tail has room.
Curve percentiles(const std::vector<double>& us) {
  Curve curve;
  for (const double q : {0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999})
    curve.emplace_back(1 / (1 - q), quantile(us, q));
  return curve;
}

void measure_hops(asio::io_context& context, Report& report, const Effort& effort) {
  LocalExecutor executor(context.get_executor(), one_worker(SpinPolicy::automatic));
  HopBench bench(context, executor, effort);
  Curve ours;
  Curve pools;
  for (const std::size_t in_flight : kInFlight) {
    const HopFigures hop = bench.measure(in_flight);
    ours.emplace_back(static_cast<double>(in_flight), 1e6 / hop.local().us_per_task);
    pools.emplace_back(static_cast<double>(in_flight), 1e6 / hop.pool().us_per_task);
    if (in_flight == 1)
      report.row("round trip, one in flight: faster", hop.times_faster, Better::higher, 8, "×", hop.text());
    if (in_flight == 16 || in_flight == 256 || in_flight == 1024) {
      report.row(fmt::format("tasks/s with {} in flight: more", in_flight), hop.times_faster, Better::higher,
                 in_flight == 256 ? 2 : 1, "×", hop.text());
    }
    if (in_flight == 256) {
      report.row(
          "CPU time per task with 256 in flight", hop.cpu_share, Better::lower, 1, "×",
          fmt::format("{:.3f} µs; thread_pool {:.3f} µs", hop.local().cpu_us_per_task, hop.pool().cpu_us_per_task));
    }
  }
  report.curve("throughput", "LocalExecutor, one worker", std::move(ours));
  report.curve("throughput", "asio::thread_pool, one thread", std::move(pools));

  const std::size_t trips = effort.quick ? 200 : 20'000;
  report.curve("latency", "LocalExecutor", percentiles(bench.round_trips(local_coroutine, trips, false)));
  report.curve("latency", "asio::thread_pool", percentiles(bench.round_trips(pool_coroutine, trips, false)));
  const auto busy_trips = effort.quick ? trips : trips / 20;  // of each round
  std::vector<double> ours_p99;
  std::vector<double> pools_p99;
  std::vector<double> ours_share;
  std::vector<double> pools_share;
  for (int i = 0; i < effort.rounds; ++i) {
    ours_p99.push_back(quantile(bench.round_trips(local_coroutine, busy_trips, true), 0.99));
    ours_share.push_back(bench.busy_share());
    pools_p99.push_back(quantile(bench.round_trips(pool_coroutine, busy_trips, true), 0.99));
    pools_share.push_back(bench.busy_share());
  }
  report.row("p99 of the round trip while the loop is half busy", median_ratio(ours_p99, pools_p99), Better::lower, 1,
             "×",
             fmt::format("{:.0f} µs ({:.0f} % busy); thread_pool {:.0f} µs ({:.0f} %)", median(ours_p99),
                         100 * median(ours_share), median(pools_p99), 100 * median(pools_share)));
}

void measure_without_spinning(asio::io_context& context, Report& report, const Effort& effort) {
  LocalExecutor executor(context.get_executor(), one_worker(SpinPolicy::never));
  HopBench bench(context, executor, effort);
  const HopFigures hop = bench.measure(1);
  report.row("round trip, one in flight, spin = never: time", 1 / hop.times_faster, Better::lower, 1.3, "×",
             hop.text());
  const std::size_t trips = effort.quick ? 200 : 20'000;
  report.curve("latency", "LocalExecutor, spin = never", percentiles(bench.round_trips(local_coroutine, trips, false)));
}

// Whether what must be so on any machine, however busy, is.
bool run(const Arguments& arguments) {
  const Effort effort = arguments.quick ? quick_effort() : Effort();
  asio::io_context context(1);
  const Machine machine;
  Report report;
  fmt::print("{}\n\n", machine.text());
  Report::head();
  measure_hops(context, report, effort);
  measure_without_spinning(context, report, effort);
  LargeData(context, std::size_t{arguments.quick ? 1U : 64U} << 20, effort.rounds).measure(report);
  measure_two_workers(context, report, effort);
  measure_many_workers(context, report, effort);
  const bool met = measure_memory(context, report);
  measure_first_result(context, report, effort);
  if (!arguments.json.empty()) report.write_json(arguments.json, machine);
  return met;
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
    return run(*arguments) ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return EXIT_FAILURE;
  }
}
