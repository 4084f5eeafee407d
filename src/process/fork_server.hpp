// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "posix.hpp"
#include "protocol.hpp"

#include <memory>
#include <mutex>
#include <span>
#include <string>

namespace bulkhead::process {

class ProgramCode;
class SharedArea;

/// The host's handle on the fork server: the small, single-threaded process that forks all others.
///
/// It is the host's only child, made with exit signal 0, so that neither a plain `wait` nor SIGCHLD ever sees it. It
/// leaves as soon as the host is gone, and everything below it is killed: by the kernel where it is process 1 of a
/// PID namespace of its own, else by the parent-death signal.
class ForkServer {
 public:
  /// The fork server of this process; starts it if it is not there yet.
  /// Throws `std::runtime_error` that says what to do if the process has more than one thread.
  static ForkServer& start();

  /// The fork server of this process, or null if it has not been started.
  static ForkServer* find() noexcept;

  /// Forks a template with this configuration. Does not block: the template reports over the socket returned.
  FileDescriptor create_template(TemplateConfiguration configuration, const TemplateParts& parts,
                                 const SharedArea* shared = nullptr);

  /// Finds out what of a compiled sandbox can be had, by a process that tries it, and waits for that: a few
  /// milliseconds, 5 s at most. Throws `std::runtime_error` with the reason if something that is required cannot be, or
  /// if no process can.
  SandboxOutcomes probe(std::span<const std::byte> sandbox);

  /// It has not answered within the time for that, and counts as dead until it reads what it was sent.
  void note_silence() noexcept;
  bool silent() noexcept;

  /// Whether it has ended.
  bool gone() const noexcept;

  /// If it has ended: waits for that to be over, some seconds at most, and reaps it. No `wait` of the program's own
  /// sees it, so it would be a zombie for as long as the program runs.
  void reap() const noexcept;

  /// The code that exists in all processes that the fork server makes: what was loaded before it started.
  const ProgramCode& code() const noexcept;

  /// Whether its processes live in a PID namespace of their own.
  bool has_pid_namespace() const noexcept;

  const FileDescriptor& pidfd() const noexcept;

 private:
  struct State;
  explicit ForkServer(std::unique_ptr<State> state);
  ~ForkServer();
  std::unique_ptr<State> state_;
};

/// True in a process that was forked, by whomever, from the one that called `mark_owner_process`.
bool is_forked_copy() noexcept;
void mark_owner_process();
/// The same, if none has called it yet.
void mark_first_process();

/// Remembers in which process an object was made: a fork has a copy of it, which is not the fork's own; also not after
/// the fork has called `mark_owner_process` for what it makes itself. Something must have been marked before.
class MadeHere {
 public:
  MadeHere() noexcept;
  bool is_forked_copy() const noexcept;

 private:
  unsigned incarnation_;
  pid_t pid_;
};

/// Ends the calling process as a fork server's child must end: nothing of the host's is destroyed or flushed.
[[noreturn]] void leave(int code) noexcept;

/// Dies with the parent: arms the parent-death signal, then checks that the parent had not died before.
void die_with_parent(pid_t parent) noexcept;

/// Keeps the given descriptors as 3, 4, ... and closes every other above standard error.
void keep_only(std::span<FileDescriptor> descriptors) noexcept;

/// Gives the process a name that `ps` and `top` show; cut to 15 characters by the kernel.
void set_process_name(const std::string& name) noexcept;

}  // namespace bulkhead::process
