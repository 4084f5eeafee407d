// SPDX-License-Identifier: BSL-1.0
#include "worker.hpp"

#include "channel.hpp"
#include "fork_server.hpp"

#include <cxxabi.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <span>
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

// When memory runs out, the kernel is to take a worker and not the host.
void be_first_for_oom_killer() noexcept {
  const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  [[maybe_unused]] const ssize_t written = ::write(fd, "1000", 4);
  ::close(fd);
}

// Runs before all handlers and destructors that the host registered: a task that calls exit() ends its own process and
// nothing else.
void leave_at_once(int code, void*) {
  std::fflush(stdout);
  leave(code);
}

void run(const WorkerChannel::Request& request, const TemplateConfiguration& configuration, WorkerChannel& channel) {
  try {
    configuration.hooks->run(request.payload, channel);
  } catch (const abi::__forced_unwind&) {
    // pthread_exit: what comes next on this stack is the host's main.
    leave_at_once(0, nullptr);
  }
}

}  // namespace

void worker_main(WorkerDescriptors descriptors, const TemplateConfiguration& configuration,
                 std::span<const std::byte> initializer) {
  try {
    WorkerChannel channel(descriptors.request_area, descriptors.response_area, STDERR_FILENO + 1, configuration.layout);
    descriptors.request_area.reset();
    descriptors.response_area.reset();
    keep_only(std::span(&descriptors.doorbell, 1));
    be_first_for_oom_killer();
    reseed();
    ::on_exit(leave_at_once, nullptr);
    std::string reason;
    if (!initializer.empty() && !configuration.hooks->start(initializer, reason)) {
      channel.set_failed("initializer failed: " + reason);
      leave(kStartFailedExitCode);
    }
    channel.set_ready();
    for (;;) {
      // What a task printed appears at the latest when the worker falls idle.
      const WorkerChannel::Request request = channel.next([] { std::fflush(stdout); });
      if (request.kind == RequestKind::stop) leave_at_once(0, nullptr);
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
