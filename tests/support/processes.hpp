// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/local_executor.hpp>

#include <chrono>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace bulkhead::test {

/// How long a killed process may take to be gone, on a busy machine and under a sanitizer.
inline constexpr std::chrono::seconds kGone{30};

/// A process as a pidfd: no other can be meant, even if its number is used again.
class Process {
 public:
  explicit Process(int pid);
  Process(Process&& other) noexcept;
  Process& operator=(Process&&) = delete;
  ~Process();

  int pid() const { return pid_; }
  bool signal(int number) const;
  bool gone_within(std::chrono::milliseconds time) const;
  bool gone() const { return gone_within(std::chrono::milliseconds(0)); }

 private:
  int pid_;
  int fd_;
};

/// Waits, without an event loop, until the condition holds; false if it does not in time.
bool poll_until(const std::function<bool()>& condition, std::chrono::milliseconds deadline);

/// A file's text; empty if it cannot be read.
std::string read_file(const std::string& path);
/// Where a symbolic link leads; empty if there is none.
std::string link_target(const std::string& path);

std::vector<int> all_processes();
/// All processes that were started with an argument, and their forks: they share the command line. Dead ones have none.
std::vector<int> processes_with(const std::string& argument);
/// The own process id as the host sees it: /proc is the host's also in a PID namespace.
int pid_in_host();
/// 0 if it is gone.
int parent_of(int pid);
/// All processes below this one, zombies too.
std::set<int> descendants();
/// What a process's descriptors lead to.
std::set<std::string> descriptors_of(int pid);
/// How many descriptors this process has.
std::size_t open_descriptors();
/// This process's memory, without what malloc only keeps for later.
std::size_t resident_kib();
/// Another's memory.
std::size_t resident_kib(int pid);

LocalExecutorOptions workers(unsigned number, bool bypass = false);
/// Whether all workers are there.
bool whole(const LocalExecutor& pool);
std::vector<Process> processes_of(const LocalExecutor& pool);

}  // namespace bulkhead::test
