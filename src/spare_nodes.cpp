// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/spare_nodes.hpp>

#include <boost/asio/recycling_allocator.hpp>

#include <cstddef>

namespace bulkhead::detail {
namespace {

thread_local bool over = false;  // what other thread-local objects' destructors submit comes after it

}  // namespace

SpareNodes* SpareNodes::here() noexcept {
  thread_local SpareNodes spares;
  return over ? nullptr : &spares;
}

SpareNodes::~SpareNodes() {
  for (const Spare& spare : spares_) {
    if (spare.type != nullptr) free(spare);
  }
  over = true;
}

// Not by code of the node's own type, which may lie in a library that has gone meanwhile.
void SpareNodes::free(const Spare& spare) noexcept {
  asio::recycling_allocator<std::byte>().deallocate(static_cast<std::byte*>(spare.memory), spare.size);
}

}  // namespace bulkhead::detail
