// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/base_executor.hpp>

#include "context_service.hpp"
#include "wait_list.hpp"

#include <bulkhead/result_store.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
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

asio::awaitable<void> nothing() { co_return; }

CommonOptions checked(CommonOptions options) {
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
    : core_(std::make_shared<detail::ExecutorCore>(*this, std::move(io_executor), checked(std::move(options)))) {
  asio::execution_context& context = asio::query(core_->io, asio::execution::context);
  asio::use_service<detail::ContextService>(context).add(core_);
}

BaseExecutor::~BaseExecutor() { close(); }

void BaseExecutor::close() noexcept { core_->disown(); }

const std::string& BaseExecutor::name() const noexcept { return core_->name; }
asio::any_io_executor BaseExecutor::get_executor() const noexcept { return core_->io; }

Subscription BaseExecutor::subscribe(Listener listener, EventMask mask, SubscribeOptions options) {
  return core_->subscribe(std::move(listener), mask, std::move(options));
}

std::shared_ptr<detail::TaskRecord> BaseExecutor::record_of(const detail::ExecutorCore& core, const TaskId& id) {
  if (auto record = core.results->find(id)) return record;
  ErrorContext context;
  context.executor = core.name;
  throw ResultNotFoundError(id.to_string(), std::move(context));
}

bool BaseExecutor::cancel(const TaskId& id, asio::cancellation_type type) {
  const auto record = core_->results->find(id);
  if (!record || record->finished()) return false;
  record->cancel(type);
  return true;
}

std::optional<TaskStatus> BaseExecutor::status(const TaskId& id) const {
  const auto record = core_->results->find(id);
  return record ? std::optional(record->status()) : std::nullopt;
}

std::optional<TaskInfo> BaseExecutor::info(const TaskId& id) const {
  const auto record = core_->results->find(id);
  return record ? std::optional(record->info()) : std::nullopt;
}

asio::awaitable<void> BaseExecutor::shutdown(ShutdownOptions options) { return shut_down(core_, options); }

// Holds the core and not the executor: a coroutine begins when it is awaited, and the executor may be gone by then.
asio::awaitable<void> BaseExecutor::shut_down(std::shared_ptr<detail::ExecutorCore> core, ShutdownOptions options) {
  if (options.timeout && *options.timeout < std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'timeout' of shutdown must not be negative, and is {} ns", options.timeout->count()));
  }
  core->stop_accepting();
  co_await begin_stop(*core, options);
}

// A plain function, so that the executor cannot be destroyed by another thread meanwhile.
asio::awaitable<void> BaseExecutor::begin_stop(detail::ExecutorCore& core, ShutdownOptions options) {
  const std::lock_guard keeps_owner(core.owner_mutex);
  return core.owner != nullptr ? core.owner->stop(options) : nothing();
}

asio::awaitable<void> BaseExecutor::stop(ShutdownOptions options) { return stop_core(core_, options); }

asio::awaitable<void> BaseExecutor::stop_core(std::shared_ptr<detail::ExecutorCore> core, ShutdownOptions options) {
  const std::string late = "it had not ended when the time for the shutdown was over";
  if (options.cancel_pending) core->cancel_open(false, "the executor was shut down");
  if (options.timeout) core->cancel_open_after(*options.timeout, late);
  if (!options.wait) co_return;
  const bool idle = co_await wait_until_idle(core, options.timeout);
  if (!idle) core->cancel_open(true, late);
}

asio::awaitable<bool> BaseExecutor::wait_until_idle(std::shared_ptr<detail::ExecutorCore> core,
                                                    std::optional<std::chrono::nanoseconds> timeout) {
  return detail::wait_for([core = std::move(core), timeout](detail::WaitList::Handler handler) {
    core->wait_idle(timeout, std::move(handler));
  });
}

Metrics BaseExecutor::metrics() const {
  const std::lock_guard lock(core_->mutex);
  Metrics metrics = core_->snapshot();
  add_metrics(metrics);
  return metrics;
}

void BaseExecutor::add_metrics(Metrics& metrics) const { metrics.mode = "custom"; }

void BaseExecutor::execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) {
  // `execute` may destroy this executor, and other threads' `close` waits until it has returned.
  const std::shared_ptr<detail::ExecutorCore> core = core_;
  const detail::ExecutorCore::HookCall call(*core, lock);
  execute(TaskAccess::wrap(node));
}

bool BaseExecutor::execute_at_once(detail::TaskNode&) { return false; }

std::optional<Progress> BaseExecutor::progress_of(const detail::TaskNode&) const { return std::nullopt; }
bool BaseExecutor::cancel_in_flight(detail::TaskNode&, asio::cancellation_type) { return false; }
bool BaseExecutor::withdraw(detail::TaskNode&) { return false; }
void BaseExecutor::stop_running(detail::TaskNode&, asio::cancellation_type) {}
void BaseExecutor::nothing_left() {}
std::pair<std::shared_ptr<detail::ExecutorCore>, std::uint64_t> BaseExecutor::passed_on(const detail::TaskNode&) const {
  return {};
}
bool BaseExecutor::has_begun(const detail::TaskNode&) const { return false; }

namespace detail {

const std::shared_ptr<ExecutorCore>& core_of(BaseExecutor& executor) noexcept { return executor.core_; }

std::shared_ptr<const RegisteredTask> find_task(const ExecutorCore& core, std::string_view name,
                                                const std::type_info& arguments) {
  ErrorContext context;
  context.executor = core.name;
  if (!core.tasks) throw UnknownTaskError(std::string(name), {}, std::move(context));
  return core.tasks->find(name, arguments, context);
}

void submit_by_name(const std::shared_ptr<ExecutorCore>& core, const TaskOptions& options, std::string_view name,
                    const std::type_info& arguments, void* values, AnyHandler handler) {
  std::shared_ptr<const RegisteredTask> task;
  try {
    task = find_task(*core, name, arguments);
  } catch (const ExecutorError&) {
    // By way of the executor's own: that of an any_completion_handler cannot be posted to.
    const auto executor = asio::get_associated_executor(handler, core->io);
    asio::post(core->io,
               asio::bind_executor(executor, asio::append(std::move(handler), std::current_exception(), AnyResult())));
    return;
  }
  task->submit(core, task->options(options), values, std::move(handler));
}

}  // namespace detail
}  // namespace bulkhead
