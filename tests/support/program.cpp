// SPDX-License-Identifier: BSL-1.0
#include "support/program.hpp"

#include "support/run.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <stdexcept>

namespace bulkhead::test {
namespace {

constexpr std::string_view kPart = "--part=";

}  // namespace

Program::Program(const std::string& part) : marker_("--marker=" + std::to_string(::getpid()) + "-" + part) {
  std::array<int, 2> pipe{};
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
  std::string self = "/proc/self/exe";
  std::string argument = std::string(kPart) + part;
  std::array<char*, 4> arguments{self.data(), argument.data(), marker_.data(), nullptr};
  const int result = ::posix_spawn(&pid_, self.c_str(), &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(pipe[1]);
  output_ = pipe[0];
  if (result != 0) throw std::runtime_error("cannot start the program");
  process_.emplace(pid_);
}

Program::~Program() {
  kill();
  ::close(output_);
}

bool Program::says(const std::string& word) {
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (said_.find(word) == std::string::npos) {
    if (!read_until(end)) return false;
  }
  return true;
}

std::pair<int, std::string> Program::finish() {
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (read_until(end)) {
  }
  if (std::chrono::steady_clock::now() >= end) return {-1, said_ + "(hangs)"};
  int status = 0;
  ::waitpid(std::exchange(pid_, -1), &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, said_};
}

void Program::kill() {
  if (pid_ < 0) return;
  process_->signal(SIGKILL);
  ::waitpid(std::exchange(pid_, -1), nullptr, 0);
}

// False at the end of its output, or of the time.
bool Program::read_until(std::chrono::steady_clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
  pollfd polled{output_, POLLIN, 0};
  if (left.count() <= 0 || ::poll(&polled, 1, static_cast<int>(left.count())) != 1) return false;
  std::array<char, 4096> buffer;
  const auto size = ::read(output_, buffer.data(), buffer.size());
  if (size <= 0) return false;
  said_.append(buffer.data(), static_cast<std::size_t>(size));
  return true;
}

std::string_view part_of(int argc, char** argv) {
  if (argc < 2 || !std::string_view(argv[1]).starts_with(kPart)) return {};
  return std::string_view(argv[1]).substr(kPart.size());
}

bool Report::expect(bool holds, const std::string& what) {
  if (!holds) {
    ++wrong_;
    std::printf("not so: %s\n", what.c_str());
  }
  return holds;
}

int Report::exit_code() const {
  std::fflush(stdout);
  return wrong_ == 0 ? 0 : 1;
}

}  // namespace bulkhead::test
