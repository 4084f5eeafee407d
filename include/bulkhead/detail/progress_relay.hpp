// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/progress.hpp>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

namespace bulkhead::detail {

// Brings a task's progress to its `on_progress`, one call at a time and the latest only, and the task's completion
// after the last of them. Thread-safe.
class BULKHEAD_EXPORT ProgressRelay {
 public:
  // What completes the task.
  class Completion {
   public:
    virtual ~Completion() = default;
    virtual void run() = 0;
  };

  explicit ProgressRelay(std::function<void(const Progress&)> handler) : handler_(std::move(handler)) {}

  // True: post a `Run`. False: one is under way and will see it.
  bool set(Progress&& progress);
  // Completes the task now or, if a `Run` is under way, at its end.
  void complete(std::unique_ptr<Completion> completion);

  // Calls the handler; to be posted to where it belongs. Destroyed uncalled, it takes the completion with it.
  class Run {
   public:
    explicit Run(std::shared_ptr<ProgressRelay> relay) noexcept : relay_(std::move(relay)) {}
    void operator()() { relay_->run(); }

   private:
    std::shared_ptr<ProgressRelay> relay_;
  };

 private:
  void run();

  const std::function<void(const Progress&)> handler_;
  std::mutex mutex_;
  std::optional<Progress> latest_;
  bool under_way_ = false;
  std::unique_ptr<Completion> completion_;
};

}  // namespace bulkhead::detail
