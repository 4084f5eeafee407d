// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "support/processes.hpp"
#include "support/shared.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/fs.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

/// What tasks try from inside a sandbox, on the host, on each other, and on the machine. They use system calls only,
/// and leave nothing behind where they succeed.
namespace bulkhead::test::sandbox {

/// Where the attacks go. A process that was taken over would have to find it; here it is told.
struct Target {
  int host = 0;
  std::uintptr_t host_word = 0;
  int host_descriptor = -1;
  int sibling = 0;          // as workers see it
  int sibling_in_host = 0;  // and as its number is in /proc, which is the host's
  std::uintptr_t sibling_word = 0;
  std::uint16_t tcp_port = 0;
  std::uint16_t udp_port = 0;
  std::string abstract_name;
  std::string directory;  // with a file and a socket, which contained code may read
};

struct Result {
  bool succeeded = false;
  int error = 0;
};

/// `inside`: bytes in the worker's request area.
using Attack = Result (*)(const Target& target, std::string_view inside);

inline constexpr std::uint32_t kUntouched = 0x6f6b'6f6bU;
inline constexpr std::uint32_t kTouched = 0x6261'6421U;
/// What a program leaves with that takes the worker's place.
inline constexpr int kProgramRan = 33;
/// More than a policy with a limit gives, fewer than any program has without one.
inline constexpr int kManyDescriptors = 200;
inline constexpr std::size_t kPage = 4096;

inline Result result_of(bool succeeded) { return {succeeded, succeeded ? 0 : errno}; }
/// For calls that make a descriptor, which nobody is to find afterwards.
inline Result result_of_descriptor(long fd) {
  const Result result = result_of(fd >= 0);
  if (fd >= 0) ::close(static_cast<int>(fd));
  return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// Other processes.

inline Result write_memory(int pid, std::uintptr_t address) {
  std::uint32_t value = kTouched;
  const iovec from{&value, sizeof(value)};
  const iovec to{reinterpret_cast<void*>(address), sizeof(value)};
  return result_of(::process_vm_writev(pid, &from, 1, &to, 1, 0) == static_cast<ssize_t>(sizeof(value)));
}
inline Result read_memory(int pid, std::uintptr_t address) {
  const int fd = ::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return result_of(false);
  std::uint32_t value = 0;
  const bool read = ::pread(fd, &value, sizeof(value), static_cast<off_t>(address)) == sizeof(value);
  const Result result = result_of(read);
  ::close(fd);
  return result;
}

inline Result write_host_memory(const Target& target, std::string_view) {
  return write_memory(target.host, target.host_word);
}
inline Result read_host_memory(const Target& target, std::string_view) {
  return read_memory(target.host, target.host_word);
}
inline Result steal_descriptor(const Target& target, std::string_view) {
  const long process = ::syscall(SYS_pidfd_open, target.host, 0);
  // Also without the first, so that the second is tried in any case.
  const Result result = result_of_descriptor(::syscall(SYS_pidfd_getfd, process, target.host_descriptor, 0));
  if (process >= 0) ::close(static_cast<int>(process));
  return result;
}
inline Result trace_host(const Target& target, std::string_view) {
  // A tracer's end frees what it traces: on a thread that is at once.
  Result result;
  std::thread([&] { result = result_of(::ptrace(PTRACE_SEIZE, target.host, nullptr, nullptr) == 0); }).join();
  return result;
}
inline Result look_for_host(const Target& target, std::string_view) { return result_of(::kill(target.host, 0) == 0); }
inline Result signal_host(const Target& target, std::string_view) {
  return result_of(::kill(target.host, SIGUSR1) == 0);
}
inline Result signal_host_thread(const Target& target, std::string_view) {
  return result_of(::syscall(SYS_tgkill, target.host, target.host, SIGUSR1) == 0);
}
inline Result write_sibling_memory(const Target& target, std::string_view) {
  return write_memory(target.sibling, target.sibling_word);
}
inline Result read_sibling_memory(const Target& target, std::string_view) {
  return read_memory(target.sibling_in_host, target.sibling_word);
}
inline Result signal_sibling(const Target& target, std::string_view) {
  return result_of(::kill(target.sibling, SIGCONT) == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Files and sockets.

inline Result read_passwords(const Target&, std::string_view) {
  return result_of_descriptor(::open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}
inline Result create_file(const Target&, std::string_view) {
  const std::string path = "/tmp/bulkhead-attack-" + std::to_string(::getpid());
  const Result result = result_of_descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (result.succeeded) ::unlink(path.c_str());
  return result;
}
inline std::string file_in(const Target& target) { return target.directory + "/file"; }
/// What the attack does to the file, having opened it for reading.
template <class Change>
Result change_file(const Target& target, Change change) {
  const int fd = ::open(file_in(target).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return result_of(false);
  const Result result = result_of(change(fd));
  ::close(fd);
  return result;
}
inline Result see_size(const Target&, std::string_view) {
  struct stat status {};
  return result_of(::stat("/etc/passwd", &status) == 0);
}
inline Result read_file_that_may_be_read(const Target& target, std::string_view) {
  return change_file(target, [](int) { return true; });
}
inline Result change_mode(const Target& target, std::string_view) {
  return result_of(::chmod(file_in(target).c_str(), 0644) == 0);
}
inline Result change_mode_by_descriptor(const Target& target, std::string_view) {
  return change_file(target, [](int fd) { return ::fchmod(fd, 0644) == 0; });
}
inline Result change_owner(const Target& target, std::string_view) {
  return result_of(::chown(file_in(target).c_str(), ::geteuid(), ::getegid()) == 0);
}
inline Result change_owner_by_descriptor(const Target& target, std::string_view) {
  return change_file(target, [](int fd) { return ::fchown(fd, ::geteuid(), ::getegid()) == 0; });
}
inline Result change_times(const Target& target, std::string_view) {
  return result_of(::utimensat(AT_FDCWD, file_in(target).c_str(), nullptr, 0) == 0);
}
inline Result set_attribute_by_descriptor(const Target& target, std::string_view) {
  return change_file(target, [](int fd) { return ::fsetxattr(fd, "user.attack", "x", 1, 0) == 0; });
}
inline Result set_flags_by_descriptor(const Target& target, std::string_view) {
  return change_file(target, [](int fd) {
    int flags = 0;
    return ::ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && ::ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
  });
}
inline Result lease_file(const Target& target, std::string_view) {
  return change_file(target, [](int fd) { return ::fcntl(fd, F_SETLEASE, F_RDLCK) == 0; });
}
inline Result open_inet_socket(const Target&, std::string_view) {
  return result_of_descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
}
inline Result open_netlink_socket(const Target&, std::string_view) {
  return result_of_descriptor(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
}
inline sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}
inline const sockaddr* generic(const void* address) { return static_cast<const sockaddr*>(address); }
inline Result connect_to(int family, const void* address, socklen_t size) {
  const int fd = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return result_of(false);
  const Result result = result_of(::connect(fd, generic(address), size) == 0);
  ::close(fd);
  return result;
}
inline Result connect_by_tcp(const Target& target, std::string_view) {
  const sockaddr_in address = loopback(target.tcp_port);
  return connect_to(AF_INET, &address, sizeof(address));
}
inline sockaddr_un path_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}
inline Result connect_to_socket_of_a_path(const Target& target, std::string_view) {
  const sockaddr_un address = path_address(target.directory + "/socket");
  return connect_to(AF_UNIX, &address, sizeof(address));
}
inline sockaddr_un abstract_address(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
  return address;
}
inline socklen_t abstract_size(const std::string& name) {
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}
inline Result connect_to_abstract_socket(const Target& target, std::string_view) {
  const sockaddr_un address = abstract_address(target.abstract_name);
  return connect_to(AF_UNIX, &address, abstract_size(target.abstract_name));
}
inline Result send_by_udp(const Target& target, std::string_view) {
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return result_of(false);
  const sockaddr_in address = loopback(target.udp_port);
  const Result result = result_of(::sendto(fd, "x", 1, 0, generic(&address), sizeof(address)) == 1);
  ::close(fd);
  return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// Processes and programs.

inline Result fork_a_child(const Target&, std::string_view) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  const Result result = result_of(child > 0);
  if (child > 0) ::waitpid(child, nullptr, 0);
  return result;
}
inline Result run_a_program(const Target&, std::string_view) {
  std::string shell = "/bin/sh";
  std::string option = "-c";
  std::string command = "exit " + std::to_string(kProgramRan);
  std::array<char*, 4> arguments{shell.data(), option.data(), command.data(), nullptr};
  ::execve(shell.c_str(), arguments.data(), environ);
  return result_of(false);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernel's wide surfaces.

inline Result set_up_io_uring(const Target&, std::string_view) {
  std::array<std::byte, 128> parameters{};  // struct io_uring_params
  return result_of_descriptor(::syscall(SYS_io_uring_setup, 1, parameters.data()));
}
inline Result make_bpf_map(const Target&, std::string_view) {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = 4;
  attributes.value_size = 4;
  attributes.max_entries = 1;
  return result_of_descriptor(::syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof(attributes)));
}
inline Result make_userfaultfd(const Target&, std::string_view) {
  constexpr int kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY: which anybody may have
  return result_of_descriptor(::syscall(SYS_userfaultfd, O_CLOEXEC | kUserModeOnly));
}
inline Result open_perf_event(const Target&, std::string_view) {
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof(attributes);
  attributes.config = PERF_COUNT_SW_TASK_CLOCK;
  attributes.exclude_kernel = 1;
  attributes.exclude_hv = 1;
  return result_of_descriptor(::syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
}
inline Result mount_something(const Target& target, std::string_view) {
  const Result result = result_of(::mount("none", target.directory.c_str(), "tmpfs", 0, nullptr) == 0);
  if (result.succeeded) ::umount2(target.directory.c_str(), MNT_DETACH);
  return result;
}
inline Result enter_user_namespace(const Target&, std::string_view) { return result_of(::unshare(CLONE_NEWUSER) == 0); }

// ---------------------------------------------------------------------------------------------------------------------
// Memory and descriptors of its own.

inline void* page_of(std::string_view inside) {
  return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(inside.data()) / kPage * kPage);
}
inline Result reopen_request_area(const Target&, std::string_view inside) {
  const auto place = reinterpret_cast<std::uintptr_t>(inside.data());
  std::ifstream maps("/proc/self/maps");
  if (!maps) return result_of(false);
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string range;
    words >> range;
    const auto dash = range.find('-');
    if (place < std::stoull(range.substr(0, dash), nullptr, 16) ||
        place >= std::stoull(range.substr(dash + 1), nullptr, 16)) {
      continue;
    }
    const int fd = ::open(("/proc/self/map_files/" + range).c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) return result_of(false);
    const bool written = ::pwrite(fd, "x", 1, 0) == 1;
    const bool mapped = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED;
    const Result result = result_of(written || mapped);
    ::close(fd);
    return result;
  }
  return {};
}
inline Result make_request_area_writable(const Target&, std::string_view inside) {
  if (::mprotect(page_of(inside), kPage, PROT_READ | PROT_WRITE) == 0) return {true, 0};
  const int error = errno;
  // A size of 0 maps the pages of a shared mapping once more.
  void* const again = ::mremap(page_of(inside), 0, kPage, MREMAP_MAYMOVE);
  if (again != MAP_FAILED && ::mprotect(again, kPage, PROT_READ | PROT_WRITE) == 0) return {true, 0};
  return {false, error};
}
inline Result map_executable_memory(const Target&, std::string_view) {
  void* const page = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const Result result = result_of(page != MAP_FAILED);
  if (result.succeeded) ::munmap(page, kPage);
  return result;
}
inline Result make_memory_executable(const Target&, std::string_view) {
  void* const page = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return result_of(false);
  const Result result = result_of(::mprotect(page, kPage, PROT_READ | PROT_EXEC) == 0);
  ::munmap(page, kPage);
  return result;
}
inline Result make_memfd(const Target&, std::string_view) {
  return result_of_descriptor(::syscall(SYS_memfd_create, "attack", MFD_CLOEXEC));
}
inline Result open_many_descriptors(const Target&, std::string_view) {
  std::vector<int> opened;
  int fd = 0;
  while (opened.size() < kManyDescriptors && (fd = ::dup(STDIN_FILENO)) >= 0) opened.push_back(fd);
  const Result result = result_of(fd >= 0);
  for (const int one : opened) ::close(one);
  return result;
}

}  // namespace bulkhead::test::sandbox
