// SPDX-License-Identifier: BSL-1.0
#include "line_table.hpp"

#include "byte_reader.hpp"
#include "elf_file.hpp"

#include <filesystem>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace bulkhead::process {
namespace {

// To go through more takes a second and longer, in which nobody would learn of the crash, and the index counts in 32
// bits.
constexpr std::size_t kLargestSection = std::size_t{256} << 20;

// The numbers are those of DWARF 5, 7.22 "Line Number Information" and 7.5.6 "Form Encodings". Names that the standard
// begins with DW_LNS_, DW_LNE_, DW_LNCT_ and DW_FORM_.
enum class StandardOpcode : std::uint8_t {
  copy = 0x01,
  advance_pc = 0x02,
  advance_line = 0x03,
  set_file = 0x04,
  const_add_pc = 0x08,
  fixed_advance_pc = 0x09,
};
constexpr std::uint8_t kExtended = 0x00;  // announces an extended opcode
enum class ExtendedOpcode : std::uint8_t { end_sequence = 0x01, set_address = 0x02, define_file = 0x03 };
enum class Content : std::uint64_t { path = 0x1, directory_index = 0x2 };
enum class Form : std::uint64_t {
  data2 = 0x05,
  data4 = 0x06,
  data8 = 0x07,
  string = 0x08,
  block = 0x09,
  data1 = 0x0b,
  strp = 0x0e,
  udata = 0x0f,
  strp_sup = 0x1d,
  data16 = 0x1e,
  line_strp = 0x1f,
};

// In 64-bit DWARF, offsets have 64 bits; it has nothing to do with addresses (DWARF 5, 7.4).
std::uint64_t read_offset(ByteReader& reader, bool is_64_bit) {
  return is_64_bit ? reader.read<std::uint64_t>() : reader.read<std::uint32_t>();
}

struct FileEntry {
  std::string_view name;
  std::uint64_t directory = 0;
};

// A file as DWARF 2 to 4 enter it (DWARF 4, 6.2.4): its time and length follow.
FileEntry read_file_entry(ByteReader& reader) {
  FileEntry entry;
  entry.name = reader.read_string();
  if (entry.name.empty()) return entry;
  entry.directory = reader.read_uleb128();
  reader.read_uleb128();
  reader.read_uleb128();
  return entry;
}

// The line number program of one unit and what its header says (DWARF 5, 6.2.4).
struct Unit {
  std::uint16_t version = 0;
  bool is_64_bit = false;
  std::uint8_t minimum_instruction_length = 0;
  std::uint8_t maximum_operations_per_instruction = 1;
  std::int8_t line_base = 0;
  std::uint8_t line_range = 0;
  std::uint8_t opcode_base = 0;
  std::span<const std::byte> standard_opcode_lengths;
  ByteReader tables;  // directories and files
  ByteReader program;
};

// Takes the next unit out of the section; empty if there is nothing to learn from it. That need not be the end.
std::optional<Unit> take_unit(ByteReader& section) {
  constexpr std::uint32_t kIs64Bit = 0xffffffff;          // in place of the length (DWARF 5, 7.4)
  constexpr std::uint32_t kReservedLengths = 0xfffffff0;  // from here on (DWARF 5, 7.2.2)
  Unit unit;
  std::uint64_t length = section.read<std::uint32_t>();
  if (length == kIs64Bit) {
    unit.is_64_bit = true;
    length = section.read<std::uint64_t>();
  } else if (length >= kReservedLengths) {
    section = {};
  }
  ByteReader reader(section.take(length));
  unit.version = reader.read<std::uint16_t>();
  if (unit.version < 2 || unit.version > 5) return std::nullopt;
  if (unit.version >= 5) reader.take(2);  // sizes of an address and of a segment selector
  const std::uint64_t header_length = read_offset(reader, unit.is_64_bit);
  ByteReader header(reader.take(header_length));
  unit.program = reader;
  unit.minimum_instruction_length = header.read<std::uint8_t>();
  if (unit.version >= 4) unit.maximum_operations_per_instruction = header.read<std::uint8_t>();
  header.take(1);  // default_is_stmt: breakpoints need it
  unit.line_base = header.read<std::int8_t>();
  unit.line_range = header.read<std::uint8_t>();
  unit.opcode_base = header.read<std::uint8_t>();
  // The program divides by two of them, and the third counts the lengths and one.
  if (unit.maximum_operations_per_instruction == 0 || unit.line_range == 0 || unit.opcode_base == 0) {
    return std::nullopt;
  }
  unit.standard_opcode_lengths = header.take(std::uint64_t{unit.opcode_base} - 1);
  unit.tables = header;
  if (unit.standard_opcode_lengths.size() + 1 != unit.opcode_base) return std::nullopt;
  return unit;
}

// The registers of the state machine that make a difference here, with their initial values (DWARF 5, 6.2.2).
struct Row {
  std::uint64_t address = 0;
  std::uint64_t operation = 0;
  std::uint64_t file = 1;
  std::uint64_t line = 1;
  bool end_sequence = false;
};

// The state machine (DWARF 5, 6.2.5). Numbers wrap around: those of a damaged file mean nothing anyway.
class LineProgram {
 public:
  explicit LineProgram(const Unit& unit) : unit_(unit), rest_(unit.program) {}

  // The next row of the table; null after the last one.
  const Row* next() {
    if (row_.end_sequence) row_ = {};
    while (!rest_.empty()) {
      const auto opcode = rest_.read<std::uint8_t>();
      if (opcode >= unit_.opcode_base ? run_special(opcode)
          : opcode == kExtended       ? run_extended()
                                      : run_standard(opcode)) {
        return &row_;
      }
    }
    return nullptr;
  }

  // The files that the program has entered so far behind those of the header.
  const std::vector<FileEntry>& defined_files() const { return defined_files_; }

 private:
  void advance(std::uint64_t operations) {
    const std::uint64_t sum = row_.operation + operations;
    row_.address += unit_.minimum_instruction_length * (sum / unit_.maximum_operations_per_instruction);
    row_.operation = sum % unit_.maximum_operations_per_instruction;
  }

  void advance_special(std::uint8_t opcode) { advance((opcode - unit_.opcode_base) / unit_.line_range); }

  // Each says whether it has made a row.
  bool run_special(std::uint8_t opcode) {
    advance_special(opcode);
    row_.line += static_cast<std::uint64_t>(unit_.line_base + (opcode - unit_.opcode_base) % unit_.line_range);
    return true;
  }

  bool run_standard(std::uint8_t opcode) {
    switch (static_cast<StandardOpcode>(opcode)) {
      case StandardOpcode::copy:
        return true;
      case StandardOpcode::advance_pc:
        advance(rest_.read_uleb128());
        return false;
      case StandardOpcode::advance_line:
        row_.line += static_cast<std::uint64_t>(rest_.read_sleb128());
        return false;
      case StandardOpcode::set_file:
        row_.file = rest_.read_uleb128();
        return false;
      case StandardOpcode::const_add_pc:
        advance_special(std::numeric_limits<std::uint8_t>::max());
        return false;
      case StandardOpcode::fixed_advance_pc:
        row_.address += rest_.read<std::uint16_t>();
        row_.operation = 0;
        return false;
    }
    // Of the others, those of a later standard included, the header tells how many numbers follow.
    auto operands = std::to_integer<unsigned>(unit_.standard_opcode_lengths[std::size_t{opcode} - 1]);
    for (; operands > 0; --operands) rest_.read_uleb128();
    return false;
  }

  bool run_extended() {
    ByteReader operands(rest_.take(rest_.read_uleb128()));
    switch (static_cast<ExtendedOpcode>(operands.read<std::uint8_t>())) {
      case ExtendedOpcode::end_sequence:
        row_.end_sequence = true;
        return true;
      case ExtendedOpcode::set_address:
        row_.address =
            operands.size() == sizeof(std::uint32_t) ? operands.read<std::uint32_t>() : operands.read<std::uint64_t>();
        row_.operation = 0;
        return false;
      case ExtendedOpcode::define_file:
        defined_files_.push_back(read_file_entry(operands));
        return false;
    }
    return false;
  }

  const Unit& unit_;
  ByteReader rest_;
  Row row_;
  std::vector<FileEntry> defined_files_;
};

std::string join(const std::vector<std::string_view>& directories, const FileEntry& file) {
  std::filesystem::path path;
  if (file.directory < directories.size()) {
    // Directory 0 is where the compiler ran, and what the others are relative to.
    path = directories[0];
    if (file.directory != 0) path /= directories[static_cast<std::size_t>(file.directory)];
  }
  return (path / file.name).string();
}

// A file by its number, up to DWARF 4 (DWARF 4, 6.2.4). Number 0 is none, and directory 0 is only in .debug_info.
std::string file_of_version_2(ByteReader tables, const std::vector<FileEntry>& defined_files, std::uint64_t number) {
  std::vector<std::string_view> directories(1);
  while (!tables.empty()) {
    const std::string_view directory = tables.read_string();
    if (directory.empty()) break;
    directories.push_back(directory);
  }
  if (number == 0) return {};
  while (!tables.empty()) {
    const FileEntry file = read_file_entry(tables);
    if (file.name.empty()) break;
    if (--number == 0) return join(directories, file);
  }
  return number <= defined_files.size() ? join(directories, defined_files[static_cast<std::size_t>(number - 1)]) : "";
}

// One of the two tables of DWARF 5 (DWARF 5, 6.2.4, the fields from directory_entry_format_count on).
class EntryTable {
 public:
  EntryTable(ByteReader& reader, const LineSections& sections, bool is_64_bit)
      : sections_(sections), is_64_bit_(is_64_bit) {
    for (auto formats = reader.read<std::uint8_t>(); formats > 0; --formats) {
      const std::uint64_t content = reader.read_uleb128();
      const std::uint64_t form = reader.read_uleb128();
      formats_.emplace_back(static_cast<Content>(content), static_cast<Form>(form));
    }
    left_ = reader.read_uleb128();
  }

  // Reads the next entry; empty after the last one.
  std::optional<FileEntry> next(ByteReader& reader) {
    // Entries of nothing would be counted to the end, however large the number.
    if (left_ == 0 || formats_.empty() || reader.empty()) return std::nullopt;
    --left_;
    FileEntry entry;
    for (const auto& [content, form] : formats_) {
      const Value value = read(reader, form);
      if (content == Content::path) entry.name = value.text;
      if (content == Content::directory_index) entry.directory = value.number;
    }
    return entry;
  }

 private:
  struct Value {
    std::string_view text;
    std::uint64_t number = 0;
  };

  Value read(ByteReader& reader, Form form) const {
    switch (form) {
      case Form::string:
        return {reader.read_string(), 0};
      case Form::line_strp:
        return {string_of(sections_.debug_line_str, read_offset(reader, is_64_bit_)), 0};
      case Form::strp:
        return {string_of(sections_.debug_str, read_offset(reader, is_64_bit_)), 0};
      case Form::strp_sup:  // in a file that several programs share
        reader.take(is_64_bit_ ? sizeof(std::uint64_t) : sizeof(std::uint32_t));
        return {};
      case Form::udata:
        return {{}, reader.read_uleb128()};
      case Form::data1:
        return {{}, reader.read<std::uint8_t>()};
      case Form::data2:
        return {{}, reader.read<std::uint16_t>()};
      case Form::data4:
        return {{}, reader.read<std::uint32_t>()};
      case Form::data8:
        return {{}, reader.read<std::uint64_t>()};
      case Form::data16:
        reader.take(16);
        return {};
      case Form::block:
        reader.take(reader.read_uleb128());
        return {};
    }
    reader = {};  // how long a value of an unknown form is, nobody can tell
    return {};
  }

  const LineSections& sections_;
  bool is_64_bit_;
  std::vector<std::pair<Content, Form>> formats_;
  std::uint64_t left_ = 0;
};

// A file by its number, which begins with 0.
std::string file_of_version_5(ByteReader tables, const LineSections& sections, bool is_64_bit, std::uint64_t number) {
  std::vector<std::string_view> directories;
  EntryTable directory_table(tables, sections, is_64_bit);
  while (const auto entry = directory_table.next(tables)) directories.push_back(entry->name);
  EntryTable file_table(tables, sections, is_64_bit);
  while (const auto entry = file_table.next(tables)) {
    if (number-- == 0) return join(directories, *entry);
  }
  return {};
}

}  // namespace

LineTable::LineTable(const LineSections& sections) : sections_(sections) {
  const std::size_t size = sections.debug_line.size();
  if (size > kLargestSection) return;
  std::vector<AddressIndex::Range> sequences;
  for (ByteReader section(sections.debug_line); !section.empty();) {
    const auto unit_offset = static_cast<std::uint32_t>(size - section.size());
    const auto unit = take_unit(section);
    if (!unit) continue;
    std::uint64_t begin = 0;
    bool in_sequence = false;
    LineProgram program(*unit);
    while (const Row* const row = program.next()) {
      if (!std::exchange(in_sequence, !row->end_sequence)) begin = row->address;
      if (!row->end_sequence) continue;
      const std::uint64_t length = row->address - begin;
      // Of functions that the linker has dropped, the address is 0, or so high that the end wraps around. No code is
      // longer than 32 bits tell.
      if (begin != 0 && row->address > begin && length <= std::numeric_limits<std::uint32_t>::max()) {
        sequences.push_back({begin, static_cast<std::uint32_t>(length), unit_offset});
      }
    }
  }
  sequences_ = AddressIndex(std::move(sequences));
}

SourceLine LineTable::find(std::uint64_t address) const {
  const AddressIndex::Range* const sequence = sequences_.around(address);
  if (sequence == nullptr) return {};
  ByteReader section(sections_.debug_line.subspan(sequence->value));
  const auto unit = take_unit(section);
  if (!unit) return {};
  LineProgram program(*unit);
  std::uint64_t begin = 0;
  std::optional<Row> previous;  // of the same sequence
  while (const Row* const row = program.next()) {
    if (!previous) begin = row->address;
    if (previous && begin == sequence->begin && previous->address <= address && address < row->address) {
      SourceLine found{unit->version >= 5 ? file_of_version_5(unit->tables, sections_, unit->is_64_bit, previous->file)
                                          : file_of_version_2(unit->tables, program.defined_files(), previous->file)};
      const bool fits = previous->line <= std::numeric_limits<unsigned>::max();
      if (!found.file.empty() && fits) found.line = static_cast<unsigned>(previous->line);
      return found;
    }
    previous = row->end_sequence ? std::nullopt : std::optional(*row);
  }
  return {};
}

}  // namespace bulkhead::process
