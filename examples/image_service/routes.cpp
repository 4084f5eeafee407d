// SPDX-License-Identifier: BSL-1.0
#include "routes.hpp"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "demo_attack.hpp"
#include "demo_format.hpp"
#include "page.hpp"
#include "thumbnail.hpp"

namespace image_service {
namespace {

namespace asio = bulkhead::asio;

constexpr int kMinWidth = 16;
constexpr int kMaxWidth = 2'048;
constexpr int kDefaultWidth = 320;

// The request is wrong in a way that the client can mend.
class BadRequest : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The width that the query asks for: "width=640". Other parameters are ignored.
int width_from(std::string_view query) {
  while (!query.empty()) {
    const std::size_t end = query.find('&');
    std::string_view parameter = query.substr(0, end);
    query.remove_prefix(end == std::string_view::npos ? query.size() : end + 1);
    if (!parameter.starts_with("width=")) continue;
    parameter.remove_prefix(std::string_view("width=").size());
    int width = 0;
    const char* const last = parameter.data() + parameter.size();
    const auto [stop, error] = std::from_chars(parameter.data(), last, width);
    if (error == std::errc() && stop == last && width >= kMinWidth && width <= kMaxWidth) return width;
    throw BadRequest(fmt::format("width must be a number from {} to {}", kMinWidth, kMaxWidth));
  }
  return kDefaultWidth;
}

// Names one state of a file at one width, so that a browser that has it is spared the picture, and we the work.
std::string entity_tag(const std::filesystem::path& file, int width) {
  const auto time = static_cast<std::uint64_t>(std::filesystem::last_write_time(file).time_since_epoch().count());
  return fmt::format("\"{:x}-{:x}-{}\"", time, std::filesystem::file_size(file), width);
}

Response picture(Thumbnail thumbnail) {
  const std::string_view type = thumbnail.format == ThumbnailFormat::png ? "image/png" : "image/jpeg";
  return make_response(http::status::ok, type, std::move(thumbnail.image));
}

Response method_not_allowed(std::string_view allowed) {
  Response response = make_error(http::status::method_not_allowed, fmt::format("Only {} works here.", allowed));
  response.set(http::field::allow, allowed);
  return response;
}

}  // namespace

Routes::Routes(bulkhead::ThreadExecutor& files, bulkhead::LocalExecutor& pool, const Gallery& gallery,
               std::chrono::seconds task_timeout)
    : files_(files),
      pool_(pool),
      gallery_(gallery),
      sandbox_(pool.sandbox_report().to_string()),
      page_(render_page(gallery, sandbox_)) {
  task_options_.name("thumbnail").timeout(task_timeout);
}

asio::awaitable<Response> Routes::answer(Request request, std::string client) {
  try {
    co_return co_await dispatch(std::move(request), std::move(client));
  } catch (const BadRequest& error) {
    co_return make_error(http::status::bad_request, error.what());
  } catch (const std::exception&) {
    co_return describe_current_exception();
  }
}

asio::awaitable<Response> Routes::dispatch(Request request, std::string client) {
  const std::string target(request.target());
  const std::size_t question = target.find('?');
  const std::string_view path = std::string_view(target).substr(0, question);
  const std::string_view query =
      question == std::string::npos ? std::string_view() : std::string_view(target).substr(question + 1);

  constexpr std::string_view kThumb = "/thumb";
  if (path == kThumb) {
    if (request.method() != http::verb::post) co_return method_not_allowed("POST");
    co_return co_await posted_thumbnail(request, std::move(client), query);
  }

  const bool reads = request.method() == http::verb::get || request.method() == http::verb::head;
  if (path.starts_with("/thumb/")) {
    if (!reads) co_return method_not_allowed("GET, HEAD");
    co_return co_await gallery_thumbnail(request, path.substr(kThumb.size() + 1), query);
  }
  Response response = document(path);
  if (response.result() != http::status::not_found && !reads) co_return method_not_allowed("GET, HEAD");
  co_return response;
}

asio::awaitable<Response> Routes::gallery_thumbnail(const Request& request, std::string_view id,
                                                    std::string_view query) {
  const Picture* found = gallery_.find(id);
  if (found == nullptr) co_return make_error(http::status::not_found, "There is no such picture.");
  const int width = width_from(query);
  const std::string tag = entity_tag(found->file, width);

  Response response;
  if (request[http::field::if_none_match] == tag) {
    response = make_response(http::status::not_modified, "image/jpeg");
    response.erase(http::field::content_type);
  } else {
    // A thread reads it: no worker can open a file, and the event loop must not wait for a disk.
    Bytes image = co_await files_.submit(read_file, found->file);
    const auto options = bulkhead::TaskOptions(task_options_).isolation(gallery_isolation());
    response = picture(co_await pool_.submit(options, make_thumbnail, std::move(image), width));
  }
  response.set(http::field::cache_control, "no-cache");  // that is: keep it, and ask whether it has changed
  response.set(http::field::etag, tag);
  co_return response;
}

asio::awaitable<Response> Routes::posted_thumbnail(Request& request, std::string client, std::string_view query) {
  const int width = width_from(query);
  if (request.body().empty()) throw BadRequest("The body must be a picture.");
  // One compartment for each client: a picture that takes its worker over finds no other client's there.
  const auto options =
      bulkhead::TaskOptions(task_options_).isolation(bulkhead::Isolation::per_key("client " + std::move(client)));
  // The one line that this example is about: the body goes into the worker's memory, and in the worker `make_thumbnail`
  // sees it there, as a span. Whatever that picture does to its decoder, it does it to another process.
  Thumbnail thumbnail = co_await pool_.submit(options, make_thumbnail, std::move(request.body()), width);
  co_return picture(std::move(thumbnail));
}

Response Routes::document(std::string_view path) const {
  const auto ok = [](std::string_view type, const auto& body) { return make_response(http::status::ok, type, body); };
  if (path == "/") return ok("text/html; charset=utf-8", page_);
  if (path == "/style.css") return ok("text/css; charset=utf-8", style_sheet());
  if (path == "/app.js") return ok("text/javascript; charset=utf-8", script());
  if (path == "/icon.svg") return ok("image/svg+xml", icon());
  if (path == "/state") return ok("application/json", bulkhead::to_json(pool_.metrics()));
  if (path == "/metrics") {
    return ok("text/plain; version=0.0.4; charset=utf-8", bulkhead::to_prometheus(pool_.metrics()));
  }
  if (path == "/sandbox") return ok("text/plain; charset=utf-8", std::string_view(sandbox_));
  if (path == "/healthz") return ok("text/plain; charset=utf-8", std::string_view("ok\n"));
  if (path == "/samples/valid.blk") return ok("application/octet-stream", valid_sample());
  if (path == "/samples/hostile.blk") return ok("application/octet-stream", hostile_sample());
  if (path == "/samples/escape.blk") return ok("application/octet-stream", attack_sample(Attack::escape));
  if (path == "/samples/execute.blk") return ok("application/octet-stream", attack_sample(Attack::execute));
  if (path == "/samples/linger.blk") return ok("application/octet-stream", attack_sample(Attack::linger));
  return make_error(http::status::not_found, "There is nothing here.");
}

}  // namespace image_service
