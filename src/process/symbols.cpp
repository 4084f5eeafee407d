// SPDX-License-Identifier: BSL-1.0
#include "symbols.hpp"

#include "posix.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace bulkhead::process {
namespace {

/// A file in memory, for as long as this lives; empty if it cannot be read.
class MappedFile {
 public:
  explicit MappedFile(const char* path) {
    const FileDescriptor fd(::open(path, O_RDONLY | O_CLOEXEC));
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) != 0 || status.st_size <= 0) return;
    const auto size = static_cast<std::size_t>(status.st_size);
    void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (memory != MAP_FAILED) bytes_ = {static_cast<const std::byte*>(memory), size};
  }
  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  /// A piece of it; empty if it does not lie within the file.
  std::span<const std::byte> part(std::uint64_t offset, std::uint64_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) return {};
    return bytes_.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
  }

 private:
  std::span<const std::byte> bytes_;
};

template <class T>
std::optional<T> read_at(std::span<const std::byte> bytes, std::uint64_t index) {
  T value;
  if (bytes.size() / sizeof(T) <= index) return std::nullopt;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

struct Symbol {
  std::uintptr_t offset;  // from where the program is loaded
  std::string name;
};

// The functions of an ELF file, by their offset. Format: the System V ABI, "Object Files".
std::vector<Symbol> functions_of(const MappedFile& file) {
  std::vector<Symbol> functions;
  const auto header = read_at<ElfW(Ehdr)>(file.part(0, sizeof(ElfW(Ehdr))), 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_shentsize != sizeof(ElfW(Shdr))) {
    return functions;
  }
  const auto sections = file.part(header->e_shoff, std::uint64_t{header->e_shnum} * sizeof(ElfW(Shdr)));
  for (std::uint64_t i = 0; i < header->e_shnum; ++i) {
    const auto table = read_at<ElfW(Shdr)>(sections, i);
    if (!table || table->sh_type != SHT_SYMTAB) continue;
    const auto strings = read_at<ElfW(Shdr)>(sections, table->sh_link);
    if (!strings) continue;
    const auto symbols = file.part(table->sh_offset, table->sh_size);
    const auto names = file.part(strings->sh_offset, strings->sh_size);
    for (std::uint64_t k = 0; const auto symbol = read_at<ElfW(Sym)>(symbols, k); ++k) {
      if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_value == 0 || symbol->st_name >= names.size()) {
        continue;
      }
      const auto* name = reinterpret_cast<const char*>(names.data()) + symbol->st_name;
      functions.push_back({symbol->st_value, std::string(name, ::strnlen(name, names.size() - symbol->st_name))});
    }
  }
  std::stable_sort(functions.begin(), functions.end(),
                   [](const Symbol& a, const Symbol& b) { return a.offset < b.offset; });
  return functions;
}

// Where the program itself is loaded: the first object that the dynamic linker lists.
std::uintptr_t program_base() {
  std::uintptr_t base = 0;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        *static_cast<std::uintptr_t*>(result) = info->dlpi_addr;
        return 1;
      },
      &base);
  return base;
}

}  // namespace

std::string symbol_name(const void* address) {
  Dl_info info{};
  if (address == nullptr || ::dladdr(address, &info) == 0) return {};
  if (info.dli_sname != nullptr && info.dli_saddr == address) return info.dli_sname;
  static const std::vector<Symbol> functions = functions_of(MappedFile("/proc/self/exe"));
  static const std::uintptr_t base = program_base();
  // A library's functions would only by accident lie at an offset of the program's.
  Dl_info program{};
  if (functions.empty() || ::dladdr(reinterpret_cast<const void*>(base + functions.front().offset), &program) == 0 ||
      program.dli_fbase != info.dli_fbase) {
    return {};
  }
  const std::uintptr_t offset = reinterpret_cast<std::uintptr_t>(address) - base;
  const auto found = std::lower_bound(functions.begin(), functions.end(), offset,
                                      [](const Symbol& symbol, std::uintptr_t value) { return symbol.offset < value; });
  return found != functions.end() && found->offset == offset ? found->name : std::string();
}

}  // namespace bulkhead::process
