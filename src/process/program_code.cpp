// SPDX-License-Identifier: BSL-1.0
#include "program_code.hpp"

#include "loaded_object.hpp"
#include "symbols.hpp"

#include <bulkhead/errors.hpp>
#include <bulkhead/serialization.hpp>

#include <fmt/format.h>

#include <dlfcn.h>
#include <link.h>
#include <unwind.h>
#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>

namespace bulkhead::process {
namespace {

using Cause = FunctionUnavailableError::Cause;

[[noreturn]] void refuse(Cause cause, const std::string& reason) {
  throw FunctionUnavailableError(reason, ErrorContext(), cause);
}

std::string name_of(const LoadedObject& object) { return object.is_program ? "the program" : object.path; }

// Where the function around the address begins by the unwind tables, which are in memory and have every function that
// an exception can pass through, also one without a symbol; null where they have none.
const void* function_around(const void* address) {
  // It takes a return address, and looks at the byte before it.
  const auto after = reinterpret_cast<std::uintptr_t>(address) + 1;
  return ::_Unwind_FindEnclosingFunction(reinterpret_cast<void*>(after));  // NOLINT(performance-no-int-to-ptr)
}

[[noreturn]] void refuse_what_is_not_there(std::uintptr_t address) {
  const auto object = loaded_object(address);
  if (!object) {
    refuse(Cause::not_code,
           fmt::format("{:#x} lies in no program code: it points to the stack, to the heap, to code made at run time, "
                       "which no worker has, or to a library that has been unloaded; submit a function of the program "
                       "or of a library that is loaded before bulkhead::start_fork_server()",
                       address));
  }
  if (!object->is_code) {
    refuse(Cause::not_code,
           fmt::format("{:#x} points to data of {}, and not to code; submit a function", address, name_of(*object)));
  }
  refuse(Cause::module_not_loaded,
         fmt::format("its code is in {}, which was loaded after the fork server had started; load the library before "
                     "bulkhead::start_fork_server()",
                     name_of(*object)));
}

[[noreturn]] void refuse_inside(std::uintptr_t address, const void* begin) {
  const auto object = loaded_object(address);
  const std::string symbol = symbol_name(begin);
  refuse(Cause::not_a_function_start,
         fmt::format("{:#x} is no function's address: it lies {} bytes inside {}{}; submit the function's own address",
                     address, address - reinterpret_cast<std::uintptr_t>(begin),
                     symbol.empty() ? "a function" : "'" + demangle(symbol.c_str()) + "'",
                     object ? " of " + name_of(*object) : ""));
}

}  // namespace

ProgramCode ProgramCode::keep_loaded() {
  ProgramCode code;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& ranges = *static_cast<std::vector<Range>*>(data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_LOAD || (header.p_flags & PF_X) == 0) continue;
          const std::uintptr_t begin = info->dlpi_addr + header.p_vaddr;
          ranges.push_back({begin, begin + header.p_memsz});
        }
        if (info->dlpi_name != nullptr && info->dlpi_name[0] != '\0') {
          ::dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
        }
        return 0;
      },
      &code.ranges_);
  std::sort(code.ranges_.begin(), code.ranges_.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  return code;
}

bool ProgramCode::contains(std::uintptr_t address) const noexcept {
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                      [](std::uintptr_t value, const Range& range) { return value < range.begin; });
  return after != ranges_.begin() && address < std::prev(after)->end;
}

void ProgramCode::require_function(const void* address) const {
  const auto value = reinterpret_cast<std::uintptr_t>(address);
  if (!contains(value)) refuse_what_is_not_there(value);
  const void* begin = function_around(address);
  // A symbol tells more than the tables: these take all stubs of the procedure linkage table for one function, and a
  // program that is not position-independent has the address of a library's function there. Functions in assembler may
  // have more than one entry.
  if (begin != nullptr && begin != address && symbol_name(address).empty()) refuse_inside(value, begin);
}

}  // namespace bulkhead::process
