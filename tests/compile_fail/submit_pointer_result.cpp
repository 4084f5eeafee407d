// expect: A pointer means nothing in another process
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

const int* find(int value);

auto submit_finder(bulkhead::LocalExecutor& pool) { return pool.submit(find, 3); }
