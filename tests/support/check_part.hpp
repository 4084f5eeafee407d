// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "support/catch.hpp"
#include "support/program.hpp"

#include <string>

namespace bulkhead::test {

/// Runs this program's part of that name, which must find nothing wrong.
inline void check_part(const std::string& part) {
  Program program(part);
  const auto [code, said] = program.finish();
  INFO(said);
  CHECK(code == 0);
}

}  // namespace bulkhead::test
