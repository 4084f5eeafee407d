// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/map_run.hpp>

#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <thread>

namespace bulkhead {
namespace {

// More than anybody means, and little enough to be multiplied.
constexpr std::size_t kMost = 1'000'000'000;

std::size_t checked(const char* option, std::size_t value) {
  if (value == 0 || value > kMost) {
    throw std::invalid_argument(fmt::format("option '{}' of map must be 1 to {}, not {}", option, kMost, value));
  }
  return value;
}

}  // namespace

MapOptions& MapOptions::window(std::size_t items) & {
  window_ = checked("window", items);
  return *this;
}

MapOptions& MapOptions::chunk(std::size_t items) & {
  chunk_ = checked("chunk", items);
  return *this;
}

namespace detail {
namespace {

// What a crash makes run again at most, and enough that what a task costs is nothing beside the items of a chunk.
constexpr std::size_t kLargestChunk = 64;

// So many tasks per CPU keep workers busy while their results are on the way, and let short ones pass a long one by.
constexpr std::size_t kTasksPerCpu = 4;
constexpr std::size_t kFewestTasks = 32;

// Each way to fail that a map handles in its own way.
template <class Error>
const Error* as(const std::exception_ptr& error) noexcept {
  if (!error) return nullptr;
  try {
    std::rethrow_exception(error);
  } catch (const Error& found) {
    return &found;  // `error` holds it
  } catch (...) {
    return nullptr;
  }
}

ErrorContext context(const std::string& task, const std::string& executor) {
  ErrorContext context;
  context.task = task;
  context.executor = executor;
  return context;
}

}  // namespace

MapLimits map_limits(const MapOptions& options, const TaskOptions& task, bool one_by_one, std::size_t max_pending) {
  if (task.only_spawned()) {
    throw std::invalid_argument("TaskOptions::id and metadata are of single tasks, and map makes many");
  }
  const bool limits_runs = task.timeout() || task.total_timeout() || task.cpu_timeout() || task.retry() != nullptr ||
                           one_by_one ||
                           (task.isolation() != nullptr && task.isolation()->kind() == Isolation::Kind::fresh);
  if (limits_runs && options.chunk() > 1) {
    throw std::invalid_argument(fmt::format("option 'chunk' of map is {}, and must be 1 for {}", options.chunk(),
                                            one_by_one
                                                ? "coroutines, which run one by one"
                                                : "a time limit, a retry policy or a fresh worker to hold for each"));
  }
  if (options.window() != 0 && options.chunk() > options.window()) {
    throw std::invalid_argument(
        fmt::format("option 'chunk' of map is {}, and its window is only {}: no chunk would fit", options.chunk(),
                    options.window()));
  }
  MapLimits limits;
  const std::size_t busy =
      std::max<std::size_t>(kFewestTasks, kTasksPerCpu * std::max(1U, std::thread::hardware_concurrency()));
  // Others are to have a place, too.
  limits.tasks = std::clamp<std::size_t>(max_pending / 2, 1, busy);
  limits.fixed_chunk = limits_runs ? 1 : options.chunk();
  limits.largest_chunk = kLargestChunk;
  if (options.window() != 0) {
    limits.window = options.window();
    // Small enough that all workers get some.
    limits.largest_chunk = std::clamp<std::size_t>(limits.window / limits.tasks, 1, kLargestChunk);
    limits.tasks = std::max<std::size_t>(
        limits.tasks, limits.fixed_chunk == 1 ? std::min(limits.window, max_pending / 2) : std::size_t{1});
  } else {
    // Twice what is under way: so there is room for a whole chunk when one is over, and its results are not taken yet.
    limits.window = 2 * limits.tasks * (limits.fixed_chunk != 0 ? limits.fixed_chunk : kLargestChunk);
  }
  return limits;
}

bool is_overload(const std::exception_ptr& error) noexcept { return as<ExecutorOverloadError>(error) != nullptr; }

bool ends_map(const std::exception_ptr& error) noexcept {
  return is_overload(error) || as<ExecutorNotRunningError>(error) != nullptr || as<WorkerStartError>(error) != nullptr;
}

bool is_too_large_together(const std::exception_ptr& error) noexcept {
  const auto* const failure = as<SerializationError>(error);
  return failure != nullptr &&
         (failure->part() == SerializationError::Part::argument || failure->part() == SerializationError::Part::result);
}

std::optional<std::size_t> crashed_item(const std::exception_ptr& error) noexcept {
  if (const auto* const violation = as<PolicyViolationError>(error)) return violation->item();
  const auto* const crash = as<WorkerCrashedError>(error);
  if (crash == nullptr || crash->started() == Started::never) return std::nullopt;
  return crash->ending().item;
}

std::exception_ptr remote_item_error(std::span<const std::byte> bytes, const std::string& task,
                                     const std::string& executor) {
  try {
    Decoder decoder(bytes, Decoder::Source::untrusted);
    auto error = decode_exception(decoder, context(task, executor));
    decoder.finish();
    return error;
  } catch (const SerializationError& failure) {
    return std::make_exception_ptr(SerializationError(SerializationError::Part::exception, failure.type_name(),
                                                      failure.reason(), context(task, executor)));
  } catch (...) {
    return std::current_exception();  // what makes an exception of the user's anew
  }
}

std::exception_ptr wrong_item_count(std::size_t given, std::size_t answered, const std::string& task,
                                    const std::string& executor) {
  return std::make_exception_ptr(SerializationError(
      SerializationError::Part::result, "",
      fmt::format("the worker was given {} items and answers {}", given, answered), context(task, executor)));
}

std::exception_ptr item_not_begun(const std::string& task, const std::string& executor) {
  return std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::queued, context(task, executor),
                                                    "the map that it belongs to was cancelled"));
}

}  // namespace detail
}  // namespace bulkhead
