// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/serialization.hpp>

#include <array>
#include <bitset>
#include <chrono>
#include <complex>
#include <concepts>
#include <deque>
#include <forward_list>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <stack>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>

namespace bulkhead {

namespace codec_detail {

// What an archive does with one value.
template <class T>
void save_value(Encoder& encoder, const T& value);
template <class T>
void load_value(Decoder& decoder, T& value);

}  // namespace codec_detail

/// What a type's `serialize` or `save` gets to write its members: `archive(a, b)`, `archive & a & b`, `archive << a`.
class OutputArchive {
 public:
  using is_saving = std::true_type;
  using is_loading = std::false_type;

  explicit OutputArchive(Encoder& encoder) noexcept : encoder_(encoder) {}

  template <class... Ts>
  OutputArchive& operator()(const Ts&... values) {
    (codec_detail::save_value(encoder_, values), ...);
    return *this;
  }
  template <class T>
  OutputArchive& operator&(const T& value) {
    return (*this)(value);
  }
  template <class T>
  OutputArchive& operator<<(const T& value) {
    return (*this)(value);
  }

 private:
  Encoder& encoder_;
};

/// What a type's `serialize` or `load` gets to read its members: `archive(a, b)`, `archive & a & b`, `archive >> a`.
class InputArchive {
 public:
  using is_saving = std::false_type;
  using is_loading = std::true_type;

  explicit InputArchive(Decoder& decoder) noexcept : decoder_(decoder) {}

  template <class... Ts>
  InputArchive& operator()(Ts&... values) {
    (codec_detail::load_value(decoder_, values), ...);
    return *this;
  }
  template <class T>
  InputArchive& operator&(T& value) {
    return (*this)(value);
  }
  template <class T>
  InputArchive& operator>>(T& value) {
    return (*this)(value);
  }

 private:
  Decoder& decoder_;
};

class access {
 public:
  template <class A, class T>
  static auto serialize(A& archive, T& value) -> decltype(value.serialize(archive), void()) {
    value.serialize(archive);
  }
  template <class A, class T>
  static auto save(A& archive, const T& value) -> decltype(value.save(archive), void()) {
    value.save(archive);
  }
  template <class A, class T>
  static auto load(A& archive, T& value) -> decltype(value.load(archive), void()) {
    value.load(archive);
  }
  template <class T>
  static auto construct() -> decltype(T()) {
    return T();
  }

  template <class C, class R>
  static std::type_identity<C> class_of(R (C::*)(OutputArchive&));
  template <class C, class R>
  static std::type_identity<C> class_of(R (C::*)(OutputArchive&) const);

  // The class that declares the member function template `serialize` or `save`.
  template <class T>
  static auto owner(int) -> decltype(class_of(&T::template serialize<OutputArchive>));
  template <class T>
  static auto owner(long) -> decltype(class_of(&T::template save<OutputArchive>));
  template <class T>
  static auto owner(...) -> std::type_identity<T>;
};

namespace codec_detail {

// ---------------------------------------------------------------------------------------------------------------------
// Which way a type goes.

template <class T>
concept HasCodec = requires(Encoder& encoder, Decoder& decoder, const T& value) {
  codec<T>::encode(encoder, value);
  { codec<T>::decode(decoder) } -> std::same_as<T>;
};

enum class Hook { none, member, member_pair, free, free_pair };

// Free functions are looked for here, where nothing of the same name hides them.
namespace free_hook {
template <class A, class T>
auto call_serialize(A& archive, T& value) -> decltype(serialize(archive, value), void()) {
  serialize(archive, value);
}
template <class A, class T>
auto call_save(A& archive, const T& value) -> decltype(save(archive, value), void()) {
  save(archive, value);
}
template <class A, class T>
auto call_load(A& archive, T& value) -> decltype(load(archive, value), void()) {
  load(archive, value);
}
}  // namespace free_hook

template <class T>
constexpr Hook find_hook() {
  if constexpr (!std::is_class_v<T> && !std::is_enum_v<T> && !std::is_union_v<T>) {
    return Hook::none;
  } else if constexpr (requires(OutputArchive & out, InputArchive & in, T & value) {
                         access::serialize(out, value);
                         access::serialize(in, value);
                       }) {
    return Hook::member;
  } else if constexpr (requires(OutputArchive & out, InputArchive & in, T & value) {
                         access::save(out, value);
                         access::load(in, value);
                       }) {
    return Hook::member_pair;
  } else if constexpr (requires(OutputArchive & out, InputArchive & in, T & value) {
                         free_hook::call_serialize(out, value);
                         free_hook::call_serialize(in, value);
                       }) {
    return Hook::free;
  } else if constexpr (requires(OutputArchive & out, InputArchive & in, T & value) {
                         free_hook::call_save(out, value);
                         free_hook::call_load(in, value);
                       }) {
    return Hook::free_pair;
  } else {
    return Hook::none;
  }
}

template <class T>
inline constexpr Hook hook = find_hook<T>();

template <class T>
constexpr bool has_own_way() {
  return HasCodec<T> || hook<T> != Hook::none;
}

// A base that serialises all of the class that derives from it: `struct Base<Derived>`.
template <class Owner, class T>
inline constexpr bool is_base_by_name = false;
template <template <class...> class Base, class T, class... Rest>
inline constexpr bool is_base_by_name<Base<T, Rest...>, T> = true;

// Converts to T itself, or to the bases of T.
template <class T, bool Itself>
struct ConvertsTo {
  template <class U>
  requires(std::is_base_of_v<std::remove_cv_t<U>, T>&& std::is_same_v<std::remove_cv_t<U>, T> == Itself) operator U&()
      const noexcept;
};

// An inherited hook carries the base's members and would lose T's own.
template <class T>
constexpr bool has_inherited_hook() {
  if constexpr (hook<T> == Hook::member || hook<T> == Hook::member_pair) {
    using Owner = typename decltype(access::owner<T>(0))::type;
    return !std::is_same_v<Owner, T> && !is_base_by_name<Owner, T>;
  } else if constexpr (std::is_class_v<T>) {
    OutputArchive* out = nullptr;
    return [&]<class Base, class Itself>(Base* base, Itself* itself) {
      if constexpr (hook<T> == Hook::free) {
        return requires { free_hook::call_serialize(*out, *base); }
        &&!requires { free_hook::call_serialize(*out, *itself); };
      } else {
        return requires { free_hook::call_save(*out, *base); }
        &&!requires { free_hook::call_save(*out, *itself); };
      }
    }(static_cast<ConvertsTo<T, false>*>(nullptr), static_cast<ConvertsTo<T, true>*>(nullptr));
  } else {
    return false;
  }
}

// A scoped enumeration or one with `: type`: each value of its underlying type is one of its own.
template <class T>
concept FixedEnum = std::is_enum_v<T> && requires {
  T{std::underlying_type_t<T>{}};
};

// The types of the standard library that need code of their own. Each specialisation has
//   Parts      the types that must be serialisable for this one to be
//   shape      its part of the fingerprint
//   min_size   the least number of bytes that a value takes
//   put, take  encode and decode
template <class T>
struct Standard;
template <class T>
concept IsStandard = requires {
  typename Standard<T>::Parts;
};

template <char Tag, std::size_t MinSize, class... Ts>
struct StandardBase {
  using Parts = Types<Ts...>;
  static constexpr std::uint64_t shape = static_cast<std::uint64_t>(Tag);
  static constexpr std::size_t min_size() { return MinSize; }
};

// Types that are one piece if their parts are.
template <class T>
inline constexpr bool is_bitwise_standard = false;
template <class Rep, class Period>
inline constexpr bool is_bitwise_standard<std::chrono::duration<Rep, Period>> = is_bitwise<Rep>();
template <class Clock, class Duration>
inline constexpr bool is_bitwise_standard<std::chrono::time_point<Clock, Duration>> = is_bitwise<Duration>();
template <class T>
inline constexpr bool is_bitwise_standard<std::complex<T>> = is_bitwise<T>();
template <class T, std::size_t N>
inline constexpr bool is_bitwise_standard<std::array<T, N>> = N != 0 && is_bitwise<T>();

template <class T>
constexpr bool is_bitwise() {
  if constexpr (std::is_volatile_v<T> || has_own_way<std::remove_cv_t<T>>()) {
    return false;
  } else if constexpr (std::is_const_v<T>) {
    return is_bitwise<std::remove_cv_t<T>>();
  } else if constexpr (std::is_arithmetic_v<T>) {
    return !std::is_same_v<T, bool> && !std::is_same_v<T, long double>;
  } else if constexpr (FixedEnum<T>) {
    return is_bitwise<std::underlying_type_t<T>>();
  } else if constexpr (is_bitwise_standard<T>) {
    return std::is_trivially_copyable_v<T>;
  } else if constexpr (IsStandard<T> || !std::is_class_v<T> || !std::is_aggregate_v<T> ||
                       !std::is_trivially_copyable_v<T>) {
    return false;
  } else if constexpr (reflection<T>.shape != Shape::plain || reflection<T>.fields == 0) {
    return false;
  } else {
    return []<class... Fs>(Types<Fs...>) {
      return (is_bitwise<Fs>() && ...) && (sizeof(Fs) + ...) == sizeof(T);
    }(FieldTypes<T>{});
  }
}

template <class T>
constexpr bool is_closure();

template <class T>
inline constexpr bool is_view = false;
template <class C, class Traits>
inline constexpr bool is_view<std::basic_string_view<C, Traits>> = true;
template <class T, std::size_t N>
inline constexpr bool is_view<std::span<T, N>> = true;
template <class T>
inline constexpr bool is_view<std::reference_wrapper<T>> = true;
template <class T>
inline constexpr bool is_view<std::initializer_list<T>> = true;

template <class T>
inline constexpr bool is_polymorphic_pointer = false;
template <class T>
requires(!std::is_array_v<T>) inline constexpr bool is_polymorphic_pointer<std::unique_ptr<T>> =
    std::is_polymorphic_v<T> && !std::is_final_v<T>;
template <class T>
requires(!std::is_array_v<T>) inline constexpr bool is_polymorphic_pointer<std::shared_ptr<T>> =
    std::is_polymorphic_v<T> && !std::is_final_v<T>;

template <class... Open, class... Ts>
constexpr Reason find_reason_among(Types<Ts...>) {
  Reason found = Reason::none;
  (void)((found = find_reason<Ts, Open...>(), found == Reason::none) && ...);
  return found;
}

template <class T, class... Open>
constexpr Reason find_reason() {
  if constexpr (std::is_reference_v<T> || is_view<std::remove_cv_t<T>>) {
    return Reason::view;
  } else if constexpr (std::is_const_v<T>) {
    return find_reason<std::remove_const_t<T>, Open...>();
  } else if constexpr (std::is_array_v<T>) {
    return Reason::array;
  } else if constexpr (std::is_pointer_v<T> || std::is_member_pointer_v<T> || std::is_null_pointer_v<T> ||
                       std::is_function_v<T>) {
    return Reason::pointer;
  } else if constexpr (std::is_void_v<T> || std::is_volatile_v<T>) {
    return Reason::unknown;
  } else if constexpr (HasCodec<T>) {
    return Reason::none;
  } else if constexpr (requires { sizeof(codec<T>); }) {
    return Reason::bad_codec;
  } else if constexpr (std::is_arithmetic_v<T>) {
    return Reason::none;
  } else if constexpr (hook<T> != Hook::none) {
    if constexpr (!requires { access::construct<T>(); } || !std::is_move_constructible_v<T>) {
      return Reason::not_constructible;
    } else {
      return has_inherited_hook<T>() ? Reason::inherited_hook : Reason::none;
    }
  } else if constexpr (std::is_enum_v<T>) {
    return Reason::none;
  } else if constexpr (is_polymorphic_pointer<T>) {
    return Reason::polymorphic_pointer;
  } else if constexpr (IsStandard<T>) {
    return find_reason_among<Open...>(typename Standard<T>::Parts{});
  } else if constexpr (std::is_union_v<T>) {
    return Reason::union_type;
  } else if constexpr (!std::is_aggregate_v<T>) {
    return is_closure<T>() ? Reason::lambda : Reason::unknown;
  } else if constexpr ((std::is_same_v<T, Open> || ...)) {
    return Reason::none;
  } else if constexpr (reflection<T>.shape == Shape::base) {
    return Reason::base;
  } else if constexpr (reflection<T>.shape == Shape::array) {
    return Reason::array;
  } else if constexpr (reflection<T>.shape == Shape::union_member) {
    return Reason::union_type;
  } else if constexpr (reflection<T>.shape != Shape::plain) {
    return Reason::unknown;
  } else {
    return find_reason_among<Open..., T>(FieldTypes<T>{});
  }
}

template <class T>
constexpr void require_serializable() {
  constexpr Reason reason = find_reason<T>();
  static_assert(reason != Reason::unknown,
                "Bulkhead cannot carry this type: make it a plain aggregate, add a member function template "
                "serialize(Archive&), or specialise bulkhead::codec<T>.");
  static_assert(reason != Reason::pointer,
                "A pointer means nothing in another process: pass what it points to, by value or in a "
                "std::unique_ptr.");
  static_assert(reason != Reason::polymorphic_pointer,
                "A pointer to a class with virtual functions does not tell which class to make in another process: "
                "make the class final, use a std::variant, or specialise bulkhead::codec for the pointer.");
  static_assert(reason != Reason::view,
                "A view or reference does not own what it shows: pass an owning std::string or std::vector; the "
                "function's parameter may be a view.");
  static_assert(reason != Reason::lambda,
                "What a lambda captures cannot be carried: pass what it captures as arguments.");
  static_assert(reason != Reason::array, "A C array cannot be carried: use std::array.");
  static_assert(reason != Reason::base,
                "An aggregate with a base class cannot be taken apart: make the base a member, add a member function "
                "template serialize(Archive&), or specialise bulkhead::codec<T>.");
  static_assert(reason != Reason::union_type,
                "A union does not tell which member it holds: use a std::variant, or specialise bulkhead::codec<T>.");
  static_assert(reason != Reason::not_constructible,
                "A type with serialize(Archive&) needs a default constructor (a private one with friend class "
                "bulkhead::access) and a move constructor: add them, or specialise bulkhead::codec<T>.");
  static_assert(reason != Reason::bad_codec,
                "The specialisation of bulkhead::codec<T> needs static void encode(Encoder&, const T&) and static T "
                "decode(Decoder&): make it complete.");
  static_assert(reason != Reason::inherited_hook,
                "This type inherits its serialize(Archive&), which would lose its own members: give it one of its "
                "own, or specialise bulkhead::codec<T>.");
}

// The compiler's spelling of T's name.
template <class T>
constexpr std::string_view spelled_name() {
  // "... [with T = name]" by g++, "... [T = name]" by clang. g++ adds "; std::string_view = ..." behind the name.
  std::string_view name = __PRETTY_FUNCTION__;
  name.remove_prefix(name.find("T = ") + 4);
  if (const std::size_t end = name.find("; std::string_view = "); end != name.npos) {
    return name.substr(0, end);
  }
  return name.substr(0, name.size() - 1);
}

template <class T>
constexpr bool is_closure() {
  constexpr std::string_view name = spelled_name<T>();
  return name.find("<lambda(") != name.npos || name.find("(lambda at ") != name.npos;
}

// The least number of bytes that a T takes; 0 also if that is unknown.
template <class T>
constexpr std::size_t min_size() {
  if constexpr (has_own_way<T>()) {
    return 0;
  } else if constexpr (is_bitwise<T>() || std::is_enum_v<T>) {
    return sizeof(T);
  } else if constexpr (IsStandard<T>) {
    return Standard<T>::min_size();
  } else {
    return []<class... Fs>(Types<Fs...>) {
      return (std::size_t{0} + ... + min_size<std::remove_cv_t<Fs>>());
    }(FieldTypes<T>{});
  }
}

// Around each value that may contain others of its own type.
template <class Coder>
class Nested {
 public:
  Nested(Coder& coder, const std::type_info& type) : coder_(coder) {
    if constexpr (std::is_same_v<Coder, Decoder>) {
      outer_ = coder.type_;
    }
    coder_.enter(type);
  }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;
  ~Nested() {
    coder_.leave();
    if constexpr (std::is_same_v<Coder, Decoder>) {
      coder_.type_ = outer_;
    }
  }

 private:
  Coder& coder_;
  const std::type_info* outer_ = nullptr;
};

template <class T>
void put_hook(Encoder& encoder, const T& value) {
  OutputArchive archive(encoder);
  // As in cereal: one function serves both ways and is therefore not const.
  T& changeable = const_cast<T&>(value);
  if constexpr (hook<T> == Hook::member) {
    access::serialize(archive, changeable);
  } else if constexpr (hook<T> == Hook::member_pair) {
    access::save(archive, value);
  } else if constexpr (hook<T> == Hook::free) {
    free_hook::call_serialize(archive, changeable);
  } else {
    free_hook::call_save(archive, value);
  }
}

template <class T>
void load_hook(Decoder& decoder, T& value) {
  InputArchive archive(decoder);
  if constexpr (hook<T> == Hook::member) {
    access::serialize(archive, value);
  } else if constexpr (hook<T> == Hook::member_pair) {
    access::load(archive, value);
  } else if constexpr (hook<T> == Hook::free) {
    free_hook::call_serialize(archive, value);
  } else {
    free_hook::call_load(archive, value);
  }
}

// Hooks are called in place: `archive(static_cast<Base&>(*this))` works for bases that cannot be made alone.
template <class T>
void save_value(Encoder& encoder, const T& value) {
  if constexpr (!HasCodec<T> && hook<T> != Hook::none) {
    codec_detail::put(encoder, value);
  } else {
    bulkhead::encode(encoder, value);
  }
}

template <class T>
void load_value(Decoder& decoder, T& value) {
  static_assert(!std::is_const_v<T>, "A hook cannot read into a const member.");
  if constexpr (!HasCodec<T> && hook<T> != Hook::none) {
    Nested<Decoder> nested(decoder, typeid(T));
    load_hook(decoder, value);
  } else {
    value = bulkhead::decode<T>(decoder);
  }
}

template <class T>
void put(Encoder& encoder, const T& value) {
  if constexpr (HasCodec<T>) {
    Nested<Encoder> nested(encoder, typeid(T));
    codec<T>::encode(encoder, value);
  } else if constexpr (hook<T> != Hook::none) {
    Nested<Encoder> nested(encoder, typeid(T));
    put_hook(encoder, value);
  } else if constexpr (IsStandard<T>) {
    Standard<T>::put(encoder, value);
  } else if constexpr (is_bitwise<T>()) {
    encoder.write_value(value);
  } else if constexpr (std::is_enum_v<T>) {
    codec_detail::put(encoder, static_cast<std::underlying_type_t<T>>(value));
  } else if constexpr (reflection<T>.fields != 0) {
    Nested<Encoder> nested(encoder, typeid(T));
    with_fields<reflection<T>.fields>(value, [&]<class... Fs>(Types<Fs...>, const auto&... fields) {
      (codec_detail::put<std::remove_cv_t<Fs>>(encoder, fields), ...);
    });
  }
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"  // what came out of a bit-field fits into it
template <class T>
T take(Decoder& decoder) {
  if constexpr (HasCodec<T>) {
    Nested<Decoder> nested(decoder, typeid(T));
    return codec<T>::decode(decoder);
  } else if constexpr (hook<T> != Hook::none) {
    Nested<Decoder> nested(decoder, typeid(T));
    T value = access::construct<T>();
    load_hook(decoder, value);
    return value;
  } else if constexpr (IsStandard<T>) {
    return Standard<T>::take(decoder);
  } else if constexpr (is_bitwise<T>()) {
    return decoder.read_value<T>();
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<T>(codec_detail::take<std::underlying_type_t<T>>(decoder));
  } else if constexpr (reflection<T>.fields == 0) {
    return T{};
  } else {
    Nested<Decoder> nested(decoder, typeid(T));
    return [&]<class... Fs>(Types<Fs...>) -> T {
      return T{codec_detail::take<std::remove_cv_t<Fs>>(decoder)...};
    }(FieldTypes<T>{});
  }
}
#pragma GCC diagnostic pop

// ---------------------------------------------------------------------------------------------------------------------
// Ranges that lie in one piece.

struct Bulk {
  // Where `count` objects of T lie in the source, possibly less aligned than a T.
  template <class T>
  static const std::byte* find(Decoder& decoder, std::size_t count) {
    decoder.align(alignof(T));
    return decoder.take(count * sizeof(T));
  }

  template <class T>
  static bool is_aligned(const std::byte* at) noexcept {
    return reinterpret_cast<std::uintptr_t>(at) % alignof(T) == 0;
  }

  template <class C>
  static void put(Encoder& encoder, const C& values) {
    using T = typename C::value_type;
    encoder.align(alignof(T));
    encoder.write(values.data(), values.size() * sizeof(T));
  }

  // A vector or string.
  template <class C>
  static C take(Decoder& decoder) {
    using T = typename C::value_type;
    const std::size_t count = decoder.read_count(sizeof(T));
    decoder.claim(count, sizeof(T));
    const std::byte* at = find<T>(decoder, count);
    if (is_aligned<T>(at)) {
      // One memmove, and no zeros beforehand.
      const T* first = reinterpret_cast<const T*>(at);
      C values(first, first + count);
      Decoder::fence(values.data());
      return values;
    }
    C values;
    values.reserve(count);
    for (std::size_t i = 0; i != count; ++i) {
      alignas(T) std::byte copy[sizeof(T)];
      std::memcpy(copy, at + i * sizeof(T), sizeof(T));
      Decoder::fence(copy);
      values.push_back(std::bit_cast<T>(copy));
    }
    return values;
  }

  template <class T>
  static std::span<const T> view(Decoder& decoder, std::size_t count) {
    static_assert(alignof(T) <= max_alignment,
                  "Messages are aligned to 64, so what is more aligned cannot be viewed in place.");
    decoder.align(alignof(T));
    const std::byte* at = decoder.view(count * sizeof(T)).data();
    if (!is_aligned<T>(at)) {
      refuse_misaligned(alignof(T));
    }
    return {reinterpret_cast<const T*>(at), count};
  }

  [[noreturn]] BULKHEAD_EXPORT static void refuse_misaligned(std::size_t alignment);
};

// ---------------------------------------------------------------------------------------------------------------------
// The standard library.

// Out of line, since they are in every instantiation.
[[noreturn]] BULKHEAD_EXPORT void refuse_flag(Decoder& decoder, const char* what, unsigned value);
[[noreturn]] BULKHEAD_EXPORT void refuse_index(Decoder& decoder, std::uint64_t index, std::size_t count);
[[noreturn]] BULKHEAD_EXPORT void refuse_bits(Decoder& decoder, std::uint64_t count);
[[noreturn]] BULKHEAD_EXPORT void refuse_duplicates(Decoder& decoder, std::size_t count);

inline bool take_flag(Decoder& decoder, const char* what) {
  const auto flag = decoder.read_value<std::uint8_t>();
  if (flag > 1) {
    refuse_flag(decoder, what, flag);
  }
  return flag != 0;
}

inline void put_flag(Encoder& encoder, bool flag) {
  const std::uint8_t byte = flag ? 1 : 0;
  encoder.write(&byte, 1);
}

template <>
struct Standard<bool> : StandardBase<'b', 1> {
  static void put(Encoder& encoder, bool value) { put_flag(encoder, value); }
  static bool take(Decoder& decoder) { return take_flag(decoder, "bool"); }
};

// x86's long double has 10 bytes and 6 of padding.
inline constexpr std::size_t long_double_size =
    std::numeric_limits<long double>::digits == 64 ? 10 : sizeof(long double);

template <>
struct Standard<long double> : StandardBase<'l', long_double_size> {
  static void put(Encoder& encoder, long double value) { encoder.write(&value, long_double_size); }
  static long double take(Decoder& decoder) {
    long double value = 0;
    decoder.read(&value, long_double_size);
    return value;
  }
};

template <class C, class Traits, class A>
requires(is_bitwise<C>()) struct Standard<std::basic_string<C, Traits, A>> : StandardBase<'S', 1, C> {
  using X = std::basic_string<C, Traits, A>;
  static void put(Encoder& encoder, const X& value) {
    encoder.write_size(value.size());
    Bulk::put(encoder, value);
  }
  static X take(Decoder& decoder) { return Bulk::take<X>(decoder); }
};

// std::filesystem::path, or one that is made like it. By what it has and not by its name, since <filesystem> alone
// costs those who do not use it a fifth of what including Asio does (tests/bench/run measures this library's cost).
template <class X>
concept Path = std::is_class_v<X> && requires(const X& path) {
  typename X::string_type;
  { path.native() } -> std::same_as<const typename X::string_type&>;
  { path.root_path() } -> std::same_as<X>;
  { path.lexically_normal() } -> std::same_as<X>;
};

template <Path X>
struct Standard<X> : StandardBase<'p', 1> {
  static void put(Encoder& encoder, const X& value) { codec_detail::put(encoder, value.native()); }
  static X take(Decoder& decoder) { return X(codec_detail::take<typename X::string_type>(decoder)); }
};

template <class Rep, class Period>
struct Standard<std::chrono::duration<Rep, Period>> : StandardBase<'d', min_size<Rep>(), Rep> {
  using X = std::chrono::duration<Rep, Period>;
  static constexpr std::uint64_t shape =
      'd' + (static_cast<std::uint64_t>(Period::num) << 8) + (static_cast<std::uint64_t>(Period::den) << 24);
  static void put(Encoder& encoder, const X& value) { codec_detail::put<Rep>(encoder, value.count()); }
  static X take(Decoder& decoder) { return X(codec_detail::take<Rep>(decoder)); }
};

template <class Clock, class Duration>
struct Standard<std::chrono::time_point<Clock, Duration>> : StandardBase<'T', min_size<Duration>(), Duration> {
  using X = std::chrono::time_point<Clock, Duration>;
  static void put(Encoder& encoder, const X& value) { codec_detail::put(encoder, value.time_since_epoch()); }
  static X take(Decoder& decoder) { return X(codec_detail::take<Duration>(decoder)); }
};

template <>
struct Standard<std::chrono::day> : StandardBase<'1', 1, std::uint8_t> {
  using X = std::chrono::day;
  static void put(Encoder& encoder, X value) {
    codec_detail::put(encoder, static_cast<std::uint8_t>(static_cast<unsigned>(value)));
  }
  static X take(Decoder& decoder) { return X(codec_detail::take<std::uint8_t>(decoder)); }
};

template <>
struct Standard<std::chrono::month> : StandardBase<'2', 1, std::uint8_t> {
  using X = std::chrono::month;
  static void put(Encoder& encoder, X value) {
    codec_detail::put(encoder, static_cast<std::uint8_t>(static_cast<unsigned>(value)));
  }
  static X take(Decoder& decoder) { return X(codec_detail::take<std::uint8_t>(decoder)); }
};

template <>
struct Standard<std::chrono::year> : StandardBase<'3', 2, std::int16_t> {
  using X = std::chrono::year;
  static void put(Encoder& encoder, X value) {
    codec_detail::put(encoder, static_cast<std::int16_t>(static_cast<int>(value)));
  }
  static X take(Decoder& decoder) { return X(codec_detail::take<std::int16_t>(decoder)); }
};

template <>
struct Standard<std::chrono::weekday> : StandardBase<'4', 1, std::uint8_t> {
  using X = std::chrono::weekday;
  static void put(Encoder& encoder, X value) {
    codec_detail::put(encoder, static_cast<std::uint8_t>(value.c_encoding()));
  }
  static X take(Decoder& decoder) { return X(codec_detail::take<std::uint8_t>(decoder)); }
};

template <>
struct Standard<std::chrono::year_month_day> : StandardBase<'5', 4> {
  using X = std::chrono::year_month_day;
  static void put(Encoder& encoder, const X& value) {
    codec_detail::put(encoder, value.year());
    codec_detail::put(encoder, value.month());
    codec_detail::put(encoder, value.day());
  }
  static X take(Decoder& decoder) {
    const auto year = codec_detail::take<std::chrono::year>(decoder);
    const auto month = codec_detail::take<std::chrono::month>(decoder);
    return X(year, month, codec_detail::take<std::chrono::day>(decoder));
  }
};

template <class T>
struct Standard<std::complex<T>> : StandardBase<'c', 2 * min_size<T>(), T> {
  using X = std::complex<T>;
  static void put(Encoder& encoder, const X& value) {
    codec_detail::put(encoder, value.real());
    codec_detail::put(encoder, value.imag());
  }
  static X take(Decoder& decoder) {
    const T real = codec_detail::take<T>(decoder);
    return X(real, codec_detail::take<T>(decoder));
  }
};

template <class T>
struct Standard<std::optional<T>> : StandardBase<'o', 1, T> {
  using X = std::optional<T>;
  static void put(Encoder& encoder, const X& value) {
    put_flag(encoder, value.has_value());
    if (value) {
      codec_detail::put(encoder, *value);
    }
  }
  static X take(Decoder& decoder) {
    if (!take_flag(decoder, "optional")) {
      return X();
    }
    return X(std::in_place, codec_detail::take<std::remove_const_t<T>>(decoder));
  }
};

// unique_ptr and shared_ptr.
template <class X, char Tag>
struct StandardPointer : StandardBase<Tag, 1, typename X::element_type> {
  using T = std::remove_const_t<typename X::element_type>;
  static void put(Encoder& encoder, const X& value) {
    put_flag(encoder, value != nullptr);
    if (value) {
      codec_detail::put<T>(encoder, *value);
    }
  }
  static X take(Decoder& decoder) {
    if (!take_flag(decoder, "pointer")) {
      return X();
    }
    decoder.claim(1, sizeof(T) + 2 * sizeof(void*));  // a shared_ptr's counts, or what malloc adds
    return X(new T(codec_detail::take<T>(decoder)));
  }
};
template <class T>
requires(!std::is_array_v<T>) struct Standard<std::unique_ptr<T>> : StandardPointer<std::unique_ptr<T>, 'u'> {
};
template <class T>
requires(!std::is_array_v<T>) struct Standard<std::shared_ptr<T>> : StandardPointer<std::shared_ptr<T>, 'u'> {
};

template <class... Ts>
struct Standard<std::variant<Ts...>> : StandardBase<'v', 1, Ts...> {
  using X = std::variant<Ts...>;
  static void put(Encoder& encoder, const X& value) {
    if (value.valueless_by_exception()) {
      refuse(typeid(X), "The variant has no value, since an exception interrupted an assignment to it.");
    }
    encoder.write_size(value.index());
    put_alternative(encoder, value, std::index_sequence_for<Ts...>{});
  }
  static X take(Decoder& decoder) {
    const std::uint64_t index = decoder.read_size();
    if (index >= sizeof...(Ts)) {
      refuse_index(decoder, index, sizeof...(Ts));
    }
    return take_alternative<0>(decoder, index);
  }

 private:
  template <std::size_t... I>
  static void put_alternative(Encoder& encoder, const X& value, std::index_sequence<I...>) {
    (void)((value.index() == I && (codec_detail::put(encoder, *std::get_if<I>(&value)), true)) || ...);
  }
  template <std::size_t I>
  static X take_alternative(Decoder& decoder, std::uint64_t index) {
    using T = std::remove_const_t<std::variant_alternative_t<I, X>>;
    if constexpr (I + 1 != sizeof...(Ts)) {
      if (index != I) {
        return take_alternative<I + 1>(decoder, index);
      }
    }
    return X(std::in_place_index<I>, codec_detail::take<T>(decoder));
  }
};

template <class A, class B>
struct Standard<std::pair<A, B>> : StandardBase<'t', 0, A, B> {
  using X = std::pair<A, B>;
  static constexpr std::size_t min_size() {
    return codec_detail::min_size<std::remove_const_t<A>>() + codec_detail::min_size<std::remove_const_t<B>>();
  }
  static void put(Encoder& encoder, const X& value) {
    codec_detail::put(encoder, value.first);
    codec_detail::put(encoder, value.second);
  }
  static X take(Decoder& decoder) {
    // Braces: from left to right.
    return X{codec_detail::take<std::remove_const_t<A>>(decoder), codec_detail::take<std::remove_const_t<B>>(decoder)};
  }
};

template <class... Ts>
struct Standard<std::tuple<Ts...>> : StandardBase<'t', 0, Ts...> {
  using X = std::tuple<Ts...>;
  static constexpr std::size_t min_size() {
    return (std::size_t{0} + ... + codec_detail::min_size<std::remove_const_t<Ts>>());
  }
  static void put(Encoder& encoder, const X& value) {
    std::apply([&](const Ts&... parts) { (codec_detail::put(encoder, parts), ...); }, value);
  }
  static X take(Decoder& decoder) { return X{codec_detail::take<std::remove_const_t<Ts>>(decoder)...}; }
};

template <class T, std::size_t N>
struct Standard<std::array<T, N>> : StandardBase<'a', 0, T> {
  using X = std::array<T, N>;
  using Element = std::remove_const_t<T>;
  static constexpr std::uint64_t shape = 'a' + (std::uint64_t{N} << 8);
  static constexpr std::size_t min_size() { return N * codec_detail::min_size<Element>(); }
  static void put(Encoder& encoder, const X& value) {
    if constexpr (is_bitwise<X>()) {
      Bulk::put(encoder, value);  // aligned: it may be viewed as a span
    } else {
      for (const T& element : value) {
        codec_detail::put(encoder, element);
      }
    }
  }
  static X take(Decoder& decoder) {
    if constexpr (is_bitwise<X>()) {
      decoder.align(alignof(T));
      return decoder.read_value<X>();
    } else if constexpr (N == 0) {
      return X{};
    } else if constexpr (std::is_default_constructible_v<T> && std::is_move_assignable_v<T>) {
      X value{};
      for (T& element : value) {
        element = codec_detail::take<Element>(decoder);
      }
      return value;
    } else {
      return [&]<std::size_t... I>(std::index_sequence<I...>) {
        return X{{(static_cast<void>(I), codec_detail::take<Element>(decoder))...}};
      }
      (std::make_index_sequence<N>{});
    }
  }
};

template <std::size_t N>
struct Standard<std::bitset<N>> : StandardBase<'B', (N + 7) / 8> {
  using X = std::bitset<N>;
  static constexpr std::uint64_t shape = 'B' + (std::uint64_t{N} << 8);
  static void put(Encoder& encoder, const X& value) { put_bits(encoder, value, N); }
  static X take(Decoder& decoder) {
    X value;
    take_bits(decoder, value, N);
    return value;
  }

  // Eight to a byte, the first in the lowest bit.
  template <class Bits>
  static void put_bits(Encoder& encoder, const Bits& bits, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 8) {
      unsigned byte = 0;
      for (std::size_t j = i; j != count && j != i + 8; ++j) {
        byte |= (bits[j] ? 1U : 0U) << (j - i);
      }
      const auto narrow = static_cast<std::uint8_t>(byte);
      encoder.write(&narrow, 1);
    }
  }
  template <class Bits>
  static void take_bits(Decoder& decoder, Bits& bits, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 8) {
      const unsigned byte = decoder.read_value<std::uint8_t>();
      for (std::size_t j = i; j != count && j != i + 8; ++j) {
        bits[j] = (byte >> (j - i) & 1) != 0;
      }
    }
  }
};

template <class A>
struct Standard<std::vector<bool, A>> : StandardBase<'V', 1, bool> {
  using X = std::vector<bool, A>;
  static void put(Encoder& encoder, const X& value) {
    encoder.write_size(value.size());
    Standard<std::bitset<0>>::put_bits(encoder, value, value.size());
  }
  static X take(Decoder& decoder) {
    const std::uint64_t count = decoder.read_size();
    if (count / 8 > decoder.remaining()) {
      refuse_bits(decoder, count);
    }
    X value(static_cast<std::size_t>(count));  // at most a byte more than is left: no need to claim it
    Standard<std::bitset<0>>::take_bits(decoder, value, value.size());
    return value;
  }
};

// Reads the number of a container's elements. Their memory is claimed at once, with the `overhead` of their nodes.
template <class T>
std::size_t take_length(Decoder& decoder, std::size_t overhead) {
  const std::size_t count = decoder.read_count(min_size<T>());
  decoder.claim(count, sizeof(T) + overhead);
  return count;
}

inline constexpr std::size_t node_overhead = 4 * sizeof(void*);  // the links and colour of a node of a std::map

// `EmptySize` is what it allocates even when it is empty.
template <class X, std::size_t EmptySize = 0>
struct StandardSequence : StandardBase<'V', 1, typename X::value_type> {
  using T = typename X::value_type;
  // Copied in one piece. Not a deque or list of the same: their elements are apart, and so are put one by one, without
  // the padding for alignment.
  static constexpr bool in_one_piece = is_bitwise<T>() && requires(X & x) { x.data(); };
  static constexpr std::uint64_t shape = in_one_piece ? 'W' : 'V';

  static void put(Encoder& encoder, const X& value) {
    if constexpr (in_one_piece) {
      encoder.write_size(value.size());
      Bulk::put(encoder, value);
    } else {
      encoder.write_size(static_cast<std::uint64_t>(std::distance(value.begin(), value.end())));
      for (const T& element : value) {
        codec_detail::put(encoder, element);
      }
    }
  }

  static X take(Decoder& decoder) {
    if constexpr (in_one_piece) {
      return Bulk::take<X>(decoder);
    } else {
      decoder.claim(1, EmptySize);
      X value;
      if constexpr (requires { value.reserve(1); }) {
        const std::size_t count = take_length<T>(decoder, 0);
        // A page at first: a false length is to fail before it costs anything.
        value.reserve(std::min(count, 4096 / sizeof(T) + 1));
        while (value.size() != count) {
          if (value.size() == value.capacity()) {
            value.reserve(std::min(count, 2 * value.size()));
          }
          value.push_back(codec_detail::take<T>(decoder));
        }
      } else if constexpr (requires { value.before_begin(); }) {
        auto last = value.before_begin();
        for (std::size_t count = take_length<T>(decoder, node_overhead); count != 0; --count) {
          last = value.insert_after(last, codec_detail::take<T>(decoder));
        }
      } else {
        for (std::size_t count = take_length<T>(decoder, node_overhead); count != 0; --count) {
          value.push_back(codec_detail::take<T>(decoder));
        }
      }
      return value;
    }
  }
};
template <class T, class A>
struct Standard<std::vector<T, A>> : StandardSequence<std::vector<T, A>> {};
template <class T, class A>
struct Standard<std::deque<T, A>> : StandardSequence<std::deque<T, A>, 576> {};  // libstdc++: a block and its index
template <class T, class A>
struct Standard<std::list<T, A>> : StandardSequence<std::list<T, A>> {};
template <class T, class A>
struct Standard<std::forward_list<T, A>> : StandardSequence<std::forward_list<T, A>> {};

// Whether a container's order, or its hash and equality, can be made anew: a function pointer would be null.
template <class X>
constexpr bool has_stateless_functions() {
  if constexpr (requires { typename X::hasher; }) {
    return std::is_empty_v<typename X::hasher> && std::is_empty_v<typename X::key_equal>;
  } else {
    return std::is_empty_v<typename X::key_compare>;
  }
}

// Sets, and maps with Mapped.
template <class X, char Tag, class... Mapped>
struct StandardAssociative : StandardBase<Tag, 1, typename X::key_type, Mapped...> {
  using Key = typename X::key_type;
  static void put(Encoder& encoder, const X& value) {
    encoder.write_size(value.size());
    for (const auto& element : value) {
      codec_detail::put(encoder, element);
    }
  }
  static X take(Decoder& decoder) {
    X value;
    const std::size_t count = take_length<typename X::value_type>(decoder, node_overhead);
    for (std::size_t i = 0; i != count; ++i) {
      // They were written in order, so each belongs at the end.
      if constexpr (sizeof...(Mapped) == 0) {
        value.emplace_hint(value.end(), codec_detail::take<Key>(decoder));
      } else {
        Key key = codec_detail::take<Key>(decoder);
        value.emplace_hint(value.end(), std::move(key), codec_detail::take<Mapped>(decoder)...);
      }
    }
    if (value.size() != count) {
      refuse_duplicates(decoder, count - value.size());
    }
    return value;
  }
};
template <class K, class... R>
requires(has_stateless_functions<std::set<K, R...>>()) struct Standard<std::set<K, R...>>
    : StandardAssociative<std::set<K, R...>, 's'> {
};
template <class K, class... R>
requires(has_stateless_functions<std::multiset<K, R...>>()) struct Standard<std::multiset<K, R...>>
    : StandardAssociative<std::multiset<K, R...>, 's'> {
};
template <class K, class... R>
requires(has_stateless_functions<std::unordered_set<K, R...>>()) struct Standard<std::unordered_set<K, R...>>
    : StandardAssociative<std::unordered_set<K, R...>, 's'> {
};
template <class K, class... R>
requires(has_stateless_functions<std::unordered_multiset<K, R...>>()) struct Standard<std::unordered_multiset<K, R...>>
    : StandardAssociative<std::unordered_multiset<K, R...>, 's'> {
};
template <class K, class V, class... R>
requires(has_stateless_functions<std::map<K, V, R...>>()) struct Standard<std::map<K, V, R...>>
    : StandardAssociative<std::map<K, V, R...>, 'm', V> {
};
template <class K, class V, class... R>
requires(has_stateless_functions<std::multimap<K, V, R...>>()) struct Standard<std::multimap<K, V, R...>>
    : StandardAssociative<std::multimap<K, V, R...>, 'm', V> {
};
template <class K, class V, class... R>
requires(has_stateless_functions<std::unordered_map<K, V, R...>>()) struct Standard<std::unordered_map<K, V, R...>>
    : StandardAssociative<std::unordered_map<K, V, R...>, 'm', V> {
};
template <class K, class V, class... R>
requires(
    has_stateless_functions<std::unordered_multimap<K, V, R...>>()) struct Standard<std::unordered_multimap<K, V, R...>>
    : StandardAssociative<std::unordered_multimap<K, V, R...>, 'm', V> {
};

// The adaptors, through their container.
template <class X>
struct StandardAdaptor : Standard<typename X::container_type> {
  using C = typename X::container_type;
  struct Peek : X {
    static const C& container(const X& adaptor) { return adaptor.*&Peek::c; }
  };
  static void put(Encoder& encoder, const X& value) { codec_detail::put(encoder, Peek::container(value)); }
  static X take(Decoder& decoder) {
    C container = codec_detail::take<C>(decoder);
    if constexpr (requires { typename X::value_compare; }) {
      return X(typename X::value_compare(), std::move(container));
    } else {
      return X(std::move(container));
    }
  }
};
template <class T, class C>
struct Standard<std::stack<T, C>> : StandardAdaptor<std::stack<T, C>> {};
template <class T, class C>
struct Standard<std::queue<T, C>> : StandardAdaptor<std::queue<T, C>> {};
template <class T, class C, class Compare>
requires(std::is_empty_v<Compare>) struct Standard<std::priority_queue<T, C, Compare>>
    : StandardAdaptor<std::priority_queue<T, C, Compare>> {
};

// ---------------------------------------------------------------------------------------------------------------------
// Views.

template <class C>
inline constexpr bool is_string = false;
template <class C, class Traits, class A>
inline constexpr bool is_string<std::basic_string<C, Traits, A>> = true;
template <class C>
inline constexpr bool is_vector = false;
template <class T, class A>
inline constexpr bool is_vector<std::vector<T, A>> = is_bitwise<T>();
template <class C>
inline constexpr std::size_t array_size = 0;
template <class T, std::size_t N>
inline constexpr std::size_t array_size<std::array<T, N>> = is_bitwise<T>() ? N : 0;

template <class C, class Traits>
struct DefaultSource<std::basic_string_view<C, Traits>> {
  using type = std::basic_string<C, Traits>;
};
template <class T, std::size_t N>
struct DefaultSource<std::span<const T, N>> {
  using type = std::vector<T>;
};

template <class View, class Source>
constexpr bool views_in_place() {
  if constexpr (!is_view<View> || !(is_string<Source> || is_vector<Source> || array_size<Source> != 0)) {
    return false;
  } else {
    return !HasCodec<Source> && std::is_convertible_v<const Source&, View> &&
           std::is_same_v<typename View::value_type, typename Source::value_type>;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The fingerprint.

constexpr std::uint64_t hash_number(std::uint64_t hash, std::uint64_t number) {
  for (unsigned shift = 0; shift != 64; shift += 8) {
    hash = (hash ^ (number >> shift & 0xff)) * 1099511628211U;  // FNV-1a's prime
  }
  return hash;
}

// The part of a type's name that all compilers spell alike: without namespace and template arguments.
constexpr std::string_view short_name(std::string_view name) {
  if (!name.empty() && name.back() == '>') {
    std::size_t depth = 0;
    do {
      depth += name.back() == '>' ? 1U : 0U;
      depth -= name.back() == '<' ? 1U : 0U;
      name.remove_suffix(1);
    } while (depth != 0 && !name.empty());
  }
  const std::size_t separator = name.find_last_of(":) ");
  return separator == name.npos ? name : name.substr(separator + 1);
}

template <class T>
constexpr std::uint64_t hash_name(std::uint64_t hash) {
  for (const char c : short_name(spelled_name<T>())) {
    hash = hash_number(hash, static_cast<unsigned char>(c));
  }
  return hash_number(hash, sizeof(T));
}

template <class... Open, class... Ts>
constexpr std::uint64_t hash_parts(std::uint64_t hash, Types<Ts...>) {
  hash = hash_number(hash, sizeof...(Ts));
  (void)((hash = hash_shape<std::remove_cv_t<Ts>, Open...>(hash), true) && ...);
  return hash;
}

template <class T, class... Open>
constexpr std::uint64_t hash_shape(std::uint64_t hash) {
  if constexpr (HasCodec<T>) {
    return hash_name<T>(hash_number(hash, 'C'));
  } else if constexpr (hook<T> != Hook::none) {
    return hash_name<T>(hash_number(hash, 'H'));
  } else if constexpr (std::is_void_v<T>) {
    return hash_number(hash, '0');
  } else if constexpr (std::is_enum_v<T>) {
    return hash_shape<std::underlying_type_t<T>>(hash_number(hash, 'E'));
  } else if constexpr (IsStandard<T>) {
    return hash_parts<Open...>(hash_number(hash, Standard<T>::shape), typename Standard<T>::Parts{});
  } else if constexpr (std::is_arithmetic_v<T>) {
    return hash_number(hash_number(hash, std::is_floating_point_v<T> ? 'f'
                                         : std::is_signed_v<T>       ? 'i'
                                                                     : 'n'),
                       sizeof(T));
  } else if constexpr ((std::is_same_v<T, Open> || ...)) {
    // T contains values of its own type.
    std::size_t index = 0;
    (void)((++index, std::is_same_v<T, Open>) || ...);
    return hash_number(hash_number(hash, 'R'), index);
  } else {
    hash = hash_number(hash_number(hash, 'A'), is_bitwise<T>() ? sizeof(T) : 0);
    return hash_parts<Open..., T>(hash, FieldTypes<T>{});
  }
}

}  // namespace codec_detail

template <class View, class Source>
requires ViewsInPlace<View, Source> View decode_view(Decoder& decoder) {
  using T = typename Source::value_type;
  // An array has no length in front of it.
  constexpr std::size_t fixed = codec_detail::array_size<Source>;
  const std::size_t count = fixed != 0 ? fixed : decoder.read_count(sizeof(T));
  const std::span<const T> found = codec_detail::Bulk::view<T>(decoder, count);
  return View(found.data(), found.size());
}

}  // namespace bulkhead
