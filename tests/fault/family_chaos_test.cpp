// SPDX-License-Identifier: BSL-1.0
// The whole family at random: every kind of executor, a user's own among them, alone, in hybrids, in a registry and in
// the unified Executor; one or three threads in the event loop; tasks that are submitted, spawned, called by their
// name, put off, repeated and grouped, with all options; results that are looked up, cancellations, time limits,
// retries, instances, crashes, shutdowns, restarts and destruction. With exact accounting: each caller is told once,
// and what it is told is the end of its task in the events, the metrics add up at every instant, and no thread,
// process or descriptor is left.
//
//   BULKHEAD_CHAOS_SECONDS=3600 BULKHEAD_CHAOS_SEED=7 fault_family_chaos_test    10 seconds and a random seed by
//   default; the seed of an episode that fails begins with that episode
#include <bulkhead/local_executor.hpp>

#include "fault/family_chaos/family_episode.hpp"
#include "fault/family_chaos/resources.hpp"
#include "fault/family_chaos/tasks.hpp"
#include "fault/family_chaos/unified_episode.hpp"
#include "support/catch.hpp"
#include "support/environment.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"

#include <boost/asio/io_context.hpp>

#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <random>
#include <string>

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::test::number_from;
using bulkhead::test::poll_until;
using bulkhead::test::family_chaos::act;
using bulkhead::test::family_chaos::FamilyEpisode;
using bulkhead::test::family_chaos::Resources;
using bulkhead::test::family_chaos::UnifiedEpisode;

TEST_CASE("74: whatever happens to the whole family, every task has one end and everything adds up", "[fault]") {
  const std::uint64_t seed = number_from("BULKHEAD_CHAOS_SEED", std::random_device()());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(number_from("BULKHEAD_CHAOS_SECONDS", 10));
  std::cout << "BULKHEAD_CHAOS_SEED=" << seed << std::endl;
  {
    // What is opened once is kept: the fork server, for one.
    asio::io_context context;
    LocalExecutor first(context.get_executor(), bulkhead::test::workers(1));
    bulkhead::test::run(context, first.submit(act, 0, 0));
  }
  REQUIRE(poll_until([] { return bulkhead::test::descendants().size() == 1; }, bulkhead::test::kGone));
  const Resources before = Resources::now();
  std::uint64_t tasks = 0;
  std::uint64_t episodes = 0;
  for (; std::chrono::steady_clock::now() < end; ++episodes) {
    const std::uint64_t own = seed + episodes;
    INFO("BULKHEAD_CHAOS_SEED=" << own);
    std::string about;
    const auto play = [&](auto episode) {
      const std::string wrong = episode->play();
      about = episode->about();
      INFO(about);
      REQUIRE(wrong == "");
      tasks += episode->tasks();
    };
    if (own % 8 == 0) {
      play(std::make_unique<UnifiedEpisode>(own));
    } else {
      play(std::make_unique<FamilyEpisode>(own));
    }
    const bool all_gone = poll_until([&] { return Resources::now() == before; }, bulkhead::test::kGone);
    INFO(about << "; left are " << Resources::now().to_string() << "; before there were " << before.to_string());
    REQUIRE(all_gone);
  }
  std::cout << episodes << " episodes, " << tasks << " tasks" << std::endl;
  CHECK(tasks > 0);
}
