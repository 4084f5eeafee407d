// SPDX-License-Identifier: BSL-1.0
#include "posix.hpp"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

// Debian 12's headers may be older than the kernel: the numbers are the kernel's ABI (linux/wait.h, linux/fcntl.h).
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace bulkhead::process {

void throw_errno(const char* what) { throw std::system_error(errno, std::system_category(), what); }

void FileDescriptor::reset() noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Mapping::Mapping(const FileDescriptor& fd, std::size_t size, Access access) : size_(size) {
  const int protection = access == Access::read_only ? PROT_READ : PROT_READ | PROT_WRITE;
  void* address = ::mmap(nullptr, size, protection, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (address == MAP_FAILED) throw_errno("cannot map shared memory");
  address_ = static_cast<std::byte*>(address);
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    if (address_ != nullptr) ::munmap(address_, size_);
    address_ = std::exchange(other.address_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Mapping::~Mapping() {
  if (address_ != nullptr) ::munmap(address_, size_);
}

void Mapping::keep_private() const {
  if (::madvise(address_, size_, MADV_DONTFORK) != 0 || ::madvise(address_, size_, MADV_DONTDUMP) != 0) {
    throw_errno("cannot keep shared memory out of child processes");
  }
}

FileDescriptor above_standard(FileDescriptor fd) {
  if (!fd || fd.get() > STDERR_FILENO) return fd;
  return FileDescriptor(::fcntl(fd.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

FileDescriptor create_memfd(const char* name, std::size_t size) {
  FileDescriptor fd = above_standard(FileDescriptor(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)));
  if (!fd) throw_errno("cannot create shared memory");
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) throw_errno("cannot size shared memory");
  return fd;
}

void seal(const FileDescriptor& memfd, int seals) {
  if (::fcntl(memfd.get(), F_ADD_SEALS, seals) != 0) throw_errno("cannot seal shared memory");
}

std::pair<FileDescriptor, FileDescriptor> create_socket_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) throw_errno("cannot create a socket pair");
  std::pair<FileDescriptor, FileDescriptor> pair{FileDescriptor(fds[0]), FileDescriptor(fds[1])};
  pair.first = above_standard(std::move(pair.first));
  pair.second = above_standard(std::move(pair.second));
  if (!pair.first || !pair.second) throw_errno("cannot create a socket pair");
  if (::fcntl(pair.first.get(), F_SETFL, O_NONBLOCK) != 0) throw_errno("cannot make a socket non-blocking");
  return pair;
}

std::pair<FileDescriptor, FileDescriptor> create_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) throw_errno("cannot create a pipe");
  std::pair ends{above_standard(FileDescriptor(fds[0])), above_standard(FileDescriptor(fds[1]))};
  if (!ends.first || !ends.second || ::fcntl(ends.first.get(), F_SETFL, O_NONBLOCK) != 0) {
    throw_errno("cannot create a pipe");
  }
  return ends;
}

FileDescriptor open_null() {
  FileDescriptor null = above_standard(FileDescriptor(::open("/dev/null", O_WRONLY | O_CLOEXEC)));
  if (!null) throw_errno("cannot open /dev/null");
  return null;
}

FileDescriptor create_eventfd() {
  FileDescriptor fd = above_standard(FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
  if (!fd) throw_errno("cannot create an eventfd");
  return fd;
}

FileDescriptor open_pidfd(pid_t pid) {
  FileDescriptor fd = above_standard(FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))));
  if (!fd) throw_errno("cannot open a pidfd");
  return fd;
}

void kill_process(const FileDescriptor& pidfd) noexcept {
  if (pidfd) ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
}

int pid_of(const FileDescriptor& pidfd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(pidfd.get()));
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("Pid:", 0) == 0) return std::stoi(line.substr(4));
  }
  return -1;
}

std::optional<ExitStatus> exit_status(const FileDescriptor& pidfd) {
  siginfo_t info{};
  struct rusage usage {};
  // The system call and not glibc's wrapper, which has no rusage.
  const long result = ::syscall(SYS_waitid, P_PIDFD, pidfd.get(), &info, WEXITED | WNOHANG | WNOWAIT | __WALL, &usage);
  if (result != 0 || info.si_pid == 0) return std::nullopt;
  ExitStatus status;
  if (info.si_code == CLD_EXITED) {
    status.code = info.si_status;
  } else {
    status.signal = info.si_status;
  }
  status.peak_memory = static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
  return status;
}

void reap(const FileDescriptor& pidfd) noexcept {
  siginfo_t info{};
  ::syscall(SYS_waitid, P_PIDFD, pidfd.get(), &info, WEXITED | WNOHANG | __WALL, nullptr);
}

bool send_record(const FileDescriptor& socket, std::span<const std::byte> record, std::span<const int> fds) {
  iovec part{const_cast<std::byte*>(record.data()), record.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostDescriptors)> control{};
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  for (;;) {
    if (::sendmsg(socket.get(), &message, MSG_NOSIGNAL) >= 0) return true;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
    throw_errno("cannot send to the fork server");
  }
}

Received receive_record(const FileDescriptor& socket, std::span<std::byte> buffer) {
  iovec part{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostDescriptors)> control{};
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  Received received;
  ssize_t size;
  do {
    size = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
    // A peer that went with unread data resets the connection. That is told once, and before what the peer has sent:
    // its last record may say why it went. After that comes end-of-file.
  } while (size < 0 && (errno == EINTR || errno == ECONNRESET));
  if (size < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      received.would_block = true;
      return received;
    }
    throw_errno("cannot receive from the fork server");
  }
  bool too_many = false;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    // Padding lets in more descriptors than the buffer was sized for: every one is taken over, so that none leaks.
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      FileDescriptor owned = above_standard(FileDescriptor(fd));
      if (!owned) {
        received.descriptors_lost = true;
      } else if (received.fd_count < received.fds.size()) {
        received.fds[received.fd_count++] = std::move(owned);
      } else {
        too_many = true;
      }
    }
  }
  // The kernel drops the descriptors that this process has no number for.
  if ((message.msg_flags & MSG_CTRUNC) != 0) received.descriptors_lost = true;
  if (too_many || (message.msg_flags & MSG_TRUNC) != 0) {
    throw std::system_error(EPROTO, std::system_category(), "a record of the fork server is malformed");
  }
  received.size = static_cast<std::size_t>(size);
  return received;
}

std::byte* create_fork_mark() {
  const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* page = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED || ::madvise(page, size, MADV_WIPEONFORK) != 0) throw_errno("cannot mark this process");
  *static_cast<std::byte*>(page) = std::byte{1};
  return static_cast<std::byte*>(page);
}

unsigned thread_count() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("Threads:", 0) == 0) return static_cast<unsigned>(std::stoul(line.substr(8)));
  }
  return 1;
}

namespace {

// The CPU quota of this process's cgroup, in CPUs; empty if there is none.
std::optional<double> cgroup_quota() {
  std::ifstream membership("/proc/self/cgroup");
  for (std::string line; std::getline(membership, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      std::ifstream limit("/sys/fs/cgroup" + path + "/cpu.max");
      std::string quota;
      double period = 0;
      if (limit >> quota >> period && quota != "max" && period > 0) return std::stod(quota) / period;
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      const std::string folder = "/sys/fs/cgroup/" + controllers + path;
      std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
      std::ifstream period_file(folder + "/cpu.cfs_period_us");
      double quota = 0;
      double period = 0;
      if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) return quota / period;
    }
  }
  return std::nullopt;
}

}  // namespace

double cpu_share() {
  double share = 1;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) share = CPU_COUNT(&set);
  if (const auto quota = cgroup_quota()) share = std::min(share, *quota);
  return share;
}

unsigned usable_cpus() { return std::max(static_cast<unsigned>(std::ceil(cpu_share())), 1U); }

namespace {

std::uint64_t nanoseconds(const timespec& time) noexcept {
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(time.tv_nsec);
}

}  // namespace

std::uint64_t monotonic_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return nanoseconds(now);
}

std::uint64_t cpu_ns() noexcept {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return nanoseconds(used);
}

std::uint64_t clock_ns(clockid_t clock) noexcept {
  timespec time{};
  if (::clock_gettime(clock, &time) != 0) return 0;
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(time.tv_nsec);
}

std::optional<std::uint64_t> cpu_ns(pid_t pid) noexcept {
  clockid_t clock{};
  timespec used{};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &used) != 0) return std::nullopt;
  return nanoseconds(used);
}

namespace {

// Without the heap: it is asked when that may be full.
MemoryUse memory_use(const FileDescriptor& statm) noexcept {
  std::array<char, 256> text{};
  if (!statm || ::pread(statm.get(), text.data(), text.size() - 1, 0) <= 0) return {};
  // proc(5): size, resident, shared, text, lib, data, all in pages.
  std::size_t size = 0;
  std::size_t resident = 0;
  std::size_t shared = 0;
  std::size_t data = 0;
  if (std::sscanf(text.data(), "%zu %zu %zu %*u %*u %zu", &size, &resident, &shared, &data) != 4) return {};
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return {(resident - std::min(resident, shared)) * page, data * page, size * page};
}

FileDescriptor open_memory_use() noexcept { return FileDescriptor(::open("/proc/self/statm", O_RDONLY | O_CLOEXEC)); }

std::size_t resident_at_birth = 0;
// Kept, since a sandbox may forbid to open it. Never destroyed: exit handlers may still ask.
FileDescriptor& memory_since_birth_source() noexcept {
  static auto* const source = new FileDescriptor;
  return *source;
}

}  // namespace

MemoryUse memory_use() noexcept { return memory_use(open_memory_use()); }

bool write_file(const char* path, const std::string& text) noexcept {
  const FileDescriptor file(::open(path, O_WRONLY | O_CLOEXEC));
  return file && ::write(file.get(), text.data(), text.size()) >= 0;
}

bool map_ids_to_themselves(uid_t uid, gid_t gid) {
  const auto map = [](unsigned id) { return std::to_string(id) + " " + std::to_string(id) + " 1"; };
  // `setgroups` must be denied before an unprivileged process may map its group.
  return write_file("/proc/self/setgroups", "deny") && write_file("/proc/self/uid_map", map(uid)) &&
         write_file("/proc/self/gid_map", map(gid));
}

void note_birth() {
  memory_since_birth_source() = open_memory_use();
  // Under a high number, if there is one: programs close the low ones by habit.
  constexpr int kHigh = 512;
  FileDescriptor high(::fcntl(memory_since_birth_source().get(), F_DUPFD_CLOEXEC, kHigh));
  if (high) memory_since_birth_source() = std::move(high);
  resident_at_birth = memory_use(memory_since_birth_source()).resident;
}

std::size_t memory_since_birth() {
  std::size_t resident = memory_use(memory_since_birth_source()).resident;
  if (resident == 0) resident = memory_use().resident;  // a task has closed it
  return resident - std::min(resident, resident_at_birth);
}

}  // namespace bulkhead::process
