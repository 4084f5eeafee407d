// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <link.h>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace bulkhead::process {

/// A file in memory, for as long as this lives; empty if it cannot be read.
class MappedFile {
 public:
  explicit MappedFile(const char* path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// A piece of the bytes; empty if it does not lie within them.
std::span<const std::byte> part_of(std::span<const std::byte> bytes, std::uint64_t offset, std::uint64_t size);

/// One entry of a table, whose bytes need not be aligned; empty if the table ends before it.
template <class T>
std::optional<T> entry_of(std::span<const std::byte> table, std::uint64_t index) {
  if (table.size() / sizeof(T) <= index) return std::nullopt;
  T entry;
  std::memcpy(&entry, table.data() + index * sizeof(T), sizeof(T));
  return entry;
}

/// The text at an offset of a string table, without the null character behind it; empty if the table ends before that.
std::string_view string_of(std::span<const std::byte> table, std::uint64_t offset);

using ProgramHeader = ElfW(Phdr);
using SectionHeader = ElfW(Shdr);
using ElfSymbol = ElfW(Sym);

/// An executable or a shared library of this machine's kind (System V ABI, "Object Files"). It may be damaged: what
/// does not lie within it is taken for empty. Views the bytes, which must outlive it.
class ElfFile {
 public:
  ElfFile() = default;
  explicit ElfFile(std::span<const std::byte> bytes);

  /// The bytes of a section; empty if there is none of that name, if it has no bytes in the file, or if they are
  /// compressed.
  std::span<const std::byte> section(std::string_view name) const;

  /// Whether two addresses lie in the same section.
  bool share_section(std::uint64_t first, std::uint64_t second) const;

  struct SymbolTable {
    std::span<const std::byte> symbols;  // a table of ElfSymbol
    std::span<const std::byte> names;
  };
  /// All symbols, or, if `strip` has removed those, the ones for the dynamic linker.
  SymbolTable symbol_table() const;

  /// What tells this build of the file from another one.
  std::vector<std::byte> fingerprint() const;

 private:
  std::span<const std::byte> contents(const SectionHeader& header) const;

  std::span<const std::byte> bytes_;
  std::span<const std::byte> program_headers_;
  std::span<const std::byte> section_headers_;
  std::span<const std::byte> section_names_;
};

/// The fingerprint of a program or library in memory. `base` is the difference between its addresses in memory and
/// those that its file tells.
std::vector<std::byte> loaded_fingerprint(std::span<const std::byte> program_headers, std::uintptr_t base);

}  // namespace bulkhead::process
