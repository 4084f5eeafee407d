// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/lifecycle.hpp>

#include <bulkhead/detail/task_node.hpp>

#include "wait_list.hpp"

#include <bulkhead/local_executor.hpp>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace bulkhead {
namespace {

using Clock = std::chrono::steady_clock;

asio::any_io_executor with_fork_server(asio::any_io_executor io_executor) {
  start_fork_server();
  return io_executor;
}

const LifecycleOptions& checked(const LifecycleOptions& options) {
  if (options.drain_timeout < std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'drain_timeout' must not be negative, and is {} ns", options.drain_timeout.count()));
  }
  return options;
}

}  // namespace

struct Lifecycle::State : std::enable_shared_from_this<Lifecycle::State> {
  State(asio::any_io_executor executor, const LifecycleOptions& given)
      : io(with_fork_server(std::move(executor))),
        options(checked(given)),
        executors(io, options.shared),
        strand(asio::make_strand(io)),
        signals(strand),
        stop_asked(std::make_shared<detail::WaitList>(io)) {
    for (const int signal : options.signals) signals.add(signal);
  }

  void stop(int signal) {
    int none = -1;
    if (!stopped_by.compare_exchange_strong(none, signal)) return;
    {
      const std::lock_guard lock(mutex);
      asked = Clock::now();
    }
    stop_asked->complete();
  }

  Clock::time_point asked_at() {
    const std::lock_guard lock(mutex);
    return asked.value_or(Clock::now());
  }

  // The event loop has nothing to wait for any more.
  void let_signals_go() {
    asio::post(strand, [self = shared_from_this()] {
      boost::system::error_code ignored;
      self->signals.cancel(ignored);
      self->signals.clear(ignored);
    });
  }

  // The last that was added; empty if there is none any more.
  Step take_step() {
    const std::lock_guard lock(mutex);
    if (steps.empty()) return nullptr;
    Step step = std::move(steps.back());
    steps.pop_back();
    return step;
  }

  const asio::any_io_executor io;
  const LifecycleOptions options;
  ExecutorRegistry executors;
  const asio::any_io_executor strand;
  asio::signal_set signals;  // used on the strand
  const std::shared_ptr<detail::WaitList> stop_asked;
  std::atomic<bool> run_called{false};
  std::atomic<int> stopped_by{-1};  // the signal, 0 for `request_stop`; -1: by none yet
  std::mutex mutex;
  std::optional<Clock::time_point> asked;
  std::vector<Step> steps;
};

namespace {

// Runs a step until it is over, or until the end of the time; then it is cancelled and left to itself.
asio::awaitable<void> run_step(Lifecycle::Step step, asio::any_io_executor io, Clock::time_point end) {
  struct Running {
    explicit Running(asio::any_io_executor executor) : strand(asio::make_strand(executor)) {}
    const asio::any_io_executor strand;
    asio::cancellation_signal cancel;
    Lifecycle::Step step;  // a coroutine refers to the closure that made it
    std::shared_ptr<detail::WaitList> over;
    std::mutex mutex;
    bool ended = false;
    std::exception_ptr error;
  };
  const auto running = std::make_shared<Running>(io);
  running->step = std::move(step);
  running->over = std::make_shared<detail::WaitList>(io);
  auto coroutine = running->step();
  if (!coroutine.valid()) detail::throw_empty_awaitable();
  asio::co_spawn(running->strand, std::move(coroutine),
                 asio::bind_cancellation_slot(running->cancel.slot(), [running](std::exception_ptr error) {
                   {
                     const std::lock_guard lock(running->mutex);
                     running->ended = true;
                     running->error = std::move(error);
                   }
                   running->over->complete();
                 }));
  const auto left = std::max<std::chrono::nanoseconds>(end - Clock::now(), std::chrono::nanoseconds::zero());
  // Two statements: g++ 12 destroys a capturing lambda inside a `co_await` expression twice (GCC PR 107288).
  auto over = detail::wait_for([running, left](detail::WaitList::Handler handler) {
    running->over->wait(left, std::move(handler));
    const std::lock_guard lock(running->mutex);
    if (running->ended) running->over->complete();
  });
  const bool in_time = co_await std::move(over);
  if (!in_time) {
    asio::post(running->strand, [running] { running->cancel.emit(asio::cancellation_type::terminal); });
    throw std::runtime_error("a step of Lifecycle::on_stop was not over when the time for stopping was");
  }
  const std::lock_guard lock(running->mutex);
  if (running->error) std::rethrow_exception(running->error);
}

}  // namespace

Lifecycle::Lifecycle(asio::any_io_executor io_executor, LifecycleOptions options)
    : state_(std::make_shared<State>(std::move(io_executor), options)) {
  if (state_->options.signals.empty()) return;
  state_->signals.async_wait([weak = std::weak_ptr(state_)](boost::system::error_code error, int signal) {
    const auto state = weak.lock();
    if (!state || error) return;
    // From here on another one ends the program the hard way.
    state->signals.clear();
    state->stop(signal);
  });
}

Lifecycle::~Lifecycle() = default;

ExecutorRegistry& Lifecycle::executors() noexcept { return state_->executors; }

void Lifecycle::on_stop(Step step) {
  if (!step) throw std::invalid_argument("Lifecycle::on_stop: the step is empty");
  const std::lock_guard lock(state_->mutex);
  state_->steps.push_back(std::move(step));
}

// The signals stay caught: the first one asks for what is under way already.
void Lifecycle::request_stop() { state_->stop(0); }

bool Lifecycle::stopping() const noexcept { return state_->stopped_by.load() != -1; }

asio::awaitable<int> Lifecycle::run() {
  if (state_->run_called.exchange(true)) throw std::logic_error("Lifecycle::run may be called only once");
  return run(state_);
}

asio::awaitable<int> Lifecycle::run(std::shared_ptr<State> state) {
  auto asked = detail::wait_for([state](detail::WaitList::Handler handler) {
    state->stop_asked->wait({}, std::move(handler));
    // It may have been asked before.
    if (state->stopped_by.load() != -1) state->stop_asked->complete();
  });
  try {
    co_await std::move(asked);
  } catch (...) {
    state->run_called = false;  // its waiting was cancelled, and nothing has been done
    throw;
  }
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  const auto end = state->asked_at() +
                   std::min<std::chrono::nanoseconds>(state->options.drain_timeout, std::chrono::hours(24 * 365 * 100));
  std::exception_ptr failure;
  // One that is added meanwhile is the next.
  for (;;) {
    Step step = state->take_step();
    if (!step) break;
    try {
      co_await run_step(std::move(step), state->io, end);
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  try {
    ShutdownOptions shutdown;
    shutdown.timeout = std::max<std::chrono::nanoseconds>(end - Clock::now(), std::chrono::nanoseconds::zero());
    co_await state->executors.shutdown_all(shutdown);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  state->let_signals_go();
  if (failure) std::rethrow_exception(failure);
  co_return state->stopped_by.load();
}

}  // namespace bulkhead
