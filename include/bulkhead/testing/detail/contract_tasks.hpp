// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/testing/contract_subject.hpp>
#include <bulkhead/this_task.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <sys/mman.h>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <new>
#include <stdexcept>
#include <string>

namespace bulkhead::testing::contract {

// What tasks do, and the page that they and the test share.

inline constexpr std::size_t kMostNotes = 64;

struct Board {
  std::atomic<int> round{0};  // what waits in one ends with it
  std::atomic<std::int64_t> deadline_ns{0};
  std::atomic<int> begun{0};
  // By round: a task that another thread ends late does not count in the next ones.
  std::array<std::atomic<int>, 16> ended_in{};
  std::atomic<int> open{0};  // the gate
  std::atomic<int> order_size{0};
  std::array<std::atomic<int>, kMostNotes> order{};
  std::atomic<int> turn{0};  // those below it have had theirs
  std::array<std::atomic<int>, kMostNotes> came{};
};

inline Board& board() {
  static Board& shared = [&]() -> Board& {
    void* page = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) throw std::bad_alloc();
    return *new (page) Board;
  }();
  return shared;
}
// Made with the static objects, before any process is forked.
inline Board* const board_made_early = &board();

// Tasks of this round that have ended.
inline std::atomic<int>& ended(int round = board().round) {
  return board().ended_in[static_cast<unsigned>(round) % board().ended_in.size()];
}

inline void reset_board(std::chrono::nanoseconds deadline) {
  board().deadline_ns = deadline.count();
  board().begun = 0;
  ended() = 0;
  board().open = 0;
  board().order_size = 0;
  board().turn = 0;
  for (auto& flag : board().came) flag = 0;
}

// Lets everything end that waits here, also what does not look again before the next round has begun.
inline void let_all_go() { ++board().round; }

inline std::chrono::steady_clock::time_point end_of_patience() {
  return std::chrono::steady_clock::now() + std::chrono::nanoseconds(board().deadline_ns);
}

inline bool gate_is_open() { return board().open != 0; }

// What tasks do in the form of functions.
namespace functions {

// Looks five times a millisecond, so that a task which waits uses no CPU to speak of; and ends by itself.
template <class Condition>
void wait_until(Condition condition) {
  const timespec pause{0, 200'000};
  const auto end = end_of_patience();
  const int round = board().round;
  while (!condition() && board().round == round && std::chrono::steady_clock::now() < end) {
    ::nanosleep(&pause, nullptr);
  }
}

inline int twice(int value) { return 2 * value; }
inline void count() { ++ended(); }
inline int fail(int value) { throw std::out_of_range("there is no " + std::to_string(value)); }
inline int note_order(int value) {
  board().order.at(static_cast<std::size_t>(board().order_size++)) = value;
  return value;
}
inline unsigned succeed_at_attempt(unsigned number) {
  ++board().begun;
  if (this_task::attempt() < number) throw std::runtime_error("attempt " + std::to_string(this_task::attempt()));
  return this_task::attempt();
}
inline int report(int steps) {
  for (int i = 1; i <= steps; ++i) {
    this_task::report_progress(static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(steps), "step");
  }
  return steps;
}
inline std::string own_name() { return this_task::name() + "/" + this_task::executor_name(); }

inline int wait_at_gate(int value) {
  const int round = board().round;
  ++board().begun;
  wait_until(gate_is_open);
  ++ended(round);
  return value;
}
inline int take_turn(int place) {
  board().came.at(static_cast<std::size_t>(place)) = 1;
  wait_until([place] { return board().turn > place; });
  return place;
}
inline int run_until_stopped(int value) {
  const int round = board().round;
  ++board().begun;
  wait_until(this_task::stop_requested);
  ++ended(round);
  return value;
}
inline int stop_when_asked(int value) {
  const int round = board().round;
  ++board().begun;
  wait_until(this_task::stop_requested);
  ++ended(round);
  this_task::throw_if_stop_requested();
  return value;
}

}  // namespace functions

// The same in the form of coroutines: of what waits for nothing by this, of the rest below.
template <auto function>
struct AsCoroutine;
template <class R, class... Args, R (*function)(Args...)>
struct AsCoroutine<function> {
  static asio::awaitable<R> run(Args... arguments) { co_return function(arguments...); }
};

namespace coroutines {

template <class Condition>
asio::awaitable<void> wait_until(Condition condition) {
  asio::steady_timer timer(co_await asio::this_coro::executor);
  const auto end = end_of_patience();
  const int round = board().round;
  while (!condition() && board().round == round && std::chrono::steady_clock::now() < end) {
    timer.expires_after(std::chrono::microseconds(200));
    co_await timer.async_wait(asio::use_awaitable);
  }
}

inline asio::awaitable<int> wait_at_gate(int value) {
  const int round = board().round;
  ++board().begun;
  co_await wait_until(gate_is_open);
  ++ended(round);
  co_return value;
}
inline asio::awaitable<int> take_turn(int place) {
  board().came.at(static_cast<std::size_t>(place)) = 1;
  // Named, since g++ 12 destroys a lambda with captures inside a co_await expression twice.
  const auto its_turn_is_over = [place] { return board().turn > place; };
  co_await wait_until(its_turn_is_over);
  co_return place;
}
inline asio::awaitable<int> run_until_stopped(int value) {
  const int round = board().round;
  ++board().begun;
  co_await wait_until(this_task::stop_requested);
  ++ended(round);
  co_return value;
}
inline asio::awaitable<int> stop_when_asked(int value) {
  const int round = board().round;
  ++board().begun;
  co_await wait_until(this_task::stop_requested);
  ++ended(round);
  this_task::throw_if_stop_requested();
  co_return value;
}

}  // namespace coroutines

// What a task does, in both forms.
template <class Function, class Coroutine>
class Job {
 public:
  constexpr Job(Function* function, Coroutine* coroutine) : function_(function), coroutine_(coroutine) {}

  // Gives `use` one of them.
  template <class Use>
  auto in_form(TaskForm form, Use use) const {
    return form == TaskForm::coroutine ? use(coroutine_) : use(function_);
  }

 private:
  Function* function_;
  Coroutine* coroutine_;
};
template <auto function>
inline constexpr Job kJob{function, AsCoroutine<function>::run};

inline constexpr auto twice = kJob<functions::twice>;
inline constexpr auto count = kJob<functions::count>;
inline constexpr auto fail = kJob<functions::fail>;
inline constexpr auto note_order = kJob<functions::note_order>;
inline constexpr auto succeed_at_attempt = kJob<functions::succeed_at_attempt>;
inline constexpr auto report = kJob<functions::report>;
inline constexpr auto own_name = kJob<functions::own_name>;
inline constexpr Job wait_at_gate{functions::wait_at_gate, coroutines::wait_at_gate};
inline constexpr Job take_turn{functions::take_turn, coroutines::take_turn};
inline constexpr Job run_until_stopped{functions::run_until_stopped, coroutines::run_until_stopped};
inline constexpr Job stop_when_asked{functions::stop_when_asked, coroutines::stop_when_asked};

}  // namespace bulkhead::testing::contract
