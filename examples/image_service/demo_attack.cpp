// SPDX-License-Identifier: BSL-1.0
#include "demo_attack.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>

namespace image_service {
namespace {

constexpr std::string_view kMagic = "BLKX";
constexpr std::size_t kSize = 8;

int marks_left = 0;  // in this worker

// Closes what an attempt has opened: where nothing keeps it from succeeding, its worker goes on.
class Opened {
 public:
  explicit Opened(int descriptor) : descriptor_(descriptor) {}
  ~Opened() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  int get() const noexcept { return descriptor_; }
  bool failed() const noexcept { return descriptor_ < 0; }

 private:
  int descriptor_;
};

std::string failure() { return std::generic_category().message(errno); }

// How much it got, and never what: the answer goes to whoever sent the picture.
std::string read_passwords() {
  const Opened file(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
  if (file.failed()) return failure();
  std::array<char, 4096> buffer{};
  const ssize_t size = read(file.get(), buffer.data(), buffer.size());
  return size < 0 ? failure() : fmt::format("done, {} bytes", size);
}

// Without a name, so that it is gone with its descriptor.
std::string write_file() {
  const Opened file(open("/tmp", O_TMPFILE | O_WRONLY | O_CLOEXEC, S_IRUSR | S_IWUSR));
  return file.failed() || write(file.get(), "x", 1) != 1 ? failure() : "done";
}

std::string listen_for_orders() {
  const Opened socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.failed()) return failure();
  sockaddr_in address{};  // any free port
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return failure();
  return listen(socket.get(), 1) != 0 ? failure() : "done";
}

}  // namespace

bool is_attack(BytesView image) noexcept { return image.size() == kSize && begins_with(image, kMagic); }

void run_attack(BytesView image) {
  switch (static_cast<Attack>(std::to_integer<std::uint32_t>(image[kMagic.size()]))) {
    case Attack::escape:
      throw DecodeError(
          fmt::format("The decoder was taken over. It tried to read /etc/passwd: {}. To write a file: {}. "
                      "To listen on a TCP port: {}.",
                      read_passwords(), write_file(), listen_for_orders()));
    case Attack::execute: {
      // Without a sandbox the worker becomes this program, which ends at once: a crash, for its executor.
      std::array<char, 5> name{"true"};
      std::array<char*, 2> arguments{name.data(), nullptr};
      std::array<char*, 1> environment{nullptr};
      execve("/bin/true", arguments.data(), environment.data());
      throw DecodeError(fmt::format("The decoder was taken over. It tried to start a program: {}.", failure()));
    }
    case Attack::linger:
      ++marks_left;
      throw DecodeError(
          marks_left == 1
              ? std::string("The decoder was taken over. It left a mark in its worker, and found nobody's there.")
              : fmt::format("The decoder was taken over. It left a mark in its worker, and found {} there.",
                            marks_left - 1));
  }
  throw DecodeError("BLKX: there is no such attack");
}

Bytes attack_sample(Attack attack) {
  Bytes bytes;
  for (const char c : kMagic) bytes.push_back(static_cast<std::byte>(c));
  for (int shift = 0; shift < 32; shift += 8) {
    bytes.push_back(static_cast<std::byte>(static_cast<std::uint32_t>(attack) >> shift & 0xFF));
  }
  return bytes;
}

}  // namespace image_service
