// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/sandbox.hpp>

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace bulkhead::process {

/// How an item of a policy came out, as one process tells another.
struct SandboxOutcome {
  SandboxReport::State state = SandboxReport::State::off;
  char detail[91] = {};  // all items together fit into a Record's text

  void set_detail(std::string_view text) noexcept { detail[text.copy(detail, sizeof(detail) - 1)] = '\0'; }
};
using SandboxOutcomes = std::array<SandboxOutcome, kSandboxItems>;

/// A policy as templates and workers carry it out: made in the host, where what is wrong with it is told, and sent to
/// them as bytes.
class Sandbox {
 public:
  /// Throws `std::invalid_argument` with what is wrong with the policy.
  static std::vector<std::byte> compiled(const SandboxPolicy& policy);

  /// The same, but what a process that tried it could have is required from now on: else what was told of it would not
  /// be true any more.
  static std::vector<std::byte> as_tried(std::vector<std::byte> compiled, const SandboxOutcomes& outcomes);

  /// Views the bytes. None: nothing is asked for.
  explicit Sandbox(std::span<const std::byte> compiled);

  // In this order. Each throws `std::runtime_error` with item and reason if one that is required cannot be had.

  /// What all workers of the executor share: cgroup, user and namespaces. In the template, before preload.
  void enter_shared(SandboxOutcomes& outcomes, bool has_pid_namespace) const;
  /// What each worker has of its own, but for its filter. In the worker, before its initializer.
  void enter(SandboxOutcomes& outcomes) const;
  /// Last of all.
  void filter_system_calls(SandboxOutcomes& outcomes) const;

  static SandboxReport report(const SandboxPolicy& policy, const SandboxOutcomes& outcomes);

 private:
  struct Header;
  Header header() const;
  template <class Enforce>
  void put_in_force(SandboxItem item, SandboxOutcomes& outcomes, Enforce enforce) const;
  void limit(SandboxItem item, SandboxOutcomes& outcomes, int resource, unsigned long long most) const;
  void enter_namespace(SandboxItem item, SandboxOutcomes& outcomes, int flag) const;
  void enter_landlock(SandboxOutcomes& outcomes) const;

  std::span<const std::byte> bytes_;
};

}  // namespace bulkhead::process
