// SPDX-License-Identifier: BSL-1.0
#include "support/tasks.hpp"

#include <bulkhead/errors.hpp>
#include <bulkhead/this_task.hpp>

#include "support/processes.hpp"
#include "support/run.hpp"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <poll.h>
#include <pthread.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <cstdlib>

namespace bulkhead::test {

using namespace std::chrono_literals;

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

int twice(int value) { return 2 * value; }
int add(int left, int right) { return left + right; }
int pid_here() { return ::getpid(); }
std::string thread_name() {
  std::array<char, 16> name{};
  ::pthread_getname_np(::pthread_self(), name.data(), name.size());
  return name.data();
}
int refuse(int value) { throw std::runtime_error(fmt::format("refused {}", value)); }
int die(int signal) { return ::raise(signal); }
int leave(int code) { std::exit(code); }

int count(int value) {
  ++board.begun;
  ++board.ended;
  return value;
}
void count_start() { ++board.starts; }
int wait_at_gate(int value) {
  board.gate.wait();
  ++board.ended;
  return value;
}
void open_gate_after(asio::io_context& context, int turns) {
  asio::post(context, [&context, turns] {
    if (turns > 1) {
      open_gate_after(context, turns - 1);
    } else {
      board.gate.open = 1;
    }
  });
}
void let_go(const std::string& type) {
  board.gate.open = 1;
  if (type == "local") return;
  if (!poll_until([] { return board.ended > 0; }, kDeadline)) throw std::runtime_error("the function does not end");
}
int note(int value) {
  const std::size_t place = board.written++;
  if (place < board.order.size()) board.order[place] = value;
  return value;
}
int overlap(int value) {
  const int now = ++board.running;
  int most = board.most_running;
  while (most < now && !board.most_running.compare_exchange_weak(most, now)) {
  }
  ::poll(nullptr, 0, 1);
  --board.running;
  return value;
}
int meet(int value, int number) {
  ++board.begun;
  return poll_until([number] { return board.begun >= number; }, kDeadline) ? value : -1;
}
unsigned succeed_at_run(unsigned number) {
  ++board.begun;
  if (this_task::attempt() < number) throw std::runtime_error(fmt::format("run {}", this_task::attempt()));
  return this_task::attempt();
}

asio::awaitable<void> pause_for(std::chrono::nanoseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(asio::use_awaitable);
}
void let_pass(asio::io_context& context, std::chrono::nanoseconds time) { run(context, pause_for(time)); }
asio::awaitable<int> twice_later(int value) {
  co_await pause_for(1us);
  co_return 2 * value;
}
asio::awaitable<int> wait_at_gate_there(int value) {
  ++board.gate.waiting;
  while (board.gate.open == 0) co_await pause_for(1ms);
  ++board.ended;
  co_return value;
}

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

int throw_handle(int value) { throw HandleError(fmt::format("the handle of {} is lost", value)); }

}  // namespace bulkhead::test

namespace bulkhead {

void codec<test::Stubborn>::encode(Encoder& encoder, const test::Stubborn& value) {
  if (!value.encodable) {
    throw SerializationError(SerializationError::Part::value, "Stubborn", "it does not want to");
  }
  bulkhead::encode(encoder, value.encodable);
}

test::Stubborn codec<test::Stubborn>::decode(Decoder& decoder) {
  test::Stubborn value;
  value.encodable = bulkhead::decode<bool>(decoder);
  return value;
}

}  // namespace bulkhead
