// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/progress_relay.hpp>

#include <utility>

namespace bulkhead::detail {

bool ProgressRelay::set(Progress&& progress) {
  const std::lock_guard lock(mutex_);
  latest_ = std::move(progress);
  return !std::exchange(under_way_, true);
}

void ProgressRelay::complete(std::unique_ptr<Completion> completion) {
  {
    const std::lock_guard lock(mutex_);
    if (under_way_) {
      completion_ = std::move(completion);
      return;
    }
  }
  completion->run();
}

void ProgressRelay::run() {
  for (;;) {
    std::optional<Progress> progress;
    std::unique_ptr<Completion> completion;
    {
      const std::lock_guard lock(mutex_);
      progress = std::exchange(latest_, std::nullopt);
      if (!progress) {
        under_way_ = false;
        completion = std::move(completion_);
      }
    }
    if (!progress) {
      if (completion) completion->run();
      return;
    }
    try {
      handler_(*progress);
    } catch (...) {
      // It leaves through whoever runs the Asio context, as from any handler; the task is completed all the same.
      {
        const std::lock_guard lock(mutex_);
        under_way_ = false;
        latest_.reset();
        completion = std::move(completion_);
      }
      if (completion) completion->run();
      throw;
    }
  }
}

}  // namespace bulkhead::detail
