// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "picture.hpp"

namespace image_service {

/// PNG through libpng. All throw `DecodeError` with libpng's message.
bool is_png(BytesView image) noexcept;
PictureInfo inspect_png(BytesView image);
Pixels decode_png(BytesView image);

Bytes encode_png(const Pixels& pixels);

}  // namespace image_service
