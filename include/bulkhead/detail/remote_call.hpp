// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/task_context.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/serialization.hpp>

#include <boost/asio/awaitable.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace bulkhead::detail {

// The first byte of an answer. `stopped`: the task ended since it had been asked to.
enum class AnswerKind : std::uint8_t { value = 0, exception = 1, stopped = 2 };

// Where a worker writes its answer. `write` is called once or, if the first place was too small, twice.
class AnswerSink {
 public:
  using Write = void (*)(Encoder& encoder, const void* value);
  virtual void put(Write write, const void* value) = 0;
  // There is no memory left for as much as an answer.
  virtual void set_out_of_memory() noexcept {}

 protected:
  ~AnswerSink() = default;
};

// Reads callable and arguments, calls, and puts the answer. One instantiation per call type; its address is what
// travels, since host and workers are copies of one process.
using RemoteFunction = void (*)(Decoder& request, AnswerSink& sink);

// Functions that are known to exist in the workers. Every task asks twice, and to look one up takes as long as the rest
// of a small task. An entry stays right, since what was loaded when the fork server started is never unloaded; it says
// nothing beyond itself, so that no order with other memory is needed; and what is forgotten is only looked up again.
class KnownFunctions {
 public:
  bool contains(const void* address) const noexcept {
    const auto value = reinterpret_cast<std::uintptr_t>(address);
    const Pair& pair = pairs_[index(value)];
    return pair.last.load(std::memory_order_relaxed) == value || pair.other.load(std::memory_order_relaxed) == value;
  }

  void add(const void* address) noexcept {
    const auto value = reinterpret_cast<std::uintptr_t>(address);
    Pair& pair = pairs_[index(value)];
    pair.other.store(pair.last.load(std::memory_order_relaxed), std::memory_order_relaxed);
    pair.last.store(value, std::memory_order_relaxed);
  }

 private:
  // Two, so that a function and what calls it do not drive each other out. Empty is null, which is no function.
  struct Pair {
    std::atomic<std::uintptr_t> last{0};
    std::atomic<std::uintptr_t> other{0};
  };
  // More than the functions that most programs submit; 4 KiB, of which only what is used is ever touched.
  static constexpr std::size_t kPairs = 256;

  // Compilers put functions at multiples of 16, and those of one program near each other.
  static std::size_t index(std::uintptr_t value) noexcept { return (value >> 4 ^ value >> 12) % kPairs; }

  alignas(64) Pair pairs_[kPairs];  // a cache line: no pair lies across two
};
BULKHEAD_EXPORT extern KnownFunctions known_functions;
BULKHEAD_EXPORT void look_up_function(const void* address);

// Throws FunctionUnavailableError if this is not the address of a function that the workers have.
inline void check_function(const void* address) {
  if (address == nullptr || !known_functions.contains(address)) look_up_function(address);
}
// The symbol's name, or the fallback.
BULKHEAD_EXPORT std::string function_name(const void* address, const char* fallback_mangled_type);
// Runs an encoded request and puts its answer: a value or an exception. Throws only if not even the exception can be
// put.
BULKHEAD_EXPORT void run_encoded(std::span<const std::byte> request, AnswerSink& sink);
// Reads an answer into the task: its value, or its exception as the task's error. An answer that makes no sense is a
// SerializationError of the result.
BULKHEAD_EXPORT Outcome decode_answer(TaskNode& node, std::span<const std::byte> answer);

// The same for a value that the library decodes itself, which is quick and runs no code of the user's. False: the
// answer is something else, and nothing was done.
BULKHEAD_EXPORT bool decode_short_answer(TaskNode& node, std::span<const std::byte> answer);

// Errors of the codec know the type; these say which part of the task it was.
[[noreturn]] BULKHEAD_EXPORT void rethrow_as(SerializationError::Part part, const SerializationError& error);

template <class F>
inline constexpr bool is_function_pointer = std::is_pointer_v<F>&& std::is_function_v<std::remove_pointer_t<F>>;

// Where the code of a function, or of a member function, begins; null for a virtual one, which only an object can tell.
template <class F>
requires is_function_pointer<F> || std::is_member_function_pointer_v<F>
const void* code_of(F function) noexcept {
  if constexpr (is_function_pointer<F>) {
    return reinterpret_cast<const void*>(function);
  } else {
    // Itanium C++ ABI, 2.3: the first word is the function's address, or for a virtual one an offset (odd on x86-64;
    // on AArch64 the second word tells).
    std::uintptr_t words[2];
    static_assert(sizeof(words) == sizeof(function));
    std::memcpy(words, &function, sizeof(words));
#if defined(__aarch64__)
    const bool is_virtual = (words[1] & 1) != 0;
#else
    const bool is_virtual = (words[0] & 1) != 0;
#endif
    return is_virtual ? nullptr : reinterpret_cast<const void*>(words[0]);
  }
}

// Captureless lambdas and function objects without data: the type says it all.
template <class F>
inline constexpr bool is_stateless = std::is_class_v<F>&& std::is_empty_v<F>&& std::is_default_constructible_v<F>;

template <class F>
concept SendableCallable = is_function_pointer<F> || std::is_member_function_pointer_v<F> || is_stateless<F> ||
    (std::is_class_v<F>&& Serializable<F>);

template <class F>
void encode_callable(const F& function, Encoder& encoder) {
  if constexpr (is_function_pointer<F>) {
    check_function(code_of(function));
    encoder.write_value(reinterpret_cast<std::uint64_t>(function));
  } else if constexpr (std::is_member_function_pointer_v<F>) {
    if (function == nullptr) check_function(nullptr);
    // A virtual function is found through the object, in the worker.
    if (const void* code = code_of(function)) check_function(code);
    encoder.write(&function, sizeof(function));
  } else if constexpr (!is_stateless<F>) {
    bulkhead::encode(encoder, function);
  }
}

template <class F>
F decode_callable(Decoder& request) {
  if constexpr (is_function_pointer<F>) {
    return reinterpret_cast<F>(request.read_value<std::uint64_t>());
  } else if constexpr (std::is_member_function_pointer_v<F>) {
    F function;
    request.read(&function, sizeof(function));
    return function;
  } else if constexpr (is_stateless<F>) {
    return F();
  } else {
    return bulkhead::decode<F>(request);
  }
}

// What a task's default name is made of: the callable, or the one that it only passes its arguments to.
template <class F>
struct NamedCallable {
  static const F& of(const F& function) noexcept { return function; }
};
template <class F>
NameSource callable_name(const F& function) noexcept {
  const auto& named = NamedCallable<F>::of(function);
  using Named = std::remove_cvref_t<decltype(named)>;
  if constexpr (is_function_pointer<Named> || std::is_member_function_pointer_v<Named>) {
    return {[](const void* code) { return function_name(code, typeid(Named).name()); }, code_of(named)};
  } else {
    return {[](const void*) { return type_name<Named>(); }, nullptr};
  }
}

// What a parameter sees: a view of the request in place where it is declared as a view of what the argument owns.
template <class Kept, class Parameter>
struct Seen {
  static constexpr bool in_place = false;
  using type = Kept;
};
template <class Kept, class Parameter>
requires std::is_same_v<std::remove_cvref_t<Parameter>, std::string_view> && std::is_same_v<Kept, std::string>
struct Seen<Kept, Parameter> {
  static constexpr bool in_place = true;
  using type = std::string_view;
};
template <class T>
inline constexpr bool is_const_span = false;
template <class T>
inline constexpr bool is_const_span<std::span<const T>> = true;
template <class Kept, class Parameter>
requires is_const_span<std::remove_cvref_t<Parameter>> && requires {
  decode_view<std::remove_cvref_t<Parameter>, Kept>(std::declval<Decoder&>());
}
struct Seen<Kept, Parameter> {
  static constexpr bool in_place = true;
  using type = std::remove_cvref_t<Parameter>;
};

template <class F, std::size_t I, class Kept>
struct SeenAt {
  using trait = Seen<Kept, void>;
};
template <class F, std::size_t I, class Kept>
requires Signature<F>::known &&(I < std::tuple_size_v<typename Signature<F>::parameters>)struct SeenAt<F, I, Kept> {
  using trait = Seen<Kept, std::tuple_element_t<I, typename Signature<F>::parameters>>;
};

template <class T>
concept SendableResult = std::is_void_v<T> || Serializable<T>;

template <class T>
inline constexpr bool is_short = std::is_void_v<T> ||
                                 ((std::is_arithmetic_v<T> || std::is_enum_v<T>)&&!codec_detail::has_own_way<T>());

template <class C>
struct Remote;

template <class F, class... Args>
struct Remote<Call<F, Args...>> {
  static constexpr bool callable = SendableCallable<F>;
  static constexpr bool arguments = (Serializable<Args> && ...);
  static constexpr bool invocable = std::is_invocable_v<F, Args...>;
  // Numbers and the like: no user code, and no size that depends on the value.
  static constexpr bool library_encoding = (is_function_pointer<F> || is_stateless<F>)&&(is_short<Args> && ...);
  // What the encoding takes where each part of it is as it lies in memory; 0: it is another one, or a long one.
  static constexpr std::size_t short_call = [] {
    std::size_t size = sizeof(std::uint64_t) + (is_function_pointer<F> ? sizeof(std::uint64_t) : 0);
    if constexpr (library_encoding) {
      ((size += sizeof(Args)), ...);
      if ((codec_detail::is_bitwise<Args>() && ...) && size <= kShortCall) return size;
    }
    return std::size_t{0};
  }();
  static constexpr bool library_decoding = [] {
    if constexpr (invocable) {
      return is_short<call_result_t<Call<F, Args...>>>;
    } else {
      return false;
    }
  }();

  // Bytes of an answer that is the kind, and a value as it lies in memory; 0: it is another one.
  static constexpr std::uint8_t plain_answer = [] {
    if constexpr (invocable) {
      using Result = call_result_t<Call<F, Args...>>;
      if constexpr (std::is_void_v<Result>)
        return sizeof(AnswerKind);
      else if constexpr (std::is_arithmetic_v<Result>) {
        constexpr std::size_t size = sizeof(AnswerKind) + sizeof(Result);
        return codec_detail::is_bitwise<Result>() && size <= kShortAnswer ? size : 0;
      }
    }
    return std::size_t{0};
  }();

  // The same as `encode` for a short call.
  static void encode_short(const Call<F, Args...>& call, std::span<std::byte, kShortCall> to) {
    std::byte* at = to.data();
    const auto put = [&at](const auto& value) {
      std::memcpy(at, &value, sizeof(value));
      at += sizeof(value);
    };
    put(reinterpret_cast<std::uint64_t>(&run));
    if constexpr (is_function_pointer<F>) {
      check_function(code_of(call.function));
      put(reinterpret_cast<std::uint64_t>(call.function));
    }
    check_function(reinterpret_cast<const void*>(&run));
    std::apply([&](const Args&... arguments_) { (put(arguments_), ...); }, call.arguments);
  }

  static void encode(const Call<F, Args...>& call, Encoder& encoder) {
    encoder.write_value(reinterpret_cast<std::uint64_t>(&run));
    try {
      encode_callable(call.function, encoder);
      // The code that calls it comes from the same library as its type.
      check_function(reinterpret_cast<const void*>(&run));
    } catch (const SerializationError& error) {
      rethrow_as(SerializationError::Part::callable, error);
    }
    try {
      std::apply([&](const Args&... arguments_) { (bulkhead::encode(encoder, arguments_), ...); }, call.arguments);
    } catch (const SerializationError& error) {
      rethrow_as(SerializationError::Part::argument, error);
    }
  }

  static void run(Decoder& request, AnswerSink& sink) { run_with(request, sink, std::index_sequence_for<Args...>()); }

 private:
  template <std::size_t... I>
  static void run_with(Decoder& request, AnswerSink& sink, std::index_sequence<I...>) {
    using Result = call_result_t<Call<F, Args...>>;
    F function = decode_callable<F>(request);
    const NameSource name = callable_name(function);
    note_function(name.make, name.code);
    // Braces fix the order of evaluation: left to right, as they were written.
    std::tuple<typename SeenAt<F, I, Args>::trait::type...> arguments_{decode_argument<I, Args>(request)...};
    request.finish();
    if constexpr (std::is_void_v<Result>) {
      std::apply(std::move(function), std::move(arguments_));
      sink.put([](Encoder& encoder, const void*) { encoder.write_value(AnswerKind::value); }, nullptr);
    } else {
      const Result result = std::apply(std::move(function), std::move(arguments_));
      sink.put(
          [](Encoder& encoder, const void* value) {
            encoder.write_value(AnswerKind::value);
            try {
              bulkhead::encode(encoder, *static_cast<const Result*>(value));
            } catch (const SerializationError& error) {
              rethrow_as(SerializationError::Part::result, error);
            }
          },
          &result);
    }
  }

  template <std::size_t I, class Kept>
  static typename SeenAt<F, I, Kept>::trait::type decode_argument(Decoder& request) {
    using Trait = typename SeenAt<F, I, Kept>::trait;
    try {
      if constexpr (Trait::in_place) {
        return decode_view<typename Trait::type, Kept>(request);
      } else {
        return bulkhead::decode<Kept>(request);
      }
    } catch (const SerializationError& error) {
      rethrow_as(SerializationError::Part::argument, error);
    }
  }
};

template <class C>
concept Sendable =
    Remote<C>::callable && Remote<C>::arguments && Remote<C>::invocable && !is_awaitable<call_result_t<C>> &&
    SendableResult<call_result_t<C>>;

// Says at compile time why a call cannot be sent, in one sentence; the rest is left out, so that it stays the only one.
template <class F, class... Args>
constexpr void require_sendable(std::type_identity<Call<F, Args...>>) {
  using C = Call<F, Args...>;
  if constexpr (!Remote<C>::callable) {
    static_assert(
        Remote<C>::callable,
        "bulkhead: this callable cannot be sent to a worker process: pass what a lambda captures as arguments, "
        "or use a function, or a function object whose members the codec can carry.");
  } else if constexpr (!Remote<C>::arguments) {
    (codec_detail::require_serializable<Args>(), ...);
  } else if constexpr (!Remote<C>::invocable) {
    static_assert(Remote<C>::invocable,
                  "bulkhead: the function cannot be called with these arguments in a worker process; it gets them as "
                  "rvalues, so a parameter cannot be a reference to non-const: return what it is to change.");
  } else if constexpr (is_awaitable<call_result_t<C>>) {
    static_assert(
        !is_awaitable<call_result_t<C>>,
        "bulkhead: a coroutine cannot run in a worker process, which has no event loop: submit it to an IoExecutor.");
  } else if constexpr (!SendableResult<call_result_t<C>>) {
    codec_detail::require_serializable<call_result_t<C>>();
  }
}
template <class C>
constexpr void require_sendable() {
  require_sendable(std::type_identity<C>());
}

}  // namespace bulkhead::detail
