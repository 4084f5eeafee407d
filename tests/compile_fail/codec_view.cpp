// expect: pass an owning std::string or std::vector; the function's parameter may be a view
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

#include <string_view>

std::string_view decoded(bulkhead::Decoder& decoder) { return bulkhead::decode<std::string_view>(decoder); }
