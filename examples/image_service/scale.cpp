// SPDX-License-Identifier: BSL-1.0
#include "scale.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace image_service {
namespace {

// Scaling down, one old pixel covers at most two new ones. This is the first of them, and how much of each it covers.
struct Share {
  std::size_t target;
  float first;
  float second;
};

std::vector<Share> shares(int from, int to) {
  const double ratio = static_cast<double>(to) / from;
  std::vector<Share> result(static_cast<std::size_t>(from));
  for (int i = 0; i < from; ++i) {
    const double begin = i * ratio;
    const double end = (i + 1) * ratio;
    const double target = std::min(std::floor(begin), to - 1.0);
    const double inside = std::clamp(target + 1 - begin, 0.0, ratio);
    result[static_cast<std::size_t>(i)] = Share{static_cast<std::size_t>(target), static_cast<float>(inside),
                                                static_cast<float>(std::max(end - begin - inside, 0.0))};
  }
  return result;
}

using Sum = std::array<float, 4>;

void add(Sum& sum, const Sum& value, float weight) {
  for (std::size_t c = 0; c < 4; ++c) sum[c] += value[c] * weight;
}

// Colours are weighted by their alpha (premultiplied), or the invisible colour of transparent pixels would bleed in.
Sum premultiplied(const std::uint8_t* rgba) {
  const float alpha = rgba[3];
  const float weight = alpha / 255.0F;
  return Sum{static_cast<float>(rgba[0]) * weight, static_cast<float>(rgba[1]) * weight,
             static_cast<float>(rgba[2]) * weight, alpha};
}

void store(const Sum& sum, std::uint8_t* rgba) {
  const float alpha = std::clamp(sum[3], 0.0F, 255.0F);
  for (std::size_t c = 0; c < 3; ++c) {
    const float colour = alpha > 0 ? sum[c] * 255.0F / alpha : 0.0F;
    rgba[c] = static_cast<std::uint8_t>(std::lrint(std::clamp(colour, 0.0F, 255.0F)));
  }
  rgba[3] = static_cast<std::uint8_t>(std::lrint(alpha));
}

}  // namespace

Pixels scale_down(Pixels source, int width) {
  if (source.width <= width) return source;

  Pixels result;
  result.width = width;
  result.height = std::max(1, static_cast<int>(std::lround(static_cast<double>(source.height) * width / source.width)));
  const auto columns = static_cast<std::size_t>(width);
  const auto rows = static_cast<std::size_t>(result.height);
  result.rgba.resize(columns * rows * 4);

  const std::vector<Share> across = shares(source.width, result.width);
  const std::vector<Share> down = shares(source.height, result.height);

  // Two rows of sums are enough, the one being filled and the next. One column more each, so that the second share of
  // the last pixel (of weight zero) has a place to go.
  std::vector<Sum> row(columns + 1);
  std::vector<Sum> current(columns + 1, Sum{});
  std::vector<Sum> next(columns + 1, Sum{});
  std::size_t filling = 0;

  const auto finish_row = [&] {
    for (std::size_t x = 0; x < columns; ++x) store(current[x], &result.rgba[(filling * columns + x) * 4]);
    std::swap(current, next);
    std::fill(next.begin(), next.end(), Sum{});
    ++filling;
  };

  const std::uint8_t* pixel = source.rgba.data();
  for (const Share& vertical : down) {
    std::fill(row.begin(), row.end(), Sum{});
    for (const Share& horizontal : across) {
      const Sum value = premultiplied(pixel);
      pixel += 4;
      add(row[horizontal.target], value, horizontal.first);
      add(row[horizontal.target + 1], value, horizontal.second);
    }
    if (vertical.target > filling) finish_row();
    for (std::size_t x = 0; x < columns; ++x) {
      add(current[x], row[x], vertical.first);
      add(next[x], row[x], vertical.second);
    }
  }
  finish_row();
  return result;
}

}  // namespace image_service
