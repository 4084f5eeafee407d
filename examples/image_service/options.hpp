// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/sandbox.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

namespace image_service {

/// What the command line says.
struct Options {
  std::optional<std::filesystem::path> folder;
  std::string address = "127.0.0.1";
  std::uint16_t port = 8080;
  /// 0: as many as there are usable processors.
  unsigned workers = 0;
  std::size_t max_pending = 100;
  std::size_t body_limit = std::size_t{32} << 20;
  bulkhead::SandboxPolicy sandbox = bulkhead::SandboxPolicy::untrusted();
  /// The longest time that one picture may take.
  std::chrono::seconds task_timeout{10};
  bool help = false;
};

/// The command line makes no sense.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

Options parse_options(std::span<char* const> arguments);

/// The text of `--help`.
std::string usage();

}  // namespace image_service
