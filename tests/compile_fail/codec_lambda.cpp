// expect: What a lambda captures cannot be carried: pass what it captures as arguments
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

void encode_lambda(bulkhead::Encoder& encoder, int n) {
  bulkhead::encode(encoder, [n] { return n; });
}
