// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/detail/task_context.hpp>
#include <bulkhead/detail/task_impl.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/this_task.hpp>

#include <cxxabi.h>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

// What a task of a `map` is made of, and how it travels.

namespace bulkhead::detail {

// Items that the caller keeps, too: those of a chunk whose worker crashes are needed again.
template <class T>
struct MapItems {
  struct Shared {
    std::vector<T> values;
    bool began = false;  // in this process
  };
  std::shared_ptr<Shared> shared;
};

// What the items of a chunk gave, in their order. Where the library has chosen the chunk's size, its last ones may be
// missing: they have not begun.
template <class R>
struct ChunkResult {
  using Value = std::conditional_t<std::is_void_v<R>, std::monostate, R>;
  struct Entry {
    std::optional<Value> value;
    std::exception_ptr error;             // of an item that ran in this process
    std::vector<std::byte> remote_error;  // of one that ran in a worker
  };
  std::vector<Entry> entries;
  std::chrono::nanoseconds time{0};  // that all of them took
};

// Calls the function with the only item.
template <class F>
class MapOne {
 public:
  // `runs_again`: the item is needed for further runs.
  explicit MapOne(F mapped, bool runs_again = false) : function(std::move(mapped)), runs_again_(runs_again) {}

  // A coroutine may go on to refer to the item, which lies beside it.
  template <class T>
  auto operator()(const MapItems<T>& items) -> std::invoke_result_t<F&, T> {
    items.shared->began = true;
    if constexpr (is_surely_copyable<T>) {
      if (runs_again_) {
        auto copy = std::make_shared<std::vector<T>>(1, items.shared->values.front());
        kept_ = copy;
        return std::invoke(function, static_cast<T&&>(copy->front()));
      }
    }
    return std::invoke(function, static_cast<T&&>(items.shared->values.front()));
  }

  F function;

 private:
  bool runs_again_;
  std::shared_ptr<void> kept_;
};

// After so long a chunk leaves the rest of its items to other workers, if its size was not given: four times what it
// was to take, so that a chunk which is a little slow is not cut, and far less than anybody has to wait for.
inline constexpr std::chrono::nanoseconds kLongestChunkTime = std::chrono::microseconds(200);

// Calls the function with one item after the other.
template <class F>
class MapChunk {
 public:
  explicit MapChunk(F mapped, bool all_of_it = false) : function(std::move(mapped)), whole(all_of_it) {}

  template <class T>
  auto operator()(const MapItems<T>& items) -> ChunkResult<std::decay_t<std::invoke_result_t<F&, T>>> {
    using Result = ChunkResult<std::decay_t<std::invoke_result_t<F&, T>>>;
    items.shared->began = true;
    std::vector<T>& values = items.shared->values;
    using Clock = std::chrono::steady_clock;
    Result result;
    result.entries.resize(values.size());
    const std::size_t most_bytes = most_result_bytes() / 2;  // the next result may be as large as all before it
    std::size_t bytes = 0;
    const auto begin = Clock::now();
    for (std::size_t i = 0; i < result.entries.size(); ++i) {
      if (!whole && i > 0 && (Clock::now() - begin > kLongestChunkTime || bytes > most_bytes)) {
        result.entries.resize(i);
        break;
      }
      note_item(static_cast<std::uint32_t>(i));
      this_task::throw_if_stop_requested();
      typename Result::Entry& entry = result.entries[i];
      try {
        if constexpr (std::is_void_v<std::invoke_result_t<F&, T>>) {
          std::invoke(function, static_cast<T&&>(values[i]));
          entry.value.emplace();
        } else {
          entry.value.emplace(std::invoke(function, static_cast<T&&>(values[i])));
          if (most_bytes > 0) bytes += encoded_size(*entry.value);
        }
      } catch (const abi::__forced_unwind&) {
        throw;  // pthread_exit: not an exception that anybody may swallow
      } catch (const StopRequested&) {
        throw;
      } catch (...) {
        entry.error = std::current_exception();
      }
    }
    result.time = Clock::now() - begin;
    return result;
  }

  F function;
  bool whole;  // whatever it takes

 private:
  template <class R>
  static std::size_t encoded_size(const R& value) {
    if constexpr (Serializable<R>) {
      Encoder counting{std::span<std::byte>()};
      bulkhead::encode(counting, value);
      return counting.size();
    } else {
      return 0;
    }
  }
};

// Each run has a copy of the item where it can.
template <class F>
inline constexpr bool is_surely_copyable<MapOne<F>> = is_surely_copyable<F>;
template <class T>
inline constexpr bool is_surely_copyable<MapItems<T>> = is_surely_copyable<T>;

// What a task is named after is the function that it calls.
template <class F>
struct NamedCallable<MapOne<F>> {
  static const F& of(const MapOne<F>& one) noexcept { return one.function; }
};
template <class F>
struct NamedCallable<MapChunk<F>> {
  static const F& of(const MapChunk<F>& chunk) noexcept { return chunk.function; }
};

}  // namespace bulkhead::detail

namespace bulkhead {

template <class F>
requires detail::SendableCallable<F>
struct codec<detail::MapOne<F>> {
  static void encode(Encoder& encoder, const detail::MapOne<F>& one) { detail::encode_callable(one.function, encoder); }
  static detail::MapOne<F> decode(Decoder& decoder) { return detail::MapOne<F>(detail::decode_callable<F>(decoder)); }
};

template <class F>
requires detail::SendableCallable<F>
struct codec<detail::MapChunk<F>> {
  static void encode(Encoder& encoder, const detail::MapChunk<F>& chunk) {
    detail::encode_callable(chunk.function, encoder);
    bulkhead::encode(encoder, chunk.whole);
  }
  static detail::MapChunk<F> decode(Decoder& decoder) {
    F function = detail::decode_callable<F>(decoder);
    return detail::MapChunk<F>(std::move(function), bulkhead::decode<bool>(decoder));
  }
};

template <class T>
requires Serializable<T>
struct codec<detail::MapItems<T>> {
  static void encode(Encoder& encoder, const detail::MapItems<T>& items) {
    encoder.write_size(items.shared->values.size());
    for (const auto& value : items.shared->values) bulkhead::encode(encoder, static_cast<const T&>(value));
  }
  static detail::MapItems<T> decode(Decoder& decoder) {
    detail::MapItems<T> items{std::make_shared<typename detail::MapItems<T>::Shared>()};
    const std::size_t count = decoder.read_count(0);
    decoder.claim(count, sizeof(T));
    items.shared->values.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      detail::note_item(static_cast<std::uint32_t>(i));  // it may crash a codec of the user's
      items.shared->values.push_back(bulkhead::decode<T>(decoder));
    }
    return items;
  }
};

template <class R>
requires std::is_void_v<R> || Serializable<R>
struct codec<detail::ChunkResult<R>> {
  using Result = detail::ChunkResult<R>;

  static void encode(Encoder& encoder, const Result& result) {
    encoder.write_value(static_cast<std::int64_t>(result.time.count()));
    encoder.write_size(result.entries.size());
    for (std::size_t i = 0; i < result.entries.size(); ++i) {
      const auto& entry = result.entries[i];
      detail::note_item(static_cast<std::uint32_t>(i));
      encoder.write_value(static_cast<std::uint8_t>(entry.value ? 1 : 0));
      if (!entry.value) {
        encode_error(encoder, entry.error);
      } else if constexpr (!std::is_void_v<R>) {
        bulkhead::encode(encoder, *entry.value);
      }
    }
  }

  static Result decode(Decoder& decoder) {
    Result result;
    result.time = std::chrono::nanoseconds(decoder.read_value<std::int64_t>());
    const std::size_t count = decoder.read_count(1);
    decoder.claim(count, sizeof(typename Result::Entry));
    result.entries.resize(count);
    for (auto& entry : result.entries) {
      const auto kind = decoder.read_value<std::uint8_t>();
      if (kind > 1) decoder.fail("An item of a map has neither a value nor an error.");
      if (kind == 0) {
        entry.remote_error = bulkhead::decode<std::vector<std::byte>>(decoder);
      } else if constexpr (std::is_void_v<R>) {
        entry.value.emplace();
      } else {
        entry.value.emplace(bulkhead::decode<R>(decoder));
      }
    }
    return result;
  }

 private:
  static void encode_error(Encoder& encoder, const std::exception_ptr& error) {
    Encoder counting{std::span<std::byte>()};
    detail::encode_exception(counting, error);
    std::vector<std::byte> bytes(counting.size());
    Encoder writing{std::span<std::byte>(bytes)};
    detail::encode_exception(writing, error);
    bulkhead::encode(encoder, bytes);
  }
};

}  // namespace bulkhead
