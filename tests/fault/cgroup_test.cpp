// SPDX-License-Identifier: BSL-1.0
// Limits that the workers of an executor have together, by a control group.
//
// BULKHEAD_TEST_CGROUP names a group that was delegated to this user, without members, and with the controllers
// `memory` and `pids` for those below it; this process must be in a group that it may leave. Where it is not set, as on
// a machine with the older cgroups, nothing is tried. `tests/vm/run` has a machine with such groups.
#include <bulkhead/local_executor.hpp>
#include <bulkhead/sandbox.hpp>

#include "support/catch.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/run_tests.hpp"
#include "support/tasks.hpp"

#include <boost/asio/io_context.hpp>

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using bulkhead::Demand;
using bulkhead::LocalExecutor;
using bulkhead::LocalExecutorOptions;
using bulkhead::SandboxItem;
using bulkhead::WorkerCrashedError;
using bulkhead::WorkerStartError;
using bulkhead::test::adds_up;
using bulkhead::test::error_as;
using bulkhead::test::kGone;
using bulkhead::test::message;
using bulkhead::test::poll_until;
using bulkhead::test::read_file;
using bulkhead::test::run;
using bulkhead::test::twice;
using bulkhead::test::whole;
using bulkhead::test::workers;
using Catch::Matchers::ContainsSubstring;

namespace {

std::optional<std::string> delegated_group() {
  const char* const path = std::getenv("BULKHEAD_TEST_CGROUP");
  if (path != nullptr) return path;
  WARN("no group is delegated to this test, so that nothing is tried");
  return std::nullopt;
}

// A group of its own below a delegated one. It must be empty at the end: a group with members cannot be removed.
class Group {
 public:
  explicit Group(const std::string& parent) : path_(parent + "/test-" + std::to_string(::getpid())) {
    if (::mkdir(path_.c_str(), 0755) != 0) throw std::system_error(errno, std::system_category(), path_);
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() { remove(); }

  bool remove() const { return ::rmdir(path_.c_str()) == 0; }
  const std::string& path() const { return path_; }
  std::string value(const std::string& file) const {
    std::string text = read_file(path_ + "/" + file);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }
  std::set<int> members() const {
    std::ifstream file(path_ + "/cgroup.procs");
    std::set<int> pids;
    for (int pid = 0; file >> pid;) pids.insert(pid);
    return pids;
  }
  // How often the kernel has killed a member since there was no memory left.
  std::uint64_t killed_for_memory() const {
    std::ifstream file(path_ + "/memory.events");
    std::string name;
    for (std::uint64_t count = 0; file >> name >> count;) {
      if (name == "oom_kill") return count;
    }
    return 0;
  }

 private:
  std::string path_;
};

LocalExecutorOptions in_group(const Group& group, unsigned number) {
  LocalExecutorOptions options = workers(number);
  options.sandbox.cgroup = Demand::require;
  options.sandbox.cgroup_path = group.path();
  return options;
}

struct Forked {
  int children = 0;
  int error = 0;
};
// As many as it gets, at most; they end again.
Forked fork_as_many(int most) {
  std::vector<pid_t> children;
  Forked result;
  while (result.children < most && result.error == 0) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
    if (child < 0) {
      result.error = errno;
    } else {
      children.push_back(child);
      ++result.children;
    }
  }
  for (const pid_t child : children) ::kill(child, SIGKILL);
  for (const pid_t child : children) ::waitpid(child, nullptr, 0);
  return result;
}

std::size_t touch(std::size_t size) {
  const std::vector<char> memory(size, 'x');
  return static_cast<std::size_t>(std::count(memory.begin(), memory.end(), 'x'));
}

}  // namespace

TEST_CASE("62: workers have no more processes together than their group may, and a new worker is in it, too",
          "[fault]") {
  const auto parent = delegated_group();
  if (!parent) return;
  const Group group(*parent);
  {
    asio::io_context context;
    LocalExecutorOptions options = in_group(group, 2);
    options.sandbox.cgroup_processes = 12;
    LocalExecutor pool(context.get_executor(), options);
    const auto entry = pool.sandbox_report().entry(SandboxItem::cgroup);
    CHECK(pool.sandbox_report().in_force(SandboxItem::cgroup));
    CHECK_THAT(entry.detail, ContainsSubstring(group.path()));
    CHECK(group.value("pids.max") == "12");

    REQUIRE(bulkhead::test::run_until(context, [&] { return whole(pool); }));
    for (int i = 0; i < 2; ++i) {
      const std::set<int> members = group.members();
      for (const int pid : pool.worker_pids()) CHECK(members.count(pid) == 1);
      CHECK(members.count(::getpid()) == 0);
      // The template and two workers are there already.
      const Forked forked = run(context, pool.submit(fork_as_many, 100));
      CHECK(forked.error == EAGAIN);
      CHECK(forked.children == 9);
      // The next turn is with a worker that has taken a dead one's place.
      const auto error = error_as<WorkerCrashedError>(
          bulkhead::test::failure(context, pool.submit(bulkhead::test::die, int{SIGSEGV})));
      CHECK(error);
      REQUIRE(bulkhead::test::run_until(context, [&] { return whole(pool); }));
    }
    CHECK(adds_up(pool));
  }
  CHECK(poll_until([&] { return group.remove(); }, kGone));
}

TEST_CASE(
    "61: workers that take more memory together than their group may cost a worker and its task, and not the host",
    "[fault]") {
  const auto parent = delegated_group();
  if (!parent) return;
  const Group group(*parent);
  {
    asio::io_context context;
    LocalExecutorOptions options = in_group(group, 1);
    options.sandbox.cgroup_memory = std::uint64_t{96} << 20;
    LocalExecutor pool(context.get_executor(), options);
    CHECK(group.value("memory.max") == std::to_string(std::uint64_t{96} << 20));
    // Else it would be no limit, but a slow machine.
    const std::string swap = group.value("memory.swap.max");
    CHECK((swap.empty() || swap == "0"));
    CHECK(run(context, pool.submit(touch, std::size_t{16} << 20)) == std::size_t{16} << 20);
    for (std::uint64_t i = 1; i <= 2; ++i) {
      const auto thrown = bulkhead::test::failure(context, pool.submit(touch, std::size_t{512} << 20));
      INFO(message(thrown));
      const auto crash = error_as<WorkerCrashedError>(thrown);
      REQUIRE(crash);
      CHECK(crash->signal() == SIGKILL);
      CHECK(group.killed_for_memory() == i);
      CHECK(run(context, pool.submit(twice, 21)) == 42);
    }
    CHECK(pool.metrics().workers_crashed == 2);
    CHECK(adds_up(pool));
  }
  CHECK(poll_until([&] { return group.remove(); }, kGone));
}

TEST_CASE("64: a limit that a group has no controller for is an error where it is required, and tells its file",
          "[fault]") {
  const auto parent = delegated_group();
  if (!parent) return;
  const Group group(*parent);
  const Group without_controllers(group.path());
  asio::io_context context;
  LocalExecutorOptions options = in_group(without_controllers, 1);
  options.sandbox.cgroup_processes = 100;
  try {
    const LocalExecutor pool(context.get_executor(), options);
    FAIL("there is an executor, and no limit");
  } catch (const WorkerStartError& error) {
    CHECK_THAT(error.reason(), ContainsSubstring("cgroup"));
    CHECK_THAT(error.reason(), ContainsSubstring(without_controllers.path() + "/pids.max"));
  }
  options.sandbox.cgroup = Demand::attempt;
  LocalExecutor pool(context.get_executor(), options);
  CHECK(run(context, pool.submit(twice, 21)) == 42);
  const auto entry = pool.sandbox_report().entry(SandboxItem::cgroup);
  CHECK(entry.state == bulkhead::SandboxReport::State::unavailable);
  CHECK_THAT(entry.detail, ContainsSubstring("pids.max"));
}

int main(int argc, char** argv) {
  bulkhead::start_fork_server();
  return run_tests(argc, argv);
}
