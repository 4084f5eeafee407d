// SPDX-License-Identifier: BSL-1.0
#include "run_here.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/task.hpp>

#include "process/arena.hpp"

#include <mutex>
#include <utility>
#include <vector>

namespace bulkhead::detail {

RunHere::RunHere(TaskNode& node) : node_(node) {
  context_.id = node.id;
  context_.attempt = node.attempt();
  if (const auto limit = node.options.timeout()) {
    context_.deadline_ns = node.began_ns + static_cast<std::uint64_t>(limit->count());
  }
  context_.stop = &node.stop_requested;
  context_.executor = node.core->name;
  context_.trace_parent = node.options.trace_parent();
  context_.default_name = [](const void* named) { return static_cast<const TaskNode*>(named)->name(); };
  context_.named = &node;
  if (node.progress_relay) {
    context_.report = [](void* to, std::uint64_t done, std::uint64_t total, std::string_view text) {
      static_cast<RunHere*>(to)->report({done, total, std::string(text.substr(0, process::kProgressTextSize))});
    };
    context_.report_to = this;
  }
  running_.emplace(context_, RunningTask::Scope::thread);
}

RunHere::~RunHere() {
  running_.reset();
  if (held_back_) pass_on(std::move(*held_back_));
}

Outcome RunHere::call() {
  if (node_.options.retry() == nullptr || !node_.repeatable()) return node_.run();
  // The call itself is kept for the next run.
  try {
    Encoder counting{std::span<std::byte>()};
    node_.encode(counting);
    std::vector<std::byte> request(counting.size());
    Encoder encoder{std::span<std::byte>(request)};
    node_.encode(encoder);
    return decode_answer(node_, run_encoded_task(request));
  } catch (...) {
    node_.error = std::current_exception();
    return Outcome::failed;
  }
}

void RunHere::report(Progress progress) {
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
void RunHere::pass_on(Progress&& progress) {
  const std::lock_guard lock(node_.core->mutex);
  if (!node_.settled && node_.core->context_alive) node_.deliver_progress(std::move(progress));
}

}  // namespace bulkhead::detail
