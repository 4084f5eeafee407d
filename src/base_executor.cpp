// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/base_executor.hpp>

#include "context_service.hpp"

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/query.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace bulkhead {
namespace {

// Longer names would only be cut in process titles and tables.
constexpr std::size_t kLongestName = 200;

// Tasks that wait take memory: so many take hundreds of GiB. What is beyond was meant to be negative.
constexpr std::size_t kMostPending = 1'000'000'000;

const CommonOptions& checked(const CommonOptions& options) {
  if (options.name.empty() || options.name.size() > kLongestName) {
    throw std::invalid_argument(
        fmt::format("option 'name' must have 1 to {} characters, not {}", kLongestName, options.name.size()));
  }
  // They would break tables, logs and process titles.
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(options.name.begin(), options.name.end(), is_control)) {
    throw std::invalid_argument("option 'name' must not have control characters");
  }
  if (options.max_pending == 0 || options.max_pending > kMostPending) {
    throw std::invalid_argument(fmt::format("option 'max_pending' must be 1 to {}, not {}{}", kMostPending,
                                            options.max_pending,
                                            options.max_pending == 0 ? ": no task could ever be accepted" : ""));
  }
  if (options.overload != OverloadPolicy::reject && options.overload != OverloadPolicy::wait) {
    throw std::invalid_argument("option 'overload' must be OverloadPolicy::reject or OverloadPolicy::wait");
  }
  return options;
}

}  // namespace

BaseExecutor::BaseExecutor(asio::any_io_executor io_executor, CommonOptions options)
    : core_(std::make_shared<detail::ExecutorCore>(*this, std::move(io_executor), checked(options).name,
                                                   options.max_pending, options.overload)) {
  asio::execution_context& context = asio::query(core_->io, asio::execution::context);
  asio::use_service<detail::ContextService>(context).add(core_);
}

BaseExecutor::~BaseExecutor() { close(); }

void BaseExecutor::close() noexcept { core_->disown(); }

const std::string& BaseExecutor::name() const noexcept { return core_->name; }
asio::any_io_executor BaseExecutor::get_executor() const noexcept { return core_->io; }

asio::awaitable<void> BaseExecutor::shutdown(ShutdownOptions options) { return shut_down(core_, options); }

// Holds the core and not the executor: a coroutine begins when it is awaited, and the executor may be gone by then.
asio::awaitable<void> BaseExecutor::shut_down(std::shared_ptr<detail::ExecutorCore> core, ShutdownOptions options) {
  if (options.timeout && *options.timeout < std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'timeout' of shutdown must not be negative, and is {} ns", options.timeout->count()));
  }
  core->stop_accepting();
  BaseExecutor* owner = nullptr;
  {
    const std::lock_guard lock(core->mutex);
    owner = core->owner;
  }
  if (owner != nullptr) co_await owner->stop(options);
}

asio::awaitable<void> BaseExecutor::stop(ShutdownOptions options) {
  // The executor may be destroyed while somebody waits for it to end.
  const auto core = core_;
  if (options.cancel_pending) core->cancel_open(false, "the executor was shut down");
  if (!options.wait) co_return;
  const bool idle = co_await wait_until_idle(core, options.timeout);
  if (!idle) core->cancel_open(true, "it had not ended when the time for the shutdown was over");
}

asio::awaitable<bool> BaseExecutor::wait_until_idle(std::shared_ptr<detail::ExecutorCore> core,
                                                    std::optional<std::chrono::nanoseconds> timeout) {
  // A named token: async_initiate wants an lvalue.
  auto token = asio::use_awaitable;
  return asio::async_initiate<asio::use_awaitable_t<>, void(std::exception_ptr, bool)>(
      [core = std::move(core), timeout](auto&& handler) {
        core->wait_idle(timeout, asio::any_completion_handler<void(std::exception_ptr, bool)>(
                                     std::forward<decltype(handler)>(handler)));
      },
      token);
}

Metrics BaseExecutor::metrics() const {
  const std::lock_guard lock(core_->mutex);
  Metrics metrics = core_->snapshot();
  add_metrics(metrics);
  return metrics;
}

void BaseExecutor::add_metrics(Metrics& metrics) const { metrics.mode = "custom"; }

void BaseExecutor::execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) {
  lock.unlock();
  execute(TaskAccess::wrap(node));
}

bool BaseExecutor::cancel_in_flight(detail::TaskNode&, asio::cancellation_type) { return false; }

}  // namespace bulkhead
