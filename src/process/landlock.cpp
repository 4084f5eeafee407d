// SPDX-License-Identifier: BSL-1.0
#include "landlock.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <array>
#include <cerrno>

namespace bulkhead::process {
namespace {

// The kernel's ABI, linux/landlock.h: the headers of Debian 12 know the first version only.
constexpr long kCreateRuleset = 444;  // the same numbers on all machines
constexpr long kAddRule = 445;
constexpr long kRestrictSelf = 446;
constexpr unsigned kCreateRulesetVersion = 1U << 0;
constexpr int kRulePathBeneath = 1;

struct Ruleset {
  std::uint64_t handled_access_fs = 0;
  std::uint64_t handled_access_net = 0;
  std::uint64_t scoped = 0;
};

struct [[gnu::packed]] PathBeneath {
  std::uint64_t allowed_access = 0;
  std::int32_t parent_fd = -1;
};

constexpr std::uint64_t kExecute = 1ULL << 0;
constexpr std::uint64_t kWriteFile = 1ULL << 1;
constexpr std::uint64_t kReadFile = 1ULL << 2;
constexpr std::uint64_t kReadDirectory = 1ULL << 3;
constexpr std::uint64_t kTruncate = 1ULL << 14;
constexpr std::uint64_t kIoctlDevice = 1ULL << 15;
// What makes sense for a file that is no directory; the kernel refuses the others for one.
constexpr std::uint64_t kOfFiles = kExecute | kWriteFile | kReadFile | kTruncate | kIoctlDevice;
constexpr std::uint64_t kBindTcp = 1ULL << 0;
constexpr std::uint64_t kConnectTcp = 1ULL << 1;
constexpr std::uint64_t kAbstractSockets = 1ULL << 0;
constexpr std::uint64_t kSignals = 1ULL << 1;

// All rights over files that a version knows: each has the first ones only, landlock(7).
std::uint64_t all_of_files(int version) noexcept {
  constexpr std::array kRights{0, 13, 14, 15, 15, 16};  // by version
  const auto known = static_cast<std::size_t>(version);
  return (1ULL << (known < kRights.size() ? kRights[known] : kRights.back())) - 1;
}

std::size_t size_of_ruleset(int version) noexcept {
  if (version >= kLandlockScopes) return sizeof(Ruleset);
  return version >= kLandlockTcp ? 2 * sizeof(std::uint64_t) : sizeof(std::uint64_t);
}

}  // namespace

int landlock_version() noexcept {
  const long version = ::syscall(kCreateRuleset, nullptr, 0, kCreateRulesetVersion);
  return version > 0 ? static_cast<int>(version) : 0;
}

Landlock::Landlock(Denied denied) {
  const int version = landlock_version();
  Ruleset ruleset;
  if (denied.files) ruleset.handled_access_fs = all_of_files(version);
  if (denied.tcp) ruleset.handled_access_net = kBindTcp | kConnectTcp;
  if (denied.signals) ruleset.scoped |= kSignals;
  if (denied.abstract_sockets) ruleset.scoped |= kAbstractSockets;
  rules_ = FileDescriptor(static_cast<int>(::syscall(kCreateRuleset, &ruleset, size_of_ruleset(version), 0)));
  if (!rules_) throw_errno("cannot make a Landlock ruleset");
}

void Landlock::allow(const char* path, bool writable) {
  const FileDescriptor file(::open(path, O_PATH | O_CLOEXEC));
  struct stat info {};
  if (!file || ::fstat(file.get(), &info) != 0) throw_errno(path);
  PathBeneath rule;
  rule.allowed_access = writable ? all_of_files(landlock_version()) & ~kExecute : kReadFile | kReadDirectory;
  if (!S_ISDIR(info.st_mode)) rule.allowed_access &= kOfFiles;
  rule.parent_fd = file.get();
  if (::syscall(kAddRule, rules_.get(), kRulePathBeneath, &rule, 0) != 0) throw_errno(path);
}

void Landlock::put_in_force() {
  if (::syscall(kRestrictSelf, rules_.get(), 0) != 0) throw_errno("cannot put Landlock in force");
  rules_.reset();
}

}  // namespace bulkhead::process
