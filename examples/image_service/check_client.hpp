// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <string>
#include <string_view>

namespace check {

namespace http = boost::beast::http;

using Reply = http::response<http::string_body>;
using Query = http::request<http::string_body>;

Query make_query(http::verb method, std::string_view target, std::string body = {});

/// One connection to the service on 127.0.0.1. Every step has a deadline and throws `boost::system::system_error` if it
/// fails.
class Connection {
 public:
  /// `from`: the address that the service sees; 127.0.0.2 is on this machine, too.
  explicit Connection(std::uint16_t port, const char* from = "127.0.0.1");

  void send(const Query& query);
  void send_raw(std::string_view bytes);
  /// `to` tells an answer to HEAD, which has no body, from others.
  Reply receive(http::verb to = http::verb::get);

 private:
  template <class Start>
  void run(Start start);

  boost::asio::io_context io_;
  boost::beast::tcp_stream stream_{io_};
  boost::beast::flat_buffer buffer_;
};

/// One request on a connection of its own.
Reply fetch(std::uint16_t port, const Query& query);
Reply get(std::uint16_t port, std::string_view target);
Reply post(std::uint16_t port, std::string_view target, std::string body);

}  // namespace check
