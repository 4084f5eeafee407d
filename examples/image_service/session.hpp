// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <cstddef>
#include <optional>
#include <string>

#include "http.hpp"
#include "routes.hpp"

namespace image_service {

/// One connection: reads requests one after the other (pipelined ones wait in the socket) and answers each. While an
/// answer is being made it watches whether the client is still there, and gives the work up if it is not.
///
/// Not thread-safe: everything happens on the socket's executor, which must be a strand, or an `io_context` that is run
/// by one thread.
class Session {
 public:
  Session(bulkhead::asio::ip::tcp::socket socket, Routes& routes, std::size_t body_limit);

  /// Completes when the connection is closed. Never throws on what a client does.
  bulkhead::asio::awaitable<void> run();

  /// Closes the connection as soon as the request under way, if there is one, is answered.
  void finish();
  /// Closes it now. A task of it is cancelled.
  void abort();

 private:
  bulkhead::asio::awaitable<bool> serve_one();
  bulkhead::asio::awaitable<bool> refuse(http::status status, std::string_view message);
  bulkhead::asio::awaitable<bool> send(Response response, bool with_body, bool keep_alive);
  bulkhead::asio::awaitable<void> part();
  bool idle() const noexcept;

  // Who it is for `Routes::answer`: the address is what a client cannot choose. Behind a proxy it is the proxy's.
  std::string client_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::empty_body>> header_;
  Routes& routes_;
  std::size_t body_limit_;
  bool finishing_ = false;
};

}  // namespace image_service
