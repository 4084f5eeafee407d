// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "address_index.hpp"
#include "elf_file.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace bulkhead::process {

/// The functions of a program or library by their addresses, which are those of the file. Views the file, which may be
/// damaged and must outlive it.
class FunctionTable {
 public:
  FunctionTable() = default;
  explicit FunctionTable(const ElfFile& file);

  /// The mangled name of the function that begins there; empty if none does.
  std::string_view name_at(std::uint64_t address) const;

  struct Function {
    std::string_view name;
    std::uint64_t begin = 0;
  };
  /// The function around the address; without a name if there is none.
  Function around(std::uint64_t address) const;

 private:
  ElfFile file_;
  std::span<const std::byte> names_;
  AddressIndex index_;  // the value is where the name is
};

}  // namespace bulkhead::process
