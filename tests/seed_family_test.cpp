// SPDX-License-Identifier: BSL-1.0
// What the executors of the three systems could that came before this family, and the defects A1 to A18 (asyncz) and F1
// to F24 (flowrra) that were found in them, each with a test that shows that ours does not share it. G1 to G15 are in
// seed_defects_test.
//
// Without a counterpart here is F7, a consumer that dies of any broker error but a timeout: the core has no broker. Nor
// have what Redis and its broker did wrong in F8 (a task popped before it is run), F9 (running tasks pushed back), F11
// (priorities ignored) and F13 (a look, and then a subscription); what is like it in memory is tested under the number.
#include <bulkhead/bulkhead.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/sanitizer.hpp"
#include "support/shared.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/system/system_error.hpp>

#include <fmt/format.h>

#include <poll.h>
#include <pthread.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::BaseExecutor;
using bulkhead::call;
using bulkhead::CaptureOutput;
using bulkhead::CommonOptions;
using bulkhead::DuplicateTaskError;
using bulkhead::Event;
using bulkhead::EventKind;
using bulkhead::EventMask;
using bulkhead::Executor;
using bulkhead::ExecutorNotRunningError;
using bulkhead::ExecutorOptions;
using bulkhead::ExecutorOverloadError;
using bulkhead::ExecutorRegistry;
using bulkhead::FunctionUnavailableError;
using bulkhead::HybridExecutor;
using bulkhead::HybridExecutorOptions;
using bulkhead::InlineExecutor;
using bulkhead::InstanceGroup;
using bulkhead::IoExecutor;
using bulkhead::IoExecutorOptions;
using bulkhead::kTaskEvents;
using bulkhead::kTerminalEvents;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::MaxInstancesError;
using bulkhead::Metrics;
using bulkhead::MissedRuns;
using bulkhead::OptionMap;
using bulkhead::OverloadPolicy;
using bulkhead::RemoteTaskError;
using bulkhead::ResultNotFoundError;
using bulkhead::ResultStore;
using bulkhead::ResultStoreOptions;
using bulkhead::RetryError;
using bulkhead::RetryPolicy;
using bulkhead::ScheduleOptions;
using bulkhead::SerializationError;
using bulkhead::ShutdownOptions;
using bulkhead::SubscribeOptions;
using bulkhead::Subscription;
using bulkhead::TaskCancelledError;
using bulkhead::TaskHandle;
using bulkhead::TaskId;
using bulkhead::TaskOptions;
using bulkhead::TaskRegistry;
using bulkhead::TaskSignatureError;
using bulkhead::TaskStatus;
using bulkhead::TaskTimeoutError;
using bulkhead::ThreadExecutor;
using bulkhead::ThreadExecutorOptions;
using bulkhead::UnknownTaskError;
using bulkhead::WorkerCrashedError;
using bulkhead::test::adds_up;
using bulkhead::test::all_over;
using bulkhead::test::cancelled_stage;
using bulkhead::test::error_as;
using bulkhead::test::Gate;
using bulkhead::test::holds;
using bulkhead::test::kDeadline;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::open_descriptors;
using bulkhead::test::Outcome;
using bulkhead::test::poll_until;
using bulkhead::test::Process;
using bulkhead::test::Program;
using bulkhead::test::run;
using bulkhead::test::run_until;
using bulkhead::test::settle;
using bulkhead::test::shared_object;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::EndsWith;
using Catch::Matchers::StartsWith;
using namespace std::chrono_literals;
namespace this_task = bulkhead::this_task;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// What tasks share with the tests.

struct Board {
  Gate gate;
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
  std::atomic<int> starts{0};  // of workers
  std::atomic<int> running{0};
  std::atomic<int> most_running{0};
  std::atomic<std::size_t> written{0};
  std::array<std::atomic<int>, 64> order{};  // in which tasks ran
};
Board& board = shared_object<Board>();

void reset_board() {
  board.gate.reset();
  for (auto* number : {&board.begun, &board.ended, &board.starts, &board.running, &board.most_running}) *number = 0;
  board.written = 0;
}

std::vector<int> order() {
  const auto end =
      board.order.begin() + static_cast<std::ptrdiff_t>(std::min(board.written.load(), board.order.size()));
  return std::vector<int>(board.order.begin(), end);
}

// ---------------------------------------------------------------------------------------------------------------------
// What runs as a task. None of it asserts: results and the board tell.

int twice(int value) { return 2 * value; }
int add(int left, int right) { return left + right; }
int pid_here() { return ::getpid(); }
int refuse(int value) { throw std::runtime_error(fmt::format("refused {}", value)); }
int die(int signal) { return ::raise(signal); }
int leave(int code) { std::exit(code); }
int throw_number(int value) { throw value; }
void count_start() { ++board.starts; }

int count(int value) {
  ++board.begun;
  ++board.ended;
  return value;
}
int count_and_refuse(int value) {
  ++board.begun;
  throw std::runtime_error(fmt::format("refused {}", value));
}
int count_and_die(int signal) {
  ++board.begun;
  return ::raise(signal);
}
int wait_at_gate(int value) {
  board.gate.wait();
  ++board.ended;
  return value;
}
int note(int value) {
  const std::size_t place = board.written++;
  if (place < board.order.size()) board.order[place] = value;
  return value;
}
// The most that run at the same time are on the board.
int overlap(int value) {
  const int now = ++board.running;
  int most = board.most_running;
  while (most < now && !board.most_running.compare_exchange_weak(most, now)) {
  }
  ::poll(nullptr, 0, 1);
  --board.running;
  return value;
}
// Gives `value` once `number` tasks have begun, and -1 if they never do.
int meet(int value, int number) {
  ++board.begun;
  return poll_until([number] { return board.begun >= number; }, kDeadline) ? value : -1;
}
unsigned succeed_at_run(unsigned number) {
  ++board.begun;
  if (this_task::attempt() < number) throw std::runtime_error(fmt::format("run {}", this_task::attempt()));
  return this_task::attempt();
}
// Its first run returns, and all others do as they are told.
int wait_from_second_run(int value) {
  if (++board.begun > 1) board.gate.wait();
  return value;
}
int die_at_second_run(int value) {
  if (++board.begun == 2) ::raise(SIGKILL);
  return value;
}
long sum_below(long end) {
  long sum = 0;
  for (long i = 0; i < end; ++i) sum += i;
  return sum;
}
std::string thread_name() {
  std::array<char, 16> name{};
  ::pthread_getname_np(::pthread_self(), name.data(), name.size());
  return name.data();
}
std::string trace_seen() { return this_task::trace_parent(); }
std::size_t write_and_read(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
  std::ifstream file(path);
  std::stringstream read;
  read << file.rdbuf();
  return read.str() == text ? text.size() : 0;
}
bool write_whole(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t size = ::write(fd, text.data(), text.size());
    if (size < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(size));
  }
  return true;
}
// One large record, as a logger would write it.
int print_record(char letter, std::size_t size, bool to_output) {
  std::string record(size, letter);
  record.back() = '\n';
  const bool good = write_whole(STDERR_FILENO, record) && (!to_output || write_whole(STDOUT_FILENO, record));
  return good ? 1 : 0;
}
int print_and_abort(char letter, std::size_t size) {
  print_record(letter, size, false);
  ::raise(SIGKILL);
  return 0;
}
template <class T>
T echo(const T& value) {
  return value;
}

// A value that no other process can be given.
struct Stubborn {
  bool encodable = true;
};
Stubborn stubborn(bool encodable) {
  ++board.begun;
  Stubborn value;
  value.encodable = encodable;
  return value;
}
bool take(const Stubborn& value) {
  ++board.begun;
  return value.encodable;
}

// An exception that nobody has registered, with something in it that is here only.
class HandleError : public std::runtime_error {
 public:
  explicit HandleError(const std::string& text) : std::runtime_error(text), handle_(std::make_shared<int>(3)) {}
  int handle() const { return *handle_; }

 private:
  std::shared_ptr<int> handle_;
};
int throw_handle(int value) { throw HandleError(fmt::format("the handle of {} is lost", value)); }
int throw_nested(int value) {
  try {
    throw std::out_of_range("the inner cause");
  } catch (...) {
    std::throw_with_nested(HandleError(fmt::format("the handle of {} is lost", value)));
  }
}

asio::awaitable<void> pause_for(std::chrono::nanoseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(asio::use_awaitable);
}
asio::awaitable<int> twice_later(int value) {
  co_await pause_for(1us);
  co_return 2 * value;
}
// As wait_at_gate, but the event loop goes on.
asio::awaitable<int> wait_at_gate_there(int value) {
  ++board.gate.waiting;
  while (board.gate.open == 0) co_await pause_for(1ms);
  ++board.ended;
  co_return value;
}
asio::awaitable<int> meet_there(int value, int number) {
  ++board.begun;
  while (board.begun < number) co_await pause_for(100us);
  co_return value;
}
asio::awaitable<int> note_there(int value) {
  co_await pause_for(1us);
  co_return note(value);
}
asio::awaitable<unsigned> succeed_at_run_there(unsigned number) {
  co_await pause_for(1us);
  co_return succeed_at_run(number);
}
asio::awaitable<int> refuse_later(int value) {
  co_await pause_for(1us);
  co_return refuse(value);
}
asio::awaitable<std::string> trace_seen_there() {
  co_await pause_for(1us);
  co_return trace_seen();
}

// Two functions of one name.
namespace left {
int answer() { return 1; }
}  // namespace left
namespace right {
int answer() { return 2; }
}  // namespace right

// ---------------------------------------------------------------------------------------------------------------------
// Tools of the tests.

template <class Options>
Options with(const CommonOptions& common) {
  Options options;
  options.name = common.name;
  options.max_pending = common.max_pending;
  options.overload = common.overload;
  options.instances = common.instances;
  options.tasks = common.tasks;
  options.results = common.results;
  return options;
}

// An executor of one of the registry's types that runs so many tasks at once.
std::shared_ptr<BaseExecutor> make(const std::string& type, const asio::any_io_executor& io, unsigned number = 1,
                                   const CommonOptions& common = {}) {
  if (type == "local" || type == "bypass") {
    auto options = with<LocalExecutorOptions>(common);
    options.max_workers = number;
    options.bypass = type == "bypass";
    return std::make_shared<LocalExecutor>(io, options);
  }
  if (type == "io") {
    auto options = with<IoExecutorOptions>(common);
    options.max_concurrent = number;
    options.max_threads = number;
    return std::make_shared<IoExecutor>(io, options);
  }
  if (type == "inline") return std::make_shared<InlineExecutor>(io, common);
  if (type == "hybrid") {
    CommonOptions of_member;
    of_member.max_pending = 100'000;
    std::vector<std::shared_ptr<BaseExecutor>> members{make("thread", io, number, of_member)};
    return std::make_shared<HybridExecutor>(io, std::move(members), with<HybridExecutorOptions>(common));
  }
  auto options = with<ThreadExecutorOptions>(common);
  options.max_threads = number;
  return std::make_shared<ThreadExecutor>(io, options);
}
std::shared_ptr<BaseExecutor> make(const std::string& type, asio::io_context& context, unsigned number = 1,
                                   const CommonOptions& common = {}) {
  return make(type, asio::any_io_executor(context.get_executor()), number, common);
}

CommonOptions named(std::string name) {
  CommonOptions options;
  options.name = std::move(name);
  return options;
}
CommonOptions limited(std::size_t max_pending, OverloadPolicy overload = OverloadPolicy::reject) {
  CommonOptions options;
  options.max_pending = max_pending;
  options.overload = overload;
  return options;
}
ThreadExecutorOptions threads(unsigned number) {
  ThreadExecutorOptions options;
  options.max_threads = number;
  return options;
}

// What a task failed with; null if it returned.
template <class T>
std::exception_ptr failure(asio::io_context& context, asio::awaitable<T> task) {
  try {
    run(context, std::move(task));
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

// For what others left waiting until a function returned, which takes up to a minute at a gate that stays closed.
constexpr std::chrono::seconds kLongBeforeTheGate{20};

// Lets the event loop go on for so long: what others did wrong after that time is not to happen.
void let_pass(asio::io_context& context, std::chrono::nanoseconds time) { run(context, pause_for(time)); }

// Opens the gate for a function on a thread that nobody waits for any more, and waits for its end: it must not meet the
// next test. In a process it has been killed.
void let_go(const std::string& type) {
  board.gate.open = 1;
  if (type != "local") REQUIRE(poll_until([] { return board.ended > 0; }, kDeadline));
}

// The events of an executor, as they came.
class Told {
 public:
  explicit Told(BaseExecutor& executor, EventMask mask = kTaskEvents) {
    SubscribeOptions options;
    options.queue_size = 100'000;
    subscription_ = executor.subscribe([this](const Event& event) { events_.push_back(event); }, mask, options);
  }

  const std::vector<Event>& events() const { return events_; }
  std::vector<Event> of(const std::string& task) const {
    std::vector<Event> found;
    std::copy_if(events_.begin(), events_.end(), std::back_inserter(found),
                 [&](const Event& event) { return event.task == task; });
    return found;
  }
  // What happened to the tasks of this name: "submitted started succeeded".
  std::string story(const std::string& task) const {
    std::string story;
    for (const Event& event : of(task)) {
      story += story.empty() ? "" : " ";
      story += to_string(event.kind);
    }
    return story;
  }
  std::size_t count(EventMask kinds) const {
    return static_cast<std::size_t>(
        std::count_if(events_.begin(), events_.end(), [&](const Event& event) { return kinds.contains(event.kind); }));
  }
  std::size_t ends() const { return count(kTerminalEvents); }
  std::exception_ptr last_error() const { return events_.empty() ? nullptr : events_.back().error; }

 private:
  std::vector<Event> events_;
  Subscription subscription_;
};

// An executor whose end fails.
class Wedged final : public BaseExecutor {
 public:
  explicit Wedged(asio::any_io_executor io) : BaseExecutor(std::move(io), named("wedged")) {}
  ~Wedged() override { close(); }

 protected:
  void execute(bulkhead::Task task) override { task.run(); }
  asio::awaitable<void> stop(ShutdownOptions) override {
    throw std::runtime_error("it is stuck");
    co_return;
  }
};

}  // namespace

template <>
struct bulkhead::codec<Stubborn> {
  static void encode(Encoder& encoder, const Stubborn& value) {
    if (!value.encodable) {
      throw SerializationError(SerializationError::Part::value, "Stubborn", "it does not want to");
    }
    bulkhead::encode(encoder, value.encodable);
  }
  static Stubborn decode(Decoder& decoder) {
    Stubborn value;
    value.encodable = bulkhead::decode<bool>(decoder);
    return value;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The unified Executor (1.4).

namespace {

ExecutorOptions small() {
  ExecutorOptions options;
  options.processes.max_workers = 2;
  return options;
}

}  // namespace

TEST_CASE("The unified Executor runs between startup and shutdown, and each of them twice is once", "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  CHECK_FALSE(executor.is_running());
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());

  run(context, executor.startup());
  CHECK(executor.is_running());
  const auto threads_before = executor.threads();
  const auto processes_before = executor.processes();
  run(context, executor.startup());
  CHECK(executor.threads() == threads_before);
  CHECK(executor.processes() == processes_before);
  CHECK(run(context, executor.run_blocking(twice, 21)) == 42);
  CHECK(executor.metrics().size() == 2);

  run(context, executor.shutdown());
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());
  CHECK(executor.threads() == nullptr);
  CHECK(executor.processes() == nullptr);
  CHECK(executor.metrics().empty());
}

TEST_CASE("Calls of a unified Executor that is not started fail at once, say what to do, and never run", "[unified]") {
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  const auto check_refusals = [&] {
    const auto blocking = failure(context, executor.run_blocking(count, 1));
    const auto process = failure(context, executor.run_process(count, 1));
    CHECK(holds<ExecutorNotRunningError>(blocking));
    CHECK(holds<ExecutorNotRunningError>(process));
    CHECK_THAT(message(blocking), ContainsSubstring("not started. Call startup() first"));
    CHECK_THAT(message(process), ContainsSubstring("not started. Call startup() first"));
  };
  check_refusals();
  run(context, executor.startup());
  run(context, executor.shutdown());
  check_refusals();
  CHECK(board.begun == 0);
}

TEST_CASE("run_blocking takes arguments, gives results and exceptions, and reads and writes files", "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  CHECK(run(context, executor.run_blocking(add, 2, 3)) == 5);
  CHECK(run(context, executor.run_blocking(pid_here)) == ::getpid());
  const auto path = std::filesystem::temp_directory_path() / fmt::format("bulkhead-seed-{}", ::getpid());
  const std::string text(10'000, 't');
  CHECK(run(context, executor.run_blocking(write_and_read, path.string(), text)) == text.size());
  std::filesystem::remove(path);
  const auto error = failure(context, executor.run_blocking(refuse, 3));
  CHECK(holds<std::runtime_error>(error));
  CHECK(message(error) == "refused 3");
  run(context, executor.shutdown());
}

TEST_CASE("run_process computes in another process, and gives its results and exceptions", "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  CHECK(run(context, executor.run_process(add, 2, 3)) == 5);
  CHECK(run(context, executor.run_process(sum_below, 1'000'000L)) == 499'999'500'000L);
  CHECK(run(context, executor.run_process(pid_here)) != ::getpid());
  CHECK(message(failure(context, executor.run_process(refuse, 3))) == "refused 3");
  run(context, executor.shutdown());
}

TEST_CASE("Four blocking calls are under way at the same time, and give their results in order", "[unified]") {
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  std::vector<asio::awaitable<int>> calls;
  for (int i = 0; i < 4; ++i) calls.push_back(executor.run_blocking(meet, i, 4));
  CHECK(run(context, bulkhead::when_all(std::move(calls))) == std::vector<int>{0, 1, 2, 3});
  run(context, executor.shutdown());
}

TEST_CASE("A unified Executor has up to forty threads unless told otherwise, and they carry its name", "[unified]") {
  CHECK(ExecutorOptions().threads.max_threads == 40);
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  CHECK(executor.threads()->options().max_threads == 40);
  CHECK(executor.threads()->metrics().workers == 0);
  CHECK_THAT(run(context, executor.run_blocking(thread_name)), StartsWith("blocking/"));
  run(context, executor.shutdown());
}

TEST_CASE("A unified Executor's shutdown waits for the tasks of both, or lets them end by themselves", "[unified]") {
  const bool wait = GENERATE(true, false);
  CAPTURE(wait);
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  std::array<Outcome<>, 2> tasks;
  executor.threads()->async_submit(call(wait_at_gate, 1), tasks[0].handler());
  executor.processes()->async_submit(call(wait_at_gate, 2), tasks[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  ShutdownOptions options;
  options.wait = wait;
  Outcome<void> shutdown;
  asio::co_spawn(context, executor.shutdown(options), shutdown.handler());
  if (!wait) REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
  settle(context);
  CHECK(shutdown.calls == (wait ? 0 : 1));
  CHECK_FALSE(executor.is_running());
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(tasks) && shutdown.calls == 1; }));
  CHECK(tasks[0].value == 1);
  CHECK(tasks[1].value == 2);
}

TEST_CASE("A unified Executor that is started again lets the tasks of its first life end", "[unified]") {
  reset_board();
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  run(context, executor.startup());
  std::array<Outcome<>, 2> tasks;
  asio::co_spawn(context, executor.run_blocking(wait_at_gate, 1), tasks[0].handler());
  asio::co_spawn(context, executor.run_process(wait_at_gate, 2), tasks[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  ShutdownOptions options;
  options.wait = false;
  run(context, executor.shutdown(options));
  run(context, executor.startup());
  CHECK(run(context, executor.run_blocking(twice, 1)) == 2);
  CHECK(run(context, executor.run_process(twice, 1)) == 2);
  CHECK(tasks[0].calls + tasks[1].calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(tasks); }));
  CHECK(tasks[0].value == 1);
  CHECK(tasks[1].value == 2);
  run(context, executor.shutdown());
}

TEST_CASE("Options of a unified Executor that make no sense are refused by startup, and it does not run", "[unified]") {
  asio::io_context context;
  ExecutorOptions options = small();
  options.threads.max_threads = 0;
  Executor executor(context.get_executor(), options);
  const auto error = failure(context, executor.startup());
  CHECK(holds<std::invalid_argument>(error));
  CHECK_THAT(message(error), ContainsSubstring("'max_threads'"));
  CHECK_FALSE(executor.is_running());
  CHECK(holds<ExecutorNotRunningError>(failure(context, executor.run_process(twice, 1))));
}

TEST_CASE("get_executor gives one Executor to all threads, not started, which works once it is", "[unified]") {
  std::array<Executor*, 8> got{};
  {
    std::vector<std::thread> threads;
    for (Executor*& mine : got) threads.emplace_back([&mine] { mine = &bulkhead::get_executor(); });
    for (std::thread& thread : threads) thread.join();
  }
  for (const Executor* mine : got) CHECK(mine == got[0]);
  Executor& executor = bulkhead::get_executor();
  CHECK(&executor == got[0]);
  CHECK_FALSE(executor.is_running());
  asio::io_context context;
  run(context, executor.startup());
  CHECK(run(context, executor.run_blocking(twice, 21)) == 42);
  CHECK(run(context, executor.run_process(twice, 4)) == 8);
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());
}

// ---------------------------------------------------------------------------------------------------------------------
// Long jobs (1.4, TaskManager): handles and their results.

TEST_CASE("A spawned task is queued, then running, then succeeded, and its result stays", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto first = executor->spawn(wait_at_gate, 1);
  const auto second = executor->spawn(TaskOptions().name("second"), wait_at_gate, 2);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(first.status() == TaskStatus::running);
  CHECK(second.status() == TaskStatus::queued);
  CHECK(executor->status(second.id()) == TaskStatus::queued);
  CHECK(second.name() == "second");
  CHECK_FALSE(executor->get_result<int>(second.id()));
  board.gate.open = 1;
  CHECK(run(context, first.result()) == 1);
  CHECK(run(context, second.result()) == 2);
  CHECK(first.status() == TaskStatus::succeeded);
  CHECK(executor->status(second.id()) == TaskStatus::succeeded);
  // Once more, and from the store.
  CHECK(run(context, second.result()) == 2);
  CHECK(executor->get_result<int>(second.id()) == 2);
  CHECK(run(context, executor->wait_for_result<int>(first.id())) == 1);
}

TEST_CASE("Each status has a name, and four of them are ends", "[handle]") {
  std::string names;
  int ends = 0;
  for (const auto status : {TaskStatus::queued, TaskStatus::running, TaskStatus::retrying, TaskStatus::succeeded,
                            TaskStatus::failed, TaskStatus::cancelled, TaskStatus::timed_out}) {
    names += fmt::format("{}, ", to_string(status));
    if (is_over(status)) ++ends;
  }
  CHECK(names == "queued, running, retrying, succeeded, failed, cancelled, timed out, ");
  CHECK(ends == 4);
}

TEST_CASE("A spawned task that throws has failed, and gives its error to everyone who waits", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  const auto handle = executor->spawn(refuse, 7);
  std::array<Outcome<>, 3> waiters;
  for (auto& waiter : waiters) asio::co_spawn(context, handle.result(), waiter.handler());
  REQUIRE(run_until(context, [&] { return all_over(waiters); }));
  for (const auto& waiter : waiters) {
    CHECK(holds<std::runtime_error>(waiter.error));
    CHECK(message(waiter.error) == "refused 7");
  }
  CHECK(handle.status() == TaskStatus::failed);
  CHECK_THROWS_AS(executor->get_result<int>(handle.id()), std::runtime_error);
}

TEST_CASE("A wait for a result ends at its limit, and the task goes on", "[handle]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  const auto handle = executor.spawn(wait_at_gate, 5);
  const auto early = error_as<TaskTimeoutError>(failure(context, handle.result(1ms)));
  REQUIRE(early);
  CHECK(early->which() == TaskTimeoutError::Which::wait);
  const auto late = error_as<TaskTimeoutError>(failure(context, executor.wait_for_result<int>(handle.id(), 1ms)));
  REQUIRE(late);
  CHECK(late->which() == TaskTimeoutError::Which::wait);
  CHECK_FALSE(is_over(handle.status()));
  board.gate.open = 1;
  CHECK(run(context, handle.result(kDeadline)) == 5);
}

TEST_CASE("An id that belongs to no task has neither a status nor a result", "[handle]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  const TaskId unknown = TaskId::make();
  CHECK_FALSE(executor.status(unknown));
  CHECK_THROWS_AS(executor.get_result<int>(unknown), ResultNotFoundError);
  CHECK_THROWS_AS(run(context, executor.wait_for_result<int>(unknown)), ResultNotFoundError);
}

TEST_CASE("A store counts and clears the tasks that are over, and keeps those that run", "[handle]") {
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.results = std::make_shared<ResultStore>();
  const auto executor = make("thread", context, 2, options);
  const auto held = executor->spawn(wait_at_gate, 1);
  std::vector<TaskHandle<int>> handles;
  for (int i = 0; i < 5; ++i) handles.push_back(executor->spawn(i % 2 == 0 ? twice : refuse, i));
  REQUIRE(run_until(context, [&] {
    return std::all_of(handles.begin(), handles.end(), [](const auto& handle) { return is_over(handle.status()); });
  }));
  REQUIRE(run_until(context, [&] { return options.results->size() == 5; }));
  CHECK(options.results->unfinished() == 1);
  CHECK(options.results->remove(handles[0].id()));
  CHECK_FALSE(options.results->remove(handles[0].id()));
  CHECK_FALSE(options.results->remove(held.id()));
  CHECK(options.results->clear() == 4);
  CHECK(options.results->size() == 0);
  CHECK(options.results->unfinished() == 1);
  CHECK_THROWS_AS(executor->get_result<int>(handles[2].id()), ResultNotFoundError);
  // A handle has its task's result all the same.
  CHECK(run(context, handles[2].result()) == 4);
  board.gate.open = 1;
  CHECK(run(context, held.result()) == 1);
}

TEST_CASE("A task that has not begun is cancelled for sure, and one that is over is not", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto over = executor->spawn(twice, 1);
  CHECK(run(context, over.result()) == 2);
  const auto held = executor->spawn(wait_at_gate, 1);
  const auto queued = executor->spawn(count, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  over.cancel();
  queued.cancel();
  CHECK(cancelled_stage(failure(context, queued.result())) == TaskCancelledError::Stage::queued);
  CHECK(queued.status() == TaskStatus::cancelled);
  CHECK(over.status() == TaskStatus::succeeded);
  CHECK(run(context, over.result()) == 2);
  board.gate.open = 1;
  CHECK(run(context, held.result()) == 1);
  run(context, executor->shutdown());
  CHECK(board.begun == 0);
}

TEST_CASE("Every task has an id of its own that text carries, so that none takes the place of another", "[handle]") {
  asio::io_context context;
  CommonOptions options = limited(10'000);
  options.results = std::make_shared<ResultStore>();
  const auto one = make("thread", context, 2, options);
  const auto other = make("thread", context, 2, options);
  std::set<TaskId> ids;
  for (int i = 0; i < 200; ++i) {
    ids.insert(one->spawn(TaskOptions().name("the same"), twice, i).id());
    ids.insert(other->spawn(TaskOptions().name("the same"), twice, i).id());
  }
  CHECK(ids.size() == 400);
  for (const TaskId& id : ids) CHECK(TaskId::parse(id.to_string()) == id);
  // Of a shared store each finds the other's.
  const auto handle = one->spawn(twice, 4);
  CHECK(run(context, other->wait_for_result<int>(handle.id())) == 8);
}

// ---------------------------------------------------------------------------------------------------------------------
// Threads beside an event loop (1.5, WorkPool).

TEST_CASE("Plain functions run on threads that carry the executor's name, and coroutines on the event loop", "[io]") {
  asio::io_context context;
  const auto executor = make("io", context, 2, named("seed-io"));
  CHECK_THAT(run(context, executor->submit(thread_name)), StartsWith("seed-io/"));
  const auto here = [](std::thread::id loop) -> asio::awaitable<bool> {
    co_await pause_for(1us);
    co_return std::this_thread::get_id() == loop;
  };
  CHECK(run(context, executor->submit(here, std::this_thread::get_id())));
}

TEST_CASE("No thread is started before the first task, and never more than max_threads", "[thread]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(3));
  CHECK(executor.metrics().workers == 0);
  CHECK(executor.metrics().running == 0);
  std::array<Outcome<>, 10> outcomes;
  for (auto& outcome : outcomes) executor.async_submit(call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  const Metrics during = executor.metrics();
  CHECK(during.workers == 3);
  CHECK(during.running == 3);
  CHECK(during.pending == 7);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  const Metrics after = executor.metrics();
  CHECK(after.running + after.pending == 0);
  CHECK(after.completed == 10);
  CHECK(after.workers_started == 3);
}

TEST_CASE("A task sees the trace context that its caller gave: on threads, in processes and in coroutines", "[trace]") {
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  CHECK(run(context, executor->submit(TaskOptions().trace_parent(trace), trace_seen)) == trace);
  CHECK(run(context, executor->submit(trace_seen)) == "");
  if (type != "io") return;
  CHECK(run(context, executor->submit(TaskOptions().trace_parent(trace), trace_seen_there)) == trace);
}

// ---------------------------------------------------------------------------------------------------------------------
// Executors of a scheduler (1.6).

TEST_CASE("Of three tasks where two may be at once the third is refused, and the two have their events", "[asyncz]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 4);
  Told told(*executor);
  std::array<Outcome<>, 3> outcomes;
  for (auto& outcome : outcomes) {
    executor->async_submit(TaskOptions().name("job").max_instances(2), call(wait_at_gate, 7), outcome.handler());
  }
  REQUIRE(run_until(context, [&] { return outcomes[2].calls == 1 && board.gate.waiting == 2; }));
  const auto refused = error_as<MaxInstancesError>(outcomes[2].error);
  REQUIRE(refused);
  CHECK(refused->key() == "job");
  CHECK(refused->limit() == 2);
  board.gate.open = 1;
  run(context, executor->shutdown());
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && told.ends() == 2; }));
  CHECK(outcomes[0].value == 7);
  CHECK(outcomes[1].value == 7);
  CHECK(told.count(EventKind::succeeded) == 2);
  CHECK(told.count(EventKind::max_instances) == 1);
  CHECK(told.count(EventKind::rejected) == 1);
}

TEST_CASE("A task that returns, throws or is too late is told of as that, with what belongs to it", "[asyncz]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  Told told(*executor);
  const auto good = executor->spawn(TaskOptions().name("good"), twice, 4);
  const auto bad = executor->spawn(TaskOptions().name("bad"), refuse, 5);
  CHECK(run(context, good.result()) == 8);
  CHECK(message(failure(context, bad.result())) == "refused 5");
  const auto held = executor->spawn(wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const auto late = executor->spawn(TaskOptions().name("late").queue_timeout(1ms), count, 6);
  CHECK(holds<TaskTimeoutError>(failure(context, late.result())));
  REQUIRE(run_until(context, [&] { return told.ends() == 3; }));
  board.gate.open = 1;
  CHECK(run(context, held.result()) == 1);
  CHECK(board.begun == 0);

  CHECK(told.story("good") == "submitted started succeeded");
  CHECK(told.story("bad") == "submitted started failed");
  CHECK(told.story("late") == "submitted timed out");
  CHECK(message(told.of("bad").back().error) == "refused 5");
  const auto error = error_as<TaskTimeoutError>(told.of("late").back().error);
  REQUIRE(error);
  CHECK(error->which() == TaskTimeoutError::Which::queue);
  CHECK(good.status() == TaskStatus::succeeded);
  CHECK(bad.status() == TaskStatus::failed);
  CHECK(late.status() == TaskStatus::timed_out);
}

TEST_CASE("Of runs that nobody could begin in time none, one, or all are made up, as the schedule says", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto made = make(type, context, 2);
  BaseExecutor& executor = *made;
  constexpr auto kPeriod = 5ms;
  const auto missed = GENERATE(MissedRuns::skip, MissedRuns::run_once, MissedRuns::run_all);
  CAPTURE(missed);
  ScheduleOptions options;
  options.first = 0ns;
  options.missed = missed;
  options.grace = 1ns;  // nothing that is looked at later is in time
  const auto begin = std::chrono::steady_clock::now();
  auto schedule = executor.submit_every(kPeriod, options, wait_at_gate, 1);
  // Eleven runs become due while the event loop does nothing.
  REQUIRE(poll_until([&] { return std::chrono::steady_clock::now() >= begin + 10 * kPeriod; }, kDeadline));
  if (missed == MissedRuns::skip) {
    REQUIRE(run_until(context, [&] { return schedule.missed() >= 11; }));
    CHECK(schedule.runs() == 0);
  } else {
    REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
    // No two runs at the same time.
    CHECK(schedule.runs() == 1);
    if (missed == MissedRuns::run_once) {
      CHECK(schedule.missed() >= 10);
    } else {
      board.gate.open = 1;
      REQUIRE(run_until(context, [] { return board.ended >= 11; }));
      CHECK(schedule.missed() == 0);
    }
  }
  schedule.cancel();
  CHECK_FALSE(schedule.active());
  CHECK_FALSE(schedule.next());
  board.gate.open = 1;
  run(context, executor.shutdown());
  CHECK(schedule.failures() == 0);
}

TEST_CASE("A run later than its grace is left out and counted; without one it begins until the next is due",
          "[schedule]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(2));
  ScheduleOptions options;
  options.first = 0ns;
  options.grace = 1ms;
  const auto begin = std::chrono::steady_clock::now();
  auto strict = executor.submit_every(1h, options, count, 1);
  options.grace = std::nullopt;
  auto patient = executor.submit_every(1h, options, count, 2);
  REQUIRE(poll_until([&] { return std::chrono::steady_clock::now() >= begin + 20ms; }, kDeadline));
  REQUIRE(run_until(context, [&] { return strict.missed() == 1 && board.ended == 1; }));
  CHECK(strict.runs() == 0);
  CHECK(patient.runs() == 1);
  CHECK(patient.missed() == 0);
  // Both go on.
  REQUIRE(strict.next());
  CHECK(*strict.next() >= begin + 1h);
  CHECK(patient.active());
  run(context, executor.shutdown());
}

TEST_CASE("A schedule ends after its runs, when it is cancelled, and with its executor", "[schedule]") {
  reset_board();
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(2));
  ScheduleOptions options;
  options.first = 0ns;
  options.max_runs = 3;
  options.missed = MissedRuns::run_all;
  auto counted = executor.submit_every(1ms, options, count, 1);
  REQUIRE(run_until(context, [&] { return !counted.active(); }));
  REQUIRE(run_until(context, [] { return board.ended == 3; }));
  CHECK(counted.runs() == 3);

  auto cancelled = executor.submit_every(1h, count, 1);
  auto left = executor.submit_every(1h, count, 1);
  CHECK(cancelled.active());
  cancelled.cancel();
  CHECK_FALSE(cancelled.active());
  CHECK(left.active());
  run(context, executor.shutdown());
  CHECK_FALSE(left.active());
  CHECK_THROWS_AS(executor.submit_every(1h, count, 1), ExecutorNotRunningError);
  auto destroyed = make("thread", context)->submit_every(1us, count, 1);
  CHECK_FALSE(destroyed.active());
  CHECK(board.ended == 3);
  // Nothing keeps the event loop at work.
  context.restart();
  context.run_for(kDeadline);
  CHECK(context.stopped());
}

TEST_CASE("Runs of one schedule are under way at the same time only if that is asked for", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto made = make(type, context, 3);
  BaseExecutor& executor = *made;
  ScheduleOptions options;
  auto alone = executor.submit_every(1ms, options, wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  let_pass(context, 20ms);
  CHECK(alone.runs() == 1);
  CHECK(board.gate.waiting == 1);
  board.gate.open = 1;
  // What would have been due meanwhile was left out.
  REQUIRE(run_until(context, [&] { return alone.missed() >= 10; }));
  alone.cancel();
  REQUIRE(run_until(context, [&] { return executor.metrics().running + executor.metrics().pending == 0; }));
  board.gate.reset();
  options.overlap = true;
  auto together = executor.submit_every(1ms, options, wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  together.cancel();
  board.gate.open = 1;
  run(context, executor.shutdown());
}

TEST_CASE("A listener gets what its mask says until it ends its subscription, and one that throws stops no other",
          "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  Told all(executor);
  Told ends(executor, EventKind::failed | EventKind::succeeded);
  int thrown = 0;
  const auto throws = executor.subscribe([&](const Event&) {
    ++thrown;
    throw std::runtime_error("the listener is broken");
  });
  int once = 0;
  Subscription self;
  self = executor.subscribe([&](const Event&) {
    ++once;
    self.cancel();
  });
  CHECK(run(context, executor.submit(TaskOptions().name("good"), twice, 1)) == 2);
  CHECK(failure(context, executor.submit(TaskOptions().name("bad"), refuse, 1)));
  REQUIRE(run_until(context, [&] { return all.ends() == 2 && ends.ends() == 2 && throws.failures() >= 6; }));
  CHECK(all.story("good") == "submitted started succeeded");
  CHECK(ends.story("good") == "succeeded");
  CHECK(ends.story("bad") == "failed");
  CHECK(static_cast<std::uint64_t>(thrown) == throws.failures());
  CHECK(message(throws.last_failure()) == "the listener is broken");
  CHECK(once == 1);
  CHECK_FALSE(self.active());
  CHECK_THROWS_AS(executor.subscribe(nullptr), std::invalid_argument);
}

TEST_CASE("A shutdown's limit cancels coroutines that wait, and each has one end", "[io]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("io", context, 3);
  Told told(*executor);
  std::array<Outcome<>, 5> outcomes;  // three run, two are queued
  for (auto& outcome : outcomes) executor->async_submit(call(wait_at_gate_there, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  ShutdownOptions options;
  options.timeout = 1ms;
  run(context, executor->shutdown(options));
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && told.ends() == 5; }));
  for (const auto& outcome : outcomes) CHECK(holds<TaskCancelledError>(outcome.error));
  CHECK(told.count(EventKind::cancelled) == 5);
  CHECK(board.ended == 0);
  CHECK(adds_up(*executor));
}

TEST_CASE("Every name of a type makes its executor, with options as text", "[registry]") {
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  const std::map<std::string, std::string> modes{
      {"local", "process"}, {"process", "process"},   {"processpool", "process"},
      {"thread", "thread"}, {"threadpool", "thread"}, {"pool", "thread"},
      {"io", "io"},         {"asyncio", "io"},        {"inline", "inline"},
      {"debug", "inline"}};
  for (const auto& [type, mode] : modes) {
    CAPTURE(type);
    OptionMap options{{"max_pending", "7"}};
    if (mode == "process") options["max_workers"] = "1";
    const auto executor = registry.get_or_create("of " + type, type, options);
    REQUIRE(executor);
    CHECK(executor->metrics().mode == mode);
    CHECK(executor->metrics().max_pending == 7);
    CHECK(executor->name() == "of " + type);
    CHECK(run(context, executor->submit(twice, 2)) == 4);
    // The same name is the same executor, also by the type's other name.
    CHECK(registry.get_or_create("of " + type, type) == executor);
  }
  OptionMap of_hybrid{{"executors", "of local,of thread"}};
  const auto hybrid = registry.get_or_create("both", "hybrid", of_hybrid);
  CHECK(hybrid->metrics().mode == "hybrid");
  CHECK(run(context, hybrid->submit(twice, 2)) == 4);
  const auto known = registry.types();
  for (const auto& [type, mode] : modes) CHECK(std::count(known.begin(), known.end(), type) == 1);
  run(context, registry.shutdown_all());
  CHECK(registry.size() == 0);
}

TEST_CASE("An executor for debugging runs each task in its caller's thread, and completes it later", "[inline]") {
  asio::io_context context;
  InlineExecutor executor(context.get_executor());
  bool ran = false;
  Outcome<bool> outcome;
  executor.async_submit(call(
                            [&ran](std::thread::id caller) {
                              ran = true;
                              return std::this_thread::get_id() == caller;
                            },
                            std::this_thread::get_id()),
                        outcome.handler());
  CHECK(ran);
  CHECK(outcome.calls == 0);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(outcome.value == true);
}

// ---------------------------------------------------------------------------------------------------------------------
// Executors of a task queue (1.7).

TEST_CASE("Ten coroutines wait at the same time on one thread, and give their results in order", "[flowrra]") {
  reset_board();
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  std::vector<asio::awaitable<int>> tasks;
  for (int i = 0; i < 10; ++i) tasks.push_back(executor.submit(meet_there, i, 10));
  const auto results = run(context, bulkhead::when_all(std::move(tasks)));
  CHECK(results == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
}

namespace {

asio::awaitable<int> workflow(BaseExecutor& waiting, BaseExecutor& computing) {
  const int fetched = co_await waiting.submit(twice_later, 5);
  std::vector<asio::awaitable<int>> parts;
  for (int i = 0; i < 3; ++i) parts.push_back(computing.submit(add, fetched, i));
  const std::vector<int> added = co_await bulkhead::when_all(std::move(parts));
  co_return co_await computing.submit(add, added[0] + added[1], added[2]);
}

}  // namespace

TEST_CASE("Two executors make a workflow: one fetches, the other computes in processes", "[flowrra]") {
  asio::io_context context;
  const auto waiting = make("io", context, 2, named("waiting"));
  const auto computing = make("local", context, 2, named("computing"));
  CHECK(run(context, workflow(*waiting, *computing)) == 10 + 11 + 12);
  CHECK(waiting->metrics().completed == 1);
  CHECK(computing->metrics().completed == 4);
}

TEST_CASE("Of fifty tasks over four workers each ends as it should, and the sum is right", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context, 4, limited(100));
  std::array<Outcome<>, 50> outcomes;
  for (int i = 0; i < 50; ++i) {
    executor->async_submit(call(i % 3 == 0 ? refuse : twice, i), outcomes[static_cast<std::size_t>(i)].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (int i = 0; i < 50; ++i) {
    const auto& outcome = outcomes[static_cast<std::size_t>(i)];
    CHECK(outcome.calls == 1);
    if (i % 3 == 0) {
      CHECK(message(outcome.error) == fmt::format("refused {}", i));
    } else {
      CHECK_FALSE(outcome.error);
      CHECK(outcome.value == 2 * i);
    }
  }
  const Metrics metrics = executor->metrics();
  CHECK(metrics.completed == 33);
  CHECK(metrics.failed == 17);
  CHECK(adds_up(metrics));
}

TEST_CASE("Without retries a failure is the end, and with them a flaky task succeeds at its third run", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  Told told(*executor);
  reset_board();
  CHECK(message(failure(context, executor->submit(count_and_refuse, 4))) == "refused 4");
  CHECK(board.begun == 1);
  reset_board();
  const auto options = TaskOptions().name("flaky").retry(RetryPolicy(5).delay(1ms));
  CHECK(run(context, executor->submit(options, succeed_at_run, 3U)) == 3);
  CHECK(board.begun == 3);
  REQUIRE(run_until(context, [&] { return told.ends() == 2; }));
  CHECK(told.story("flaky") == "submitted started retried started retried started succeeded");
  CHECK(executor->metrics().retried == 2);
  CHECK(executor->metrics().failed == 1);
  if (type != "io") return;
  reset_board();
  CHECK(run(context, executor->submit(options, succeed_at_run_there, 3U)) == 3);
  CHECK(board.begun == 3);
}

TEST_CASE("A task on a thread that is run again has what it shares with its caller, not a copy", "[flowrra]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  const auto flaky = [](const std::shared_ptr<int>& calls) {
    if (++*calls < 3) throw std::runtime_error("not yet");
    return *calls;
  };
  const auto calls = std::make_shared<int>(0);
  Outcome<> outcome;
  executor.async_submit(TaskOptions().retry(RetryPolicy(5)), call(flaky, calls), outcome.handler());
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  INFO(message(outcome.error));
  CHECK(*calls == 3);
  CHECK_FALSE(outcome.error);
}

TEST_CASE("A retry policy's predicate and a schedule's on_error are called on the event loop's thread", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  std::atomic<int> here{0};
  std::atomic<int> elsewhere{0};
  const auto note_thread = [&, loop = std::this_thread::get_id()](const std::exception_ptr&) {
    ++(std::this_thread::get_id() == loop ? here : elsewhere);
    return true;
  };
  CHECK(failure(context, executor->submit(TaskOptions().retry(RetryPolicy(2).when(note_thread)), refuse, 1)));
  CHECK(here == 1);
  CHECK(elsewhere == 0);
  here = 0;
  elsewhere = 0;
  ScheduleOptions options;
  options.first = 0ns;
  options.max_runs = 1;
  options.on_error = note_thread;
  auto schedule = executor->submit_every(1h, options, refuse, 1);
  REQUIRE(run_until(context, [&] { return here + elsewhere == 1; }));
  CHECK(here == 1);
}

TEST_CASE("With one worker the lower number runs first, in every executor", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  Outcome<> held;
  executor->async_submit(call(wait_at_gate, 0), held.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::array<Outcome<>, 4> outcomes;
  std::size_t i = 0;
  for (const int priority : {100, 1, 50, -3}) {
    executor->async_submit(TaskOptions().priority(priority), call(note, priority), outcomes[i++].handler());
  }
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(order() == std::vector<int>{-3, 1, 50, 100});
}

TEST_CASE("Tasks are registered once, found by name with what was said of them, and forgotten", "[flowrra]") {
  asio::io_context context;
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  TaskRegistry& registry = *options.tasks;
  CHECK(registry.size() == 0);
  registry.add("add", add);
  registry.add("flaky", succeed_at_run, TaskOptions().retry(RetryPolicy(3)));
  registry.add("square", [](int value) { return value * value; });
  registry.add("pid", pid_here);
  CHECK(registry.size() == 4);
  CHECK(registry.contains("add"));
  CHECK(registry.names() == std::vector<std::string>{"add", "flaky", "pid", "square"});
  CHECK_THROWS_AS(registry.add("add", twice), DuplicateTaskError);
  CHECK_THROWS_AS(registry.add("", twice), std::invalid_argument);
  CHECK_THROWS_AS(registry.add(std::string(201, 'n'), twice), std::invalid_argument);
  int (*const nothing)(int) = nullptr;
  CHECK_THROWS_AS(registry.add("nothing", nothing), std::invalid_argument);
  CHECK(registry.size() == 4);

  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  const auto executor = make(type, context, 1, options);
  const int sum = run(context, executor->submit("add", 2, 3));
  CHECK(sum == 5);
  const int square = run(context, executor->submit(std::string("square"), 4));
  CHECK(square == 16);
  const unsigned runs = run(context, executor->submit("flaky", 3U));
  CHECK(runs == 3);
  const auto handle = executor->spawn("add", 20, 22);
  const int spawned = run(context, handle.result());
  CHECK(spawned == 42);
  CHECK(handle.name() == "add");
  CHECK(holds<TaskSignatureError>(failure(context, executor->submit("add", 2))));
  CHECK(holds<TaskSignatureError>(failure(context, executor->submit("add", 2.5, 3))));

  CHECK(registry.remove("add"));
  CHECK_FALSE(registry.remove("add"));
  const auto unknown = error_as<UnknownTaskError>(failure(context, executor->submit("add", 2, 3)));
  REQUIRE(unknown);
  CHECK(unknown->known() == std::vector<std::string>{"flaky", "pid", "square"});
  CHECK_THROWS_AS(executor->spawn("add", 2, 3), UnknownTaskError);
}

TEST_CASE("A result is there for those who wait before it, after it, and many at once", "[flowrra]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto handle = executor->spawn(wait_at_gate, 6);
  std::array<Outcome<>, 20> before;
  for (auto& waiter : before) {
    asio::co_spawn(context, executor->wait_for_result<int>(handle.id()), waiter.handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  for (const auto& waiter : before) CHECK(waiter.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(before); }));
  for (const auto& waiter : before) CHECK(waiter.value == 6);
  CHECK(run(context, executor->wait_for_result<int>(handle.id(), 1ns)) == 6);
  CHECK_THROWS_AS(executor->get_result<double>(handle.id()), TaskSignatureError);
}

TEST_CASE("Who subscribes later hears of what comes later, and an executor without listeners tells nobody",
          "[events]") {
  asio::io_context context;
  ThreadExecutor executor(context.get_executor(), threads(1));
  CHECK(run(context, executor.submit(TaskOptions().name("unheard"), twice, 1)) == 2);
  std::optional<Told> first(std::in_place, executor);
  CHECK(run(context, executor.submit(TaskOptions().name("one"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return first->ends() == 1; }));
  Told second(executor);
  CHECK(run(context, executor.submit(TaskOptions().name("two"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return first->ends() == 2 && second.ends() == 1; }));
  CHECK(first->story("unheard") == "");
  CHECK(first->story("one") == second.story("two"));
  CHECK(second.story("one") == "");
  first.reset();
  CHECK(run(context, executor.submit(TaskOptions().name("three"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return second.ends() == 2; }));
}

// ---------------------------------------------------------------------------------------------------------------------
// A1 to A18.

TEST_CASE("A1: a crash, an exit, and values that cannot be carried each end in one event, which has the error",
          "[local][events]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Told told(pool);
  CHECK(failure(context, pool.submit(TaskOptions().name("crash"), die, SIGKILL)));
  CHECK(failure(context, pool.submit(TaskOptions().name("exit"), leave, 3)));
  Stubborn never;
  never.encodable = false;
  CHECK(failure(context, pool.submit(TaskOptions().name("argument"), take, never)));
  CHECK(failure(context, pool.submit(TaskOptions().name("result"), stubborn, false)));
  int (*const nothing)(int) = nullptr;
  CHECK(failure(context, pool.submit(TaskOptions().name("function"), nothing, 1)));
  CHECK(run(context, pool.submit(TaskOptions().name("good"), twice, 1)) == 2);
  REQUIRE(run_until(context, [&] { return told.ends() == 6; }));
  CHECK(told.story("crash") == "submitted started failed");
  CHECK(told.story("exit") == "submitted started failed");
  CHECK(told.story("argument") == "submitted failed");
  CHECK(told.story("result") == "submitted started failed");
  CHECK(told.story("function") == "submitted failed");
  CHECK(told.story("good") == "submitted started succeeded");
  CHECK(holds<WorkerCrashedError>(told.of("crash").back().error));
  CHECK(holds<WorkerCrashedError>(told.of("exit").back().error));
  CHECK(holds<SerializationError>(told.of("argument").back().error));
  CHECK(holds<SerializationError>(told.of("result").back().error));
  CHECK(holds<FunctionUnavailableError>(told.of("function").back().error));
  CHECK(pool.metrics().failed == 5);
}

TEST_CASE("A2: a task behind a crash is not lost, the new worker is as the old one was, and a bad call costs none",
          "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.initializer = count_start;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(twice, 1)) == 2);
  CHECK(board.starts == 1);
  Outcome<> crash;
  Outcome<> behind;
  pool.async_submit(call(die, SIGKILL), crash.handler());
  pool.async_submit(call(twice, 4), behind.handler());
  REQUIRE(run_until(context, [&] { return crash.calls == 1 && behind.calls == 1; }));
  CHECK(holds<WorkerCrashedError>(crash.error));
  CHECK(behind.value == 8);
  CHECK(board.starts == 2);
  const auto started = pool.metrics().workers_started;
  const auto bad_call = [](int) -> int { throw std::bad_function_call(); };
  CHECK(holds<std::bad_function_call>(failure(context, pool.submit(bad_call, 1))));
  CHECK(run(context, pool.submit(twice, 4)) == 8);
  CHECK(pool.metrics().workers_started == started);
  CHECK(pool.metrics().workers_crashed == 1);
}

TEST_CASE("A3: shutdown can be told to cancel what waits, and whether to wait", "[registry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  const bool wait = GENERATE(true, false);
  CAPTURE(type, wait);
  reset_board();
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  OptionMap options{{type == "local" ? "max_workers" : "max_threads", "1"}};
  const auto executor = registry.get_or_create("pool", type, options);
  Outcome<> held;
  Outcome<> queued;
  executor->async_submit(call(wait_at_gate, 1), held.handler());
  executor->async_submit(call(count, 2), queued.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions how;
  how.cancel_pending = true;
  how.wait = wait;
  Outcome<void> shutdown;
  asio::co_spawn(context, registry.shutdown_all(how), shutdown.handler());
  REQUIRE(run_until(context, [&] { return queued.calls == 1; }));
  CHECK(cancelled_stage(queued.error) == TaskCancelledError::Stage::queued);
  if (!wait) REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
  settle(context);
  CHECK(shutdown.calls == (wait ? 0 : 1));
  CHECK(held.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1 && held.calls == 1; }));
  CHECK_FALSE(shutdown.error);
  CHECK(held.value == 1);
  CHECK(board.begun == 0);
}

TEST_CASE("A3: tasks that a shutdown does not wait for go on, though only the registry had their executor",
          "[registry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  OptionMap options{{type == "local" ? "max_workers" : "max_threads", "1"}};
  std::array<Outcome<>, 2> outcomes;
  for (auto& outcome : outcomes) {
    registry.get_or_create("pool", type, options)->async_submit(call(wait_at_gate, 1), outcome.handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions how;
  how.wait = false;
  run(context, registry.shutdown_all(how));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (const auto& outcome : outcomes) {
    INFO(message(outcome.error));
    CHECK(outcome.value == 1);
    CHECK_FALSE(outcome.error);
  }
}

TEST_CASE("A4: tasks that shutdown cancels are told of, and count no longer as instances", "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.instances = std::make_shared<InstanceGroup>();
  const auto executor = make(type, context, 1, options);
  Told told(*executor);
  const auto once = [](const char* name) { return TaskOptions().name(name).max_instances(1); };
  CHECK(failure(context, executor->submit(once("bad"), type == "local" ? die : refuse, SIGKILL)));
  CHECK(run_until(context, [&] { return options.instances->count("bad") == 0; }));
  std::array<Outcome<>, 4> outcomes;
  executor->async_submit(once("held"), call(wait_at_gate, 1), outcomes[0].handler());
  executor->async_submit(once("c1"), call(count, 1), outcomes[1].handler());
  executor->async_submit(once("c2"), call(count, 1), outcomes[2].handler());
  executor->async_submit(TaskOptions().name("c3").max_instances(1, OverloadPolicy::wait, "held"), call(count, 1),
                         outcomes[3].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(options.instances->count("c1") == 1);
  CHECK(options.instances->waiting() == 1);
  ShutdownOptions how;
  how.cancel_pending = true;
  how.wait = false;
  run(context, executor->shutdown(how));
  const auto told_of_the_end = [&] { return outcomes[1].calls + outcomes[2].calls + outcomes[3].calls == 3; };
  REQUIRE(run_until(context, told_of_the_end, kLongBeforeTheGate));
  CHECK(options.instances->waiting() == 0);
  CHECK(options.instances->count("c1") == 0);
  CHECK(options.instances->count("c2") == 0);
  CHECK(options.instances->count("held") == 1);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && told.ends() == 5; }));
  CHECK(run_until(context, [&] { return options.instances->count("held") == 0; }));
  CHECK(told.story("c1") == "submitted cancelled");
  CHECK(told.story("c2") == "submitted cancelled");
  CHECK_THAT(told.story("c3"), EndsWith("cancelled"));
  CHECK(told.story("held") == "submitted started succeeded");
  // Another executor that counts together with the first has room for them.
  const auto next = make("thread", context, 1, options);
  CHECK(run(context, next->submit(once("c1"), count, 5)) == 5);
}

TEST_CASE("A4: tasks whose event loop is destroyed count no longer as instances", "[instances]") {
  reset_board();
  const auto group = std::make_shared<InstanceGroup>();
  std::optional<asio::io_context> context(std::in_place);
  CommonOptions options = limited(2, OverloadPolicy::wait);
  options.instances = group;
  const auto executor = make("thread", *context, 1, options);
  // One that waits for its next run, one that runs, one that waits for its turn, and one that waits for admission.
  const auto again = TaskOptions().name("again").max_instances(1).retry(RetryPolicy(2).delay(1h));
  const auto retrying = executor->spawn(again, refuse, 1);
  REQUIRE(run_until(*context, [&] { return retrying.status() == TaskStatus::retrying; }));
  const auto held = executor->spawn(TaskOptions().name("held").max_instances(1), wait_at_gate, 1);
  REQUIRE(run_until(*context, [] { return board.gate.waiting == 1; }));
  const auto outside = executor->spawn(TaskOptions().name("outside").max_instances(1), count, 1);
  CHECK(executor->metrics().waiting == 1);
  CHECK(group->count("again") == 1);
  context.reset();
  board.gate.open = 1;
  CHECK(poll_until([&] { return group->count("held") == 0; }, kDeadline));
  CHECK(group->count("again") == 0);
  CHECK(group->count("outside") == 0);
  CHECK(board.begun == 0);
}

TEST_CASE("A5: the unified Executor works again after shutdown; the others say that they are not running",
          "[unified]") {
  asio::io_context context;
  Executor executor(context.get_executor(), small());
  for (int i = 0; i < 3; ++i) {
    run(context, executor.startup());
    CHECK(run(context, executor.run_blocking(twice, i)) == 2 * i);
    CHECK(run(context, executor.run_process(twice, i)) == 2 * i);
    run(context, executor.shutdown());
  }
  for (const char* type : {"local", "thread", "io", "hybrid", "inline"}) {
    CAPTURE(type);
    const auto single = make(type, context);
    run(context, single->shutdown());
    CHECK(holds<ExecutorNotRunningError>(failure(context, single->submit(twice, 1))));
    const auto handle = single->spawn(twice, 1);
    CHECK(holds<ExecutorNotRunningError>(failure(context, handle.result())));
    CHECK(handle.status() == TaskStatus::failed);
    CHECK(single->metrics().rejected == 2);
  }
  // A registry makes a new one of the same name.
  ExecutorRegistry registry(context.get_executor());
  for (int i = 0; i < 2; ++i) {
    const auto pool = registry.get_or_create<ThreadExecutor>("pool", threads(1));
    CHECK(run(context, pool->submit(twice, 2)) == 4);
    run(context, registry.shutdown_all());
  }
}

TEST_CASE("A6: a run that is refused is told of, and the schedule goes on", "[schedule]") {
  reset_board();
  asio::io_context context;
  ThreadExecutorOptions full = threads(1);
  full.max_pending = 1;
  ThreadExecutor executor(context.get_executor(), full);
  Told told(executor);
  Outcome<> held;
  executor.async_submit(call(wait_at_gate, 1), held.handler());
  std::exception_ptr seen;
  ScheduleOptions options;
  options.first = 0ns;
  options.on_error = [&](const std::exception_ptr& error) { seen = error; };
  auto schedule = executor.submit_every(1ms, options, TaskOptions().name("again"), count, 1);
  REQUIRE(run_until(context, [&] { return schedule.failures() >= 2 && told.count(EventKind::rejected) >= 2; }));
  CHECK(holds<ExecutorOverloadError>(seen));
  CHECK(holds<ExecutorOverloadError>(schedule.last_error()));
  CHECK(schedule.active());
  CHECK(board.begun == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [] { return board.ended >= 3; }));
  schedule.cancel();
  run(context, executor.shutdown());
}

TEST_CASE("A6: a task at its time that meets max_instances is told so, or waits for its turn", "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 2);
  Told told(*executor);
  const auto held = executor->spawn(TaskOptions().name("job").max_instances(1), wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const auto refused = executor->submit_after(1us, TaskOptions().name("job").max_instances(1), count, 2);
  const auto waits =
      executor->submit_after(1us, TaskOptions().name("job").max_instances(1, OverloadPolicy::wait), count, 3);
  const auto impatient = executor->submit_after(
      1us, TaskOptions().name("job").max_instances(1, OverloadPolicy::wait).queue_timeout(1ms), count, 4);
  CHECK(holds<MaxInstancesError>(failure(context, refused.result())));
  CHECK(refused.status() == TaskStatus::failed);
  CHECK(holds<TaskTimeoutError>(failure(context, impatient.result())));
  REQUIRE(run_until(context, [&] { return told.count(EventKind::max_instances) == 3; }));
  CHECK(told.count(EventKind::rejected) == 1);
  CHECK(waits.status() == TaskStatus::queued);
  board.gate.open = 1;
  CHECK(run(context, waits.result()) == 3);
  CHECK(run(context, held.result()) == 1);
  CHECK(board.begun == 1);
}

TEST_CASE("A7: tasks of an executor that a registry forgets go on, or are told that it is gone", "[registry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  OptionMap options{{type == "local" ? "max_workers" : "max_threads", "1"}};
  auto executor = registry.get_or_create("pool", type, options);
  std::array<Outcome<>, 3> outcomes;
  executor->async_submit(call(wait_at_gate, 1), outcomes[0].handler());
  executor->async_submit(call(count, 2), outcomes[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  CHECK(registry.remove("pool") == executor);
  CHECK_FALSE(registry.contains("pool"));
  run(context, registry.shutdown_all());
  executor->async_submit(call(count, 3), outcomes[2].handler());
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  for (int i = 0; i < 3; ++i) CHECK(outcomes[static_cast<std::size_t>(i)].value == i + 1);

  reset_board();
  std::array<Outcome<>, 2> dropped;
  executor->async_submit(call(wait_at_gate, 1), dropped[0].handler());
  executor->async_submit(call(count, 2), dropped[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  executor.reset();
  REQUIRE(run_until(context, [&] { return all_over(dropped); }));
  CHECK(cancelled_stage(dropped[0].error) == TaskCancelledError::Stage::running);
  CHECK(cancelled_stage(dropped[1].error) == TaskCancelledError::Stage::queued);
  let_go(type);
}

TEST_CASE("A8: workers that print large records that nobody reads neither block nor mix them", "[local][output]") {
  const auto policy = GENERATE(CaptureOutput::capture, CaptureOutput::discard);
  CAPTURE(policy);
  constexpr std::size_t kRecord = 100'000;  // more than a pipe holds
  asio::io_context context;
  LocalExecutorOptions options = workers(3);
  options.capture_output = policy;
  options.max_pending = 1000;
  LocalExecutor pool(context.get_executor(), options);
  std::deque<Outcome<>> outcomes(400);
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    pool.async_submit(call(print_record, static_cast<char>('a' + i % 26), kRecord, true), outcomes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(std::all_of(outcomes.begin(), outcomes.end(), [](const auto& outcome) { return outcome.value == 1; }));
  CHECK(pool.metrics().workers_crashed == 0);
  if (policy == CaptureOutput::discard) return;
  // All three print at the same time and die: what is known of each is its own.
  std::array<Outcome<>, 3> crashes;
  for (std::size_t i = 0; i < 3; ++i) {
    pool.async_submit(call(print_and_abort, static_cast<char>('A' + i), kRecord), crashes[i].handler());
  }
  REQUIRE(run_until(context, [&] { return all_over(crashes); }));
  for (std::size_t i = 0; i < 3; ++i) {
    const auto crash = error_as<WorkerCrashedError>(crashes[i].error);
    REQUIRE(crash);
    const std::string& output = crash->ending().error_output;
    CHECK(output == std::string(output.size() - 1, static_cast<char>('A' + i)) + "\n");
    CHECK(output.size() == 4096);
  }
}

TEST_CASE("A9: tasks cost no descriptor: neither those that run, nor those that are cancelled or crash", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.max_pending = 5000;
  LocalExecutor pool(context.get_executor(), options);
  for (int i = 0; i < 50; ++i) CHECK(run(context, pool.submit(twice, i)) == 2 * i);
  CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
  REQUIRE(run_until(context, [&] { return whole(pool) && pool.metrics().workers_dying == 0; }));
  const std::size_t before = open_descriptors();

  std::deque<Outcome<>> outcomes(2000);
  for (auto& outcome : outcomes) pool.async_submit(call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  std::array<Outcome<>, 2> held;
  for (auto& outcome : held) pool.async_submit(call(wait_at_gate, 1), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  std::deque<asio::cancellation_signal> signals(200);
  std::deque<Outcome<>> cancelled(signals.size());
  for (std::size_t i = 0; i < signals.size(); ++i) {
    pool.async_submit(call(count, 1), asio::bind_cancellation_slot(signals[i].slot(), cancelled[i].handler()));
  }
  for (auto& signal : signals) signal.emit(asio::cancellation_type::total);
  REQUIRE(run_until(context, [&] { return all_over(cancelled); }));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(held); }));
  for (int i = 0; i < 10; ++i) CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
  CHECK(board.begun == 0);
  CHECK(run_until(context, [&] { return whole(pool) && open_descriptors() <= before; }));
}

TEST_CASE("A10: a shutdown of processes that is not to wait does not wait, for their output neither", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutorOptions options = workers(2);
  options.capture_output = CaptureOutput::capture;
  LocalExecutor pool(context.get_executor(), options);
  std::array<Outcome<>, 2> outcomes;
  for (auto& outcome : outcomes) pool.async_submit(call(wait_at_gate, 4), outcome.handler());
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 2 && whole(pool); }));
  ShutdownOptions how;
  how.wait = false;
  run(context, pool.shutdown(how));
  CHECK(board.ended == 0);
  CHECK(outcomes[0].calls + outcomes[1].calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes) && pool.worker_pids().empty(); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == 4);
}

TEST_CASE("A10: an executor may be destroyed right after a shutdown that does not wait", "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  const bool limited_time = GENERATE(false, true);
  CAPTURE(type, limited_time);
  reset_board();
  asio::io_context context;
  auto executor = make(type, context);
  std::array<Outcome<>, 2> outcomes;
  executor->async_submit(call(wait_at_gate, 1), outcomes[0].handler());
  executor->async_submit(call(count, 2), outcomes[1].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions how;
  how.wait = false;
  if (limited_time) how.timeout = 1ms;
  run(context, executor->shutdown(how));
  executor.reset();
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  let_pass(context, 5ms);
  for (const auto& outcome : outcomes) CHECK(holds<TaskCancelledError>(outcome.error));
  CHECK(board.begun == 0);
  let_go(type);
  CHECK(run(context, make(type, context)->submit(twice, 2)) == 4);
}

TEST_CASE("A11: a shutdown that waits lets coroutines end instead of cancelling them", "[io]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("io", context, 2);
  std::array<Outcome<>, 3> outcomes;  // two run, one is queued
  for (auto& outcome : outcomes) executor->async_submit(call(wait_at_gate_there, 3), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 2; }));
  Outcome<void> shutdown;
  asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  let_pass(context, 20ms);
  CHECK(shutdown.calls == 0);
  CHECK(outcomes[0].calls + outcomes[1].calls + outcomes[2].calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1 && all_over(outcomes); }));
  for (const auto& outcome : outcomes) CHECK(outcome.value == 3);
}

TEST_CASE("A11: a function that goes on after it was cancelled counts as an instance until it returns", "[instances]") {
  const auto type = GENERATE(as<std::string>{}, "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.instances = std::make_shared<InstanceGroup>();
  const auto executor = make(type, context, 2, options);
  const auto once = TaskOptions().name("held").max_instances(1);
  const auto held = executor->spawn(once, wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  held.cancel();
  CHECK(cancelled_stage(failure(context, held.result())) == TaskCancelledError::Stage::running);
  CHECK(options.instances->count("held") == 1);
  CHECK(holds<MaxInstancesError>(failure(context, executor->submit(once, count, 1))));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return options.instances->count("held") == 0; }));
  CHECK(run(context, executor->submit(once, count, 1)) == 1);
}

TEST_CASE("A12: each task's events come in order, however short the tasks are", "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  constexpr int kTasks = 1000;
  asio::io_context context;
  const auto executor = make(type, context, 3, limited(kTasks));
  Told told(*executor);
  for (int i = 0; i < kTasks; ++i) executor->spawn(TaskOptions().name(fmt::format("task {}", i)), twice, i);
  REQUIRE(run_until(context, [&] { return told.ends() == kTasks; }));
  std::map<std::uint64_t, std::string> stories;
  for (const Event& event : told.events()) {
    stories[event.task_id] += fmt::format("{} ", to_string(event.kind));
    CHECK(event.lost == 0);
  }
  CHECK(stories.size() == kTasks);
  for (const auto& [task, story] : stories) CHECK(story == "submitted started succeeded ");
}

TEST_CASE("A13: executors on several threads that share a group never run more instances than there may be",
          "[instances]") {
  reset_board();
  CommonOptions options = limited(1000);
  options.instances = std::make_shared<InstanceGroup>();
  asio::io_context context;
  {
    std::vector<std::shared_ptr<BaseExecutor>> executors;
    for (const char* type : {"local", "thread", "io"}) executors.push_back(make(type, context, 3, options));
    const auto at_most_two = TaskOptions().name("shared").max_instances(2, OverloadPolicy::wait);
    constexpr int kTasks = 300;
    std::atomic<int> good{0};
    std::atomic<int> over{0};
    auto work = asio::make_work_guard(context);
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) threads.emplace_back([&] { context.run_for(kDeadline); });
    for (const auto& executor : executors) {
      threads.emplace_back([&, executor] {
        for (int i = 0; i < kTasks / 3; ++i) {
          executor->async_submit(at_most_two, call(overlap, i), [&, i](std::exception_ptr error, int value) {
            if (!error && value == i) ++good;
            ++over;
          });
        }
      });
    }
    CHECK(poll_until([&] { return over == kTasks; }, kDeadline));
    work.reset();
    context.stop();
    for (std::thread& thread : threads) thread.join();
    CHECK(good == kTasks);
    CHECK(board.most_running <= 2);
    CHECK(poll_until([&] { return options.instances->count("shared") == 0; }, kDeadline));
    CHECK(options.instances->waiting() == 0);
    CHECK(options.instances->count("never seen") == 0);
  }
}

TEST_CASE("A13: who is told that a task is over finds its instance free", "[instances]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context, 2);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    if (failure(context, executor->submit(TaskOptions().name("one").max_instances(1), twice, i))) ++refused;
  }
  CHECK(refused == 0);
}

TEST_CASE("A13: a task that runs inside submit is counted while it runs, and not any more afterwards", "[instances]") {
  asio::io_context context;
  CommonOptions options;
  options.instances = std::make_shared<InstanceGroup>();
  InlineExecutor executor(context.get_executor(), options);
  InstanceGroup& group = *options.instances;
  const auto once = [] { return TaskOptions().name("inline").max_instances(1); };
  Outcome<> inner;
  Outcome<std::size_t> outer;
  executor.async_submit(once(), call([&] {
                          executor.async_submit(once(), call(twice, 1), inner.handler());
                          return group.count("inline");
                        }),
                        outer.handler());
  CHECK(group.count("inline") == 0);
  REQUIRE(run_until(context, [&] { return inner.calls == 1 && outer.calls == 1; }));
  CHECK(outer.value == 1U);
  CHECK(holds<MaxInstancesError>(inner.error));
}

TEST_CASE("A14: a listener runs where it was asked to, and one that never runs costs the tasks nothing", "[events]") {
  asio::io_context context;
  asio::io_context elsewhere;
  const auto executor = make("thread", context, 2);
  SubscribeOptions options;
  options.executor = elsewhere.get_executor();
  options.queue_size = 10;
  std::vector<std::thread::id> heard_on;
  const auto subscription =
      executor->subscribe([&](const Event&) { heard_on.push_back(std::this_thread::get_id()); }, kTaskEvents, options);
  for (int i = 0; i < 100; ++i) CHECK(run(context, executor->submit(twice, i)) == 2 * i);
  run(context, executor->shutdown());
  // Nobody has heard anything, and the queue is bounded.
  CHECK(heard_on.empty());
  CHECK(subscription.lost() == 290);
  std::thread::id listening;
  std::thread listener([&] {
    listening = std::this_thread::get_id();
    elsewhere.run_for(kDeadline);
  });
  listener.join();
  CHECK(heard_on == std::vector<std::thread::id>(10, listening));
}

TEST_CASE("A14: events of a schedule's runs come as they happen, and a crash takes none of them along", "[events]") {
  reset_board();
  asio::io_context context;
  const auto pool = make("local", context, 1);
  Told told(*pool);
  ScheduleOptions options;
  options.first = 0ns;
  options.missed = MissedRuns::run_all;
  options.max_runs = 2;
  pool->submit_every(1us, options, TaskOptions().name("held"), wait_from_second_run, 1);
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && told.ends() == 1; }));
  CHECK_THAT(told.story("held"), StartsWith("submitted started succeeded"));
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return told.ends() == 2; }));

  board.begun = 0;
  auto dying = pool->submit_every(1us, options, TaskOptions().name("dying"), die_at_second_run, 1);
  REQUIRE(run_until(context, [&] { return told.ends() == 4; }));
  CHECK(told.story("dying") == "submitted started succeeded submitted started failed");
  CHECK(dying.runs() == 2);
  CHECK(dying.failures() == 1);
  CHECK(holds<WorkerCrashedError>(dying.last_error()));
}

TEST_CASE("A15: on a busy executor tasks wait for longer than a second and run, unless they have a limit of their own",
          "[limits]") {
  reset_board();
  asio::io_context context;
  std::vector<std::shared_ptr<BaseExecutor>> executors;
  std::deque<Outcome<>> patient;
  std::deque<Outcome<>> strict;
  std::deque<Told> told;
  for (const char* type : {"local", "thread", "io"}) {
    executors.push_back(make(type, context));
    told.emplace_back(*executors.back());
    executors.back()->async_submit(call(wait_at_gate, 1), patient.emplace_back().handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 3; }));
  for (const auto& executor : executors) {
    for (int i = 0; i < 3; ++i) executor->async_submit(call(count, 1), patient.emplace_back().handler());
    executor->async_submit(TaskOptions().name("strict").queue_timeout(1s), call(count, 1),
                           strict.emplace_back().handler());
  }
  let_pass(context, 1200ms);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(patient) && all_over(strict); }));
  for (const auto& outcome : patient) CHECK(outcome.value == 1);
  for (const auto& outcome : strict) CHECK(holds<TaskTimeoutError>(outcome.error));
  CHECK(board.begun == 9);
  for (const Told& listener : told) {
    REQUIRE(run_until(context, [&] { return listener.ends() == 5; }));
    CHECK(listener.story("strict") == "submitted timed out");
  }
}

TEST_CASE("A16: shutdown before anything, twice and at once ends each time, and the event loop goes on meanwhile",
          "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  {
    const auto unused = make(type, context);
    run(context, unused->shutdown());
    run(context, unused->shutdown());
  }
  const auto executor = make(type, context);
  Outcome<> outcome;
  executor->async_submit(call(wait_at_gate, 3), outcome.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::array<Outcome<void>, 3> shutdowns;
  for (auto& shutdown : shutdowns) asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  // Only the event loop opens the gate: a shutdown that blocked it would never end.
  int turns = 0;
  std::function<void()> turn = [&] {
    if (++turns < 100) {
      asio::post(context, turn);
    } else {
      board.gate.open = 1;
    }
  };
  asio::post(context, turn);
  REQUIRE(run_until(context, [&] { return all_over(shutdowns); }));
  for (const auto& shutdown : shutdowns) CHECK_FALSE(shutdown.error);
  CHECK(turns == 100);
  REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
  CHECK(outcome.value == 3);
}

TEST_CASE("A16: a shutdown with a limit ends at it, though a function does not return", "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "unified");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  std::array<Outcome<>, 2> tasks;
  std::shared_ptr<BaseExecutor> executor;
  ExecutorOptions one_thread = small();
  one_thread.threads.max_threads = 1;
  Executor unified(context.get_executor(), one_thread);
  if (type == "unified") {
    run(context, unified.startup());
    executor = unified.threads();
  } else {
    executor = make(type, context);
  }
  executor->async_submit(call(wait_at_gate, 1), tasks[0].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  executor->async_submit(call(count, 1), tasks[1].handler());
  ShutdownOptions options;
  options.timeout = 1ms;
  Outcome<void> shutdown;
  auto ending = type == "unified" ? unified.shutdown(options) : executor->shutdown(options);
  asio::co_spawn(context, std::move(ending), shutdown.handler());
  const auto is_over = [&] { return shutdown.calls == 1; };
  CHECK(run_until(context, is_over, kLongBeforeTheGate));
  REQUIRE(run_until(context, [&] { return all_over(tasks); }));
  for (const auto& task : tasks) CHECK(holds<TaskCancelledError>(task.error));
  CHECK(board.begun + board.ended == 0);
  let_go(type);
  REQUIRE(run_until(context, is_over));
}

TEST_CASE("A16: what goes wrong in a shutdown reaches whoever awaits it, and surplus shutdowns count for nothing",
          "[shutdown]") {
  asio::io_context context;
  Wedged wedged(context.get_executor());
  for (int i = 0; i < 2; ++i) CHECK(message(failure(context, wedged.shutdown())) == "it is stuck");
  CHECK(holds<ExecutorNotRunningError>(failure(context, wedged.submit(twice, 1))));

  Executor executor(context.get_executor(), small());
  for (int i = 0; i < 3; ++i) run(context, executor.shutdown());
  run(context, executor.startup());
  const auto pool = executor.processes();
  run(context, executor.startup());
  CHECK(executor.processes() == pool);
  run(context, executor.shutdown());
  CHECK_FALSE(executor.is_running());
}

TEST_CASE("A17: whatever a task throws, and if it exits, it is told of as failed, with its error", "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  Told told(*executor);
  const auto number = failure(context, executor->submit(TaskOptions().name("number"), throw_number, 5));
  CHECK(number);
  CHECK(
      failure(context, executor->submit(
                           TaskOptions().name("stop"),
                           [](int) -> int { throw boost::system::system_error(asio::error::operation_aborted); }, 1)));
  std::size_t ends = 2;
  if (type == "local") {
    CHECK(holds<WorkerCrashedError>(failure(context, executor->submit(TaskOptions().name("exit"), leave, 0))));
    ++ends;
  }
  if (type == "io") {
    CHECK(message(failure(context, executor->submit(TaskOptions().name("coroutine"), refuse_later, 1))) == "refused 1");
    ++ends;
  }
  REQUIRE(run_until(context, [&] { return told.ends() == ends; }));
  CHECK(told.count(EventKind::failed) == ends);
  CHECK(told.story("number") == "submitted started failed");
  CHECK(told.story("stop") == "submitted started failed");
  for (const Event& event : told.events()) CHECK(static_cast<bool>(event.error) == (event.kind == EventKind::failed));
  CHECK(executor->metrics().failed == ends);
  if (type == "local") CHECK(told.story("exit") == "submitted started failed");
  if (type == "local" || type == "bypass") {
    const auto remote = error_as<RemoteTaskError>(number);
    REQUIRE(remote);
    CHECK(remote->type_name() == "int");
  } else {
    CHECK(error_as<int>(number) == 5);
  }
}

TEST_CASE("A17: the error of a failed task keeps nothing that the task had", "[thread][io]") {
  asio::io_context context;
  IoExecutor executor(context.get_executor());
  const auto sync = [](std::shared_ptr<std::string> held) -> int { throw std::runtime_error("without " + *held); };
  const auto async = [](std::shared_ptr<std::string> held) -> asio::awaitable<int> {
    co_await pause_for(1us);
    throw std::runtime_error("without " + *held);
  };
  for (const bool coroutine : {false, true}) {
    CAPTURE(coroutine);
    auto object = std::make_shared<std::string>("the object");
    const std::weak_ptr<std::string> watched = object;
    Outcome<> outcome;
    if (coroutine) {
      executor.async_submit(call(async, std::move(object)), outcome.handler());
    } else {
      executor.async_submit(call(sync, std::move(object)), outcome.handler());
    }
    REQUIRE(run_until(context, [&] { return outcome.calls == 1; }));
    CHECK(message(outcome.error) == "without the object");
    CHECK(run_until(context, [&] { return watched.expired(); }));
  }
}

namespace {

int forget_executors() {
  // Static, so that a leak checker does not take them for lost.
  static auto* const context = new asio::io_context;
  LocalExecutorOptions options = workers(2);
  options.capture_output = CaptureOutput::capture;
  static auto* const pool = new LocalExecutor(context->get_executor(), options);
  static auto* const threads = new ThreadExecutor(context->get_executor());
  static auto* const io = new IoExecutor(context->get_executor());
  const bool good = run(*context, pool->submit(twice, 1)) == 2 && run(*context, threads->submit(twice, 1)) == 2 &&
                    run(*context, io->submit(twice_later, 1)) == 2 && run_until(*context, [&] { return whole(*pool); });
  for (const int pid : pool->worker_pids()) std::printf("worker %d\n", pid);
  std::printf("%s\n", good ? "ready" : "bad");
  std::fflush(stdout);
  return good ? 0 : 1;
}

}  // namespace

TEST_CASE("A18: a program that forgets its executors ends all the same, and leaves no process", "[lifetime]") {
  Program program("forget_executors");
  REQUIRE(program.says("ready"));
  std::vector<Process> left;
  std::istringstream words(program.said());
  for (std::string word; words >> word;) {
    int pid = 0;
    if (word == "worker" && words >> pid) left.emplace_back(pid);
  }
  const auto [code, said] = program.finish();
  INFO(said);
  CHECK(code == 0);
  CHECK(left.size() == 2);
  for (const Process& process : left) CHECK(process.gone_within(kGone));
}

// ---------------------------------------------------------------------------------------------------------------------
// F1 to F24.

TEST_CASE("F1: four workers run four tasks at the same time", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(4));
  std::vector<asio::awaitable<int>> tasks;
  for (int i = 0; i < 4; ++i) tasks.push_back(pool.submit(meet, i, 4));
  CHECK(run(context, bulkhead::when_all(std::move(tasks))) == std::vector<int>{0, 1, 2, 3});
}

TEST_CASE("F2: tasks after crashes succeed in their first run", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  for (int i = 0; i < 5; ++i) {
    CHECK(holds<WorkerCrashedError>(failure(context, pool.submit(die, SIGKILL))));
    CHECK(run(context, pool.submit(TaskOptions().retry(RetryPolicy(3)), succeed_at_run, 1U)) == 1);
  }
  CHECK(board.begun == 5);
  CHECK(pool.metrics().retried == 0);
  CHECK(run_until(context, [&] { return whole(pool); }));
}

TEST_CASE("F3: a task that waits for its next run holds no worker", "[retry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  const auto flaky = executor->spawn(TaskOptions().retry(RetryPolicy(2).delay(1h)), refuse, 1);
  REQUIRE(run_until(context, [&] { return flaky.status() == TaskStatus::retrying; }));
  for (int i = 0; i < 5; ++i) CHECK(run(context, executor->submit(twice, i)) == 2 * i);
  CHECK(executor->metrics().running == 0);
  CHECK(flaky.status() == TaskStatus::retrying);
  flaky.cancel();
  CHECK(holds<TaskCancelledError>(failure(context, flaky.result())));
  CHECK(adds_up(*executor));
}

TEST_CASE("F4: a task comes to its next run though its executor is full, and so do those that wait", "[retry]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 1, limited(1, OverloadPolicy::wait));
  Outcome<unsigned> flaky;
  executor->async_submit(TaskOptions().retry(RetryPolicy(3).delay(1ms)), call(succeed_at_run, 3U), flaky.handler());
  std::deque<Outcome<>> waiting(20);
  for (auto& outcome : waiting) executor->async_submit(call(twice, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return flaky.calls == 1 && all_over(waiting); }));
  CHECK(flaky.value == 3U);
  for (const auto& outcome : waiting) CHECK(outcome.value == 2);

  // A shutdown does not wait for a run that never comes, nor for those behind it.
  const auto never = executor->spawn(TaskOptions().retry(RetryPolicy(3).delay(1h)), refuse, 1);
  const auto behind = executor->spawn(twice, 1);
  REQUIRE(run_until(context, [&] { return never.status() == TaskStatus::retrying; }));
  run(context, executor->shutdown());
  CHECK(message(failure(context, never.result())) == "refused 1");
  CHECK(holds<ExecutorNotRunningError>(failure(context, behind.result())));
}

TEST_CASE("F5: a result that cannot be kept fails its task, and the worker goes on", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "inline", "bypass");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  for (int i = 0; i < 5; ++i) {
    const auto handle = executor->spawn(stubborn, false);
    CHECK(holds<SerializationError>(failure(context, handle.result())));
    CHECK(handle.status() == TaskStatus::failed);
    CHECK(run(context, executor->spawn(twice, i).result()) == 2 * i);
  }
  CHECK(board.begun == 5);
  // Broken code around the task stops nobody either.
  const auto listener = executor->subscribe([](const Event&) { throw std::runtime_error("broken"); });
  const auto picky = TaskOptions().retry(
      RetryPolicy(3).when([](const std::exception_ptr&) -> bool { throw std::logic_error("a broken predicate"); }));
  CHECK(failure(context, executor->submit(picky, refuse, 1)));
  CHECK(run(context, executor->submit(twice, 5)) == 10);
  CHECK(executor->metrics().running == 0);
  run(context, executor->shutdown());
}

TEST_CASE("F6: a value that cannot be carried ends its task without another run", "[retry]") {
  reset_board();
  asio::io_context context;
  const auto executor = make("local", context);
  const auto five = TaskOptions().retry(RetryPolicy(5));
  const auto result = error_as<SerializationError>(failure(context, executor->submit(five, stubborn, false)));
  REQUIRE(result);
  CHECK(result->part() == SerializationError::Part::result);
  CHECK(board.begun == 1);
  Stubborn never;
  never.encodable = false;
  const auto argument = error_as<SerializationError>(failure(context, executor->submit(five, take, never)));
  REQUIRE(argument);
  CHECK(argument->part() == SerializationError::Part::argument);
  CHECK(board.begun == 1);
  CHECK(executor->metrics().retried == 0);
}

TEST_CASE("F8: a task whose worker dies is told that it may have run, and is not run again by itself", "[local]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> crash;
  std::array<Outcome<>, 20> behind;
  pool.async_submit(call(count_and_die, SIGKILL), crash.handler());
  for (auto& outcome : behind) pool.async_submit(call(note, 1), outcome.handler());
  REQUIRE(run_until(context, [&] { return crash.calls == 1 && all_over(behind); }));
  const auto error = error_as<WorkerCrashedError>(crash.error);
  REQUIRE(error);
  CHECK(error->started() == bulkhead::Started::maybe);
  CHECK(board.begun == 1);
  // What had not begun is run elsewhere, once.
  CHECK(board.written == 20);
  for (const auto& outcome : behind) CHECK(outcome.value == 1);
}

TEST_CASE("F9: a shutdown that waits lets all end that was accepted, each in one run", "[shutdown]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  Outcome<> held;
  executor->async_submit(call(wait_at_gate, 1), held.handler());
  std::array<Outcome<>, 10> queued;
  for (int i = 0; i < 10; ++i) executor->async_submit(call(note, i), queued[static_cast<std::size_t>(i)].handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  Outcome<void> shutdown;
  asio::co_spawn(context, executor->shutdown(), shutdown.handler());
  settle(context);
  CHECK(shutdown.calls == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return shutdown.calls == 1 && held.calls == 1 && all_over(queued); }));
  CHECK(held.value == 1);
  for (int i = 0; i < 10; ++i) CHECK(queued[static_cast<std::size_t>(i)].value == i);
  CHECK(order() == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  CHECK(board.gate.waiting == 1);
  CHECK(executor->metrics().completed == 11);
}

TEST_CASE("F10: no handle says queued, running or retrying once its executor is down or gone", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  const bool shut_down = GENERATE(true, false);
  CAPTURE(type, shut_down);
  reset_board();
  asio::io_context context;
  auto executor = make(type, context, 1, limited(4, OverloadPolicy::wait));
  Told told(*executor);
  std::vector<TaskHandle<int>> handles;
  handles.push_back(executor->spawn(TaskOptions().retry(RetryPolicy(2).delay(1h)), refuse, 1));
  REQUIRE(run_until(context, [&] { return handles[0].status() == TaskStatus::retrying; }));
  handles.push_back(executor->spawn(TaskOptions().name("one").max_instances(1), wait_at_gate, 1));
  handles.push_back(executor->spawn(TaskOptions().name("one").max_instances(1, OverloadPolicy::wait), count, 1));
  handles.push_back(executor->spawn(count, 2));
  handles.push_back(executor->spawn(count, 3));  // beyond max_pending
  handles.push_back(executor->submit_after(1h, count, 4));
  REQUIRE(run_until(context, [&] { return board.gate.waiting == 1 && executor->metrics().waiting == 1; }));
  for (const auto& handle : handles) CHECK_FALSE(is_over(handle.status()));
  Outcome<void> shutdown;
  if (shut_down) {
    ShutdownOptions options;
    options.cancel_pending = true;
    options.timeout = 1ms;
    asio::co_spawn(context, executor->shutdown(options), shutdown.handler());
  } else {
    executor.reset();
  }
  const auto all = [&] {
    return std::all_of(handles.begin(), handles.end(), [](const auto& handle) { return is_over(handle.status()); });
  };
  REQUIRE(run_until(context, all, kLongBeforeTheGate));
  for (const auto& handle : handles) CHECK(failure(context, handle.result()));
  // Each that was accepted has one end; one was refused, and one was never submitted.
  REQUIRE(run_until(context, [&] { return told.ends() == 4 && told.count(EventKind::rejected) == 1; }));
  CHECK(told.count(EventKind::submitted) == 4);
  CHECK(board.begun == 0);
  let_go(type);
  if (shut_down) REQUIRE(run_until(context, [&] { return shutdown.calls == 1; }));
}

TEST_CASE("F11: tasks of the same priority run in the order of their submission, in every executor", "[priority]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid", "coroutines");
  CAPTURE(type);
  const bool coroutines = type == "coroutines";
  reset_board();
  asio::io_context context;
  const auto executor = make(coroutines ? "io" : type, context);
  Outcome<> held;
  if (coroutines) {
    executor->async_submit(call(wait_at_gate_there, 0), held.handler());
  } else {
    executor->async_submit(call(wait_at_gate, 0), held.handler());
  }
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::deque<Outcome<>> outcomes(24);
  std::vector<int> expected;
  for (int i = 0; i < 24; ++i) {
    auto& outcome = outcomes[static_cast<std::size_t>(i)];
    const auto options = TaskOptions().priority(i % 2);
    if (coroutines) {
      executor->async_submit(options, call(note_there, i), outcome.handler());
    } else {
      executor->async_submit(options, call(note, i), outcome.handler());
    }
  }
  for (int i = 0; i < 24; i += 2) expected.push_back(i);
  for (int i = 1; i < 24; i += 2) expected.push_back(i);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return all_over(outcomes); }));
  CHECK(order() == expected);
}

TEST_CASE("F12: limits below a second, and below a millisecond, are kept and not taken for none", "[limits]") {
  reset_board();
  asio::io_context context;
  ThreadExecutorOptions options = threads(1);
  options.idle_timeout = 1us;
  ThreadExecutor executor(context.get_executor(), options);
  CHECK(run(context, executor.submit(twice, 1)) == 2);
  CHECK(run_until(context, [&] { return executor.metrics().workers == 0; }));
  const auto held = executor.spawn(TaskOptions().timeout(999us), wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  const auto queued = executor.spawn(TaskOptions().queue_timeout(1ns), count, 1);
  const auto which = [](const std::exception_ptr& error) {
    const auto timeout = error_as<TaskTimeoutError>(error);
    return timeout ? std::optional(timeout->which()) : std::nullopt;
  };
  CHECK(which(failure(context, queued.result())) == TaskTimeoutError::Which::queue);
  CHECK(which(failure(context, held.result())) == TaskTimeoutError::Which::run);
  const auto endless = executor.spawn(twice, 1);  // its thread is taken by the function that is too late
  CHECK(which(failure(context, endless.result(1us))) == TaskTimeoutError::Which::wait);
  CHECK(run(context, make("inline", context)->submit_after(1ns, twice, 2).result()) == 4);

  LocalExecutorOptions of_pool = workers(1);
  of_pool.cancel_grace = 1us;
  LocalExecutor pool(context.get_executor(), of_pool);
  const auto killed = failure(context, pool.submit(TaskOptions().timeout(500us), wait_at_gate, 1));
  CHECK(which(killed) == TaskTimeoutError::Which::run);
  ShutdownOptions at_once;
  at_once.timeout = 1ns;
  const auto cancelled = pool.spawn(wait_at_gate, 1);
  run(context, pool.shutdown(at_once));
  CHECK(holds<TaskCancelledError>(failure(context, cancelled.result())));
  run(context, executor.shutdown(at_once));
  CHECK(holds<TaskCancelledError>(failure(context, endless.result())));
  CHECK(board.begun == 0);
  let_go("thread");
}

TEST_CASE("F13: whoever waits for a result gets it, however close its end and the wait are", "[handle]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  constexpr int kTasks = 500;
  asio::thread_pool context(2);
  int wrong = 0;
  {
    const auto executor = make(type, context.get_executor(), 2, limited(kTasks));
    std::vector<std::future<int>> waits;
    for (int i = 0; i < kTasks; ++i) {
      const auto handle = executor->spawn(twice, i);
      waits.push_back(asio::co_spawn(context, handle.result(), asio::use_future));
      waits.push_back(asio::co_spawn(context, executor->wait_for_result<int>(handle.id()), asio::use_future));
    }
    for (std::size_t i = 0; i < waits.size(); ++i) {
      const bool ready = waits[i].wait_for(kDeadline) == std::future_status::ready;
      if (!ready || waits[i].get() != 2 * static_cast<int>(i / 2)) ++wrong;
    }
    CHECK(wrong == 0);
  }
  context.join();
}

TEST_CASE("F14: what is known of a task is known in all of its states", "[handle][events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context, 1, named("archive"));
  Told told(*executor);
  const auto held = executor->spawn(wait_at_gate, 1);
  const auto handle = executor->spawn(TaskOptions().name("the job"), wait_at_gate, 2);
  const TaskId id = handle.id();
  const auto known = [&] { return handle.id() == id && handle.name() == "the job"; };
  CHECK(handle.status() == TaskStatus::queued);
  CHECK(known());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  board.gate.open = 1;
  CHECK(run(context, handle.result()) == 2);
  CHECK(handle.status() == TaskStatus::succeeded);
  CHECK(known());
  REQUIRE(run_until(context, [&] { return told.ends() == 2; }));
  const auto events = told.of("the job");
  REQUIRE(events.size() == 3);
  for (const Event& event : events) {
    CHECK(event.task_id == events[0].task_id);
    CHECK(event.executor == "archive");
    CHECK(event.attempt == 1);
    CHECK(event.time.time_since_epoch().count() > 0);
  }
  REQUIRE(events.back().queue_wait);
  REQUIRE(events.back().run_time);
  CHECK(events.back().queue_wait->count() > 0);
  CHECK(events.back().run_time->count() > 0);
}

TEST_CASE("F15: results are bounded by number, size and age, and one that is gone is an error at once", "[handle]") {
  asio::io_context context;
  CommonOptions options = limited(5000);
  const auto fill = [&](ResultStoreOptions limits) {
    options.results = std::make_shared<ResultStore>(limits);
    const auto executor = make("thread", context, 2, options);
    std::vector<TaskHandle<std::string>> handles;
    for (int i = 0; i < 2000; ++i) handles.push_back(executor->spawn(echo<std::string>, std::string(100, 'r')));
    run(context, executor->shutdown());
    const auto over = [](const auto& handle) { return is_over(handle.status()); };
    REQUIRE(run_until(context, [&] {
      return options.results->unfinished() == 0 && std::all_of(handles.begin(), handles.end(), over);
    }));
    const auto is_kept = [&](const auto& handle) { return executor->status(handle.id()).has_value(); };
    const auto kept = std::count_if(handles.begin(), handles.end(), is_kept);
    CHECK(static_cast<std::size_t>(kept) == options.results->size());
    const auto gone = std::find_if_not(handles.begin(), handles.end(), is_kept);
    REQUIRE(gone != handles.end());
    CHECK_THROWS_AS(run(context, executor->wait_for_result<std::string>(gone->id())), ResultNotFoundError);
    CHECK_THROWS_AS(executor->get_result<std::string>(gone->id()), ResultNotFoundError);
  };
  ResultStoreOptions few;
  few.max_results = 10;
  fill(few);
  CHECK(options.results->size() == 10);
  ResultStoreOptions little;
  little.max_bytes = 4000;
  fill(little);
  CHECK(options.results->size() < 40);
  CHECK(options.results->bytes() <= 4000);
  ResultStoreOptions young;
  young.time_to_live = 1ns;
  fill(young);
  CHECK(options.results->size() == 0);
}

TEST_CASE("F16: every executor can be made from no options at all, and is what its defaults say", "[registry]") {
  CHECK(bulkhead::parse_local_options({}) == LocalExecutorOptions());
  CHECK(bulkhead::parse_thread_options({}) == ThreadExecutorOptions());
  CHECK(bulkhead::parse_io_options({}) == IoExecutorOptions());
  CHECK(bulkhead::parse_common_options({}) == CommonOptions());
  asio::io_context context;
  ExecutorRegistry registry(context.get_executor());
  for (const char* type : {"local", "thread", "io", "inline"}) {
    CAPTURE(type);
    const auto executor = registry.get_or_create(type, type, OptionMap());
    CHECK(run(context, executor->submit(twice, 2)) == 4);
  }
  const auto pool = registry.get_or_create<LocalExecutor>("local");
  CHECK(pool->options().max_workers >= 1);
  run(context, registry.shutdown_all());
}

TEST_CASE("F17: options are used or refused: retries and limits by default, unknown names, and the end", "[options]") {
  asio::io_context context;
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  options.tasks->add("flaky", succeed_at_run, TaskOptions().retry(RetryPolicy(3)));
  options.tasks->add("held", wait_at_gate, TaskOptions().timeout(1ms));
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  const auto executor = make(type, context, 1, options);
  const unsigned runs = run(context, executor->submit("flaky", 3U));
  CHECK(runs == 3);
  // What the submit says holds before the default.
  const auto once = TaskOptions().retry(RetryPolicy(1));
  CHECK(message(failure(context, executor->submit(once, "flaky", 3U))) == "run 1");
  const auto late = error_as<TaskTimeoutError>(failure(context, executor->submit("held", 1)));
  REQUIRE(late);
  CHECK(late->which() == TaskTimeoutError::Which::run);
  CHECK(late->limit() == 1ms);
  CHECK(late->context().task == "held");
  board.gate.open = 1;

  const OptionMap unknown{{"retry_delay", "1s"}};
  CHECK_THROWS_AS(bulkhead::parse_local_options(unknown), std::invalid_argument);
  CHECK_THROWS_AS(bulkhead::parse_thread_options(unknown), std::invalid_argument);
  CHECK_THROWS_AS(bulkhead::parse_io_options(unknown), std::invalid_argument);
  CHECK_THROWS_AS(bulkhead::parse_common_options(unknown), std::invalid_argument);
  run(context, executor->shutdown());
  const auto* const pool = dynamic_cast<const LocalExecutor*>(executor.get());
  if (pool != nullptr) CHECK(pool->worker_pids().empty());
}

namespace {

struct AddTo {
  int left = 0;
  int operator()(int right) const { return left + right; }
};

}  // namespace

TEST_CASE("F18: each function is itself, whatever it is called, and one that nobody knows is no task", "[local]") {
  reset_board();
  asio::io_context context;
  CommonOptions options;
  options.tasks = std::make_shared<TaskRegistry>();
  options.tasks->add("answer", left::answer);
  CHECK_THROWS_AS(options.tasks->add("answer", right::answer), DuplicateTaskError);
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "inline");
  CAPTURE(type);
  const auto executor = make(type, context, 1, options);
  CHECK(run(context, executor->submit(left::answer)) == 1);
  CHECK(run(context, executor->submit(right::answer)) == 2);
  CHECK(run(context, executor->submit(TaskOptions().name("answer"), right::answer)) == 2);
  const int by_name = run(context, executor->submit("answer"));
  CHECK(by_name == 1);
  AddTo forty;
  forty.left = 40;
  CHECK(run(context, executor->submit(forty, 2)) == 42);
  if (type != "local") CHECK(run(context, executor->submit(std::bind_front(add, 40), 2)) == 42);

  const auto retried = TaskOptions().retry(RetryPolicy(3));
  CHECK(holds<UnknownTaskError>(failure(context, executor->submit(retried, "question"))));
  if (type == "local") {
    int (*const nothing)(int) = nullptr;
    CHECK(holds<FunctionUnavailableError>(failure(context, executor->submit(retried, nothing, 1))));
  }
  CHECK(executor->metrics().retried == 0);
}

TEST_CASE("F19: errors have their type and what they carry, their causes, and of a crash the signal and the way there",
          "[errors]") {
  asio::io_context context;
  for (const char* type : {"thread", "io", "hybrid", "inline"}) {
    CAPTURE(type);
    const auto executor = make(type, context);
    const auto error = error_as<HandleError>(failure(context, executor->submit(throw_handle, 4)));
    REQUIRE(error);
    CHECK(error->handle() == 3);
  }
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto nested = error_as<RemoteTaskError>(failure(context, pool.submit(throw_nested, 4)));
  REQUIRE(nested);
  CHECK_THAT(nested->type_name(), ContainsSubstring("HandleError"));
  CHECK(nested->remote_what() == "the handle of 4 is lost");
  REQUIRE(nested->causes().size() == 1);
  CHECK(nested->causes()[0].type == "std::out_of_range");
  CHECK(nested->causes()[0].what == "the inner cause");
  const auto crash = error_as<WorkerCrashedError>(failure(context, pool.submit(die, SIGABRT)));
  REQUIRE(crash);
  CHECK(crash->signal() == SIGABRT);
#if !WITH_SANITIZER
  CHECK_FALSE(crash->ending().backtrace.empty());
#endif
}

TEST_CASE("F19: what a function on a thread throws keeps its type when it may be run again, too", "[errors]") {
  const auto type = GENERATE(as<std::string>{}, "thread", "io", "hybrid", "inline");
  CAPTURE(type);
  asio::io_context context;
  const auto executor = make(type, context);
  bool asked_about_itself = false;
  const auto policy = RetryPolicy(2).when([&](const std::exception_ptr& error) {
    asked_about_itself = holds<HandleError>(error);
    return true;
  });
  const auto thrown = failure(context, executor->submit(TaskOptions().retry(policy), throw_handle, 4));
  CHECK(asked_about_itself);
  const auto error = error_as<RetryError>(thrown);
  REQUIRE(error);
  CHECK(error->attempts().size() == 2);
  INFO(message(error->last()));
  CHECK(holds<HandleError>(error->last()));
}

TEST_CASE("F20: the event loop turns while processes that are busy are shut down without waiting", "[shutdown]") {
  reset_board();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  Outcome<> held;
  Outcome<> queued;
  pool.async_submit(call(wait_at_gate, 1), held.handler());
  pool.async_submit(call(twice, 2), queued.handler());
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  ShutdownOptions options;
  options.wait = false;
  Outcome<void> shutdown;
  asio::co_spawn(context, pool.shutdown(options), shutdown.handler());
  int turns = 0;
  std::function<void()> turn = [&] {
    if (++turns < 1000) asio::post(context, turn);
  };
  asio::post(context, turn);
  // The task waits all the time: whatever happens here happens beside it.
  REQUIRE(run_until(context, [&] { return turns == 1000 && shutdown.calls == 1; }));
  CHECK(board.ended == 0);
  board.gate.open = 1;
  REQUIRE(run_until(context, [&] { return held.calls == 1 && queued.calls == 1; }));
  CHECK(held.value == 1);
  CHECK(queued.value == 4);
}

TEST_CASE("F21: a listener that hangs holds up no task and no other listener, and hears of its executor only",
          "[events]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io", "hybrid");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  asio::thread_pool elsewhere(1);
  {
    const auto executor = make(type, context, 2);
    const auto other = make("thread", context, 1);
    SubscribeOptions options;
    options.executor = elsewhere.get_executor();
    std::atomic<int> heard{0};
    const auto slow = executor->subscribe(
        [&](const Event&) {
          ++heard;
          board.gate.wait();
        },
        kTaskEvents, options);
    Told quick(*executor);
    Told of_other(*other);
    for (int i = 0; i < 50; ++i) CHECK(run(context, executor->submit(TaskOptions().name("a"), twice, i)) == 2 * i);
    CHECK(run(context, other->submit(TaskOptions().name("b"), twice, 1)) == 2);
    REQUIRE(run_until(context, [&] { return quick.ends() == 50 && of_other.ends() == 1 && heard == 1; }));
    run(context, executor->shutdown());
    CHECK(heard == 1);
    CHECK(of_other.story("a") == "");
    CHECK(quick.story("b") == "");
    board.gate.open = 1;
    CHECK(poll_until([&] { return heard == 150; }, kDeadline));
  }
  elsewhere.join();
}

TEST_CASE("F22: a task at its time has its priority and its retries, and one that comes too late is told so",
          "[schedule]") {
  const auto type = GENERATE(as<std::string>{}, "local", "thread", "io");
  CAPTURE(type);
  reset_board();
  asio::io_context context;
  const auto executor = make(type, context);
  const auto held = executor->spawn(wait_at_gate, 1);
  REQUIRE(run_until(context, [] { return board.gate.waiting == 1; }));
  std::vector<TaskHandle<int>> handles;
  for (const int priority : {100, 1, 50}) {
    handles.push_back(executor->submit_after(1us, TaskOptions().priority(priority), note, priority));
  }
  ScheduleOptions once;
  once.first = 0ns;
  once.max_runs = 1;
  auto schedule = executor->submit_every(1h, once, TaskOptions().priority(-5), note, -5);
  REQUIRE(run_until(context, [&] { return executor->metrics().pending == 4; }));
  board.gate.open = 1;
  for (const auto& handle : handles) run(context, handle.result());
  CHECK(order() == std::vector<int>{-5, 1, 50, 100});
  const auto flaky =
      executor->submit_at(std::chrono::system_clock::now(), TaskOptions().retry(RetryPolicy(3)), succeed_at_run, 3U);
  CHECK(run(context, flaky.result()) == 3);

  const auto pending = executor->submit_after(1h, twice, 1);
  run(context, executor->shutdown());
  CHECK(cancelled_stage(failure(context, pending.result())) == TaskCancelledError::Stage::queued);
  CHECK(pending.status() == TaskStatus::cancelled);
  const auto late = executor->submit_after(1us, twice, 1);
  CHECK(holds<ExecutorNotRunningError>(failure(context, late.result())));
  CHECK(is_over(late.status()));
}

TEST_CASE("F23: values keep their types and every bit on the way to a process and back", "[local]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  const auto same = [&](const auto& value) {
    using T = std::decay_t<decltype(value)>;
    return run(context, pool.submit(echo<T>, value)) == value;
  };
  CHECK(same(std::make_tuple(1, std::string("two"), 3.5)));
  CHECK(same(std::vector<std::byte>{std::byte{0}, std::byte{0x80}, std::byte{0xff}}));
  CHECK(same(std::string("\0\xff not text", 11)));
  CHECK(same(std::chrono::system_clock::time_point(std::chrono::nanoseconds(1'234'567'890'123'456'789))));
  CHECK(same(std::chrono::nanoseconds(-1)));
  CHECK(same(std::map<int, std::vector<std::string>>{{-1, {"a", ""}}, {7, {}}}));
  CHECK(same(std::make_pair(std::optional<int>(), std::optional<std::string>("there"))));
  CHECK(same(0.1));
}

namespace {

// How often each thread of the library, here and in its processes, has given its CPU away, and was made to. A sanitizer
// has threads of its own, which are not looked at.
std::map<std::string, std::string> switches() {
  std::map<std::string, std::string> found;
  const auto look = [&](const std::string& task) {
    std::istringstream status(bulkhead::test::read_file(task + "/status"));
    for (std::string line; std::getline(status, line);) {
      if (line.find("ctxt_switches") != std::string::npos) found[task] += line + ";";
    }
  };
  for (const int pid : bulkhead::test::descendants()) look(fmt::format("/proc/{0}/task/{0}", pid));
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", error)) {
    const std::string name = bulkhead::test::read_file(task.path() / "comm");
    if (name.starts_with("bulkhead") || name.starts_with("idle")) look(task.path());
  }
  return found;
}

}  // namespace

TEST_CASE("F24: processes and threads that have nothing to do do nothing, not even now and then", "[idle]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(2));
  ThreadExecutorOptions options = threads(2);
  options.name = "idle";
  options.idle_timeout = 1h;
  ThreadExecutor executor(context.get_executor(), options);
  reset_board();
  std::vector<asio::awaitable<int>> tasks;
  for (int i = 0; i < 2; ++i) tasks.push_back(executor.submit(meet, i, 4));
  for (int i = 2; i < 4; ++i) tasks.push_back(pool.submit(meet, i, 4));
  CHECK(run(context, bulkhead::when_all(std::move(tasks))) == std::vector<int>{0, 1, 2, 3});
  // Who polls every half or whole second is seen in each of these times; what ends of earlier tests in none of them.
  bool quiet = false;
  std::map<std::string, std::string> before;
  for (int i = 0; i < 20 && !quiet; ++i) {
    before = switches();
    ::poll(nullptr, 0, 1100);
    quiet = switches() == before;
  }
  CHECK(quiet);
  // The fork server, the template, two workers, two threads, and the library's own.
  CHECK(before.size() >= 7);
  CHECK(run(context, executor.submit(twice, 2)) == 4);
  CHECK(run(context, pool.submit(twice, 2)) == 4);
}

int main(int argc, char** argv) {
  bulkhead::start_fork_server();
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  if (part == "forget_executors") return forget_executors();
  return run_tests(argc, argv);
}
