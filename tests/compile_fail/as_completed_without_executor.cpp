// expect: as_completed needs to know where to run
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/groups.hpp>

auto completions(std::vector<bulkhead::TaskHandle<int>> handles) { return bulkhead::as_completed(std::move(handles)); }
