// SPDX-License-Identifier: BSL-1.0
#include "thumbnail.hpp"

#include <algorithm>
#include <bulkhead/bulkhead.hpp>

#include "demo_attack.hpp"
#include "demo_format.hpp"
#include "jpeg.hpp"
#include "png.hpp"
#include "scale.hpp"

// With this line a `DecodeError` that is thrown in a worker is a `DecodeError` in the server, too.
BULKHEAD_REGISTER_EXCEPTION(image_service::DecodeError)

namespace image_service {
namespace {

PictureInfo inspect(BytesView image) {
  if (is_jpeg(image)) return inspect_jpeg(image);
  if (is_png(image)) return inspect_png(image);
  if (is_blocks(image)) return inspect_blocks(image);
  throw DecodeError("this is neither a JPEG nor a PNG picture");
}

Pixels decode(BytesView image, int wanted_width) {
  if (is_jpeg(image)) return decode_jpeg(image, wanted_width);
  if (is_png(image)) return decode_png(image);
  if (is_blocks(image)) return decode_blocks(image);
  if (is_attack(image)) run_attack(image);
  throw DecodeError("this is neither a JPEG nor a PNG picture");
}

double transparent_share(const Pixels& pixels) {
  std::size_t count = 0;
  for (std::size_t i = 3; i < pixels.rgba.size(); i += 4) count += pixels.rgba[i] != 255 ? 1 : 0;
  return 4.0 * static_cast<double>(count) / static_cast<double>(pixels.rgba.size());
}

// FNV-1a of the size and the beginning, where compressed pictures differ soon. Not for security: two pictures that were
// made to collide hide each other on the page, and no more.
std::uint64_t fingerprint_of(BytesView bytes) {
  std::uint64_t hash = 0xCBF2'9CE4'8422'2325 ^ bytes.size();
  for (const std::byte b : bytes.first(std::min<std::size_t>(bytes.size(), 65'536)))
    hash = (hash ^ std::to_integer<std::uint64_t>(b)) * 0x0000'0100'0000'01B3;
  return hash;
}

}  // namespace

Thumbnail make_thumbnail(BytesView image, int width) {
  const Pixels pixels = scale_down(decode(image, width), width);
  Thumbnail result;
  result.width = pixels.width;
  result.height = pixels.height;
  result.format = transparent_share(pixels) == 0 ? ThumbnailFormat::jpeg : ThumbnailFormat::png;
  result.image = result.format == ThumbnailFormat::jpeg ? encode_jpeg(pixels) : encode_png(pixels);
  return result;
}

FileInfo inspect_picture(BytesView image) {
  FileInfo info{inspect(image), fingerprint_of(image)};
  // Many an alpha channel says "opaque" almost everywhere: the page should not take such a picture for a logo.
  if (info.picture.has_alpha) info.picture.has_alpha = transparent_share(decode(image, info.picture.width)) > 0.01;
  return info;
}

}  // namespace image_service
