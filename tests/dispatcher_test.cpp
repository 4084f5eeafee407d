// SPDX-License-Identifier: BSL-1.0
#include "dispatcher.hpp"

#include "support/catch.hpp"
#include "support/environment.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using bulkhead::detail::Dispatcher;
using bulkhead::detail::QueuedTask;
using Workers = std::vector<unsigned>;

struct Work : QueuedTask {
  explicit Work(int id_, int priority_ = 0) : id(id_) { priority = priority_; }
  int id;
};

Dispatcher::Limits limits(unsigned workers) {
  Dispatcher::Limits made;
  made.max_workers = workers;
  return made;
}

Dispatcher with_ready_workers(unsigned count) {
  Dispatcher dispatcher(limits(count));
  for (unsigned i = 0; i < count; ++i) {
    dispatcher.worker_added(i);
    dispatcher.worker_ready(i);
  }
  return dispatcher;
}

void place(Dispatcher& dispatcher, unsigned worker, unsigned times) {
  for (unsigned i = 0; i < times; ++i) dispatcher.placed(worker);
}

// Tells the dispatcher of so many runs that its average is the time given.
void set_average(Dispatcher& dispatcher, unsigned worker, Dispatcher::Duration run_time) {
  for (int i = 0; i < 400; ++i) {
    dispatcher.placed(worker);
    dispatcher.left(worker, run_time);
  }
}

// How many requests may lie in one ring now.
std::size_t depth(const Dispatcher& dispatcher) {
  std::size_t load = 0;
  while (dispatcher.has_room(load)) ++load;
  return load;
}

// Takes all tasks from the queue, in its order.
std::vector<int> take_all(Dispatcher& dispatcher) {
  std::vector<int> ids;
  while (QueuedTask* task = dispatcher.front()) {
    ids.push_back(static_cast<Work*>(task)->id);
    dispatcher.remove(*task);
  }
  return ids;
}

}  // namespace

TEST_CASE("an empty queue has no first task", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  CHECK(dispatcher.front() == nullptr);
  CHECK(dispatcher.queued() == 0);
}

TEST_CASE("tasks of one priority leave the queue in the order in which they came", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Work a(1), b(2), c(3);
  for (Work* work : {&a, &b, &c}) dispatcher.enqueue(*work);
  CHECK(dispatcher.queued() == 3);
  CHECK(take_all(dispatcher) == std::vector<int>{1, 2, 3});
  CHECK(dispatcher.queued() == 0);
}

TEST_CASE("the lower priority number goes first, and negative ones before zero", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Work a(1, 5), b(2, 0), c(3, -3), d(4, 5), e(5, -3), f(6, 0);
  for (Work* work : {&a, &b, &c, &d, &e, &f}) dispatcher.enqueue(*work);
  CHECK(take_all(dispatcher) == std::vector<int>{3, 5, 2, 6, 1, 4});
}

TEST_CASE("the largest and the smallest priority are priorities as others", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Work a(1, std::numeric_limits<int>::max()), b(2, 0), c(3, std::numeric_limits<int>::min());
  for (Work* work : {&a, &b, &c}) dispatcher.enqueue(*work);
  CHECK(take_all(dispatcher) == std::vector<int>{3, 2, 1});
}

TEST_CASE("a task taken out of the middle leaves the order of the others as it was", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Work a(1), b(2), c(3);
  for (Work* work : {&a, &b, &c}) dispatcher.enqueue(*work);
  dispatcher.remove(b);
  CHECK(dispatcher.queued() == 2);
  CHECK_FALSE(b.linked());
  CHECK(take_all(dispatcher) == std::vector<int>{1, 3});
}

TEST_CASE("a priority that has run empty can be used again", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Work a(1, 7), b(2, 7), c(3, 0);
  dispatcher.enqueue(a);
  CHECK(take_all(dispatcher) == std::vector<int>{1});
  dispatcher.enqueue(c);
  dispatcher.enqueue(b);
  CHECK(take_all(dispatcher) == std::vector<int>{3, 2});
}

TEST_CASE("tasks taken back find their old place, wherever it was", "[dispatcher]") {
  std::vector<int> order{0, 1, 2, 3, 4};
  do {
    // All are queued in one order, leave it, and come back in any other.
    Dispatcher dispatcher(limits(1));
    std::vector<std::unique_ptr<Work>> works;
    for (int i = 0; i < 5; ++i) {
      works.push_back(std::make_unique<Work>(i));
      dispatcher.enqueue(*works.back());
    }
    for (const auto& work : works) dispatcher.remove(*work);
    for (const int i : order) dispatcher.enqueue(*works[static_cast<std::size_t>(i)]);
    REQUIRE(take_all(dispatcher) == std::vector<int>{0, 1, 2, 3, 4});
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("a task taken back goes before newer ones of its priority and behind those of a better one", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Work a(1, 1), b(2, 1), c(3, 1), d(4, 0);
  dispatcher.enqueue(a);
  dispatcher.remove(a);
  dispatcher.enqueue(b);
  dispatcher.enqueue(c);
  dispatcher.enqueue(d);
  dispatcher.enqueue(a);
  CHECK(take_all(dispatcher) == std::vector<int>{4, 1, 2, 3});
}

TEST_CASE("without a worker nobody is chosen", "[dispatcher]") {
  const Dispatcher dispatcher(limits(3));
  CHECK(dispatcher.choose_worker() == std::nullopt);
}

TEST_CASE("of several idle workers the one with the lowest number is chosen", "[dispatcher]") {
  auto dispatcher = with_ready_workers(3);
  CHECK(dispatcher.choose_worker() == 0U);
  dispatcher.placed(0);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.placed(1);
  CHECK(dispatcher.choose_worker() == 2U);
  dispatcher.left(0, 1ms);
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("an idle worker is chosen before a less numbered one that has room in its ring", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  set_average(dispatcher, 0, 1us);
  dispatcher.placed(0);
  REQUIRE(depth(dispatcher) > 1);
  CHECK(dispatcher.choose_worker() == 1U);
}

TEST_CASE("when all are busy the least loaded worker is chosen, the lowest number among equals", "[dispatcher]") {
  auto dispatcher = with_ready_workers(3);
  set_average(dispatcher, 0, 1us);
  place(dispatcher, 0, 3);
  place(dispatcher, 1, 2);
  place(dispatcher, 2, 2);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.placed(1);
  CHECK(dispatcher.choose_worker() == 2U);
  dispatcher.placed(2);
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("nobody is chosen when every ring is as full as the depth allows", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  set_average(dispatcher, 0, 50us);
  REQUIRE(depth(dispatcher) == 4);
  place(dispatcher, 0, 4);
  place(dispatcher, 1, 3);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.placed(1);
  CHECK(dispatcher.choose_worker() == std::nullopt);
  dispatcher.left(1, std::nullopt);
  CHECK(dispatcher.choose_worker() == 1U);
}

namespace {

// With so many idle workers, on two CPUs, and with a known average.
Dispatcher on_two_cpus(unsigned workers, std::chrono::nanoseconds average) {
  auto made = limits(workers);
  made.cpus = 2;
  Dispatcher dispatcher(made);
  for (unsigned i = 0; i < workers; ++i) {
    dispatcher.worker_added(i);
    dispatcher.worker_ready(i);
  }
  set_average(dispatcher, 0, average);
  return dispatcher;
}

}  // namespace

TEST_CASE("for tasks that are over sooner than a worker is awake, no more workers are woken than there are CPUs",
          "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 1us);
  std::vector<unsigned> chosen;
  for (int i = 0; i < 6; ++i) {
    const auto worker = dispatcher.choose_worker();
    REQUIRE(worker);
    dispatcher.placed(*worker);
    chosen.push_back(*worker);
  }
  CHECK(chosen == std::vector<unsigned>{0, 1, 0, 1, 0, 1});
  // When their rings are full, tasks wait.
  while (const auto worker = dispatcher.choose_worker()) dispatcher.placed(*worker);
  CHECK(dispatcher.load(0) == depth(dispatcher));
  CHECK(dispatcher.load(2) == 0);
  dispatcher.left(1, 1us);
  CHECK(dispatcher.choose_worker() == 1U);
}

TEST_CASE("of busy workers no more than there are CPUs get short tasks, and the others come to rest", "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 20us);
  for (unsigned i = 0; i < 4; ++i) dispatcher.placed(i);
  for (int i = 0; i < 200; ++i) {  // the tasks become shorter
    dispatcher.placed(0);
    dispatcher.left(0, 1us);
  }
  for (int i = 0; i < 10; ++i) {
    const auto chosen = dispatcher.choose_worker();
    REQUIRE(chosen.has_value());
    CHECK(*chosen < 2);
    dispatcher.placed(*chosen);
  }
  dispatcher.left(2, 1us);
  dispatcher.left(3, 1us);
  CHECK(dispatcher.busy().size() == 2);
}

TEST_CASE("tasks that take longer wake as many workers as there are", "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 20us);
  for (unsigned i = 0; i < 4; ++i) {
    CHECK(dispatcher.choose_worker() == i);
    dispatcher.placed(i);
  }
}

TEST_CASE("a short task does not go behind one that has not got on while others did, nor into a stalled ring",
          "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 1us);
  dispatcher.set_time(1s);
  dispatcher.placed(0);  // and is never over
  dispatcher.placed(1);
  place(dispatcher, 1, 2);
  CHECK(dispatcher.choose_worker() == 0U);  // it may be over in this moment
  dispatcher.left(1, 1us, 1s + 201us);
  CHECK(dispatcher.choose_worker() == 1U);
  place(dispatcher, 1, 5);
  CHECK(dispatcher.load(1) > dispatcher.load(0));
  CHECK(dispatcher.choose_worker() == 1U);
  // Where none gets on, another is woken.
  dispatcher.stall(0);
  dispatcher.stall(1);
  CHECK(dispatcher.choose_worker() == 2U);
}

TEST_CASE("a worker whose answers nobody has read yet gets on", "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 1us);
  dispatcher.set_time(1s);
  dispatcher.placed(0);
  dispatcher.placed(1);
  dispatcher.set_time(1s + 201us);
  CHECK(dispatcher.few_are_enough());
  CHECK(dispatcher.choose_worker() == 2U);
  dispatcher.gets_on(1);
  CHECK(dispatcher.choose_worker() == 1U);
}

TEST_CASE("a run that was interrupted is not taken for the usual one, and runs that have become longer are",
          "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 1us);
  const auto run = [&](std::chrono::nanoseconds time) {
    dispatcher.placed(0);
    dispatcher.left(0, time);
  };
  place(dispatcher, 1, 1);
  run(4ms);  // a time slice that somebody else got
  dispatcher.placed(0);
  CHECK(dispatcher.few_are_enough());
  CHECK(depth(dispatcher) > 50);
  dispatcher.left(0, std::nullopt);
  int runs = 0;
  for (; depth(dispatcher) > 1; ++runs) run(4ms);
  CHECK(runs < 12);
}

TEST_CASE("where some tasks are long, no other is put behind one, until there have been none for a while",
          "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 1us);
  const auto run = [&](std::chrono::nanoseconds time) {
    dispatcher.placed(0);
    dispatcher.left(0, time);
  };
  // As often as one in thirty: the average stays that of the short ones.
  for (int i = 0; i < 200; ++i) run(i % 30 == 0 ? 50ms : 1us);
  CHECK(depth(dispatcher) > 50);
  for (int i = 0; i < 200; ++i) run(i % 10 == 0 ? 50ms : 1us);
  CHECK(depth(dispatcher) == 1);
  dispatcher.placed(0);
  dispatcher.placed(1);
  CHECK(dispatcher.choose_worker() == 2U);  // however few CPUs there are
  for (int i = 0; i < 64; ++i) run(1us);
  CHECK(depth(dispatcher) > 50);
}

TEST_CASE("a task waits in the queue and not behind one that is at something long", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  set_average(dispatcher, 0, 1us);
  dispatcher.set_time(1s);
  dispatcher.placed(0);
  dispatcher.placed(1);
  CHECK(dispatcher.choose_worker() == 0U);
  dispatcher.set_time(1s + 201us);
  CHECK(dispatcher.is_overdue(0));
  CHECK(dispatcher.choose_worker() == std::nullopt);
  dispatcher.gets_on(1);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.left(0, 201us);
  CHECK_FALSE(dispatcher.is_overdue(0));
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("a more urgent task overtakes what lies in the shortest ring if it would wait for long there",
          "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  CHECK(dispatcher.worker_to_overtake(-1) == std::nullopt);
  set_average(dispatcher, 0, 5us);
  dispatcher.set_time(1s);
  place(dispatcher, 0, 4);
  CHECK(dispatcher.worker_to_overtake(0) == std::nullopt);  // it is not more urgent
  place(dispatcher, 1, 2);
  CHECK(dispatcher.worker_to_overtake(-1) == std::nullopt);  // for 5 us it is not worth it
  place(dispatcher, 1, 1);
  CHECK(dispatcher.worker_to_overtake(-1) == 1U);
  // Not again before the ring would have been empty.
  CHECK(dispatcher.worker_to_overtake(-2) == std::nullopt);
  dispatcher.set_time(1s + 200us);
  CHECK(dispatcher.worker_to_overtake(-2) == 1U);
  dispatcher.set_time(2s);
  dispatcher.placed(1, -1);
  dispatcher.placed(0, -1);
  CHECK(dispatcher.worker_to_overtake(-1) == std::nullopt);
  dispatcher.stall(1);
  CHECK(dispatcher.worker_to_overtake(-2) == 0U);
}

TEST_CASE("a worker that has nothing to do relieves the one that has most, if that is worth it", "[dispatcher]") {
  auto dispatcher = with_ready_workers(3);
  set_average(dispatcher, 0, 20us);
  CHECK(dispatcher.worker_to_relieve() == std::nullopt);
  dispatcher.placed(0);
  place(dispatcher, 1, 4);
  CHECK(dispatcher.worker_to_relieve() == 1U);
  Work waiting(1);
  dispatcher.enqueue(waiting);
  CHECK(dispatcher.worker_to_relieve() == std::nullopt);  // it will get this one
  dispatcher.remove(waiting);
  dispatcher.leave(2);
  CHECK(dispatcher.worker_to_relieve() == std::nullopt);
  dispatcher.left(0, std::nullopt);
  CHECK(dispatcher.worker_to_relieve() == 1U);
  set_average(dispatcher, 0, 4us);
  CHECK(dispatcher.worker_to_relieve() == std::nullopt);  // another would not be awake before they are over
}

TEST_CASE("a worker that holds too much memory is replaced some time after its last large request", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  CHECK(dispatcher.next_dismissal(0s) == std::nullopt);
  CHECK(dispatcher.swell(0, 1s));
  CHECK(!dispatcher.swell(0, 12s));
  CHECK(dispatcher.swell(1, 12s));
  CHECK(dispatcher.next_dismissal(13s) == 22s);
  dispatcher.look_at_memory(21s);
  CHECK(dispatcher.worker_to_start(21s) == std::nullopt);
  dispatcher.look_at_memory(22s);
  CHECK(dispatcher.worker_to_start(22s) == 2U);
  CHECK(dispatcher.worker_to_dismiss(22s) == std::nullopt);
  dispatcher.worker_added(2);
  // Not before the other is ready; and one at a time.
  CHECK(dispatcher.worker_to_start(22s) == std::nullopt);
  CHECK(dispatcher.worker_to_dismiss(22s) == std::nullopt);
  CHECK(dispatcher.next_dismissal(22s) == 22s + 100ms);
  dispatcher.worker_ready(2, 23s);
  dispatcher.placed(1);  // it may be busy: what it has, it ends
  CHECK(dispatcher.worker_to_dismiss(23s) == 1U);
  dispatcher.leave(1);
  CHECK(dispatcher.worker_to_dismiss(23s) == std::nullopt);
  dispatcher.left(1, 1us, 23s);
  dispatcher.worker_removed(1);
  dispatcher.look_at_memory(23s);
  CHECK(dispatcher.worker_to_start(23s) == 1U);
  dispatcher.worker_added(1);
  dispatcher.worker_ready(1, 24s);
  CHECK(dispatcher.worker_to_dismiss(24s) == 0U);
  dispatcher.leave(0);
  dispatcher.worker_removed(0);
  dispatcher.look_at_memory(100s);
  CHECK(dispatcher.worker_to_start(100s) == std::nullopt);
  CHECK(dispatcher.worker_to_dismiss(100s) == std::nullopt);
  CHECK(dispatcher.next_dismissal(100s) == std::nullopt);
}

TEST_CASE("where no replacement starts, a worker that holds too much memory stays", "[dispatcher]") {
  auto dispatcher = with_ready_workers(1);
  dispatcher.swell(0, 0s);
  dispatcher.look_at_memory(10s);
  CHECK(dispatcher.worker_to_start(10s) == 1U);
  dispatcher.start_failed(10s);
  dispatcher.look_at_memory(10s);
  CHECK(dispatcher.worker_to_dismiss(10s) == std::nullopt);
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("while urgent tasks come, rings are kept short", "[dispatcher]") {
  auto dispatcher = with_ready_workers(1);
  set_average(dispatcher, 0, 2us);
  dispatcher.set_time(1s);
  place(dispatcher, 0, 90);
  CHECK(dispatcher.worker_to_overtake(-1) == 0U);
  CHECK(depth(dispatcher) == 10);
  dispatcher.set_time(1s + 900us);
  dispatcher.worker_to_overtake(-1);
  dispatcher.set_time(1s + 1800us);
  CHECK(depth(dispatcher) == 10);
  dispatcher.set_time(1s + 1901us);
  CHECK(depth(dispatcher) == 100);
}

TEST_CASE("a worker that dies with tasks is not among those that get on", "[dispatcher]") {
  auto dispatcher = on_two_cpus(4, 1us);
  place(dispatcher, 0, 3);
  place(dispatcher, 1, 3);
  dispatcher.worker_removed(0);
  CHECK(dispatcher.choose_worker() == 2U);
  dispatcher.placed(2);
  CHECK(dispatcher.choose_worker() == 2U);
  dispatcher.worker_removed(1);
  dispatcher.left(2, 1us);
  CHECK(dispatcher.choose_worker() == 2U);
}

TEST_CASE("as long as no run time is known one task lies in a ring", "[dispatcher]") {
  auto dispatcher = with_ready_workers(1);
  CHECK(depth(dispatcher) == 1);
  dispatcher.placed(0);
  CHECK(dispatcher.choose_worker() == std::nullopt);
  dispatcher.left(0, std::nullopt);  // it was taken back, so nothing was learned
  CHECK(depth(dispatcher) == 1);
}

TEST_CASE("a worker is given nothing until it is ready", "[dispatcher]") {
  Dispatcher dispatcher(limits(2));
  dispatcher.worker_added(0);
  CHECK(dispatcher.choose_worker() == std::nullopt);
  dispatcher.worker_added(1);
  dispatcher.worker_ready(1);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.placed(1);
  CHECK(dispatcher.choose_worker() == std::nullopt);
  dispatcher.worker_ready(0);
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("a worker that is gone is not chosen, and its load is forgotten", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  dispatcher.placed(0);
  dispatcher.worker_removed(0);
  CHECK_FALSE(dispatcher.present(0));
  CHECK_FALSE(dispatcher.ready(0));
  CHECK(dispatcher.load(0) == 0);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.worker_removed(1);
  CHECK(dispatcher.choose_worker() == std::nullopt);
}

TEST_CASE("the number of starting workers counts those that are neither ready nor gone", "[dispatcher]") {
  Dispatcher dispatcher(limits(3));
  dispatcher.worker_added(0);
  dispatcher.worker_added(1);
  dispatcher.worker_added(2);
  CHECK(dispatcher.starting() == 3);
  dispatcher.worker_ready(1);
  dispatcher.worker_ready(1);  // told twice
  CHECK(dispatcher.starting() == 2);
  dispatcher.worker_removed(1);
  CHECK(dispatcher.starting() == 2);
  dispatcher.worker_removed(0);
  dispatcher.worker_removed(0);
  CHECK(dispatcher.starting() == 1);
  dispatcher.worker_added(0);
  CHECK(dispatcher.starting() == 2);
}

TEST_CASE("the depth is the budget by the average run time, within one and the ring's slots", "[dispatcher]") {
  struct Row {
    Dispatcher::Duration run_time;
    std::size_t depth;
  };
  const Row rows[] = {{0ns, 256}, {1ns, 256}, {700ns, 256}, {1us, 200}, {10us, 20}, {67us, 2},
                      {100us, 2}, {101us, 1}, {200us, 1},   {201us, 1}, {5s, 1},    {1h, 1}};
  for (const Row& row : rows) {
    INFO(row.run_time.count() << " ns");
    auto dispatcher = with_ready_workers(1);
    dispatcher.placed(0);
    dispatcher.left(0, row.run_time);
    CHECK(depth(dispatcher) == row.depth);
  }
}

TEST_CASE("the depth follows the limits that were given", "[dispatcher]") {
  auto given = limits(1);
  given.ring_slots = 8;
  given.ring_budget = 1ms;
  Dispatcher dispatcher(given);
  dispatcher.worker_added(0);
  dispatcher.worker_ready(0);
  dispatcher.placed(0);
  dispatcher.left(0, 1us);
  CHECK(depth(dispatcher) == 8);
  set_average(dispatcher, 0, 250us);
  CHECK(depth(dispatcher) == 4);
}

TEST_CASE("the average run time forgets: after a change the depth follows within some tasks", "[dispatcher]") {
  auto dispatcher = with_ready_workers(1);
  set_average(dispatcher, 0, 1us);
  REQUIRE(depth(dispatcher) == 200);
  // One outlier does not settle it...
  dispatcher.placed(0);
  dispatcher.left(0, 1s);
  CHECK(depth(dispatcher) > 50);
  set_average(dispatcher, 0, 1us);
  CHECK(depth(dispatcher) > 190);  // the average is in whole nanoseconds
  // ...and tasks that have become slow are seen as such after two dozen.
  for (int i = 0; i < 24; ++i) {
    dispatcher.placed(0);
    dispatcher.left(0, 100us);
  }
  CHECK(depth(dispatcher) <= 3);
}

TEST_CASE("there is a backlog when tasks lie behind another", "[dispatcher]") {
  Dispatcher dispatcher = with_ready_workers(1);
  CHECK_FALSE(dispatcher.has_backlog());
  dispatcher.placed(0);
  CHECK_FALSE(dispatcher.has_backlog());
  dispatcher.placed(0);
  CHECK(dispatcher.has_backlog());
  dispatcher.left(0, 1us);
  CHECK_FALSE(dispatcher.has_backlog());
  dispatcher.placed(0);
  dispatcher.worker_removed(0);
  CHECK_FALSE(dispatcher.has_backlog());
}

TEST_CASE("a worker that is dead gets no task, also when its last answers come", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  dispatcher.placed(0);
  dispatcher.worker_died(0);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.left(0, 1us, 1us);
  CHECK(dispatcher.choose_worker() == 1U);
  CHECK(dispatcher.choose_worker(7) == 1U);
  dispatcher.placed(1);
  CHECK_FALSE(dispatcher.choose_worker(7).has_value());
}

TEST_CASE("a worker with a backlog that finishes nothing between two looks is stalled", "[dispatcher]") {
  auto dispatcher = with_ready_workers(3);
  set_average(dispatcher, 0, 1us);
  place(dispatcher, 0, 2);       // finishes nothing
  place(dispatcher, 1, 3);       // finishes one
  place(dispatcher, 2, 1);       // has nothing to be taken back
  dispatcher.stalled_workers();  // forgets the runs above
  dispatcher.left(1, 1us);
  CHECK(dispatcher.stalled_workers() == Workers{0});
  CHECK(dispatcher.stalled_workers() == Workers{0, 1});
}

TEST_CASE("a task that was placed after the last look is no sign of a stall by itself", "[dispatcher]") {
  auto dispatcher = with_ready_workers(1);
  set_average(dispatcher, 0, 1us);
  dispatcher.stalled_workers();
  CHECK(dispatcher.stalled_workers().empty());
}

TEST_CASE("a stalled worker gets nothing until it finishes something", "[dispatcher]") {
  auto dispatcher = with_ready_workers(2);
  set_average(dispatcher, 0, 1us);
  dispatcher.stalled_workers();
  place(dispatcher, 0, 2);
  REQUIRE(dispatcher.stalled_workers() == Workers{0});
  place(dispatcher, 1, 5);
  CHECK(dispatcher.choose_worker() == 1U);
  place(dispatcher, 1, static_cast<unsigned>(depth(dispatcher)) - 5);
  CHECK(dispatcher.choose_worker() == std::nullopt);
  dispatcher.left(0, 1us);
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("a new worker in the place of a stalled one is not stalled", "[dispatcher]") {
  auto dispatcher = with_ready_workers(1);
  place(dispatcher, 0, 2);
  REQUIRE(dispatcher.stalled_workers() == Workers{0});
  dispatcher.worker_removed(0);
  dispatcher.worker_added(0);
  dispatcher.worker_ready(0);
  CHECK(dispatcher.load(0) == 0);
  CHECK(dispatcher.stalled_workers().empty());
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("missing workers are started from the lowest number, all at once", "[dispatcher]") {
  Dispatcher dispatcher(limits(3));
  for (unsigned i = 0; i < 3; ++i) {
    REQUIRE(dispatcher.worker_to_start(0ns) == i);
    dispatcher.worker_added(i);
  }
  CHECK(dispatcher.worker_to_start(0ns) == std::nullopt);
  dispatcher.worker_ready(1);
  dispatcher.worker_removed(1);
  CHECK(dispatcher.worker_to_start(0ns) == 1U);
  CHECK(dispatcher.next_start() == std::nullopt);
}

TEST_CASE("the pause after a failed start doubles up to the longest, however many follow", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  const Dispatcher::Duration expected[] = {10ms, 20ms, 40ms, 80ms, 160ms, 320ms, 640ms, 1s, 1s};
  Dispatcher::Time now = 5s;
  for (const auto pause : expected) {
    INFO(pause.count() << " ns");
    dispatcher.start_failed(now);
    CHECK(dispatcher.next_start() == now + pause);
    CHECK(dispatcher.worker_to_start(now) == std::nullopt);
    CHECK(dispatcher.worker_to_start(now + pause - 1ns) == std::nullopt);
    CHECK(dispatcher.worker_to_start(now + pause) == 0U);
    now += pause;
  }
  for (int i = 0; i < 100; ++i) {
    dispatcher.start_failed(now);
    REQUIRE(dispatcher.next_start() == now + 1s);
  }
  CHECK(dispatcher.failures_in_a_row() == 109);
}

TEST_CASE("pauses stay within the limits that were given", "[dispatcher]") {
  auto given = limits(1);
  SECTION("a first pause above the longest is cut") {
    given.first_pause = 3s;
    Dispatcher dispatcher(given);
    dispatcher.start_failed(0ns);
    CHECK(dispatcher.next_start() == Dispatcher::Time(1s));
  }
  SECTION("no pause at all") {
    given.first_pause = 0ns;
    Dispatcher dispatcher(given);
    dispatcher.start_failed(7s);
    CHECK(dispatcher.worker_to_start(7s) == 0U);
  }
}

TEST_CASE("after a failed start one is attempted at a time, until one has worked", "[dispatcher]") {
  Dispatcher dispatcher(limits(3));
  dispatcher.worker_added(0);
  dispatcher.worker_removed(0);
  dispatcher.start_failed(0ns);
  REQUIRE(dispatcher.worker_to_start(10ms) == 0U);
  dispatcher.worker_added(0);
  CHECK(dispatcher.worker_to_start(10ms) == std::nullopt);
  CHECK(dispatcher.worker_to_start(1h) == std::nullopt);
  dispatcher.worker_ready(0);
  dispatcher.start_succeeded();
  CHECK(dispatcher.worker_to_start(10ms) == 1U);
  dispatcher.worker_added(1);
  CHECK(dispatcher.worker_to_start(10ms) == 2U);
}

TEST_CASE("a start that works ends the pause and the count of failures", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  for (int i = 0; i < 5; ++i) dispatcher.start_failed(0ns);
  REQUIRE(dispatcher.failures_in_a_row() == 5);
  dispatcher.start_succeeded();
  CHECK(dispatcher.failures_in_a_row() == 0);
  CHECK(dispatcher.next_start() == std::nullopt);
  CHECK(dispatcher.worker_to_start(0ns) == 0U);
  dispatcher.start_failed(0ns);
  CHECK(dispatcher.next_start() == Dispatcher::Time(10ms));
}

TEST_CASE("waiting tasks fail after the third failed start in a row, not before", "[dispatcher]") {
  Dispatcher dispatcher(limits(2));
  CHECK_FALSE(dispatcher.gives_up());
  dispatcher.start_failed(0ns);
  CHECK_FALSE(dispatcher.gives_up());
  dispatcher.start_failed(0ns);
  CHECK_FALSE(dispatcher.gives_up());
  dispatcher.start_failed(0ns);
  CHECK(dispatcher.gives_up());
  dispatcher.worker_added(0);
  CHECK(dispatcher.gives_up());  // an attempt is under way, and the last three failed
  dispatcher.start_succeeded();
  CHECK_FALSE(dispatcher.gives_up());
}

TEST_CASE("with a ready worker nothing fails however many starts do", "[dispatcher]") {
  Dispatcher dispatcher(limits(2));
  dispatcher.worker_added(0);
  dispatcher.worker_ready(0);
  for (int i = 0; i < 20; ++i) dispatcher.start_failed(0ns);
  CHECK_FALSE(dispatcher.gives_up());
  dispatcher.worker_removed(0);
  CHECK(dispatcher.gives_up());
}

TEST_CASE("after stop_starting no worker is started and no start is awaited", "[dispatcher]") {
  Dispatcher dispatcher(limits(2));
  dispatcher.worker_added(0);
  dispatcher.start_failed(0ns);
  dispatcher.stop_starting();
  CHECK(dispatcher.worker_to_start(1h) == std::nullopt);
  CHECK(dispatcher.next_start() == std::nullopt);
  dispatcher.worker_ready(0);
  dispatcher.worker_removed(0);
  dispatcher.start_succeeded();
  CHECK(dispatcher.worker_to_start(1h) == std::nullopt);
}

namespace {

// The rules of dispatcher.hpp over again, as plainly as possible, and what must hold after every event.
class Model {
 public:
  static constexpr unsigned kWorkers = 5;

  explicit Model(std::uint64_t seed) : random_(seed), dispatcher_(limits(kWorkers)) {}

  void step() {
    switch (below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return submit();
      case 4:
      case 5:
      case 6:
      case 7:
        return dispatch();
      case 8:
      case 9:
      case 10:
        return finish_one();
      case 11:
        return take_back();
      case 12:
        return cancel_queued();
      case 13:
        return look_for_stalls();
      case 14:
        return worker_event();
      default:
        return start();
    }
  }

  // Empty if all is as it should be, else what is not.
  std::string violation() {
    std::size_t queued = 0;
    for (const auto& [priority, tasks] : queue_) queued += tasks.size();
    if (queued != dispatcher_.queued()) return "the number of queued tasks";
    if (dispatcher_.front() != first()) return "the first task";
    bool backlog = false;
    unsigned starting = 0;
    for (unsigned i = 0; i < kWorkers; ++i) {
      const Worker& worker = workers_[i];
      if (dispatcher_.present(i) != worker.present) return "whether a worker is present";
      if (dispatcher_.ready(i) != worker.ready) return "whether a worker is ready";
      if (dispatcher_.load(i) != worker.ring.size()) return "the load of a worker";
      if (worker.present && !worker.ready) ++starting;
      backlog = backlog || worker.ring.size() > 1;
    }
    if (dispatcher_.starting() != starting) return "the number of starting workers";
    if (dispatcher_.has_backlog() != backlog) return "whether there is a backlog";
    if (dispatcher_.choose_worker() != chosen()) return "the worker chosen";
    if (dispatcher_.worker_to_start(now_) != to_start()) return "the worker to start";
    if (dispatcher_.gives_up() != gives_up()) return "whether it gives up";
    if (dispatcher_.failures_in_a_row() != failures_) return "the failures in a row";
    if (const auto next = dispatcher_.next_start(); next.has_value() != (failures_ > 0)) return "whether a pause is on";
    if (stall_differs_) return "the stalled workers";
    if (order_changed_) return "the place of a task taken back";
    return {};
  }

  // Takes everything out that is left. Empty if each task was seen exactly once.
  std::string end() {
    for (unsigned i = 0; i < kWorkers; ++i) {
      while (!workers_[i].ring.empty()) leave(i, workers_[i].ring.size() - 1, std::nullopt);
      workers_[i].ring.clear();
    }
    while (QueuedTask* task = dispatcher_.front()) {
      if (task != first()) return "the first task";
      auto* work = static_cast<Work*>(task);
      dispatcher_.remove(*task);
      queue_[work->priority].erase(work->order);
      over(*work);
    }
    if (!alive_.empty()) return "a task was lost";
    if (ended_ != submitted_) return "a task ended twice";
    return {};
  }

  std::size_t submitted() const { return submitted_; }

 private:
  struct Worker {
    bool present = false;
    bool ready = false;
    bool stalled = false;
    bool progressed = false;
    Dispatcher::Time progressed_at{0};
    std::vector<Work*> ring;
  };

  unsigned below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }

  Work* first() {
    for (auto& [priority, tasks] : queue_) {
      if (!tasks.empty()) return tasks.begin()->second;
    }
    return nullptr;
  }

  std::optional<unsigned> chosen() const {
    const auto usable = [&](unsigned i) {
      const bool overdue = !workers_[i].ring.empty() && told_ - workers_[i].progressed_at > 200us;
      return workers_[i].present && !workers_[i].stalled && !overdue;
    };
    for (unsigned i = 0; i < kWorkers; ++i) {
      if (usable(i) && workers_[i].ready && workers_[i].ring.empty()) return i;
    }
    std::optional<unsigned> best;
    for (unsigned i = kWorkers; i-- > 0;) {
      if (!usable(i) || !workers_[i].ready) continue;
      if (!best || workers_[i].ring.size() <= workers_[*best].ring.size()) best = i;
    }
    if (best && dispatcher_.has_room(workers_[*best].ring.size())) return best;
    return std::nullopt;
  }

  std::optional<unsigned> to_start() const {
    if (failures_ > 0 && now_ < pause_until_) return std::nullopt;
    bool starting = false;
    for (const Worker& worker : workers_) starting = starting || (worker.present && !worker.ready);
    if (failures_ > 0 && starting) return std::nullopt;
    for (unsigned i = 0; i < kWorkers; ++i) {
      if (!workers_[i].present) return i;
    }
    return std::nullopt;
  }

  bool gives_up() const {
    bool any_ready = false;
    for (const Worker& worker : workers_) any_ready = any_ready || (worker.present && worker.ready);
    return failures_ >= 3 && !any_ready;
  }

  void over(Work& work) {
    ++ended_;
    alive_.erase(work.id);  // destroys it
  }

  void submit() {
    if (alive_.size() > 300) return;
    const int id = static_cast<int>(submitted_++);
    Work& work = *alive_.emplace(id, std::make_unique<Work>(id, static_cast<int>(below(5)) - 2)).first->second;
    dispatcher_.enqueue(work);
    queue_[work.priority][work.order] = &work;
    now_ += std::chrono::microseconds(below(50));
    told_ = now_;
    dispatcher_.set_time(now_);
  }

  void dispatch() {
    const auto worker = dispatcher_.choose_worker();
    auto* work = static_cast<Work*>(dispatcher_.front());
    if (!worker || work == nullptr) return;
    dispatcher_.remove(*work);
    dispatcher_.placed(*worker);
    queue_[work->priority].erase(work->order);
    if (workers_[*worker].ring.empty()) workers_[*worker].progressed_at = told_;
    workers_[*worker].ring.push_back(work);
  }

  Work& leave(unsigned worker, std::size_t place, std::optional<Dispatcher::Duration> run_time) {
    auto& ring = workers_[worker].ring;
    Work& work = *ring[place];
    ring.erase(ring.begin() + static_cast<std::ptrdiff_t>(place));
    dispatcher_.left(worker, run_time, now_);
    told_ = now_;
    workers_[worker].progressed_at = now_;
    workers_[worker].stalled = false;
    workers_[worker].progressed = true;
    if (run_time) {
      over(work);
    } else {
      back_to_queue(work);
    }
    return work;
  }

  void back_to_queue(Work& work) {
    const auto order = work.order;
    dispatcher_.enqueue(work);
    if (work.order != order) order_changed_ = true;
    queue_[work.priority][work.order] = &work;
  }

  void finish_one() {
    const unsigned i = below(kWorkers);
    if (!workers_[i].ready || workers_[i].ring.empty()) return;
    leave(i, 0, std::chrono::nanoseconds(random_() % (below(40) == 0 ? 1'000'000 : 20'000)));
  }

  void take_back() {
    const unsigned i = below(kWorkers);
    constexpr std::size_t kept = 1;
    if (workers_[i].ring.size() > kept) leave(i, workers_[i].ring.size() - 1, std::nullopt);
  }

  void cancel_queued() {
    std::vector<Work*> waiting;
    for (auto& [priority, tasks] : queue_) {
      for (auto& [order, work] : tasks) waiting.push_back(work);
    }
    if (waiting.empty()) return;
    Work& work = *waiting[below(static_cast<unsigned>(waiting.size()))];
    dispatcher_.remove(work);
    queue_[work.priority].erase(work.order);
    over(work);
  }

  void look_for_stalls() {
    Workers expected;
    for (unsigned i = 0; i < kWorkers; ++i) {
      Worker& worker = workers_[i];
      const bool behind = worker.ring.size() >= 2;
      if (worker.present && behind && !worker.progressed) {
        worker.stalled = true;
        expected.push_back(i);
      }
      worker.progressed = false;
    }
    if (dispatcher_.stalled_workers() != expected) stall_differs_ = true;
  }

  void worker_event() {
    const unsigned i = below(kWorkers);
    Worker& worker = workers_[i];
    if (!worker.present) return;
    if (!worker.ready && below(4) != 0) {
      dispatcher_.worker_ready(i);
      dispatcher_.start_succeeded();
      worker.ready = true;
      worker.stalled = false;
      failures_ = 0;
    } else if (!worker.ready || below(4) == 0) {
      // It dies: what it had begun is lost, the rest goes back.
      const bool was_ready = worker.ready;
      std::vector<Work*> ring = std::exchange(worker, Worker{}).ring;
      dispatcher_.worker_removed(i);
      for (std::size_t k = 0; k < ring.size(); ++k) {
        if (k == 0 && was_ready) {
          over(*ring[k]);
        } else {
          back_to_queue(*ring[k]);
        }
      }
      if (!was_ready) {
        const Dispatcher::Duration pause = std::min<Dispatcher::Duration>(10ms * (1 << std::min(failures_, 10U)), 1s);
        dispatcher_.start_failed(now_);
        ++failures_;
        pause_until_ = now_ + pause;
      }
    }
  }

  void start() {
    if (below(8) == 0) now_ += std::chrono::milliseconds(below(100));
    const auto worker = dispatcher_.worker_to_start(now_);
    if (!worker) return;
    dispatcher_.worker_added(*worker);
    workers_[*worker] = Worker{};
    workers_[*worker].present = true;
  }

  std::mt19937_64 random_;
  Dispatcher dispatcher_;
  std::map<int, std::unique_ptr<Work>> alive_;
  std::map<int, std::map<std::uint64_t, Work*>> queue_;  // by priority, then by order
  Worker workers_[kWorkers];
  Dispatcher::Time now_{0};
  Dispatcher::Time told_{0};  // the latest that the dispatcher knows of
  Dispatcher::Time pause_until_{0};
  unsigned failures_ = 0;
  std::size_t submitted_ = 0;
  std::size_t ended_ = 0;
  bool stall_differs_ = false;
  bool order_changed_ = false;
};

}  // namespace

TEST_CASE("after each of 200,000 random events every decision is the one that the rules give", "[dispatcher]") {
  // Another search: BULKHEAD_TEST_SEED=123 dispatcher_test
  const std::uint64_t seed = bulkhead::test::number_from("BULKHEAD_TEST_SEED", std::random_device()());
  Model model(seed);
  std::string violation;
  int step = 0;
  for (; step < 200'000 && violation.empty(); ++step) {
    model.step();
    violation = model.violation();
  }
  INFO("seed " << seed << ", step " << step);
  REQUIRE(violation == "");
  REQUIRE(model.end() == "");
  REQUIRE(model.submitted() > 10'000);
}

TEST_CASE("the worker that is quick to name is the one that is chosen, or it has no room", "[dispatcher]") {
  const std::uint64_t seed = bulkhead::test::number_from("BULKHEAD_TEST_SEED", std::random_device()());
  std::mt19937_64 random(seed);
  int with_room = 0;
  int without = 0;
  int several = 0;
  for (const auto& [workers, cpus] : {std::pair(1U, 1U), {2U, 1U}, {3U, 1U}, {3U, 2U}, {5U, 2U}, {5U, 8U}}) {
    Dispatcher::Limits given;
    given.max_workers = workers;
    given.cpus = cpus;  // fewer than workers: some can be enough of them
    Dispatcher dispatcher(given);
    Dispatcher::Time now{0};
    for (int step = 0; step < 50'000; ++step) {
      INFO("seed " << seed << ", " << workers << " workers, " << cpus << " CPUs, step " << step);
      const auto worker = static_cast<unsigned>(random() % workers);
      now += std::chrono::nanoseconds(random() % (random() % 50 == 0 ? 300'000 : 2'000));
      switch (random() % 12) {
        case 0:
          if (!dispatcher.present(worker)) dispatcher.worker_added(worker);
          break;
        case 1:
          if (dispatcher.present(worker)) dispatcher.worker_ready(worker, now);
          break;
        case 2:
          if (random() % 20 == 0) dispatcher.worker_removed(worker);
          break;
        case 3:
          if (random() % 20 == 0) dispatcher.stalled_workers();
          break;
        case 4:
        case 5:
        case 6:
          if (dispatcher.load(worker) > 0) {
            dispatcher.left(worker, std::chrono::nanoseconds(random() % (random() % 30 == 0 ? 90'000 : 3'000)), now);
          }
          break;
        default:
          dispatcher.set_time(now);
          if (const auto chosen = dispatcher.choose_worker()) dispatcher.placed(*chosen);
      }
      const int quick = dispatcher.quick_choice();
      if (quick < 0) continue;
      const bool room = dispatcher.has_room(dispatcher.load(static_cast<unsigned>(quick)));
      const auto chosen = dispatcher.choose_worker();
      REQUIRE(chosen.has_value() == room);
      if (room) REQUIRE(*chosen == static_cast<unsigned>(quick));
      ++(room ? with_room : without);
      if (dispatcher.busy().size() > 1) ++several;
    }
  }
  CHECK(several > 1000);
  CHECK(with_room > 1000);
  CHECK(without > 1000);
}

// ---------------------------------------------------------------------------------------------------------------------
// Workers that come and go.

namespace {

// Starts all workers that are wanted; returns their numbers.
Workers start_all(Dispatcher& dispatcher, Dispatcher::Time now, std::uint64_t most_tasks = 0) {
  Workers started;
  while (const auto worker = dispatcher.worker_to_start(now)) {
    dispatcher.worker_added(*worker, most_tasks);
    dispatcher.worker_ready(*worker, now);
    started.push_back(*worker);
  }
  return started;
}

using bulkhead::detail::Compartment;
using bulkhead::detail::kFirstOwnCompartment;
using bulkhead::detail::kSharedCompartment;

constexpr Compartment kA = kFirstOwnCompartment;
constexpr Compartment kB = kFirstOwnCompartment + 1;

Dispatcher with_isolation(unsigned workers) {
  Dispatcher dispatcher = with_ready_workers(workers);
  dispatcher.isolate();
  return dispatcher;
}

// The worker that the task is given to, which ends it.
std::optional<unsigned> run_one(Dispatcher& dispatcher, Compartment compartment) {
  const auto worker = dispatcher.choose_worker(compartment);
  if (!worker) return worker;
  dispatcher.placed(*worker, 0, compartment);
  dispatcher.left(*worker, 1ms);
  return worker;
}

TEST_CASE("A worker that has run a task of one key is given none of another, nor one that shares workers") {
  Dispatcher dispatcher = with_isolation(1);
  CHECK(run_one(dispatcher, kA) == 0U);
  CHECK(run_one(dispatcher, kA) == 0U);
  CHECK_FALSE(dispatcher.choose_worker(kB));
  CHECK_FALSE(dispatcher.choose_worker(kSharedCompartment));
}

TEST_CASE("A task of a key goes to the worker that its key has before it takes one that has run nothing") {
  Dispatcher dispatcher = with_isolation(3);
  CHECK(run_one(dispatcher, kSharedCompartment) == 0U);
  CHECK(run_one(dispatcher, kA) == 1U);
  CHECK(run_one(dispatcher, kB) == 2U);
  CHECK(run_one(dispatcher, kA) == 1U);
  CHECK(run_one(dispatcher, kSharedCompartment) == 0U);
}

TEST_CASE("A task of a compartment of its own is given a worker that has run nothing, once that is ready") {
  Dispatcher dispatcher = with_isolation(2);
  CHECK(run_one(dispatcher, kSharedCompartment) == 0U);
  CHECK(run_one(dispatcher, kA) == 1U);
  dispatcher.leave(1);
  CHECK_FALSE(dispatcher.choose_worker(kB));
  CHECK(dispatcher.worker_to_start(0ns) == 2U);
  dispatcher.worker_added(2);
  CHECK_FALSE(dispatcher.choose_worker(kB));
  dispatcher.worker_ready(2);
  CHECK(dispatcher.choose_worker(kB) == 2U);
}

TEST_CASE("A worker that is held for its task is not given up for another") {
  Dispatcher dispatcher = with_isolation(1);
  CHECK(run_one(dispatcher, kA) == 0U);
  Work waiting(1);
  waiting.compartment = kB;
  dispatcher.enqueue(waiting);
  dispatcher.hold(0);
  CHECK_FALSE(dispatcher.worker_to_give_up());
  CHECK(dispatcher.choose_worker(kA) == 0U);
  dispatcher.release(0);
  CHECK(dispatcher.worker_to_give_up() == 0U);
}

TEST_CASE("A task whose key has no worker has the one leave that has been idle for longest") {
  Dispatcher dispatcher = with_isolation(2);
  dispatcher.placed(0, 0, kA);
  dispatcher.left(0, 1ms, 20ms);
  dispatcher.placed(1, 0, kB);
  dispatcher.left(1, 1ms, 10ms);
  CHECK_FALSE(dispatcher.worker_to_give_up());
  Work waiting(1);
  waiting.compartment = kB + 1;
  dispatcher.enqueue(waiting);
  CHECK(dispatcher.worker_to_give_up() == 1U);
  dispatcher.leave(1);
  // One is enough for it.
  CHECK_FALSE(dispatcher.worker_to_give_up());
  CHECK(dispatcher.worker_to_start(0ns) == 2U);
  dispatcher.worker_added(2);
  CHECK_FALSE(dispatcher.worker_to_give_up());
  CHECK_FALSE(dispatcher.worker_to_start(0ns));
}

TEST_CASE("No worker leaves for a task whose key has none as long as all have something to do") {
  Dispatcher dispatcher = with_isolation(1);
  dispatcher.placed(0, 0, kA);
  Work waiting(1);
  waiting.compartment = kB;
  dispatcher.enqueue(waiting);
  CHECK_FALSE(dispatcher.worker_to_give_up());
  CHECK_FALSE(dispatcher.lacks_workers());
  dispatcher.left(0, 1ms);
  CHECK(dispatcher.worker_to_give_up() == 0U);
}

TEST_CASE("A task whose key has no worker has one started where more are allowed") {
  Dispatcher::Limits made = limits(2);
  made.min_workers = 1;
  Dispatcher dispatcher(made);
  dispatcher.isolate();
  dispatcher.worker_added(0);
  dispatcher.worker_ready(0);
  CHECK(run_one(dispatcher, kA) == 0U);
  Work waiting(1);
  waiting.compartment = kB;
  dispatcher.enqueue(waiting);
  CHECK_FALSE(dispatcher.worker_to_give_up());
  CHECK(dispatcher.worker_to_start(0ns) == 1U);
}

TEST_CASE("An urgent task takes none back from a worker that it may not have") {
  Dispatcher dispatcher = with_isolation(1);
  set_average(dispatcher, 0, 50us);
  for (int i = 0; i < 4; ++i) dispatcher.placed(0, 5, kSharedCompartment);
  CHECK_FALSE(dispatcher.worker_to_overtake(1, kA));
  CHECK(dispatcher.worker_to_overtake(1, kSharedCompartment) == 0U);
}

}  // namespace

TEST_CASE("spare workers are started beyond the others, and are given tasks only in place of one that is gone",
          "[dispatcher]") {
  auto made = limits(2);
  made.spare_workers = 1;
  Dispatcher dispatcher(made);
  CHECK(start_all(dispatcher, 0ns) == Workers{0, 1, 2});
  set_average(dispatcher, 0, 1s);
  for (int i = 0; i < 2; ++i) dispatcher.placed(*dispatcher.choose_worker());
  CHECK_FALSE(dispatcher.choose_worker());
  CHECK_FALSE(dispatcher.lacks_workers());
  dispatcher.worker_removed(0);
  CHECK(dispatcher.choose_worker() == 2U);
  CHECK(dispatcher.lacks_workers());
  CHECK(start_all(dispatcher, 0ns) == Workers{0});
}

TEST_CASE("a worker leaves after its last task, and its replacement is wanted when it is given that", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  REQUIRE(start_all(dispatcher, 0ns, 2) == Workers{0});
  dispatcher.placed(0);
  dispatcher.left(0, 1us);
  CHECK_FALSE(dispatcher.leaving(0));
  CHECK_FALSE(dispatcher.lacks_workers());
  dispatcher.placed(0);
  CHECK(dispatcher.leaving(0));
  CHECK(dispatcher.lacks_workers());
  CHECK(start_all(dispatcher, 0ns) == Workers{1});
  // Never more tasks at once than there may be workers.
  CHECK_FALSE(dispatcher.choose_worker());
  dispatcher.left(0, 1us);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.worker_removed(0);
  CHECK(dispatcher.staying() == 1);
  CHECK_FALSE(dispatcher.lacks_workers());
}

TEST_CASE("a task that is taken back does not count among a worker's last ones", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  REQUIRE(start_all(dispatcher, 0ns, 1) == Workers{0});
  dispatcher.placed(0);
  CHECK(dispatcher.leaving(0));
  dispatcher.taken_back(0);
  dispatcher.left(0, std::nullopt);
  CHECK_FALSE(dispatcher.leaving(0));
  CHECK_FALSE(dispatcher.lacks_workers());
  CHECK(dispatcher.choose_worker() == 0U);
  dispatcher.placed(0);
  CHECK(dispatcher.leaving(0));
  // One that leaves for another reason leaves.
  dispatcher.leave(0);
  dispatcher.taken_back(0);
  CHECK(dispatcher.leaving(0));
  CHECK(dispatcher.staying() == 0);
}

TEST_CASE("a killed worker is replaced at once, and what it had does not count as running", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  start_all(dispatcher, 0ns);
  dispatcher.placed(0);
  CHECK_FALSE(dispatcher.lacks_workers());
  dispatcher.worker_killed(0);
  dispatcher.worker_killed(0);
  CHECK(dispatcher.lacks_workers());
  CHECK(start_all(dispatcher, 0ns) == Workers{1});
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.placed(1);
  dispatcher.worker_removed(0);
  CHECK(dispatcher.load(1) == 1);
  CHECK_FALSE(dispatcher.lacks_workers());
  // As many may be dying as are wanted.
  dispatcher.worker_killed(1);
  CHECK(start_all(dispatcher, 0ns) == Workers{0});
  dispatcher.worker_killed(0);
  CHECK(dispatcher.lacks_workers());
  CHECK_FALSE(dispatcher.worker_to_start(0ns));
}

TEST_CASE("workers beyond the smallest number come with the tasks that wait, and go when they were idle for so long",
          "[dispatcher]") {
  auto made = limits(4);
  made.min_workers = 1;
  made.idle_timeout = 10s;
  Dispatcher dispatcher(made);
  CHECK(start_all(dispatcher, 0s) == Workers{0});
  CHECK_FALSE(dispatcher.next_dismissal(0s));
  std::vector<std::unique_ptr<Work>> tasks;
  for (int i = 0; i < 3; ++i) {
    tasks.push_back(std::make_unique<Work>(i));
    dispatcher.enqueue(*tasks.back());
  }
  CHECK(start_all(dispatcher, 0s) == Workers{1, 2});
  for (unsigned i = 0; i < 3; ++i) {
    dispatcher.remove(*dispatcher.front());
    dispatcher.placed(*dispatcher.choose_worker());
  }
  CHECK_FALSE(dispatcher.lacks_workers());
  CHECK_FALSE(dispatcher.worker_to_dismiss(100s));
  dispatcher.left(1, 1s, 20s);
  dispatcher.left(2, 1s, 22s);
  CHECK_FALSE(dispatcher.worker_to_dismiss(29s));
  CHECK(dispatcher.next_dismissal(29s) == Dispatcher::Time(30s));
  CHECK(dispatcher.worker_to_dismiss(30s) == 1U);
  dispatcher.leave(1);
  CHECK_FALSE(dispatcher.worker_to_dismiss(31s));
  CHECK(dispatcher.next_dismissal(31s) == Dispatcher::Time(32s));
  CHECK(dispatcher.worker_to_dismiss(32s) == 2U);
  dispatcher.leave(2);
  dispatcher.left(0, 1s, 40s);
  CHECK_FALSE(dispatcher.worker_to_dismiss(1h));
  CHECK_FALSE(dispatcher.next_dismissal(1h));
}

TEST_CASE("a pool that keeps no workers starts one for a task, and lets it go again", "[dispatcher]") {
  auto made = limits(2);
  made.min_workers = 0;
  made.idle_timeout = 1s;
  Dispatcher dispatcher(made);
  CHECK_FALSE(dispatcher.lacks_workers());
  Work task(1);
  dispatcher.enqueue(task);
  CHECK(dispatcher.worker_to_start(0s) == 0U);
  dispatcher.worker_added(0);
  // Not a second one for the same task.
  CHECK_FALSE(dispatcher.worker_to_start(0s));
  dispatcher.remove(task);
  dispatcher.placed(0);
  CHECK_FALSE(dispatcher.worker_to_start(0s));
  dispatcher.worker_ready(0, 0s);
  dispatcher.left(0, 1us, 5s);
  CHECK_FALSE(dispatcher.worker_to_dismiss(5s));
  CHECK(dispatcher.worker_to_dismiss(6s) == 0U);
  dispatcher.leave(0);
  CHECK(dispatcher.staying() == 0);
}

TEST_CASE("a worker that takes nothing up gets nothing more until it is heard of", "[dispatcher]") {
  Dispatcher dispatcher = with_ready_workers(2);
  dispatcher.placed(0);
  dispatcher.stall(0);
  CHECK(dispatcher.choose_worker() == 1U);
  dispatcher.left(0, std::nullopt);
  CHECK(dispatcher.choose_worker() == 0U);
}

TEST_CASE("workers that die soon after their start, and of no task, come back after pauses that grow", "[dispatcher]") {
  Dispatcher dispatcher(limits(1));
  Dispatcher::Time now = 0s;
  Dispatcher::Time last_pause{0};
  for (int death = 0; death < 12; ++death) {
    INFO(death);
    const auto worker = dispatcher.worker_to_start(now);
    REQUIRE(worker);
    dispatcher.worker_added(*worker);
    dispatcher.worker_ready(*worker, now);
    // Being ready is no proof that it lives.
    dispatcher.start_succeeded();
    now += 3ms;
    dispatcher.worker_removed(*worker);
    dispatcher.died_young(now);
    CHECK_FALSE(dispatcher.worker_to_start(now));
    const auto next = dispatcher.next_start();
    REQUIRE(next);
    const auto pause = *next - now;
    CHECK(pause >= last_pause);
    CHECK(pause <= 1s);
    last_pause = pause;
    now = *next;
  }
  CHECK(last_pause == 1s);
  // Long after that one death is one again.
  const auto worker = dispatcher.worker_to_start(now);
  REQUIRE(worker);
  dispatcher.worker_added(*worker);
  dispatcher.worker_ready(*worker, now);
  now += 1h;
  dispatcher.worker_removed(*worker);
  dispatcher.died_young(now);
  CHECK(*dispatcher.next_start() - now == 10ms);
}
