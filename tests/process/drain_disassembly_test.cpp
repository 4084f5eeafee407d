// SPDX-License-Identifier: BSL-1.0
// That the machine code with which the host drains a worker's answers loads each word of the shared header once, on
// whichever way through it: shared_reads_test sees the ways that it takes, this all that there are.
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
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Without optimisation a compiler's loads are others than in the library that people use; sanitizers add their own.
#if defined(__x86_64__) && defined(__OPTIMIZE__) && !WITH_SANITIZER

using namespace bulkhead::process;

// What the test must find: the check that it makes would be worth nothing here.
extern "C" [[gnu::noinline, gnu::used]] std::uint64_t loads_size_twice(const HostChannel&, const ResponseHeader& area,
                                                                       std::uint32_t sequence) {
  const ResponseSlot& slot = area.slots[sequence % kSlots];
  if (slot.size.load() > sizeof(slot.payload)) return 0;
  return slot.size.load();
}

namespace {

struct Instruction {
  std::string name;
  std::vector<std::string> operands;
  std::uint64_t next = 0;
};
struct Function {
  std::uint64_t entry = 0;
  std::map<std::uint64_t, Instruction> instructions;  // by address
};

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

std::optional<std::pair<std::uint64_t, Instruction>> parse_instruction(std::string_view line) {
  const std::size_t colon = line.find(":\t");
  if (colon == std::string_view::npos) return std::nullopt;
  const std::uint64_t address = std::stoull(std::string(line.substr(0, colon)), nullptr, 16);
  std::string_view rest = line.substr(colon + 2);
  rest = rest.substr(0, std::min(rest.find('#'), rest.find('<')));  // what objdump adds
  for (const std::string_view prefix : {"cs ", "ds ", "rep ", "repz ", "lock ", "notrack ", "bnd "}) {
    if (rest.substr(0, prefix.size()) == prefix) rest.remove_prefix(prefix.size());
  }
  const std::size_t end = std::min(rest.find(' '), rest.size());
  return std::pair{address, Instruction{std::string(rest.substr(0, end)), split_operands(rest.substr(end)), 0}};
}

// Of this program: with what a compiler has moved out of the function since it is seldom run.
Function disassemble(const std::string& symbol) {
  Function function;
  for (const char* part : {"", ".cold"}) {
    const std::string command =
        fmt::format("objdump --disassemble='{}{}' --no-show-raw-insn /proc/{}/exe", symbol, part, ::getpid());
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> output(::popen(command.c_str(), "r"), ::pclose);
    if (!output) throw std::runtime_error("cannot run objdump");
    std::array<char, 4096> line{};
    Instruction* before = nullptr;
    while (std::fgets(line.data(), line.size(), output.get()) != nullptr) {
      std::string_view text = line.data();
      while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
      auto parsed = parse_instruction(text);
      if (!parsed) continue;
      if (function.instructions.empty()) function.entry = parsed->first;
      if (before != nullptr) before->next = parsed->first;
      before = &function.instructions.emplace(parsed->first, std::move(parsed->second)).first->second;
    }
  }
  if (function.instructions.empty()) throw std::runtime_error("objdump finds no " + symbol);
  return function;
}

// rax for each of %rax, %eax, %ax, %al; empty if it is no register.
std::string register_of(std::string_view operand) {
  if (operand.empty() || operand[0] != '%') return {};
  std::string name(operand.substr(1));
  if (name[0] == 'r' && name.size() > 1 && name[1] >= '0' && name[1] <= '9') {
    while (name.back() == 'd' || name.back() == 'w' || name.back() == 'b') name.pop_back();
    return name;
  }
  if (name[0] == 'r' || name[0] == 'e') return "r" + name.substr(1);
  if (name.size() == 2 && (name[1] == 'l' || name[1] == 'h')) {
    return std::string("r") + name[0] + (std::string_view("abcd").find(name[0]) != std::string_view::npos ? "x" : "");
  }
  if (name.size() == 3 && name[2] == 'l') return "r" + name.substr(0, 2);  // %sil, %dil
  return name.size() == 2 ? "r" + name : name;
}

struct Memory {
  std::size_t displacement = 0;  // modulo 2^64
  std::string base;
  std::string index;
};

std::optional<Memory> memory_of(std::string_view operand) {
  const std::size_t open = operand.find('(');
  if (open == std::string_view::npos) return std::nullopt;
  Memory memory;
  if (open > 0) {
    const bool negative = operand[0] == '-';
    const std::string number(operand.substr(negative ? 1 : 0, open - (negative ? 1 : 0)));
    if (number.find(':') != std::string::npos) return Memory{};  // %fs:0x28: of the thread
    memory.displacement = std::stoull(number, nullptr, 16);
    if (negative) memory.displacement = 0 - memory.displacement;
  }
  const std::vector<std::string> parts = split_operands(operand.substr(open + 1, operand.size() - open - 2));
  if (!parts.empty()) memory.base = register_of(parts[0]);
  if (parts.size() > 1) memory.index = register_of(parts[1]);
  return memory;
}

bool starts_with_one_of(std::string_view text, std::initializer_list<std::string_view> beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [text](std::string_view beginning) { return text.substr(0, beginning.size()) == beginning; });
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

using Loads = std::map<std::size_t, std::set<std::uint64_t>>;  // the instructions, by the word's offset

struct Words {
  Loads of_header;
  Loads of_slot;
};

// Follows all ways through a function, and what is known of the registers on them.
class Follower {
 public:
  /// `area_member`: where a HostChannel has the address of the response area.
  Follower(const Function& function, std::size_t area_member) : function_(function), area_member_(area_member) {}

  Words follow(const Known& at_entry) {
    reach(function_.entry, at_entry);
    while (!to_do_.empty()) {
      const std::uint64_t address = to_do_.front();
      to_do_.pop_front();
      step(address, known_.at(address));
    }
    return std::move(words_);
  }

 private:
  void reach(std::uint64_t address, const Known& known) {
    if (function_.instructions.find(address) == function_.instructions.end()) return;  // another function's
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

  void step(std::uint64_t address, Known known) {
    const Instruction& now = function_.instructions.at(address);
    if (now.name[0] == 'j') {
      if (now.operands.empty() || now.operands[0][0] == '*') throw std::runtime_error("cannot follow an indirect jump");
      reach(std::stoull(now.operands[0], nullptr, 16), known);
      if (now.name == "jmp") return;
    } else if (starts_with_one_of(now.name, {"ret", "ud2", "hlt"})) {
      return;
    } else if (starts_with_one_of(now.name, {"call"})) {
      for (const char* lost : {"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"}) known.erase(lost);
    } else if (!starts_with_one_of(now.name, {"nop", "prefetch", "push", "endbr"})) {
      note_loads(address, now, known);
      follow_pointers(now, known);
    }
    reach(now.next, known);
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
    if (starts_with_one_of(now.name, {"lea"})) return;
    for (std::size_t i = 0; i < now.operands.size(); ++i) {
      const bool only_written = i + 1 == now.operands.size() && starts_with_one_of(now.name, {"mov", "set"});
      const auto memory = memory_of(now.operands[i]);
      if (only_written || !memory) continue;
      for (const Pointer& pointer : pointed(*memory, known)) {
        if (pointer.to_channel) continue;
        if (pointer.to_slot) {
          words_.of_slot[pointer.offset % kSlotSize].insert(address);
        } else {
          words_.of_header[pointer.offset].insert(address);
        }
      }
    }
  }

  // The name of a place that pointers are kept in: a register, or a word on the stack.
  static std::string place_of(const std::string& operand) {
    const std::string name = register_of(operand);
    if (!name.empty()) return name;
    const auto memory = memory_of(operand);
    return memory && memory->base == "rsp" && memory->index.empty() ? operand : std::string();
  }

  std::set<Pointer> value_of(const std::string& operand, const Known& known) const {
    if (const auto found = known.find(place_of(operand)); found != known.end()) return found->second;
    std::set<Pointer> result;
    if (const auto memory = memory_of(operand)) {
      for (const Pointer& pointer : pointed(*memory, known)) {
        if (pointer.to_channel && pointer.offset == area_member_) result.insert(Pointer{});
      }
    }
    return result;
  }

  void follow_pointers(const Instruction& now, Known& known) const {
    if (now.operands.empty()) return;
    const std::string to = place_of(now.operands.back());
    if (to.empty() || starts_with_one_of(now.name, {"cmp", "test", "bt"})) return;
    const std::string& from = now.operands.front();
    if (starts_with_one_of(now.name, {"lea"})) {
      set(known, to, pointed(memory_of(from).value(), known));
    } else if (starts_with_one_of(now.name, {"cmov"})) {
      std::set<Pointer> either = value_of(from, known);
      if (const auto old = known.find(to); old != known.end()) either.insert(old->second.begin(), old->second.end());
      set(known, to, std::move(either));
    } else if (now.name == "mov" || now.name == "movq") {
      set(known, to, value_of(from, known));
    } else if (starts_with_one_of(now.name, {"add", "sub"})) {
      std::set<Pointer> moved;
      const bool constant = from[0] == '$';
      const std::size_t by = constant ? std::stoull(from.substr(1), nullptr, 16) : 0;
      for (const std::string* side : {&to, &from}) {
        for (Pointer pointer : value_of(side == &to ? now.operands.back() : from, known)) {
          pointer.offset += now.name[0] == 'a' ? by : 0 - by;
          pointer.to_slot = pointer.to_slot || !constant;
          moved.insert(pointer);
        }
      }
      set(known, to, std::move(moved));
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

  const Function& function_;
  std::size_t area_member_;
  std::map<std::uint64_t, Known> known_;  // before the instruction
  std::deque<std::uint64_t> to_do_;
  Words words_;
};

// Where a HostChannel has the address of the response area: the only read-only mapping of one in this process.
std::size_t find_area_member() {
  const HostChannel channel(ArenaLayout{std::size_t{64} << 10});
  std::uintptr_t area = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:bulkhead-response") == std::string::npos || line.find(" r--s ") == std::string::npos) continue;
    area = std::stoull(line, nullptr, 16);
  }
  for (std::size_t offset = 0; offset < sizeof(channel); offset += sizeof(area)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, reinterpret_cast<const std::byte*>(&channel) + offset, sizeof(word));
    if (word == area) return offset;
  }
  throw std::runtime_error("no address of the response area in a HostChannel");
}

Words words_loaded_by(const std::string& symbol, const Known& at_entry) {
  const Function function = disassemble(symbol);
  return Follower(function, find_area_member()).follow(at_entry);
}

const Pointer kChannel{true, false, 0};

void check_each_once(const Loads& loads, const std::set<std::size_t>& expected) {
  std::set<std::size_t> found;
  for (const auto& [word, instructions] : loads) {
    INFO("word at " << word);
    CHECK(instructions.size() == 1);
    found.insert(word);
  }
  CHECK(found == expected);
}

}  // namespace

TEST_CASE("a word that machine code loads at two places is found", "[drain_disassembly]") {
  const Words words = words_loaded_by("loads_size_twice", {{"rdi", {kChannel}}, {"rsi", {Pointer{}}}});
  REQUIRE(words.of_slot.size() == 1);
  CHECK(words.of_slot.begin()->first == offsetof(ResponseSlot, size));
  CHECK(words.of_slot.begin()->second.size() == 2);
}

TEST_CASE("the machine code that drains answers loads each word of a slot and of the counters at one place",
          "[drain_disassembly]") {
  SECTION("how many there are") {
    const Words words = words_loaded_by("_ZN8bulkhead7process11HostChannel9committedEv", {{"rdi", {kChannel}}});
    check_each_once(words.of_header, {offsetof(ResponseHeader, committed)});
    check_each_once(words.of_slot, {});
  }
  SECTION("an answer") {
    // Its result is returned in memory whose address comes first.
    const Words words = words_loaded_by("_ZNK8bulkhead7process11HostChannel8responseEj", {{"rsi", {kChannel}}});
    check_each_once(words.of_header, {});
    check_each_once(words.of_slot, {offsetof(ResponseSlot, sequence), offsetof(ResponseSlot, kind),
                                    offsetof(ResponseSlot, over_memory), offsetof(ResponseSlot, size),
                                    offsetof(ResponseSlot, heap_offset), offsetof(ResponseSlot, began_ns),
                                    offsetof(ResponseSlot, ended_ns)});
  }
  SECTION("that they have been read") {
    const Words words = words_loaded_by("_ZN8bulkhead7process11HostChannel7consumeEj", {{"rdi", {kChannel}}});
    check_each_once(words.of_header, {offsetof(ResponseHeader, sleeping)});
    check_each_once(words.of_slot, {});
  }
}

#endif
