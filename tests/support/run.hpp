// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <poll.h>
#include <chrono>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace bulkhead::test {

// No test may hang. Long enough for a sanitizer build on a busy machine, and never reached by a test that passes.
inline constexpr std::chrono::seconds kDeadline{60};

/// Runs the context until the coroutine is over, and returns its result or throws what it threw. Throws if it is not
/// over within the deadline.
template <class T>
T run(asio::io_context& context, asio::awaitable<T> coroutine, std::chrono::seconds deadline = kDeadline) {
  std::exception_ptr error;
  bool done = false;
  context.restart();
  const auto end = std::chrono::steady_clock::now() + deadline;
  const auto run_until_done = [&] {
    while (!done && std::chrono::steady_clock::now() < end) {
      context.run_one_until(end);
      if (context.stopped()) context.restart();
    }
    if (!done) throw std::runtime_error("the coroutine was not over within the deadline");
    if (error) std::rethrow_exception(error);
  };
  if constexpr (std::is_void_v<T>) {
    asio::co_spawn(context, std::move(coroutine), [&](std::exception_ptr thrown) {
      error = thrown;
      done = true;
    });
    run_until_done();
  } else {
    std::optional<T> result;
    asio::co_spawn(context, std::move(coroutine), [&](std::exception_ptr thrown, T value) {
      error = thrown;
      if (!thrown) result.emplace(std::move(value));
      done = true;
    });
    run_until_done();
    return std::move(*result);
  }
}

/// What the coroutine has thrown; null if it returned.
template <class T>
std::exception_ptr failure(asio::io_context& context, asio::awaitable<T> coroutine) {
  try {
    run(context, std::move(coroutine));
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

/// Runs the context until the condition holds; false if it does not within the deadline. For events that nothing
/// announces: it looks every millisecond.
inline bool run_until(asio::io_context& context, const std::function<bool()>& condition,
                      std::chrono::seconds deadline = kDeadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    context.restart();
    if (context.run_for(std::chrono::milliseconds(1)) == 0) ::poll(nullptr, 0, 1);
  }
  return true;
}

}  // namespace bulkhead::test
