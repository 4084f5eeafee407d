// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <fmt/format.h>

#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// What the benchmarks measure with, and how they tell.
namespace bulkhead::bench {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

/// How long a round is to last, and how many there are. Peers take turns in them, so that the machine's other work hits
/// all of them, and are compared in each.
struct Effort {
  Seconds round{0.1};
  int rounds = 9;
  bool quick = false;
};
inline Effort quick_effort() { return {Seconds(0.003), 1, true}; }

inline double quantile(std::vector<double> values, double q) {
  if (values.empty()) throw std::runtime_error("nothing was measured");
  std::sort(values.begin(), values.end());
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<std::size_t>(q * last + 0.5)];
}
inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }
/// Of the rounds' ratios, each of two figures that were measured one after the other. (A virtual machine's CPUs may
/// share a cache in this round and none in the next, which makes both three times as large: medians of each side could
/// be of different rounds.)
inline double median_ratio(const std::vector<double>& figures, const std::vector<double>& peers) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < figures.size(); ++i) ratios.push_back(figures[i] / peers.at(i));
  return median(std::move(ratios));
}

inline double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}
inline double seconds(clockid_t clock) {
  timespec time{};
  if (::clock_gettime(clock, &time) != 0) throw std::runtime_error("cannot read a clock");
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

/// CPU time of this process, all threads, and of the processes given; in seconds.
inline double cpu_time(const std::vector<int>& processes) {
  rusage self{};
  if (::getrusage(RUSAGE_SELF, &self) != 0) throw std::runtime_error("cannot read this process's CPU time");
  double sum = seconds(self.ru_utime) + seconds(self.ru_stime);
  for (const int pid : processes) {
    clockid_t clock{};
    if (::clock_getcpuclockid(pid, &clock) != 0) throw std::runtime_error("a worker has no CPU time: has it died?");
    sum += seconds(clock);
  }
  return sum;
}

/// Microseconds for one of so many calls.
template <class F>
double us_per_call(std::uint64_t calls, F f) {
  const auto begin = Clock::now();
  for (std::uint64_t i = 0; i < calls; ++i) f();
  return Seconds(Clock::now() - begin).count() / static_cast<double>(calls) * 1e6;
}

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
  std::string text() const { return fmt::format("{}, {} CPUs, {}", cpu, cpus, system); }
};

enum class Better { higher, lower };

/// The table of what is to be reached, a line for each measure, and curves for plots.
class Report {
 public:
  /// `figure` is to be at least, or at most, `target`. `beside`: what it was made of. Whether it is.
  bool row(const std::string& measure, double figure, Better better, double target, const std::string& unit,
           const std::string& beside) {
    const bool met = better == Better::higher ? figure >= target : figure <= target;
    rows_.push_back({measure, figure, better, target, unit, beside, met});
    fmt::print("{:<62} {:>9} {:>2} {:>8}  {:<6}  {}\n", measure, text(figure, unit),
               better == Better::higher ? "≥" : "≤", text(target, unit), met ? "met" : "MISSED", beside);
    std::fflush(stdout);
    return met;
  }
  static void head() {
    fmt::print("{:<62} {:>9}    {:>8}  {:<6}  {}\n", "measure", "figure", "target", "", "measured");
  }
  void curve(const std::string& plot, const std::string& name, std::vector<std::pair<double, double>> points) {
    curves_.push_back({plot, name, std::move(points)});
  }

  void write_json(const std::string& path, const Machine& machine) const {
    std::string json = fmt::format("{{\n  \"machine\": {},\n  \"rows\": [\n", quoted(machine.text()));
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Row& row = rows_[i];
      json += fmt::format(
          "    {{\"measure\": {}, \"figure\": {:.6g}, \"unit\": {}, \"better\": \"{}\", \"target\": {:.6g}, \"met\": "
          "{}, "
          "\"measured\": {}}}{}\n",
          quoted(row.measure), row.figure, quoted(row.unit), row.better == Better::higher ? "higher" : "lower",
          row.target, row.met, quoted(row.beside), i + 1 < rows_.size() ? "," : "");
    }
    json += "  ],\n  \"curves\": [\n";
    for (std::size_t i = 0; i < curves_.size(); ++i) {
      json += fmt::format("    {{\"plot\": {}, \"name\": {}, \"points\": [", quoted(curves_[i].plot),
                          quoted(curves_[i].name));
      for (std::size_t k = 0; k < curves_[i].points.size(); ++k) {
        json += fmt::format("{}[{:.6g}, {:.6g}]", k > 0 ? ", " : "", curves_[i].points[k].first,
                            curves_[i].points[k].second);
      }
      json += fmt::format("]}}{}\n", i + 1 < curves_.size() ? "," : "");
    }
    json += "  ]\n}\n";
    std::ofstream file(path);
    file << json << std::flush;
    if (!file) throw std::runtime_error("cannot write " + path);
  }

 private:
  struct Row {
    std::string measure;
    double figure;
    Better better;
    double target;
    std::string unit;
    std::string beside;
    bool met;
  };
  struct Curve {
    std::string plot;
    std::string name;
    std::vector<std::pair<double, double>> points;
  };

  static std::string text(double value, const std::string& unit) {
    return fmt::format("{:.{}f}{}{}", value, value < 10 ? 2 : value < 100 ? 1 : 0, unit == "×" ? "" : " ", unit);
  }
  static std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') result += '\\';
      result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return result + '"';
  }

  std::vector<Row> rows_;
  std::vector<Curve> curves_;
};

struct Arguments {
  bool quick = false;
  std::string json;
};

inline std::optional<Arguments> parse(std::span<char*> words) {
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

}  // namespace bulkhead::bench
