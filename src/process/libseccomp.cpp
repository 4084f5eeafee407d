// SPDX-License-Identifier: BSL-1.0
#include "libseccomp.hpp"

#include "system_call_names.hpp"

#ifdef BULKHEAD_WITH_LIBSECCOMP
#include <seccomp.h>
#include <cstdlib>
#include <memory>
#endif

namespace bulkhead::process {

#ifdef BULKHEAD_WITH_LIBSECCOMP

std::optional<int> number_in_libseccomp(std::string_view name) {
  const int number = ::seccomp_syscall_resolve_name(std::string(name).c_str());
  if (number == __NR_SCMP_ERROR) return std::nullopt;
  // It has numbers below zero for what only other machines have.
  return number < 0 ? kNoSystemCall : number;
}

std::string name_in_libseccomp(int number) {
  const std::unique_ptr<char, void (*)(void*)> name(::seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, number),
                                                    std::free);
  return name != nullptr ? name.get() : std::string();
}

#else

std::optional<int> number_in_libseccomp(std::string_view) { return std::nullopt; }
std::string name_in_libseccomp(int) { return {}; }

#endif

}  // namespace bulkhead::process
