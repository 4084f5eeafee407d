// expect: A C array cannot be carried: use std::array
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>

struct Row {
  int values[3];
};
int first(Row row);

boost::asio::awaitable<int> submit_array_member(bulkhead::LocalExecutor& pool, Row row) {
  co_return co_await pool.submit(first, row);
}
