// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>
#include <string_view>

#include "gallery.hpp"

// What the browser gets. All of it is compiled in, and nothing is loaded from elsewhere.

namespace image_service {

/// The gallery page: `page.cpp`. `sandbox`: what keeps the workers from reaching anything, as a table.
std::string render_page(const Gallery& gallery, std::string_view sandbox);

/// Its parts: `page_style.cpp`, `page_script.cpp`, `page.cpp`.
std::string_view style_sheet();
std::string_view script();
std::string_view icon();

}  // namespace image_service
