// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/schedule.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>

#include "fault/family_chaos/tasks.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Who waits for tasks, and what each is told.
namespace bulkhead::test::family_chaos {

// Who waits for something. Its strand is its own, so that its cancellation and completion do not meet.
struct Caller : std::enable_shared_from_this<Caller> {
  explicit Caller(asio::io_context& context) : strand(asio::make_strand(context)) {}

  void tell(std::exception_ptr thrown, int result) {
    error = std::move(thrown);
    value = result;
    ++told;
  }
  void cancel(asio::cancellation_type type) {
    cancel_asked = true;
    asio::post(strand, [self = shared_from_this(), type] {
      // Boost 1.81's co_spawn passes a cancellation on to what may be gone; async_submit does not.
      if (self->told == 0 || !self->in_coroutine) self->signal.emit(type);
    });
  }

  const asio::any_io_executor strand;
  asio::cancellation_signal signal;
  bool in_coroutine = false;
  bool cancel_asked = false;
  std::atomic<int> told{0};
  std::exception_ptr error;
  int value = 0;
};

// One task, and who waits for its result.
struct Given : Caller {
  Given(asio::io_context& context, int own_number) : Caller(context), number(own_number) {}

  std::string name() const { return "task " + std::to_string(number); }
  int expected() const { return number + 1; }

  const int number;
  Kind kind = Kind::add;
  bool coroutine = false;  // what it calls is one
  bool retried = false;
  bool put_off = false;
  bool grouped = false;  // told by the group, if by anybody
  std::optional<std::chrono::nanoseconds> timeout;
  std::optional<std::chrono::nanoseconds> queue_timeout;
  std::optional<std::chrono::nanoseconds> total_timeout;
  // Of a task that was spawned.
  std::optional<TaskId> id;
  std::string metadata;
  std::shared_ptr<Given> heir;  // has its id now, which nobody had any more
  std::function<void(asio::cancellation_type)> cancel_handle;
  std::function<TaskStatus()> status;
};

struct Grouped : Caller {
  using Caller::Caller;
  std::vector<std::shared_ptr<Given>> members;
};

struct LookUp : Caller {
  using Caller::Caller;
  std::shared_ptr<Given> of;  // null: an id that there is not
  bool limited = false;
};

struct Repeated {
  Repeated(std::shared_ptr<Given> run_again, Schedule given, std::shared_ptr<std::atomic<std::uint64_t>> told_errors,
           std::uint64_t most)
      : task(std::move(run_again)), schedule(std::move(given)), errors(std::move(told_errors)), max_runs(most) {}
  std::shared_ptr<Given> task;
  Schedule schedule;
  std::shared_ptr<std::atomic<std::uint64_t>> errors;
  std::uint64_t max_runs;
};

}  // namespace bulkhead::test::family_chaos
