// SPDX-License-Identifier: BSL-1.0
#include "options.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <string_view>

namespace image_service {
namespace {

std::uint64_t number(std::string_view option, std::string_view text, std::uint64_t least, std::uint64_t most) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    throw UsageError(fmt::format("{} must be a number from {} to {}, not \"{}\"", option, least, most, text));
  }
  return value;
}

bulkhead::SandboxPolicy sandbox(std::string_view profile) {
  using bulkhead::SandboxPolicy;
  for (const SandboxPolicy& policy :
       {SandboxPolicy::trusted(), SandboxPolicy::contained(), SandboxPolicy::untrusted()}) {
    if (policy.profile == profile) return policy;
  }
  throw UsageError(fmt::format("--sandbox must be trusted, contained or untrusted, not \"{}\"", profile));
}

}  // namespace

Options parse_options(std::span<char* const> arguments) {
  Options options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    const std::size_t equals = argument.starts_with("--") ? argument.find('=') : std::string_view::npos;
    const std::string_view name = argument.substr(0, equals);
    if (argument == "--help" || argument == "-h") {
      options.help = true;
      return options;
    }
    if (!name.starts_with("-")) {
      if (options.folder) throw UsageError("only one folder can be shown");
      options.folder = std::filesystem::path(name);
      if (!std::filesystem::is_directory(*options.folder)) throw UsageError(fmt::format("{} is not a folder", name));
      continue;
    }

    const auto value = [&]() -> std::string_view {
      if (equals != std::string_view::npos) return argument.substr(equals + 1);
      if (i + 1 == arguments.size()) throw UsageError(fmt::format("{} needs a value", name));
      return arguments[++i];
    };
    if (name == "--port") {
      options.port = static_cast<std::uint16_t>(number(name, value(), 0, 65'535));
    } else if (name == "--address") {
      options.address = value();
    } else if (name == "--workers") {
      options.workers = static_cast<unsigned>(number(name, value(), 1, 256));
    } else if (name == "--max-pending") {
      options.max_pending = number(name, value(), 1, 100'000);
    } else if (name == "--body-limit") {
      options.body_limit = number(name, value(), 1'024, std::uint64_t{60} << 20);
    } else if (name == "--sandbox") {
      options.sandbox = sandbox(value());
    } else if (name == "--timeout") {
      options.task_timeout = std::chrono::seconds(number(name, value(), 1, 3'600));
    } else {
      throw UsageError(fmt::format("unknown option {}", name));
    }
  }
  return options;
}

std::string usage() {
  return R"(Usage: image_service [OPTION]... [FOLDER]

Shows the JPEG and PNG pictures in FOLDER, and below it, as a gallery. Each picture is decoded and scaled in a worker
process. Without FOLDER it shows the pictures of Debian's packages desktop-base and lxde-common.

  --port NUMBER         port to listen on; 0 takes a free one (default 8080)
  --address ADDRESS     address to listen on (default 127.0.0.1, this machine only)
  --workers NUMBER      worker processes (default: one for each usable processor)
  --max-pending NUMBER  pictures in the pool at once, waiting and running; more get a 503 (default 100)
  --body-limit BYTES    largest picture that can be sent; larger ones get a 413 (default 33554432)
  --sandbox PROFILE     what decoders may reach: trusted, contained or untrusted (default untrusted)
  --timeout SECONDS     longest time that one picture may take; longer gets a 504 (default 10)
  --help                shows this text
)";
}

}  // namespace image_service
