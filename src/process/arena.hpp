// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"
#include "shared_word.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory_resource>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace bulkhead::process {

// The shared memory between the host and one worker: two memfds, each written by one side only.
//
//   request area  (host writes, worker maps it read-only)    header | 256 slots | heap
//   response area (worker writes, host maps it read-only)    header | 256 slots | heap
//
// There is no lock. Every word has one writer and lies in the area that its writer owns. Counters run modulo 2^32; the
// slot of sequence number s is s % kSlots.
//
// The host trusts the worker in nothing, so what the worker writes is a SharedWord, or bytes that are copied before
// anybody looks at them.

/// Slots of a ring. So many tiny tasks can be on their way to one worker at once: at 1 µs each it covers a host that is
/// away for 256 µs. A power of two, so that wrapped counters keep their slot.
inline constexpr std::uint32_t kSlots = 256;

/// Bytes of a slot: four cache lines, so that the arguments of most calls travel inline.
inline constexpr std::size_t kSlotSize = 256;

/// The line size of x86-64 and of most AArch64 machines: words of different writers do not share one.
inline constexpr std::size_t kCacheLine = 64;

/// As long as a pause between bursts of work: memory that is used anew costs nine times as much as warm memory.
inline constexpr std::chrono::seconds kUnusedMemoryKept{10};

/// What a request asks for.
enum class RequestKind : std::uint16_t { task = 0, stop = 1 };

/// What a response tells.
enum class ResponseKind : std::uint16_t { outcome = 0, skipped = 1 };

/// How far a worker has come.
enum class WorkerState : std::uint32_t { starting = 0, ready = 1, failed = 2 };

/// Why a worker sleeps on a futex.
enum class Sleep : std::uint32_t { awake = 0, for_requests = 1, for_space = 2 };

/// `heap_offset` of a payload that lies in its slot.
inline constexpr std::uint64_t kInline = ~std::uint64_t{0};

/// `heap_offset` of a call that lies in its slot's first cache line: one of few bytes, without details and limits.
inline constexpr std::uint64_t kInHead = kInline - 1;

/// What a request says of itself, beside its payload.
struct RequestHead {
  struct Limits {
    /// How long the task may run; 0: no limit.
    std::uint64_t timeout_ns = 0;
    /// When it must be over, by the steady clock; 0: at no certain time.
    std::uint64_t end_ns = 0;
  };

  RequestKind kind = RequestKind::task;
  /// 1: the worker is to note its CPU time before the task begins.
  std::uint16_t measure_cpu = 0;
  /// The number of this run of the task, from 1.
  std::uint16_t attempt = 1;
  /// Bytes of the task's details (its name and so on), which follow the call.
  std::uint16_t details_size = 0;
  /// Bytes of the call and its details.
  std::uint64_t size = 0;
  std::uint64_t heap_offset = kInline;
  std::uint64_t task_id = 0;
  union {
    Limits limits = {};
    /// The call, if `heap_offset` is `kInHead`. Not aligned for what is seen in place.
    std::byte call[24];
  };
};

struct RequestSlot {
  /// 1: the host has taken the task back; the worker must not run it. Written by the host at any time.
  std::atomic<std::uint32_t> revoked;
  /// 1: the caller asks the task to stop. Written by the host at any time.
  std::atomic<std::uint32_t> stop;
  RequestHead head;
  /// Enough alignment for what is seen in place.
  alignas(kCacheLine) std::byte payload[kSlotSize - kCacheLine];
};
static_assert(sizeof(RequestSlot) == kSlotSize && offsetof(RequestSlot, payload) == kCacheLine);
static_assert(std::is_trivially_copyable_v<RequestHead>);

struct RequestHeader {
  /// Requests written so far. The worker's futex word.
  alignas(kCacheLine) std::atomic<std::uint32_t> published;
  /// Responses that the host is done with: their slots and heap blocks are free again. Futex word for `for_space`.
  alignas(kCacheLine) std::atomic<std::uint32_t> consumed;
  /// Changes each time the host goes to sleep: the first commit after that rings the doorbell. Read by the worker after
  /// each task, so not beside what the host writes often.
  alignas(kCacheLine) std::atomic<std::uint32_t> sleep_epoch;
  /// How many pauses the worker may spin before it sleeps.
  std::atomic<std::uint32_t> spin_limit;
  alignas(4096) RequestSlot slots[kSlots];
};

struct ResponseSlot {
  SharedWord<std::uint32_t> sequence;
  SharedWord<ResponseKind> kind;
  /// 1: after this task the worker has more memory than `max_worker_memory`.
  SharedWord<std::uint16_t> over_memory;
  SharedWord<std::uint64_t> size;
  SharedWord<std::uint64_t> heap_offset;
  /// CLOCK_MONOTONIC when the run began and ended.
  SharedWord<std::uint64_t> began_ns;
  SharedWord<std::uint64_t> ended_ns;
  std::byte payload[kSlotSize - 40];
};
static_assert(sizeof(ResponseSlot) == kSlotSize && std::is_standard_layout_v<ResponseSlot>);

/// Longest reason for a failed start: what() of an exception with its type; more is cut.
inline constexpr std::size_t kReportSize = 2048;

/// Frames of a crashed call that are kept: enough to see through the library's own dozen and deep templates; the
/// thousands of an endless recursion repeat themselves.
inline constexpr std::size_t kMostFrames = 48;

/// How a worker crashed, as its signal handler wrote it.
struct CrashRecord {
  /// 0: nothing; 1: signal, code and address are written.
  SharedWord<std::uint32_t> state;
  /// The signal; 0: the task called `exit`.
  SharedWord<std::int32_t> signal;
  /// `siginfo_t::si_code`, or the exit code.
  SharedWord<std::int32_t> code;
  /// How many of the frames are written.
  SharedWord<std::uint32_t> depth;
  /// What could not be accessed, or where the instruction was; SIGSYS: the number of the system call.
  SharedWord<std::uint64_t> address;
  /// Addresses inside the calling instructions, innermost first.
  SharedWord<std::uint64_t> frames[kMostFrames];
};

/// Longest text of a progress report; more is cut.
inline constexpr std::size_t kProgressTextSize = 200;

/// A task's progress reports are written to these in turn. So the last one that was finished is whole whenever the
/// worker dies, and a reader has the time of seven reports to copy one, which is enough even if the task does nothing
/// but report: each takes some tens of nanoseconds, and a copy from another CPU's cache some hundred.
inline constexpr std::uint32_t kProgressCopies = 8;

struct ProgressCopy {
  SharedWord<std::uint32_t> sequence;
  SharedWord<std::uint32_t> text_size;
  SharedWord<std::uint64_t> done;
  SharedWord<std::uint64_t> total;
  char text[kProgressTextSize];
};

/// The latest progress of a task. Reports are numbered from 1; number n is in copy n % kProgressCopies.
struct ProgressRecord {
  SharedWord<std::uint32_t> begun;     // the last that was begun
  SharedWord<std::uint32_t> finished;  // the last that was finished
  ProgressCopy copies[kProgressCopies];
};

struct ResponseHeader {
  /// Sequence number + 1 of the request that the worker took up last.
  alignas(kCacheLine) SharedWord<std::uint32_t> begun;
  /// Responses written so far.
  SharedWord<std::uint32_t> committed;
  /// CLOCK_MONOTONIC when the request that `begun` names was taken up.
  SharedWord<std::uint64_t> begun_ns;
  /// The worker's CPU time then, if the request asked for it.
  SharedWord<std::uint64_t> begun_cpu_ns;
  /// Sequence number + 1 of the request whose function has returned or thrown, and whose answer is being written.
  SharedWord<std::uint32_t> returned;
  /// Which item of the chunk that `begun` names runs, from 0.
  SharedWord<std::uint32_t> item;
  /// Whether the worker sleeps, and for what.
  alignas(kCacheLine) SharedWord<std::uint32_t> sleeping;
  alignas(kCacheLine) SharedWord<std::uint32_t> state;
  SharedWord<std::uint32_t> report_size;
  char report[kReportSize];
  alignas(kCacheLine) CrashRecord crash;
  alignas(4096) ResponseSlot slots[kSlots];
  /// One per slot, so that a task's last progress is there until its answer is read.
  alignas(4096) ProgressRecord progress[kSlots];
};

static_assert(std::is_standard_layout_v<ResponseHeader>);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

/// Exit code of a worker whose descriptors a task has closed, and of a task's fork that came back from it: sysexits.h,
/// EX_SOFTWARE.
inline constexpr int kMisusedExitCode = 70;

/// Sizes of the two areas; the same in host and worker.
struct ArenaLayout {
  std::size_t heap_size = 0;
  /// The largest answer that a worker may give; less than the heap, so that other answers have room beside it.
  std::size_t max_answer = heap_size;
  /// Bytes of an area's heap that an idle worker may keep.
  std::size_t kept = heap_size;
  std::size_t request_size() const { return sizeof(RequestHeader) + heap_size; }
  std::size_t response_size() const { return sizeof(ResponseHeader) + heap_size; }
};

/// Hands out blocks of an area's heap; its book-keeping is private to the side that writes the area.
/// First fit from the bottom, so that the same, warm pages are used again and again (first touch of a page costs nine
/// times as much as writing it again).
class Heap {
 public:
  explicit Heap(std::size_t size) : capacity_(size / kCacheLine * kCacheLine) {
    if (capacity_ > 0) free_.emplace(0, capacity_);
  }

  /// Whether an empty heap has room for it.
  bool can_hold(std::size_t size) const noexcept { return size <= capacity_; }

  /// Nothing if there is no room for it before `end`.
  std::optional<std::size_t> allocate(std::size_t size, std::size_t end = std::numeric_limits<std::size_t>::max()) {
    if (!can_hold(size)) return std::nullopt;
    size = rounded(size);
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      if (block->second < size) continue;
      const std::size_t offset = block->first;
      if (offset + size > end) return std::nullopt;
      touched_ = std::max(touched_, offset + size);
      const std::size_t rest = block->second - size;
      free_.erase(block);
      if (rest > 0) free_.emplace(offset + size, rest);
      return offset;
    }
    return std::nullopt;
  }

  /// All blocks have lain before this offset.
  std::size_t touched() const noexcept { return touched_; }
  /// The memory has been given back to the system.
  void forget_touched() noexcept { touched_ = 0; }

  /// Gives back what lies behind the first bytes of a block, as many as are used; at least one is.
  void shrink(std::size_t offset, std::size_t size, std::size_t used) {
    if (rounded(used) >= rounded(size)) return;
    if (touched_ == offset + rounded(size)) touched_ = offset + rounded(used);
    release(offset + rounded(used), rounded(size) - rounded(used));
  }

  void release(std::size_t offset, std::size_t size) {
    size = rounded(size);
    auto after = free_.lower_bound(offset);
    if (after != free_.end() && offset + size == after->first) {
      size += after->second;
      after = free_.erase(after);
    }
    if (after != free_.begin()) {
      auto before = std::prev(after);
      if (before->first + before->second == offset) {
        before->second += size;
        return;
      }
    }
    free_.emplace(offset, size);
  }

 private:
  // Blocks start on a cache line: enough alignment for every type that is seen in place.
  static std::size_t rounded(std::size_t size) { return (size + kCacheLine - 1) / kCacheLine * kCacheLine; }

  std::size_t capacity_;
  std::size_t touched_ = 0;
  std::pmr::unsynchronized_pool_resource memory_;
  std::pmr::map<std::size_t, std::size_t> free_{&memory_};
};

}  // namespace bulkhead::process
