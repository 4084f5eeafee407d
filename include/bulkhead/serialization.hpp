// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/codec_shape.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/errors.hpp>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <vector>

// How values become bytes and bytes become values. What is carried, in the order in which it is tried:
//   1. what `codec<T>` is specialised for;
//   2. types with a hook in cereal's form: `serialize(Archive&)`, or `save(Archive&) const` and `load(Archive&)`, as
//      members or as free functions `serialize(Archive&, T&)` and so on;
//   3. numbers, enumerations and the standard library's owning types: strings, containers and their adaptors, `path`,
//      `optional`, `variant`, `pair`, `tuple`, `unique_ptr`, `shared_ptr` (each owns its value: what two of them share
//      becomes two), `duration`, `time_point`, `complex`, `bitset`;
//   4. aggregates of up to 64 members without base classes, C arrays and references, member by member.
// What has no padding and no invalid value is copied in one piece, ranges of it as well.
namespace bulkhead {

class Encoder;
class Decoder;

static_assert(std::endian::native == std::endian::little, "The wire is little-endian and so must the processor be.");

/// The way to carry a T that needs one of its own: specialise it with `static void encode(Encoder&, const T&)` and
/// `static T decode(Decoder&)`. Inside, `bulkhead::encode(encoder, part)` and `bulkhead::decode<Part>(decoder)` carry
/// the parts.
template <class T>
struct codec;

namespace codec_detail {

// Buffers are aligned to this, a cache line.
inline constexpr std::size_t max_alignment = 64;

constexpr std::size_t padding(std::size_t position, std::size_t alignment) noexcept {
  return (0 - position) % std::min(alignment, max_alignment);
}

// Why a type cannot be carried.
enum class Reason {
  none,
  unknown,
  pointer,
  polymorphic_pointer,
  view,
  lambda,
  array,
  base,
  union_type,
  not_constructible,
  bad_codec,
  inherited_hook
};

// The first reason found in T. The types in Open are being looked at already: T may contain them.
template <class T, class... Open>
constexpr Reason find_reason();

template <class T>
constexpr void require_serializable();
template <class T>
void put(Encoder& encoder, const T& value);
template <class T>
T take(Decoder& decoder);
template <class T, class... Open>
constexpr std::uint64_t hash_shape(std::uint64_t hash);
// Whether a T is copied in one piece.
template <class T>
constexpr bool is_bitwise();
template <class View, class Source>
constexpr bool views_in_place();
template <class View>
struct DefaultSource;
struct Bulk;
template <class Coder>
class Nested;
[[noreturn]] BULKHEAD_EXPORT void refuse(const std::type_info& type, const std::string& reason);

}  // namespace codec_detail

/// What a message may demand of the process that decodes it: its depth always, its memory if it is not trusted. The
/// defaults hold for tasks.
struct DecodeLimits {
  /// How deep structs, hooked types and types with a codec may lie in one another. Encoding keeps to the default, too:
  /// deeper recursion endangers the stack, and 64 is more than data has that is not a linked list.
  std::size_t max_depth = 64;
  /// A message may take `memory_base + memory_per_byte * size` bytes of memory, in which every element of a container
  /// counts with its own size and that of its node. 64: the costliest ordinary element is the node of a `std::multiset`
  /// of bytes, 48 bytes of memory for one byte of message.
  std::size_t memory_per_byte = 64;
  /// 16 MiB: lets small messages be as wasteful as they like (a thousand empty `optional`s of something large), and
  /// is nothing that hurts a process.
  std::size_t memory_base = std::size_t{16} << 20;
};

/// Demangles the name of a type; returns it as it is if that is impossible.
BULKHEAD_EXPORT std::string demangle(const char* name);

/// The name of T as one writes it.
template <class T>
std::string type_name() {
  return demangle(typeid(T).name());
}

/// Writes values into a caller's buffer for as long as they fit, and counts all the same: one pass tries a small buffer
/// and learns the exact size for a large one.
///
/// Distinct objects: safe. Shared objects: not.
class BULKHEAD_EXPORT Encoder {
 public:
  /// `buffer` should be aligned to 64, and must be if what is written is to be viewed in place.
  explicit Encoder(std::span<std::byte> buffer) noexcept : buffer_(buffer) {}

  /// Appends bytes as they are.
  void write(const void* data, std::size_t size) noexcept {
    if (size_ <= buffer_.size() && size <= buffer_.size() - size_ && size != 0) {
      std::memcpy(buffer_.data() + size_, data, size);
    }
    size_ += size;
  }

  /// Appends a value's bytes. For numbers, enumerations, and arrays and aggregates of them without padding.
  template <class T>
  void write_value(const T& value) noexcept {
    static_assert(codec_detail::is_bitwise<T>(), "T has padding, or bytes that are no valid value.");
    write(&value, sizeof(T));
  }

  /// Appends a size or an index in 1 to 10 bytes (LEB128).
  void write_size(std::uint64_t n) noexcept {
    std::uint8_t bytes[10];
    std::size_t used = 0;
    for (; n >= 0x80; n >>= 7) {
      bytes[used++] = static_cast<std::uint8_t>(n | 0x80);
    }
    bytes[used++] = static_cast<std::uint8_t>(n);
    write(bytes, used);
  }

  /// Appends zeros until the size is a multiple of `alignment`, or of 64 if that is less.
  void align(std::size_t alignment) noexcept {
    static constexpr std::byte zeros[codec_detail::max_alignment] = {};
    write(zeros, codec_detail::padding(size_, alignment));
  }

  /// How many bytes have been needed so far, whether or not they fitted.
  std::size_t size() const noexcept { return size_; }
  /// Whether all of them fitted; if not, the buffer's contents are of no use.
  bool fits() const noexcept { return size_ <= buffer_.size(); }

 private:
  friend class codec_detail::Nested<Encoder>;

  // Around nested values. Throws `SerializationError` when they are too deep.
  void enter(const std::type_info& type);
  void leave() noexcept { --depth_; }

  std::span<std::byte> buffer_;
  std::size_t size_ = 0;
  std::size_t depth_ = 0;
};

/// Reads values from a buffer that may be shared with a hostile process.
///
/// Each byte is read once, by copying it into private memory; what is checked is the copy. Every function but `view`
/// throws `SerializationError` when the bytes cannot be what an `Encoder` wrote; then decode no further.
///
/// Distinct objects: safe. Shared objects: not.
class BULKHEAD_EXPORT Decoder {
 public:
  enum class Source {
    trusted,   ///< Nobody changes the bytes while they are viewed in place.
    untrusted  ///< The bytes may be anything and change at any time.
  };

  /// Reads `bytes`, which must outlive the decoder and all views from it, and lie as aligned as they did when encoded
  /// if they are to be viewed.
  explicit Decoder(std::span<const std::byte> bytes, Source source = Source::trusted,
                   const DecodeLimits& limits = DecodeLimits()) noexcept
      : bytes_(bytes), memory_left_(memory_for(bytes.size(), source, limits)), limits_(limits), source_(source) {}

  /// Copies the next `size` bytes to `out`.
  void read(void* out, std::size_t size) {
    const std::byte* from = take(size);
    if (size != 0) {
      std::memcpy(out, from, size);
    }
    fence(out);
  }

  /// Reads what `Encoder::write_value` wrote.
  template <class T>
  T read_value() {
    static_assert(codec_detail::is_bitwise<T>(), "T has padding, or bytes that are no valid value.");
    alignas(T) std::byte copy[sizeof(T)];
    read(copy, sizeof(T));
    return std::bit_cast<T>(copy);  // needs no default constructor
  }

  /// Reads what `Encoder::write_size` wrote.
  std::uint64_t read_size();

  /// Reads the number of elements that follow, of which each takes at least so many bytes: more than can follow is an
  /// error. With 0 the number is as yet unchecked; `claim` memory before taking any.
  std::size_t read_count(std::size_t min_bytes_per_element);

  /// Announces that `count` objects of `size` bytes are going to be allocated. Throws `SerializationError` when the
  /// message has then claimed more than `DecodeLimits` give it.
  void claim(std::size_t count, std::size_t size);

  /// The next `size` bytes in place. Throws `std::logic_error` for an untrusted source.
  std::span<const std::byte> view(std::size_t size);

  /// Skips the zeros of `Encoder::align`.
  void align(std::size_t alignment) { take(codec_detail::padding(position_, alignment)); }

  /// How many bytes are left.
  std::size_t remaining() const noexcept { return bytes_.size() - position_; }

  /// Throws `SerializationError` if bytes are left.
  void finish() {
    if (remaining() != 0) fail_left_over();
  }

  /// Throws a `SerializationError` of the value that is being decoded, for codecs and hooks that find a value
  /// impossible. `reason` is a full sentence.
  [[noreturn]] void fail(const std::string& reason) const;

 private:
  friend struct codec_detail::Bulk;
  friend class codec_detail::Nested<Decoder>;
  template <class T>
  friend T decode(Decoder& decoder);

  // Around nested values. Throws `SerializationError` when they are too deep.
  void enter(const std::type_info& type);
  void leave() noexcept { --depth_; }

  const std::byte* take(std::size_t size) {
    if (size > remaining()) {
      fail_short(size);
    }
    const std::byte* from = bytes_.data() + position_;
    position_ += size;
    return from;
  }
  // Keeps the compiler from reading the source again where it could use the copy.
  static void fence(const void* copy) noexcept { asm volatile("" : : "r"(copy) : "memory"); }
  // Inline, as is all that an answer of one number needs: it is decoded for each task.
  static std::size_t memory_for(std::size_t size, Source source, const DecodeLimits& limits) noexcept {
    constexpr auto kNoLimit = static_cast<std::size_t>(-1);
    std::size_t memory = 0;
    if (source == Source::trusted || __builtin_mul_overflow(limits.memory_per_byte, size, &memory) ||
        __builtin_add_overflow(limits.memory_base, memory, &memory)) {
      return kNoLimit;
    }
    return memory;
  }
  [[noreturn]] void fail_short(std::size_t size) const;
  [[noreturn]] void fail_left_over() const;

  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
  std::size_t depth_ = 0;
  std::size_t memory_left_;
  DecodeLimits limits_;
  Source source_;
  const std::type_info* type_ = nullptr;  // what is being decoded: the innermost type that was entered, for errors
};

/// Whether a T can be carried to another process and back.
template <class T>
concept Serializable = codec_detail::find_reason<T>()
== codec_detail::Reason::none;

/// Appends a value. A type that cannot be carried is refused at compile time with a sentence that says what to do.
/// Throws `SerializationError` if the value is nested deeper than 64, or a variant in it has no value.
template <class T>
void encode(Encoder& encoder, const T& value) {
  if constexpr (Serializable<T>) {
    codec_detail::put(encoder, value);
  } else {
    codec_detail::require_serializable<T>();
  }
}

/// Reads a value. Throws `SerializationError` if the bytes do not hold one.
template <class T>
T decode(Decoder& decoder) {
  if constexpr (Serializable<T>) {
    if (decoder.type_ == nullptr) {
      decoder.type_ = &typeid(T);
    }
    return codec_detail::take<std::remove_cv_t<T>>(decoder);
  } else {
    codec_detail::require_serializable<T>();
    __builtin_unreachable();  // lest a missing return be a second error
  }
}

/// The bytes of a value, allocated once in their exact size.
template <class T>
std::vector<std::byte> to_bytes(const T& value) {
  // Small values, which most are, are not walked through twice.
  alignas(64) std::byte small[256];
  Encoder first(small);
  bulkhead::encode(first, value);
  if (first.fits()) {
    return {small, small + first.size()};
  }
  std::vector<std::byte> bytes(first.size());
  Encoder second(bytes);
  bulkhead::encode(second, value);
  if (second.size() != bytes.size()) {
    codec_detail::refuse(typeid(T), "It was encoded twice and took a different number of bytes each time.");
  }
  return bytes;
}

/// The value that bytes from anywhere hold, all of them. Throws `SerializationError` if they do not hold one.
template <class T>
T from_bytes(std::span<const std::byte> bytes) {
  Decoder decoder(bytes, Decoder::Source::untrusted);
  T value = bulkhead::decode<T>(decoder);
  decoder.finish();
  return value;
}

/// Whether a View (`std::string_view`, `std::span<const E>`) can show an encoded Source in place: a string, a vector or
/// an array of what is copied in one piece.
template <class View, class Source>
concept ViewsInPlace = codec_detail::views_in_place<View, Source>();

/// Shows an encoded `Source` where it lies. Throws `SerializationError` if the bytes do not hold one, and
/// `std::logic_error` if the decoder's source is not trusted or its bytes lie less aligned than when encoded. The view
/// is valid for as long as the bytes are.
template <class View, class Source = typename codec_detail::DefaultSource<View>::type>
requires ViewsInPlace<View, Source> View decode_view(Decoder& decoder);

/// A number that differs between types that are encoded differently. It is the same for all compilers, and says
/// nothing about the insides of types with a codec or a hook but their name and size.
template <class T>
constexpr std::uint64_t fingerprint() {
  return codec_detail::hash_shape<std::remove_cvref_t<T>>(14695981039346656037U);  // FNV-1a's offset basis
}

}  // namespace bulkhead

#include <bulkhead/detail/codec_types.hpp>  // the bodies
