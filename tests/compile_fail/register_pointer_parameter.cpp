// expect: a parameter cannot be a pointer to characters (take std::string_view) or a reference to non-const
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/task_registry.hpp>

int length(const char* text);

void register_pointer_parameter(bulkhead::TaskRegistry& tasks) { tasks.add("length", length); }
