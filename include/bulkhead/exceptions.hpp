// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/serialization.hpp>

#include <exception>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace bulkhead {

namespace detail {

// How one exception type travels.
struct ExceptionCarrier {
  const std::type_info* type;
  // Writes what `rebuild` needs. `exception` points to an object of exactly this type.
  void (*encode)(Encoder& encoder, const void* exception);
  // Makes the exception anew, with `cause` as its nested exception if there is one.
  std::exception_ptr (*rebuild)(Decoder& decoder, const std::string& what, std::exception_ptr cause);
};

// Last one wins for a type. Thread-safe; to be called before the fork server starts.
BULKHEAD_EXPORT bool register_exception(const ExceptionCarrier& carrier);

// An exception_ptr to `exception`, nested in which is `cause`, if any.
template <class E>
std::exception_ptr with_cause(E&& exception, const std::exception_ptr& cause) {
  if (!cause) return std::make_exception_ptr(std::forward<E>(exception));
  try {
    try {
      std::rethrow_exception(cause);
    } catch (...) {
      std::throw_with_nested(std::forward<E>(exception));
    }
  } catch (...) {
    return std::current_exception();
  }
}

template <class E>
ExceptionCarrier carrier_of() {
  ExceptionCarrier carrier{};
  carrier.type = &typeid(E);
  if constexpr (Serializable<E>) {
    carrier.encode = [](Encoder& encoder, const void* exception) {
      bulkhead::encode(encoder, *static_cast<const E*>(exception));
    };
    carrier.rebuild = [](Decoder& decoder, const std::string&, std::exception_ptr cause) {
      return with_cause(bulkhead::decode<E>(decoder), cause);
    };
  } else {
    static_assert(std::is_constructible_v<E, std::string>,
                  "bulkhead: a registered exception must be constructible from its what() as a std::string, or be "
                  "known to the codec (serialize(Archive&) or bulkhead::codec).");
    carrier.encode = [](Encoder&, const void*) {};
    carrier.rebuild = [](Decoder&, const std::string& what, std::exception_ptr cause) {
      return with_cause(E(what), cause);
    };
  }
  return carrier;
}

// Writes an exception with its nested causes; never throws but for lack of memory.
BULKHEAD_EXPORT void encode_exception(Encoder& encoder, const std::exception_ptr& exception);
// The exception that was written: of its own type where that can be rebuilt here, else a RemoteTaskError.
BULKHEAD_EXPORT std::exception_ptr decode_exception(Decoder& decoder, const ErrorContext& context);
// "type: what; caused by type: what", for texts.
BULKHEAD_EXPORT std::string describe_exception(const std::exception_ptr& exception);

}  // namespace detail

/// Lets exceptions of type `E` come back from a worker as themselves: `BULKHEAD_REGISTER_EXCEPTION(app::DecodeError)`
/// at namespace scope of any source file. `E` must be constructible from its `what()` as a `std::string`, or be known
/// to the codec, which then carries its members, too. Exactly this type is meant, not those derived from it.
#define BULKHEAD_REGISTER_EXCEPTION(...)                                                       \
  namespace {                                                                                  \
  [[maybe_unused]] const bool BULKHEAD_DETAIL_JOIN(bulkhead_registered_exception_, __LINE__) = \
      ::bulkhead::detail::register_exception(::bulkhead::detail::carrier_of<__VA_ARGS__>());   \
  }
#define BULKHEAD_DETAIL_JOIN(a, b) BULKHEAD_DETAIL_JOIN_AGAIN(a, b)
#define BULKHEAD_DETAIL_JOIN_AGAIN(a, b) a##b

}  // namespace bulkhead
