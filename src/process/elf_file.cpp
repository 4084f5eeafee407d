// SPDX-License-Identifier: BSL-1.0
#include "elf_file.hpp"

#include "posix.hpp"

#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <bit>

namespace bulkhead::process {
namespace {

// What the types that <link.h> has for this machine are for.
constexpr unsigned char kClass = sizeof(void*) == 8 ? ELFCLASS64 : ELFCLASS32;
constexpr unsigned char kByteOrder = std::endian::native == std::endian::little ? ELFDATA2LSB : ELFDATA2MSB;

bool lies_within(const ProgramHeader& inner, const ProgramHeader& outer) {
  return inner.p_vaddr >= outer.p_vaddr && inner.p_filesz <= outer.p_filesz &&
         inner.p_vaddr - outer.p_vaddr <= outer.p_filesz - inner.p_filesz;
}

// Only headers decide what is taken, so that a file and its image in memory agree.
bool is_loaded(std::span<const std::byte> program_headers, const ProgramHeader& note) {
  for (std::uint64_t i = 0; const auto segment = entry_of<ProgramHeader>(program_headers, i); ++i) {
    if (segment->p_type == PT_LOAD && (segment->p_flags & PF_R) != 0 && lies_within(note, *segment)) return true;
  }
  return false;
}

// The program headers, which tell the sizes of code and data, and the notes, of which the build ID is one.
template <class NoteBytes>
std::vector<std::byte> fingerprint_of(std::span<const std::byte> program_headers, NoteBytes note_bytes) {
  std::vector<std::byte> fingerprint(program_headers.begin(), program_headers.end());
  for (std::uint64_t i = 0; const auto header = entry_of<ProgramHeader>(program_headers, i); ++i) {
    if (header->p_type != PT_NOTE || !is_loaded(program_headers, *header)) continue;
    const std::span<const std::byte> bytes = note_bytes(*header);
    fingerprint.insert(fingerprint.end(), bytes.begin(), bytes.end());
  }
  return fingerprint;
}

}  // namespace

MappedFile::MappedFile(const char* path) {
  const FileDescriptor fd(::open(path, O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0 || status.st_size <= 0) return;
  const auto size = static_cast<std::size_t>(status.st_size);
  void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (memory != MAP_FAILED) bytes_ = {static_cast<const std::byte*>(memory), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

std::span<const std::byte> part_of(std::span<const std::byte> bytes, std::uint64_t offset, std::uint64_t size) {
  if (offset > bytes.size() || size > bytes.size() - offset) return {};
  return bytes.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
}

std::string_view string_of(std::span<const std::byte> table, std::uint64_t offset) {
  if (offset >= table.size()) return {};
  const auto rest = table.subspan(static_cast<std::size_t>(offset));
  const auto* const text = reinterpret_cast<const char*>(rest.data());
  const std::size_t length = ::strnlen(text, rest.size());
  return length < rest.size() ? std::string_view(text, length) : std::string_view();
}

ElfFile::ElfFile(std::span<const std::byte> bytes) : bytes_(bytes) {
  const auto header = entry_of<ElfW(Ehdr)>(bytes, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != kClass ||
      header->e_ident[EI_DATA] != kByteOrder) {
    return;
  }
  if (header->e_phentsize == sizeof(ProgramHeader)) {
    program_headers_ = part_of(bytes, header->e_phoff, std::uint64_t{header->e_phnum} * sizeof(ProgramHeader));
  }
  if (header->e_shentsize != sizeof(SectionHeader) || header->e_shoff == 0) return;
  // Numbers that are too large for the ELF header are in the first section header.
  const auto first = entry_of<SectionHeader>(part_of(bytes, header->e_shoff, sizeof(SectionHeader)), 0);
  if (!first) return;
  const std::uint64_t count = header->e_shnum != 0 ? header->e_shnum : first->sh_size;
  if (count > bytes.size() / sizeof(SectionHeader)) return;
  section_headers_ = part_of(bytes, header->e_shoff, count * sizeof(SectionHeader));
  const std::uint64_t names = header->e_shstrndx != SHN_XINDEX ? header->e_shstrndx : first->sh_link;
  if (const auto table = entry_of<SectionHeader>(section_headers_, names)) section_names_ = contents(*table);
}

std::span<const std::byte> ElfFile::contents(const SectionHeader& header) const {
  if (header.sh_type == SHT_NOBITS || (header.sh_flags & SHF_COMPRESSED) != 0) return {};
  return part_of(bytes_, header.sh_offset, header.sh_size);
}

std::span<const std::byte> ElfFile::section(std::string_view name) const {
  for (std::uint64_t i = 0; const auto header = entry_of<SectionHeader>(section_headers_, i); ++i) {
    if (string_of(section_names_, header->sh_name) == name) return contents(*header);
  }
  return {};
}

bool ElfFile::share_section(std::uint64_t first, std::uint64_t second) const {
  for (std::uint64_t i = 0; const auto header = entry_of<SectionHeader>(section_headers_, i); ++i) {
    // Thread-local sections have addresses that others have, too.
    if ((header->sh_flags & SHF_ALLOC) == 0 || (header->sh_flags & SHF_TLS) != 0) continue;
    if (first - header->sh_addr < header->sh_size) return second - header->sh_addr < header->sh_size;
  }
  return false;
}

ElfFile::SymbolTable ElfFile::symbol_table() const {
  for (const auto type : {SHT_SYMTAB, SHT_DYNSYM}) {
    for (std::uint64_t i = 0; const auto table = entry_of<SectionHeader>(section_headers_, i); ++i) {
      if (table->sh_type != static_cast<std::uint32_t>(type)) continue;
      const auto names = entry_of<SectionHeader>(section_headers_, table->sh_link);
      const auto symbols = contents(*table);
      if (names && !symbols.empty()) return {symbols, contents(*names)};
    }
  }
  return {};
}

std::vector<std::byte> ElfFile::fingerprint() const {
  return fingerprint_of(program_headers_,
                        [&](const ProgramHeader& note) { return part_of(bytes_, note.p_offset, note.p_filesz); });
}

std::vector<std::byte> loaded_fingerprint(std::span<const std::byte> program_headers, std::uintptr_t base) {
  return fingerprint_of(program_headers, [&](const ProgramHeader& note) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): that is what the dynamic linker tells
    return std::span(reinterpret_cast<const std::byte*>(base + note.p_vaddr), note.p_filesz);
  });
}

}  // namespace bulkhead::process
