// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/common_options.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/this_task.hpp>

#include "support/processes.hpp"
#include "support/shared.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <unistd.h>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>

// What tasks do, and an executor that does with them what a user may do.
namespace bulkhead::test::family_chaos {

using namespace std::chrono_literals;

inline constexpr std::size_t kMostTasks = 4096;

// How often each task of an episode has begun, in whatever process.
struct Board {
  std::array<std::atomic<int>, kMostTasks> runs{};
};
inline Board& board = shared_object<Board>();

inline const int host = ::getpid();

enum class Kind { add, throws, wait, stubborn, report, crash };

inline int act(int kind, int number) {
  ++board.runs[static_cast<std::size_t>(number)];
  switch (static_cast<Kind>(kind)) {
    case Kind::add:
      break;
    case Kind::throws:
      throw std::out_of_range("as asked");
    case Kind::wait:
      poll_until([] { return this_task::stop_requested(); }, 3ms);
      this_task::throw_if_stop_requested();
      break;
    case Kind::stubborn:
      poll_until([] { return false; }, 2ms);
      break;
    case Kind::report:
      for (int i = 0; i < 20; ++i) this_task::report_progress(static_cast<std::uint64_t>(i), 20);
      break;
    case Kind::crash:
      if (::getpid() != host) std::raise(SIGKILL);
      break;
  }
  return number + 1;
}

inline asio::awaitable<int> act_later(int kind, int number) {
  ++board.runs[static_cast<std::size_t>(number)];
  asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
  co_await timer.async_wait(asio::use_awaitable);
  if (static_cast<Kind>(kind) == Kind::throws) throw std::out_of_range("as asked");
  co_return number + 1;
}

// What a user's own executor may do with a task, good or bad.
class OwnExecutor final : public BaseExecutor {
 public:
  OwnExecutor(const asio::any_io_executor& io, CommonOptions options, unsigned seed)
      : BaseExecutor(io, std::move(options)), next_(seed) {}
  ~OwnExecutor() override { close(); }

 protected:
  void execute(Task task) override {
    switch (next_++ % 8) {
      case 0:
        fail(std::move(task), Started::never);
        break;
      case 1:
        fail(std::move(task), Started::maybe);
        break;
      case 2:
        throw std::runtime_error("not this one");
      case 3:
        break;  // It is forgotten.
      case 4:
        asio::post(get_executor(), [kept = std::make_shared<Task>(std::move(task))] { kept->run(); });
        break;
      default:
        task.run();
    }
  }

 private:
  static void fail(Task task, Started started) {
    WorkerCrashedError::Ending ending;
    ending.signal = SIGSEGV;
    ending.started = started;
    task.fail(std::make_exception_ptr(WorkerCrashedError(ending, {})));
  }

  std::atomic<unsigned> next_;
};

}  // namespace bulkhead::test::family_chaos
