// SPDX-License-Identifier: BSL-1.0
#include "jpeg.hpp"

#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it and does not include it
#include <cstdlib>
#include <cstring>
#include <string>

#include "guarded.hpp"

namespace image_service {
namespace {

constexpr int kQuality = 85;

// libjpeg's error handling: instead of `exit`, its default, an error jumps back into `guarded`.
struct ErrorManager {
  jpeg_error_mgr base;  // the first member, so that a pointer to it is a pointer to the whole
  std::jmp_buf jump;
  std::array<char, JMSG_LENGTH_MAX> message;
};

[[noreturn]] void jump_back(j_common_ptr info) {
  auto* errors = reinterpret_cast<ErrorManager*>(info->err);
  errors->base.format_message(info, errors->message.data());
  std::longjmp(errors->jump, 1);  // NOLINT(cert-err52-cpp)
}

// Warnings (a negative level) tell of damage that libjpeg papers over. A picture that was cut short counts as broken;
// the rest, such as stray bytes between two markers, is common and harmless.
void on_warning(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) jump_back(info);
}

jpeg_error_mgr* install(ErrorManager& errors) {
  jpeg_error_mgr* base = jpeg_std_error(&errors.base);
  base->error_exit = jump_back;
  base->emit_message = on_warning;
  errors.message.front() = '\0';
  return base;
}

// Owns a decompressor between `jpeg_create_decompress` and `jpeg_destroy_decompress`.
class Decoder {
 public:
  // Through another constructor, so that the destructor runs even if the header is broken.
  explicit Decoder(BytesView image) : Decoder() {
    run([&] {
      jpeg_create_decompress(&info_);
      jpeg_mem_src(&info_, reinterpret_cast<const unsigned char*>(image.data()), image.size());
      jpeg_read_header(&info_, TRUE);
    });
    check_size(info_.image_width, info_.image_height);
  }
  ~Decoder() { jpeg_destroy_decompress(&info_); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  PictureInfo inspect() const {
    return PictureInfo{static_cast<int>(info_.image_width), static_cast<int>(info_.image_height), false};
  }

  Pixels decode(int wanted_width) {
    run([&] {
      info_.scale_denom = 8;
      info_.scale_num = 0;
      do {
        ++info_.scale_num;
        jpeg_calc_output_dimensions(&info_);
      } while (info_.scale_num < 8 && info_.output_width < static_cast<JDIMENSION>(wanted_width));
      // Four inks (from print shops) are the one colour model that libjpeg does not turn into RGB.
      const bool inks = info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK;
      info_.out_color_space = inks ? JCS_CMYK : JCS_EXT_RGBA;
      jpeg_start_decompress(&info_);
    });

    Pixels pixels;
    pixels.width = static_cast<int>(info_.output_width);
    pixels.height = static_cast<int>(info_.output_height);
    const std::size_t stride = std::size_t{info_.output_width} * 4;
    pixels.rgba.resize(stride * info_.output_height);

    run([&] {
      while (info_.output_scanline < info_.output_height) {
        JSAMPROW row = pixels.rgba.data() + stride * info_.output_scanline;
        jpeg_read_scanlines(&info_, &row, 1);
      }
      jpeg_finish_decompress(&info_);
    });
    if (info_.out_color_space == JCS_CMYK) inks_to_rgba(pixels);
    return pixels;
  }

 private:
  Decoder() { info_.err = install(errors_); }

  template <class Call>
  void run(const Call& call) {
    if (guarded(errors_.jump, call)) return;
    const std::string message = errors_.message.data();
    throw DecodeError("JPEG: " + message);
  }

  // Adobe's programs, practically the only source of such files, store the inks inverted, and say so by their marker.
  void inks_to_rgba(Pixels& pixels) const {
    const int flip = info_.saw_Adobe_marker ? 0 : 255;
    for (std::size_t i = 0; i < pixels.rgba.size(); i += 4) {
      std::uint8_t* p = &pixels.rgba[i];
      const int black = p[3] ^ flip;
      for (int c = 0; c < 3; ++c) p[c] = static_cast<std::uint8_t>((p[c] ^ flip) * black / 255);
      p[3] = 255;
    }
  }

  ErrorManager errors_{};
  jpeg_decompress_struct info_{};  // zeroed, so that the destructor is safe even if the creation failed
};

// Owns a compressor and the memory that libjpeg allocates for its output.
class Encoder {
 public:
  Encoder() { info_.err = install(errors_); }
  ~Encoder() {
    jpeg_destroy_compress(&info_);
    std::free(output_);
  }
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  Bytes encode(const Pixels& pixels) {
    const auto encode_all = [&] {
      jpeg_create_compress(&info_);
      jpeg_mem_dest(&info_, &output_, &size_);
      info_.image_width = static_cast<JDIMENSION>(pixels.width);
      info_.image_height = static_cast<JDIMENSION>(pixels.height);
      info_.input_components = 4;
      info_.in_color_space = JCS_EXT_RGBX;
      jpeg_set_defaults(&info_);
      jpeg_set_quality(&info_, kQuality, TRUE);
      info_.optimize_coding = TRUE;
      jpeg_start_compress(&info_, TRUE);
      while (info_.next_scanline < info_.image_height) {
        // libjpeg only reads from it.
        auto* row = const_cast<JSAMPROW>(&pixels.rgba[std::size_t{info_.next_scanline} * info_.image_width * 4]);
        jpeg_write_scanlines(&info_, &row, 1);
      }
      jpeg_finish_compress(&info_);
    };
    if (!guarded(errors_.jump, encode_all)) throw std::runtime_error(errors_.message.data());
    const auto* begin = reinterpret_cast<const std::byte*>(output_);
    return Bytes(begin, begin + size_);
  }

 private:
  ErrorManager errors_{};
  jpeg_compress_struct info_{};
  unsigned char* output_ = nullptr;
  unsigned long size_ = 0;  // NOLINT(google-runtime-int): libjpeg's type
};

}  // namespace

bool is_jpeg(BytesView image) noexcept { return begins_with(image, "\xFF\xD8\xFF"); }

PictureInfo inspect_jpeg(BytesView image) { return Decoder(image).inspect(); }

Pixels decode_jpeg(BytesView image, int wanted_width) { return Decoder(image).decode(wanted_width); }

Bytes encode_jpeg(const Pixels& pixels) { return Encoder().encode(pixels); }

}  // namespace image_service
