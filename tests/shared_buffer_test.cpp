// SPDX-License-Identifier: BSL-1.0
// Memory that host and workers share.
#include <bulkhead/bulkhead.hpp>

#include "process/shared_area.hpp"
#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::ExecutorOverloadError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::SerializationError;
using bulkhead::SharedBuffer;
using bulkhead::TaskOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::test::board;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::holds;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::reset_board;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::wait_at_gate;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

LocalExecutorOptions shared(std::size_t size, bool bypass = false) {
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.max_shared_memory = size;
  options.bypass = bypass;
  return options;
}

void fill(const SharedBuffer& buffer, int value) {
  std::fill(buffer.begin(), buffer.end(), static_cast<std::byte>(value));
}
bool all_are(const SharedBuffer& buffer, int value) {
  return std::all_of(buffer.begin(), buffer.end(),
                     [value](std::byte byte) { return byte == static_cast<std::byte>(value); });
}

SharedBuffer give_back(SharedBuffer buffer) { return buffer; }
SharedBuffer add_one(SharedBuffer buffer) {
  for (std::byte& byte : buffer) byte = static_cast<std::byte>(std::to_integer<int>(byte) + 1);
  return buffer;
}
SharedBuffer keep_half(SharedBuffer buffer) {
  buffer.resize(buffer.size() / 2);
  return buffer;
}
long sum(std::span<const std::byte> bytes) {
  long total = 0;
  for (const std::byte byte : bytes) total += std::to_integer<int>(byte);
  return total;
}
std::pair<SharedBuffer, SharedBuffer> swap_them(SharedBuffer first, SharedBuffer second) { return {second, first}; }
std::vector<SharedBuffer> reversed(std::vector<SharedBuffer> buffers) {
  std::reverse(buffers.begin(), buffers.end());
  return buffers;
}
SharedBuffer crash_with(SharedBuffer) { std::abort(); }
SharedBuffer wait_with(SharedBuffer buffer) {
  wait_at_gate(0);
  return buffer;
}
std::optional<SharedBuffer> kept;
// What it gives back is of the task before.
SharedBuffer give_the_one_before(SharedBuffer buffer) {
  SharedBuffer before = kept.value_or(buffer);
  kept = buffer;
  return before;
}

}  // namespace

TEST_CASE("a buffer is filled here, changed in a worker and comes back, as the same memory", "[shared]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(8 * kMiB, bypass));
  SharedBuffer buffer = pool.make_buffer(kMiB);
  REQUIRE(buffer.size() == kMiB);
  const std::byte* const where = buffer.data();
  fill(buffer, 7);
  buffer = run(context, pool.submit(add_one, std::move(buffer)));
  CHECK(buffer.data() == where);
  CHECK(buffer.size() == kMiB);
  CHECK(all_are(buffer, 8));
  // Smaller, and as large as before.
  buffer = run(context, pool.submit(keep_half, buffer));
  CHECK(buffer.size() == kMiB / 2);
  buffer.resize(kMiB);
  CHECK(all_are(buffer, 8));
  CHECK_THROWS_AS(buffer.resize(buffer.capacity() + 1), std::length_error);
}

TEST_CASE("a function that takes a span of bytes sees a buffer where it lies", "[shared]") {
  const bool bypass = GENERATE(false, true);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB, bypass));
  const SharedBuffer buffer = pool.make_buffer(1000);
  fill(buffer, 3);
  CHECK(run(context, pool.submit(sum, buffer)) == 3000);
}

TEST_CASE("buffers travel in pairs, containers and results, and an empty one is nothing", "[shared]") {
  const bool bypass = GENERATE(false, true);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB, bypass));
  const SharedBuffer one = pool.make_buffer(1);
  const SharedBuffer two = pool.make_buffer(2);
  const auto swapped = run(context, pool.submit(swap_them, one, two));
  CHECK(swapped.first.data() == two.data());
  CHECK(swapped.second.data() == one.data());
  CHECK(swapped.first.size() == 2);
  const std::vector<SharedBuffer> three{one, SharedBuffer(), two};
  const auto back = run(context, pool.submit(reversed, three));
  REQUIRE(back.size() == 3);
  CHECK(back[0].data() == two.data());
  CHECK(back[1].empty());
  CHECK(back[2].data() == one.data());
  // And where nothing travels.
  bulkhead::ThreadExecutor blocking(context.get_executor());
  CHECK(run(context, blocking.submit(give_back, one)).data() == one.data());
  const std::vector<SharedBuffer> both{one, two};
  const auto mapped = run(context, pool.map(give_back, both));
  CHECK(mapped.at(1).data() == two.data());
}

TEST_CASE("a buffer that was moved from has no memory, whatever becomes of it", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  SharedBuffer buffer = pool.make_buffer(kMiB);
  SharedBuffer moved = std::move(buffer);
  CHECK(buffer.empty());            // NOLINT(bugprone-use-after-move): that is what it is about
  CHECK(buffer.data() == nullptr);  // NOLINT(bugprone-use-after-move)
  CHECK(buffer.capacity() == 0);    // NOLINT(bugprone-use-after-move)
  CHECK(moved.size() == kMiB);
  try {
    moved = run(context, pool.submit(crash_with, std::move(moved)));
  } catch (const WorkerCrashedError&) {
  }
  CHECK(moved.empty());  // NOLINT(bugprone-use-after-move)
  // It was the only one, so there is room for another.
  CHECK(pool.make_buffer(kMiB).size() == kMiB);
}

TEST_CASE("one buffer may be passed twice in a call, and with no bytes", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  SharedBuffer buffer = pool.make_buffer(100);
  auto [first, second] = run(context, pool.submit(swap_them, buffer, buffer));
  CHECK(first.data() == buffer.data());
  CHECK(second.data() == buffer.data());
  buffer.resize(0);
  buffer = run(context, pool.submit(give_back, std::move(buffer)));
  CHECK(buffer.empty());
  buffer.resize(100);
  CHECK(buffer.size() == 100);
}

TEST_CASE("spawned tasks take buffers and give them back, which count for the memory of the store", "[shared]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB, bypass));
  SharedBuffer buffer = pool.make_buffer(1000);
  fill(buffer, 1);
  auto handle = pool.spawn(add_one, buffer);
  const SharedBuffer changed = run(context, handle.result());
  CHECK(changed.size() == 1000);
  CHECK(all_are(changed, 2));
  CHECK(changed.data() == buffer.data());
}

TEST_CASE("memory is given back with the last copy of a buffer, and used again", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(2 * kMiB));
  const std::byte* where = nullptr;
  {
    const SharedBuffer first = pool.make_buffer(2 * kMiB);
    where = first.data();
    const SharedBuffer copy = run(context, pool.submit(give_back, first));
    CHECK(message([&] {
            try {
              static_cast<void>(pool.make_buffer(1));
            } catch (const ExecutorOverloadError&) {
              return std::current_exception();
            }
            return std::exception_ptr();
          }())
              .find("max_shared_memory") != std::string::npos);
  }
  const SharedBuffer next = pool.make_buffer(2 * kMiB);
  CHECK(next.data() == where);
}

TEST_CASE("a buffer is reclaimed from a worker that crashes, and usable in the next", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  {
    const SharedBuffer buffer = pool.make_buffer(kMiB);
    fill(buffer, 1);
    CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(crash_with, buffer))));
    CHECK(all_are(buffer, 1));
    CHECK(run(context, pool.submit(sum, buffer)) == static_cast<long>(kMiB));
    CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(crash_with, buffer))));
  }
  // The dead worker's place lets go of it within a moment.
  CHECK(run_until(context, [&] {
    try {
      static_cast<void>(pool.make_buffer(kMiB));
      return true;
    } catch (const ExecutorOverloadError&) {
      return false;
    }
  }));
}

TEST_CASE("a task that is over for its caller keeps its buffer for as long as its worker can touch it", "[shared]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  SharedBuffer buffer = pool.make_buffer(kMiB);
  Outcome<SharedBuffer> outcome;
  pool.async_submit(bulkhead::call(wait_with, std::move(buffer)), outcome.handler());
  buffer = SharedBuffer();
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK_THROWS_AS(pool.make_buffer(1), ExecutorOverloadError);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  REQUIRE(outcome.value);
  CHECK(outcome.value->size() == kMiB);
}

TEST_CASE("a task can give back only buffers that it was passed", "[shared]") {
  const bool bypass = GENERATE(false, true);
  kept.reset();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB, bypass));
  const SharedBuffer first = pool.make_buffer(100);
  const SharedBuffer second = pool.make_buffer(100);
  CHECK(run(context, pool.submit(give_the_one_before, first)).data() == first.data());
  const auto error = error_as<SerializationError>(failure(context, pool.submit(give_the_one_before, second)));
  REQUIRE(error);
  CHECK(error->part() == SerializationError::Part::result);
  CHECK_THAT(error->what(), ContainsSubstring("none of the buffers"));
}

TEST_CASE("a buffer of another executor is refused before the task runs, and says why", "[shared]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  LocalExecutor other(context.get_executor(), shared(kMiB));
  LocalExecutor without(context.get_executor(), shared(0));
  const SharedBuffer buffer = pool.make_buffer(100);
  for (LocalExecutor* executor : {&other, &without}) {
    const auto error = error_as<SerializationError>(failure(context, executor->submit(wait_with, buffer)));
    REQUIRE(error);
    CHECK(error->part() == SerializationError::Part::argument);
    CHECK_THAT(error->what(), ContainsSubstring("another executor"));
  }
  CHECK(board.gate.waiting == 0);
  CHECK_THROWS_AS(bulkhead::to_bytes(buffer), SerializationError);
}

TEST_CASE("buffers that can never be had are refused, and say which option to change", "[shared]") {
  asio::io_context context;
  LocalExecutor without(context.get_executor(), shared(0));
  CHECK(without.make_buffer(0).empty());
  CHECK_THROWS_WITH(without.make_buffer(1), ContainsSubstring("max_shared_memory"));
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  CHECK_THROWS_AS(pool.make_buffer(kMiB + 1), std::invalid_argument);
  LocalExecutorOptions huge;
  huge.max_shared_memory = std::size_t{1} << 50;
  CHECK_THROWS_WITH(LocalExecutor(context.get_executor(), huge), ContainsSubstring("max_shared_memory"));
}

TEST_CASE("a forked copy of the program is refused buffers, whose memory it does not have", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  const pid_t copy = ::fork();
  REQUIRE(copy >= 0);
  if (copy == 0) {
    try {
      static_cast<void>(pool.make_buffer(1));
      ::_exit(1);
    } catch (const bulkhead::ExecutorNotRunningError&) {
      ::_exit(0);
    }
  }
  int status = -1;
  REQUIRE(::waitpid(copy, &status, 0) == copy);
  CHECK(status == 0);
}

TEST_CASE("a buffer outlives its executor and its event loop", "[shared]") {
  SharedBuffer buffer;
  {
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), shared(kMiB));
    buffer = pool.make_buffer(1000);
    fill(buffer, 5);
    buffer = run(context, pool.submit(add_one, buffer));
  }
  CHECK(all_are(buffer, 6));
}

TEST_CASE("retries get the buffer again", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  const SharedBuffer buffer = pool.make_buffer(10);
  const auto fail_once = [](SharedBuffer given) {
    bulkhead::test::succeed_at_run(2);
    return given;
  };
  CHECK(run(context, pool.submit(TaskOptions().retry(bulkhead::RetryPolicy(2)), fail_once, buffer)).data() ==
        buffer.data());
}

TEST_CASE("an executor gives memory that no buffer is in back to the system after a while", "[shared]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), shared(kMiB));
  // The only one there is.
  const auto resident_here = [] {
    std::size_t blocks = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code ignored;
      const auto target = std::filesystem::read_symlink(entry.path(), ignored);
      struct stat info {};
      if (target.string().find("bulkhead-shared") == std::string::npos) continue;
      if (::stat(entry.path().c_str(), &info) == 0) blocks += static_cast<std::size_t>(info.st_blocks);
    }
    return blocks * 512;
  };
  fill(pool.make_buffer(kMiB), 1);
  CHECK(resident_here() == kMiB);
  CHECK(run_until(context, [&] { return resident_here() == 0; }));
}

namespace {

// Bytes of an area's memory that are really there.
std::size_t resident(const bulkhead::process::SharedArea& area) {
  struct stat info {};
  if (::fstat(area.descriptor().get(), &info) != 0) throw std::runtime_error("cannot look at the area");
  return static_cast<std::size_t>(info.st_blocks) * 512;
}

}  // namespace

TEST_CASE("memory that no buffer is in is given back to the system when that is asked for, and only then", "[shared]") {
  bulkhead::process::SharedArea area(8 * kMiB);
  int unused = 0;
  area.on_unused([&] { ++unused; });
  const auto first = area.allocate(kMiB);
  const auto second = area.allocate(kMiB);
  REQUIRE(first);
  REQUIRE(second);
  std::fill_n(area.data() + *first, kMiB, std::byte{1});
  std::fill_n(area.data() + *second, kMiB, std::byte{1});
  CHECK(resident(area) == 2 * kMiB);
  area.release(*first, kMiB);
  area.give_back_unused();
  CHECK(unused == 0);
  CHECK(resident(area) == 2 * kMiB);
  area.release(*second, kMiB);
  CHECK(unused == 1);
  CHECK(area.used() == 0);
  CHECK(resident(area) == 2 * kMiB);
  area.give_back_unused();
  CHECK(resident(area) == 0);
}
