// SPDX-License-Identifier: BSL-1.0

// A web server that shows pictures it does not trust: each is decoded in a worker process of Bulkhead.

#include <fmt/format.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <bulkhead/bulkhead.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>

#include "gallery.hpp"
#include "options.hpp"
#include "routes.hpp"
#include "server.hpp"

namespace {

namespace asio = bulkhead::asio;
using asio::ip::tcp;
using image_service::Options;
using namespace std::chrono_literals;

// On Ctrl-C, so long for answers under way, and so long in all, the pool's last tasks included.
constexpr auto kGrace = 5s;
constexpr auto kDrain = 10s;

// What a disk can work on at once.
constexpr unsigned kFileThreads = 4;

tcp::endpoint endpoint_of(const Options& options) {
  boost::system::error_code error;
  const asio::ip::address address = asio::ip::make_address(options.address, error);
  if (error) throw image_service::UsageError(fmt::format("\"{}\" is no IP address", options.address));
  return tcp::endpoint(address, options.port);
}

std::string to_url(const tcp::endpoint& address) {
  std::string host = address.address().to_string();
  if (address.address().is_v6()) host = "[" + host + "]";
  return fmt::format("http://{}:{}/", host, address.port());
}

asio::awaitable<void> serve(bulkhead::Lifecycle& lifecycle, Options options) {
  const asio::any_io_executor strand = co_await asio::this_coro::executor;
  // First the port, which is the likeliest thing to fail.
  image_service::Server server(strand, endpoint_of(options));
  // A connection reads one file at a time, so none is turned away here.
  const auto files = lifecycle.executors().get_or_create<bulkhead::ThreadExecutor>(
      "files", bulkhead::ThreadExecutorOptions{.max_threads = kFileThreads,
                                               .max_pending = image_service::Server::kMaxConnections});
  const auto pool = lifecycle.executors().get_or_create<bulkhead::LocalExecutor>(
      "images", bulkhead::LocalExecutorOptions{.max_workers = options.workers,
                                               .max_pending = options.max_pending,
                                               .sandbox = options.sandbox,
                                               // What a decoder that was taken over prints is for nobody's terminal.
                                               .capture_output = bulkhead::CaptureOutput::capture});
  const image_service::Gallery gallery = co_await image_service::load_gallery(*files, *pool, options.folder);
  image_service::Routes routes(*files, *pool, gallery, options.task_timeout);
  server.start(routes, options.body_limit);
  lifecycle.on_stop([&server]() -> asio::awaitable<void> {
    fmt::print("Stopping: answers under way are finished.\n");
    std::fflush(stdout);
    co_await server.stop(kGrace);
  });

  fmt::print("Bulkhead image service: {}\n", to_url(server.address()));
  fmt::print("{} pictures from {}, {} worker processes, sandbox {}. Ctrl-C stops it.\n", gallery.pictures().size(),
             gallery.place(), pool->options().max_workers, options.sandbox.profile);
  std::fflush(stdout);

  co_await lifecycle.run();
  const bulkhead::Metrics metrics = pool->metrics();
  fmt::print("Stopped. {} pictures were made, {} workers crashed.\n", metrics.completed, metrics.workers_crashed);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = image_service::parse_options(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
    if (options.help) {
      fmt::print("{}", image_service::usage());
      return 0;
    }
    asio::io_context io;
    const asio::any_io_executor strand = asio::make_strand(io);
    // Before the program has threads: it starts the fork server. Ctrl-C is caught from here on, so that none finds the
    // service half-started.
    bulkhead::Lifecycle lifecycle(strand, {.drain_timeout = kDrain});
    asio::co_spawn(strand, serve(lifecycle, options), [](const std::exception_ptr& error) {
      if (error) std::rethrow_exception(error);
    });
    io.run();
    return 0;
  } catch (const image_service::UsageError& error) {
    fmt::print(stderr, "image_service: {}\n\n{}", error.what(), image_service::usage());
    return 2;
  } catch (const bulkhead::WorkerStartError& error) {
    fmt::print(stderr, "image_service: {} (--sandbox trusted asks for less)\n", error.what());
    return 1;
  } catch (const boost::system::system_error& error) {
    fmt::print(stderr, "image_service: {}\n", error.what());
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "image_service: {}\n", error.what());
    return 1;
  }
}
