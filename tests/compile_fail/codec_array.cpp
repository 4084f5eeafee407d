// expect: A C array cannot be carried: use std::array
// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/serialization.hpp>

struct Matrix {
  int rows;
  double values[3][3];
};

Matrix decoded(bulkhead::Decoder& decoder) { return bulkhead::decode<Matrix>(decoder); }
