// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/this_task.hpp>

#include "fault/hostile_worker/area.hpp"
#include "process/pause.hpp"
#include "support/processes.hpp"
#include "support/shared.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // linux/fcntl.h, since Linux 5.1
#endif

/// What hostile workers do: each is a task's function. The numbers are those of docs/fault-tests.md.
namespace bulkhead::test::hostile {

/// What they share with the test.
struct Board {
  std::atomic<int> worker{0};  // that attacks, as the host sees it
  std::atomic<int> runs{0};    // of the attack: a task that seems not to have begun is run again
};
inline Board& board = shared_object<Board>();

inline Transport begin_attack() {
  board.worker = pid_in_host();
  ++board.runs;
  return {};
}

inline constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();

// ---------------------------------------------------------------------------------------------------------------------
// 25: numbers of answers that cannot be.

inline int claim_more_than_the_ring_has(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.claim_and_ring(transport.sequence() + process::kSlots + 1);
  wait_to_be_killed();
}
inline int claim_a_wrapped_number(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.claim_and_ring(transport.sequence() + 0x8000'0000U);
  wait_to_be_killed();
}
inline int claim_less_than_before(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.claim_and_ring(transport.sequence() - 1);
  wait_to_be_killed();
}
inline int claim_the_largest_number(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.claim_and_ring(std::numeric_limits<std::uint32_t>::max());
  wait_to_be_killed();
}

// ---------------------------------------------------------------------------------------------------------------------
// 26, 29: answers that cannot be.

inline int forge(const Forged& forged) {
  const Transport transport = begin_attack();
  Forged mine = forged;
  mine.sequence += transport.sequence();
  transport.write_slot(transport.sequence(), mine);
  transport.claim_and_ring(transport.sequence() + 1);
  wait_to_be_killed();
}
inline int forge_the_largest_size(std::uint64_t) { return forge({0, 0, kHuge, process::kInline}); }
inline int forge_one_byte_too_many(std::uint64_t) {
  return forge({0, 0, sizeof(ResponseSlot) - offsetof(ResponseSlot, payload) + 1, process::kInline});
}
inline int forge_the_largest_size_in_the_heap(std::uint64_t) { return forge({0, 0, kHuge, 0}); }
inline int forge_an_overflow(std::uint64_t) { return forge({0, 0, 2, kHuge - 1}); }
inline int forge_a_huge_offset(std::uint64_t) { return forge({0, 0, 8, std::uint64_t{1} << 40}); }
inline int forge_a_negative_offset(std::uint64_t) { return forge({0, 0, 4096, kHuge - 4095}); }
inline int forge_what_ends_behind_the_heap(std::uint64_t) {
  const Area area = response_area();
  return forge({0, 0, 65, area.size - sizeof(ResponseHeader) - 64});
}
inline int forge_another_sequence(std::uint64_t) { return forge({1, 0, 0, process::kInline}); }
inline int forge_an_earlier_sequence(std::uint64_t) { return forge({kHuge & 0xffff'ffffU, 0, 0, process::kInline}); }
inline int forge_a_skipped_task(std::uint64_t) { return forge({0, 1, 0, process::kInline}); }
inline int forge_an_unknown_kind(std::uint64_t) { return forge({0, 7, 0, process::kInline}); }

// A good answer, and then the request to leave is passed over, which nobody has taken back.
inline int skip_the_request_to_leave(std::uint64_t) {
  const Transport transport = begin_attack();
  const std::uint32_t next = transport.sequence() + 1;
  transport.write_slot(transport.sequence(), {transport.sequence(), 0, 5, process::kInline});
  transport.claim_and_ring(next);
  while (transport.request().get<std::uint32_t>(offsetof(RequestHeader, published)) == next) process::pause();
  transport.write_slot(next, {next, 1, 0, process::kInline});
  transport.claim_and_ring(next + 1);
  wait_to_be_killed();
}

// Nothing until it is asked to stop, and some time later impossible answers for as long as it lives.
inline int forge_when_stopped(std::uint64_t pauses) {
  const Transport transport = begin_attack();
  while (!this_task::stop_requested()) process::pause();
  for (; pauses > 0; --pauses) process::pause();
  for (;;) {
    transport.write_slot(transport.sequence(), {transport.sequence() + 1, 0, 5, process::kInline});
    transport.claim_and_ring(transport.sequence() + 1);
  }
}

// A good answer to the task, and the same for what was not asked.
inline int answer_twice(std::uint64_t) {
  const Transport transport = begin_attack();
  for (const std::uint32_t place : {transport.sequence(), transport.sequence() + 1}) {
    transport.write_slot(place, {transport.sequence(), 0, 5, process::kInline});
  }
  transport.claim_and_ring(transport.sequence() + 2);
  wait_to_be_killed();
}
inline int answer_what_was_not_asked(std::uint64_t) {
  const Transport transport = begin_attack();
  for (const std::uint32_t place : {transport.sequence(), transport.sequence() + 1, transport.sequence() + 2}) {
    transport.write_slot(place, {place, 0, 5, process::kInline});
  }
  transport.claim_and_ring(transport.sequence() + 3);
  wait_to_be_killed();
}

// ---------------------------------------------------------------------------------------------------------------------
// 27: an answer that changes while it is read.

// Every worker that has run it goes on changing the heads and the first bytes of all its answers, until it is killed.
inline std::string change_answers(std::size_t length) {
  static bool begun = false;
  if (!std::exchange(begun, true)) {
    board.worker = pid_in_host();
    std::thread([transport = Transport(), length] {
      constexpr std::size_t kSize = offsetof(ResponseSlot, size);
      constexpr std::size_t kOffset = offsetof(ResponseSlot, heap_offset);
      // The size that is true, nearly true, and never; offsets likewise. Some answers are to get through.
      const std::array<std::uint64_t, 4> sizes{length + 3, length + 4, 1, kHuge};
      const std::array<std::uint64_t, 4> offsets{process::kInline, 0, 64, kHuge - 8};
      for (std::uint32_t i = 0;; ++i) {
        const std::uint32_t near = transport.response().get<std::uint32_t>(offsetof(ResponseHeader, committed)) - 1;
        const std::size_t slot = transport.slot(near);
        const auto size = transport.response().get<std::uint64_t>(slot + kSize);
        const auto offset = transport.response().get<std::uint64_t>(slot + kOffset);
        transport.response().put<std::uint64_t>(slot + kSize, sizes[i % sizes.size()]);
        transport.response().put<std::uint64_t>(slot + kOffset, offsets[i / 4 % offsets.size()]);
        transport.response().put<std::uint8_t>(slot + offsetof(ResponseSlot, payload) + i % 8,
                                               static_cast<std::uint8_t>(i >> 3));
        transport.response().put<std::uint8_t>(transport.heap(i % 8), static_cast<std::uint8_t>(i >> 3));
        // As it was, for as long again: else nearly every answer would be refused at its head.
        transport.response().put<std::uint64_t>(slot + kSize, size);
        transport.response().put<std::uint64_t>(slot + kOffset, offset);
        for (int pause = 0; pause < 64; ++pause) std::atomic_signal_fence(std::memory_order_seq_cst);
      }
    }).detach();
  }
  return std::string(length, 'x');
}

// ---------------------------------------------------------------------------------------------------------------------
// 28: anything, anywhere.

inline int write_anything_anywhere(std::uint64_t seed) {
  const Transport transport = begin_attack();
  std::mt19937_64 random(seed);
  // Header, slots, progress, and as much of the heap as the host may look at.
  const std::size_t words = std::min(transport.response().size, sizeof(ResponseHeader) + 65'536) / sizeof(seed);
  const auto end = std::chrono::steady_clock::now() + kMostPatience;
  while (std::chrono::steady_clock::now() < end) {
    for (std::size_t i = 0; i < words; ++i) transport.response().put<std::uint64_t>(i * sizeof(seed), random());
    ring(transport.bell());
  }
  ::_exit(99);
}
// And in between nothing is wrong but one word of the header.
inline int write_anything_into_the_header(std::uint64_t seed) {
  const Transport transport = begin_attack();
  std::mt19937_64 random(seed);
  const std::size_t words = offsetof(ResponseHeader, slots) / sizeof(std::uint32_t);
  const auto end = std::chrono::steady_clock::now() + kMostPatience;
  while (std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 1000; ++i) {
      transport.response().put<std::uint32_t>(random() % words * sizeof(std::uint32_t),
                                              static_cast<std::uint32_t>(random()));
    }
    ring(transport.bell());
  }
  ::_exit(99);
}

// ---------------------------------------------------------------------------------------------------------------------
// 28: lies about how far it has come.

// The code of a worker whose start has failed.
inline constexpr int kStartFailed = 78;

inline int lie_and_leave(std::size_t word, std::uint32_t value, int code) {
  const Transport transport = begin_attack();
  transport.response().put<std::uint32_t>(word, value);
  ::_exit(code);
}
inline int leave_as_if_never_ready(std::uint64_t) { return lie_and_leave(offsetof(ResponseHeader, state), 0, 3); }
inline int leave_in_an_unknown_state(std::uint64_t) {
  return lie_and_leave(offsetof(ResponseHeader, state), 0xdead'beefU, 3);
}
inline int leave_as_if_the_start_had_failed(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.response().put<std::uint32_t>(offsetof(ResponseHeader, report_size), 0xffff'ffffU);
  return lie_and_leave(offsetof(ResponseHeader, state), 2, kStartFailed);
}
inline int leave_as_if_not_begun(std::uint64_t) { return lie_and_leave(offsetof(ResponseHeader, begun), 0, 3); }
inline int leave_as_if_all_had_begun(std::uint64_t) {
  return lie_and_leave(offsetof(ResponseHeader, begun), 0x7fff'ffffU, 3);
}
inline int wait_as_if_not_begun(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.response().put<std::uint32_t>(offsetof(ResponseHeader, begun), 0);
  wait_to_be_killed();
}
inline int wait_as_if_the_start_had_failed(std::uint64_t) {
  const Transport transport = begin_attack();
  transport.response().put<std::uint32_t>(offsetof(ResponseHeader, state), 2);
  transport.response().put<std::uint32_t>(offsetof(ResponseHeader, begun), 0);
  ring(transport.bell());
  wait_to_be_killed();
}

// ---------------------------------------------------------------------------------------------------------------------
// 30, 31: the areas themselves. These tell what they could do that they must not: nothing, in the best case.

// A descriptor of an area, as far as there is a way to one: the kernel gives it only to root.
inline int reopen(const Area& area, int flags) {
  return ::open(("/proc/self/map_files/" + area.range).c_str(), flags | O_CLOEXEC);
}

inline std::string resize_and_seal(std::uint64_t) {
  const Transport transport = begin_attack();
  std::string done;
  for (const auto& [name, area] :
       {std::pair("request", transport.request()), std::pair("response", transport.response())}) {
    const int fd = reopen(area, O_RDWR);
    if (fd < 0) continue;
    const auto note = [&, which = name](bool succeeded, const char* what) {
      if (succeeded) done += std::string(what) + " the " + which + " area; ";
    };
    note(::ftruncate(fd, 0) == 0, "empty");
    note(::ftruncate(fd, 4096) == 0, "cut");
    note(::ftruncate(fd, static_cast<off_t>(area.size) + 4096) == 0, "grow");
    note(::fallocate(fd, 0, static_cast<off_t>(area.size), 4096) == 0, "extend");
    note(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0, "seal");
    note(::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0, "seal for later");
    ::close(fd);
  }
  return done;
}

inline std::string write_to_the_request_area(std::uint64_t) {
  const Transport transport = begin_attack();
  const Area& area = transport.request();
  std::string done;
  const auto note = [&](bool succeeded, const char* what) {
    if (succeeded) done += std::string(what) + "; ";
  };
  constexpr std::size_t kPage = 4096;
  note(area.permissions.find('w') != std::string::npos, "it is mapped writable");
  note(::mprotect(area.begin, kPage, PROT_READ | PROT_WRITE) == 0, "mprotect");
  note(::mprotect(area.begin, area.size, PROT_READ | PROT_WRITE) == 0, "mprotect of all of it");
  note(::madvise(area.begin, kPage, MADV_REMOVE) == 0, "MADV_REMOVE");
  // A size of 0 maps the pages of a shared mapping once more.
  void* const again = ::mremap(area.begin, 0, kPage, MREMAP_MAYMOVE);
  note(again != MAP_FAILED && ::mprotect(again, kPage, PROT_READ | PROT_WRITE) == 0, "mremap");
  const std::uint32_t word = area.get<std::uint32_t>(offsetof(RequestHeader, published));
  const std::uint32_t other = word + 7;
  if (const int memory = ::open("/proc/self/mem", O_RDWR | O_CLOEXEC); memory >= 0) {
    const auto place = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(area.begin));
    note(::pwrite(memory, &other, sizeof(other), place) > 0, "/proc/self/mem");
    ::close(memory);
  }
  std::uint32_t value = other;
  const iovec from{&value, sizeof(value)};
  const iovec to{area.begin, sizeof(value)};
  note(::process_vm_writev(::getpid(), &from, 1, &to, 1, 0) > 0, "process_vm_writev");
  for (const int flags : {O_RDWR, O_RDONLY}) {
    const int fd = reopen(area, flags);
    if (fd < 0) continue;
    note(::pwrite(fd, &other, sizeof(other), 0) > 0, "pwrite");
    note(::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
    void* const readable = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0);
    note(readable != MAP_FAILED && ::mprotect(readable, kPage, PROT_READ | PROT_WRITE) == 0, "mmap and mprotect");
    note(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) == 0, "fallocate");
    ::close(fd);
  }
  note(find_descriptor("/memfd:bulkhead") >= 0, "a descriptor is left");
  note(area.get<std::uint32_t>(offsetof(RequestHeader, published)) != word, "the host's word has changed");
  return done;
}

// All of it is zeros then; a host that reads there must not get a SIGBUS.
inline bool remove_everything(const Transport& transport) {
  return ::madvise(transport.response().begin, transport.response().size, MADV_REMOVE) == 0;
}
inline int remove_everything_and_answer(std::uint64_t) { return remove_everything(begin_attack()) ? 42 : 41; }
inline int remove_everything_and_ring(std::uint64_t) {
  const Transport transport = begin_attack();
  remove_everything(transport);
  ring(transport.bell());
  wait_to_be_killed();
}
inline int remove_everything_and_leave(std::uint64_t) {
  remove_everything(begin_attack());
  ::_exit(3);
}
inline int remove_everything_and_crash(std::uint64_t) {
  const Transport transport = begin_attack();
  std::thread([transport] {
    for (;;) remove_everything(transport);
  }).detach();
  ::raise(SIGSEGV);
  wait_to_be_killed();
}
inline std::string remove_what_is_read(std::uint64_t) {
  const Transport transport = begin_attack();
  const std::vector<std::uint8_t> bytes(std::size_t{4} << 20, 0);
  transport.answer_in_heap(bytes);
  const auto end = std::chrono::steady_clock::now() + kMostPatience;
  while (transport.request().get<std::uint32_t>(offsetof(RequestHeader, consumed)) == transport.sequence()) {
    ::madvise(transport.response().begin + transport.heap(0), bytes.size(), MADV_REMOVE);
    if (std::chrono::steady_clock::now() > end) ::_exit(99);
  }
  return "";
}
inline int punch_holes(std::uint64_t) {
  const Transport transport = begin_attack();
  const int fd = reopen(transport.response(), O_RDWR);
  if (fd >= 0) {
    (void)::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(transport.response().size));
    ::close(fd);
  }
  return 42;
}

// ---------------------------------------------------------------------------------------------------------------------
// 32, 33: the doorbell.

inline int fill_the_doorbell(std::uint64_t) {
  const Transport transport = begin_attack();
  ring(transport.bell(), kHuge - 1);
  return 42;
}
inline int fill_the_doorbell_and_leave(std::uint64_t) {
  const Transport transport = begin_attack();
  ring(transport.bell(), kHuge - 1);
  ::_exit(3);
}
inline int drain_the_doorbell(std::uint64_t) {
  const Transport transport = begin_attack();
  for (int i = 0; i < 1000; ++i) {
    std::uint64_t number = 0;
    (void)!::read(transport.bell(), &number, sizeof(number));
  }
  return 42;
}
// As often as it takes the system calls to wake the host with nothing.
inline constexpr int kRings = 100'000;
inline int ring_and_leave(std::uint64_t) {
  const Transport transport = begin_attack();
  for (int i = 0; i < kRings; ++i) {
    ring(transport.bell());
    std::uint64_t number = 0;
    if (i % 64 == 63) (void)!::read(transport.bell(), &number, sizeof(number));
  }
  ::_exit(3);
}
inline int never_answer(std::uint64_t) {
  begin_attack();
  wait_to_be_killed();
}
inline int never_ring(std::uint64_t) {
  const Transport transport = begin_attack();
  const std::array<std::uint8_t, 5> answer{0, 42, 0, 0, 0};
  std::memcpy(transport.response().begin + transport.slot(transport.sequence()) + offsetof(ResponseSlot, payload),
              answer.data(), answer.size());
  transport.write_slot(transport.sequence(), {transport.sequence(), 0, answer.size(), process::kInline});
  transport.claim(transport.sequence() + 1);
  transport.wait_until_read();
  return 42;
}

// ---------------------------------------------------------------------------------------------------------------------
// 34, 35: answers whose bytes no encoder has written.

inline constexpr std::uint8_t kValue = 0;
inline constexpr std::uint8_t kException = 1;

template <class R>
R answer_with(std::vector<std::uint8_t> bytes) {
  const Transport transport = begin_attack();
  if (bytes.size() <= sizeof(ResponseSlot) - offsetof(ResponseSlot, payload)) {
    transport.answer_in_slot(bytes);
  } else {
    transport.answer_in_heap(bytes);
  }
  transport.wait_until_read();
  return R();
}

// A count as the codec writes it, see Encoder::write_size.
inline std::vector<std::uint8_t> with_count(std::uint8_t kind, std::uint64_t count) {
  std::vector<std::uint8_t> bytes{kind};
  for (; count >= 0x80; count >>= 7) bytes.push_back(static_cast<std::uint8_t>(count | 0x80));
  bytes.push_back(static_cast<std::uint8_t>(count));
  return bytes;
}

struct Tree {
  std::vector<Tree> children;
};
enum class Colour : std::uint8_t { red, green };
struct Mixed {
  Colour colour{};
  bool set = false;
  std::optional<int> number;
  std::variant<int, std::string> either;
};

inline constexpr std::uint64_t kFourGiB = std::uint64_t{4} << 30;
inline constexpr std::uint64_t kBillion = 1'000'000'000;
inline constexpr std::size_t kDepth = 1'000'000;

inline int claim_4_gib(std::uint64_t) { return forge({0, 0, kFourGiB, 0}); }
inline std::string answer_4_gib(std::uint64_t) { return answer_with<std::string>(with_count(kValue, kFourGiB)); }
inline std::vector<int> answer_a_billion(std::uint64_t) {
  return answer_with<std::vector<int>>(with_count(kValue, kBillion));
}
inline std::vector<std::string> answer_a_billion_strings(std::uint64_t) {
  return answer_with<std::vector<std::string>>(with_count(kValue, kBillion));
}
inline std::map<int, std::string> answer_the_largest_map(std::uint64_t) {
  return answer_with<std::map<int, std::string>>(with_count(kValue, kHuge));
}
inline Tree answer_a_deep_tree(std::uint64_t) {
  std::vector<std::uint8_t> bytes(kDepth + 2, 1);
  bytes.front() = kValue;
  bytes.back() = 0;
  return answer_with<Tree>(std::move(bytes));
}
inline std::string answer_an_endless_count(std::uint64_t) {
  std::vector<std::uint8_t> bytes(32, 0xff);
  bytes.front() = kValue;
  return answer_with<std::string>(std::move(bytes));
}
inline int answer_a_long_exception(std::uint64_t) { return answer_with<int>(with_count(kException, kFourGiB)); }
inline int answer_nothing(std::uint64_t) { return answer_with<int>({}); }
inline int answer_too_little(std::uint64_t) { return answer_with<int>({kValue, 1, 2}); }
inline int answer_too_much(std::uint64_t) { return answer_with<int>({kValue, 1, 2, 3, 4, 5}); }
inline int answer_of_no_kind(std::uint64_t) { return answer_with<int>({9, 1, 2, 3, 4}); }
inline int answer_a_broken_exception(std::uint64_t) { return answer_with<int>({kException, 0xfe, 0xfd, 0xfc, 0xfb}); }
inline bool answer_no_bool(std::uint64_t) { return answer_with<bool>({kValue, 2}); }
inline Colour answer_no_colour(std::uint64_t) { return answer_with<Colour>({kValue, 200}); }
inline std::optional<int> answer_no_optional(std::uint64_t) {
  return answer_with<std::optional<int>>({kValue, 7, 0, 0, 0, 0});
}
inline std::variant<int, std::string> answer_no_variant(std::uint64_t) {
  return answer_with<std::variant<int, std::string>>({kValue, 99, 0, 0, 0, 0});
}
inline Mixed answer_mixed_bytes(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::uint8_t> bytes(40);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  bytes.front() = kValue;
  return answer_with<Mixed>(std::move(bytes));
}
inline std::string answer_no_utf_8(std::uint64_t) {
  return answer_with<std::string>({kValue, 4, 0xc0, 0x80, 0xff, 0xfe});
}

// ---------------------------------------------------------------------------------------------------------------------
// 36, 37.

inline std::string find_sockets(std::uint64_t) {
  begin_attack();
  return find_descriptor("socket:") >= 0 ? "a socket" : "";
}

inline constexpr std::size_t kFlood = std::size_t{64} << 20;
inline void write_flood(bool lines) {
  std::vector<char> piece(65'536, 'x');
  for (std::size_t i = 99; lines && i < piece.size(); i += 100) piece[i] = '\n';
  for (std::size_t written = 0; written < kFlood;) {
    const ssize_t size = ::write(STDERR_FILENO, piece.data(), piece.size());
    if (size < 0 && errno != EINTR && errno != EAGAIN) ::_exit(97);
    if (size > 0) written += static_cast<std::size_t>(size);
  }
}
inline int flood_standard_error(std::uint64_t) {
  begin_attack();
  write_flood(true);
  return 42;
}
inline int flood_standard_error_and_leave(std::uint64_t) {
  begin_attack();
  write_flood(false);
  ::_exit(3);
}

}  // namespace bulkhead::test::hostile
