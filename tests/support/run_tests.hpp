// SPDX-License-Identifier: BSL-1.0
#pragma once

/// Runs the tests that the command line chooses; returns what main should return.
int run_tests(int argc, char** argv);
