// SPDX-License-Identifier: BSL-1.0
#include "page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace image_service {
namespace {

constexpr std::string_view kHead = R"html(<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>Bulkhead image service</title>
  <link rel="icon" href="/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/style.css">
  <script src="/app.js" defer></script>
</head>
<body>
  <header>
    <h1><img src="/icon.svg" alt="" width="40" height="40">Bulkhead image service</h1>
    <p>Every picture on this page is decoded and scaled in a <strong>worker process</strong>, in a
      sandbox. When a decoder crashes, or is taken over, one request fails. The service, and every other picture, goes
      on.</p>
  </header>

  <p id="offline" class="offline" role="alert" hidden></p>

  <div class="panels">
    <section class="panel" aria-labelledby="pool-title">
      <div class="panel-head">
        <h2 id="pool-title">The pool, now</h2>
        <a href="/metrics">metrics</a>
      </div>
      <div id="hull" class="hull" aria-hidden="true"></div>
      <dl class="figures">
        <div><dt>Workers</dt><dd id="workers">–</dd></div>
        <div><dt>Pending</dt><dd id="pending">–</dd></div>
        <div><dt>Running</dt><dd id="running">–</dd></div>
        <div><dt>Completed</dt><dd id="completed">–</dd></div>
        <div><dt>Crashed</dt><dd id="workers_crashed">–</dd></div>
        <div><dt>Average run</dt><dd id="average_run_ms">–</dd></div>
      </dl>
    </section>

    <section class="panel" aria-labelledby="try-title">
      <div class="panel-head"><h2 id="try-title">Try it</h2></div>
      <div class="try">
        <label id="drop" class="drop">
          <input id="file" type="file" accept="image/jpeg,image/png,.blk">
          <strong>Choose a picture</strong>
          <small>JPEG or PNG<span class="fine-pointer">, or drop it here</span></small>
        </label>
        <button id="crash" type="button">
          <strong>Crash a decoder</strong>
          <small>with a picture that makes it write out of bounds</small>
        </button>
        <button id="attack" type="button">
          <strong>Take a decoder over</strong>
          <small>with pictures that make it read files, listen, and start a program</small>
        </button>
      </div>
      <div id="answer" class="answer" role="status" aria-live="polite"></div>
      <noscript><p class="hint">The gallery works without JavaScript; this panel does not.</p></noscript>
    </section>
  </div>

  <main>
)html";

constexpr std::string_view kFoot = R"html(    </ul>
  </main>
  <details class="sandbox"><summary>What is in force in each worker</summary>
    <pre>{}</pre>
  </details>
  <footer>
    <p>An example of <strong>Bulkhead</strong>, a C++20 library that runs functions in worker processes and hands their
      results to <code>co_await</code>.</p>
  </footer>
</body>
</html>
)html";

constexpr std::string_view kIcon = R"svg(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<path d="M4 22h56l-7 26a6 6 0 0 1-6 4H17a6 6 0 0 1-6-4z" fill="#2b7fa8"/>
<path d="M11 28h9v18h-4.5zM23 28h8v18h-8zM45 28h8l-4.5 18H45z" fill="#e8f1f6"/>
<path d="M34 28h8v18h-8z" fill="#a9cfe3"/><path d="M34 36h8v10h-8z" fill="#e8590c"/>
<path d="M20 9h22v10H20z" fill="#2b7fa8"/></svg>
)svg";

// Names come from a file system, where all bytes but two are allowed.
std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// The widths of a thumbnail to choose from: for small and large cells, on coarse and fine screens.
constexpr std::array kWidths{320, 480, 640, 960};

void append_picture(std::string& page, const Picture& picture) {
  std::string sources;
  for (const int width : kWidths) {
    // A wider one than the picture itself would only be the picture under a wrong name.
    if (width != kWidths.front() && width > picture.info.width) break;
    fmt::format_to(std::back_inserter(sources), "{}/thumb/{}?width={} {}w", sources.empty() ? "" : ", ", picture.id,
                   width, std::min(width, picture.info.width));
  }
  const std::string title = escape(picture.title);
  const std::string folder = escape(picture.folder);
  fmt::format_to(std::back_inserter(page),
                 R"html(      <li><a class="card{}" href="/thumb/{}?width=1600">
        <img src="/thumb/{}?width=320" srcset="{}" sizes="(min-width: 75rem) 17rem, (min-width: 40rem) 30vw, 46vw"
          alt="{}" width="{}" height="{}" loading="lazy" decoding="async">
        <span class="title">{}</span><span class="details" title="{}">{} × {}{}{}</span></a></li>
)html",
                 picture.info.has_alpha ? " transparent" : "", picture.id, picture.id, sources, title,
                 picture.info.width, picture.info.height, title, folder, picture.info.width, picture.info.height,
                 folder.empty() ? "" : " · ", folder);
}

}  // namespace

std::string render_page(const Gallery& gallery, std::string_view sandbox) {
  std::string page(kHead);
  const std::size_t count = gallery.pictures().size();
  fmt::format_to(std::back_inserter(page),
                 "    <div class=\"gallery-head\"><h2>{} {}</h2><p>from {}</p></div>\n    <ul class=\"gallery\">\n",
                 count, count == 1 ? "picture" : "pictures", escape(gallery.place()));
  for (const Picture& picture : gallery.pictures()) append_picture(page, picture);
  fmt::format_to(std::back_inserter(page), kFoot, escape(sandbox));
  return page;
}

std::string_view icon() { return kIcon; }

}  // namespace image_service
