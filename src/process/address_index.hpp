// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bulkhead::process {

/// Finds the range of addresses that an address lies in. 16 bytes a range: large programs have a million functions.
class AddressIndex {
 public:
  struct Range {
    std::uint64_t begin;
    std::uint32_t size;   // 0: not known, up to where the next one begins
    std::uint32_t value;  // whatever belongs to the range
  };

  AddressIndex() = default;
  /// Of ranges that begin at the same address, the longest is kept, and of equally long ones the first.
  explicit AddressIndex(std::vector<Range> ranges);

  /// The range that begins there; null if none does.
  const Range* starting_at(std::uint64_t address) const;
  /// The range around the address, of several the one that begins last; null if there is none.
  const Range* around(std::uint64_t address) const;

  std::size_t size() const noexcept { return ranges_.size(); }

 private:
  std::vector<Range> ranges_;
  std::uint32_t longest_ = 0;  // of the sizes that were known
};

}  // namespace bulkhead::process
