// SPDX-License-Identifier: BSL-1.0
#include "function_table.hpp"

#include <elf.h>
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace bulkhead::process {
namespace {

bool is_function(const ElfSymbol& symbol) {
  const auto type = ELF64_ST_TYPE(symbol.st_info);  // 32-bit files have it in the same bits
  return (type == STT_FUNC || type == STT_GNU_IFUNC) && symbol.st_shndx != SHN_UNDEF && symbol.st_value != 0;
}

}  // namespace

FunctionTable::FunctionTable(const ElfFile& file) : file_(file) {
  const ElfFile::SymbolTable table = file.symbol_table();
  names_ = table.names;
  std::vector<AddressIndex::Range> functions;
  // Of several names for an address, one that others can link with says more than a compiler's local alias.
  for (const bool local : {false, true}) {
    for (std::uint64_t i = 0; const auto symbol = entry_of<ElfSymbol>(table.symbols, i); ++i) {
      if (!is_function(*symbol) || (ELF64_ST_BIND(symbol->st_info) == STB_LOCAL) != local) continue;
      const auto size = std::min<std::uint64_t>(symbol->st_size, std::numeric_limits<std::uint32_t>::max());
      functions.push_back({symbol->st_value, static_cast<std::uint32_t>(size), symbol->st_name});
    }
  }
  index_ = AddressIndex(std::move(functions));
}

std::string_view FunctionTable::name_at(std::uint64_t address) const {
  const AddressIndex::Range* const range = index_.starting_at(address);
  return range == nullptr ? std::string_view() : string_of(names_, range->value);
}

FunctionTable::Function FunctionTable::around(std::uint64_t address) const {
  const AddressIndex::Range* const range = index_.around(address);
  // A function whose size is not known reaches no further than its section.
  if (range == nullptr || !file_.share_section(range->begin, address)) return {};
  return {string_of(names_, range->value), range->begin};
}

}  // namespace bulkhead::process
