// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"
#include "protocol.hpp"

#include <span>

namespace bulkhead::process {

/// What a worker is given; afterwards it holds 0 (/dev/null), 1, 2 and the doorbell, and nothing else.
struct WorkerDescriptors {
  FileDescriptor request_area;
  FileDescriptor response_area;
  FileDescriptor doorbell;
  FileDescriptor output;
};

/// The life of a worker: its sandbox, the initializer, then tasks one at a time until it is told to stop.
[[noreturn]] void worker_main(WorkerDescriptors descriptors, const TemplateConfiguration& configuration,
                              const TemplateParts& parts);

}  // namespace bulkhead::process
