// SPDX-License-Identifier: BSL-1.0
#include "option_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

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

template <class E, std::size_t N>
using Enumerators = std::array<std::pair<std::string_view, E>, N>;
template <class E>
constexpr Enumerators<E, 0> kEnumerators{};
template <>
constexpr Enumerators<OverloadPolicy, 2> kEnumerators<OverloadPolicy>{
    {{"reject", OverloadPolicy::reject}, {"wait", OverloadPolicy::wait}}};
template <>
constexpr Enumerators<SpinPolicy, 3> kEnumerators<SpinPolicy>{
    {{"automatic", SpinPolicy::automatic}, {"never", SpinPolicy::never}, {"always", SpinPolicy::always}}};
template <>
constexpr Enumerators<CaptureOutput, 3> kEnumerators<CaptureOutput>{
    {{"inherit", CaptureOutput::inherit}, {"capture", CaptureOutput::capture}, {"discard", CaptureOutput::discard}}};

template <class E>
requires std::is_enum_v<E>
void parse(std::string_view option, std::string_view value, E& to) {
  std::vector<std::string_view> known;
  for (const auto& [name, enumerator] : kEnumerators<E>) {
    if (value == name) {
      to = enumerator;
      return;
    }
    known.push_back(name);
  }
  refuse(option, value, fmt::format("one of {}", fmt::join(known, ", ")));
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

// One of the profiles; what it has beside them only code can say.
void parse(std::string_view option, std::string_view value, SandboxPolicy& to) {
  for (const auto& profile : {SandboxPolicy::trusted(), SandboxPolicy::contained(), SandboxPolicy::untrusted()}) {
    if (value != profile.profile) continue;
    to = profile;
    return;
  }
  refuse(option, value, "one of trusted, contained, untrusted");
}

// The opposite of `parse`.
std::string text(const SandboxPolicy& value) { return value.profile; }
std::string text(const std::string& value) { return "'" + value + "'"; }
std::string text(bool value) { return value ? "true" : "false"; }
template <std::unsigned_integral T>
std::string text(T value) {
  return std::to_string(value);
}
std::string text(std::chrono::nanoseconds value) {
  constexpr std::array<std::pair<std::string_view, std::int64_t>, 4> kUnits{
      {{"s", 1'000'000'000}, {"ms", 1'000'000}, {"us", 1'000}, {"ns", 1}}};
  const auto unit =
      std::find_if(kUnits.begin(), kUnits.end(), [&](const auto& one) { return value.count() % one.second == 0; });
  return fmt::format("{}{}", value.count() / unit->second, unit->first);
}
std::string text(const std::vector<std::string>& value) { return fmt::format("'{}'", fmt::join(value, ",")); }
template <class E>
requires std::is_enum_v<E> std::string text(E value) {
  for (const auto& [name, enumerator] : kEnumerators<E>) {
    if (value == enumerator) return std::string(name);
  }
  return std::to_string(static_cast<int>(value));
}
template <class T>
std::string text(const std::optional<T>& value) {
  return value ? text(*value) : "none";
}

// The options of one struct, by name.
template <class Options>
class OptionTable {
 public:
  template <class T>
  OptionTable& add(const char* name, T Options::*field) {
    return add_field<T>(
        name, [field](auto& options) -> auto& { return options.*field; });
  }
  template <class Inner, class T>
  OptionTable& add(const char* name, Inner Options::*inner, T Inner::*field) {
    return add_field<T>(
        name, [ inner, field ](auto& options) -> auto& { return options.*inner.*field; });
  }

  Options parsed(const OptionMap& map) const {
    Options options{};
    for (const auto& [name, value] : map) {
      const auto known = fields_.find(name);
      if (known == fields_.end()) {
        std::vector<std::string> names;
        for (const auto& [known_name, unused] : fields_) names.push_back(known_name);
        throw std::invalid_argument(
            fmt::format("there is no option '{}'; known options: {}", name, fmt::join(names, ", ")));
      }
      known->second.parse(options, value);
    }
    return options;
  }

  std::string differing(const Options& options, const Options& other) const {
    if (options == other) return "";
    std::vector<std::string> differing;
    for (const auto& [name, field] : fields_) {
      std::string value = field.text(options);
      if (value != field.text(other)) differing.push_back(fmt::format("{} = {}", name, value));
    }
    return differing.empty() ? "other options" : fmt::format("{}", fmt::join(differing, ", "));
  }

 private:
  struct Field {
    std::function<void(Options&, const std::string&)> parse;
    std::function<std::string(const Options&)> text;
  };

  template <class T, class Get>
  OptionTable& add_field(const char* name, Get get) {
    fields_.emplace(name,
                    Field{[name, get](Options& options, const std::string& value) { parse(name, value, get(options)); },
                          [get](const Options& options) { return text(get(options)); }});
    return *this;
  }

  std::map<std::string, Field> fields_;
};

const OptionTable<CommonOptions>& common_table() {
  using O = CommonOptions;
  static const auto table =
      OptionTable<O>().add("name", &O::name).add("max_pending", &O::max_pending).add("overload", &O::overload);
  return table;
}

const OptionTable<LocalExecutorOptions>& local_table() {
  using O = LocalExecutorOptions;
  static const auto table = OptionTable<O>()
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
                                .add("sandbox", &O::sandbox)
                                .add("capture_output", &O::capture_output)
                                .add("bypass", &O::bypass)
                                .add("spin", &O::spin)
                                .add("max_message_size", &O::max_message_size)
                                .add("max_shared_memory", &O::max_shared_memory)
                                .add("kept_message_memory", &O::kept_message_memory);
  return table;
}

// What the executors with threads of their own have in common.
template <class Options>
OptionTable<Options> table_with_threads() {
  return OptionTable<Options>()
      .add("name", &Options::name)
      .add("max_threads", &Options::max_threads)
      .add("idle_timeout", &Options::idle_timeout)
      .add("max_pending", &Options::max_pending)
      .add("overload", &Options::overload)
      .add("cancel_grace", &Options::cancel_grace);
}

const OptionTable<ThreadExecutorOptions>& thread_table() {
  static const auto table = table_with_threads<ThreadExecutorOptions>();
  return table;
}

const OptionTable<IoExecutorOptions>& io_table() {
  static const auto table =
      table_with_threads<IoExecutorOptions>().add("max_concurrent", &IoExecutorOptions::max_concurrent);
  return table;
}

const OptionTable<HybridConfig>& hybrid_table() {
  using C = HybridConfig;
  using O = HybridExecutorOptions;
  static const auto table = OptionTable<C>()
                                .add("executors", &C::executors)
                                .add("name", &C::options, &O::name)
                                .add("on_not_running", &C::options, &O::on_not_running)
                                .add("on_crash_before_start", &C::options, &O::on_crash_before_start)
                                .add("shut_down_executors", &C::options, &O::shut_down_executors)
                                .add("max_pending", &C::options, &O::max_pending)
                                .add("overload", &C::options, &O::overload);
  return table;
}

}  // namespace

CommonOptions parse_common_options(const OptionMap& map) { return common_table().parsed(map); }
LocalExecutorOptions parse_local_options(const OptionMap& map) { return local_table().parsed(map); }
ThreadExecutorOptions parse_thread_options(const OptionMap& map) { return thread_table().parsed(map); }
IoExecutorOptions parse_io_options(const OptionMap& map) { return io_table().parsed(map); }
HybridConfig parse_hybrid_options(const OptionMap& map) { return hybrid_table().parsed(map); }

namespace detail {

std::string differing_options(const CommonOptions& options, const CommonOptions& other) {
  return common_table().differing(options, other);
}
std::string differing_options(const LocalExecutorOptions& options, const LocalExecutorOptions& other) {
  return local_table().differing(options, other);
}
std::string differing_options(const ThreadExecutorOptions& options, const ThreadExecutorOptions& other) {
  return thread_table().differing(options, other);
}
std::string differing_options(const IoExecutorOptions& options, const IoExecutorOptions& other) {
  return io_table().differing(options, other);
}
std::string differing_options(const HybridConfig& options, const HybridConfig& other) {
  return hybrid_table().differing(options, other);
}

}  // namespace detail
}  // namespace bulkhead
