// SPDX-License-Identifier: BSL-1.0
#include "crash_report.hpp"

#include "process/symbols.hpp"

#include <bulkhead/detail/config.hpp>
#include <bulkhead/exceptions.hpp>

#include <csignal>
#include <string>
#include <utility>

namespace bulkhead::detail {
namespace {

// Signals whose handler is told an address, sigaction(2).
bool has_address(int signal) { return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE; }

// What calls the task's function, and all that called it in turn, is the library's.
bool is_library_call(const std::string& function) { return function.starts_with("bulkhead::detail::run_encoded("); }

// What notes that a task calls exit.
bool is_noting_call(const std::string& function) { return function.starts_with("bulkhead::process::"); }

// The template that reads the arguments and makes the call: nearer to the function than that, and no use either.
bool is_calling_template(const std::string& function) {
  return function.find("bulkhead::detail::Remote<") != std::string::npos;
}

}  // namespace

bool add_crash_note(WorkerCrashedError::Ending& ending, const process::CrashNote& note) {
  if (note.signal != ending.signal || (note.signal == 0 && note.code != ending.exit_code)) return false;
  // A positive code: the kernel says so of an instruction. Else somebody has sent the signal.
  if (has_address(note.signal) && note.code > 0) ending.fault_address = note.address;
  return true;
}

std::vector<StackFrame> describe_calls(std::span<const std::uint64_t> addresses) {
  std::vector<StackFrame> frames;
  for (const std::uint64_t address : addresses) {
    process::Frame found = process::describe_address(static_cast<std::uintptr_t>(address));
    StackFrame frame;
    frame.address = found.address;
    if (!found.function.empty()) frame.function = demangle(found.function.c_str());
    if (is_library_call(frame.function)) break;
    if (frames.empty() && is_noting_call(frame.function)) continue;
    frame.offset = found.offset;
    frame.file = std::move(found.file);
    frame.line = found.line;
    frame.module = std::move(found.module);
    frame.module_offset = found.module_offset;
    frames.push_back(std::move(frame));
  }
  while (!frames.empty() && is_calling_template(frames.back().function)) frames.pop_back();
  return frames;
}

}  // namespace bulkhead::detail
