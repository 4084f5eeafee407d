// SPDX-License-Identifier: BSL-1.0
#include "process/channel.hpp"
#include "worker_pool.hpp"

#include "task_details.hpp"

#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/detail/task_context.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace bulkhead::detail {
namespace {

// Where a worker writes an answer: into its slot, or into a block when it is too large for that.
class ChannelSink final : public AnswerSink {
 public:
  ChannelSink(process::WorkerChannel& channel, std::uint64_t most_memory)
      : channel_(channel), most_memory_(most_memory) {}

  void put(Write write, const void* value) override {
    // Before the answer, since the next task may follow it at once.
    if (most_memory_ != 0 && process::memory_since_birth() > most_memory_) channel_.set_over_memory();
    // So that it is encoded once where the last one of this type was too large for a slot, too: into as much as that
    // took, and some more, if there is room now. What is not written of that takes no memory.
    static Write last_write = nullptr;
    static std::size_t last_size = 0;
    const std::span<std::byte> slot = channel_.answer_slot();  // gives back the block of one that has failed half-way
    if (write == last_write) {
      if (const auto block = channel_.try_allocate_answer(std::min(last_size + last_size / 4, channel_.max_answer()))) {
        Encoder encoder(*block);
        write(encoder, value);
        if (encoder.fits() && encoder.size() > slot.size()) {
          last_size = encoder.size();
          channel_.shrink_answer(last_size);
          channel_.commit(last_size);
          return;
        }
        channel_.answer_slot();
        if (encoder.fits()) {
          last_write = nullptr;
          std::memcpy(slot.data(), block->data(), encoder.size());
          channel_.commit(encoder.size());
          return;
        }
      }
    }
    Encoder in_slot(slot);
    write(in_slot, value);
    if (in_slot.fits()) {
      channel_.commit(in_slot.size());
      return;
    }
    const auto block = channel_.allocate_answer(in_slot.size());
    if (!block) {
      throw SerializationError(
          SerializationError::Part::result, "",
          fmt::format("it takes {} bytes, and max_message_size allows {}", in_slot.size(), channel_.max_answer()));
    }
    Encoder in_block(*block);
    write(in_block, value);
    if (in_block.size() != in_slot.size()) {
      throw SerializationError(SerializationError::Part::result, "", "its encoding differs from one time to the next");
    }
    last_write = write;
    last_size = in_block.size();
    channel_.commit(in_block.size());
  }

  // What its next tasks would get is as little.
  void set_out_of_memory() noexcept override { channel_.set_over_memory(); }

 private:
  process::WorkerChannel& channel_;
  const std::uint64_t most_memory_;
};

// The answer of a start call stays where it is; only whether it is an exception counts.
class StartSink final : public AnswerSink {
 public:
  void put(Write write, const void* value) override {
    Encoder counting{std::span<std::byte>()};
    write(counting, value);
    bytes_.resize(counting.size());
    Encoder encoder{std::span<std::byte>(bytes_)};
    write(encoder, value);
  }

  bool failed(std::string& reason) {
    Decoder decoder(bytes_);
    if (decoder.read_value<AnswerKind>() == AnswerKind::value) return false;
    reason = describe_exception(decode_exception(decoder, {}));
    return true;
  }

 private:
  std::vector<std::byte> bytes_;
};

bool run_start_call(std::span<const std::byte> call, std::string& reason) {
  StartSink sink;
  run_encoded(call, sink);
  return !sink.failed(reason);
}

void run_task(const process::WorkerRequest& request, process::WorkerChannel& channel,
              const process::TemplateConfiguration& configuration) {
  TaskContext context;
  context.id = request.task_id;
  context.attempt = request.attempt;
  context.deadline_ns = request.end_ns;
  if (request.timeout_ns != 0) {
    const std::uint64_t end =
        deadline_after(request.begun_ns, std::chrono::nanoseconds(static_cast<std::int64_t>(request.timeout_ns)));
    context.deadline_ns = earlier_deadline(context.deadline_ns, end);
  }
  context.stop = request.stop;
  context.executor = configuration.name;
  read_details(request.details, context);
  context.report = [](void* to, std::uint64_t done, std::uint64_t total, std::string_view text) {
    static_cast<process::WorkerChannel*>(to)->report_progress(done, total, text);
  };
  context.report_to = &channel;
  context.item = &channel.item();
  context.max_result = channel.max_answer();
  const RunningTask running(context, RunningTask::Scope::process);
  ChannelSink sink(channel, configuration.max_worker_memory);
  run_encoded(request.call, sink);
}

}  // namespace

const process::WorkerHooks kWorkerHooks{run_start_call, run_task};

}  // namespace bulkhead::detail
