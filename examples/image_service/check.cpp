// SPDX-License-Identifier: BSL-1.0

// Checks the image service from outside, as its clients see it: image_service_check BINARY [FOLDER]
// Prints a line for each check. Leaves with 0 only if all passed.

#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "check_client.hpp"
#include "check_service.hpp"

namespace {

using check::Connection;
using check::get;
using check::make_query;
using check::post;
using check::Reply;
using check::Service;
using check::http::field;
using check::http::verb;
using std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::size_t kWorkers = 2;
constexpr std::size_t kBodyLimit = std::size_t{1} << 20;

int failures = 0;

// One check: a sentence that is true if `body` does not throw.
void verify(const std::string& sentence, const std::function<void()>& body) {
  try {
    body();
    fmt::print("ok    {}\n", sentence);
  } catch (const std::exception& error) {
    ++failures;
    fmt::print("FAIL  {}\n      {}\n", sentence, error.what());
  }
  std::fflush(stdout);
}

void require(bool condition, const std::string& otherwise) {
  if (!condition) throw std::runtime_error(otherwise);
}

void require_status(const Reply& reply, unsigned expected) {
  require(reply.result_int() == expected,
          fmt::format("status {} instead of {}: {:.200}", reply.result_int(), expected, reply.body()));
}

void require_text(std::string_view text, std::string_view part) {
  require(text.find(part) != text.npos, fmt::format("\"{}\" is not in: {:.300}", part, text));
}

void require_picture(const Reply& reply) {
  require_status(reply, 200);
  const std::string_view type(reply[field::content_type].data(), reply[field::content_type].size());
  const std::string_view magic = type == "image/png" ? "\x89PNG\r\n" : "\xFF\xD8\xFF";
  require(reply.body().starts_with(magic), fmt::format("the body is no {}", type));
  require(type == "image/png" || reply.body().ends_with("\xFF\xD9"), "the JPEG picture has no end");
}

// The number of this name in /state.
std::size_t state(std::uint16_t port, std::string_view name) {
  const Reply reply = get(port, "/state");
  require_status(reply, 200);
  const std::string key = fmt::format("\"{}\":", name);
  const std::size_t at = reply.body().find(key);
  require(at != std::string::npos, fmt::format("/state has no {}: {}", name, reply.body()));
  return std::stoul(reply.body().substr(at + key.size()));
}

// What is awaited happens in other processes, which say nothing: asking again and again is the only way to see it.
void wait_until(const std::string& what, std::chrono::seconds deadline, const std::function<bool()>& condition) {
  const auto end = steady_clock::now() + deadline;
  while (!condition()) {
    require(steady_clock::now() < end, fmt::format("{} did not happen within {} s", what, deadline.count()));
    std::this_thread::sleep_for(5ms);
  }
}

void wait_until_whole(std::uint16_t port, std::size_t workers) {
  wait_until(fmt::format("{} workers and no task", workers), 10s, [&] {
    return state(port, "workers") == workers && state(port, "running") == 0 && state(port, "pending") == 0;
  });
}

// A picture in the made-up format (see demo_format.hpp) of 4096 x 4096 pixels, all of it painted over `times` times:
// some milliseconds of work each. Many make a picture that outlasts every deadline in here.
std::string busy_picture(std::uint32_t times) {
  std::string bytes = "BLK1";
  const auto append = [&](std::uint32_t number) {
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(number >> shift & 0xFF);
  };
  for (const std::uint32_t number : {4096U, 4096U, times}) append(number);
  for (std::uint32_t i = 0; i < times; ++i) {
    for (const std::uint32_t number : {0U, 0U, 4096U, 4096U, 0xFF00'0000U + i}) append(number);
  }
  return bytes;
}

constexpr std::uint32_t kHalfASecond = 60;
constexpr std::uint32_t kNeverDone = 40'000;

// Posts a picture, and returns once it is in the pool.
void post_and_leave(Connection& connection, std::uint16_t port, std::string picture) {
  const std::size_t before = state(port, "submitted");
  connection.send(make_query(verb::post, "/thumb", std::move(picture)));
  wait_until("the task", 10s, [&] { return state(port, "submitted") > before; });
}

std::vector<std::string> names_on(std::string_view page) {
  std::vector<std::string> names;
  constexpr std::string_view kLink = "href=\"/thumb/";
  for (std::size_t at = page.find(kLink); at != page.npos; at = page.find(kLink, at)) {
    at += kLink.size();
    names.emplace_back(page.substr(at, page.find('?', at) - at));
  }
  return names;
}

std::vector<std::string> check_gallery(std::uint16_t port) {
  std::vector<std::string> names;
  verify("the page lists the gallery's pictures", [&] {
    const Reply page = get(port, "/");
    require_status(page, 200);
    require_text(page["Content-Security-Policy"], "default-src 'none'");
    names = names_on(page.body());
    require(!names.empty(), "there is no picture on the page");
  });
  verify("style, script and icon of the page are there", [&] {
    for (const char* part : {"/style.css", "/app.js", "/icon.svg"}) require_status(get(port, part), 200);
  });
  verify(fmt::format("all {} thumbnails are pictures, in two sizes", names.size()), [&] {
    for (const std::string& name : names) {
      require_picture(get(port, "/thumb/" + name));
      require_picture(get(port, fmt::format("/thumb/{}?width=640", name)));
    }
  });
  verify("a thumbnail that the client has is not sent again (304)", [&] {
    const std::string target = "/thumb/" + names.at(0);
    auto again = make_query(verb::get, target);
    again.set(field::if_none_match, get(port, target)[field::etag]);
    require_status(check::fetch(port, again), 304);
  });
  return names;
}

void check_numbers(std::uint16_t port) {
  verify("/metrics is in Prometheus' format", [&] {
    const Reply metrics = get(port, "/metrics");
    require_text(metrics[field::content_type], "version=0.0.4");
    for (const char* name : {"workers", "pending", "running", "submitted_total", "completed_total", "failed_total",
                             "rejected_total", "cancelled_total", "timed_out_total", "workers_crashed_total"}) {
      require_text(metrics.body(), fmt::format("\nbulkhead_{}{{executor=\"images\"", name));
    }
  });
  verify("submitted = completed + failed + cancelled + timed out + pending + running", [&] {
    std::size_t sum = 0;
    for (const char* name : {"completed", "failed", "cancelled", "timed_out", "pending", "running"}) {
      sum += state(port, name);
    }
    const std::size_t submitted = state(port, "submitted");
    require(submitted == sum && sum > 0, fmt::format("{} were submitted, and {} accounted for", submitted, sum));
  });
}

void check_posts(std::uint16_t port, const std::string& name) {
  const std::string jpeg = post(port, "/thumb?width=400", busy_picture(1)).body();
  verify("a posted picture comes back as a thumbnail", [&] {
    require_picture(post(port, "/thumb?width=64", jpeg));
    require_picture(post(port, "/thumb", get(port, "/samples/valid.blk").body()));
    require_picture(post(port, "/thumb?width=200", get(port, "/thumb/" + name).body()));
  });
  verify("a broken picture is answered 422 with the decoder's words", [&] {
    const Reply cut = post(port, "/thumb", jpeg.substr(0, jpeg.size() / 2));
    require_status(cut, 422);
    require_text(cut.body(), "JPEG: Premature end");
    const Reply damaged = post(port, "/thumb", "\x89PNG\r\n\x1A\n and then nonsense, not chunks");
    require_status(damaged, 422);
    require_text(damaged.body(), "PNG: ");
    require_status(post(port, "/thumb", "this is no picture"), 422);
  });
  verify("a picture that claims to be huge is answered 422", [&] {
    const Reply huge = post(port, "/thumb", std::string("BLK1\xFF\xFF\0\0\xFF\xFF\0\0\0\0\0\0", 16));
    require_status(huge, 422);
    require_text(huge.body(), "65535 x 65535");
  });
}

void check_crashes(std::uint16_t port, const std::string& name) {
  const std::string hostile = get(port, "/samples/hostile.blk").body();
  const std::size_t before = state(port, "workers_crashed");
  verify("a picture that crashes its decoder is answered 502 with SIGSEGV", [&] {
    const Reply reply = post(port, "/thumb", hostile);
    require_status(reply, 502);
    require_text(reply.body(), "\"signal\":\"SIGSEGV\"");
  });
  verify("the next thumbnail works at once, and the pool is whole again", [&] {
    require_picture(get(port, "/thumb/" + name));
    wait_until_whole(port, kWorkers);
    require(state(port, "workers_crashed") == before + 1, "not one crash was counted");
  });
  verify("of 20 posts at a time the 10 hostile ones fail, and only those", [&] {
    const std::string valid = get(port, "/samples/valid.blk").body();
    std::list<Connection> connections;
    for (int i = 0; i < 20; ++i) {
      connections.emplace_back(port).send(make_query(verb::post, "/thumb", i % 2 == 0 ? hostile : valid));
    }
    bool crashes = true;
    for (Connection& connection : connections) {
      require_status(connection.receive(), crashes ? 502 : 200);
      crashes = !crashes;
    }
    wait_until_whole(port, kWorkers);
    require(state(port, "workers_crashed") == before + 11, "not 11 crashes were counted");
  });
}

void check_sandbox(std::uint16_t port, const std::string& name) {
  verify("/sandbox, and the page, tell what is in force in each worker", [&] {
    const std::string report = get(port, "/sandbox").body();
    require_text(report, "profile untrusted");
    for (const char* item : {"file_access", "system_calls", "no_new_privileges"}) {
      const std::size_t line = report.find(item);
      require(line != report.npos, fmt::format("{} is missing: {}", item, report));
      require_text(std::string_view(report).substr(line, report.find('\n', line) - line), "in force");
    }
    require_text(get(port, "/").body(), "profile untrusted");
  });
  verify("a picture that takes its decoder over reads no file, writes none, and does not listen", [&] {
    const Reply reply = post(port, "/thumb", get(port, "/samples/escape.blk").body());
    require_status(reply, 422);
    for (const char* attempt : {"read /etc/passwd", "write a file", "listen on a TCP port"}) {
      require_text(reply.body(), fmt::format("{}: Permission denied", attempt));
    }
  });
  verify("one that starts a program is answered 502 with the system call, and only its worker is lost", [&] {
    const std::size_t before = state(port, "workers_crashed");
    const Reply reply = post(port, "/thumb", get(port, "/samples/execute.blk").body());
    require_status(reply, 502);
    require_text(reply.body(), "tried execve, which its sandbox forbids");
    require_text(reply.body(), "\"signal\":\"SIGSYS\"");
    require_picture(get(port, "/thumb/" + name));
    wait_until_whole(port, kWorkers);
    require(state(port, "workers_crashed") == before + 1, "not one crash was counted");
  });
  verify("what one client's picture leaves in a worker, no other client's finds", [&] {
    const std::string linger = get(port, "/samples/linger.blk").body();
    // More than there are workers, so that all have a mark if they can be had.
    for (std::size_t i = 0; i < 2 * kWorkers; ++i) require_status(post(port, "/thumb", linger), 422);
    Connection other(port, "127.0.0.2");
    other.send(make_query(verb::post, "/thumb", linger));
    require_text(other.receive().body(), "found nobody's there");
  });
}

// That the same pictures do harm where nothing keeps them from it: else the checks above would show nothing.
void check_without_sandbox(const std::string& binary, const std::vector<std::string>& folder) {
  std::vector<std::string> arguments{"--port", "0", "--workers=1", "--sandbox=trusted"};
  arguments.insert(arguments.end(), folder.begin(), folder.end());
  Service service(binary, arguments);
  const std::uint16_t port = service.wait_for_port();
  verify("with --sandbox=trusted the same pictures read a file, start a program, and find what was left", [&] {
    require_text(post(port, "/thumb", get(port, "/samples/escape.blk").body()).body(), "read /etc/passwd: done");
    require_text(post(port, "/thumb", get(port, "/samples/execute.blk").body()).body(), "exit code 0");
    const std::string linger = get(port, "/samples/linger.blk").body();
    post(port, "/thumb", linger);
    require_text(post(port, "/thumb", linger).body(), "found 1 there");
  });
}

void check_refusals(std::uint16_t port, const std::string& name) {
  verify("a body above the limit is answered 413", [&] {
    require_status(post(port, "/thumb", std::string(kBodyLimit + 1, 'x')), 413);
    // Of unknown length: only counting tells.
    Connection chunked(port);
    chunked.send_raw("POST /thumb HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n");
    chunked.send_raw(std::string(kBodyLimit + 1, 'x'));
    require_status(chunked.receive(), 413);
  });
  verify("a width that is none is answered 400", [&] {
    for (const char* width : {"15", "2049", "-1", "wide", "", "320px", "99999999999999999999"}) {
      require_status(get(port, fmt::format("/thumb/{}?width={}", name, width)), 400);
      require_status(post(port, fmt::format("/thumb?width={}", width), "x"), 400);
    }
  });
  verify("what does not exist is answered 404", [&] {
    for (const char* target : {"/nothing", "/thumb/nothing", "/thumb/", "/thumb/../../etc/passwd",
                               "/thumb/..%2f..%2fetc%2fpasswd", "/../etc/passwd"}) {
      require_status(get(port, target), 404);
    }
  });
  verify("a wrong method is answered 405 with the right ones", [&] {
    const Reply reply = post(port, "/state", "x");
    require_status(reply, 405);
    require(reply[field::allow] == "GET, HEAD", "the Allow header is wrong");
    require_status(get(port, "/thumb"), 405);
  });
  verify("what is not HTTP is answered 400, an endless header 431", [&] {
    Connection nonsense(port);
    nonsense.send_raw("nonsense\r\n\r\n");
    require_status(nonsense.receive(), 400);
    Connection endless(port);
    endless.send_raw("GET / HTTP/1.1\r\nX: " + std::string(20'000, 'x'));
    require_status(endless.receive(), 431);
  });
}

void check_connections(std::uint16_t port) {
  verify("/healthz says ok", [&] { require_text(get(port, "/healthz").body(), "ok"); });
  verify("HEAD is answered as GET, without the body", [&] {
    const Reply head = check::fetch(port, make_query(verb::head, "/style.css"));
    require_status(head, 200);
    require(head.body().empty(), "there is a body");
    require(std::stoul(std::string(head[field::content_length])) == get(port, "/style.css").body().size(),
            "the length is not that of GET");
  });
  verify("a request sent while another is answered neither disturbs nor gets lost", [&] {
    Connection connection(port);
    post_and_leave(connection, port, busy_picture(kHalfASecond));
    connection.send(make_query(verb::get, "/healthz"));
    require_picture(connection.receive());
    require_text(connection.receive().body(), "ok");
  });
  verify("a client that goes away cancels its task, and frees the worker", [&] {
    const std::size_t before = state(port, "cancelled");
    {
      Connection connection(port);
      post_and_leave(connection, port, busy_picture(kNeverDone));
      wait_until("the picture's run", 10s, [&] { return state(port, "running") > 0; });
    }
    wait_until("the cancellation", 5s, [&] { return state(port, "cancelled") == before + 1; });
    wait_until_whole(port, kWorkers);
  });
}

void check_limits(const std::string& binary, const std::vector<std::string>& folder) {
  std::vector<std::string> arguments{"--port", "0", "--workers", "1", "--max-pending", "2", "--timeout", "1"};
  arguments.insert(arguments.end(), folder.begin(), folder.end());
  Service service(binary, arguments);
  const std::uint16_t port = service.wait_for_port();
  std::list<Connection> busy;
  verify("a full pool is answered 503 with Retry-After", [&] {
    for (int i = 0; i < 2; ++i) post_and_leave(busy.emplace_back(port), port, busy_picture(kNeverDone));
    const Reply refused = post(port, "/thumb", get(port, "/samples/valid.blk").body());
    require_status(refused, 503);
    require(!refused[field::retry_after].empty(), "there is no Retry-After");
  });
  verify("a picture that takes too long is answered 504, and then the pool is whole", [&] {
    for (Connection& connection : busy) require_status(connection.receive(), 504);
    wait_until_whole(port, 1);
    require_picture(post(port, "/thumb", get(port, "/samples/valid.blk").body()));
  });
  verify("SIGTERM stops it with 0, too", [&] {
    service.signal(SIGTERM);
    const int code = service.wait_for_end(10s);
    require(code == 0, fmt::format("it left with {}", code));
  });
}

void check_command_line(const std::string& binary, std::uint16_t taken_port) {
  const auto expect = [&](std::vector<std::string> arguments, int code, std::string_view words) {
    Service service(binary, std::move(arguments), true);
    const int actual = service.wait_for_end(20s);
    require(actual == code, fmt::format("it left with {} instead of {}: {}", actual, code, service.output()));
    require_text(service.output(), words);
  };
  verify("a taken port ends it with 1, a wrong option with 2, and both say why", [&] {
    const std::string port = std::to_string(taken_port);
    expect({"--port", port}, 1, "cannot listen on 127.0.0.1 port " + port);
    expect({"--no-such-option"}, 2, "unknown option --no-such-option");
    expect({"--workers", "many"}, 2, "--workers must be a number from 1 to 256, not \"many\"");
    expect({"--sandbox=none"}, 2, "--sandbox must be trusted, contained or untrusted, not \"none\"");
    expect({"/no/such/folder"}, 2, "/no/such/folder is not a folder");
    expect({"--help"}, 0, "Usage: image_service");
  });
}

void check_stop(Service& service, std::uint16_t port) {
  const std::vector<check::Process> processes = check::descendants(service.pid());
  verify("Ctrl-C lets an answer under way be finished, and ends the service with 0", [&] {
    Connection idle(port);
    Connection busy(port);
    post_and_leave(busy, port, busy_picture(kHalfASecond));
    service.signal(SIGINT);
    const Reply last = busy.receive();
    require_picture(last);
    require(!last.keep_alive(), "the connection was not to be closed");
    const int code = service.wait_for_end(12s);
    require(code == 0, fmt::format("it left with {}", code));
    require_text(service.output(), "Stopped.");
  });
  verify(fmt::format("none of its {} processes is left", processes.size()), [&] {
    for (const check::Process& process : processes) {
      wait_until(fmt::format("the end of process {}", process.pid), 2s, [&] { return !check::runs(process); });
    }
    require(processes.size() > kWorkers, "it never had a fork server and workers");
  });
  verify("nobody listens any more", [&] {
    bool refused = false;
    try {
      Connection connection(port);
    } catch (const boost::system::system_error& error) {
      refused = error.code() == boost::asio::error::connection_refused;
    }
    require(refused, "a connection was not refused");
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    fmt::print(stderr, "usage: image_service_check BINARY [FOLDER]\n");
    return 2;
  }
  const std::string binary = argv[1];
  const std::vector<std::string> folder(argv + 2, argv + argc);
  try {
    std::vector<std::string> arguments{
        "--port", "0", "--workers", std::to_string(kWorkers), "--body-limit", std::to_string(kBodyLimit)};
    arguments.insert(arguments.end(), folder.begin(), folder.end());
    Service service(binary, arguments);
    const std::uint16_t port = service.wait_for_port();
    const std::vector<std::string> names = check_gallery(port);
    const std::string name = names.empty() ? "none" : names.front();
    check_posts(port, name);
    check_crashes(port, name);
    check_sandbox(port, name);
    check_refusals(port, name);
    check_connections(port);
    check_numbers(port);
    check_limits(binary, folder);
    check_without_sandbox(binary, folder);
    check_command_line(binary, port);
    check_stop(service, port);
  } catch (const std::exception& error) {
    ++failures;
    fmt::print("FAIL  the service works\n      {}\n", error.what());
  }
  fmt::print("{}\n", failures == 0 ? "All checks passed." : fmt::format("{} checks failed.", failures));
  return failures == 0 ? 0 : 1;
}
