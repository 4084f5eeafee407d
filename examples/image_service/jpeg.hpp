// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "picture.hpp"

namespace image_service {

/// JPEG through libjpeg-turbo. All throw `DecodeError` with libjpeg's message.
bool is_jpeg(BytesView image) noexcept;
PictureInfo inspect_jpeg(BytesView image);

/// The result is at least `wanted_width` wide if the picture is, and may be smaller than the picture: libjpeg decodes
/// at 1/8 to 8/8 of the size at little cost, so that the large pictures of cameras take a tenth of the time.
Pixels decode_jpeg(BytesView image, int wanted_width);

/// Drops the alpha channel.
Bytes encode_jpeg(const Pixels& pixels);

}  // namespace image_service
