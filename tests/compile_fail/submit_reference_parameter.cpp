// expect: a parameter cannot be a reference to non-const: return what it is to change
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

void increment(int& value);

auto submit_reference(bulkhead::LocalExecutor& pool, int value) { return pool.submit(increment, value); }
