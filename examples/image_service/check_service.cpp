// SPDX-License-Identifier: BSL-1.0
#include "check_service.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace check {
namespace {

using std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kStartDeadline = 60s;

[[noreturn]] void fail(const char* what, int error = errno) {
  throw std::system_error(error, std::generic_category(), what);
}

struct Stat {
  char state = 0;
  pid_t parent = 0;
  std::string start;
};

// man 5 proc: "pid (name) state parent ...", where the name can hold anything. The 22nd field is the time of the start.
std::optional<Stat> read_stat(const std::filesystem::path& process) {
  std::ifstream file(process / "stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  std::istringstream fields(line.substr(line.rfind(')') + 1));
  Stat stat;
  fields >> stat.state >> stat.parent;
  for (int field = 5; field <= 22; ++field) fields >> stat.start;
  return stat;
}

}  // namespace

std::vector<Process> descendants(pid_t pid) {
  std::vector<std::pair<pid_t, Process>> all;  // parent, process
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    if (const auto stat = read_stat(entry.path())) {
      all.emplace_back(stat->parent, Process{static_cast<pid_t>(std::stol(name)), stat->start});
    }
  }
  std::vector<Process> found{Process{pid, {}}};
  for (std::size_t i = 0; i < found.size(); ++i) {
    for (const auto& [parent, process] : all) {
      if (parent == found[i].pid) found.push_back(process);
    }
  }
  found.erase(found.begin());
  return found;
}

bool runs(const Process& process) {
  const auto stat = read_stat("/proc/" + std::to_string(process.pid));
  return stat && stat->start == process.start && stat->state != 'Z' && stat->state != 'X';
}

Service::Service(const std::string& binary, std::vector<std::string> arguments, bool with_errors) {
  std::array<int, 2> pipe{};
  if (pipe2(pipe.data(), O_CLOEXEC) != 0) fail("pipe2");
  out_ = pipe[0];

  arguments.insert(arguments.begin(), binary);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
  if (with_errors) posix_spawn_file_actions_adddup2(&actions, pipe[1], STDERR_FILENO);
  const int error = posix_spawn(&pid_, binary.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe[1]);
  if (error != 0) {
    close(out_);
    fail(binary.c_str(), error);
  }
  // Our own child, not waited for yet: its number cannot belong to another one.
  pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
}

Service::~Service() {
  if (!ended_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (pidfd_ >= 0) close(pidfd_);
  close(out_);
}

// Returns whether there was something within the time.
bool Service::read_more(int timeout_ms) {
  pollfd readable{out_, POLLIN, 0};
  if (poll(&readable, 1, timeout_ms) <= 0) return false;
  std::array<char, 4096> buffer{};
  const ssize_t size = read(out_, buffer.data(), buffer.size());
  if (size > 0) output_.append(buffer.data(), static_cast<std::size_t>(size));
  return size > 0;
}

std::uint16_t Service::wait_for_port() {
  const auto deadline = steady_clock::now() + kStartDeadline;
  // Both lines, so that it is certain that the service has begun.
  while (std::count(output_.begin(), output_.end(), '\n') < 2) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - steady_clock::now());
    if (left <= 0ms || !read_more(static_cast<int>(left.count()))) {
      throw std::runtime_error("it did not print its address; it printed \"" + output_ + "\"");
    }
  }
  const std::size_t colon = output_.rfind(':', output_.find("/\n"));
  return static_cast<std::uint16_t>(std::stoul(output_.substr(colon + 1)));
}

void Service::signal(int number) {
  if (syscall(SYS_pidfd_send_signal, pidfd_, number, nullptr, 0) != 0) fail("pidfd_send_signal");
}

int Service::wait_for_end(std::chrono::milliseconds deadline) {
  pollfd ended{pidfd_, POLLIN, 0};
  if (poll(&ended, 1, static_cast<int>(deadline.count())) <= 0) {
    throw std::runtime_error("it has not ended after " + std::to_string(deadline.count()) + " ms");
  }
  int status = 0;
  if (waitpid(pid_, &status, 0) != pid_) fail("waitpid");
  ended_ = true;
  while (read_more(0)) {
  }
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace check
