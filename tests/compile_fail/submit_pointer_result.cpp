// expect: the result cannot be sent back from a worker process
// expect: return owners, not pointers
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

const int* find(int value);

auto submit_finder(bulkhead::LocalExecutor& pool) { return pool.submit(find, 3); }
