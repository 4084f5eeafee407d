// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "address_index.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace bulkhead::process {

/// Where the instruction at an address comes from; the file is empty if that is not known. Line 0: the compiler made
/// the instruction for no line of that file. DWARF 2 to 4 tell the file relative to where the compiler ran, if it was
/// given so.
struct SourceLine {
  std::string file;
  unsigned line = 0;
};

/// The sections that tell source lines; DWARF 2 to 4 have the first only.
struct LineSections {
  std::span<const std::byte> debug_line;
  std::span<const std::byte> debug_line_str;
  std::span<const std::byte> debug_str;
};

/// Source lines by address (DWARF 5, 6.2 "Line Number Information", and the same of DWARF 2 to 4). Views the sections,
/// which may be damaged and must outlive it.
class LineTable {
 public:
  LineTable() = default;
  /// Goes through all of .debug_line once and keeps 16 bytes for each function or so, not for each line.
  explicit LineTable(const LineSections& sections);

  /// Goes through one unit: what the compiler made of one source file.
  SourceLine find(std::uint64_t address) const;

 private:
  LineSections sections_;
  AddressIndex sequences_;  // the value is where the unit begins
};

}  // namespace bulkhead::process
