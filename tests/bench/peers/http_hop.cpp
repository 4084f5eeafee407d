// SPDX-License-Identifier: BSL-1.0
// The benchmark's functions behind an HTTP server of Boost.Beast in another process, over a Unix socket: microseconds
// per call.
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Socket = asio::local::stream_protocol::socket;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kLarge = std::size_t{1} << 20;

int add_one(int x) { return x + 1; }

void serve(Socket& socket) {
  beast::flat_buffer buffer;
  for (;;) {
    http::request_parser<http::string_body> parser;
    parser.body_limit(kLarge);
    boost::system::error_code error;
    http::read(socket, buffer, parser, error);
    if (error) return;  // the client has gone
    const auto request = parser.release();
    http::response<http::string_body> response(http::status::ok, request.version());
    response.body() = request.target() == "/length" ? std::to_string(request.body().size())
                                                    : std::to_string(add_one(std::stoi(request.body())));
    response.prepare_payload();
    http::write(socket, response);
  }
}

void call(Socket& socket, beast::flat_buffer& buffer, const char* target, const std::string& body,
          const std::string& expected) {
  http::request<http::string_body> request(http::verb::post, target, 11);
  request.set(http::field::host, "worker");
  request.body() = body;
  request.prepare_payload();
  http::write(socket, request);
  http::response<http::string_body> response;
  http::read(socket, buffer, response);
  if (response.body() != expected) throw std::runtime_error("a result is wrong");
}

}  // namespace

int main() try {
  asio::io_context context;
  Socket client(context);
  Socket server(context);
  asio::local::connect_pair(client, server);
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("cannot fork");
  if (child == 0) {
    client.close();
    serve(server);
    ::_exit(0);
  }
  server.close();
  beast::flat_buffer buffer;
  const auto microseconds = [&](int calls, const char* target, const std::string& body, const std::string& expected) {
    for (int i = 0; i < calls / 10; ++i) call(client, buffer, target, body, expected);
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) call(client, buffer, target, body, expected);
    const std::chrono::duration<double, std::micro> taken = Clock::now() - begin;
    return taken.count() / calls;
  };
  std::printf("one in flight: %.1f µs\n", microseconds(5000, "/add_one", "1", "2"));
  std::printf("1 MiB in, its length back: %.0f µs\n",
              microseconds(200, "/length", std::string(kLarge, 'x'), std::to_string(kLarge)));
  client.close();
  ::waitpid(child, nullptr, 0);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
