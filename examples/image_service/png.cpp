// SPDX-License-Identifier: BSL-1.0
#include "png.hpp"

#include <png.h>

#include <string>

namespace image_service {
namespace {

// libpng's "simplified" interface: it keeps `longjmp` to itself and knows every bit depth, palette and interlacing.
class Image {
 public:
  Image() { image_.version = PNG_IMAGE_VERSION; }
  ~Image() { png_image_free(&image_); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  png_image* operator->() { return &image_; }
  png_image* get() { return &image_; }
  std::string message() const { return std::string("PNG: ") + image_.message; }

  void read_header(BytesView bytes) {
    if (png_image_begin_read_from_memory(&image_, bytes.data(), bytes.size()) == 0) throw DecodeError(message());
    check_size(image_.width, image_.height);
  }

 private:
  png_image image_{};
};

}  // namespace

bool is_png(BytesView image) noexcept { return begins_with(image, "\x89PNG\r\n\x1A\n"); }

PictureInfo inspect_png(BytesView bytes) {
  Image image;
  image.read_header(bytes);
  const bool has_alpha = (image->format & PNG_FORMAT_FLAG_ALPHA) != 0;
  return PictureInfo{static_cast<int>(image->width), static_cast<int>(image->height), has_alpha};
}

Pixels decode_png(BytesView bytes) {
  Image image;
  image.read_header(bytes);
  image->format = PNG_FORMAT_RGBA;

  Pixels pixels;
  pixels.width = static_cast<int>(image->width);
  pixels.height = static_cast<int>(image->height);
  pixels.rgba.resize(PNG_IMAGE_SIZE(*image.get()));
  if (png_image_finish_read(image.get(), nullptr, pixels.rgba.data(), 0, nullptr) == 0) {
    throw DecodeError(image.message());
  }
  return pixels;
}

Bytes encode_png(const Pixels& pixels) {
  Image image;
  image->width = static_cast<png_uint_32>(pixels.width);
  image->height = static_cast<png_uint_32>(pixels.height);
  image->format = PNG_FORMAT_RGBA;
  image->flags = PNG_IMAGE_FLAG_FAST;

  // The bound instead of the exact size: asking for that would compress twice.
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(*image.get());
  Bytes bytes(size);
  if (png_image_write_to_memory(image.get(), bytes.data(), &size, 0, pixels.rgba.data(), 0, nullptr) == 0) {
    throw std::runtime_error(image.message());
  }
  bytes.resize(size);
  return bytes;
}

}  // namespace image_service
