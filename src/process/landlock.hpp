// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"

#include <cstdint>

namespace bulkhead::process {

/// The version of Landlock that the kernel has, landlock(7); 0 if it has none or it is switched off.
int landlock_version() noexcept;

/// From which version on it knows of files at all, of TCP, and of signals and abstract sockets.
inline constexpr int kLandlockFiles = 1;
inline constexpr int kLandlockTcp = 4;
inline constexpr int kLandlockScopes = 6;

/// A set of what a process may not do any more. In force for good, for the calling thread and all that it makes from
/// then on; needs no_new_privs or CAP_SYS_ADMIN.
class Landlock {
 public:
  struct Denied {
    bool files = false;
    bool tcp = false;
    bool signals = false;
    bool abstract_sockets = false;
  };

  /// Throws `std::system_error`.
  explicit Landlock(Denied denied);
  /// The file, or what lies below the directory, may be read, or everything be done with it but to run it.
  /// Throws `std::system_error`.
  void allow(const char* path, bool writable);
  /// Throws `std::system_error`.
  void put_in_force();

 private:
  FileDescriptor rules_;
};

}  // namespace bulkhead::process
