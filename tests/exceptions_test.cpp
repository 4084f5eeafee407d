// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/errors.hpp>
#include <bulkhead/exceptions.hpp>

#include "support/catch.hpp"

#include <boost/asio/error.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/system/system_error.hpp>

#include <signal.h>
#include <any>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <ios>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <typeinfo>
#include <utility>
#include <variant>
#include <vector>

// Exceptions of a user's own; the registration macro is to be used at namespace scope, as here.
namespace app {

// Known by its text.
struct LicenceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Known by its text, and whose std::exception is not its first base.
struct Position {
  virtual ~Position() = default;
  int line = 7;
};
struct ParseError : Position, std::runtime_error {
  explicit ParseError(const std::string& text) : std::runtime_error(text) {}
};

// Known to the codec by a hook.
class DecodeError : public std::exception {
 public:
  DecodeError() = default;
  DecodeError(std::string file, std::uint64_t offset) : file_(std::move(file)), offset_(offset) {}
  const char* what() const noexcept override { return "the picture is broken"; }
  const std::string& file() const { return file_; }
  std::uint64_t offset() const { return offset_; }

  template <class Archive>
  void serialize(Archive& archive) {
    archive(file_, offset_);
  }

 private:
  std::string file_;
  std::uint64_t offset_ = 0;
};

// Known to the codec by a specialisation.
struct QuotaError : std::runtime_error {
  QuotaError(const std::string& text, int quota_) : std::runtime_error(text), quota(quota_) {}
  int quota;
};

// Known to the codec, which throws.
struct StubbornError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Can be encoded, and not be made anew.
struct OneWayError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Nobody registers these.
struct UnknownError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct SpecialLicenceError : LicenceError {
  using LicenceError::LicenceError;
};
struct Plain {
  int value = 0;
};
struct SpeechlessError : std::exception {
  const char* what() const noexcept override { return nullptr; }
};

}  // namespace app

template <>
struct bulkhead::codec<app::QuotaError> {
  static void encode(Encoder& encoder, const app::QuotaError& error) {
    bulkhead::encode(encoder, std::string(error.what()));
    bulkhead::encode(encoder, error.quota);
  }
  static app::QuotaError decode(Decoder& decoder) {
    const auto text = bulkhead::decode<std::string>(decoder);
    return {text, bulkhead::decode<int>(decoder)};
  }
};

template <>
struct bulkhead::codec<app::StubbornError> {
  static void encode(Encoder&, const app::StubbornError&) { throw std::runtime_error("not today"); }
  static app::StubbornError decode(Decoder&) { return app::StubbornError("never"); }
};

template <>
struct bulkhead::codec<app::OneWayError> {
  static void encode(Encoder&, const app::OneWayError&) {}
  static app::OneWayError decode(Decoder&) { throw std::runtime_error("no way back"); }
};

BULKHEAD_REGISTER_EXCEPTION(app::LicenceError)
BULKHEAD_REGISTER_EXCEPTION(app::ParseError)
BULKHEAD_REGISTER_EXCEPTION(app::DecodeError)
BULKHEAD_REGISTER_EXCEPTION(app::QuotaError)
BULKHEAD_REGISTER_EXCEPTION(app::StubbornError)
BULKHEAD_REGISTER_EXCEPTION(app::OneWayError)

namespace {

using namespace bulkhead;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Bytes = std::vector<std::byte>;

const ErrorContext& context() {
  static const ErrorContext made{.task = "resize", .task_id = 7, .executor = "images", .worker_pid = 4242};
  return made;
}

Bytes encoded(const std::exception_ptr& exception) {
  Encoder counting{std::span<std::byte>()};
  detail::encode_exception(counting, exception);
  Bytes bytes(counting.size());
  Encoder writing{std::span<std::byte>(bytes)};
  detail::encode_exception(writing, exception);
  return bytes;
}

std::exception_ptr decoded(std::span<const std::byte> bytes) {
  Decoder decoder(bytes, Decoder::Source::untrusted);
  std::exception_ptr exception = detail::decode_exception(decoder, context());
  decoder.finish();
  return exception;
}

std::exception_ptr there_and_back(const std::exception_ptr& exception) { return decoded(encoded(exception)); }

template <class F>
std::exception_ptr thrown_by(F f) {
  try {
    f();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

// The exception as an E, whatever the class that `throw_with_nested` put around it; null if it is none.
template <class E>
const E* as(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const E& error) {
    return &error;  // `exception` keeps it alive
  } catch (...) {
    return nullptr;
  }
}

std::string what(const std::exception_ptr& exception) {
  const auto* error = as<std::exception>(exception);
  return error != nullptr ? error->what() : "(no std::exception)";
}

std::exception_ptr cause_of(const std::exception_ptr& exception) {
  const auto* nested = as<std::nested_exception>(exception);
  return nested != nullptr ? nested->nested_ptr() : nullptr;
}

// A copy that has been away; REQUIREs that it can be caught as an E, and that its text is the same.
template <class E>
std::shared_ptr<const E> returned(const std::exception_ptr& thrown) {
  const std::exception_ptr back = there_and_back(thrown);
  INFO("thrown: " << detail::describe_exception(thrown) << "\nback: " << detail::describe_exception(back));
  const E* error = as<E>(back);
  REQUIRE(error != nullptr);
  CHECK(std::string(error->what()) == what(thrown));
  // Shares the ownership of the exception.
  return {std::make_shared<std::exception_ptr>(back), error};
}

template <class E>
std::shared_ptr<const E> returned(E error) {
  return returned<E>(std::make_exception_ptr(std::move(error)));
}

}  // namespace

TEMPLATE_TEST_CASE("a standard exception without a text comes back as itself", "[exceptions]", std::exception,
                   std::bad_exception, std::bad_alloc, std::bad_array_new_length, std::bad_cast, std::bad_typeid,
                   std::bad_function_call, std::bad_weak_ptr, std::bad_optional_access, std::bad_variant_access,
                   std::bad_any_cast) {
  CHECK(typeid(*returned(TestType())) == typeid(TestType));
}

TEMPLATE_TEST_CASE("a standard exception with a text comes back as itself with its text", "[exceptions]",
                   std::logic_error, std::domain_error, std::invalid_argument, std::length_error, std::out_of_range,
                   std::runtime_error, std::range_error, std::overflow_error, std::underflow_error) {
  CHECK(typeid(*returned(TestType("the text"))) == typeid(TestType));
  returned(TestType(""));
  returned(TestType("grün \xf0\x9f\x9a\xa2 \"quoted\"\n\\ and a bell\a"));
  returned(TestType(std::string(10'000, 'x')));
}

TEST_CASE("what the standard library throws by itself comes back as itself", "[exceptions]") {
  returned<std::out_of_range>(thrown_by([] { std::vector<int>().at(3) = 1; }));
  returned<std::invalid_argument>(thrown_by([] { [[maybe_unused]] const int i = std::stoi("no number"); }));
  returned<std::length_error>(thrown_by([] { std::string().reserve(std::string().max_size() + 1); }));
  returned<std::bad_optional_access>(thrown_by([] { [[maybe_unused]] const int i = std::optional<int>().value(); }));
  returned<std::bad_function_call>(thrown_by([] { std::function<void()>()(); }));
  returned<std::bad_any_cast>(thrown_by([] { [[maybe_unused]] const int i = std::any_cast<int>(std::any("text")); }));
  returned<std::bad_variant_access>(
      thrown_by([] { [[maybe_unused]] const int i = std::get<1>(std::variant<int, int>(std::in_place_index<0>, 3)); }));
}

TEST_CASE("a system_error comes back with its code and its text", "[exceptions]") {
  const std::error_code codes[] = {
      std::make_error_code(std::errc::no_such_file_or_directory),
      std::error_code(ECONNRESET, std::system_category()),
      std::error_code(0, std::system_category()),
      std::error_code(123456, std::generic_category()),
      std::error_code(-5, std::system_category()),
      std::make_error_code(std::io_errc::stream),
      std::make_error_code(std::future_errc::broken_promise),
  };
  for (const std::error_code& code : codes) {
    INFO(code);
    CHECK(returned(std::system_error(code, "cannot read"))->code() == code);
    CHECK(returned(std::system_error(code))->code() == code);
  }
}

TEST_CASE("whatever the text of a system_error looks like, what() is as it was", "[exceptions]") {
  const auto code = std::make_error_code(std::errc::no_such_file_or_directory);
  for (const std::string& text :
       {std::string(), std::string(" "), std::string(":"), std::string("reading: "), std::string("ends with a colon:"),
        code.message(), code.message() + ": again", "it said '" + code.message() + "', twice: " + code.message()}) {
    INFO("text '" << text << "'");
    CHECK(returned(std::system_error(code, text))->code() == code);
    CHECK(returned(std::ios_base::failure(text, code))->code() == code);
    CHECK(returned(std::filesystem::filesystem_error(text, "/a", code))->code() == code);
    const boost::system::error_code boost_code(code.value(), boost::system::generic_category());
    CHECK(returned(boost::system::system_error(boost_code, text))->code() == boost_code);
  }
}

TEST_CASE("an exception that has come back can go and come back again", "[exceptions]") {
  // A task may submit tasks of its own.
  const auto code = std::make_error_code(std::errc::io_error);
  for (const std::string& text : {std::string("reading"), std::string(), std::string("ends with a colon: ")}) {
    INFO("text '" << text << "'");
    const auto thrown = std::make_exception_ptr(std::system_error(code, text));
    const auto twice = there_and_back(there_and_back(thrown));
    REQUIRE(as<std::system_error>(twice) != nullptr);
    CHECK(as<std::system_error>(twice)->code() == code);
    CHECK(what(twice) == what(thrown));
  }
}

TEST_CASE("a failure of a stream comes back with its code", "[exceptions]") {
  CHECK(returned(std::ios_base::failure("cannot read"))->code() == std::io_errc::stream);
  const auto code = std::make_error_code(std::errc::io_error);
  CHECK(returned(std::ios_base::failure("cannot read", code))->code() == code);
}

TEST_CASE("a failure that a stream has thrown by itself comes back as one", "[exceptions]") {
  // The library throws a class of its own derived from it: the exact type does not matter, who catches it does.
  const auto thrown = thrown_by([] {
    std::ifstream file;
    file.exceptions(std::ios_base::failbit);
    file.open("/nowhere/at/all");
  });
  REQUIRE(as<std::ios_base::failure>(thrown) != nullptr);
  const auto back = there_and_back(thrown);
  INFO(detail::describe_exception(back));
  REQUIRE(as<std::ios_base::failure>(back) != nullptr);
  CHECK(what(back) == what(thrown));
  CHECK(as<std::ios_base::failure>(back)->code() == std::io_errc::stream);
}

TEST_CASE("a filesystem_error comes back with its code and its paths", "[exceptions]") {
  using std::filesystem::filesystem_error;
  const auto code = std::make_error_code(std::errc::permission_denied);
  const auto none = returned(filesystem_error("cannot copy", code));
  CHECK(none->code() == code);
  CHECK(none->path1().empty());
  const auto one = returned(filesystem_error("cannot remove", "/tmp/a b", code));
  CHECK(one->path1() == "/tmp/a b");
  CHECK(one->path2().empty());
  const auto two = returned(filesystem_error("cannot copy", "/from", "/to/Permission denied", code));
  CHECK(two->path1() == "/from");
  CHECK(two->path2() == "/to/Permission denied");
  const auto thrown =
      thrown_by([] { [[maybe_unused]] const auto size = std::filesystem::file_size("/nowhere/at/all"); });
  CHECK(returned<filesystem_error>(thrown)->path1() == "/nowhere/at/all");
}

TEST_CASE("a future_error comes back with its code", "[exceptions]") {
  using std::future_errc;
  for (const auto code : {future_errc::broken_promise, future_errc::future_already_retrieved,
                          future_errc::promise_already_satisfied, future_errc::no_state}) {
    CHECK(returned(std::future_error(code))->code() == code);
  }
}

TEST_CASE("a regex_error comes back with its code and its text", "[exceptions]") {
  namespace regex = std::regex_constants;
  CHECK(returned(std::regex_error(regex::error_brack))->code() == regex::error_brack);
  const auto thrown = thrown_by([] { std::regex("("); });
  CHECK(returned<std::regex_error>(thrown)->code() == regex::error_paren);
}

TEST_CASE("an error of Boost comes back with its code", "[exceptions]") {
  const boost::system::error_code codes[] = {
      boost::asio::error::operation_aborted,
      boost::asio::error::eof,
      boost::asio::error::host_not_found,
      boost::asio::error::service_not_found,
      boost::system::errc::make_error_code(boost::system::errc::timed_out),
      Errc::overload,
  };
  for (const auto& code : codes) {
    INFO(code);
    CHECK(returned(boost::system::system_error(code, "connect"))->code() == code);
    CHECK(returned(boost::system::system_error(code))->code() == code);
  }
}

TEST_CASE("an error that Asio has thrown by itself comes back with its code", "[exceptions]") {
  // boost::throw_exception wraps it in a class derived from it.
  const auto thrown = thrown_by([] { boost::asio::ip::make_address("no address"); });
  REQUIRE(as<boost::system::system_error>(thrown) != nullptr);
  const auto back = there_and_back(thrown);
  INFO(detail::describe_exception(back));
  REQUIRE(as<boost::system::system_error>(back) != nullptr);
  CHECK(as<boost::system::system_error>(back)->code() == boost::asio::error::invalid_argument);
  CHECK(what(back) == what(thrown));
}

TEST_CASE("an exception whose what() is null comes back with its type and no text", "[exceptions]") {
  const auto back = there_and_back(std::make_exception_ptr(app::SpeechlessError()));
  const auto* error = as<RemoteTaskError>(back);
  REQUIRE(error != nullptr);
  CHECK(error->type_name() == "app::SpeechlessError");
  CHECK(error->remote_what().empty());
}

TEST_CASE("an error of a category that is unknown here comes back with its name and text", "[exceptions]") {
  struct Category : std::error_category {
    const char* name() const noexcept override { return "weather"; }
    std::string message(int) const override { return "rain"; }
  };
  static const Category category;
  const auto back =
      there_and_back(std::make_exception_ptr(std::system_error(std::error_code(3, category), "no picnic")));
  const auto* error = as<RemoteTaskError>(back);
  REQUIRE(error != nullptr);
  CHECK(error->type_name() == "std::system_error");
  CHECK_THAT(error->remote_what(), ContainsSubstring("no picnic: rain") && ContainsSubstring("weather"));
}

TEST_CASE("a SerializationError comes back with its part, type and reason", "[exceptions]") {
  const auto error = returned(SerializationError(SerializationError::Part::argument, "app::Plain", "it is too large"));
  CHECK(error->part() == SerializationError::Part::argument);
  CHECK(error->type_name() == "app::Plain");
  CHECK(error->reason() == "it is too large");
  CHECK(error->code() == Errc::serialization);
}

TEST_CASE("a text that is too long to be a message is cut", "[exceptions]") {
  const auto back = there_and_back(std::make_exception_ptr(std::runtime_error(std::string(1'000'000, 'x'))));
  REQUIRE(as<std::runtime_error>(back) != nullptr);
  CHECK(what(back) == std::string(64 * 1024, 'x'));
}

TEST_CASE("a registered exception that is made from its text comes back as itself", "[exceptions]") {
  returned(app::LicenceError("none for this year"));
}

TEST_CASE("a registered exception whose first base is no exception comes back as itself", "[exceptions]") {
  CHECK(returned(app::ParseError("a bracket is missing"))->line == 7);
}

TEST_CASE("a registered exception that the codec knows comes back with its members", "[exceptions]") {
  const auto hook = returned(app::DecodeError("a.png", 123'456'789'012));
  CHECK(hook->file() == "a.png");
  CHECK(hook->offset() == 123'456'789'012);
  CHECK(returned(app::QuotaError("too many", -3))->quota == -3);
}

TEST_CASE("a registered exception that cannot be encoded keeps its name and its text", "[exceptions]") {
  const auto back = there_and_back(std::make_exception_ptr(app::StubbornError("I stay")));
  const auto* error = as<RemoteTaskError>(back);
  REQUIRE(error != nullptr);
  CHECK(error->type_name() == "app::StubbornError");
  CHECK_THAT(error->remote_what(), ContainsSubstring("I stay") && ContainsSubstring("not today"));
}

TEST_CASE("a registered exception that cannot be made anew keeps its name and its text", "[exceptions]") {
  const auto back = there_and_back(std::make_exception_ptr(app::OneWayError("I left")));
  const auto* error = as<RemoteTaskError>(back);
  REQUIRE(error != nullptr);
  CHECK(error->type_name() == "app::OneWayError");
  CHECK_THAT(error->remote_what(), ContainsSubstring("I left") && ContainsSubstring("no way back"));
}

TEST_CASE("an exception derived from a registered one is not taken for it", "[exceptions]") {
  const auto back = there_and_back(std::make_exception_ptr(app::SpecialLicenceError("special")));
  CHECK(as<app::LicenceError>(back) == nullptr);
  REQUIRE(as<RemoteTaskError>(back) != nullptr);
  CHECK(as<RemoteTaskError>(back)->type_name() == "app::SpecialLicenceError");
}

TEST_CASE("an exception of an unknown type comes back as a RemoteTaskError that says what it was", "[exceptions]") {
  const auto back = there_and_back(std::make_exception_ptr(app::UnknownError("who am I?")));
  const auto* error = as<RemoteTaskError>(back);
  REQUIRE(error != nullptr);
  CHECK(error->type_name() == "app::UnknownError");
  CHECK(error->remote_what() == "who am I?");
  CHECK(error->causes().empty());
  CHECK(error->code() == Errc::remote_exception);
  CHECK(error->context().task == "resize");
  CHECK(error->context().task_id == 7);
  CHECK(error->context().executor == "images");
  CHECK(error->context().worker_pid == 4242);
  CHECK_THAT(error->what(), ContainsSubstring("app::UnknownError: who am I?") && ContainsSubstring("'resize'") &&
                                ContainsSubstring("'images'"));
}

TEST_CASE("what is no std::exception comes back as a RemoteTaskError with its type, and its text if it is one",
          "[exceptions]") {
  struct Row {
    std::exception_ptr thrown;
    std::string type;
    std::string text;
  };
  const Row rows[] = {
      {std::make_exception_ptr(42), "int", ""},
      {std::make_exception_ptr(static_cast<const char*>("a literal")), "char const*", "a literal"},
      {std::make_exception_ptr(std::string("a string")), type_name<std::string>(), "a string"},
      {std::make_exception_ptr(app::Plain{3}), "app::Plain", ""},
      {std::make_exception_ptr(std::vector<int>{1}), type_name<std::vector<int>>(), ""},
      // Both are caught as a `const char*`, which is null.
      {std::make_exception_ptr(nullptr), "decltype(nullptr)", ""},
      {std::make_exception_ptr(static_cast<const char*>(nullptr)), "char const*", ""},
  };
  for (const Row& row : rows) {
    INFO(row.type);
    std::exception_ptr back;
    CHECK_NOTHROW(back = there_and_back(row.thrown));
    if (!back) continue;
    const auto* error = as<RemoteTaskError>(back);
    REQUIRE(error != nullptr);
    CHECK(error->type_name() == row.type);
    CHECK(error->remote_what() == row.text);
    CHECK_THAT(error->what(), ContainsSubstring(row.type) && ContainsSubstring(row.text));
  }
}

namespace {

template <class Inner, class Outer>
std::exception_ptr nested(const std::exception_ptr& inner, Outer outer) {
  return thrown_by([&] {
    try {
      std::rethrow_exception(inner);
    } catch (const Inner&) {
      std::throw_with_nested(std::move(outer));
    }
  });
}

}  // namespace

TEST_CASE("nested causes come back as their own types, however deep", "[exceptions]") {
  auto thrown = std::make_exception_ptr(std::system_error(std::make_error_code(std::errc::io_error), "read"));
  thrown = nested<std::system_error>(thrown, app::DecodeError("b.jpg", 17));
  thrown = nested<app::DecodeError>(thrown, app::ParseError("no header"));
  thrown = nested<app::ParseError>(thrown, std::invalid_argument("no picture"));

  const auto back = there_and_back(thrown);
  REQUIRE(as<std::invalid_argument>(back) != nullptr);
  CHECK(what(back) == "no picture");
  const auto second = cause_of(back);
  REQUIRE(as<app::ParseError>(second) != nullptr);
  CHECK(what(second) == "no header");
  CHECK(as<app::ParseError>(second)->line == 7);
  const auto third = cause_of(second);
  REQUIRE(as<app::DecodeError>(third) != nullptr);
  CHECK(as<app::DecodeError>(third)->file() == "b.jpg");
  CHECK(as<app::DecodeError>(third)->offset() == 17);
  const auto fourth = cause_of(third);
  REQUIRE(as<std::system_error>(fourth) != nullptr);
  CHECK(as<std::system_error>(fourth)->code() == std::errc::io_error);
  CHECK(what(fourth) == what(std::make_exception_ptr(std::system_error(EIO, std::generic_category(), "read"))));
  CHECK(cause_of(fourth) == nullptr);
}

TEST_CASE("a chain keeps its order whichever of its links are known here", "[exceptions]") {
  // All eight combinations of three links, known or not.
  for (unsigned known = 0; known < 8; ++known) {
    INFO("known links: " << (known & 1) << (known >> 1 & 1) << (known >> 2 & 1));
    std::exception_ptr thrown = (known & 1) != 0 ? std::make_exception_ptr(std::range_error("inner"))
                                                 : std::make_exception_ptr(app::UnknownError("inner"));
    thrown = (known & 2) != 0 ? nested<std::exception>(thrown, app::LicenceError("middle"))
                              : nested<std::exception>(thrown, app::UnknownError("middle"));
    thrown = (known & 4) != 0 ? nested<std::exception>(thrown, std::logic_error("outer"))
                              : nested<std::exception>(thrown, app::UnknownError("outer"));

    const auto outer = there_and_back(thrown);
    const auto middle = cause_of(outer);
    REQUIRE(middle != nullptr);
    const auto inner = cause_of(middle);
    REQUIRE(inner != nullptr);
    CHECK(cause_of(inner) == nullptr);
    CHECK((as<std::logic_error>(outer) != nullptr) == ((known & 4) != 0));
    CHECK((as<app::LicenceError>(middle) != nullptr) == ((known & 2) != 0));
    CHECK((as<std::range_error>(inner) != nullptr) == ((known & 1) != 0));
    if (const auto* error = as<RemoteTaskError>(outer)) {
      CHECK(error->type_name() == "app::UnknownError");
      CHECK(error->remote_what() == "outer");
      REQUIRE(error->causes().size() == 2);
      CHECK(error->causes()[0].what == "middle");
      CHECK(error->causes()[1].what == "inner");
      CHECK(error->causes()[1].type == ((known & 1) != 0 ? "std::range_error" : "app::UnknownError"));
      CHECK_THAT(error->what(), ContainsSubstring("outer; caused by ") && ContainsSubstring("middle; caused by "));
    }
  }
}

TEST_CASE("the cause of something that is no std::exception comes back, too", "[exceptions]") {
  const auto thrown = nested<std::range_error>(std::make_exception_ptr(std::range_error("inner")), app::Plain{1});
  const auto back = there_and_back(thrown);
  const auto* error = as<RemoteTaskError>(back);
  REQUIRE(error != nullptr);
  CHECK(error->type_name() == "app::Plain");
  REQUIRE(error->causes().size() == 1);
  CHECK(error->causes()[0].what == "inner");
  CHECK(as<std::range_error>(cause_of(back)) != nullptr);
}

TEST_CASE("something that is no std::exception can be a cause", "[exceptions]") {
  const auto back = there_and_back(nested<int>(std::make_exception_ptr(42), std::runtime_error("outer")));
  REQUIRE(as<std::runtime_error>(back) != nullptr);
  REQUIRE(as<RemoteTaskError>(cause_of(back)) != nullptr);
  CHECK(as<RemoteTaskError>(cause_of(back))->type_name() == "int");
}

TEST_CASE("a chain of 40 exceptions is cut after the outer 32", "[exceptions]") {
  std::exception_ptr thrown = std::make_exception_ptr(std::runtime_error("1"));
  for (int i = 2; i <= 40; ++i) thrown = nested<std::exception>(thrown, std::runtime_error(std::to_string(i)));
  std::exception_ptr link = there_and_back(thrown);
  int links = 0;
  for (; link; link = cause_of(link)) {
    REQUIRE(what(link) == std::to_string(40 - links));
    ++links;
  }
  CHECK(links == 32);
}

TEST_CASE("a chain described in words names each type and text", "[exceptions]") {
  auto thrown = nested<int>(std::make_exception_ptr(42), app::UnknownError("middle"));
  thrown = nested<std::exception>(thrown, std::logic_error("outer"));
  CHECK(detail::describe_exception(thrown) ==
        "std::logic_error: outer; caused by app::UnknownError: middle; caused by int");
}

namespace {

// What hostile bytes lead to: an exception, or a SerializationError that refuses them. Anything else is returned.
std::string damage_of(std::span<const std::byte> bytes) {
  try {
    return decoded(bytes) ? "" : "no exception at all";
  } catch (const SerializationError&) {
    return "";
  } catch (const std::exception& error) {
    return std::string(typeid(error).name()) + ": " + error.what();
  }
}

std::vector<std::exception_ptr> samples() {
  const auto code = std::make_error_code(std::errc::io_error);
  return {
      std::make_exception_ptr(std::runtime_error("text")),
      std::make_exception_ptr(std::bad_alloc()),
      std::make_exception_ptr(std::system_error(code, "read")),
      std::make_exception_ptr(std::ios_base::failure("read", code)),
      std::make_exception_ptr(std::filesystem::filesystem_error("copy", "/a", "/b", code)),
      std::make_exception_ptr(std::future_error(std::future_errc::no_state)),
      std::make_exception_ptr(std::regex_error(std::regex_constants::error_brace)),
      std::make_exception_ptr(boost::system::system_error(boost::asio::error::eof, "read")),
      std::make_exception_ptr(SerializationError(SerializationError::Part::result, "int", "odd")),
      std::make_exception_ptr(app::DecodeError("a.png", 3)),
      std::make_exception_ptr(app::QuotaError("too many", 3)),
      std::make_exception_ptr(app::UnknownError("unknown")),
      nested<std::exception>(std::make_exception_ptr(app::DecodeError("a.png", 3)), std::logic_error("outer")),
  };
}

}  // namespace

TEST_CASE("an encoded exception with damaged bytes is decoded or refused, and nothing else happens",
          "[exceptions][hostile]") {
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  for (const std::exception_ptr& sample : samples()) {
    const Bytes whole = encoded(sample);
    INFO(detail::describe_exception(sample));
    for (std::size_t size = 0; size < whole.size(); ++size) {
      const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
      REQUIRE_THROWS_AS(decoded(part), SerializationError);
    }
    for (int i = 0; i < 3'000; ++i) {
      Bytes bytes = whole;
      for (auto changes = 1 + random() % 4; changes-- > 0 && !bytes.empty();) {
        const auto at = bytes.begin() + static_cast<std::ptrdiff_t>(random() % bytes.size());
        switch (random() % 4) {
          case 0:
            *at = static_cast<std::byte>(random());
            break;
          case 1:
            *at ^= static_cast<std::byte>(1U << random() % 8);
            break;
          case 2:
            bytes.insert(at, static_cast<std::byte>(random()));
            break;
          default:
            bytes.erase(at);
        }
      }
      const std::string damage = damage_of(bytes);
      if (!damage.empty()) FAIL(damage);
    }
  }
}

TEST_CASE("any payload under the name of a known exception is decoded or refused", "[exceptions][hostile]") {
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const std::string names[] = {typeid(std::system_error).name(),
                               typeid(std::ios_base::failure).name(),
                               typeid(std::filesystem::filesystem_error).name(),
                               typeid(std::future_error).name(),
                               typeid(boost::system::system_error).name(),
                               typeid(std::regex_error).name(),
                               typeid(SerializationError).name(),
                               typeid(app::DecodeError).name(),
                               typeid(app::QuotaError).name(),
                               typeid(std::bad_alloc).name(),
                               typeid(RemoteTaskError).name(),
                               "",
                               "no type",
                               "St",
                               std::string(2000, 'P')};
  const std::string categories[] = {"generic",   "system",     "iostream", "future", "bulkhead",
                                    "asio.misc", "asio.netdb", "",         "weather"};
  for (int i = 0; i < 20'000; ++i) {
    Bytes payload(64);
    Encoder inner{std::span<std::byte>(payload)};
    if (random() % 2 == 0) {  // a code, nearly
      encode(inner, categories[random() % std::size(categories)]);
      encode(inner, static_cast<std::int32_t>(random() % 3 == 0 ? random() : random() % 20));
      encode(inner, std::string(random() % 10, 'x'));
    } else {
      for (unsigned k = 0; k < 40; ++k) encode(inner, static_cast<std::uint8_t>(random() % 3 == 0 ? random() : 1));
    }
    payload.resize(std::min<std::size_t>(inner.size(), random() % 65));
    Bytes bytes(4096);
    Encoder encoder{std::span<std::byte>(bytes)};
    encoder.write_size(1);
    encode(encoder, names[random() % std::size(names)]);
    encode(encoder, std::string("what"));
    encode(encoder, true);
    encode(encoder, payload);
    REQUIRE(encoder.fits());
    bytes.resize(encoder.size());
    const std::string damage = damage_of(bytes);
    if (!damage.empty()) FAIL(damage);
  }
}

TEST_CASE("a chain of no exception, or of more than can be sent, is refused", "[exceptions][hostile]") {
  for (const std::uint64_t count : {std::uint64_t{0}, std::uint64_t{33}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    Bytes bytes(10);
    Encoder encoder{std::span<std::byte>(bytes)};
    encoder.write_size(count);
    bytes.resize(encoder.size());
    CHECK_THROWS_AS(decoded(bytes), SerializationError);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The errors of this library.

namespace {

struct ErrorRow {
  std::shared_ptr<const ExecutorError> error;
  boost::system::error_code code;
  bool names_task;                 // the task's name and number, and the executor
  bool names_worker;               // the worker's process id
  std::vector<std::string> words;  // what happened, and what can be done about it
};

template <class E, class... Args>
std::shared_ptr<const ExecutorError> make(Args&&... args) {
  return std::make_shared<const E>(std::forward<Args>(args)...);
}

std::vector<ErrorRow> all_errors() {
  using Ending = WorkerCrashedError::Ending;
  using Stage = TaskCancelledError::Stage;
  const ErrorContext& c = context();
  return {
      {make<ExecutorOverloadError>(100, c), Errc::overload, true, false, {"max_pending = 100", "raise max_pending"}},
      {make<ExecutorOverloadError>(100, c, "it waited too long"),
       Errc::overload,
       true,
       false,
       {"it waited too long", "max_pending = 100"}},
      {make<ExecutorNotRunningError>(c), Errc::not_running, true, false, {"shut down", "make a new one"}},
      {make<ExecutorNotRunningError>(c, "this process inherited it"),
       Errc::not_running,
       true,
       false,
       {"this process inherited it"}},
      {make<WorkerCrashedError>(Ending{.signal = SIGSEGV,
                                       .exit_code = {},
                                       .started = Started::maybe,
                                       .peak_memory = 2048 * 1024,
                                       .run_time = 1500us},
                                c),
       Errc::worker_crashed,
       true,
       true,
       {"SIGSEGV", "may have had effects", "1.500 ms", "2048 KiB"}},
      {make<WorkerCrashedError>(Ending{.exit_code = 3, .started = Started::never}, c, "it was asked to"),
       Errc::worker_crashed,
       true,
       true,
       {"exit code 3", "had not begun", "it was asked to"}},
      {make<WorkerCrashedError>(Ending{.signal = 0, .exit_code = {}, .started = Started::finished}, c),
       Errc::worker_crashed,
       true,
       true,
       {"its result is lost"}},
      {make<WorkerStartError>("no memory", 3, c),
       Errc::worker_start_failed,
       false,
       false,
       {"no memory", "3 times in a row"}},
      {make<TaskTimeoutError>(TaskTimeoutError::Which::run, 2s, c),
       Errc::timeout,
       true,
       true,
       {"timeout", "2000.000 ms", "killed"}},
      {make<TaskTimeoutError>(TaskTimeoutError::Which::queue, 5ms, c),
       Errc::timeout,
       true,
       false,
       {"queue_timeout", "5.000 ms", "never ran"}},
      {make<TaskCancelledError>(Stage::waiting, c), boost::asio::error::operation_aborted, true, false, {"never ran"}},
      {make<TaskCancelledError>(Stage::queued, c), boost::asio::error::operation_aborted, true, false, {"never ran"}},
      {make<TaskCancelledError>(Stage::running, c, "the executor was shut down"),
       boost::asio::error::operation_aborted,
       true,
       false,
       {"may have had effects", "the executor was shut down"}},
      {make<TaskAbandonedError>(c), Errc::abandoned, true, false, {"io_context was destroyed"}},
      {make<RemoteTaskError>(ExceptionDescription{"app::Outer", "outer"},
                             std::vector<ExceptionDescription>{{"app::Inner", "inner"}, {"int", ""}}, c),
       Errc::remote_exception,
       true,
       false,
       {"app::Outer: outer", "caused by app::Inner: inner", "caused by int"}},
      {make<SerializationError>(SerializationError::Part::result, "app::Plain", "it is too large", c),
       Errc::serialization,
       true,
       false,
       {"the result", "app::Plain", "it is too large"}},
      {make<FunctionUnavailableError>("its library was loaded later", c),
       Errc::function_unavailable,
       true,
       false,
       {"its library was loaded later"}},
      {make<ProtocolError>("it answered twice", c), Errc::protocol, true, true, {"it answered twice", "killed"}},
      {make<RegistryConflictError>("images", "local (2 workers)", "local (4 workers)"),
       Errc::registry_conflict,
       false,
       false,
       {"local (2 workers)", "local (4 workers)", "remove('images')"}},
      {make<UnknownExecutorTypeError>("remot", std::vector<std::string>{"local", "remote"}),
       Errc::unknown_executor_type,
       false,
       false,
       {"'remot'", "local, remote", "register_factory"}},
  };
}

}  // namespace

TEST_CASE("each error says what happened to which task, executor and worker, and what to do", "[exceptions]") {
  for (const ErrorRow& row : all_errors()) {
    const std::string text = row.error->what();
    INFO(text);
    for (const std::string& word : row.words) CHECK_THAT(text, ContainsSubstring(word));
    if (row.names_task) {
      CHECK_THAT(text, ContainsSubstring("task 'resize' (#7)"));
      CHECK_THAT(text, ContainsSubstring("executor 'images'"));
      CHECK(row.error->context().task == "resize");
      CHECK(row.error->context().task_id == 7);
      CHECK(row.error->context().worker_pid == 4242);
    }
    if (row.names_worker) CHECK_THAT(text, ContainsSubstring("4242"));
  }
}

TEST_CASE("without a context the errors are sentences all the same", "[exceptions]") {
  CHECK_THAT(ExecutorOverloadError(1, {}).what(), ContainsSubstring("a task was refused"));
  CHECK_THAT(WorkerCrashedError({.signal = SIGKILL, .exit_code = {}}, {}).what(),
             ContainsSubstring("the worker process was killed"));
  CHECK_THAT(ProtocolError("odd").what(), ContainsSubstring("the worker process wrote"));
  CHECK(SerializationError(SerializationError::Part::value, "", "odd").what() ==
        std::string("a value could not be carried: odd"));
}

TEST_CASE("each error has its code, of the library's category", "[exceptions]") {
  for (const ErrorRow& row : all_errors()) {
    INFO(row.error->what());
    CHECK(row.error->code() == row.code);
    if (row.code != boost::asio::error::operation_aborted) {
      CHECK(row.error->code().category() == error_category());
    }
  }
}

TEST_CASE("generic code can catch each error as Boost's system_error, as std::exception and by its class",
          "[exceptions]") {
  for (const ErrorRow& row : all_errors()) {
    const boost::system::system_error* generic = row.error.get();
    CHECK(generic->code() == row.code);
    CHECK(std::string(static_cast<const std::exception*>(generic)->what()) == row.error->what());
  }
  CHECK_THROWS_AS(throw TaskAbandonedError(context()), ExecutorError);
  CHECK_THROWS_AS(throw TaskAbandonedError(context()), boost::system::system_error);
  CHECK_THROWS_AS(throw TaskAbandonedError(context()), std::exception);
}

TEST_CASE("a cancelled task has the code that every cancelled operation of Asio has", "[exceptions]") {
  const TaskCancelledError error(TaskCancelledError::Stage::running, context());
  CHECK(error.code() == boost::asio::error::operation_aborted);
  CHECK(error.code() == boost::system::errc::operation_canceled);
  CHECK(error.stage() == TaskCancelledError::Stage::running);
}

TEST_CASE("codes convert to error_code, compare, and have messages of their own", "[exceptions]") {
  CHECK(std::string(error_category().name()) == "bulkhead");
  std::set<std::string> messages;
  constexpr int kCodes = 12;
  for (int value = 1; value <= kCodes; ++value) {
    const boost::system::error_code code = static_cast<Errc>(value);
    CHECK(code.failed());
    CHECK(code == static_cast<Errc>(value));
    CHECK(code != static_cast<Errc>(value % kCodes + 1));
    CHECK(code.value() == value);
    messages.insert(code.message());
  }
  CHECK(messages.size() == kCodes);
  CHECK(messages.count("") == 0);
  CHECK_THAT(error_category().message(4711), ContainsSubstring("4711"));
  const std::error_code standard = boost::system::error_code(Errc::overload);
  CHECK(standard.value() == static_cast<int>(Errc::overload));
  CHECK(std::string(standard.category().name()) == "bulkhead");
}

TEST_CASE("errors carry what their accessors promise", "[exceptions]") {
  CHECK(ExecutorOverloadError(17, context()).limit() == 17);
  const WorkerCrashedError crashed(
      {.signal = SIGABRT, .exit_code = {}, .started = Started::finished, .peak_memory = 5, .run_time = 6ns}, {});
  CHECK(crashed.signal() == SIGABRT);
  CHECK_FALSE(crashed.exit_code());
  CHECK(crashed.started() == Started::finished);
  CHECK(crashed.peak_memory() == 5);
  CHECK(crashed.run_time() == 6ns);
  CHECK(WorkerCrashedError({.exit_code = 0}, {}).exit_code() == 0);
  const WorkerStartError start("no memory", 2, context());
  CHECK(start.reason() == "no memory");
  CHECK(start.failures_in_a_row() == 2);
  const TaskTimeoutError timeout(TaskTimeoutError::Which::queue, 3ms, context());
  CHECK(timeout.which() == TaskTimeoutError::Which::queue);
  CHECK(timeout.limit() == 3ms);
  CHECK(ProtocolError("odd").violation() == "odd");
  const RegistryConflictError conflict("a", "local", "remote");
  CHECK(conflict.existing() == "local");
  CHECK(conflict.requested() == "remote");
  CHECK(conflict.context().executor == "a");
  CHECK(UnknownExecutorTypeError("x", {"local"}).known() == std::vector<std::string>{"local"});
}

TEST_CASE("a copy of an error says the same after the original is gone", "[exceptions]") {
  auto original = std::make_unique<RemoteTaskError>(ExceptionDescription{"app::Outer", "outer"},
                                                    std::vector<ExceptionDescription>{}, context());
  const std::string text = original->what();
  const RemoteTaskError copy(*original);
  ExecutorError assigned(Errc::overload, "other");
  assigned = *original;
  original.reset();
  CHECK(copy.what() == text);
  CHECK(copy.type_name() == "app::Outer");
  CHECK(assigned.what() == text);
  CHECK(assigned.code() == Errc::remote_exception);
}
