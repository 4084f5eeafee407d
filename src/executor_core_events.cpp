// SPDX-License-Identifier: BSL-1.0
#include "event_hub.hpp"
#include "run_end.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/task_record.hpp>

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

// What happens is told under the executor's mutex, so that the events of a task come in order.

namespace bulkhead::detail {
namespace {

// So many events with their texts take some hundred MiB; more were no queue any more.
constexpr std::size_t kLargestQueue = 1'000'000;

}  // namespace

Subscription ExecutorCore::subscribe(Listener listener, EventMask mask, SubscribeOptions options) {
  if (!listener) throw std::invalid_argument("subscribe: the listener is empty");
  if (mask.empty()) throw std::invalid_argument("subscribe: the mask is empty, so no event would ever come");
  if (options.queue_size == 0 || options.queue_size > kLargestQueue) {
    throw std::invalid_argument(
        fmt::format("subscribe: queue_size must be 1 to {}, not {}", kLargestQueue, options.queue_size));
  }
  if (!options.executor) options.executor = io;
  auto queue = std::make_shared<EventQueue>(std::move(listener), mask, std::move(options.executor), options.queue_size);
  const Lock lock(mutex);
  if (context_alive) {
    if (!events_) events_ = std::make_unique<EventHub>();
    events_->add(queue);
  } else {
    queue->cancel();
  }
  return Subscription(std::move(queue));
}

bool ExecutorCore::wants(EventKind kind) const noexcept { return events_ && events_->wants(kind); }

bool ExecutorCore::wants_any(EventMask kinds) const noexcept { return events_ && events_->wants_any(kinds); }

void ExecutorCore::tell(EventKind kind, const TaskNode& node, const std::exception_ptr& error,
                        const Progress* progress) {
  if (!wants(kind)) return;
  EventNote note;
  Event& event = note.event;
  event.kind = kind;
  event.time = std::chrono::system_clock::now();
  event.executor = name;
  event.task_id = node.id;
  event.task = node.options.name();
  note.name = node.name_source();
  if (node.record) event.spawned = node.record->id();
  event.attempt = node.attempt();
  event.error = error;
  if (progress != nullptr) event.progress = *progress;
  if (node.place.worker_pid > 0) event.worker = node.place.worker_pid;
  if (kTerminalEvents.contains(kind) && node.began_ns != 0) {
    const std::uint64_t ended = run_end(node);
    const std::uint64_t end = ended != 0 ? ended : now();
    event.run_time = std::chrono::nanoseconds(end - node.began_ns);
    event.queue_wait = std::chrono::nanoseconds(node.began_ns - node.submitted_ns);
  }
  events_->emit(note);
}

void ExecutorCore::tell_started(TaskNode& node) {
  if (std::exchange(node.told_started, true)) return;
  if (node.wants_started) node.note_started();
  tell(EventKind::started, node);
}

void ExecutorCore::tell_progress(TaskNode& node, Progress&& progress) {
  if (node.settled || !context_alive) return;
  if (node.record) node.record->set_progress(progress);
  if (events_) {
    tell_started(node);
    tell(EventKind::progress, node, nullptr, &progress);
  }
  node.deliver_progress(std::move(progress));
}

void ExecutorCore::tell_worker(EventKind kind, int worker, std::optional<int> signal, std::optional<int> exit_code) {
  if (!wants(kind)) return;
  EventNote note;
  note.event.kind = kind;
  note.event.time = std::chrono::system_clock::now();
  note.event.executor = name;
  note.event.worker = worker;
  note.event.worker_signal = signal;
  note.event.worker_exit_code = exit_code;
  events_->emit(note);
}

}  // namespace bulkhead::detail
