// SPDX-License-Identifier: BSL-1.0
// The benchmark's function behind an HTTP server of Boost.Beast in another process, over a Unix socket: microseconds
// per call.
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
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

int add_one(int x) { return x + 1; }

void serve(Socket& socket) {
  beast::flat_buffer buffer;
  for (;;) {
    http::request<http::string_body> request;
    boost::system::error_code error;
    http::read(socket, buffer, request, error);
    if (error) return;  // the client has gone
    http::response<http::string_body> response(http::status::ok, request.version());
    response.body() = std::to_string(add_one(std::stoi(request.body())));
    response.prepare_payload();
    http::write(socket, response);
  }
}

void call(Socket& socket, beast::flat_buffer& buffer) {
  http::request<http::string_body> request(http::verb::post, "/add_one", 11);
  request.set(http::field::host, "worker");
  request.body() = "1";
  request.prepare_payload();
  http::write(socket, request);
  http::response<http::string_body> response;
  http::read(socket, buffer, response);
  if (response.body() != "2") throw std::runtime_error("a result is wrong");
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
  constexpr int kCalls = 5000;
  for (int i = 0; i < kCalls / 10; ++i) call(client, buffer);
  const auto begin = Clock::now();
  for (int i = 0; i < kCalls; ++i) call(client, buffer);
  const std::chrono::duration<double, std::micro> taken = Clock::now() - begin;
  std::printf("one in flight: %.1f µs\n", taken.count() / kCalls);
  client.close();
  ::waitpid(child, nullptr, 0);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
