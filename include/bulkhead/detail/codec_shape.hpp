// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

// Takes aggregates apart: how many members they have, of which types, and what they are.
//
// As Boost.PFR does it, but first finds out whether it can, so that a concept gets a `false` where PFR 1.81 stops the
// compiler: for base classes, C arrays and anonymous unions. It also sees that a member is a reference, has no trouble
// with bit-fields, and with g++ 12.2 it does not crash the compiler over a member of type std::array<std::string, 2>.
namespace bulkhead::codec_detail {

template <class... Ts>
struct Types {};

// Whether T has a codec or a hook.
template <class T>
constexpr bool has_own_way();

// ---------------------------------------------------------------------------------------------------------------------
// How many members: as many as there are initialisers in the longest braces that initialise the aggregate.

#ifdef __clang__
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wmissing-braces"
#pragma clang diagnostic ignored "-Wmissing-field-initializers"
#pragma clang diagnostic ignored "-Wundefined-internal"
#endif

// Initialises every member but a `U&`. By a value, for a reference would have clang instantiate the copy constructor of
// the member, which for a vector of what cannot be copied is an error.
struct AnyValue {
  template <class U>
  operator U() const&& noexcept;
};
// Initialises every member that can be copied.
struct AnyReference {
  template <class U>
  operator U&() const&& noexcept;
};

// Initialises a base class of T only.
template <class T>
struct BaseOf {
  template <class U>
  requires(std::is_base_of_v<U, T> && !std::is_same_v<U, T>) operator U() const noexcept;
};
// Initialises only what takes anything, such as a std::any.
struct Nothing {};

// Initialises only an anonymous union, or another one that nobody said how to carry.
struct AnyUnion {
  template <class U>
  requires(std::is_union_v<U> && !has_own_way<U>()) operator U() const noexcept;
};

template <class First, std::size_t>
using Repeat = First;

template <class T, class Any, std::size_t Count>
constexpr bool is_initialised_by() {
  return []<std::size_t... I>(std::index_sequence<I...>) {
    return requires { T{Repeat<Any, I>{}...}; };
  }
  (std::make_index_sequence<Count>{});
}

// More members than this are a case for a hook; it is how many cases of a structured binding are spelled out below.
inline constexpr std::size_t max_fields = 64;

// Fewer initialisers do, too, down to the last member that needs one.
template <class T, class Any, bool Found = false, std::size_t Count = 0>
constexpr std::size_t count_initialisers() {
  if constexpr (Count > max_fields + 1) {
    return Count;
  } else if constexpr (is_initialised_by<T, Any, Count>()) {
    return count_initialisers<T, Any, true, Count + 1>();
  } else if constexpr (Found) {
    return Count - 1;
  } else {
    return count_initialisers<T, Any, false, Count + 1>();
  }
}

template <class T>
using Any = std::conditional_t<(count_initialisers<T, AnyValue>() <= max_fields), AnyValue, AnyReference>;

// Whether T{any, ..., Special, any, ...} is well-formed.
template <class T, class Special, std::size_t Before, std::size_t After>
constexpr bool is_initialised_with() {
  return []<std::size_t... B, std::size_t... A>(std::index_sequence<B...>, std::index_sequence<A...>) {
    return requires { T{Repeat<Any<T>, B>{}..., Special{}, Repeat<Any<T>, A>{}...}; };
  }
  (std::make_index_sequence<Before>{}, std::make_index_sequence<After>{});
}

// The same with {any, ...} of Inner initialisers in the place of Special.
template <class T, std::size_t Before, std::size_t Inner, std::size_t After>
constexpr bool is_initialised_by_nested() {
  return []<std::size_t... B, std::size_t... I, std::size_t... A>(std::index_sequence<B...>, std::index_sequence<I...>,
                                                                  std::index_sequence<A...>) {
    return requires { T{Repeat<Any<T>, B>{}..., {Repeat<Any<T>, I>{}...}, Repeat<Any<T>, A>{}...}; };
  }
  (std::make_index_sequence<Before>{}, std::make_index_sequence<Inner>{}, std::make_index_sequence<After>{});
}

#ifdef __clang__
#pragma clang diagnostic pop
#endif

// An array takes as many initialisers as it has elements, with braces around them or without. Nothing else counts for
// more than one without.
template <class T, std::size_t At, std::size_t Count, std::size_t Length = 2>
constexpr bool is_array_at() {
  if constexpr (Length > Count - At) {
    return false;
  } else if constexpr (Length == 2 && is_initialised_by_nested<T, At, 0, Count - At - 1>()) {
    return false;  // the usual case, and cheap
  } else if constexpr (is_initialised_by_nested<T, At, Length, Count - At - Length>() &&
                       !is_initialised_by_nested<T, At, Length, Count - At - Length + 1>()) {
    return true;
  } else {
    return is_array_at<T, At, Count, Length + 1>();
  }
}

enum class Shape { plain, base, array, union_member, unknown };

struct Reflection {
  Shape shape;
  std::size_t fields;
};

template <class T>
constexpr Reflection reflect() {
  constexpr std::size_t count = count_initialisers<T, Any<T>>();
  if constexpr (requires { std::tuple_size<T>::value; }) {
    return {Shape::unknown, 0};  // a structured binding would not show its members
  } else if constexpr (count > max_fields || (count == 0 && !std::is_empty_v<T>)) {
    return {Shape::unknown, 0};
  } else if constexpr (is_initialised_by_nested<T, count, 0, 0>()) {
    return {Shape::union_member, 0};  // g++: Any does not initialise an anonymous union, but braces do
  } else if constexpr (count == 0) {
    return {Shape::plain, 0};
  } else if constexpr (is_initialised_with<T, BaseOf<T>, 0, count - 1>() &&
                       !is_initialised_with<T, Nothing, 0, count - 1>()) {
    return {Shape::base, 0};
  } else {
    return []<std::size_t... I>(std::index_sequence<I...>)->Reflection {
      if constexpr ((is_array_at<T, I, count>() || ...)) {
        return {Shape::array, 0};
      } else if constexpr (((is_initialised_with<T, AnyUnion, I, count - I - 1>() &&
                             !is_initialised_with<T, Nothing, I, count - I - 1>()) ||
                            ...)) {
        return {Shape::union_member, 0};
      } else {
        return {Shape::plain, count};
      }
    }
    (std::make_index_sequence<count>{});
  }
}

template <class T>
inline constexpr Reflection reflection = reflect<T>();

// ---------------------------------------------------------------------------------------------------------------------
// Which members: structured bindings, whose number of names must be written out in C++20.

// Names are a letter for eights and a digit, a1 to h8.
#define BULKHEAD_NAMES_1(x) x##1
#define BULKHEAD_NAMES_2(x) BULKHEAD_NAMES_1(x), x##2
#define BULKHEAD_NAMES_3(x) BULKHEAD_NAMES_2(x), x##3
#define BULKHEAD_NAMES_4(x) BULKHEAD_NAMES_3(x), x##4
#define BULKHEAD_NAMES_5(x) BULKHEAD_NAMES_4(x), x##5
#define BULKHEAD_NAMES_6(x) BULKHEAD_NAMES_5(x), x##6
#define BULKHEAD_NAMES_7(x) BULKHEAD_NAMES_6(x), x##7
#define BULKHEAD_NAMES_8(x) BULKHEAD_NAMES_7(x), x##8
#define BULKHEAD_TYPES_1(x) decltype(x##1)
#define BULKHEAD_TYPES_2(x) BULKHEAD_TYPES_1(x), decltype(x##2)
#define BULKHEAD_TYPES_3(x) BULKHEAD_TYPES_2(x), decltype(x##3)
#define BULKHEAD_TYPES_4(x) BULKHEAD_TYPES_3(x), decltype(x##4)
#define BULKHEAD_TYPES_5(x) BULKHEAD_TYPES_4(x), decltype(x##5)
#define BULKHEAD_TYPES_6(x) BULKHEAD_TYPES_5(x), decltype(x##6)
#define BULKHEAD_TYPES_7(x) BULKHEAD_TYPES_6(x), decltype(x##7)
#define BULKHEAD_TYPES_8(x) BULKHEAD_TYPES_7(x), decltype(x##8)
#define BULKHEAD_NAMES_BEFORE_a
#define BULKHEAD_NAMES_BEFORE_b BULKHEAD_NAMES_8(a),
#define BULKHEAD_NAMES_BEFORE_c BULKHEAD_NAMES_BEFORE_b BULKHEAD_NAMES_8(b),
#define BULKHEAD_NAMES_BEFORE_d BULKHEAD_NAMES_BEFORE_c BULKHEAD_NAMES_8(c),
#define BULKHEAD_NAMES_BEFORE_e BULKHEAD_NAMES_BEFORE_d BULKHEAD_NAMES_8(d),
#define BULKHEAD_NAMES_BEFORE_f BULKHEAD_NAMES_BEFORE_e BULKHEAD_NAMES_8(e),
#define BULKHEAD_NAMES_BEFORE_g BULKHEAD_NAMES_BEFORE_f BULKHEAD_NAMES_8(f),
#define BULKHEAD_NAMES_BEFORE_h BULKHEAD_NAMES_BEFORE_g BULKHEAD_NAMES_8(g),
#define BULKHEAD_TYPES_BEFORE_a
#define BULKHEAD_TYPES_BEFORE_b BULKHEAD_TYPES_8(a),
#define BULKHEAD_TYPES_BEFORE_c BULKHEAD_TYPES_BEFORE_b BULKHEAD_TYPES_8(b),
#define BULKHEAD_TYPES_BEFORE_d BULKHEAD_TYPES_BEFORE_c BULKHEAD_TYPES_8(c),
#define BULKHEAD_TYPES_BEFORE_e BULKHEAD_TYPES_BEFORE_d BULKHEAD_TYPES_8(d),
#define BULKHEAD_TYPES_BEFORE_f BULKHEAD_TYPES_BEFORE_e BULKHEAD_TYPES_8(e),
#define BULKHEAD_TYPES_BEFORE_g BULKHEAD_TYPES_BEFORE_f BULKHEAD_TYPES_8(f),
#define BULKHEAD_TYPES_BEFORE_h BULKHEAD_TYPES_BEFORE_g BULKHEAD_TYPES_8(g),
#define BULKHEAD_CASE(eights, ones, x)                                           \
  if constexpr (Count == eights * 8 + ones) {                                    \
    auto& [BULKHEAD_NAMES_BEFORE_##x BULKHEAD_NAMES_##ones(x)] = value;          \
    return function(Types<BULKHEAD_TYPES_BEFORE_##x BULKHEAD_TYPES_##ones(x)>{}, \
                    BULKHEAD_NAMES_BEFORE_##x BULKHEAD_NAMES_##ones(x));         \
  } else
#define BULKHEAD_CASES(eights, x) \
  BULKHEAD_CASE(eights, 1, x)     \
  BULKHEAD_CASE(eights, 2, x)     \
  BULKHEAD_CASE(eights, 3, x)     \
  BULKHEAD_CASE(eights, 4, x)     \
  BULKHEAD_CASE(eights, 5, x)     \
  BULKHEAD_CASE(eights, 6, x)     \
  BULKHEAD_CASE(eights, 7, x)     \
  BULKHEAD_CASE(eights, 8, x)

// Calls function(Types<declared types of the members>, members...) for an aggregate of Shape::plain.
template <std::size_t Count, class T, class Function>
constexpr decltype(auto) with_fields(T& value, Function&& function) {
  BULKHEAD_CASES(0, a)
  BULKHEAD_CASES(1, b)
  BULKHEAD_CASES(2, c)
  BULKHEAD_CASES(3, d)
  BULKHEAD_CASES(4, e)
  BULKHEAD_CASES(5, f)
  BULKHEAD_CASES(6, g)
  BULKHEAD_CASES(7, h) {
    static_assert(Count == 0);
    return function(Types<>{});
  }
}

#undef BULKHEAD_NAMES_1
#undef BULKHEAD_NAMES_2
#undef BULKHEAD_NAMES_3
#undef BULKHEAD_NAMES_4
#undef BULKHEAD_NAMES_5
#undef BULKHEAD_NAMES_6
#undef BULKHEAD_NAMES_7
#undef BULKHEAD_NAMES_8
#undef BULKHEAD_TYPES_1
#undef BULKHEAD_TYPES_2
#undef BULKHEAD_TYPES_3
#undef BULKHEAD_TYPES_4
#undef BULKHEAD_TYPES_5
#undef BULKHEAD_TYPES_6
#undef BULKHEAD_TYPES_7
#undef BULKHEAD_TYPES_8
#undef BULKHEAD_NAMES_BEFORE_a
#undef BULKHEAD_NAMES_BEFORE_b
#undef BULKHEAD_NAMES_BEFORE_c
#undef BULKHEAD_NAMES_BEFORE_d
#undef BULKHEAD_NAMES_BEFORE_e
#undef BULKHEAD_NAMES_BEFORE_f
#undef BULKHEAD_NAMES_BEFORE_g
#undef BULKHEAD_NAMES_BEFORE_h
#undef BULKHEAD_TYPES_BEFORE_a
#undef BULKHEAD_TYPES_BEFORE_b
#undef BULKHEAD_TYPES_BEFORE_c
#undef BULKHEAD_TYPES_BEFORE_d
#undef BULKHEAD_TYPES_BEFORE_e
#undef BULKHEAD_TYPES_BEFORE_f
#undef BULKHEAD_TYPES_BEFORE_g
#undef BULKHEAD_TYPES_BEFORE_h
#undef BULKHEAD_CASE
#undef BULKHEAD_CASES

struct GetTypes {
  template <class... Fs>
  constexpr Types<Fs...> operator()(Types<Fs...> types, const auto&...) const {
    return types;
  }
};

// The types of the members as they were declared, in Types<>.
template <class T>
using FieldTypes = decltype(with_fields<reflection<T>.fields>(std::declval<T&>(), GetTypes{}));

}  // namespace bulkhead::codec_detail
