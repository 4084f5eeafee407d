// SPDX-License-Identifier: BSL-1.0
#include "bypass.hpp"

#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/exceptions.hpp>

#include "run_end.hpp"
#include "run_here.hpp"
#include "shared_buffers.hpp"
#include "time_limits.hpp"

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <ctime>
#include <string_view>

namespace bulkhead::detail {
namespace {

// Keeps an answer as bytes, as a worker would write them.
class BufferSink final : public AnswerSink {
 public:
  explicit BufferSink(std::size_t limit) : limit_(limit) {}

  void put(Write write, const void* value) override {
    Encoder counting{std::span<std::byte>()};
    write(counting, value);
    if (counting.size() > limit_) {
      throw SerializationError(
          SerializationError::Part::result, "",
          fmt::format("it takes {} bytes, and max_message_size allows {}", counting.size(), limit_));
    }
    bytes.resize(counting.size());
    Encoder encoder{std::span<std::byte>(bytes)};
    write(encoder, value);
  }

  std::vector<std::byte> bytes;

 private:
  std::size_t limit_;
};

std::uint64_t thread_cpu_ns() noexcept {
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<std::uint64_t>(used.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(used.tv_nsec);
}

}  // namespace

Bypass::Bypass(std::shared_ptr<ExecutorCore> core, Settings settings)
    : core_(std::move(core)), settings_(std::move(settings)) {}

void Bypass::execute(TaskNode* node) {
  ExecutorCore::Lock lock(core_->mutex);
  if (closed_) {
    lock.unlock();
    core_->fail(node, std::make_exception_ptr(ExecutorNotRunningError(core_->context_of(*node))), Outcome::failed,
                Delivery::initiating);
    return;
  }
  node->priority = node->options.priority();
  queue_.enqueue(*node);
  if (active_ == settings_.max_workers || !core_->context_alive) return;
  ++active_;
  asio::post(core_->io, [self = shared_from_this()] { self->run_next(); });
}

bool Bypass::withdraw(TaskNode& node) {
  if (!static_cast<QueuedTask&>(node).linked()) return false;
  queue_.remove(node);
  return true;
}

void Bypass::run_next() {
  TaskNode* node = nullptr;
  {
    const std::lock_guard lock(core_->mutex);
    node = static_cast<TaskNode*>(queue_.front());
    if (node == nullptr || closed_) {
      --active_;
      return;
    }
    queue_.remove(*node);
    // The next one waits its turn behind the event loop's other handlers.
    if (core_->context_alive) asio::post(core_->io, [self = shared_from_this()] { self->run_next(); });
  }
  run(node);
}

std::vector<std::byte> Bypass::encode(TaskNode& node) const {
  Encoder counting{std::span<std::byte>()};
  node.encode(counting);
  if (counting.size() > settings_.max_message_size) {
    throw SerializationError(
        SerializationError::Part::argument, "",
        fmt::format("they take {} bytes, and max_message_size allows {}", counting.size(), settings_.max_message_size));
  }
  std::vector<std::byte> bytes(counting.size());
  Encoder encoder{std::span<std::byte>(bytes)};
  node.encode(encoder);
  return bytes;
}

void Bypass::run(TaskNode* node) {
  const auto must_have_ended = [node] { return node->must_end_ns != 0 && ExecutorCore::now() >= node->must_end_ns; };
  const auto total_error = [&](const std::string& reason) {
    return TaskTimeoutError(TaskTimeoutError::Which::total, *node->options.total_timeout(), core_->context_of(*node),
                            reason);
  };
  if (must_have_ended()) {
    core_->fail(node, std::make_exception_ptr(total_error(not_run_reason(*node))), Outcome::timed_out,
                Delivery::on_io_executor);
    return;
  }
  if (const std::uint64_t end = node->must_begin_ns(); end != 0 && ExecutorCore::now() > end) {
    core_->fail(node,
                std::make_exception_ptr(TaskTimeoutError(TaskTimeoutError::Which::queue, *node->options.queue_timeout(),
                                                         core_->context_of(*node))),
                Outcome::timed_out, Delivery::on_io_executor);
    return;
  }
  if (!core_->begin(*node)) {
    core_->settle(node, Outcome::cancelled, Delivery::on_io_executor);
    return;
  }
  Outcome outcome = Outcome::completed;
  try {
    std::string reason;
    if (!start_calls(reason)) throw WorkerStartError(reason, 1, core_->context_of(*node));
    BufferTransfer transfer(settings_.shared.get());
    const std::vector<std::byte> request = encode(*node);
    transfer.passing = false;
    BufferSink sink(settings_.max_message_size);
    const std::uint64_t cpu_before = thread_cpu_ns();
    {
      const RunHere here(*node);
      run_encoded(request, sink);
    }
    note_run_end(*node);
    const std::uint64_t cpu = thread_cpu_ns() - cpu_before;
    outcome = decode_answer(*node, sink.bytes);
    // A worker would have been killed.
    const auto over = [](const auto& limit, std::uint64_t time) {
      return limit && time > static_cast<std::uint64_t>(limit->count());
    };
    using Which = TaskTimeoutError::Which;
    if (must_have_ended()) {
      outcome = Outcome::timed_out;
      throw total_error({});
    }
    if (const auto limit = node->options.timeout(); over(limit, node->ended_ns - node->began_ns)) {
      outcome = Outcome::timed_out;
      throw TaskTimeoutError(Which::run, *limit, core_->context_of(*node));
    }
    if (const auto limit = node->options.cpu_timeout(); over(limit, cpu)) {
      outcome = Outcome::timed_out;
      throw TaskTimeoutError(Which::cpu, *limit, core_->context_of(*node));
    }
  } catch (const SerializationError& error) {
    node->error = std::make_exception_ptr(SerializationError(
        error.part() == SerializationError::Part::value ? SerializationError::Part::result : error.part(),
        error.type_name(), error.reason(), core_->context_of(*node)));
  } catch (...) {
    node->error = std::current_exception();
  }
  if (node->ended_ns == 0) note_run_end(*node);
  if (node->error && outcome == Outcome::completed) outcome = Outcome::failed;
  core_->settle(node, outcome, Delivery::on_io_executor);
}

// Once per executor, before its first task. A failure is tried again with the next task, as a worker's start would be.
bool Bypass::start_calls(std::string& reason) {
  const std::lock_guard lock(start_mutex_);
  if (started_) return true;
  for (const auto* call : {&settings_.preload, &settings_.initializer}) {
    if (call->empty()) continue;
    BufferSink sink(settings_.max_message_size);
    run_encoded(*call, sink);
    Decoder decoder(sink.bytes);
    if (decoder.read_value<AnswerKind>() == AnswerKind::exception) {
      reason = (call == &settings_.preload ? "preload failed: " : "initializer failed: ") +
               describe_exception(decode_exception(decoder, {}));
      return false;
    }
  }
  started_ = true;
  return true;
}

void Bypass::close() {
  std::vector<TaskNode*> left;
  {
    const std::lock_guard lock(core_->mutex);
    closed_ = true;
    while (QueuedTask* task = queue_.front()) {
      queue_.remove(*task);
      left.push_back(static_cast<TaskNode*>(task));
    }
  }
  for (TaskNode* node : left) {
    core_->fail(node,
                std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::queued, core_->context_of(*node),
                                                           "the executor was destroyed")),
                Outcome::cancelled, Delivery::initiating);
  }
}

bool bypass_by_environment() {
  const char* value = std::getenv("BULKHEAD_EXECUTOR_BYPASS");
  if (value == nullptr) return false;
  std::string text = value;
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::array<std::string_view, 4> kYes{"1", "true", "yes", "on"};
  return std::find(kYes.begin(), kYes.end(), text) != kYes.end();
}

}  // namespace bulkhead::detail
