// SPDX-License-Identifier: BSL-1.0
#pragma once

// BULKHEAD_EXPORT marks what the shared library shows. Everything else is hidden, so that two versions of the
// library's private parts can live in one process.
#if defined(BULKHEAD_SHARED)
#define BULKHEAD_EXPORT __attribute__((visibility("default")))
#else
#define BULKHEAD_EXPORT
#endif

namespace boost::asio {}

namespace bulkhead {
namespace asio = boost::asio;
}  // namespace bulkhead
