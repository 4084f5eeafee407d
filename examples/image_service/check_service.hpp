// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace check {

/// A process, told from a later one of the same number by the time of its start.
struct Process {
  pid_t pid = 0;
  std::string start;
};

/// All processes below `pid`: children, theirs, and so on.
std::vector<Process> descendants(pid_t pid);
/// Whether it still runs. One that has ended and only waits to be noticed does not.
bool runs(const Process& process);

/// A program under test, started in the constructor and killed in the destructor if it has not ended by then.
class Service {
 public:
  /// `with_errors`: whether `output` has what it says on stderr, too. Otherwise that goes to ours.
  Service(const std::string& binary, std::vector<std::string> arguments, bool with_errors = false);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  pid_t pid() const noexcept { return pid_; }
  /// Waits for the line with the address, and returns the port in it. Throws if the program ends without one.
  std::uint16_t wait_for_port();
  void signal(int number);
  /// Waits until the program has ended; returns its exit code, or minus the signal that killed it.
  int wait_for_end(std::chrono::milliseconds deadline);
  /// What it has printed so far.
  const std::string& output() const noexcept { return output_; }

 private:
  bool read_more(int timeout_ms);

  pid_t pid_ = -1;
  int pidfd_ = -1;
  int out_ = -1;
  bool ended_ = false;
  std::string output_;
};

}  // namespace check
