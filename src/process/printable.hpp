// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>

namespace bulkhead::process {

/// What a worker wrote is shown on terminals and in logs: control characters but for tab and line feed become '?'.
inline void replace_control_characters(std::string& text) noexcept {
  for (char& c : text) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) c = '?';
  }
}

}  // namespace bulkhead::process
