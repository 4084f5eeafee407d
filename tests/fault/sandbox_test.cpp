// SPDX-License-Identifier: BSL-1.0
// What tasks can reach from inside the sandbox of their worker, and what they find of the tasks before them.
#include <bulkhead/hybrid_executor.hpp>
#include <bulkhead/inline_executor.hpp>
#include <bulkhead/io_executor.hpp>
#include <bulkhead/local_executor.hpp>
#include <bulkhead/sandbox.hpp>
#include <bulkhead/thread_executor.hpp>

#include "fault/sandbox/attacks.hpp"
#include "fault/sandbox/expected.hpp"
#include "fault/sandbox/matrix.hpp"
#include "support/catch.hpp"
#include "support/check_part.hpp"
#include "support/executors.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::CaptureOutput;
using bulkhead::Demand;
using bulkhead::Isolation;
using bulkhead::kSandboxItems;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::PolicyViolationError;
using bulkhead::SandboxItem;
using bulkhead::SandboxPolicy;
using bulkhead::SandboxReport;
using bulkhead::TaskOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::check_part;
using bulkhead::test::descendants;
using bulkhead::test::error_as;
using bulkhead::test::holds;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::pid_here;
using bulkhead::test::poll_until;
using bulkhead::test::Report;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::shared_object;
using bulkhead::test::twice;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

constexpr unsigned kNobody = 65'534;

// What functions in workers share with the test.
struct Notes {
  std::atomic<int> preload{-1};      // errno of what it tried, or 0
  std::atomic<int> initializer{-1};  // likewise
  std::atomic<int> children{0};      // that a fork bomb has made
};
Notes& notes = shared_object<Notes>();

// ---------------------------------------------------------------------------------------------------------------------
// What runs in workers. None of it asserts: results, deaths and the notes tell.

int try_to_open(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) return errno;
  ::close(fd);
  return 0;
}
int try_a_socket() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  ::close(fd);
  return 0;
}
void note_file_in_preload() { notes.preload = try_to_open("/etc/passwd", O_RDONLY); }
void note_file_in_initializer() { notes.initializer = try_to_open("/etc/passwd", O_RDONLY); }
[[maybe_unused]] void note_socket_in_initializer() { notes.initializer = try_a_socket(); }

[[maybe_unused]] long call_by_number(long number) { return ::syscall(number, 0, 0, 0, 0, 0, 0) < 0 ? errno : 0; }
[[maybe_unused]] int trace_somebody() { return ::ptrace(PTRACE_SEIZE, 1, nullptr, nullptr) == 0 ? 0 : errno; }

[[maybe_unused]] std::size_t allocate(std::size_t size) {
  std::vector<char> memory(size, 'x');
  return static_cast<std::size_t>(std::count(memory.begin(), memory.end(), 'x'));
}
int write_at(off_t offset) {
  ::signal(SIGXFSZ, SIG_IGN);
  const int fd = ::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) return -errno;
  const int error = ::pwrite(fd, "x", 1, offset) == 1 ? 0 : errno;
  ::close(fd);
  return error;
}
// The highest number that one gets.
int highest_descriptor() {
  std::vector<int> opened;
  for (int fd = 0; opened.size() < 10'000 && (fd = ::dup(STDIN_FILENO)) >= 0;) opened.push_back(fd);
  int highest = -1;
  for (const int fd : opened) {
    highest = std::max(highest, fd);
    ::close(fd);
  }
  return highest;
}
int spin_for_ever() {
  for (std::atomic<unsigned> i{0};;) ++i;
}
int fork_once() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  if (child < 0) return errno;
  ::waitpid(child, nullptr, 0);
  return 0;
}

// Bounded: it is to show what becomes of its children, and not what they can do.
constexpr int kMostChildren = 20;
int fork_many_times() {
  while (notes.children.fetch_add(1) < kMostChildren) {
    const pid_t child = ::fork();
    if (child < 0) break;
    if (child > 0) continue;
    for (;;) ::pause();
  }
  for (;;) ::pause();
}

[[maybe_unused]] int sum_on_threads(int threads) {
  std::vector<std::thread> all;
  std::atomic<int> sum{0};
  for (int i = 1; i <= threads; ++i) all.emplace_back([&sum, i] { sum += i; });
  for (std::thread& one : all) one.join();
  return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Pools.

// So small that two areas of this size are nothing beside any limit.
constexpr std::size_t kMessage = std::size_t{1} << 20;

LocalExecutorOptions with_policy(const SandboxPolicy& policy, unsigned number = 1) {
  LocalExecutorOptions options = workers(number);
  options.sandbox = policy;
  options.max_message_size = kMessage;
  options.capture_output = CaptureOutput::discard;
  return options;
}

[[maybe_unused]] std::vector<SandboxPolicy> all_profiles() {
  return {SandboxPolicy::trusted(), SandboxPolicy::contained(), SandboxPolicy::untrusted()};
}

// What an executor's constructor throws; empty if nothing.
std::exception_ptr construction_failure(asio::io_context& context, const LocalExecutorOptions& options) {
  try {
    const LocalExecutor pool(context.get_executor(), options);
  } catch (const std::exception&) {
    return std::current_exception();
  }
  return nullptr;
}

// An item that cannot be had here: required, there is no executor; attempted, it works and the report says why not.
void expect_unavailable(Report& report, SandboxItem item, const std::function<void(SandboxPolicy&, Demand)>& ask) {
  const std::string name(bulkhead::name_of(item));
  asio::io_context context;
  SandboxPolicy policy;
  ask(policy, Demand::require);
  const auto error = error_as<WorkerStartError>(construction_failure(context, with_policy(policy)));
  if (report.expect(error.has_value(), name + " is required, and there is no executor")) {
    report.expect(error->reason().find(name) != std::string::npos, "the error names the item: " + error->reason());
    report.expect(error->reason().size() > name.size() + 10, "and the reason: " + error->reason());
  }
  ask(policy, Demand::attempt);
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  report.expect(run(context, pool.submit(twice, 21)) == 42, name + " is attempted, and the executor works");
  const SandboxReport::Entry entry = pool.sandbox_report().entry(item);
  report.expect(entry.state == SandboxReport::State::unavailable, name + " is reported as unavailable");
  report.expect(entry.demand == Demand::attempt && entry.item == item, name + " is reported as asked for");
  report.expect(!entry.detail.empty(), "with a reason");
}

// For Catch, which parts do not have.
void check_unavailable(SandboxItem item, const std::function<void(SandboxPolicy&, Demand)>& ask) {
  Report report;
  expect_unavailable(report, item, ask);
  CHECK(report.exit_code() == 0);
}

// A directory with a file, gone at the end.
class Directory {
 public:
  Directory() {
    std::string name = "/tmp/bulkhead-paths-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no directory");
    path_ = name;
    ::chmod(path_.c_str(), 0777);  // also for a worker of another user
    std::ofstream(path_ + "/file") << "text";
    ::chmod((path_ + "/file").c_str(), 0666);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() {
    std::error_code ignored;  // the test has said what it had to
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string file() const { return path_ + "/file"; }

 private:
  std::string path_;
};

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The attack matrix.

// Their runtimes need calls that the filters forbid, and address space that RLIMIT_AS does not give.
#if !WITH_SANITIZER

TEST_CASE("64, 65, 66: every attack in every profile ends as the table says, for a host of this user", "[fault]") {
  check_part("matrix");
}

TEST_CASE("64, 65, 66: every attack in every profile ends as the table says, for a host of an ordinary user",
          "[fault]") {
  if (::geteuid() != 0) return;  // that was the one before
  check_part("matrix_as_nobody");
}

TEST_CASE("65: a forbidden system call is a PolicyViolationError with its name, and the next task works", "[fault]") {
  const SandboxPolicy policy = GENERATE(SandboxPolicy::contained(), SandboxPolicy::untrusted());
  CAPTURE(policy.profile);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  for (int i = 0; i < 3; ++i) {
    Outcome<> outcome;
    pool.async_submit(bulkhead::call(trace_somebody), outcome.handler());
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    const auto violation = error_as<PolicyViolationError>(outcome.error);
    INFO(message(outcome.error));
    REQUIRE(violation);
    CHECK(violation->system_call() == "ptrace");
    CHECK_THAT(violation->what(), ContainsSubstring("ptrace"));
    CHECK(run(context, pool.submit(twice, 21)) == 42);
  }
  const auto metrics = pool.metrics();
  CHECK(adds_up(metrics));
  CHECK(metrics.failed == 3);
  CHECK(metrics.completed == 3);
  CHECK(metrics.workers_crashed == 3);
}

TEST_CASE("65: what is allowed by name is let through, and only that", "[fault]") {
  SandboxPolicy policy = SandboxPolicy::untrusted();
  policy.never_reuse_workers = false;
  policy.network_namespace = Demand::off;
  policy.also_allowed = {"socket"};
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  CHECK(run(context, pool.submit(try_a_socket)) == 0);
  CHECK(holds<PolicyViolationError>(bulkhead::test::failure(context, pool.submit(trace_somebody))));
  CHECK(run(context, pool.submit(try_a_socket)) == 0);
}

TEST_CASE("69: clone3, rseq and futex_waitv work or are missing, and end nobody; threads work in every profile",
          "[fault]") {
  for (const SandboxPolicy& policy : all_profiles()) {
    CAPTURE(policy.profile);
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), with_policy(policy));
#ifdef SYS_futex_waitv
    const std::vector<long> calls{SYS_clone3, SYS_rseq, SYS_futex_waitv};
#else
    const std::vector<long> calls{SYS_clone3, SYS_rseq};
#endif
    for (const long number : calls) {
      CAPTURE(number);
      // Its arguments make no sense, so an errno is what works looks like.
      CHECK(run(context, pool.submit(call_by_number, number)) != 0);
    }
    // As what comes after this kernel.
    CHECK(run(context, pool.submit(call_by_number, 100'000L)) == ENOSYS);
    CHECK(run(context, pool.submit(sum_on_threads, 8)) == 36);
    CHECK(pool.metrics().workers_crashed == 0);
  }
}

TEST_CASE("the initializer may still open a socket under untrusted, and its tasks may not", "[fault]") {
  notes.initializer = -1;
  SandboxPolicy policy = SandboxPolicy::untrusted();
  policy.network_namespace = Demand::off;
  LocalExecutorOptions options = with_policy(policy);
  options.initializer = note_socket_in_initializer;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(try_a_socket)) == EACCES);
  CHECK(notes.initializer == 0);
}

TEST_CASE("61: memory beyond the policy's limit is std::bad_alloc, and the worker goes on", "[fault]") {
  SandboxPolicy policy;
  policy.memory_limit = Demand::require;
  policy.memory = std::uint64_t{256} << 20;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  const int worker = run(context, pool.submit(pid_here));
  CHECK(run(context, pool.submit(allocate, std::size_t{16} << 20)) == std::size_t{16} << 20);
  for (int i = 0; i < 3; ++i) {
    const auto error = bulkhead::test::failure(context, pool.submit(allocate, std::size_t{1} << 30));
    INFO(message(error));
    CHECK(holds<std::bad_alloc>(error));
  }
  CHECK(run(context, pool.submit(pid_here)) == worker);
  CHECK(pool.metrics().workers_crashed == 0);
}

#endif  // !WITH_SANITIZER

// ---------------------------------------------------------------------------------------------------------------------
// Items of a policy.

TEST_CASE("64: an item that cannot be had is an error where it is required, and reported where it is attempted",
          "[fault]") {
  check_unavailable(SandboxItem::cgroup, [](SandboxPolicy& policy, Demand demand) {
    policy.cgroup = demand;
    policy.cgroup_path = "/sys/fs/cgroup/there/is/no/such/group";
    policy.cgroup_processes = 100;
  });
  check_unavailable(SandboxItem::file_access, [](SandboxPolicy& policy, Demand demand) {
    policy.file_access = demand;
    policy.readable_paths = {"/there/is/no/such/path"};
  });
  check_part("ordinary_user_cannot_drop");
  check_part("without_landlock_ENOSYS");
  check_part("without_landlock_EPERM");
  check_part("without_unshare");
  check_part("without_namespaces_as_nobody");
}

// What the kernel lets a process do beyond its user's rights, as five masks.
std::map<std::string, std::string> capabilities_of(int pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::map<std::string, std::string> masks;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("Cap")) masks[line.substr(0, line.find(':'))] = line.substr(line.find('\t') + 1);
  }
  return masks;
}

TEST_CASE("66: a worker under contained or untrusted has no capabilities, and can get none, whoever the host is",
          "[fault]") {
  check_part("capabilities");
  if (::geteuid() == 0) check_part("capabilities_as_nobody");
}

TEST_CASE("64: a policy that allows a system call of an unknown name is refused with std::invalid_argument",
          "[fault]") {
  SandboxPolicy policy = SandboxPolicy::contained();
  policy.also_allowed = {"socket", "no_such_call"};
  asio::io_context context;
  const auto error = construction_failure(context, with_policy(policy));
  CHECK(holds<std::invalid_argument>(error));
  CHECK_THAT(message(error), ContainsSubstring("no_such_call"));
}

TEST_CASE("64: the report of a sandbox has every item, in order, and tells them all", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(SandboxPolicy::trusted()));
  const SandboxReport report = pool.sandbox_report();
  CHECK(report.profile == "trusted");
  REQUIRE(report.entries.size() == kSandboxItems);
  const std::string text = report.to_string();
  for (std::size_t i = 0; i < kSandboxItems; ++i) {
    const auto item = static_cast<SandboxItem>(i);
    CHECK(report.entry(item).item == item);
    CHECK_THAT(text, ContainsSubstring(std::string(bulkhead::name_of(item))));
  }
  CHECK(report.in_force(SandboxItem::descriptors));
  CHECK(report.in_force(SandboxItem::no_new_privileges));
  CHECK(report.in_force(SandboxItem::non_dumpable));
  CHECK(report.in_force(SandboxItem::core_limit));
  CHECK(report.entry(SandboxItem::file_access).state == SandboxReport::State::off);
  CHECK(report.entry(SandboxItem::system_calls).state == SandboxReport::State::off);

  LocalExecutor in_bypass(context.get_executor(), workers(1, true));
  const SandboxReport none = in_bypass.sandbox_report();
  REQUIRE(none.entries.size() == kSandboxItems);
  for (const auto& entry : none.entries) CHECK(entry.state != SandboxReport::State::in_force);
}

TEST_CASE("63: files grow no larger and descriptors no more than the policy allows", "[fault]") {
  asio::io_context context;
  SandboxPolicy policy;
  policy.file_size_limit = Demand::require;
  policy.file_size = 4096;
  policy.open_files_limit = Demand::require;
  policy.open_files = 32;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  CHECK(run(context, pool.submit(write_at, off_t{4095})) == 0);
  CHECK(run(context, pool.submit(write_at, off_t{4096})) == EFBIG);
  const int highest = run(context, pool.submit(highest_descriptor));
  CHECK(highest > 2);
  CHECK(highest < 32);
  CHECK(run(context, pool.submit(write_at, off_t{4095})) == 0);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("63: a worker that has had its CPU time is killed, and the next one has its own", "[fault]") {
  asio::io_context context;
  SandboxPolicy policy;
  policy.cpu_limit = Demand::require;
  policy.cpu_seconds = 1;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  const auto error = bulkhead::test::failure(context, pool.submit(spin_for_ever));
  const auto crash = error_as<WorkerCrashedError>(error);
  INFO(message(error));
  REQUIRE(crash);
  CHECK((crash->signal() == SIGKILL || crash->signal() == SIGXCPU));
  CHECK(run(context, pool.submit(twice, 21)) == 42);
}

TEST_CASE("62: a worker beyond the policy's number of processes starts none", "[fault]") {
  // Not for root, to whom the kernel does not apply it.
  check_part("process_limit_as_nobody");
}

TEST_CASE("63: a bomb of threads under untrusted ends at the policy's limit, and the host still starts threads",
          "[fault]") {
  // Not for root, to whom the kernel does not apply it.
  check_part("thread_bomb_as_nobody");
}

TEST_CASE("62: what a fork bomb has made ends with its worker and its executor", "[fault]") {
  notes.children = 0;
  const std::size_t before = descendants().size();
  {
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), with_policy(SandboxPolicy::trusted()));
    Outcome<> outcome;
    pool.async_submit(TaskOptions().timeout(2s), bulkhead::call(fork_many_times), outcome.handler());
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    CHECK(holds<bulkhead::TaskTimeoutError>(outcome.error));
    CHECK(notes.children > kMostChildren);
    CHECK(run(context, pool.submit(twice, 21)) == 42);
  }
  CHECK(poll_until([&] { return descendants().size() <= before; }, kGone));
}

namespace {

// Whether files can be kept from workers here; a kernel without Landlock cannot.
bool has_file_access() {
  asio::io_context context;
  SandboxPolicy policy;
  policy.file_access = Demand::attempt;
  const LocalExecutor pool(context.get_executor(), with_policy(policy));
  return pool.sandbox_report().in_force(SandboxItem::file_access);
}

}  // namespace

TEST_CASE("64: readable and writable paths are reachable, each in its way, and nothing beside them", "[fault]") {
  if (!has_file_access()) return;
  const Directory readable;
  const Directory writable;
  const Directory other;
  SandboxPolicy policy;
  policy.file_access = Demand::require;
  policy.readable_paths = {readable.path()};
  policy.writable_paths = {writable.path()};
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  const auto tried = [&](const std::string& path, int flags) {
    return run(context, pool.submit(try_to_open, path, flags));
  };
  CHECK(tried(readable.file(), O_RDONLY) == 0);
  CHECK(tried(readable.file(), O_RDWR) == EACCES);
  CHECK(tried(readable.path() + "/new", O_WRONLY | O_CREAT) == EACCES);
  CHECK(tried(writable.file(), O_RDONLY) == 0);
  CHECK(tried(writable.file(), O_RDWR | O_TRUNC) == 0);
  CHECK(tried(writable.path() + "/new", O_WRONLY | O_CREAT) == 0);
  CHECK(tried(readable.path() + "/../" + other.path().substr(5) + "/file", O_RDONLY) == EACCES);
  CHECK(tried(other.file(), O_RDONLY) == EACCES);
  CHECK(tried(other.path() + "/new", O_WRONLY | O_CREAT) == EACCES);
  CHECK(tried("/etc/passwd", O_RDONLY) == EACCES);
  CHECK(std::filesystem::exists(writable.path() + "/new"));
  CHECK_FALSE(std::filesystem::exists(other.path() + "/new"));
}

TEST_CASE("64: preload may open any file, and the initializer only what the policy lets its tasks open", "[fault]") {
  if (!has_file_access()) return;
  notes.preload = -1;
  notes.initializer = -1;
  SandboxPolicy policy;
  policy.file_access = Demand::require;
  LocalExecutorOptions options = with_policy(policy);
  options.preload = note_file_in_preload;
  options.initializer = note_file_in_initializer;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(try_to_open, std::string("/etc/passwd"), O_RDONLY)) == EACCES);
  CHECK(notes.preload == 0);
  CHECK(notes.initializer == EACCES);
}

// ---------------------------------------------------------------------------------------------------------------------
// What tasks find of those before them.

namespace {

std::string planted;
std::string* planted_on_heap = nullptr;
int counted = 0;
std::string last_key;

int plant(const std::string& secret) {
  planted = secret;
  planted_on_heap = new std::string(secret);
  ::setenv("BULKHEAD_SANDBOX_SECRET", secret.c_str(), 1);
  return ++counted;
}
// Where it is found.
std::set<std::string> find_planted(const std::string& secret) {
  std::set<std::string> found;
  if (planted == secret) found.insert("global");
  if (planted_on_heap != nullptr && *planted_on_heap == secret) found.insert("heap");
  const char* const variable = std::getenv("BULKHEAD_SANDBOX_SECRET");
  if (variable != nullptr && variable == secret) found.insert("environment");
  return found;
}

struct Visit {
  int pid = 0;
  int number = 0;          // of this worker's tasks, from 1
  std::string key_before;  // of the task that it ran before
};
Visit visit(const std::string& key) {
  Visit result{bulkhead::test::pid_in_host(), ++counted, last_key};
  last_key = key;
  return result;
}

TaskOptions isolated(Isolation isolation) { return TaskOptions().isolation(std::move(isolation)); }

}  // namespace

TEST_CASE("67: what a task has planted is found by the next one in a worker that is reused, and in no fresh one",
          "[fault]") {
  const std::string secret = "the secret of task 1";
  const std::set<std::string> everywhere{"environment", "global", "heap"};
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(plant, secret)) == 1);
  CHECK(run(context, pool.submit(find_planted, secret)) == everywhere);
  TaskOptions fresh = isolated(Isolation::fresh());
  CHECK(run(context, pool.submit(fresh, find_planted, secret)).empty());
  CHECK(run(context, pool.submit(fresh, plant, secret)) == 1);
  CHECK(run(context, pool.submit(fresh, find_planted, secret)).empty());
  // Nor by one that would have taken any.
  CHECK(run(context, pool.submit(fresh, plant, secret)) == 1);
  CHECK(run(context, pool.submit(find_planted, secret)).empty());
  const auto metrics = pool.metrics();
  CHECK(adds_up(metrics));
  CHECK(metrics.completed == 7);
  CHECK(metrics.workers_crashed == 0);
}

TEST_CASE("67: a policy that never reuses workers runs plain tasks in fresh ones, and refuses to reuse", "[fault]") {
  SandboxPolicy policy;
  policy.never_reuse_workers = true;
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(policy, 2));
  std::set<int> pids;
  constexpr int kTasks = 10;
  for (int i = 0; i < kTasks; ++i) {
    const Visit seen = run(context, pool.submit(visit, std::string("any")));
    CHECK(seen.number == 1);
    CHECK(seen.key_before.empty());
    pids.insert(seen.pid);
  }
  CHECK(pids.size() == kTasks);
  TaskOptions reuse = isolated(Isolation::reuse());
  CHECK(holds<std::invalid_argument>(bulkhead::test::failure(context, pool.submit(reuse, twice, 21))));
  TaskOptions of_key = isolated(Isolation::per_key("one"));
  CHECK(run(context, pool.submit(of_key, visit, std::string("one"))).number == 1);
  const auto metrics = pool.metrics();
  CHECK(adds_up(metrics));
  CHECK(metrics.workers_crashed == 0);
}

TEST_CASE("67: tasks of one key share a worker that no other task has, with any number of workers", "[fault]") {
  const unsigned number = GENERATE(1U, 2U, 4U);
  const int keys = GENERATE(2, 5, 20);
  CAPTURE(number, keys);
  constexpr std::size_t kTasks = 200;
  asio::io_context context;
  LocalExecutorOptions options = workers(number);
  options.max_pending = kTasks + 10;
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<Visit>, kTasks> outcomes;
  std::array<std::string, kTasks> key_of;
  for (std::size_t i = 0; i < kTasks; ++i) {
    // Plain ones among them, which may not come between, either.
    const bool plain = i % 7 == 3;
    key_of[i] = plain ? "" : "key " + std::to_string(i * 31 % static_cast<std::size_t>(keys));
    TaskOptions task = plain ? TaskOptions() : isolated(Isolation::per_key(key_of[i]));
    task.priority(static_cast<int>(i % 3));
    pool.async_submit(std::move(task), bulkhead::call(visit, key_of[i]), outcomes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  std::map<int, std::set<std::string>> keys_of_worker;
  for (std::size_t i = 0; i < kTasks; ++i) {
    INFO(message(outcomes[i].error));
    REQUIRE_FALSE(outcomes[i].error);
    const Visit& seen = *outcomes[i].value;
    CHECK((seen.number == 1 || seen.key_before == key_of[i]));
    keys_of_worker[seen.pid].insert(key_of[i]);
  }
  for (const auto& [pid, its_keys] : keys_of_worker) {
    CAPTURE(pid);
    CHECK(its_keys.size() == 1);
  }
  // One key after the other: its worker is there, and its global goes on.
  TaskOptions of_key = isolated(Isolation::per_key("the last"));
  const Visit first = run(context, pool.submit(of_key, visit, std::string("the last")));
  const Visit second = run(context, pool.submit(of_key, visit, std::string("the last")));
  CHECK(first.number == 1);
  CHECK(second.number == 2);
  CHECK(second.pid == first.pid);
  const auto metrics = pool.metrics();
  CHECK(adds_up(metrics));
  CHECK(metrics.completed == kTasks + 2);
  CHECK(metrics.workers_crashed == 0);
  REQUIRE(run_until(context, [&] { return whole(pool); }));
}

std::size_t size_of(const std::string& text) { return text.size(); }

TEST_CASE("67: a fresh task whose arguments take more memory than its worker has got runs in its first worker",
          "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const std::string large(std::size_t{4} << 20, 'x');
  for (int i = 0; i < 3; ++i)
    CHECK(run(context, pool.submit(isolated(Isolation::fresh()), size_of, large)) == large.size());
  // One for each task, and the one that waits for the next.
  CHECK(pool.metrics().workers_started <= 4 + 1);
}

TEST_CASE("67: large tasks of two keys in turns take a worker each, and not one for each growth", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const std::string large(std::size_t{4} << 20, 'x');
  constexpr std::size_t kTasks = 8;
  std::array<Outcome<std::size_t>, kTasks> outcomes;
  for (std::size_t i = 0; i < kTasks; ++i) {
    pool.async_submit(isolated(Isolation::per_key(i % 2 == 0 ? "one" : "other")), bulkhead::call(size_of, large),
                      outcomes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == large.size());
  CHECK(pool.metrics().workers_started <= kTasks + 2);
}

TEST_CASE("67: map gives each item a worker of its own where tasks are fresh", "[fault]") {
  asio::io_context context;
  SandboxPolicy policy;
  policy.never_reuse_workers = GENERATE(false, true);
  LocalExecutor pool(context.get_executor(), with_policy(policy, 2));
  const TaskOptions task = policy.never_reuse_workers ? TaskOptions() : isolated(Isolation::fresh());
  const std::vector<std::string> items(20, "item");
  const std::vector<Visit> visits = run(context, pool.map(task, visit, items));
  for (const Visit& seen : visits) CHECK(seen.number == 1);
}

// Parts of its memory that it shares with others and could write, by the names that the kernel gives them.
std::vector<std::string> writable_shared_memory() {
  std::ifstream file("/proc/self/smaps");
  std::vector<std::string> names;
  std::string line;
  std::string name;
  bool shared = false;
  while (std::getline(file, line)) {
    // "7f00-7f10 r--s 00000000 00:01 4  /memfd:name (deleted)", and further down "VmFlags: rd mr mw me"
    const auto space = line.find(' ');
    if (line.find('-') < space && space + 4 < line.size()) {
      shared = line[space + 4] == 's';
      name = line.substr(line.rfind(' ', line.rfind(' ') - 1) + 1);
      if (const auto slash = line.find('/'); slash != std::string::npos) name = line.substr(slash);
    } else if (shared && line.starts_with("VmFlags:") && line.find(" mw") != std::string::npos) {
      names.push_back(name);
    }
  }
  return names;
}

TEST_CASE("66: a worker shares no memory that it could make writable but its own response area", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  std::vector<std::string> names = run(context, pool.submit(writable_shared_memory));
  // What this program shares with its processes itself has no name of the library's.
  std::erase_if(names, [](const std::string& name) { return name.find("bulkhead") == std::string::npos; });
  CAPTURE(names);
  REQUIRE(names.size() == 1);
  CHECK(names.front().find("bulkhead-response") != std::string::npos);
}

TEST_CASE("64: what could be had when the executor was made no worker goes without later", "[fault]") {
  const std::filesystem::path directory =
      std::filesystem::temp_directory_path() / ("bulkhead-" + std::to_string(::getpid()));
  std::filesystem::create_directory(directory);
  SandboxPolicy policy;
  policy.file_access = Demand::attempt;
  policy.readable_paths = {directory.string()};
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(policy, 1));
  const bool had = pool.sandbox_report().in_force(SandboxItem::file_access);
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  std::filesystem::remove(directory);
  const auto error = bulkhead::test::failure(context, pool.submit(isolated(Isolation::fresh()), twice, 21));
  INFO(message(error));
  // Where the machine has none, none was promised.
  CHECK(holds<WorkerStartError>(error) == had);
}

TEST_CASE("67: a key's crash costs its own worker, and the key gets another", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  TaskOptions one = isolated(Isolation::per_key("one"));
  TaskOptions other = isolated(Isolation::per_key("other"));
  const Visit before = run(context, pool.submit(other, visit, std::string("other")));
  CHECK(run(context, pool.submit(one, visit, std::string("one"))).number == 1);
  CHECK(
      holds<WorkerCrashedError>(bulkhead::test::failure(context, pool.submit(one, bulkhead::test::die, int{SIGSEGV}))));
  const Visit after = run(context, pool.submit(one, visit, std::string("one")));
  CHECK(after.number == 1);
  CHECK(after.key_before.empty());
  const Visit unhurt = run(context, pool.submit(other, visit, std::string("other")));
  CHECK(unhurt.pid == before.pid);
  CHECK(unhurt.number == 2);
  CHECK(adds_up(pool));
}

TEST_CASE("67: a stopped worker keeps a key's task no longer than any other, and the task is not run a second time",
          "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto key = isolated(Isolation::per_key("one"));
  const int worker = run(context, pool.submit(key, pid_here));
  REQUIRE(pool.worker_pids().size() == 1);
  const bulkhead::test::Process stopped(pool.worker_pids().front());
  stopped.signal(SIGSTOP);
  Outcome<> outcome;
  pool.async_submit(key, bulkhead::call(pid_here), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  INFO(message(outcome.error));
  CHECK(holds<WorkerCrashedError>(outcome.error));
  CHECK_THAT(message(outcome.error), ContainsSubstring("stopped"));
  CHECK(run(context, pool.submit(key, pid_here)) != worker);
  CHECK(adds_up(pool));
}

namespace {

// Something that takes the host longer to encode than its task may run.
struct Slow {};
int take_slow(const Slow&) { return 42; }

// Something that the program encodes itself: it has the worker that the task is to go to killed, and waits for its end.
struct Deadly {
  LocalExecutor* pool = nullptr;
  std::shared_ptr<bool> armed;  // for once
};
int take(const Deadly&) { return 42; }

}  // namespace

template <>
struct bulkhead::codec<Slow> {
  static void encode(Encoder& encoder, const Slow&) {
    // Not a pause between two things, but the time itself.
    const auto end = std::chrono::steady_clock::now() + 1100ms;
    while (std::chrono::steady_clock::now() < end) {
    }
    bulkhead::encode(encoder, true);
  }
  static Slow decode(Decoder& decoder) {
    bulkhead::decode<bool>(decoder);
    return {};
  }
};

template <>
struct bulkhead::codec<Deadly> {
  static void encode(Encoder& encoder, const Deadly& value) {
    if (std::exchange(*value.armed, false)) {
      const auto before = value.pool->worker_pids();
      for (const int pid : before) ::kill(pid, SIGKILL);
      const auto replaced = [&] {
        const auto now = value.pool->worker_pids();
        return std::none_of(before.begin(), before.end(),
                            [&](int pid) { return std::find(now.begin(), now.end(), pid) != now.end(); });
      };
      if (!poll_until(replaced, kGone)) throw std::runtime_error("a killed worker stays");
    }
    bulkhead::encode(encoder, true);
  }
  static Deadly decode(Decoder& decoder) {
    bulkhead::decode<bool>(decoder);
    return {};
  }
};

TEST_CASE("67: a worker that dies while a fresh task is being encoded takes nothing with it, and the pool stays whole",
          "[fault]") {
  const unsigned least = GENERATE(0U, 2U);
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.min_workers = least;
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 4; ++i) {
    Outcome<> outcome;
    run(context, pool.submit(isolated(Isolation::fresh()), twice, 1));
    const Deadly deadly{&pool, std::make_shared<bool>(true)};
    pool.async_submit(isolated(Isolation::fresh()), bulkhead::call(take, deadly), outcome.handler());
    REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
    INFO(message(outcome.error));
    CHECK(outcome.value == 42);
  }
  for (int i = 0; i < 4; ++i) CHECK(run(context, pool.submit(isolated(Isolation::fresh()), twice, 21)) == 42);
  if (least > 0) CHECK(run_until(context, [&] { return whole(pool); }));
  CHECK(adds_up(pool));
}

TEST_CASE("67: a time limit does not run while the host encodes, with every isolation", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  for (const Isolation& isolation : {Isolation::reuse(), Isolation::fresh(), Isolation::per_key("one")}) {
    for (int i = 0; i < 2; ++i) {
      CHECK(run(context, pool.submit(isolated(isolation).timeout(1s), take_slow, Slow())) == 42);
    }
  }
}

// Another thread has what the worker needs to leave, and never gives it back.
int hold_up_the_end(int value) {
  std::atomic<bool> held{false};
  std::thread([&held] {
    ::flockfile(stdout);
    held = true;
    for (;;) ::pause();
  }).detach();
  while (!held) std::this_thread::yield();
  return twice(value);
}

TEST_CASE("67: a worker whose task holds up its end is killed, and keeps no place from those who come after",
          "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  constexpr int kTasks = 8;
  std::array<Outcome<>, kTasks> outcomes;
  for (int i = 0; i < kTasks; ++i) {
    pool.async_submit(isolated(Isolation::fresh()), bulkhead::call(hold_up_the_end, i),
                      outcomes[static_cast<std::size_t>(i)].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (int i = 0; i < kTasks; ++i) CHECK(outcomes[static_cast<std::size_t>(i)].value == 2 * i);
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  // Each has ended by force, which is what it wanted, and no fault of the task's.
  CHECK(pool.metrics().completed == kTasks + 1);
  CHECK(pool.metrics().failed == 0);
  CHECK(adds_up(pool));
}

TEST_CASE("67: executors without workers refuse every isolation but reuse with std::invalid_argument", "[fault]") {
  for (const char* const type : {"thread", "inline", "io"}) {
    CAPTURE(type);
    asio::io_context context;
    const auto executor = bulkhead::test::make(type, context);
    std::vector<std::exception_ptr> errors;
    for (const Isolation& isolation : {Isolation::fresh(), Isolation::per_key("key")}) {
      Outcome<> outcome;
      // Also where it throws at once.
      try {
        executor->async_submit(isolated(isolation), bulkhead::call(twice, 21), outcome.handler());
        REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
        errors.push_back(outcome.error);
      } catch (const std::invalid_argument&) {
        errors.push_back(std::current_exception());
      }
    }
    for (const auto& error : errors) {
      INFO(message(error));
      CHECK(holds<std::invalid_argument>(error));
    }
    Outcome<> plain;
    executor->async_submit(isolated(Isolation::reuse()), bulkhead::call(twice, 21), plain.handler());
    REQUIRE(run_until(context, [&] { return plain.calls > 0; }));
    CHECK(plain.value == 42);
    CHECK(adds_up(*executor));
  }
}

TEST_CASE("67: a HybridExecutor passes isolation on, and puts no executor behind another that isolates less",
          "[fault]") {
  asio::io_context context;
  SandboxPolicy policy;
  policy.never_reuse_workers = true;
  const auto strict = std::make_shared<LocalExecutor>(context.get_executor(), with_policy(policy, 2));
  const auto plain = std::make_shared<LocalExecutor>(context.get_executor(), with_policy(SandboxPolicy(), 2));
  const auto threads = std::make_shared<bulkhead::ThreadExecutor>(context.get_executor());
  {
    bulkhead::HybridExecutor hybrid(context.get_executor(), {strict});
    std::vector<std::string> items(20, "item");
    for (const Visit& one : run(context, hybrid.map(visit, items))) CHECK(one.number == 1);
    for (int i = 0; i < 3; ++i) CHECK(run(context, hybrid.submit(visit, std::string("plain"))).number == 1);
    CHECK(holds<std::invalid_argument>(
        bulkhead::test::failure(context, hybrid.submit(isolated(Isolation::reuse()), twice, 1))));
  }
  {
    // The second would share workers, if it was not told that these tasks do not.
    bulkhead::HybridExecutor hybrid(context.get_executor(), {plain, strict});
    for (int i = 0; i < 3; ++i) CHECK(run(context, hybrid.submit(visit, std::string("plain"))).number == 1);
  }
  {
    bulkhead::HybridExecutor hybrid(context.get_executor(), {plain, threads});
    CHECK(run(context, hybrid.submit(visit, std::string("a"))).key_before.empty());
    const Visit one = run(context, hybrid.submit(isolated(Isolation::per_key("one")), visit, std::string("b")));
    CHECK(one.key_before.empty());
    const Visit two = run(context, hybrid.submit(isolated(Isolation::per_key("one")), visit, std::string("c")));
    CHECK(two.key_before == "b");
  }
  {
    // Executors that do not isolate are passed over, before others and after them.
    bulkhead::HybridExecutor hybrid(context.get_executor(), {threads, plain});
    CHECK(run(context, hybrid.submit(isolated(Isolation::fresh()), visit, std::string("d"))).number == 1);
    const auto full = std::make_shared<LocalExecutor>(context.get_executor(), [] {
      LocalExecutorOptions options = with_policy(SandboxPolicy(), 1);
      options.max_pending = 1;
      return options;
    }());
    bulkhead::HybridExecutor overflows(context.get_executor(), {full, threads});
    Outcome<> first;
    full->async_submit(bulkhead::call(twice, 21), first.handler());
    const auto error = bulkhead::test::failure(context, overflows.submit(isolated(Isolation::fresh()), twice, 1));
    CHECK(holds<bulkhead::ExecutorOverloadError>(error));
    REQUIRE(run_until(context, [&] { return first.calls > 0; }));
    const auto mixed = std::make_shared<bulkhead::HybridExecutor>(
        context.get_executor(), std::vector<std::shared_ptr<bulkhead::BaseExecutor>>{plain, threads});
    CHECK_THROWS_AS(bulkhead::HybridExecutor(context.get_executor(), {strict, mixed}), std::invalid_argument);
  }
  try {
    const bulkhead::HybridExecutor hybrid(context.get_executor(), {strict, threads});
    FAIL("hostile tasks would run in the host");
  } catch (const std::invalid_argument& error) {
    CHECK_THAT(error.what(), ContainsSubstring("never_reuse_workers"));
    CHECK_THAT(error.what(), ContainsSubstring(threads->name()));
  }
}

TEST_CASE("67: a key is 1 to 200 characters", "[fault]") {
  CHECK_THROWS_AS(Isolation::per_key(""), std::invalid_argument);
  CHECK_THROWS_AS(Isolation::per_key(std::string(201, 'k')), std::invalid_argument);
  CHECK(Isolation::per_key(std::string(200, 'k')).key().size() == 200);
}

// ---------------------------------------------------------------------------------------------------------------------
// Programs of their own: this one, called with the name of a part.

namespace {

int ordinary_user_cannot_drop() {
  Report report;
  expect_unavailable(report, SandboxItem::drop_user,
                     [](SandboxPolicy& policy, Demand demand) { policy.drop_user = demand; });
  return report.exit_code();
}

int host_without_landlock() {
  Report report;
  expect_unavailable(report, SandboxItem::file_access,
                     [](SandboxPolicy& policy, Demand demand) { policy.file_access = demand; });
  expect_unavailable(report, SandboxItem::network_access,
                     [](SandboxPolicy& policy, Demand demand) { policy.network_access = demand; });
  asio::io_context context;
  const auto error = construction_failure(context, with_policy(SandboxPolicy::contained()));
  report.expect(holds<WorkerStartError>(error), "contained is not had without files being kept: " + message(error));
  return report.exit_code();
}

// All but the PID namespace, which the fork server has got before.
void expect_no_namespaces(Report& report) {
  expect_unavailable(report, SandboxItem::user_namespace,
                     [](SandboxPolicy& policy, Demand demand) { policy.user_namespace = demand; });
  expect_unavailable(report, SandboxItem::network_namespace,
                     [](SandboxPolicy& policy, Demand demand) { policy.network_namespace = demand; });
  expect_unavailable(report, SandboxItem::ipc_namespace,
                     [](SandboxPolicy& policy, Demand demand) { policy.ipc_namespace = demand; });
  expect_unavailable(report, SandboxItem::mount_namespace,
                     [](SandboxPolicy& policy, Demand demand) { policy.mount_namespace = demand; });
}

int host_without_unshare() {
  Report report;
  expect_no_namespaces(report);
  return report.exit_code();
}

// On a machine that has namespaces, and gives none.
int host_without_namespaces() {
  Report report;
  expect_no_namespaces(report);
  expect_unavailable(report, SandboxItem::pid_namespace,
                     [](SandboxPolicy& policy, Demand demand) { policy.pid_namespace = demand; });
#if !WITH_SANITIZER
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), with_policy(SandboxPolicy::untrusted()));
  report.expect(run(context, pool.submit(twice, 21)) == 42, "untrusted does without them");
#endif
  return report.exit_code();
}

int host_of_workers_without_capabilities() {
  Report report;
  std::vector<SandboxPolicy> policies{SandboxPolicy::contained(), SandboxPolicy::untrusted()};
  policies.push_back(SandboxPolicy::contained());
  policies.back().profile = "contained, in a user namespace";
  policies.back().user_namespace = Demand::attempt;
  for (SandboxPolicy& policy : policies) {
    policy.never_reuse_workers = false;
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), with_policy(policy));
    // The filter is there, and with it all else, once a task has run.
    report.expect(run(context, pool.submit(twice, 21)) == 42, policy.profile + " works");
    // Who has no privileges cannot drop those that it could never get, and no_new_privs keeps them from it.
    const bool could_drop = ::geteuid() == 0 || pool.sandbox_report().in_force(SandboxItem::user_namespace);
    for (const int pid : pool.worker_pids()) {
      const auto masks = capabilities_of(pid);
      report.expect(masks.size() == 5, "the kernel tells five masks of capabilities");
      for (const auto& [name, mask] : masks) {
        const bool none = mask.find_first_not_of('0') == std::string::npos;
        if (name != "CapBnd" || could_drop) report.expect(none, policy.profile + ": " + name + " is " + mask);
      }
    }
  }
  return report.exit_code();
}

int host_with_a_process_limit() {
  Report report;
  asio::io_context context;
  SandboxPolicy policy;
  policy.process_limit = Demand::require;
  policy.processes = 1;
  LocalExecutor pool(context.get_executor(), with_policy(policy));
  report.expect(run(context, pool.submit(fork_once)) == EAGAIN, "a worker may not fork");
  report.expect(run(context, pool.submit(twice, 21)) == 42, "and works");
  report.expect(pool.metrics().workers_crashed == 0, "no worker has crashed");
  return report.exit_code();
}

[[maybe_unused]] int start_threads(int most) {
  // Small stacks, so that no other limit comes first.
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, 64 * 1024);
  int started = 0;
  pthread_t thread{};
  const auto wait = [](void*) -> void* {
    for (;;) ::pause();
  };
  while (started < most && ::pthread_create(&thread, &attributes, wait, nullptr) == 0) ++started;
  return started;
}

// Less than the profiles' own limit, and room for all that its user runs beside it.
constexpr int kThreadsOfHost = 1000;

int host_of_a_thread_bomb() {
  Report report;
#if !WITH_SANITIZER
  for (const SandboxPolicy& policy : {SandboxPolicy::contained(), SandboxPolicy::untrusted()}) {
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), with_policy(policy, 2));
    report.expect(pool.sandbox_report().in_force(SandboxItem::process_limit), policy.profile + ": it is in force");
    const int started = run(context, pool.submit(isolated(Isolation::fresh()), start_threads, 2 * kThreadsOfHost));
    report.expect(started <= kThreadsOfHost / 2, policy.profile + ": " + std::to_string(started) + " threads");
    try {
      std::thread([] {}).join();
    } catch (const std::system_error& error) {
      report.expect(false, policy.profile + ": the host starts no thread: " + error.what());
    }
    report.expect(run(context, pool.submit(isolated(Isolation::fresh()), twice, 21)) == 42, "the pool goes on");
  }
#endif
  return report.exit_code();
}

// As on a kernel that does not have it, or forbids it.
void refuse_call(long number, int error) {
  std::array<sock_filter, 4> program{
      sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      sock_filter{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, static_cast<std::uint32_t>(number)},
      sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)},
      sock_filter{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
    throw std::runtime_error("cannot refuse a system call");
  }
}

void become_nobody() {
  if (::geteuid() != 0) return;
  if (::setresgid(kNobody, kNobody, kNobody) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0) {
    throw std::runtime_error("cannot become nobody");
  }
  ::prctl(PR_SET_DUMPABLE, 1);  // else its files in /proc are root's
}

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444  // the same on all machines, since Linux 5.13
#endif

// As a machine that forbids them to everybody. Only within a namespace of its own, so that no one else suffers from it.
void forbid_namespaces() {
  if (::unshare(CLONE_NEWUSER) != 0) return;  // it does
  for (const char* const kind : {"user", "pid", "net", "ipc", "mnt"}) {
    std::ofstream file("/proc/sys/user/max_" + std::string(kind) + "_namespaces");
    if (!(file << 0 << std::flush)) throw std::runtime_error("cannot forbid namespaces");
  }
}

// What must be so before the fork server starts.
void prepare(std::string_view part) {
  if (part.ends_with("as_nobody") || part == "ordinary_user_cannot_drop") become_nobody();
  if (part == "without_landlock_ENOSYS") refuse_call(SYS_landlock_create_ruleset, ENOSYS);
  if (part == "without_landlock_EPERM") refuse_call(SYS_landlock_create_ruleset, EPERM);
  if (part == "without_unshare") refuse_call(SYS_unshare, EPERM);
  if (part == "without_namespaces_as_nobody") forbid_namespaces();
  if (part == "thread_bomb_as_nobody") {
    const rlimit limit{kThreadsOfHost, kThreadsOfHost};
    if (::setrlimit(RLIMIT_NPROC, &limit) != 0) throw std::runtime_error("cannot limit its own threads");
  }
}

int run_part(std::string_view part) {
  if (part.starts_with("matrix")) return bulkhead::test::sandbox::run_matrix();
  if (part == "ordinary_user_cannot_drop") return ordinary_user_cannot_drop();
  if (part.starts_with("without_landlock")) return host_without_landlock();
  if (part == "without_unshare") return host_without_unshare();
  if (part == "without_namespaces_as_nobody") return host_without_namespaces();
  if (part.starts_with("capabilities")) return host_of_workers_without_capabilities();
  if (part == "process_limit_as_nobody") return host_with_a_process_limit();
  if (part == "thread_bomb_as_nobody") return host_of_a_thread_bomb();
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  prepare(part);
  bulkhead::start_fork_server();
  return part.empty() ? run_tests(argc, argv) : run_part(part);
}
