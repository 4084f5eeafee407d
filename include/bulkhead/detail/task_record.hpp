// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/any_result.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/shared_memory_count.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/task_id.hpp>
#include <bulkhead/task_info.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

namespace bulkhead::detail {

class ExecutorCore;

// What is known of a spawned task, and its result once it is over: what its handle and the store of results share.
// Thread-safe.
class BULKHEAD_EXPORT TaskRecord : public std::enable_shared_from_this<TaskRecord> {
 public:
  TaskRecord(const std::shared_ptr<ExecutorCore>& core, const TaskOptions& options);
  ~TaskRecord();
  TaskRecord(const TaskRecord&) = delete;
  TaskRecord& operator=(const TaskRecord&) = delete;

  // A new record, known to the executor's store. Throws DuplicateTaskError if that knows another of the same id.
  static std::shared_ptr<TaskRecord> create(const std::shared_ptr<ExecutorCore>& core, const TaskOptions& options);

  const TaskId& id() const noexcept { return id_; }
  const std::string& name() const noexcept { return name_; }

  // By the executor, under its mutex.
  void set_status(TaskStatus status) noexcept;
  // The number that the executor gave the task: from here on `cancel` finds it there.
  void set_number(std::uint64_t number);
  // What `cancel` does before the task has a number.
  void set_cancel(std::function<void()> cancel);

  // By the executor, under its mutex: its last run, and when that began; 0: nobody has seen it.
  void note_run(unsigned attempt, std::uint64_t began_ns);
  void set_progress(const Progress& progress);

  // It never became one of the executor's tasks.
  void set_refused() noexcept;
  bool refused() const noexcept;

  TaskStatus status() const;
  // When it was spawned, by the steady clock.
  std::uint64_t spawned_ns() const noexcept;
  TaskInfo info() const;
  void cancel(asio::cancellation_type type);

  // Its outcome. `size` is what the value counts for in a store.
  void finish(std::exception_ptr error, AnyValue value, std::size_t size);
  // Its Asio context was destroyed.
  void abandon() noexcept;
  bool finished() const noexcept;
  // False after the timeout.
  static asio::awaitable<bool> wait_finished(std::shared_ptr<TaskRecord> record,
                                             std::optional<std::chrono::nanoseconds> timeout);
  // The error, if it failed.
  void rethrow_error() const;
  ErrorContext context() const;

  template <class R>
  R take() {
    rethrow_error();
    if constexpr (std::is_same_v<R, AnyResult>) {
      return AnyResult(shared_value());
    } else if constexpr (!std::is_void_v<R>) {
      return take_or_copy<R>(shared_value());
    } else if (const AnyValue value = shared_value(); *value.type != typeid(void)) {
      throw_result_type(value.type, typeid(void));
    }
  }

 private:
  struct State;
  AnyValue shared_value() const;
  TaskInfo course() const;
  std::size_t size_of_texts(const std::exception_ptr& error) const;

  const TaskId id_;
  const std::string name_;
  const std::string metadata_;
  AnyValue value_;
  std::unique_ptr<State> state_;
};

// How much a result counts for in a store.
template <class R>
std::size_t stored_size(const R& value) {
  if constexpr (Serializable<R>) {
    Encoder counting{std::span<std::byte>()};
    const SharedMemoryCount shared;
    bulkhead::encode(counting, value);
    return sizeof(R) + counting.size() + shared.bytes;
  } else {
    return sizeof(R);
  }
}

// The completion handler of a spawned task.
template <class R>
class RecordCompletion {
 public:
  using takes_optional = void;

  explicit RecordCompletion(std::shared_ptr<TaskRecord> record) noexcept : record_(std::move(record)) {}
  RecordCompletion(RecordCompletion&&) noexcept = default;
  RecordCompletion& operator=(RecordCompletion&&) = delete;
  ~RecordCompletion() {
    if (record_) record_->abandon();
  }

  // If it has not been handed on.
  void fail(std::exception_ptr error) {
    if (record_) (*this)(std::move(error));
  }
  void operator()(std::exception_ptr error) { std::exchange(record_, nullptr)->finish(std::move(error), {}, 0); }
  template <class T>
  void operator()(std::exception_ptr error, T result) {
    const auto record = std::exchange(record_, nullptr);
    AnyValue value;
    std::size_t size = 0;
    if (!error) {
      try {
        if constexpr (std::is_same_v<T, R>) {
          size = stored_size(result);
          value = make_any_value(std::move(result));
        } else {
          size = stored_size(*result);
          value = make_any_value(std::move(*result));
        }
      } catch (...) {
        error = std::current_exception();  // a move or a codec of the user's
      }
    }
    record->finish(std::move(error), std::move(value), size);
  }

 private:
  std::shared_ptr<TaskRecord> record_;
};

template <class R>
asio::awaitable<R> await_result(std::shared_ptr<TaskRecord> record, std::optional<std::chrono::nanoseconds> timeout) {
  const bool over = co_await TaskRecord::wait_finished(record, timeout);
  if (!over) throw TaskTimeoutError(TaskTimeoutError::Which::wait, *timeout, record->context());
  co_return record->take<R>();
}

}  // namespace bulkhead::detail
