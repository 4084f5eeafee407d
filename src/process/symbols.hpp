// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>

namespace bulkhead::process {

/// The mangled name of the function that begins at this address, as the dynamic symbols or the program's own symbol
/// table (which `strip` removes) know it; empty if neither does. Reads the program's file at the first call.
/// Thread-safe.
std::string symbol_name(const void* address);

}  // namespace bulkhead::process
