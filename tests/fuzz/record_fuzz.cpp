// SPDX-License-Identifier: BSL-1.0
// Hostile bytes in the place of a template's record. The first byte says how many descriptors come with them.
#include "process/posix.hpp"
#include "process/template_record.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <system_error>

namespace {

using namespace bulkhead::process;

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "record_fuzz: %s\n", what);
  std::abort();
}

// What the pool relies on when it acts on the record.
void check(const Record& record, const Received& received) {
  switch (record.type) {
    case RecordType::template_started:
    case RecordType::spawned:
      if (!received.descriptors_lost && !received.fds[0]) broken("no descriptor where one is needed");
      break;
    case RecordType::template_ready:
    case RecordType::template_failed:
    case RecordType::spawn_failed:
    case RecordType::exited:
      if (received.fd_count != 0) broken("descriptors where none belong");
      break;
    default:
      broken("a record was believed that no template sends");
  }
  const std::string text = text_of(record);
  if (text.size() > kReportSize) broken("a text was longer than there is room");
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
      broken("a control character was left in a text");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::uint8_t how = data[0];
  // Longer than any record: the rest is cut.
  static std::array<std::byte, sizeof(Record) + 64> bytes;
  bytes.fill(std::byte{0});
  const std::size_t given = std::min(size - 1, bytes.size());
  std::memcpy(bytes.data(), data + 1, given);
  // Zeros follow what is given, so that a short input is a whole record; or not.
  const std::size_t sent = (how & 8) != 0 ? given : std::max(given, sizeof(Record));
  if (sent == 0) return 0;  // it would be end-of-file

  static const auto sockets = create_socket_pair();
  static const FileDescriptor passed = open_null();
  const std::array<int, kMostDescriptors> fds{passed.get(), passed.get(), passed.get(), passed.get()};
  const std::size_t fd_count = std::min<std::size_t>(how % 8, fds.size());
  if (!send_record(sockets.second, std::span(bytes).first(sent), std::span(fds).first(fd_count))) {
    broken("a record could not be sent");
  }
  Record record;
  try {
    Received received = receive_record(sockets.first, writable_bytes_of(record));
    if (received.size != std::min(sent, sizeof(record))) broken("a record did not arrive as it was sent");
    if (!violation_in(record, received)) check(record, received);
  } catch (const std::system_error&) {
    if (sent <= sizeof(record)) broken("a record of possible size was refused");
  }
  return 0;
}
