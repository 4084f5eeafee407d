// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

#include "support/run_tests.hpp"

int main(int argc, char** argv) {
  bulkhead::start_fork_server();
  return run_tests(argc, argv);
}
