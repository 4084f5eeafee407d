// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/awaitable.hpp>
#include <bulkhead/bulkhead.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "picture.hpp"

namespace image_service {

/// One picture of the gallery.
struct Picture {
  /// Its name in URLs: lower-case letters, digits and hyphens, unique. Requests are looked up by it and never turned
  /// into a path, so no request can name a file that is not in the gallery.
  std::string id;
  /// Its name for people.
  std::string title;
  /// The folder it lies in, seen from the gallery's root; may be empty.
  std::string folder;
  std::filesystem::path file;
  PictureInfo info;
};

/// The pictures that the service shows. Fixed from the start on.
class Gallery {
 public:
  Gallery(std::string place, std::vector<Picture> pictures);

  /// Where the pictures are from, for people.
  const std::string& place() const noexcept { return place_; }
  /// Sorted by folder and name.
  const std::vector<Picture>& pictures() const noexcept { return pictures_; }
  /// Null if there is none.
  const Picture* find(std::string_view id) const noexcept;

 private:
  std::string place_;
  std::vector<Picture> pictures_;
};

/// Finds the JPEG and PNG files in `folder` and all folders below it; without one, those of Debian's packages
/// desktop-base and lxde-common. Each is read in `files`, and looked at in a worker of `pool`: a file that is no
/// picture, or crashes its decoder, is left out with a line on stderr. A picture that lies there under several names is
/// taken once. Throws `std::runtime_error` if there is no picture at all, and what the executors' `submit` throws.
bulkhead::asio::awaitable<Gallery> load_gallery(bulkhead::ThreadExecutor& files, bulkhead::LocalExecutor& pool,
                                                std::optional<std::filesystem::path> folder);

/// In whose workers pictures of the gallery are decoded: in none that has seen what a client sent.
bulkhead::Isolation gallery_isolation();

/// A whole file. It blocks, so it is for a thread. Throws `std::system_error`; EFBIG if the file is larger than any
/// picture is.
Bytes read_file(const std::filesystem::path& file);

}  // namespace image_service
