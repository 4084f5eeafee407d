// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/metrics.hpp>

#include <fmt/format.h>

#include <array>
#include <iterator>
#include <string_view>

namespace bulkhead {
namespace {

double milliseconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

double seconds(std::chrono::nanoseconds duration) { return std::chrono::duration<double>(duration).count(); }

// RFC 8259, section 7.
std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out += '"';
}

// prometheus.io/docs/instrumenting/exposition_formats: in a label value, backslash, quote and line feed are escaped.
std::string label_value(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

struct Series {
  std::string_view name;
  std::string_view type;
  std::string_view help;
  std::string (*value)(const Metrics&);
};

template <auto Member>
std::string integer(const Metrics& metrics) {
  return fmt::format("{}", metrics.*Member);
}

template <auto Member>
std::string duration_in_seconds(const Metrics& metrics) {
  return fmt::format("{:.9f}", seconds(metrics.*Member));
}

constexpr std::array kSeries{
    Series{"bulkhead_workers", "gauge", "Workers that are alive.", integer<&Metrics::workers>},
    Series{"bulkhead_pending", "gauge", "Accepted tasks that have not begun.", integer<&Metrics::pending>},
    Series{"bulkhead_running", "gauge", "Tasks that run now.", integer<&Metrics::running>},
    Series{"bulkhead_lingering", "gauge", "Tasks whose run goes on though their caller has been told.",
           integer<&Metrics::lingering>},
    Series{"bulkhead_waiting", "gauge", "Submits that wait for admission.", integer<&Metrics::waiting>},
    Series{"bulkhead_scheduled", "gauge", "Tasks whose time has not come, and schedules.",
           integer<&Metrics::scheduled>},
    Series{"bulkhead_max_pending", "gauge", "Limit of pending plus running plus lingering.",
           integer<&Metrics::max_pending>},
    Series{"bulkhead_submitted_total", "counter", "Tasks accepted.", integer<&Metrics::submitted>},
    Series{"bulkhead_completed_total", "counter", "Tasks that returned.", integer<&Metrics::completed>},
    Series{"bulkhead_failed_total", "counter", "Tasks that ended with an error.", integer<&Metrics::failed>},
    Series{"bulkhead_rejected_total", "counter", "Submits refused.", integer<&Metrics::rejected>},
    Series{"bulkhead_cancelled_total", "counter", "Tasks cancelled.", integer<&Metrics::cancelled>},
    Series{"bulkhead_timed_out_total", "counter", "Tasks that ran into a time limit.", integer<&Metrics::timed_out>},
    Series{"bulkhead_workers_started_total", "counter", "Workers ever started.", integer<&Metrics::workers_started>},
    Series{"bulkhead_workers_crashed_total", "counter", "Workers that died unasked.",
           integer<&Metrics::workers_crashed>},
    Series{"bulkhead_workers_recycled_total", "counter", "Workers that were replaced or let go.",
           integer<&Metrics::workers_recycled>},
    Series{"bulkhead_workers_dying", "gauge", "Workers that were killed and are not dead yet.",
           integer<&Metrics::workers_dying>},
    Series{"bulkhead_retried_total", "counter", "Runs after a failed one.", integer<&Metrics::retried>},
    Series{"bulkhead_quarantined_total", "counter", "Tasks refused for crashing workers.",
           integer<&Metrics::quarantined>},
    Series{"bulkhead_runs_total", "counter", "Runs of tasks that have ended.", integer<&Metrics::runs>},
    Series{"bulkhead_run_seconds_total", "counter", "Time that tasks spent running.",
           duration_in_seconds<&Metrics::total_run_time>},
    Series{"bulkhead_queue_wait_seconds_total", "counter", "Time that tasks spent before their run.",
           duration_in_seconds<&Metrics::total_queue_wait>},
};

}  // namespace

std::string to_json(const Metrics& m) {
  return fmt::format(
      R"({{"name":{},"mode":{},"workers":{},"pending":{},"running":{},"lingering":{},"waiting":{},"scheduled":{},"max_pending":{},"submitted":{},)"
      R"("completed":{},"failed":{},"rejected":{},"cancelled":{},"timed_out":{},"workers_started":{},)"
      R"("workers_crashed":{},"workers_recycled":{},"workers_dying":{},"retried":{},"quarantined":{},"runs":{},)"
      R"("total_run_seconds":{:.9f},"total_queue_wait_seconds":{:.9f},)"
      R"("average_run_ms":{:.6f},"average_queue_wait_ms":{:.6f}}})",
      json_string(m.name), json_string(m.mode), m.workers, m.pending, m.running, m.lingering, m.waiting, m.scheduled,
      m.max_pending, m.submitted, m.completed, m.failed, m.rejected, m.cancelled, m.timed_out, m.workers_started,
      m.workers_crashed, m.workers_recycled, m.workers_dying, m.retried, m.quarantined, m.runs,
      seconds(m.total_run_time), seconds(m.total_queue_wait), milliseconds(m.average_run_time),
      milliseconds(m.average_queue_wait));
}

std::string to_prometheus(const Metrics& metrics) { return to_prometheus(std::span(&metrics, 1)); }

std::string to_prometheus(std::span<const Metrics> metrics) {
  std::string out;
  for (const Series& series : kSeries) {
    fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", series.name, series.help, series.name,
                   series.type);
    for (const Metrics& m : metrics) {
      fmt::format_to(std::back_inserter(out), "{}{{executor=\"{}\",mode=\"{}\"}} {}\n", series.name,
                     label_value(m.name), label_value(m.mode), series.value(m));
    }
  }
  return out;
}

std::string to_string(const Metrics& m) {
  return fmt::format(
      "{} ({}): {} workers, {} pending, {} running, {} lingering, {} waiting; {} submitted = {} completed + {} failed "
      "+ {} cancelled "
      "+ {} timed out + {} open; {} rejected; run {:.3f} ms, queue wait {:.3f} ms on average",
      m.name, m.mode, m.workers, m.pending, m.running, m.lingering, m.waiting, m.submitted, m.completed, m.failed,
      m.cancelled, m.timed_out, m.pending + m.running, m.rejected, milliseconds(m.average_run_time),
      milliseconds(m.average_queue_wait));
}

}  // namespace bulkhead
