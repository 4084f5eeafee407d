// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/spare_nodes.hpp>

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
    if (spare.type != nullptr) ::operator delete(spare.memory);
  }
  over = true;
}

}  // namespace bulkhead::detail
