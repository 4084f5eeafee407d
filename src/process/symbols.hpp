// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>
#include <string>

namespace bulkhead::process {

/// The mangled name of the function that begins at this address, as the dynamic symbols or the program's own symbol
/// table (which `strip` removes) know it; empty if neither does. Reads the program's file at the first call.
/// Thread-safe.
std::string symbol_name(const void* address);

/// What an address in code means. What is not known is empty.
struct Frame {
  std::uintptr_t address = 0;
  std::string function;              // mangled
  std::uintptr_t offset = 0;         // from where the function begins
  std::string module;                // file name of the program or library
  std::uintptr_t module_offset = 0;  // the address as that file counts, which is what `addr2line -e` takes
  std::string file;                  // as the compiler was given it
  unsigned line = 0;                 // 0: the compiler made the code for no line of the file
};

/// Describes an address anywhere in a function; for a return address, that of the byte before it. A function that has
/// been inlined there is not named, but the line is its line. Reads a module's file at the first address in it, and the
/// lines when they are first asked for. Thread-safe; not for copies of this process, which may be forked while a lock
/// is held.
Frame describe_address(std::uintptr_t address);

/// Reads the program's functions, so that the first call of the others is quick, too. Thread-safe.
void prepare_symbols();

}  // namespace bulkhead::process
