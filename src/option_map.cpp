// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/option_map.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <utility>

namespace bulkhead {
namespace {

[[noreturn]] void refuse(std::string_view option, std::string_view value, std::string_view wanted) {
  throw std::invalid_argument(fmt::format("option '{}' must be {}, not '{}'", option, wanted, value));
}

// The number that a text begins with; the rest is its unit.
struct Quantity {
  std::uint64_t number;
  std::string_view unit;
};

std::optional<Quantity> parse_quantity(std::string_view text) {
  Quantity quantity{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), quantity.number);
  if (error != std::errc()) return std::nullopt;
  quantity.unit = text.substr(static_cast<std::size_t>(end - text.data()));
  while (!quantity.unit.empty() && quantity.unit.front() == ' ') quantity.unit.remove_prefix(1);
  return quantity;
}

std::optional<std::uint64_t> scaled(const Quantity& quantity,
                                    std::initializer_list<std::pair<std::string_view, std::uint64_t>> units,
                                    std::uint64_t most) {
  for (const auto& [name, factor] : units) {
    if (quantity.unit != name) continue;
    if (quantity.number > most / factor) return std::nullopt;
    return quantity.number * factor;
  }
  return std::nullopt;
}

void parse(std::string_view, std::string_view value, std::string& to) { to = value; }

void parse(std::string_view option, std::string_view value, bool& to) {
  std::string text(value);
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (text == "1" || text == "true" || text == "yes" || text == "on") {
    to = true;
  } else if (text == "0" || text == "false" || text == "no" || text == "off") {
    to = false;
  } else {
    refuse(option, value, "true, yes, on, 1, false, no, off or 0");
  }
}

void parse(std::string_view option, std::string_view value, unsigned& to) {
  const auto quantity = parse_quantity(value);
  const auto number = quantity ? scaled(*quantity, {{"", 1}}, std::numeric_limits<unsigned>::max()) : std::nullopt;
  if (!number) refuse(option, value, "a whole number, not negative and at most 4294967295");
  to = static_cast<unsigned>(*number);
}

void parse(std::string_view option, std::string_view value, std::uint64_t& to) {
  const auto quantity = parse_quantity(value);
  const auto number = quantity ? scaled(*quantity,
                                        {{"", 1},
                                         {"KiB", std::uint64_t{1} << 10},
                                         {"MiB", std::uint64_t{1} << 20},
                                         {"GiB", std::uint64_t{1} << 30}},
                                        std::numeric_limits<std::uint64_t>::max())
                               : std::nullopt;
  if (!number) refuse(option, value, "a whole number, not negative, alone or with KiB, MiB or GiB");
  to = *number;
}

void parse(std::string_view option, std::string_view value, std::chrono::nanoseconds& to) {
  constexpr std::uint64_t kSecond = 1'000'000'000;
  const auto quantity = parse_quantity(value);
  const auto number = quantity ? scaled(*quantity,
                                        {{"ns", 1},
                                         {"us", 1'000},
                                         {"ms", 1'000'000},
                                         {"s", kSecond},
                                         {"min", 60 * kSecond},
                                         {"h", 3600 * kSecond}},
                                        static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
                               : std::nullopt;
  if (!number) refuse(option, value, "a whole number with its unit (ns, us, ms, s, min, h), as in 250ms");
  to = std::chrono::nanoseconds(static_cast<std::int64_t>(*number));
}

template <class T>
void parse(std::string_view option, std::string_view value, std::optional<T>& to) {
  parse(option, value, to.emplace());
}

template <class E>
void parse_enumerator(std::string_view option, std::string_view value, E& to,
                      std::initializer_list<std::pair<std::string_view, E>> names) {
  std::vector<std::string_view> known;
  for (const auto& [name, enumerator] : names) {
    if (value == name) {
      to = enumerator;
      return;
    }
    known.push_back(name);
  }
  refuse(option, value, fmt::format("one of {}", fmt::join(known, ", ")));
}

void parse(std::string_view option, std::string_view value, OverloadPolicy& to) {
  parse_enumerator<OverloadPolicy>(option, value, to,
                                   {{"reject", OverloadPolicy::reject}, {"wait", OverloadPolicy::wait}});
}

void parse(std::string_view option, std::string_view value, SpinPolicy& to) {
  parse_enumerator<SpinPolicy>(
      option, value, to,
      {{"automatic", SpinPolicy::automatic}, {"never", SpinPolicy::never}, {"always", SpinPolicy::always}});
}

void parse(std::string_view option, std::string_view value, CaptureOutput& to) {
  parse_enumerator<CaptureOutput>(
      option, value, to,
      {{"inherit", CaptureOutput::inherit}, {"capture", CaptureOutput::capture}, {"discard", CaptureOutput::discard}});
}

void parse(std::string_view option, std::string_view value, std::vector<std::string>& to) {
  to.clear();
  while (!value.empty()) {
    const auto comma = value.find(',');
    std::string_view name = value.substr(0, comma);
    while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
    while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
    if (name.empty()) refuse(option, value, "names with commas between them");
    to.emplace_back(name);
    value = comma == std::string_view::npos ? std::string_view() : value.substr(comma + 1);
  }
}

// The options of one struct, by name.
template <class Options>
class Parser {
 public:
  template <class T>
  Parser& add(const char* name, T Options::*field) {
    fields_.emplace(name,
                    [name, field](Options& options, const std::string& value) { parse(name, value, options.*field); });
    return *this;
  }
  template <class Inner, class T>
  Parser& add(const char* name, Inner Options::*inner, T Inner::*field) {
    fields_.emplace(name, [name, inner, field](Options& options, const std::string& value) {
      parse(name, value, options.*inner.*field);
    });
    return *this;
  }

  Options operator()(const OptionMap& map) const {
    Options options{};
    for (const auto& [name, value] : map) {
      const auto known = fields_.find(name);
      if (known == fields_.end()) {
        std::vector<std::string> names;
        for (const auto& [known_name, unused] : fields_) names.push_back(known_name);
        throw std::invalid_argument(
            fmt::format("there is no option '{}'; known options: {}", name, fmt::join(names, ", ")));
      }
      known->second(options, value);
    }
    return options;
  }

 private:
  std::map<std::string, std::function<void(Options&, const std::string&)>> fields_;
};

}  // namespace

CommonOptions parse_common_options(const OptionMap& map) {
  using O = CommonOptions;
  static const auto parser =
      Parser<O>().add("name", &O::name).add("max_pending", &O::max_pending).add("overload", &O::overload);
  return parser(map);
}

LocalExecutorOptions parse_local_options(const OptionMap& map) {
  using O = LocalExecutorOptions;
  static const auto parser = Parser<O>()
                                 .add("name", &O::name)
                                 .add("max_workers", &O::max_workers)
                                 .add("start_timeout", &O::start_timeout)
                                 .add("max_pending", &O::max_pending)
                                 .add("overload", &O::overload)
                                 .add("min_workers", &O::min_workers)
                                 .add("idle_timeout", &O::idle_timeout)
                                 .add("spare_workers", &O::spare_workers)
                                 .add("max_tasks_per_worker", &O::max_tasks_per_worker)
                                 .add("max_worker_memory", &O::max_worker_memory)
                                 .add("memory_limit", &O::memory_limit)
                                 .add("cancel_grace", &O::cancel_grace)
                                 .add("quarantine_after", &O::quarantine_after)
                                 .add("quarantine_time", &O::quarantine_time)
                                 .add("capture_output", &O::capture_output)
                                 .add("bypass", &O::bypass)
                                 .add("spin", &O::spin)
                                 .add("max_message_size", &O::max_message_size);
  return parser(map);
}

ThreadExecutorOptions parse_thread_options(const OptionMap& map) {
  using O = ThreadExecutorOptions;
  static const auto parser = Parser<O>()
                                 .add("name", &O::name)
                                 .add("max_threads", &O::max_threads)
                                 .add("idle_timeout", &O::idle_timeout)
                                 .add("max_pending", &O::max_pending)
                                 .add("overload", &O::overload)
                                 .add("cancel_grace", &O::cancel_grace);
  return parser(map);
}

IoExecutorOptions parse_io_options(const OptionMap& map) {
  using O = IoExecutorOptions;
  static const auto parser = Parser<O>()
                                 .add("name", &O::name)
                                 .add("max_concurrent", &O::max_concurrent)
                                 .add("max_threads", &O::max_threads)
                                 .add("idle_timeout", &O::idle_timeout)
                                 .add("max_pending", &O::max_pending)
                                 .add("overload", &O::overload)
                                 .add("cancel_grace", &O::cancel_grace);
  return parser(map);
}

HybridConfig parse_hybrid_options(const OptionMap& map) {
  using C = HybridConfig;
  using O = HybridExecutorOptions;
  static const auto parser = Parser<C>()
                                 .add("executors", &C::executors)
                                 .add("name", &C::options, &O::name)
                                 .add("on_not_running", &C::options, &O::on_not_running)
                                 .add("on_crash_before_start", &C::options, &O::on_crash_before_start)
                                 .add("shut_down_executors", &C::options, &O::shut_down_executors)
                                 .add("max_pending", &C::options, &O::max_pending)
                                 .add("overload", &C::options, &O::overload);
  return parser(map);
}

}  // namespace bulkhead
