// SPDX-License-Identifier: BSL-1.0
#include "processes.hpp"

#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <sstream>
#include <system_error>
#include <utility>

namespace bulkhead::test {

Process::Process(int pid) : pid_(pid), fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
Process::Process(Process&& other) noexcept : pid_(other.pid_), fd_(std::exchange(other.fd_, -1)) {}
Process::~Process() {
  if (fd_ >= 0) ::close(fd_);
}

bool Process::signal(int number) const {
  return fd_ >= 0 && ::syscall(SYS_pidfd_send_signal, fd_, number, nullptr, 0) == 0;
}

bool Process::gone_within(std::chrono::milliseconds time) const {
  pollfd polled{fd_, POLLIN, 0};
  return fd_ < 0 || ::poll(&polled, 1, static_cast<int>(time.count())) == 1;
}

bool poll_until(const std::function<bool()>& condition, std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

// Not through a stream: one reads the files of processes that are about to die, and that throws in the middle.
std::string read_file(const std::string& path) {
  std::string text;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return text;
  std::array<char, 4096> buffer;
  for (ssize_t size; (size = ::read(fd, buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<std::size_t>(size));
  }
  ::close(fd);
  return text;
}

std::string link_target(const std::string& path) {
  std::error_code error;
  return std::filesystem::read_symlink(path, error).string();
}

std::vector<int> all_processes() {
  std::vector<int> pids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (std::all_of(name.begin(), name.end(), [](unsigned char c) { return c >= '0' && c <= '9'; })) {
      pids.push_back(std::stoi(name));
    }
  }
  return pids;
}

int pid_in_host() {
  std::array<char, 32> text{};
  const auto size = ::readlink("/proc/self", text.data(), text.size() - 1);
  return size > 0 ? std::atoi(text.data()) : -1;
}

std::vector<int> processes_with(const std::string& argument) {
  std::vector<int> found;
  for (const int pid : all_processes()) {
    if (read_file("/proc/" + std::to_string(pid) + "/cmdline").find(argument) != std::string::npos) {
      found.push_back(pid);
    }
  }
  return found;
}

// From /proc/PID/stat: "pid (name) state ppid ...".
int parent_of(int pid) {
  const std::string line = read_file("/proc/" + std::to_string(pid) + "/stat");
  const auto end_of_name = line.rfind(')');
  if (end_of_name == std::string::npos || end_of_name + 4 >= line.size()) return 0;
  return std::atoi(line.c_str() + end_of_name + 4);
}

std::set<int> descendants() {
  std::vector<std::pair<int, int>> parents;
  for (const int pid : all_processes()) parents.emplace_back(pid, parent_of(pid));
  std::set<int> found{::getpid()};
  for (bool more = true; more;) {
    more = false;
    for (const auto& [pid, parent] : parents) {
      if (found.count(parent) > 0 && found.insert(pid).second) more = true;
    }
  }
  found.erase(::getpid());
  return found;
}

std::set<std::string> descriptors_of(int pid) {
  std::set<std::string> targets;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", error)) {
    targets.insert(link_target(entry.path()));
  }
  return targets;
}

std::size_t open_descriptors() {
  const auto all = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

std::size_t resident_kib() {
  ::malloc_trim(0);
  return resident_kib(::getpid());
}

std::size_t resident_kib(int pid) {
  std::istringstream status(read_file("/proc/" + std::to_string(pid) + "/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::stoul(line.substr(6));
  }
  return 0;
}

LocalExecutorOptions workers(unsigned number, bool bypass) {
  LocalExecutorOptions options;
  options.max_workers = number;
  options.bypass = bypass;
  return options;
}

bool whole(const LocalExecutor& pool) { return pool.worker_pids().size() == pool.options().max_workers; }

std::vector<Process> processes_of(const LocalExecutor& pool) {
  std::vector<Process> processes;
  for (const int pid : pool.worker_pids()) processes.emplace_back(pid);
  return processes;
}

}  // namespace bulkhead::test
