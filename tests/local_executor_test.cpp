// SPDX-License-Identifier: BSL-1.0
// LocalExecutor over real worker processes and, where that makes sense, again in bypass mode.
#include <bulkhead/exceptions.hpp>
#include <bulkhead/local_executor.hpp>

#include "process/posix.hpp"
#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/system/system_error.hpp>

#include <fmt/format.h>

#include <dlfcn.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <any>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <regex>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <typeindex>
#include <typeinfo>
#include <utility>
#include <variant>
#include <vector>

namespace asio = boost::asio;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOverloadError;
using bulkhead::FunctionUnavailableError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::Metrics;
using bulkhead::OverloadPolicy;
using bulkhead::RemoteTaskError;
using bulkhead::SerializationError;
using bulkhead::ShutdownOptions;
using bulkhead::TaskCancelledError;
using bulkhead::TaskOptions;
using bulkhead::TaskTimeoutError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::cancelled_stage;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::Gate;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::message;
using bulkhead::test::Outcome;
using bulkhead::test::poll_until;
using bulkhead::test::Process;
using bulkhead::test::processes_of;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::shared_object;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

namespace {

// What tasks in all processes share with the test.
struct Board {
  Gate gate;
  std::atomic<int> preloads{0};
  std::atomic<int> initializers{0};
  std::atomic<int> failures_left{0};  // of initializers
  std::atomic<std::size_t> written{0};
  std::array<std::atomic<int>, 64> order{};
};

Board& board = shared_object<Board>();

// Every test begins with it.
void reset_board() {
  board.gate.reset();
  board.preloads = 0;
  board.initializers = 0;
  board.failures_left = 0;
  board.written = 0;
}

std::vector<int> order() {
  std::vector<int> numbers;
  for (std::size_t i = 0; i < board.written; ++i) numbers.push_back(board.order[i]);
  return numbers;
}

// ---------------------------------------------------------------------------------------------------------------------
// What runs in workers. None of it asserts: results and the board tell.

int wait_at_gate(int value) {
  board.gate.wait();
  return value;
}
// Only the first one's value.
void note_first(int value) {
  if (board.written++ == 0) board.order[0] = value;
}
void note(int value) { board.order[board.written++ % board.order.size()] = value; }
int twice(int value) { return 2 * value; }
void nothing() {}
int refuse(int value) { throw std::invalid_argument(fmt::format("refused {}", value)); }
int process_id() { return ::getpid(); }
int sleep_for(int milliseconds) {
  ::poll(nullptr, 0, milliseconds);
  return milliseconds;
}
int die(int signal) { return ::raise(signal); }
std::unique_ptr<int> boxed(std::unique_ptr<int> value) { return std::make_unique<int>(*value + 1); }
std::vector<std::uint8_t> reversed(std::vector<std::uint8_t> bytes) {
  std::reverse(bytes.begin(), bytes.end());
  return bytes;
}
std::vector<std::uint8_t> sized(std::size_t size) { return std::vector<std::uint8_t>(size, 7); }
std::size_t size_of(std::span<const std::uint8_t> bytes) { return bytes.size(); }

int host_only = 0;
int change_global(int value) { return std::exchange(host_only, value); }

struct Person {
  std::string name;
  int age = 0;
  std::vector<std::string> nicknames;
  std::optional<std::pair<int, double>> extra;
};
Person older(Person person, int years) {
  person.age += years;
  person.nicknames.push_back("old " + person.name);
  person.extra = {years, 0.5};
  return person;
}

struct Counter {
  int count = 0;
  int add(int more) { return count += more; }
  int get() const { return count; }
};

struct Shape {
  virtual ~Shape() = default;
  virtual int corners() const { return 0; }
};
struct Square : Shape {
  int size = 0;
  int corners() const override { return 4 * size; }
  template <class Archive>
  void serialize(Archive& archive) {
    archive(size);
  }
};

struct Adder {
  int summand = 0;
  std::string suffix;
  std::string operator()(int value) const { return fmt::format("{}{}", value + summand, suffix); }
};

// The line of /proc/self/maps in which the address lies.
std::string mapping_of(const void* address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
    const auto place = reinterpret_cast<std::uintptr_t>(address);
    if (place >= begin && place < end) return line;
  }
  return "";
}
std::string place_of_text(std::string_view text) { return mapping_of(text.data()); }
std::string place_of_numbers(std::span<const std::uint32_t> numbers) { return mapping_of(numbers.data()); }
std::uint64_t sum_views(std::string_view text, std::span<const std::uint32_t> numbers,
                        const std::vector<std::uint32_t>& owned, std::span<const double> empty) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(numbers.data()) % alignof(std::uint32_t) == 0;
  if (!aligned || !empty.empty()) return 0;
  std::uint64_t sum = text.size();
  for (const auto number : numbers) sum += number;
  for (const auto number : owned) sum += number;
  return sum;
}

std::vector<int> loaded;
void load(int first) {
  ++board.preloads;
  loaded.resize(100);
  std::iota(loaded.begin(), loaded.end(), first);
}
void load_nothing() { ++board.preloads; }
int loaded_at(std::size_t index) { return loaded.at(index); }
std::string initialized_as;
void initialize(const std::string& text) {
  ++board.initializers;
  initialized_as += text;
}
std::string initialized() { return initialized_as; }
void fail_to_start(const std::string& text) {
  ++board.initializers;
  throw std::runtime_error(text);
}
void fail_some_times() {
  ++board.initializers;
  if (board.failures_left > 0) {
    --board.failures_left;
    throw std::runtime_error("not yet");
  }
}
void abort_at_start() {
  ++board.initializers;
  std::abort();
}
void exit_at_start() {
  ++board.initializers;
  ::_exit(9);
}

void say(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}
void murmur(const std::string& text) { std::printf("%s\n", text.c_str()); }

// ---------------------------------------------------------------------------------------------------------------------
// Exceptions.

class DecodeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class QuotaError : public std::exception {
 public:
  QuotaError() = default;
  QuotaError(int used_, int limit_) : used(used_), limit(limit_) { describe(); }
  const char* what() const noexcept override { return text_.c_str(); }
  template <class Archive>
  void serialize(Archive& archive) {
    archive(used, limit);
    describe();
  }

  int used = 0;
  int limit = 0;

 private:
  void describe() { text_ = fmt::format("{} of {} used", used, limit); }
  std::string text_;
};

class UnknownError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
class UnknownChild : public DecodeError {
 public:
  using DecodeError::DecodeError;
};
struct NotAnException {
  int code = 3;
};

void throw_nested(bool unknown) {
  try {
    try {
      throw std::system_error(ENOENT, std::generic_category(), "open");
    } catch (...) {
      std::throw_with_nested(DecodeError("no picture"));
    }
  } catch (...) {
    if (unknown) std::throw_with_nested(UnknownError("no page"));
    std::throw_with_nested(std::runtime_error("no page"));
  }
}

// What a standard exception is thrown as, by number.
constexpr int kStandardExceptions = 25;
void throw_standard(int which) {
  const std::string text = "the reason: 100 % ünïcode";
  switch (which) {
    case 0:
      throw std::exception();
    case 1:
      throw std::bad_alloc();
    case 2:
      throw std::bad_array_new_length();
    case 3:
      throw std::bad_cast();
    case 4:
      throw std::bad_typeid();
    case 5:
      throw std::bad_function_call();
    case 6:
      throw std::bad_weak_ptr();
    case 7:
      throw std::bad_optional_access();
    case 8:
      throw std::bad_variant_access();
    case 9:
      throw std::bad_any_cast();
    case 10:
      throw std::logic_error(text);
    case 11:
      throw std::domain_error(text);
    case 12:
      throw std::invalid_argument(text);
    case 13:
      throw std::length_error(text);
    case 14:
      throw std::out_of_range(text);
    case 15:
      throw std::runtime_error(text);
    case 16:
      throw std::range_error(text);
    case 17:
      throw std::overflow_error(text);
    case 18:
      throw std::underflow_error(text);
    case 19:
      throw std::system_error(EACCES, std::system_category(), text);
    case 20:
      throw std::system_error(std::make_error_code(std::errc::timed_out));
    case 21:
      throw std::filesystem::filesystem_error(text, "/a/b", "/c d", std::make_error_code(std::errc::file_exists));
    case 22:
      throw std::regex_error(std::regex_constants::error_paren);
    case 23:
      throw std::future_error(std::future_errc::broken_promise);
    case 24:
      throw std::ios_base::failure(text, std::make_error_code(std::io_errc::stream));
    default:
      break;
  }
}

}  // namespace

BULKHEAD_REGISTER_EXCEPTION(DecodeError)
BULKHEAD_REGISTER_EXCEPTION(QuotaError)

namespace {

// Values whose codec fails, as the number says.
struct Stubborn {
  int mode = 0;
};
enum StubbornMode { willing = 0, refuses_encoding = 1, refuses_decoding = 2, throws_encoding = 3, changes_size = 4 };

Stubborn stubborn(int mode) { return Stubborn{mode}; }
int mode_of(const Stubborn& value) { return value.mode; }
std::size_t stubborn_encodings = 0;

}  // namespace

template <>
struct bulkhead::codec<Stubborn> {
  static void encode(Encoder& encoder, const Stubborn& value) {
    if (value.mode == refuses_encoding) {
      throw SerializationError(SerializationError::Part::value, "Stubborn", "it does not want to");
    }
    if (value.mode == throws_encoding) throw std::domain_error("a defect in the codec");
    encoder.write_value(value.mode);
    if (value.mode == changes_size) bulkhead::encode(encoder, std::string(1000 * ++stubborn_encodings, 'x'));
  }
  static Stubborn decode(Decoder& decoder) {
    const int mode = decoder.read_value<int>();
    if (mode == refuses_decoding) {
      throw SerializationError(SerializationError::Part::value, "Stubborn", "it does not want back");
    }
    return Stubborn{mode};
  }
};

namespace {

// A number as it lies in memory, but that its codec wants to know how the executor is, and asks it from another thread:
// who carries the value must not hold the executor's mutex.
enum class Curious : int { value = 7 };
Curious same_curious(Curious value) { return value; }

struct Asked {
  LocalExecutor* executor = nullptr;  // null in the workers, which are older
  int times = 0;
  int in_vain = 0;
  std::vector<std::thread> threads;

  void ask() {
    if (executor == nullptr) return;
    ++times;
    auto answered = std::make_shared<std::promise<void>>();
    auto answer = answered->get_future();
    threads.emplace_back([this, answered] {
      static_cast<void>(executor->metrics());
      answered->set_value();
    });
    if (answer.wait_for(std::chrono::seconds(10)) != std::future_status::ready) ++in_vain;
  }
  ~Asked() {
    for (std::thread& thread : threads) thread.join();
  }
};
Asked* asked = nullptr;

}  // namespace

template <>
struct bulkhead::codec<Curious> {
  static void encode(Encoder& encoder, Curious value) {
    if (asked != nullptr) asked->ask();
    encoder.write_value(static_cast<int>(value));
  }
  static Curious decode(Decoder& decoder) {
    if (asked != nullptr) asked->ask();
    return static_cast<Curious>(decoder.read_value<int>());
  }
};

namespace {

// A callable whose data cannot be encoded.
struct StubbornCallable {
  Stubborn data;
  int operator()() const { return data.mode; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Helpers of the tests.

bool all_gone(const std::vector<Process>& processes) {
  return std::all_of(processes.begin(), processes.end(), [](const Process& process) { return process.gone(); });
}

// Sets an environment variable, and puts back what was there.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    if (value != nullptr) {
      ::setenv(name, value, 1);
    } else {
      ::unsetenv(name);
    }
  }
  ~Environment() {
    if (before_) {
      ::setenv(name_, before_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

// A pool whose only worker waits at the gate, if it has workers. In bypass nothing runs until the context does.
struct Occupied {
  Occupied(asio::io_context& context, LocalExecutor& pool) {
    if (pool.bypass()) return;
    pool.async_submit(TaskOptions().name("gate"), bulkhead::call(wait_at_gate, 1), gate.handler());
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  }
  Outcome<int> gate;
};

constexpr const char* kBypassVariable = "BULKHEAD_EXECUTOR_BYPASS";

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// What an executor is.

TEST_CASE("A LocalExecutor with default options has one worker per CPU and zero metrics", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options;
  options.bypass = bypass;
  CHECK(options.name == "default");
  CHECK(options.max_pending == 100);
  CHECK(options.overload == OverloadPolicy::reject);
  LocalExecutor pool(context.get_executor(), options);
  CHECK(pool.name() == "default");
  CHECK(pool.bypass() == bypass);
  CHECK(pool.get_executor() == context.get_executor());
  CHECK(pool.options().max_workers >= 1);
  CHECK(pool.options().max_workers <= 1024);
  const Metrics m = pool.metrics();
  CHECK(m.name == "default");
  CHECK(m.mode == (bypass ? "bypass" : "process"));
  CHECK(m.max_pending == 100);
  CHECK(m.submitted + m.completed + m.failed + m.rejected + m.cancelled + m.timed_out == 0);
  CHECK(m.pending + m.running + m.waiting == 0);
  CHECK(m.average_run_time == 0ns);
  CHECK(m.average_queue_wait == 0ns);
}

TEST_CASE("Options that make no sense are refused with the option's name and range", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  const auto refused = [&](const auto& change) -> std::string {
    LocalExecutorOptions options = workers(1, bypass);
    change(options);
    try {
      LocalExecutor pool(context.get_executor(), options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refused([](auto&) {}) == "");
  CHECK_THAT(refused([](auto& o) { o.max_pending = 0; }), ContainsSubstring("'max_pending'"));
  CHECK_THAT(refused([](auto& o) { o.name = ""; }), ContainsSubstring("'name'") && ContainsSubstring("1 to 200"));
  CHECK_THAT(refused([](auto& o) { o.name.assign(201, 'n'); }), ContainsSubstring("'name'"));
  CHECK(refused([](auto& o) { o.name.assign(200, 'n'); }) == "");
  CHECK_THAT(refused([](auto& o) { o.max_workers = 1025; }),
             ContainsSubstring("'max_workers'") && ContainsSubstring("1024"));
  CHECK_THAT(refused([](auto& o) { o.max_workers = static_cast<unsigned>(-1); }), ContainsSubstring("'max_workers'"));
  CHECK_THAT(refused([](auto& o) { o.max_message_size = 0; }), ContainsSubstring("'max_message_size'"));
  CHECK_THAT(refused([](auto& o) { o.start_timeout = 0s; }), ContainsSubstring("'start_timeout'"));
  CHECK_THAT(refused([](auto& o) { o.max_message_size = 1023; }), ContainsSubstring("1024"));
  CHECK(refused([](auto& o) { o.max_message_size = 1024; }) == "");
  CHECK_THAT(refused([](auto& o) { o.max_message_size = (std::size_t{16} << 30) + 1; }),
             ContainsSubstring("'max_message_size'"));
  CHECK_THAT(refused([](auto& o) { o.overload = static_cast<OverloadPolicy>(9); }), ContainsSubstring("'overload'"));
  CHECK_THAT(refused([](auto& o) { o.spin = static_cast<bulkhead::SpinPolicy>(9); }), ContainsSubstring("'spin'"));
}

TEST_CASE("Every spin policy runs tasks", "[local]") {
  const auto spin =
      GENERATE(bulkhead::SpinPolicy::automatic, bulkhead::SpinPolicy::never, bulkhead::SpinPolicy::always);
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.spin = spin;
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 50; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
}

#if !WITH_SANITIZER
namespace {

// How often it has gone to sleep.
long sleeps_of(const std::string& task) {
  std::istringstream status(bulkhead::test::read_file(task + "/status"));
  const std::string key = "voluntary_ctxt_switches:";
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key)) return std::stol(line.substr(key.size()));
  }
  FAIL("cannot read the status of " << task);
  return 0;
}

// Whether there is a round of many tasks, one after the other, in which the worker has gone to sleep so often for each.
// Others use the machine, too, and keep it awake or not.
template <class Condition>
bool has_round(bulkhead::SpinPolicy spin, Condition sleeps_per_task) {
  constexpr int kTasks = 500;
  constexpr int kRounds = 200;
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.spin = spin;
  LocalExecutor pool(context.get_executor(), options);
  run(context, pool.submit(twice, 1));
  const std::string worker = "/proc/" + std::to_string(pool.worker_pids().at(0));
  for (int round = 0; round < kRounds; ++round) {
    const long before = sleeps_of(worker);
    for (int i = 0; i < kTasks; ++i) run(context, pool.submit(twice, i));
    if (sleeps_per_task(static_cast<double>(sleeps_of(worker) - before) / kTasks)) return true;
  }
  return false;
}
bool hardly_ever(double sleeps) { return sleeps < 0.1; }
bool nearly_always(double sleeps) { return sleeps > 0.9; }

}  // namespace

TEST_CASE("A worker that may spin does not sleep between tasks that follow one another, and others do", "[local]") {
  if (bulkhead::process::cpu_share() < 2) return;  // there is none to spare
  CHECK(has_round(bulkhead::SpinPolicy::automatic, hardly_ever));
  CHECK(has_round(bulkhead::SpinPolicy::never, nearly_always));
}

TEST_CASE("Where the program may use one CPU no worker spins unless that is asked for", "[local]") {
  cpu_set_t all;
  REQUIRE(::sched_getaffinity(0, sizeof(all), &all) == 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<unsigned>(::sched_getcpu()), &one);
  REQUIRE(::sched_setaffinity(0, sizeof(one), &one) == 0);
  const bool sleeps = has_round(bulkhead::SpinPolicy::automatic, nearly_always);
  REQUIRE(::sched_setaffinity(0, sizeof(all), &all) == 0);
  CHECK(sleeps);
}
#endif

TEST_CASE("However many answers there are, other handlers of the event loop get their turn between them", "[local]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 100; ++i) run(context, pool.submit(twice, i));  // so that its ring takes many
  constexpr int kTasks = 200;
  int over = 0;
  for (int i = 0; i < kTasks; ++i) {
    pool.async_submit(bulkhead::call(twice, i), [&](std::exception_ptr, int) { ++over; });
  }
  // They are there all together before the event loop goes on.
  const std::string state = "/proc/" + std::to_string(pool.worker_pids().at(0)) + "/stat";
  REQUIRE(bulkhead::test::poll_until([&] { return bulkhead::test::read_file(state).find(") S ") != std::string::npos; },
                                     bulkhead::test::kDeadline));
  int most_in_a_row = 0;
  while (over < kTasks) {
    const int before = over;
    REQUIRE(context.run_one() == 1);
    most_in_a_row = std::max(most_in_a_row, over - before);
  }
  CHECK(most_in_a_row > 1);
  CHECK(most_in_a_row <= 128);
}

TEST_CASE("Tasks run in other processes than the host, and leave its memory alone", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  host_only = 1;
  CHECK(run(context, pool.submit(change_global, 2)) == 0);
  CHECK(host_only == 1);
  host_only = 0;
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const std::vector<int> pids = pool.worker_pids();
  CHECK(pids[0] != pids[1]);
  CHECK(std::find(pids.begin(), pids.end(), ::getpid()) == pids.end());
  CHECK(pool.metrics().workers == 2);
}

TEST_CASE("In bypass there is no worker, and tasks run in this process on the Asio executor", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, true));
  CHECK(pool.bypass());
  CHECK(pool.worker_pids().empty());
  CHECK(pool.metrics().workers == 0);
  CHECK(run(context, pool.submit(process_id)) == ::getpid());
  CHECK(pool.worker_pids().empty());
}

TEST_CASE("BULKHEAD_EXECUTOR_BYPASS is read when an executor is made: 1, true, yes and on mean bypass", "[local]") {
  asio::io_context context;
  const auto bypassed = [&](const char* value) {
    const Environment environment(kBypassVariable, value);
    LocalExecutor pool(context.get_executor(), workers(1));
    return pool.bypass();
  };
  for (const char* value : {"1", "true", "yes", "on", "TRUE", "Yes", "oN"}) {
    CAPTURE(value);
    CHECK(bypassed(value));
  }
  for (const char* value : {"", "0", "no", "off", "false", "2"}) {
    CAPTURE(value);
    CHECK_FALSE(bypassed(value));
  }
  CHECK_FALSE(bypassed(nullptr));

  std::optional<LocalExecutor> made;
  {
    const Environment environment(kBypassVariable, "yes");
    made.emplace(context.get_executor(), workers(1));
  }
  CHECK(made->bypass());
  CHECK(made->options().bypass);
  CHECK(made->metrics().mode == "bypass");
  CHECK(run(context, made->submit(twice, 4)) == 8);
  LocalExecutor process(context.get_executor(), workers(1));
  {
    const Environment environment(kBypassVariable, "yes");
    CHECK_FALSE(process.bypass());
    CHECK(run(context, process.submit(twice, 4)) == 8);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What can be submitted.

TEST_CASE("Functions of every kind of argument and result come back", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, bypass));
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  run(context, pool.submit(nothing));
  CHECK(*run(context, pool.submit(boxed, std::make_unique<int>(6))) == 7);
  Person person;
  person.name = "Ann";
  person.age = 40;
  const Person result = run(context, pool.submit(older, person, 2));
  CHECK(result.name == "Ann");
  CHECK(result.age == 42);
  CHECK(result.nicknames == std::vector<std::string>(1, "old Ann"));
  CHECK(result.extra == std::pair(2, 0.5));
  const auto table =
      run(context, pool.submit(
                       [](std::map<std::string, std::vector<int>> map) {
                         map["c"] = std::vector<int>(3, 9);
                         return std::tuple(map, std::variant<int, std::string>("text"), std::optional<double>());
                       },
                       std::map<std::string, std::vector<int>>()));
  CHECK(std::get<0>(table).at("c") == std::vector<int>(3, 9));
  CHECK(std::get<std::string>(std::get<1>(table)) == "text");
  CHECK_FALSE(std::get<2>(table));
  CHECK(pool.metrics().completed == 5);
}

TEST_CASE("Empty arguments and results come back empty", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  CHECK(run(context, pool.submit(reversed, std::vector<std::uint8_t>())).empty());
  CHECK(run(context, pool.submit([](const std::string& text) { return text; }, "")).empty());
  CHECK_FALSE(run(context, pool.submit([](std::optional<int> value) { return value; }, std::optional<int>())));
  CHECK_FALSE(run(context, pool.submit([](std::unique_ptr<int> value) { return value; }, std::unique_ptr<int>())));
  struct Empty {};
  run(context, pool.submit([](Empty value) { return value; }, Empty()));
  CHECK(run(context, pool.submit(size_of, std::vector<std::uint8_t>())) == 0);
}

TEST_CASE("64 MiB go to a worker and come back", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  std::vector<std::uint8_t> bytes(std::size_t{64} << 20);
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  bytes.front() = 200;
  bytes.back() = 100;
  for (int round = 0; round < 2; ++round) {
    const std::vector<std::uint8_t> result = run(context, pool.submit(reversed, bytes));
    REQUIRE(result.size() == bytes.size());
    CHECK(std::equal(result.begin(), result.end(), bytes.rbegin()));
  }
  CHECK(run(context, pool.submit(size_of, bytes)) == bytes.size());
  CHECK(run(context, pool.submit(sized, bytes.size())).size() == bytes.size());
}

namespace {

// Pages that the system has given to this thread so far.
long faults_of_this_thread() {
  rusage usage{};
  REQUIRE(::getrusage(RUSAGE_THREAD, &usage) == 0);
  return usage.ru_minflt;
}

std::size_t size_of_span(std::span<const std::uint8_t> bytes) { return bytes.size(); }

}  // namespace

TEST_CASE("The event loop does not wait for the memory that the first large message needs", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::vector<std::uint8_t> bytes(std::size_t{32} << 20, std::uint8_t{1});
  CHECK(run(context, pool.submit(size_of_span, std::vector<std::uint8_t>(1))) == 1);
  const long before = faults_of_this_thread();
  CHECK(run(context, pool.submit(size_of_span, std::move(bytes))) == std::size_t{32} << 20);
  const long faults = faults_of_this_thread() - before;
  CAPTURE(faults);
#if !WITH_SANITIZER
  // A sanitizer has memory of its own for each byte.
  CHECK(faults < (32 << 20) / 4096 / 4);
#endif
}

TEST_CASE("A task is cancelled, or its executor destroyed, while memory for its arguments is being had", "[local]") {
  const bool destroy = GENERATE(false, true);
  CAPTURE(destroy);
  asio::io_context context;
  auto pool = std::make_unique<LocalExecutor>(context.get_executor(), workers(1));
  CHECK(run(context, pool->submit(size_of_span, std::vector<std::uint8_t>(1))) == 1);
  asio::cancellation_signal signal;
  Outcome<std::size_t> outcome;
  pool->async_submit(bulkhead::call(size_of_span, std::vector<std::uint8_t>(std::size_t{64} << 20)),
                     asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  if (destroy) {
    pool.reset();
  } else {
    signal.emit(asio::cancellation_type::total);
  }
  REQUIRE(run_until(context, [&] { return outcome.calls > 0; }));
  const auto error = bulkhead::test::error_as<bulkhead::TaskCancelledError>(outcome.error);
  REQUIRE(error);
  CHECK(error->stage() == bulkhead::TaskCancelledError::Stage::queued);
  if (!destroy) CHECK(run(context, pool->submit(size_of_span, std::vector<std::uint8_t>(1))) == 1);
}

namespace {

// Counts how often it is encoded.
struct Counted {
  std::vector<std::uint8_t> bytes;
  static inline int encoded = 0;  // in this process
};
Counted same_counted(Counted value) { return value; }
int encoded_there(int) { return Counted::encoded; }

}  // namespace

namespace bulkhead {
template <>
struct codec<Counted> {
  static void encode(Encoder& encoder, const Counted& value) {
    ++Counted::encoded;
    bulkhead::encode(encoder, value.bytes);
  }
  static Counted decode(Decoder& decoder) { return {bulkhead::decode<std::vector<std::uint8_t>>(decoder)}; }
};
}  // namespace bulkhead

TEST_CASE("What is too large for a slot is encoded once, when its like has been sent before", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  std::size_t size = 10'000;
  Counted::encoded = 0;
  CHECK(run(context, pool.submit(same_counted, Counted{std::vector<std::uint8_t>(size)})).bytes.size() == size);
  int here = Counted::encoded;
  int there = run(context, pool.submit(encoded_there, 0));
  // Also when each is somewhat longer.
  for (int i = 0; i < 10; ++i) {
    size += size / 8;
    CHECK(run(context, pool.submit(same_counted, Counted{std::vector<std::uint8_t>(size)})).bytes.size() == size);
  }
  CHECK(Counted::encoded - here == 10);
  CHECK(run(context, pool.submit(encoded_there, 0)) - there == 10);
  // When one is much longer it is encoded again, and when it is short it fits.
  for (const std::size_t other : {10 * size, std::size_t{1}, size}) {
    CHECK(run(context, pool.submit(same_counted, Counted{std::vector<std::uint8_t>(other)})).bytes.size() == other);
  }
  // After one that was short all are that fit a slot.
  CHECK(run(context, pool.submit(same_counted, Counted{std::vector<std::uint8_t>(10)})).bytes.size() == 10);
  here = Counted::encoded;
  there = run(context, pool.submit(encoded_there, 0));
  for (int i = 0; i < 10; ++i) {
    CHECK(run(context, pool.submit(same_counted, Counted{std::vector<std::uint8_t>(100)})).bytes.size() == 100);
  }
  CHECK(Counted::encoded - here == 10);
  CHECK(run(context, pool.submit(encoded_there, 0)) - there == 10);
}

TEST_CASE("A small message takes no more memory for a large one of its type before it, in whatever pool", "[local]") {
  const auto shared_memory = [] {
    std::istringstream status(bulkhead::test::read_file("/proc/self/status"));
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("RssShmem:")) return std::stol(line.substr(std::strlen("RssShmem:")));  // kB
    }
    return 0L;
  };
  constexpr std::size_t kLarge = std::size_t{64} << 20;
  constexpr long kOfIt = 4L << 10;  // a sixteenth of it, in kB
  asio::io_context context;
  {
    LocalExecutor pool(context.get_executor(), workers(1));
    CHECK(run(context, pool.submit(size_of_span, std::vector<std::uint8_t>(kLarge))) == kLarge);
  }
  LocalExecutor pool(context.get_executor(), workers(4));
  const long before = shared_memory();
  std::vector<Outcome<std::size_t>> outcomes(16);
  for (auto& outcome : outcomes) {
    pool.async_submit(bulkhead::call(size_of_span, std::vector<std::uint8_t>(10)), outcome.handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == 10);
  const long taken = shared_memory() - before;
  CAPTURE(taken);
  CHECK(taken < kOfIt);
}

TEST_CASE("Sizes around those of a slot and of a page come back unharmed", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  bool equal = true;
  for (const std::size_t middle : {0U, 128U, 216U, 256U, 4096U, 65536U, 1U << 20}) {
    for (std::size_t size = middle < 24 ? 0 : middle - 24; size < middle + 24; ++size) {
      std::vector<std::uint8_t> bytes(size);
      std::iota(bytes.begin(), bytes.end(), std::uint8_t{1});
      const std::vector<std::uint8_t> result = run(context, pool.submit(reversed, bytes));
      equal = equal && std::equal(result.begin(), result.end(), bytes.rbegin(), bytes.rend());
    }
  }
  CHECK(equal);
}

TEST_CASE("string_view and span parameters see owning arguments", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const std::vector<std::uint32_t> numbers(1000, 3);
  CHECK(run(context, pool.submit(sum_views, std::string("four"), numbers, numbers, std::vector<double>())) == 6004);
  CHECK(run(context, pool.submit(sum_views, "odd", std::span<const std::uint32_t>(numbers), numbers,
                                 std::vector<double>())) == 6003);
  CHECK(run(context, pool.submit(sum_views, std::string_view("odd"), std::vector<std::uint32_t>(), numbers,
                                 std::vector<double>())) == 3003);
}

TEST_CASE("A worker sees views in place, in memory that it cannot write", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const std::string small = run(context, pool.submit(place_of_text, "small"));
  const std::string text = run(context, pool.submit(place_of_text, std::string(1 << 20, 't')));
  const std::string numbers = run(context, pool.submit(place_of_numbers, std::vector<std::uint32_t>(1 << 20)));
  for (const std::string& line : {small, text, numbers}) {
    CHECK_THAT(line, ContainsSubstring("memfd:") && ContainsSubstring(" r--s "));
  }
  const std::string owned = run(context, pool.submit([](const std::string& value) { return mapping_of(value.data()); },
                                                     std::string(1 << 20, 't')));
  CHECK_THAT(owned, !ContainsSubstring("memfd:"));
}

TEST_CASE("What a view of an argument pointed to may go before the task runs", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  auto text = std::make_unique<std::string>(1000, 'a');
  auto pending = pool.submit([](std::string_view seen) { return std::string(seen); }, std::string_view(*text));
  text->assign(1000, 'b');
  text.reset();
  CHECK(run(context, std::move(pending)) == std::string(1000, 'a'));
}

TEST_CASE("Member functions, virtual ones too, run on a copy of their object", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Counter counter;
  counter.count = 5;
  CHECK(run(context, pool.submit(&Counter::add, counter, 3)) == 8);
  CHECK(run(context, pool.submit(&Counter::get, counter)) == 5);
  CHECK(counter.count == 5);
  Square square;
  square.size = 3;
  CHECK(run(context, pool.submit(&Shape::corners, square)) == 12);
}

TEST_CASE("An error names the function of its task as the program does, though nothing exports it", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  run(context, pool.shutdown());
  const auto name = [](const std::exception_ptr& error) {
    const auto refused = error_as<ExecutorNotRunningError>(error);
    return refused ? refused->context().task : "not refused";
  };
  CHECK(name(failure(context, pool.submit(twice, 1))) == "(anonymous namespace)::twice(int)");
  CHECK(name(failure(context, pool.submit(&Counter::add, Counter(), 1))) == "(anonymous namespace)::Counter::add(int)");
  CHECK(name(failure(context, pool.submit(&Counter::get, Counter()))) == "(anonymous namespace)::Counter::get() const");
  CHECK(name(failure(context, pool.submit(::abs, -1))) == "abs");
  // Which function it is, only the object in the worker tells.
  CHECK(name(failure(context, pool.submit(&Shape::corners, Square()))) ==
        "int ((anonymous namespace)::Shape::*)() const");
  const auto same = [](int value) { return value; };
  const std::string lambda = name(failure(context, pool.submit(same, 1)));
  CAPTURE(lambda);
  // g++ and clang have names of their own for it.
  CHECK((lambda.find("lambda") != std::string::npos || lambda.find("$_") != std::string::npos));
}

TEST_CASE("Lambdas without captures, generic ones too, and function objects with data can be sent", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  CHECK(run(context, pool.submit([](int a, int b) { return a - b; }, 5, 3)) == 2);
  const auto plus = [](auto a, auto b) { return a + b; };
  CHECK(run(context, pool.submit(plus, 2, 3)) == 5);
  CHECK(run(context, pool.submit(plus, std::string("2"), std::string("3"))) == "23");
  CHECK(run(context, pool.submit(std::plus<>(), 2.5, 1)) == 3.5);
  Adder adder;
  adder.summand = 40;
  adder.suffix = " pieces";
  CHECK(run(context, pool.submit(adder, 2)) == "42 pieces");
  CHECK(run(context, pool.submit(static_cast<double (*)(double)>(std::sqrt), 9.0)) == 3.0);
}

TEST_CASE("A decorated function runs in the executor each time it is called", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, bypass));
  const auto wrapped = pool(twice);
  const auto copy = wrapped;
  CHECK(run(context, wrapped(4)) == 8);
  CHECK(run(context, copy(5)) == 10);
  CHECK(run(context, pool(older)(Person(), 3)).age == 3);
  CHECK_THROWS_WITH(run(context, pool(refuse)(1)), "refused 1");
  CHECK(run(context, pool([](int a) { return a; })(6)) == 6);
  CHECK(pool.metrics().submitted == 5);
}

TEST_CASE("A null function pointer is FunctionUnavailableError", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  int (*const function)(int) = nullptr;
  CHECK(holds<FunctionUnavailableError>(failure(context, pool.submit(function, 1))));
  int (Counter::*const member)() const = nullptr;
  CHECK(holds<FunctionUnavailableError>(failure(context, pool.submit(member, Counter()))));
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(pool.metrics().failed == 2);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("A function of a library that was loaded after the fork server is refused, not jumped to", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  // A part of the C library that nothing loads.
  constexpr const char* kLibrary = "libBrokenLocale.so.1";
  REQUIRE(::dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD) == nullptr);
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  REQUIRE(library != nullptr);
  auto* const function = reinterpret_cast<std::size_t (*)()>(::dlsym(library, "__ctype_get_mb_cur_max"));
  REQUIRE(function != nullptr);
  const std::exception_ptr error = failure(context, pool.submit(function));
  CHECK(holds<FunctionUnavailableError>(error));
  CHECK_THAT(message(error), ContainsSubstring("libBrokenLocale") && ContainsSubstring("start_fork_server"));
  CHECK(pool.metrics().workers_crashed == 0);
  ::dlclose(library);
}

TEST_CASE("Many tasks at once: each caller gets its own result", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(3, bypass);
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  std::vector<Outcome<int>> outcomes(1000);
  for (int i = 0; i < 1000; ++i) {
    pool.async_submit(bulkhead::call(twice, i), outcomes[static_cast<std::size_t>(i)].handler());
  }
  REQUIRE(run_until(context, [&] { return pool.metrics().completed == 1000; }));
  settle(context);
  bool right = true;
  for (int i = 0; i < 1000; ++i) {
    const auto& outcome = outcomes[static_cast<std::size_t>(i)];
    right = right && outcome.calls == 1 && outcome.value == 2 * i;
  }
  CHECK(right);
  const Metrics m = pool.metrics();
  CHECK(m.submitted == 1000);
  CHECK(m.runs == 1000);
  CHECK(m.pending + m.running == 0);
  CHECK(adds_up(m));
}

TEST_CASE("Several workers run tasks at the same time", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(3));
  std::array<Outcome<int>, 3> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  CHECK(run_until(context, [] { return board.gate.waiting == 3; }));
  CHECK(pool.metrics().running == 3);
  board.gate.open = 1;
  CHECK(run_until(context, [&] { return pool.metrics().completed == 3; }));
}

TEST_CASE("Two executors are independent of each other", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.name = "slow";
  LocalExecutor slow(context.get_executor(), options);
  options.name = "quick";
  options.bypass = bypass;
  LocalExecutor quick(context.get_executor(), options);
  Occupied occupied(context, slow);
  for (int i = 0; i < 10; ++i) CHECK(run(context, quick.submit(twice, i)) == 2 * i);
  CHECK(occupied.gate.calls == 0);
  CHECK(slow.metrics().running == 1);
  CHECK(quick.metrics().completed == 10);
  board.gate.open = 1;
  CHECK(run_until(context, [&] { return occupied.gate.calls == 1; }));
}

TEST_CASE("What a task prints appears on the host's standard output", "[local]") {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  FILE* const child = ::popen(fmt::format("'{}' '[child-prints]' 2>&1", self).c_str(), "re");
  REQUIRE(child != nullptr);
  std::string output;
  std::array<char, 4096> buffer;
  for (std::size_t size; (size = std::fread(buffer.data(), 1, buffer.size(), child)) > 0;) {
    output.append(buffer.data(), size);
  }
  CHECK(::pclose(child) == 0);
  CHECK_THAT(output, ContainsSubstring("words of a worker"));
  CHECK_THAT(output, ContainsSubstring("words that nobody flushed"));
}

TEST_CASE("Child of the test above: prints from a worker", "[.child-prints]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  run(context, pool.submit(say, "words of a worker"));
  run(context, pool.submit(murmur, "words that nobody flushed"));
  run(context, pool.shutdown());
}

// ---------------------------------------------------------------------------------------------------------------------
// Preload and initializer.

TEST_CASE("The initializer runs once in each worker, and again in one that replaces another", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.initializer = bulkhead::call(initialize, "ready");
  LocalExecutor pool(context.get_executor(), options);
  REQUIRE(run_until(context, [&] { return whole(pool) && board.initializers == 2; }));
  for (int i = 0; i < 20; ++i) CHECK(run(context, pool.submit(initialized)) == "ready");
  CHECK(board.initializers == 2);
  CHECK(holds<bulkhead::WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
  REQUIRE(run_until(context, [&] { return whole(pool) && board.initializers == 3; }));
  std::array<Outcome<std::string>, 20> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(initialized), outcome.handler());
  REQUIRE(run_until(context, [&] { return pool.metrics().completed == 40; }));
  settle(context);
  for (const auto& outcome : outcomes) CHECK(outcome.value == "ready");
  CHECK(board.initializers == 3);
  CHECK(initialized_as.empty());
}

TEST_CASE("preload runs once for all workers, which see what it loaded; also those that come later", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(3);
  options.preload = bulkhead::call(load, 1000);
  options.initializer = bulkhead::call(initialize, "ready");
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(loaded_at, std::size_t{7})) == 1007);
  REQUIRE(run_until(context, [&] { return whole(pool) && board.initializers == 3; }));
  CHECK(board.preloads == 1);
  CHECK(holds<bulkhead::WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
  REQUIRE(run_until(context, [&] { return whole(pool) && board.initializers == 4; }));
  std::array<Outcome<int>, 20> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(loaded_at, std::size_t{99}), outcome.handler());
  REQUIRE(run_until(context, [&] { return pool.metrics().completed == 21; }));
  settle(context);
  for (const auto& outcome : outcomes) CHECK(outcome.value == 1099);
  CHECK(board.preloads == 1);
  CHECK(loaded.empty());
}

TEST_CASE("In bypass preload and initializer run once, before the first task", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(3, true);
  options.preload = load_nothing;
  options.initializer = bulkhead::call(initialize, "once");
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 5; ++i) CHECK(run(context, pool.submit(initialized)) == "once");
  CHECK(board.preloads == 1);
  CHECK(board.initializers == 1);
  initialized_as.clear();
}

TEST_CASE("An initializer that throws fails submits with WorkerStartError and its words", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(2, bypass);
  options.name = "picky";
  options.initializer = bulkhead::call(fail_to_start, "the model file is missing");
  const auto begin = std::chrono::steady_clock::now();
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 3; ++i) {
    const std::exception_ptr error = failure(context, pool.submit(twice, 1));
    const auto start_error = error_as<WorkerStartError>(error);
    REQUIRE(start_error);
    CHECK_THAT(start_error->reason(), ContainsSubstring("the model file is missing"));
    CHECK_THAT(start_error->reason(), ContainsSubstring("std::runtime_error"));
    CHECK_THAT(start_error->what(), ContainsSubstring("picky"));
    CHECK(start_error->code() == bulkhead::Errc::worker_start_failed);
    if (!bypass) CHECK(start_error->failures_in_a_row() >= 3);
  }
  if (!bypass) {
    // No fork storm: the pauses double from 10 ms to a second, so that there are few more starts than seconds.
    run_until(context, [&] { return std::chrono::steady_clock::now() - begin > 500ms; });
    const auto elapsed = std::chrono::ceil<std::chrono::seconds>(std::chrono::steady_clock::now() - begin);
    CHECK(board.initializers <= 10 + elapsed.count());
  }
  const Metrics m = pool.metrics();
  CHECK(m.failed == 3);
  CHECK(adds_up(m));
  run(context, pool.shutdown());
}

TEST_CASE("An initializer that crashes or exits fails submits with WorkerStartError", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.initializer = abort_at_start;
  LocalExecutor aborts(context.get_executor(), options);
  CHECK_THAT(message(failure(context, aborts.submit(twice, 1))), ContainsSubstring("SIGABRT"));
  options.initializer = exit_at_start;
  LocalExecutor exits(context.get_executor(), options);
  CHECK_THAT(message(failure(context, exits.submit(twice, 1))), ContainsSubstring("exit code 9"));
  CHECK(holds<WorkerStartError>(failure(context, exits.submit(twice, 1))));
}

TEST_CASE("A preload that throws fails submits with WorkerStartError and its words", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.preload = bulkhead::call(fail_to_start, "the table is broken");
  LocalExecutor pool(context.get_executor(), options);
  const std::exception_ptr error = failure(context, pool.submit(twice, 1));
  CHECK(holds<WorkerStartError>(error));
  CHECK_THAT(message(error), ContainsSubstring("preload") && ContainsSubstring("the table is broken"));
  run(context, pool.shutdown());
}

TEST_CASE("A pool whose initializer failed some times works as soon as it succeeds", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  board.failures_left = 4;
  asio::io_context context;
  LocalExecutorOptions options = workers(2, bypass);
  options.initializer = fail_some_times;
  LocalExecutor pool(context.get_executor(), options);
  std::exception_ptr error;
  for (int i = 0; i < 1000; ++i) {
    error = failure(context, pool.submit(twice, 1));
    if (!error) break;
    CHECK(holds<WorkerStartError>(error));
  }
  CHECK_FALSE(error);
  CHECK(board.failures_left == 0);
  if (!bypass) CHECK(run_until(context, [&] { return whole(pool); }));
  CHECK(run(context, pool.submit(twice, 3)) == 6);
}

// ---------------------------------------------------------------------------------------------------------------------
// Order and limits.

TEST_CASE("A more urgent task runs before those that lie in a worker's ring already", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  // So that the worker is known to be quick, and given many tasks ahead.
  std::vector<Outcome<void>> quick(500);
  for (auto& outcome : quick) pool.async_submit(bulkhead::call(note, 0), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(quick); }));
  reset_board();
  Outcome<int> first;
  pool.async_submit(bulkhead::call(wait_at_gate, 0), first.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::vector<Outcome<void>> many(200);
  for (auto& outcome : many) pool.async_submit(bulkhead::call(note_first, 1), outcome.handler());
  Outcome<void> urgent;
  pool.async_submit(TaskOptions().priority(-1), bulkhead::call(note_first, 2), urgent.handler());
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(many) && urgent.calls == 1; }));
  CHECK(board.order[0] == 2);
  CHECK(board.written == many.size() + 1);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("The lower priority number runs first, equal ones in the order of their submission", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Occupied occupied(context, pool);
  constexpr std::array kPriorities{100, 0, 50, -3, 0, 1, 100, -3, 0, INT_MAX, INT_MIN};
  std::array<Outcome<void>, kPriorities.size()> outcomes;
  for (std::size_t i = 0; i < kPriorities.size(); ++i) {
    pool.async_submit(TaskOptions().priority(kPriorities[i]), bulkhead::call(note, static_cast<int>(i)),
                      outcomes[i].handler());
  }
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] {
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; });
  }));
  CHECK(order() == std::vector{10, 3, 7, 1, 4, 8, 5, 2, 0, 6, 9});
}

TEST_CASE("Equal priorities run in the order of their submission, however many", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Occupied occupied(context, pool);
  std::array<Outcome<void>, 60> outcomes;
  std::vector<int> expected;
  for (int i = 0; i < 60; ++i) {
    pool.async_submit(bulkhead::call(note, i), outcomes[static_cast<std::size_t>(i)].handler());
    expected.push_back(i);
  }
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] {
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; });
  }));
  CHECK(order() == expected);
}

TEST_CASE("Under reject, a submit beyond max_pending fails with ExecutorOverloadError", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_pending = 2;
  options.name = "small";
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<int>, 4> outcomes;
  const auto submit = [&](std::size_t i) {
    if (bypass) {
      pool.async_submit(bulkhead::call(twice, 1), outcomes[i].handler());
    } else {
      pool.async_submit(bulkhead::call(wait_at_gate, 2), outcomes[i].handler());
    }
  };
  for (std::size_t i = 0; i < 3; ++i) submit(i);
  CHECK(pool.metrics().pending + pool.metrics().running == 2);
  CHECK(pool.metrics().rejected == 1);
  REQUIRE(run_until(context, [&] { return outcomes[2].calls == 1; }));
  const auto error = error_as<ExecutorOverloadError>(outcomes[2].error);
  REQUIRE(error);
  CHECK(error->limit() == 2);
  CHECK(error->context().executor == "small");
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return outcomes[0].calls + outcomes[1].calls == 2; }));
  submit(3);
  REQUIRE(run_until(context, [&] { return outcomes[3].calls == 1; }));
  for (const std::size_t i : {0U, 1U, 3U}) CHECK(outcomes[i].value == 2);
  const Metrics m = pool.metrics();
  CHECK(m.submitted == 3);
  CHECK(m.completed == 3);
  CHECK(m.rejected == 1);
  CHECK(adds_up(m));
}

TEST_CASE("Under wait, submits beyond max_pending wait and run in their order", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_pending = 1;
  options.overload = OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  Occupied occupied(context, pool);
  std::array<Outcome<void>, 20> outcomes;
  std::vector<int> expected;
  for (int i = 0; i < 20; ++i) {
    pool.async_submit(bulkhead::call(note, i), outcomes[static_cast<std::size_t>(i)].handler());
    expected.push_back(i);
  }
  CHECK(pool.metrics().waiting == (bypass ? 19 : 20));
  CHECK(pool.metrics().pending + pool.metrics().running == 1);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] {
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; });
  }));
  CHECK(order() == expected);
  CHECK(pool.metrics().rejected == 0);
}

TEST_CASE("Waiting for admission beyond queue_timeout is ExecutorOverloadError", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.max_pending = 1;
  options.overload = OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  Occupied occupied(context, pool);
  Outcome<void> outcome;
  pool.async_submit(TaskOptions().queue_timeout(10ms), bulkhead::call(note, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(holds<ExecutorOverloadError>(outcome.error));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return occupied.gate.calls == 1; }));
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(order().empty());
  CHECK(pool.metrics().rejected == 1);
}

TEST_CASE("A task that has not begun within its queue_timeout never runs", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Occupied occupied(context, pool);
  Outcome<void> outcome;
  Outcome<int> patient;
  const auto begin = std::chrono::steady_clock::now();
  pool.async_submit(TaskOptions().queue_timeout(10ms), bulkhead::call(note, 1), outcome.handler());
  pool.async_submit(TaskOptions().queue_timeout(TaskOptions::Duration::max()), bulkhead::call(twice, 4),
                    patient.handler());
  // In bypass the event loop runs the tasks: nothing of it before the time is over.
  if (bypass) REQUIRE(poll_until([&] { return std::chrono::steady_clock::now() > begin + 10ms; }, kDeadline));
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  const auto error = error_as<TaskTimeoutError>(outcome.error);
  REQUIRE(error);
  CHECK(error->which() == TaskTimeoutError::Which::queue);
  CHECK(error->limit() == 10ms);
  CHECK(pool.metrics().timed_out == 1);
  CHECK(adds_up(pool.metrics()));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return patient.calls == 1; }));
  CHECK(patient.value == 8);
  CHECK(order().empty());
}

TEST_CASE("A task that runs beyond its timeout is killed, and its worker replaced", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const std::vector<Process> before = processes_of(pool);
  Outcome<int> outcome;
  Outcome<int> next;
  pool.async_submit(TaskOptions().name("endless").timeout(20ms), bulkhead::call(wait_at_gate, 1), outcome.handler());
  pool.async_submit(bulkhead::call(twice, 5), next.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(board.gate.waiting == 1);
  const auto error = error_as<TaskTimeoutError>(outcome.error);
  REQUIRE(error);
  CHECK(error->which() == TaskTimeoutError::Which::run);
  CHECK(error->limit() == 20ms);
  CHECK(error->code() == bulkhead::Errc::timeout);
  CHECK(error->context().task == "endless");
  CHECK(error->context().worker_pid.has_value());
  CHECK(run_until(context, [&] { return all_gone(before); }));
  REQUIRE(run_until(context, [&] { return next.calls == 1; }));
  CHECK(next.value == 10);
  const Metrics m = pool.metrics();
  CHECK(m.timed_out == 1);
  CHECK(m.completed == 1);
  CHECK(m.failed == 0);
  CHECK(m.workers_crashed == 0);
  CHECK(adds_up(m));
  CHECK(run_until(context, [&] { return whole(pool); }));
}

TEST_CASE("The timeout runs from the start of the run, not from submit", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Occupied occupied(context, pool);
  Outcome<int> outcome;
  const auto begin = std::chrono::steady_clock::now();
  pool.async_submit(TaskOptions().timeout(10s), bulkhead::call(twice, 1), outcome.handler());
  Outcome<int> brief;
  pool.async_submit(TaskOptions().timeout(200ms), bulkhead::call(twice, 2), brief.handler());
  run_until(context, [&] { return std::chrono::steady_clock::now() - begin > 300ms; });
  CHECK(brief.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return outcome.calls + brief.calls == 2; }));
  CHECK(outcome.value == 2);
  CHECK(brief.value == 4);
  CHECK(pool.metrics().timed_out == 0);
}

TEST_CASE("In bypass a task that took longer than its timeout fails with TaskTimeoutError", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, true));
  Outcome<int> outcome;
  pool.async_submit(TaskOptions().timeout(1ms), bulkhead::call(sleep_for, 5), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  const auto error = error_as<TaskTimeoutError>(outcome.error);
  REQUIRE(error);
  CHECK(error->which() == TaskTimeoutError::Which::run);
  CHECK(pool.metrics().timed_out == 1);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("A timeout that is not reached, however large, changes nothing", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto options = TaskOptions().timeout(TaskOptions::Duration::max()).queue_timeout(1h);
  for (int i = 0; i < 20; ++i) CHECK(run(context, pool.submit(options, twice, i)) == 2 * i);
  CHECK(pool.metrics().timed_out == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Exceptions.

TEST_CASE("Standard exceptions come back as their own type with their own words", "[local]") {
  const bool bypass = GENERATE(false, true);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto type_and_text = [](const std::exception_ptr& error) {
    std::pair<std::string, std::string> result;
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::exception& caught) {
      result = {typeid(caught).name(), caught.what()};
    }
    return result;
  };
  for (int which = 0; which < kStandardExceptions; ++which) {
    std::exception_ptr here;
    try {
      throw_standard(which);
    } catch (...) {
      here = std::current_exception();
    }
    CAPTURE(bypass, which);
    CHECK(type_and_text(failure(context, pool.submit(throw_standard, which))) == type_and_text(here));
  }
  CHECK(pool.metrics().failed == kStandardExceptions);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("system_errors come back with their code, category and paths", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto system = error_as<std::system_error>(failure(context, pool.submit(throw_standard, 19)));
  REQUIRE(system);
  CHECK(system->code() == std::error_code(EACCES, std::system_category()));
  const auto timed_out = error_as<std::system_error>(failure(context, pool.submit(throw_standard, 20)));
  REQUIRE(timed_out);
  CHECK(timed_out->code() == std::errc::timed_out);
  CHECK(timed_out->code().category() == std::generic_category());
  const auto filesystem =
      error_as<std::filesystem::filesystem_error>(failure(context, pool.submit(throw_standard, 21)));
  REQUIRE(filesystem);
  CHECK(filesystem->path1() == "/a/b");
  CHECK(filesystem->path2() == "/c d");
  CHECK(filesystem->code() == std::errc::file_exists);
  const auto stream = error_as<std::ios_base::failure>(failure(context, pool.submit(throw_standard, 24)));
  REQUIRE(stream);
  CHECK(stream->code() == std::io_errc::stream);
  const auto asio_error = error_as<boost::system::system_error>(
      failure(context, pool.submit([] { throw boost::system::system_error(asio::error::eof, "read"); })));
  REQUIRE(asio_error);
  CHECK(asio_error->code() == asio::error::eof);
  CHECK(asio_error->what() == std::string(boost::system::system_error(asio::error::eof, "read").what()));
}

TEST_CASE("A registered exception comes back as itself: from its text, or through the codec", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const std::exception_ptr by_text = failure(context, pool.submit([] { throw DecodeError("bad marker"); }));
  REQUIRE(holds<DecodeError>(by_text));
  CHECK(message(by_text) == "bad marker");
  const auto by_codec = error_as<QuotaError>(failure(context, pool.submit([] { throw QuotaError(7, 5); })));
  REQUIRE(by_codec);
  CHECK(by_codec->used == 7);
  CHECK(by_codec->limit == 5);
  CHECK(by_codec->what() == std::string("7 of 5 used"));
}

TEST_CASE("An exception of an unknown type is RemoteTaskError with its type and words", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.name = "remote";
  LocalExecutor pool(context.get_executor(), options);
  const auto unknown = error_as<RemoteTaskError>(failure(context, pool.submit([] { throw UnknownError("bad luck"); })));
  REQUIRE(unknown);
  CHECK_THAT(unknown->type_name(), ContainsSubstring("UnknownError"));
  CHECK(unknown->remote_what() == "bad luck");
  CHECK(unknown->causes().empty());
  CHECK(unknown->code() == bulkhead::Errc::remote_exception);
  CHECK(unknown->context().executor == "remote");
  CHECK_THAT(unknown->what(), ContainsSubstring("UnknownError") && ContainsSubstring("bad luck"));
  // Derived from a registered type is not registered.
  const auto child = error_as<RemoteTaskError>(failure(context, pool.submit([] { throw UnknownChild("small"); })));
  REQUIRE(child);
  CHECK_THAT(child->type_name(), ContainsSubstring("UnknownChild"));
  CHECK(child->remote_what() == "small");
}

TEST_CASE("What is thrown need not be an exception: it is RemoteTaskError with its type", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto number = error_as<RemoteTaskError>(failure(context, pool.submit([] { throw 5; })));
  REQUIRE(number);
  CHECK(number->type_name() == "int");
  CHECK(number->remote_what().empty());
  const auto object = error_as<RemoteTaskError>(failure(context, pool.submit([] { throw NotAnException(); })));
  REQUIRE(object);
  CHECK_THAT(object->type_name(), ContainsSubstring("NotAnException"));
  const auto text = error_as<RemoteTaskError>(failure(context, pool.submit([] { throw std::string("plain text"); })));
  REQUIRE(text);
  CHECK(text->remote_what() == "plain text");
  const auto literal = error_as<RemoteTaskError>(failure(context, pool.submit([] { throw "a literal"; })));
  REQUIRE(literal);
  CHECK(literal->remote_what() == "a literal");
  CHECK(run(context, pool.submit(twice, 1)) == 2);
}

TEST_CASE("Nested causes come with the exception, each as its own type", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto cause_of = [](const std::exception_ptr& error) -> std::exception_ptr {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::exception& caught) {
      const auto* nested = dynamic_cast<const std::nested_exception*>(&caught);
      if (nested != nullptr) return nested->nested_ptr();
    }
    return nullptr;
  };
  const std::exception_ptr page = failure(context, pool.submit(throw_nested, false));
  CHECK(holds<std::runtime_error>(page));
  CHECK(message(page) == "no page");
  const std::exception_ptr picture = cause_of(page);
  CHECK(holds<DecodeError>(picture));
  CHECK(message(picture) == "no picture");
  const auto open = error_as<std::system_error>(cause_of(picture));
  REQUIRE(open);
  CHECK(open->code() == std::errc::no_such_file_or_directory);
  CHECK_FALSE(cause_of(cause_of(picture)));

  const std::exception_ptr unknown = failure(context, pool.submit(throw_nested, true));
  const auto remote = error_as<RemoteTaskError>(unknown);
  REQUIRE(remote);
  CHECK_THAT(remote->type_name(), ContainsSubstring("UnknownError"));
  CHECK(remote->remote_what() == "no page");
  const auto causes = remote->causes();
  REQUIRE(causes.size() == 2);
  CHECK_THAT(causes[0].type, ContainsSubstring("DecodeError"));
  CHECK(causes[0].what == "no picture");
  CHECK(causes[1].type == "std::system_error");
  CHECK_THAT(causes[1].what, ContainsSubstring("open"));
  CHECK(holds<DecodeError>(cause_of(unknown)));
}

TEST_CASE("A very long message comes back, cut at most", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto thrower = [](std::size_t size) { throw std::runtime_error(std::string(size, 'w')); };
  CHECK(message(failure(context, pool.submit(thrower, std::size_t{1000}))) == std::string(1000, 'w'));
  const std::string cut = message(failure(context, pool.submit(thrower, std::size_t{1} << 20)));
  CHECK(cut.size() >= 1000);
  CHECK(cut.find_first_not_of('w') == std::string::npos);
  CHECK(run(context, pool.submit(twice, 1)) == 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// What cannot be carried.

TEST_CASE("Arguments beyond max_message_size are SerializationError of the argument", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_message_size = 64 << 10;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(size_of, std::vector<std::uint8_t>(60 << 10))) == 60 << 10);
  for (const std::size_t size : {(64U << 10) + 1, 100U << 10, 4U << 20}) {
    CAPTURE(size);
    const auto error =
        error_as<SerializationError>(failure(context, pool.submit(size_of, std::vector<std::uint8_t>(size))));
    REQUIRE(error);
    CHECK(error->part() == SerializationError::Part::argument);
    CHECK_THAT(error->what(), ContainsSubstring("max_message_size allows 65536"));
    CHECK(error->context().executor == "default");
    CHECK_FALSE(error->context().task.empty());
  }
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("A result beyond max_message_size is SerializationError of the result", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_message_size = 64 << 10;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(sized, std::size_t{60} << 10)).size() == 60 << 10);
  for (const std::size_t size : {(64U << 10) + 1, 100U << 10, 4U << 20}) {
    CAPTURE(size);
    const auto error = error_as<SerializationError>(failure(context, pool.submit(sized, size)));
    CHECK(error.has_value());
    if (!error) continue;
    CHECK(error->part() == SerializationError::Part::result);
    CHECK_THAT(error->what(), ContainsSubstring("max_message_size allows 65536"));
    CHECK(error->context().executor == "default");
  }
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("A value whose codec refuses says which part of the task it was, and of which type", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  const auto check = [&](const std::exception_ptr& thrown, SerializationError::Part part, const char* words) {
    CAPTURE(words, message(thrown));
    const auto error = error_as<SerializationError>(thrown);
    REQUIRE(error);
    CHECK(error->part() == part);
    CHECK(error->type_name() == "Stubborn");
    CHECK(error->reason() == words);
    CHECK(error->context().executor == "default");
  };
  using Part = SerializationError::Part;
  StubbornCallable callable;
  callable.data.mode = refuses_encoding;
  check(failure(context, pool.submit(callable)), Part::callable, "it does not want to");
  check(failure(context, pool.submit(mode_of, stubborn(refuses_encoding))), Part::argument, "it does not want to");
  check(failure(context, pool.submit(stubborn, +refuses_encoding)), Part::result, "it does not want to");
  check(failure(context, pool.submit(stubborn, +refuses_decoding)), Part::result, "it does not want back");
  check(failure(context, pool.submit(mode_of, stubborn(refuses_decoding))), Part::argument, "it does not want back");
  CHECK(run(context, pool.submit(mode_of, stubborn(willing))) == willing);
  CHECK(pool.metrics().failed == 5);
  CHECK(pool.metrics().workers_crashed == 0);
}

TEST_CASE("What a user's codec throws comes to the caller as it is", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  CHECK(message(failure(context, pool.submit(mode_of, stubborn(throws_encoding)))) == "a defect in the codec");
  CHECK(message(failure(context, pool.submit(stubborn, +throws_encoding))) == "a defect in the codec");
  CHECK(run(context, pool.submit(twice, 1)) == 2);
}

TEST_CASE("A codec that writes another size each time fails its task and nothing else", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(holds<SerializationError>(failure(context, pool.submit(mode_of, stubborn(changes_size)))));
  CHECK(holds<SerializationError>(failure(context, pool.submit(stubborn, +changes_size))));
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(pool.metrics().workers_crashed == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cancellation.

TEST_CASE("A queued task that is cancelled never runs", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  const auto type =
      GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Occupied occupied(context, pool);
  asio::cancellation_signal signal;
  Outcome<void> cancelled;
  Outcome<void> other;
  pool.async_submit(bulkhead::call(note, 1), asio::bind_cancellation_slot(signal.slot(), cancelled.handler()));
  pool.async_submit(bulkhead::call(note, 2), other.handler());
  signal.emit(type);
  CHECK(cancelled.calls == 0);
  REQUIRE(run_until(context, [&] { return cancelled.calls == 1; }));
  CHECK(cancelled_stage(cancelled.error) == TaskCancelledError::Stage::queued);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return other.calls == 1; }));
  CHECK(order() == std::vector{2});
  CHECK(cancelled.calls == 1);
  CHECK(pool.metrics().cancelled == 1);
  CHECK(pool.metrics().workers_crashed == 0);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("A running task that is cancelled terminally dies with its worker; other cancellations leave it", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  asio::cancellation_signal signal;
  Outcome<int> outcome;
  pool.async_submit(bulkhead::call(wait_at_gate, 1), asio::bind_cancellation_slot(signal.slot(), outcome.handler()));
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && whole(pool); }));
  const std::vector<Process> before = processes_of(pool);
  signal.emit(asio::cancellation_type::partial);
  signal.emit(asio::cancellation_type::total);
  settle(context);
  CHECK(outcome.calls == 0);
  CHECK_FALSE(all_gone(before));
  signal.emit(asio::cancellation_type::terminal);
  CHECK(outcome.calls == 0);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::running);
  CHECK(run_until(context, [&] { return all_gone(before); }));
  CHECK(run(context, pool.submit(twice, 2)) == 4);
  CHECK(pool.metrics().cancelled == 1);
  CHECK(pool.metrics().workers_crashed == 0);
  CHECK(adds_up(pool.metrics()));
}

// ---------------------------------------------------------------------------------------------------------------------
// The end.

TEST_CASE("shutdown before the first submit, twice and at the same time ends each time", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, bypass));
  int over = 0;
  const auto ended = [&over](std::exception_ptr error) { over += error ? 100 : 1; };
  asio::co_spawn(context, pool.shutdown(), ended);
  asio::co_spawn(context, pool.shutdown(), ended);
  REQUIRE(run_until(context, [&] { return over >= 2; }));
  run(context, pool.shutdown());
  CHECK(over == 2);
  CHECK(pool.metrics().workers == 0);
  CHECK(pool.worker_pids().empty());
}

TEST_CASE("After shutdown no worker is left, and a submit fails with ExecutorNotRunningError", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2, bypass));
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  const std::vector<Process> processes = processes_of(pool);
  run(context, pool.shutdown());
  CHECK(all_gone(processes));
  CHECK(pool.metrics().workers == 0);
  CHECK(pool.metrics().workers_crashed == 0);
  CHECK(holds<ExecutorNotRunningError>(failure(context, pool.submit(twice, 1))));
  CHECK(pool.metrics().rejected == 1);
  CHECK(pool.metrics().submitted == 1);
}

TEST_CASE("shutdown waits for what runs and for what is queued", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, bypass));
  Occupied occupied(context, pool);
  std::array<Outcome<void>, 5> outcomes;
  for (int i = 0; i < 5; ++i) {
    pool.async_submit(bulkhead::call(note, i), outcomes[static_cast<std::size_t>(i)].handler());
  }
  bool over = false;
  asio::co_spawn(context, pool.shutdown(), [&](std::exception_ptr) { over = true; });
  if (!bypass) {
    settle(context);
    CHECK_FALSE(over);
  }
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return over; }));
  for (const auto& outcome : outcomes) {
    CHECK(outcome.calls == 1);
    CHECK_FALSE(outcome.error);
  }
  CHECK(order() == std::vector{0, 1, 2, 3, 4});
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("shutdown with a timeout kills what still runs", "[local]") {
  reset_board();
  const auto timeout = GENERATE(0ms, 20ms);
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Occupied occupied(context, pool);
  Outcome<void> queued;
  pool.async_submit(bulkhead::call(note, 1), queued.handler());
  const std::vector<Process> processes = processes_of(pool);
  ShutdownOptions options;
  options.timeout = timeout;
  run(context, pool.shutdown(options));
  CHECK(all_gone(processes));
  settle(context);
  CHECK(occupied.gate.calls == 1);
  CHECK(cancelled_stage(occupied.gate.error) == TaskCancelledError::Stage::running);
  CHECK(cancelled_stage(queued.error) == TaskCancelledError::Stage::queued);
  CHECK(order().empty());
  CHECK(pool.metrics().cancelled == 2);
  CHECK(pool.metrics().workers == 0);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("shutdown of a bypass executor with a timeout cancels what has not run by then", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, true));
  std::array<Outcome<int>, 100> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(sleep_for, 10), outcome.handler());
  ShutdownOptions options;
  options.timeout = 1ms;
  run(context, pool.shutdown(options));
  REQUIRE(run_until(context, [&] { return outcomes.back().calls == 1; }));
  for (const auto& outcome : outcomes) CHECK(outcome.calls == 1);
  CHECK_FALSE(outcomes.front().error);
  CHECK(cancelled_stage(outcomes.back().error) == TaskCancelledError::Stage::queued);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("shutdown that cancels what is pending lets the running task end", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Occupied occupied(context, pool);
  std::array<Outcome<void>, 3> queued;
  for (auto& outcome : queued) pool.async_submit(bulkhead::call(note, 1), outcome.handler());
  ShutdownOptions options;
  options.cancel_pending = true;
  bool over = false;
  asio::co_spawn(context, pool.shutdown(options), [&](std::exception_ptr) { over = true; });
  REQUIRE(run_until(context, [&] { return pool.metrics().cancelled == 3; }));
  settle(context);
  for (const auto& outcome : queued) CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  CHECK_FALSE(over);
  CHECK(occupied.gate.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return over; }));
  CHECK(occupied.gate.value == 1);
  CHECK(order().empty());
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("In bypass shutdown cancels what is pending, too", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1, true));
  std::array<Outcome<void>, 3> queued;
  for (auto& outcome : queued) pool.async_submit(bulkhead::call(note, 1), outcome.handler());
  ShutdownOptions options;
  options.cancel_pending = true;
  run(context, pool.shutdown(options));
  settle(context);
  int cancelled = 0;
  for (const auto& outcome : queued) {
    CHECK(outcome.calls == 1);
    if (cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued) ++cancelled;
  }
  CHECK(static_cast<std::size_t>(cancelled) == 3 - order().size());
  CHECK(cancelled >= 1);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("shutdown without wait returns at once; tasks end, and then the workers", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  Outcome<int> outcome;
  pool.async_submit(bulkhead::call(wait_at_gate, 3), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1; }));
  const std::vector<Process> processes = processes_of(pool);
  ShutdownOptions options;
  options.wait = false;
  run(context, pool.shutdown(options));
  CHECK(outcome.calls == 0);
  CHECK(holds<ExecutorNotRunningError>(failure(context, pool.submit(twice, 1))));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(outcome.value == 3);
  CHECK(run_until(context, [&] { return all_gone(processes); }));
  CHECK(run_until(context, [&] { return pool.metrics().workers == 0; }));
}

TEST_CASE("shutdown without wait of an idle pool lets its workers go", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  REQUIRE(run_until(context, [&] { return whole(pool); }));
  const std::vector<Process> processes = processes_of(pool);
  ShutdownOptions options;
  options.wait = false;
  run(context, pool.shutdown(options));
  CHECK(run_until(context, [&] { return all_gone(processes); }));
  run(context, pool.shutdown());
}

TEST_CASE("Those who wait for admission are refused at shutdown over workers and in bypass", "[local]") {
  reset_board();
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  LocalExecutorOptions options = workers(1, bypass);
  options.max_pending = 1;
  options.overload = OverloadPolicy::wait;
  LocalExecutor pool(context.get_executor(), options);
  Occupied occupied(context, pool);
  std::array<Outcome<void>, 3> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(note, 1), outcome.handler());
  bool over = false;
  // Posted before anything of the pool, so that it comes first in bypass, too.
  ShutdownOptions at_once;
  at_once.wait = false;
  asio::co_spawn(context, pool.shutdown(at_once), [&](std::exception_ptr) { over = true; });
  const std::size_t accepted = bypass ? 1 : 0;
  REQUIRE(run_until(context, [&] { return over && outcomes[2].calls == 1; }));
  board.gate.open = 1;
  run(context, pool.shutdown());
  settle(context);
  for (const auto& outcome : outcomes) CHECK(outcome.calls == 1);
  CHECK(holds<ExecutorNotRunningError>(outcomes[2].error));
  CHECK(order().size() >= accepted);
  CHECK(pool.metrics().waiting == 0);
  CHECK(adds_up(pool.metrics()));
}

TEST_CASE("Destroying a pool with tasks in flight cancels them all, and no process is left", "[local]") {
  reset_board();
  asio::io_context context;
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(2));
  std::array<Outcome<int>, 2> running;
  std::array<Outcome<void>, 5> queued;
  for (auto& outcome : running) pool->async_submit(bulkhead::call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2 && whole(*pool); }));
  for (auto& outcome : queued) pool->async_submit(bulkhead::call(note, 1), outcome.handler());
  const std::vector<Process> processes = processes_of(*pool);
  pool.reset();
  for (const auto& outcome : running) CHECK(outcome.calls == 0);
  REQUIRE(run_until(context, [&] {
    return std::all_of(queued.begin(), queued.end(), [](const auto& outcome) { return outcome.calls == 1; }) &&
           running[0].calls + running[1].calls == 2;
  }));
  for (const auto& outcome : running) CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::running);
  for (const auto& outcome : queued) CHECK(cancelled_stage(outcome.error) == TaskCancelledError::Stage::queued);
  CHECK(order().empty());
  CHECK(run_until(context, [&] { return all_gone(processes); }));
}

TEST_CASE("Destroying a bypass executor cancels what has not begun, and a late submit is refused", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  reset_board();
  asio::io_context context;
  std::optional<LocalExecutor> pool(std::in_place, context.get_executor(), workers(1, bypass));
  auto late = pool->submit(twice, 1);
  std::array<Outcome<int>, 3> outcomes;
  for (auto& outcome : outcomes) pool->async_submit(bulkhead::call(twice, 1), outcome.handler());
  pool.reset();
  REQUIRE(run_until(context, [&] { return outcomes[2].calls == 1; }));
  for (const auto& outcome : outcomes) {
    CHECK(outcome.calls == 1);
    CHECK(cancelled_stage(outcome.error).has_value());
  }
  CHECK_THROWS_AS(run(context, std::move(late)), ExecutorNotRunningError);
}

TEST_CASE("A pool that is destroyed at once leaves no process", "[local]") {
  asio::io_context context;
  for (int i = 0; i < 20; ++i) LocalExecutor pool(context.get_executor(), workers(3));
  LocalExecutor last(context.get_executor(), workers(1));
  CHECK(run(context, last.submit(twice, 1)) == 2);
}

TEST_CASE("A new executor of the same name works after the old one was shut down", "[local]") {
  const bool bypass = GENERATE(false, true);
  CAPTURE(bypass);
  asio::io_context context;
  for (int i = 0; i < 3; ++i) {
    LocalExecutor pool(context.get_executor(), workers(1, bypass));
    CHECK(run(context, pool.submit(twice, i)) == 2 * i);
    run(context, pool.shutdown());
    CHECK(pool.metrics().submitted == 1);
  }
}

TEST_CASE("An enumeration with a codec of its own is carried without the executor's mutex", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(twice, 1)) == 2);  // its worker is there, and was forked
  Asked questions;
  questions.executor = &pool;
  asked = &questions;
  std::array<Outcome<Curious>, 3> outcomes;  // the later ones go to a worker that is at something
  for (auto& outcome : outcomes) pool.async_submit(bulkhead::call(same_curious, Curious::value), outcome.handler());
  CHECK(run_until(context, [&] {
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.calls == 1; });
  }));
  asked = nullptr;
  for (const auto& outcome : outcomes) CHECK(outcome.value == Curious::value);
  CHECK(questions.times >= 6);
  CHECK(questions.in_vain == 0);
}
