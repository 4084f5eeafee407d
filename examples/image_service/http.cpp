// SPDX-License-Identifier: BSL-1.0
#include "http.hpp"

#include <fmt/format.h>

#include <boost/asio/error.hpp>
#include <bulkhead/bulkhead.hpp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <system_error>
#include <utility>

namespace image_service {
namespace {

// RFC 8259, section 7. Names of files need not be UTF-8, and a decoder's words can be anything: other bytes become '?'.
std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
    } else {
      out += byte < 0x7F ? c : '?';
    }
  }
  return out += '"';
}

Response retry_later(std::string_view message) {
  Response response = make_error(http::status::service_unavailable, message);
  response.set(http::field::retry_after, "1");
  return response;
}

// The details are for the log: they may name files and addresses.
Response internal_error(std::string_view details, std::string_view message) {
  fmt::print(stderr, "image_service: {}\n", details);
  return make_error(http::status::internal_server_error, message);
}

}  // namespace

Response make_response(http::status status, std::string_view content_type, Bytes body) {
  Response response(status, 11);
  response.set(http::field::server, "bulkhead-image-service");
  response.set(http::field::content_type, content_type);
  response.set(http::field::cache_control, "no-store");
  response.set("Content-Security-Policy",
               "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  response.set("X-Content-Type-Options", "nosniff");
  response.set("Referrer-Policy", "no-referrer");
  response.set("Cross-Origin-Resource-Policy", "same-origin");
  response.body() = std::move(body);
  return response;
}

Response make_response(http::status status, std::string_view content_type, std::string_view body) {
  const auto* begin = reinterpret_cast<const std::byte*>(body.data());
  return make_response(status, content_type, Bytes(begin, begin + body.size()));
}

Response make_error(http::status status, std::string_view message, std::string_view signal) {
  std::string body = fmt::format(R"({{"error":{})", json_string(message));
  if (!signal.empty()) body += fmt::format(R"(,"signal":{})", json_string(signal));
  return make_response(status, "application/json", body + "}\n");
}

std::string signal_name(int signal) {
  const char* name = sigabbrev_np(signal);
  return name != nullptr ? std::string("SIG") + name : fmt::format("signal {}", signal);
}

Response describe_current_exception() {
  try {
    throw;
  } catch (const DecodeError& error) {
    return make_error(http::status::unprocessable_entity, error.what());
  } catch (const bulkhead::PolicyViolationError& error) {
    const std::string call = error.system_call().empty() ? "a system call" : error.system_call();
    return make_error(
        http::status::bad_gateway,
        fmt::format("The decoder tried {}, which its sandbox forbids. Its worker process was ended, and is "
                    "being replaced; nothing else was hit.",
                    call),
        signal_name(SIGSYS));
  } catch (const bulkhead::WorkerCrashedError& error) {
    const std::string how =
        error.signal() != 0 ? signal_name(error.signal()) : fmt::format("exit code {}", error.exit_code().value_or(-1));
    return make_error(
        http::status::bad_gateway,
        fmt::format("The decoder died of {}. Its worker process is being replaced; nothing else was hit.", how), how);
  } catch (const bulkhead::ExecutorOverloadError& error) {
    return retry_later(fmt::format("{} pictures are being worked on already. Try again soon.", error.limit()));
  } catch (const bulkhead::WorkerStartError& error) {
    return retry_later(error.what());
  } catch (const bulkhead::ExecutorNotRunningError&) {
    Response response = make_error(http::status::service_unavailable, "The service is shutting down.");
    response.keep_alive(false);
    return response;
  } catch (const bulkhead::TaskTimeoutError& error) {
    const double seconds = std::chrono::duration<double>(error.limit()).count();
    return make_error(http::status::gateway_timeout, fmt::format("The picture took longer than {} s.", seconds));
  } catch (const boost::system::system_error& error) {
    // Cancelled: by a client that has gone, and will not read this, or by a shutdown that has lasted too long.
    if (error.code() == boost::asio::error::operation_aborted) return retry_later("The picture was given up.");
    return internal_error(error.what(), "Something unforeseen went wrong.");
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::no_such_file_or_directory) {
      return make_error(http::status::not_found, "The picture's file is gone.");
    }
    return internal_error(error.what(), "The picture's file cannot be read.");
  } catch (const std::exception& error) {
    return internal_error(error.what(), "Something unforeseen went wrong.");
  }
}

}  // namespace image_service
