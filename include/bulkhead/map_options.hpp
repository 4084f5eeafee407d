// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/groups.hpp>

#include <cstddef>
#include <utility>

namespace bulkhead {

/// In which order `map_stream` gives what is over.
enum class MapOrder {
  as_given,     ///< In the order of the range: one that is over early waits for those before it.
  as_completed  ///< Each at once.
};

/// How `map` goes through its range: `MapOptions().window(100).chunk(1)`. With chained setters, as TaskOptions. Setters
/// check their argument and throw `std::invalid_argument`.
class BULKHEAD_EXPORT MapOptions {
 public:
  /// The most items that may be taken from the range and not be given to the caller yet, 1 to 1,000,000,000. What lies
  /// beyond is not even asked for. Default: twice as many as keep every CPU busy, with chunks of up to 64 items.
  MapOptions& window(std::size_t items) &;
  MapOptions&& window(std::size_t items) && { return std::move(window(items)); }
  /// How many items go into one task, as far as the window has room; 1 to 1,000,000,000. Default: as many as take 50 µs
  /// together, as measured; 1 for those that take longer.
  MapOptions& chunk(std::size_t items) &;
  MapOptions&& chunk(std::size_t items) && { return std::move(chunk(items)); }
  /// Default: as_given. `map` always gives its results in the order of the range.
  MapOptions& order(MapOrder value) & noexcept {
    order_ = value;
    return *this;
  }
  MapOptions&& order(MapOrder value) && noexcept { return std::move(order(value)); }
  /// What `map` does when an item fails. Default: it cancels the rest. `map_stream` goes on, and gives the error.
  MapOptions& on_error(OnError value) & noexcept {
    on_error_ = value;
    return *this;
  }
  MapOptions&& on_error(OnError value) && noexcept { return std::move(on_error(value)); }

  /// 0: none was given.
  std::size_t window() const noexcept { return window_; }
  std::size_t chunk() const noexcept { return chunk_; }
  MapOrder order() const noexcept { return order_; }
  OnError on_error() const noexcept { return on_error_; }

 private:
  std::size_t window_ = 0;
  std::size_t chunk_ = 0;
  MapOrder order_ = MapOrder::as_given;
  OnError on_error_ = OnError::cancel_rest;
};

}  // namespace bulkhead
