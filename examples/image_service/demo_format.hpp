// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>
#include <span>

#include "picture.hpp"

// "BLK1", a picture format made up for this example. Its decoder has a real bug, on purpose; see `decode_blocks`.
//
// All numbers are 32 bits, little-endian. A picture is a header and then `count` blocks, painted one over the other:
//   header   'B' 'L' 'K' '1'   width   height   count
//   block    left   top   width   height   red green blue alpha (8 bits each)

namespace image_service {

struct Block {
  std::uint32_t left = 0;
  std::uint32_t top = 0;
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::uint8_t red = 0;
  std::uint8_t green = 0;
  std::uint8_t blue = 0;
  std::uint8_t alpha = 255;
};

bool is_blocks(BytesView image) noexcept;
PictureInfo inspect_blocks(BytesView image);
Pixels decode_blocks(BytesView image);
Bytes encode_blocks(std::uint32_t width, std::uint32_t height, std::span<const Block> blocks);

/// A harmless picture.
Bytes valid_sample();

/// A picture whose one block is not on it, but passes the decoder's check: decoding it is a write to an address that no
/// process has, and so always SIGSEGV, never a silent corruption.
Bytes hostile_sample();

}  // namespace image_service
