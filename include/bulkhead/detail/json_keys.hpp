// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/error.hpp>
#include <boost/json/parse_options.hpp>
#include <boost/json/string_view.hpp>

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace bulkhead::detail {

// Looks for a key that an object has twice: Boost.JSON keeps the last of them, and says nothing.
class TwiceGivenKey {
 public:
  // Of a text that is JSON: the first such key and those that lead to it; empty if there is none.
  static std::vector<std::string> find(std::string_view text) {
    boost::json::basic_parser<TwiceGivenKey> parser{boost::json::parse_options()};
    boost::json::error_code error;
    parser.write_some(false, text.data(), text.size(), error);
    return parser.handler().found_;
  }

  // What Boost.JSON's parser wants of its handler.
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);
  using Error = boost::json::error_code;
  using Text = boost::json::string_view;

  bool on_object_begin(Error&) {
    objects_.emplace_back();
    return true;
  }
  bool on_object_end(std::size_t, Error&) {
    objects_.pop_back();
    return true;
  }
  bool on_key_part(Text text, std::size_t, Error&) {
    key_.append(text.data(), text.size());
    return true;
  }
  bool on_key(Text text, std::size_t, Error& error) {
    key_.append(text.data(), text.size());
    Object& object = objects_.back();
    object.last = key_;
    key_.clear();
    if (object.keys.insert(object.last).second) return true;
    for (const Object& outer : objects_) found_.push_back(outer.last);
    error = boost::json::error::exception;  // any, so that it goes no further
    return false;
  }

  bool on_document_begin(Error&) { return true; }
  bool on_document_end(Error&) { return true; }
  bool on_array_begin(Error&) { return true; }
  bool on_array_end(std::size_t, Error&) { return true; }
  bool on_string_part(Text, std::size_t, Error&) { return true; }
  bool on_string(Text, std::size_t, Error&) { return true; }
  bool on_number_part(Text, Error&) { return true; }
  bool on_int64(std::int64_t, Text, Error&) { return true; }
  bool on_uint64(std::uint64_t, Text, Error&) { return true; }
  bool on_double(double, Text, Error&) { return true; }
  bool on_bool(bool, Error&) { return true; }
  bool on_null(Error&) { return true; }
  bool on_comment_part(Text, Error&) { return true; }
  bool on_comment(Text, Error&) { return true; }

 private:
  struct Object {
    std::set<std::string> keys;
    std::string last;
  };
  std::vector<Object> objects_;
  std::string key_;
  std::vector<std::string> found_;
};

}  // namespace bulkhead::detail
