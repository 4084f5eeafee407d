// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/testing/contract_subject.hpp>
#include <bulkhead/testing/detail/contract_of_ending.hpp>
#include <bulkhead/testing/detail/contract_of_family.hpp>
#include <bulkhead/testing/detail/contract_of_running.hpp>

#include <array>
#include <exception>
#include <string>
#include <vector>

/// What every executor must keep, as tests: for those who write one of their own.
///
///     for (const auto& part : bulkhead::testing::executor_contract(subject)) part.run();  // throws ContractViolation
///
/// They need no test framework; each part makes its own event loop and executor and has a deadline. Functions are run
/// that use a page of shared memory, so that executors in other processes can be tested, too: include this header in a
/// program that starts the fork server in `main` or later. Run the parts one after the other, and in a program that
/// does nothing else: they share that page, and one of them measures the CPU time of the whole process.
namespace bulkhead::testing {

namespace contract {

// Of which executors a part holds.
enum class Holds {
  always,        // of all
  where_queued,  // of those that run tasks beside the submitter, and queue what is too much
  where_inline   // of those that run each task inside `submit`
};

struct Part {
  const char* name;
  void (*run)(const ContractSubject&);
  Holds holds;

  bool is_for(const ContractSubject& subject) const {
    return holds == Holds::always || (holds == Holds::where_inline) == (subject.concurrency == 0);
  }
};

// What an executor does that nobody expects is a violation, too.
inline void run_part(const Part& part, const ContractSubject& subject) {
  try {
    part.run(subject);
  } catch (const ContractViolation&) {
    throw;
  } catch (const std::exception& error) {
    throw ContractViolation(std::string("an error that nobody expects: ") + error.what());
  }
}

}  // namespace contract

/// The parts of the contract for this executor, in an order that goes from the simple to the rest.
inline std::vector<ContractCase> executor_contract(const ContractSubject& subject) {
  using namespace contract;
  static constexpr std::array kParts{
      Part{"each task has one outcome, and it is true", outcomes, Holds::always},
      Part{"a thousand tasks give a thousand results", thousand_tasks, Holds::always},
      Part{"a task knows its name", context_of_task, Holds::always},
      Part{"submit returns before the task is over, and does not block", submit_does_not_wait, Holds::where_queued},
      Part{"a task has run when submit returns", runs_inside_submit, Holds::where_inline},
      Part{"an idle executor uses no CPU", idleness, Holds::always},
      Part{"beyond max_pending tasks are refused", overload_rejects, Holds::where_queued},
      Part{"beyond max_pending tasks wait for their turn", overload_waits, Holds::where_queued},
      Part{"tasks begin in the order of their submission", first_in_first_out, Holds::where_queued},
      Part{"the lower priority number runs first", priorities, Holds::where_queued},
      Part{"a task that waits for admission and is cancelled never runs", cancel_waiting, Holds::where_queued},
      Part{"a queued task that is cancelled never runs", cancel_queued, Holds::where_queued},
      Part{"a task that waits for an instance and is cancelled never runs", cancel_instance, Holds::where_queued},
      Part{"a running task that is cancelled is asked to stop", cancel_running, Holds::where_queued},
      Part{"a task that waits for its next run and is cancelled has no further run", cancel_retry, Holds::always},
      Part{"a task that is over and is cancelled keeps its outcome", cancel_over, Holds::always},
      Part{"time limits hold", time_limits, Holds::where_queued},
      Part{"a limit of the whole time holds for all that a task does", total_time_limit, Holds::where_queued},
      Part{"a task that fails is run again as its policy says", retries, Holds::always},
      Part{"shutdown waits for all, twice and at once, and nothing is accepted afterwards", shutdown_waits,
           Holds::always},
      Part{"shutdown cancels what waits, ends what is late, and need not wait", shutdown_ends, Holds::where_queued},
      Part{"shutdown ends what is late also if nobody waits for it", shutdown_ends_by_itself, Holds::always},
      Part{"destruction tells every caller once", destruction, Holds::where_queued},
      Part{"destruction closes before it waits", destruction_closes, Holds::where_queued},
      Part{"events come in order, with one end for each task", events, Holds::always},
      Part{"events tell of each end what it was", events_of_ends, Holds::where_queued},
      Part{"progress comes in order, the last of it before the result", progress, Holds::always},
      Part{"a handle has the result, and so has the store", handles, Holds::always},
      Part{"a task may be given an id, which no other may have then", handles_of_own_id, Holds::always},
      Part{"a handle tells where its task is, and cancels it", handles_of_running, Holds::where_queued},
      Part{"no more instances than there may be", instances, Holds::where_queued},
      Part{"executors that share a group count their instances together", shared_instances, Holds::always},
      Part{"executors that share a store find each other's results", shared_results, Holds::always},
      Part{"tasks are called by their names, with types that are checked", by_name, Holds::always},
      Part{"tasks run at their time, and again and again", timed, Holds::always},
      Part{"any number of threads may submit", threads, Holds::always},
  };
  std::vector<ContractCase> cases;
  for (const Part& part : kParts) {
    if (!part.is_for(subject)) continue;
    cases.push_back({part.name, [part, subject] { run_part(part, subject); }});
  }
  return cases;
}

}  // namespace bulkhead::testing
