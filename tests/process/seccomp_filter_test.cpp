// SPDX-License-Identifier: BSL-1.0
#include "process/seccomp_filter.hpp"

#include "process/libseccomp.hpp"
#include "process/system_call_names.hpp"

#include "support/catch.hpp"
#include "support/processes.hpp"
#include "support/sanitizer.hpp"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/fs.h>
#include <linux/fsverity.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using bulkhead::SystemCalls;
using bulkhead::process::install_system_call_filter;
using bulkhead::process::kNoSystemCall;
using bulkhead::process::kSystemCallNames;
using bulkhead::process::make_system_call_filter;
using bulkhead::process::name_in_libseccomp;
using bulkhead::process::number_in_libseccomp;
using bulkhead::process::set_own_process;
using bulkhead::process::system_call_name;
using bulkhead::process::system_call_number;
using bulkhead::process::SystemCallName;
using bulkhead::test::kGone;
using bulkhead::test::Process;
using Catch::Matchers::ContainsSubstring;

#if defined(__x86_64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_X86_64;
constexpr std::uint32_t kOtherArchitecture = AUDIT_ARCH_I386;
#else
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
constexpr std::uint32_t kOtherArchitecture = AUDIT_ARCH_ARM;
#endif

constexpr SystemCalls kModes[] = {SystemCalls::deny_dangerous, SystemCalls::allow_computing};

// Whom the filters in tables are for, and somebody else.
constexpr std::uint64_t kSelf = 4711;
constexpr std::uint64_t kOther = 4712;

// As the kernel fills registers with an int.
constexpr std::uint64_t of_int(int value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); }
// What a caller can put beside an int: the kernel does not look there, so the filter must not either.
constexpr std::uint64_t kJunk = std::uint64_t{0xdeadbeef} << 32;

struct Ran {
  std::uint32_t action = 0;
  std::size_t comparisons = 0;
  bool looked_at_arguments = false;
};

// What the kernel does with a filter. Throws if the filter does what the kernel would not take.
Ran run(std::span<const sock_filter> filter, const seccomp_data& data) {
  Ran ran;
  std::uint32_t accumulator = 0;
  for (std::size_t at = 0;; ++at) {
    if (at >= filter.size()) throw std::out_of_range("runs off its end");
    const sock_filter& instruction = filter[at];
    switch (instruction.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        if (instruction.k % 4 != 0 || instruction.k >= sizeof(data)) throw std::out_of_range("loads what is not there");
        std::memcpy(&accumulator, reinterpret_cast<const std::byte*>(&data) + instruction.k, sizeof(accumulator));
        ran.looked_at_arguments |= instruction.k >= offsetof(seccomp_data, args);
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        accumulator &= instruction.k;
        break;
      case BPF_JMP | BPF_JA:
        at += instruction.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
      case BPF_JMP | BPF_JGE | BPF_K:
      case BPF_JMP | BPF_JSET | BPF_K: {
        const auto kind = instruction.code & 0xf0;
        const bool holds = kind == BPF_JEQ   ? accumulator == instruction.k
                           : kind == BPF_JGE ? accumulator >= instruction.k
                                             : (accumulator & instruction.k) != 0;
        at += holds ? instruction.jt : instruction.jf;
        ++ran.comparisons;
        break;
      }
      case BPF_RET | BPF_K:
        ran.action = instruction.k;
        return ran;
      default:
        throw std::logic_error("an instruction that nobody expected");
    }
  }
}

std::string in_words(std::uint32_t action) {
  switch (action & SECCOMP_RET_ACTION_FULL) {
    case SECCOMP_RET_ALLOW:
      return "allowed";
    case SECCOMP_RET_TRAP:
      return "forbidden";
    case SECCOMP_RET_KILL_PROCESS:
      return "killed";
    case SECCOMP_RET_ERRNO: {
      const char* const name = ::strerrorname_np(static_cast<int>(action & SECCOMP_RET_DATA));
      return name != nullptr ? name : "an unknown errno";
    }
    default:
      return "something else";
  }
}

using Arguments = std::array<std::uint64_t, 6>;

seccomp_data call_of(long number, const Arguments& arguments = {}) {
  seccomp_data data{};
  data.nr = static_cast<int>(number);
  data.arch = kArchitecture;
  std::copy(arguments.begin(), arguments.end(), std::begin(data.args));
  return data;
}

class Filter {
 public:
  explicit Filter(SystemCalls allowed, const std::vector<std::string>& also = {})
      : instructions_(make_system_call_filter(allowed, also)) {
    set_own_process(instructions_, static_cast<pid_t>(kSelf));
  }

  Ran run(const seccomp_data& data) const { return ::run(instructions_, data); }
  std::string verdict(const seccomp_data& data) const { return in_words(run(data).action); }
  /// Empty if this machine has no such call.
  std::optional<std::string> verdict(std::string_view name, const Arguments& arguments = {}) const {
    const auto number = system_call_number(name);
    if (!number) return std::nullopt;
    return verdict(call_of(*number, arguments));
  }
  const std::vector<sock_filter>& instructions() const { return instructions_; }

 private:
  std::vector<sock_filter> instructions_;
};

struct Row {
  std::string_view name;
  Arguments arguments;
  std::string_view verdict;
};

void check_rows(const Filter& filter, std::span<const Row> rows) {
  for (const Row& row : rows) {
    INFO(row.name << '(' << row.arguments[0] << ", " << row.arguments[1] << ", " << row.arguments[2] << ", "
                  << row.arguments[3] << ')');
    CHECK(filter.verdict(row.name, row.arguments).value_or(std::string(row.verdict)) == row.verdict);
  }
}

void check_all(const Filter& filter, std::span<const std::string_view> names, std::string_view verdict) {
  for (const std::string_view name : names) {
    INFO(name);
    REQUIRE(std::any_of(std::begin(kSystemCallNames), std::end(kSystemCallNames),
                        [name](const SystemCallName& call) { return call.name == name; }));
    CHECK(filter.verdict(name).value_or(std::string(verdict)) == verdict);
  }
}

// Other ways to a file than its path, other processes, programs, the machine, and who the caller is.
constexpr std::string_view kDangerous[] = {"ptrace",
                                           "process_vm_readv",
                                           "process_vm_writev",
                                           "process_madvise",
                                           "process_mrelease",
                                           "pidfd_getfd",
                                           "execve",
                                           "execveat",
                                           "fork",
                                           "vfork",
                                           "unshare",
                                           "setns",
                                           "mount",
                                           "umount2",
                                           "pivot_root",
                                           "chroot",
                                           "move_mount",
                                           "open_tree",
                                           "fsopen",
                                           "fsconfig",
                                           "fsmount",
                                           "fspick",
                                           "mount_setattr",
                                           "open_tree_attr",
                                           "bpf",
                                           "userfaultfd",
                                           "perf_event_open",
                                           "io_uring_setup",
                                           "io_uring_enter",
                                           "keyctl",
                                           "add_key",
                                           "request_key",
                                           "init_module",
                                           "io_uring_register",
                                           "finit_module",
                                           "delete_module",
                                           "kexec_load",
                                           "kexec_file_load",
                                           "reboot",
                                           "swapon",
                                           "swapoff",
                                           "acct",
                                           "quotactl",
                                           "quotactl_fd",
                                           "setuid",
                                           "setgid",
                                           "setreuid",
                                           "setregid",
                                           "setresuid",
                                           "setresgid",
                                           "setgroups",
                                           "setfsuid",
                                           "setfsgid",
                                           "capset",
                                           "sethostname",
                                           "setdomainname",
                                           "settimeofday",
                                           "clock_settime",
                                           "vhangup",
                                           "iopl",
                                           "ioperm",
                                           "modify_ldt",
                                           "fanotify_init",
                                           "open_by_handle_at",
                                           "fanotify_mark",
                                           "kill",
                                           "pidfd_send_signal"};

// What the library's worker calls when it runs tasks, answers, sleeps, ends; and what libc calls for it.
constexpr std::string_view kNeeded[] = {"futex",
                                        "write",
                                        "read",
                                        "writev",
                                        "clock_gettime",
                                        "clock_getres",
                                        "getrusage",
                                        "madvise",
                                        "exit_group",
                                        "exit",
                                        "rt_sigreturn",
                                        "rt_sigaction",
                                        "rt_sigprocmask",
                                        "sigaltstack",
                                        "munmap",
                                        "mremap",
                                        "brk",
                                        "getpid",
                                        "gettid",
                                        "getrandom",
                                        "set_robust_list",
                                        "rseq",
                                        "sched_yield",
                                        "sched_getaffinity",
                                        "restart_syscall",
                                        "clock_nanosleep",
                                        "membarrier",
                                        "set_tid_address",
                                        "getrlimit",
                                        "futex_waitv",
                                        "close",
                                        "fstat",
                                        "lseek",
                                        "dup3",
                                        "poll",
                                        "eventfd2"};

}  // namespace

TEST_CASE("what reaches other processes, starts programs or changes the machine is forbidden in both modes") {
  for (const SystemCalls mode : kModes) check_all(Filter(mode), kDangerous, "forbidden");
}

TEST_CASE("what a worker itself needs is allowed in both modes") {
  for (const SystemCalls mode : kModes) check_all(Filter(mode), kNeeded, "allowed");
}

TEST_CASE("calls that libraries try and do without are refused in both modes") {
  constexpr std::string_view kNotPermitted[] = {"pidfd_open",    "kcmp",      "name_to_handle_at", "syslog",
                                                "clock_adjtime", "setrlimit", "adjtimex"};
  constexpr std::string_view kMissing[] = {"clone3", "lookup_dcookie", "nfsservctl", "uselib", "create_module"};
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode);
    check_all(filter, kNotPermitted, "EPERM");
    check_all(filter, kMissing, "ENOSYS");
  }
}

TEST_CASE("in both modes a worker makes threads and no processes, and reaches itself alone") {
  constexpr std::uint64_t kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                                    CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  const Row rows[] = {
      {"clone", {kThread}, "allowed"},
      {"clone", {SIGCHLD}, "forbidden"},
      {"clone", {CLONE_VM | CLONE_VFORK | SIGCHLD}, "forbidden"},
      {"clone", {kThread | CLONE_NEWNET}, "forbidden"},
      {"clone", {kThread | CLONE_NEWNS}, "forbidden"},
      {"clone", {kThread | CLONE_NEWCGROUP}, "forbidden"},
      {"clone", {kThread | CLONE_NEWUTS}, "forbidden"},
      {"clone", {kThread | CLONE_NEWIPC}, "forbidden"},
      {"clone", {kThread | CLONE_NEWUSER}, "forbidden"},
      {"clone", {kThread | CLONE_NEWPID}, "forbidden"},
      {"clone", {CLONE_NEWUSER | SIGCHLD}, "forbidden"},
      {"kill", {kSelf, SIGTERM}, "allowed"},
      {"kill", {kSelf | kJunk, SIGTERM}, "allowed"},
      {"kill", {kOther, SIGTERM}, "forbidden"},
      {"kill", {kOther, 0}, "forbidden"},
      {"kill", {of_int(-1), SIGKILL}, "forbidden"},
      {"kill", {of_int(-static_cast<int>(kSelf)), SIGKILL}, "forbidden"},
      {"tgkill", {kSelf, kOther, SIGABRT}, "allowed"},
      {"tgkill", {kOther, kOther, SIGABRT}, "forbidden"},
      {"tgkill", {kOther | kSelf << 32, kOther, SIGABRT}, "forbidden"},
      {"tkill", {kSelf, SIGABRT}, "allowed"},
      {"tkill", {kOther, SIGABRT}, "forbidden"},
      {"rt_sigqueueinfo", {kSelf, SIGUSR1}, "allowed"},
      {"rt_sigqueueinfo", {kOther, SIGUSR1}, "forbidden"},
      {"rt_tgsigqueueinfo", {kSelf, kOther, SIGUSR1}, "allowed"},
      {"rt_tgsigqueueinfo", {kOther, kOther, SIGUSR1}, "forbidden"},
      {"get_robust_list", {0}, "allowed"},
      {"get_robust_list", {kOther}, "EPERM"},
      {"prlimit64", {0, RLIMIT_NOFILE, 0, 0x1000}, "allowed"},
      {"prlimit64", {kSelf, RLIMIT_NOFILE, 0, 0x1000}, "allowed"},
      {"prlimit64", {kOther, RLIMIT_NOFILE, 0, 0x1000}, "EPERM"},
      {"prlimit64", {0, RLIMIT_NOFILE, 0x1000, 0}, "EPERM"},
      {"prlimit64", {0, RLIMIT_NOFILE, std::uint64_t{1} << 32, 0}, "EPERM"},
      {"personality", {0xffffffff}, "allowed"},
      {"personality", {~std::uint64_t{0}}, "allowed"},
      {"personality", {0x0400000 /* READ_IMPLIES_EXEC */}, "EPERM"},
      {"madvise", {0x1000, 0x1000, MADV_REMOVE}, "allowed"},
      {"madvise", {0x1000, 0x1000, MADV_DONTNEED}, "allowed"},
      {"madvise", {0x1000, 0x1000, 100 /* MADV_HWPOISON */}, "EPERM"},
      {"madvise", {0x1000, 0x1000, 101 /* MADV_SOFT_OFFLINE */ | kJunk}, "EPERM"},
  };
  for (const SystemCalls mode : kModes) check_rows(Filter(mode), rows);
}

TEST_CASE("where dangerous calls are denied, files, plain sockets and code are open, but no way around the policy") {
  const Row rows[] = {
      {"openat", {of_int(AT_FDCWD), 0x1000, O_RDWR | O_CREAT}, "allowed"},
      {"open", {0x1000, O_RDONLY}, "allowed"},
      {"newfstatat", {of_int(AT_FDCWD), 0x1000, 0x1000, 0}, "allowed"},
      {"mmap", {0, 0x1000, PROT_READ | PROT_EXEC}, "allowed"},
      {"mprotect", {0x1000, 0x1000, PROT_READ | PROT_EXEC}, "allowed"},
      {"memfd_create", {}, "EACCES"},
      {"memfd_secret", {}, "EACCES"},
      {"fchmod", {4, 04755}, "EACCES"},
      {"fchown", {4, 0, 0}, "EACCES"},
      {"fsetxattr", {4, 0x1000, 0x1000, 1, 0}, "EACCES"},
      {"fremovexattr", {4, 0x1000}, "EACCES"},
      {"wait4", {}, "allowed"},
      {"seccomp", {}, "allowed"},
      {"landlock_restrict_self", {}, "allowed"},
      {"socket", {AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0}, "EAFNOSUPPORT"},
      {"socket", {AF_UNIX | kJunk, SOCK_SEQPACKET, 0}, "EAFNOSUPPORT"},
      {"socket", {AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP}, "allowed"},
      {"socket", {AF_INET6, SOCK_DGRAM, 0}, "allowed"},
      {"socket", {AF_INET | kJunk, SOCK_DGRAM | kJunk, IPPROTO_UDP | kJunk}, "allowed"},
      {"socket", {AF_INET, SOCK_RAW, IPPROTO_TCP}, "ESOCKTNOSUPPORT"},
      {"socket", {AF_INET, SOCK_PACKET, 0}, "ESOCKTNOSUPPORT"},
      {"socket", {AF_INET, SOCK_SEQPACKET, 0}, "ESOCKTNOSUPPORT"},
      {"socket", {AF_INET, SOCK_STREAM, 262 /* IPPROTO_MPTCP */}, "EPROTONOSUPPORT"},
      {"socket", {AF_INET, SOCK_STREAM, IPPROTO_SCTP}, "EPROTONOSUPPORT"},
      {"socket", {AF_PACKET, SOCK_RAW, 0}, "EAFNOSUPPORT"},
      {"socket", {AF_PACKET | kJunk, SOCK_DGRAM, 0}, "EAFNOSUPPORT"},
      {"socket", {AF_VSOCK, SOCK_STREAM, 0}, "EAFNOSUPPORT"},
      {"socket", {AF_ALG, SOCK_SEQPACKET, 0}, "EAFNOSUPPORT"},
      {"socket", {AF_NETLINK, SOCK_RAW, 0}, "EAFNOSUPPORT"},
      {"socketpair", {AF_UNIX, SOCK_STREAM, 0}, "allowed"},
      {"socketpair", {AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0}, "ESOCKTNOSUPPORT"},
      {"listen", {4, 5}, "EACCES"},
      {"shmat", {4, 0, 0}, "EACCES"},
      {"mknodat", {3, 0x1000, 0, 0}, "EACCES"},
      {"socketpair", {AF_TIPC, SOCK_STREAM, 0}, "EAFNOSUPPORT"},
      {"sendto", {4, 0x1000, 1, MSG_NOSIGNAL}, "allowed"},
      {"sendto", {4, 0x1000, 1, MSG_FASTOPEN | MSG_NOSIGNAL}, "EOPNOTSUPP"},
      {"sendmsg", {4, 0x1000, MSG_NOSIGNAL}, "allowed"},
      {"sendmsg", {4, 0x1000, MSG_FASTOPEN}, "EOPNOTSUPP"},
      {"sendmmsg", {4, 0x1000, 1, MSG_FASTOPEN}, "EOPNOTSUPP"},
      {"ioctl", {0, FIONREAD}, "allowed"},
      {"ioctl", {0, TIOCGWINSZ}, "allowed"},
      {"ioctl", {0, TIOCSTI}, "forbidden"},
      {"ioctl", {0, TIOCSTI | kJunk}, "forbidden"},
      {"ioctl", {0, 0x541C /* TIOCLINUX */}, "forbidden"},
      {"ioctl", {4, FIOSETOWN}, "EPERM"},
      {"ioctl", {4, SIOCSPGRP}, "EPERM"},
      {"ioctl", {4, FS_IOC_GETFLAGS}, "allowed"},
      {"ioctl", {4, FS_IOC_SETFLAGS}, "EPERM"},
      {"ioctl", {4, FS_IOC_FSSETXATTR | kJunk}, "EPERM"},
      {"ioctl", {4, FS_IOC_SETVERSION}, "EPERM"},
      {"ioctl", {4, FS_IOC_ENABLE_VERITY}, "EPERM"},
      {"fcntl", {4, F_SETFL, O_NONBLOCK}, "allowed"},
      {"fcntl", {4, F_SETOWN, kOther}, "EPERM"},
      {"fcntl", {4, 15 /* F_SETOWN_EX */}, "EPERM"},
      {"fcntl", {4, F_SETLEASE, F_RDLCK}, "EPERM"},
      {"fcntl", {4, F_NOTIFY}, "EPERM"},
      {"fcntl", {4, F_SETLK}, "allowed"},
      {"prctl", {PR_SET_NAME}, "allowed"},
      {"prctl", {PR_SET_SECCOMP, SECCOMP_MODE_FILTER}, "allowed"},
      {"prctl", {PR_SET_DUMPABLE, 1}, "EPERM"},
      {"prctl", {PR_SET_PDEATHSIG, 0}, "EPERM"},
      {"prctl", {PR_SET_MM}, "EPERM"},
      {"sched_setaffinity", {0}, "allowed"},
      {"sched_setaffinity", {kSelf}, "allowed"},
      {"sched_setaffinity", {kOther}, "EPERM"},
      {"sched_setscheduler", {kOther}, "EPERM"},
      {"sched_setparam", {kOther}, "EPERM"},
      {"sched_setattr", {kOther}, "EPERM"},
      {"migrate_pages", {kOther}, "EPERM"},
      {"move_pages", {0}, "allowed"},
      {"move_pages", {kOther}, "EPERM"},
      {"setpriority", {PRIO_PROCESS, 0, 5}, "allowed"},
      {"setpriority", {PRIO_PROCESS, kOther, 5}, "EPERM"},
      {"setpriority", {PRIO_USER, 0, 5}, "EPERM"},
      {"ioprio_set", {1 /* IOPRIO_WHO_PROCESS */, kSelf}, "allowed"},
      {"ioprio_set", {3 /* IOPRIO_WHO_USER */, 0}, "EPERM"},
  };
  check_rows(Filter(SystemCalls::deny_dangerous), rows);
}

TEST_CASE("for computing, memory is data, and descriptors are read and written") {
  const Row rows[] = {
      {"mmap", {0, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS}, "allowed"},
      {"mmap", {0, 0x1000, PROT_READ | PROT_EXEC}, "EACCES"},
      {"mprotect", {0x1000, 0x1000, PROT_READ}, "allowed"},
      {"mprotect", {0x1000, 0x1000, PROT_READ | PROT_EXEC}, "EACCES"},
      {"pkey_mprotect", {0x1000, 0x1000, PROT_EXEC}, "EACCES"},
      {"newfstatat", {1, 0x1000, 0x1000, AT_EMPTY_PATH}, "allowed"},
      {"newfstatat", {of_int(AT_FDCWD), 0x1000, 0x1000, 0}, "EACCES"},
      {"newfstatat", {of_int(AT_FDCWD), 0x1000, 0x1000, AT_SYMLINK_NOFOLLOW}, "EACCES"},
      {"statx", {1, 0x1000, AT_EMPTY_PATH, 0x7ff}, "allowed"},
      {"statx", {of_int(AT_FDCWD), 0x1000, AT_STATX_SYNC_AS_STAT, AT_EMPTY_PATH}, "EACCES"},
      {"ioctl", {1, TCGETS}, "allowed"},
      {"ioctl", {0, FIONREAD}, "allowed"},
      {"ioctl", {0, TIOCSTI}, "ENOTTY"},
      {"ioctl", {0, FIONBIO}, "ENOTTY"},
      {"fcntl", {1, F_GETFD}, "allowed"},
      {"fcntl", {1, F_SETFD, FD_CLOEXEC}, "allowed"},
      {"fcntl", {1, F_GETFL}, "allowed"},
      {"fcntl", {1, F_DUPFD}, "allowed"},
      {"fcntl", {1, F_DUPFD_CLOEXEC}, "allowed"},
      {"fcntl", {1, F_SETFL, O_NONBLOCK}, "EACCES"},
      {"fcntl", {1, F_SETOWN, kOther}, "EACCES"},
      {"fcntl", {1, F_ADD_SEALS}, "EACCES"},
      {"fcntl", {1, F_SETLK}, "EACCES"},
      {"prctl", {PR_SET_NAME}, "allowed"},
      {"prctl", {PR_GET_NAME}, "allowed"},
      {"prctl", {0x53564d41 /* PR_SET_VMA */}, "allowed"},
      {"prctl", {PR_SET_DUMPABLE, 1}, "EPERM"},
      {"prctl", {PR_SET_PDEATHSIG, 0}, "EPERM"},
      {"prctl", {PR_SET_SECCOMP}, "EPERM"},
  };
  check_rows(Filter(SystemCalls::allow_computing), rows);
}

TEST_CASE("for computing, what names a file or begins a connection fails with EACCES") {
  constexpr std::string_view kFiles[] = {
      "open",          "openat",       "openat2",   "creat",      "access",   "faccessat",  "faccessat2",
      "stat",          "lstat",        "readlink",  "readlinkat", "mkdir",    "mkdirat",    "unlink",
      "unlinkat",      "rename",       "renameat2", "link",       "linkat",   "symlink",    "symlinkat",
      "chmod",         "fchmodat",     "fchmodat2", "chown",      "fchownat", "truncate",   "ftruncate",
      "utimensat",     "chdir",        "getcwd",    "getdents64", "statfs",   "getxattr",   "getxattrat",
      "inotify_init1", "memfd_create", "fallocate", "sendfile",   "socket",   "socketpair", "copy_file_range"};
  check_all(Filter(SystemCalls::allow_computing), kFiles, "EACCES");
}

TEST_CASE("for computing, all that is not named is forbidden") {
  constexpr std::string_view kOthers[] = {"connect", "bind",   "listen",   "accept4",   "sendto", "recvfrom",
                                          "sendmsg", "shmget", "shmat",    "msgget",    "semget", "mq_open",
                                          "wait4",   "waitid", "io_setup", "io_submit", "setsid", "remap_file_pages"};
  const Filter filter(SystemCalls::allow_computing);
  check_all(filter, kOthers, "forbidden");
  // A list of what is allowed without a look at arguments, so that nothing slips in: what is beyond needs a reason.
  std::size_t allowed = 0;
  for (const SystemCallName& call : kSystemCallNames) {
    if (call.number == kNoSystemCall) continue;
    const Ran ran = filter.run(call_of(call.number));
    if (ran.action == SECCOMP_RET_ALLOW && !ran.looked_at_arguments) ++allowed;
  }
  CHECK(allowed <= 130);
}

TEST_CASE("for computing, hints are refused, and sandboxes of libraries find no support") {
  constexpr std::string_view kHints[] = {"mbind", "set_mempolicy", "setpriority", "sched_setaffinity", "mlockall"};
  constexpr std::string_view kUnneeded[] = {"landlock_create_ruleset", "seccomp", "cachestat", "listns"};
  const Filter filter(SystemCalls::allow_computing);
  check_all(filter, kHints, "EPERM");
  check_all(filter, kUnneeded, "ENOSYS");
}

TEST_CASE("calls of another architecture end the process, whatever their number") {
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode, {"ptrace"});
    for (const long number : {0L, 26L, 100L, 1000L, *system_call_number("ptrace"), *system_call_number("write")}) {
      seccomp_data data = call_of(number);
      data.arch = kOtherArchitecture;
      CHECK(filter.verdict(data) == "killed");
    }
  }
}

#if defined(__x86_64__)
TEST_CASE("calls of the x32 ABI end the process") {
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode);
    for (const long number : {0L, 1L, 520L, 0x3fffffffL}) {
      CHECK(filter.verdict(call_of(number | 0x40000000)) == "killed");
    }
  }
}
#endif

TEST_CASE("calls that the filter does not know are as if the kernel did not have them") {
  const auto newest = std::max_element(std::begin(kSystemCallNames), std::end(kSystemCallNames),
                                       [](const auto& a, const auto& b) { return a.number < b.number; });
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode);
    CHECK(filter.verdict(call_of(newest->number + 1)) == "ENOSYS");
    CHECK(filter.verdict(call_of(newest->number + 1000)) == "ENOSYS");
    CHECK(filter.verdict(call_of(0x3fffffff)) == "ENOSYS");
    // A hole in both machines' numbers.
    CHECK(filter.verdict(call_of(400)) == "ENOSYS");
  }
}

TEST_CASE("a filter is one that the kernel takes, and decides about every number") {
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode);
    CHECK(filter.instructions().size() <= BPF_MAXINSNS);
    for (long number = 0; number < 1100; ++number) {
      for (const std::uint64_t argument : {std::uint64_t{0}, kSelf, ~std::uint64_t{0}}) {
        const Arguments arguments{argument, argument, argument, argument, argument, argument};
        CHECK(filter.verdict(call_of(number, arguments)) != "something else");
      }
    }
  }
}

TEST_CASE("the most frequent calls are decided by their number alone, all after few comparisons") {
  // The kernel finds out beforehand where a filter looks at the number only, and then does not run it.
  constexpr std::string_view kFrequent[] = {"read",  "write", "futex", "clock_gettime", "munmap", "rt_sigprocmask",
                                            "close", "brk",   "poll",  "epoll_wait",    "gettid", "sched_yield"};
  // Two for the ABI, those of a search in less than 256 ranges, and those of arguments that are looked at.
  constexpr std::size_t kMost = 2 + 8 + 11;
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode);
    for (const std::string_view name : kFrequent) {
      const auto number = system_call_number(name);
      if (!number) continue;
      INFO(name);
      CHECK_FALSE(filter.run(call_of(*number)).looked_at_arguments);
    }
    for (long number = 0; number < 500; ++number) {
      INFO(system_call_name(number));
      CHECK(filter.run(call_of(number)).comparisons <= kMost);
    }
  }
}

TEST_CASE("a name in also_allowed is allowed with any arguments in both modes") {
  const std::vector<std::string> also{"socket", "openat", "mprotect", "ptrace",
                                      "clone3", "kill",   "ioctl",    "pidfd_open"};
  for (const SystemCalls mode : kModes) {
    const Filter filter(mode, also);
    for (const std::string& name : also) {
      INFO(name);
      CHECK(filter.verdict(name) == "allowed");
      CHECK(filter.verdict(name, {kOther, TIOCSTI, PROT_EXEC, ~std::uint64_t{0}}) == "allowed");
    }
    CHECK(filter.verdict("process_vm_writev") == "forbidden");
  }
  CHECK(Filter(SystemCalls::allow_computing, also).verdict("bind") == "forbidden");
}

TEST_CASE("also_allowed changes nothing for the calls that it does not name, however long it is") {
  for (const SystemCalls mode : kModes) {
    const Filter before(mode);
    // Every second of those that are not allowed: so many ranges that the search needs its long jumps.
    std::vector<std::string> also;
    bool chosen = false;
    for (long number = 0; number < 500; ++number) {
      const std::string name = system_call_name(number);
      const Ran ran = before.run(call_of(number));
      if (!system_call_number(name) || ran.looked_at_arguments || ran.action == SECCOMP_RET_ALLOW) continue;
      chosen = !chosen;
      if (chosen) also.push_back(name);
    }
    const Filter after(mode, also);
    CHECK(after.instructions().size() <= BPF_MAXINSNS);
    if (mode == SystemCalls::allow_computing) {
      CHECK(std::any_of(after.instructions().begin(), after.instructions().end(),
                        [](const sock_filter& instruction) { return instruction.code == (BPF_JMP | BPF_JA); }));
    }
    for (long number = 0; number < 500; ++number) {
      const std::string name = system_call_name(number);
      INFO(name);
      const bool named = std::find(also.begin(), also.end(), name) != also.end();
      CHECK(after.verdict(call_of(number)) == (named ? "allowed" : before.verdict(call_of(number))));
    }
  }
}

TEST_CASE("a name in also_allowed of a call that other machines have changes nothing") {
  for (const SystemCallName& call : kSystemCallNames) {
    if (call.number != kNoSystemCall) continue;
    const auto with = make_system_call_filter(SystemCalls::allow_computing, std::vector{std::string(call.name)});
    CHECK(with.size() == make_system_call_filter(SystemCalls::allow_computing, {}).size());
  }
}

TEST_CASE("a name in also_allowed that is no system call's is refused, and named") {
  for (const SystemCalls mode : kModes) {
    for (const std::string name : {"opennat", "", "OPEN", "open ", "__NR_open", "SYS_open"}) {
      const std::vector<std::string> also{"socket", name};
      std::string said;
      try {
        make_system_call_filter(mode, also);
      } catch (const std::invalid_argument& error) {
        said = error.what();
      }
      CHECK_THAT(said, ContainsSubstring("\"" + name + "\""));
    }
  }
}

TEST_CASE("a filter that has not been told whose it is lets signals go nowhere") {
  for (const SystemCalls mode : kModes) {
    const std::vector<sock_filter> filter = make_system_call_filter(mode, {});
    for (const char* const name : {"kill", "tkill", "tgkill"}) {
      for (const std::uint64_t pid : {std::uint64_t{0}, kSelf, of_int(-1), std::uint64_t{1}}) {
        CHECK(in_words(run(filter, call_of(*system_call_number(name), {pid})).action) == "forbidden");
      }
    }
  }
}

TEST_CASE("system calls have their numbers and names") {
  CHECK(system_call_number("read") == __NR_read);
  CHECK(system_call_number("openat") == __NR_openat);
  CHECK(system_call_number("newfstatat") == __NR_newfstatat);
  CHECK(system_call_number("fcntl") == __NR_fcntl);
  CHECK(system_call_number("_sysctl").has_value() == (system_call_name(156) == "_sysctl"));
  CHECK(system_call_number("io_uring_setup") == 425);
  CHECK(system_call_number("listns") == 470);
  CHECK_FALSE(system_call_number("opennat"));
  CHECK_FALSE(system_call_number(""));
  CHECK(system_call_name(__NR_ptrace) == "ptrace");
  CHECK(system_call_name(__NR_process_vm_writev) == "process_vm_writev");
  CHECK(system_call_name(999) == "system call 999");
  CHECK(system_call_name(-1) == "system call -1");
  std::map<int, std::string_view> seen;
  for (const SystemCallName& call : kSystemCallNames) {
    if (call.number == kNoSystemCall) continue;
    INFO(call.name);
    CHECK(seen.emplace(call.number, call.name).second);
    CHECK(system_call_number(call.name) == call.number);
    CHECK(system_call_name(call.number) == call.name);
  }
  // So that none is lost where a header defines them in another way.
  CHECK(seen.size() > 290);
}

#if WITH_LIBSECCOMP
TEST_CASE("libseccomp knows the numbers and names that the table has, and those of other machines") {
  CHECK(number_in_libseccomp("read") == __NR_read);
  CHECK(name_in_libseccomp(__NR_read) == "read");
  CHECK_FALSE(number_in_libseccomp("opennat"));
  CHECK(name_in_libseccomp(99'999).empty());
  int both = 0;
  for (const SystemCallName& call : kSystemCallNames) {
    const auto number = number_in_libseccomp(call.name);
    if (!number) continue;  // newer than this libseccomp
    INFO(call.name);
    // Headers may be older than it.
    if (call.number == kNoSystemCall && *number != kNoSystemCall) continue;
    CHECK(*number == call.number);
    if (call.number != kNoSystemCall) CHECK(name_in_libseccomp(call.number) == call.name);
    ++both;
  }
  CHECK(both > 290);
  // Of 32-bit machines only.
  CHECK(number_in_libseccomp("socketcall") == kNoSystemCall);
  CHECK_NOTHROW(make_system_call_filter(SystemCalls::allow_computing, std::vector<std::string>{"socketcall"}));
}
#else
TEST_CASE("without libseccomp only the table's calls are known") {
  CHECK_FALSE(number_in_libseccomp("read"));
  CHECK(name_in_libseccomp(__NR_read).empty());
  CHECK_THROWS_AS(make_system_call_filter(SystemCalls::allow_computing, std::vector<std::string>{"socketcall"}),
                  std::invalid_argument);
}
#endif

TEST_CASE("an empty filter is not put in force") { CHECK(install_system_call_filter({}) == ENOTSUP); }

// From here on in processes of their own, with the kernel.
namespace {

// 0: all was as it should be; else the line that was not.
#define EXPECT(condition) \
  if (!(condition)) return __LINE__ % 256

constexpr int kCannotInstall = 1;  // no line with a test in it

// How a process ended that did this behind the filter: "0" or another exit code, or the name of a signal.
template <class Function>
std::string behind_filter(SystemCalls allowed, Function function) {
  std::vector<sock_filter> filter = make_system_call_filter(allowed, {});
  const pid_t pid = ::fork();
  if (pid == 0) {
    // Catch2 has handlers for crashes, which are for the parent.
    for (const int signal : {SIGSYS, SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTERM}) ::signal(signal, SIG_DFL);
    const rlimit no_core{};
    ::setrlimit(RLIMIT_CORE, &no_core);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    set_own_process(filter, ::getpid());
    if (install_system_call_filter(filter) != 0) ::_exit(kCannotInstall);
    ::_exit(function());
  }
  const Process child(pid);
  const bool in_time = child.gone_within(kGone);
  if (!in_time) child.signal(SIGKILL);
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return "lost";
  if (!in_time) return "did not end";
  if (WIFEXITED(status)) return std::to_string(WEXITSTATUS(status));
  return std::string("SIG") + ::sigabbrev_np(WTERMSIG(status));
}

bool fails_with(long result, int error) { return result == -1 && errno == error; }

volatile std::sig_atomic_t noted_call = 0;
volatile std::sig_atomic_t noted_code = 0;

void note_forbidden(int, siginfo_t* info, void*) {
  noted_call = info->si_syscall;
  noted_code = info->si_code;
}

}  // namespace

TEST_CASE("a process behind either filter dies of SIGSYS when it does what is forbidden") {
  const pid_t parent = ::getpid();
  for (const SystemCalls mode : kModes) {
    CHECK(behind_filter(mode, [] { return static_cast<int>(::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr)); }) ==
          "SIGSYS");
    CHECK(behind_filter(mode, [] { return static_cast<int>(::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)); }) == "SIGSYS");
    CHECK(behind_filter(mode, [] { return static_cast<int>(::unshare(CLONE_NEWUSER)); }) == "SIGSYS");
    CHECK(behind_filter(mode, [parent] { return ::kill(parent, 0); }) == "SIGSYS");
    CHECK(behind_filter(mode, [parent] { return static_cast<int>(::syscall(SYS_tgkill, parent, parent, 0)); }) ==
          "SIGSYS");
    CHECK(behind_filter(mode, [] {
            char* arguments[] = {nullptr};
            return ::execve("/bin/true", arguments, arguments);
          }) == "SIGSYS");
    CHECK(behind_filter(mode, [] { return static_cast<int>(::syscall(SYS_io_uring_setup, 1, nullptr)); }) == "SIGSYS");
#if defined(__x86_64__)
    CHECK(behind_filter(mode, [] { return static_cast<int>(::syscall(SYS_fork)); }) == "SIGSYS");
    CHECK(behind_filter(mode, [] { return static_cast<int>(::syscall(SYS_getpid | 0x40000000)); }) == "SIGSYS");
#endif
  }
}

TEST_CASE("a handler of the process's own learns the number of the forbidden call, which was not made") {
  for (const SystemCalls mode : kModes) {
    CHECK(behind_filter(mode, [] {
            struct sigaction action {};
            action.sa_sigaction = note_forbidden;
            action.sa_flags = SA_SIGINFO;
            EXPECT(::sigaction(SIGSYS, &action, nullptr) == 0);
            ::syscall(SYS_ptrace, PTRACE_TRACEME, 0, nullptr, nullptr);
            EXPECT(noted_call == SYS_ptrace);
            EXPECT(noted_code == 1);  // SYS_SECCOMP
            return 0;
          }) == "0");
  }
}

TEST_CASE("behind either filter a process writes, maps memory, reads its limits and signals itself") {
  for (const SystemCalls mode : kModes) {
    CHECK(behind_filter(mode, [] {
            int ends[2];
            char byte = 'x';
            EXPECT(::pipe2(ends, O_CLOEXEC) == 0);
            EXPECT(::write(ends[1], &byte, 1) == 1);
            EXPECT(::read(ends[0], &byte, 1) == 1);
            void* const memory = ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            EXPECT(memory != MAP_FAILED);
            EXPECT(::madvise(memory, 1 << 20, MADV_DONTNEED) == 0);
            EXPECT(::munmap(memory, 1 << 20) == 0);
            rlimit limit{};
            EXPECT(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
            EXPECT(fails_with(::setrlimit(RLIMIT_NOFILE, &limit), EPERM));
            struct stat status {};
            EXPECT(::fstat(ends[0], &status) == 0);
            EXPECT(::kill(::getpid(), 0) == 0);
            EXPECT(fails_with(::syscall(SYS_clone3, nullptr, 0), ENOSYS));
            EXPECT(fails_with(::syscall(SYS_pidfd_open, ::getpid(), 0), EPERM));
            EXPECT(fails_with(::syscall(1000), ENOSYS));
            return 0;
          }) == "0");
    CHECK(behind_filter(mode, [] {
            std::abort();
            return 0;
          }) == "SIGABRT");
    CHECK(behind_filter(mode, [] { return ::raise(SIGTERM); }) == "SIGTERM");
  }
}

TEST_CASE("behind the filter that denies what is dangerous, files and sockets open, and code can be made") {
  CHECK(behind_filter(SystemCalls::deny_dangerous, [] {
          EXPECT(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC) >= 0);
          EXPECT(fails_with(::socket(AF_UNIX, SOCK_STREAM, 0), EAFNOSUPPORT));
          int ends[2];
          EXPECT(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
          EXPECT(fails_with(::chmod("/tmp", 0777), EACCES));
          EXPECT(fails_with(::socket(AF_NETLINK, SOCK_RAW, 0), EAFNOSUPPORT));
          EXPECT(fails_with(::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), ESOCKTNOSUPPORT));
          EXPECT(fails_with(::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), EPERM));
          EXPECT(::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
          return 0;
        }) == "0");
}

TEST_CASE("behind the filter for computing, no file opens, no socket, and memory becomes no code") {
  CHECK(behind_filter(SystemCalls::allow_computing, [] {
          EXPECT(fails_with(::open("/etc/passwd", O_RDONLY), EACCES));
          EXPECT(fails_with(::openat(AT_FDCWD, "/proc/self/mem", O_RDWR), EACCES));
          EXPECT(fails_with(::access("/", R_OK), EACCES));
          struct stat status {};
          EXPECT(fails_with(::stat("/etc/passwd", &status), EACCES));
          EXPECT(fails_with(::socket(AF_INET, SOCK_STREAM, 0), EACCES));
          int ends[2];
          EXPECT(fails_with(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), EACCES));
          EXPECT(fails_with(::memfd_create("code", 0), EACCES));
          void* const memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          EXPECT(memory != MAP_FAILED);
          EXPECT(fails_with(::mprotect(memory, 4096, PROT_READ | PROT_EXEC), EACCES));
          EXPECT(::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
          EXPECT(fails_with(::fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK), EACCES));
          return 0;
        }) == "0");
  CHECK(behind_filter(SystemCalls::allow_computing, [] { return ::listen(STDIN_FILENO, 1); }) == "SIGSYS");
}

// A sanitizer's runtime opens files where a thread starts; ThreadSanitizer takes no threads in forked processes at all.
#if !WITH_SANITIZER
TEST_CASE("behind either filter threads start and end, and those of before are behind it, too") {
  for (const SystemCalls mode : kModes) {
    CHECK(behind_filter(mode, [] {
            int sum = 0;
            for (int i = 0; i < 3; ++i) std::thread([&sum, i] { sum += i; }).join();
            EXPECT(sum == 3);
            return 0;
          }) == "0");
  }
  // The inner filter is put in force while a thread waits, which then tries what only that one refuses.
  CHECK(behind_filter(SystemCalls::deny_dangerous, [] {
          int ends[2];
          EXPECT(::pipe2(ends, O_CLOEXEC) == 0);
          bool refused = false;
          std::thread early([&refused, from = ends[0]] {
            char byte;
            if (::read(from, &byte, 1) == 1) refused = fails_with(::open("/", O_RDONLY), EACCES);
          });
          std::vector<sock_filter> filter = make_system_call_filter(SystemCalls::allow_computing, {});
          set_own_process(filter, ::getpid());
          const int error = install_system_call_filter(filter);
          EXPECT(::write(ends[1], "x", 1) == 1);
          early.join();
          EXPECT(error == 0);
          EXPECT(refused);
          return 0;
        }) == "0");
}
#endif
