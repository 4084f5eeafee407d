// SPDX-License-Identifier: BSL-1.0
// Kills a worker after each single instruction, and wakes it after each single instruction.
//
//   kill_step [--stride N] [--block-stride N] [--start-stride N]
//
// death     An idle worker is given a task, makes k steps towards its answer, and is killed: for k = 0, 1, 2, ... until
//           it is idle again. The task is run elsewhere, or fails with WorkerCrashedError, or has its result; and from
//           the step on at which the answer is complete, it has its result.
// block     The same with an answer that is too large for a slot, and a task that reports its progress: the result is
//           whole, and so is the progress in the error. It is some thousand instructions long, so that it is done in
//           strides, unless --block-stride 1 asks for all.
// wake-up   The same steps, but then the worker is given a second task, and let go. Both tasks have their results.
// start     A new worker runs to the end of its n-th system call, makes k steps more, and is killed, for all n and k;
//           the task that waits for it is run by the next. A start is some ten thousand instructions long, so that it
//           is done in strides, unless --start-stride 1 asks for all.
//
// Never are there two outcomes, two runs, another error, or a hang. Exit code 0: all is so; 1: a violation; 2: the tool
// itself does not work here.
#include <bulkhead/local_executor.hpp>
#include <bulkhead/this_task.hpp>

#include "process/arena.hpp"
#include "support/outcome.hpp"
#include "support/run.hpp"
#include "support/shared.hpp"

#include <boost/asio/io_context.hpp>

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace {

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Started;
using bulkhead::WorkerCrashedError;
using bulkhead::process::ResponseHeader;
using bulkhead::test::error_as;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using namespace std::chrono_literals;

// A task takes microseconds, a new worker a millisecond: what has not come after so long hangs.
constexpr std::chrono::seconds kHang{10};

struct Board {
  std::atomic<int> runs{0};
};
Board& board = shared_object<Board>();

int add_one(int x) {
  ++board.runs;
  return x + 1;
}

// Larger than a slot's payload, and a report that is written in several pieces.
std::vector<std::uint8_t> fill(int x) {
  ++board.runs;
  bulkhead::this_task::report_progress(static_cast<std::uint64_t>(x), 82, std::string(100, 'x'));
  return std::vector<std::uint8_t>(1000, static_cast<std::uint8_t>(x + 1));
}
const std::vector<std::uint8_t> kFilled(1000, 42);

// The rule that was broken.
class Violation : public std::runtime_error {
  using runtime_error::runtime_error;
};

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::system_category(), what); }

// A process under ptrace, by this thread.
class Traced {
 public:
  // Stops it, wherever it is.
  explicit Traced(pid_t pid, unsigned long options = 0) : pid_(pid) {
    if (::ptrace(PTRACE_SEIZE, pid_, nullptr, options) != 0) fail("cannot trace a worker");
    if (::ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) != 0) fail("cannot stop a worker");
    wait();
  }
  // One that was traced from its birth, and is stopped.
  struct Born {};
  Traced(pid_t pid, Born) : pid_(pid) { wait(); }
  ~Traced() {
    if (traced_) ::ptrace(PTRACE_DETACH, pid_, nullptr, nullptr);
  }
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;

  // False: it has come to where it sleeps for work, and has not gone to sleep.
  bool step() {
    if (about_to_call() == SYS_futex) return false;
    if (::ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) != 0) fail("cannot step");
    wait();
    return true;
  }
  // Runs it to the end of its next system call. False: it sleeps for work in that one.
  bool run_through_system_call() {
    for (;;) {
      if (::ptrace(PTRACE_SYSCALL, pid_, nullptr, nullptr) != 0) fail("cannot run to a system call");
      wait();
      if (!alive_) return true;
      __ptrace_syscall_info call{};
      if (::ptrace(PTRACE_GET_SYSCALL_INFO, pid_, sizeof(call), &call) < 0) fail("cannot see a system call");
      if (call.op == PTRACE_SYSCALL_INFO_EXIT) return true;
      if (call.op == PTRACE_SYSCALL_INFO_ENTRY && call.entry.nr == SYS_futex) return false;
    }
  }
  // The number of the system call that its next instruction makes.
  std::optional<long> about_to_call() const {
    const user_regs_struct now = registers();
#if defined(__x86_64__)
    if ((instruction_at(now.rip) & 0xffff) != 0x050f) return std::nullopt;  // syscall
    return static_cast<long>(now.rax);
#elif defined(__aarch64__)
    if ((instruction_at(now.pc) & 0xffffffff) != 0xd4000001) return std::nullopt;  // svc #0
    return static_cast<long>(now.regs[8]);
#endif
  }
  // The address of its next instruction.
  unsigned long address() const {
#if defined(__x86_64__)
    return registers().rip;
#elif defined(__aarch64__)
    return registers().pc;
#endif
  }
  void go_on() {
    traced_ = false;
    if (::ptrace(PTRACE_DETACH, pid_, nullptr, nullptr) != 0) fail("cannot let go of a worker");
  }
  void resume() {
    if (::ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) fail("cannot go on");
  }
  // The new process, once it has forked one.
  pid_t wait_for_fork() {
    for (int status = 0;;) {
      if (::waitpid(pid_, &status, __WALL) != pid_ || !WIFSTOPPED(status)) fail("cannot wait for a new worker");
      if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_FORK << 8))) break;
      // A signal on its way: that of its child's death.
      const long number = status >> 16 == 0 ? WSTOPSIG(status) : 0;
      if (::ptrace(PTRACE_CONT, pid_, nullptr, number) != 0) fail("cannot go on");
    }
    unsigned long child = 0;
    ::ptrace(PTRACE_GETEVENTMSG, pid_, nullptr, &child);
    return static_cast<pid_t>(child);
  }
  void kill() {
    traced_ = false;
    ::kill(pid_, SIGKILL);
    // Its parent hears of its death only after its tracer.
    int status = 0;
    while (::waitpid(pid_, &status, __WALL) == pid_ && !WIFSIGNALED(status) && !WIFEXITED(status)) {
    }
  }
  bool alive() const { return alive_; }

  // How many requests it has begun, has run, and has answered, as its response area has it.
  struct Progress {
    std::uint32_t begun;
    std::uint32_t returned;
    std::uint32_t committed;

    Progress since(const Progress& before) const {
      return {begun - before.begun, returned - before.returned, committed - before.committed};
    }
    bool operator==(const Progress&) const = default;
  };
  Progress progress() const {
    const unsigned long area = response_area();
    if (area == 0) return {0, 0, 0};  // not mapped yet
    const auto word = [&](std::size_t offset) {
      errno = 0;
      const long value = ::ptrace(PTRACE_PEEKDATA, pid_, reinterpret_cast<void*>(area + offset), nullptr);
      if (errno != 0) fail("cannot read a worker's area");
      return static_cast<std::uint32_t>(value);
    };
    return {word(offsetof(ResponseHeader, begun)), word(offsetof(ResponseHeader, returned)),
            word(offsetof(ResponseHeader, committed))};
  }

 private:
  unsigned long response_area() const {
    std::ifstream maps("/proc/" + std::to_string(pid_) + "/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("/memfd:bulkhead-response") != std::string::npos) return std::stoul(line, nullptr, 16);
    }
    return 0;
  }

  void wait() {
    int status = 0;
    if (::waitpid(pid_, &status, __WALL) != pid_) fail("cannot wait for a worker");
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      alive_ = false;
      traced_ = false;
    }
  }

  user_regs_struct registers() const {
    user_regs_struct result{};
    iovec area{&result, sizeof(result)};
    if (::ptrace(PTRACE_GETREGSET, pid_, reinterpret_cast<void*>(NT_PRSTATUS), &area) != 0) fail("cannot look");
    return result;
  }

  unsigned long instruction_at(unsigned long address) const {
    errno = 0;
    return static_cast<unsigned long>(::ptrace(PTRACE_PEEKTEXT, pid_, reinterpret_cast<void*>(address), nullptr));
  }

  const pid_t pid_;
  bool traced_ = true;
  bool alive_ = true;
};

struct Pool {
  asio::io_context context;
  LocalExecutor executor{context.get_executor(), [] {
                           LocalExecutorOptions options;
                           options.max_workers = 1;
                           options.spin = bulkhead::SpinPolicy::never;
                           options.sandbox.non_dumpable = bulkhead::Demand::off;  // it is traced
                           return options;
                         }()};

  int result_of_warm_up() {
    Outcome<> outcome;
    executor.async_submit(bulkhead::call(add_one, 0), outcome.handler());
    if (!run_until(
            context, [&] { return outcome.calls > 0; }, kHang))
      throw Violation("a plain task hangs");
    return outcome.value.value_or(-1);
  }

  // The worker, once it sleeps.
  pid_t idle_worker() {
    if (result_of_warm_up() != 1) throw Violation("a plain task has a wrong result");
    const auto end = std::chrono::steady_clock::now() + kHang;
    // A new worker may answer before the host has heard what its number is.
    if (!run_until(
            context, [&] { return executor.worker_pids().size() == 1; }, kHang)) {
      throw Violation("the pool has " + std::to_string(executor.worker_pids().size()) + " workers, and not one");
    }
    const pid_t pid = executor.worker_pids().front();
    while (state_of(pid) != 'S') {
      if (std::chrono::steady_clock::now() > end) throw Violation("a worker does not fall asleep");
      ::usleep(50);
    }
    return pid;
  }

  static char state_of(pid_t pid) {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    std::getline(stat, text);
    const auto name_end = text.rfind(')');
    return name_end == std::string::npos ? '?' : text.at(name_end + 2);
  }
};

enum class Ending { elsewhere, crashed, lost, result };

const char* name_of(Ending ending) {
  switch (ending) {
    case Ending::elsewhere:
      return "it had not begun, and must run elsewhere";
    case Ending::crashed:
      return "it had begun, and must fail";
    case Ending::lost:
      return "it had run, and its answer was not complete";
    case Ending::result:
      return "its answer was complete, and must arrive";
  }
  return "";
}

// How the task that the worker was given between the two must end, if the worker is killed now.
Ending ending_after(const Traced::Progress& before, const Traced::Progress& now) {
  if (now.committed != before.committed) return Ending::result;
  if (now.begun == before.begun) return Ending::elsewhere;
  return now.returned == now.begun ? Ending::lost : Ending::crashed;
}

// Whether a task of a worker that was killed ended as it must.
template <class R>
void check(const Outcome<R>& outcome, const R& result, Ending expected, int runs_before) {
  const std::string rule = std::string(": ") + name_of(expected);
  if (outcome.calls != 1) throw Violation("the task has " + std::to_string(outcome.calls) + " outcomes" + rule);
  const int runs = board.runs;
  if (expected == Ending::crashed || expected == Ending::lost) {
    const auto crash = error_as<WorkerCrashedError>(outcome.error);
    if (!crash) throw Violation("the task ended with: " + message(outcome.error) + rule);
    if (crash->signal() != SIGKILL ||
        crash->started() != (expected == Ending::lost ? Started::finished : Started::maybe)) {
      throw Violation("the death is told wrongly: " + message(outcome.error) + rule);
    }
    if (runs != runs_before) throw Violation("the task ran again" + rule);
    if (const auto& last = crash->ending().progress;
        last && (last->done != 41 || last->total != 82 || last->text != std::string(100, 'x'))) {
      throw Violation("its last progress is torn" + rule);
    }
    return;
  }
  if (outcome.error) throw Violation("the task failed with: " + message(outcome.error) + rule);
  if (outcome.value != result) throw Violation("the task has a wrong result" + rule);
  if (runs != 1) throw Violation("the task ran " + std::to_string(runs) + " times" + rule);
}

template <class R>
void kill_after_each_step(Pool& pool, const char* name, R (*function)(int), const R& result, unsigned stride) {
  std::array<unsigned, 4> endings{};
  bool idle_again = false;
  unsigned steps = 0;
  for (; !idle_again; steps += stride) {
    const pid_t pid = pool.idle_worker();
    Traced worker(pid);
    const Traced::Progress before = worker.progress();
    board.runs = 0;
    Outcome<R> outcome;
    pool.executor.async_submit(bulkhead::call(function, 41), outcome.handler());
    bulkhead::test::settle(pool.context);  // The host sleeps, too: only the worker can wake it.
    unsigned done = 0;
    // The first steps lead out of the sleep that was interrupted.
    while (done < steps && (worker.step() || done < 8)) ++done;
    idle_again = done < steps;
    const Ending expected = ending_after(before, worker.progress());
    const int runs = board.runs;
    worker.kill();
    if (!run_until(
            pool.context, [&] { return outcome.calls > 0; }, kHang)) {
      throw Violation("killed after " + std::to_string(done) + " steps: the task hangs");
    }
    bulkhead::test::settle(pool.context);
    try {
      check(outcome, result, expected, runs);
    } catch (const Violation& violation) {
      throw Violation("killed after " + std::to_string(done) + " steps: " + violation.what());
    }
    ++endings[static_cast<std::size_t>(expected)];
  }
  std::printf(
      "%s: %u points; run elsewhere after %u of them, crashed after %u, result lost after %u and there after %u\n",
      name, endings[0] + endings[1] + endings[2] + endings[3], endings[0], endings[1], endings[2], endings[3]);
  if (std::find(endings.begin(), endings.end(), 0U) != endings.end()) {
    throw std::runtime_error("the steps did not lead through a task's whole way");
  }
}

std::optional<std::uint32_t> begun_by(pid_t pid) {
  try {
    return Traced(pid).progress().begun;
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::operation_not_permitted || error.code() == std::errc::no_such_process) return {};
    throw;
  }
}

// A worker that sleeps on although it has a task is found out after 0.1 s, and the task is taken back and given to it
// once more: so it comes to three requests for two tasks. An overloaded machine may look like that once.
constexpr int kAttempts = 3;

// Where a worker was given its second task. How many steps lead there differs a little from one task to the next.
struct WakePoint {
  unsigned long address;
  Traced::Progress progress;  // since it was stopped

  bool operator==(const WakePoint&) const = default;
};

WakePoint point_of(const Traced& worker, const Traced::Progress& before) {
  return {worker.address(), worker.progress().since(before)};
}

void wake_after_each_step(Pool& pool, unsigned stride) {
  bool idle_again = false;
  unsigned points = 0;
  int attempt = 1;
  WakePoint point{};
  for (unsigned steps = 0; !idle_again || attempt > 1; ++points) {
    Outcome<> first;
    Outcome<> second;
    unsigned done = 0;
    const pid_t pid = pool.idle_worker();
    Traced::Progress before{};
    {
      Traced worker(pid);
      before = worker.progress();
      board.runs = 0;
      pool.executor.async_submit(bulkhead::call(add_one, 41), first.handler());
      bulkhead::test::settle(pool.context);
      const auto arrived = [&] {
        if (attempt == 1) return done == steps;
        return worker.address() == point.address && point_of(worker, before) == point;
      };
      while (!arrived() && (worker.step() || done < 8)) ++done;
      if (attempt == 1) {
        idle_again = done < steps;
        point = point_of(worker, before);
      }
      // If the worker has rung for the first answer, it is read now, and the second task goes into the ring at once,
      // however long the steps have taken.
      bulkhead::test::settle(pool.context);
      pool.executor.async_submit(bulkhead::call(add_one, 42), second.handler());
      worker.go_on();
    }
    if (!run_until(
            pool.context, [&] { return first.calls > 0 && second.calls > 0; }, kHang)) {
      throw Violation("given a task after " + std::to_string(done) + " steps, the worker sleeps on");
    }
    if (first.value != 42 || second.value != 43 || board.runs != 2) {
      throw Violation("given a task after " + std::to_string(done) + " steps: wrong results");
    }
    // One that slept on may have been replaced: then it is dead, or about to be, and cannot be traced.
    const bool woken = pool.executor.worker_pids() == std::vector<int>{pid} && begun_by(pid) == before.begun + 2;
    if (woken) {
      attempt = 1;
      steps += stride;
    } else if (++attempt > kAttempts) {
      throw Violation("given a task after " + std::to_string(done) + " steps, the worker sleeps on until it is found");
    }
  }
  std::printf("wake-up: %u points\n", points);
}

// Where a new worker is to be killed.
struct StartPoint {
  unsigned calls;
  unsigned steps;
};

std::string to_string(const StartPoint& point) {
  return std::to_string(point.steps) + " steps after system call " + std::to_string(point.calls) + " of its start";
}

// How far it came: it is where it was to be killed, it would have gone beyond, or it has nothing to do any more.
enum class Reached { point, next_call, sleep };

Reached run_to(Traced& worker, const StartPoint& point) {
  for (unsigned call = 0; call < point.calls && worker.alive(); ++call) {
    if (!worker.run_through_system_call()) return Reached::sleep;
  }
  for (unsigned done = 0; worker.alive(); ++done) {
    const auto call = worker.about_to_call();
    if (call == SYS_futex) return Reached::sleep;
    if (done == point.steps) return Reached::point;
    if (call) return Reached::next_call;
    worker.step();
  }
  return Reached::point;
}

pid_t parent_of(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  return static_cast<pid_t>(std::stol(text.substr(text.rfind(')') + 4)));
}

Reached kill_at(Pool& pool, const StartPoint& point) {
  const pid_t old = pool.idle_worker();
  // Both options go on to the worker; without the second no stop tells that it is one of a system call.
  Traced parent_trace(parent_of(old), PTRACE_O_TRACEFORK | PTRACE_O_TRACESYSGOOD);
  parent_trace.resume();
  ::kill(old, SIGKILL);
  const pid_t born = parent_trace.wait_for_fork();
  Traced worker(born, Traced::Born());
  board.runs = 0;
  Outcome<> outcome;
  pool.executor.async_submit(bulkhead::call(add_one, 41), outcome.handler());
  const Reached reached = run_to(worker, point);
  const Ending expected = worker.alive() ? ending_after({0, 0, 0}, worker.progress()) : Ending::elsewhere;
  const int runs = board.runs;
  parent_trace.go_on();
  worker.kill();
  if (!run_until(
          pool.context, [&] { return outcome.calls > 0; }, kHang)) {
    throw Violation("a worker was killed " + to_string(point) + ": the task hangs");
  }
  try {
    check(outcome, 42, expected, runs);
  } catch (const Violation& violation) {
    throw Violation("a worker was killed " + to_string(point) + ": " + violation.what());
  }
  return reached;
}

void kill_at_start(Pool& pool, unsigned stride) {
  unsigned points = 0;
  unsigned calls = 0;
  for (Reached reached = Reached::point; reached != Reached::sleep; ++calls) {
    reached = Reached::point;
    for (unsigned steps = 0; reached == Reached::point; steps += stride, ++points) {
      reached = kill_at(pool, {calls, steps});
    }
  }
  std::printf("start: %u points after %u system calls, at most %u instructions apart\n", points, calls, stride);
}

unsigned number_after(int argc, char** argv, std::string_view option, unsigned otherwise) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == option) return static_cast<unsigned>(std::strtoul(argv[i + 1], nullptr, 10));
  }
  return otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned stride = number_after(argc, argv, "--stride", 1);
  // Primes, so that the points differ from one part of the code to the next.
  const unsigned block_stride = number_after(argc, argv, "--block-stride", 17);
  const unsigned start_stride = number_after(argc, argv, "--start-stride", 397);
  try {
    bulkhead::start_fork_server();
    Pool pool;
    kill_after_each_step(pool, "death", add_one, 42, stride);
    kill_after_each_step(pool, "block", fill, kFilled, block_stride);
    wake_after_each_step(pool, stride);
    kill_at_start(pool, start_stride);
  } catch (const Violation& violation) {
    std::printf("violation: %s\n", violation.what());
    return 1;
  } catch (const std::exception& error) {
    std::printf("kill_step does not work here: %s\n", error.what());
    return 2;
  }
  return 0;
}
