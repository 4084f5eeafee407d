// expect: a coroutine cannot run in a worker process, which has no event loop: submit it to an IoExecutor
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

boost::asio::awaitable<int> fetch(int id);

auto submit_coroutine(bulkhead::LocalExecutor& pool) { return pool.submit(fetch, 3); }
