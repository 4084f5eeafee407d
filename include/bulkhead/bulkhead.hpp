// SPDX-License-Identifier: BSL-1.0
#pragma once

// Everything that a program on one machine needs.
#include <bulkhead/base_executor.hpp>
#include <bulkhead/call.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/executor_registry.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/metrics.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/task.hpp>
#include <bulkhead/task_options.hpp>
#include <bulkhead/this_task.hpp>
