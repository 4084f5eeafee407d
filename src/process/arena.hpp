// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

namespace bulkhead::process {

// The shared memory between the host and one worker: two memfds, each written by one side only.
//
//   request area  (host writes, worker maps it read-only)    header | 256 slots | heap
//   response area (worker writes, host maps it read-only)    header | 256 slots | heap
//
// There is no lock. Every word has one writer and lies in the area that its writer owns. Counters run modulo 2^32; the
// slot of sequence number s is s % kSlots.

/// Slots of a ring. So many tiny tasks can be on their way to one worker at once: at 1 µs each it covers a host that is
/// away for 256 µs. A power of two, so that wrapped counters keep their slot.
inline constexpr std::uint32_t kSlots = 256;

/// Bytes of a slot: four cache lines, so that the arguments of most calls travel inline.
inline constexpr std::size_t kSlotSize = 256;

/// The line size of x86-64 and of most AArch64 machines: words of different writers do not share one.
inline constexpr std::size_t kCacheLine = 64;

/// What a request asks for.
enum class RequestKind : std::uint32_t { task = 0, stop = 1 };

/// What a response tells.
enum class ResponseKind : std::uint32_t { outcome = 0, skipped = 1 };

/// How far a worker has come.
enum class WorkerState : std::uint32_t { starting = 0, ready = 1, failed = 2 };

/// Why a worker sleeps on a futex.
enum class Sleep : std::uint32_t { awake = 0, for_requests = 1, for_space = 2 };

/// `heap_offset` of a payload that lies in its slot.
inline constexpr std::uint64_t kInline = ~std::uint64_t{0};

struct RequestSlot {
  /// 1: the host has taken the task back; the worker must not run it. Written by the host at any time.
  std::atomic<std::uint32_t> revoked;
  RequestKind kind;
  std::uint64_t size;
  std::uint64_t heap_offset;
  std::uint64_t unused;
  std::byte payload[kSlotSize - 32];
};
static_assert(sizeof(RequestSlot) == kSlotSize);

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
  std::uint32_t sequence;
  ResponseKind kind;
  std::uint64_t size;
  std::uint64_t heap_offset;
  /// CLOCK_MONOTONIC when the run began and ended.
  std::uint64_t began_ns;
  std::uint64_t ended_ns;
  std::byte payload[kSlotSize - 40];
};
static_assert(sizeof(ResponseSlot) == kSlotSize);

/// Longest reason for a failed start: what() of an exception with its type; more is cut.
inline constexpr std::size_t kReportSize = 2048;

struct ResponseHeader {
  /// Sequence number + 1 of the request that the worker took up last.
  alignas(kCacheLine) std::atomic<std::uint32_t> begun;
  /// Responses written so far.
  std::atomic<std::uint32_t> committed;
  /// CLOCK_MONOTONIC when the request that `begun` names was taken up.
  std::atomic<std::uint64_t> begun_ns;
  /// Whether the worker sleeps, and for what.
  alignas(kCacheLine) std::atomic<std::uint32_t> sleeping;
  alignas(kCacheLine) std::atomic<std::uint32_t> state;
  std::atomic<std::uint32_t> report_size;
  char report[kReportSize];
  alignas(4096) ResponseSlot slots[kSlots];
};

static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

/// Exit code of a worker whose descriptors a task has closed, and of a task's fork that came back from it: sysexits.h,
/// EX_SOFTWARE.
inline constexpr int kMisusedExitCode = 70;

/// Sizes of the two areas; the same in host and worker.
struct ArenaLayout {
  std::size_t heap_size = 0;
  /// The largest answer that a worker may give; less than the heap, so that other answers have room beside it.
  std::size_t max_answer = heap_size;
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

  std::optional<std::size_t> allocate(std::size_t size) {
    if (!can_hold(size)) return std::nullopt;
    size = rounded(size);
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      if (block->second < size) continue;
      const std::size_t offset = block->first;
      const std::size_t rest = block->second - size;
      free_.erase(block);
      if (rest > 0) free_.emplace(offset + size, rest);
      return offset;
    }
    return std::nullopt;
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
  std::map<std::size_t, std::size_t> free_;
};

}  // namespace bulkhead::process
