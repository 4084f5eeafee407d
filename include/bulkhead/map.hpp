// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/map_run.hpp>
#include <bulkhead/groups.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>
#include <vector>

namespace bulkhead {

/// What `map_stream` gives: the results of a function for the items of a range, each as it comes. Move-only; used by
/// one coroutine at a time. Destroying it cancels what has not ended. It must not outlive the executor's Asio context.
template <class R>
class MapStream {
 public:
  /// One item that is over: its place in the range, and what it gave or failed with.
  using Item = typename Completions<R>::Item;

  MapStream(MapStream&&) noexcept = default;
  MapStream& operator=(MapStream&&) noexcept = delete;
  ~MapStream() {
    if (state_) cancel();
  }

  /// The next item that is over, in the stream's order; empty after the last. An error of the range's own is an item
  /// with that error, and the last.
  /// Resumes: on the awaiting coroutine's executor. Cancellation: terminal ends the waiting only.
  asio::awaitable<std::optional<Item>> next() {
    auto wait = state_->wait();
    co_await std::move(wait);
    co_return state_->take();
  }

  /// Takes no more items from the range, and cancels what has not ended; that is still given by `next`.
  void cancel() { state_->cancel(); }

  /// For the library.
  explicit MapStream(std::shared_ptr<detail::MapState<R>> state) noexcept : state_(std::move(state)) {}

 private:
  std::shared_ptr<detail::MapState<R>> state_;
};

namespace detail {

// A range as a map keeps it: views of what may be gone by then as what owns their contents.
template <class Range>
using map_range_t = kept_t<Range>;
template <class Range>
inline constexpr bool is_map_range = std::ranges::input_range<map_range_t<Range>>;

template <class R>
using map_results_t = std::conditional_t<std::is_void_v<R>, void, std::vector<value_or_monostate<R>>>;

// Takes a stream to its end, also when it is cancelled. A coroutine of its own, since it goes on then.
template <class R>
asio::awaitable<map_results_t<R>> gather(std::shared_ptr<MapState<R>> state, OnError on_error) {
  using Value = value_or_monostate<R>;
  co_await asio::this_coro::throw_if_cancelled(false);
  MapStream<R> stream(std::move(state));
  std::vector<std::optional<Value>> results;
  std::exception_ptr first_error;
  bool stopped = false;
  for (;;) {
    std::optional<typename MapStream<R>::Item> item;
    std::exception_ptr aborted;
    try {
      auto next = stream.next();
      item = co_await std::move(next);
    } catch (...) {
      aborted = std::current_exception();
    }
    // It may also be asked while there is no need to wait.
    const auto asked = co_await asio::this_coro::cancellation_state;
    if (!aborted && asked.cancelled() != asio::cancellation_type::none) {
      aborted = std::make_exception_ptr(boost::system::system_error(asio::error::operation_aborted));
    }
    if (aborted) {
      // Over when its tasks are.
      co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
      if (!first_error) first_error = aborted;
      if (!std::exchange(stopped, true)) stream.cancel();
      if (!item) continue;
    }
    if (!item) break;
    if (item->error) {
      if (!first_error) first_error = item->error;
      if (on_error == OnError::cancel_rest && !std::exchange(stopped, true)) stream.cancel();
    } else if constexpr (!std::is_void_v<R>) {
      if (item->index >= results.size()) results.resize(item->index + 1);
      results[item->index] = std::move(item->value);
    }
  }
  if (first_error) std::rethrow_exception(first_error);
  if constexpr (!std::is_void_v<R>) {
    std::vector<Value> values;
    values.reserve(results.size());
    for (auto& result : results) values.push_back(std::move(*result));
    co_return values;
  }
}

// All results of a map in the order of the range, or its first error.
template <class R, class F, class Range>
asio::awaitable<map_results_t<R>> map_all(std::shared_ptr<ExecutorCore> core, TaskOptions task, F function, Range range,
                                          MapOptions options) {
  auto state = start_map<R>(std::move(core), std::move(task), std::move(function), std::move(range),
                            options.order(MapOrder::as_completed));
  const auto executor = co_await asio::this_coro::executor;
  // What it makes of cancellation is not to be the caller's.
  auto gathered = asio::co_spawn(executor, gather<R>(std::move(state), options.on_error()), asio::use_awaitable);
  if constexpr (std::is_void_v<R>) {
    co_await std::move(gathered);
  } else {
    co_return co_await std::move(gathered);
  }
}

}  // namespace detail
}  // namespace bulkhead
