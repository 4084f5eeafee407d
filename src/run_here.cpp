// SPDX-License-Identifier: BSL-1.0
#include "run_here.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/task.hpp>

#include "process/arena.hpp"
#include "process/posix.hpp"

#include <pthread.h>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

namespace bulkhead::detail {

HostTaskContext::HostTaskContext(TaskNode& node) : node_(&node) {
  context_.id = node.id;
  context_.attempt = node.attempt();
  context_.deadline_ns = node.must_end_ns;
  if (const auto limit = node.options.timeout()) {
    context_.deadline_ns = earlier_deadline(context_.deadline_ns, deadline_after(node.began_ns, *limit));
  }
  context_.stop = &node.stop_requested;
  context_.executor = node.core->name;
  context_.trace_parent = node.options.trace_parent();
  context_.default_name = [](const void* named) { return static_cast<const TaskNode*>(named)->name(); };
  context_.named = &node;
  context_.report = [](void* to, std::uint64_t done, std::uint64_t total, std::string_view text) {
    static_cast<HostTaskContext*>(to)->report({done, total, std::string(text.substr(0, process::kProgressTextSize))});
  };
  context_.report_to = this;
}

void HostTaskContext::finish() {
  const std::lock_guard lock(mutex_);
  if (node_ == nullptr) return;
  if (held_back_) pass_on(std::move(*held_back_));
  node_ = nullptr;
  context_ = TaskContext();
}

void HostTaskContext::report(Progress progress) {
  const std::lock_guard lock(mutex_);
  if (node_ == nullptr) return;
  const std::uint64_t now = ExecutorCore::now();
  if (now - passed_on_ns_ < kProgressInterval) {
    held_back_ = std::move(progress);
    return;
  }
  passed_on_ns_ = now;
  held_back_.reset();
  pass_on(std::move(progress));
}

// The caller may have been told of a cancellation already: then nobody wants it.
void HostTaskContext::pass_on(Progress&& progress) {
  const std::lock_guard lock(node_->core->mutex);
  node_->core->tell_progress(*node_, std::move(progress));
}

void measure_cpu_time(TaskNode& node) noexcept {
  clockid_t clock{};
  if (!node.options.has_rare() || !node.options.cpu_timeout()) return;
  if (::pthread_getcpuclockid(::pthread_self(), &clock) != 0) return;
  node.cpu_clock = clock;
  node.cpu_began_ns = process::clock_ns(clock);
}

Outcome run_encoded_copy(TaskNode& node) noexcept {
  try {
    Encoder counting{std::span<std::byte>()};
    node.encode(counting);
    std::vector<std::byte> request(counting.size());
    Encoder encoder{std::span<std::byte>(request)};
    node.encode(encoder);
    return decode_answer(node, run_encoded_task(request));
  } catch (...) {
    node.error = std::current_exception();
    return Outcome::failed;
  }
}

void throw_needs_event_loop(const TaskNode& node) {
  throw FunctionUnavailableError("it gives a coroutine, which needs an event loop: submit it to an IoExecutor",
                                 node.core->context_of(node));
}

void throw_empty_awaitable() {
  throw std::logic_error(
      "bulkhead: the function returned an awaitable without a coroutine, default-made or moved from");
}

Outcome coroutine_outcome(TaskNode& node, std::exception_ptr thrown) noexcept {
  if (!thrown) return Outcome::completed;
  const auto stopped = [&](const std::string& reason) {
    node.error = std::make_exception_ptr(
        TaskCancelledError(TaskCancelledError::Stage::running, node.core->context_of(node), reason));
    return Outcome::cancelled;
  };
  try {
    std::rethrow_exception(thrown);
  } catch (const StopRequested&) {
    return stopped("it stopped as it was asked to");
  } catch (const boost::system::system_error& error) {
    // What its caller asked for, and what every cancelled Asio operation says.
    const bool asked = node.stop_requested.load(std::memory_order_acquire) != 0;
    if (asked && error.code() == asio::error::operation_aborted) return stopped("it stopped as it was asked to");
  } catch (...) {
    // Its own error, like all others.
  }
  node.error = std::move(thrown);
  return Outcome::failed;
}

}  // namespace bulkhead::detail
