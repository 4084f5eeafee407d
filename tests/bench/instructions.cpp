// SPDX-License-Identifier: BSL-1.0
// How many instructions a task costs the host's thread and the worker, counted one by one under ptrace. Unlike times,
// they do not depend on who else uses the machine: so they are compared with `instructions.baseline`, and a task that
// has become more than 5 % dearer fails. (callgrind, which would do the same, has no pidfd_open in valgrind 3.19.)
//
// Each side is stopped while the other is counted, so that nothing depends on which of them is quicker: the host has
// all answers before it, delivers them, and submits as many tasks; the worker has all requests before it.
//
//   bench_instructions            compares
//   bench_instructions --write    writes the baseline of this compiler and Boost
//
// Where the machine is very quiet or very busy, tasks go to the ring or to the queue that do not otherwise, and a count
// is up to 15 % lower than usual. The baseline is to be a usual one.
//
// The baseline is of one compiler, Boost and processor type; with others there is nothing to compare, exit code 77.
#include <bulkhead/local_executor.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/version.hpp>

#include <fmt/format.h>

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace {

// While it is set, time stands still for all threads: a step takes some ten thousand times as long as an instruction,
// and the library would find that the worker does not get on.
std::atomic<bool> time_stands_still{false};
timespec time_then{};

}  // namespace

// In place of the C library's.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  if (time_stands_still.load(std::memory_order_relaxed) && clock == CLOCK_MONOTONIC) {
    *time = time_then;
    return 0;
  }
  return static_cast<int>(::syscall(SYS_clock_gettime, clock, time));
}

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;

namespace {

// Four of the batches in which requests are shown to a worker.
constexpr std::size_t kInFlight = 64;
// Enough for all paths to be warm: the average run time is known, and memory is in the recycling allocator.
constexpr std::uint64_t kWarmUp = 20'000;
// Few, since a step takes 20 µs on a virtual machine, and a task of the host's a thousand steps.
constexpr std::uint64_t kCountedInWorker = kInFlight / 2;
// So often; the fewest instructions count: a symbol may be looked up for the first time.
constexpr unsigned kTimes = 4;
// Some per cent are the compiler's mood after unrelated changes; more is something that somebody has added.
constexpr double kTolerance = 0.05;
// Beyond a minute something is stuck.
constexpr unsigned kMostSeconds = 60;
constexpr int kNothingToCompare = 77;

// Shared between all processes.
struct Board {
  std::atomic<std::uint64_t> runs;
  std::atomic<int> worker;
};
Board* board = nullptr;

int add_one(int value) {
  board->runs.fetch_add(1, std::memory_order_relaxed);
  return value + 1;
}

// It fits into a slot, and does not fit into the string object itself.
const std::string kText(100, 'x');

std::string same(const std::string& text) {
  board->runs.fetch_add(1, std::memory_order_relaxed);
  return text;
}

[[noreturn]] void fail(const std::string& what);

// Who steps and who is stepped take turns, which is ten times quicker on one CPU than on two.
int this_cpu() {
  static const int cpu = ::sched_getcpu();
  return cpu;
}
void stay_on_this_cpu(pid_t thread) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<unsigned>(this_cpu()), &one);
  if (::sched_setaffinity(thread, sizeof(one), &one) != 0) fail("cannot stay on one CPU");
}

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

// ---------------------------------------------------------------------------------------------------------------------
// The program that is counted.

enum class Form { callback, coroutine, text };

// A task of this form; coroutines have their own loop. The handler is told whether it failed.
template <class Handler>
void submit(LocalExecutor& executor, Form form, Handler handler) {
  if (form == Form::text) {
    executor.async_submit(bulkhead::call(same, kText), [handler](std::exception_ptr error, const std::string&) mutable {
      handler(std::move(error));
    });
  } else {
    executor.async_submit(bulkhead::call(add_one, 1),
                          [handler](std::exception_ptr error, int) mutable { handler(std::move(error)); });
  }
}

// Keeps so many tasks under way.
class Load {
 public:
  Load(asio::io_context& context, LocalExecutor& executor, Form form)
      : context_(context), executor_(executor), form_(form) {
    for (std::size_t i = 0; i < kInFlight; ++i) {
      if (form_ != Form::coroutine) {
        next();
      } else {
        asio::co_spawn(context_, loop(), [](std::exception_ptr error) {
          if (error) std::rethrow_exception(error);
        });
      }
    }
  }

  // Until so many more have ended, each of which is followed by another.
  void run(std::uint64_t tasks) {
    const std::uint64_t end = over_ + tasks;
    while (over_ < end) context_.run_one();
  }
  // No task is followed by another any more.
  void end() {
    going_on_ = false;
    context_.run();
  }

 private:
  void next() {
    if (!going_on_) return;
    submit(executor_, form_, [this](const std::exception_ptr& error) {
      if (error) std::rethrow_exception(error);
      ++over_;
      next();
    });
  }
  asio::awaitable<void> loop() {
    while (going_on_) {
      co_await executor_.submit(add_one, 1);
      ++over_;
    }
  }

  asio::io_context& context_;
  LocalExecutor& executor_;
  Form form_;
  bool going_on_ = true;
  std::uint64_t over_ = 0;
};

enum class Side { host, worker };

void be_counted(Form form, Side side) {
  bulkhead::start_fork_server();
  asio::io_context context(1);
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.spin = bulkhead::SpinPolicy::never;            // it is seen to be done when it sleeps
  options.sandbox.non_dumpable = bulkhead::Demand::off;  // it is traced
  LocalExecutor executor(context.get_executor(), options);
  Load load(context, executor, form);
  load.run(kWarmUp);
  board->worker = executor.worker_pids().at(0);
  if (side == Side::host) {
    stay_on_this_cpu(0);
    for (unsigned i = 0; i < kTimes; ++i) {
      ::raise(SIGUSR1);  // until the worker has answered all, and is stopped
      ::clock_gettime(CLOCK_MONOTONIC, &time_then);
      time_stands_still = true;
      load.run(kInFlight);
      time_stands_still = false;
      ::raise(SIGUSR2);
    }
  } else {
    // The worker sleeps then; it is stopped, gets them all at once, and is stepped through them.
    load.end();
    std::size_t over = 0;
    ::raise(SIGUSR1);
    for (std::size_t i = 0; i < kInFlight; ++i) {
      submit(executor, form, [&](const std::exception_ptr& error) {
        if (error) std::rethrow_exception(error);
        ++over;
      });
    }
    ::raise(SIGUSR2);
    context.restart();
    context.run();
    if (over != kInFlight) throw std::runtime_error("a task was lost");
    return;
  }
  load.end();
}

// ---------------------------------------------------------------------------------------------------------------------
// Who counts.

// Waits until the process stops, and gives the signal.
int wait_for_stop(pid_t pid) {
  int status = 0;
  pid_t which;
  do {
    which = ::waitpid(pid, &status, __WALL);
  } while (which < 0 && errno == EINTR);
  if (which != pid) fail("cannot wait for a process");
  if (!WIFSTOPPED(status)) throw std::runtime_error("a process that is counted has ended");
  return WSTOPSIG(status);
}

void step(pid_t pid) {
  if (::ptrace(PTRACE_SINGLESTEP, pid, nullptr, nullptr) != 0) fail("cannot step");
}

void run_until(pid_t pid, int wanted) {
  int passed_on = 0;
  for (int signal = 0; signal != wanted; passed_on = signal == SIGSTOP ? 0 : signal) {
    if (::ptrace(PTRACE_CONT, pid, nullptr, passed_on) != 0) fail("cannot go on");
    signal = wait_for_stop(pid);
  }
}

void let_go(pid_t pid) {
  if (::ptrace(PTRACE_DETACH, pid, nullptr, nullptr) != 0) fail("cannot let go of a process");
}

// S: it sleeps; T: it is stopped.
char state_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const auto name_end = text.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= text.size()) throw std::runtime_error("a worker has ended");
  return text[name_end + 2];
}
// The time limit is that of the whole program.
void wait_for_state(pid_t pid, char state) {
  while (state_of(pid) != state) ::sched_yield();
}

double count_host(pid_t pid) {
  std::uint64_t fewest = UINT64_MAX;
  for (unsigned i = 0; i < kTimes; ++i) {
    run_until(pid, SIGUSR1);
    // It sleeps when it has answered all that it was sent.
    const pid_t worker = board->worker;
    wait_for_state(worker, 'S');
    if (::kill(worker, SIGSTOP) != 0) fail("cannot stop a worker");
    wait_for_state(worker, 'T');
    std::uint64_t steps = 0;
    for (int signal = 0; signal != SIGUSR2; ++steps) {
      step(pid);
      signal = wait_for_stop(pid);
    }
    if (::kill(worker, SIGCONT) != 0) fail("cannot have a worker go on");
    fewest = std::min(fewest, steps);
  }
  let_go(pid);
  return static_cast<double>(fewest) / static_cast<double>(kInFlight);
}

double count_worker(pid_t host) {
  run_until(host, SIGUSR1);
  const pid_t worker = board->worker;
  if (::ptrace(PTRACE_SEIZE, worker, nullptr, PTRACE_O_EXITKILL) != 0) fail("cannot trace a worker");
  if (::ptrace(PTRACE_INTERRUPT, worker, nullptr, nullptr) != 0) fail("cannot stop a worker");
  wait_for_stop(worker);
  stay_on_this_cpu(worker);
  run_until(host, SIGUSR2);
  const std::uint64_t first = board->runs;
  const auto step_until = [&](std::uint64_t runs) {
    std::uint64_t steps = 0;
    for (; board->runs < runs; ++steps) {
      step(worker);
      wait_for_stop(worker);
    }
    return steps;
  };
  step_until(first + 2);  // it is in the middle of them
  const std::uint64_t steps = step_until(first + 2 + kCountedInWorker);
  let_go(worker);
  let_go(host);
  return static_cast<double>(steps) / static_cast<double>(kCountedInWorker);
}

double count(Form form, Side side) {
  board->runs = 0;
  std::cout.flush();
  const pid_t pid = ::fork();
  if (pid < 0) fail("cannot fork");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::alarm(kMostSeconds);
    cpu_set_t all;
    std::memset(&all, 0xff, sizeof(all));
    ::sched_setaffinity(0, sizeof(all), &all);
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);  // until the first run_until
    int code = 1;
    try {
      be_counted(form, side);
      code = 0;
    } catch (const std::exception& error) {
      std::cerr << "the counted program: " << error.what() << '\n';
    }
    std::exit(code);
  }
  wait_for_stop(pid);
  const double steps = side == Side::host ? count_host(pid) : count_worker(pid);
  int status = 0;
  if (::waitpid(pid, &status, __WALL) != pid || status != 0) throw std::runtime_error("the counted program failed");
  return steps;
}

// ---------------------------------------------------------------------------------------------------------------------
// The baseline: lines of a key, which are the compiler and so on, and below it lines of a number and what it counts.

std::string key() {
#if defined(__clang__)
  const std::string compiler = fmt::format("clang {}", __clang_major__);
#else
  const std::string compiler = fmt::format("gcc {}", __GNUC__);
#endif
#if defined(__x86_64__)
  const std::string_view machine = "x86_64";
#elif defined(__aarch64__)
  const std::string_view machine = "aarch64";
#else
  const std::string_view machine = "other";
#endif
#if defined(__OPTIMIZE__) && defined(NDEBUG)
  const std::string_view build = "release";
#else
  const std::string_view build = "debug";
#endif
  return fmt::format("{}, Boost {}.{}, {}, {}", compiler, BOOST_VERSION / 100'000, BOOST_VERSION / 100 % 1000, machine,
                     build);
}

using Baseline = std::map<std::string, std::map<std::string, double>>;  // counts by key

Baseline read_baseline(const std::string& path) {
  Baseline baseline;
  std::ifstream file(path);
  std::string line;
  std::string current;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    if (line[0] != ' ') {
      current = line;
      continue;
    }
    std::istringstream words(line);
    double number = 0;
    std::string what;
    if (!(words >> number) || !std::getline(words >> std::ws, what)) throw std::runtime_error("cannot read: " + line);
    baseline[current][what] = number;
  }
  return baseline;
}

void write_baseline(const std::string& path, const Baseline& baseline) {
  std::ofstream file(path);
  file << "# Instructions per task, written by bench_instructions --write.\n";
  for (const auto& [name, counts] : baseline) {
    file << name << '\n';
    for (const auto& [what, number] : counts) file << fmt::format("  {:.1f} {}\n", number, what);
  }
  if (!file.flush()) fail("cannot write " + path);
}

int compare_or_write(bool write) {
  const std::string path = BENCH_DIRECTORY "/instructions.baseline";
  Baseline baseline = read_baseline(path);
  auto& known = baseline[key()];
  const std::map<std::string, double> counted = {
      {"host, callbacks", count(Form::callback, Side::host)}, {"host, coroutines", count(Form::coroutine, Side::host)},
      {"host, text", count(Form::text, Side::host)},          {"worker", count(Form::callback, Side::worker)},
      {"worker, text", count(Form::text, Side::worker)},
  };
  std::cout << fmt::format("Instructions per task, {} in flight; {}\n", kInFlight, key());
  bool dearer = false;
  bool missing = false;
  for (const auto& [what, number] : counted) {
    const auto found = known.find(what);
    std::string note = "no baseline";
    if (found == known.end()) {
      if (!known.empty()) missing = true;
    } else {
      const double change = number / found->second - 1;
      note = fmt::format("baseline {:.1f}, {:+.1f} %", found->second, 100 * change);
      if (change > kTolerance) {
        dearer = true;
        note += ": TOO MANY";
      }
    }
    std::cout << fmt::format("  {:8.1f}  {:20}{}\n", number, what, note);
  }
  if (write) {
    known = counted;
    write_baseline(path, baseline);
    std::cout << "written to " << path << '\n';
    return 0;
  }
  if (known.empty()) return kNothingToCompare;
  if (dearer) {
    std::cout << "A task has become more than 5 % dearer. Find out what was added; if it is worth it, write a new "
                 "baseline: bench_instructions --write\n";
  }
  if (missing) std::cout << "Something has no baseline yet: bench_instructions --write\n";
  return dearer || missing ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("cannot map memory");
    board = ::new (memory) Board{};
    ::alarm(3 * kMostSeconds);
    stay_on_this_cpu(0);
    const std::vector<std::string_view> arguments(argv + 1, argv + argc);
    const bool write = std::find(arguments.begin(), arguments.end(), "--write") != arguments.end();
    return compare_or_write(write);
  } catch (const std::exception& error) {
    std::cerr << "bench_instructions: " << error.what() << '\n';
    return 1;
  }
}
