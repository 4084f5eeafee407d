// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bulkhead::process {

/// The program or a shared library, as it is loaded.
struct LoadedObject {
  bool is_program = false;
  bool is_code = false;     // at the address asked for
  std::string path;         // of a library's file, which may have been replaced since; the program has none here
  std::uintptr_t base = 0;  // the difference between its addresses in memory and those that its file tells
  std::vector<std::byte> fingerprint;
};

/// What is loaded around an address; empty if nothing is.
std::optional<LoadedObject> loaded_object(std::uintptr_t address);

/// The program itself.
std::optional<LoadedObject> loaded_program();

}  // namespace bulkhead::process
