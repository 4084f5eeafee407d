// SPDX-License-Identifier: BSL-1.0
// That the host loads no word twice which a worker may change in between: one answer, one load of each word.
#include "process/channel.hpp"
#include "process/shared_word.hpp"

#include <bulkhead/serialization.hpp>

#include "support/catch.hpp"
#include "support/sanitizer.hpp"

#include <sys/mman.h>
#include <ucontext.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace bulkhead::process;

// Reading, comparing, copying and taking the value's address all need the name of a member; only `load` gives a value.
template <class Word, class T>
concept ReadsPlainly = requires(const Word& word, T& value) {
  value = word;
}
|| requires(const Word& word) { static_cast<T>(word); }
|| requires(const Word& word, T value) { word == value; }
|| requires(const Word& word) { Word(word); }
|| requires(const Word& word) { *word; }
|| requires(const Word& word) { word.operator->(); }
|| requires(const Word& word) { word.address(); };

template <class Word, class T>
constexpr bool only_loads() {
  return !ReadsPlainly<Word, T> && std::is_same_v<decltype(std::declval<const Word&>().load()), T> &&
         sizeof(Word) == sizeof(T) && std::is_standard_layout_v<Word>;
}

static_assert(ReadsPlainly<std::atomic<std::uint32_t>, std::uint32_t> && ReadsPlainly<std::uint32_t, std::uint32_t>);
static_assert(only_loads<decltype(ResponseHeader::begun), std::uint32_t>());
static_assert(only_loads<decltype(ResponseHeader::committed), std::uint32_t>());
static_assert(only_loads<decltype(ResponseHeader::begun_ns), std::uint64_t>());
static_assert(only_loads<decltype(ResponseHeader::begun_cpu_ns), std::uint64_t>());
static_assert(only_loads<decltype(ResponseHeader::returned), std::uint32_t>());
static_assert(only_loads<decltype(ResponseHeader::item), std::uint32_t>());
static_assert(only_loads<decltype(ResponseHeader::sleeping), std::uint32_t>());
static_assert(only_loads<decltype(ResponseHeader::state), std::uint32_t>());
static_assert(only_loads<decltype(ResponseHeader::report_size), std::uint32_t>());
static_assert(only_loads<decltype(ResponseSlot::sequence), std::uint32_t>());
static_assert(only_loads<decltype(ResponseSlot::kind), ResponseKind>());
static_assert(only_loads<decltype(ResponseSlot::over_memory), std::uint16_t>());
static_assert(only_loads<decltype(ResponseSlot::size), std::uint64_t>());
static_assert(only_loads<decltype(ResponseSlot::heap_offset), std::uint64_t>());
static_assert(only_loads<decltype(ResponseSlot::began_ns), std::uint64_t>());
static_assert(only_loads<decltype(ResponseSlot::ended_ns), std::uint64_t>());
static_assert(only_loads<decltype(CrashRecord::state), std::uint32_t>());
static_assert(only_loads<decltype(CrashRecord::signal), std::int32_t>());
static_assert(only_loads<decltype(CrashRecord::code), std::int32_t>());
static_assert(only_loads<decltype(CrashRecord::depth), std::uint32_t>());
static_assert(only_loads<decltype(CrashRecord::address), std::uint64_t>());
static_assert(only_loads<std::remove_all_extents_t<decltype(CrashRecord::frames)>, std::uint64_t>());
static_assert(only_loads<decltype(ProgressCopy::sequence), std::uint32_t>());
static_assert(only_loads<decltype(ProgressCopy::text_size), std::uint32_t>());
static_assert(only_loads<decltype(ProgressCopy::done), std::uint64_t>());
static_assert(only_loads<decltype(ProgressCopy::total), std::uint64_t>());
static_assert(only_loads<decltype(ProgressRecord::begun), std::uint32_t>());
static_assert(only_loads<decltype(ProgressRecord::finished), std::uint32_t>());

}  // namespace

TEST_CASE("a shared word gives what was stored, and lies as a plain one does", "[shared_word]") {
  ResponseSlot slot{};
  slot.size.store(0x0123456789abcdefU);
  CHECK(slot.size.load() == 0x0123456789abcdefU);
  std::uint64_t plain = 0;
  std::memcpy(&plain, reinterpret_cast<const std::byte*>(&slot) + offsetof(ResponseSlot, size), sizeof(plain));
  CHECK(plain == 0x0123456789abcdefU);
}

// Each load is seen by the fault that it makes, and made by the processor's single step. It is the compiler's loads
// that count: without optimisation they are others than in the library that people use, and sanitizers add their own.
#if defined(__x86_64__) && defined(__OPTIMIZE__) && !WITH_SANITIZER
namespace {

constexpr ArenaLayout kLayout{std::size_t{64} << 10};
constexpr greg_t kTrapFlag = 0x100;  // EFLAGS.TF: a SIGTRAP after the next instruction

// Sees each load from the host's mapping of the response area while it lives, and changes the byte behind it at once.
class Watch {
 public:
  Watch(std::span<std::byte> watched, std::byte* writable) : watched_(watched), writable_(writable) {
    active = this;
    set(SIGSEGV, on_fault, before_fault_);
    set(SIGTRAP, on_step, before_step_);
    protect(PROT_NONE);
  }
  ~Watch() {
    protect(PROT_READ);
    ::sigaction(SIGSEGV, &before_fault_, nullptr);
    ::sigaction(SIGTRAP, &before_step_, nullptr);
    active = nullptr;
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  std::vector<std::size_t> loads() const { return {offsets_.begin(), offsets_.begin() + count_}; }

 private:
  static void set(int signal, void (*handler)(int, siginfo_t*, void*), struct sigaction& before) {
    struct sigaction action {};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO;
    ::sigemptyset(&action.sa_mask);
    if (::sigaction(signal, &action, &before) != 0) throw std::runtime_error("cannot set a signal handler");
  }

  static void on_fault(int, siginfo_t* info, void* context) {
    auto* const address = static_cast<std::byte*>(info->si_addr);
    Watch& self = *active;
    if (address < self.watched_.data() || address >= self.watched_.data() + self.watched_.size() ||
        self.count_ == static_cast<std::ptrdiff_t>(self.offsets_.size())) {
      ::signal(SIGSEGV, SIG_DFL);  // a real one: it comes again
      return;
    }
    self.offsets_[static_cast<std::size_t>(self.count_++)] = static_cast<std::size_t>(address - self.watched_.data());
    self.protect(PROT_READ);
    static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] |= kTrapFlag;
  }

  static void on_step(int, siginfo_t*, void* context) {
    Watch& self = *active;
    self.protect(PROT_NONE);
    // What the most malicious worker would do: a second load finds something else.
    self.writable_[self.offsets_[static_cast<std::size_t>(self.count_ - 1)]] ^= std::byte{0xff};
    static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] &= ~kTrapFlag;
  }

  void protect(int access) const noexcept {
    if (::mprotect(watched_.data(), watched_.size(), access) != 0) ::abort();
  }

  static inline Watch* active = nullptr;
  std::span<std::byte> watched_;
  std::byte* writable_;
  struct sigaction before_fault_ {};
  struct sigaction before_step_ {};
  // More than the answers here have bytes: some processors copy byte by byte.
  std::array<std::size_t, 100'000> offsets_{};
  std::ptrdiff_t count_ = 0;
};

// The only read-only mapping of a response area in this process: the host's.
std::span<std::byte> host_mapping() {
  std::ifstream maps("/proc/self/maps");
  std::span<std::byte> found;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:bulkhead-response") == std::string::npos || line.find(" r--s ") == std::string::npos) continue;
    if (!found.empty()) throw std::runtime_error("two response areas");
    const auto begin = std::stoull(line, nullptr, 16);
    const auto end = std::stoull(line.substr(line.find('-') + 1), nullptr, 16);
    found = {reinterpret_cast<std::byte*>(begin), static_cast<std::size_t>(end - begin)};
  }
  if (found.empty()) throw std::runtime_error("no response area");
  return found;
}

using Loads = std::map<std::size_t, int>;  // how often, by where in the area

struct Channels {
  Channels()
      : host(kLayout),
        raw(host.response_fd(), kLayout.response_size(), Mapping::Access::read_write),
        worker(host.request_fd(), host.response_fd(), host.doorbell().get(), kLayout) {}

  std::uint32_t send() {
    const std::uint32_t sequence = host.reserve();
    host.head(sequence) = RequestHead();
    host.fill(sequence);
    host.publish(sequence + 1);
    return sequence;
  }

  template <class T>
  std::uint32_t answer(const T& value) {
    const std::uint32_t sequence = send();
    worker.next([] {});
    const std::vector<std::byte> bytes = bulkhead::to_bytes(value);
    std::span<std::byte> to = worker.answer_slot();
    if (bytes.size() > to.size()) to = worker.allocate_answer(bytes.size()).value();
    std::copy(bytes.begin(), bytes.end(), to.begin());
    worker.commit(bytes.size());
    return sequence;
  }

  ResponseHeader& header() const { return *reinterpret_cast<ResponseHeader*>(raw.data()); }

  template <class F>
  Loads loads_of(F read) {
    const std::span<std::byte> area = host_mapping();
    std::vector<std::size_t> loads;
    {
      auto watch = std::make_unique<Watch>(area, raw.data());
      read();
      loads = watch->loads();
    }
    Loads counted;
    for (const std::size_t offset : loads) ++counted[offset];
    return counted;
  }

  HostChannel host;
  Mapping raw;
  WorkerChannel worker;
};

int most(const Loads& loads) {
  int most = 0;
  for (const auto& [offset, times] : loads) most = std::max(most, times);
  return most;
}

int times(const Loads& loads, std::size_t offset) {
  const auto found = loads.find(offset);
  return found == loads.end() ? 0 : found->second;
}

std::size_t in_slot(std::uint32_t sequence, std::size_t offset) {
  return offsetof(ResponseHeader, slots) + (sequence % kSlots) * kSlotSize + offset;
}

}  // namespace

TEST_CASE("a word that is loaded twice is seen twice, and differs", "[shared_reads]") {
  Channels both;
  both.header().item.store(7);
  std::uint32_t first = 0;
  std::uint32_t second = 0;
  const Loads loads = both.loads_of([&] {
    first = both.host.item();
    second = both.host.item();
  });
  CHECK(times(loads, offsetof(ResponseHeader, item)) == 2);
  CHECK(first == 7);
  CHECK(second != 7);
}

TEST_CASE("for an answer each word of its slot and of the counters is loaded once, and what was loaded is what counts",
          "[shared_reads]") {
  Channels both;
  const bool large = GENERATE(false, true);
  const std::uint32_t sequence = both.answer(std::string(large ? 1000 : 10, 'x'));
  const std::uint64_t began = both.header().slots[sequence].began_ns.load();
  std::uint32_t committed = 0;
  Response response;
  const Loads loads = both.loads_of([&] {
    committed = both.host.committed();
    response = both.host.response(sequence);
    both.host.consume(sequence + 1);
  });
  CHECK(committed == 1);
  CHECK(response.kind == ResponseKind::outcome);
  CHECK(response.in_slot != large);
  CHECK(response.payload.size() > (large ? 1000U : 10U));
  CHECK(response.payload.size() < (large ? 1010U : 20U));
  CHECK(response.began_ns == began);
  CHECK(most(loads) == 1);
  for (const std::size_t word :
       {offsetof(ResponseSlot, sequence), offsetof(ResponseSlot, kind), offsetof(ResponseSlot, over_memory),
        offsetof(ResponseSlot, size), offsetof(ResponseSlot, heap_offset), offsetof(ResponseSlot, began_ns),
        offsetof(ResponseSlot, ended_ns)}) {
    INFO("word " << word << " of the slot");
    CHECK(times(loads, in_slot(sequence, word)) == 1);
  }
  CHECK(times(loads, offsetof(ResponseHeader, committed)) == 1);
  CHECK(times(loads, offsetof(ResponseHeader, sleeping)) == 1);
  CHECK(loads.size() == 9);  // and nothing else
}

TEST_CASE("what a worker says of itself, of its crash and of its progress is loaded once", "[shared_reads]") {
  Channels both;
  const std::uint32_t sequence = both.send();
  both.worker.next([] {});
  SECTION("how far it is") {
    const Loads loads = both.loads_of([&] {
      both.host.begun(sequence);
      both.host.begun_ns();
      both.host.begun_cpu_ns();
      both.host.returned(sequence);
      both.host.item();
      both.host.state();
    });
    CHECK(loads.size() == 6);
    CHECK(most(loads) == 1);
  }
  SECTION("its report") {
    both.worker.set_failed("twenty characters it");
    std::string report;
    const Loads loads = both.loads_of([&] { report = both.host.report(); });
    CHECK(report.size() == 20);
    CHECK(times(loads, offsetof(ResponseHeader, report_size)) == 1);
  }
  SECTION("its crash") {
    CrashRecord& crash = both.worker.crash_record();
    crash.signal.store(SIGSEGV);
    crash.code.store(1);
    crash.address.store(16);
    crash.depth.store(kMostFrames);
    for (auto& frame : crash.frames) frame.store(4096);
    crash.state.store(1);
    std::optional<CrashNote> note;
    const Loads loads = both.loads_of([&] { note = both.host.crash(); });
    REQUIRE(note);
    CHECK(note->signal == SIGSEGV);
    CHECK(note->address == 16);
    CHECK(note->frames == std::vector<std::uint64_t>(kMostFrames, 4096));
    CHECK(loads.size() == 5 + kMostFrames);
    CHECK(most(loads) == 1);
  }
  SECTION("its progress") {
    both.worker.report_progress(3, 4, "twenty characters it");
    std::optional<ProgressNote> note;
    const Loads loads = both.loads_of([&] { note = both.host.progress(sequence, 0); });
    REQUIRE(note);
    CHECK(note->done == 3);
    CHECK(note->total == 4);
    CHECK(note->text.size() == 20);
    const std::size_t record = offsetof(ResponseHeader, progress) + sequence * sizeof(ProgressRecord);
    const std::size_t copy = record + offsetof(ProgressRecord, copies) + sizeof(ProgressCopy);
    for (const std::size_t word :
         {record + offsetof(ProgressRecord, begun), record + offsetof(ProgressRecord, finished),
          copy + offsetof(ProgressCopy, sequence), copy + offsetof(ProgressCopy, text_size),
          copy + offsetof(ProgressCopy, done), copy + offsetof(ProgressCopy, total)}) {
      INFO("word " << word);
      CHECK(times(loads, word) == 1);
    }
  }
}

TEST_CASE("a small answer that is decoded where it lies is loaded once", "[shared_reads]") {
  Channels both;
  using Small = std::pair<int, std::string>;
  const std::uint32_t sequence = both.answer(Small(0x01020304, "ten chars!"));
  REQUIRE(both.host.committed() == 1);
  const Response response = both.host.response(sequence);
  REQUIRE(response.in_slot);
  Small value;
  const Loads loads = both.loads_of([&] { value = bulkhead::from_bytes<Small>(response.payload); });
  CHECK(value.first == 0x01020304);
  CHECK(value.second.size() == 10);
  CHECK(most(loads) == 1);
}

TEST_CASE("a large answer keeps its shape although each byte changes as soon as it has been loaded", "[shared_reads]") {
  // A memmove may load bytes twice where its pieces overlap: the copy is then of both, and nothing has looked at
  // either. What must not change is what the decoder has looked at: counts, flags, indices.
  Channels both;
  using Row = std::pair<std::vector<std::uint64_t>, std::optional<std::string>>;
  std::vector<Row> rows(40);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].first.resize(i * 3);
    if (i % 3 == 0) rows[i].second = std::string(i * 7, 'x');
  }
  const std::uint32_t sequence = both.answer(rows);
  REQUIRE(both.host.committed() == 1);
  const Response response = both.host.response(sequence);
  REQUIRE_FALSE(response.in_slot);
  std::vector<Row> found;
  const Loads loads = both.loads_of([&] { found = bulkhead::from_bytes<std::vector<Row>>(response.payload); });
  REQUIRE(found.size() == rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    INFO("row " << i);
    CHECK(found[i].first.size() == rows[i].first.size());
    REQUIRE(found[i].second.has_value() == rows[i].second.has_value());
    if (rows[i].second) CHECK(found[i].second->size() == rows[i].second->size());
  }
  CHECK(loads.size() > rows.size());
}
#endif
