// expect: this callable cannot be sent to a worker process: pass what a lambda captures as arguments
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

auto spawn_capturing_lambda(bulkhead::LocalExecutor& pool, int width) {
  return pool.spawn([width] { return width; });
}
