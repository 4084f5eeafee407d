// SPDX-License-Identifier: BSL-1.0
// Hostile bytes for the decoder. The first byte chooses the type; the rest is the message. What decodes must encode
// again to what decodes to the same.
#include <bulkhead/serialization.hpp>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <forward_list>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>

namespace {

enum class Kind : std::uint8_t { a, b };

struct Empty {};
struct Point {
  double x;
  float y;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(x, y);
  }
};
struct Pixel {
  std::uint16_t x;
  Kind kind;
  std::uint8_t z;
};
struct Tree {
  int value = 0;
  std::vector<Tree> children;
  std::unique_ptr<Tree> next;
  std::map<std::string, Tree> named;
};
struct Json {
  std::variant<std::monostate, bool, double, std::string, std::vector<Json>, std::map<std::string, Json>> value;
};
struct Mixed {
  bool flag;
  std::optional<std::wstring> text;
  std::vector<bool> bits;
  std::array<std::string, 2> strings;
  std::tuple<long double, Kind, std::chrono::seconds> tuple;
  std::filesystem::path path;
};

template <class T>
void decode_and_encode(std::span<const std::byte> bytes) {
  try {
    const T value = bulkhead::from_bytes<T>(bytes);
    const std::vector<std::byte> again = bulkhead::to_bytes(value);
    if (bulkhead::to_bytes(bulkhead::from_bytes<T>(again)).size() != again.size()) {
      std::abort();
    }
  } catch (const bulkhead::SerializationError&) {
  }
}

template <class View>
void decode_as_view(std::span<const std::byte> bytes) {
  std::vector<std::byte> aligned(bytes.begin(), bytes.end());
  bulkhead::Decoder decoder(aligned);
  try {
    std::uint64_t sum = 0;
    for (const auto& element : bulkhead::decode_view<View>(decoder)) {
      sum += static_cast<std::uint64_t>(element);
    }
    [[maybe_unused]] static volatile std::uint64_t sink;
    sink = sum;
  } catch (const bulkhead::SerializationError&) {
  }
}

constexpr void (*decoders[])(std::span<const std::byte>) = {
    decode_and_encode<std::string>,
    decode_and_encode<std::vector<Pixel>>,
    decode_and_encode<std::vector<std::string>>,
    decode_and_encode<std::vector<std::vector<Point>>>,
    decode_and_encode<std::vector<Empty>>,
    decode_and_encode<std::vector<std::tuple<Empty, std::vector<Empty>>>>,
    decode_and_encode<Tree>,
    decode_and_encode<Json>,
    decode_and_encode<Mixed>,
    decode_and_encode<std::vector<std::optional<Mixed>>>,
    decode_and_encode<std::map<std::string, std::set<int>>>,
    decode_and_encode<std::unordered_multimap<std::uint8_t, std::shared_ptr<Pixel>>>,
    decode_and_encode<std::list<std::deque<std::forward_list<std::uint8_t>>>>,
    decode_and_encode<std::priority_queue<std::string>>,
    decode_as_view<std::string_view>,
    decode_as_view<std::u32string_view>,
    decode_as_view<std::span<const std::uint64_t>>,
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size != 0) {
    decoders[data[0] % std::size(decoders)](std::as_bytes(std::span(data, size)).subspan(1));
  }
  return 0;
}
