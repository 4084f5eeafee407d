// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace bulkhead::detail {

/// Those who wait for one thing to happen. Thread-safe; no handler is called inside a function of it.
class WaitList : public std::enable_shared_from_this<WaitList> {
 public:
  using Handler = asio::any_completion_handler<void(std::exception_ptr, bool)>;

  explicit WaitList(asio::any_io_executor io) : io_(std::move(io)) {}

  /// The handler gets true when `complete` is called, or its error; false after the timeout; `operation_aborted` when
  /// it is cancelled.
  void wait(std::optional<std::chrono::nanoseconds> timeout, Handler handler) {
    wait(timeout, std::move(handler), io_);
  }
  /// The same, on another Asio executor than the list's.
  void wait(std::optional<std::chrono::nanoseconds> timeout, Handler handler, const asio::any_io_executor& on);
  /// Completes all who wait now.
  void complete(const std::exception_ptr& error = nullptr);
  /// The Asio context is being destroyed: all handlers go, none is called.
  void context_gone() noexcept;

 private:
  struct Wait {
    Wait(std::uint64_t number, Handler waiting, asio::any_io_executor executor)
        : id(number), on(std::move(executor)), handler(std::move(waiting)) {}
    std::uint64_t id;
    asio::any_io_executor on;
    Handler handler;
    std::optional<asio::steady_timer> timer;
  };

  void give_up(std::uint64_t id, const std::exception_ptr& error);

  const asio::any_io_executor io_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Wait>> waits_;
  std::uint64_t last_id_ = 0;
  bool context_alive_ = true;
};

/// Awaits what `start` hands its handler to. A plain function: g++ 12 destroys a capturing lambda inside a `co_await`
/// expression twice (GCC PR 107288).
template <class Start>
asio::awaitable<bool> wait_for(Start start) {
  auto token = asio::use_awaitable;  // async_initiate wants an lvalue
  return asio::async_initiate<asio::use_awaitable_t<>, void(std::exception_ptr, bool)>(
      [start = std::move(start)](auto&& handler) mutable {
        start(WaitList::Handler(std::forward<decltype(handler)>(handler)));
      },
      token);
}

}  // namespace bulkhead::detail
