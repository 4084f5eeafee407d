// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/serialization.hpp>

#include "support/shared.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

/// What the tests submit, and where it tells them what happened. None of it asserts.
namespace bulkhead::test {

/// What tasks in all processes share with the test.
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
extern Board& board;
/// Every test that looks at the board begins with it.
void reset_board();
/// What `note` has noted.
std::vector<int> order();

int twice(int value);
int add(int left, int right);
int pid_here();
std::string thread_name();
/// Throws runtime_error("refused 7") for 7.
int refuse(int value);
/// Raises the signal.
int die(int signal);
/// Calls exit.
int leave(int code);
template <class T>
T echo(const T& value) {
  return value;
}

/// Counts as begun and ended.
int count(int value);
/// For initializers: counts as a start.
void count_start();
/// Counts as ended when the gate has opened.
int wait_at_gate(int value);
/// Opens the gate after so many turns of the event loop, which what blocks it never gets to.
void open_gate_after(asio::io_context& context, int turns);
/// Opens the gate for a function on a thread that nobody waits for any more, and waits for its end: it must not meet
/// the next test. In a process ("local") it has been killed.
void let_go(const std::string& type);
/// For what would otherwise be late by the minute that a function waits at a gate that stays closed.
inline constexpr std::chrono::seconds kLongBeforeTheGate{20};
/// Writes the value into the order.
int note(int value);
/// The most that run at the same time are on the board.
int overlap(int value);
/// Gives `value` once `number` tasks have begun, and -1 if they never do.
int meet(int value, int number);
/// Throws until the attempt is `number`.
unsigned succeed_at_run(unsigned number);

asio::awaitable<void> pause_for(std::chrono::nanoseconds time);
/// Lets the event loop go on for so long: what would be wrong after that time is not to happen.
void let_pass(asio::io_context& context, std::chrono::nanoseconds time);
asio::awaitable<int> twice_later(int value);
/// As wait_at_gate, but the event loop goes on.
asio::awaitable<int> wait_at_gate_there(int value);

/// A value that no other process can be given, unless it is encodable.
struct Stubborn {
  bool encodable = true;
};
Stubborn stubborn(bool encodable);
bool take(const Stubborn& value);

/// An exception that nobody has registered, with something in it that is here only.
class HandleError : public std::runtime_error {
 public:
  explicit HandleError(const std::string& text) : std::runtime_error(text), handle_(std::make_shared<int>(3)) {}
  int handle() const { return *handle_; }

 private:
  std::shared_ptr<int> handle_;
};
/// Throws HandleError("the handle of 4 is lost") for 4.
int throw_handle(int value);

}  // namespace bulkhead::test

template <>
struct bulkhead::codec<bulkhead::test::Stubborn> {
  static void encode(Encoder& encoder, const test::Stubborn& value);
  static test::Stubborn decode(Decoder& decoder);
};
