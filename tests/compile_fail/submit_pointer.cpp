// expect: A pointer means nothing in another process: pass what it points to
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

int first(const int* numbers);

auto submit_pointer(bulkhead::LocalExecutor& pool, const int* numbers) { return pool.submit(first, numbers); }
