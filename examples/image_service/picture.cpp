// SPDX-License-Identifier: BSL-1.0
#include "picture.hpp"

#include <fmt/format.h>

#include <cstring>

namespace image_service {

void check_size(std::uint64_t width, std::uint64_t height) {
  if (width == 0 || height == 0) throw DecodeError("the picture is empty");
  // The sides first: their product cannot overflow then.
  if (width > kMaxSide || height > kMaxSide || width * height > kMaxPixels) {
    throw DecodeError(fmt::format("{} x {} pixels are too many: at most {} a side and {} million in all", width, height,
                                  kMaxSide, kMaxPixels / 1'000'000));
  }
}

bool begins_with(BytesView bytes, std::string_view magic) noexcept {
  return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

}  // namespace image_service
