// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/local_executor.hpp>

#include "fault/sandbox/attacks.hpp"
#include "fault/sandbox/expected.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/program.hpp"
#include "support/run.hpp"
#include "support/shared.hpp"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

/// Tries every attack in every profile, and compares what is seen with what is expected.
namespace bulkhead::test::sandbox {

/// What workers share with the test.
struct Board {
  Gate gate;
  std::atomic<int> sibling{0};
  std::atomic<std::uintptr_t> sibling_word{0};
};
inline Board& board = shared_object<Board>();

// What attacks aim at: words in the host's and in a sibling's memory that hold kUntouched, and signals to the host.
inline volatile std::uint32_t word = kUntouched;
inline volatile std::sig_atomic_t signals_to_host = 0;

/// Is attacked until the gate opens; whether its word is as it was.
inline bool be_the_sibling() {
  board.sibling = ::getpid();
  board.sibling_word = reinterpret_cast<std::uintptr_t>(&word);
  board.gate.wait();
  return word == kUntouched;
}

inline Result run_attack(std::size_t row, const Target& target, std::string_view inside) {
  return kExpected.at(row).attack(target, inside);
}

/// The host's sockets, and its other targets.
class Host {
 public:
  Host() {
    target_.host = ::getpid();
    target_.host_word = reinterpret_cast<std::uintptr_t>(&word);
    tcp_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    target_.tcp_port = bind_to_loopback(tcp_);
    udp_ = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    target_.udp_port = bind_to_loopback(udp_);
    abstract_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    target_.abstract_name = "bulkhead-sandbox-test-" + std::to_string(::getpid());
    const sockaddr_un address = abstract_address(target_.abstract_name);
    const bool bound = ::bind(abstract_, generic(&address), abstract_size(target_.abstract_name)) == 0;
    // As many connections as there are attacks wait there, and nobody takes them.
    if (!bound || ::listen(tcp_, 64) != 0 || ::listen(abstract_, 64) != 0) throw std::runtime_error("no sockets");
    target_.host_descriptor = tcp_;
    std::string directory = "/tmp/bulkhead-sandbox-XXXXXX";
    if (::mkdtemp(directory.data()) == nullptr) throw std::runtime_error("no directory");
    target_.directory = directory;
    std::ofstream(file_in(target_)) << "text";
    path_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_un path = path_address(target_.directory + "/socket");
    if (::bind(path_, generic(&path), sizeof(path)) != 0 || ::listen(path_, 64) != 0) {
      throw std::runtime_error("no socket in a directory");
    }
    struct sigaction action {};
    action.sa_handler = [](int) { signals_to_host = signals_to_host + 1; };
    ::sigaction(SIGUSR1, &action, nullptr);
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  ~Host() {
    for (const int fd : {tcp_, udp_, abstract_, path_}) ::close(fd);
    std::error_code ignored;  // the test has said what it had to
    std::filesystem::remove_all(target_.directory, ignored);
  }

  Target& target() { return target_; }

 private:
  static std::uint16_t bind_to_loopback(int fd) {
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof(address);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    if (::bind(fd, any, size) != 0 || ::getsockname(fd, any, &size) != 0) throw std::runtime_error("no port");
    return ntohs(address.sin_port);
  }

  Target target_;
  int tcp_ = -1;
  int udp_ = -1;
  int abstract_ = -1;
  int path_ = -1;
};

/// Whether the attack succeeds in a child of this process, outside of any sandbox.
inline bool succeeds_here(std::size_t row, const Target& target) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(run_attack(row, target, {}).succeeded ? 1 : 0);
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

/// Its own /proc may be closed to it. The host finds it by the number that it has among workers.
inline bool find_sibling(const LocalExecutor& pool, Target& target) {
  for (const int pid : pool.worker_pids()) {
    const std::string status = read_file("/proc/" + std::to_string(pid) + "/status");
    const auto line = status.find("NSpid:");
    if (line == std::string::npos) continue;
    std::istringstream numbers(status.substr(line + 6, status.find('\n', line) - line - 6));
    int innermost = 0;
    for (int number = 0; numbers >> number;) innermost = number;
    if (innermost == target.sibling) target.sibling_in_host = pid;
  }
  return target.sibling_in_host != 0;
}

struct Seen {
  Expect what = Expect::no;
  std::string text;
  bool understood = true;
};

inline Seen seen_of(const Outcome<Result>& outcome, std::string_view system_call) {
  if (!outcome.error) {
    if (outcome.value->succeeded) return {Expect::yes, "yes"};
    const char* const name = ::strerrorname_np(outcome.value->error);
    return {Expect::no, fmt::format("no {}", name == nullptr ? "?" : name)};
  }
  if (const auto violation = error_as<PolicyViolationError>(outcome.error)) {
    return {Expect::killed, "killed " + violation->system_call(), violation->system_call() == system_call};
  }
  if (const auto crash = error_as<WorkerCrashedError>(outcome.error)) {
    if (crash->exit_code() == kProgramRan) return {Expect::yes, "yes"};
  }
  return {Expect::no, message(outcome.error), false};
}

/// All profiles, for a host of the user that this process runs as. Before there is any executor: it forks.
inline int run_matrix() {
  const bool root = ::geteuid() == 0;
  Report report;
  Host host;
  Target& target = host.target();
  std::array<bool, kExpected.size()> outside{};
  for (std::size_t row = 0; row < kExpected.size(); ++row) {
    const auto& cells = kExpected[row].cells;
    const bool asked = std::any_of(cells.begin(), cells.end(), [](Cell cell) { return cell.expect == Expect::here; });
    outside[row] = asked && succeeds_here(row, target);
  }

  std::array<std::string, kExpected.size()> table;
  for (std::size_t row = 0; row < table.size(); ++row) table[row] = fmt::format("{:<24}", kExpected[row].name);
  std::string reports;
  std::string head = fmt::format("{:<24}", root ? "root" : "user");
  std::size_t column = root ? 0 : 1;
  for (const SandboxPolicy& policy :
       {SandboxPolicy::trusted(), SandboxPolicy::contained(), SandboxPolicy::untrusted()}) {
    head += fmt::format("{:<28}", policy.profile);
    board.gate.reset();
    board.sibling = 0;
    asio::io_context context;
    LocalExecutorOptions options = workers(2);
    options.sandbox = policy;
    if (policy.file_access != Demand::off) options.sandbox.readable_paths = {target.directory};
    options.max_tasks_per_worker = 1;  // what an attack does to its own worker is not the next one's
    options.capture_output = CaptureOutput::discard;
    LocalExecutor pool(context.get_executor(), options);
    const SandboxReport in_force = pool.sandbox_report();
    reports += in_force.to_string() + "\n";
    Outcome<bool> sibling;
    pool.async_submit(call(be_the_sibling), sibling.handler());
    if (!report.expect(run_until(context, [&] { return board.gate.waiting > 0 || sibling.calls > 0; }),
                       policy.profile + ": the sibling is there")) {
      break;
    }
    target.sibling = board.sibling;
    target.sibling_word = board.sibling_word;
    // One that has just been started may be missing for a moment.
    target.sibling_in_host = 0;
    report.expect(run_until(context, [&] { return find_sibling(pool, target); }),
                  policy.profile + ": the sibling is found");

    for (std::size_t row = 0; row < kExpected.size(); ++row) {
      const Row& expected = kExpected[row];
      word = kUntouched;
      signals_to_host = 0;
      Outcome<Result> outcome;
      pool.async_submit(TaskOptions().timeout(kGone), call(run_attack, row, target, std::string("inside")),
                        outcome.handler());
      if (!report.expect(run_until(context, [&] { return outcome.calls > 0; }),
                         fmt::format("{}: {}: it ends", policy.profile, expected.name))) {
        return report.exit_code();
      }
      const Seen seen = seen_of(outcome, expected.system_call);
      table[row] += fmt::format("{:<28}", seen.text);
      const Cell cell = expected.cells.at(column);
      Expect wanted = cell.expect;
      if (cell.unless && in_force.in_force(*cell.unless)) wanted = Expect::no;
      if (wanted == Expect::here) wanted = outside[row] ? Expect::yes : Expect::no;
      if (!report.expect(seen.understood && seen.what == wanted,
                         fmt::format("{}: {}: {}", policy.profile, expected.name, seen.text))) {
        table[row].replace(table[row].size() - 2, 2, "! ");
      }
      const bool effect = seen.what == Expect::yes;
      report.expect(effect || word == kUntouched, fmt::format("{}: the host's memory is as it was", expected.name));
      report.expect(effect || signals_to_host == 0, fmt::format("{}: the host gets no signal", expected.name));
    }
    const bool closed = in_force.in_force(SandboxItem::system_calls);
    board.gate.open = 1;
    report.expect(run_until(context, [&] { return sibling.calls > 0; }) && !sibling.error,
                  policy.profile + ": the sibling lives: " + message(sibling.error));
    report.expect(!closed || sibling.value.value_or(false), policy.profile + ": the sibling is untouched");
    report.expect(adds_up(pool), policy.profile + ": the metrics add up");
    column += 2;
  }
  std::string all = head + "\n";
  for (const std::string& line : table) all += line + "\n";
  std::printf("%s\n%s", all.c_str(), report.exit_code() == 0 ? "" : reports.c_str());
  return report.exit_code();
}

}  // namespace bulkhead::test::sandbox
