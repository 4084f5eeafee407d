// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/events.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

namespace bulkhead::detail {

/// An event on its way. The task's name is made where the listener is called: finding a function's name may mean
/// reading the program's symbols.
struct EventNote {
  Event event;
  NameSource name;
};

/// The events that wait for one listener. Thread-safe.
class EventQueue : public std::enable_shared_from_this<EventQueue> {
 public:
  EventQueue(Listener listener, EventMask mask, asio::any_io_executor executor, std::size_t limit);

  bool wants(EventKind kind) const noexcept { return mask_.contains(kind); }
  EventMask mask() const noexcept { return mask_; }
  /// Never blocks: if the queue is full, the event is dropped and counted. False: the subscription has ended.
  bool push(const EventNote& note);
  /// The executor's Asio context is gone.
  void context_gone() noexcept;

  void cancel() noexcept;
  bool active() const noexcept;
  std::uint64_t lost() const noexcept;
  std::uint64_t failures() const noexcept;
  std::exception_ptr last_failure() const;

 private:
  void deliver_some();
  void schedule();

  const EventMask mask_;
  const std::size_t limit_;
  mutable std::mutex mutex_;
  std::shared_ptr<Listener> listener_;
  asio::any_io_executor executor_;
  std::deque<EventNote> notes_;
  bool active_ = true;
  bool scheduled_ = false;
  std::uint64_t lost_ = 0;
  std::uint64_t untold_ = 0;  // of those that were lost
  std::uint64_t failures_ = 0;
  std::exception_ptr last_failure_;
};

/// The subscriptions of one executor. Guarded by the executor's mutex.
class EventHub {
 public:
  void add(std::weak_ptr<EventQueue> queue);
  /// Whether anybody wants events of this kind.
  bool wants(EventKind kind) const noexcept { return mask_.contains(kind); }
  bool wants_any(EventMask kinds) const noexcept { return mask_.intersects(kinds); }
  void emit(const EventNote& note);
  void context_gone() noexcept;

 private:
  void forget_ended();

  std::vector<std::weak_ptr<EventQueue>> queues_;
  EventMask mask_;
};

}  // namespace bulkhead::detail
