// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <cstdint>

namespace bulkhead::process {

/// How often it pays to look for something before sleeping until it comes: learned from how many looks it took.
///
/// Looking pays where whoever makes it runs at the same time, on another CPU, and needs less time than a sleep and a
/// wake-up take. Where that is not so, looking takes the CPU from whoever makes it: this gives up after a few vain
/// tries, and tries again from time to time.
///
/// Knows neither clocks nor what is looked for. Not thread-safe.
class AdaptiveSpin {
 public:
  /// How many looks to take before sleeping, of at most `most`.
  std::uint32_t looks(std::uint32_t most) const noexcept { return std::min(looks_, most); }

  /// It came after so many vain looks.
  void found(std::uint32_t vain_looks) noexcept {
    // Up at once, and down by an eighth of the way: in eighths.
    recent_ = std::max(8 * vain_looks, recent_ - recent_ / 8 + vain_looks);
    // Four times as many, since one sleep costs more than many looks; and some, so that one look more does no harm.
    looks_ = 4 * (recent_ / 8) + kSpareLooks;
    vain_ = 0;
  }

  /// It did not come: now follows a sleep.
  void missed(std::uint32_t most) noexcept {
    if (most == 0) return;  // nobody has looked
    ++vain_;
    // At first it may only have become slower.
    looks_ = vain_ < kVainTries || vain_ % kTryAgain == 0 ? most : 0;
  }

 private:
  // Enough for a first success with a few looks.
  static constexpr std::uint32_t kSpareLooks = 16;
  // A pause of the one who makes it, who was interrupted, say, must not end the looking.
  static constexpr std::uint32_t kVainTries = 4;
  // In vain each time, looking then takes a sixty-fourth of what it would take always.
  static constexpr std::uint32_t kTryAgain = 64;

  std::uint32_t looks_ = UINT32_MAX;
  std::uint32_t recent_ = 0;
  std::uint32_t vain_ = 0;
};

}  // namespace bulkhead::process
