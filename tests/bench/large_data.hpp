// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "bench/measure.hpp"

#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

// What large arguments and results cost, beside the same copies made in this process alone.
//   read     a std::vector<std::byte> is moved in, read in place as a std::span, and its checksum comes back; beside it
//            one memcpy into memory in use, and the checksum
//   echo     it is moved in and comes back; beside it the four copies that this is, two of them into new vectors,
//            which have to take their memory from the system
//   shared   a SharedBuffer makes the same way
namespace bulkhead::bench {

namespace asio = boost::asio;
using Bytes = std::vector<std::byte>;

inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i + sizeof(sum) <= bytes.size(); i += sizeof(sum)) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + i, sizeof(word));
    sum += word;
  }
  return sum;
}
inline Bytes echo(Bytes bytes) { return bytes; }
inline SharedBuffer echo_shared(SharedBuffer buffer) { return buffer; }

// Keeps the compiler from leaving out what nobody looks at.
inline void keep(const void* data) { asm volatile("" : : "r"(data) : "memory"); }

class LargeData {
 public:
  LargeData(asio::io_context& context, std::size_t size, int rounds)
      : context_(context), size_(size), rounds_(rounds), pool_(context.get_executor(), options(size)) {}

  void measure(Report& report) {
    std::vector<double> read;
    std::vector<double> read_here;
    std::vector<double> echoed;
    std::vector<double> copied_here;
    Bytes warm(size_);
    // The first round for nothing: it touches all memory for the first time.
    for (int i = -1; i < rounds_; ++i) {
      Bytes bytes(size_, std::byte{0x5a});
      const std::uint64_t expected = checksum(bytes);
      const double read_us = timed(bytes, [this](Bytes& given) { return read_there(given); });
      if (checksum_ != expected) throw std::runtime_error("a checksum is wrong");
      bytes.assign(size_, std::byte{0x5a});
      const double read_here_us = us_per_call(1, [&] {
        std::memcpy(warm.data(), bytes.data(), size_);
        keep(warm.data());
        checksum_ = checksum(warm);
        keep(&checksum_);
      });
      const double echo_us = timed(bytes, [this](Bytes& given) { return echo_there(given); });
      if (checksum(bytes) != expected) throw std::runtime_error("an echo has changed its bytes");
      const double copies_us = us_per_call(1, [&] {
        std::memcpy(warm.data(), bytes.data(), size_);
        keep(warm.data());
        const Bytes fresh(warm);
        keep(fresh.data());
        std::memcpy(warm.data(), fresh.data(), size_);
        keep(warm.data());
        const Bytes fresh_too(warm);
        keep(fresh_too.data());
      });
      if (i < 0) continue;
      read.push_back(read_us);
      read_here.push_back(read_here_us);
      echoed.push_back(echo_us);
      copied_here.push_back(copies_us);
    }
    const auto name = [this](const char* what) { return fmt::format("{} MiB {}", size_ >> 20, what); };
    const auto beside = [](double there, double here) {
      return fmt::format("{:.1f} ms; here {:.1f} ms", there / 1e3, here / 1e3);
    };
    report.row(name("in, its checksum back / one memcpy and the checksum"), median_ratio(read, read_here),
               Better::lower, 1.5, "×", beside(median(read), median(read_here)));
    report.row(name("std::vector echoed / the same copies here"), median_ratio(echoed, copied_here), Better::lower, 2,
               "×", beside(median(echoed), median(copied_here)));
    measure_shared(report);
  }

 private:
  static LocalExecutorOptions options(std::size_t size) {
    LocalExecutorOptions options;
    options.max_workers = 1;
    options.max_shared_memory = size + (std::size_t{1} << 20);  // for the small one, too
    return options;
  }

  asio::awaitable<void> read_there(Bytes& bytes) { checksum_ = co_await pool_.submit(checksum, std::move(bytes)); }
  asio::awaitable<void> echo_there(Bytes& bytes) { bytes = co_await pool_.submit(echo, std::move(bytes)); }
  asio::awaitable<void> echo_buffer(SharedBuffer& buffer) {
    buffer = co_await pool_.submit(echo_shared, std::move(buffer));
  }

  template <class Value, class Make>
  double timed(Value& value, Make make) {
    context_.restart();
    return us_per_call(1, [&] {
      asio::co_spawn(context_, make(value), [](std::exception_ptr error) {
        if (error) std::rethrow_exception(error);
      });
      context_.run();
    });
  }

  void measure_shared(Report& report) {
    SharedBuffer buffer = pool_.make_buffer(size_);
    SharedBuffer small = pool_.make_buffer(1);
    std::memset(buffer.data(), 0x5a, buffer.size());
    // In turns: what had gone before, copies of as much, leaves neither the caches nor the worker as it found them.
    std::vector<double> us;
    std::vector<double> small_us;
    for (int i = 0; i < 10 * rounds_; ++i) {
      us.push_back(timed(buffer, [this](SharedBuffer& given) { return echo_buffer(given); }));
      small_us.push_back(timed(small, [this](SharedBuffer& given) { return echo_buffer(given); }));
    }
    report.row(fmt::format("{} MiB SharedBuffer echoed", size_ >> 20), median(us), Better::lower, 50, "µs",
               fmt::format("one byte {:.1f} µs", median(small_us)));
  }

  asio::io_context& context_;
  const std::size_t size_;
  const int rounds_;
  LocalExecutor pool_;
  std::uint64_t checksum_ = 0;
};

}  // namespace bulkhead::bench
