// SPDX-License-Identifier: BSL-1.0
// Random numbers: workers are copies of one process, and must not be copies of its generators.
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/shared.hpp"

#include <boost/asio/io_context.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// WITH_OPENSSL: 1 where the build has found it, else 0.
#if WITH_OPENSSL
#include <openssl/rand.h>
#endif

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::test::all_over;
using bulkhead::test::Gate;
using bulkhead::test::holds;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using bulkhead::test::whole;

namespace {

constexpr unsigned kWorkers = 4;
constexpr std::size_t kDraws = 8;

Gate& gate = shared_object<Gate>();

// As libraries have one: made once, for the whole program.
std::mt19937_64& generator_of_a_library() {
  static std::mt19937_64 generator;
  return generator;
}

void seed_library() {
  std::random_device device;
  std::seed_seq seeds{device(), device(), device(), device()};
  generator_of_a_library().seed(seeds);
}

std::uint64_t draw_from_openssl() {
  std::uint64_t drawn = 0;
#if WITH_OPENSSL
  if (::RAND_bytes(reinterpret_cast<unsigned char*>(&drawn), sizeof(drawn)) != 1) {
    throw std::runtime_error("RAND_bytes has failed");
  }
#endif
  return drawn;
}

// Both generators are at work before the first fork.
void use_generators() {
  seed_library();
  generator_of_a_library()();
  draw_from_openssl();
}

struct Drawn {
  std::array<std::uint64_t, kDraws> device{};
  std::array<std::uint64_t, kDraws> library{};
  std::array<std::uint64_t, kDraws> openssl{};
};

Drawn draw() {
  gate.wait();
  std::random_device device;
  Drawn drawn;
  for (std::uint64_t& number : drawn.device) number = std::uint64_t{device()} << 32 | device();
  for (std::uint64_t& number : drawn.library) number = generator_of_a_library()();
  for (std::uint64_t& number : drawn.openssl) number = draw_from_openssl();
  return drawn;
}

void crash() {
  gate.wait();
  __builtin_trap();
}

// Runs the function in all workers at once.
template <class R>
std::vector<Outcome<R>> run_in_all(asio::io_context& context, LocalExecutor& pool, R (*function)()) {
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  gate.reset();
  std::vector<Outcome<R>> outcomes(kWorkers);
  for (Outcome<R>& outcome : outcomes) pool.async_submit(bulkhead::call(function), outcome.handler());
  REQUIRE(run_until(context, [] { return gate.waiting == static_cast<int>(kWorkers); }));
  gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  return outcomes;
}

LocalExecutorOptions options_with_generators() {
  LocalExecutorOptions options = bulkhead::test::workers(kWorkers);
  options.preload = use_generators;
  return options;
}

// What all workers of a pool draw, those that replace crashed ones too.
std::vector<Drawn> draw_and_crash(const LocalExecutorOptions& options) {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<Drawn> all;
  for (int generation = 0; generation < 3; ++generation) {
    for (const Outcome<Drawn>& outcome : run_in_all(context, pool, draw)) {
      INFO(message(outcome.error));
      REQUIRE_FALSE(outcome.error);
      all.push_back(*outcome.value);
    }
    for (const Outcome<void>& outcome : run_in_all(context, pool, crash))
      CHECK(holds<WorkerCrashedError>(outcome.error));
  }
  return all;
}

std::size_t different(const std::vector<Drawn>& all, std::array<std::uint64_t, kDraws> Drawn::*source) {
  std::set<std::uint64_t> numbers;
  for (const Drawn& drawn : all) numbers.insert((drawn.*source).begin(), (drawn.*source).end());
  return numbers.size();
}

}  // namespace

TEST_CASE(
    "56: four workers, and those that replace them, draw no number twice: from random_device, from OpenSSL, and from a "
    "library's generator that the initializer seeds",
    "[fault]") {
  LocalExecutorOptions options = options_with_generators();
  options.initializer = seed_library;
  const std::vector<Drawn> all = draw_and_crash(options);
  REQUIRE(all.size() == 3 * kWorkers);
  CHECK(different(all, &Drawn::device) == all.size() * kDraws);
  CHECK(different(all, &Drawn::library) == all.size() * kDraws);
#if WITH_OPENSSL
  CHECK(different(all, &Drawn::openssl) == all.size() * kDraws);
#endif
}

TEST_CASE("56: a library's generator that only preload has seeded draws the same numbers in all workers", "[fault]") {
  // Nobody but the library knows of it; this is why the initializer is there to seed it.
  const std::vector<Drawn> all = draw_and_crash(options_with_generators());
  REQUIRE(all.size() == 3 * kWorkers);
  CHECK(different(all, &Drawn::library) == kDraws);
  CHECK(different(all, &Drawn::device) == all.size() * kDraws);
#if WITH_OPENSSL
  CHECK(different(all, &Drawn::openssl) == all.size() * kDraws);
#endif
}
