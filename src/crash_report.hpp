// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "process/channel.hpp"

#include <bulkhead/errors.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace bulkhead::detail {

/// Adds what a worker noted of its crash, if its exit status agrees: a worker may note what it likes. False: it does
/// not.
bool add_crash_note(WorkerCrashedError::Ending& ending, const process::CrashNote& note);

/// Names the calls, outermost last, up to the one that called the task's function. Reads the program's symbols: slow.
std::vector<StackFrame> describe_calls(std::span<const std::uint64_t> addresses);

}  // namespace bulkhead::detail
