// SPDX-License-Identifier: BSL-1.0
#pragma once

// Everything that a program on one machine needs, but for config_file.hpp, which needs Boost.JSON, and for the tests of
// executors in testing/.
#include <bulkhead/any_result.hpp>
#include <bulkhead/base_executor.hpp>
#include <bulkhead/call.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/events.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/executor.hpp>
#include <bulkhead/executor_registry.hpp>
#include <bulkhead/groups.hpp>
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/instance_group.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/lifecycle.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/map.hpp>
#include <bulkhead/map_options.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/option_map.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/result_store.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/sandbox.hpp>
#include <bulkhead/schedule.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/shared_buffer.hpp>
#include <bulkhead/task.hpp>
#include <bulkhead/task_handle.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>
#include <bulkhead/task_interface.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/task_registry.hpp>
#include <bulkhead/this_task.hpp>
#include <bulkhead/thread_executor.hpp>
