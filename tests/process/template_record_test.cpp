// SPDX-License-Identifier: BSL-1.0
#include "process/template_record.hpp"

#include "process/posix.hpp"

#include "support/catch.hpp"

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

namespace {

using namespace bulkhead::process;

Record record_of(RecordType type) {
  Record record;
  record.type = type;
  return record;
}

Received received(std::size_t descriptors, bool lost = false) {
  Received received;
  received.size = sizeof(Record);
  for (std::size_t i = 0; i < descriptors; ++i) received.fds[i] = open_null();
  received.fd_count = descriptors;
  received.descriptors_lost = lost;
  return received;
}

constexpr RecordType kWithDescriptor[] = {RecordType::template_started, RecordType::spawned};
constexpr RecordType kWithout[] = {RecordType::template_ready, RecordType::template_failed, RecordType::spawn_failed,
                                   RecordType::exited, RecordType::probed};

}  // namespace

TEST_CASE("what a template sends is possible with the descriptors that belong to it, and with no others",
          "[template_record]") {
  for (const RecordType type : kWithDescriptor) {
    INFO("type " << static_cast<unsigned>(type));
    CHECK_FALSE(violation_in(record_of(type), received(1)));
    CHECK(violation_in(record_of(type), received(0)));
    CHECK(violation_in(record_of(type), received(2)));
    CHECK(violation_in(record_of(type), received(kMostDescriptors)));
    // The host had no number left for it.
    CHECK_FALSE(violation_in(record_of(type), received(0, true)));
    CHECK(violation_in(record_of(type), received(2, true)));
  }
  for (const RecordType type : kWithout) {
    INFO("type " << static_cast<unsigned>(type));
    CHECK_FALSE(violation_in(record_of(type), received(0)));
    CHECK(violation_in(record_of(type), received(1)));
  }
}

TEST_CASE("a record of a type that no template sends is impossible", "[template_record]") {
  for (const auto type : {RecordType::create_template, RecordType::spawn, RecordType::reap, RecordType::discard,
                          RecordType{0}, RecordType{12}, RecordType{0xffffffffU}}) {
    for (const std::size_t descriptors : {0U, 1U, 4U}) {
      INFO("type " << static_cast<unsigned>(type) << " with " << descriptors << " descriptors");
      CHECK(violation_in(record_of(type), received(descriptors)));
    }
  }
}

TEST_CASE("a record of another size or another protocol is impossible", "[template_record]") {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, sizeof(Record) - 1, sizeof(Record) + 1}) {
    INFO(size << " bytes");
    Received came = received(0);
    came.size = size;
    CHECK(violation_in(record_of(RecordType::template_ready), came));
  }
  Record record = record_of(RecordType::template_ready);
  record.magic = kMagic + 1;
  CHECK(violation_in(record, received(0)));
}

TEST_CASE("a worker that was ended by a signal that there is not, is impossible", "[template_record]") {
  Record record = record_of(RecordType::exited);
  for (const int possible : {0, 1, SIGKILL, 64}) {
    record.signal = possible;
    CHECK_FALSE(violation_in(record, received(0)));
  }
  for (const int impossible : {-1, 65, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()}) {
    INFO(impossible);
    record.signal = impossible;
    CHECK(violation_in(record, received(0)));
  }
}

TEST_CASE("a text is within its record, and has no control characters", "[template_record]") {
  Record record = record_of(RecordType::template_failed);
  record.set_text("preload failed:\n\t\x1b[2J\x07\x7f done");
  CHECK_FALSE(violation_in(record, received(0)));
  CHECK(text_of(record) == "preload failed:\n\t?[2J?? done");
  record.set_text(std::string(sizeof(record.text) + 5, 'x'));
  CHECK_FALSE(violation_in(record, received(0)));
  CHECK(text_of(record).size() == sizeof(record.text));
  for (const std::uint32_t size : {static_cast<std::uint32_t>(sizeof(record.text)) + 1, 0x80000000U, 0xffffffffU}) {
    INFO(size);
    record.text_size = size;
    CHECK(violation_in(record, received(0)));
  }
}
