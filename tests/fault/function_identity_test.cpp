// SPDX-License-Identifier: BSL-1.0
// Which addresses count as functions that workers have: every legal one, and nothing else is ever jumped to.
// A task that is called by its name with other types is TaskSignatureError: see tasks_test.cpp. A pointer carries the
// types of its call with it, as the address of the template that was made for them.
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/local_executor.hpp>

#include "support/catch.hpp"
#include "support/check_part.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

namespace asio = boost::asio;
using bulkhead::FunctionUnavailableError;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::WorkerCrashedError;
using bulkhead::detail::check_function;
using bulkhead::detail::code_of;
using bulkhead::test::adds_up;
using bulkhead::test::check_part;
using bulkhead::test::error_as;
using bulkhead::test::failure;
using bulkhead::test::leave;
using bulkhead::test::message;
using bulkhead::test::Report;
using bulkhead::test::run;
using bulkhead::test::twice;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;
using Cause = FunctionUnavailableError::Cause;

// Functions in assembler, as C and C++ libraries have them: one that the unwind tables do not have, and one that they
// have as one, with two entries.
#if defined(__x86_64__)
#define ADD_TO_ARGUMENT(number) "lea " #number "(%rdi), %eax\n ret\n"
#elif defined(__aarch64__)
#define ADD_TO_ARGUMENT(number) "add w0, w0, #" #number "\n ret\n"
#endif
#ifdef ADD_TO_ARGUMENT
extern "C" int identity_test_without_tables(int value);
extern "C" int identity_test_first_entry(int value);
extern "C" int identity_test_second_entry(int value);
asm(".pushsection .text\n"
    ".balign 16\n"
    ".globl identity_test_without_tables\n"
    ".type identity_test_without_tables, %function\n"
    "identity_test_without_tables:\n" ADD_TO_ARGUMENT(1)
    ".size identity_test_without_tables, . - identity_test_without_tables\n"
    ".balign 16\n"
    ".globl identity_test_first_entry\n"
    ".type identity_test_first_entry, %function\n"
    ".globl identity_test_second_entry\n"
    ".type identity_test_second_entry, %function\n"
    "identity_test_first_entry:\n"
    ".cfi_startproc\n" ADD_TO_ARGUMENT(2)
    "identity_test_second_entry:\n" ADD_TO_ARGUMENT(3)
    ".cfi_endproc\n"
    ".size identity_test_first_entry, . - identity_test_first_entry\n"
    ".size identity_test_second_entry, . - identity_test_second_entry\n"
    ".popsection\n");
#endif

namespace {

using Function = int (*)(int);

// A part of the C library that nothing loads by itself.
constexpr const char* kLibrary = "libBrokenLocale.so.1";
using LibraryFunction = std::size_t (*)();
LibraryFunction function_of(void* library) {
  return reinterpret_cast<LibraryFunction>(::dlsym(library, "__ctype_get_mb_cur_max"));
}

// Where something lies, taken for a function.
Function at(const void* address) { return reinterpret_cast<Function>(reinterpret_cast<std::uintptr_t>(address)); }
Function inside(Function function, std::uintptr_t offset) {
  return reinterpret_cast<Function>(reinterpret_cast<std::uintptr_t>(function) + offset);
}

int plus_one(int value) { return value + 1; }
// Large enough for an address that is far from both of its ends.
int digits(int value) {
  char text[16];
  int used = 0;
  for (; value > 0; value /= 10) text[used++] = static_cast<char>('0' + value % 10);
  return static_cast<int>(std::strspn(text, "0123456789")) < used ? -1 : used;
}
template <int N>
int plus(int value) {
  return value + N;
}

struct Number {
  int value = 0;
  virtual int times(int factor) const { return value * factor; }
  int plus(int other) const { return value + other; }
  static int negative(int of) { return -of; }

  Number() = default;
  explicit Number(int number) : value(number) {}
  Number(const Number&) = default;
  Number& operator=(const Number&) = default;
  virtual ~Number() = default;
};
struct Label {
  virtual int length() const { return 5; }

  Label() = default;
  Label(const Label&) = default;
  Label& operator=(const Label&) = default;
  virtual ~Label() = default;
};
// What it has from Label is called through a thunk.
struct LabelledNumber : Number, Label {
  using Number::Number;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(value);
  }
  int times(int factor) const override { return value * factor * 10; }
  int length() const override { return value; }
};

int length_of(const LabelledNumber& number) {
  const Label& label = number;
  int (Label::*const length)() const = &Label::length;
  return (label.*length)();
}

// A submit that is refused: with this cause and these words, before anything is sent, and without an effect on others.
template <class F, class... Args>
void check_refused(Cause cause, const std::string& words, F function, Args... args) {
  for (const bool bypass : {false, true}) {
    CAPTURE(bypass);
    asio::io_context context;
    LocalExecutor pool(context.get_executor(), workers(1, bypass));
    REQUIRE(run(context, pool.submit(twice, 1)) == 2);
    // The second time, too: what was refused is not remembered as a function.
    for (int time = 0; time < 2; ++time) {
      const auto error = error_as<FunctionUnavailableError>(failure(context, pool.submit(function, args...)));
      REQUIRE(error);
      CHECK(error->cause() == cause);
      CHECK(error->code() == bulkhead::Errc::function_unavailable);
      CHECK_THAT(error->reason(), ContainsSubstring(words));
      CHECK_THAT(error->what(), ContainsSubstring(error->reason()));
      if (!bypass) CHECK(error->context().executor == pool.name());
    }
    CHECK(run(context, pool.submit(twice, 21)) == 42);
    const auto metrics = pool.metrics();
    CHECK(adds_up(metrics));
    CHECK(metrics.failed == 2);
    CHECK(metrics.completed == 2);
    CHECK(metrics.workers_started == (bypass ? 0 : 1));
    CHECK(metrics.workers_crashed == 0);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Refused.

TEST_CASE("70: a null pointer is refused as one", "[fault]") {
  check_refused(Cause::null_pointer, "null", Function(nullptr), 1);
  int (Number::*const member)(int) const = nullptr;
  check_refused(Cause::null_pointer, "null", member, LabelledNumber(1), 1);
}

TEST_CASE("70: a pointer to data of the program or of a library is refused as no code", "[fault]") {
  static int written = 1;
  static const std::array<int, 4> kRead{1, 2, 3, 4};
  check_refused(Cause::not_code, "data of the program", at(&written), 1);
  check_refused(Cause::not_code, "data of the program", at(kRead.data()), 1);
  // Of the C++ library, unless it is linked into the program.
  check_refused(Cause::not_code, "data of ", at(::dlsym(RTLD_DEFAULT, "stdout")), 1);
}

TEST_CASE("70: a pointer to the stack is refused as no code", "[fault]") {
  std::array<unsigned char, 64> code{};
  check_refused(Cause::not_code, "stack", at(code.data()), 1);
}

TEST_CASE("70: a pointer to the heap is refused as no code", "[fault]") {
  const auto code = std::make_unique<std::array<unsigned char, 4096>>();
  check_refused(Cause::not_code, "heap", at(code->data()), 1);
}

TEST_CASE("70: code that was made at run time is refused as no code of the program", "[fault]") {
  constexpr std::size_t kSize = 4096;
  void* const code = ::mmap(nullptr, kSize, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (code == MAP_FAILED) {
    WARN("skipped: this machine maps no executable memory without a file");
    return;
  }
  check_refused(Cause::not_code, "made at run time", at(code), 1);
  ::munmap(code, kSize);
}

TEST_CASE("70: addresses where nothing is are refused as no code", "[fault]") {
  check_refused(Cause::not_code, "no program code", inside(nullptr, 1), 1);
  check_refused(Cause::not_code, "no program code", inside(nullptr, ~std::uintptr_t{0}), 1);
}

TEST_CASE("70: a pointer into the middle of a function is refused, and names the function", "[fault]") {
  check_refused(Cause::not_a_function_start, "1 bytes inside", inside(twice, 1), 1);
  check_refused(Cause::not_a_function_start, "twice(int)", inside(twice, 1), 1);
  check_refused(Cause::not_a_function_start, "17 bytes inside", inside(digits, 17), 1);
  check_refused(Cause::not_a_function_start, "digits(int)", inside(digits, 17), 1);
  // Of a library.
  check_refused(Cause::not_a_function_start, "1 bytes inside", inside(&std::abs, 1), 1);
}

TEST_CASE("70: the start of a pool whose initializer is no function is refused", "[fault]") {
  asio::io_context context;
  LocalExecutorOptions options = workers(1);
  options.initializer = bulkhead::call(inside(twice, 1), 1);
  std::exception_ptr thrown;
  try {
    const LocalExecutor pool(context.get_executor(), options);
  } catch (const std::exception&) {
    thrown = std::current_exception();
  }
  const auto error = error_as<FunctionUnavailableError>(thrown);
  REQUIRE(error);
  CHECK(error->cause() == Cause::not_a_function_start);
}

TEST_CASE("71: a function of a library that was loaded later is refused, and as no code when that is closed",
          "[fault]") {
  REQUIRE(::dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD) == nullptr);
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  REQUIRE(library != nullptr);
  const LibraryFunction function = function_of(library);
  REQUIRE(function != nullptr);
  static_cast<void>(function());  // The host may call it.
  check_refused(Cause::module_not_loaded, "libBrokenLocale", function);
  check_refused(Cause::module_not_loaded, "before bulkhead::start_fork_server()", function);
  ::dlclose(library);
  if (::dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD) != nullptr) {
    WARN("the rest is skipped: something keeps the library");
    return;
  }
  check_refused(Cause::not_code, "has been unloaded", function);
}

// ---------------------------------------------------------------------------------------------------------------------
// Run.

TEST_CASE("70: functions, static ones, templates' and lambdas run in workers", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(plus_one, 1)) == 2);
  CHECK(run(context, pool.submit(digits, 12345)) == 5);
  CHECK(run(context, pool.submit(plus<3>, 1)) == 4);
  CHECK(run(context, pool.submit(&Number::negative, 4)) == -4);
  CHECK(run(context, pool.submit(Function([](int value) { return value + 5; }), 1)) == 6);
  CHECK(run(context, pool.submit([](int value) { return value + 6; }, 1)) == 7);
  CHECK(pool.metrics().completed == 6);
}

TEST_CASE("70: member functions run in workers, also virtual ones and those of a second base", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(&Number::plus, LabelledNumber(4), 3)) == 7);
  CHECK(run(context, pool.submit(&Number::times, LabelledNumber(4), 3)) == 120);
  CHECK(run(context, pool.submit(&LabelledNumber::length, LabelledNumber(6))) == 6);
  CHECK(run(context, pool.submit(&Label::length, LabelledNumber(7))) == 7);
  CHECK(run(context, pool.submit(length_of, LabelledNumber(8))) == 8);
}

TEST_CASE("70: functions of libraries run in workers, also those that are chosen for the processor", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(static_cast<int (*)(int)>(&std::abs), -4)) == 4);
  CHECK(run(context, pool.submit(static_cast<int (*)(int)>(&std::toupper), 'a')) == 'A');
  CHECK(run(context, pool.submit(static_cast<double (*)(double)>(&::floor), 1.5)) == Approx(1));
  CHECK(run(context, pool.submit(static_cast<double (*)(double)>(&::sin), 0.5)) == Approx(std::sin(0.5)));
  // They take pointers, which cannot be sent.
  for (const char* const name : {"memcpy",  "memmove", "memset", "memcmp", "memchr",       "strlen",        "strcmp",
                                 "strchr",  "strcpy",  "strstr", "time",   "gettimeofday", "clock_gettime", "setjmp",
                                 "_setjmp", "longjmp", "vfork",  "clone",  "syscall",      "malloc",        "free"}) {
    CAPTURE(name);
    const void* const function = ::dlsym(RTLD_DEFAULT, name);
    if (function != nullptr) CHECK_NOTHROW(check_function(function));
  }
  CHECK_NOTHROW(check_function(reinterpret_cast<const void*>(&std::memcpy)));
  CHECK_NOTHROW(check_function(reinterpret_cast<const void*>(&std::strlen)));
}

#ifdef ADD_TO_ARGUMENT
TEST_CASE("70: functions in assembler run in workers, without unwind tables or with two entries", "[fault]") {
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  CHECK(run(context, pool.submit(identity_test_without_tables, 1)) == 2);
  CHECK(run(context, pool.submit(identity_test_first_entry, 1)) == 3);
  CHECK(run(context, pool.submit(identity_test_second_entry, 1)) == 4);
  check_refused(Cause::not_a_function_start, "1 bytes inside", inside(identity_test_first_entry, 1), 1);
}
#endif

TEST_CASE("70: of the functions that are remembered none is taken for another, however many there are", "[fault]") {
  // 1000 functions 48 bytes from each other, which drive each other out.
  const auto known = std::make_unique<bulkhead::detail::KnownFunctions>();
  constexpr std::uintptr_t kFirst = 0x401000;
  constexpr std::uintptr_t kEnd = kFirst + std::uintptr_t{1000} * 48;
  const auto pointer = [](std::uintptr_t value) { return reinterpret_cast<const void*>(value); };
  int wrong = 0;
  int kept = 0;
  for (std::uintptr_t function = kFirst; function < kEnd; function += 48) {
    known->add(pointer(function));
    if (!known->contains(pointer(function))) ++wrong;
  }
  for (std::uintptr_t address = kFirst - 48; address < kEnd + 48; ++address) {
    if (!known->contains(pointer(address))) continue;
    ++kept;
    if (address < kFirst || address >= kEnd || (address - kFirst) % 48 != 0) ++wrong;
  }
  CHECK(wrong == 0);
  CHECK(kept > 0);
}

TEST_CASE("70: what threads check at the same time is refused or not as by one", "[fault]") {
  const std::vector<const void*> functions{code_of(&twice),   code_of(&plus_one), code_of(&digits),
                                           code_of(&plus<1>), code_of(&plus<2>),  code_of(&plus<3>)};
  std::atomic<int> refused{0};
  std::atomic<int> accepted{0};
  std::vector<std::thread> threads;
  constexpr int kThreads = 4;
  constexpr int kRounds = 200;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        for (const void* const function : functions) {
          check_function(function);
          ++accepted;
          try {
            check_function(static_cast<const std::byte*>(function) + 1);
          } catch (const FunctionUnavailableError&) {
            ++refused;
          }
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(accepted == kThreads * kRounds * static_cast<int>(functions.size()));
  CHECK(refused == accepted);
}

TEST_CASE("72: a function of a library that was closed after the start still runs in workers", "[fault]") {
  check_part("closed-library");
}

TEST_CASE("72: a program whose file was replaced while it runs goes on as it was", "[fault]") {
  check_part("replaced");
}

TEST_CASE("70: a forked copy of the program refuses no address until it has workers of its own", "[fault]") {
  check_part("copy");
}

// ---------------------------------------------------------------------------------------------------------------------
// Programs of their own.

namespace {

std::optional<Cause> cause_of(asio::io_context& context, LocalExecutor& pool, Function function) {
  const auto error = error_as<FunctionUnavailableError>(failure(context, pool.submit(function, 1)));
  return error ? std::optional(error->cause()) : std::nullopt;
}

int run_closed_library(void* library) {
  Report report;
  const LibraryFunction function = function_of(library);
  if (!report.expect(function != nullptr, "the library has the function")) return report.exit_code();
  const std::size_t value = function();
  ::dlclose(library);
  report.expect(::dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD) != nullptr, "the library stays");
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  report.expect(run(context, pool.submit(function)) == value, "its function runs in a worker");
  return report.exit_code();
}

int run_replaced(const std::filesystem::path& file) {
  Report report;
  asio::io_context context;
  {
    LocalExecutor pool(context.get_executor(), workers(1));
    report.expect(run(context, pool.submit(twice, 1)) == 2, "tasks run before");
    std::filesystem::remove(file);
    std::ofstream(file) << "another program\n";
    report.expect(run(context, pool.submit(twice, 2)) == 4, "a function runs again");
    report.expect(run(context, pool.submit(plus_one, 1)) == 2, "a function runs that has not run before");
    report.expect(error_as<WorkerCrashedError>(failure(context, pool.submit(leave, 3))).has_value(), "its worker ends");
    report.expect(run(context, pool.submit(plus<2>, 1)) == 3, "another worker runs tasks");
  }
  LocalExecutor pool(context.get_executor(), workers(1));
  report.expect(run(context, pool.submit(plus<3>, 1)) == 4, "another pool runs tasks");
  report.expect(cause_of(context, pool, inside(plus<3>, 1)) == Cause::not_a_function_start,
                "no other address is taken");
  std::filesystem::remove_all(file.parent_path());
  return report.exit_code();
}

int check_in_copy() {
  Report report;
  const auto check_throws = [](const void* address) {
    try {
      check_function(address);
    } catch (const FunctionUnavailableError&) {
      return true;
    }
    return false;
  };
  static int data = 1;
  report.expect(check_throws(nullptr), "null is refused");
  report.expect(!check_throws(&data), "where nothing is sent, other addresses are not looked at");
  bulkhead::start_fork_server();
  asio::io_context context;
  LocalExecutor pool(context.get_executor(), workers(1));
  report.expect(run(context, pool.submit(plus_one, 1)) == 2, "its own workers run tasks");
  report.expect(cause_of(context, pool, at(&data)) == Cause::not_code, "data is refused");
  report.expect(cause_of(context, pool, inside(plus_one, 1)) == Cause::not_a_function_start, "and so is the middle");
  return report.exit_code();
}

int run_copy() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(check_in_copy());
  int status = 0;
  // The program that has called this part has a deadline, and kills it.
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

// Goes on as a copy of the program, whose file may be replaced. Returns only if that cannot be.
int become_copy(char** argv) {
  std::string folder = std::filesystem::temp_directory_path() / "bulkhead-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) throw std::system_error(errno, std::system_category(), folder);
  std::string copy = folder + "/program";
  std::filesystem::copy_file("/proc/self/exe", copy);
  std::string part = "--part=replaced-copy";
  const std::array<char*, 4> arguments{copy.data(), part.data(), argv[2], nullptr};
  ::execv(copy.c_str(), arguments.data());
  std::printf("not so: %s can be started\n", copy.c_str());
  std::filesystem::remove_all(folder);
  return 1;
}

int run_part(std::string_view part, char** argv, void* library) {
  if (part == "closed-library") return run_closed_library(library);
  if (part == "replaced-copy") return run_replaced(argv[0]);
  if (part == "copy") return run_copy();
  std::fprintf(stderr, "there is no part of this name\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view part = bulkhead::test::part_of(argc, argv);
  if (part == "replaced") return become_copy(argv);
  void* const library = part == "closed-library" ? ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL) : nullptr;
  bulkhead::start_fork_server();
  return part.empty() ? run_tests(argc, argv) : run_part(part, argv, library);
}
