// SPDX-License-Identifier: BSL-1.0
#include "process/adaptive_spin.hpp"

#include "support/catch.hpp"

#include <cstdint>

using bulkhead::process::AdaptiveSpin;

namespace {

constexpr std::uint32_t kMost = 200;

// Looks for what comes after `needed` vain looks; whether that was in time.
bool look_for(AdaptiveSpin& spin, std::uint32_t needed) {
  if (needed < spin.looks(kMost)) {
    spin.found(needed);
    return true;
  }
  spin.missed(kMost);
  return false;
}

}  // namespace

TEST_CASE("who has learned nothing yet looks as often as it may", "[spin]") {
  const AdaptiveSpin spin;
  CHECK(spin.looks(kMost) == kMost);
  CHECK(spin.looks(0) == 0);
}

TEST_CASE("where it comes at once, few looks are enough", "[spin]") {
  AdaptiveSpin spin;
  for (int i = 0; i < 100; ++i) REQUIRE(look_for(spin, 1));
  CHECK(spin.looks(kMost) < 40);
  CHECK(spin.looks(kMost) > 4);
}

TEST_CASE("where it comes later, but in time, it is looked for as long as that takes", "[spin]") {
  AdaptiveSpin spin;
  for (int i = 0; i < 100; ++i) REQUIRE(look_for(spin, 150));
  // Also if it becomes slower.
  for (int i = 0; i < 100; ++i) look_for(spin, 2);
  int vain = 0;
  for (int i = 0; i < 100; ++i) vain += look_for(spin, 150) ? 0 : 1;
  CHECK(vain <= 1);
}

TEST_CASE("one pause does not end the looking", "[spin]") {
  AdaptiveSpin spin;
  for (int i = 0; i < 1000; ++i) {
    const bool pause = i % 10 == 9;
    REQUIRE(look_for(spin, pause ? kMost : 3) != pause);
  }
}

TEST_CASE("where it never comes in time, hardly any looks are taken", "[spin]") {
  AdaptiveSpin spin;
  std::uint64_t looks = 0;
  for (int i = 0; i < 6400; ++i) {
    looks += spin.looks(kMost);
    REQUIRE_FALSE(look_for(spin, kMost));
  }
  CHECK(looks <= std::uint64_t{kMost} * (6400 / 64 + 10));
}

TEST_CASE("where it comes in time again, that is noticed", "[spin]") {
  AdaptiveSpin spin;
  for (int i = 0; i < 1000; ++i) look_for(spin, kMost);
  int vain = 0;
  while (!look_for(spin, 3)) ++vain;
  CHECK(vain <= 64);
  for (int i = 0; i < 100; ++i) REQUIRE(look_for(spin, 3));
}
