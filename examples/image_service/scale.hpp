// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "picture.hpp"

namespace image_service {

/// Scales to `width`, keeping the proportions, by an area filter: each new pixel is the mean of the area it covers.
/// Never enlarges: a picture that is no wider comes back as it is.
Pixels scale_down(Pixels source, int width);

}  // namespace image_service
