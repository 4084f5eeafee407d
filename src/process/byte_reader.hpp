// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace bulkhead::process {

/// Reads values one after the other out of bytes that may be damaged. What is not there is read as zero or empty, and
/// so is everything after it: whoever reads in a loop asks `empty()`.
class ByteReader {
 public:
  ByteReader() = default;
  explicit ByteReader(std::span<const std::byte> bytes) noexcept : rest_(bytes) {}

  bool empty() const noexcept { return rest_.empty(); }
  std::size_t size() const noexcept { return rest_.size(); }

  /// In the byte order of this machine, which is that of every file it runs.
  template <std::integral T>
  T read() noexcept {
    const std::span<const std::byte> bytes = take(sizeof(T));
    T value{};
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }

  /// LEB128 (DWARF 5, 7.6); of a number that is longer than 64 bits, the lowest of them.
  std::uint64_t read_uleb128() noexcept { return read_leb128().value; }
  std::int64_t read_sleb128() noexcept {
    const Leb128 number = read_leb128();
    const bool negative = number.negative && number.bits < 64;
    return static_cast<std::int64_t>(negative ? number.value | ~std::uint64_t{0} << number.bits : number.value);
  }

  /// Text that ends with a null character, which is read, too.
  std::string_view read_string() noexcept {
    const auto* const text = reinterpret_cast<const char*>(rest_.data());
    const std::size_t length = rest_.empty() ? 0 : ::strnlen(text, rest_.size());
    return take(length + 1).empty() ? std::string_view() : std::string_view(text, length);
  }

  std::span<const std::byte> take(std::uint64_t size) noexcept {
    std::span<const std::byte> taken;
    if (size <= rest_.size()) {
      taken = rest_.first(static_cast<std::size_t>(size));
      rest_ = rest_.subspan(static_cast<std::size_t>(size));
    } else {
      rest_ = {};
    }
    return taken;
  }

 private:
  struct Leb128 {
    std::uint64_t value = 0;
    unsigned bits = 0;
    bool negative = false;
  };

  Leb128 read_leb128() noexcept {
    constexpr std::uint8_t kMore = 0x80;
    constexpr std::uint8_t kSign = 0x40;
    Leb128 number;
    for (std::uint8_t byte = kMore; (byte & kMore) != 0 && !rest_.empty();) {
      byte = read<std::uint8_t>();
      number.negative = (byte & kSign) != 0;
      if (number.bits >= 64) continue;
      number.value |= std::uint64_t{byte & 0x7FU} << number.bits;
      number.bits += 7;
    }
    return number;
  }

  std::span<const std::byte> rest_;
};

}  // namespace bulkhead::process
