// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "adaptive_spin.hpp"
#include "arena.hpp"
#include "posix.hpp"
#include "prefetch.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace bulkhead::process {

/// Thrown when a worker wrote something impossible.
class ProtocolViolation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A worker's answer as the host has read and checked it. `payload` still lies in the response area and may change
/// while it is read: copy it, then look at the copy. A Decoder does that piece by piece.
struct Response {
  ResponseKind kind = ResponseKind::outcome;
  bool over_memory = false;
  std::span<const std::byte> payload;
  bool in_slot = false;
  std::uint64_t began_ns = 0;
  std::uint64_t ended_ns = 0;
};

/// What a worker said of itself before it died: nothing of it is checked.
struct CrashNote {
  int signal = 0;
  int code = 0;
  std::uint64_t address = 0;  // SIGSYS: the number of the system call
  std::vector<std::uint64_t> frames;
};

/// A task's progress as its worker wrote it: the text is bounded and has no control characters.
struct ProgressNote {
  std::uint32_t version = 0;
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  std::string text;
};

/// A slot is fetched from the other side's cache so many slots before it is used: a fetch takes about as long as a tiny
/// task.
inline constexpr std::uint32_t kSlotsAhead = 4;
inline constexpr std::uint32_t kResponsesAhead = 8;

/// The host's end of the rings between it and one worker. Not thread-safe: the pool's lock guards it, but for the
/// contents of reserved slots and blocks, which belong to who reserved them.
///
/// The host never trusts the response area: each word is loaded once, into a variable, and that is checked against the
/// host's own counters and used.
class HostChannel {
 public:
  explicit HostChannel(ArenaLayout layout);

  /// Descriptors for the worker. `close_areas` once they are sent.
  const FileDescriptor& request_fd() const noexcept { return request_fd_; }
  const FileDescriptor& response_fd() const noexcept { return response_fd_; }
  const FileDescriptor& doorbell() const noexcept { return doorbell_; }
  void close_areas() noexcept;

  // Requests. reserve → write into the head, slot_payload or a block → fill → publish.

  std::uint32_t free_slots() const noexcept { return kSlots - (reserved_ - consumed_); }
  /// Takes the next slot; there must be a free one.
  std::uint32_t reserve() noexcept { return reserved_++; }
  /// What `reserve` will give. The head of that slot may be written to already.
  std::uint32_t next_slot() const noexcept { return reserved_; }
  /// The head of a reserved request, which is filled with what is written there.
  RequestHead& head(std::uint32_t sequence) noexcept { return unpublished(sequence).head; }
  std::span<std::byte> slot_payload(std::uint32_t sequence) noexcept { return request_slot(sequence).payload; }
  std::optional<std::size_t> allocate(std::size_t size) { return heap_.allocate(size); }
  /// Nothing if there is no room for it before this place.
  std::optional<std::size_t> allocate_before(std::size_t end, std::size_t size) { return heap_.allocate(size, end); }
  std::span<std::byte> block(std::size_t offset, std::size_t size) noexcept {
    return {request_.data() + sizeof(RequestHeader) + offset, size};
  }
  void release(std::size_t offset, std::size_t size) { heap_.release(offset, size); }
  /// Gives back what lies behind the first bytes of a block, as many as are used.
  void shrink(std::size_t offset, std::size_t size, std::size_t used) { heap_.shrink(offset, size, used); }
  /// Bytes from the heap's start whose memory the system has given; for what lies behind them it is still to be asked.
  std::size_t populated() const noexcept { return populated_; }
  void set_populated(std::size_t end) noexcept { populated_ = std::max(populated_, end); }
  /// Has the system give the memory of a block, as long as the channel is there; changes nothing of what is written
  /// there. Thread-safe.
  void populate(std::size_t offset, std::size_t size) const noexcept;
  /// Whether a block that ends there takes more memory than a worker may keep. Nothing gives it back but the worker's
  /// end: the seal that keeps the worker from writing there keeps everybody from that, too.
  bool is_beyond_kept(std::size_t end) const noexcept { return end > layout_.kept; }
  /// `revoked`: the worker is to pass over it.
  void fill(std::uint32_t sequence, bool revoked = false) noexcept {
    unpublished(sequence).revoked = revoked ? 1 : 0;
    unpublished(sequence).stop = 0;
  }
  /// Shows the worker all requests before `end`, and wakes it if it sleeps.
  void publish(std::uint32_t end) noexcept;
  std::uint32_t published() const noexcept { return published_; }

  /// Takes a request back that is filled. True: the worker has not taken it up and never will run it (it will answer
  /// `skipped`). False: it has taken it up; whether it runs it or found it taken back
  /// in the same instant, its answer tells.
  bool take_back(std::uint32_t sequence) noexcept;
  /// Asks the task to stop; it may look at that or not.
  void request_stop(std::uint32_t sequence) noexcept;
  /// Whether the worker has taken up the request.
  bool begun(std::uint32_t sequence) const noexcept;
  /// When the worker took up the last request, as it says. Not checked.
  std::uint64_t begun_ns() const noexcept { return response_area().begun_ns.load(std::memory_order_relaxed); }
  /// Which item of a chunk it says that it is at.
  std::uint32_t item() const noexcept { return response_area().item.load(std::memory_order_relaxed); }

  /// Whether the request's function was over, and only its answer not complete. Not checked.
  bool returned(std::uint32_t sequence) const noexcept {
    return response_area().returned.load(std::memory_order_relaxed) == sequence + 1;
  }
  /// Its CPU time then, if the request asked for it. Not checked.
  std::uint64_t begun_cpu_ns() const noexcept { return response_area().begun_cpu_ns.load(std::memory_order_relaxed); }
  /// The last progress of the task in this request, if it is newer than `version`, and can be read.
  std::optional<ProgressNote> progress(std::uint32_t sequence, std::uint32_t version) const;
  /// What its crash handler wrote.
  std::optional<CrashNote> crash() const;

  // Responses.

  /// Number of responses written so far. Throws ProtocolViolation.
  std::uint32_t committed();
  /// Whether there are more than `collected`. Not checked.
  bool has_unread(std::uint32_t collected) const noexcept {
    return response_area().committed.load(std::memory_order_relaxed) != collected;
  }
  /// The response to a request; it must have been committed. Throws ProtocolViolation.
  Response response(std::uint32_t sequence) const;
  /// Gives back the response slots and blocks before `end`.
  void consume(std::uint32_t end) noexcept;
  /// Gives back the next slot, whose answer has no block; the worker need not hear of it before `show_consumed`.
  void free_slot() noexcept { ++consumed_; }
  void show_consumed() noexcept;
  std::uint32_t consumed() const noexcept { return consumed_; }

  /// Asks for a ring of the doorbell at the next commit. Check `committed` again afterwards, and only then sleep.
  void arm() noexcept;

  /// How long the worker may spin before it sleeps.
  void set_spin_limit(std::uint32_t pauses) noexcept;

  WorkerState state() const noexcept;
  /// Why the start failed, as the worker wrote it: bounded, control characters replaced.
  std::string report() const;

 private:
  RequestHeader& request() const noexcept { return *reinterpret_cast<RequestHeader*>(request_.data()); }
  const ResponseHeader& response_area() const noexcept {
    return *reinterpret_cast<const ResponseHeader*>(response_.data());
  }
  RequestSlot& request_slot(std::uint32_t sequence) const noexcept { return request().slots[sequence % kSlots]; }

  // The first cache line of a request's slot, until the worker is to see it. What lies in the area is in the worker's
  // cache, and the CPU waits for a line when it has to write there: of one at a time, between other writing, and of
  // several at once, if they are written one straight after the other. That is done when they are published.
  struct alignas(kCacheLine) Unpublished {
    std::uint32_t revoked = 0;
    std::uint32_t stop = 0;
    RequestHead head;
  };
  Unpublished& unpublished(std::uint32_t sequence) noexcept { return unpublished_[sequence % kSlots]; }
  bool is_published(std::uint32_t sequence) const noexcept {
    return static_cast<std::int32_t>(sequence - published_) < 0;
  }

  std::array<Unpublished, kSlots> unpublished_;
  ArenaLayout layout_;
  FileDescriptor request_fd_;
  FileDescriptor response_fd_;
  FileDescriptor doorbell_;
  Mapping request_;
  Mapping response_;
  Heap heap_;
  std::size_t populated_ = 0;
  std::uint32_t reserved_ = 0;
  std::uint32_t published_ = 0;
  std::uint32_t committed_ = 0;
  std::uint32_t consumed_ = 0;
  std::uint32_t shown_consumed_ = 0;  // so far as the worker knows
  mutable std::uint32_t begun_ = 0;   // the most that was seen
};

/// A request as a worker sees it.
struct WorkerRequest {
  std::uint32_t sequence = 0;
  RequestKind kind = RequestKind::task;
  unsigned attempt = 1;
  std::uint64_t task_id = 0;
  std::uint64_t begun_ns = 0;
  std::uint64_t timeout_ns = 0;
  std::uint64_t end_ns = 0;
  const std::atomic<std::uint32_t>* stop = nullptr;
  std::span<const std::byte> call;
  std::span<const std::byte> details;
};

/// The worker's end.
class WorkerChannel {
 public:
  WorkerChannel(const FileDescriptor& request_fd, const FileDescriptor& response_fd, int doorbell, ArenaLayout layout);

  /// The next request to be run, in order. Spins a while, then calls `before_sleep` and sleeps. Requests taken back
  /// are answered with `skipped` and passed over.
  template <class BeforeSleep>
  WorkerRequest next(BeforeSleep before_sleep);

  /// Memory for the answer: the slot if `size` fits into it, else a block. Empty: larger than the heap.
  std::span<std::byte> answer_slot() noexcept;
  std::optional<std::span<std::byte>> allocate_answer(std::size_t size);
  /// The same, and nothing if that would have to wait for answers to be read.
  std::optional<std::span<std::byte>> try_allocate_answer(std::size_t size);
  /// Gives back what lies behind the first bytes of the block that was allocated last.
  void shrink_answer(std::size_t used) noexcept;
  /// Shows the answer of `size` bytes, written into the slot or the block, to the host.
  void commit(std::size_t size) noexcept;
  std::size_t max_answer() const noexcept { return layout_.max_answer; }

  /// Tells with the next answer that the worker has too much memory.
  void set_over_memory() noexcept { over_memory_ = true; }
  /// Shows the progress of the task that is being run.
  void report_progress(std::uint64_t done, std::uint64_t total, std::string_view text) noexcept;
  CrashRecord& crash_record() noexcept { return response().crash; }
  std::atomic<std::uint32_t>& item() noexcept { return *response().item.address(); }

  void set_ready() noexcept;
  void set_failed(std::string_view reason) noexcept;

 private:
  const RequestHeader& request() const noexcept { return *reinterpret_cast<const RequestHeader*>(request_.data()); }
  ResponseHeader& response() const noexcept { return *reinterpret_cast<ResponseHeader*>(response_.data()); }
  const RequestSlot& request_slot(std::uint32_t sequence) const noexcept { return request().slots[sequence % kSlots]; }
  ResponseSlot& response_slot(std::uint32_t sequence) const noexcept { return response().slots[sequence % kSlots]; }
  bool has_request() const noexcept { return request().published.load(std::memory_order_acquire) != next_; }
  bool spin() noexcept;
  void sleep_for_request() noexcept;
  bool give_back_memory() noexcept;
  bool take_up() noexcept;
  WorkerRequest current() const noexcept;
  void finish(ResponseKind kind, std::size_t size) noexcept;
  void ring() noexcept;
  void release_consumed();

  struct Block {
    std::size_t offset = 0;
    std::size_t size = 0;
  };

  ArenaLayout layout_;
  int doorbell_;
  const volatile std::byte* fork_mark_;
  Mapping request_;
  Mapping response_;
  Heap heap_;
  std::array<Block, kSlots> blocks_{};
  std::uint32_t next_ = 0;      // the request that is being run, or will be next
  std::uint32_t released_ = 0;  // answers whose blocks have been taken back
  std::uint64_t ended_ns_ = 0;  // when the last request ended; 0: no other followed at once
  std::uint64_t large_ns_ = 0;  // when there last was an answer beyond `ArenaLayout::kept`
  std::uint32_t rung_epoch_ = 0;
  AdaptiveSpin spin_;
  bool answer_in_block_ = false;
  std::mutex progress_mutex_;
  bool over_memory_ = false;
};

template <class BeforeSleep>
WorkerRequest WorkerChannel::next(BeforeSleep before_sleep) {
  for (;;) {
    if (!has_request()) {
      ended_ns_ = 0;
      if (!spin()) {
        before_sleep();
        while (!has_request()) sleep_for_request();
      }
    }
    if (!take_up()) {
      finish(ResponseKind::skipped, 0);
      continue;
    }
    return current();
  }
}

}  // namespace bulkhead::process
