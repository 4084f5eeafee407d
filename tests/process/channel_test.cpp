// SPDX-License-Identifier: BSL-1.0
#include "process/channel.hpp"

#include "support/catch.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // linux/fcntl.h, since Linux 5.1
#endif

namespace {

using namespace bulkhead::process;
using Catch::Matchers::ContainsSubstring;
using Bytes = std::vector<std::byte>;

// No test may hang. Long enough for a sanitizer build on a busy machine, and never reached by a test that passes.
constexpr std::chrono::seconds kDeadline{60};

constexpr std::size_t kHeap = std::size_t{1} << 20;
constexpr std::size_t kRequestInline = sizeof(RequestSlot::payload);
constexpr std::size_t kResponseInline = sizeof(ResponseSlot::payload);
constexpr ArenaLayout kLayout{kHeap};

// If a wake-up were lost for good, this ends the program instead of hanging.
class HangGuard {
 public:
  HangGuard() { ::alarm(static_cast<unsigned>(3 * kDeadline.count())); }
  ~HangGuard() { ::alarm(0); }
  HangGuard(const HangGuard&) = delete;
  HangGuard& operator=(const HangGuard&) = delete;
};

Bytes pattern(std::size_t size, unsigned seed) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 251 + seed);
  return bytes;
}

Bytes copy_of(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

// The whole response area as a worker that follows no rules could map it.
class RawResponses {
 public:
  explicit RawResponses(const HostChannel& host, ArenaLayout layout = kLayout)
      : mapping_(host.response_fd(), layout.response_size(), Mapping::Access::read_write) {}
  ResponseHeader& header() const { return *reinterpret_cast<ResponseHeader*>(mapping_.data()); }
  ResponseSlot& slot(std::uint32_t sequence) const { return header().slots[sequence % kSlots]; }
  std::byte* heap() const { return mapping_.data() + sizeof(ResponseHeader); }
  std::span<std::byte> all() const { return {mapping_.data(), mapping_.size()}; }

 private:
  Mapping mapping_;
};

// Blocks of the requests that are on their way.
class Sender {
 public:
  explicit Sender(HostChannel& host) : host_(host) {}

  std::uint32_t write(std::span<const std::byte> payload, RequestKind kind = RequestKind::task, bool revoked = false) {
    const std::uint32_t sequence = host_.reserve();
    std::uint64_t offset = kInline;
    std::span<std::byte> target = host_.slot_payload(sequence);
    if (payload.size() > target.size()) {
      const auto block = host_.allocate(payload.size());
      if (!block) throw std::runtime_error("the request heap is full");
      blocks_[sequence] = {*block, payload.size()};
      offset = *block;
      target = host_.block(*block, payload.size());
    }
    std::copy(payload.begin(), payload.end(), target.begin());
    RequestHead head;
    head.kind = kind;
    head.size = payload.size();
    head.heap_offset = offset;
    host_.head(sequence) = head;
    host_.fill(sequence, revoked);
    return sequence;
  }

  std::uint32_t send(std::span<const std::byte> payload, RequestKind kind = RequestKind::task, bool revoked = false) {
    const std::uint32_t sequence = write(payload, kind, revoked);
    host_.publish(sequence + 1);
    return sequence;
  }

  void answered(std::uint32_t sequence) {
    const auto found = blocks_.find(sequence);
    if (found == blocks_.end()) return;
    host_.release(found->second.first, found->second.second);
    blocks_.erase(found);
  }

 private:
  HostChannel& host_;
  std::map<std::uint32_t, std::pair<std::size_t, std::size_t>> blocks_;
};

// Host and worker in one thread: each step is taken when the test takes it.
struct Channels {
  explicit Channels(ArenaLayout layout = kLayout)
      : host(layout), raw(host, layout), worker(host.request_fd(), host.response_fd(), host.doorbell().get(), layout) {
    host.close_areas();
  }

  HangGuard guard;
  HostChannel host;
  RawResponses raw;
  WorkerChannel worker;
  Sender sender{host};
};

constexpr auto kNothing = [] {};

void answer(WorkerChannel& worker, std::span<const std::byte> bytes) {
  std::span<std::byte> target = worker.answer_slot();
  if (bytes.size() > target.size()) {
    const auto block = worker.allocate_answer(bytes.size());
    if (!block) throw std::runtime_error("the answer is larger than the heap");
    target = *block;
  }
  std::copy(bytes.begin(), bytes.end(), target.begin());
  worker.commit(bytes.size());
}

// Answers each request with its bytes until it is told to stop.
void run_echo(WorkerChannel& worker) {
  for (;;) {
    const auto request = worker.next(kNothing);
    if (request.kind == RequestKind::stop) return;
    answer(worker, request.call);
  }
}

// Sleeps as the host does until so many responses have been committed. Throws after the deadline.
void wait_committed(HostChannel& host, std::uint32_t count) {
  const auto reached = [&] { return static_cast<std::int32_t>(host.committed() - count) >= 0; };
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!reached()) {
    host.arm();
    if (reached()) return;
    pollfd doorbell{host.doorbell().get(), POLLIN, 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0 || ::poll(&doorbell, 1, static_cast<int>(left.count())) == 0) {
      throw std::runtime_error("the doorbell did not ring within the deadline");
    }
    std::uint64_t rings = 0;
    [[maybe_unused]] const ssize_t size = ::read(host.doorbell().get(), &rings, sizeof(rings));
  }
}

bool rings(const HostChannel& host) {
  std::uint64_t count = 0;
  return ::read(host.doorbell().get(), &count, sizeof(count)) == sizeof(count);
}

template <class Condition>
bool becomes_true(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::sched_yield();
  }
  return true;
}

// A worker of a test in another process; killed if the test ends before it does. To be made while there is one thread.
class Child {
 public:
  template <class F>
  explicit Child(F run) : pid_(::fork()) {
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int code = 1;
    try {
      run();
      code = 0;
    } catch (...) {
    }
    ::_exit(code);
  }
  ~Child() {
    if (pid_ > 0) end();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Its exit code; -1 if a signal ended it or it does not end.
  int wait() {
    int status = 0;
    if (!becomes_true([&] { return ::waitpid(pid_, &status, WNOHANG) != 0; })) return -1;
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  void end() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_;
};

// Runs a WorkerChannel in a child until the function returns.
template <class F>
auto in_child(const HostChannel& host, F run) {
  return [&host, run] {
    WorkerChannel worker(host.request_fd(), host.response_fd(), host.doorbell().get(), kLayout);
    run(worker);
  };
}

// Keeps this thread on the first or the last CPU that it may use, as long as the object lives: two processes on CPUs of
// their own meet in the middle of things more often.
class OnCpu {
 public:
  enum Which { first, last };
  explicit OnCpu(Which which) {
    CPU_ZERO(&before_);
    if (::sched_getaffinity(0, sizeof(before_), &before_) != 0) return;
    std::vector<int> cpus;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &before_)) cpus.push_back(i);
    }
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(which == first ? cpus.front() : cpus.back(), &one);
    ::sched_setaffinity(0, sizeof(one), &one);
  }
  ~OnCpu() { ::sched_setaffinity(0, sizeof(before_), &before_); }
  OnCpu(const OnCpu&) = delete;
  OnCpu& operator=(const OnCpu&) = delete;

 private:
  cpu_set_t before_;
};

void pause_at_random(std::mt19937& random, unsigned most) {
  const auto rounds = static_cast<unsigned>(random() % (most + 1));
  for (unsigned i = 0; i < rounds; ++i) asm volatile("" : : "r"(i) : "memory");
  if (random() % 1000 == 0) ::sched_yield();
}

}  // namespace

TEST_CASE("blocks come from the bottom of the heap, on cache lines", "[channel]") {
  Heap heap(4096);
  CHECK(heap.allocate(1) == 0U);
  CHECK(heap.allocate(64) == 64U);
  CHECK(heap.allocate(65) == 128U);
  CHECK(heap.allocate(1) == 256U);
  heap.release(64, 64);
  heap.release(0, 1);
  CHECK(heap.allocate(129) == 320U);  // does not fit into the first hole
  CHECK(heap.allocate(128) == 0U);
}

TEST_CASE("blocks that are given back become one whole again, in whatever order they are given back", "[channel]") {
  std::array<std::size_t, 4> order{0, 1, 2, 3};
  do {
    Heap heap(4 * 256);
    for (std::size_t i = 0; i < 4; ++i) REQUIRE(heap.allocate(256) == i * 256);
    for (const std::size_t i : order) heap.release(i * 256, 256);
    REQUIRE(heap.allocate(4 * 256) == 0U);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("a heap that is full gives nothing, and gives again what comes back", "[channel]") {
  Heap heap(1024);
  CHECK(heap.allocate(1025) == std::nullopt);
  CHECK(heap.allocate(1024) == 0U);
  CHECK(heap.allocate(1) == std::nullopt);
  heap.release(0, 1024);
  CHECK(heap.allocate(512) == 0U);
  CHECK(heap.allocate(513) == std::nullopt);
  CHECK(heap.allocate(512) == 512U);
}

TEST_CASE("a heap without memory gives nothing", "[channel]") {
  Heap heap(0);
  CHECK(heap.allocate(1) == std::nullopt);
}

TEST_CASE("sizes near the largest number are refused, not rounded to nothing", "[channel]") {
  Heap heap(1024);
  for (const std::size_t less : {0U, 1U, 62U, 63U, 64U, 65U}) {
    INFO("2^64 - 1 - " << less);
    CHECK(heap.allocate(std::numeric_limits<std::size_t>::max() - less) == std::nullopt);
  }
}

TEST_CASE("blocks never overlap, and nothing is lost over 50,000 random steps", "[channel]") {
  constexpr std::size_t kLines = 512;
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  Heap heap(kLines * kCacheLine);
  std::vector<bool> used(kLines);
  std::vector<std::pair<std::size_t, std::size_t>> blocks;
  const auto lines_of = [](std::size_t size) { return (size + kCacheLine - 1) / kCacheLine; };
  const auto first_hole = [&](std::size_t lines) -> std::optional<std::size_t> {
    std::size_t length = 0;
    for (std::size_t i = 0; i < kLines; ++i) {
      length = used[i] ? 0 : length + 1;
      if (length == lines) return (i + 1 - lines) * kCacheLine;
    }
    return std::nullopt;
  };
  for (int step = 0; step < 50'000; ++step) {
    if (random() % 2 == 0) {
      const std::size_t size = 1 + random() % (64 * kCacheLine);
      const auto offset = heap.allocate(size);
      REQUIRE(offset == first_hole(lines_of(size)));
      if (!offset) continue;
      std::fill_n(used.begin() + static_cast<std::ptrdiff_t>(*offset / kCacheLine), lines_of(size), true);
      blocks.emplace_back(*offset, size);
    } else if (!blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const auto [offset, size] = blocks.back();
      blocks.pop_back();
      heap.release(offset, size);
      std::fill_n(used.begin() + static_cast<std::ptrdiff_t>(offset / kCacheLine), lines_of(size), false);
    }
  }
  for (const auto& [offset, size] : blocks) heap.release(offset, size);
  CHECK(heap.allocate(kLines * kCacheLine) == 0U);
}

TEST_CASE("a payload of any size comes to the worker and back unchanged", "[channel]") {
  const std::size_t size = GENERATE(std::size_t{0}, std::size_t{1}, std::size_t{63}, kResponseInline - 1,
                                    kResponseInline, kResponseInline + 1, kRequestInline, kRequestInline + 1,
                                    std::size_t{4096}, std::size_t{100'001}, kHeap - 1, kHeap);
  INFO(size << " bytes");
  Channels both;
  const Bytes sent = pattern(size, 3);
  const auto sequence = both.sender.send(sent);
  CHECK(both.host.committed() == 0);

  const auto request = both.worker.next(kNothing);
  CHECK(request.sequence == sequence);
  CHECK(request.kind == RequestKind::task);
  CHECK(copy_of(request.call) == sent);
  answer(both.worker, request.call);

  REQUIRE(both.host.committed() == 1);
  const Response response = both.host.response(sequence);
  CHECK(response.kind == ResponseKind::outcome);
  CHECK(response.in_slot == (size <= kResponseInline));
  CHECK(copy_of(response.payload) == sent);
  CHECK(response.began_ns <= response.ended_ns);
  CHECK(response.began_ns > 0);
  both.sender.answered(sequence);
  both.host.consume(1);
  CHECK(both.host.consumed() == 1);
}

TEST_CASE("a request that asks to stop comes as such", "[channel]") {
  Channels both;
  both.sender.send({}, RequestKind::stop);
  const auto request = both.worker.next(kNothing);
  CHECK(request.kind == RequestKind::stop);
  CHECK(request.call.empty());
}

TEST_CASE("a payload in a block starts on a cache line, so that its values can be seen in place", "[channel]") {
  Channels both;
  for (int i = 0; i < 5; ++i) both.sender.send(pattern(1000, 1));
  for (int i = 0; i < 5; ++i) {
    const auto request = both.worker.next(kNothing);
    CHECK(reinterpret_cast<std::uintptr_t>(request.call.data()) % kCacheLine == 0);
    answer(both.worker, request.call);
  }
}

TEST_CASE("requests are not seen before they are published, and then all at once", "[channel]") {
  Channels both;
  both.sender.write(pattern(10, 1));
  both.sender.write(pattern(10, 2));
  CHECK(both.host.published() == 0);
  both.host.publish(2);
  CHECK(copy_of(both.worker.next(kNothing).call) == pattern(10, 1));
  both.worker.commit(0);
  CHECK(copy_of(both.worker.next(kNothing).call) == pattern(10, 2));
  both.worker.commit(0);
  CHECK(both.host.committed() == 2);
}

TEST_CASE("slots are free again once their responses are consumed", "[channel]") {
  Channels both;
  CHECK(both.host.free_slots() == kSlots);
  for (std::uint32_t i = 0; i < kSlots; ++i) both.sender.send({});
  CHECK(both.host.free_slots() == 0);
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    both.worker.next(kNothing);
    both.worker.commit(0);
  }
  CHECK(both.host.free_slots() == 0);
  REQUIRE(both.host.committed() == kSlots);
  both.host.consume(kSlots - 1);
  CHECK(both.host.free_slots() == kSlots - 1);
  both.host.consume(kSlots);
  CHECK(both.host.free_slots() == kSlots);
}

namespace {

// Sends requests of mixed sizes with as many on their way as go, and counts the answers that are not their request.
// `work` lets a worker that lies in the same thread do something.
template <class Work>
int wrong_answers(HostChannel& host, Sender& sender, std::uint32_t first, std::uint32_t requests, unsigned seed,
                  Work work) {
  std::mt19937 random(seed);
  const auto bytes_of_request = [](std::uint32_t sequence) {
    // One in seven lies in a block; 256 of them fit into the heap together.
    return pattern(sequence % 7 == 0 ? 300 + sequence % 2000 : sequence % kResponseInline, sequence);
  };
  std::uint32_t sent = first;
  std::uint32_t read = first;
  const std::uint32_t end = first + requests;
  int wrong = 0;
  while (read != end) {
    const auto burst = static_cast<std::uint32_t>(random() % (kSlots + 1));
    for (std::uint32_t i = 0; i < burst && sent != end && host.free_slots() > 0; ++i) {
      if (sender.send(bytes_of_request(sent)) != sent) ++wrong;
      ++sent;
    }
    if (sent == read) continue;
    work();
    wait_committed(host, read + 1);
    for (const std::uint32_t committed = host.committed(); read != committed; ++read) {
      const Response response = host.response(read);
      if (response.kind != ResponseKind::outcome || copy_of(response.payload) != bytes_of_request(read)) ++wrong;
      sender.answered(read);
      if (random() % 3 == 0) host.consume(read + 1);
    }
    host.consume(read);
  }
  return wrong;
}

}  // namespace

TEST_CASE("the ring goes round and round without a mix-up", "[channel]") {
  Channels both;
  std::uint32_t worked = 0;
  const auto work = [&] {
    for (; worked != both.host.published(); ++worked) answer(both.worker, both.worker.next(kNothing).call);
  };
  CHECK(wrong_answers(both.host, both.sender, 0, 40 * kSlots, 1, work) == 0);
}

TEST_CASE("a worker in another process answers thousands of requests in order and stops when told", "[channel]") {
  const HangGuard guard;
  HostChannel host(kLayout);
  Child child(in_child(host, run_echo));
  host.close_areas();
  Sender sender(host);
  CHECK(wrong_answers(host, sender, 0, 40 * kSlots, 2, kNothing) == 0);
  sender.send({}, RequestKind::stop);
  CHECK(child.wait() == 0);
}

TEST_CASE("a worker in another thread answers thousands of requests in order and stops when told", "[channel]") {
  Channels both;
  std::thread thread([&] { run_echo(both.worker); });
  int wrong = -1;
  std::string error;
  try {
    wrong = wrong_answers(both.host, both.sender, 0, 40 * kSlots, 3, kNothing);
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  both.sender.send({}, RequestKind::stop);
  thread.join();
  CHECK(error == "");
  CHECK(wrong == 0);
}

namespace {

// An explicit instantiation may name private members. It is the only way to the end of the counters' range but four
// thousand million requests.
template <class Tag, auto Member>
struct Reach {
  friend typename Tag::type reach(Tag) { return Member; }
};
struct HostReserved {
  using type = std::uint32_t HostChannel::*;
  friend type reach(HostReserved);
};
struct HostPublished {
  using type = std::uint32_t HostChannel::*;
  friend type reach(HostPublished);
};
struct HostCommitted {
  using type = std::uint32_t HostChannel::*;
  friend type reach(HostCommitted);
};
struct HostConsumed {
  using type = std::uint32_t HostChannel::*;
  friend type reach(HostConsumed);
};
struct HostBegun {
  using type = std::uint32_t HostChannel::*;
  friend type reach(HostBegun);
};
struct WorkerNext {
  using type = std::uint32_t WorkerChannel::*;
  friend type reach(WorkerNext);
};
struct WorkerReleased {
  using type = std::uint32_t WorkerChannel::*;
  friend type reach(WorkerReleased);
};
template struct Reach<HostReserved, &HostChannel::reserved_>;
template struct Reach<HostPublished, &HostChannel::published_>;
template struct Reach<HostCommitted, &HostChannel::committed_>;
template struct Reach<HostConsumed, &HostChannel::consumed_>;
template struct Reach<HostBegun, &HostChannel::begun_>;
template struct Reach<WorkerNext, &WorkerChannel::next_>;
template struct Reach<WorkerReleased, &WorkerChannel::released_>;

// As if so many requests had been answered and consumed.
void set_counters(Channels& both, std::uint32_t count) {
  both.raw.header().begun.store(count);
  both.raw.header().committed.store(count);
  both.host.*reach(HostPublished()) = count - 1;  // so that one request is copied, and not all since the first
  both.host.publish(count);
  both.host.consume(count);
  both.host.*reach(HostReserved()) = count;
  both.host.*reach(HostPublished()) = count;
  both.host.*reach(HostCommitted()) = count;
  both.host.*reach(HostConsumed()) = count;
  both.host.*reach(HostBegun()) = count;
  both.worker.*reach(WorkerNext()) = count;
  both.worker.*reach(WorkerReleased()) = count;
}

}  // namespace

TEST_CASE("counters run over the end of their range without a mix-up", "[channel]") {
  Channels both;
  const std::uint32_t first = std::uint32_t{0} - 3 * kSlots - 17;
  set_counters(both, first);
  CHECK(both.host.free_slots() == kSlots);
  std::uint32_t worked = first;
  const auto work = [&] {
    for (; worked != both.host.published(); ++worked) answer(both.worker, both.worker.next(kNothing).call);
  };
  CHECK(wrong_answers(both.host, both.sender, first, 8 * kSlots, 1, work) == 0);
  CHECK(both.host.consumed() == first + 8 * kSlots);
}

TEST_CASE("requests at the end of the counters' range can be taken back, or have begun, as others", "[channel]") {
  Channels both;
  set_counters(both, std::numeric_limits<std::uint32_t>::max() - 1);
  for (int i = 0; i < 4; ++i) both.sender.send(pattern(1, static_cast<unsigned>(i)));
  const std::uint32_t last = std::numeric_limits<std::uint32_t>::max();
  both.worker.next(kNothing);  // last - 1
  CHECK(both.host.begun(last - 1));
  CHECK_FALSE(both.host.begun(last));
  CHECK_FALSE(both.host.begun(0));
  CHECK_FALSE(both.host.begun(1));
  CHECK_FALSE(both.host.take_back(last - 1));
  CHECK(both.host.take_back(0));
  both.worker.commit(0);
  CHECK(both.worker.next(kNothing).sequence == last);
  both.worker.commit(0);
  CHECK(both.worker.next(kNothing).sequence == 1);
  CHECK(both.host.begun(0));
  CHECK(both.host.begun(1));
  both.worker.commit(0);
  REQUIRE(both.host.committed() == 2);
  CHECK(both.host.response(last).kind == ResponseKind::outcome);
  CHECK(both.host.response(0).kind == ResponseKind::skipped);
}

TEST_CASE("an impossible count of answers is seen at the end of the counters' range, too", "[channel]") {
  Channels both;
  const std::uint32_t last = std::numeric_limits<std::uint32_t>::max();
  set_counters(both, last);
  both.sender.send({});
  both.sender.send({});  // published is 1
  both.raw.header().committed.store(0);
  CHECK(both.host.committed() == 0);
  for (const std::uint32_t impossible : {2U, last, last - 1, 0x80000000U}) {
    INFO(impossible);
    both.raw.header().committed.store(impossible);
    CHECK_THROWS_AS(both.host.committed(), ProtocolViolation);
  }
  both.raw.header().committed.store(1);
  CHECK(both.host.committed() == 1);
}

TEST_CASE("a published request that the worker has not begun can be taken back; it is skipped", "[channel]") {
  Channels both;
  both.sender.send(pattern(1, 0));
  both.sender.send(pattern(1, 1));
  both.sender.send(pattern(1, 2));
  CHECK(both.host.take_back(1));
  CHECK(both.worker.next(kNothing).sequence == 0);
  both.worker.commit(0);
  CHECK(both.worker.next(kNothing).sequence == 2);
  both.worker.commit(0);
  REQUIRE(both.host.committed() == 3);
  CHECK(both.host.response(0).kind == ResponseKind::outcome);
  CHECK(both.host.response(1).kind == ResponseKind::skipped);
  CHECK(both.host.response(1).payload.empty());
  CHECK(both.host.response(2).kind == ResponseKind::outcome);
}

TEST_CASE("a request that the worker has begun, or has finished, cannot be taken back", "[channel]") {
  Channels both;
  const auto sequence = both.sender.send(pattern(1, 0));
  CHECK_FALSE(both.host.begun(sequence));
  both.worker.next(kNothing);
  CHECK(both.host.begun(sequence));
  CHECK(both.host.begun_ns() > 0);
  CHECK_FALSE(both.host.take_back(sequence));
  both.worker.commit(0);
  CHECK_FALSE(both.host.take_back(sequence));
  REQUIRE(both.host.committed() == 1);
  CHECK(both.host.response(sequence).kind == ResponseKind::outcome);
}

TEST_CASE("a request that was revoked before it was published is skipped", "[channel]") {
  Channels both;
  both.sender.send(pattern(1, 0), RequestKind::task, true);
  both.sender.send(pattern(1, 1));
  CHECK(both.worker.next(kNothing).sequence == 1);
  both.worker.commit(0);
  REQUIRE(both.host.committed() == 2);
  CHECK(both.host.response(0).kind == ResponseKind::skipped);
}

TEST_CASE("a slot whose request was taken back serves its next request", "[channel]") {
  Channels both;
  for (std::uint32_t i = 0; i < kSlots; ++i) both.sender.send({});
  for (std::uint32_t i = 0; i < kSlots; ++i) REQUIRE(both.host.take_back(i));
  both.sender.answered(0);
  std::thread thread([&] {
    both.worker.next(kNothing);
    both.worker.commit(0);
  });
  bool committed = becomes_true([&] { return both.host.committed() == kSlots; });
  both.host.consume(kSlots);
  const auto sequence = both.sender.send(pattern(5, 5));
  thread.join();
  REQUIRE(committed);
  REQUIRE(both.host.committed() == kSlots + 1);
  CHECK(both.host.response(sequence).kind == ResponseKind::outcome);
}

TEST_CASE("of many requests taken back while the worker runs, none that was taken back is run", "[channel]") {
  constexpr int kRounds = 100'000;
  const HangGuard guard;
  HostChannel host(kLayout);
  host.set_spin_limit(5'000);
  Child child(in_child(host, [](WorkerChannel& worker) {
    const OnCpu cpu(OnCpu::last);
    run_echo(worker);
  }));
  const OnCpu cpu(OnCpu::first);
  Sender sender(host);
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  int both = 0;
  int skipped_unasked = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint32_t first = host.consumed();
    const auto count = static_cast<std::uint32_t>(1 + random() % 6);
    std::array<bool, 6> asked{};
    std::array<bool, 6> taken{};
    for (std::uint32_t i = 0; i < count; ++i) sender.write({});
    host.publish(first + count);
    // Half of the time at a moment at which the worker is about to begin the next one.
    const std::uint32_t watched = first + static_cast<std::uint32_t>(random() % count);
    if (random() % 2 == 0) {
      for (int i = 0; i < 10'000 && !host.begun(watched); ++i) continue;
    }
    pause_at_random(random, 200);
    for (std::uint32_t i = count; i-- > 0;) {
      if (random() % 2 == 0) continue;
      asked[i] = true;
      taken[i] = host.take_back(first + i);
    }
    wait_committed(host, first + count);
    for (std::uint32_t i = 0; i < count; ++i) {
      // Not taken back and yet skipped: both sides saw each other, and the answer tells who won.
      const bool ran = host.response(first + i).kind == ResponseKind::outcome;
      if (ran && taken[i]) ++both;
      if (!ran && !asked[i]) ++skipped_unasked;
    }
    host.consume(first + count);
  }
  CHECK(both == 0);
  CHECK(skipped_unasked == 0);
  sender.send({}, RequestKind::stop);
  CHECK(child.wait() == 0);
}

TEST_CASE("no wake-up is lost in 100,000 rounds with random pauses on both sides", "[channel]") {
  // 0: the worker sleeps each time; 200: it is sometimes caught between spinning and sleeping.
  const auto spin = static_cast<std::uint32_t>(GENERATE(0, 200));
  INFO("spin limit " << spin);
  constexpr int kRounds = 50'000;
  const HangGuard guard;
  HostChannel host(kLayout);
  host.set_spin_limit(spin);
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  Child child(in_child(host, [seed](WorkerChannel& worker) {
    std::mt19937 random(seed + 1);
    for (;;) {
      const auto request = worker.next([&] { pause_at_random(random, 500); });
      pause_at_random(random, 1'000);
      if (request.kind == RequestKind::stop) return;
      answer(worker, request.call);
    }
  }));
  Sender sender(host);
  std::mt19937 random(seed);
  for (int round = 0; round < kRounds; ++round) {
    const auto burst = random() % 8 == 0 ? static_cast<std::uint32_t>(1 + random() % 4) : 1U;
    std::uint32_t end = host.consumed();
    for (std::uint32_t i = 0; i < burst; ++i) {
      end = sender.send({}) + 1;
      pause_at_random(random, 300);
    }
    wait_committed(host, end);  // throws when the doorbell is silent
    host.consume(end);
    pause_at_random(random, 1'000);
  }
  sender.send({}, RequestKind::stop);
  CHECK(child.wait() == 0);
}

TEST_CASE("a commit rings the doorbell once after each arm, and not before the first", "[channel]") {
  Channels both;
  const auto one = [&] {
    both.sender.send({});
    both.worker.next(kNothing);
    both.worker.commit(0);
  };
  one();
  CHECK_FALSE(rings(both.host));
  both.host.arm();
  CHECK_FALSE(rings(both.host));
  one();
  CHECK(rings(both.host));
  one();
  CHECK_FALSE(rings(both.host));
  both.host.arm();
  both.host.arm();
  one();
  CHECK(rings(both.host));
  one();
  CHECK_FALSE(rings(both.host));
}

TEST_CASE("a skipped request rings the doorbell as an answer does", "[channel]") {
  Channels both;
  both.sender.send({});
  REQUIRE(both.host.take_back(0));
  both.sender.send({});
  both.host.arm();
  both.worker.next(kNothing);
  CHECK(rings(both.host));
}

TEST_CASE("a worker that finds requests does not prepare to sleep", "[channel]") {
  Channels both;
  both.sender.send({});
  int calls = 0;
  both.worker.next([&] { ++calls; });
  CHECK(calls == 0);
}

TEST_CASE("a worker without requests says once that it sleeps, and is woken by the next publish", "[channel]") {
  Channels both;
  int calls = 0;
  std::uint32_t got = 77;
  std::thread thread([&] {
    got = both.worker.next([&] { ++calls; }).sequence;
    both.worker.commit(0);
  });
  const auto asleep = [&] {
    return both.raw.header().sleeping.load() == static_cast<std::uint32_t>(Sleep::for_requests);
  };
  const bool slept = becomes_true(asleep);
  both.sender.send({});
  const bool answered = becomes_true([&] { return both.host.committed() == 1; });
  thread.join();
  CHECK(slept);
  CHECK(answered);
  CHECK(got == 0);
  CHECK(calls == 1);
  CHECK(both.raw.header().sleeping.load() == static_cast<std::uint32_t>(Sleep::awake));
}

TEST_CASE("an answer that is larger than the heap is refused at once", "[channel]") {
  Channels both;
  both.sender.send({});
  both.worker.next(kNothing);
  CHECK(both.worker.max_answer() == kHeap);
  CHECK_FALSE(both.worker.allocate_answer(kHeap + 1));
  CHECK_FALSE(both.worker.allocate_answer(std::numeric_limits<std::size_t>::max()));
  CHECK(both.worker.allocate_answer(kHeap));
  both.worker.commit(kHeap);
  REQUIRE(both.host.committed() == 1);
  CHECK(both.host.response(0).payload.size() == kHeap);
}

TEST_CASE("a worker that asks for room without waiting gets none while earlier answers fill the heap", "[channel]") {
  Channels both;
  both.sender.send({});
  both.sender.send({});
  both.worker.next(kNothing);
  REQUIRE(both.worker.try_allocate_answer(kHeap));
  both.worker.shrink_answer(kHeap / 2);
  both.worker.commit(kHeap / 2);
  both.worker.next(kNothing);
  CHECK_FALSE(both.worker.try_allocate_answer(kHeap / 2 + 64));
  CHECK(both.worker.try_allocate_answer(kHeap / 4));  // of what was given back of the first
  both.worker.answer_slot();
  CHECK(both.worker.try_allocate_answer(kHeap / 2));
  both.worker.commit(0);
}

TEST_CASE("an answer that no heap of this size can hold is refused, and not waited for", "[channel]") {
  // Sizes that are no multiple of a block's granularity, up to the last byte.
  const std::size_t heap_size = GENERATE(std::size_t{1000}, std::size_t{1024 + 1}, std::size_t{1024 + 63});
  INFO("a heap of " << heap_size << " bytes");
  const HangGuard guard;
  const ArenaLayout layout{heap_size};
  HostChannel host(layout);
  const RawResponses raw(host, layout);
  Child child([&] {
    WorkerChannel worker(host.request_fd(), host.response_fd(), host.doorbell().get(), layout);
    worker.allocate_answer(heap_size);  // a block or none
    raw.header().state.store(static_cast<std::uint32_t>(WorkerState::ready));
  });
  const auto waits = [&] { return raw.header().sleeping.load() == static_cast<std::uint32_t>(Sleep::for_space); };
  REQUIRE(becomes_true([&] { return host.state() == WorkerState::ready || waits(); }));
  CHECK_FALSE(waits());
}

TEST_CASE("an answer that failed half-way gives its block back", "[channel]") {
  Channels both;
  for (std::uint32_t i = 0; i < 10; ++i) {
    both.sender.send({});
    both.worker.next(kNothing);
    REQUIRE(both.worker.allocate_answer(kHeap));  // would wait if one were lost
    const Bytes error = pattern(20, i);
    answer(both.worker, error);
    REQUIRE(both.host.committed() == i + 1);
    CHECK(both.host.response(i).in_slot);
    CHECK(copy_of(both.host.response(i).payload) == error);
  }
}

TEST_CASE("a worker whose heap is full waits until the host has consumed an answer", "[channel]") {
  Channels both;
  constexpr std::size_t kLarge = kHeap / 4 * 3;
  for (int i = 0; i < 3; ++i) both.sender.send({});
  std::thread thread([&] {
    for (unsigned i = 0; i < 3; ++i) {
      both.worker.next(kNothing);
      answer(both.worker, pattern(kLarge, i));
    }
  });
  const auto waits = [&] { return both.raw.header().sleeping.load() == static_cast<std::uint32_t>(Sleep::for_space); };
  std::vector<bool> waited;
  std::vector<Bytes> answers;
  std::vector<std::uint32_t> committed;
  for (std::uint32_t i = 0; i < 3; ++i) {
    if (!becomes_true([&] { return both.host.committed() > i; })) break;
    if (i < 2) waited.push_back(becomes_true(waits));
    committed.push_back(both.host.committed());
    answers.push_back(copy_of(both.host.response(i).payload));
    both.host.consume(i + 1);
  }
  thread.join();
  CHECK(waited == std::vector<bool>{true, true});
  CHECK(committed == std::vector<std::uint32_t>{1, 2, 3});
  REQUIRE(answers.size() == 3);
  for (unsigned i = 0; i < 3; ++i) CHECK((answers[i] == pattern(kLarge, i)));
}

TEST_CASE("no wake-up is lost when thousands of answers wait for space", "[channel]") {
  const HangGuard guard;
  HostChannel host(kLayout);
  Child child(in_child(host, [](WorkerChannel& worker) {
    for (;;) {
      const auto request = worker.next(kNothing);
      if (request.kind == RequestKind::stop) return;
      answer(worker, pattern(kHeap / 16 * (1 + request.sequence % 15), request.sequence));
    }
  }));
  Sender sender(host);
  std::mt19937 random(std::random_device{}());
  constexpr std::uint32_t kRequests = 3'000;
  std::uint32_t sent = 0;
  int wrong = 0;
  for (std::uint32_t read = 0; read != kRequests; ++read) {
    for (; sent != kRequests && sent - read < 20; ++sent) sender.send({});
    wait_committed(host, read + 1);
    const Response response = host.response(read);
    const std::size_t size = kHeap / 16 * (1 + read % 15);
    if (response.payload.size() != size || response.payload[size - 1] != pattern(size, read)[size - 1]) ++wrong;
    pause_at_random(random, 5'000);
    host.consume(read + 1);
  }
  CHECK(wrong == 0);
  sender.send({}, RequestKind::stop);
  CHECK(child.wait() == 0);
}

TEST_CASE("answers of a worker that has died can still be read, and no more than it gave", "[channel]") {
  const HangGuard guard;
  HostChannel host(kLayout);
  Sender sender(host);
  for (unsigned i = 0; i < 5; ++i) sender.send(pattern(400, i));
  Child child(in_child(host, [](WorkerChannel& worker) {
    for (int i = 0; i < 3; ++i) answer(worker, worker.next(kNothing).call);
    worker.next(kNothing);  // begins the fourth
  }));
  CHECK(child.wait() == 0);
  REQUIRE(host.committed() == 3);
  for (unsigned i = 0; i < 3; ++i) CHECK(copy_of(host.response(i).payload) == pattern(400, i));
  CHECK(host.begun(3));
  CHECK_FALSE(host.begun(4));
}

TEST_CASE("a worker's state and the reason of its failed start come to the host", "[channel]") {
  Channels both;
  CHECK(both.host.state() == WorkerState::starting);
  both.worker.set_ready();
  CHECK(both.host.state() == WorkerState::ready);
  both.worker.set_failed("no\tlicence\nfound \x01\x1b[31m");
  CHECK(both.host.state() == WorkerState::failed);
  CHECK(both.host.report() == "no\tlicence\nfound ??[31m");
}

TEST_CASE("a reason that is too long is cut", "[channel]") {
  Channels both;
  both.worker.set_failed(std::string(3 * kReportSize, 'x'));
  CHECK(both.host.report() == std::string(kReportSize, 'x'));
}

namespace {

// 0, or errno of the attempt to map the whole descriptor in this way.
int map_error(int fd, std::size_t size, int protection, int flags) {
  void* address = ::mmap(nullptr, size, protection, flags, fd, 0);
  if (address == MAP_FAILED) return errno;
  ::munmap(address, size);
  return 0;
}

FileDescriptor reopen(int fd) {
  return FileDescriptor(::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC));
}

int error_of(int result) { return result == 0 ? 0 : errno; }

// Permissions of all mappings of memfds with this name, as the kernel lists them.
std::vector<std::string> mappings_of(const std::string& name) {
  std::vector<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(name) != std::string::npos) found.push_back(line.substr(line.find(' ') + 1, 4));
  }
  return found;
}

}  // namespace

TEST_CASE("nobody but the host can map the request area writable", "[channel]") {
  HostChannel host(kLayout);
  const int fd = host.request_fd().get();
  const std::size_t size = kLayout.request_size();
  CHECK(map_error(fd, size, PROT_READ, MAP_SHARED) == 0);
  CHECK(map_error(fd, size, PROT_READ | PROT_WRITE, MAP_SHARED) == EPERM);
  CHECK(map_error(fd, size, PROT_WRITE, MAP_SHARED) == EPERM);
  const FileDescriptor again = reopen(fd);
  if (again) CHECK(map_error(again.get(), size, PROT_READ | PROT_WRITE, MAP_SHARED) == EPERM);
  // Nor can a mapping be made writable later, nor the file be written otherwise.
  const Mapping mapping(host.request_fd(), size, Mapping::Access::read_only);
  CHECK(error_of(::mprotect(mapping.data(), size, PROT_READ | PROT_WRITE)) == EACCES);
  CHECK(::pwrite(fd, "x", 1, 0) == -1);
  CHECK(errno == EPERM);
  CHECK(error_of(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096)) == EPERM);
}

TEST_CASE("neither area can be cut short, grown or sealed further", "[channel]") {
  HostChannel host(kLayout);
  struct Area {
    const char* name;
    int fd;
    std::size_t size;
  };
  for (const Area& area : {Area{"request", host.request_fd().get(), kLayout.request_size()},
                           Area{"response", host.response_fd().get(), kLayout.response_size()}}) {
    INFO(area.name);
    const FileDescriptor again = reopen(area.fd);
    for (const int fd : {area.fd, again ? again.get() : area.fd}) {
      CHECK(error_of(::ftruncate(fd, 0)) == EPERM);
      CHECK(error_of(::ftruncate(fd, static_cast<off_t>(area.size - 1))) == EPERM);
      CHECK(error_of(::ftruncate(fd, static_cast<off_t>(area.size + 1))) == EPERM);
      CHECK(error_of(::fallocate(fd, 0, static_cast<off_t>(area.size), 4096)) == EPERM);
      // F_SEAL_WRITE on the response area would be a worker's way to make the next worker's writes fail.
      for (const int more : {F_SEAL_SEAL, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK}) {
        CHECK(error_of(::fcntl(fd, F_ADD_SEALS, more)) == EPERM);
      }
    }
    CHECK((::fcntl(area.fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) ==
          (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
  }
}

TEST_CASE("the host maps the response area read-only, and children inherit neither area", "[channel]") {
  REQUIRE(mappings_of("bulkhead-request").empty());
  HostChannel host(kLayout);
  CHECK(mappings_of("bulkhead-request") == std::vector<std::string>{"rw-s"});
  CHECK(mappings_of("bulkhead-response") == std::vector<std::string>{"r--s"});
  Child child([] {
    if (!mappings_of("bulkhead-").empty()) throw std::runtime_error("mapped");
  });
  CHECK(child.wait() == 0);
}

TEST_CASE("close_areas closes the two areas and leaves the doorbell", "[channel]") {
  HostChannel host(kLayout);
  host.close_areas();
  CHECK_FALSE(host.request_fd());
  CHECK_FALSE(host.response_fd());
  CHECK(host.doorbell());
  host.close_areas();
}

namespace {

// A host that has published requests, and the area of a worker that writes what it likes.
struct Hostile {
  explicit Hostile(std::uint32_t published) {
    for (std::uint32_t i = 0; i < published; ++i) sender.send({});
  }

  void claim(std::uint32_t sequence, ResponseKind kind, std::uint64_t size, std::uint64_t offset) {
    ResponseSlot& slot = raw.slot(sequence);
    slot.sequence.store(sequence);
    slot.kind.store(kind);
    slot.size.store(size);
    slot.heap_offset.store(offset);
  }

  HostChannel host{kLayout};
  RawResponses raw{host};
  Sender sender{host};
};

}  // namespace

TEST_CASE("a count of answers beyond the requests, or backwards, is a violation", "[channel][hostile]") {
  Hostile hostile(5);
  auto& committed = hostile.raw.header().committed;
  const auto max = std::numeric_limits<std::uint32_t>::max();
  for (const std::uint32_t impossible : {6U, 7U, 5U + kSlots, 0x7fffffffU, 0x80000000U, max - 1, max}) {
    INFO(impossible);
    committed.store(impossible);
    CHECK_THROWS_MATCHES(hostile.host.committed(), ProtocolViolation,
                         Catch::Matchers::Predicate<ProtocolViolation>([](const ProtocolViolation& violation) {
                           return std::string(violation.what()).find("of 5 requests") != std::string::npos;
                         }));
  }
  committed.store(3);
  CHECK(hostile.host.committed() == 3);
  for (const std::uint32_t backwards : {2U, 0U, max}) {
    INFO(backwards);
    committed.store(backwards);
    CHECK_THROWS_AS(hostile.host.committed(), ProtocolViolation);
  }
  committed.store(5);
  CHECK(hostile.host.committed() == 5);
}

TEST_CASE("an answer before any request is a violation", "[channel][hostile]") {
  Hostile hostile(0);
  hostile.raw.header().committed.store(1);
  CHECK_THROWS_AS(hostile.host.committed(), ProtocolViolation);
}

TEST_CASE("an answer that does not name its request is a violation", "[channel][hostile]") {
  Hostile hostile(3);
  for (const std::uint32_t wrong :
       {0U, 2U, 1U + kSlots, 1U - kSlots, std::numeric_limits<std::uint32_t>::max(), 0x80000001U}) {
    INFO(wrong);
    hostile.claim(1, ResponseKind::outcome, 0, kInline);
    CHECK(hostile.host.response(1).payload.empty());
    hostile.raw.slot(1).sequence.store(wrong);
    CHECK_THROWS_AS(hostile.host.response(1), ProtocolViolation);
  }
}

TEST_CASE("an answer of an unknown kind is a violation", "[channel][hostile]") {
  Hostile hostile(1);
  for (const std::uint32_t kind : {2U, 3U, 256U, 0x8000U, 0xffffU}) {
    INFO(kind);
    hostile.claim(0, static_cast<ResponseKind>(kind), 0, kInline);
    CHECK_THROWS_AS(hostile.host.response(0), ProtocolViolation);
  }
}

TEST_CASE("an answer's size and place are within its slot or the heap, or it is a violation", "[channel][hostile]") {
  constexpr auto kMax = std::numeric_limits<std::uint64_t>::max();
  struct Row {
    std::uint64_t size;
    std::uint64_t offset;
    bool possible;
  };
  const Row rows[] = {
      {0, kInline, true},
      {kResponseInline, kInline, true},
      {kResponseInline + 1, kInline, false},
      {kSlotSize, kInline, false},
      {kHeap, kInline, false},
      {kMax, kInline, false},
      {0, 0, true},
      {kHeap, 0, true},
      {kHeap + 1, 0, false},
      {kMax, 0, false},
      {kMax, 1, false},
      {0, kHeap, true},
      {0, kHeap + 1, false},
      {1, kHeap - 1, true},
      {1, kHeap, false},
      {2, kHeap - 1, false},
      {kHeap / 2, kHeap / 2, true},
      {kHeap / 2 + 1, kHeap / 2, false},
      {1, 7, true},            // nothing says that a hostile block is aligned
      {16, kMax - 15, false},  // the sum is 0
      {64, kMax - 1, false},
      {kHeap, kMax - kHeap + 1, false},
      {std::uint64_t{1} << 63, std::uint64_t{1} << 63, false},
      {kMax - 63, 64, false},
      {1, std::uint64_t{1} << 40, false},
  };
  Hostile hostile(1);
  const Bytes heap = pattern(kHeap, 9);
  std::copy(heap.begin(), heap.end(), hostile.raw.heap());
  for (const Row& row : rows) {
    INFO(row.size << " bytes at " << row.offset);
    hostile.claim(0, ResponseKind::outcome, row.size, row.offset);
    if (!row.possible) {
      CHECK_THROWS_AS(hostile.host.response(0), ProtocolViolation);
      continue;
    }
    const Response response = hostile.host.response(0);
    REQUIRE(response.payload.size() == row.size);
    if (row.offset == kInline) continue;
    CHECK((copy_of(response.payload) == copy_of(std::span(heap).subspan(row.offset, row.size))));
  }
}

TEST_CASE("whatever size a skipped request claims, it has no payload", "[channel][hostile]") {
  Hostile hostile(1);
  hostile.claim(0, ResponseKind::skipped, kHeap * 2, kHeap * 3);
  CHECK(hostile.host.response(0).payload.empty());
}

TEST_CASE("an unknown state of a worker is a failed one, and its report is bounded", "[channel][hostile]") {
  Hostile hostile(0);
  auto& header = hostile.raw.header();
  for (const std::uint32_t state : {2U, 3U, 255U, 0x80000000U, std::numeric_limits<std::uint32_t>::max()}) {
    header.state.store(state);
    CHECK(hostile.host.state() == WorkerState::failed);
  }
  std::memset(header.report, 'a', sizeof(header.report));
  for (const std::uint32_t size : {2049U, 1U << 20, 0x80000000U, std::numeric_limits<std::uint32_t>::max()}) {
    header.report_size.store(size);
    CHECK(hostile.host.report() == std::string(kReportSize, 'a'));
  }
  header.report_size.store(0);
  CHECK(hostile.host.report() == "");
}

TEST_CASE("whatever a worker writes into the words that only wake, publishing and consuming go on",
          "[channel][hostile]") {
  Hostile hostile(0);
  for (const std::uint32_t sleeping : {1U, 2U, 3U, std::numeric_limits<std::uint32_t>::max()}) {
    hostile.raw.header().sleeping.store(sleeping);
    const auto sequence = hostile.sender.send({});
    hostile.raw.header().committed.store(sequence + 1);
    CHECK(hostile.host.committed() == sequence + 1);
    hostile.host.consume(sequence + 1);
    hostile.host.arm();
  }
}

TEST_CASE("a worker that lies about what it has begun cannot make a request both begun and free",
          "[channel][hostile]") {
  Hostile hostile(3);
  hostile.raw.header().begun.store(3);
  CHECK(hostile.host.begun(2));
  CHECK_FALSE(hostile.host.take_back(2));
  // What it has begun it cannot unsay.
  hostile.raw.header().begun.store(0);
  CHECK(hostile.host.begun(2));
  CHECK_FALSE(hostile.host.take_back(2));
  // It has begun no more than there is.
  Hostile other(3);
  other.raw.header().begun.store(1000);
  CHECK(other.host.begun(2));
  CHECK_FALSE(other.host.begun(3));
}

TEST_CASE("garbage all over the area, while the host reads it, is refused or stays within bounds",
          "[channel][hostile]") {
  // The writer is another process, which ThreadSanitizer does not see: so this runs there, too. Inside one process it
  // would be a race on purpose.
  const HangGuard guard;
  static constexpr ArenaLayout kSmall{64 * 1024};
  static constexpr std::uint32_t kPublished = 200;
  HostChannel host(kSmall);
  Sender sender(host);
  for (std::uint32_t i = 0; i < kPublished; ++i) sender.send({});
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  const RawResponses raw(host, kSmall);
  Child child([&raw, seed] {
    std::mt19937_64 random(seed);
    ResponseHeader& header = raw.header();
    const std::span<std::byte> all = raw.all();
    for (;;) {
      switch (random() % 4) {
        case 0: {  // anything, anywhere
          const std::uint64_t word = random() % 2 == 0 ? random() : ~(random() % 300);
          std::memcpy(all.data() + random() % (all.size() - sizeof(word)), &word, sizeof(word));
          break;
        }
        case 1:
          header.committed.store(static_cast<std::uint32_t>(random() % (kPublished + 3)));
          header.begun.store(static_cast<std::uint32_t>(random() % (kPublished + 3)));
          header.report_size.store(static_cast<std::uint32_t>(random() % 5000));
          header.state.store(static_cast<std::uint32_t>(random() % 4));
          break;
        default: {  // what an answer looks like, nearly
          const auto sequence = static_cast<std::uint32_t>(random() % kPublished);
          ResponseSlot& slot = header.slots[sequence % kSlots];
          const std::uint64_t offset = random() % 3 == 0 ? kInline : random() % (kSmall.heap_size + 100);
          slot.sequence.store(sequence + (random() % 4 == 0 ? 1 : 0));
          slot.kind.store(static_cast<ResponseKind>(random() % 3));
          slot.heap_offset.store(offset);
          slot.size.store(random() % (offset == kInline ? kSlotSize : kSmall.heap_size));
        }
      }
    }
  });
  std::uint64_t refused = 0;
  std::uint64_t accepted = 0;
  std::uint64_t out_of_bounds = 0;
  std::uint64_t wrong_error = 0;
  std::uint64_t sum = 0;
  std::mt19937 random(seed);
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  for (int i = 0; i < 200'000 || refused == 0 || accepted == 0; ++i) {
    if (std::chrono::steady_clock::now() > end) break;
    try {
      if (host.committed() > kPublished) ++out_of_bounds;
    } catch (const ProtocolViolation&) {
      ++refused;
    } catch (...) {
      ++wrong_error;
    }
    try {
      const Response response = host.response(static_cast<std::uint32_t>(random() % kPublished));
      const std::size_t most = response.in_slot ? kResponseInline : kSmall.heap_size;
      if (response.payload.size() > most) {
        ++out_of_bounds;
        continue;  // reading it may be the end of this program before it has told
      }
      const Bytes copy = i % 16 == 0 ? copy_of(response.payload) : Bytes();
      sum = std::accumulate(copy.begin(), copy.end(), sum,
                            [](std::uint64_t total, std::byte b) { return total + std::to_integer<unsigned>(b); });
      ++accepted;
    } catch (const ProtocolViolation&) {
      ++refused;
    } catch (...) {
      ++wrong_error;
    }
    if (host.report().size() > kReportSize) ++out_of_bounds;
    sum += static_cast<std::uint64_t>(host.state()) + (host.begun(7) ? 1 : 0) + host.begun_ns();
  }
  child.end();
  INFO("checksum " << sum);
  CHECK(refused > 0);
  CHECK(accepted > 0);
  CHECK(out_of_bounds == 0);
  CHECK(wrong_error == 0);
}

TEST_CASE("An answer's block is not another answer's before it is read, however late the worker hears of others",
          "[channel]") {
  Channels channels;
  HostChannel& host = channels.host;
  const Bytes call = pattern(8, 0);
  const auto run_one = [&](const Bytes& answered) {
    channels.sender.send(call);
    static_cast<void>(channels.worker.next(kNothing));
    answer(channels.worker, answered);
  };
  // A whole ring of short answers, which the host reads and says nothing of.
  for (std::uint32_t i = 0; i < kSlots; ++i) run_one(call);
  REQUIRE(host.committed() == kSlots);
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    REQUIRE(host.response(i).in_slot);
    host.free_slot();
  }
  const Bytes first = pattern(5000, 1);
  const Bytes second = pattern(5000, 2);
  run_one(first);
  host.show_consumed();
  run_one(second);
  REQUIRE(host.committed() == kSlots + 2);
  CHECK(copy_of(host.response(kSlots).payload) == first);
  CHECK(copy_of(host.response(kSlots + 1).payload) == second);
}
