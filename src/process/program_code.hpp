// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>
#include <vector>

namespace bulkhead::process {

/// The code of the program and of its libraries, as it was loaded at one time.
class ProgramCode {
 public:
  /// What is loaded now. It stays loaded for good, so that no other library can take its addresses later.
  static ProgramCode keep_loaded();

  /// Throws `FunctionUnavailableError`, which says why, if no function of this code begins at the address. It never
  /// reads what the address points to. Where there is no telling (a function without unwind tables), it is a function.
  void require_function(const void* address) const;

 private:
  struct Range {
    std::uintptr_t begin;
    std::uintptr_t end;
  };

  bool contains(std::uintptr_t address) const noexcept;

  std::vector<Range> ranges_;  // by address
};

}  // namespace bulkhead::process
