// SPDX-License-Identifier: BSL-1.0
#include "sandbox.hpp"

#include "fork_server.hpp"
#include "landlock.hpp"
#include "posix.hpp"
#include "printable.hpp"
#include "seccomp_filter.hpp"

#include <fmt/format.h>

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>

namespace bulkhead::process {
namespace {

using Item = SandboxItem;
using State = SandboxReport::State;

std::size_t index_of(Item item) noexcept { return static_cast<std::size_t>(item); }

Demand demand_of(const SandboxPolicy& policy, Item item) noexcept {
  switch (item) {
    case Item::descriptors:
      return Demand::require;
    case Item::cgroup:
      return policy.cgroup;
    case Item::user_namespace:
      return policy.user_namespace;
    case Item::pid_namespace:
      return policy.pid_namespace;
    case Item::network_namespace:
      return policy.network_namespace;
    case Item::ipc_namespace:
      return policy.ipc_namespace;
    case Item::mount_namespace:
      return policy.mount_namespace;
    case Item::memory_limit:
      return policy.memory_limit;
    case Item::cpu_limit:
      return policy.cpu_limit;
    case Item::file_size_limit:
      return policy.file_size_limit;
    case Item::open_files_limit:
      return policy.open_files_limit;
    case Item::process_limit:
      return policy.process_limit;
    case Item::core_limit:
      return policy.core_limit;
    case Item::oom_score:
      return policy.oom_score;
    case Item::drop_user:
      return policy.drop_user;
    case Item::non_dumpable:
      return policy.non_dumpable;
    case Item::no_new_privileges:
      return policy.no_new_privileges;
    case Item::file_access:
      return policy.file_access;
    case Item::network_access:
      return policy.network_access;
    case Item::signal_scope:
      return policy.signal_scope;
    case Item::abstract_socket_scope:
      return policy.abstract_socket_scope;
    case Item::system_calls:
      return policy.system_calls;
  }
  return Demand::off;
}

void check_path(const char* option, const std::string& path) {
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos) {
    throw std::invalid_argument(fmt::format("SandboxPolicy::{} must be an absolute path, not '{}'", option, path));
  }
}

void check(const SandboxPolicy& policy) {
  for (std::size_t i = 0; i < kSandboxItems; ++i) {
    const auto item = static_cast<Item>(i);
    if (demand_of(policy, item) > Demand::require) {
      throw std::invalid_argument(
          fmt::format("SandboxPolicy: the demand for {} must be Demand::off, attempt or require", name_of(item)));
    }
  }
  if (policy.allowed != SystemCalls::deny_dangerous && policy.allowed != SystemCalls::allow_computing) {
    throw std::invalid_argument("SandboxPolicy::allowed must be SystemCalls::deny_dangerous or allow_computing");
  }
  const auto require_value = [](Demand demand, const char* option, std::uint64_t value) {
    if (demand != Demand::off && value == 0) {
      throw std::invalid_argument(fmt::format("SandboxPolicy::{} must be more than zero where it is demanded", option));
    }
  };
  require_value(policy.memory_limit, "memory", policy.memory);
  require_value(policy.cpu_limit, "cpu_seconds", policy.cpu_seconds);
  require_value(policy.open_files_limit, "open_files", policy.open_files);
  for (const std::string& path : policy.readable_paths) check_path("readable_paths", path);
  for (const std::string& path : policy.writable_paths) check_path("writable_paths", path);
  if (policy.file_access == Demand::off && !(policy.readable_paths.empty() && policy.writable_paths.empty())) {
    throw std::invalid_argument(
        "SandboxPolicy: readable_paths and writable_paths are exceptions from file_access, which is off");
  }
  if (policy.cgroup != Demand::off) check_path("cgroup_path", policy.cgroup_path);
  if (policy.drop_user != Demand::off && (policy.uid == 0 || policy.gid == 0)) {
    throw std::invalid_argument("SandboxPolicy: drop_user with uid or gid 0 drops nothing");
  }
}

void write_or_throw(const std::string& path, const std::string& text) {
  if (!write_file(path.c_str(), text)) throw std::system_error(errno, std::system_category(), path);
}

// No program that it starts gives it one. Refused to who has none, since he could not get one either.
void drop_capabilities_of_programs() {
  for (unsigned long capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  }
}

void drop_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  drop_capabilities_of_programs();
  if (::syscall(SYS_capset, &header, &none) != 0) throw_errno("cannot drop capabilities");
}

void become(uid_t uid, gid_t gid) {
  if (::geteuid() != 0) throw std::runtime_error("the program does not run as root");
  drop_capabilities_of_programs();  // whoever is root no longer may not
  if (::setgroups(0, nullptr) != 0) throw_errno("cannot leave its groups");
  if (::setresgid(gid, gid, gid) != 0) throw_errno("cannot change its group");
  if (::setresuid(uid, uid, uid) != 0) throw_errno("cannot change its user");
}

void enter_user_namespace() {
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  // Whoever has changed its user is not dumpable any more, and then its files in /proc are root's.
  ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
  if (::unshare(CLONE_NEWUSER) != 0) throw_errno("cannot have a user namespace");
  if (!map_ids_to_themselves(uid, gid)) throw_errno("cannot have its ids in a user namespace");
}

}  // namespace

struct Sandbox::Header {
  std::array<Demand, kSandboxItems> demands{};
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t memory = 0;
  std::uint64_t cpu_seconds = 0;
  std::uint64_t file_size = 0;
  std::uint64_t open_files = 0;
  std::uint64_t processes = 0;
  std::uint64_t cgroup_memory = 0;
  std::uint64_t cgroup_processes = 0;
  // What follows: the filter's instructions, then paths, each with a letter before it and a zero byte behind.
  std::uint64_t filter_bytes = 0;
  std::uint64_t path_bytes = 0;
};

namespace {

enum class PathUse : char { read = 'r', write = 'w', cgroup = 'c' };

void add_path(std::string& paths, PathUse use, const std::string& path) {
  paths += static_cast<char>(use);
  paths += path;
  paths += '\0';
}

template <class Visit>
void for_each_path(std::span<const std::byte> bytes, Visit visit) {
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  while (!rest.empty()) {
    const std::size_t end = rest.find('\0');
    visit(static_cast<PathUse>(rest.front()), rest.data() + 1);
    rest.remove_prefix(end + 1);
  }
}

}  // namespace

std::vector<std::byte> Sandbox::compiled(const SandboxPolicy& policy) {
  check(policy);
  Header header;
  for (std::size_t i = 0; i < kSandboxItems; ++i) header.demands[i] = demand_of(policy, static_cast<Item>(i));
  header.uid = policy.uid;
  header.gid = policy.gid;
  header.memory = policy.memory;
  header.cpu_seconds = policy.cpu_seconds;
  header.file_size = policy.file_size;
  header.open_files = policy.open_files;
  header.processes = policy.processes;
  header.cgroup_memory = policy.cgroup_memory;
  header.cgroup_processes = policy.cgroup_processes;
  std::vector<sock_filter> filter;
  // Also where it is off, a name that means nothing is told.
  if (policy.system_calls != Demand::off || !policy.also_allowed.empty()) {
    filter = make_system_call_filter(policy.allowed, policy.also_allowed);
  }
  std::string paths;
  for (const std::string& path : policy.readable_paths) add_path(paths, PathUse::read, path);
  for (const std::string& path : policy.writable_paths) add_path(paths, PathUse::write, path);
  if (policy.cgroup != Demand::off) add_path(paths, PathUse::cgroup, policy.cgroup_path);
  if (policy.system_calls == Demand::off) filter.clear();
  header.filter_bytes = filter.size() * sizeof(sock_filter);
  header.path_bytes = paths.size();

  std::vector<std::byte> bytes(sizeof(header) + header.filter_bytes + paths.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::byte* const after = bytes.data() + sizeof(header);
  if (!filter.empty()) std::memcpy(after, filter.data(), header.filter_bytes);
  std::memcpy(after + header.filter_bytes, paths.data(), paths.size());
  return bytes;
}

std::vector<std::byte> Sandbox::as_tried(std::vector<std::byte> compiled, const SandboxOutcomes& outcomes) {
  Header asked = Sandbox(compiled).header();
  for (std::size_t i = 0; i < kSandboxItems; ++i) {
    if (outcomes[i].state == State::in_force) asked.demands[i] = Demand::require;
  }
  std::memcpy(compiled.data(), &asked, sizeof(asked));
  return compiled;
}

Sandbox::Sandbox(std::span<const std::byte> compiled) : bytes_(compiled) {}

Sandbox::Header Sandbox::header() const {
  static_assert(std::is_trivially_copyable_v<Header>);
  Header header;
  if (bytes_.size() >= sizeof(header)) std::memcpy(&header, bytes_.data(), sizeof(header));
  return header;
}

// Runs what puts the item in force, and takes note of how that ended.
template <class Enforce>
void Sandbox::put_in_force(SandboxItem item, SandboxOutcomes& outcomes, Enforce enforce) const {
  const Demand demand = header().demands[index_of(item)];
  if (demand == Demand::off) return;
  SandboxOutcome& outcome = outcomes[index_of(item)];
  try {
    outcome.set_detail(enforce());
    outcome.state = State::in_force;
  } catch (const std::runtime_error& error) {
    outcome.state = State::unavailable;
    outcome.set_detail(error.what());
    if (demand != Demand::require) return;
    throw std::runtime_error(
        fmt::format("the sandbox requires {}, which cannot be had: {}", name_of(item), error.what()));
  }
}

void Sandbox::limit(SandboxItem item, SandboxOutcomes& outcomes, int resource, unsigned long long most) const {
  put_in_force(item, outcomes, [&] {
    const rlimit limit{most, most};
    // glibc in C++ takes an enumeration.
    if (::setrlimit(static_cast<decltype(RLIMIT_AS)>(resource), &limit) != 0) throw_errno("cannot set the limit");
    return std::to_string(most);
  });
}

void Sandbox::enter_namespace(SandboxItem item, SandboxOutcomes& outcomes, int flag) const {
  put_in_force(item, outcomes, [&] {
    if (::unshare(flag) != 0) throw_errno("cannot have such a namespace");
    // What is mounted there later is nobody else's business, and the other way round.
    if (flag == CLONE_NEWNS && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      throw_errno("cannot make its mounts its own");
    }
    return "one for all workers of the executor";
  });
}

void Sandbox::enter_shared(SandboxOutcomes& outcomes, bool has_pid_namespace) const {
  if (bytes_.empty()) return;
  const Header asked = header();
  const pid_t parent = ::getppid();
  outcomes[index_of(Item::descriptors)].state = State::in_force;
  outcomes[index_of(Item::descriptors)].set_detail("standard streams and the executor's own");
  put_in_force(Item::cgroup, outcomes, [&] {
    std::string path;
    for_each_path(bytes_.subspan(sizeof(Header) + asked.filter_bytes, asked.path_bytes),
                  [&](PathUse use, const char* name) {
                    if (use == PathUse::cgroup) path = name;
                  });
    if (asked.cgroup_memory > 0) {
      write_or_throw(path + "/memory.max", std::to_string(asked.cgroup_memory));
      // With swap it would not be a limit, but a slow machine. A kernel without swap has no such file.
      const std::string swap = path + "/memory.swap.max";
      if (!write_file(swap.c_str(), "0") && errno != ENOENT) {
        throw std::system_error(errno, std::system_category(), swap);
      }
    }
    if (asked.cgroup_processes > 0) write_or_throw(path + "/pids.max", std::to_string(asked.cgroup_processes));
    write_or_throw(path + "/cgroup.procs", "0");  // who writes
    return path;
  });
  put_in_force(Item::pid_namespace, outcomes, [&] {
    if (!has_pid_namespace) throw std::runtime_error("this system gives the fork server none");
    return "the fork server's";
  });
  const auto enter_other_namespaces = [&] {
    enter_namespace(Item::network_namespace, outcomes, CLONE_NEWNET);
    enter_namespace(Item::ipc_namespace, outcomes, CLONE_NEWIPC);
    enter_namespace(Item::mount_namespace, outcomes, CLONE_NEWNS);
  };
  const auto drop_user = [&] {
    put_in_force(Item::drop_user, outcomes, [&] {
      become(asked.uid, asked.gid);
      return fmt::format("user {}, group {}", asked.uid, asked.gid);
    });
  };
  // In a user namespace nobody can become a user that it does not know; outside of one only root may have the others.
  if (asked.demands[index_of(Item::user_namespace)] != Demand::off) {
    drop_user();
    put_in_force(Item::user_namespace, outcomes, [] {
      enter_user_namespace();
      return "one for all workers of the executor";
    });
    enter_other_namespaces();
  } else {
    enter_other_namespaces();
    drop_user();
  }
  // Who changes its user is forgotten by its parent's death, prctl(2), and its files in /proc become root's, which
  // keeps a worker from writing its oom_score_adj.
  die_with_parent(parent);
  ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

void Sandbox::enter_landlock(SandboxOutcomes& outcomes) const {
  const int version = landlock_version();
  Landlock::Denied denied;
  const auto decide = [&](Item item, int since, bool& deny) {
    put_in_force(item, outcomes, [&] {
      if (version == 0) throw std::runtime_error("this kernel has no Landlock, or it is switched off");
      if (version < since) {
        throw std::runtime_error(fmt::format("this kernel has Landlock {}, and it takes {}", version, since));
      }
      deny = true;
      return fmt::format("Landlock {}", version);
    });
  };
  decide(Item::file_access, kLandlockFiles, denied.files);
  decide(Item::network_access, kLandlockTcp, denied.tcp);
  decide(Item::signal_scope, kLandlockScopes, denied.signals);
  decide(Item::abstract_socket_scope, kLandlockScopes, denied.abstract_sockets);
  if (!denied.files && !denied.tcp && !denied.signals && !denied.abstract_sockets) return;
  std::string failure;
  try {
    Landlock landlock(denied);
    const Header asked = header();
    for_each_path(bytes_.subspan(sizeof(Header) + asked.filter_bytes, asked.path_bytes),
                  [&](PathUse use, const char* path) {
                    if (use != PathUse::cgroup) landlock.allow(path, use == PathUse::write);
                  });
    landlock.put_in_force();
    return;
  } catch (const std::system_error& error) {
    failure = error.what();
  }
  // One set for all of them: without it there is none.
  for (const Item item : {Item::file_access, Item::network_access, Item::signal_scope, Item::abstract_socket_scope}) {
    if (outcomes[index_of(item)].state != State::in_force) continue;
    put_in_force(item, outcomes, [&]() -> std::string { throw std::runtime_error(failure); });
  }
}

void Sandbox::enter(SandboxOutcomes& outcomes) const {
  if (bytes_.empty()) return;
  const Header asked = header();
  put_in_force(Item::oom_score, outcomes, [] {
    write_or_throw("/proc/self/oom_score_adj", "1000");
    return "1000";
  });
  put_in_force(Item::memory_limit, outcomes, [&] {
    const std::uint64_t used = memory_use().mapped;
    if (used == 0) throw std::runtime_error("cannot read the size of its address space");
    const std::uint64_t most = used + std::min(asked.memory, std::numeric_limits<std::uint64_t>::max() - used);
    const rlimit limit{most, most};
    if (::setrlimit(RLIMIT_AS, &limit) != 0) throw_errno("cannot set the limit");
    return fmt::format("{} bytes of address space", most);
  });
  limit(Item::cpu_limit, outcomes, RLIMIT_CPU, asked.cpu_seconds);
  limit(Item::file_size_limit, outcomes, RLIMIT_FSIZE, asked.file_size);
  // Whoever prints where standard output is a file is to see an error, and not to die of it.
  if (asked.demands[index_of(Item::file_size_limit)] != Demand::off) ::signal(SIGXFSZ, SIG_IGN);
  if (::getuid() == 0) {
    put_in_force(Item::process_limit, outcomes,
                 []() -> std::string { throw std::runtime_error("the kernel does not hold root to it"); });
  } else {
    // The host has the same limit, and is to start threads whatever workers do.
    rlimit host{};
    ::getrlimit(RLIMIT_NPROC, &host);
    limit(Item::process_limit, outcomes, RLIMIT_NPROC, std::min<std::uint64_t>(asked.processes, host.rlim_cur / 2));
  }
  put_in_force(Item::core_limit, outcomes, [] {
    // One byte is less than any core; at 0 the kernel still starts the program that core_pattern names (fs/coredump.c).
    rlimit limit{};
    ::getrlimit(RLIMIT_CORE, &limit);
    limit.rlim_cur = limit.rlim_max = std::min<rlim_t>(limit.rlim_max, 1);
    if (::setrlimit(RLIMIT_CORE, &limit) != 0) throw_errno("cannot set the limit");
    // Then nobody can raise it, and so be it.
    return limit.rlim_max == 0 ? "no core file, but the program of core_pattern" : "no core";
  });
  put_in_force(Item::non_dumpable, outcomes, [] {
    if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) throw_errno("cannot be made non-dumpable");
    return "";
  });
  put_in_force(Item::no_new_privileges, outcomes, [] {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) throw_errno("cannot give up new privileges");
    return "";
  });
  enter_landlock(outcomes);
  // Last: opening the paths above takes descriptors.
  limit(Item::open_files_limit, outcomes, RLIMIT_NOFILE, asked.open_files);
}

void Sandbox::filter_system_calls(SandboxOutcomes& outcomes) const {
  if (bytes_.empty()) return;
  const Header asked = header();
  put_in_force(Item::system_calls, outcomes, [&] {
    std::vector<sock_filter> filter(asked.filter_bytes / sizeof(sock_filter));
    if (!filter.empty()) std::memcpy(filter.data(), bytes_.data() + sizeof(Header), asked.filter_bytes);
    set_own_process(filter, ::getpid());
    // What root may, or who made a user namespace, in it. Without no_new_privileges only they may install a filter.
    if (::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1) drop_capabilities();
    const std::string size = fmt::format("{} instructions", filter.size());
    if (const int error = install_system_call_filter(filter); error != 0) {
      throw std::system_error(error, std::system_category(), "cannot install the filter");
    }
    return size;
  });
}

SandboxReport Sandbox::report(const SandboxPolicy& policy, const SandboxOutcomes& outcomes) {
  SandboxReport report;
  report.profile = policy.profile;
  for (std::size_t i = 0; i < kSandboxItems; ++i) {
    SandboxReport::Entry entry;
    entry.item = static_cast<Item>(i);
    entry.demand = demand_of(policy, entry.item);
    // A process told it: what is not a state is none.
    entry.state = outcomes[i].state <= State::unavailable ? outcomes[i].state : State::unavailable;
    entry.detail.assign(outcomes[i].detail, ::strnlen(outcomes[i].detail, sizeof(outcomes[i].detail)));
    replace_control_characters(entry.detail);
    report.entries.push_back(std::move(entry));
  }
  return report;
}

}  // namespace bulkhead::process
