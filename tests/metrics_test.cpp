// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/metrics.hpp>

#include "support/catch.hpp"

#include <boost/json/src.hpp>

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace std::chrono_literals;
using bulkhead::Metrics;
using Catch::Matchers::ContainsSubstring;
namespace json = boost::json;

// Every number differs from every other.
Metrics sample() {
  Metrics metrics;
  metrics.name = "images";
  metrics.mode = "process";
  metrics.workers = 4;
  metrics.pending = 3;
  metrics.running = 2;
  metrics.lingering = 5;
  metrics.scheduled = 6;
  metrics.waiting = 7;
  metrics.max_pending = 100;
  metrics.submitted = 1055;
  metrics.completed = 1000;
  metrics.failed = 30;
  metrics.rejected = 12;
  metrics.cancelled = 11;
  metrics.timed_out = 9;
  metrics.workers_started = 14;
  metrics.workers_crashed = 10;
  metrics.workers_recycled = 15;
  metrics.workers_dying = 16;
  metrics.retried = 17;
  metrics.quarantined = 18;
  metrics.runs = 1040;
  metrics.total_run_time = 2080ms;
  metrics.total_queue_wait = 520ms;
  metrics.average_run_time = 2ms;
  metrics.average_queue_wait = 500us;
  return metrics;
}

json::object parsed(const Metrics& metrics) {
  const std::string text = bulkhead::to_json(metrics);
  INFO(text);
  json::error_code error;
  const json::value value = json::parse(text, error);
  REQUIRE_FALSE(error.failed());
  REQUIRE(value.is_object());
  return value.as_object();
}

// A name with everything that some format must escape, and some that none may.
const std::string kAwkwardName =
    "a\"b\\c\nd\te\rf/g{h}i=j,k'l\x01m\x7fn \xc3\xa9 \xe2\x82\xac \xf0\x9f\x9a\xa2 \\n \\\"";

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// What a reader of Prometheus' text format makes of a page. The rules: prometheus.io/docs/instrumenting/
// exposition_formats, "Text format details".
struct Page {
  struct Sample {
    std::string name;
    std::map<std::string, std::string> labels;
    double value = 0;
  };
  std::map<std::string, std::string> help;
  std::map<std::string, std::string> type;
  std::vector<Sample> samples;
  std::vector<std::string> mistakes;

  explicit Page(const std::string& text) {
    if (!text.empty() && text.back() != '\n') mistakes.emplace_back("the last line does not end");
    for (const std::string& line : lines_of(text)) read(line);
  }

  double value(const std::string& name, const std::string& executor) const {
    for (const Sample& sample : samples) {
      if (sample.name == name && sample.labels.at("executor") == executor) return sample.value;
    }
    FAIL("there is no " << name << " of " << executor);
    return 0;
  }

 private:
  void read(const std::string& line) {
    static const std::regex comment(R"(# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*))");
    static const std::regex sample(R"re(([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[^"]|"(?:[^"\\]|\\.)*")*)\} (\S+))re");
    std::smatch match;
    if (std::regex_match(line, match, comment)) {
      auto& known = match[1] == "HELP" ? help : type;
      if (!known.emplace(match[2], match[3]).second) mistakes.push_back("twice: " + line);
      if (match[1] == "TYPE" && match[3] != "counter" && match[3] != "gauge") mistakes.push_back("type: " + line);
      // All lines of a metric are one group, which its comments begin.
      if (!samples.empty() && samples.back().name == match[2]) mistakes.push_back("after its samples: " + line);
      current_ = match[2];
    } else if (std::regex_match(line, match, sample)) {
      if (match[1] != current_) mistakes.push_back("not in its group: " + line);
      samples.push_back({match[1], labels_of(match[2], line), number(match[3], line)});
    } else {
      mistakes.push_back("no line of this format: " + line);
    }
  }

  std::map<std::string, std::string> labels_of(const std::string& text, const std::string& line) {
    static const std::regex label(R"re(([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$))re");
    std::map<std::string, std::string> labels;
    std::size_t read = 0;
    for (std::sregex_iterator next(text.begin(), text.end(), label), end; next != end; ++next) {
      if (static_cast<std::size_t>(next->position()) != read) break;
      read += static_cast<std::size_t>(next->length());
      if (!labels.emplace((*next)[1], unescaped((*next)[2])).second) mistakes.push_back("label twice: " + line);
    }
    if (read != text.size()) mistakes.push_back("labels: " + line);
    return labels;
  }

  static std::string unescaped(const std::string& text) {
    std::string plain;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        plain += text[i];
        continue;
      }
      ++i;
      plain += text[i] == 'n' ? '\n' : text[i];
    }
    return plain;
  }

  double number(const std::string& text, const std::string& line) {
    std::size_t used = 0;
    const double value = std::stod(text, &used);
    if (used != text.size()) mistakes.push_back("number: " + line);
    return value;
  }

  std::string current_;
};

}  // namespace

TEST_CASE("the JSON has every field of the metrics", "[metrics]") {
  const json::object object = parsed(sample());
  CHECK(object.at("name").as_string() == "images");
  CHECK(object.at("mode").as_string() == "process");
  const std::map<std::string, std::int64_t> integers = {
      {"workers", 4},           {"pending", 3},        {"running", 2},          {"waiting", 7},
      {"lingering", 5},         {"scheduled", 6},      {"max_pending", 100},    {"submitted", 1055},
      {"failed", 30},           {"rejected", 12},      {"completed", 1000},     {"cancelled", 11},
      {"timed_out", 9},         {"runs", 1040},        {"workers_started", 14}, {"workers_crashed", 10},
      {"workers_recycled", 15}, {"workers_dying", 16}, {"retried", 17},         {"quarantined", 18}};
  for (const auto& [name, value] : integers) {
    INFO(name);
    REQUIRE(object.contains(name));
    CHECK(object.at(name).to_number<std::int64_t>() == value);
  }
  CHECK(object.at("total_run_seconds").as_double() == Approx(2.08));
  CHECK(object.at("total_queue_wait_seconds").as_double() == Approx(0.52));
  CHECK(object.at("average_run_ms").as_double() == Approx(2.0));
  CHECK(object.at("average_queue_wait_ms").as_double() == Approx(0.5));
  CHECK(object.size() == integers.size() + 6);
}

TEST_CASE("the JSON of metrics without a single task parses, too", "[metrics]") {
  const json::object object = parsed(Metrics());
  CHECK(object.at("name").as_string().empty());
  CHECK(object.at("submitted").to_number<int>() == 0);
  CHECK(object.at("average_run_ms").as_double() == 0);
}

TEST_CASE("whatever characters a name has, the JSON gives it back", "[metrics]") {
  Metrics metrics = sample();
  metrics.name = kAwkwardName;
  metrics.mode = std::string("nul\0inside", 10);
  const json::object object = parsed(metrics);
  CHECK(std::string(object.at("name").as_string()) == metrics.name);
  CHECK(std::string(object.at("mode").as_string()) == metrics.mode);
  for (int c = 0; c < 0x80; ++c) {
    metrics.name = std::string("<") + static_cast<char>(c) + ">";
    INFO("character " << c);
    CHECK(std::string(parsed(metrics).at("name").as_string()) == metrics.name);
  }
}

TEST_CASE("the largest numbers stay themselves in JSON and for Prometheus", "[metrics]") {
  Metrics metrics = sample();
  metrics.submitted = std::numeric_limits<std::uint64_t>::max();
  metrics.total_run_time = std::chrono::nanoseconds::max();
  CHECK(parsed(metrics).at("submitted").to_number<std::uint64_t>() == metrics.submitted);
  CHECK_THAT(
      bulkhead::to_prometheus(metrics),
      ContainsSubstring("bulkhead_submitted_total{executor=\"images\",mode=\"process\"} 18446744073709551615\n"));
  CHECK(parsed(metrics).at("total_run_seconds").as_double() == Approx(9'223'372'036.85));
}

TEST_CASE("a page for Prometheus follows the format and has every number", "[metrics]") {
  const Page page(bulkhead::to_prometheus(sample()));
  CHECK(page.mistakes == std::vector<std::string>{});
  const std::map<std::string, double> values = {{"bulkhead_workers", 4},
                                                {"bulkhead_pending", 3},
                                                {"bulkhead_running", 2},
                                                {"bulkhead_lingering", 5},
                                                {"bulkhead_scheduled", 6},
                                                {"bulkhead_waiting", 7},
                                                {"bulkhead_max_pending", 100},
                                                {"bulkhead_submitted_total", 1055},
                                                {"bulkhead_completed_total", 1000},
                                                {"bulkhead_failed_total", 30},
                                                {"bulkhead_rejected_total", 12},
                                                {"bulkhead_cancelled_total", 11},
                                                {"bulkhead_timed_out_total", 9},
                                                {"bulkhead_workers_started_total", 14},
                                                {"bulkhead_workers_crashed_total", 10},
                                                {"bulkhead_workers_recycled_total", 15},
                                                {"bulkhead_workers_dying", 16},
                                                {"bulkhead_retried_total", 17},
                                                {"bulkhead_quarantined_total", 18},
                                                {"bulkhead_runs_total", 1040},
                                                {"bulkhead_run_seconds_total", 2.08},
                                                {"bulkhead_queue_wait_seconds_total", 0.52}};
  for (const auto& [name, value] : values) {
    INFO(name);
    CHECK(page.value(name, "images") == Approx(value));
  }
  CHECK(page.samples.size() == values.size());
}

TEST_CASE("names for Prometheus follow its conventions: counters end in _total, and nothing else does", "[metrics]") {
  const Page page(bulkhead::to_prometheus(sample()));
  for (const auto& [name, type] : page.type) {
    INFO(name << " is a " << type);
    CHECK(name.rfind("bulkhead_", 0) == 0);
    const bool total = name.size() > 6 && name.compare(name.size() - 6, 6, "_total") == 0;
    CHECK(total == (type == "counter"));
    REQUIRE(page.help.count(name) == 1);
    CHECK_FALSE(page.help.at(name).empty());
    CHECK(page.help.at(name).find('\\') == std::string::npos);
  }
  CHECK(page.help.size() == page.type.size());
}

TEST_CASE("a page with several executors names each metric's HELP and TYPE once", "[metrics]") {
  std::vector<Metrics> several(3, sample());
  several[1].name = "reports";
  several[1].mode = "bypass";
  several[1].completed = 77;
  several[2].name = "third";
  const Page page(bulkhead::to_prometheus(several));
  CHECK(page.mistakes == std::vector<std::string>{});  // a second HELP or TYPE is a mistake
  CHECK(page.samples.size() == 3 * page.type.size());
  CHECK(page.value("bulkhead_completed_total", "images") == 1000);
  CHECK(page.value("bulkhead_completed_total", "reports") == 77);
  std::set<std::string> modes;
  for (const auto& sample : page.samples) modes.insert(sample.labels.at("mode"));
  CHECK(modes == std::set<std::string>{"bypass", "process"});
}

TEST_CASE("a page without executors is one of the format, too", "[metrics]") {
  const Page page(bulkhead::to_prometheus(std::vector<Metrics>()));
  CHECK(page.mistakes == std::vector<std::string>{});
  CHECK(page.samples.empty());
}

TEST_CASE("whatever characters a name has, its label gives it back", "[metrics]") {
  Metrics metrics = sample();
  metrics.name = kAwkwardName;
  const Page page(bulkhead::to_prometheus(metrics));
  CHECK(page.mistakes == std::vector<std::string>{});
  CHECK(page.value("bulkhead_completed_total", kAwkwardName) == 1000);
  for (const std::string& name : {std::string("\\"), std::string("\""), std::string("\n"), std::string("\\n"),
                                  std::string("\\\\\n\""), std::string("}"), std::string("\",mode=\"x")}) {
    INFO("name '" << name << "'");
    metrics.name = name;
    const Page other(bulkhead::to_prometheus(metrics));
    CHECK(other.mistakes == std::vector<std::string>{});
    CHECK(other.value("bulkhead_failed_total", name) == 30);
  }
}

TEST_CASE("the line for logs has every number and adds up for its reader", "[metrics]") {
  const std::string line = bulkhead::to_string(sample());
  for (const char* part :
       {"images (process): ", "4 workers", "3 pending", "2 running", "7 waiting", "1055 submitted", "1000 completed",
        "30 failed", "11 cancelled", "9 timed out", "5 open", "12 rejected", "run 2.000 ms", "queue wait 0.500 ms"}) {
    CHECK_THAT(line, ContainsSubstring(part));
  }
  CHECK(line.find('\n') == std::string::npos);
}

TEST_CASE("fmt prints metrics as the line for logs, with width, alignment and precision as of a string", "[metrics]") {
  const Metrics metrics = sample();
  const std::string line = bulkhead::to_string(metrics);
  CHECK(fmt::format("{}", metrics) == line);
  CHECK(fmt::format("[{:<400}]", metrics) == "[" + line + std::string(400 - line.size(), ' ') + "]");
  CHECK(fmt::format("{:*>{}}", metrics, line.size() + 3) == "***" + line);
  CHECK(fmt::format("{:.6}", metrics) == "images");
  CHECK(fmt::format("{0:.6} {0:.6}", metrics) == "images images");
}
