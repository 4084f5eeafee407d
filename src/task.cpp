// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/task.hpp>

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/serialization.hpp>

#include "run_end.hpp"
#include "run_here.hpp"

#include <utility>

namespace bulkhead {

using detail::Delivery;
using detail::Initiation;
using detail::Outcome;
using detail::TaskNode;

Task& Task::operator=(Task&& other) noexcept {
  Task dropped(std::exchange(node_, std::exchange(other.node_, nullptr)));
  return *this;
}

Task::~Task() {
  if (node_ == nullptr) return;
  if (Initiation* const initiation = Initiation::current(); initiation != nullptr && initiation->starting == node_) {
    initiation->dropped = true;  // `execute` may be on its way out with an exception that says why
    return;
  }
  fail(std::make_exception_ptr(TaskAbandonedError(node_->core->context_of(*node_))));
}

void Task::run() {
  TaskNode* const node = std::exchange(node_, nullptr);
  const auto core = node->core->shared_from_this();
  Outcome outcome = Outcome::cancelled;
  detail::measure_cpu_time(*node);
  if (core->begin(*node)) {
    {
      const detail::RunHere here(*node);
      outcome = node->run();
    }
    detail::note_run_end(*node);
  }
  core->settle(node, outcome, Initiation::delivery());
}

void Task::started() {
  if (!node_->runs_here) node_->core->begin(*node_);
}

std::size_t Task::encode(std::span<std::byte> buffer) {
  Encoder encoder(buffer);
  node_->encode(encoder);
  return encoder.size();
}

void Task::complete(std::span<const std::byte> answer) {
  TaskNode* const node = std::exchange(node_, nullptr);
  const auto core = node->core->shared_from_this();
  const Outcome outcome = detail::decode_answer(*node, answer);
  if (node->runs_here) detail::note_run_end(*node);
  core->settle(node, outcome, Initiation::delivery());
}

void Task::fail(std::exception_ptr error) {
  TaskNode* const node = std::exchange(node_, nullptr);
  const auto core = node->core->shared_from_this();
  core->fail(node, std::move(error), Outcome::failed, Initiation::delivery());
}

std::string Task::name() const { return node_->name(); }
const TaskOptions& Task::options() const noexcept { return node_->options; }
std::uint64_t Task::id() const noexcept { return node_->id; }

namespace {

class VectorSink final : public detail::AnswerSink {
 public:
  void put(Write write, const void* value) override {
    Encoder counting{std::span<std::byte>()};
    write(counting, value);
    bytes.resize(counting.size());
    Encoder encoder{std::span<std::byte>(bytes)};
    write(encoder, value);
  }
  std::vector<std::byte> bytes;
};

}  // namespace

std::vector<std::byte> run_encoded_task(std::span<const std::byte> request) {
  VectorSink sink;
  detail::run_encoded(request, sink);
  return std::move(sink.bytes);
}

}  // namespace bulkhead
