// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/bulkhead.hpp>
#include <chrono>
#include <string>

#include "gallery.hpp"
#include "http.hpp"

namespace image_service {

/// What the service answers to each request:
///
///     GET  /                      the gallery             GET  /state     the pool's state as JSON
///     GET  /thumb/NAME?width=320  a thumbnail             GET  /metrics   the same for Prometheus
///     POST /thumb?width=320       one of the body         GET  /healthz   "ok"
///     GET  /sandbox               what keeps the workers from reaching anything
///     GET  /samples/NAME.blk      pictures in the made-up formats: valid, hostile, and three attacks
///
/// HEAD is answered as GET; the session leaves the body out. The executors and the gallery must outlive it.
class Routes {
 public:
  /// `files` reads pictures, the workers of `pool` decode them.
  Routes(bulkhead::ThreadExecutor& files, bulkhead::LocalExecutor& pool, const Gallery& gallery,
         std::chrono::seconds task_timeout);

  /// Never throws: every failure is an answer. `client`: who asks. Its pictures are decoded in workers that have seen
  /// no other client's, so it must not be something that the client can choose.
  bulkhead::asio::awaitable<Response> answer(Request request, std::string client);

 private:
  bulkhead::asio::awaitable<Response> dispatch(Request request, std::string client);
  bulkhead::asio::awaitable<Response> gallery_thumbnail(const Request& request, std::string_view id,
                                                        std::string_view query);
  bulkhead::asio::awaitable<Response> posted_thumbnail(Request& request, std::string client, std::string_view query);
  Response document(std::string_view path) const;

  bulkhead::ThreadExecutor& files_;
  bulkhead::LocalExecutor& pool_;
  const Gallery& gallery_;
  std::string sandbox_;
  std::string page_;
  bulkhead::TaskOptions task_options_;
};

}  // namespace image_service
