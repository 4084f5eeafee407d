// SPDX-License-Identifier: BSL-1.0
// Tasks that attack the transport from inside their worker: its areas, its doorbell, and what the host decodes.
#include <bulkhead/local_executor.hpp>

#include "fault/hostile_worker/attacks.hpp"
#include "fault/hostile_worker/trial.hpp"
#include "support/catch.hpp"
#include "support/check_part.hpp"
#include "support/environment.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/sanitizer.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/io_context.hpp>

#include <sys/prctl.h>
#include <unistd.h>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace asio = boost::asio;
namespace hostile = bulkhead::test::hostile;
using bulkhead::CaptureOutput;
using bulkhead::Isolation;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::TaskOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::test::adds_up;
using bulkhead::test::check_part;
using bulkhead::test::error_as;
using bulkhead::test::message;
using bulkhead::test::number_from;
using bulkhead::test::Outcome;
using bulkhead::test::read_file;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::twice;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

namespace {

using hostile::Attack;
using hostile::attack;
using hostile::End;
using hostile::Findings;
using hostile::within;

constexpr unsigned kNobody = 65'534;

// Long after the worker has done what it does, on a busy machine.
constexpr auto kTimeout = 3s;

std::vector<Attack> counters() {
  return {
      attack("25: more answers than the ring has", hostile::claim_more_than_the_ring_has, {End::protocol}),
      attack("25: half of all numbers further", hostile::claim_a_wrapped_number, {End::protocol}),
      attack("25: fewer answers than before", hostile::claim_less_than_before, {End::protocol}),
      attack("25: 2^32 - 1 answers", hostile::claim_the_largest_number, {End::protocol}),
  };
}

std::vector<Attack> forged_answers() {
  return {
      attack("26: the largest size", hostile::forge_the_largest_size, {End::protocol}),
      attack("26: one byte more than a slot has", hostile::forge_one_byte_too_many, {End::protocol}),
      attack("26: the largest size in the heap", hostile::forge_the_largest_size_in_the_heap, {End::protocol}),
      attack("26: offset and size overflow", hostile::forge_an_overflow, {End::protocol}),
      attack("26: a huge offset", hostile::forge_a_huge_offset, {End::protocol}),
      attack("26: a negative offset", hostile::forge_a_negative_offset, {End::protocol}),
      attack("26: one that ends behind the heap", hostile::forge_what_ends_behind_the_heap, {End::protocol}),
      attack("29: another sequence number", hostile::forge_another_sequence, {End::protocol}),
      attack("29: an earlier sequence number", hostile::forge_an_earlier_sequence, {End::protocol}),
      attack("29: skipped without being taken back", hostile::forge_a_skipped_task, {End::protocol}),
      attack("29: an unknown kind", hostile::forge_an_unknown_kind, {End::protocol}),
      attack("29: the same answer twice", hostile::answer_twice, {End::protocol}),
      attack("29: answers to what was not asked", hostile::answer_what_was_not_asked, {End::protocol}),
  };
}

// With the timeout since what is random may also be silence.
std::vector<Attack> random_bytes() {
  const std::vector<End> ends{End::protocol, End::crashed, End::timed_out};
  return {
      within(kTimeout, attack("28: random bytes everywhere", hostile::write_anything_anywhere, ends)),
      within(kTimeout, attack("28: random words in the header", hostile::write_anything_into_the_header, ends)),
  };
}

std::vector<Attack> lies() {
  const std::vector<End> ends{End::protocol, End::crashed};
  return {
      attack("28: leaves as if it had never been ready", hostile::leave_as_if_never_ready, ends),
      attack("28: leaves in an unknown state", hostile::leave_in_an_unknown_state, ends),
      attack("28: leaves as if its start had failed", hostile::leave_as_if_the_start_had_failed, ends),
      attack("28: leaves as if it had not begun", hostile::leave_as_if_not_begun, ends),
      attack("28: leaves as if it had begun everything", hostile::leave_as_if_all_had_begun, ends),
      within(kTimeout, attack("28: waits as if it had not begun", hostile::wait_as_if_not_begun,
                              {End::protocol, End::crashed, End::timed_out})),
      // Longer than it may go on denying; if its beginning was seen it is a task that runs.
      within(8s, attack("28: waits as if it had not begun, with much time", hostile::wait_as_if_not_begun,
                        {End::protocol, End::crashed, End::timed_out})),
      within(kTimeout, attack("28: waits as if its start had failed", hostile::wait_as_if_the_start_had_failed,
                              {End::protocol, End::crashed, End::timed_out})),
  };
}

std::vector<Attack> areas() {
  const std::vector<End> any{End::value, End::protocol, End::crashed};
  const std::vector<End> broken{End::protocol, End::crashed, End::timed_out};
  return {
      attack("30: resizes and seals the areas", hostile::resize_and_seal, {End::value}, ""),
      attack("30: removes all pages and answers", hostile::remove_everything_and_answer, any),
      within(kTimeout, attack("30: removes all pages and rings", hostile::remove_everything_and_ring, broken)),
      attack("30: removes all pages and leaves", hostile::remove_everything_and_leave, {End::protocol, End::crashed}),
      attack("30: removes all pages and crashes", hostile::remove_everything_and_crash, {End::protocol, End::crashed}),
      attack("30: removes what the host reads", hostile::remove_what_is_read, {End::value, End::serialization}),
      attack("30: punches holes", hostile::punch_holes, any),
      attack("31: writes to the request area", hostile::write_to_the_request_area, {End::value}, ""),
  };
}

std::vector<Attack> wake_ups() {
  return {
      attack("32: fills the doorbell", hostile::fill_the_doorbell, {End::value}, 42),
      attack("32: fills the doorbell and leaves", hostile::fill_the_doorbell_and_leave, {End::crashed}),
      attack("32: drains the doorbell", hostile::drain_the_doorbell, {End::value}, 42),
      attack("32: rings 100,000 times and leaves", hostile::ring_and_leave, {End::crashed}),
      within(500ms, attack("33: never answers", hostile::never_answer, {End::timed_out})),
      within(500ms, attack("33: answers and never rings", hostile::never_ring, {End::value, End::timed_out})),
  };
}

std::vector<Attack> impossible_values() {
  const std::vector<End> refused{End::serialization};
  return {
      attack("34: 4 GiB in the heap", hostile::claim_4_gib, {End::protocol}),
      attack("34: a string of 4 GiB", hostile::answer_4_gib, refused),
      attack("34: a billion numbers", hostile::answer_a_billion, refused),
      attack("34: a billion strings", hostile::answer_a_billion_strings, refused),
      attack("34: a map of 2^64 - 1", hostile::answer_the_largest_map, refused),
      attack("34: a million levels", hostile::answer_a_deep_tree, refused),
      attack("34: a count without an end", hostile::answer_an_endless_count, refused),
      attack("34: an exception of 4 GiB", hostile::answer_a_long_exception, refused),
      attack("35: no bytes", hostile::answer_nothing, refused),
      attack("35: too few bytes", hostile::answer_too_little, refused),
      attack("35: too many bytes", hostile::answer_too_much, refused),
      attack("35: neither a value nor an exception", hostile::answer_of_no_kind, refused),
      attack("35: an exception of random bytes", hostile::answer_a_broken_exception, refused),
      attack("35: a bool of 2", hostile::answer_no_bool, refused),
      // All numbers are values of an enumeration whose type was named.
      attack("35: an enumerator that is none", hostile::answer_no_colour, {End::value, End::serialization}),
      attack("35: an optional of 7", hostile::answer_no_optional, refused),
      attack("35: the 99th alternative", hostile::answer_no_variant, refused),
      attack("35: random bytes for a struct", hostile::answer_mixed_bytes, {End::value, End::serialization}),
      // A string may hold any bytes.
      attack("35: a string that is no UTF-8", hostile::answer_no_utf_8, {End::value}, std::string("\xc0\x80\xff\xfe")),
  };
}

std::vector<Attack> descriptors_and_output() {
  return {
      attack("36: looks for sockets", hostile::find_sockets, {End::value}, ""),
      attack("37: 64 MiB to standard error", hostile::flood_standard_error, {End::value}, 42),
      attack("37: 64 MiB without a line's end", hostile::flood_standard_error_and_leave, {End::crashed}),
  };
}

// The largest resident size that this process has had, in KiB.
std::size_t peak_kib() {
  std::istringstream status(read_file("/proc/self/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoul(line.substr(6));
  }
  return 0;
}

// More than all that these attacks may have the host allocate, with the libraries' own caches: the decoder lets a
// message claim 16 MiB, and it keeps 4 KiB of what a worker prints.
[[maybe_unused]] constexpr std::size_t kMostGrowthKib = 64 * 1024;

Findings try_all(const std::vector<Attack>& attacks) {
  // A second time for an ordinary user, it is the way in which hostile tasks are to be run.
  std::vector<Isolation::Kind> kinds(hostile::kIsolations.begin(), hostile::kIsolations.end());
  if (::geteuid() != 0) kinds = {Isolation::Kind::per_key};
  Findings findings;
  [[maybe_unused]] const std::size_t before = peak_kib();
  for (const Attack& one : attacks) {
    for (const Isolation::Kind kind : kinds) hostile::try_attack(findings, one, kind);
  }
#if !WITH_SANITIZER  // they keep what was freed
  const std::size_t grown = peak_kib() - before;
  findings.expect(grown < kMostGrowthKib, "the host has grown by " + std::to_string(grown) + " KiB");
#endif
  return findings;
}

Findings try_random_bytes() {
  Findings findings;
  const std::uint64_t seed = number_from("BULKHEAD_SEED", std::random_device()());
  constexpr std::uint64_t kRounds = WITH_SANITIZER ? 3 : 9;
  for (std::uint64_t i = 0; i < kRounds; ++i) {
    const std::size_t wrong = findings.wrong.size();
    for (const Attack& one : random_bytes()) {
      hostile::try_attack(findings, one, hostile::kIsolations[i % hostile::kIsolations.size()], seed + i);
    }
    if (findings.wrong.size() > wrong) findings.wrong.push_back("BULKHEAD_SEED=" + std::to_string(seed + i));
  }
  return findings;
}

// 27. Whatever is read, it is a value, an answer that makes no sense, or a violation; and that is all that happens.
[[maybe_unused]] Findings try_changing_answers(std::size_t length) {
  Findings findings;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const int tasks = static_cast<int>(number_from("BULKHEAD_CHANGED_ANSWERS", WITH_SANITIZER ? 50 : 300));
  std::map<End, int> ends;
  for (int i = 0; i < tasks; ++i) {
    Outcome<std::string> outcome;
    // A worker that spoils the number of its answers may wait for ever for the next request.
    pool.async_submit(bulkhead::TaskOptions().timeout(kTimeout), bulkhead::call(hostile::change_answers, length),
                      outcome.handler());
    if (!run_until(context, [&] { return outcome.calls > 0; })) {
      findings.wrong.push_back("27: a task of changing answers does not end");
      return findings;
    }
    const auto end = hostile::end_of(outcome.error);
    findings.expect(end.has_value(), "27: a task of changing answers ends with " + message(outcome.error));
    if (end) ++ends[*end];
  }
  // By a worker that does nothing of that kind.
  if (const int attacker = hostile::board.worker; attacker != 0) bulkhead::test::Process(attacker).signal(SIGKILL);
  findings.expect(run_until(context,
                            [&] {
                              Outcome<> next;
                              pool.async_submit(bulkhead::call(twice, 21), next.handler());
                              return run_until(context, [&] { return next.calls > 0; }) && next.value == 42 &&
                                     !next.error;
                            }),
                  "27: the pool goes on");
  findings.expect(adds_up(pool), "27: the metrics add up: " + bulkhead::to_string(pool.metrics()));
  for (const auto& [end, count] : ends) {
    findings.turns += "27: " + std::to_string(length) + " bytes: " + std::to_string(count) + " " + name_of(end) + "\n";
  }
  return findings;
}

// The host's own descriptors and caches are there afterwards, and count for no attack.
void warm_up() {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  run(context, pool.submit(twice, 1));
}

void check(const Findings& findings) {
  WARN(findings.turns);
  INFO(findings.text());
  CHECK(findings.wrong.empty());
}

}  // namespace

TEST_CASE("25: a worker that claims an impossible number of answers is killed, and its task fails with ProtocolError",
          "[fault]") {
  warm_up();
  check(try_all(counters()));
}

TEST_CASE("26, 29: a worker that gives an impossible answer is killed, and its task fails with ProtocolError",
          "[fault]") {
  warm_up();
  check(try_all(forged_answers()));
}

TEST_CASE("29: a worker that is killed for its cancelled task, and answers nonsense meanwhile, holds up nobody",
          "[fault]") {
  asio::io_context context;
  auto options = workers(2);
  options.cancel_grace = 0ns;
  LocalExecutor pool(context.get_executor(), options);
  // It has some microseconds between its end being decided and its end: with each attempt it begins a little later.
  for (std::uint64_t i = 0; i < 200; ++i) {
    CAPTURE(i);
    hostile::board.worker = 0;
    asio::cancellation_signal signal;
    Outcome<int> outcome;
    pool.async_submit(bulkhead::call(hostile::forge_when_stopped, 4 * i),
                      asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
    REQUIRE(run_until(context, [] { return hostile::board.worker != 0; }));
    signal.emit(asio::cancellation_type::terminal);
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    INFO(message(outcome.error));
    const bool told =
        error_as<bulkhead::TaskCancelledError>(outcome.error) || error_as<bulkhead::ProtocolError>(outcome.error);
    REQUIRE(told);
    REQUIRE(run(context, pool.submit(twice, 21)) == 42);
  }
  CHECK(adds_up(pool));
}

TEST_CASE("29: a worker that passes over the request to leave is killed, and the pool goes on", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  for (std::uint64_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    hostile::board.worker = 0;
    Outcome<int> outcome;
    pool.async_submit(TaskOptions().isolation(Isolation::fresh()),
                      bulkhead::call(hostile::skip_the_request_to_leave, i), outcome.handler());
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    REQUIRE(hostile::board.worker != 0);
    const bulkhead::test::Process attacker(hostile::board.worker);
    CHECK_FALSE(outcome.error);
    CHECK(attacker.gone_within(bulkhead::test::kGone));
    for (int k = 0; k < 20; ++k) REQUIRE(run(context, pool.submit(twice, k)) == 2 * k);
  }
  CHECK(adds_up(pool));
}

TEST_CASE("28: a fresh task that denies to have begun, and is cancelled, costs its worker after cancel_grace",
          "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  hostile::board.worker = 0;
  hostile::board.runs = 0;
  asio::cancellation_signal signal;
  Outcome<> outcome;
  pool.async_submit(TaskOptions().isolation(Isolation::fresh()),
                    bulkhead::call(hostile::wait_as_if_not_begun, std::uint64_t{1}),
                    asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [] { return hostile::board.worker != 0; }));
  const bulkhead::test::Process attacker(hostile::board.worker);
  signal.emit(asio::cancellation_type::terminal);
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = error_as<bulkhead::TaskCancelledError>(outcome.error);
  INFO(message(outcome.error));
  REQUIRE(error);
  CHECK(error->stage() == bulkhead::TaskCancelledError::Stage::running);
  CHECK(attacker.gone_within(bulkhead::test::kGone));
  CHECK(hostile::board.runs == 1);
  CHECK(run(context, pool.submit(twice, 21)) == 42);
}

TEST_CASE("28: tasks of a key that deny to have begun run once each, with others behind them, and hold up no other key",
          "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  hostile::board.runs = 0;
  const auto evil = TaskOptions().isolation(Isolation::per_key("evil")).timeout(50ms);
  const auto good = TaskOptions().isolation(Isolation::per_key("good"));
  // So short that several lie in a ring from now on.
  for (int i = 0; i < 200; ++i) run(context, pool.submit(evil, twice, i));
  std::array<Outcome<>, 8> outcomes;
  for (Outcome<>& outcome : outcomes) {
    pool.async_submit(evil, bulkhead::call(hostile::wait_as_if_not_begun, std::uint64_t{1}), outcome.handler());
  }
  for (int i = 0; !bulkhead::test::all_over(outcomes) && i < 10'000; ++i) {
    REQUIRE(run(context, pool.submit(good, twice, 21)) == 42);
  }
  REQUIRE(run_until(context, [&] { return bulkhead::test::all_over(outcomes); }));
  for (const Outcome<>& outcome : outcomes) {
    INFO(message(outcome.error));
    CHECK(hostile::end_of(outcome.error) == End::timed_out);
  }
  CHECK(hostile::board.runs == 8);
  CHECK(adds_up(pool));
}

#if !WITH_THREAD_SANITIZER  // it would see the race that this is, in the worker
TEST_CASE("27: answers that change while they are read are values, refused, or violations", "[fault]") {
  const std::size_t length = GENERATE(std::size_t{50}, std::size_t{5000});
  check(try_changing_answers(length));
}
#endif

TEST_CASE("28: a worker that writes random bytes into its whole area costs itself and its task", "[fault]") {
  warm_up();
  check(try_random_bytes());
}

TEST_CASE("28: a worker that lies about its start and its task costs itself and its task, not a start of workers",
          "[fault]") {
  warm_up();
  check(try_all(lies()));
}

TEST_CASE("30, 31: nobody can resize the areas or write to the request area, and removed pages are zeros", "[fault]") {
  warm_up();
  check(try_all(areas()));
}

TEST_CASE("32, 33: a doorbell that rings too much or never stops neither the host nor others", "[fault]") {
  warm_up();
  check(try_all(wake_ups()));
}

TEST_CASE("34, 35: results that no encoder has written are refused before anything is allocated for them", "[fault]") {
  warm_up();
  check(try_all(impossible_values()));
}

TEST_CASE("36, 37: a worker holds no socket, and what it prints without end neither stops the host nor fills it",
          "[fault]") {
  warm_up();
  check(try_all(descriptors_and_output()));
}

TEST_CASE("25-37: the same holds for a host of an ordinary user", "[fault]") {
  if (::geteuid() != 0) return;  // it was one all the time
  for (const char* const part : {"counters", "forged_answers", "random_bytes", "lies", "areas", "wake_ups",
                                 "impossible_values", "descriptors_and_output", "changing_answers"}) {
    check_part(part);
  }
}

namespace {

int report(const Findings& findings) {
  std::printf("%s%s", findings.turns.c_str(), findings.text().c_str());
  std::fflush(stdout);
  return findings.wrong.empty() ? 0 : 1;
}

int host_of_an_ordinary_user(std::string_view part) {
  warm_up();
  if (part == "counters") return report(try_all(counters()));
  if (part == "forged_answers") return report(try_all(forged_answers()));
  if (part == "random_bytes") return report(try_random_bytes());
  if (part == "lies") return report(try_all(lies()));
  if (part == "areas") return report(try_all(areas()));
  if (part == "wake_ups") return report(try_all(wake_ups()));
  if (part == "impossible_values") return report(try_all(impossible_values()));
  if (part == "descriptors_and_output") return report(try_all(descriptors_and_output()));
  if (part != "changing_answers") return 2;
#if WITH_THREAD_SANITIZER
  return 0;
#else
  return report(try_changing_answers(50)) + report(try_changing_answers(5000));
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  if (!part.empty()) {
    if (::setresgid(kNobody, kNobody, kNobody) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0) {
      throw std::runtime_error("cannot become nobody");
    }
    ::prctl(PR_SET_DUMPABLE, 1);  // else its files in /proc are root's
  }
  bulkhead::start_fork_server();
  return part.empty() ? run_tests(argc, argv) : host_of_an_ordinary_user(part);
}
