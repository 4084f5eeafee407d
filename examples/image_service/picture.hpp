// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace image_service {

/// An encoded picture as it lies in a file or in the body of a request.
using Bytes = std::vector<std::byte>;
using BytesView = std::span<const std::byte>;

/// A decoded picture: red, green, blue and alpha with 8 bits each, not premultiplied, row by row.
struct Pixels {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgba;
};

/// What can be said of a picture without decoding it.
struct PictureInfo {
  int width = 0;
  int height = 0;
  /// Whether it can have transparent parts (an alpha channel).
  bool has_alpha = false;
};

/// The bytes are no picture, or a broken one; `what()` has the decoder's words. It is thrown in a worker process and
/// caught in the server: `thumbnail.cpp` registers it, so that it crosses as its own type.
class DecodeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Pictures above these limits are refused before a single pixel is decoded, since a file of some kilobytes can claim
/// any size (a "decompression bomb"). 50 megapixels are 200 MB of memory in a worker, and more than cameras make.
inline constexpr std::uint64_t kMaxSide = 30'000;
inline constexpr std::uint64_t kMaxPixels = 50'000'000;

/// Throws `DecodeError` if a picture of this size is empty or above the limits.
void check_size(std::uint64_t width, std::uint64_t height);

/// Whether `bytes` begin with these characters.
bool begins_with(BytesView bytes, std::string_view magic) noexcept;

}  // namespace image_service
