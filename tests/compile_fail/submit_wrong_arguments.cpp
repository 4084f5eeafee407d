// expect: the function cannot be called with these arguments in a worker process
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

int sum(int a, int b);

auto submit_wrong_arguments(bulkhead::LocalExecutor& pool) { return pool.submit(sum, 1); }
