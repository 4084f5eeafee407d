// SPDX-License-Identifier: BSL-1.0
#include "dispatcher.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace bulkhead::detail {

Dispatcher::Dispatcher(Limits limits) : limits_(limits), workers_(limits.max_workers) {}

void Dispatcher::enqueue(QueuedTask& task) {
  number(task);
  Queue& queue = queues_[task.priority];
  ++queued_;
  // From the back: new tasks belong there. One that was taken back finds its old place from the front.
  QueuedTask* before = queue.back();
  if (before == nullptr || before->order < task.order) {
    queue.push_back(task);
    return;
  }
  QueuedTask* after = queue.front();
  if (task.order < after->order) {
    queue.push_front(task);
    return;
  }
  while (queue.next(*after)->order < task.order) after = queue.next(*after);
  queue.insert_after(*after, task);
}

void Dispatcher::remove(QueuedTask& task) {
  task.unlink();
  --queued_;
}

QueuedTask* Dispatcher::front() {
  if (queued_ == 0) return nullptr;
  for (auto level = queues_.begin(); level != queues_.end();) {
    if (QueuedTask* task = level->second.front()) return task;
    // Level 0 is the usual one and stays; others would pile up with callers that use many.
    level = level->first == 0 ? std::next(level) : queues_.erase(level);
  }
  return nullptr;
}

void Dispatcher::worker_added(unsigned worker) {
  workers_[worker] = Worker{};
  workers_[worker].present = true;
  ++starting_;
}

void Dispatcher::worker_ready(unsigned worker) {
  if (workers_[worker].ready) return;
  workers_[worker].ready = true;
  workers_[worker].stalled = false;
  --starting_;
}

void Dispatcher::worker_removed(unsigned worker) {
  if (!workers_[worker].present) return;
  if (!workers_[worker].ready) --starting_;
  workers_[worker] = Worker{};
}

std::optional<unsigned> Dispatcher::choose_worker() const {
  // The first free one: the same few workers stay warm, and those that are allowed to spin come first.
  const Worker* least = nullptr;
  const Worker* starting = nullptr;
  for (const Worker& worker : workers_) {
    if (!worker.present || worker.stalled) continue;
    if (!worker.ready) {
      if (worker.load == 0 && starting == nullptr) starting = &worker;
      continue;
    }
    if (least == nullptr || worker.load < least->load) least = &worker;
    if (worker.load == 0) break;
  }
  const Worker* const chosen = least != nullptr && has_room(least->load) ? least : starting;
  if (chosen == nullptr) return std::nullopt;
  return static_cast<unsigned>(chosen - workers_.data());
}

bool Dispatcher::has_backlog() const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const Worker& worker) { return worker.load > (worker.ready ? 1 : 0); });
}

std::vector<unsigned> Dispatcher::stalled_workers() {
  std::vector<unsigned> stalled;
  for (unsigned i = 0; i < workers_.size(); ++i) {
    Worker& worker = workers_[i];
    const bool progressed = std::exchange(worker.progressed, false);
    if (!worker.present || worker.load < (worker.ready ? 2 : 1) || progressed) continue;
    worker.stalled = true;
    stalled.push_back(i);
  }
  return stalled;
}

std::optional<unsigned> Dispatcher::worker_to_start(Time now) const {
  if (stopping_ || (pause_until_ && now < *pause_until_)) return std::nullopt;
  // After a failure one attempt at a time, until one has worked.
  if (failures_ > 0 && starting_ > 0) return std::nullopt;
  for (unsigned i = 0; i < workers_.size(); ++i) {
    if (!workers_[i].present) return i;
  }
  return std::nullopt;
}

std::optional<Dispatcher::Time> Dispatcher::next_start() const {
  if (stopping_) return std::nullopt;
  return pause_until_;
}

void Dispatcher::start_failed(Time now) {
  const unsigned doublings = std::min(failures_, 16U);  // 10 ms * 2^16 is far beyond the longest pause
  ++failures_;
  pause_until_ = now + std::min(limits_.first_pause * (1U << doublings), limits_.longest_pause);
}

void Dispatcher::start_succeeded() noexcept {
  failures_ = 0;
  pause_until_.reset();
}

bool Dispatcher::gives_up() const {
  if (failures_ < limits_.failures_before_error) return false;
  return std::none_of(workers_.begin(), workers_.end(),
                      [](const Worker& worker) { return worker.present && worker.ready; });
}

}  // namespace bulkhead::detail
