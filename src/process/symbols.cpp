// SPDX-License-Identifier: BSL-1.0
#include "symbols.hpp"

#include "elf_file.hpp"
#include "function_table.hpp"
#include "line_table.hpp"
#include "loaded_object.hpp"

#include <dlfcn.h>
#include <atomic>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bulkhead::process {
namespace {

// Leads to the program's file even if that has been deleted or replaced.
constexpr const char* kProgram = "/proc/self/exe";

// Backtraces have some dozens of frames, and a program that crashes again and again does so in few places.
constexpr std::size_t kMostCachedLines = 1024;

// What the file of a program or library tells of its addresses.
class Module {
 public:
  explicit Module(const LoadedObject& object)
      : fingerprint_(object.fingerprint), mapping_(object.is_program ? kProgram : object.path.c_str()) {
    const ElfFile file(mapping_.bytes());
    if (file.fingerprint() != fingerprint_) return;
    is_loaded_file_ = true;
    file_ = file;
    functions_ = FunctionTable(file);
  }

  // False: the file is another one, or there is none, and nothing is known from it.
  bool is_loaded_file() const { return is_loaded_file_; }

  // Whether that object was loaded from the same build of the file.
  bool describes(const LoadedObject& object) const { return fingerprint_ == object.fingerprint; }

  const FunctionTable& functions() const { return functions_; }

  SourceLine line_of(std::uint64_t address) const {
    const std::lock_guard lock(lines_mutex_);
    if (!lines_) {
      lines_.emplace(
          LineSections{file_.section(".debug_line"), file_.section(".debug_line_str"), file_.section(".debug_str")});
    }
    const auto known = known_lines_.find(address);
    if (known != known_lines_.end()) return known->second;
    if (known_lines_.size() >= kMostCachedLines) known_lines_.clear();
    return known_lines_[address] = lines_->find(address);
  }

 private:
  std::vector<std::byte> fingerprint_;
  MappedFile mapping_;
  bool is_loaded_file_ = false;
  ElfFile file_;
  FunctionTable functions_;

  mutable std::mutex lines_mutex_;
  mutable std::optional<LineTable> lines_;
  mutable std::unordered_map<std::uint64_t, SourceLine> known_lines_;
};

// Without a lock, because functions are named in forked copies of this process, too: a thread that held it would be
// missing there. At worst, several threads read the file at the same time. Never freed: other threads may need it while
// the program exits.
const Module& program_module(const LoadedObject& program) {
  static std::atomic<const Module*> shared{nullptr};
  const Module* module = shared.load(std::memory_order_acquire);
  if (module != nullptr) return *module;
  auto made = std::make_unique<const Module>(program);
  if (shared.compare_exchange_strong(module, made.get(), std::memory_order_acq_rel)) module = made.release();
  return *module;
}

std::shared_ptr<const Module> library_module(const LoadedObject& library) {
  static auto& mutex = *new std::mutex;
  static auto& modules = *new std::map<std::string, std::shared_ptr<const Module>>;
  const std::lock_guard lock(mutex);
  std::shared_ptr<const Module>& module = modules[library.path];
  if (!module || !module->describes(library)) module = std::make_shared<const Module>(library);
  return module;
}

void describe(Frame& frame, const Module& module) {
  const auto function = module.functions().around(frame.module_offset);
  if (!function.name.empty()) {
    frame.function = function.name;
    frame.offset = frame.module_offset - static_cast<std::uintptr_t>(function.begin);
  }
  SourceLine line = module.line_of(frame.module_offset);
  frame.file = std::move(line.file);
  frame.line = line.line;
}

}  // namespace

std::string symbol_name(const void* address) {
  Dl_info info{};
  if (address == nullptr || ::dladdr(address, &info) == 0) return {};
  if (info.dli_sname != nullptr && info.dli_saddr == address) return info.dli_sname;
  const auto value = reinterpret_cast<std::uintptr_t>(address);
  const auto object = loaded_object(value);
  if (!object || !object->is_program) return {};
  return std::string(program_module(*object).functions().name_at(value - object->base));
}

Frame describe_address(std::uintptr_t address) {
  Frame frame;
  frame.address = address;
  const auto object = loaded_object(address);
  if (!object) return frame;
  frame.module_offset = address - object->base;
  if (object->is_program) {
    const Module& program = program_module(*object);
    // The link leads to the dynamic linker if the program was started as an argument of that.
    std::error_code error;
    if (program.is_loaded_file()) frame.module = std::filesystem::read_symlink(kProgram, error).string();
    describe(frame, program);
  } else {
    frame.module = object->path;
    describe(frame, *library_module(*object));
  }
  const auto* const code = reinterpret_cast<const void*>(address);  // NOLINT(performance-no-int-to-ptr): never followed
  Dl_info info{};
  if (::dladdr(code, &info) == 0) return frame;
  if (frame.module.empty() && info.dli_fname != nullptr) frame.module = info.dli_fname;
  // The dynamic symbols are in memory, also if the file has been replaced or there is none, as for the kernel's code.
  if (object->is_code && frame.function.empty() && info.dli_sname != nullptr) {
    frame.function = info.dli_sname;
    frame.offset = address - reinterpret_cast<std::uintptr_t>(info.dli_saddr);
  }
  return frame;
}

void prepare_symbols() {
  if (const auto program = loaded_program()) program_module(*program);
}

}  // namespace bulkhead::process
