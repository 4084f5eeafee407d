// SPDX-License-Identifier: BSL-1.0
#include "wait_list.hpp"

#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/system/system_error.hpp>

#include <algorithm>

namespace bulkhead::detail {

void WaitList::wait(std::optional<std::chrono::nanoseconds> timeout, Handler handler, const asio::any_io_executor& on) {
  const std::lock_guard lock(mutex_);
  if (!context_alive_) return;
  const std::uint64_t id = ++last_id_;
  auto slot = asio::get_associated_cancellation_slot(handler);
  Wait& waiting = *waits_.emplace_back(std::make_unique<Wait>(id, std::move(handler), on));
  if (slot.is_connected()) {
    slot.assign([weak = weak_from_this(), id](asio::cancellation_type) {
      const auto self = weak.lock();
      if (!self) return;
      self->give_up(id, std::make_exception_ptr(boost::system::system_error(asio::error::operation_aborted)));
    });
  }
  if (!timeout) return;
  waiting.timer.emplace(on);
  // A century is for ever, and can be added to any time of the clock.
  waiting.timer->expires_after(std::min<std::chrono::nanoseconds>(*timeout, std::chrono::hours(24 * 365 * 100)));
  waiting.timer->async_wait([weak = weak_from_this(), id](boost::system::error_code error) {
    const auto self = weak.lock();
    if (self && !error) self->give_up(id, nullptr);
  });
}

void WaitList::give_up(std::uint64_t id, const std::exception_ptr& error) {
  const std::lock_guard lock(mutex_);
  const auto place = std::find_if(waits_.begin(), waits_.end(), [&](const auto& wait) { return wait->id == id; });
  if (place == waits_.end()) return;
  const std::unique_ptr<Wait> found = std::move(*place);
  waits_.erase(place);
  asio::post(found->on, asio::append(std::move(found->handler), error, false));
}

void WaitList::complete(const std::exception_ptr& error) {
  const std::lock_guard lock(mutex_);
  for (const auto& waiting : waits_) {
    asio::post(waiting->on, asio::append(std::move(waiting->handler), error, !error));
  }
  waits_.clear();
}

void WaitList::context_gone() noexcept {
  std::vector<std::unique_ptr<Wait>> dropped;
  const std::lock_guard lock(mutex_);
  context_alive_ = false;
  dropped.swap(waits_);
}

}  // namespace bulkhead::detail
