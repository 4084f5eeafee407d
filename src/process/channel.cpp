// SPDX-License-Identifier: BSL-1.0
#include "channel.hpp"

#include "pause.hpp"
#include "printable.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <optional>
#include <string_view>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // linux/fcntl.h, since Linux 5.1
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // linux/mman.h, since Linux 5.14
#endif

namespace bulkhead::process {
namespace {

// Not the PRIVATE operations, and not std::atomic::wait, which uses them: they never wake another process.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected,
                std::optional<std::chrono::nanoseconds> limit = std::nullopt) noexcept {
  timespec time{};
  if (limit) {
    time.tv_sec = static_cast<std::time_t>(*limit / std::chrono::seconds(1));
    time.tv_nsec = static_cast<long>((*limit % std::chrono::seconds(1)).count());
  }
  ::syscall(SYS_futex, &word, FUTEX_WAIT, expected, limit ? &time : nullptr, nullptr, 0);
}

void futex_wake(const std::atomic<std::uint32_t>& word) noexcept {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

[[noreturn]] void leave_for_good(const char* reason) noexcept {
  std::fprintf(stderr, "bulkhead: process %d ends: %s\n", static_cast<int>(::getpid()), reason);
  ::_exit(kMisusedExitCode);
}

// The start of a range for madvise must be a multiple of the page size; no machine's is smaller, and where it is
// larger, the areas begin on pages anyway and the call fails as on an old system.
constexpr std::size_t kPageSize = 4096;

// What the worker wrote, into private memory. However often it is read on the way, everything after this is about the
// copy: the compiler may not go back to the original.
void copy_from_worker(void* to, const void* from, std::size_t size) noexcept {
  std::memcpy(to, from, size);
  asm volatile("" : : "r"(to) : "memory");
}

// Store, then load what the other side stored before it loaded ours: needs a full barrier on every machine.
void full_barrier() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }

}  // namespace

HostChannel::HostChannel(ArenaLayout layout)
    : layout_(layout),
      request_fd_(create_memfd("bulkhead-request", layout.request_size())),
      response_fd_(create_memfd("bulkhead-response", layout.response_size())),
      doorbell_(create_eventfd()),
      request_(request_fd_, layout.request_size(), Mapping::Access::read_write),
      response_(response_fd_, layout.response_size(), Mapping::Access::read_only),
      heap_(layout.heap_size) {
  // From here on nobody can map the request area writable, not even through /proc/self/fd, and nobody can cut either
  // area short, which would make reading it a SIGBUS.
  seal(request_fd_, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  seal(response_fd_, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  request_.keep_private();
  response_.keep_private();
}

void HostChannel::close_areas() noexcept {
  request_fd_.reset();
  response_fd_.reset();
}

void HostChannel::populate(std::size_t offset, std::size_t size) const noexcept {
  const std::size_t begin = (sizeof(RequestHeader) + offset) / kPageSize * kPageSize;
  const std::size_t end = std::min(request_.size(), sizeof(RequestHeader) + offset + size);
  // Linux has it since 5.14. Before, who writes first waits for the memory.
  ::madvise(request_.data() + begin, end - begin, MADV_POPULATE_WRITE);
}

void HostChannel::publish(std::uint32_t end) noexcept {
  if (end == published_) return;
  // The worker keeps its books by what it was shown: a slot is not its answer's while it may think that the one before
  // is still to be read.
  if (end - shown_consumed_ > kSlots) show_consumed();
  for (; published_ != end; ++published_) {
    const Unpublished& from = unpublished(published_);
    RequestSlot& to = request_slot(published_);
    to.revoked.store(from.revoked, std::memory_order_relaxed);
    to.stop.store(from.stop, std::memory_order_relaxed);
    to.head = from.head;
  }
  request().published.store(end, std::memory_order_release);
  full_barrier();
  if (response_area().sleeping.load(std::memory_order_relaxed) == static_cast<std::uint32_t>(Sleep::for_requests)) {
    futex_wake(request().published);
  }
}

bool HostChannel::take_back(std::uint32_t sequence) noexcept {
  if (!is_published(sequence)) {
    unpublished(sequence).revoked = 1;
    return true;
  }
  // Either the worker sees `revoked` after it has stored `begun`, or we see its `begun` here: both are sequentially
  // consistent, so they cannot miss each other.
  request_slot(sequence).revoked.store(1, std::memory_order_seq_cst);
  return !begun(sequence);
}

void HostChannel::request_stop(std::uint32_t sequence) noexcept {
  if (is_published(sequence)) {
    request_slot(sequence).stop.store(1, std::memory_order_release);
  } else {
    unpublished(sequence).stop = 1;
  }
}

bool HostChannel::begun(std::uint32_t sequence) const noexcept {
  const std::uint32_t told = response_area().begun.load(std::memory_order_seq_cst);
  // What it has begun it cannot unsay, and it has begun no more than there is.
  if (const auto more = static_cast<std::int32_t>(told - begun_); more > 0) {
    begun_ += std::min(static_cast<std::uint32_t>(more), published_ - begun_);
  }
  return static_cast<std::int32_t>(begun_ - (sequence + 1)) >= 0;
}

std::uint32_t HostChannel::committed() {
  const std::uint32_t committed = response_area().committed.load(std::memory_order_acquire);
  if (committed - committed_ > published_ - committed_) {
    throw ProtocolViolation("it claims to have answered " + std::to_string(committed - committed_) + " of " +
                            std::to_string(published_ - committed_) + " requests");
  }
  // The first of them are wanted at once: then at least together.
  const std::uint32_t first = std::min(committed - committed_, kResponsesAhead);
  for (std::uint32_t i = 0; i < first; ++i) __builtin_prefetch(&response_area().slots[(committed_ + i) % kSlots]);
  committed_ = committed;
  return committed;
}

Response HostChannel::response(std::uint32_t sequence) const {
  const auto& slot = response_area().slots[sequence % kSlots];
  // Not while the worker writes it.
  if (committed_ - sequence > kResponsesAhead) {
    __builtin_prefetch(&response_area().slots[(sequence + kResponsesAhead) % kSlots]);
  }
  // Each word once: the worker may go on writing to them. By hand, since a memcpy of this size may load a word twice.
  const std::uint32_t named = slot.sequence.load();
  const ResponseKind kind = slot.kind.load();
  if (named != sequence) {
    throw ProtocolViolation("it answered request " + std::to_string(named) + " in the place of " +
                            std::to_string(sequence));
  }
  Response result;
  result.kind = kind;
  result.over_memory = slot.over_memory.load() != 0;
  result.began_ns = slot.began_ns.load();
  result.ended_ns = slot.ended_ns.load();
  if (kind == ResponseKind::skipped) return result;
  if (kind != ResponseKind::outcome) {
    throw ProtocolViolation("it gave an answer of the unknown kind " +
                            std::to_string(static_cast<std::uint32_t>(kind)));
  }
  const std::uint64_t size = slot.size.load();
  const std::uint64_t offset = slot.heap_offset.load();
  if (offset == kInline) {
    if (size > sizeof(slot.payload)) {
      throw ProtocolViolation("it claims " + std::to_string(size) + " bytes in a slot");
    }
    result.payload = {slot.payload, size};
    result.in_slot = true;
    return result;
  }
  if (size > layout_.heap_size || offset > layout_.heap_size - size) {
    throw ProtocolViolation("it claims " + std::to_string(size) + " bytes at offset " + std::to_string(offset) +
                            " of a heap of " + std::to_string(layout_.heap_size));
  }
  result.payload = {response_.data() + sizeof(ResponseHeader) + offset, size};
  return result;
}

void HostChannel::consume(std::uint32_t end) noexcept {
  consumed_ = end;
  show_consumed();
}

void HostChannel::show_consumed() noexcept {
  if (shown_consumed_ == consumed_) return;
  shown_consumed_ = consumed_;
  request().consumed.store(consumed_, std::memory_order_release);
  full_barrier();
  if (response_area().sleeping.load(std::memory_order_relaxed) == static_cast<std::uint32_t>(Sleep::for_space)) {
    futex_wake(request().consumed);
  }
}

void HostChannel::arm() noexcept {
  request().sleep_epoch.fetch_add(1, std::memory_order_relaxed);
  full_barrier();
}

void HostChannel::set_spin_limit(std::uint32_t pauses) noexcept {
  request().spin_limit.store(pauses, std::memory_order_relaxed);
}

WorkerState HostChannel::state() const noexcept {
  switch (const std::uint32_t state = response_area().state.load(std::memory_order_acquire)) {
    case static_cast<std::uint32_t>(WorkerState::starting):
    case static_cast<std::uint32_t>(WorkerState::ready):
      return static_cast<WorkerState>(state);
    default:
      return WorkerState::failed;
  }
}

std::string HostChannel::report() const {
  const std::size_t size =
      std::min<std::size_t>(response_area().report_size.load(std::memory_order_acquire), kReportSize);
  std::string text(size, '\0');
  copy_from_worker(text.data(), response_area().report, size);
  replace_control_characters(text);
  return text;
}

std::optional<CrashNote> HostChannel::crash() const {
  const CrashRecord& record = response_area().crash;
  if (record.state.load(std::memory_order_acquire) == 0) return std::nullopt;
  CrashNote note;
  note.signal = record.signal.load();
  note.code = record.code.load();
  note.address = record.address.load();
  const std::size_t depth = std::min<std::size_t>(record.depth.load(std::memory_order_acquire), kMostFrames);
  note.frames.reserve(depth);
  for (std::size_t i = 0; i < depth; ++i) note.frames.push_back(record.frames[i].load());
  return note;
}

std::optional<ProgressNote> HostChannel::progress(std::uint32_t sequence, std::uint32_t version) const {
  const ProgressRecord& record = response_area().progress[sequence % kSlots];
  // Each time it has been overtaken by as many reports as there are copies; the next look will find something newer.
  constexpr int kAttempts = 8;
  for (int i = 0; i < kAttempts; ++i) {
    ProgressNote note;
    note.version = record.finished.load(std::memory_order_acquire);
    if (note.version == 0 || note.version == version) return std::nullopt;
    const ProgressCopy& copy = record.copies[note.version % kProgressCopies];
    const bool same = copy.sequence.load(std::memory_order_relaxed) == sequence;
    note.done = copy.done.load(std::memory_order_relaxed);
    note.total = copy.total.load(std::memory_order_relaxed);
    note.text.resize(std::min<std::size_t>(copy.text_size.load(std::memory_order_relaxed), kProgressTextSize));
    copy_from_worker(note.text.data(), copy.text, note.text.size());
    std::atomic_thread_fence(std::memory_order_acquire);
    if (record.begun.load(std::memory_order_relaxed) - note.version >= kProgressCopies) continue;
    if (!same) return std::nullopt;
    replace_control_characters(note.text);
    return note;
  }
  return std::nullopt;
}

WorkerChannel::WorkerChannel(const FileDescriptor& request_fd, const FileDescriptor& response_fd, int doorbell,
                             ArenaLayout layout)
    : layout_(layout),
      doorbell_(doorbell),
      fork_mark_(create_fork_mark()),
      request_(request_fd, layout.request_size(), Mapping::Access::read_only),
      response_(response_fd, layout.response_size(), Mapping::Access::read_write),
      heap_(layout.heap_size) {}

bool WorkerChannel::spin() noexcept {
  const std::uint32_t most = request().spin_limit.load(std::memory_order_relaxed);
  const std::uint32_t looks = spin_.looks(most);
  for (std::uint32_t i = 0; i < looks; ++i) {
    pause();
    if (!has_request()) continue;
    spin_.found(i);
    return true;
  }
  spin_.missed(most);
  return false;
}

void WorkerChannel::sleep_for_request() noexcept {
  std::optional<std::chrono::nanoseconds> limit;
  if (heap_.touched() > layout_.kept) {
    const std::chrono::nanoseconds unused(monotonic_ns() - large_ns_);
    if (unused < kUnusedMemoryKept) {
      limit = kUnusedMemoryKept - unused;
    } else if (!give_back_memory()) {
      limit = kUnusedMemoryKept;
    }
  }
  response().sleeping.store(static_cast<std::uint32_t>(Sleep::for_requests), std::memory_order_relaxed);
  full_barrier();
  if (!has_request()) futex_wait(request().published, next_, limit);
  response().sleeping.store(static_cast<std::uint32_t>(Sleep::awake), std::memory_order_relaxed);
}

// Of answers, if the host has read them all.
bool WorkerChannel::give_back_memory() noexcept {
  if (request().consumed.load(std::memory_order_acquire) != next_) return false;
  // Where the system does not take it, it will not the next time either.
  ::madvise(response_.data() + sizeof(ResponseHeader), heap_.touched(), MADV_REMOVE);
  heap_.forget_touched();
  return true;
}

bool WorkerChannel::take_up() noexcept {
  // Not while the host writes it.
  if (request().published.load(std::memory_order_relaxed) - next_ > kSlotsAhead) {
    const RequestSlot& later = request_slot(next_ + kSlotsAhead);
    __builtin_prefetch(&later);
    if (request_slot(next_).head.heap_offset == kInline) __builtin_prefetch(later.payload);
    prefetch_for_writing(&response_slot(next_ + kSlotsAhead));
  }
  if (request_slot(next_).head.measure_cpu != 0) response().begun_cpu_ns.store(cpu_ns(), std::memory_order_relaxed);
  // Where one request follows another, the second begins when the first ends: reading the clock takes as long as all
  // else that is done here. Not where there are limits: this process may have lost its CPU in between.
  const bool follows = ended_ns_ != 0 && request_slot(next_).head.heap_offset == kInHead;
  response().begun_ns.store(follows ? ended_ns_ : monotonic_ns(), std::memory_order_relaxed);
  response().item.store(0, std::memory_order_relaxed);
  response().begun.store(next_ + 1, std::memory_order_seq_cst);
  return request_slot(next_).revoked.load(std::memory_order_seq_cst) == 0;
}

WorkerRequest WorkerChannel::current() const noexcept {
  const RequestSlot& slot = request_slot(next_);
  const RequestHead& head = slot.head;
  WorkerRequest result;
  result.sequence = next_;
  result.kind = head.kind;
  result.attempt = head.attempt;
  result.task_id = head.task_id;
  result.begun_ns = response().begun_ns.load(std::memory_order_relaxed);
  result.stop = &slot.stop;
  if (head.heap_offset == kInHead) {
    result.call = {head.call, head.size};
    return result;
  }
  result.timeout_ns = head.limits.timeout_ns;
  result.end_ns = head.limits.end_ns;
  const std::byte* start =
      head.heap_offset == kInline ? slot.payload : request_.data() + sizeof(RequestHeader) + head.heap_offset;
  result.call = {start, head.size - head.details_size};
  result.details = {start + result.call.size(), head.details_size};
  return result;
}

void WorkerChannel::report_progress(std::uint64_t done, std::uint64_t total, std::string_view text) noexcept {
  // Threads of the task's may report at once.
  const std::lock_guard lock(progress_mutex_);
  ProgressRecord& record = response().progress[next_ % kSlots];
  const std::uint32_t number = record.finished.load(std::memory_order_relaxed) + 1;
  record.begun.store(number, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  ProgressCopy& copy = record.copies[number % kProgressCopies];
  copy.sequence.store(next_, std::memory_order_relaxed);
  copy.done.store(done, std::memory_order_relaxed);
  copy.total.store(total, std::memory_order_relaxed);
  copy.text_size.store(static_cast<std::uint32_t>(text.copy(copy.text, kProgressTextSize)), std::memory_order_relaxed);
  record.finished.store(number, std::memory_order_release);
}

std::span<std::byte> WorkerChannel::answer_slot() noexcept {
  if (*fork_mark_ == std::byte{0}) {
    leave_for_good("a process that a task has forked came back from the task: it must leave with exec or _exit");
  }
  response().returned.store(next_ + 1, std::memory_order_relaxed);
  // An answer that failed half-way, in a block, is replaced by the error.
  if (std::exchange(answer_in_block_, false)) {
    Block& block = blocks_[next_ % kSlots];
    heap_.release(block.offset, block.size);
    block = {};
  }
  return response_slot(next_).payload;
}

void WorkerChannel::release_consumed() {
  const std::uint32_t consumed = request().consumed.load(std::memory_order_acquire);
  for (; released_ != consumed; ++released_) {
    Block& block = blocks_[released_ % kSlots];
    if (block.size > 0) heap_.release(block.offset, block.size);
    block = {};
  }
}

std::optional<std::span<std::byte>> WorkerChannel::try_allocate_answer(std::size_t size) {
  if (size > layout_.max_answer) return std::nullopt;
  release_consumed();
  const auto offset = heap_.allocate(size);
  if (!offset) return std::nullopt;
  blocks_[next_ % kSlots] = {*offset, size};
  answer_in_block_ = true;
  return std::span(response_.data() + sizeof(ResponseHeader) + *offset, size);
}

std::optional<std::span<std::byte>> WorkerChannel::allocate_answer(std::size_t size) {
  if (size > layout_.max_answer || !heap_.can_hold(size)) return std::nullopt;
  for (;;) {
    if (const auto block = try_allocate_answer(size)) return block;
    // Earlier answers still fill the heap. The host wakes us when it has read one.
    response().sleeping.store(static_cast<std::uint32_t>(Sleep::for_space), std::memory_order_relaxed);
    full_barrier();
    if (request().consumed.load(std::memory_order_acquire) == released_) futex_wait(request().consumed, released_);
    response().sleeping.store(static_cast<std::uint32_t>(Sleep::awake), std::memory_order_relaxed);
  }
}

void WorkerChannel::shrink_answer(std::size_t used) noexcept {
  Block& block = blocks_[next_ % kSlots];
  heap_.shrink(block.offset, block.size, used);
  block.size = used;
}

void WorkerChannel::commit(std::size_t size) noexcept {
  if (answer_in_block_ && blocks_[next_ % kSlots].offset + size > layout_.kept) large_ns_ = monotonic_ns();
  finish(ResponseKind::outcome, size);
}

void WorkerChannel::finish(ResponseKind kind, std::size_t size) noexcept {
  ResponseSlot& slot = response_slot(next_);
  slot.sequence.store(next_);
  slot.kind.store(kind);
  slot.over_memory.store(std::exchange(over_memory_, false) ? 1 : 0);
  slot.size.store(size);
  slot.heap_offset.store(std::exchange(answer_in_block_, false) ? blocks_[next_ % kSlots].offset : kInline);
  slot.began_ns.store(response().begun_ns.load());
  ended_ns_ = monotonic_ns();
  slot.ended_ns.store(ended_ns_);
  ++next_;
  response().committed.store(next_, std::memory_order_release);
  full_barrier();
  const std::uint32_t epoch = request().sleep_epoch.load(std::memory_order_relaxed);
  if (epoch != rung_epoch_) {
    rung_epoch_ = epoch;
    ended_ns_ = 0;  // whom this wakes may want the CPU
    ring();
  }
}

void WorkerChannel::ring() noexcept {
  const std::uint64_t one = 1;
  // EAGAIN means that the doorbell is already ringing as loud as it can.
  ssize_t written;
  do {
    written = ::write(doorbell_, &one, sizeof(one));
  } while (written < 0 && errno == EINTR);
  if (written < 0 && errno != EAGAIN) {
    // The host would never hear of this answer, nor of any other. It hears of our death, and then looks.
    leave_for_good("a task has closed a descriptor of its worker process, which has to be replaced");
  }
}

void WorkerChannel::set_ready() noexcept {
  response().state.store(static_cast<std::uint32_t>(WorkerState::ready), std::memory_order_release);
  ring();  // tasks may wait for a worker
}

void WorkerChannel::set_failed(std::string_view reason) noexcept {
  const std::size_t size = std::min(reason.size(), kReportSize);
  std::memcpy(response().report, reason.data(), size);
  response().report_size.store(static_cast<std::uint32_t>(size), std::memory_order_release);
  response().state.store(static_cast<std::uint32_t>(WorkerState::failed), std::memory_order_release);
}

}  // namespace bulkhead::process
