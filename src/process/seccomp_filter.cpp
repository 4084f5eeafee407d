// SPDX-License-Identifier: BSL-1.0
#include "seccomp_filter.hpp"

#include "libseccomp.hpp"
#include "system_call_names.hpp"

#include <fmt/format.h>

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/fs.h>
#include <linux/ioprio.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <utility>

// Little-endian with 64 bits: where the halves of an argument lie depends on that.
#if (defined(__x86_64__) && !defined(__ILP32__)) || defined(__AARCH64EL__)
#define BULKHEAD_HAS_FILTER 1
#else
#define BULKHEAD_HAS_FILTER 0
#endif

namespace bulkhead::process {
namespace {

// Not as a pointer: under UndefinedBehaviorSanitizer g++ compares none with null in a constant expression.
constexpr std::size_t position_of(std::string_view name) noexcept {
  const auto found = std::find_if(std::begin(kSystemCallNames), std::end(kSystemCallNames),
                                  [name](const SystemCallName& call) { return call.name == name; });
  return static_cast<std::size_t>(found - std::begin(kSystemCallNames));
}
constexpr bool known(std::string_view name) noexcept { return position_of(name) < std::size(kSystemCallNames); }

}  // namespace

std::optional<long> system_call_number(std::string_view name) {
  const std::size_t position = position_of(name);
  const int number = position < std::size(kSystemCallNames) ? kSystemCallNames[position].number
                                                            : number_in_libseccomp(name).value_or(kNoSystemCall);
  if (number == kNoSystemCall) return std::nullopt;
  return number;
}

std::string system_call_name(long number) {
  const auto found = std::find_if(std::begin(kSystemCallNames), std::end(kSystemCallNames),
                                  [number](const SystemCallName& call) { return call.number == number; });
  if (number >= 0 && found != std::end(kSystemCallNames)) return std::string(found->name);
  std::string name;
  if (number >= 0 && number <= std::numeric_limits<int>::max()) name = name_in_libseccomp(static_cast<int>(number));
  return name.empty() ? fmt::format("system call {}", number) : name;
}

#if BULKHEAD_HAS_FILTER

namespace {

#if defined(__x86_64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#else
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#endif

// Stands for the id of the process until set_own_process: more than any process's, so that nothing is reached with it.
constexpr std::uint32_t kOwnProcess = std::numeric_limits<std::int32_t>::max();

// Ends the process with SIGSYS, at once where that is blocked, and through its handler else, which can tell the number.
// A handler of the process's own cannot undo that the call was not made.
constexpr std::uint32_t kForbid = SECCOMP_RET_TRAP;
constexpr std::uint32_t kAllow = SECCOMP_RET_ALLOW;
constexpr std::uint32_t refuse(int error) { return SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error); }

// Numbers of the kernel's that libc's headers lack, or hide: the kernel's ABI.
constexpr std::uint32_t kSetOwnerExtended = 15;           // F_SETOWN_EX
constexpr std::uint32_t kPoison = 100;                    // MADV_HWPOISON
constexpr std::uint32_t kPoisonSoftly = 101;              // MADV_SOFT_OFFLINE
constexpr std::uint32_t kNameMemory = 0x53564d41;         // PR_SET_VMA, since Linux 5.17
constexpr std::uint32_t kConsole = 0x541C;                // TIOCLINUX
constexpr std::uint32_t kEnableVerity = 0x40806685;       // FS_IOC_ENABLE_VERITY: a file that nobody changes any more
constexpr std::uint32_t kSetEncryption = 0x800c6613;      // FS_IOC_SET_ENCRYPTION_POLICY
constexpr std::uint32_t kSetFatAttributes = 0x40047211;   // FAT_IOCTL_SET_ATTRIBUTES
constexpr std::uint32_t kSetSubvolumeFlags = 0x4008941a;  // BTRFS_IOC_SUBVOL_SETFLAGS
constexpr std::uint32_t kSocketTypeMask = 0xf;            // SOCK_TYPE_MASK: the rest are flags
constexpr std::uint32_t kQuery = 0xffffffff;              // of personality

// All that clone, and not only clone3, takes.
constexpr std::uint32_t kNewNamespaces =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

// Builds a filter, front to back. The tests of arguments fall through if they do not decide.
class Code {
 public:
  std::size_t size() const { return instructions_.size(); }
  std::vector<sock_filter> take() { return std::move(instructions_); }
  void append(const Code& other) {
    instructions_.insert(instructions_.end(), other.instructions_.begin(), other.instructions_.end());
  }

  void load(std::size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)); }
  void decide(std::uint32_t action) { add(BPF_RET | BPF_K, action); }
  /// Goes on `distance` instructions later.
  void jump(std::size_t distance) { add(BPF_JMP | BPF_JA, static_cast<std::uint32_t>(distance)); }
  void jump_if(std::uint16_t comparison, std::uint32_t value, std::size_t then, std::size_t otherwise) {
    add(BPF_JMP | BPF_K | comparison, value, then, otherwise);
  }

  // The kernel looks at the lower half only of arguments that are no longs, and where a long holds flags, these are
  // there. `mask`: of the bits that count.
  Code& if_one_of(unsigned argument, std::initializer_list<std::uint32_t> values, std::uint32_t action,
                  std::uint32_t mask = ~0U) {
    load_argument(argument, mask);
    std::size_t rest = values.size();
    for (const std::uint32_t value : values) {
      --rest;
      jump_if(BPF_JEQ, value, rest, rest == 0 ? 1 : 0);
    }
    decide(action);
    return *this;
  }
  Code& unless_one_of(unsigned argument, std::initializer_list<std::uint32_t> values, std::uint32_t action,
                      std::uint32_t mask = ~0U) {
    load_argument(argument, mask);
    std::size_t rest = values.size();
    for (const std::uint32_t value : values) jump_if(BPF_JEQ, value, rest--, 0);
    decide(action);
    return *this;
  }
  Code& if_any_bit(unsigned argument, std::uint32_t bits, std::uint32_t action) {
    load_argument(argument);
    jump_if(BPF_JSET, bits, 0, 1);
    decide(action);
    return *this;
  }
  Code& unless_any_bit(unsigned argument, std::uint32_t bits, std::uint32_t action) {
    load_argument(argument);
    jump_if(BPF_JSET, bits, 1, 0);
    decide(action);
    return *this;
  }
  Code& unless_null(unsigned argument, std::uint32_t action) {
    load_argument(argument);
    jump_if(BPF_JEQ, 0, 1, 0);
    decide(action);
    load(offset_of(argument) + sizeof(std::uint32_t));
    jump_if(BPF_JEQ, 0, 1, 0);
    decide(action);
    return *this;
  }

 private:
  static std::size_t offset_of(unsigned argument) {
    return offsetof(seccomp_data, args) + argument * sizeof(std::uint64_t);
  }
  void load_argument(unsigned argument, std::uint32_t mask = ~0U) {
    load(offset_of(argument));
    if (mask != ~0U) add(BPF_ALU | BPF_AND | BPF_K, mask);
  }
  void add(int code, std::uint32_t value, std::size_t then = 0, std::size_t otherwise = 0) {
    instructions_.push_back({static_cast<std::uint16_t>(code), static_cast<std::uint8_t>(then),
                             static_cast<std::uint8_t>(otherwise), value});
  }

  std::vector<sock_filter> instructions_;
};

// What must be looked at before a call is allowed.
enum class Check : std::uint8_t {
  none,
  // In both modes
  threads_only,
  signals_to_itself,
  first_is_itself,
  limits_are_read,
  personality_is_read,
  no_poison,
  // Where the dangerous calls are denied
  priority_of_itself,
  io_priority_of_itself,
  inet_sockets,
  unix_pairs,
  no_fast_open_in_second,  // sendmsg has its flags there
  no_fast_open_in_third,
  ioctl_of_its_own,
  fcntl_of_its_own,
  prctl_keeps_the_policy,
  // For computing
  prctl_of_names,
  ioctl_that_reads,
  fcntl_of_the_descriptor,
  no_code,
  descriptor_in_third,  // newfstatat has its flags there
  descriptor_in_second
};

Code code_of(Check check) {
  Code code;
  switch (check) {
    case Check::none:
      break;
    case Check::threads_only:
      // The kernel lets a thread have nothing of its own that matters: it insists on CLONE_VM and CLONE_SIGHAND.
      code.if_any_bit(0, kNewNamespaces, kForbid).unless_any_bit(0, CLONE_THREAD, kForbid);
      break;
    case Check::signals_to_itself:
      code.unless_one_of(0, {kOwnProcess}, kForbid);
      break;
    case Check::first_is_itself:
      code.unless_one_of(0, {0, kOwnProcess}, refuse(EPERM));
      break;
    case Check::priority_of_itself:
      code.unless_one_of(0, {PRIO_PROCESS}, refuse(EPERM)).unless_one_of(1, {0, kOwnProcess}, refuse(EPERM));
      break;
    case Check::io_priority_of_itself:
      code.unless_one_of(0, {IOPRIO_WHO_PROCESS}, refuse(EPERM)).unless_one_of(1, {0, kOwnProcess}, refuse(EPERM));
      break;
    case Check::limits_are_read:
      // Others' can be set, too, so that the host is out of its time or descriptors; and root can raise its own again.
      code.unless_one_of(0, {0, kOwnProcess}, refuse(EPERM)).unless_null(2, refuse(EPERM));
      break;
    case Check::personality_is_read:
      code.unless_one_of(0, {kQuery}, refuse(EPERM));
      break;
    case Check::inet_sockets:
      // Others (packets, netlink, VMs, the kernel's crypto) have a long record of holes. SOCK_PACKET is a packet socket
      // by another name, SOCK_RAW reads what is for others, and Landlock knows ports of TCP only, not of its kin.
      // A socket of the system's by its name (a session bus, a container engine) Landlock does not keep from it,
      // either.
      code.unless_one_of(0, {AF_INET, AF_INET6}, refuse(EAFNOSUPPORT))
          .unless_one_of(1, {SOCK_STREAM, SOCK_DGRAM}, refuse(ESOCKTNOSUPPORT), kSocketTypeMask)
          .unless_one_of(2, {0, IPPROTO_TCP, IPPROTO_UDP}, refuse(EPROTONOSUPPORT));
      break;
    case Check::unix_pairs:
      // One for datagrams could still send to any name.
      code.unless_one_of(0, {AF_UNIX}, refuse(EAFNOSUPPORT))
          .unless_one_of(1, {SOCK_STREAM, SOCK_SEQPACKET}, refuse(ESOCKTNOSUPPORT), kSocketTypeMask);
      break;
    case Check::no_fast_open_in_second:
      code.if_any_bit(2, MSG_FASTOPEN, refuse(EOPNOTSUPP));
      break;
    case Check::no_fast_open_in_third:
      // It connects without a call of connect, which is the one that Landlock looks at.
      code.if_any_bit(3, MSG_FASTOPEN, refuse(EOPNOTSUPP));
      break;
    case Check::ioctl_of_its_own:
      // The first two type into a terminal; the next two have signals sent to whom one likes; the rest changes a file
      // that may only be open for reading.
      code.if_one_of(1, {TIOCSTI, kConsole}, kForbid)
          .if_one_of(1,
                     {FIOSETOWN, SIOCSPGRP, FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION, kEnableVerity,
                      kSetEncryption, kSetFatAttributes, kSetSubvolumeFlags},
                     refuse(EPERM));
      break;
    case Check::fcntl_of_its_own:
      // With F_SETSIG it would even be SIGKILL. A lease makes others wait who open the file for writing.
      code.if_one_of(1, {F_SETOWN, kSetOwnerExtended, F_SETLEASE, F_NOTIFY}, refuse(EPERM));
      break;
    case Check::no_poison:
      // Root can take memory away that the host shares, which gets SIGBUS then. MADV_REMOVE is harmless, since that
      // leaves zeros; a worker gives back its response area so.
      code.if_one_of(2, {kPoison, kPoisonSoftly}, refuse(EPERM));
      break;
    case Check::prctl_keeps_the_policy:
      // It must die with the host, and stay as closed to others as it was made.
      code.if_one_of(0, {PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_MM}, refuse(EPERM));
      break;
    case Check::prctl_of_names:
      code.unless_one_of(
          0, {PR_SET_NAME, PR_GET_NAME, kNameMemory, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_GET_TIMERSLACK},
          refuse(EPERM));
      break;
    case Check::ioctl_that_reads:
      // What isatty() asks, and how much there is to read: the rest is the widest interface that the kernel has.
      code.unless_one_of(1, {TCGETS, FIONREAD}, refuse(ENOTTY));
      break;
    case Check::fcntl_of_the_descriptor:
      // Nothing of the open file, which others may share: its O_NONBLOCK, locks, seals, signals.
      code.unless_one_of(1, {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL}, refuse(EACCES));
      break;
    case Check::no_code:
      code.if_any_bit(2, PROT_EXEC, refuse(EACCES));
      break;
    case Check::descriptor_in_third:
      // fstat() of glibc. The filter cannot see that the path is empty: size and times of a file can be asked for by
      // its name with that flag, too.
      code.unless_any_bit(3, AT_EMPTY_PATH, refuse(EACCES));
      break;
    case Check::descriptor_in_second:
      code.unless_any_bit(2, AT_EMPTY_PATH, refuse(EACCES));
      break;
  }
  code.decide(kAllow);
  return code;
}

struct Verdict {
  std::uint32_t action = refuse(ENOSYS);  // as of a kernel that is older than the call
  Check check = Check::none;              // takes the place of the action

  bool operator==(const Verdict&) const = default;
};

struct CheckedCall {
  std::string_view name;
  Check check;
};

// In both modes: they reach other processes, start programs, change the machine, or are the kernel's weakest parts.
constexpr std::string_view kForbidden[] = {
    // Other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd",
    "pidfd_send_signal",
    // Programs, processes, namespaces
    "execve", "execveat", "fork", "vfork", "unshare", "setns",
    // Mounts, and files by other ways than paths
    "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "open_by_handle_at", "fanotify_init", "fanotify_mark",
    // Weak parts. What io_uring does is not seen by any filter.
    "bpf", "userfaultfd", "perf_event_open", "io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl",
    "add_key", "request_key", "modify_ldt", "iopl", "ioperm",
    // The machine
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff",
    "acct", "quotactl", "quotactl_fd", "sethostname", "setdomainname", "settimeofday", "clock_settime", "vhangup",
    // Who it is
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid",
    "capset"};

// In both modes: libraries try them and do without.
constexpr std::string_view kNotPermitted[] = {"pidfd_open",    "kcmp",   "name_to_handle_at", "adjtimex",
                                              "clock_adjtime", "syslog", "setrlimit",         "lsm_set_self_attr"};

// In both modes, as if the kernel had none. glibc makes threads with clone where it has no clone3, whose flags lie in
// memory that no filter can read; another errno makes it give up.
constexpr std::string_view kMissing[] = {"clone3",  "lookup_dcookie", "nfsservctl",      "uselib",
                                         "_sysctl", "create_module",  "get_kernel_syms", "query_module"};

constexpr CheckedCall kCheckedAlways[] = {{"clone", Check::threads_only},
                                          {"kill", Check::signals_to_itself},
                                          {"tkill", Check::signals_to_itself},
                                          {"tgkill", Check::signals_to_itself},
                                          {"rt_sigqueueinfo", Check::signals_to_itself},
                                          {"rt_tgsigqueueinfo", Check::signals_to_itself},
                                          {"get_robust_list", Check::first_is_itself},
                                          {"prlimit64", Check::limits_are_read},
                                          {"personality", Check::personality_is_read},
                                          {"madvise", Check::no_poison}};

constexpr CheckedCall kCheckedIfDenied[] = {{"sched_setaffinity", Check::first_is_itself},
                                            {"sched_setscheduler", Check::first_is_itself},
                                            {"sched_setparam", Check::first_is_itself},
                                            {"sched_setattr", Check::first_is_itself},
                                            {"migrate_pages", Check::first_is_itself},
                                            {"move_pages", Check::first_is_itself},
                                            {"setpriority", Check::priority_of_itself},
                                            {"ioprio_set", Check::io_priority_of_itself},
                                            {"socket", Check::inet_sockets},
                                            {"socketpair", Check::unix_pairs},
                                            {"sendmsg", Check::no_fast_open_in_second},
                                            {"sendto", Check::no_fast_open_in_third},
                                            {"sendmmsg", Check::no_fast_open_in_third},
                                            {"ioctl", Check::ioctl_of_its_own},
                                            {"fcntl", Check::fcntl_of_its_own},
                                            {"prctl", Check::prctl_keeps_the_policy}};

// Where the dangerous calls are denied, EACCES: what Landlock lets a process do to a file that it cannot write, or see
// of it; what it shares with others by other names than files'; and files of memory, which no limit counts.
constexpr std::string_view kByOtherNames[] = {
    "mknod",        "mknodat",     "inotify_init", "inotify_init1", "shmget",       "shmat",         "shmctl",
    "semget",       "semop",       "semtimedop",   "semctl",        "msgget",       "msgsnd",        "msgrcv",
    "msgctl",       "mq_open",     "mq_unlink",    "listen",

    "chmod",        "fchmod",      "fchmodat",     "fchmodat2",     "chown",        "fchown",        "lchown",
    "fchownat",     "utime",       "utimes",       "futimesat",     "utimensat",    "setxattr",      "lsetxattr",
    "fsetxattr",    "setxattrat",  "removexattr",  "lremovexattr",  "fremovexattr", "removexattrat", "file_setattr",

    "memfd_create", "memfd_secret"};

constexpr CheckedCall kCheckedForComputing[] = {{"mmap", Check::no_code},
                                                {"mprotect", Check::no_code},
                                                {"pkey_mprotect", Check::no_code},
                                                {"newfstatat", Check::descriptor_in_third},
                                                {"statx", Check::descriptor_in_second},
                                                {"ioctl", Check::ioctl_that_reads},
                                                {"fcntl", Check::fcntl_of_the_descriptor},
                                                {"prctl", Check::prctl_of_names}};

constexpr std::string_view kComputing[] = {
    // Memory
    "brk", "munmap", "mremap", "mincore", "msync", "mlock", "mlock2", "munlock", "munlockall", "mseal", "pkey_alloc",
    "pkey_free", "map_shadow_stack", "get_mempolicy",
    // Threads
    "futex", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue", "set_robust_list", "set_tid_address", "rseq",
    "membarrier", "getcpu", "arch_prctl", "sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler",
    "sched_getattr", "sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval", "exit", "exit_group",
    // Open descriptors
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek",
    "close", "close_range", "dup", "dup2", "dup3", "fstat", "fsync", "fdatasync", "fadvise64", "poll", "ppoll",
    "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2",
    "eventfd", "eventfd2", "signalfd", "signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime", "pipe",
    "pipe2",
    // Time
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "getitimer",
    "setitimer", "alarm", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
    // Signals
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "rt_sigsuspend", "rt_sigpending",
    "rt_sigtimedwait", "pause", "restart_syscall",
    // What it is, and where
    "getpid", "gettid", "getppid", "getpgrp", "getpgid", "getsid", "getuid", "geteuid", "getgid", "getegid",
    "getresuid", "getresgid", "getgroups", "capget", "getpriority", "ioprio_get", "getrlimit", "getrusage", "sysinfo",
    "uname", "umask", "getrandom",
    // Of tracers
    "uretprobe", "uprobe"};

// For computing, EACCES: programs are used to not being let at a file, or a network.
constexpr std::string_view kFiles[] = {"open",
                                       "openat",
                                       "openat2",
                                       "creat",
                                       "access",
                                       "faccessat",
                                       "faccessat2",
                                       "stat",
                                       "lstat",
                                       "statfs",
                                       "fstatfs",
                                       "readlink",
                                       "readlinkat",
                                       "mkdir",
                                       "mkdirat",
                                       "mknod",
                                       "mknodat",
                                       "rmdir",
                                       "unlink",
                                       "unlinkat",
                                       "rename",
                                       "renameat",
                                       "renameat2",
                                       "link",
                                       "linkat",
                                       "symlink",
                                       "symlinkat",
                                       "chmod",
                                       "fchmod",
                                       "fchmodat",
                                       "fchmodat2",
                                       "chown",
                                       "fchown",
                                       "fchownat",
                                       "lchown",
                                       "truncate",
                                       "ftruncate",
                                       "fallocate",
                                       "utime",
                                       "utimes",
                                       "futimesat",
                                       "utimensat",
                                       "chdir",
                                       "fchdir",
                                       "getcwd",
                                       "getdents",
                                       "getdents64",
                                       "flock",
                                       "inotify_init",
                                       "inotify_init1",
                                       "inotify_add_watch",
                                       "inotify_rm_watch",
                                       "setxattr",
                                       "lsetxattr",
                                       "fsetxattr",
                                       "setxattrat",
                                       "getxattr",
                                       "lgetxattr",
                                       "fgetxattr",
                                       "getxattrat",
                                       "listxattr",
                                       "llistxattr",
                                       "flistxattr",
                                       "listxattrat",
                                       "removexattr",
                                       "lremovexattr",
                                       "fremovexattr",
                                       "removexattrat",
                                       "file_getattr",
                                       "file_setattr",
                                       "sendfile",
                                       "copy_file_range",
                                       "splice",
                                       "tee",
                                       "vmsplice",
                                       "readahead",
                                       "sync",
                                       "syncfs",
                                       "sync_file_range",
                                       "memfd_create",
                                       "memfd_secret",
                                       "socket",
                                       "socketpair"};

// For computing, EPERM: hints, which only make it slower.
constexpr std::string_view kHints[] = {
    "mlockall",    "mbind",      "set_mempolicy",  "set_mempolicy_home_node", "migrate_pages", "move_pages",
    "setpriority", "ioprio_set", "sched_setparam", "sched_setscheduler",      "sched_setattr", "sched_setaffinity"};

// For computing, ENOSYS: what libraries of today use if it is there.
constexpr std::string_view kUnneeded[] = {"landlock_create_ruleset",
                                          "landlock_add_rule",
                                          "landlock_restrict_self",
                                          "seccomp",
                                          "cachestat",
                                          "statmount",
                                          "listmount",
                                          "listns",
                                          "lsm_get_self_attr",
                                          "lsm_list_modules"};

constexpr std::string_view name_of(std::string_view name) { return name; }
constexpr std::string_view name_of(const CheckedCall& call) { return call.name; }

// A misspelt one would be as good as none.
template <class Calls>
constexpr bool all_known(const Calls& calls) {
  return std::all_of(std::begin(calls), std::end(calls), [](const auto& call) { return known(name_of(call)); });
}
static_assert(all_known(kForbidden));
static_assert(all_known(kNotPermitted));
static_assert(all_known(kMissing));
static_assert(all_known(kCheckedAlways));
static_assert(all_known(kCheckedIfDenied));
static_assert(all_known(kByOtherNames));
static_assert(all_known(kCheckedForComputing));
static_assert(all_known(kComputing));
static_assert(all_known(kFiles));
static_assert(all_known(kHints));
static_assert(all_known(kUnneeded));

constexpr auto kNewest = static_cast<std::size_t>(
    std::max_element(std::begin(kSystemCallNames), std::end(kSystemCallNames), [](const auto& a, const auto& b) {
      return a.number < b.number;
    })->number);

// By number; the last stands for all that are newer.
class Verdicts {
 public:
  explicit Verdicts(SystemCalls allowed) : by_number_(kNewest + 2) {
    const bool computing = allowed == SystemCalls::allow_computing;
    for (const SystemCallName& call : kSystemCallNames) set(call.name, {computing ? kForbid : kAllow});
    set_all(kForbidden, kForbid);
    set_all(kNotPermitted, refuse(EPERM));
    set_all(kMissing, refuse(ENOSYS));
    set_all(kCheckedAlways);
    if (computing) {
      set_all(kComputing, kAllow);
      set_all(kFiles, refuse(EACCES));
      set_all(kHints, refuse(EPERM));
      set_all(kUnneeded, refuse(ENOSYS));
      set_all(kCheckedForComputing);
    } else {
      set_all(kByOtherNames, refuse(EACCES));
      set_all(kCheckedIfDenied);
    }
  }

  /// Not those that this machine does not have.
  void set(std::string_view name, Verdict verdict) {
    const auto number = system_call_number(name);
    if (!number) return;
    const auto index = static_cast<std::size_t>(*number);
    if (index + 1 >= by_number_.size()) by_number_.resize(index + 2);
    by_number_[index] = verdict;
  }

  const std::vector<Verdict>& by_number() const { return by_number_; }

 private:
  template <std::size_t N>
  void set_all(const std::string_view (&names)[N], std::uint32_t action) {
    for (const std::string_view name : names) set(name, {action});
  }
  template <std::size_t N>
  void set_all(const CheckedCall (&calls)[N]) {
    for (const CheckedCall& call : calls) set(call.name, {kAllow, call.check});
  }

  std::vector<Verdict> by_number_;
};

// Neighbours with the same verdict.
struct Range {
  std::uint32_t begin;
  Verdict verdict;
};

std::vector<Range> ranges_of(const std::vector<Verdict>& by_number) {
  std::vector<Range> ranges;
  for (std::size_t number = 0; number < by_number.size(); ++number) {
    if (ranges.empty() || ranges.back().verdict != by_number[number]) {
      ranges.push_back({static_cast<std::uint32_t>(number), by_number[number]});
    }
  }
  return ranges;
}

// A binary search for the number that is loaded.
Code search(std::span<const Range> ranges) {
  Code code;
  if (ranges.size() == 1) {
    const Verdict& verdict = ranges.front().verdict;
    if (verdict.check != Check::none) return code_of(verdict.check);
    code.decide(verdict.action);
    return code;
  }
  const std::size_t middle = ranges.size() / 2;
  const Code below = search(ranges.first(middle));
  const Code from_here = search(ranges.subspan(middle));
  // A jump with a condition reaches no further than its byte says.
  if (below.size() <= std::numeric_limits<std::uint8_t>::max()) {
    code.jump_if(BPF_JGE, ranges[middle].begin, below.size(), 0);
  } else {
    code.jump_if(BPF_JGE, ranges[middle].begin, 0, 1);
    code.jump(below.size());
  }
  code.append(below);
  code.append(from_here);
  return code;
}

}  // namespace

std::vector<sock_filter> make_system_call_filter(SystemCalls allowed, std::span<const std::string> also_allowed) {
  Verdicts verdicts(allowed);
  for (const std::string& name : also_allowed) {
    if (!known(name) && !number_in_libseccomp(name)) {
      throw std::invalid_argument(fmt::format("also_allowed has \"{}\", which is the name of no system call", name));
    }
    verdicts.set(name, {kAllow});
  }
  Code code;
  // Another architecture's call (int 0x80 on x86-64) has other numbers.
  code.load(offsetof(seccomp_data, arch));
  code.jump_if(BPF_JEQ, kArchitecture, 1, 0);
  code.decide(SECCOMP_RET_KILL_PROCESS);
  code.load(offsetof(seccomp_data, nr));
#if defined(__x86_64__)
  // As has the x32 ABI, which is x86-64's to the kernel but for this bit.
  constexpr std::uint32_t kX32 = 0x40000000;  // __X32_SYSCALL_BIT
  code.jump_if(BPF_JGE, kX32, 0, 1);
  code.decide(SECCOMP_RET_KILL_PROCESS);
#endif
  // Up to here nothing but the architecture and the number was looked at. Where that is enough to allow a call, the
  // kernel finds out beforehand, and does not run the filter for it (since Linux 5.11).
  code.append(search(ranges_of(verdicts.by_number())));
  return code.take();
}

void set_own_process(std::span<sock_filter> filter, pid_t self) noexcept {
  for (sock_filter& instruction : filter) {
    if (instruction.code == (BPF_JMP | BPF_K | BPF_JEQ) && instruction.k == kOwnProcess) {
      instruction.k = static_cast<std::uint32_t>(self);
    }
  }
}

#else

std::vector<sock_filter> make_system_call_filter(SystemCalls, std::span<const std::string>) { return {}; }
void set_own_process(std::span<sock_filter>, pid_t) noexcept {}

#endif

int install_system_call_filter(std::span<const sock_filter> filter) noexcept {
  if (filter.empty()) return ENOTSUP;
  if (filter.size() > BPF_MAXINSNS) return EINVAL;
  sock_fprog program{};
  program.len = static_cast<unsigned short>(filter.size());
  program.filter = const_cast<sock_filter*>(filter.data());  // The kernel only reads it.
  const long result = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
  if (result < 0) return errno;
  // The number of a thread that could not be given it: it has taken on a filter of its own.
  return result == 0 ? 0 : EBUSY;
}

}  // namespace bulkhead::process
