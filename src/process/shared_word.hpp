// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <atomic>
#include <type_traits>

namespace bulkhead::process {

/// A word in memory that one process writes and another reads. It lies there as a plain T does.
///
/// The reader's process is the one to be protected: the writer may change the word at any time. A plain member can be
/// read twice without anybody having written that, once to be checked and once to be used, for compilers load again
/// what they could keep. This one can only be loaded on purpose, into a variable.
template <class T>
class SharedWord {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  // A lock would be this process's own, and the other one would not see it.
  static_assert(std::atomic<T>::is_always_lock_free);
  static_assert(sizeof(std::atomic<T>) == sizeof(T) && alignof(std::atomic<T>) == alignof(T));
  static_assert(std::is_standard_layout_v<std::atomic<T>>);

 public:
  T load(std::memory_order order = std::memory_order_relaxed) const noexcept { return word_.load(order); }
  void store(T value, std::memory_order order = std::memory_order_relaxed) noexcept { word_.store(value, order); }

  /// The word itself, for its writer: to sleep on it, or to hand it to who knows nothing of other processes. The reader
  /// has only a constant one.
  std::atomic<T>* address() noexcept { return &word_; }

 private:
  std::atomic<T> word_;
};

}  // namespace bulkhead::process
