// SPDX-License-Identifier: BSL-1.0
#include "server.hpp"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <utility>

namespace image_service {
namespace {

namespace asio = bulkhead::asio;
using asio::ip::tcp;
using std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

tcp::acceptor listen(const asio::any_io_executor& executor, const tcp::endpoint& address) {
  try {
    return tcp::acceptor(executor, address);
  } catch (const boost::system::system_error& error) {
    throw std::runtime_error(fmt::format("cannot listen on {} port {}: {} (--port 0 takes a free port)",
                                         address.address().to_string(), address.port(), error.code().message()));
  }
}

// A session that fails, for lack of memory say, loses its connection. The others go on.
void report(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    fmt::print(stderr, "image_service: a session failed: {}\n", error.what());
  }
}

}  // namespace

Server::Server(asio::any_io_executor strand, const tcp::endpoint& address)
    : strand_(std::move(strand)), acceptor_(listen(strand_, address)), change_(strand_) {}

void Server::start(Routes& routes, std::size_t body_limit) { spawn(accept_all(routes, body_limit)); }

asio::awaitable<void> Server::stop(steady_clock::duration grace) {
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  for (Session& session : sessions_) session.finish();
  const auto deadline = steady_clock::now() + grace;
  while (spawned_ > 0 && steady_clock::now() < deadline) co_await wait_for_change(deadline);
  for (Session& session : sessions_) session.abort();
  // Without a deadline: a closed connection ends its session, and the cancelled task of one is over in bounded time.
  while (spawned_ > 0) co_await wait_for_change(steady_clock::time_point::max());
}

asio::awaitable<void> Server::accept_all(Routes& routes, std::size_t body_limit) {
  while (acceptor_.is_open()) {
    if (sessions_.size() >= kMaxConnections) {
      co_await wait_for_change(steady_clock::time_point::max());
      continue;
    }
    auto [error, socket] = co_await acceptor_.async_accept(kTuple);
    if (!error) {
      spawn(serve(std::move(socket), routes, body_limit));
    } else if (acceptor_.is_open() && error != asio::error::connection_aborted) {
      // Descriptors or memory are short. Trying again at once would spin until a connection ends.
      fmt::print(stderr, "image_service: cannot accept: {}\n", error.message());
      co_await wait_for_change(steady_clock::now() + 100ms);
    }
  }
}

asio::awaitable<void> Server::serve(tcp::socket socket, Routes& routes, std::size_t body_limit) {
  const auto session = sessions_.emplace(sessions_.end(), std::move(socket), routes, body_limit);
  struct Removal {
    std::list<Session>& sessions;
    std::list<Session>::iterator session;
    ~Removal() { sessions.erase(session); }
  } const removal{sessions_, session};
  co_await session->run();
}

void Server::spawn(asio::awaitable<void> part) {
  ++spawned_;
  asio::co_spawn(strand_, std::move(part), [this](const std::exception_ptr& error) {
    --spawned_;
    change_.cancel();
    if (error) report(error);
  });
}

// May return early, when the other one who waits sets a deadline of its own; both look again at what they wait for.
asio::awaitable<void> Server::wait_for_change(steady_clock::time_point deadline) {
  change_.expires_at(deadline);
  co_await change_.async_wait(kTuple);
}

}  // namespace image_service
