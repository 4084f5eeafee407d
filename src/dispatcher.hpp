// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "task_queue.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace bulkhead::detail {

/// Decides for a pool of worker processes: which task goes to which worker, how many may lie in a worker's ring, which
/// are taken back, when a worker is started, when one has to leave, and when starting is given up.
///
/// A worker that leaves gets no further task and is replaced at once, while it still ends its last one. So the pool has
/// places for twice as many workers as it uses.
///
/// Knows neither processes nor clocks nor sockets: events come in, decisions go out, and time is an argument.
/// Not thread-safe.
class Dispatcher {
 public:
  using Duration = std::chrono::nanoseconds;
  using Time = std::chrono::nanoseconds;  // since an epoch of the caller's choice

  struct Limits {
    /// Workers that may have tasks at the same time.
    unsigned max_workers = 1;
    /// Workers that are kept when there is nothing to do; empty: `max_workers`.
    std::optional<unsigned> min_workers = std::nullopt;
    /// Workers beyond those, ready to take the place of one that dies.
    unsigned spare_workers = 0;
    /// How long a worker beyond `min_workers` may have nothing to do before it leaves.
    Duration idle_timeout = std::chrono::seconds(60);
    /// How long after its last large request a worker that holds more memory than it should is replaced.
    Duration swollen_timeout = std::chrono::seconds(10);
    /// How often to look whether its replacement is ready: nobody waits for that.
    Duration replacement_look = std::chrono::milliseconds(100);
    /// Requests that one worker's ring holds.
    unsigned ring_slots = 256;
    /// How much work may lie in one worker's ring. With more, a task could wait behind others although the queue
    /// would have known better; with less, tiny tasks would need a wake-up each (which costs 5 to 15 µs).
    Duration ring_budget = std::chrono::microseconds(200);
    /// So many runs among the last 64 that use up a ring's budget alone, and tasks count as mixed, short and long: then
    /// none is put behind another. One or two may have been interrupted, which says nothing of the next.
    int long_runs_of_mixed_tasks = 3;
    /// CPUs of this process. More workers than that are not woken for tasks that are over sooner than that.
    unsigned cpus = std::numeric_limits<unsigned>::max();
    /// Tasks that are over sooner are tiny: to show one of them costs (some 100 ns) more than a twentieth of it.
    Duration tiny = std::chrono::microseconds(2);
    /// What waking a worker costs, and a switch of a CPU to it.
    Duration wake_up = std::chrono::microseconds(10);
    /// As long as urgent tasks come at least so often, rings hold no more than two wake-ups' worth of work, so that the
    /// next one need not overtake much: five times what a ring holds otherwise.
    Duration urgent_memory = std::chrono::milliseconds(1);
    /// Failed starts in a row after which waiting tasks fail: one failure may be a moment's lack of memory or
    /// descriptors, three with pauses between them are not.
    unsigned failures_before_error = 3;
    /// Pause after a failed start; it doubles with each further one up to the longest. So a start that fails for good
    /// costs one process a second, not a fork storm.
    Duration first_pause = std::chrono::milliseconds(10);
    Duration longest_pause = std::chrono::seconds(1);
    /// A worker that dies young counts together with those before it if they died no longer ago than that: ten times
    /// the longest pause, so that a start which always ends so keeps its pauses.
    Duration young_deaths_memory = std::chrono::seconds(10);
  };

  explicit Dispatcher(Limits limits);

  // Tasks.

  /// A task waits for a worker: by priority (the lower number first), then in the order of their first enqueue.
  void enqueue(QueuedTask& task) { queue_.enqueue(task); }
  /// Gives the task its place among those of its priority, if it has none yet; `enqueue` does it, too.
  void number(QueuedTask& task) noexcept { queue_.number(task); }
  /// It does not wait any more.
  void remove(QueuedTask& task) { queue_.remove(task); }
  QueuedTask* front() { return queue_.front(); }
  std::size_t queued() const noexcept { return queue_.size(); }

  // Workers, numbered from 0 to places() - 1.

  std::size_t places() const noexcept { return workers_.size(); }
  /// A worker is started; it is given tasks once it is ready. After `most_tasks` of them (0: no limit) it leaves.
  void worker_added(unsigned worker, std::uint64_t most_tasks = 0);
  void worker_ready(unsigned worker, Time now = Time(0));
  /// It is kept for the task that it was last given, which comes back: it is neither given up nor dismissed.
  void hold(unsigned worker) noexcept { ++workers_[worker].holds; }
  void release(unsigned worker) noexcept {
    if (workers_[worker].holds > 0) --workers_[worker].holds;
  }
  /// It gets no task any more and is replaced; what it has, it ends.
  void leave(unsigned worker);
  /// A request takes more of its memory than it should keep, which only its end gives back: some time after the last of
  /// those it is replaced. One after the other, and each when its replacement is ready. Whether that was not known.
  bool swell(unsigned worker, Time now) noexcept;
  /// To be called before `worker_to_start`: whether one is to be started for a worker that holds too much memory.
  void look_at_memory(Time now) noexcept;
  /// The same as `leave` for one that was killed: what it has does not count as running any more.
  void worker_killed(unsigned worker);
  /// It is gone.
  void worker_removed(unsigned worker);
  bool present(unsigned worker) const { return workers_[worker].present; }
  bool ready(unsigned worker) const { return workers_[worker].ready; }
  bool leaving(unsigned worker) const { return workers_[worker].leaving; }
  /// Whether it has been given a task that does not share workers with all others.
  bool isolated(unsigned worker) const { return workers_[worker].compartment > kSharedCompartment; }
  unsigned starting() const noexcept { return starting_; }
  /// Workers that are there to stay.
  unsigned staying() const noexcept { return staying_; }

  /// What time it is, for `choose_worker`.
  void set_time(Time now) noexcept {
    if (now_ < now) now_ = now;
  }
  /// Tasks are not all of the shared compartment: `choose_worker` looks at that from now on.
  void isolate() noexcept { isolating_ = true; }
  /// Which worker should be given the first task of the queue, which is of this compartment, if any.
  std::optional<unsigned> choose_worker(Compartment compartment = kSharedCompartment) const {
    const Worker* const chosen = compartment == kSharedCompartment ? chosen_worker() : chosen_worker_of(compartment);
    if (chosen == nullptr) return std::nullopt;
    return static_cast<unsigned>(chosen - workers_.data());
  }
  /// Where that is quick to see, the worker that `choose_worker` names for a task of the shared compartment if it has
  /// room, and no other otherwise. -1: it takes more than a look.
  int quick_choice() const noexcept {
    if (starting_ > 0 || (loaded_ < limits_.max_workers && !few_are_enough())) return -1;
    if (busy_.size() != 1) return quick_choice_of_several();
    return is_available(workers_[busy_.front()]) ? static_cast<int>(busy_.front()) : -1;
  }
  /// Whether the tasks are so short that those workers which have some will come to another one sooner than one more
  /// would be awake, provided that they get on.
  bool few_are_enough() const noexcept {
    return loaded_ >= limits_.cpus && average_run_.count() >= 0 && average_run_ < limits_.wake_up && !mixed_;
  }
  /// Whether tasks take no longer than it pays to show a worker several of them at once.
  bool are_tiny() const noexcept { return average_run_ < limits_.tiny; }
  /// Whether the worker has ended nothing for as long as a whole ring may take: it is at something long, or its answers
  /// have not been read. It gets no task then that it could get to late.
  bool is_overdue(unsigned worker) const noexcept { return is_overdue(workers_[worker]); }
  /// The worker has answered something, which is still to be read.
  void gets_on(unsigned worker) noexcept { workers_[worker].progressed_at = now_; }
  /// A task was put into the worker's ring.
  void placed(unsigned worker, int priority = 0, Compartment compartment = kSharedCompartment);
  /// Whether a task of this priority may be more urgent than another: a quick look.
  bool is_urgent(int priority) const noexcept { return priority < least_urgent_; }
  /// The worker whose last tasks should be taken back for a task of this priority, if any: it is the one that would
  /// come to the task first, and they are less urgent. Asked for a task that is to be placed; it is taken for done.
  std::optional<unsigned> worker_to_overtake(int priority, Compartment compartment = kSharedCompartment) {
    if (!is_urgent(priority)) return std::nullopt;
    if (now_ < short_until_) short_until_ = now_ + limits_.urgent_memory;
    return overtaken_worker(priority, compartment);
  }
  /// The worker that should have the latter half of its tasks taken back since another has nothing to do, if any.
  std::optional<unsigned> worker_to_relieve() const;
  /// A task that it was given was taken back: it does not count among its `most_tasks`.
  void taken_back(unsigned worker);
  /// A request left the worker's ring: its task ended (`run_time`), or it was taken back.
  void left(unsigned worker, std::optional<Duration> run_time, Time now = Time(0));
  std::size_t load(unsigned worker) const { return workers_[worker].load; }
  /// The workers that have requests, in no order. Changes with `placed`, `left` and `worker_removed`: where the last
  /// request of one leaves, the last of these takes its place.
  std::span<const unsigned> busy() const noexcept { return busy_; }
  /// Whether tasks lie behind another in a ring.
  bool has_backlog() const;
  /// Whether one more request may lie in a ring that holds `load`: as many as fit the budget by the average run time,
  /// and always one.
  bool has_room(std::size_t load) const noexcept;

  /// Called at intervals while `has_backlog`: the workers that have finished nothing since the last call and should
  /// have the tasks that they have not begun taken back. They get no new ones until they finish something or are ready.
  std::vector<unsigned> stalled_workers();
  /// The same for one that is known to take nothing up.
  void stall(unsigned worker) { workers_[worker].stalled = true; }
  /// It is dead, and how it died is still to be told: it gets no tasks until it is removed.
  void worker_died(unsigned worker) { workers_[worker].dead = workers_[worker].stalled = true; }

  // Starting workers, and letting them go.

  /// Whether there are as many workers as there may ever be, and none is to be replaced: a quick look.
  bool is_complete() const noexcept { return staying_ >= most_workers() && !isolating_ && !replacing_; }
  /// Whether there are fewer workers than there should be.
  bool lacks_workers() const noexcept;
  /// A worker that is missing and may be started now; empty if all are there or a pause is under way.
  std::optional<unsigned> worker_to_start(Time now) const;
  /// A worker that has had nothing to do for so long that it should leave.
  std::optional<unsigned> worker_to_dismiss(Time now) const;
  /// A worker that has nothing to do and should leave, since the first task of the queue may be given to none that is
  /// there, and no more may be started.
  std::optional<unsigned> worker_to_give_up() const;
  /// When to ask `worker_to_dismiss` again; empty while there are no more workers than are kept, and none holds too
  /// much memory.
  std::optional<Time> next_dismissal(Time now) const;
  /// When the pause after a failure is over; empty if there is none.
  std::optional<Time> next_start() const;
  void start_failed(Time now);
  /// A worker that was ready has died soon after its start, and no task is to blame: its replacement may do the same.
  void died_young(Time now);
  /// A worker has proved to work.
  void start_succeeded() noexcept;
  unsigned failures_in_a_row() const noexcept { return failures_; }
  /// Whether tasks that wait should fail now, as no worker can be had.
  bool gives_up() const;
  bool has_ready_worker() const;
  /// No worker is started any more.
  void stop_starting() noexcept { stopping_ = true; }

 private:
  struct Worker {
    bool present = false;
    bool ready = false;
    bool stalled = false;
    bool progressed = false;
    bool leaving = false;
    bool killed = false;
    bool dead = false;
    bool swollen = false;
    std::size_t load = 0;
    int last_priority = 0;  // of the task that was put into its ring last
    Compartment compartment = kNoCompartment;
    unsigned holds = 0;
    bool limited = false;  // leaves after some tasks
    std::uint64_t tasks_left = 0;
    std::size_t busy_place = 0;  // in `busy_`, if it has a load
    Time progressed_at{0};       // when it ended a request, or got its first
    Time idle_since{0};
    Time swollen_at{0};
  };

  bool is_overdue(const Worker& worker) const noexcept {
    return worker.load > 0 && now_ - worker.progressed_at > limits_.ring_budget;
  }
  bool is_available(const Worker& worker) const noexcept {
    return worker.ready && !worker.stalled && !worker.leaving && may_take(worker, kSharedCompartment) &&
           !is_overdue(worker);
  }
  static bool may_take(const Worker& worker, Compartment compartment) noexcept {
    return worker.compartment == kNoCompartment || worker.compartment == compartment;
  }
  int quick_choice_of_several() const noexcept;
  const Worker* least_loaded_of_few() const noexcept;
  const Worker* chosen_worker() const noexcept;
  const Worker* chosen_worker_of(Compartment compartment) const noexcept;
  bool lacks_unused_worker() const noexcept;
  unsigned most_workers() const noexcept { return limits_.max_workers + limits_.spare_workers; }
  std::optional<unsigned> overtaken_worker(int priority, Compartment compartment);
  void add_busy(unsigned worker);
  void remove_busy(unsigned worker) noexcept;
  Duration pause_after(unsigned failures) const noexcept;
  std::optional<Time> pause_end() const noexcept;
  void begin_leaving(Worker& worker) noexcept;
  unsigned wanted_workers() const noexcept;
  unsigned needed_workers() const noexcept;
  unsigned kept_workers() const noexcept;
  bool is_to_be_replaced(const Worker& worker, Time now) const noexcept;

  Limits limits_;
  TaskQueue queue_;
  std::vector<Worker> workers_;
  unsigned starting_ = 0;
  unsigned staying_ = 0;
  unsigned loaded_ = 0;                                 // workers that have tasks, but for killed ones
  std::vector<unsigned> busy_;                          // see busy()
  Time now_{0};                                         // the latest that was told
  Time may_overtake_{0};                                // not before
  Time short_until_{0};                                 // rings are kept short
  int least_urgent_ = std::numeric_limits<int>::min();  // priority of all tasks so far
  Duration average_run_{-1};                            // negative: not known yet
  std::uint64_t long_runs_ = 0;                         // of the last 64 runs, a bit each
  bool mixed_ = false;                                  // there are so many of them that none is put behind another
  unsigned failures_ = 0;
  std::optional<Time> pause_until_;
  unsigned young_deaths_ = 0;
  std::optional<Time> last_young_death_;
  bool replacing_ = false;  // a worker beyond those that are needed is started, to take the place of another
  bool stopping_ = false;
  bool isolating_ = false;  // there are tasks that may not run in every worker
};

// Inline: what every task passes through.

inline bool Dispatcher::has_room(std::size_t load) const noexcept {
  if (load == 0) return true;
  if (average_run_.count() < 0 || mixed_ || load >= limits_.ring_slots) return false;
  // A multiplication, since this is asked for every task and a division would show.
  const Duration budget = now_ < short_until_ ? 2 * limits_.wake_up : limits_.ring_budget;
  return static_cast<Duration::rep>(load + 1) * std::max(average_run_, Duration(1)) <= budget;
}

inline void Dispatcher::placed(unsigned worker, int priority, Compartment compartment) {
  Worker& state = workers_[worker];
  // Looked at first, here and below, as most of it is as it was: what bounds tiny tasks is how much they write.
  if (state.compartment != compartment) state.compartment = compartment;
  if (state.last_priority != priority) state.last_priority = priority;
  if (least_urgent_ < priority) least_urgent_ = priority;
  if (state.load++ == 0) {
    ++loaded_;
    add_busy(worker);
  }
  if (state.limited && --state.tasks_left == 0) begin_leaving(state);
}

inline void Dispatcher::left(unsigned worker, std::optional<Duration> run_time, Time now) {
  Worker& state = workers_[worker];
  set_time(now);
  if (state.progressed_at != now_) state.progressed_at = now_;
  assert(state.load > 0);
  if (--state.load == 0) {
    if (!state.killed) --loaded_;
    state.idle_since = now;
    remove_busy(worker);
  }
  if (state.stalled != state.dead) state.stalled = state.dead;
  if (!state.progressed) state.progressed = true;
  if (!run_time) return;
  const bool is_long = *run_time > limits_.ring_budget;
  if (is_long || long_runs_ != 0 || mixed_) {
    long_runs_ = long_runs_ << 1 | (is_long ? 1 : 0);
    mixed_ = std::popcount(long_runs_) >= limits_.long_runs_of_mixed_tasks;
  }
  // An average that forgets: the last eight runs weigh two thirds. A run that takes so much longer than the others was
  // interrupted: a lost CPU is away for milliseconds, which says nothing of the next run. Where the runs have indeed
  // become longer, the average nearly doubles with each.
  constexpr Duration kLeast = std::chrono::microseconds(1);  // a whole ring of those is a ring's budget
  const Duration most = 8 * std::max(average_run_, kLeast);
  average_run_ = average_run_.count() < 0 ? *run_time : average_run_ + (std::min(*run_time, most) - average_run_) / 8;
}

}  // namespace bulkhead::detail
