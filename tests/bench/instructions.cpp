// SPDX-License-Identifier: BSL-1.0
// How many instructions a task costs the host's thread and the worker, counted one by one under ptrace. Unlike times,
// they are the same on every run and every machine: so they are compared with `instructions.baseline`, and a task that
// has become more than 5 % dearer fails. (callgrind, which would do the same, has no pidfd_open in valgrind 3.19.)
//
//   bench_instructions            compares
//   bench_instructions --write    writes the baseline of this compiler and Boost
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
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
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
#include <vector>

namespace asio = boost::asio;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;

namespace {

// Four of the batches in which requests are shown to a worker.
constexpr std::size_t kInFlight = 64;
// Enough for all paths to be warm: the average run time is known, and memory is in the recycling allocator.
constexpr std::uint64_t kWarmUp = 20'000;
// Of the host's tasks, in the middle of many: those in flight, once around. Of the worker's: so many as are surely in
// its ring. Few, since a step takes 20 µs on a virtual machine, and a task of the host's a thousand steps.
constexpr std::uint64_t kCountedInHost = kInFlight;
constexpr std::uint64_t kCountedInWorker = kInFlight / 2;
// So often; the fewest instructions count. A timer may expire in between, or a symbol be looked up for the first time.
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

enum class Form { callback, coroutine };

// Keeps so many tasks under way, and before the last ones tells with signals when one more window begins or ends.
class Load {
 public:
  Load(asio::io_context& context, LocalExecutor& executor, Form form, unsigned windows)
      : context_(context), executor_(executor), form_(form), windows_(windows) {}

  void run(std::uint64_t tasks) {
    left_ = tasks;
    running_ = kInFlight;
    context_.restart();
    const auto work = asio::make_work_guard(context_);
    for (std::size_t i = 0; i < kInFlight; ++i) {
      if (form_ == Form::callback) {
        next();
      } else {
        asio::co_spawn(context_, loop(), [](std::exception_ptr error) {
          if (error) std::rethrow_exception(error);
        });
      }
    }
    context_.run();
  }

 private:
  bool another() {
    if (left_ == 0) {
      if (--running_ == 0) context_.stop();
      return false;
    }
    if (left_ % kCountedInHost == 0 && left_ / kCountedInHost <= windows_) ::raise(SIGUSR1);
    --left_;
    return true;
  }
  void next() {
    if (!another()) return;
    executor_.async_submit(bulkhead::call(add_one, 1), [this](std::exception_ptr error, int) {
      if (error) std::rethrow_exception(error);
      next();
    });
  }
  asio::awaitable<void> loop() {
    while (another()) co_await executor_.submit(add_one, 1);
  }

  asio::io_context& context_;
  LocalExecutor& executor_;
  Form form_;
  unsigned windows_;
  std::uint64_t left_ = 0;
  std::size_t running_ = 0;
};

enum class Side { host, worker };

void be_counted(Form form, Side side) {
  bulkhead::start_fork_server();
  asio::io_context context(1);
  LocalExecutorOptions options;
  options.max_workers = 1;
  options.spin = bulkhead::SpinPolicy::never;  // how often who looks depends on the time
  LocalExecutor executor(context.get_executor(), options);
  if (side == Side::host) stay_on_this_cpu(0);
  Load(context, executor, form, side == Side::host ? kTimes + 1 : 0).run(kWarmUp);
  if (side == Side::host) return;
  board->worker = executor.worker_pids().at(0);
  // The worker is stopped in between, gets them all at once, and is stepped through them.
  ::raise(SIGUSR1);
  std::size_t over = 0;
  for (std::size_t i = 0; i < kInFlight; ++i) {
    executor.async_submit(bulkhead::call(add_one, 1), [&](std::exception_ptr error, int) {
      if (error) std::rethrow_exception(error);
      ++over;
    });
  }
  ::raise(SIGUSR2);
  context.restart();
  context.run();
  if (over != kInFlight) throw std::runtime_error("a task was lost");
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

double count_host(pid_t pid) {
  run_until(pid, SIGUSR1);
  std::uint64_t fewest = UINT64_MAX;
  for (unsigned i = 0; i < kTimes; ++i) {
    std::uint64_t steps = 0;
    for (int signal = 0; signal != SIGUSR1; ++steps) {
      step(pid);
      signal = wait_for_stop(pid);
    }
    fewest = std::min(fewest, steps);
  }
  let_go(pid);
  return static_cast<double>(fewest) / static_cast<double>(kCountedInHost);
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
      {"host, callbacks", count(Form::callback, Side::host)},
      {"host, coroutines", count(Form::coroutine, Side::host)},
      {"worker", count(Form::callback, Side::worker)},
  };
  std::cout << fmt::format("Instructions per task, {} in flight; {}\n", kInFlight, key());
  bool dearer = false;
  for (const auto& [what, number] : counted) {
    const auto found = known.find(what);
    std::string note = "no baseline";
    if (found != known.end()) {
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
  return dearer ? 1 : 0;
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
