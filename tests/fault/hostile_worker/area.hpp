// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "process/arena.hpp"

#include <dirent.h>
#include <poll.h>
#include <unistd.h>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

/// What a worker that was taken over finds of the transport in its own address space, and how it writes there. Only
/// where the words lie is taken from the library.
namespace bulkhead::test::hostile {

using process::RequestHeader;
using process::ResponseHeader;
using process::ResponseSlot;

/// No worker waits for longer, whatever the host does: twice what a test waits for the host.
inline constexpr std::chrono::seconds kMostPatience{120};

/// One of the two areas.
struct Area {
  std::byte* begin = nullptr;
  std::size_t size = 0;
  /// As in /proc/self/maps: "7f0000000000-7f0000001000".
  std::string range;
  std::string permissions;

  template <class T>
  T* at(std::size_t offset) const {
    return static_cast<T*>(static_cast<void*>(begin + offset));
  }
  template <class T>
  T get(std::size_t offset) const {
    return std::atomic_ref<T>(*at<T>(offset)).load(std::memory_order_seq_cst);
  }
  template <class T>
  void put(std::size_t offset, std::type_identity_t<T> value) const {
    std::atomic_ref<T>(*at<T>(offset)).store(value, std::memory_order_seq_cst);
  }
};

/// Empty if it is not mapped here.
inline Area find_area(std::string_view name) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(name) == std::string::npos) continue;
    Area area;
    std::istringstream words(line);
    words >> area.range >> area.permissions;
    const auto dash = area.range.find('-');
    const std::uintptr_t begin = std::stoull(area.range.substr(0, dash), nullptr, 16);
    area.begin = reinterpret_cast<std::byte*>(begin);
    area.size = std::stoull(area.range.substr(dash + 1), nullptr, 16) - begin;
    return area;
  }
  return {};
}
inline Area request_area() { return find_area("memfd:bulkhead-request"); }
inline Area response_area() { return find_area("memfd:bulkhead-response"); }

/// The worker's descriptors that lead to something of this kind ("anon_inode:[eventfd]", "socket:").
inline int find_descriptor(std::string_view kind) {
  int found = -1;
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return -1;
  while (const dirent* entry = ::readdir(directory)) {
    std::array<char, 256> target{};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (::readlink(path.c_str(), target.data(), target.size() - 1) <= 0) continue;
    if (std::string_view(target.data()).starts_with(kind)) found = std::atoi(entry->d_name);
  }
  ::closedir(directory);
  return found;
}
inline int doorbell() { return find_descriptor("anon_inode:[eventfd]"); }

inline void ring(int bell, std::uint64_t number = 1) { (void)!::write(bell, &number, sizeof(number)); }

/// What a worker writes into the slot of an answer.
struct Forged {
  std::uint32_t sequence = 0;
  std::uint16_t kind = 0;
  std::uint64_t size = 0;
  std::uint64_t heap_offset = process::kInline;
};

/// The areas of the worker that this runs in, seen from its present task.
class Transport {
 public:
  Transport() : request_(request_area()), response_(response_area()), doorbell_(doorbell()) {
    if (request_.begin == nullptr || response_.begin == nullptr || doorbell_ < 0) ::_exit(98);
    sequence_ = response_.get<std::uint32_t>(kCommitted);
  }

  const Area& request() const { return request_; }
  const Area& response() const { return response_; }
  /// The number of the present task's request.
  std::uint32_t sequence() const { return sequence_; }
  int bell() const { return doorbell_; }

  /// Claims to have answered so many requests.
  void claim(std::uint32_t answers) const { response_.put<std::uint32_t>(kCommitted, answers); }
  void claim_and_ring(std::uint32_t answers) const {
    claim(answers);
    ring(doorbell_);
  }

  std::size_t slot(std::uint32_t sequence) const {
    return offsetof(ResponseHeader, slots) + sequence % process::kSlots * sizeof(ResponseSlot);
  }
  std::size_t heap(std::size_t offset) const { return sizeof(ResponseHeader) + offset; }

  void write_slot(std::uint32_t place, const Forged& forged) const {
    const std::size_t at = slot(place);
    response_.put<std::uint32_t>(at + offsetof(ResponseSlot, sequence), forged.sequence);
    response_.put<std::uint16_t>(at + offsetof(ResponseSlot, kind), forged.kind);
    response_.put<std::uint64_t>(at + offsetof(ResponseSlot, size), forged.size);
    response_.put<std::uint64_t>(at + offsetof(ResponseSlot, heap_offset), forged.heap_offset);
  }

  /// Answers the present task with these bytes, and tells the host.
  void answer_in_slot(std::span<const std::uint8_t> bytes) const {
    if (!bytes.empty())
      std::memcpy(response_.begin + slot(sequence_) + offsetof(ResponseSlot, payload), bytes.data(), bytes.size());
    write_slot(sequence_, {sequence_, 0, bytes.size(), process::kInline});
    claim_and_ring(sequence_ + 1);
  }
  void answer_in_heap(std::span<const std::uint8_t> bytes) const {
    std::memcpy(response_.begin + heap(0), bytes.data(), bytes.size());
    write_slot(sequence_, {sequence_, 0, bytes.size(), 0});
    claim_and_ring(sequence_ + 1);
  }

  /// Until the host has read what the present task was answered with. After that the task may return: its own answer
  /// comes too late, to a place that nobody looks at.
  void wait_until_read() const {
    const auto end = std::chrono::steady_clock::now() + kMostPatience;
    while (request_.get<std::uint32_t>(kConsumed) == sequence_) {
      if (std::chrono::steady_clock::now() > end) ::_exit(99);
      ::poll(nullptr, 0, 1);
    }
  }

 private:
  static constexpr std::size_t kCommitted = offsetof(ResponseHeader, committed);
  static constexpr std::size_t kConsumed = offsetof(RequestHeader, consumed);

  Area request_;
  Area response_;
  int doorbell_;
  std::uint32_t sequence_ = 0;
};

/// Until the host has killed this worker.
[[noreturn]] inline void wait_to_be_killed() {
  const auto end = std::chrono::steady_clock::now() + kMostPatience;
  while (std::chrono::steady_clock::now() < end) ::poll(nullptr, 0, 100);
  ::_exit(99);
}

}  // namespace bulkhead::test::hostile
