// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/sandbox.hpp>

#include <linux/filter.h>
#include <sys/types.h>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bulkhead::process {

/// The filter of system calls for a policy, as the kernel takes it. What it forbids raises SIGSYS, which ends the
/// worker; what it only refuses fails with an errno. Throws `std::invalid_argument` for a name in `also_allowed` that
/// is no system call's. Empty where the machine is of a kind that the filter does not know.
std::vector<sock_filter> make_system_call_filter(SystemCalls allowed, std::span<const std::string> also_allowed);

/// A filter is made before there is the process that it is for: this writes that one's id into it, as getpid() tells it
/// there. Without, the process can send no signal to itself, which raise() and abort() do. Once for a copy of a filter.
void set_own_process(std::span<sock_filter> filter, pid_t self) noexcept;

/// Puts the filter in force for this process for good; all its threads, also those that it has already. It needs
/// no_new_privs, or CAP_SYS_ADMIN. 0, or the errno: EBUSY if a thread has a filter of its own, ENOTSUP if this one is
/// empty.
int install_system_call_filter(std::span<const sock_filter> filter) noexcept;

/// This machine's number of the system call with this name; empty if it has none.
std::optional<long> system_call_number(std::string_view name);

/// The name of a system call of this machine; "system call 999" if the number is not known.
std::string system_call_name(long number);

}  // namespace bulkhead::process
