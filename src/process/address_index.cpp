// SPDX-License-Identifier: BSL-1.0
#include "address_index.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace bulkhead::process {

AddressIndex::AddressIndex(std::vector<Range> ranges) : ranges_(std::move(ranges)) {
  std::stable_sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.size > b.size;
  });
  ranges_.erase(
      std::unique(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin == b.begin; }),
      ranges_.end());
  ranges_.shrink_to_fit();
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint32_t>::max();
  for (std::size_t i = 0; i < ranges_.size(); ++i) {
    if (ranges_[i].size != 0) {
      longest_ = std::max(longest_, ranges_[i].size);
    } else {
      const std::uint64_t room = i + 1 < ranges_.size() ? ranges_[i + 1].begin - ranges_[i].begin : kMost;
      ranges_[i].size = static_cast<std::uint32_t>(std::min(room, kMost));
    }
  }
}

const AddressIndex::Range* AddressIndex::starting_at(std::uint64_t address) const {
  const auto found = std::lower_bound(ranges_.begin(), ranges_.end(), address,
                                      [](const Range& range, std::uint64_t value) { return range.begin < value; });
  return found != ranges_.end() && found->begin == address ? &*found : nullptr;
}

const AddressIndex::Range* AddressIndex::around(std::uint64_t address) const {
  auto range = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                [](std::uint64_t value, const Range& other) { return value < other.begin; });
  // Hand-written assembler has functions within functions: what begins last may end before the address.
  while (range != ranges_.begin()) {
    --range;
    const std::uint64_t distance = address - range->begin;
    if (distance < range->size) return &*range;
    if (distance >= longest_) break;
  }
  return nullptr;
}

}  // namespace bulkhead::process
