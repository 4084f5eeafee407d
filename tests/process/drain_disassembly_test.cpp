// SPDX-License-Identifier: BSL-1.0
// That the machine code with which the host drains a worker's answers loads each word of the shared header once, on
// whichever way through it, and through what it calls: shared_reads_test sees the ways that it takes, this all there
// are.
#include "process/channel.hpp"

#include "support/catch.hpp"
#include "support/sanitizer.hpp"

#include <fmt/format.h>

#include <unistd.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace bulkhead::process;
using Catch::Matchers::ContainsSubstring;

struct Instruction {
  std::string name;
  std::vector<std::string> operands;
  std::string target;  // the symbol that a call or a jump leads to
  std::uint64_t next = 0;
};

// What objdump shows.
struct Program {
  std::map<std::string, std::uint64_t> symbols;
  std::map<std::uint64_t, Instruction> instructions;
};

bool starts_with_one_of(std::string_view text, std::initializer_list<std::string_view> beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [text](std::string_view beginning) { return text.substr(0, beginning.size()) == beginning; });
}

std::vector<std::string> split_operands(std::string_view text) {
  std::vector<std::string> operands(1);
  int depth = 0;
  for (const char c : text) {
    if (c == '(') ++depth;
    if (c == ')') --depth;
    if (c == ',' && depth == 0) {
      operands.emplace_back();
    } else if (c != ' ') {
      operands.back() += c;
    }
  }
  if (operands.back().empty()) operands.pop_back();
  return operands;
}

std::uint64_t number_in(std::string_view text) { return std::stoull(std::string(text), nullptr, 16); }

Instruction parse_instruction(std::string_view text) {
  Instruction instruction;
  text = text.substr(0, text.find('#'));  // a remark of objdump's
  if (const std::size_t open = text.find('<'); open != std::string_view::npos) {
    instruction.target = text.substr(open + 1, text.find('>', open) - open - 1);
    text = text.substr(0, open);
  }
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view prefix :
         {"data16 ", "cs ", "ds ", "rep ", "repz ", "repnz ", "lock ", "notrack ", "bnd "}) {
      if (text.substr(0, prefix.size()) != prefix) continue;
      text.remove_prefix(prefix.size());
      again = true;
    }
  }
  const std::size_t end = std::min(text.find(' '), text.size());
  instruction.name = text.substr(0, end);
  instruction.operands = split_operands(text.substr(end));
  return instruction;
}

Program parse_program(std::istream& text) {
  Program program;
  Instruction* before = nullptr;
  for (std::string line; std::getline(text, line);) {
    if (const std::size_t colon = line.find(":\t"); colon != std::string::npos) {
      const std::uint64_t address = number_in(line.substr(0, colon));
      if (before != nullptr) before->next = address;
      before = &(program.instructions[address] = parse_instruction(std::string_view(line).substr(colon + 2)));
    } else if (const std::size_t symbol = line.find(" <"); symbol != std::string::npos && line.back() == ':') {
      program.symbols.emplace(line.substr(symbol + 2, line.size() - symbol - 4), number_in(line.substr(0, symbol)));
    }
  }
  return program;
}

// rax for each of %rax, %eax, %ax, %al; empty if it is no register for pointers.
std::string register_of(std::string_view operand) {
  if (operand.size() < 3 || operand[0] != '%') return {};
  std::string name(operand.substr(1));
  if (name[0] == 'r' && name[1] >= '0' && name[1] <= '9') {
    while (name.back() == 'd' || name.back() == 'w' || name.back() == 'b') name.pop_back();
    return name;
  }
  if (name.size() == 3 && (name[0] == 'r' || name[0] == 'e')) return "r" + name.substr(1);
  if (name.size() == 3 && name[2] == 'l') return "r" + name.substr(0, 2);  // %sil
  if (name.size() == 2 && (name[1] == 'l' || name[1] == 'h')) return std::string("r") + name[0] + "x";
  return name.size() == 2 ? "r" + name : std::string();
}

struct Memory {
  std::size_t displacement = 0;  // modulo 2^64
  std::string base;
  std::string index;
};

std::optional<Memory> memory_of(std::string_view operand) {
  if (starts_with_one_of(operand, {"%ds:", "%es:"})) operand.remove_prefix(4);
  const std::size_t open = operand.find('(');
  // What has no register, or lies in the thread's own memory.
  if (open == std::string_view::npos || starts_with_one_of(operand, {"%fs:", "%gs:"})) return std::nullopt;
  Memory memory;
  const bool negative = operand[0] == '-';
  if (const auto number = operand.substr(negative ? 1 : 0, open - (negative ? 1 : 0)); !number.empty()) {
    memory.displacement = negative ? 0 - number_in(number) : number_in(number);
  }
  const std::vector<std::string> parts = split_operands(operand.substr(open + 1, operand.size() - open - 2));
  if (!parts.empty()) memory.base = register_of(parts[0]);
  if (parts.size() > 1) memory.index = register_of(parts[1]);
  return memory;
}

// How many bytes it loads from memory; more than there are where that is not known.
std::size_t width_of(const Instruction& now) {
  constexpr std::size_t kAnything = 1 << 20;
  if (starts_with_one_of(now.name, {"movs", "cmps", "lods", "scas"}) &&
      !starts_with_one_of(now.name, {"movsb", "movsw", "movsl"})) {
    if (now.operands.size() == 2 && memory_of(now.operands[0]) && memory_of(now.operands[1])) return kAnything;
  }
  if (starts_with_one_of(now.name, {"movzb", "movsb"})) return 1;
  if (starts_with_one_of(now.name, {"movzw", "movsw"})) return 2;
  if (starts_with_one_of(now.name, {"movsl"})) return 4;
  for (const std::string_view eight : {"movq", "movlps", "movhps", "movlpd", "movhpd", "movsd"}) {
    if (now.name == eight) return 8;
  }
  if (now.name == "movd" || now.name == "movss") return 4;
  for (const std::string& operand : now.operands) {
    if (operand[0] != '%') continue;
    if (starts_with_one_of(operand, {"%xmm"})) return 16;
    if (starts_with_one_of(operand, {"%ymm"})) return 32;
    if (starts_with_one_of(operand, {"%zmm"})) return 64;
    if (memory_of(operand)) continue;
    const std::string_view name = std::string_view(operand).substr(1);
    if (name.back() == 'b' || name.back() == 'l' || name.back() == 'h') return 1;
    if (name[0] == 'e' || name.back() == 'd') return 4;
    if (name.size() == 2 || name.back() == 'w') return name == "r8" || name == "r9" ? 8 : 2;
    return 8;
  }
  switch (now.name.empty() ? 0 : now.name.back()) {
    case 'b':
      return 1;
    case 'w':
      return 2;
    case 'l':
      return 4;
    case 'h':  // push
    case 'q':
      return 8;
    default:
      return kAnything;
  }
}

// What a register, or a word on the stack, may hold.
struct Pointer {
  bool to_channel = false;  // the HostChannel itself; else into the response area
  bool to_slot = false;     // something that varies was added: which slot
  std::size_t offset = 0;   // from the area's begin, or from that of a slot
  auto operator<=>(const Pointer&) const = default;
};
using Known = std::map<std::string, std::set<Pointer>>;
constexpr std::size_t kMostPointers = 8;  // in a register; a loop that moves one would have no end of them

struct Load {
  std::uint64_t address = 0;  // of the instruction
  bool of_slot = false;       // else of the header
  std::size_t offset = 0;
  std::size_t width = 0;
  auto operator<=>(const Load&) const = default;
};

// Follows all ways through a function and what it calls of the library, and what is known of the registers on them.
class Follower {
 public:
  /// `area_member`: where a HostChannel has the address of the response area.
  Follower(const Program& program, std::size_t area_member) : program_(program), area_member_(area_member) {}

  std::set<Load> follow(const std::string& symbol, const Known& at_entry) {
    const auto entry = program_.symbols.find(symbol);
    if (entry == program_.symbols.end()) throw std::runtime_error("there is no " + symbol);
    reach(entry->second, at_entry);
    while (!to_do_.empty()) {
      const std::uint64_t address = to_do_.front();
      to_do_.pop_front();
      step(address, known_.at(address));
    }
    return loads_;
  }

  /// How often it may be made on one way: 1, or 2 for all that is more.
  int times(const Load& load) const {
    std::set<std::uint64_t> reached;
    std::vector<std::uint64_t> to_do{load.address};
    while (!to_do.empty()) {
      const std::uint64_t address = to_do.back();
      to_do.pop_back();
      std::set<std::uint64_t> next = at(after_, address);
      next.merge(at(called_, address));
      if (at(after_, address).empty()) next.merge(return_sites(address));
      if (next.count(load.address) != 0) return 2;
      for (const std::uint64_t one : next) {
        if (reached.insert(one).second) to_do.push_back(one);
      }
    }
    return 1;
  }

 private:
  void reach(std::uint64_t address, const Known& known) {
    const auto [at, first] = known_.try_emplace(address);
    bool more = first;
    for (const auto& [place, pointers] : known) {
      std::set<Pointer>& here = at->second[place];
      const std::size_t before = here.size();
      here.insert(pointers.begin(), pointers.end());
      if (here.size() > kMostPointers) throw std::runtime_error("a pointer moves in a loop: cannot follow it");
      more = more || here.size() != before;
    }
    if (more) to_do_.push_back(address);
  }

  using Addresses = std::map<std::uint64_t, std::set<std::uint64_t>>;

  static std::set<std::uint64_t> at(const Addresses& addresses, std::uint64_t address) {
    const auto found = addresses.find(address);
    return found == addresses.end() ? std::set<std::uint64_t>() : found->second;
  }

  // Where a function that ends here goes on: behind the calls that lead here.
  std::set<std::uint64_t> return_sites(std::uint64_t end) const {
    std::set<std::uint64_t> sites;
    for (const auto& [entry, behind] : behind_calls_) {
      std::set<std::uint64_t> body{entry};
      std::vector<std::uint64_t> to_do{entry};
      while (!to_do.empty()) {
        const std::uint64_t address = to_do.back();
        to_do.pop_back();
        for (const std::uint64_t next : at(after_, address)) {
          if (body.insert(next).second) to_do.push_back(next);
        }
      }
      if (body.count(end) != 0) sites.insert(behind.begin(), behind.end());
    }
    return sites;
  }

  void go_on(std::uint64_t from, std::uint64_t to, const Known& known) {
    after_[from].insert(to);
    reach(to, known);
  }

  void step(std::uint64_t address, Known known) {
    const auto found = program_.instructions.find(address);
    if (found == program_.instructions.end()) throw std::runtime_error("runs to where no instruction is");
    const Instruction& now = found->second;
    if (starts_with_one_of(now.name, {"j", "call"}) && now.operands.at(0)[0] == '*') {
      throw std::runtime_error("cannot follow an indirect " + now.name);
    }
    if (starts_with_one_of(now.name, {"jmp", "call"}) && leaves(now)) {
      leave(address, now, known);
    } else if (now.name[0] == 'j') {
      go_on(address, number_in(now.operands[0]), known);
      if (now.name != "jmp") go_on(address, now.next, known);
    } else if (!starts_with_one_of(now.name, {"ret", "ud2", "hlt"})) {
      if (!starts_with_one_of(now.name, {"nop", "prefetch", "endbr", "lea"})) note_loads(address, now, known);
      follow_pointers(now, known);
      go_on(address, now.next, known);
    }
  }

  // Whether it leads to another function: a part of this one that is seldom run is none.
  static bool leaves(const Instruction& now) {
    return now.name.substr(0, 4) == "call" ||
           (now.target.find("+0x") == std::string::npos && now.target.find(".cold") == std::string::npos);
  }

  void leave(std::uint64_t address, const Instruction& now, Known known) {
    const bool call = now.name.substr(0, 4) == "call";
    // As the registers of arguments are: others may have been left from before.
    const auto passes_area = [&known](std::initializer_list<const char*> registers) {
      return std::any_of(registers.begin(), registers.end(), [&known](const char* name) {
        const auto held = known.find(name);
        return held != known.end() && std::any_of(held->second.begin(), held->second.end(),
                                                  [](const Pointer& pointer) { return !pointer.to_channel; });
      });
    };
    const bool own = now.target.find("bulkhead") != std::string::npos || now.target.find("(anonymous") == 0;
    if (own && now.target.find("ProtocolViolation") == std::string::npos) {
      Known inside = known;
      for (auto place = inside.begin(); place != inside.end();) {
        place = place->first[0] == 'r' ? std::next(place) : inside.erase(place);  // without the caller's stack
      }
      const std::uint64_t entry = number_in(now.operands.at(0));
      if (call) {
        called_[address].insert(entry);
        behind_calls_[entry].insert(now.next);
      } else {
        after_[address].insert(entry);
      }
      reach(entry, inside);
    } else if (now.target.find("mem") == 0 && passes_area({"rdi", "rsi"})) {
      throw std::runtime_error("the area is passed to " + now.target);
    }
    if (!call) return;
    // Other registers may be kept: a compiler knows what its own functions do not touch.
    known.erase("rax");
    go_on(address, now.next, known);
  }

  // Where an operand in memory points to, of what is known.
  static std::set<Pointer> pointed(const Memory& memory, const Known& known) {
    std::set<Pointer> result;
    for (const std::string* side : {&memory.base, &memory.index}) {
      const auto found = known.find(*side);
      if (side->empty() || found == known.end()) continue;
      const bool moved = !(side == &memory.base ? memory.index : memory.base).empty();
      for (Pointer pointer : found->second) {
        pointer.offset += memory.displacement;
        pointer.to_slot = pointer.to_slot || moved;
        result.insert(pointer);
      }
    }
    return result;
  }

  void note_loads(std::uint64_t address, const Instruction& now, const Known& known) {
    for (std::size_t i = 0; i < now.operands.size(); ++i) {
      const bool only_written = i + 1 == now.operands.size() && starts_with_one_of(now.name, {"mov", "set", "pop"});
      const auto memory = memory_of(now.operands[i]);
      if (only_written || !memory) continue;
      for (const Pointer& pointer : pointed(*memory, known)) {
        if (pointer.to_channel) continue;
        const std::size_t offset = pointer.to_slot ? pointer.offset % kSlotSize : pointer.offset;
        loads_.insert({address, pointer.to_slot, offset, width_of(now)});
      }
    }
  }

  // The name of a place that pointers are kept in: a register, or a word on the stack.
  static std::string place_of(const std::string& operand, const Known& known) {
    const std::string name = register_of(operand);
    if (!name.empty()) return name;
    const auto memory = memory_of(operand);
    if (!memory || !memory->index.empty()) return {};
    return memory->base == "rsp" || (memory->base == "rbp" && known.count("rbp") == 0) ? operand : std::string();
  }

  std::set<Pointer> value_of(const std::string& operand, const Known& known) const {
    if (const auto found = known.find(place_of(operand, known)); found != known.end()) return found->second;
    std::set<Pointer> result;
    if (const auto memory = memory_of(operand)) {
      for (const Pointer& pointer : pointed(*memory, known)) {
        if (pointer.to_channel && pointer.offset == area_member_) result.insert(Pointer{});
      }
    }
    return result;
  }

  void follow_pointers(const Instruction& now, Known& known) const {
    if (now.operands.empty() || starts_with_one_of(now.name, {"cmp", "test", "bt", "nop", "prefetch", "push"})) return;
    const std::string to = place_of(now.operands.back(), known);
    if (to.empty()) return;
    const std::string& from = now.operands.front();
    const auto held = [&] { return value_of(now.operands.back(), known); };
    if (starts_with_one_of(now.name, {"lea"})) {
      const auto memory = memory_of(from);
      set(known, to, memory ? pointed(*memory, known) : std::set<Pointer>());
    } else if (starts_with_one_of(now.name, {"cmov"})) {
      std::set<Pointer> either = value_of(from, known);
      either.merge(held());
      set(known, to, std::move(either));
    } else if (now.name == "mov" || now.name == "movq") {
      set(known, to, value_of(from, known));
    } else if (starts_with_one_of(now.name, {"add", "sub"})) {
      std::set<Pointer> moved;
      const bool constant = from[0] == '$';
      const std::size_t by = constant ? number_in(from.substr(1)) : 0;
      for (std::set<Pointer> side : {held(), value_of(from, known)}) {
        for (Pointer pointer : side) {
          pointer.offset += now.name[0] == 'a' ? by : 0 - by;
          pointer.to_slot = pointer.to_slot || !constant;
          moved.insert(pointer);
        }
      }
      set(known, to, std::move(moved));
    } else if (starts_with_one_of(now.name, {"mov", "set", "pop", "cvt"}) ||
               (now.name == "xor" && now.operands.front() == now.operands.back())) {
      known.erase(to);  // something else
    } else if (const auto lost = held();
               std::any_of(lost.begin(), lost.end(), [](const Pointer& pointer) { return !pointer.to_channel; })) {
      throw std::runtime_error("cannot follow a pointer through " + now.name);
    } else {
      known.erase(to);
    }
  }

  static void set(Known& known, const std::string& place, std::set<Pointer> pointers) {
    if (pointers.empty()) {
      known.erase(place);
    } else {
      known[place] = std::move(pointers);
    }
  }

  const Program& program_;
  std::size_t area_member_;
  std::map<std::uint64_t, Known> known_;  // before the instruction
  std::deque<std::uint64_t> to_do_;
  std::set<Load> loads_;
  Addresses after_;         // in the same function, or where that is left for good
  Addresses called_;        // by the call there
  Addresses behind_calls_;  // of the function that begins there
};

struct Word {
  bool of_slot = false;
  std::size_t offset = 0;
  std::size_t size = 0;
};

// Empty: each of the words is loaded once on whichever way, and nothing else.
std::string complaint(const Program& program, std::size_t area_member, const std::string& symbol, const Known& at_entry,
                      const std::vector<Word>& words) {
  Follower follower(program, area_member);
  const std::set<Load> loads = follower.follow(symbol, at_entry);
  std::size_t expected = 0;
  for (const Word& word : words) {
    int times = 0;
    for (const Load& load : loads) {
      const bool overlaps = load.of_slot == word.of_slot && load.offset < word.offset + word.size &&
                            word.offset < load.offset + load.width;
      if (overlaps) times += follower.times(load);
    }
    if (times != 1) return fmt::format("the word at {} is loaded {} times", word.offset, times);
    ++expected;
  }
  return loads.size() == expected ? std::string() : "something else is loaded";
}

constexpr std::size_t kMember = 0x38;
const Known kChannelFirst = {{"rdi", {Pointer{true, false, 0}}}};
const Known kChannelSecond = {{"rsi", {Pointer{true, false, 0}}}};

// `code`: instructions of one byte each, from address 0x10 on.
std::string complaint_of(const std::vector<std::string>& code) {
  std::string text = "0000000000000010 <bulkhead::f>:\n";
  std::size_t address = 0x10;
  for (const std::string& line : code) {
    if (line.back() == ':') {
      text += fmt::format("{:016x} <{}>:\n", address, line.substr(0, line.size() - 1));
    } else {
      text += fmt::format("  {:x}:\t{}\n", address++, line);
    }
  }
  std::istringstream stream(text);
  try {
    return complaint(parse_program(stream), kMember, "bulkhead::f", kChannelFirst, {{false, 8, 8}});
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("one load of a word is one, however it is written", "[drain_disassembly]") {
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "mov    0x8(%rax),%rdx", "ret"}).empty());
  CHECK(complaint_of({"mov    %rdi,-0x8(%rbp)", "mov    -0x8(%rbp),%rcx", "mov    0x38(%rcx),%rax",
                      "lea    0x4(%rax),%rbx", "cmpq   $0x5,0x4(%rbx)", "ret"})
            .empty());
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "test   %ecx,%ecx", "je     14 <bulkhead::f+0x4>",
                      "jmp    15 <bulkhead::f+0x5>", "nop", "push   0x8(%rax)", "ret"})
            .empty());
  CHECK(complaint_of({"mov    0x38(%rdi),%rdi", "call   13 <bulkhead::g>", "ret",
                      "bulkhead::g:", "mov    0x8(%rdi),%rax", "ret"})
            .empty());
}

TEST_CASE("a word that machine code loads twice is found, however it does so", "[drain_disassembly]") {
  const std::string twice = "the word at 8 is loaded 2 times";
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "mov    0x8(%rax),%rdx", "mov    0x8(%rax),%rdx", "ret"}) == twice);
  // As a part of something wider.
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "mov    0x8(%rax),%rdx", "movdqu (%rax),%xmm0", "ret"}) == twice);
  // In a loop.
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "mov    0x8(%rax),%rdx", "jne    11 <bulkhead::f+0x1>", "ret"}) ==
        twice);
  // By what is called, and by what is jumped to at the end.
  CHECK(complaint_of({"mov    0x38(%rdi),%rdi", "mov    0x8(%rdi),%rax", "call   14 <bulkhead::g>", "ret",
                      "bulkhead::g:", "mov    0x8(%rdi),%rax", "ret"}) == twice);
  CHECK(complaint_of({"mov    0x38(%rdi),%rdi", "mov    0x8(%rdi),%rax", "jmp    13 <bulkhead::g>",
                      "bulkhead::g:", "mov    0x8(%rdi),%rax", "ret"}) == twice);
  CHECK(complaint_of({"mov    0x38(%rdi),%rdi", "call   14 <bulkhead::g>", "call   14 <bulkhead::g>", "ret",
                      "bulkhead::g:", "mov    0x8(%rdi),%rax", "ret"}) == twice);
  // On one of two ways.
  CHECK(complaint_of({"mov    0x38(%rdi),%r8", "mov    0x8(%r8),%edx", "je     14 <bulkhead::f+0x4>",
                      "add    0x8(%r8),%rdx", "ret"}) == twice);
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "mov    0x8(%rax),%rdx", "push   0x8(%rax)", "ret"}) == twice);
  CHECK(complaint_of({"mov    0x38(%rdi),%rsi", "mov    0x8(%rsi),%rdx", "rep movsq %ds:(%rsi),%es:(%rdi)", "ret"}) ==
        twice);
}

TEST_CASE("what cannot be followed, or loads something else, is no success", "[drain_disassembly]") {
  CHECK(complaint_of({"ret"}) == "the word at 8 is loaded 0 times");
  CHECK(complaint_of({"mov    0x38(%rdi),%rax", "mov    0x8(%rax),%rdx", "mov    0x10(%rax),%rdx", "ret"}) ==
        "something else is loaded");
  CHECK_THAT(complaint_of({"mov    0x38(%rdi),%rax", "or     $0x8,%rax", "mov    (%rax),%rdx", "ret"}),
             ContainsSubstring("through or"));
  CHECK_THAT(complaint_of({"mov    0x38(%rdi),%rsi", "call   999 <memcpy@plt>", "ret"}), ContainsSubstring("memcpy"));
  CHECK_THAT(complaint_of({"mov    0x38(%rdi),%rax", "jmp    *%rcx"}), ContainsSubstring("indirect"));
}

// Without optimisation, or for size, or by a sanitizer, a compiler's loads are others than in the library that people
// use.
#if defined(__x86_64__) && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__) && !WITH_SANITIZER
namespace {

Program disassemble_this_program() {
  const std::string command = fmt::format("objdump -d -C --no-show-raw-insn /proc/{}/exe", ::getpid());
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> output(::popen(command.c_str(), "r"), ::pclose);
  if (!output) throw std::runtime_error("cannot run objdump");
  std::stringstream text;
  std::array<char, 65536> some{};
  while (const std::size_t size = std::fread(some.data(), 1, some.size(), output.get())) {
    text.write(some.data(), static_cast<std::streamsize>(size));
  }
  return parse_program(text);
}

// Where a HostChannel has the address of the response area: the only read-only mapping of one in this process.
std::size_t find_area_member() {
  const HostChannel channel(ArenaLayout{std::size_t{64} << 10});
  std::uintptr_t area = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; area == 0 && std::getline(maps, line);) {
    if (line.find("memfd:bulkhead-response") == std::string::npos || line.find(" r--s ") == std::string::npos) continue;
    area = number_in(line.substr(0, line.find('-')));
  }
  for (std::size_t offset = 0; offset < sizeof(channel); offset += sizeof(area)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, reinterpret_cast<const std::byte*>(&channel) + offset, sizeof(word));
    if (word == area) return offset;
  }
  throw std::runtime_error("no address of the response area in a HostChannel");
}

}  // namespace

TEST_CASE("the machine code that drains answers loads each word of a slot and of the counters once",
          "[drain_disassembly]") {
  const Program program = disassemble_this_program();
  const std::size_t member = find_area_member();
  CHECK(complaint(program, member, "bulkhead::process::HostChannel::committed()", kChannelFirst,
                  {{false, offsetof(ResponseHeader, committed), 4}}) == "");
  // Its result is returned in memory whose address comes first.
  CHECK(complaint(program, member, "bulkhead::process::HostChannel::response(unsigned int) const", kChannelSecond,
                  {{true, offsetof(ResponseSlot, sequence), 4},
                   {true, offsetof(ResponseSlot, kind), 2},
                   {true, offsetof(ResponseSlot, over_memory), 2},
                   {true, offsetof(ResponseSlot, size), 8},
                   {true, offsetof(ResponseSlot, heap_offset), 8},
                   {true, offsetof(ResponseSlot, began_ns), 8},
                   {true, offsetof(ResponseSlot, ended_ns), 8}}) == "");
  CHECK(complaint(program, member, "bulkhead::process::HostChannel::consume(unsigned int)", kChannelFirst,
                  {{false, offsetof(ResponseHeader, sleeping), 4}}) == "");
}
#endif
