// expect: a coroutine must be an asio::awaitable<T>, whose executor is asio::any_io_executor
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/io_executor.hpp>

#include <boost/asio/system_executor.hpp>

boost::asio::awaitable<int, boost::asio::system_executor> fetch(int id);

auto submit_coroutine(bulkhead::IoExecutor& io) { return io.submit(fetch, 3); }
