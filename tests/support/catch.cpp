// SPDX-License-Identifier: BSL-1.0
// The implementation of Catch2 2.13, which is headers only, and one entrance for both versions. It is apart from
// main.cpp so that a test program may have a main function of its own.
#define CATCH_CONFIG_RUNNER
#include "support/catch.hpp"
#include "support/run_tests.hpp"
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#endif

int run_tests(int argc, char** argv) { return Catch::Session().run(argc, argv); }
