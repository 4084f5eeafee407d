// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "arena.hpp"

namespace bulkhead::process {

/// Has this process write how it crashes into `record`, which must outlive it: signal, address, and the calls that led
/// there. The signal then does what it does by default, so that the exit status stays true.
///
/// Handlers run on a stack of their own for the calling thread, so that an overflow of its stack is seen, too.
/// They use nothing that a crash may have left half-way: no lock, no memory from the heap.
void capture_crashes(CrashRecord& record);

/// Writes the calls that led here as those that ended the process with `exit(code)`.
void capture_exit(int code) noexcept;

}  // namespace bulkhead::process
