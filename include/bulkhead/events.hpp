// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/task_id.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace bulkhead {

/// What can happen to a task or to an executor.
enum class EventKind : std::uint32_t {
  submitted = 1U << 0,       ///< The executor accepted the task.
  rejected = 1U << 1,        ///< It refused the task, which never becomes `submitted`.
  started = 1U << 2,         ///< A run of the task began.
  progress = 1U << 3,        ///< The task told how far it is; the latest, at most every 50 ms.
  retried = 1U << 4,         ///< A run failed, and another will follow.
  succeeded = 1U << 5,       ///< The end: the function returned.
  failed = 1U << 6,          ///< The end: it threw, its worker died, or a value could not be carried.
  cancelled = 1U << 7,       ///< The end: its caller or `shutdown` cancelled it.
  timed_out = 1U << 8,       ///< The end: one of its time limits passed.
  worker_started = 1U << 9,  ///< A worker process or thread was started.
  worker_exited = 1U << 10,  ///< It is gone.
  max_instances = 1U << 11   ///< `TaskOptions::max_instances` is reached: the task is refused, or waits.
};

/// A set of kinds: `EventKind::failed | EventKind::timed_out`.
class EventMask {
 public:
  constexpr EventMask() noexcept = default;
  constexpr EventMask(EventKind kind) noexcept  // NOLINT(google-explicit-constructor): a kind is a set of one
      : bits_(static_cast<std::uint32_t>(kind)) {}
  constexpr EventMask operator|(EventMask other) const noexcept { return EventMask(bits_ | other.bits_); }
  constexpr bool contains(EventKind kind) const noexcept { return (bits_ & static_cast<std::uint32_t>(kind)) != 0; }
  constexpr bool intersects(EventMask other) const noexcept { return (bits_ & other.bits_) != 0; }
  constexpr bool empty() const noexcept { return bits_ == 0; }
  constexpr bool operator==(const EventMask&) const noexcept = default;

 private:
  constexpr explicit EventMask(std::uint32_t bits) noexcept : bits_(bits) {}
  std::uint32_t bits_ = 0;
};
constexpr EventMask operator|(EventKind a, EventKind b) noexcept { return EventMask(a) | EventMask(b); }

/// One of these ends every accepted task, and only one.
inline constexpr EventMask kTerminalEvents =
    EventKind::succeeded | EventKind::failed | EventKind::cancelled | EventKind::timed_out;
inline constexpr EventMask kTaskEvents = kTerminalEvents | EventKind::submitted | EventKind::rejected |
                                         EventKind::started | EventKind::progress | EventKind::retried |
                                         EventKind::max_instances;
inline constexpr EventMask kWorkerEvents = EventKind::worker_started | EventKind::worker_exited;
inline constexpr EventMask kAllEvents = kTaskEvents | kWorkerEvents;

/// `submitted`, `timed_out` and so on.
BULKHEAD_EXPORT std::string_view to_string(EventKind kind) noexcept;

/// Something that happened. What does not belong to its kind is empty.
struct Event {
  EventKind kind = EventKind::submitted;
  /// When it happened, or was seen to have happened.
  std::chrono::system_clock::time_point time;
  /// The executor's name.
  std::string executor;
  /// The task's number within its executor; 0 if the event is not about a task.
  std::uint64_t task_id = 0;
  /// The id of a task that was spawned, as its handle has it; else empty.
  TaskId spawned;
  /// `TaskOptions::name`, or else the function's name or type.
  std::string task;
  /// The number of the run, from 1.
  unsigned attempt = 0;
  /// Why: of `rejected`, `retried`, `failed`, `cancelled` and `timed_out`, and of a `max_instances` that refuses.
  std::exception_ptr error;
  /// How far the task is.
  std::optional<Progress> progress;
  /// At the end: how long the last run took, and the wait before it, where they are known.
  std::optional<std::chrono::nanoseconds> run_time;
  std::optional<std::chrono::nanoseconds> queue_wait;
  /// The worker process; of a thread its number within the executor.
  std::optional<int> worker;
  /// Of a worker process that is gone: the signal that killed it, or the code that it left with.
  std::optional<int> worker_signal;
  std::optional<int> worker_exit_code;
  /// How many events of this subscription were dropped before this one, since its queue was full.
  std::uint64_t lost = 0;
};

/// Gets each event, one at a time. What it throws is counted (`Subscription::failures`), and does no harm.
using Listener = std::function<void(const Event&)>;

/// How events reach their listener.
struct SubscribeOptions {
  /// The Asio executor on which the listener is called; empty: that of the executor. Its context must outlive the
  /// subscription.
  asio::any_io_executor executor = {};
  /// Events that may wait for the listener; what comes when it is full is dropped, and counted. 1 to 1,000,000.
  std::size_t queue_size = 1024;
};

namespace detail {
class EventQueue;
}

/// What `subscribe` gives: while it lives, events come. Move-only.
///
/// Thread safety: distinct objects: safe. After its end no call of the listener begins; one that is under way on
/// another thread goes on. It may be ended inside its own listener. It may outlive the executor.
class BULKHEAD_EXPORT Subscription {
 public:
  /// No subscription.
  Subscription() noexcept;
  Subscription(Subscription&&) noexcept;
  Subscription& operator=(Subscription&&) noexcept;
  ~Subscription();

  /// Ends it; events that wait are dropped.
  void cancel() noexcept;
  bool active() const noexcept;
  /// How many events were dropped since the queue was full.
  std::uint64_t lost() const noexcept;
  /// How often the listener threw, and what it threw last.
  std::uint64_t failures() const noexcept;
  std::exception_ptr last_failure() const;

  /// For the library: a subscription whose queue this is.
  explicit Subscription(std::shared_ptr<detail::EventQueue> queue) noexcept;

 private:
  std::shared_ptr<detail::EventQueue> queue_;
};

}  // namespace bulkhead
