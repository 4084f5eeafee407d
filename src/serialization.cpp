// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

#include <cxxabi.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace bulkhead {

namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// Standard types as people write them: their inline namespaces and allocators are noise to a reader.
std::string readable(std::string type) {
  replace_all(type, "std::__cxx11::", "std::");
  replace_all(type, "std::basic_string<char, std::char_traits<char>, std::allocator<char> >", "std::string");
  replace_all(type, "std::basic_string_view<char, std::char_traits<char> >", "std::string_view");
  constexpr std::string_view kAllocator = ", std::allocator<";
  for (auto begin = type.find(kAllocator); begin != std::string::npos; begin = type.find(kAllocator, begin)) {
    std::size_t end = begin + kAllocator.size();
    for (int open = 1; open > 0 && end < type.size(); ++end) open += type[end] == '<' ? 1 : type[end] == '>' ? -1 : 0;
    // "std::vector<int, std::allocator<int> >": with the space that separates the two brackets.
    if (end < type.size() && type[end] == ' ') ++end;
    type.erase(begin, end - begin);
  }
  return type;
}

}  // namespace

std::string demangle(const char* name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> demangled(abi::__cxa_demangle(name, nullptr, nullptr, &status),
                                                              &std::free);
  return demangled ? readable(demangled.get()) : name;
}

void Encoder::enter(const std::type_info& type) {
  constexpr std::size_t limit = DecodeLimits{}.max_depth;
  if (depth_ == limit) {
    codec_detail::refuse(type, "The value is nested deeper than " + std::to_string(limit) + " levels.");
  }
  ++depth_;
}

std::uint64_t Decoder::read_size() {
  std::uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    const auto byte = read_value<std::uint8_t>();
    // The tenth byte holds the 64th bit.
    if (shift == 63 && byte > 1) {
      fail("A size at offset " + std::to_string(position_ - 1) + " has more than 64 bits.");
    }
    if (shift != 0 && byte == 0) {
      fail("A size at offset " + std::to_string(position_ - 1) + " ends with a zero and so is longer than it must be.");
    }
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) {
      return value;
    }
  }
}

std::size_t Decoder::read_count(std::size_t min_bytes_per_element) {
  const std::uint64_t count = read_size();
  if (min_bytes_per_element != 0 && count > remaining() / min_bytes_per_element) {
    fail(std::to_string(count) + " elements of at least " + std::to_string(min_bytes_per_element) +
         " bytes each do not fit into the " + std::to_string(remaining()) + " bytes that are left.");
  }
  return static_cast<std::size_t>(count);
}

void Decoder::claim(std::size_t count, std::size_t size) {
  std::size_t total = 0;
  if (__builtin_mul_overflow(count, size, &total) || total > memory_left_) {
    fail("With " + std::to_string(count) + " more objects of " + std::to_string(size) +
         " bytes it would take more memory than a message of " + std::to_string(bytes_.size()) + " bytes may (" +
         std::to_string(limits_.memory_base) + " bytes and " + std::to_string(limits_.memory_per_byte) +
         " for each byte of it).");
  }
  memory_left_ -= total;
}

std::span<const std::byte> Decoder::view(std::size_t size) {
  if (source_ != Source::trusted) {
    throw std::logic_error("bulkhead::Decoder: bytes that another process may change cannot be viewed in place");
  }
  return {take(size), size};
}

void Decoder::fail_left_over() const { fail(std::to_string(remaining()) + " bytes are left over behind the value."); }

void Decoder::enter(const std::type_info& type) {
  type_ = &type;
  if (depth_ == limits_.max_depth) {
    fail("The value is nested deeper than " + std::to_string(limits_.max_depth) + " levels.");
  }
  ++depth_;
}

void Decoder::fail(const std::string& reason) const {
  throw SerializationError(SerializationError::Part::value, type_ != nullptr ? demangle(type_->name()) : std::string(),
                           reason);
}

void Decoder::fail_short(std::size_t size) const {
  fail("The bytes end too early: " + std::to_string(size) + " are needed at offset " + std::to_string(position_) +
       " and " + std::to_string(remaining()) + " are left.");
}

namespace codec_detail {

void refuse(const std::type_info& type, const std::string& reason) {
  throw SerializationError(SerializationError::Part::value, demangle(type.name()), reason);
}

void refuse_flag(Decoder& decoder, const char* what, unsigned value) {
  decoder.fail("The flag of a " + std::string(what) + " is 0 or 1, and " + std::to_string(value) + " was read.");
}

void refuse_index(Decoder& decoder, std::uint64_t index, std::size_t count) {
  decoder.fail("Alternative " + std::to_string(index) + " of a variant of " + std::to_string(count) +
               " does not exist.");
}

void refuse_bits(Decoder& decoder, std::uint64_t count) {
  decoder.fail(std::to_string(count) + " bools do not fit into the " + std::to_string(decoder.remaining()) +
               " bytes that are left.");
}

void refuse_duplicates(Decoder& decoder, std::size_t count) {
  decoder.fail("A set or map has " + std::to_string(count) + " keys more than once.");
}

void Bulk::refuse_misaligned(std::size_t alignment) {
  throw std::logic_error("bulkhead::decode_view: the message does not lie at a multiple of " +
                         std::to_string(alignment) + " bytes, as the view needs");
}

}  // namespace codec_detail

}  // namespace bulkhead
