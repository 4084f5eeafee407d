// SPDX-License-Identifier: BSL-1.0
#include "fork_server.hpp"

#include "program_code.hpp"
#include "shared_area.hpp"
#include "template_record.hpp"
#include "worker_template.hpp"

#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <system_error>
#include <vector>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)  // linux/close_range.h, since Linux 5.11
#endif

namespace bulkhead::process {
namespace {

#if defined(__SANITIZE_THREAD__)
#define BULKHEAD_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BULKHEAD_THREAD_SANITIZER 1
#endif
#endif

#ifdef BULKHEAD_THREAD_SANITIZER
// The sanitizer's own background thread, which holds none of the program's locks.
constexpr unsigned kThreadsAllowed = 2;
#else
constexpr unsigned kThreadsAllowed = 1;
#endif

struct Cloned {
  pid_t pid = -1;
  int pidfd = -1;
  bool pid_namespace = false;
};

// The system call and not glibc's wrappers: `fork` cannot choose the exit signal. With exit signal 0 the child is
// invisible to a plain `wait` and sends no SIGCHLD. The host has one thread, so nothing of it is lost in the child.
pid_t clone_process(unsigned long flags, int* pidfd) {
  return static_cast<pid_t>(::syscall(SYS_clone, flags | CLONE_PIDFD, nullptr, pidfd, nullptr, nullptr));
}

Cloned clone_fork_server() {
  Cloned result;
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  // root needs no user namespace, and must not have one: it would lose its rights over other users' files.
  const unsigned long namespaces = uid == 0 ? CLONE_NEWPID : CLONE_NEWUSER | CLONE_NEWPID;
  result.pid = clone_process(namespaces, &result.pidfd);
  if (result.pid >= 0) {
    result.pid_namespace = true;
    // Where that fails it is nobody, and a worker's errors tell what comes of it.
    if (result.pid == 0 && uid != 0) map_ids_to_themselves(uid, gid);
    return result;
  }
  // Namespaces are often forbidden, in containers above all.
  result.pid = clone_process(0, &result.pidfd);
  if (result.pid < 0) throw_errno("cannot fork the fork server");
  return result;
}

void reset_signals() noexcept {
  struct sigaction default_action {};
  default_action.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) ::sigaction(signal, &default_action, nullptr);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

void stdin_from_null() noexcept {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return;
  ::dup2(null, STDIN_FILENO);
  // A host without standard output or error would give their numbers to the next descriptors.
  for (int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) < 0) ::dup2(null, fd);
  }
  if (null > STDERR_FILENO) ::close(null);
}

// Reaps templates, and whatever its descendants left behind. This process has no children but those, so "any child" is
// exact here. With each ends what it has left in its process group: not yet reaped, it keeps that number from others.
void reap_all() noexcept {
  siginfo_t info{};
  while (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid != 0) {
    const pid_t pid = info.si_pid;
    ::kill(-pid, SIGKILL);
    ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | __WALL);
    info = {};
  }
}

void serve_create_template(Received& received) {
  FileDescriptor socket = std::move(received.fds[0]);
  FileDescriptor configuration = std::move(received.fds[1]);
  const pid_t self = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    die_with_parent(self);
    template_main(std::move(socket), std::move(configuration), std::move(received.fds[2]));
  }
  if (pid < 0) {
    Record failed;
    failed.type = RecordType::template_failed;
    failed.set_text(std::string("fork failed: ") + std::strerror(errno));
    send_record(socket, bytes_of(failed), {});
  }
}

[[noreturn]] void fork_server_main(FileDescriptor control, FileDescriptor host) {
  reset_signals();
  // A session of its own: Ctrl-C at the terminal is for the host, which then decides what becomes of the workers.
  ::setsid();
  stdin_from_null();
  std::array<FileDescriptor, 2> kept{std::move(control), std::move(host)};
  keep_only(kept);
  set_process_name("bulkhead-fork");
  // Somebody may have stopped this process when the host dies: then it is to wake, and see that. While the host is
  // there the signal, which the end of one of its threads sends, too, does nothing.
  ::prctl(PR_SET_PDEATHSIG, SIGCONT);
  // Without a PID namespace, too, whatever its descendants leave behind comes here, and ends here.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  // A worker's core would be large, would take seconds in which its slot is dead, and would hold other tasks' data.
  // One byte is less than any core, and the one limit at which the kernel does not start a program that core_pattern
  // names, either (fs/coredump.c); where it is 0 for good, such a program is started.
  rlimit core{};
  ::getrlimit(RLIMIT_CORE, &core);
  core.rlim_cur = core.rlim_max = std::min<rlim_t>(core.rlim_max, 1);
  ::setrlimit(RLIMIT_CORE, &core);

  sigset_t child_signal;
  ::sigemptyset(&child_signal);
  ::sigaddset(&child_signal, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &child_signal, nullptr);
  const FileDescriptor children(::signalfd(-1, &child_signal, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!children) leave(kProtocolExitCode);

  std::array<pollfd, 3> polled{pollfd{kept[0].get(), POLLIN, 0}, pollfd{kept[1].get(), POLLIN, 0},
                               pollfd{children.get(), POLLIN, 0}};
  for (;;) {
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;
    // The host's pidfd as well as its socket: a process that the host forked may hold a copy of the socket.
    if (polled[1].revents != 0) leave(0);
    if (polled[2].revents != 0) {
      signalfd_siginfo drained[8];
      while (::read(children.get(), drained, sizeof(drained)) > 0) {
      }
      reap_all();
    }
    if (polled[0].revents == 0) continue;
    Record record;
    Received received = receive_record(kept[0], writable_bytes_of(record));
    if (received.size == 0) leave(0);
    // The pool whose template this was to be sees its socket closed, and tries again.
    if (received.descriptors_lost) continue;
    if (received.size != sizeof(record) || record.magic != kMagic || record.type != RecordType::create_template ||
        received.fd_count < 2 || received.fd_count > 3) {
      leave(kProtocolExitCode);
    }
    serve_create_template(received);
  }
}

// One byte that the kernel clears in every forked copy.
std::atomic<std::byte*> owner_mark{nullptr};
// How many processes in the line of forks that led here have had a fork server.
std::atomic<unsigned> incarnation{0};

}  // namespace

struct ForkServer::State {
  FileDescriptor control;
  FileDescriptor pidfd;
  ProgramCode code;
  bool pid_namespace = false;
  std::atomic<bool> silent{false};
};

ForkServer::ForkServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
ForkServer::~ForkServer() = default;

namespace {
std::atomic<ForkServer*> instance{nullptr};
std::mutex instance_mutex;
}  // namespace

ForkServer& ForkServer::start() {
  const std::lock_guard lock(instance_mutex);
  // A forked copy of the host has the pointer but not the process: it starts its own.
  if (ForkServer* running = find()) return *running;
  if (const unsigned threads = thread_count(); threads > kThreadsAllowed) {
    throw std::runtime_error("the fork server must be started while the process has one thread, and it has " +
                             std::to_string(threads) + ": make bulkhead::start_fork_server() the first line of main");
  }
  // A program that forks itself while another thread is in here would leave its copy with a locked mutex.
  static const int registered =
      ::pthread_atfork([] { instance_mutex.lock(); }, [] { instance_mutex.unlock(); }, [] { instance_mutex.unlock(); });
  if (registered != 0) throw std::system_error(registered, std::system_category(), "cannot prepare for forks");
  auto state = std::make_unique<State>();
  state->code = ProgramCode::keep_loaded();
  auto [ours, theirs] = create_socket_pair();
  FileDescriptor host = open_pidfd(::getpid());
  mark_owner_process();
  // What stdio and iostreams hold would be in every worker, too.
  std::fflush(nullptr);
  std::cout.flush();
  const Cloned cloned = clone_fork_server();
  if (cloned.pid == 0) {
    // All processes to come are copies of this one, and a task may want a pool of its own.
    instance_mutex.unlock();
    try {
      fork_server_main(std::move(theirs), std::move(host));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "bulkhead: the fork server ends: %s\n", error.what());
      leave(kProtocolExitCode);
    }
  }
  state->control = std::move(ours);
  state->pidfd = above_standard(FileDescriptor(cloned.pidfd));
  if (!state->pidfd) throw_errno("cannot keep the fork server's pidfd");
  ::fcntl(state->pidfd.get(), F_SETFD, FD_CLOEXEC);
  state->pid_namespace = cloned.pid_namespace;
  // Never destroyed: executors with static storage duration may outlive every other static object.
  instance = new ForkServer(std::move(state));
  return *instance;
}

ForkServer* ForkServer::find() noexcept { return is_forked_copy() ? nullptr : instance.load(); }

FileDescriptor ForkServer::create_template(TemplateConfiguration configuration, const TemplateParts& parts,
                                           const SharedArea* shared) {
  if (gone()) throw std::runtime_error("the fork server has ended; the program must be started anew");
  if (silent()) throw std::runtime_error("the fork server does not answer: it is stopped");
  configuration.preload_size = parts.preload.size();
  configuration.initializer_size = parts.initializer.size();
  configuration.sandbox_size = parts.sandbox.size();
  configuration.pid_namespace = has_pid_namespace() ? 1 : 0;
  configuration.shared_size = shared != nullptr ? shared->size() : 0;
  std::vector<std::byte> bytes(sizeof(configuration));
  std::memcpy(bytes.data(), &configuration, sizeof(configuration));
  for (const auto part : {parts.preload, parts.initializer, parts.sandbox}) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  FileDescriptor memfd = create_memfd("bulkhead-configuration", bytes.size());
  {
    const Mapping mapping(memfd, bytes.size(), Mapping::Access::read_write);
    std::memcpy(mapping.data(), bytes.data(), bytes.size());
  }
  seal(memfd, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  auto [ours, theirs] = create_socket_pair();
  Record record;
  record.type = RecordType::create_template;
  const std::array<int, 3> fds{theirs.get(), memfd.get(), shared != nullptr ? shared->descriptor().get() : -1};
  const std::lock_guard lock(instance_mutex);
  if (!send_record(state_->control, bytes_of(record), std::span(fds).first(shared != nullptr ? 3 : 2))) {
    throw std::runtime_error("the fork server does not take requests: it is stopped or overloaded");
  }
  return std::move(ours);
}

SandboxOutcomes ForkServer::probe(std::span<const std::byte> sandbox) {
  TemplateConfiguration configuration;
  configuration.probe = 1;
  TemplateParts parts;
  parts.sandbox = sandbox;
  const FileDescriptor socket = create_template(configuration, parts);
  // Three forks, far below a millisecond each: then something is stopped.
  constexpr std::chrono::seconds kPatience{5};
  const auto end = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd polled{socket.get(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&polled, 1, static_cast<int>(left.count())) == 0) {
      throw std::runtime_error("the process that tries the sandbox does not answer: it is stopped");
    }
    Record record;
    const Received received = receive_record(socket, writable_bytes_of(record));
    if (received.would_block) continue;
    if (const auto violation = violation_in(record, received)) {
      throw std::runtime_error("the process that tries the sandbox has failed: " + *violation);
    }
    if (record.type == RecordType::template_failed) throw std::runtime_error(text_of(record));
    if (record.type == RecordType::probed) return record.get_outcomes();
  }
}

void ForkServer::note_silence() noexcept { state_->silent = true; }

bool ForkServer::silent() noexcept {
  if (!state_->silent) return false;
  // unix(7): bytes that the other side has not read yet.
  int unread = 0;
  if (::ioctl(state_->control.get(), SIOCOUTQ, &unread) != 0 || unread == 0) state_->silent = false;
  return state_->silent;
}

bool ForkServer::gone() const noexcept {
  // Dying, it closes its socket before the kernel ends its descendants, and is dead only after that.
  std::array<pollfd, 2> polled{pollfd{state_->pidfd.get(), POLLIN, 0}, pollfd{state_->control.get(), 0, 0}};
  return ::poll(polled.data(), polled.size(), 0) > 0;
}

void ForkServer::reap() const noexcept {
  if (!gone()) return;
  // The kernel ends its descendants first, which takes as long as the memory of the largest: 0.1 s for a GiB.
  constexpr int kReapMilliseconds = 5000;
  pollfd dead{state_->pidfd.get(), POLLIN, 0};
  ::poll(&dead, 1, kReapMilliseconds);
  siginfo_t info{};
  ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(state_->pidfd.get()), &info, WEXITED | WNOHANG | __WALL);
}

const ProgramCode& ForkServer::code() const noexcept { return state_->code; }
bool ForkServer::has_pid_namespace() const noexcept { return state_->pid_namespace; }
const FileDescriptor& ForkServer::pidfd() const noexcept { return state_->pidfd; }

bool is_forked_copy() noexcept {
  const std::byte* mark = owner_mark.load(std::memory_order_relaxed);
  return mark != nullptr && *mark == std::byte{0};
}

MadeHere::MadeHere() noexcept : incarnation_(incarnation.load(std::memory_order_relaxed)), pid_(::getpid()) {}

bool MadeHere::is_forked_copy() const noexcept {
  if (incarnation_ != incarnation.load(std::memory_order_relaxed)) return true;
  // A copy that was never marked makes objects, too.
  return process::is_forked_copy() && pid_ != ::getpid();
}

void mark_first_process() {
  if (owner_mark.load() == nullptr) mark_owner_process();
}

void mark_owner_process() {
  ++incarnation;
  if (std::byte* mark = owner_mark.load()) {
    *mark = std::byte{1};
    return;
  }
  owner_mark.store(create_fork_mark());
}

void leave(int code) noexcept { ::_exit(code); }

void die_with_parent(pid_t parent) noexcept {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) leave(0);
}

void keep_only(std::span<FileDescriptor> descriptors) noexcept {
  // First out of the way of the numbers that they are to have.
  const int end = STDERR_FILENO + 1 + static_cast<int>(descriptors.size());
  for (FileDescriptor& descriptor : descriptors) {
    const int moved = ::fcntl(descriptor.get(), F_DUPFD_CLOEXEC, end);
    if (moved < 0) leave(kProtocolExitCode);
    descriptor = FileDescriptor(moved);
  }
  int target = STDERR_FILENO + 1;
  for (FileDescriptor& descriptor : descriptors) {
    if (::dup3(descriptor.get(), target, O_CLOEXEC) < 0) leave(kProtocolExitCode);
    descriptor = FileDescriptor(target++);
  }
  ::syscall(SYS_close_range, static_cast<unsigned>(end), ~0U, 0);
}

void set_process_name(const std::string& name) noexcept { ::prctl(PR_SET_NAME, name.c_str()); }

}  // namespace bulkhead::process
