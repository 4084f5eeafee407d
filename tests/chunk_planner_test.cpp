// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/chunk_planner.hpp>

#include "support/catch.hpp"

#include <chrono>
#include <cstddef>

using bulkhead::detail::ChunkPlanner;
using namespace std::chrono_literals;

namespace {

// So many tasks whose items take so long each.
void run(ChunkPlanner& planner, int tasks, std::chrono::nanoseconds each) {
  for (int i = 0; i < tasks; ++i) planner.ran(planner.next(), each * static_cast<int>(planner.next()));
}

}  // namespace

TEST_CASE("the first tasks of a map have one item", "[map]") { CHECK(ChunkPlanner(0, 64).next() == 1); }

TEST_CASE("a size that was asked for is kept, however long the items take", "[map]") {
  ChunkPlanner planner(5, 64);
  CHECK(planner.next() == 5);
  run(planner, 10, 1ns);
  CHECK(planner.next() == 5);
  run(planner, 10, 1s);
  CHECK(planner.next() == 5);
}

TEST_CASE("small items come to be put together, twice as many each time, up to the largest chunk", "[map]") {
  ChunkPlanner planner(0, 64);
  run(planner, 1, 100ns);
  CHECK(planner.next() == 2);
  run(planner, 1, 100ns);
  CHECK(planner.next() == 4);
  run(planner, 20, 100ns);
  CHECK(planner.next() == 64);
}

TEST_CASE("as many items are put together as take 50 microseconds", "[map]") {
  ChunkPlanner planner(0, 64);
  run(planner, 50, 5us);
  CHECK(planner.next() == 10);
}

TEST_CASE("items that take long go one by one", "[map]") {
  ChunkPlanner planner(0, 64);
  run(planner, 50, 50us);
  CHECK(planner.next() == 1);
  run(planner, 50, 1s);
  CHECK(planner.next() == 1);
}

TEST_CASE("when items become longer, chunks become shorter", "[map]") {
  ChunkPlanner planner(0, 64);
  run(planner, 20, 100ns);
  run(planner, 1, 1ms);
  CHECK(planner.next() == 1);
}

TEST_CASE("times that cannot be do no harm", "[map]") {
  ChunkPlanner planner(0, 64);
  planner.ran(0, 1s);
  planner.ran(1, -1s);
  planner.ran(1, 0s);
  CHECK(planner.next() >= 1);
  CHECK(planner.next() <= 64);
  planner.ran(1, std::chrono::nanoseconds::max());
  CHECK(planner.next() == 1);
}
