// SPDX-License-Identifier: BSL-1.0
#include "process/symbols.hpp"

#include "process/address_index.hpp"
#include "process/elf_file.hpp"
#include "process/function_table.hpp"
#include "process/line_table.hpp"
#include "process/loaded_object.hpp"

#include "support/catch.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace symbols_test {

int variable = 1;

// Each function here has code of its own: a linker may fold equal ones.
[[gnu::noinline]] int add(int a, int b) {
  for (int i = 0; i < b; ++i) variable += a;
  return variable;
}

// Where the code goes on that has called this.
[[gnu::noinline]] std::uintptr_t return_address() {
  variable = variable ^ 2;
  return reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
}

}  // namespace symbols_test

namespace {

using namespace bulkhead::process;
using namespace std::string_view_literals;
using Bytes = std::vector<std::byte>;
using Catch::Matchers::ContainsSubstring;

[[gnu::noinline]] int subtract(int a, int b) {
  for (int i = 0; i < b; ++i) symbols_test::variable -= a;
  return symbols_test::variable;
}

template <class Function>
std::uintptr_t address_of(Function* function) {
  return reinterpret_cast<std::uintptr_t>(function);
}

std::span<const std::byte> text_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// Said at once: a sanitizer ends the program where a test cannot report any more.
std::mt19937 random_numbers() {
  const auto seed = std::random_device()();
  std::cerr << "symbols_test: seed " << seed << std::endl;
  return std::mt19937(seed);
}

// Memory of exactly that size, so that a sanitizer sees whoever reads beyond it.
class ExactCopy {
 public:
  explicit ExactCopy(std::span<const std::byte> bytes)
      : size_(bytes.size()), bytes_(std::make_unique<std::byte[]>(bytes.size())) {
    std::copy(bytes.begin(), bytes.end(), bytes_.get());
  }
  std::span<std::byte> bytes() { return {bytes_.get(), size_}; }

 private:
  std::size_t size_;
  std::unique_ptr<std::byte[]> bytes_;
};

// Changes up to eight bytes, and cuts off the end of every other copy.
ExactCopy damaged(std::span<const std::byte> bytes, std::mt19937& random) {
  ExactCopy copy(random() % 2 == 0 ? bytes : bytes.first(random() % (bytes.size() + 1)));
  for (auto changes = random() % 8; changes > 0 && !copy.bytes().empty(); --changes) {
    copy.bytes()[random() % copy.bytes().size()] = static_cast<std::byte>(random());
  }
  return copy;
}

// Writes what a compiler and an assembler would: `field` numbers of a given size, `uleb` and `sleb` those of DWARF.
class Section {
 public:
  Section& field(std::uint64_t value, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i, value >>= 8) bytes_.push_back(static_cast<std::byte>(value));
    return *this;
  }
  Section& u8(std::initializer_list<unsigned> values) {
    for (const unsigned value : values) field(value, 1);
    return *this;
  }
  Section& text(std::string_view value) {
    append(text_bytes(value));
    return u8({0});
  }
  Section& append(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

// The numbers of standard opcodes' operands, DW_LNS_copy to DW_LNS_set_isa.
constexpr std::initializer_list<unsigned> kOperands{0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1};

struct Format {
  unsigned version = 4;
  bool is_64_bit = false;
  std::size_t address_size = 8;
  unsigned minimum_instruction_length = 1;
  unsigned operations_per_instruction = 1;
  unsigned line_range = 14;
};

// A unit with a header for those tables and that program.
Bytes unit(const Format& format, std::span<const std::byte> tables, std::span<const std::byte> program) {
  const std::size_t offset_size = format.is_64_bit ? 8 : 4;
  Section fields;
  fields.u8({format.minimum_instruction_length});
  if (format.version >= 4) fields.u8({format.operations_per_instruction});
  fields.u8({1, 0xFB, format.line_range, 13}).u8(kOperands).append(tables);
  Section body;
  body.field(format.version, 2);
  if (format.version >= 5) body.u8({static_cast<unsigned>(format.address_size), 0});
  body.field(fields.bytes().size(), offset_size).append(fields.bytes()).append(program);
  Section whole;
  if (format.is_64_bit) whole.field(0xFFFFFFFF, 4);
  whole.field(body.bytes().size(), offset_size).append(body.bytes());
  return whole.bytes();
}

// The files main.cpp, /usr/include/a.hpp and src/b.cpp with the numbers 1 to 3, for DWARF 2 to 4.
Bytes tables_of_version_4() {
  Section tables;
  tables.text("/usr/include").text("src").u8({0});
  tables.text("main.cpp").u8({0, 0, 0}).text("a.hpp").u8({1, 0, 0}).text("b.cpp").u8({2, 0, 0}).u8({0});
  return tables.bytes();
}

// The same for DWARF 5, where a compiler repeats the first file as number 0 and says where it ran. Not all that is
// entered is of interest here, and it has all forms.
constexpr std::string_view kDirectories = "/home\0/usr/include\0src\0"sv;
constexpr std::string_view kFiles = "main.cpp\0a.hpp\0b.cpp\0"sv;

Bytes tables_of_version_5(bool is_64_bit) {
  const std::size_t offset_size = is_64_bit ? 8 : 4;
  Section tables;
  // path: strp; of a vendor's (0x2001): data8 and strp_sup
  tables.u8({3, 0x01, 0x0E, 0x81, 0x40, 0x07, 0x81, 0x40, 0x1D, 3});
  for (const unsigned name : {0U, 6U, 19U}) tables.field(name, offset_size).field(1, 8).field(2, offset_size);
  // path: line_strp, directory_index: udata, timestamp: data4, size: data2, MD5: data16; of a vendor's: block
  tables.u8({6, 0x01, 0x1F, 0x02, 0x0F, 0x03, 0x06, 0x04, 0x05, 0x05, 0x1E, 0x81, 0x40, 0x09, 4});
  for (const auto& [name, directory] : {std::pair{0U, 0U}, {0U, 0U}, {9U, 1U}, {15U, 2U}}) {
    tables.field(name, offset_size).u8({directory}).field(3, 4).field(4, 2).field(5, 16).u8({2, 0xAA, 0xAA});
  }
  return tables.bytes();
}

constexpr std::initializer_list<unsigned> kEndSequence{0x00, 1, 0x01};

Section& set_address(Section& program, std::uint64_t address, std::size_t size = 8) {
  return program.u8({0x00, static_cast<unsigned>(size + 1), 0x02}).field(address, size);
}

Bytes program_of(std::size_t address_size) {
  Section program;
  set_address(program, 0x401000, address_size);
  program.u8({0x03, 9, 0x01});                       // advance_line 9, copy: 401000 is main.cpp:10
  program.u8({0x4B});                                // special: 401004 is line 11
  program.u8({0x05, 7, 0x06, 0x07, 0x0A, 0x0B});     // set_column, and what only debuggers ask for
  program.u8({0x04, 2, 0x03, 0xE4, 0, 0x02, 16});    // set_file 2, advance_line 100, advance_pc 16,
  program.u8({0x01});                                // copy: 401014 is a.hpp:111
  program.u8({0x08, 0x04, 3, 0x03, 0xB1, 0x7F, 1});  // const_add_pc, set_file 3, advance_line -79: 401025 is b.cpp:32
  program.u8({0x00, 2, 0x80, 0xFF});                 // an extended opcode of a vendor's
  program.u8({0x09, 0x20, 0x00, 0x0C, 3});           // fixed_advance_pc 32, set_isa
  program.u8(kEndSequence);                          // 401045
  set_address(program, 0x400800, address_size);
  program.u8({0x01, 0x02, 8}).u8(kEndSequence);  // 400800 to 400808 is main.cpp:1
  return program.bytes();
}

constexpr std::string_view kNowhere = "nowhere";

std::string text_of(const SourceLine& line) {
  return line.file.empty() ? std::string(kNowhere) : line.file + ":" + std::to_string(line.line);
}

Bytes whole_unit(const Format& format) {
  return unit(format, format.version >= 5 ? tables_of_version_5(format.is_64_bit) : tables_of_version_4(),
              program_of(format.address_size));
}

LineSections sections_of(std::span<const std::byte> debug_line) {
  return {debug_line, text_bytes(kFiles), text_bytes(kDirectories)};
}

std::string line_at(std::span<const std::byte> debug_line, std::uint64_t address) {
  return text_of(LineTable(sections_of(debug_line)).find(address));
}

// A program of DWARF 4 that is written after its sequence's address, 401000.
Bytes unit_with(const Section& program, const Format& format = {}) {
  Section whole;
  set_address(whole, 0x401000).append(program.bytes());
  return unit(format, tables_of_version_4(), whole.bytes());
}

// Asks for every address that the damaged programs are likely to have, too.
void ask_everywhere(const LineTable& table) {
  for (const std::uint64_t address :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0x400800}, std::uint64_t{0x401000}, std::uint64_t{0x401004},
        std::uint64_t{0x401014}, std::uint64_t{0x401044}, std::uint64_t{0x7FFFFFFFFFFF}, ~std::uint64_t{0}}) {
    static_cast<void>(table.find(address));
  }
}

template <class T>
std::span<const std::byte> record(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

constexpr std::size_t kNoteOffset = sizeof(ElfW(Ehdr)) + 2 * sizeof(ProgramHeader);

// A file with a few functions, as a linker would write it; what nobody reads is 0.
Bytes elf_file(std::uint32_t symbol_table_type, bool many_sections) {
  struct Symbol {
    const char* name;
    unsigned char binding;
    unsigned char type;
    ElfW(Section) section;
    std::uintptr_t value;
    std::size_t size;
  };
  constexpr std::array kSymbols{Symbol{"", STB_LOCAL, STT_NOTYPE, SHN_UNDEF, 0, 0},
                                Symbol{"alias", STB_LOCAL, STT_FUNC, 1, 0x1000, 0x20},
                                Symbol{"last", STB_LOCAL, STT_FUNC, 2, 0x2000, 0},
                                Symbol{"global", STB_GLOBAL, STT_FUNC, 1, 0x1000, 0x20},
                                Symbol{"unsized", STB_GLOBAL, STT_FUNC, 1, 0x1020, 0},
                                Symbol{"resolver", STB_WEAK, STT_GNU_IFUNC, 1, 0x1080, 0x10},
                                Symbol{"elsewhere", STB_GLOBAL, STT_FUNC, SHN_UNDEF, 0x10A0, 0},
                                Symbol{"variable", STB_GLOBAL, STT_OBJECT, 1, 0x10B0, 4}};
  Section symbols;
  Section names;
  for (const Symbol& symbol : kSymbols) {
    ElfSymbol entry{};
    entry.st_name = static_cast<std::uint32_t>(names.bytes().size());
    entry.st_info = static_cast<unsigned char>(ELF64_ST_INFO(symbol.binding, symbol.type));
    entry.st_shndx = symbol.section;
    entry.st_value = symbol.value;
    entry.st_size = symbol.size;
    symbols.append(record(entry));
    names.text(symbol.name);
  }

  constexpr std::string_view kNote = "the build ID";
  Section contents;  // what follows the headers
  contents.append(text_bytes(kNote));
  std::vector<SectionHeader> headers(1);
  Section section_names;
  section_names.text("");
  const auto add = [&](std::string_view name, std::uint32_t type, std::uintptr_t flags,
                       std::span<const std::byte> bytes, std::uintptr_t address = 0) {
    SectionHeader header{};
    header.sh_name = static_cast<std::uint32_t>(section_names.bytes().size());
    header.sh_type = type;
    header.sh_flags = flags;
    header.sh_addr = address;
    header.sh_offset = kNoteOffset + contents.bytes().size();
    header.sh_size = bytes.size();
    header.sh_link = static_cast<std::uint32_t>(headers.size() + 1);  // of the symbols, to their names
    headers.push_back(header);
    section_names.text(name);
    contents.append(bytes);
  };
  add(".text", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, Bytes(0x100), 0x1000);
  add(".last", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, Bytes(0x20), 0x2000);
  add(".symtab", symbol_table_type, 0, symbols.bytes());
  add(".strtab", SHT_STRTAB, 0, names.bytes());
  add(".compressed", SHT_PROGBITS, SHF_COMPRESSED, Bytes(0x20));
  add("", SHT_STRTAB, 0, Bytes(section_names.bytes()));  // needs no name itself

  ElfW(Ehdr) header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = sizeof(void*) == 8 ? ELFCLASS64 : ELFCLASS32;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_phoff = sizeof(header);
  header.e_phentsize = sizeof(ProgramHeader);
  header.e_phnum = 2;
  header.e_shoff = kNoteOffset + contents.bytes().size();
  header.e_shentsize = sizeof(SectionHeader);
  if (many_sections) {
    header.e_shstrndx = SHN_XINDEX;
    headers[0].sh_size = headers.size();
    headers[0].sh_link = static_cast<std::uint32_t>(headers.size() - 1);
  } else {
    header.e_shnum = static_cast<std::uint16_t>(headers.size());
    header.e_shstrndx = static_cast<std::uint16_t>(headers.size() - 1);
  }
  ProgramHeader load{};
  load.p_type = PT_LOAD;
  load.p_flags = PF_R;
  load.p_filesz = header.e_shoff;
  ProgramHeader note{};
  note.p_type = PT_NOTE;
  note.p_vaddr = kNoteOffset;
  note.p_offset = kNoteOffset;
  note.p_filesz = kNote.size();
  Section file;
  file.append(record(header)).append(record(load)).append(record(note)).append(contents.bytes());
  return file.append(std::as_bytes(std::span(headers))).bytes();
}

const MappedFile& program_file() {
  static const MappedFile file("/proc/self/exe");
  return file;
}

bool contains(std::span<const std::byte> bytes, std::string_view text) {
  const auto wanted = text_bytes(text);
  return std::search(bytes.begin(), bytes.end(), wanted.begin(), wanted.end()) != bytes.end();
}

// Whether this file was compiled with line numbers that can be read.
bool has_lines() {
  const ElfFile program(program_file().bytes());
  const std::string name = std::filesystem::path(__FILE__).filename().string();
  return contains(program.section(".debug_line"), name) || contains(program.section(".debug_line_str"), name);
}

}  // namespace

TEST_CASE("the start of a function has its name", "[symbols]") {
  constexpr const char* kName = "_ZN12symbols_test3addEii";
  CHECK(symbol_name(reinterpret_cast<const void*>(&symbols_test::add)) == kName);
  const Frame frame = describe_address(address_of(&symbols_test::add));
  CHECK(frame.address == address_of(&symbols_test::add));
  CHECK(frame.function == kName);
  CHECK(frame.offset == 0);
  CHECK(frame.module == std::filesystem::read_symlink("/proc/self/exe").string());
}

TEST_CASE("the middle of a function has its name and the distance from its start", "[symbols]") {
  const std::uintptr_t middle = address_of(&symbols_test::add) + 3;
  CHECK(symbol_name(reinterpret_cast<const char*>(&symbols_test::add) + 3).empty());
  const Frame frame = describe_address(middle);
  CHECK(frame.function == "_ZN12symbols_test3addEii");
  CHECK(frame.offset == 3);
  CHECK(frame.module_offset == describe_address(middle - 3).module_offset + 3);
}

TEST_CASE("a function that only its own file knows has a name", "[symbols]") {
  CHECK(subtract(1, 1) == symbols_test::variable);
  CHECK(describe_address(address_of(&subtract) + 1).function == "_ZN12_GLOBAL__N_18subtractEii");
  CHECK(symbol_name(reinterpret_cast<const void*>(&subtract)) == "_ZN12_GLOBAL__N_18subtractEii");
}

TEST_CASE("the frame of a lambda has a name", "[symbols]") {
  const auto lambda = []() __attribute__((noinline)) {
    const std::uintptr_t address = symbols_test::return_address();
    symbols_test::variable += 3;  // so that the call is not the last thing to do
    return address;
  };
  const Frame frame = describe_address(lambda() - 1);
  // Of the lambda's name, compilers agree on the operator only.
  CHECK_THAT(frame.function, ContainsSubstring("clEv"));
  CHECK(frame.offset > 0);
}

TEST_CASE("the line of a call is the line of the statement", "[symbols]") {
  const Frame frame = describe_address(symbols_test::return_address() - 1);
  constexpr unsigned kLine = __LINE__ - 1;
  if (has_lines()) {
    CHECK_THAT(frame.file, ContainsSubstring("symbols_test.cpp"));
    CHECK(frame.line == kLine);
  } else {
    CHECK(frame.file.empty());
    CHECK(frame.line == 0);
  }
  CHECK_FALSE(frame.function.empty());
}

TEST_CASE("a function of a library has a name and the library's", "[symbols]") {
  void* const function = ::dlsym(RTLD_DEFAULT, "gnu_get_libc_version");
  REQUIRE(function != nullptr);
  CHECK(symbol_name(function) == "gnu_get_libc_version");
  const Frame frame = describe_address(reinterpret_cast<std::uintptr_t>(function) + 1);
  CHECK(frame.function == "gnu_get_libc_version");
  CHECK(frame.offset == 1);
  CHECK_THAT(frame.module, ContainsSubstring("libc.so"));
  CHECK(frame.module_offset != 0);
}

TEST_CASE("an address in no program and no library is described by itself alone", "[symbols]") {
  const auto heap = std::make_unique<int>(1);
  const int stack = 1;
  for (const auto address : {std::uintptr_t{0}, std::uintptr_t{1}, reinterpret_cast<std::uintptr_t>(heap.get()),
                             reinterpret_cast<std::uintptr_t>(&stack), std::numeric_limits<std::uintptr_t>::max()}) {
    INFO("address " << address);
    const Frame frame = describe_address(address);
    CHECK(frame.address == address);
    CHECK(frame.function.empty());
    CHECK(frame.offset == 0);
    CHECK(frame.module.empty());
    CHECK(frame.module_offset == 0);
    CHECK(frame.file.empty());
    CHECK(frame.line == 0);
  }
  CHECK(symbol_name(nullptr).empty());
  CHECK(symbol_name(heap.get()).empty());
}

TEST_CASE("an address in the data of the program is in no function", "[symbols]") {
  const Frame frame = describe_address(reinterpret_cast<std::uintptr_t>(&symbols_test::variable));
  CHECK_FALSE(frame.module.empty());
  CHECK(frame.function.empty());
  CHECK(frame.file.empty());
}

TEST_CASE("more addresses than the cache has room for are described as they were before", "[symbols]") {
  const std::uintptr_t first = address_of(&symbols_test::add);
  const Frame before = describe_address(first);
  const auto libc = reinterpret_cast<std::uintptr_t>(::dlsym(RTLD_DEFAULT, "gnu_get_libc_version"));
  for (std::uintptr_t i = 0; i < 1500; ++i) static_cast<void>(describe_address(libc + i));
  CHECK(describe_address(libc + 1).function == "gnu_get_libc_version");
  CHECK(describe_address(first).file == before.file);
  CHECK(describe_address(first).line == before.line);
}

TEST_CASE("threads may ask at the same time", "[symbols]") {
  const std::array addresses{address_of(&symbols_test::add), address_of(&subtract) + 1,
                             address_of(&symbols_test::return_address) + 2,
                             reinterpret_cast<std::uintptr_t>(::dlsym(RTLD_DEFAULT, "gnu_get_libc_version"))};
  std::vector<std::vector<std::string>> answers(4);
  std::vector<std::thread> threads;
  threads.reserve(answers.size());
  for (auto& mine : answers) {
    threads.emplace_back([&mine, &addresses] {
      prepare_symbols();
      for (int round = 0; round < 20; ++round) {
        for (const std::uintptr_t address : addresses) mine.push_back(describe_address(address).function);
        mine.push_back(symbol_name(reinterpret_cast<const void*>(&subtract)));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& other : answers) CHECK(other == answers.front());
  CHECK(answers.front().back() == "_ZN12_GLOBAL__N_18subtractEii");
}

TEST_CASE("of ranges around an address, the one that begins last is found", "[symbols]") {
  const AddressIndex index({{100, 50, 1}, {110, 10, 2}, {300, 10, 3}, {100, 20, 4}, {100, 50, 5}, {200, 0, 6}});
  const auto value = [&](std::uint64_t address) {
    const auto* const range = index.around(address);
    return range == nullptr ? 0 : range->value;
  };
  CHECK(value(99) == 0);
  CHECK(value(100) == 1);  // the longest, and of two the first
  CHECK(value(109) == 1);
  CHECK(value(110) == 2);
  CHECK(value(119) == 2);
  CHECK(value(120) == 1);
  CHECK(value(149) == 1);
  CHECK(value(150) == 0);
  CHECK(value(200) == 6);  // of unknown size: up to the next
  CHECK(value(299) == 6);
  CHECK(value(309) == 3);
  CHECK(value(310) == 0);
  CHECK(index.starting_at(110)->value == 2);
  CHECK(index.starting_at(111) == nullptr);
  CHECK(index.size() == 4);
  CHECK(AddressIndex().around(1) == nullptr);
  CHECK(AddressIndex().starting_at(1) == nullptr);
}

TEST_CASE("lines are read from bytes of DWARF 4", "[symbols]") {
  // By hand from the standard, for a machine that stores the lowest byte first.
  constexpr auto kSection = std::to_array<std::uint8_t>({
      77,   0,    0,   0,                                // length of what follows
      4,    0,                                           // version
      43,   0,    0,   0,                                // length of the header from here
      1,    1,    1,   0xFB, 14,   10,                   // instruction length, operations, is_stmt, line base and range
      0,    1,    1,   1,    1,    0,    0, 0, 1,        // numbers of operands of the opcodes 1 to 9
      's',  'r',  'c', 0,    0,                          // directories
      'm',  '.',  'c', 0,    0,    0,    0,              // file 1
      'l',  'o',  'n', 'g',  '.',  'h',  0, 1, 0, 0,     // file 2
      'x',  0,    9,   0,    0,                          // file 3, of a directory that is not there
      0,                                                 // no more files
      0,    9,    2,   0,    0x10, 0x40, 0, 0, 0, 0, 0,  // set_address 401000
      0x13,                                              // 19 = (4 + 5) + 14 * 0 + 10: line 5
      2,    0x90, 1,                                     // advance_pc 144
      4,    2,                                           // set_file 2
      0x41,                                              // 65 = (8 + 5) + 14 * 3 + 10: 401093 is line 13
      4,    3,                                           // set_file 3
      8,                                                 // const_add_pc (255 - 10) / 14
      1,                                                 // copy: 4010A4
      9,    0x10, 0,                                     // fixed_advance_pc 16
      0,    1,    1,                                     // end_sequence: 4010B4
  });
  const auto section = std::as_bytes(std::span(kSection));
  CHECK(line_at(section, 0x400FFF) == kNowhere);
  CHECK(line_at(section, 0x401000) == "m.c:5");
  CHECK(line_at(section, 0x401092) == "m.c:5");
  CHECK(line_at(section, 0x401093) == "src/long.h:13");
  CHECK(line_at(section, 0x4010A3) == "src/long.h:13");
  CHECK(line_at(section, 0x4010A4) == "x:13");
  CHECK(line_at(section, 0x4010B3) == "x:13");
  CHECK(line_at(section, 0x4010B4) == kNowhere);
}

TEST_CASE("lines are read from bytes of DWARF 5", "[symbols]") {
  constexpr auto kSection = std::to_array<std::uint8_t>({
      69,   0,   0,    0,                                // length of what follows
      5,    0,   8,    0,                                // version, sizes of an address and of a segment selector
      41,   0,   0,    0,                                // length of the header from here
      1,    1,   1,    0xFB, 14,   10,                   // instruction length, operations, is_stmt, line base and range
      0,    1,   1,    1,    1,    0,    0, 0, 1,        // numbers of operands of the opcodes 1 to 9
      1,    1,   0x08,                                   // of a directory: path as string
      2,    '/', 'w',  0,    'i',  'n',  0,              // two directories
      2,    1,   0x1F, 2,    0x0B,                       // of a file: path as line_strp, directory_index as data1
      2,    0,   0,    0,    0,    0,    4, 0, 0, 0, 1,  // two files
      0,    9,   2,    0,    0x10, 0x40, 0, 0, 0, 0, 0,  // set_address 401000
      1,                                                 // copy: line 1 of file 1
      4,    0,                                           // set_file 0
      0x1F,                                              // 31 = (2 + 5) + 14 * 1 + 10: 401001 is line 3
      2,    4,                                           // advance_pc 4
      0,    1,   1,                                      // end_sequence: 401005
  });
  constexpr std::string_view kNames = "a.c\0b.c\0"sv;
  const LineTable table({std::as_bytes(std::span(kSection)), text_bytes(kNames), {}});
  CHECK(text_of(table.find(0x400FFF)) == kNowhere);
  CHECK(text_of(table.find(0x401000)) == "/w/in/b.c:1");
  CHECK(text_of(table.find(0x401001)) == "/w/a.c:3");
  CHECK(text_of(table.find(0x401004)) == "/w/a.c:3");
  CHECK(text_of(table.find(0x401005)) == kNowhere);
}

TEST_CASE("all versions from 2 to 5, in 32 and 64 bits and for addresses of both sizes, tell the same", "[symbols]") {
  for (const unsigned version : {2U, 3U, 4U, 5U}) {
    for (const bool is_64_bit : {false, true}) {
      for (const std::size_t address_size : {4U, 8U}) {
        INFO("version " << version << ", 64-bit " << is_64_bit << ", addresses of " << address_size);
        const Bytes section = whole_unit({version, is_64_bit, address_size});
        const LineTable table(sections_of(section));
        const std::string root = version >= 5 ? "/home/" : "";
        CHECK(text_of(table.find(0x4007FF)) == kNowhere);
        CHECK(text_of(table.find(0x400800)) == root + "main.cpp:1");
        CHECK(text_of(table.find(0x400808)) == kNowhere);
        CHECK(text_of(table.find(0x401000)) == root + "main.cpp:10");
        CHECK(text_of(table.find(0x401004)) == root + "main.cpp:11");
        CHECK(text_of(table.find(0x401014)) == "/usr/include/a.hpp:111");
        CHECK(text_of(table.find(0x401025)) == root + "src/b.cpp:32");
        CHECK(text_of(table.find(0x401044)) == root + "src/b.cpp:32");
        CHECK(text_of(table.find(0x401045)) == kNowhere);
      }
    }
  }
}

TEST_CASE("an instruction of several operations is of the line that it begins with or goes on with", "[symbols]") {
  Format format;
  format.minimum_instruction_length = 4;
  format.operations_per_instruction = 2;
  Section program;
  program.u8({0x01});                      // 401000, operation 0: line 1
  program.u8({0x02, 3, 0x03, 1, 0x01});    // three operations on, 401004, operation 1: line 2
  program.u8({0x02, 1}).u8(kEndSequence);  // 401008
  const Bytes section = unit_with(program, format);
  CHECK(line_at(section, 0x401003) == "main.cpp:1");
  CHECK(line_at(section, 0x401004) == "main.cpp:2");
  CHECK(line_at(section, 0x401007) == "main.cpp:2");
  CHECK(line_at(section, 0x401008) == kNowhere);
}

TEST_CASE("of several rows for an address, the last one counts", "[symbols]") {
  Section program;
  program.u8({0x01, 0x03, 6, 0x01, 0x02, 4}).u8(kEndSequence);
  CHECK(line_at(unit_with(program), 0x401000) == "main.cpp:7");
}

TEST_CASE("a file that the line program itself enters is known", "[symbols]") {
  Section program;
  program.u8({0x00, 10, 0x03}).text("gen.h").u8({2, 0, 0});
  program.u8({0x04, 4, 0x01, 0x02, 4, 0x04, 5, 0x01, 0x02, 4}).u8(kEndSequence);
  const Bytes section = unit_with(program);
  CHECK(line_at(section, 0x401000) == "src/gen.h:1");
  CHECK(line_at(section, 0x401004) == kNowhere);  // file 5 is nowhere
}

TEST_CASE("code of no line has a file and line 0, and a line beyond all numbers is none", "[symbols]") {
  Section program;
  program.u8({0x03, 0x7F, 0x01, 0x02, 4});                                               // advance_line -1
  program.u8({0x03, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0x01, 0x02, 4});                 // advance_line 2^35
  program.u8({0x03, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7F, 0x03, 5, 0x01, 0x02, 4});        // -2^35, then 5
  program.u8({0x03, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0x01});  // -2 in ten bytes
  program.u8({0x02, 4}).u8(kEndSequence);
  const Bytes section = unit_with(program);
  CHECK(line_at(section, 0x401000) == "main.cpp:0");
  CHECK(line_at(section, 0x401004) == "main.cpp:0");
  CHECK(line_at(section, 0x401008) == "main.cpp:5");
  CHECK(line_at(section, 0x40100C) == "main.cpp:3");
}

TEST_CASE("functions that the linker has dropped, at address 0 or at the last ones, hide no other", "[symbols]") {
  const std::initializer_list<unsigned> large{0x01, 0x02, 0xFF, 0xFF, 0xFF, 0x07};  // copy, advance_pc 16 MiB
  Section program;
  set_address(program, 0).u8(large).u8(kEndSequence);
  set_address(program, ~std::uint64_t{0}).u8(large).u8(kEndSequence);
  set_address(program, 0x401000).u8({0x03, 9, 0x01, 0x02, 16}).u8(kEndSequence);
  const Bytes section = unit({}, tables_of_version_4(), program.bytes());
  CHECK(line_at(section, 0x401000) == "main.cpp:10");
  CHECK(line_at(section, 0) == kNowhere);
  CHECK(line_at(section, 0x1000) == kNowhere);
  CHECK(line_at(section, ~std::uint64_t{0}) == kNowhere);
}

TEST_CASE("a sequence without code hides no other", "[symbols]") {
  Section program;
  program.u8({0x01, 0x02, 16}).u8(kEndSequence);
  set_address(program, 0x401008).u8({0x01}).u8(kEndSequence);
  CHECK(line_at(unit_with(program), 0x401009) == "main.cpp:1");
}

TEST_CASE("a unit that cannot be understood hides none behind it", "[symbols]") {
  Format unknown_version;
  unknown_version.version = 6;
  Format unknown_lines;
  unknown_lines.line_range = 0;
  Format unknown_addresses;
  unknown_addresses.operations_per_instruction = 0;
  for (const Format& format : {unknown_version, unknown_lines, unknown_addresses}) {
    Section section;
    section.append(whole_unit(format)).field(0, 4).append(whole_unit({}));
    CHECK(line_at(section.bytes(), 0x401000) == "main.cpp:10");
  }
}

TEST_CASE("a file name in an unknown form or beyond its section is not known", "[symbols]") {
  const auto section_with = [](std::initializer_list<unsigned> tables) {
    return unit({5}, Section().u8(tables).bytes(), program_of(8));
  };
  CHECK(line_at(section_with({0, 0, 1, 0x01, 0x08, 2, 'a', 0, 'b', 0}), 0x401000) == "b:10");
  CHECK(line_at(section_with({0, 0, 1, 0x01, 0x7E, 2, 'a', 0, 'b', 0}), 0x401000) == kNowhere);
  CHECK(line_at(section_with({0, 0, 1, 0x01, 0x1F, 2, 0, 0, 0, 0, 21, 0, 0, 0}), 0x401000) == kNowhere);
  CHECK(line_at(section_with({0, 0, 1, 0x01, 0x1F, 2, 0, 0, 0, 0, 255, 255, 255, 255}), 0x401000) == kNowhere);
  CHECK(line_at(section_with({0, 0, 1, 0x01, 0x08, 1, 'a', 0}), 0x401000) == kNowhere);
}

TEST_CASE("numbers beyond all measure neither hang nor overflow", "[symbols]") {
  const std::initializer_list<unsigned> most{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01};
  SECTION("a table of 2^64 - 1 entries of nothing") {
    const Section tables = Section().u8({0}).u8(most).u8({0}).u8(most);
    CHECK(line_at(unit({5}, tables.bytes(), program_of(8)), 0x401000) == kNowhere);
  }
  SECTION("a table that ends long before its 2^64 - 1 entries") {
    const Section tables = Section().u8({1, 0x01, 0x08}).u8(most).text("src");
    CHECK(line_at(unit({5}, tables.bytes(), program_of(8)), 0x401000) == kNowhere);
  }
  SECTION("advances of 2^64 - 1") {
    Section program;
    program.u8({0x01, 0x02}).u8(most).u8({0x01, 0x03}).u8(most).u8({0x01, 0x04}).u8(most).u8({0x01, 0x02, 8});
    CHECK(line_at(unit_with(program.u8(kEndSequence)), 0x401000) == kNowhere);
  }
  SECTION("a number of a million bytes") {
    Section program;
    program.u8({0x01, 0x02}).append(Bytes(1'000'000, std::byte{0x80})).u8({0x00, 0x02, 4}).u8(kEndSequence);
    CHECK(line_at(unit_with(program), 0x401003) == "main.cpp:1");
  }
  SECTION("a sequence longer than any code") {
    Section program;
    program.u8({0x01, 0x02, 0x80, 0x80, 0x80, 0x80, 0x10}).u8(kEndSequence);
    CHECK(line_at(unit_with(program), 0x401000) == kNowhere);
  }
  SECTION("units of a reserved length or a length beyond the section") {
    for (const std::uint64_t length : {0xFFFFFFF0U, 0xFFFFFFFEU, 0x7FFFFFFFU}) {
      CHECK(line_at(Section().field(length, 4).append(whole_unit({})).bytes(), 0x401000) == kNowhere);
    }
    const Section section = Section().field(0xFFFFFFFF, 4).field(~std::uint64_t{0}, 8).append(whole_unit({}));
    CHECK(line_at(section.bytes(), 0x401000) == kNowhere);
  }
}

TEST_CASE("a section that would take too long is not read", "[symbols]") {
  constexpr std::size_t kTooLarge = (std::size_t{256} << 20) + 1;
  void* const memory =
      ::mmap(nullptr, kTooLarge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  const std::span section(static_cast<std::byte*>(memory), kTooLarge);
  const Bytes bytes = whole_unit({});
  std::copy(bytes.begin(), bytes.end(), section.begin());
  CHECK(line_at(section, 0x401000) == kNowhere);
  CHECK(line_at(section.first(bytes.size()), 0x401000) == "main.cpp:10");
  ::munmap(memory, kTooLarge);
}

TEST_CASE("lines cut off anywhere are read up to there and no further", "[symbols]") {
  for (const unsigned version : {2U, 4U, 5U}) {
    const Bytes section = whole_unit({version});
    for (std::size_t size = 0; size < section.size(); ++size) {
      ExactCopy copy(std::span<const std::byte>(section).first(size));
      CHECK(line_at(copy.bytes(), 0x401000) == kNowhere);
    }
  }
}

TEST_CASE("20,000 damaged line programs are read without harm", "[symbols]") {
  std::mt19937 random = random_numbers();
  Section section;
  for (const unsigned version : {2U, 4U, 5U}) section.append(whole_unit({version, version == 4, 8}));
  for (int round = 0; round < 20'000; ++round) {
    ExactCopy lines = damaged(section.bytes(), random);
    ExactCopy files = damaged(text_bytes(kFiles), random);
    ExactCopy directories = damaged(text_bytes(kDirectories), random);
    ask_everywhere(LineTable({lines.bytes(), files.bytes(), directories.bytes()}));
  }
}

TEST_CASE("the program's own file is read, and is known as the one that was loaded", "[symbols]") {
  const ElfFile program(program_file().bytes());
  CHECK(program.section(".text").size() > 1000);
  CHECK(program.section(".bss").empty());  // has no bytes in the file
  CHECK(program.section(".no such section").empty());
  const auto loaded = loaded_program();
  REQUIRE(loaded);
  CHECK(loaded->is_program);
  CHECK_FALSE(loaded->is_code);
  CHECK_FALSE(program.fingerprint().empty());
  CHECK(program.fingerprint() == loaded->fingerprint);
  const auto code = loaded_object(address_of(&subtract));
  REQUIRE(code);
  CHECK(code->is_code);
  CHECK(code->base == loaded->base);
}

TEST_CASE("a file that is not there, or is none, is empty", "[symbols]") {
  CHECK(MappedFile("/no such file").bytes().empty());
  CHECK(MappedFile("/").bytes().empty());
  CHECK(MappedFile("/dev/null").bytes().empty());
  CHECK(ElfFile().section(".text").empty());
  CHECK(ElfFile().fingerprint().empty());
  CHECK(FunctionTable(ElfFile()).around(0x1000).name.empty());
}

TEST_CASE("functions are found in a symbol table", "[symbols]") {
  for (const std::uint32_t type : {std::uint32_t{SHT_SYMTAB}, std::uint32_t{SHT_DYNSYM}}) {
    for (const bool many_sections : {false, true}) {
      INFO("type " << type << ", section numbers in the first section header " << many_sections);
      const Bytes bytes = elf_file(type, many_sections);
      const ElfFile file(bytes);
      const FunctionTable functions(file);
      CHECK(functions.name_at(0x1000) == "global");
      CHECK(functions.name_at(0x1001).empty());
      CHECK(functions.around(0x0FFF).name.empty());
      CHECK(functions.around(0x101F).name == "global");
      CHECK(functions.around(0x101F).begin == 0x1000);
      CHECK(functions.around(0x1020).name == "unsized");
      CHECK(functions.around(0x107F).name == "unsized");
      CHECK(functions.around(0x108F).name == "resolver");
      CHECK(functions.around(0x1090).name.empty());
      CHECK(functions.around(0x201F).name == "last");
      CHECK(functions.around(0x2020).name.empty());  // where the section ends
      CHECK(functions.name_at(0x10A0).empty());      // another file's
      CHECK(functions.name_at(0x10B0).empty());      // no function
      CHECK(file.section(".last").size() == 0x20);
      CHECK(file.section(".compressed").empty());
    }
  }
}

TEST_CASE("a file for another kind of machine is not read", "[symbols]") {
  for (const std::size_t field : {std::size_t{EI_MAG0}, std::size_t{EI_CLASS}, std::size_t{EI_DATA}}) {
    Bytes bytes = elf_file(SHT_SYMTAB, false);
    bytes[field] ^= std::byte{3};
    CHECK(FunctionTable(ElfFile(bytes)).name_at(0x1000).empty());
    CHECK(ElfFile(bytes).fingerprint().empty());
  }
}

TEST_CASE("another build of a file has another fingerprint", "[symbols]") {
  const Bytes before = elf_file(SHT_SYMTAB, false);
  Bytes after = before;
  after[kNoteOffset] ^= std::byte{1};
  CHECK(ElfFile(before).fingerprint() != ElfFile(after).fingerprint());
  CHECK(ElfFile(before).fingerprint() == ElfFile(elf_file(SHT_DYNSYM, false)).fingerprint());
}

TEST_CASE("20,000 damaged files are read without harm", "[symbols]") {
  std::mt19937 random = random_numbers();
  for (int round = 0; round < 20'000; ++round) {
    ExactCopy bytes = damaged(elf_file(SHT_SYMTAB, round % 2 == 0), random);
    const ElfFile file(bytes.bytes());
    std::size_t sum = file.fingerprint().size();
    const FunctionTable functions(file);
    for (std::uint64_t address = 0x0FF0; address < 0x2030; address += 8) {
      sum += functions.around(address).name.size() + functions.name_at(address).size();
    }
    // What lies outside would be seen when it is read.
    for (const char* const name : {".text", ".last", ".compressed", ".symtab"}) {
      for (const std::byte byte : file.section(name)) sum += std::to_integer<std::size_t>(byte);
    }
    static_cast<void>(sum);
  }
}
