// expect: this callable cannot be sent to a worker process: pass what a lambda captures as arguments
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

bulkhead::LocalExecutorOptions options_with(int n) {
  bulkhead::LocalExecutorOptions options;
  options.initializer = [n] { static_cast<void>(n); };
  return options;
}
