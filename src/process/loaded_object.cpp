// SPDX-License-Identifier: BSL-1.0
#include "loaded_object.hpp"

#include "elf_file.hpp"

#include <link.h>
#include <exception>
#include <span>
#include <utility>

namespace bulkhead::process {
namespace {

struct Search {
  std::optional<std::uintptr_t> address;  // empty: the program
  bool at_program = true;                 // the dynamic linker lists it first
  std::optional<LoadedObject> found;
  std::exception_ptr error;
};

const ProgramHeader* segment_around(std::uintptr_t address, const dl_phdr_info& object) {
  for (const ProgramHeader& segment : std::span(object.dlpi_phdr, object.dlpi_phnum)) {
    if (segment.p_type == PT_LOAD && address - (object.dlpi_addr + segment.p_vaddr) < segment.p_memsz) return &segment;
  }
  return nullptr;
}

// As long as this runs, the object cannot be unloaded.
int visit(dl_phdr_info* object, std::size_t, void* argument) {
  auto& search = *static_cast<Search*>(argument);
  const bool is_program = std::exchange(search.at_program, false);
  const ProgramHeader* segment = nullptr;
  if (search.address) {
    segment = segment_around(*search.address, *object);
    if (segment == nullptr) return 0;
  }
  try {
    const auto headers = std::as_bytes(std::span(object->dlpi_phdr, object->dlpi_phnum));
    search.found = LoadedObject{is_program, segment != nullptr && (segment->p_flags & PF_X) != 0, object->dlpi_name,
                                object->dlpi_addr, loaded_fingerprint(headers, object->dlpi_addr)};
  } catch (...) {
    search.error = std::current_exception();  // C code is between here and who can handle it
  }
  return 1;
}

std::optional<LoadedObject> run(std::optional<std::uintptr_t> address) {
  Search search;
  search.address = address;
  ::dl_iterate_phdr(visit, &search);
  if (search.error) std::rethrow_exception(search.error);
  return std::move(search.found);
}

}  // namespace

std::optional<LoadedObject> loaded_object(std::uintptr_t address) { return run(address); }

std::optional<LoadedObject> loaded_program() { return run(std::nullopt); }

}  // namespace bulkhead::process
