// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "arena.hpp"
#include "sandbox.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace bulkhead::process {

class WorkerChannel;
struct WorkerRequest;
struct TemplateConfiguration;

/// Which of a worker's streams go to the descriptor that it is given for them.
enum class Streams : std::uint32_t { standard_error = 0, both = 1 };

/// Longest name of an executor.
inline constexpr std::size_t kLongestExecutorName = 200;

// What travels on the seqpacket sockets: records of one fixed size. Anything unexpected ends the receiving process.
//
//   host → fork server   create_template {socket, configuration, shared area if there is one}
//   host → template      spawn {request area, response area, doorbell, where the worker prints to}
//   host → template      reap: it knows how the worker ended, and its process id
//   host → template      discard: it has no descriptor left for the worker's pidfd; the worker is to be killed
//   template → host      template_started {pidfd}, template_ready, template_failed, spawned {pidfd}, spawn_failed,
//                        exited; probed, if it is only to find out what of its sandbox can be had

/// Changes with every change of the records: host and fork server are always one build.
inline constexpr std::uint32_t kMagic = 0x42554c33;

enum class RecordType : std::uint32_t {
  create_template = 1,
  spawn = 2,
  template_started = 3,
  template_failed = 4,
  spawned = 5,
  spawn_failed = 6,
  exited = 7,
  reap = 8,
  template_ready = 9,
  discard = 10,
  probed = 11
};

struct Record {
  std::uint32_t magic = kMagic;
  RecordType type{};
  /// Which worker; 0 in records about the template.
  std::uint64_t worker = 0;
  /// `exited`: how it ended.
  std::int32_t signal = 0;
  std::int32_t exit_code = 0;
  std::uint64_t peak_memory = 0;
  /// `template_failed`, `spawn_failed`: why.
  std::uint32_t text_size = 0;
  char text[kReportSize] = {};

  void set_text(std::string_view reason) noexcept {
    text_size = static_cast<std::uint32_t>(reason.copy(text, sizeof(text)));
  }
  std::string get_text() const { return {text, text_size <= sizeof(text) ? text_size : sizeof(text)}; }
  /// `probed`: what of the sandbox can be had.
  void set_outcomes(const SandboxOutcomes& outcomes) noexcept {
    static_assert(sizeof(outcomes) <= sizeof(text));
    std::memcpy(text, &outcomes, sizeof(outcomes));
    text_size = sizeof(outcomes);
  }
  SandboxOutcomes get_outcomes() const noexcept {
    SandboxOutcomes outcomes;
    std::memcpy(&outcomes, text, sizeof(outcomes));
    return outcomes;
  }
};

/// What the layer above does inside template and workers. An object with static storage duration: its address is the
/// same in every process that the fork server makes.
struct WorkerHooks {
  /// Runs a call that has no result (`preload`, `initializer`). False: it threw, and `reason` says what.
  bool (*start)(std::span<const std::byte> call, std::string& reason);
  /// Runs the task that the channel has taken up and commits its answer.
  void (*run)(const WorkerRequest& request, WorkerChannel& channel, const TemplateConfiguration& configuration);
};

/// What a template is told once, in a sealed memfd: this, then `preload_size`, `initializer_size` and `sandbox_size`
/// bytes.
struct TemplateConfiguration {
  std::uint32_t magic = kMagic;
  Streams streams = Streams::standard_error;
  /// 1: the template only finds out what of its sandbox can be had, tells that by `probed`, and ends.
  std::uint32_t probe = 0;
  /// 1: the fork server, and so all workers, have a process-id namespace.
  std::uint32_t pid_namespace = 0;
  const WorkerHooks* hooks = nullptr;
  ArenaLayout layout;
  std::uint64_t preload_size = 0;
  std::uint64_t initializer_size = 0;
  std::uint64_t sandbox_size = 0;
  /// Resident memory with which a worker asks to be replaced; 0: any.
  std::uint64_t max_worker_memory = 0;
  /// Of the memory that the pool shares; 0: none.
  std::uint64_t shared_size = 0;
  /// RLIMIT_DATA of a worker; 0: none.
  std::uint64_t memory_limit = 0;
  /// The executor's name; cut, it becomes the process's name in `ps` and `top`.
  char name[kLongestExecutorName + 1] = {};
};

/// What follows a template's configuration: encoded calls, empty if there are none, and the sandbox as it is compiled.
struct TemplateParts {
  std::span<const std::byte> preload;
  std::span<const std::byte> initializer;
  std::span<const std::byte> sandbox;
};

/// Exit code of a worker whose initializer failed: from sysexits.h, EX_CONFIG.
inline constexpr int kStartFailedExitCode = 78;

/// Exit code of a fork server or template that was told something impossible: sysexits.h, EX_PROTOCOL.
inline constexpr int kProtocolExitCode = 76;

}  // namespace bulkhead::process
