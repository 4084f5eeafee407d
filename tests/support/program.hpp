// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "support/processes.hpp"

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace bulkhead::test {

/// A program of its own, for what a process can do or suffer only once: the running test program, called with the name
/// of a part. What it prints is read; it is killed when this is destroyed.
class Program {
 public:
  explicit Program(const std::string& part);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();

  int pid() const { return pid_; }
  /// What all its processes have on their command line.
  const std::string& marker() const { return marker_; }

  /// Whether it says the word within the deadline.
  bool says(const std::string& word);

  /// All that it has said so far.
  const std::string& said() const { return said_; }

  /// Its exit code, or -1 if it is not over in time or was killed; and what it and its children said.
  std::pair<int, std::string> finish();

  void kill();

 private:
  bool read_until(std::chrono::steady_clock::time_point end);

  std::string marker_;
  std::string said_;
  int pid_ = -1;
  std::optional<Process> process_;
  int output_ = -1;
};

/// The part that this program was called for; empty if it is to run its tests.
std::string_view part_of(int argc, char** argv);

/// For programs, which have no test framework: says what is wrong, and counts it.
class Report {
 public:
  bool expect(bool holds, const std::string& what);
  /// 0 if nothing was wrong.
  int exit_code() const;

 private:
  int wrong_ = 0;
};

}  // namespace bulkhead::test
