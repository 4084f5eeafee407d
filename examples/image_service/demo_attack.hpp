// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>

#include "picture.hpp"

// "BLKX", a picture made up for this example that stands for one that has taken its decoder over: its "decoder" does
// what such code does first. It shows what a sandbox is for, and that this one holds.
//
//   'B' 'L' 'K' 'X'   which attack (32 bits, little-endian)

namespace image_service {

enum class Attack : std::uint32_t {
  /// Tries to read a file, to write one, and to listen for those who gave the order.
  escape = 1,
  /// Tries to become another program.
  execute = 2,
  /// Leaves something behind in its worker, and looks for what others have left.
  linger = 3
};

bool is_attack(BytesView image) noexcept;
/// Never returns: at best it throws a `DecodeError` that says what each attempt came to.
[[noreturn]] void run_attack(BytesView image);
Bytes attack_sample(Attack attack);

}  // namespace image_service
