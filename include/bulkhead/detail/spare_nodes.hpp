// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <cstddef>
#include <cstdint>

namespace bulkhead::detail {

// Nodes of tasks that are over, as they were made, for the next task of the same type on this thread: to make one and
// to take it apart is a fifth of what a tiny task costs the host. They hold nothing that would have to be destroyed.
class SpareNodes {
 public:
  // This thread's; null while the thread ends.
  BULKHEAD_EXPORT static SpareNodes* here() noexcept;

  SpareNodes() = default;
  BULKHEAD_EXPORT ~SpareNodes();
  SpareNodes(const SpareNodes&) = delete;
  SpareNodes& operator=(const SpareNodes&) = delete;

  // `type`: an address that stands for it. Null: there is none.
  void* take(const void* type) noexcept {
    Spare& spare = of(type);
    if (spare.type != type) return nullptr;
    spare.type = nullptr;
    return spare.memory;
  }
  // Memory from Asio's recycling allocator.
  void keep(const void* type, void* memory, std::size_t size) noexcept {
    Spare& spare = of(type);
    if (spare.type != nullptr) free(spare);
    spare = {type, memory, size};
  }

 private:
  struct Spare {
    const void* type = nullptr;
    void* memory = nullptr;
    std::size_t size = 0;
  };
  // A handler submits the next task as the node of its own has become free, so one of a type is enough; and so many
  // types, as few programs submit more of tiny tasks at a time.
  static constexpr std::size_t kTypes = 8;

  BULKHEAD_EXPORT static void free(const Spare& spare) noexcept;

  // The addresses are of single bytes, which linkers put one beside the other.
  Spare& of(const void* type) noexcept { return spares_[reinterpret_cast<std::uintptr_t>(type) % kTypes]; }

  Spare spares_[kTypes];
};

}  // namespace bulkhead::detail
