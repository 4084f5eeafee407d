// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/sandbox.hpp>

#include "fault/sandbox/attacks.hpp"

#include <array>
#include <optional>

/// What is to come of each attack, in each profile, for a host of root's and for one of an ordinary user.
namespace bulkhead::test::sandbox {

enum class Expect {
  yes,     ///< It succeeds.
  no,      ///< It is refused with an errno.
  killed,  ///< It ends its worker: PolicyViolationError, with the row's system call.
  here     ///< As a process outside of any sandbox has it on this machine.
};

struct Cell {
  Expect expect = Expect::no;
  /// Where this item is in force it does not succeed.
  std::optional<SandboxItem> unless = std::nullopt;
};

inline constexpr Cell yes{Expect::yes};
inline constexpr Cell no{Expect::no};
inline constexpr Cell killed{Expect::killed};
inline constexpr Cell here{Expect::here};
constexpr Cell unless(SandboxItem item) { return {Expect::yes, item}; }

// In a PID namespace the host has no number. That of an ordinary user's comes with a user namespace, which closes the
// host's /proc to it, too.
inline constexpr Cell unless_pid = unless(SandboxItem::pid_namespace);
// Root looks into anything.
inline constexpr Cell unless_dump = unless(SandboxItem::non_dumpable);
inline constexpr Cell unless_tcp = unless(SandboxItem::network_access);
inline constexpr Cell unless_few = unless(SandboxItem::open_files_limit);

struct Row {
  const char* name;
  Attack attack;
  /// Which one ends the worker where that is expected.
  const char* system_call;
  /// trusted, contained, untrusted; each: root, user.
  std::array<Cell, 6> cells;
};

// clang-format off
inline const std::array kExpected{
    //                                                                               trusted                 contained                untrusted
    //                                                                               root        user        root         user         root    user
    Row{"write host memory",      write_host_memory,          "process_vm_writev", {unless_pid, unless_pid,  killed,      killed,      killed, killed}},
    Row{"read host memory",       read_host_memory,           "",                  {yes,        unless_pid,  no,          no,          no,     no}},
    Row{"steal a descriptor",     steal_descriptor,           "pidfd_getfd",       {unless_pid, unless_pid,  killed,      killed,      killed, killed}},
    Row{"trace the host",         trace_host,                 "ptrace",            {unless_pid, unless_pid,  killed,      killed,      killed, killed}},
    Row{"look for the host",      look_for_host,              "kill",              {unless_pid, unless_pid,  killed,      killed,      killed, killed}},
    Row{"signal the host",        signal_host,                "kill",              {unless_pid, unless_pid,  killed,      killed,      killed, killed}},
    Row{"signal a host's thread", signal_host_thread,         "tgkill",            {unless_pid, unless_pid,  killed,      killed,      killed, killed}},
    Row{"write sibling's memory", write_sibling_memory,       "process_vm_writev", {yes,        unless_dump, killed,      killed,      killed, killed}},
    Row{"read sibling's memory",  read_sibling_memory,        "",                  {yes,        unless_dump, no,          no,          no,     no}},
    Row{"signal a sibling",       signal_sibling,             "kill",              {yes,        yes,         killed,      killed,      killed, killed}},
    Row{"read /etc/passwd",       read_passwords,             "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"create a file",          create_file,                "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"see a file's size",      see_size,                   "",                  {yes,        yes,         yes,         yes,         no,     no}},
    Row{"read what it may read",  read_file_that_may_be_read, "",                  {yes,        yes,         yes,         yes,         no,     no}},
    Row{"change a mode",          change_mode,                "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"... by descriptor",      change_mode_by_descriptor,  "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"change an owner",        change_owner,               "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"... by a descriptor",    change_owner_by_descriptor, "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"change times",           change_times,               "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"set an attribute",       set_attribute_by_descriptor, "",                 {here,       here,        no,          no,          no,     no}},
    Row{"set a file's flags",     set_flags_by_descriptor,    "",                  {here,       here,        no,          no,          no,     no}},
    Row{"lease a file",           lease_file,                 "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"inet socket",            open_inet_socket,           "",                  {yes,        yes,         yes,         yes,         no,     no}},
    Row{"netlink socket",         open_netlink_socket,        "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"connect by TCP",         connect_by_tcp,             "",                  {yes,        yes,         unless_tcp,  unless_tcp,  no,     no}},
    Row{"Unix socket of a path",  connect_to_socket_of_a_path, "",                 {yes,        yes,         no,          no,          no,     no}},
    Row{"abstract Unix socket",   connect_to_abstract_socket, "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"send by UDP",            send_by_udp,                "",                  {yes,        yes,         yes,         yes,         no,     no}},
    Row{"fork",                   fork_a_child,               "clone",             {yes,        yes,         killed,      killed,      killed, killed}},
    Row{"run a program",          run_a_program,              "execve",            {yes,        yes,         killed,      killed,      killed, killed}},
    Row{"io_uring",               set_up_io_uring,            "io_uring_setup",    {here,       here,        killed,      killed,      killed, killed}},
    Row{"bpf",                    make_bpf_map,               "bpf",               {here,       here,        killed,      killed,      killed, killed}},
    Row{"userfaultfd",            make_userfaultfd,           "userfaultfd",       {here,       here,        killed,      killed,      killed, killed}},
    Row{"perf_event_open",        open_perf_event,            "perf_event_open",   {here,       here,        killed,      killed,      killed, killed}},
    Row{"mount",                  mount_something,            "mount",             {here,       here,        killed,      killed,      killed, killed}},
    Row{"user namespace",         enter_user_namespace,       "unshare",           {here,       here,        killed,      killed,      killed, killed}},
    Row{"reopen request area",    reopen_request_area,        "",                  {no,         no,          no,          no,          no,     no}},
    Row{"unprotect request area", make_request_area_writable, "",                  {no,         no,          no,          no,          no,     no}},
    Row{"map executable memory",  map_executable_memory,      "",                  {yes,        yes,         yes,         yes,         no,     no}},
    Row{"make memory executable", make_memory_executable,     "",                  {yes,        yes,         yes,         yes,         no,     no}},
    Row{"memfd_create",           make_memfd,                 "",                  {yes,        yes,         no,          no,          no,     no}},
    Row{"many descriptors",       open_many_descriptors,      "",                  {yes,        yes,         unless_few,  unless_few,  unless_few, unless_few}},
};
// clang-format on

}  // namespace bulkhead::test::sandbox
