// SPDX-License-Identifier: BSL-1.0
#include "dispatcher.hpp"

#include <algorithm>
#include <utility>

namespace bulkhead::detail {

Dispatcher::Dispatcher(Limits limits)
    : limits_(limits), workers_(2 * (std::size_t{limits.max_workers} + limits.spare_workers)) {
  busy_.reserve(workers_.size());
}

void Dispatcher::worker_added(unsigned worker, std::uint64_t most_tasks) {
  workers_[worker] = Worker{};
  workers_[worker].present = true;
  workers_[worker].limited = most_tasks > 0;
  workers_[worker].tasks_left = most_tasks;
  ++starting_;
  ++staying_;
}

void Dispatcher::worker_ready(unsigned worker, Time now) {
  if (workers_[worker].ready) return;
  workers_[worker].ready = true;
  workers_[worker].idle_since = now;
  --starting_;
}

void Dispatcher::begin_leaving(Worker& worker) noexcept {
  if (!worker.leaving) --staying_;
  worker.leaving = true;
}

void Dispatcher::leave(unsigned worker) {
  if (!workers_[worker].present) return;
  workers_[worker].limited = false;  // whatever is taken back, it leaves
  begin_leaving(workers_[worker]);
}

bool Dispatcher::swell(unsigned worker, Time now) noexcept {
  workers_[worker].swollen_at = now;
  return !std::exchange(workers_[worker].swollen, true);
}

bool Dispatcher::is_to_be_replaced(const Worker& worker, Time now) const noexcept {
  return worker.swollen && worker.ready && !worker.leaving && now >= worker.swollen_at + limits_.swollen_timeout;
}

void Dispatcher::look_at_memory(Time now) noexcept {
  const bool some_are_to_go = std::any_of(workers_.begin(), workers_.end(),
                                          [&](const Worker& worker) { return is_to_be_replaced(worker, now); });
  // All places may be taken by workers that leave, and still end something.
  const bool has_place =
      std::any_of(workers_.begin(), workers_.end(), [](const Worker& worker) { return !worker.present; });
  replacing_ = some_are_to_go && (has_place || staying_ > needed_workers());
}

void Dispatcher::taken_back(unsigned worker) {
  Worker& state = workers_[worker];
  if (!state.limited) return;
  ++state.tasks_left;
  if (std::exchange(state.leaving, false)) ++staying_;
}

void Dispatcher::worker_killed(unsigned worker) {
  Worker& state = workers_[worker];
  if (!state.present || state.killed) return;
  if (state.load > 0) --loaded_;
  state.killed = true;
  leave(worker);
}

void Dispatcher::worker_removed(unsigned worker) {
  if (!workers_[worker].present) return;
  worker_killed(worker);
  if (!workers_[worker].ready) --starting_;
  if (workers_[worker].load > 0) remove_busy(worker);
  workers_[worker] = Worker{};
}

void Dispatcher::add_busy(unsigned worker) {
  workers_[worker].busy_place = busy_.size();
  workers_[worker].progressed_at = now_;
  busy_.push_back(worker);
}

void Dispatcher::remove_busy(unsigned worker) noexcept {
  const std::size_t place = workers_[worker].busy_place;
  busy_[place] = busy_.back();
  workers_[busy_[place]].busy_place = place;
  busy_.pop_back();
}

// Of those that get on, as many as there are CPUs: more would only take these from each other.
const Dispatcher::Worker* Dispatcher::least_loaded_of_few() const noexcept {
  const Worker* least = nullptr;
  unsigned seen = 0;
  for (const unsigned index : busy_) {
    const Worker& worker = workers_[index];
    if (!is_available(worker)) continue;
    if (least == nullptr || worker.load < least->load) least = &worker;
    if (++seen == limits_.cpus) break;
  }
  return least;
}

int Dispatcher::quick_choice_of_several() const noexcept {
  // A look at each takes some nanoseconds, and this is asked up to three times for a task.
  constexpr std::size_t kQuick = 4;
  const Worker* const least = busy_.size() <= kQuick && few_are_enough() ? least_loaded_of_few() : nullptr;
  return least != nullptr ? static_cast<int>(least - workers_.data()) : -1;
}

// For a task that shares workers with all others.
const Dispatcher::Worker* Dispatcher::chosen_worker() const noexcept {
  if (few_are_enough()) {
    // Those that get on will come to it sooner than another would be awake.
    const Worker* const least = least_loaded_of_few();
    if (least != nullptr) return has_room(least->load) ? least : nullptr;
  }
  const Worker* least = nullptr;
  if (loaded_ >= limits_.max_workers) {
    // Only those that have something may have more; of the same load the first.
    for (const unsigned index : busy_) {
      const Worker& worker = workers_[index];
      if (!is_available(worker)) continue;
      const bool less =
          least == nullptr || worker.load < least->load || (worker.load == least->load && &worker < least);
      if (less) least = &worker;
    }
    return least != nullptr && has_room(least->load) ? least : nullptr;
  }
  // The first free one: the same few workers stay warm, and those that are allowed to spin come first. One that has run
  // nothing only if there is no other, since others may need it.
  for (const Worker& worker : workers_) {
    if (!is_available(worker)) continue;
    const bool spares_unused = isolating_ && least != nullptr && worker.load == least->load &&
                               least->compartment == kNoCompartment && worker.compartment != kNoCompartment;
    if (least == nullptr || worker.load < least->load || spares_unused) least = &worker;
    if (worker.load == 0 && (!isolating_ || worker.compartment != kNoCompartment)) break;
  }
  return least != nullptr && has_room(least->load) ? least : nullptr;
}

// A worker of the task's own compartment that has nothing to do, else one that has run nothing, else the least loaded
// of its own.
const Dispatcher::Worker* Dispatcher::chosen_worker_of(Compartment compartment) const noexcept {
  const bool another = loaded_ < limits_.max_workers;
  const Worker* own = nullptr;
  const Worker* unused = nullptr;
  for (const Worker& worker : workers_) {
    if (!worker.ready || worker.stalled || worker.leaving || !may_take(worker, compartment)) continue;
    if ((worker.load == 0 && !another) || is_overdue(worker)) continue;
    if (worker.compartment == kNoCompartment) {
      if (unused == nullptr) unused = &worker;
    } else if (own == nullptr || worker.load < own->load) {
      own = &worker;
    }
  }
  if (own != nullptr && own->load == 0) return own;
  if (unused != nullptr) return unused;
  return own != nullptr && has_room(own->load) ? own : nullptr;
}

// Whether the first task of the queue has to wait for a worker that has run nothing, and none is there or on its way.
bool Dispatcher::lacks_unused_worker() const noexcept {
  if (!isolating_ || queue_.size() == 0 || loaded_ >= limits_.max_workers) return false;
  if (choose_worker(queue_.front()->compartment)) return false;
  return std::none_of(workers_.begin(), workers_.end(), [](const Worker& worker) {
    return worker.present && !worker.leaving && worker.compartment == kNoCompartment;
  });
}

std::optional<unsigned> Dispatcher::worker_to_give_up() const {
  if (stopping_ || staying_ < most_workers() || !lacks_unused_worker()) return std::nullopt;
  const Worker* longest_idle = nullptr;
  for (const Worker& worker : workers_) {
    if (!worker.ready || worker.leaving || worker.load > 0 || worker.holds > 0) continue;
    if (longest_idle == nullptr || worker.idle_since < longest_idle->idle_since) longest_idle = &worker;
  }
  if (longest_idle == nullptr) return std::nullopt;
  return static_cast<unsigned>(longest_idle - workers_.data());
}

std::optional<unsigned> Dispatcher::overtaken_worker(int priority, Compartment compartment) {
  // To take a ring's tasks back and to give them again costs about what they cost anyway: so often, it can at most
  // double that.
  if (average_run_.count() < 0 || now_ < may_overtake_) return std::nullopt;
  const Worker* least = nullptr;
  for (const unsigned index : busy_) {
    const Worker& worker = workers_[index];
    if (!worker.ready || worker.stalled || worker.leaving || !may_take(worker, compartment)) continue;
    if (least == nullptr || worker.load < least->load) least = &worker;
  }
  if (least == nullptr || least->last_priority <= priority) return std::nullopt;
  // What it would wait for otherwise, beside the task that runs.
  if (static_cast<Duration::rep>(least->load - 1) * average_run_ < limits_.wake_up) return std::nullopt;
  may_overtake_ = now_ + limits_.ring_budget;
  short_until_ = now_ + limits_.urgent_memory;
  return static_cast<unsigned>(least - workers_.data());
}

std::optional<unsigned> Dispatcher::worker_to_relieve() const {
  if (busy_.empty() || loaded_ >= limits_.max_workers || queue_.size() > 0 || few_are_enough()) return std::nullopt;
  const Worker* most = nullptr;
  for (const unsigned index : busy_) {
    const Worker& worker = workers_[index];
    if (!worker.ready || worker.killed) continue;
    if (most == nullptr || worker.load > most->load) most = &worker;
  }
  // It has to be worth waking the other one.
  if (most == nullptr || static_cast<Duration::rep>(most->load / 2) * average_run_ < limits_.wake_up) {
    return std::nullopt;
  }
  const bool idle = std::any_of(workers_.begin(), workers_.end(), [most](const Worker& worker) {
    return worker.ready && worker.load == 0 && !worker.stalled && !worker.leaving &&
           may_take(worker, most->compartment);
  });
  return idle ? std::optional(static_cast<unsigned>(most - workers_.data())) : std::nullopt;
}

bool Dispatcher::has_backlog() const {
  return std::any_of(busy_.begin(), busy_.end(), [this](unsigned index) {
    const Worker& worker = workers_[index];
    return !worker.killed && worker.load > 1;
  });
}

std::vector<unsigned> Dispatcher::stalled_workers() {
  std::vector<unsigned> stalled;
  for (unsigned i = 0; i < workers_.size(); ++i) {
    Worker& worker = workers_[i];
    const bool progressed = std::exchange(worker.progressed, false);
    if (!worker.present || worker.killed || worker.load < 2 || progressed) continue;
    worker.stalled = true;
    stalled.push_back(i);
  }
  return stalled;
}

unsigned Dispatcher::kept_workers() const noexcept {
  return std::min(limits_.min_workers.value_or(limits_.max_workers), limits_.max_workers) + limits_.spare_workers;
}

// One for each task that has none, as far as that is allowed.
unsigned Dispatcher::needed_workers() const noexcept {
  const std::size_t tasks = loaded_ + queue_.size();
  const std::size_t needed = std::min<std::size_t>(limits_.max_workers, tasks);
  const unsigned for_tasks = std::max(kept_workers(), static_cast<unsigned>(needed) + limits_.spare_workers);
  return lacks_unused_worker() ? std::max(for_tasks, std::min(staying_ + 1, most_workers())) : for_tasks;
}

unsigned Dispatcher::wanted_workers() const noexcept { return needed_workers() + (replacing_ ? 1 : 0); }

bool Dispatcher::lacks_workers() const noexcept { return !stopping_ && staying_ < wanted_workers(); }

std::optional<unsigned> Dispatcher::worker_to_start(Time now) const {
  if (!lacks_workers()) return std::nullopt;
  if (const auto pause = pause_end(); pause && now < *pause) return std::nullopt;
  // After a failure one attempt at a time, until one has worked.
  if (failures_ > 0 && starting_ > 0) return std::nullopt;
  for (unsigned i = 0; i < workers_.size(); ++i) {
    if (!workers_[i].present) return i;
  }
  return std::nullopt;
}

std::optional<unsigned> Dispatcher::worker_to_dismiss(Time now) const {
  if (stopping_) return std::nullopt;
  const bool too_many = staying_ > wanted_workers();
  const bool has_replacement = replacing_ && starting_ == 0 && staying_ > needed_workers();
  // From the back: those in front are the ones that are used first.
  for (unsigned i = static_cast<unsigned>(workers_.size()); i-- > 0;) {
    const Worker& worker = workers_[i];
    if (has_replacement && is_to_be_replaced(worker, now)) return i;
    if (!worker.ready || worker.leaving || worker.load > 0 || worker.holds > 0) continue;
    if (too_many && now >= worker.idle_since + limits_.idle_timeout) return i;
  }
  return std::nullopt;
}

std::optional<Dispatcher::Time> Dispatcher::next_dismissal(Time now) const {
  if (stopping_) return std::nullopt;
  std::optional<Time> next;
  const auto not_later = [&](Time time) { next = std::min(next.value_or(time), time); };
  // Whoever falls idle from now on is not due sooner.
  const bool some_may_leave = staying_ > kept_workers();
  if (some_may_leave) not_later(now + limits_.idle_timeout);
  for (const Worker& worker : workers_) {
    if (worker.present && worker.swollen && !worker.leaving) {
      const Time end = worker.swollen_at + limits_.swollen_timeout;
      not_later(end > now ? end : now + limits_.replacement_look);
    }
    if (!some_may_leave || !worker.ready || worker.leaving || worker.load > 0) continue;
    if (const Time end = worker.idle_since + limits_.idle_timeout; end > now) not_later(end);
  }
  return next;
}

Dispatcher::Duration Dispatcher::pause_after(unsigned failures) const noexcept {
  const unsigned doublings = std::min(failures - 1, 16U);  // 10 ms * 2^16 is far beyond the longest pause
  return std::min(limits_.first_pause * (1U << doublings), limits_.longest_pause);
}

std::optional<Dispatcher::Time> Dispatcher::pause_end() const noexcept {
  if (!last_young_death_) return pause_until_;
  return std::max(pause_until_.value_or(Time::min()), *last_young_death_ + pause_after(young_deaths_));
}

std::optional<Dispatcher::Time> Dispatcher::next_start() const {
  if (stopping_) return std::nullopt;
  return pause_end();
}

void Dispatcher::start_failed(Time now) {
  ++failures_;
  pause_until_ = now + pause_after(failures_);
}

void Dispatcher::died_young(Time now) {
  if (last_young_death_ && now > *last_young_death_ + limits_.young_deaths_memory) young_deaths_ = 0;
  ++young_deaths_;
  last_young_death_ = now;
}

void Dispatcher::start_succeeded() noexcept {
  failures_ = 0;
  pause_until_.reset();
}

bool Dispatcher::has_ready_worker() const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const Worker& worker) { return worker.ready && !worker.leaving; });
}

bool Dispatcher::gives_up() const { return failures_ >= limits_.failures_before_error && !has_ready_worker(); }

}  // namespace bulkhead::detail
