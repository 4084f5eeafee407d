// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/task_id.hpp>

#include <fmt/format.h>

#include <sys/random.h>
#include <array>
#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace bulkhead {

TaskId TaskId::make() {
  std::array<std::uint64_t, 2> bits{};
  // At most 256 bytes come at once or not at all (getrandom(2)), but for a signal before the first use of the system.
  while (::getrandom(bits.data(), sizeof(bits), 0) != static_cast<ssize_t>(sizeof(bits))) {
    if (errno != EINTR) throw std::system_error(errno, std::system_category(), "cannot draw a random task id");
  }
  return TaskId(bits[0], bits[1]);
}

TaskId TaskId::parse(std::string_view text) {
  std::array<std::uint64_t, 2> bits{};
  const bool uuid = text.size() == 36;
  bool good = uuid || text.size() == 32;
  std::size_t digits = 0;
  for (std::size_t i = 0; good && i < text.size(); ++i) {
    const char c = text[i];
    if (uuid && (i == 8 || i == 13 || i == 18 || i == 23)) {
      good = c == '-';
      continue;
    }
    const int value = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    good = value >= 0;
    if (good) bits[digits / 16] = bits[digits / 16] << 4 | static_cast<std::uint64_t>(value);
    ++digits;
  }
  if (!good) throw std::invalid_argument(fmt::format("a task id has 32 hexadecimal digits; this is none: '{}'", text));
  return TaskId(bits[0], bits[1]);
}

std::string TaskId::to_string() const { return fmt::format("{:016x}{:016x}", high_, low_); }

std::string_view to_string(TaskStatus status) noexcept {
  switch (status) {
    case TaskStatus::queued:
      return "queued";
    case TaskStatus::running:
      return "running";
    case TaskStatus::retrying:
      return "retrying";
    case TaskStatus::succeeded:
      return "succeeded";
    case TaskStatus::failed:
      return "failed";
    case TaskStatus::cancelled:
      return "cancelled";
    case TaskStatus::timed_out:
      return "timed out";
  }
  return "unknown";
}

}  // namespace bulkhead
