// SPDX-License-Identifier: BSL-1.0
// What a worker may say that a task threw, and did not.
#include <bulkhead/errors.hpp>
#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>

#include "support/catch.hpp"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <regex>
#include <span>
#include <string>
#include <typeinfo>
#include <vector>

namespace {

using bulkhead::Decoder;
using bulkhead::Encoder;
using bulkhead::RemoteTaskError;

struct Nothing {};

struct ManyNothings : std::exception {
  std::vector<std::vector<Nothing>> nothings;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(nothings);
  }
};

// A chain of one exception as a worker writes it.
std::vector<std::byte> thrown(const std::string& mangled, const std::string& type, bool has_payload = false,
                              const std::vector<std::byte>& payload = {}) {
  std::vector<std::byte> bytes(mangled.size() + type.size() + payload.size() + 100);
  Encoder encoder{std::span<std::byte>(bytes)};
  encoder.write_size(1);
  bulkhead::encode(encoder, mangled);
  bulkhead::encode(encoder, type);
  bulkhead::encode(encoder, std::string("words"));
  bulkhead::encode(encoder, has_payload);
  bulkhead::encode(encoder, payload);
  bytes.resize(encoder.size());
  return bytes;
}

// As what it arrives; fails if it is none that has a type of its own.
RemoteTaskError remote(std::span<const std::byte> bytes) {
  Decoder decoder(bytes, Decoder::Source::untrusted);
  try {
    std::rethrow_exception(bulkhead::detail::decode_exception(decoder, {}));
  } catch (const RemoteTaskError& error) {
    return error;
  }
}

}  // namespace

BULKHEAD_REGISTER_EXCEPTION(ManyNothings)

TEST_CASE("a mangled name that would take the host's memory is shown as it is", "[exceptions][hostile]") {
  // Each step is a template of two of the step before: demangled, 25 of them are 2 GiB.
  std::string mangled = "St4pairIiiE";
  for (int i = 1; i <= 25; ++i) {
    const char digit = static_cast<char>(i <= 10 ? '0' + i - 1 : 'A' + i - 11);
    const std::string step = std::string("S") + digit + "_";
    mangled += "S_I" + step + step + "E";
  }
  CHECK(remote(thrown("_Z1f" + mangled, "")).type_name() == "_Z1f" + mangled);
}

TEST_CASE("a type that the host does not know has the name that the worker gives it", "[exceptions][hostile]") {
  CHECK(remote(thrown("N3app5ErrorE", "app::Error")).type_name() == "app::Error");
}

TEST_CASE("members of an exception that take no bytes may not take more memory than the answer around them could",
          "[exceptions][hostile]") {
  std::vector<std::byte> payload(10);
  Encoder encoder{std::span<std::byte>(payload)};
  encoder.write_size(1);                       // one vector
  encoder.write_size(std::uint64_t{1} << 40);  // of so many
  payload.resize(encoder.size());
  const RemoteTaskError error = remote(thrown(typeid(ManyNothings).name(), "", true, payload));
  CHECK_THAT(error.what(), Catch::Matchers::ContainsSubstring("could not be rebuilt"));
}

TEST_CASE("an exception with a code that there is not arrives as a description", "[exceptions][hostile]") {
  for (const std::int32_t code :
       {-1, 1000, std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()}) {
    INFO(code);
    const RemoteTaskError error = remote(thrown(typeid(std::regex_error).name(), "", true, bulkhead::to_bytes(code)));
    CHECK_THAT(error.what(), Catch::Matchers::ContainsSubstring("std::regex_error"));
  }
}
