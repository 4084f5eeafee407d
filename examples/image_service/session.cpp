// SPDX-License-Identifier: BSL-1.0
#include "session.hpp"

#include <fmt/format.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <utility>

namespace image_service {
namespace {

namespace asio = bulkhead::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using namespace std::chrono_literals;

// Slow clients: so long for a header (and between two requests), for a body, and for taking an answer.
constexpr auto kReadTimeout = 30s;
constexpr auto kWriteTimeout = 30s;
// How long to wait, after the last answer, for the client to close its side.
constexpr auto kPartTimeout = 5s;

constexpr std::size_t kHeaderLimit = std::size_t{16} << 10;

// What a client does to its connection is not exceptional: errors come back as values.
constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// Whether the parser did not like what it read. Beast's HTTP errors have a category of their own.
bool is_malformed(const boost::system::error_code& error) {
  return error.category() == http::make_error_code(http::error::bad_method).category();
}

// Completes when the client has closed its side or the connection is broken; peeking leaves what it sent in the socket.
// A client that only shuts down its sending side counts as gone, as with most servers.
asio::awaitable<void> client_gone(tcp::socket& socket) {
  char byte = 0;
  const auto [error, size] = co_await socket.async_receive(asio::buffer(&byte, 1), tcp::socket::message_peek, kTuple);
  // A byte is no farewell but the next request (HTTP allows to send it early). An end that comes behind it stays unseen
  // until that request is read; only a broken connection shows.
  if (!error) co_await socket.async_wait(tcp::socket::wait_error, kTuple);
}

// Of a client that has gone already nothing is known, and nothing will be answered to it.
std::string address_of(const tcp::socket& socket) {
  boost::system::error_code error;
  const tcp::endpoint endpoint = socket.remote_endpoint(error);
  return error ? "unknown" : endpoint.address().to_string();
}

}  // namespace

Session::Session(tcp::socket socket, Routes& routes, std::size_t body_limit)
    : client_(address_of(socket)), stream_(std::move(socket)), routes_(routes), body_limit_(body_limit) {}

asio::awaitable<void> Session::run() {
  // An answer is written at once and whole; waiting to fill a packet (Nagle's algorithm) would only delay its end.
  boost::system::error_code ignored;
  stream_.socket().set_option(tcp::no_delay(true), ignored);
  while (co_await serve_one()) {
  }
  co_await part();
}

void Session::finish() {
  finishing_ = true;
  if (idle()) abort();
}

void Session::abort() { stream_.close(); }

bool Session::idle() const noexcept { return header_ && !header_->got_some() && buffer_.size() == 0; }

// Returns whether the connection can take another request.
asio::awaitable<bool> Session::serve_one() {
  if (finishing_) co_return false;
  header_.emplace();
  header_->header_limit(kHeaderLimit);
  header_->body_limit(boost::none);  // it is judged below, with an answer that says so
  stream_.expires_after(kReadTimeout);
  const auto [bad_header, header_size] = co_await http::async_read_header(stream_, buffer_, *header_, kTuple);
  if (bad_header == http::error::header_limit || bad_header == http::error::buffer_overflow) {
    co_return co_await refuse(http::status::request_header_fields_too_large, "The header is too large.");
  }
  if (bad_header == http::error::end_of_stream || bad_header == http::error::partial_message) co_return false;
  if (is_malformed(bad_header)) {
    co_return co_await refuse(http::status::bad_request, bad_header.message());
  }
  if (bad_header) co_return false;  // a timeout or a broken connection

  http::request_parser<Body> parser(std::move(*header_));
  header_.reset();
  parser.body_limit(body_limit_);
  const std::string too_large = fmt::format("The body is larger than {} bytes.", body_limit_);
  if (parser.content_length().value_or(0) > body_limit_) {
    co_return co_await refuse(http::status::payload_too_large, too_large);
  }
  stream_.expires_after(kReadTimeout);
  if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go_on(http::status::continue_, 11);
    const auto [error, size] = co_await http::async_write(stream_, go_on, kTuple);
    if (error) co_return false;
  }
  const auto [bad_body, body_size] = co_await http::async_read(stream_, buffer_, parser, kTuple);
  if (bad_body == http::error::body_limit) co_return co_await refuse(http::status::payload_too_large, too_large);
  if (bad_body == http::error::partial_message) co_return false;
  if (is_malformed(bad_body)) co_return co_await refuse(http::status::bad_request, bad_body.message());
  if (bad_body) co_return false;

  Request request = parser.release();
  const bool keep_alive = request.keep_alive();
  const bool with_body = request.method() != http::verb::head;
  stream_.expires_never();

  // Whichever of the two is first cancels the other. If the client goes, that is the task in the pool, whatever the
  // answer is made of: routes need not know of it.
  using namespace asio::experimental::awaitable_operators;
  auto answer = routes_.answer(std::move(request), client_);
  auto gone = client_gone(stream_.socket());
  auto first = co_await (std::move(answer) || std::move(gone));
  if (first.index() == 1) co_return false;
  co_return co_await send(std::get<0>(std::move(first)), with_body, keep_alive);
}

// For what is wrong with the message itself. Nobody knows where the next one would begin, so the connection ends.
asio::awaitable<bool> Session::refuse(http::status status, std::string_view message) {
  header_.reset();
  Response response = make_error(status, message);
  co_return co_await send(std::move(response), true, false);
}

asio::awaitable<bool> Session::send(Response response, bool with_body, bool keep_alive) {
  // A response that says "close" by itself keeps its say.
  const bool stay = keep_alive && response.keep_alive() && !finishing_;
  response.keep_alive(stay);
  response.prepare_payload();
  if (response.result() == http::status::not_modified) response.erase(http::field::content_length);

  stream_.expires_after(kWriteTimeout);
  http::response_serializer<Body> serializer(response);
  boost::system::error_code error;
  if (with_body) {
    const auto [failed, size] = co_await http::async_write(stream_, serializer, kTuple);
    error = failed;
  } else {
    const auto [failed, size] = co_await http::async_write_header(stream_, serializer, kTuple);
    error = failed;
  }
  co_return stay && !error;
}

// Says goodbye and waits a little for the client's. Closing at once would, if unread bytes are left (of a body that was
// too large, say), reset the connection, and the client could lose the answer that is still on its way.
asio::awaitable<void> Session::part() {
  boost::system::error_code error;
  stream_.socket().shutdown(tcp::socket::shutdown_send, error);
  stream_.expires_after(kPartTimeout);
  std::array<std::byte, 16'384> scratch;
  while (!error) {
    const auto [stop, size] = co_await stream_.async_read_some(asio::buffer(scratch), kTuple);
    error = stop;
  }
  stream_.close();
}

}  // namespace image_service
