// SPDX-License-Identifier: BSL-1.0
#include "check_client.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <boost/system/system_error.hpp>
#include <chrono>
#include <utility>

namespace check {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;

constexpr auto kDeadline = 30s;

}  // namespace

Query make_query(http::verb method, std::string_view target, std::string body) {
  Query query(method, target, 11);
  query.set(http::field::host, "127.0.0.1");
  query.body() = std::move(body);
  query.prepare_payload();
  return query;
}

// Starts one operation and waits for it, at most until the deadline.
template <class Start>
void Connection::run(Start start) {
  boost::system::error_code result = asio::error::timed_out;
  stream_.expires_after(kDeadline);
  start([&](boost::system::error_code error, auto&&...) { result = error; });
  io_.restart();
  io_.run();
  if (result) throw boost::system::system_error(result);
}

Connection::Connection(std::uint16_t port, const char* from) {
  const asio::ip::tcp::endpoint address(asio::ip::address_v4::loopback(), port);
  stream_.socket().open(asio::ip::tcp::v4());
  stream_.socket().bind(asio::ip::tcp::endpoint(asio::ip::make_address_v4(from), 0));
  run([&](auto done) { stream_.async_connect(address, std::move(done)); });
}

void Connection::send(const Query& query) {
  run([&](auto done) { http::async_write(stream_, query, std::move(done)); });
}

void Connection::send_raw(std::string_view bytes) {
  run([&](auto done) { asio::async_write(stream_, asio::buffer(bytes), std::move(done)); });
}

Reply Connection::receive(http::verb to) {
  http::response_parser<http::string_body> parser;
  parser.body_limit(boost::none);
  parser.skip(to == http::verb::head);
  run([&](auto done) { http::async_read(stream_, buffer_, parser, std::move(done)); });
  return parser.release();
}

Reply fetch(std::uint16_t port, const Query& query) {
  Connection connection(port);
  connection.send(query);
  return connection.receive(query.method());
}

Reply get(std::uint16_t port, std::string_view target) { return fetch(port, make_query(http::verb::get, target)); }

Reply post(std::uint16_t port, std::string_view target, std::string body) {
  return fetch(port, make_query(http::verb::post, target, std::move(body)));
}

}  // namespace check
