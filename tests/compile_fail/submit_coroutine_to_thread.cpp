// expect: a coroutine cannot run on a thread without an event loop: submit it to an IoExecutor
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/thread_executor.hpp>

boost::asio::awaitable<int> fetch(int id);

auto submit_coroutine_to_thread(bulkhead::ThreadExecutor& threads) { return threads.submit(fetch, 3); }
