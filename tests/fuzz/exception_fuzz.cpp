// SPDX-License-Identifier: BSL-1.0
// Hostile bytes in the place of what a task threw. The first byte may ask for an exception of the host's own in front
// of the decoder instead: what is encoded must come back.
#include <bulkhead/exceptions.hpp>
#include <bulkhead/serialization.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace {

struct Nothing {};

// Members that take no bytes, and those that contain themselves: what a message can ask most of.
struct Carried : std::exception {
  std::vector<Nothing> nothings;
  std::vector<std::vector<Nothing>> more;
  std::map<std::string, std::string> texts;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(nothings, more, texts);
  }
};

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "exception_fuzz: %s\n", what);
  std::abort();
}

// As far as a program looks at what it has caught.
void look_at(const std::exception_ptr& exception) {
  if (!exception) broken("an exception was decoded to nothing");
  if (bulkhead::detail::describe_exception(exception).empty()) broken("an exception has no description");
  std::vector<std::byte> bytes;
  bulkhead::Encoder counting{std::span<std::byte>()};
  bulkhead::detail::encode_exception(counting, exception);
  bytes.resize(counting.size());
  bulkhead::Encoder encoder{std::span<std::byte>(bytes)};
  bulkhead::detail::encode_exception(encoder, exception);
  bulkhead::Decoder decoder(bytes, bulkhead::Decoder::Source::untrusted);
  if (!bulkhead::detail::decode_exception(decoder, {})) broken("an exception does not come back");
}

}  // namespace

BULKHEAD_REGISTER_EXCEPTION(Carried)

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bulkhead::Decoder decoder(std::as_bytes(std::span(data, size)), bulkhead::Decoder::Source::untrusted);
  std::exception_ptr exception;
  try {
    exception = bulkhead::detail::decode_exception(decoder, {});
  } catch (const bulkhead::SerializationError&) {
    return 0;
  }
  look_at(exception);
  return 0;
}
