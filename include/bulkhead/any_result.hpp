// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <atomic>
#include <concepts>
#include <memory>
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace bulkhead {

namespace detail {

// Whether R can be copied; std::is_copy_constructible is also true of a std::vector<std::unique_ptr>.
template <class R>
struct IsCopyable : std::is_copy_constructible<R> {};
template <class R>
requires requires { typename R::value_type; }
struct IsCopyable<R> : std::bool_constant<std::is_copy_constructible_v<R> &&
                                          std::conditional_t<std::is_same_v<typename R::value_type, R>, std::true_type,
                                                             IsCopyable<typename R::value_type>>::value> {};
template <class A, class B>
struct IsCopyable<std::pair<A, B>> : std::bool_constant<IsCopyable<A>::value && IsCopyable<B>::value> {};

[[noreturn]] BULKHEAD_EXPORT void throw_result_type(const std::type_info* held, const std::type_info& wanted);
[[noreturn]] BULKHEAD_EXPORT void throw_result_taken();

// A result that several may take; one that can only be moved goes to the first of them.
template <class R>
struct HeldResult {
  explicit HeldResult(R&& result) : value(std::move(result)) {}
  R value;
  std::atomic<bool> taken{false};
};

// A result whose type the program knows at run time only.
struct AnyValue {
  std::shared_ptr<void> held;  // a HeldResult; null: the function returns nothing
  const std::type_info* type = &typeid(void);
};

template <class R>
AnyValue make_any_value(R&& result) {
  return {std::make_shared<HeldResult<R>>(std::move(result)), &typeid(R)};
}

template <class R>
R take_or_copy(const AnyValue& value) {
  if (*value.type != typeid(R)) throw_result_type(value.type, typeid(R));
  auto& held = *static_cast<HeldResult<R>*>(value.held.get());
  if constexpr (IsCopyable<R>::value) {
    return held.value;
  } else {
    if (held.taken.exchange(true)) throw_result_taken();
    return std::move(held.value);
  }
}

}  // namespace detail

/// What a task returned that was submitted by its name: `std::string page = co_await pool.submit("render", 7);`. Its
/// type is checked when it is taken. Move-only. Thread safety: distinct objects: safe.
class BULKHEAD_EXPORT AnyResult {
 public:
  /// Nothing: what a function gives that returns nothing.
  AnyResult() noexcept = default;
  explicit AnyResult(detail::AnyValue value) noexcept : value_(std::move(value)) {}
  AnyResult(AnyResult&&) noexcept = default;
  AnyResult& operator=(AnyResult&&) noexcept = default;

  /// The type of the result; `typeid(void)` if the function returns nothing.
  const std::type_info& type() const noexcept { return *value_.type; }

  /// The result. Throws `TaskSignatureError` if its type is another, `std::logic_error` if it has been moved out.
  template <class R>
  R get() {
    return detail::take_or_copy<R>(value_);
  }
  template <class R>
  requires(!std::same_as<R, AnyResult> && !std::is_reference_v<R>)
  operator R() {  // NOLINT(google-explicit-constructor)
    return get<R>();
  }

 private:
  detail::AnyValue value_;
};

}  // namespace bulkhead
