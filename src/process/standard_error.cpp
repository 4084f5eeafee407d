// SPDX-License-Identifier: BSL-1.0
#include "standard_error.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <mutex>
#include <utility>

namespace bulkhead::process {
namespace {

std::mutex mutex;

// Standard error is shared with other processes, its O_NONBLOCK, too. A pipe or terminal that is opened once more has
// one of its own.
struct OwnOpening {
  dev_t device = 0;
  ino_t inode = 0;
  FileDescriptor fd;
};

OwnOpening& own_opening() {
  // Never destroyed: executors with static storage duration may need it later than that.
  static auto& opening = *new OwnOpening;
  return opening;
}

// Nobody reads standard error any more: that is no reason for the program to die when the library writes there.
class WithoutSigpipe {
 public:
  WithoutSigpipe() {
    sigset_t pending;
    ::sigpending(&pending);
    was_pending_ = ::sigismember(&pending, SIGPIPE) == 1;
    ::sigemptyset(&pipe_);
    ::sigaddset(&pipe_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~WithoutSigpipe() {
    const timespec now{};
    if (!was_pending_) ::sigtimedwait(&pipe_, nullptr, &now);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  WithoutSigpipe(const WithoutSigpipe&) = delete;
  WithoutSigpipe& operator=(const WithoutSigpipe&) = delete;

 private:
  sigset_t pipe_;
  sigset_t before_;
  bool was_pending_;
};

bool waits(const struct stat& status) { return S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode); }

// With the mutex.
int reopened(const struct stat& status) {
  OwnOpening& own = own_opening();
  if (!own.fd || own.device != status.st_dev || own.inode != status.st_ino) {
    own.fd = above_standard(
        FileDescriptor(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_APPEND | O_CLOEXEC)));
    own.device = status.st_dev;
    own.inode = status.st_ino;
  }
  return own.fd.get();
}

}  // namespace

std::size_t write_standard_error(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const std::lock_guard lock(mutex);
  const WithoutSigpipe without_sigpipe;
  struct stat status {};
  if (::fstat(STDERR_FILENO, &status) != 0) return text.size();
  std::size_t written = 0;
  while (written < text.size()) {
    const std::string_view rest = text.substr(written);
    ssize_t size;
    if (S_ISSOCK(status.st_mode)) {
      size = ::send(STDERR_FILENO, rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    } else {
      // A file never makes anyone wait. Where a pipe or terminal cannot be opened again, it is used as it is.
      const int own = waits(status) ? reopened(status) : -1;
      size = ::write(own >= 0 ? own : STDERR_FILENO, rest.data(), rest.size());
    }
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (size <= 0) return text.size();  // Nobody reads it any more.
    written += static_cast<std::size_t>(size);
  }
  return written;
}

FileDescriptor standard_error_to_wait_for() noexcept {
  const std::lock_guard lock(mutex);
  struct stat status {};
  if (::fstat(STDERR_FILENO, &status) != 0) return {};
  const int fd = S_ISSOCK(status.st_mode) ? STDERR_FILENO : waits(status) ? reopened(status) : -1;
  return fd < 0 ? FileDescriptor() : FileDescriptor(::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

}  // namespace bulkhead::process
