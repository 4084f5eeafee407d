// expect: this callable cannot be sent to a worker process
// expect: use a function, or a function object whose members the codec can carry
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

#include <functional>

auto submit_function(bulkhead::LocalExecutor& pool, const std::function<int()>& function) {
  return pool.submit(function);
}
