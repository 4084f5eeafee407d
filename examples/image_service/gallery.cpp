// SPDX-License-Identifier: BSL-1.0
#include "gallery.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "thumbnail.hpp"

namespace image_service {
namespace {

namespace asio = bulkhead::asio;
namespace fs = std::filesystem;
using namespace std::chrono_literals;

// Of the 154 pictures in Debian's packages, most are parts of a desktop: icons, password dots, stars that twinkle while
// the machine boots. What is at least this large is meant to be looked at.
constexpr int kMinDebianWidth = 320;
constexpr int kMinDebianHeight = 300;

// As large as the largest body that the service can be told to take: a file that is larger would only fill memory.
constexpr std::uintmax_t kMaxFileSize = std::uintmax_t{60} << 20;

// All are looked at before the service starts, and all are on one page.
constexpr std::size_t kMaxPictures = 1'000;

bool has_picture_suffix(const fs::path& file) {
  std::string suffix = file.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffix == ".png" || suffix == ".jpg" || suffix == ".jpeg";
}

// What dpkg noted when it installed the package: one path a line.
std::vector<fs::path> files_of_package(const std::string& package) {
  std::vector<fs::path> files;
  std::ifstream list("/var/lib/dpkg/info/" + package + ".list");
  for (std::string line; std::getline(list, line);) files.emplace_back(line);
  return files;
}

std::vector<fs::path> files_of_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  // Links to folders are not followed: they could lead in circles, or out of the folder.
  const auto options = fs::directory_options::skip_permission_denied;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder, options)) {
    files.push_back(entry.path());
  }
  return files;
}

// Keeps regular files with a picture's suffix, sorted; of several links to one file, the first.
std::vector<fs::path> pictures_among(std::vector<fs::path> files) {
  std::sort(files.begin(), files.end());
  std::set<fs::path> seen;
  const auto unwanted = [&](const fs::path& file) {
    std::error_code error;
    return !has_picture_suffix(file) || !fs::is_regular_file(file, error) ||
           !seen.insert(fs::canonical(file, error)).second || error;
  };
  std::erase_if(files, unwanted);
  if (files.size() > kMaxPictures) {
    fmt::print(stderr, "image_service: taking the first {} of {} pictures\n", kMaxPictures, files.size());
    files.resize(kMaxPictures);
  }
  return files;
}

// "plymouth_background-waves" -> "Plymouth background waves"
std::string words(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '_' || c == '-'; }, ' ');
  if (!text.empty()) text.front() = static_cast<char>(std::toupper(static_cast<unsigned char>(text.front())));
  return text;
}

// "desktop-base/joy-theme/grub/grub-4x3" -> "desktop-base-joy-theme-grub-grub-4x3"
std::string slug(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = byte < 0x80 && std::isalnum(byte) != 0;
    if (plain) {
      result += static_cast<char>(std::tolower(byte));
    } else if (!result.empty() && result.back() != '-') {
      result += '-';
    }
  }
  while (!result.empty() && result.back() == '-') result.pop_back();
  return result.empty() ? "picture" : result;
}

void name_ids(std::vector<Picture>& pictures) {
  std::set<std::string> taken;
  for (Picture& picture : pictures) {
    const std::string base = slug((fs::path(picture.folder) / picture.file.stem()).string());
    picture.id = base;
    for (int n = 2; !taken.insert(picture.id).second; ++n) picture.id = fmt::format("{}-{}", base, n);
  }
}

// Pictures of one name get the nearest folder before it that tells them apart, as editors name their tabs:
// "Joy theme: Grub 4x3" and "Lines theme: Grub 4x3".
void name_titles(std::vector<Picture>& pictures) {
  std::map<std::string, std::vector<Picture*>> by_name;
  for (Picture& picture : pictures) by_name[picture.file.stem().string()].push_back(&picture);
  for (auto& [name, group] : by_name) {
    for (Picture* picture : group) picture->title = words(name);
    if (group.size() == 1) continue;
    for (Picture* picture : group) {
      for (fs::path folder = picture->folder; !folder.empty(); folder = folder.parent_path()) {
        const fs::path part = folder.filename();
        const auto shares_it = [&](const Picture* other) {
          const fs::path path = other->folder;
          return other != picture && std::find(path.begin(), path.end(), part) != path.end();
        };
        if (std::any_of(group.begin(), group.end(), shares_it)) continue;
        picture->title = words(part.string()) + ": " + picture->title;
        break;
      }
    }
  }
}

// Nothing if the file is no picture that can be shown. What it was is said on stderr.
asio::awaitable<std::optional<FileInfo>> inspect(bulkhead::ThreadExecutor& files, bulkhead::LocalExecutor& pool,
                                                 const fs::path& file) {
  const auto options = bulkhead::TaskOptions().name("inspect").timeout(10s).isolation(gallery_isolation());
  std::string reason;
  try {
    Bytes image = co_await files.submit(read_file, file);
    co_return co_await pool.submit(options, inspect_picture, std::move(image));
  } catch (const DecodeError& error) {
    reason = error.what();
  } catch (const bulkhead::WorkerCrashedError& error) {
    reason = error.what();
  } catch (const bulkhead::PolicyViolationError& error) {
    reason = error.what();
  } catch (const bulkhead::TaskTimeoutError& error) {
    reason = error.what();
  } catch (const std::system_error& error) {
    reason = error.what();
  }
  fmt::print(stderr, "image_service: leaving out {}: {}\n", file.string(), reason);
  co_return std::nullopt;
}

}  // namespace

Gallery::Gallery(std::string place, std::vector<Picture> pictures)
    : place_(std::move(place)), pictures_(std::move(pictures)) {
  name_ids(pictures_);
  name_titles(pictures_);
}

const Picture* Gallery::find(std::string_view id) const noexcept {
  const auto found = std::find_if(pictures_.begin(), pictures_.end(), [&](const Picture& p) { return p.id == id; });
  return found == pictures_.end() ? nullptr : &*found;
}

bulkhead::Isolation gallery_isolation() { return bulkhead::Isolation::per_key("gallery"); }

Bytes read_file(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  if (!stream) throw std::system_error(errno, std::generic_category(), file.string());
  const std::streamoff size = stream.tellg();
  if (size < 0) throw std::system_error(EIO, std::generic_category(), file.string());
  if (static_cast<std::uintmax_t>(size) > kMaxFileSize) {
    throw std::system_error(EFBIG, std::generic_category(), file.string());
  }
  Bytes bytes(static_cast<std::size_t>(size));
  stream.seekg(0);
  stream.read(reinterpret_cast<char*>(bytes.data()), size);
  if (!stream) throw std::system_error(EIO, std::generic_category(), file.string());
  return bytes;
}

asio::awaitable<Gallery> load_gallery(bulkhead::ThreadExecutor& files, bulkhead::LocalExecutor& pool,
                                      std::optional<fs::path> folder) {
  const fs::path root = folder ? *folder : fs::path("/usr/share");
  std::string place = folder ? folder->string() : "Debian's packages desktop-base and lxde-common";
  std::vector<fs::path> candidates;
  if (folder) {
    candidates = files_of_folder(*folder);
  } else {
    candidates = files_of_package("desktop-base");
    for (fs::path& file : files_of_package("lxde-common")) candidates.push_back(std::move(file));
  }

  std::vector<Picture> pictures;
  std::set<std::uint64_t> seen;
  for (const fs::path& file : pictures_among(std::move(candidates))) {
    const std::optional<FileInfo> info = co_await inspect(files, pool, file);
    if (!info || !seen.insert(info->fingerprint).second) continue;
    const PictureInfo& size = info->picture;
    if (!folder && (size.width < kMinDebianWidth || size.height < kMinDebianHeight)) continue;
    Picture picture;
    picture.folder = file.lexically_relative(root).parent_path().string();
    picture.file = file;
    picture.info = size;
    pictures.push_back(std::move(picture));
  }
  if (pictures.empty()) {
    throw std::runtime_error(folder ? "there are no JPEG or PNG pictures in " + place
                                    : "there are no pictures: install the packages desktop-base and lxde-common, or "
                                      "give a folder");
  }
  Gallery gallery(std::move(place), std::move(pictures));
  co_return gallery;
}

}  // namespace image_service
