// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sys/types.h>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace bulkhead::process {

/// Throws `std::system_error` for `errno`, saying what was tried.
[[noreturn]] void throw_errno(const char* what);

/// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() noexcept = default;
  explicit FileDescriptor(int fd) noexcept : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~FileDescriptor() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  void reset() noexcept;

 private:
  int fd_ = -1;
};

/// Owns a shared mapping of a descriptor's pages.
class Mapping {
 public:
  enum class Access { read_only, read_write };

  Mapping() noexcept = default;
  Mapping(const FileDescriptor& fd, std::size_t size, Access access);
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const noexcept { return address_; }
  std::size_t size() const noexcept { return size_; }

  /// Keeps the pages out of processes that this one forks, and out of core dumps.
  void keep_private() const;

 private:
  std::byte* address_ = nullptr;
  std::size_t size_ = 0;
};

/// The same descriptor under a number above standard error's; empty (and errno set) if there is none left. A program
/// that was started without standard output must not print into a socket of ours.
FileDescriptor above_standard(FileDescriptor fd);

/// An anonymous file of the given size; sparse until written.
FileDescriptor create_memfd(const char* name, std::size_t size);

/// Adds seals (`F_SEAL_...`) to a memfd.
void seal(const FileDescriptor& memfd, int seals);

/// A connected pair of seqpacket sockets, close-on-exec. `first` does not block; `second` does.
std::pair<FileDescriptor, FileDescriptor> create_socket_pair();

/// A pipe, close-on-exec. `first`, which does not block, is read; `second` is written.
std::pair<FileDescriptor, FileDescriptor> create_pipe();

/// /dev/null, for writing.
FileDescriptor open_null();

/// A non-blocking eventfd, close-on-exec.
FileDescriptor create_eventfd();

/// A descriptor of a child that has not been reaped, or of the calling process.
FileDescriptor open_pidfd(pid_t pid);

/// Kills the process. Harmless if it is gone.
void kill_process(const FileDescriptor& pidfd) noexcept;

/// The process id behind a pidfd as this process sees it; -1 if it is gone.
int pid_of(const FileDescriptor& pidfd);

/// How a child ended.
struct ExitStatus {
  int signal = 0;
  int code = 0;
  std::uint64_t peak_memory = 0;
};

/// How a child ended; empty if it still runs or is not ours. The child stays to be reaped: its process id is its own
/// until then.
std::optional<ExitStatus> exit_status(const FileDescriptor& pidfd);

/// Reaps a child that has ended.
void reap(const FileDescriptor& pidfd) noexcept;

/// Most descriptors that one record carries: a spawn brings two areas, a doorbell and a pipe for what it prints.
inline constexpr std::size_t kMostDescriptors = 4;

/// Sends one record with descriptors. False if the peer does not take it now (its queue is full); throws if it is gone.
bool send_record(const FileDescriptor& socket, std::span<const std::byte> record, std::span<const int> fds);

/// A record received: its size (0: the peer is gone) and the descriptors that came with it.
struct Received {
  std::size_t size = 0;
  bool would_block = false;
  std::array<FileDescriptor, kMostDescriptors> fds;
  std::size_t fd_count = 0;
  /// Descriptors came that this process has no number left for; they are closed.
  bool descriptors_lost = false;
};

/// Receives one record into `buffer`. A truncated record or too many descriptors throw: the peer does not follow the
/// protocol.
Received receive_record(const FileDescriptor& socket, std::span<std::byte> buffer);

/// Views a plain record as bytes.
template <class T>
std::span<const std::byte> bytes_of(const T& record) {
  return std::as_bytes(std::span(&record, 1));
}
template <class T>
std::span<std::byte> writable_bytes_of(T& record) {
  return std::as_writable_bytes(std::span(&record, 1));
}

/// A byte that is 1 here, and 0 in every process that is forked from this one. Never freed.
std::byte* create_fork_mark();

/// Number of threads of this process.
unsigned thread_count();

/// CPUs that this process may use, by affinity mask and cgroup quota, which may be a fraction.
double cpu_share();
/// The same rounded up.
unsigned usable_cpus();

/// CLOCK_MONOTONIC, the same in all processes of the machine, in nanoseconds.
std::uint64_t monotonic_ns() noexcept;

/// CPU time of this process, all its threads together, in nanoseconds.
std::uint64_t cpu_ns() noexcept;
/// The same of another one; empty if it is gone.
std::optional<std::uint64_t> cpu_ns(pid_t pid) noexcept;
/// What this clock reads; 0 if it cannot be read any more.
std::uint64_t clock_ns(clockid_t clock) noexcept;

/// Memory of this process in bytes.
struct MemoryUse {
  /// Resident, and shared with nobody: what the process would give back.
  std::size_t resident = 0;
  /// What counts against RLIMIT_DATA: private and writable, touched or not.
  std::size_t data = 0;
  /// What counts against RLIMIT_AS: all that is mapped.
  std::size_t mapped = 0;
};
/// All 0 if it cannot be read.
MemoryUse memory_use() noexcept;

/// Writes to a file of the kernel's, which takes all or nothing. False: it does not, `errno` says why.
bool write_file(const char* path, const std::string& text) noexcept;
/// For who has just got a user namespace: its ids in there are those outside. False: `errno` says why not.
bool map_ids_to_themselves(uid_t uid, gid_t gid);

/// From here on `memory_since_birth` counts: what a fork has from its parent is not its own.
void note_birth();
/// By how many bytes the resident memory has grown since then.
std::size_t memory_since_birth();

}  // namespace bulkhead::process
