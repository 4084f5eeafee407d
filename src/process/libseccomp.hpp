// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace bulkhead::process {

// libseccomp comes with the system and is updated with it, so it can know system calls that are newer than the table in
// system_call_names.hpp. Where the library was built without it, these know none.

/// This machine's number of the system call; kNoSystemCall if only other machines have it, empty if none is known to.
std::optional<int> number_in_libseccomp(std::string_view name);

/// The name of this machine's system call with this number; empty if it is not known.
std::string name_in_libseccomp(int number);

}  // namespace bulkhead::process
