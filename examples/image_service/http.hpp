// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/beast/http/message.hpp>
#include <boost/beast/http/vector_body.hpp>
#include <string>
#include <string_view>

#include "picture.hpp"

namespace image_service {

namespace http = boost::beast::http;

/// Bodies are the very vectors that the pool takes and gives, so that no picture is copied on its way.
using Body = http::vector_body<std::byte>;
using Request = http::request<Body>;
using Response = http::response<Body>;

/// An answer with the headers that all have: nothing may be loaded from elsewhere, and no guessing of types.
Response make_response(http::status status, std::string_view content_type, Bytes body = {});
Response make_response(http::status status, std::string_view content_type, std::string_view body);

/// `{"error": ...}`, with a signal's name if one ended the decoder.
Response make_error(http::status status, std::string_view message, std::string_view signal = {});

/// The answer to what a request ran into: which failure is whose fault, and what the client can do.
/// Call it in a `catch` block. What nobody foresaw becomes a 500 without details, and a line on stderr with them.
Response describe_current_exception();

/// "SIGSEGV" for 11.
std::string signal_name(int signal);

}  // namespace image_service
