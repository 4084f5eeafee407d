// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bulkhead {

/// How much an item of a SandboxPolicy is wanted.
enum class Demand : std::uint8_t {
  off,      ///< Not at all.
  attempt,  ///< If this machine can do it; `LocalExecutor::sandbox_report` tells.
  require   ///< Without it there is no executor: its constructor throws `WorkerStartError` with item and reason. In
            ///< bypass mode (for unit tests) there are no workers and no sandbox, whatever is required.
};

/// The items of a SandboxPolicy.
enum class SandboxItem : std::uint8_t {
  descriptors,
  cgroup,
  user_namespace,
  pid_namespace,
  network_namespace,
  ipc_namespace,
  mount_namespace,
  memory_limit,
  cpu_limit,
  file_size_limit,
  open_files_limit,
  process_limit,
  core_limit,
  oom_score,
  drop_user,
  non_dumpable,
  no_new_privileges,
  file_access,
  network_access,
  signal_scope,
  abstract_socket_scope,
  system_calls
};
inline constexpr std::size_t kSandboxItems = 22;
/// Its name, as it is written here.
BULKHEAD_EXPORT std::string_view name_of(SandboxItem item) noexcept;

/// Which system calls a worker may make, once its `initializer` is over.
enum class SystemCalls : std::uint8_t {
  /// All but those that reach other processes, start programs, or offer the kernel's widest surfaces (ptrace,
  /// process_vm_writev, pidfd_getfd, kill of others, execve, fork, bpf, userfaultfd, io_uring, mount, ...). What
  /// Landlock does not keep from a process fails with an errno: Unix sockets, and to change a file's mode, owner and
  /// times.
  deny_dangerous,
  /// Only those that computing and memory need, beside reading and writing open descriptors. Opening a file fails with
  /// EACCES.
  allow_computing
};

/// What keeps a worker that was taken over from reaching anything. Made from one of the profiles, then changed item by
/// item; each takes effect in every worker of the executor before its first task, and cannot be taken back by it.
/// The profiles promise what docs/security.md lists.
struct SandboxPolicy {
  /// For code of one's own that may fail, but is nobody's enemy: the default.
  BULKHEAD_EXPORT static SandboxPolicy trusted();
  /// For code that reads hostile input: it opens no file, reaches no other process and no TCP port, and starts no
  /// program. What it needs of files is read in `preload`, or named in `readable_paths`.
  BULKHEAD_EXPORT static SandboxPolicy contained();
  /// For code that is taken for hostile: it can compute, and answer. `never_reuse_workers` is set.
  BULKHEAD_EXPORT static SandboxPolicy untrusted();

  /// What reports call it.
  std::string profile = "trusted";
  /// No worker runs a second task, unless both have the same `Isolation::per_key`: tasks run with `Isolation::fresh`,
  /// and `Isolation::reuse` is refused.
  bool never_reuse_workers = false;

  /// PR_SET_NO_NEW_PRIVS: set-user-id programs give it nothing.
  Demand no_new_privileges = Demand::attempt;
  /// PR_SET_DUMPABLE 0: processes of the same user, debuggers among them, cannot look into it.
  Demand non_dumpable = Demand::attempt;
  /// The kernel takes it first when memory runs out.
  Demand oom_score = Demand::attempt;

  /// RLIMIT_AS, bytes beyond what it has before its first task; must leave room for two areas of `max_message_size`.
  Demand memory_limit = Demand::off;
  std::uint64_t memory = 0;
  /// RLIMIT_CPU, whole seconds over the worker's whole life: then it is killed.
  Demand cpu_limit = Demand::off;
  std::uint64_t cpu_seconds = 0;
  /// RLIMIT_FSIZE, bytes: no file can be made larger; writing beyond fails with EFBIG, also where standard output is a
  /// file (`CaptureOutput::inherit`).
  Demand file_size_limit = Demand::off;
  std::uint64_t file_size = 0;
  /// RLIMIT_NOFILE: no descriptor of this number or above can be opened.
  Demand open_files_limit = Demand::off;
  std::uint64_t open_files = 0;
  /// RLIMIT_NPROC: processes and threads of the worker's user, all together, or those in `user_namespace`; at most half
  /// of the host's own limit. The kernel does not hold root to it.
  Demand process_limit = Demand::off;
  std::uint64_t processes = 0;
  /// RLIMIT_CORE: no core dump.
  Demand core_limit = Demand::attempt;

  /// Landlock: no file can be opened, but in `readable_paths` (for reading) and `writable_paths` (for everything but to
  /// run it, and, with `system_calls`, to change its mode, owner, times and attributes). Absolute paths of files or
  /// directories, which must exist.
  Demand file_access = Demand::off;
  std::vector<std::string> readable_paths;
  std::vector<std::string> writable_paths;
  /// Landlock: no TCP port can be bound or connected to.
  Demand network_access = Demand::off;
  /// Landlock: no signal to processes outside of the worker.
  Demand signal_scope = Demand::off;
  /// Landlock: no abstract Unix socket of processes outside of the worker.
  Demand abstract_socket_scope = Demand::off;

  /// A seccomp filter. A call that it forbids ends the task with `PolicyViolationError` and the worker with it; calls
  /// that only look at files fail with EACCES, and those that are newer than the filter with ENOSYS.
  Demand system_calls = Demand::off;
  SystemCalls allowed = SystemCalls::deny_dangerous;
  /// Names of further system calls that are allowed, `"socket"` say.
  std::vector<std::string> also_allowed;

  /// Namespaces of the executor's own, one set for all its workers. For an ordinary user the others need the first.
  Demand user_namespace = Demand::off;
  Demand pid_namespace = Demand::attempt;
  Demand network_namespace = Demand::off;
  Demand ipc_namespace = Demand::off;
  Demand mount_namespace = Demand::off;

  /// For a host that runs as root: `preload` and workers run as this user and group, without capabilities.
  Demand drop_user = Demand::off;
  std::uint32_t uid = 65534;  // nobody
  std::uint32_t gid = 65534;

  /// cgroup v2: the executor's workers are put into `cgroup_path`, the directory of a group without members that was
  /// delegated to the program and is this executor's alone; with limits for all workers and their template together, 0:
  /// none. Memory in bytes, and no swap beside it: beyond that the kernel kills a worker. Processes, threads counted.
  Demand cgroup = Demand::off;
  std::string cgroup_path;
  std::uint64_t cgroup_memory = 0;
  std::uint64_t cgroup_processes = 0;

  bool operator==(const SandboxPolicy&) const = default;
};

/// What is in force in the workers of an executor.
struct SandboxReport {
  enum class State : std::uint8_t {
    off,         ///< Not asked for.
    in_force,    ///< `detail` says what.
    unavailable  ///< Asked for with `Demand::attempt`; `detail` says why it could not be had.
  };
  struct Entry {
    SandboxItem item{};
    Demand demand{};
    State state{};
    std::string detail;
  };

  std::string profile;
  /// One for each SandboxItem, in order.
  std::vector<Entry> entries;

  const Entry& entry(SandboxItem item) const { return entries[static_cast<std::size_t>(item)]; }
  bool in_force(SandboxItem item) const { return entry(item).state == State::in_force; }
  /// A table, one line for each item.
  BULKHEAD_EXPORT std::string to_string() const;
};

}  // namespace bulkhead
