// expect: an argument cannot be sent to a worker process
// expect: pass owners, not pointers
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

int first(const int* numbers);

auto submit_pointer(bulkhead::LocalExecutor& pool, const int* numbers) { return pool.submit(first, numbers); }
