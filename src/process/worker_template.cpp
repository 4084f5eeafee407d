// SPDX-License-Identifier: BSL-1.0
#include "worker_template.hpp"

#include "fork_server.hpp"
#include "protocol.hpp"
#include "sandbox.hpp"
#include "shared_area.hpp"
#include "worker.hpp"

#include <cxxabi.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace bulkhead::process {
namespace {

class Template {
 public:
  Template(FileDescriptor host, const FileDescriptor& configuration, FileDescriptor shared)
      : host_(std::move(host)), bytes_(read(configuration)) {
    std::memcpy(&configuration_, bytes_.data(), sizeof(configuration_));
    if (configuration_.magic != kMagic) leave(kProtocolExitCode);
    parts_ = parts_of(bytes_, configuration_);
    sandbox_ = Sandbox(parts_.sandbox);
    if (shared) {
      // Its workers get it with everything else that is mapped here.
      shared_ = Mapping(shared, configuration_.shared_size, Mapping::Access::read_write);
      set_shared_memory_of_worker({shared_.data(), shared_.size()});
    }
  }

  [[noreturn]] void run() {
    set_process_name(configuration_.name);
    if (configuration_.probe != 0) probe();
    report_start();
    try {
      SandboxOutcomes outcomes;
      sandbox_.enter_shared(outcomes, configuration_.pid_namespace != 0);
    } catch (const std::runtime_error& error) {
      fail(error.what());
    }
    preload();
    Record ready;
    ready.type = RecordType::template_ready;
    send(ready);
    for (;;) {
      wait();
      if (polled_.front().revents != 0) serve();
      report_ended_workers();
    }
  }

 private:
  struct Child {
    std::uint64_t id;
    pid_t pid;
    FileDescriptor pidfd;
    bool reported = false;  // has ended, and waits to be reaped
  };

  // A copy of its own: what workers have mapped together one of them could change for all, the sandbox of the next
  // among it.
  static std::vector<std::byte> read(const FileDescriptor& configuration) {
    struct stat info {};
    if (::fstat(configuration.get(), &info) != 0) throw_errno("cannot read the template's configuration");
    const auto size = static_cast<std::size_t>(info.st_size);
    if (size < sizeof(TemplateConfiguration)) leave(kProtocolExitCode);
    const Mapping mapping(configuration, size, Mapping::Access::read_only);
    return {mapping.data(), mapping.data() + size};
  }

  static TemplateParts parts_of(std::span<const std::byte> bytes, const TemplateConfiguration& configuration) {
    auto rest = bytes.subspan(sizeof(configuration));
    const auto next = [&](std::uint64_t size) {
      if (size > rest.size()) leave(kProtocolExitCode);
      const auto part = rest.first(size);
      rest = rest.subspan(size);
      return part;
    };
    TemplateParts parts;
    parts.preload = next(configuration.preload_size);
    parts.initializer = next(configuration.initializer_size);
    parts.sandbox = next(configuration.sandbox_size);
    return parts;
  }

  // Tries all that a worker would be put into, in a process like one.
  [[noreturn]] void probe() {
    Record result;
    auto [ours, theirs] = create_pipe();
    try {
      SandboxOutcomes outcomes;
      sandbox_.enter_shared(outcomes, configuration_.pid_namespace != 0);
      const pid_t self = ::getpid();
      const pid_t pid = ::fork();
      if (pid < 0) throw_errno("fork failed");
      if (pid == 0) {
        die_with_parent(self);
        probe_as_worker(std::move(outcomes), theirs);
      }
      const FileDescriptor pidfd = open_pidfd(pid);
      pollfd dead{pidfd.get(), POLLIN, 0};
      // Longer than the host waits.
      constexpr int kPatienceMilliseconds = 10'000;
      int ended = 0;
      do {
        ended = ::poll(&dead, 1, kPatienceMilliseconds);
      } while (ended < 0 && errno == EINTR);
      if (ended == 0) kill_process(pidfd);
      if (::read(ours.get(), &result, sizeof(result)) != sizeof(result)) {
        const auto status = exit_status(pidfd);
        throw std::runtime_error(
            "the process that tried the sandbox ended at once" +
            (status && status->signal != 0 ? ", by signal " + std::to_string(status->signal) : std::string()));
      }
    } catch (const std::runtime_error& error) {
      fail(error.what());
    }
    send(result);
    leave(0);
  }

  [[noreturn]] void probe_as_worker(SandboxOutcomes outcomes, const FileDescriptor& answer) {
    Record result;
    try {
      sandbox_.enter(outcomes);
      sandbox_.filter_system_calls(outcomes);
      result.type = RecordType::probed;
      result.set_outcomes(outcomes);
    } catch (const std::runtime_error& error) {
      result.type = RecordType::template_failed;
      result.set_text(error.what());
    }
    // One write to a pipe, which takes it whole (PIPE_BUF is 4096).
    [[maybe_unused]] const ssize_t written = ::write(answer.get(), &result, sizeof(result));
    leave(0);
  }

  // Before preload, so that the host can end a template that hangs in it.
  void report_start() {
    Record record;
    record.type = RecordType::template_started;
    const FileDescriptor self = open_pidfd(::getpid());
    send(record, self.get());
  }

  void preload() {
    const unsigned threads_before = thread_count();
    std::string reason;
    if (!parts_.preload.empty() && !configuration_.hooks->start(parts_.preload, reason)) {
      fail("preload failed: " + reason);
    }
    if (const unsigned threads = thread_count(); threads > threads_before) {
      fail("preload left " + std::to_string(threads - threads_before) +
           " threads running; workers forked beside threads would deadlock. Start threads in the initializer");
    }
  }

  [[noreturn]] void fail(const std::string& reason) {
    Record record;
    record.type = RecordType::template_failed;
    record.set_text(reason);
    send(record);
    leave(kStartFailedExitCode);
  }

  void send(const Record& record, int fd = -1) {
    try {
      send_record(host_, bytes_of(record), fd < 0 ? std::span<const int>() : std::span<const int>(&fd, 1));
    } catch (const std::system_error& error) {
      // The executor is gone: nobody is left to be told.
      if (error.code() == std::errc::broken_pipe || error.code() == std::errc::connection_reset) leave(0);
      throw;
    }
  }

  void wait() {
    polled_.clear();
    polled_.push_back({host_.get(), POLLIN, 0});
    for (const Child& child : children_) {
      if (!child.reported) polled_.push_back({child.pidfd.get(), POLLIN, 0});
    }
    while (::poll(polled_.data(), polled_.size(), -1) < 0 && errno == EINTR) {
    }
  }

  void serve() {
    Record record;
    Received received = receive_record(host_, writable_bytes_of(record));
    if (received.size == 0) leave(0);  // The executor is gone, or the host: the workers go with us.
    if (received.size != sizeof(record) || record.magic != kMagic) leave(kProtocolExitCode);
    if (record.type == RecordType::spawn && received.descriptors_lost) {
      spawn_failed(record.worker, EMFILE);
    } else if (record.type == RecordType::spawn && received.fd_count == kMostDescriptors) {
      spawn(record.worker, received);
    } else if (record.type == RecordType::reap && received.fd_count == 0) {
      bury(record.worker);
    } else if (record.type == RecordType::discard && received.fd_count == 0) {
      discard(record.worker);
    } else {
      leave(kProtocolExitCode);
    }
  }

  void spawn_failed(std::uint64_t id, int error) {
    Record record;
    record.worker = id;
    record.type = RecordType::spawn_failed;
    record.set_text(std::string("fork failed: ") + std::strerror(error));
    send(record);
  }

  void spawn(std::uint64_t id, Received& received) {
    // A child without a pidfd could be neither watched nor killed: its number is kept free.
    FileDescriptor room(::fcntl(host_.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    if (!room) return spawn_failed(id, errno);
    const pid_t self = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0) {
      die_with_parent(self);
      worker_main({std::move(received.fds[0]), std::move(received.fds[1]), std::move(received.fds[2]),
                   std::move(received.fds[3])},
                  configuration_, parts_);
    }
    if (pid < 0) return spawn_failed(id, errno);
    room.reset();
    Record record;
    record.worker = id;
    // The child is ours and not reaped yet: its pid cannot belong to another process.
    children_.push_back({id, pid, open_pidfd(pid), false});
    record.type = RecordType::spawned;
    send(record, children_.back().pidfd.get());
  }

  // The worker is reaped when the host has taken note: until then its process id belongs to nobody else.
  void report_ended_workers() {
    for (Child& child : children_) {
      const auto status = child.reported ? std::nullopt : exit_status(child.pidfd);
      if (!status) continue;
      child.reported = true;
      Record record;
      record.type = RecordType::exited;
      record.worker = child.id;
      record.signal = status->signal;
      record.exit_code = status->code;
      record.peak_memory = status->peak_memory;
      send(record);
    }
  }

  // The host cannot watch it.
  void discard(std::uint64_t id) {
    for (const Child& child : children_) {
      if (child.id == id) kill_process(child.pidfd);
    }
  }

  void bury(std::uint64_t id) {
    std::erase_if(children_, [&](const Child& child) {
      if (child.id != id || !child.reported) return false;
      // What its tasks have started, and left in its process group. Not yet reaped, it keeps that number from others.
      ::kill(-child.pid, SIGKILL);
      reap(child.pidfd);
      return true;
    });
  }

  FileDescriptor host_;
  std::vector<std::byte> bytes_;
  TemplateConfiguration configuration_;
  TemplateParts parts_;
  Sandbox sandbox_{std::span<const std::byte>()};
  Mapping shared_;
  std::vector<Child> children_;
  std::vector<pollfd> polled_;
};

}  // namespace

void template_main(FileDescriptor host, FileDescriptor configuration, FileDescriptor shared) {
  try {
    std::array<FileDescriptor, 3> all{std::move(host), std::move(configuration), std::move(shared)};
    const std::span<FileDescriptor> kept = std::span(all).first(all[2] ? 3 : 2);
    keep_only(kept);
    ::setsid();  // What preload sends to its process group is not for the fork server.
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    Template self(std::move(all[0]), all[1], std::move(all[2]));
    all[1].reset();
    // Before all handlers and destructors that the host registered: a preload that calls exit() ends this process only.
    ::on_exit(
        [](int code, void*) {
          std::fflush(stdout);
          leave(code);
        },
        nullptr);
    self.run();
  } catch (const abi::__forced_unwind&) {
    leave(kStartFailedExitCode);  // pthread_exit in preload: what comes next on this stack is the host's main
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bulkhead: a worker template ends: %s\n", error.what());
    leave(kProtocolExitCode);
  }
}

}  // namespace bulkhead::process
