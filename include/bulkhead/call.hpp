// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <boost/asio/awaitable.hpp>

#include <concepts>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace bulkhead {

namespace detail {

// How an argument is kept until it is sent: by value, and views as what owns their contents, since `submit` is lazy and
// what a view points to may be gone by then.
template <class A>
struct Kept {
  using type = A;
};
template <>
struct Kept<const char*> {
  using type = std::string;
};
template <>
struct Kept<char*> {
  using type = std::string;
};
template <>
struct Kept<std::string_view> {
  using type = std::string;
};
template <class T, std::size_t N>
struct Kept<std::span<T, N>> {
  using type = std::vector<std::remove_cv_t<T>>;
};

template <class A>
using kept_t = typename Kept<std::decay_t<A>>::type;

// Views become owners where the function can be called with owners; `void f(const char*)` on a thread keeps its
// pointer.
template <class F, class... Args>
inline constexpr bool keeps_owners = std::is_invocable_v<std::decay_t<F>, kept_t<Args>...>;

template <class A>
kept_t<A> keep(A&& argument) {
  using T = std::decay_t<A>;
  if constexpr (std::is_same_v<kept_t<A>, T>) {
    return std::forward<A>(argument);
  } else if constexpr (std::is_constructible_v<kept_t<A>, A>) {
    return kept_t<A>(std::forward<A>(argument));
  } else {
    return kept_t<A>(argument.begin(), argument.end());
  }
}

}  // namespace detail

/// A function and the arguments to call it with, kept by value. Made by `call`; a class with a constructor, since g++
/// 12 destroys aggregate temporaries inside a `co_await` expression twice.
template <class F, class... Args>
class Call {
 public:
  template <class G, class... As>
  requires(sizeof...(As) == sizeof...(Args)) explicit Call(std::in_place_t, G&& function_, As&&... arguments_)
      : function(std::forward<G>(function_)), arguments(std::forward<As>(arguments_)...) {}

  F function;
  std::tuple<Args...> arguments;
};

/// Binds a function to copies of its arguments, for `async_submit` and for `LocalExecutorOptions::initializer`.
/// Views and string literals are kept as what owns their contents (`std::string`, `std::vector`).
template <class F, class... Args>
auto call(F&& function, Args&&... arguments) {
  if constexpr (detail::keeps_owners<F, Args...>) {
    return Call<std::decay_t<F>, detail::kept_t<Args>...>(std::in_place, std::forward<F>(function),
                                                          detail::keep(std::forward<Args>(arguments))...);
  } else {
    return Call<std::decay_t<F>, std::decay_t<Args>...>(std::in_place, std::forward<F>(function),
                                                        std::forward<Args>(arguments)...);
  }
}

namespace detail {

template <class F, class... Args>
using call_t = decltype(bulkhead::call(std::declval<F>(), std::declval<Args>()...));

template <class C>
struct CallTraits;

template <class F, class... Args>
struct CallTraits<Call<F, Args...>> {
  using function = F;
  static constexpr bool invocable = std::is_invocable_v<F, Args...>;
};

template <class F, class... Args>
requires std::is_invocable_v<F, Args...> std::decay_t<std::invoke_result_t<F, Args...>> call_result(
    const Call<F, Args...>*);

// What a call gives, by value. A reference that a function returns would dangle once its arguments are gone.
template <class C>
using call_result_t = decltype(call_result(static_cast<const C*>(nullptr)));

template <class T>
inline constexpr bool is_awaitable = false;
template <class T, class Executor>
inline constexpr bool is_awaitable<asio::awaitable<T, Executor>> = true;

// Whether an executor can run it, if it is a coroutine.
template <class T>
inline constexpr bool runs_on_any_executor = true;
template <class T, class Executor>
inline constexpr bool runs_on_any_executor<asio::awaitable<T, Executor>> =
    std::is_same_v<Executor, typename asio::awaitable<T>::executor_type>;

template <class C>
constexpr bool gives_what_executors_run() {
  if constexpr (CallTraits<C>::invocable) {
    return runs_on_any_executor<call_result_t<C>>;
  } else {
    return true;  // that is another error
  }
}

// What a task gives: what its call gives or, if that is a coroutine, what the coroutine gives.
template <class T>
struct TaskResult {
  using type = T;
};
template <class T, class Executor>
struct TaskResult<asio::awaitable<T, Executor>> {
  using type = std::decay_t<T>;
};
template <class C>
using task_result_t = typename TaskResult<call_result_t<C>>::type;

// The parameter types of a callable that has exactly one signature; `known` is false for generic callables.
template <class F>
struct Signature {
  static constexpr bool known = false;
};
template <class... P>
struct KnownSignature {
  static constexpr bool known = true;
  using parameters = std::tuple<P...>;
};
#define BULKHEAD_DETAIL_SIGNATURE(CONST, REF, NOEXCEPT)                           \
  template <class R, class C, class... P>                                         \
  struct Signature<R (C::*)(P...) CONST REF NOEXCEPT> : KnownSignature<C, P...> { \
    using without_object = KnownSignature<P...>;                                  \
  };
BULKHEAD_DETAIL_SIGNATURE(, , )
BULKHEAD_DETAIL_SIGNATURE(const, , )
BULKHEAD_DETAIL_SIGNATURE(, &, )
BULKHEAD_DETAIL_SIGNATURE(const, &, )
BULKHEAD_DETAIL_SIGNATURE(, &&, )
BULKHEAD_DETAIL_SIGNATURE(const, &&, )
BULKHEAD_DETAIL_SIGNATURE(, , noexcept)
BULKHEAD_DETAIL_SIGNATURE(const, , noexcept)
BULKHEAD_DETAIL_SIGNATURE(, &, noexcept)
BULKHEAD_DETAIL_SIGNATURE(const, &, noexcept)
BULKHEAD_DETAIL_SIGNATURE(, &&, noexcept)
BULKHEAD_DETAIL_SIGNATURE(const, &&, noexcept)
#undef BULKHEAD_DETAIL_SIGNATURE
template <class R, class... P>
struct Signature<R (*)(P...)> : KnownSignature<P...> {};
template <class R, class... P>
struct Signature<R (*)(P...) noexcept> : KnownSignature<P...> {};
template <class F>
requires requires { &F::operator(); }
struct Signature<F> : Signature<decltype(&F::operator())>::without_object {};

}  // namespace detail
}  // namespace bulkhead
