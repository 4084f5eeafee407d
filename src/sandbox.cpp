// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/sandbox.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace bulkhead {

std::string_view name_of(SandboxItem item) noexcept {
  constexpr std::array<std::string_view, kSandboxItems> kNames{"descriptors",
                                                               "cgroup",
                                                               "user_namespace",
                                                               "pid_namespace",
                                                               "network_namespace",
                                                               "ipc_namespace",
                                                               "mount_namespace",
                                                               "memory_limit",
                                                               "cpu_limit",
                                                               "file_size_limit",
                                                               "open_files_limit",
                                                               "process_limit",
                                                               "core_limit",
                                                               "oom_score",
                                                               "drop_user",
                                                               "non_dumpable",
                                                               "no_new_privileges",
                                                               "file_access",
                                                               "network_access",
                                                               "signal_scope",
                                                               "abstract_socket_scope",
                                                               "system_calls"};
  static_assert(static_cast<std::size_t>(SandboxItem::system_calls) + 1 == kNames.size());
  const auto index = static_cast<std::size_t>(item);
  return index < kNames.size() ? kNames[index] : std::string_view("unknown item");
}

SandboxPolicy SandboxPolicy::trusted() { return {}; }

SandboxPolicy SandboxPolicy::contained() {
  SandboxPolicy policy;
  policy.profile = "contained";
  policy.no_new_privileges = Demand::require;
  policy.non_dumpable = Demand::require;
  // Landlock and a filter keep most of the promise: without them there is no such profile. What only newer kernels
  // have the filter makes up for, or a namespace does.
  policy.file_access = Demand::require;
  policy.system_calls = Demand::require;
  policy.network_access = Demand::attempt;
  policy.signal_scope = Demand::attempt;
  policy.abstract_socket_scope = Demand::attempt;
  // Room for what a decoder unpacks; a bomb ends there and not where the machine does.
  policy.memory_limit = Demand::attempt;
  policy.memory = std::uint64_t{4} << 30;
  // A few for libraries that open what they need; a task that is to hold many asks for more.
  policy.open_files_limit = Demand::attempt;
  policy.open_files = 64;
  // Threads, since it makes no processes. They count together with all that the user has, so that a desktop's must fit.
  policy.process_limit = Demand::attempt;
  policy.processes = 4096;
  return policy;
}

SandboxPolicy SandboxPolicy::untrusted() {
  SandboxPolicy policy = contained();
  policy.profile = "untrusted";
  policy.never_reuse_workers = true;
  policy.allowed = SystemCalls::allow_computing;
  policy.file_size_limit = Demand::attempt;
  policy.file_size = 0;
  // A second wall behind the filter; many systems and containers forbid them.
  policy.user_namespace = Demand::attempt;
  policy.network_namespace = Demand::attempt;
  policy.ipc_namespace = Demand::attempt;
  policy.drop_user = Demand::attempt;
  return policy;
}

std::string SandboxReport::to_string() const {
  constexpr std::array<std::string_view, 3> kDemands{"off", "attempt", "require"};
  constexpr std::array<std::string_view, 3> kStates{"off", "in force", "unavailable"};
  std::string text = fmt::format("profile {}\n", profile);
  for (const Entry& one : entries) {
    text +=
        fmt::format("{:<22} {:<8} {:<12} {}\n", name_of(one.item), kDemands.at(static_cast<std::size_t>(one.demand)),
                    kStates.at(static_cast<std::size_t>(one.state)), one.detail);
  }
  return text;
}

}  // namespace bulkhead
