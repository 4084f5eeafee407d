// expect: this callable cannot be sent to a worker process: pass what a lambda captures as arguments
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

auto submit_capturing(bulkhead::LocalExecutor& pool, int n) {
  return pool.submit([n] { return n; });
}
