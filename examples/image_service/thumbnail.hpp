// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstdint>

#include "picture.hpp"

// The functions that run in worker processes. They are plain functions over plain types: nothing here knows of the
// pool, and nothing needs code to cross into another process. They are given bytes and give bytes: in their sandbox no
// file can be opened.

namespace image_service {

/// An enum and not a media type as text: a worker that was taken over by the picture it decoded can return anything,
/// and must not be able to write into the headers of an answer.
enum class ThumbnailFormat { jpeg, png };

struct Thumbnail {
  ThumbnailFormat format = ThumbnailFormat::jpeg;
  Bytes image;
  int width = 0;
  int height = 0;
};

/// Decodes a JPEG, PNG or BLK1 picture and scales it down to `width` pixels. Pictures with transparent parts become
/// PNG, all others JPEG. Throws `DecodeError`.
Thumbnail make_thumbnail(BytesView image, int width);

/// What the gallery must know of a file's picture: its size in pixels, whether parts of it are transparent, and a hash
/// by which copies of one picture are found.
struct FileInfo {
  PictureInfo picture;
  std::uint64_t fingerprint = 0;
};
FileInfo inspect_picture(BytesView image);

}  // namespace image_service
