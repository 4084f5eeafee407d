// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/inline_executor.hpp>

#include <utility>

namespace bulkhead {

InlineExecutor::InlineExecutor(asio::any_io_executor io_executor, CommonOptions options)
    : BaseExecutor(std::move(io_executor), std::move(options)) {}

InlineExecutor::~InlineExecutor() { close(); }

void InlineExecutor::execute(Task task) { task.run(); }

void InlineExecutor::add_metrics(Metrics& metrics) const { metrics.mode = "inline"; }

}  // namespace bulkhead
