// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <csetjmp>

namespace image_service {

/// Calls C code that reports errors by `longjmp(jump, 1)`, and returns whether it came back without one.
///
/// A `longjmp` runs no destructors. So `call` (and what it calls) must hold no object that has one: callers keep their
/// vectors and strings outside and give `call` a lambda that captures references only. The jump is a small function of
/// its own because no local variable of it changes between `setjmp` and the jump, which would make the variable's value
/// undefined.
template <class Call>
bool guarded(std::jmp_buf& jump, const Call& call) {
  if (setjmp(jump) != 0) return false;  // NOLINT(cert-err52-cpp): libjpeg has no other way
  call();
  return true;
}

}  // namespace image_service
