// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"

namespace bulkhead::process {

/// The life of a template: the fork server's child, one per executor. It runs `preload` once, then forks a worker for
/// each request of the host and reports how each ended. Runs user code, so it is not the fork server itself.
[[noreturn]] void template_main(FileDescriptor host, FileDescriptor configuration, FileDescriptor shared);

}  // namespace bulkhead::process
