// SPDX-License-Identifier: BSL-1.0
#include "demo_format.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

namespace image_service {
namespace {

constexpr std::string_view kMagic = "BLK1";
constexpr std::size_t kHeaderSize = 16;
constexpr std::size_t kBlockSize = 20;

std::uint32_t number_at(BytesView bytes, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = value << 8 | std::to_integer<std::uint32_t>(bytes[offset + i]);
  return value;
}

void append(Bytes& bytes, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<std::byte>(value >> shift & 0xFF));
}

Block block_at(BytesView bytes, std::size_t offset) {
  const auto channel = [&](std::size_t i) { return std::to_integer<std::uint8_t>(bytes[offset + 16 + i]); };
  Block block;
  block.left = number_at(bytes, offset);
  block.top = number_at(bytes, offset + 4);
  block.width = number_at(bytes, offset + 8);
  block.height = number_at(bytes, offset + 12);
  block.red = channel(0);
  block.green = channel(1);
  block.blue = channel(2);
  block.alpha = channel(3);
  return block;
}

struct Header {
  std::uint32_t width;
  std::uint32_t height;
  std::uint32_t count;
};

Header read_header(BytesView image) {
  if (image.size() < kHeaderSize) throw DecodeError("BLK1: the header is cut short");
  const Header header{number_at(image, 4), number_at(image, 8), number_at(image, 12)};
  check_size(header.width, header.height);
  if (header.count > (image.size() - kHeaderSize) / kBlockSize) throw DecodeError("BLK1: blocks are missing");
  return header;
}

}  // namespace

bool is_blocks(BytesView image) noexcept { return begins_with(image, kMagic); }

PictureInfo inspect_blocks(BytesView image) {
  const Header header = read_header(image);
  return PictureInfo{static_cast<int>(header.width), static_cast<int>(header.height), true};
}

Pixels decode_blocks(BytesView image) {
  const Header header = read_header(image);
  Pixels pixels;
  pixels.width = static_cast<int>(header.width);
  pixels.height = static_cast<int>(header.height);
  pixels.rgba.resize(std::size_t{header.width} * header.height * 4);

  for (std::size_t i = 0; i < header.count; ++i) {
    const Block block = block_at(image, kHeaderSize + i * kBlockSize);

    // THE BUG, left in on purpose, as it is found in real decoders: the sums wrap around at 2^32. A block whose top is
    // 4294967295 and whose height is 1 ends at row 0 by this reckoning, passes, and is then painted far out of bounds.
    // Right would be: `block.top > header.height || block.height > header.height - block.top`, and so for the columns.
    const std::uint32_t right = block.left + block.width;
    const std::uint32_t bottom = block.top + block.height;
    if (right > header.width || bottom > header.height) throw DecodeError("BLK1: a block is not on the picture");

    const std::array<std::uint8_t, 4> colour{block.red, block.green, block.blue, block.alpha};
    for (std::size_t y = 0; y < block.height; ++y) {
      std::uint8_t* pixel = pixels.rgba.data() + ((block.top + y) * header.width + block.left) * 4;
      for (std::uint32_t x = 0; x < block.width; ++x, pixel += 4) std::copy(colour.begin(), colour.end(), pixel);
    }
  }
  return pixels;
}

Bytes encode_blocks(std::uint32_t width, std::uint32_t height, std::span<const Block> blocks) {
  Bytes bytes;
  bytes.reserve(kHeaderSize + blocks.size() * kBlockSize);
  for (const char c : kMagic) bytes.push_back(static_cast<std::byte>(c));
  for (const std::uint32_t number : {width, height, static_cast<std::uint32_t>(blocks.size())}) append(bytes, number);
  for (const Block& block : blocks) {
    for (const std::uint32_t number : {block.left, block.top, block.width, block.height}) append(bytes, number);
    for (const std::uint8_t channel : {block.red, block.green, block.blue, block.alpha}) {
      bytes.push_back(static_cast<std::byte>(channel));
    }
  }
  return bytes;
}

Bytes valid_sample() {
  // A hull, seen from the side: sky, sea, and a ship of four compartments, one of them flooded.
  const std::vector<Block> blocks{
      {0, 0, 640, 400, 0xCF, 0xE8, 0xF3},     {0, 250, 640, 150, 0x1C, 0x5D, 0x7A},
      {90, 170, 460, 130, 0x22, 0x33, 0x44},  {110, 300, 420, 20, 0x22, 0x33, 0x44},
      {104, 184, 100, 112, 0xF2, 0xF5, 0xF7}, {212, 184, 100, 112, 0xF2, 0xF5, 0xF7},
      {320, 184, 100, 112, 0xF2, 0xF5, 0xF7}, {428, 184, 108, 112, 0xF2, 0xF5, 0xF7},
      {320, 214, 100, 82, 0x2B, 0x8C, 0xBE},  {250, 110, 130, 60, 0xE8, 0x59, 0x0C},
  };
  return encode_blocks(640, 400, blocks);
}

Bytes hostile_sample() {
  // Row 4294967295 of a picture 16384 wide begins 2^48 - 65536 bytes behind its first pixel. User space ends at 2^47 on
  // x86-64 and at 2^48 on AArch64, so nothing can be mapped there.
  Block block;
  block.top = 0xFFFF'FFFF;
  block.width = 16'384;
  block.height = 1;
  return encode_blocks(16'384, 16, std::span(&block, 1));
}

}  // namespace image_service
