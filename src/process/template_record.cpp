// SPDX-License-Identifier: BSL-1.0
#include "template_record.hpp"

#include "posix.hpp"
#include "printable.hpp"

#include <csignal>
#include <cstddef>

namespace bulkhead::process {
namespace {

// How many descriptors a record of this type brings; nothing if a template does not send such a record.
std::optional<std::size_t> descriptors_of(RecordType type) {
  switch (type) {
    case RecordType::template_started:
    case RecordType::spawned:
      return 1;
    case RecordType::template_ready:
    case RecordType::template_failed:
    case RecordType::spawn_failed:
    case RecordType::exited:
    case RecordType::probed:
      return 0;
    case RecordType::create_template:
    case RecordType::spawn:
    case RecordType::reap:
    case RecordType::discard:
      break;
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> violation_in(const Record& record, const Received& received) {
  if (received.size == 0) return "the template has closed its socket";
  if (received.size != sizeof(record)) return "a record of " + std::to_string(received.size) + " bytes";
  if (record.magic != kMagic) return "a record of another protocol";
  const std::optional<std::size_t> descriptors = descriptors_of(record.type);
  if (!descriptors) return "a record of the impossible type " + std::to_string(static_cast<unsigned>(record.type));
  // Those that this process had no number for came as well; how many, nobody knows.
  if (received.fd_count > *descriptors || (received.fd_count < *descriptors && !received.descriptors_lost)) {
    return std::to_string(received.fd_count) + " descriptors with a record of type " +
           std::to_string(static_cast<unsigned>(record.type));
  }
  if (record.text_size > sizeof(record.text)) return "a text of " + std::to_string(record.text_size) + " bytes";
  if (record.type == RecordType::exited && (record.signal < 0 || record.signal >= NSIG)) {
    return "an end by signal " + std::to_string(record.signal);
  }
  return std::nullopt;
}

std::string text_of(const Record& record) {
  std::string text = record.get_text();
  replace_control_characters(text);
  return text;
}

}  // namespace bulkhead::process
