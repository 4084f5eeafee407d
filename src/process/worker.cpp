// SPDX-License-Identifier: BSL-1.0
#include "worker.hpp"

#include "channel.hpp"
#include "crash_capture.hpp"
#include "fork_server.hpp"
#include "sandbox.hpp"

#include <fmt/format.h>

#include <cxxabi.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bulkhead::process {
namespace {

// Workers are copies of one process: without this they would all draw the same numbers. std::random_device and
// getrandom() differ by themselves; generators that the program made before the fork do not.
void reseed() noexcept {
  unsigned seeds[2] = {};
  if (::getrandom(seeds, sizeof(seeds), 0) != sizeof(seeds)) return;
  ::srandom(seeds[0]);
  ::srand48(static_cast<long>(seeds[1]));
}

// Under a high number: programs close the low ones by habit, and what opens files gets the lowest. 1023 is the highest
// under the usual limit.
FileDescriptor out_of_the_way(FileDescriptor doorbell, int request_area, int response_area) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("cannot read the limit of descriptors");
  int target = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1024)) - 1;
  while (target == request_area || target == response_area) --target;
  if (doorbell.get() == target) return doorbell;
  if (::dup3(doorbell.get(), target, O_CLOEXEC) < 0) throw_errno("cannot keep the doorbell");
  return FileDescriptor(target);
}

// All above standard error.
void close_all_but(int kept) {
  const auto number = static_cast<unsigned>(kept);
  if (number > STDERR_FILENO + 1) ::syscall(SYS_close_range, STDERR_FILENO + 1U, number - 1, 0);
  ::syscall(SYS_close_range, number + 1, ~0U, 0);
}

[[noreturn]] void leave_at_once(int code) {
  std::fflush(stdout);
  leave(code);
}

// Runs before all handlers and destructors that the host registered: a task that calls exit() ends its own process and
// nothing else.
void on_exit_called(int code, void*) {
  capture_exit(code);
  leave_at_once(code);
}

void run(const WorkerRequest& request, const TemplateConfiguration& configuration, WorkerChannel& channel) {
  try {
    configuration.hooks->run(request, channel, configuration);
  } catch (const abi::__forced_unwind&) {
    // pthread_exit: what comes next on this stack is the host's main.
    leave_at_once(0);
  }
}

void print_to(FileDescriptor output, Streams streams) {
  if (streams == Streams::both) ::dup2(output.get(), STDOUT_FILENO);
  ::dup2(output.get(), STDERR_FILENO);
}

// Counts from here on, what is there already included.
std::string limit_memory(std::uint64_t limit) {
  if (limit == 0) return {};
  const std::size_t used = memory_use().data;
  if (used >= limit) {
    return fmt::format("memory_limit is {} bytes, and a worker has {} before it has done anything", limit, used);
  }
  const rlimit data{limit, limit};
  if (::setrlimit(RLIMIT_DATA, &data) != 0) throw_errno("cannot limit the memory");
  return {};
}

// A limit that every worker is beyond at once would have it replaced after each task.
std::string check_memory(std::uint64_t most) {
  if (most == 0) return {};
  const std::size_t used = memory_since_birth();
  if (used < most) return {};
  return fmt::format("max_worker_memory is {} bytes, and a worker has {} before its first task", most, used);
}

[[noreturn]] void fail_start(WorkerChannel& channel, const std::string& reason) {
  channel.set_failed(reason);
  leave(kStartFailedExitCode);
}

// What cannot be had of the sandbox ends the worker before its first task.
template <class Step>
void enforce(WorkerChannel& channel, Step step) {
  try {
    SandboxOutcomes outcomes;
    step(outcomes);
  } catch (const std::runtime_error& error) {
    fail_start(channel, error.what());
  }
}

}  // namespace

void worker_main(WorkerDescriptors descriptors, const TemplateConfiguration& configuration,
                 const TemplateParts& parts) {
  try {
    descriptors.doorbell = out_of_the_way(std::move(descriptors.doorbell), descriptors.request_area.get(),
                                          descriptors.response_area.get());
    WorkerChannel channel(descriptors.request_area, descriptors.response_area, descriptors.doorbell.get(),
                          configuration.layout);
    descriptors.request_area.reset();
    descriptors.response_area.reset();
    print_to(std::move(descriptors.output), configuration.streams);
    close_all_but(descriptors.doorbell.get());
    ::setsid();  // What a task sends to its process group is for nobody else.
    reseed();
    capture_crashes(channel.crash_record());
    ::on_exit(on_exit_called, nullptr);
    if (configuration.max_worker_memory > 0) note_birth();
    std::string reason = limit_memory(configuration.memory_limit);
    if (!reason.empty()) fail_start(channel, reason);
    const Sandbox sandbox(parts.sandbox);
    enforce(channel, [&](SandboxOutcomes& outcomes) { sandbox.enter(outcomes); });
    if (!parts.initializer.empty() && !configuration.hooks->start(parts.initializer, reason)) {
      fail_start(channel, "initializer failed: " + reason);
    }
    if (reason = check_memory(configuration.max_worker_memory); !reason.empty()) fail_start(channel, reason);
    enforce(channel, [&](SandboxOutcomes& outcomes) { sandbox.filter_system_calls(outcomes); });
    channel.set_ready();
    for (;;) {
      // What a task printed appears at the latest when the worker falls idle.
      const WorkerRequest request = channel.next([] { std::fflush(stdout); });
      if (request.kind == RequestKind::stop) leave_at_once(0);
      run(request, configuration, channel);
    }
  } catch (const abi::__forced_unwind&) {
    leave(kStartFailedExitCode);  // pthread_exit in the initializer: what comes next on this stack is the host's main
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bulkhead: a worker ends: %s\n", error.what());
    leave(kStartFailedExitCode);
  }
}

}  // namespace bulkhead::process
