// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/executor.hpp>

#include "hold_until_over.hpp"

#include <fmt/format.h>

#include <exception>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace bulkhead {

struct Executor::State {
  State(asio::any_io_executor executor, ExecutorOptions given) : io(std::move(executor)), options(std::move(given)) {}

  const asio::any_io_executor io;
  const ExecutorOptions options;
  std::mutex mutex;
  bool running = false;
  // Kept until a shutdown is over, so that another can wait for it.
  std::shared_ptr<ThreadExecutor> threads;
  std::shared_ptr<LocalExecutor> processes;
};

Executor::Executor(asio::any_io_executor io_executor, ExecutorOptions options)
    : state_(std::make_shared<State>(std::move(io_executor), std::move(options))) {}
Executor::~Executor() = default;

asio::awaitable<void> Executor::startup() {
  const std::lock_guard lock(state_->mutex);
  if (state_->running) co_return;
  // The processes first: their fork server wants a program with one thread.
  auto processes = std::make_shared<LocalExecutor>(state_->io, state_->options.processes);
  auto threads = std::make_shared<ThreadExecutor>(state_->io, state_->options.threads);
  state_->processes = std::move(processes);
  state_->threads = std::move(threads);
  state_->running = true;
}

asio::awaitable<void> Executor::shutdown(ShutdownOptions options) { return shut_down(state_, options); }

// Holds the state and not the object, which may be destroyed while somebody waits for this.
asio::awaitable<void> Executor::shut_down(std::shared_ptr<State> state, ShutdownOptions options) {
  if (options.timeout && *options.timeout < std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'timeout' of shutdown must not be negative, and is {} ns", options.timeout->count()));
  }
  std::shared_ptr<ThreadExecutor> threads;
  std::shared_ptr<LocalExecutor> processes;
  {
    const std::lock_guard lock(state->mutex);
    state->running = false;
    threads = state->threads;
    processes = state->processes;
  }
  if (!threads) co_return;
  // First both, without waiting, so that one limit holds for both.
  ShutdownOptions begin = options;
  begin.wait = false;
  co_await threads->shutdown(begin);
  co_await processes->shutdown(begin);
  if (!options.wait) {
    // The next startup has others in their place.
    detail::hold_until_over(state->io, threads);
    detail::hold_until_over(state->io, processes);
    co_return;
  }
  std::exception_ptr failure;
  co_await threads->shutdown({.wait = true, .timeout = options.timeout, .cancel_pending = false});
  try {
    co_await processes->shutdown();
  } catch (...) {
    failure = std::current_exception();
  }
  {
    const std::lock_guard lock(state->mutex);
    if (!state->running && state->threads == threads) {
      state->threads.reset();
      state->processes.reset();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

bool Executor::is_running() const {
  const std::lock_guard lock(state_->mutex);
  return state_->running;
}

std::shared_ptr<ThreadExecutor> Executor::threads() const {
  const std::lock_guard lock(state_->mutex);
  return state_->running ? state_->threads : nullptr;
}

std::shared_ptr<LocalExecutor> Executor::processes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->running ? state_->processes : nullptr;
}

std::vector<Metrics> Executor::metrics() const {
  std::vector<Metrics> both;
  if (const auto executor = threads()) both.push_back(executor->metrics());
  if (const auto executor = processes()) both.push_back(executor->metrics());
  return both;
}

void Executor::throw_not_started(const char* function) {
  throw ExecutorNotRunningError({}, fmt::format("{}: the executor is not started. Call startup() first", function));
}

Executor& get_executor() {
  // Not destroyed at exit: objects with static storage duration may use it later than that.
  static Executor& executor = *[] {
    try {
      start_fork_server();
    } catch (const WorkerStartError&) {
      // The program has several threads by now: `startup` says so, if processes are wanted.
    }
    return new Executor;
  }();
  return executor;
}

}  // namespace bulkhead
