// SPDX-License-Identifier: BSL-1.0
// A response area as a hostile worker leaves it. The input is a list of writes to the area; then the host reads all
// that it ever reads, and decodes. With one input of many a second thread goes on writing meanwhile. Nothing but
// ProtocolViolation and SerializationError may come of it, and nothing outside the area may be read.
#include <bulkhead/serialization.hpp>

#include "process/channel.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <variant>
#include <vector>

namespace {

using namespace bulkhead::process;

// Small, so that wrong offsets soon lie outside.
constexpr ArenaLayout kLayout{std::size_t{16} << 10};

// How many answers are read of each input, from the first slot on: more would only do the same.
constexpr std::uint32_t kRead = 4;

// Rounds of reading while the other thread writes: each takes some microseconds, in which it writes some hundred times.
// Decoding takes ten times as long where it ends with an exception, and is done in some of them.
constexpr int kRounds = 32;
constexpr int kRoundsForOneDecoding = 8;

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "response_fuzz: %s\n", what);
  std::abort();
}

struct Host {
  Host() : raw(channel.response_fd(), kLayout.response_size(), Mapping::Access::read_write) {}

  std::byte* area() const { return raw.data(); }
  ResponseHeader& header() const { return *reinterpret_cast<ResponseHeader*>(area()); }

  HostChannel channel{kLayout};
  Mapping raw;
};

struct Inner {
  std::optional<std::string> name;
  std::vector<bool> flags;
  std::map<std::uint8_t, std::string> texts;
};

template <class T>
void decode(std::span<const std::byte> payload) {
  try {
    const T value = bulkhead::from_bytes<T>(payload);
    // What came out is whole.
    [[maybe_unused]] static volatile std::size_t sink;
    sink = bulkhead::to_bytes(value).size();
  } catch (const bulkhead::SerializationError&) {
  }
}

constexpr void (*decoders[])(std::span<const std::byte>) = {
    decode<int>,
    decode<std::string>,
    decode<std::vector<std::uint64_t>>,
    decode<std::vector<std::string>>,
    decode<std::variant<int, std::string, std::vector<std::uint16_t>>>,
    decode<std::vector<Inner>>,
};

// Bytes of the input, then zeros.
class Input {
 public:
  explicit Input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }

  template <class T>
  T take() {
    T value{};
    const std::size_t size = std::min(sizeof(T), bytes_.size());
    if (size > 0) std::memcpy(&value, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return value;
  }

  // Small numbers, numbers just below 2^64 (which kInline is), and any.
  std::uint64_t number() {
    switch (const auto form = take<std::uint8_t>(); form % 4) {
      case 0:
        return form / 4;
      case 1:
        return ~std::uint64_t{form / 4U};
      case 2:
        return take<std::uint16_t>();
      default:
        return take<std::uint64_t>();
    }
  }

  std::span<const std::uint8_t> bytes(std::size_t most) {
    const std::size_t size = std::min<std::size_t>({take<std::uint8_t>(), bytes_.size(), most});
    const auto taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

// Where the input has written: there the other thread writes, too.
struct Targets {
  static constexpr std::size_t kMost = 64;
  std::array<std::size_t, kMost> offsets{};
  std::size_t count = 0;

  void add(std::size_t offset) {
    // A word from there on lies in the area.
    if (count < kMost) offsets[count++] = std::min(offset, kLayout.response_size() - sizeof(std::uint64_t));
  }
};

template <class T>
void put(const Host& host, Targets& targets, SharedWord<T>& word, std::uint64_t value) {
  word.store(static_cast<T>(value));
  targets.add(static_cast<std::size_t>(reinterpret_cast<std::byte*>(&word) - host.area()));
}

void put_bytes(const Host& host, Targets& targets, void* to, std::span<const std::uint8_t> bytes) {
  if (bytes.empty()) return;
  std::memcpy(to, bytes.data(), bytes.size());
  targets.add(static_cast<std::size_t>(static_cast<std::byte*>(to) - host.area()));
}

// `first`: the sequence number of the request in slot 0.
void write_once(const Host& host, Input& input, std::uint32_t first, Targets& targets) {
  ResponseHeader& header = host.header();
  const std::uint8_t what = input.take<std::uint8_t>();
  const std::uint32_t index = what / 16 % kRead;
  ResponseSlot& slot = header.slots[index];
  ProgressRecord& progress = header.progress[index];
  switch (what % 16) {
    case 0:
      return put(host, targets, header.committed, first + input.number());
    case 1:
      return put(host, targets, slot.size, input.number());
    case 2:
      return put(host, targets, slot.heap_offset, input.number());
    case 3:
      return put(host, targets, slot.kind, input.number());
    case 4:
      return put(host, targets, slot.sequence, first + input.number());
    case 5:
      put(host, targets, slot.began_ns, input.number());
      return put(host, targets, slot.ended_ns, input.number());
    case 6:
    case 7: {
      const auto offset = input.take<std::uint8_t>() % sizeof(slot.payload);
      return put_bytes(host, targets, slot.payload + offset, input.bytes(sizeof(slot.payload) - offset));
    }
    case 8:
    case 9: {
      const auto offset = input.take<std::uint16_t>() % kLayout.heap_size;
      return put_bytes(host, targets, host.area() + sizeof(ResponseHeader) + offset,
                       input.bytes(kLayout.heap_size - offset));
    }
    case 10:
      put(host, targets, header.report_size, input.number());
      return put_bytes(host, targets, header.report, input.bytes(kReportSize));
    case 11:
      put(host, targets, header.crash.state, input.number());
      put(host, targets, header.crash.depth, input.number());
      put(host, targets, header.crash.signal, input.number());
      return put(host, targets, header.crash.frames[input.take<std::uint8_t>() % kMostFrames], input.number());
    case 12: {
      put(host, targets, progress.begun, input.number());
      const std::uint64_t finished = input.number();
      put(host, targets, progress.finished, finished);
      ProgressCopy& copy = progress.copies[finished % kProgressCopies];
      put(host, targets, copy.sequence, first + index + input.number());
      put(host, targets, copy.text_size, input.number());
      return put_bytes(host, targets, copy.text, input.bytes(kProgressTextSize));
    }
    case 13:
      put(host, targets, header.begun, first + input.number());
      put(host, targets, header.returned, first + input.number());
      return put(host, targets, header.state, input.number());
    case 14:
      return put(host, targets, header.sleeping, input.number());
    default: {
      const auto offset = input.take<std::uint32_t>() % (kLayout.response_size() - sizeof(std::uint64_t));
      const auto word = input.take<std::uint64_t>();
      std::memcpy(host.area() + offset, &word, sizeof(word));
      targets.add(offset);
    }
  }
}

void check(const Host& host, const Response& response, std::uint32_t index, const std::byte* first_payload) {
  if (response.payload.empty()) return;
  // The host's own mapping lies as the area does.
  const std::byte* const area = first_payload - offsetof(ResponseHeader, slots) - offsetof(ResponseSlot, payload);
  const auto begin = static_cast<std::size_t>(response.payload.data() - area);
  std::size_t lowest = sizeof(ResponseHeader);
  std::size_t end = host.raw.size();
  if (response.in_slot) {
    lowest = offsetof(ResponseHeader, slots) + index * kSlotSize + offsetof(ResponseSlot, payload);
    end = lowest + sizeof(ResponseSlot::payload);
  }
  if (begin < lowest || begin > end || response.payload.size() > end - begin) {
    broken("an answer was believed that does not lie within its slot or the heap");
  }
}

// `decoder`: which is used for the first answer; nothing: none is.
void read_all(Host& host, std::uint32_t first, const std::byte* first_payload, std::optional<std::size_t> decoder) {
  HostChannel& channel = host.channel;
  try {
    const std::uint32_t committed = channel.committed();
    if (committed - first > kSlots) broken("more answers than requests were believed");
  } catch (const ProtocolViolation&) {
  }
  for (std::uint32_t i = 0; i < kRead; ++i) {
    const std::uint32_t sequence = first + i;
    channel.begun(sequence);
    channel.returned(sequence);
    if (const auto note = channel.progress(sequence, 0); note && note->text.size() > kProgressTextSize) {
      broken("a text of progress was longer than there is room");
    }
    try {
      const Response response = channel.response(sequence);
      check(host, response, i, first_payload);
      if (!decoder || response.payload.empty()) continue;
      const auto decode = decoders[(*decoder + i) % std::size(decoders)];
      if (!response.in_slot) {
        decode(response.payload);
        continue;
      }
      // As the pool does.
      std::array<std::byte, sizeof(ResponseSlot::payload)> copy;
      std::memcpy(copy.data(), response.payload.data(), response.payload.size());
      decode(std::span(copy).first(response.payload.size()));
    } catch (const ProtocolViolation&) {
    }
  }
  const std::string report = channel.report();
  if (report.size() > kReportSize || report.find('\x1b') != report.npos) broken("a report was not what it may be");
  if (const auto crash = channel.crash(); crash && crash->frames.size() > kMostFrames) {
    broken("more frames of a crash were read than there are");
  }
  channel.state();
  channel.has_unread(0);
}

// Whether a second thread writes. That takes as long as a hundred inputs without one. By the input's hash, so that the
// fuzzer, for which what a thread does looks new each time, cannot grow to prefer it.
bool has_writer(std::span<const std::uint8_t> input) {
  std::uint32_t hash = 2166136261U;  // FNV-1a
  for (const std::uint8_t byte : input) hash = (hash ^ byte) * 16777619U;
  return (hash ^ hash >> 16) % 64 == 0;
}

// Goes on writing while it lives.
class Writer {
 public:
  Writer(const Host& host, const Targets& targets, std::uint64_t seed)
      : thread_([this, &host, &targets, seed] {
          auto* const area = reinterpret_cast<volatile std::uint8_t*>(host.area());
          std::uint64_t random = seed | 1;
          while (!over_.load(std::memory_order_relaxed)) {
            // xorshift64 (Marsaglia, 2003).
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Where the input has written, or in the head of a slot.
            const std::size_t offset = (random >> 32) % 2 == 0
                                           ? targets.offsets[random % targets.count] + (random >> 8) % 8
                                           : offsetof(ResponseHeader, slots) + random % kRead * kSlotSize +
                                                 (random >> 8) % offsetof(ResponseSlot, payload);
            volatile std::uint8_t& byte = area[offset];
            const std::uint8_t before = byte;
            byte = static_cast<std::uint8_t>(random >> 16);
            // Nearly always what was possible becomes so again, or soon nothing would be.
            if ((random >> 24) % 256 != 0) byte = before;
            begun_.store(true, std::memory_order_release);
          }
        }) {
    while (!begun_.load(std::memory_order_acquire)) std::this_thread::yield();
  }
  ~Writer() {
    over_.store(true, std::memory_order_relaxed);
    thread_.join();
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

 private:
  std::atomic<bool> over_{false};
  std::atomic<bool> begun_{false};
  std::thread thread_;
};

// All of the ring is asked for and answered: so slot 0 is always the first, and an input always does the same.
std::uint32_t publish_ring(HostChannel& channel) {
  const std::uint32_t first = channel.published();
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    const std::uint32_t sequence = channel.reserve();
    channel.head(sequence) = RequestHead();
    channel.fill(sequence);
  }
  channel.publish(first + kSlots);
  return first;
}

void answer_ring(Host& host, std::uint32_t first) {
  host.header().committed.store(first + kSlots);
  host.header().sleeping.store(0);
  if (host.channel.committed() != first + kSlots) broken("answers were not seen");
  host.channel.consume(first + kSlots);
}

// What the next input finds: four answers that are possible, with no bytes.
void clean(Host& host, std::uint32_t first) {
  ResponseHeader& header = host.header();
  std::memset(host.area(), 0, offsetof(ResponseHeader, slots));
  for (std::uint32_t i = 0; i < kRead; ++i) {
    std::memset(static_cast<void*>(&header.slots[i]), 0, sizeof(ResponseSlot));
    std::memset(static_cast<void*>(&header.progress[i]), 0, sizeof(ProgressRecord));
    header.slots[i].sequence.store(first + i);
    header.slots[i].heap_offset.store(kInline);
  }
  std::memset(host.area() + sizeof(ResponseHeader), 0, kLayout.heap_size);
  header.committed.store(first);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Host host;
  Input input({data, size});
  const auto mode = input.take<std::uint8_t>();  // which decoder, and what the second thread does
  const std::uint32_t first = publish_ring(host.channel);
  clean(host, first);
  const std::byte* const first_payload = host.channel.response(first).payload.data();
  Targets targets;
  while (!input.empty() && targets.count < Targets::kMost) write_once(host, input, first, targets);
  const std::optional<std::size_t> decoder = mode;
  if (targets.count > 0 && has_writer({data, size})) {
    const Writer writer(host, targets, mode);
    for (int i = 0; i < kRounds; ++i) {
      read_all(host, first, first_payload, i % kRoundsForOneDecoding == 0 ? decoder : std::nullopt);
    }
  } else {
    read_all(host, first, first_payload, decoder);
  }
  clean(host, first);
  answer_ring(host, first);
  return 0;
}
