// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <list>

#include "routes.hpp"
#include "session.hpp"

namespace image_service {

/// Accepts connections and runs a session for each, all of them on one strand. HTTP is little work, and the pictures
/// are made in other processes; so one thread at a time is enough, and nothing here needs a lock.
class Server {
 public:
  /// More connections wait in the kernel until one ends. It bounds the memory that half-sent bodies can take, too:
  /// `kMaxConnections` times the body limit, if clients do their worst.
  static constexpr std::size_t kMaxConnections = 256;

  /// Binds the address; throws `std::runtime_error` if it is taken. `strand` is where everything runs.
  Server(bulkhead::asio::any_io_executor strand, const bulkhead::asio::ip::tcp::endpoint& address);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// The address that it listens on: with the real port, if 0 was asked for.
  bulkhead::asio::ip::tcp::endpoint address() const { return acceptor_.local_endpoint(); }

  /// Begins to serve. `routes` must live until `stop` has completed.
  void start(Routes& routes, std::size_t body_limit);

  /// Stops accepting, closes idle connections, and waits `grace` for the answers under way; then aborts what is left.
  /// Completes when no session is left. To be awaited on the strand, and before the server is destroyed.
  bulkhead::asio::awaitable<void> stop(std::chrono::steady_clock::duration grace);

 private:
  bulkhead::asio::awaitable<void> accept_all(Routes& routes, std::size_t body_limit);
  bulkhead::asio::awaitable<void> serve(bulkhead::asio::ip::tcp::socket socket, Routes& routes, std::size_t body_limit);
  void spawn(bulkhead::asio::awaitable<void> part);
  bulkhead::asio::awaitable<void> wait_for_change(std::chrono::steady_clock::time_point deadline);

  bulkhead::asio::any_io_executor strand_;
  bulkhead::asio::ip::tcp::acceptor acceptor_;
  std::list<Session> sessions_;
  std::size_t spawned_ = 0;              // coroutines of ours that have not ended: the acceptor and the sessions
  bulkhead::asio::steady_timer change_;  // cancelled whenever one of them ends
};

}  // namespace image_service
