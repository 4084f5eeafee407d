// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"

#include <cstddef>
#include <string_view>

namespace bulkhead::process {

/// Writes to the program's standard error as much as it takes now, and returns how much that was; never blocks, however
/// the descriptor is set. Thread-safe.
std::size_t write_standard_error(std::string_view text) noexcept;

/// A copy of a descriptor that can be written when standard error takes more; empty if there is none to wait for.
FileDescriptor standard_error_to_wait_for() noexcept;

}  // namespace bulkhead::process
