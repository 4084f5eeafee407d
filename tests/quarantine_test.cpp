// SPDX-License-Identifier: BSL-1.0
#include "quarantine.hpp"

#include "support/catch.hpp"

#include <chrono>
#include <string>

using bulkhead::detail::Quarantine;
using namespace std::chrono_literals;

TEST_CASE("a key is refused for a while after so many crashes in a row, and one run that survives clears it",
          "[quarantine]") {
  Quarantine quarantine(3, 60s);
  CHECK(quarantine.empty());
  quarantine.crashed("a", 1s);
  quarantine.crashed("a", 2s);
  CHECK_FALSE(quarantine.refused("a", 3s));
  quarantine.survived("a");
  quarantine.crashed("a", 4s);
  quarantine.crashed("a", 5s);
  CHECK_FALSE(quarantine.refused("a", 6s));
  quarantine.crashed("a", 7s);
  const auto refusal = quarantine.refused("a", 8s);
  REQUIRE(refusal);
  CHECK(refusal->crashes == 3);
  CHECK(refusal->remaining == 59s);
  CHECK(quarantine.count(8s) == 1);
  CHECK_FALSE(quarantine.refused("a", 67s));
  // Its next crash is enough.
  quarantine.crashed("a", 68s);
  CHECK(quarantine.refused("a", 69s));
}

TEST_CASE("a flood of keys that crash once neither frees a refused key nor keeps another from being refused",
          "[quarantine]") {
  Quarantine quarantine(3, 1h);
  for (int i = 0; i < 3; ++i) quarantine.crashed("a refused key", 1s);
  REQUIRE(quarantine.refused("a refused key", 2s));
  for (int i = 0; i < 30'000; ++i) {
    quarantine.crashed("flood " + std::to_string(i), 2s + std::chrono::milliseconds(i));
    if (i % 10'000 == 9'999) quarantine.crashed("a second key", 2s + std::chrono::milliseconds(i));
  }
  CHECK(quarantine.refused("a refused key", 60s));
  // Between its crashes more keys came than are kept: so it is forgotten, as the oldest are.
  CHECK_FALSE(quarantine.refused("a second key", 60s));
  for (int i = 0; i < 3; ++i) {
    quarantine.crashed("a third key", 61s);
    quarantine.crashed("flood again " + std::to_string(i), 61s);
  }
  CHECK(quarantine.refused("a third key", 62s));
}
