// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/co_spawn.hpp>

#include <exception>
#include <memory>
#include <utility>

namespace bulkhead::detail {

/// Keeps an executor until its tasks are over that is shut down without anybody who waits: whoever had it may have let
/// it go, and its destructor would cancel them. How it ends is told to those who do wait for the shutdown.
inline void hold_until_over(const asio::any_io_executor& io, std::shared_ptr<BaseExecutor> executor) {
  BaseExecutor& held = *executor;
  asio::co_spawn(io, held.shutdown(), [executor = std::move(executor)](std::exception_ptr) {});
}

}  // namespace bulkhead::detail
