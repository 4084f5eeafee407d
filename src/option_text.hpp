// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/common_options.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/option_map.hpp>
#include <bulkhead/thread_executor.hpp>

#include <string>

namespace bulkhead::detail {

/// The options of `options` that differ from those of `other`, for errors: "max_workers = 2, bypass = true". Those that
/// have no text (an initializer, say) are "other options".
std::string differing_options(const CommonOptions& options, const CommonOptions& other);
std::string differing_options(const LocalExecutorOptions& options, const LocalExecutorOptions& other);
std::string differing_options(const ThreadExecutorOptions& options, const ThreadExecutorOptions& other);
std::string differing_options(const IoExecutorOptions& options, const IoExecutorOptions& other);
std::string differing_options(const HybridConfig& options, const HybridConfig& other);

}  // namespace bulkhead::detail
