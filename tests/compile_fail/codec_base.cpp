// expect: An aggregate with a base class cannot be taken apart: make the base a member
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

struct Shape {
  int color;
};
struct Circle : Shape {
  double radius;
};

Circle decoded(bulkhead::Decoder& decoder) { return bulkhead::decode<Circle>(decoder); }
