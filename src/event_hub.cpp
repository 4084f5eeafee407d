// SPDX-License-Identifier: BSL-1.0
#include "event_hub.hpp"

#include <boost/asio/post.hpp>

#include <utility>

namespace bulkhead {
namespace detail {
namespace {

// Events that a listener gets before other handlers of its event loop have their turn.
constexpr unsigned kEventsPerRound = 32;

}  // namespace

EventQueue::EventQueue(Listener listener, EventMask mask, asio::any_io_executor executor, std::size_t limit)
    : mask_(mask),
      limit_(limit),
      listener_(std::make_shared<Listener>(std::move(listener))),
      executor_(std::move(executor)) {}

bool EventQueue::push(const EventNote& note) {
  const std::lock_guard lock(mutex_);
  if (!active_) return false;
  if (notes_.size() == limit_) {
    ++lost_;
    ++untold_;
    return true;
  }
  notes_.push_back(note);
  notes_.back().event.lost = std::exchange(untold_, 0);
  if (!std::exchange(scheduled_, true)) schedule();
  return true;
}

// Posting: no listener runs inside whoever made the event.
void EventQueue::schedule() {
  asio::post(executor_, [self = shared_from_this()] { self->deliver_some(); });
}

void EventQueue::deliver_some() {
  for (unsigned i = 0;; ++i) {
    EventNote note;
    std::shared_ptr<Listener> listener;
    {
      const std::lock_guard lock(mutex_);
      if (!active_ || notes_.empty()) {
        scheduled_ = false;
        return;
      }
      if (i == kEventsPerRound) {
        schedule();
        return;
      }
      note = std::move(notes_.front());
      notes_.pop_front();
      // It may end its own subscription.
      listener = listener_;
    }
    std::exception_ptr thrown;
    try {
      if (note.event.task.empty() && note.name.make != nullptr) note.event.task = note.name.make(note.name.code);
      (*listener)(note.event);
    } catch (...) {
      thrown = std::current_exception();
    }
    if (!thrown) continue;
    const std::lock_guard lock(mutex_);
    ++failures_;
    last_failure_ = std::move(thrown);
  }
}

void EventQueue::cancel() noexcept {
  std::deque<EventNote> dropped;
  std::shared_ptr<Listener> listener;
  const std::lock_guard lock(mutex_);
  active_ = false;
  dropped.swap(notes_);
  listener.swap(listener_);
  executor_ = {};
}

void EventQueue::context_gone() noexcept { cancel(); }

bool EventQueue::active() const noexcept {
  const std::lock_guard lock(mutex_);
  return active_;
}

std::uint64_t EventQueue::lost() const noexcept {
  const std::lock_guard lock(mutex_);
  return lost_;
}

std::uint64_t EventQueue::failures() const noexcept {
  const std::lock_guard lock(mutex_);
  return failures_;
}

std::exception_ptr EventQueue::last_failure() const {
  const std::lock_guard lock(mutex_);
  return last_failure_;
}

void EventHub::add(std::weak_ptr<EventQueue> queue) {
  queues_.push_back(std::move(queue));
  forget_ended();
}

// So that an executor to which nobody listens any more makes no events.
void EventHub::forget_ended() {
  std::erase_if(queues_, [](const auto& known) {
    const auto alive = known.lock();
    return !alive || !alive->active();
  });
  mask_ = {};
  for (const auto& known : queues_) {
    if (const auto alive = known.lock()) mask_ = mask_ | alive->mask();
  }
}

void EventHub::emit(const EventNote& note) {
  bool ended = false;
  for (const auto& known : queues_) {
    const auto queue = known.lock();
    if (!queue) {
      ended = true;
    } else if (queue->wants(note.event.kind)) {
      ended = !queue->push(note) || ended;
    }
  }
  if (ended) forget_ended();
}

void EventHub::context_gone() noexcept {
  for (const auto& known : queues_) {
    if (const auto queue = known.lock()) queue->context_gone();
  }
}

}  // namespace detail

std::string_view to_string(EventKind kind) noexcept {
  switch (kind) {
    case EventKind::submitted:
      return "submitted";
    case EventKind::rejected:
      return "rejected";
    case EventKind::started:
      return "started";
    case EventKind::progress:
      return "progress";
    case EventKind::retried:
      return "retried";
    case EventKind::succeeded:
      return "succeeded";
    case EventKind::failed:
      return "failed";
    case EventKind::cancelled:
      return "cancelled";
    case EventKind::timed_out:
      return "timed out";
    case EventKind::worker_started:
      return "worker started";
    case EventKind::worker_exited:
      return "worker exited";
    case EventKind::max_instances:
      return "max instances";
  }
  return "unknown";
}

Subscription::Subscription() noexcept = default;
Subscription::Subscription(std::shared_ptr<detail::EventQueue> queue) noexcept : queue_(std::move(queue)) {}
Subscription::Subscription(Subscription&&) noexcept = default;
Subscription& Subscription::operator=(Subscription&& other) noexcept {
  if (this != &other) {
    cancel();
    queue_ = std::move(other.queue_);
  }
  return *this;
}
Subscription::~Subscription() { cancel(); }

void Subscription::cancel() noexcept {
  if (queue_) queue_->cancel();
}
bool Subscription::active() const noexcept { return queue_ && queue_->active(); }
std::uint64_t Subscription::lost() const noexcept { return queue_ ? queue_->lost() : 0; }
std::uint64_t Subscription::failures() const noexcept { return queue_ ? queue_->failures() : 0; }
std::exception_ptr Subscription::last_failure() const { return queue_ ? queue_->last_failure() : nullptr; }

}  // namespace bulkhead
