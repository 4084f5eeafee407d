// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "protocol.hpp"

#include <optional>
#include <string>

namespace bulkhead::process {

struct Received;

/// What is impossible about a record that came from a template, if anything is. Preload and initializers run in a
/// template's process or beside it, so that it may send what it likes.
std::optional<std::string> violation_in(const Record& record, const Received& received);

/// Why something failed, of a record without violation: bounded, control characters replaced.
std::string text_of(const Record& record);

}  // namespace bulkhead::process
