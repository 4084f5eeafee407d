// SPDX-License-Identifier: BSL-1.0
#include "crash_capture.hpp"

#include "posix.hpp"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>
#include <array>
#include <csignal>
#include <cstdint>

namespace bulkhead::process {
namespace {

// What a program's own fault raises. Others come from outside or are asked for.
constexpr std::array kFatalSignals{SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP};

// The unwinder takes some 10 KiB, under AddressSanitizer several times as much.
constexpr std::size_t kHandlerStack = std::size_t{128} << 10;

CrashRecord* record = nullptr;
pid_t owner = 0;  // a process that a task forks has these handlers, too, and nothing to tell

void add_frame(std::uint64_t address) noexcept {
  const std::uint32_t depth = record->depth.load(std::memory_order_relaxed);
  if (depth == kMostFrames) return;
  record->frames[depth].store(address);
  // One by one: if the stack is so broken that unwinding it crashes, too, what was found counts.
  record->depth.store(depth + 1, std::memory_order_release);
}

struct Walk {
  bool recording;  // false: still among the frames of the signal handler
};

_Unwind_Reason_Code visit(_Unwind_Context* context, void* data) {
  auto& walk = *static_cast<Walk*>(data);
  int before_instruction = 0;
  const std::uint64_t address = _Unwind_GetIPInfo(context, &before_instruction);
  if (address == 0) return _URC_END_OF_STACK;  // what called the first function of a thread
  if (walk.recording) {
    // A return address lies behind the call, maybe in the next line or even the next function.
    add_frame(address - (before_instruction != 0 ? 0 : 1));
  } else if (before_instruction != 0) {
    walk.recording = true;  // The frame that the signal interrupted, which is the first already.
  }
  return record->depth.load(std::memory_order_relaxed) == kMostFrames ? _URC_END_OF_STACK : _URC_NO_REASON;
}

std::uint64_t program_counter(const ucontext_t& context) noexcept {
#if defined(__x86_64__)
  return static_cast<std::uint64_t>(context.uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return context.uc_mcontext.pc;
#endif
}

// Where a call went that led to no code: the unwinder knows no way back from there.
std::uint64_t caller_of_no_code(const ucontext_t& context) noexcept {
#if defined(__x86_64__)
  // The call has just pushed its return address. If this crashes, all the rest is written.
  return *reinterpret_cast<const std::uint64_t*>(context.uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__)
  return context.uc_mcontext.regs[30];
#endif
}

void on_crash(int signal, siginfo_t* info, void* context_pointer) {
  // The disposition is the default one again, and this arrives when the handler returns. Most of what the kernel raised
  // would come again with the instruction, but not what a breakpoint raised, or a forbidden system call.
  ::raise(signal);
  if (::getpid() != owner) return;
  const auto& context = *static_cast<const ucontext_t*>(context_pointer);
  record->signal.store(signal);
  record->code.store(info->si_code);
  record->address.store(signal == SIGSYS ? static_cast<std::uint64_t>(info->si_syscall)
                                         : reinterpret_cast<std::uintptr_t>(info->si_addr));
  record->state.store(1, std::memory_order_release);
  const std::uint64_t crashed_at = program_counter(context);
  add_frame(crashed_at);
  Walk walk{false};
  _Unwind_Backtrace(visit, &walk);
  // A call through a bad pointer: the instruction is what could not be fetched.
  if (record->depth.load(std::memory_order_relaxed) == 1 && crashed_at == record->address.load()) {
    add_frame(caller_of_no_code(context) - 1);
  }
}

}  // namespace

void capture_crashes(CrashRecord& where) {
  record = &where;
  owner = ::getpid();
  void* const stack =
      ::mmap(nullptr, kHandlerStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) throw_errno("cannot map a stack for signal handlers");
  stack_t alternative{};
  alternative.ss_sp = stack;
  alternative.ss_size = kHandlerStack;
  if (::sigaltstack(&alternative, nullptr) != 0) throw_errno("cannot set a stack for signal handlers");
  struct sigaction action {};
  action.sa_sigaction = on_crash;
  ::sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | static_cast<int>(SA_RESETHAND);
  for (const int signal : kFatalSignals) ::sigaction(signal, &action, nullptr);
}

void capture_exit(int code) noexcept {
  if (record == nullptr || ::getpid() != owner) return;
  record->signal.store(0);
  record->code.store(code);
  record->state.store(1, std::memory_order_release);
  Walk walk{true};
  _Unwind_Backtrace(visit, &walk);
}

}  // namespace bulkhead::process
