// SPDX-License-Identifier: BSL-1.0
// What can go wrong where processes are made and ended: forks that fail or are interrupted, hosts that exec, daemonise,
// start late or are huge, numbers of processes that come again, and workers that cannot be killed.
#include <bulkhead/local_executor.hpp>
#include <bulkhead/thread_executor.hpp>

#include "support/catch.hpp"
#include "support/check_part.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <netdb.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <clocale>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <locale>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::ExecutorNotRunningError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Started;
using bulkhead::TaskOptions;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::WorkerStuckError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::check_part;
using bulkhead::test::descendants;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::Gate;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::open_descriptors;
using bulkhead::test::Outcome;
using bulkhead::test::parent_of;
using bulkhead::test::Process;
using bulkhead::test::processes_of;
using bulkhead::test::Program;
using bulkhead::test::read_file;
using bulkhead::test::Report;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::whole;
using bulkhead::test::workers;
using namespace std::chrono_literals;

namespace {

Gate& gate = bulkhead::test::shared_object<Gate>();

int twice(int value) { return 2 * value; }

int wait_at_gate(int value) {
  gate.wait();
  return value;
}

void spin() {
  for (volatile bool on = true; on;) {
  }
}

int leave_by_exit(int code) { std::exit(code); }

// The number behind a field of /proc/self/status; -1 if there is none.
long own_status(std::string field) {
  std::istringstream status(read_file("/proc/self/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stol(line.substr(field.size() + 1));
  }
  return -1;
}

int own_descriptors() { return static_cast<int>(open_descriptors()); }

// Whether there is such a process, and it is not dead and only waited for.
bool runs(int pid) {
  const std::string state = read_file("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t end = state.rfind(") ");
  return end != std::string::npos && state[end + 2] != 'Z' && state[end + 2] != 'X';
}

// 0 if there is no worker just now.
int template_of(const LocalExecutor& pool) {
  const std::vector<int> pids = pool.worker_pids();
  return pids.empty() ? 0 : parent_of(pids.front());
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// 21: workers that cannot be killed.

namespace {

// A killed process that its tracer keeps from dying is for everybody else one that the kernel does not let go: in a
// frozen cgroup of version 1, or in a system call that hangs.
class Undying {
 public:
  explicit Undying(int pid) : pid_(pid) { held_ = ::ptrace(PTRACE_SEIZE, pid_, nullptr, PTRACE_O_TRACEEXIT) == 0; }
  Undying(const Undying&) = delete;
  Undying& operator=(const Undying&) = delete;
  ~Undying() { let_go(); }

  bool held() const { return held_; }
  void let_go() {
    if (!std::exchange(held_, false)) return;
    // It has been killed: this waits for its stop on the way out, which is at hand.
    ::waitpid(pid_, nullptr, __WALL);
    ::ptrace(PTRACE_DETACH, pid_, nullptr, nullptr);
  }

 private:
  int pid_;
  bool held_ = false;
};

// The same by a frozen cgroup; see frozen_worker.
class Frozen {
 public:
  Frozen(const std::string& freezer, int pid) : directory_(freezer + "/bulkhead-test-" + std::to_string(::getpid())) {
    std::filesystem::create_directory(directory_);
    std::ofstream(directory_ + "/tasks") << pid << std::flush;
    std::ofstream(directory_ + "/freezer.state") << "FROZEN" << std::flush;
    held_ =
        bulkhead::test::poll_until([&] { return read_file(directory_ + "/freezer.state").starts_with("FROZEN"); }, 10s);
  }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;
  ~Frozen() {
    let_go();
    bulkhead::test::poll_until([&] { return ::rmdir(directory_.c_str()) == 0; }, kGone);
  }

  bool held() const { return held_; }
  void let_go() {
    if (std::exchange(held_, false)) std::ofstream(directory_ + "/freezer.state") << "THAWED" << std::flush;
  }

 private:
  std::string directory_;
  bool held_ = false;
};

template <class Hold>
void expect_undying_worker_is_survived(const std::function<std::unique_ptr<Hold>(int pid)>& hold) {
  gate.reset();
  asio::io_context context;
  auto options = workers(1);
  options.name = "pool with an undying worker";
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), options);
  Outcome<> task;
  pool->async_submit(TaskOptions().name("caught").timeout(100ms), bulkhead::call(wait_at_gate, 1), task.handler());
  REQUIRE(run_until(context, [&] { return gate.waiting == 1 && whole(*pool); }));
  const int pid = pool->worker_pids().front();
  const Process worker(pid);
  const std::unique_ptr<Hold> held = hold(pid);
  REQUIRE(held->held());

  // The caller is told; the worker is not gone, and is counted.
  REQUIRE(run_until(context, [&] { return task.calls > 0; }));
  CHECK(bulkhead::test::holds<TaskTimeoutError>(task.error));
  CHECK_FALSE(worker.gone());
  CHECK(pool->metrics().workers_dying == 1);
  // Another works in its place.
  CHECK(run(context, pool->submit(twice, 21)) == 42);
  CHECK(pool->metrics().workers == 1);
  CHECK(pool->metrics().workers_dying == 1);
  CHECK_FALSE(worker.gone());

  // The shutdown waits for it, but not for ever, and says which one it is.
  std::exception_ptr error;
  try {
    run(context, pool->shutdown());
  } catch (...) {
    error = std::current_exception();
  }
  INFO(message(error));
  const auto stuck = error_as<WorkerStuckError>(error);
  REQUIRE(stuck);
  CHECK(stuck->pids() == std::vector<int>{pid});
  CHECK(std::string(stuck->what()).find(std::to_string(pid)) != std::string::npos);
  CHECK(stuck->context().executor == "pool with an undying worker");
  CHECK_FALSE(worker.gone());
  CHECK(adds_up(*pool));
  pool.reset();

  // As soon as it can, it dies: it was killed long ago.
  held->let_go();
  CHECK(worker.gone_within(kGone));
  CHECK(task.calls == 1);
}

}  // namespace

TEST_CASE("21: a worker that cannot be killed is counted and replaced, and the shutdown reports it after its bound",
          "[fault]") {
  expect_undying_worker_is_survived<Undying>([](int pid) { return std::make_unique<Undying>(pid); });
}

TEST_CASE("21: a worker in a frozen cgroup is counted and replaced, and the shutdown reports it after its bound",
          "[fault]") {
  // Needs a freezer of version 1 and the right to use it: the script frozen_worker says how.
  const char* freezer = std::getenv("BULKHEAD_FREEZER");
  if (freezer == nullptr) return;
  expect_undying_worker_is_survived<Frozen>([&](int pid) { return std::make_unique<Frozen>(freezer, pid); });
}

// ---------------------------------------------------------------------------------------------------------------------
// 48: no more processes.

namespace {

constexpr int kNobody = 65'534;

// Limits of the number of processes do not hold for root.
void become_nobody() {
  if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) throw std::runtime_error("cannot become nobody");
}

// In a child of the same user, since root in a container may not do it to others.
bool limit_processes(int pid, rlim_t number) {
  const pid_t child = ::fork();
  if (child == 0) {
    rlimit limit{};
    if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(1);
    if (::prlimit(pid, RLIMIT_NPROC, nullptr, &limit) != 0) ::_exit(2);
    limit.rlim_cur = std::min(number, limit.rlim_max);
    ::_exit(::prlimit(pid, RLIMIT_NPROC, &limit, nullptr) == 0 ? 0 : 3);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST_CASE("48: where a fork fails, workers that are there serve, tasks without any fail clearly, and it recovers",
          "[fault]") {
  asio::io_context context;
  auto options = workers(2);
  options.preload = become_nobody;
  LocalExecutor pool(context.get_executor(), options);
  REQUIRE(run(context, pool.submit(twice, 21)) == 42);
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const int worker_template = template_of(pool);
  REQUIRE(limit_processes(worker_template, 1));
  const auto kill_one = [&] {
    const Process worker(pool.worker_pids().front());
    return worker.signal(SIGKILL) && run_until(context, [&] {
             const std::vector<int> pids = pool.worker_pids();
             return std::count(pids.begin(), pids.end(), worker.pid()) == 0;
           });
  };
  REQUIRE(kill_one());
  for (int i = 0; i < 20; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  CHECK(pool.worker_pids().size() == 1);
  REQUIRE(kill_one());
  std::exception_ptr error;
  try {
    run(context, pool.submit(twice, 21));
  } catch (...) {
    error = std::current_exception();
  }
  INFO(message(error));
  CHECK(bulkhead::test::holds<WorkerStartError>(error));
  CHECK(message(error).find("fork") != std::string::npos);
  CHECK(message(error).find(std::strerror(EAGAIN)) != std::string::npos);
  // No storm: what was started are the first two, and a handful of attempts, each after a longer pause.
  CHECK(pool.metrics().workers_started < 20);

  REQUIRE(limit_processes(worker_template, RLIM_INFINITY));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  CHECK(adds_up(pool));
}

namespace {

// Asks this process before each fork of those that come from it, and has it fail if that is wanted: memory for a
// process cannot be used up without harm to others. It answers as long as the context runs.
class ForkJudge {
 public:
  // Before the fork server starts: it and its children have the filter from here.
  explicit ForkJudge(asio::io_context& context) : questions_(context, install_filter()) { wait(); }

  void refuse(int pid, int error) {
    refused_pid_ = pid;
    error_ = error;
    refusals_ = 0;
  }
  void allow() { refused_pid_ = -1; }
  int refusals() const { return refusals_; }

 private:
  static int install_filter() {
    // The exit signal and the memory tell a fork from a thread, and from the start of the fork server.
    constexpr std::uint32_t kKind = 0xff | CLONE_VM;
    constexpr std::uint32_t kFlags = offsetof(seccomp_data, args);  // the low half on a little-endian machine
    std::array<sock_filter, 7> program{
        sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
        sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 4, SYS_clone},
        sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, kFlags},
        sock_filter{BPF_ALU | BPF_AND | BPF_K, 0, 0, kKind},
        sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SIGCHLD},
        sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF},
        sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    long listener = -1;
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0) {
      listener = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    }
    if (listener < 0) throw std::runtime_error(std::string("no say in forks here: ") + std::strerror(errno));
    return static_cast<int>(listener);
  }

  void wait() {
    questions_.async_wait(asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code error) {
      if (error) return;
      answer();
      wait();
    });
  }

  void answer() {
    seccomp_notif question{};
    if (::ioctl(questions_.native_handle(), SECCOMP_IOCTL_NOTIF_RECV, &question) != 0) return;  // who asked is gone
    seccomp_notif_resp response{};
    response.id = question.id;
    if (static_cast<int>(question.pid) == refused_pid_) {
      ++refusals_;
      response.error = -error_;
    } else {
      response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    }
    ::ioctl(questions_.native_handle(), SECCOMP_IOCTL_NOTIF_SEND, &response);
  }

  asio::posix::stream_descriptor questions_;
  int refused_pid_ = -1;
  int error_ = 0;
  int refusals_ = 0;
};

// A task of a pool that has no worker and can get none fails, and says why; a pool beside it serves.
void expect_clear_failure(Report& report, asio::io_context& context, LocalExecutor& pool, LocalExecutor& beside,
                          int error) {
  Outcome<> outcome;
  pool.async_submit(bulkhead::call(twice, 21), outcome.handler());
  for (int i = 0; i < 20; ++i) report.expect(run(context, beside.submit(twice, i)) == 2 * i, "a pool beside it serves");
  report.expect(run_until(context, [&] { return outcome.calls > 0; }), "the task ends");
  report.expect(bulkhead::test::holds<WorkerStartError>(outcome.error), "as a failed start: " + message(outcome.error));
  report.expect(message(outcome.error).find(std::string("fork failed: ") + std::strerror(error)) != std::string::npos,
                std::string("with what the kernel says, ") + std::strerror(error) + ": " + message(outcome.error));
}

void expect_recovery(Report& report, asio::io_context& context, LocalExecutor& pool) {
  report.expect(run_until(context, [&] { return whole(pool); }), "the pool is whole again");
  report.expect(run(context, pool.submit(twice, 21)) == 42, "and serves");
  report.expect(adds_up(pool), "its numbers add up");
}

// More would be a storm: each attempt comes after a longer pause.
constexpr int kMostAttempts = 20;

int host_whose_forks_fail() {
  Report report;
  asio::io_context context;
  ForkJudge forks(context);
  bulkhead::start_fork_server();
  LocalExecutor beside(context.get_executor(), workers(1));
  report.expect(run_until(context, [&] { return whole(beside); }), "a pool is there before");
  const int fork_server = parent_of(template_of(beside));
  for (const int error : {EAGAIN, ENOMEM}) {
    forks.refuse(fork_server, error);
    LocalExecutor pool(context.get_executor(), workers(2));
    expect_clear_failure(report, context, pool, beside, error);
    report.expect(forks.refusals() > 0 && forks.refusals() < kMostAttempts,
                  "the fork server tried " + std::to_string(forks.refusals()) + " times");
    forks.allow();
    expect_recovery(report, context, pool);

    const std::vector<Process> old = processes_of(pool);
    forks.refuse(template_of(pool), error);
    for (const Process& worker : old) worker.signal(SIGKILL);
    for (const Process& worker : old) report.expect(worker.gone_within(kGone), "a killed worker is gone");
    expect_clear_failure(report, context, pool, beside, error);
    report.expect(forks.refusals() > 0 && forks.refusals() < kMostAttempts,
                  "the template tried " + std::to_string(forks.refusals()) + " times");
    forks.allow();
    expect_recovery(report, context, pool);
  }
  return report.exit_code();
}

int host_that_may_have_no_more_processes() {
  Report report;
  become_nobody();
  ::prctl(PR_SET_DUMPABLE, 1);  // else its files in /proc are root's
  bulkhead::start_fork_server();
  asio::io_context context;
  LocalExecutor beside(context.get_executor(), workers(1));
  report.expect(run_until(context, [&] { return whole(beside); }), "a pool is there before");
  const int fork_server = parent_of(template_of(beside));
  report.expect(limit_processes(fork_server, 1), "the fork server can be limited");
  LocalExecutor pool(context.get_executor(), workers(2));
  expect_clear_failure(report, context, pool, beside, EAGAIN);
  report.expect(limit_processes(fork_server, RLIM_INFINITY), "and freed");
  expect_recovery(report, context, pool);
  return report.exit_code();
}

// The fork server's own start is the one with a pidfd.
int host_that_cannot_fork(int error) {
  Report report;
  std::array<sock_filter, 6> program{
      sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 3, SYS_clone},
      sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, args)},
      sock_filter{BPF_JMP | BPF_JSET | BPF_K, 0, 1, CLONE_PIDFD},
      sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)},
      sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  report.expect(
      ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0,
      "the system call can be made to fail");
  const std::size_t descriptors_before = open_descriptors();
  for (int i = 0; i < 3; ++i) {
    try {
      bulkhead::start_fork_server();
      report.expect(false, "the start fails");
    } catch (const WorkerStartError& failure) {
      const std::string said = failure.what();
      report.expect(said.find("cannot fork the fork server") != std::string::npos &&
                        said.find(std::strerror(error)) != std::string::npos,
                    std::string("it says what failed, and with ") + std::strerror(error) + ": " + said);
    }
  }
  report.expect(open_descriptors() == descriptors_before, "a start that failed leaves no descriptor open");
  return report.exit_code();
}

}  // namespace

TEST_CASE(
    "48: where fork server or template cannot fork, for want of processes or memory, tasks without a worker say so, "
    "other pools serve, and it recovers",
    "[fault]") {
  check_part("host_whose_forks_fail");
}

TEST_CASE("48: a fork server at its user's limit of processes fails what needs a template clearly, and recovers",
          "[fault]") {
  check_part("host_that_may_have_no_more_processes");
}

TEST_CASE("48: where the fork server itself cannot be forked, the start says why and leaves nothing behind",
          "[fault]") {
  check_part("host_that_cannot_fork_eagain");
  check_part("host_that_cannot_fork_enomem");
}

// ---------------------------------------------------------------------------------------------------------------------
// 49: signals in the midst of a fork.

namespace {

#if WITH_SANITIZER
constexpr int kInterruptions = 40;  // a fork of a process with shadow memory takes tens of times longer
#else
constexpr int kInterruptions = 300;
#endif

// All processes below this one that run or will.
std::set<int> living_descendants() {
  std::set<int> living = descendants();
  std::erase_if(living, [](int pid) { return !runs(pid); });
  return living;
}

}  // namespace

TEST_CASE("49: signals to template and fork server in the midst of forks leave no worker that the pool does not know",
          "[fault]") {
  const auto seed = std::random_device()();
  std::mt19937 random(seed);
  CAPTURE(seed);
  asio::io_context context;
  // Only the fork server: what the tests before have left is gone.
  REQUIRE(run_until(context, [] { return living_descendants().size() == 1; }));
  const std::set<int> before = living_descendants();
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(2));
  REQUIRE(run(context, pool->submit(twice, 21)) == 42);
  REQUIRE(run_until(context, [&] { return whole(*pool); }));
  const Process fork_server(parent_of(template_of(*pool)));
  REQUIRE(parent_of(fork_server.pid()) == ::getpid());
  std::array<int, 3> done{};
  for (int round = 0; round < kInterruptions; ++round) {
    CAPTURE(round);
    REQUIRE(run_until(context, [&] { return whole(*pool); }));
    const std::vector<int> pids = pool->worker_pids();
    if (pids.empty()) continue;
    const Process worker_template(parent_of(pids.front()));
    // A worker whose template died a moment ago has another parent already.
    if (parent_of(worker_template.pid()) != fork_server.pid()) continue;
    const Process victim(pids.front());
    victim.signal(SIGKILL);  // unless it died with its template a moment ago
    // Somewhere in the 0.5 ms or so in which the pool hears of it, the template forks and tells: no sleep hits that.
    const auto moment = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 1000);
    while (std::chrono::steady_clock::now() < moment) context.poll(), context.restart();
    const std::size_t kind = std::array<std::size_t, 8>{0, 0, 0, 1, 1, 1, 1, 2}[random() % 8];
    ++done[kind];
    const Process& target = random() % 4 == 0 && kind != 2 ? fork_server : worker_template;
    switch (kind) {
      case 0:
        target.signal(SIGCHLD);
        break;
      case 1:
        target.signal(SIGSTOP);
        context.poll();
        target.signal(SIGCONT);
        break;
      default:
        target.signal(SIGKILL);
    }
    context.restart();
    // A template that is killed takes its workers with it, and what they have begun.
    const auto error = failure(context, pool->submit(twice, round));
    const auto crash = error_as<WorkerCrashedError>(error);
    INFO(message(error));
    CHECK((!error || (kind == 2 && crash && crash->started() != Started::never)));
    if (crash) CHECK(std::string(crash->what()).find("the template has ended") != std::string::npos);
  }
  CAPTURE(done);
  REQUIRE(run_until(context, [&] { return whole(*pool); }));
  // Whoever lives is known: the pool's two workers and their template.
  const auto expected = [&] {
    std::set<int> known = before;
    for (const int pid : pool->worker_pids()) known.insert(pid);
    known.insert(template_of(*pool));
    return known;
  };
  const bool known_only = run_until(context, [&] { return living_descendants() == expected(); });
  const std::set<int> found = living_descendants();
  CAPTURE(before, expected(), found);
  for (const int pid : found) {
    UNSCOPED_INFO(read_file("/proc/" + std::to_string(pid) + "/stat"));
  }
  CHECK(known_only);
  CHECK(adds_up(*pool));
  pool.reset();
  CHECK(run_until(context, [&] { return living_descendants() == before; }));
}

// ---------------------------------------------------------------------------------------------------------------------
// Processes that are stopped at a bad moment.

namespace {

struct Runner {
  std::atomic<int> pid{0};  // as the host sees it
};
Runner& runner = bulkhead::test::shared_object<Runner>();

int tell_and_wait_at_gate() {
  // /proc is the host's also in a PID namespace.
  runner.pid = std::stoi(std::filesystem::read_symlink("/proc/self").string());
  gate.wait();
  return 1;
}

int host_to_be_stopped() {
  Report report;
  gate.reset();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  Outcome<> running;
  pool.async_submit(bulkhead::call(tell_and_wait_at_gate), running.handler());
  report.expect(run_until(context, [&] { return gate.waiting == 1 && whole(pool); }), "a task runs");
  std::vector<int> pids = pool.worker_pids();
  std::erase(pids, runner.pid.load());
  const Process idle(pids.front());
  const Process worker_template(template_of(pool));
  // A start is asked for and cannot be answered.
  worker_template.signal(SIGSTOP);
  idle.signal(SIGKILL);
  report.expect(run_until(context, [&] { return pool.metrics().workers_started == 3; }), "another worker is asked for");
  std::printf("ready %d\n", worker_template.pid());
  std::fflush(stdout);
  // Stopped here, and let go after longer than any answer may take.
  report.expect(run_until(context, [&] { return whole(pool); }), "the worker comes");
  report.expect(run(context, pool.submit(twice, 21)) == 42, "the pool goes on");
  gate.open = 1;
  report.expect(run_until(context, [&] { return running.calls > 0; }), "the task ends");
  report.expect(running.value == 1, "undisturbed: " + message(running.error));
  return report.exit_code();
}

}  // namespace

TEST_CASE("A host that is stopped while a worker starts loses no task when it goes on", "[fault]") {
  Program program("host_to_be_stopped");
  REQUIRE(program.says("ready "));
  const Process host(program.pid());
  REQUIRE(host.signal(SIGSTOP));
  const Process worker_template(std::stoi(program.said().substr(program.said().find("ready ") + 6)));
  REQUIRE(worker_template.signal(SIGCONT));
  // The time itself is the situation: longer than the five seconds in which a template must answer.
  CHECK_FALSE(host.gone_within(6'500ms));
  REQUIRE(host.signal(SIGCONT));
  const auto [code, said] = program.finish();
  INFO(said);
  CHECK(code == 0);
}

namespace {

// Once, in a process that is forked next.
struct Once {
  std::atomic<int> left{0};
};
Once& stop_at_birth = bulkhead::test::shared_object<Once>();

void have_next_fork_stopped() {
  ::pthread_atfork(nullptr, nullptr, [] {
    if (stop_at_birth.left.exchange(0) > 0) ::raise(SIGSTOP);
  });
}

}  // namespace

TEST_CASE("A worker that is stopped before it is ready is replaced", "[fault]") {
  asio::io_context context;
  auto options = workers(1);
  options.preload = have_next_fork_stopped;
  stop_at_birth.left = 1;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  CHECK(stop_at_birth.left == 0);
  CHECK(pool.metrics().workers_started == 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// 50: hosts that become another program, or another process.

namespace {

std::vector<int> all_of(const LocalExecutor& pool) {
  std::vector<int> pids = pool.worker_pids();
  pids.push_back(template_of(pool));
  pids.push_back(parent_of(template_of(pool)));
  return pids;
}

int host_that_execs(std::size_t descriptors_before) {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  Report report;
  report.expect(run(context, pool.submit(twice, 21)) == 42, "a task returns before");
  report.expect(run_until(context, [&] { return whole(pool); }), "the pool is whole");
  Outcome<> running;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), running.handler());
  report.expect(run_until(context, [] { return gate.waiting == 1; }), "a task runs");
  std::string part = "--part=after_exec_" + std::to_string(descriptors_before);
  for (const int pid : all_of(pool)) part += "_" + std::to_string(pid);
  std::fflush(stdout);
  std::string self = "/proc/self/exe";
  std::array<char*, 3> arguments{self.data(), part.data(), nullptr};
  ::execv(self.c_str(), arguments.data());
  return 3;
}

int after_exec(std::string_view found) {
  Report report;
  std::istringstream numbers{std::string(found)};
  std::string number;
  std::getline(numbers, number, '_');
  report.expect(
      number == std::to_string(open_descriptors()),
      "nothing of the pool is open: " + std::to_string(open_descriptors()) + " descriptors, before " + number);
  int count = 0;
  while (std::getline(numbers, number, '_')) {
    ++count;
    // The fork server was the old program's child, and stays its heir's zombie: exec does not tell who waits for it.
    report.expect(bulkhead::test::poll_until([&] { return !runs(std::stoi(number)); }, kGone),
                  "process " + number + " of the old program's pool is gone");
  }
  report.expect(count == 4, "the processes' numbers were handed over");
  bulkhead::start_fork_server();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  report.expect(run(context, pool.submit(twice, 21)) == 42, "the new program has a pool of its own");
  return report.exit_code();
}

int host_that_becomes_a_daemon() {
  asio::io_context context;
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(2));
  if (run(context, pool->submit(twice, 21)) != 42) return 3;
  if (!run_until(context, [&] { return whole(*pool); })) return 4;
  const std::vector<Process> processes = processes_of(*pool);
  // As daemon(3), and twice as the books have it: what called it ends, and its copy goes on.
  if (::daemon(1, 1) != 0) return 5;
  if (const pid_t again = ::fork(); again != 0) ::_exit(0);
  Report report;
  Outcome<> outcome;
  pool->async_submit(bulkhead::call(twice, 21), outcome.handler());
  report.expect(run_until(context, [&] { return outcome.calls > 0; }), "a submit in the daemon ends");
  report.expect(bulkhead::test::holds<ExecutorNotRunningError>(outcome.error),
                "with a clear error: " + message(outcome.error));
  report.expect(message(outcome.error).find("fork") != std::string::npos, "that says why: " + message(outcome.error));
  for (const Process& process : processes) report.expect(process.gone_within(kGone), "the old workers are gone");
  pool.reset();
#if !WITH_THREAD_SANITIZER  // It lets no copy of a process with threads start threads.
  bulkhead::start_fork_server();
  asio::io_context own_context;
  LocalExecutor own(own_context.get_executor(), workers(1));
  report.expect(run(own_context, own.submit(twice, 21)) == 42, "the daemon has a pool of its own");
#endif
  if (report.exit_code() == 0) std::puts("the daemon is well");
  std::fflush(stdout);
  // What its parent had is not the daemon's to destroy: a sanitizer would take that for a leak.
  ::_exit(0);
}

}  // namespace

TEST_CASE("50: a host that calls exec leaves no worker behind, and the new program can have a pool", "[fault]") {
  check_part("host_that_execs");
}

TEST_CASE("50: a host that becomes a daemon gets a clear error from its old pool, and can have a new one", "[fault]") {
  Program program("host_that_becomes_a_daemon");
  const auto [code, said] = program.finish();
  INFO(said);
  CHECK(code == 0);
  CHECK(said.find("the daemon is well") != std::string::npos);
}

namespace {

// A copy of the host makes executors of threads, whose background threads are its own.
int copy_with_threads() {
  for (int i = 0; i < 5; ++i) {
    asio::io_context context;
    ThreadExecutor executor(context.get_executor());
    if (run(context, executor.submit(TaskOptions().timeout(60s), twice, 21)) != 42) return 1;
    run(context, executor.shutdown());
  }
  return 0;
}

// With a fork server, or with nothing but threads; and while the original has an executor, or has not.
int host_whose_copies_use_threads(bool with_fork_server) {
  Report report;
  if (with_fork_server) bulkhead::start_fork_server();
  asio::io_context context;
  std::optional<ThreadExecutor> executor;
  for (int i = 0; i < 20; ++i) {
    if (i == 10) executor.emplace(context.get_executor());
    const pid_t copy = ::fork();
    if (copy == 0) ::_exit(copy_with_threads());
    int status = -1;
    report.expect(::waitpid(copy, &status, 0) == copy && WIFEXITED(status) && WEXITSTATUS(status) == 0,
                  "a copy of the host runs tasks on threads; its status is " + std::to_string(status));
  }
  return report.exit_code();
}

}  // namespace

TEST_CASE("50: a copy of the host that was never told to have processes runs tasks on threads", "[fault]") {
  check_part("host_whose_copies_use_threads");
  check_part("host_of_threads_whose_copies_use_threads");
}

// ---------------------------------------------------------------------------------------------------------------------
// 52: hosts with threads.

namespace {

// Eight threads that do nothing but take locks that a fork would copy locked.
class BusyThreads {
 public:
  BusyThreads() {
    for (int i = 0; i < 8; ++i) threads_.emplace_back([this, i] { work(i); });
    while (started_ < 8) std::this_thread::yield();
  }
  BusyThreads(const BusyThreads&) = delete;
  BusyThreads& operator=(const BusyThreads&) = delete;
  ~BusyThreads() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work(int kind) {
    ++started_;
    while (!stop_) {
      switch (kind % 4) {
        case 0:
          (void)std::vector<char>(std::size_t{1} << (stop_ ? 4 : 17)).data();  // malloc
          break;
        case 1: {
          const std::lock_guard lock(mutex_);
          break;
        }
        case 2:
          (void)(std::ostringstream() << std::locale().name() << 1.5).str();
          break;
        default: {
          addrinfo* found = nullptr;
          addrinfo hints{};
          hints.ai_flags = AI_NUMERICHOST;  // no name server is asked
          if (::getaddrinfo("127.0.0.1", "80", &hints, &found) == 0) ::freeaddrinfo(found);
        }
      }
    }
  }

  std::atomic<bool> stop_{false};
  std::atomic<int> started_{0};
  std::mutex mutex_;
  std::vector<std::thread> threads_;
};

int allocate_and_format(int value) {
  std::ostringstream text;
  text.imbue(std::locale());
  text << std::vector<int>(1000, value).size() << std::mt19937(1)();
  return text.str().empty() ? -1 : value;
}

#if WITH_SANITIZER
constexpr int kStarts = 300;  // a fork of a process with shadow memory takes tens of times longer
#else
constexpr int kStarts = 10'000;
#endif

asio::awaitable<int> count_right(LocalExecutor& pool, int tasks) {
  int right = 0;
  for (int i = 0; i < tasks; ++i) right += co_await pool.submit(allocate_and_format, i) == i ? 1 : 0;
  co_return right;
}

int host_that_starts_late() {
  Report report;
  const BusyThreads threads;
  try {
    bulkhead::start_fork_server();
    report.expect(false, "a start beside other threads is refused");
  } catch (const std::exception& error) {
    const std::string said = error.what();
    report.expect(said.find("one thread") != std::string::npos && said.find("first line of main") != std::string::npos,
                  "it says why and what to do: " + said);
  }
  try {
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), workers(1));
    report.expect(false, "a pool beside other threads and without a fork server is refused");
  } catch (const std::exception& error) {
    report.expect(std::string(error.what()).find("start_fork_server") != std::string::npos,
                  std::string("it says what to do: ") + error.what());
  }
  return report.exit_code();
}

}  // namespace

TEST_CASE("52: a fork server started beside eight threads is refused with an error that says what to do", "[fault]") {
  check_part("host_that_starts_late");
}

TEST_CASE("52: 10,000 workers start one after another beside eight threads that hold locks, and none hangs",
          "[fault]") {
  const BusyThreads threads;
  asio::io_context context;
  auto options = workers(2);
  options.max_tasks_per_worker = 1;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, count_right(pool, kStarts), 240s) == kStarts);
  // Which the background thread sees to, after the answers.
  CHECK(bulkhead::test::run_until(
      context, [&] { return pool.metrics().workers_recycled == static_cast<std::uint64_t>(kStarts); }));
  CHECK(pool.metrics().workers_crashed == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// 53: kernels and tools that lack what is needed. That sanitizers do not is what their builds of all tests show.

namespace {

// As under valgrind 3.19, or in a container whose filter is older than the system call.
bool forbid_pidfd_open() {
  std::array<sock_filter, 4> program{
      sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_pidfd_open},
      sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | ENOSYS},
      sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

int host_without_pidfds() {
  Report report;
  report.expect(forbid_pidfd_open(), "the system call can be forbidden");
  try {
    bulkhead::start_fork_server();
    report.expect(false, "the start is refused");
  } catch (const WorkerStartError& error) {
    report.expect(std::string(error.what()).find("pidfd") != std::string::npos &&
                      std::string(error.what()).find(std::strerror(ENOSYS)) != std::string::npos,
                  std::string("it says what is missing: ") + error.what());
  }
  return report.exit_code();
}

// For under_valgrind: it may work there, or say clearly why not.
int host_under_a_tool() {
  try {
    bulkhead::start_fork_server();
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), workers(1));
    if (run(context, pool.submit(twice, 21)) != 42) return 1;
    run(context, pool.shutdown());
    std::puts("a task has run");
  } catch (const WorkerStartError& error) {
    std::printf("the start is refused: %s\n", error.what());
  }
  std::fflush(stdout);
  return 0;
}

}  // namespace

TEST_CASE("53: where the kernel or a tool lacks process descriptors, the start says so", "[fault]") {
  check_part("host_without_pidfds");
}

// ---------------------------------------------------------------------------------------------------------------------
// 54: hosts that are huge.

namespace {

// The script huge_host asks for more.
std::size_t host_memory() {
  const char* const wanted = std::getenv("BULKHEAD_HOST_MEMORY_MIB");
  return std::size_t{wanted != nullptr ? std::stoul(wanted) : 512} << 20;
}

constexpr rlim_t kHostDescriptors = 10'000;

struct Footprint {
  long address_space = 0;  // KiB
  long resident = 0;       // KiB
  int descriptors = 0;
};

Footprint footprint_of_a_worker() {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Footprint footprint;
  footprint.address_space = run(context, pool.submit(own_status, "VmSize"));
  footprint.resident = run(context, pool.submit(own_status, "VmRSS"));
  footprint.descriptors = run(context, pool.submit(own_descriptors));
  return footprint;
}

// From the death of a worker to the number of the one in its place: the median of many.
std::chrono::nanoseconds time_to_replace_a_worker() {
  constexpr std::size_t kRounds = WITH_SANITIZER ? 3 : 20;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::vector<std::chrono::nanoseconds> times;
  while (times.size() < kRounds) {
    // One that has worked is replaced without a pause.
    run(context, pool.submit(twice, 21));
    // Its answer may come before its number.
    if (!run_until(context, [&] { return whole(pool); })) throw std::runtime_error("no worker");
    const Process worker(pool.worker_pids().at(0));
    const auto begin = std::chrono::steady_clock::now();
    if (!worker.signal(SIGKILL)) continue;
    std::vector<int> pids;
    do {
      std::this_thread::yield();
      pids = pool.worker_pids();
    } while (pids.empty() || pids.front() == worker.pid());
    times.push_back(std::chrono::steady_clock::now() - begin);
  }
  std::sort(times.begin(), times.end());
  return times[kRounds / 2];
}

// Others use the machine, too: the best median shows what is the pool's own.
std::chrono::nanoseconds best_time_to_replace_a_worker() {
  std::chrono::nanoseconds best = time_to_replace_a_worker();
  for (int i = 1; i < 3; ++i) best = std::min(best, time_to_replace_a_worker());
  return best;
}

int huge_host() {
  Report report;
  const Footprint small = footprint_of_a_worker();
  const std::chrono::nanoseconds small_time = best_time_to_replace_a_worker();
  const std::size_t size = host_memory();
  const std::vector<char> memory(size, 'x');
  report.expect(own_status("VmRSS") >= static_cast<long>(size >> 10), "the host has its memory");
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t wanted = std::min(limit.rlim_max, kHostDescriptors + 1'000);
  limit.rlim_cur = std::max(limit.rlim_cur, wanted);
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::vector<int> descriptors;
  while (descriptors.size() + 1'000 < wanted) descriptors.push_back(::dup(STDIN_FILENO));
  report.expect(descriptors.back() >= 0, "the host has its descriptors");
  const Footprint big = footprint_of_a_worker();
  // Forked from what the host was before: nothing of this is copied at a start, or counted for a worker.
  constexpr long kSame = 8 << 10;  // KiB; what start-up and heaps vary by, and little beside the host's memory
  report.expect(big.address_space < small.address_space + kSame,
                "a worker's address space: " + std::to_string(small.address_space) + " KiB beside a small host, " +
                    std::to_string(big.address_space) + " KiB beside a huge one");
  report.expect(big.resident < small.resident + kSame, "a worker's memory is that beside a small host");
  report.expect(big.descriptors == small.descriptors,
                "a worker has " + std::to_string(big.descriptors) + " descriptors");
  const std::chrono::nanoseconds big_time = best_time_to_replace_a_worker();
  std::printf(
      "a worker is replaced within %.3f ms beside a small host, %.3f ms beside one of %ld MiB, %zu descriptors\n",
      static_cast<double>(small_time.count()) * 1e-6, static_cast<double>(big_time.count()) * 1e-6,
      own_status("VmRSS") >> 10, open_descriptors());
#if !WITH_SANITIZER
  report.expect(big_time <= 2 * small_time + 1ms, "a worker is replaced as quickly as beside a small host");
#endif
  return report.exit_code();
}

}  // namespace

TEST_CASE(
    "54: a worker of a host with much memory and 10,000 descriptors is as small as one of a small host, and as quickly "
    "there",
    "[fault]") {
  check_part("huge_host");
}

// ---------------------------------------------------------------------------------------------------------------------
// 55: what the host has buffered, and its static objects.

namespace {

// Before the fork server starts: text in three buffers, none of it written.
struct Buffered {
  std::string path;
  std::FILE* file = nullptr;
  std::ofstream stream;
};
Buffered buffered;
// Has a thread once the fork server runs, and tells its end.
struct ObjectWithThread {
  std::optional<std::thread> thread;
  ~ObjectWithThread() {
    if (thread) thread->join();  // in a worker it would wait for a thread that is not there
    if (!buffered.path.empty()) std::ofstream(buffered.path + ".ends", std::ios::app) << "end\n";
  }
};
ObjectWithThread object;

void fill_buffers() {
  buffered.path = "/tmp/bulkhead-fork-test-" + std::to_string(::getpid());
  buffered.file = std::fopen((buffered.path + ".file").c_str(), "w");
  buffered.stream.open(buffered.path + ".stream");
  std::fputs("once\n", buffered.file);
  buffered.stream << "once\n";
  std::fputs("said once\n", stdout);
}

int host_with_buffers() {
  Report report;
  object.thread.emplace([] {});
  {
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), workers(2));
    for (int i = 0; i < 4; ++i) {
      Outcome<> outcome;
      pool.async_submit(bulkhead::call(leave_by_exit, i), outcome.handler());
      report.expect(run_until(context, [&] { return outcome.calls > 0; }), "exit in a worker ends it");
      report.expect(bulkhead::test::holds<bulkhead::WorkerCrashedError>(outcome.error),
                    "and is told: " + message(outcome.error));
    }
    report.expect(run(context, pool.submit(twice, 21)) == 42, "the pool goes on");
    run(context, pool.shutdown());
  }
  std::fclose(buffered.file);
  buffered.stream.close();
  report.expect(read_file(buffered.path + ".file") == "once\n", "stdio's buffer is written once");
  report.expect(read_file(buffered.path + ".stream") == "once\n", "a stream's buffer is written once");
  report.expect(!std::filesystem::exists(buffered.path + ".ends"), "no static object was destroyed in a worker");
  std::filesystem::remove(buffered.path + ".file");
  std::filesystem::remove(buffered.path + ".stream");
  std::printf("files: %s\n", buffered.path.c_str());
  return report.exit_code();
}

}  // namespace

TEST_CASE("55: the host's static objects end once and its buffers are written once, whatever workers do", "[fault]") {
  Program program("host_with_buffers");
  const auto [code, said] = program.finish();
  INFO(said);
  CHECK(code == 0);
  const std::size_t first = said.find("said once");
  CHECK(first != std::string::npos);
  CHECK(said.find("said once", first + 1) == std::string::npos);
  const std::size_t place = said.find("files: ");
  REQUIRE(place != std::string::npos);
  const std::string ends = said.substr(place + 7, said.find('\n', place) - place - 7) + ".ends";
  CHECK(read_file(ends) == "end\n");  // in the host, when it ended
  std::filesystem::remove(ends);
}

// ---------------------------------------------------------------------------------------------------------------------
// 60: numbers of processes come again.

namespace {

// A child with this number; -1 if that cannot be had: it needs rights, and the number must be free.
pid_t fork_as(pid_t number) {
  clone_args arguments{};
  arguments.exit_signal = SIGCHLD;
  arguments.set_tid = reinterpret_cast<std::uintptr_t>(&number);
  arguments.set_tid_size = 1;
  const pid_t pid = static_cast<pid_t>(::syscall(SYS_clone3, &arguments, sizeof(arguments)));
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) ::pause();
}

pid_t fork_bystander() {
  const pid_t pid = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) ::pause();
}

void use_up_a_number() {
  const pid_t pid = ::vfork();
  if (pid == 0) ::_exit(0);
  ::waitpid(pid, nullptr, 0);
}

#if WITH_SANITIZER
constexpr int kNumbers = 2'000;
#else
constexpr int kNumbers = 33'000;  // once round where the kernel has its default of 32,768
#endif

// Processes that nobody may kill, in places where workers were.
int host_with_bystanders() {
  Report report;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  std::vector<pid_t> bystanders;
  int successors = 0;
  int kills = 0;
  for (int number = 0; number < kNumbers; ++number) {
    use_up_a_number();
    if (number % 1'000 == 0) bystanders.push_back(fork_bystander());
    if (number % 200 != 0) continue;
    // A limit that passes kills the worker; what then has its number is hit by no late kill.
    if (!report.expect(run_until(context, [&] { return whole(pool); }), "the pool is whole")) break;
    std::vector<int> old = pool.worker_pids();
    Outcome<void> outcome;
    pool.async_submit(TaskOptions().timeout(1ms), bulkhead::call(spin), outcome.handler());
    report.expect(run_until(context, [&] { return outcome.calls > 0; }), "the limit passes");
    report.expect(bulkhead::test::holds<TaskTimeoutError>(outcome.error), "and is told: " + message(outcome.error));
    ++kills;
    for (const int pid : old) {
      // While it lives or is a zombie its number is not free.
      const pid_t successor = fork_as(pid);
      if (successor != pid) continue;
      ++successors;
      bystanders.push_back(successor);
    }
  }
  run(context, pool.shutdown());
  report.expect(kills >= kNumbers / 200, "workers were killed all the time");
  for (const pid_t pid : bystanders) {
    report.expect(::waitpid(pid, nullptr, WNOHANG) == 0, "bystander " + std::to_string(pid) + " lives");
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  std::printf("%d kills, %zu bystanders, %d of them with a dead worker's number\n", kills, bystanders.size(),
              successors);
  return report.exit_code();
}

}  // namespace

TEST_CASE("60: where numbers of processes come round again, no bystander is ever killed", "[fault]") {
  check_part("host_with_bystanders");
}

namespace {

int run_part(std::string_view part) {
  constexpr std::string_view kAfterExec = "after_exec_";
  if (part.starts_with(kAfterExec)) return after_exec(part.substr(kAfterExec.size()));
  if (part == "host_that_starts_late") return host_that_starts_late();
  if (part == "host_whose_copies_use_threads") return host_whose_copies_use_threads(true);
  if (part == "host_of_threads_whose_copies_use_threads") return host_whose_copies_use_threads(false);
  if (part == "host_without_pidfds") return host_without_pidfds();
  if (part == "host_under_a_tool") return host_under_a_tool();
  if (part == "host_whose_forks_fail") return host_whose_forks_fail();
  if (part == "host_that_may_have_no_more_processes") return host_that_may_have_no_more_processes();
  if (part == "host_that_cannot_fork_eagain") return host_that_cannot_fork(EAGAIN);
  if (part == "host_that_cannot_fork_enomem") return host_that_cannot_fork(ENOMEM);
  if (part == "host_with_buffers") fill_buffers();
  const std::size_t descriptors_before = open_descriptors();
  bulkhead::start_fork_server();
  if (part == "host_that_execs") return host_that_execs(descriptors_before);
  if (part == "host_that_becomes_a_daemon") return host_that_becomes_a_daemon();
  if (part == "host_to_be_stopped") return host_to_be_stopped();
  if (part == "huge_host") return huge_host();
  if (part == "host_with_buffers") return host_with_buffers();
  if (part == "host_with_bystanders") return host_with_bystanders();
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  if (!part.empty()) return run_part(part);
  bulkhead::start_fork_server();
  return run_tests(argc, argv);
}
