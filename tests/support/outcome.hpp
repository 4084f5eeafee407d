// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/metrics.hpp>

#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <exception>
#include <optional>
#include <string>
#include <utility>

namespace bulkhead::test {

/// The error, if it is an E.
template <class E>
std::optional<E> error_as(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const E& caught) {
    return caught;
  } catch (...) {
    return std::nullopt;
  }
  return std::nullopt;
}

template <class E>
bool holds(const std::exception_ptr& error) {
  return error_as<E>(error).has_value();
}

/// What it says; empty if there is none.
inline std::string message(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::exception& caught) {
    return caught.what();
  } catch (...) {
    return "not a std::exception";
  }
  return "";
}

inline std::optional<TaskCancelledError::Stage> cancelled_stage(const std::exception_ptr& error) {
  const auto cancelled = error_as<TaskCancelledError>(error);
  return cancelled ? std::optional(cancelled->stage()) : std::nullopt;
}

/// A handler's record. It counts, since "once" is the promise.
template <class R = int>
struct Outcome {
  int calls = 0;
  std::exception_ptr error;
  std::optional<R> value;

  auto handler() {
    return [this](std::exception_ptr thrown, R result) {
      ++calls;
      error = std::move(thrown);
      value.emplace(std::move(result));
    };
  }
};

template <>
struct Outcome<void> {
  int calls = 0;
  std::exception_ptr error;

  auto handler() {
    return [this](std::exception_ptr thrown) {
      ++calls;
      error = std::move(thrown);
    };
  }
};

template <class Outcomes>
bool all_over(const Outcomes& outcomes) {
  return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls > 0; });
}

/// The invariant of the metrics.
inline bool adds_up(const Metrics& m) {
  return m.submitted == m.completed + m.failed + m.cancelled + m.timed_out + m.pending + m.running;
}
inline bool adds_up(const BaseExecutor& executor) { return adds_up(executor.metrics()); }

/// Runs what is ready; nothing that is still to come.
inline void settle(asio::io_context& context) {
  context.restart();
  context.poll();
}

}  // namespace bulkhead::test
