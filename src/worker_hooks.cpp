// SPDX-License-Identifier: BSL-1.0
#include "process/channel.hpp"
#include "worker_pool.hpp"

#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>

#include <fmt/format.h>

#include <string>
#include <vector>

namespace bulkhead::detail {
namespace {

// Where a worker writes an answer: into its slot, or into a block when it is too large for that.
class ChannelSink final : public AnswerSink {
 public:
  explicit ChannelSink(process::WorkerChannel& channel) : channel_(channel) {}

  void put(Write write, const void* value) override {
    Encoder in_slot(channel_.answer_slot());
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
    channel_.commit(in_block.size());
  }

 private:
  process::WorkerChannel& channel_;
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

void run_task(std::span<const std::byte> request, process::WorkerChannel& channel) {
  ChannelSink sink(channel);
  run_encoded(request, sink);
}

}  // namespace

const process::WorkerHooks kWorkerHooks{run_start_call, run_task};

}  // namespace bulkhead::detail
