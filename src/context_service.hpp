// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/executor_core.hpp>

#include <boost/asio/execution_context.hpp>

#include <memory>
#include <mutex>
#include <vector>

namespace bulkhead::detail {

/// Tells every executor of an Asio context when the context is destroyed.
class ContextService final : public asio::execution_context::service {
 public:
  using key_type = ContextService;
  // Where Asio looks for the service's key.
  static asio::execution_context::id id;

  explicit ContextService(asio::execution_context& context) : service(context) {}

  void add(std::weak_ptr<ExecutorCore> core) {
    const std::lock_guard lock(mutex_);
    std::erase_if(cores_, [](const auto& known) { return known.expired(); });
    cores_.push_back(std::move(core));
  }

 private:
  void shutdown() override {
    std::vector<std::weak_ptr<ExecutorCore>> cores;
    {
      const std::lock_guard lock(mutex_);
      cores.swap(cores_);
    }
    for (const auto& weak : cores) {
      if (const auto core = weak.lock()) core->context_gone();
    }
  }

  std::mutex mutex_;
  std::vector<std::weak_ptr<ExecutorCore>> cores_;
};

}  // namespace bulkhead::detail
