// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/task_record.hpp>

#include "wait_list.hpp"

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/result_store.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace bulkhead::detail {

struct TaskRecord::State {
  explicit State(const std::shared_ptr<ExecutorCore>& executor)
      : io(executor->io),
        core(executor),
        store(executor->results),
        waits(std::make_shared<WaitList>(executor->io)),
        executor_name(executor->name) {}

  const asio::any_io_executor io;
  const std::weak_ptr<ExecutorCore> core;
  const std::weak_ptr<ResultStore> store;
  const std::shared_ptr<WaitList> waits;
  const std::string executor_name;
  std::atomic<TaskStatus> status{TaskStatus::queued};
  std::atomic<bool> refused{false};
  mutable std::mutex mutex;
  std::uint64_t number = 0;
  std::function<void()> cancel;
  bool cancel_asked = false;
  std::exception_ptr error;
  bool finished = false;
  // The monotonic clock's reading, which runs are timed with, and the wall clock's at the same moment.
  const std::uint64_t spawned_ns = ExecutorCore::now();
  const std::chrono::system_clock::time_point spawned = std::chrono::system_clock::now();
  unsigned attempt = 1;
  std::uint64_t began_ns = 0;
  std::optional<Progress> progress;
  std::chrono::system_clock::time_point ended;
};

TaskRecord::TaskRecord(const std::shared_ptr<ExecutorCore>& core, const TaskOptions& options)
    : id_(options.id().empty() ? TaskId::make() : options.id()),
      name_(options.name()),
      metadata_(options.metadata()),
      state_(std::make_unique<State>(core)) {}
TaskRecord::~TaskRecord() = default;

std::shared_ptr<TaskRecord> TaskRecord::create(const std::shared_ptr<ExecutorCore>& core, const TaskOptions& options) {
  auto record = std::make_shared<TaskRecord>(core, options);
  if (!core->results->add(record)) {
    ErrorContext context;
    context.task = record->name();
    context.executor = core->name;
    throw DuplicateTaskError(record->id(), std::move(context));
  }
  return record;
}

void TaskRecord::set_status(TaskStatus status) noexcept { state_->status.store(status); }

void TaskRecord::set_number(std::uint64_t number) {
  std::function<void()> dropped;
  bool asked = false;
  {
    const std::lock_guard lock(state_->mutex);
    state_->number = number;
    dropped.swap(state_->cancel);
    asked = state_->cancel_asked;
  }
  if (!asked) return;
  if (const auto core = state_->core.lock()) core->cancel(number, asio::cancellation_type::terminal);
}

void TaskRecord::set_cancel(std::function<void()> cancel) {
  const std::lock_guard lock(state_->mutex);
  state_->cancel = std::move(cancel);
}

void TaskRecord::note_run(unsigned attempt, std::uint64_t began_ns) {
  const std::lock_guard lock(state_->mutex);
  state_->attempt = attempt;
  state_->began_ns = began_ns;
}

void TaskRecord::set_progress(const Progress& progress) {
  const std::lock_guard lock(state_->mutex);
  state_->progress = progress;
}

TaskStatus TaskRecord::status() const { return course().status; }
std::uint64_t TaskRecord::spawned_ns() const noexcept { return state_->spawned_ns; }

void TaskRecord::set_refused() noexcept { state_->refused = true; }
bool TaskRecord::refused() const noexcept { return state_->refused; }

TaskInfo TaskRecord::info() const {
  TaskInfo info = course();
  info.name = name_;
  info.metadata = metadata_;
  info.executor = state_->executor_name;
  return info;
}

// All but the texts, which do not change.
TaskInfo TaskRecord::course() const {
  TaskInfo info;
  info.id = id_;
  info.spawned = state_->spawned;
  {
    const std::lock_guard lock(state_->mutex);
    info.number = state_->number;
  }
  // The executor first, and without this mutex: what it says holds unless the task is over by then.
  const auto core = state_->core.lock();
  const auto now = core && info.number != 0 ? core->look_at(info.number) : std::nullopt;
  std::uint64_t began_ns = now ? now->began_ns : 0;
  const std::lock_guard lock(state_->mutex);
  info.status = state_->status.load();
  info.progress = state_->progress;
  if (now && !is_over(info.status)) {
    info.status = now->status;
    info.attempt = now->attempt;
    if (now->progress) info.progress = now->progress;
  } else {
    info.attempt = state_->attempt;
    began_ns = state_->began_ns;
  }
  if (began_ns != 0) {
    const std::chrono::nanoseconds after(static_cast<std::int64_t>(began_ns - state_->spawned_ns));
    info.started = state_->spawned + std::chrono::duration_cast<std::chrono::system_clock::duration>(after);
  }
  if (state_->finished) info.ended = state_->ended;
  return info;
}

void TaskRecord::cancel(asio::cancellation_type type) {
  std::uint64_t number = 0;
  std::function<void()> before;
  {
    const std::lock_guard lock(state_->mutex);
    number = state_->number;
    before = state_->cancel;
    // Its time may have come just now, and its submission be under way.
    if (number == 0) state_->cancel_asked = true;
  }
  if (before) {
    before();
  } else if (const auto core = state_->core.lock(); core && number != 0) {
    core->cancel(number, type);
  }
}

// What it counts for in a store beside its value.
std::size_t TaskRecord::size_of_texts(const std::exception_ptr& error) const {
  std::size_t size = name_.size() + metadata_.size();
  if (!error) return size;
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& thrown) {
    size += std::strlen(thrown.what());
  } catch (...) {
    size += 1;  // it has no text
  }
  return size;
}

void TaskRecord::finish(std::exception_ptr error, AnyValue value, std::size_t size) {
  size += size_of_texts(error);
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->finished) return;
    state_->finished = true;
    state_->ended = std::chrono::system_clock::now();
    state_->cancel = nullptr;
    const TaskStatus before = state_->status.load();
    if (!is_over(before)) state_->status = error ? TaskStatus::failed : TaskStatus::succeeded;
    // Its value could not be kept.
    if (before == TaskStatus::succeeded && error) state_->status = TaskStatus::failed;
    state_->error = std::move(error);
    value_ = std::move(value);
  }
  state_->waits->complete();
  if (const auto store = state_->store.lock()) store->finished(id_, size);
}

void TaskRecord::abandon() noexcept {
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->finished) return;
    state_->finished = true;
    state_->ended = std::chrono::system_clock::now();
    state_->cancel = nullptr;
    if (!is_over(state_->status.load())) state_->status = TaskStatus::cancelled;
    state_->error =
        std::make_exception_ptr(TaskAbandonedError(ErrorContext{name_, state_->number, state_->executor_name, {}}));
  }
  state_->waits->complete();
  if (const auto store = state_->store.lock()) store->finished(id_, name_.size() + metadata_.size());
}

bool TaskRecord::finished() const noexcept {
  const std::lock_guard lock(state_->mutex);
  return state_->finished;
}

asio::awaitable<bool> TaskRecord::wait_finished(std::shared_ptr<TaskRecord> record,
                                                std::optional<std::chrono::nanoseconds> timeout) {
  // On the waiter's own Asio executor: that of the task's executor may be gone, or not running.
  const asio::any_io_executor on = co_await asio::this_coro::executor;
  auto waiting = wait_for([record, timeout, on](WaitList::Handler handler) {
    State& state = *record->state_;
    const std::lock_guard lock(state.mutex);
    if (state.finished) {
      asio::post(on, asio::append(std::move(handler), std::exception_ptr(), true));
    } else {
      state.waits->wait(timeout, std::move(handler), on);
    }
  });
  co_return co_await std::move(waiting);
}

void TaskRecord::rethrow_error() const {
  std::exception_ptr error;
  {
    const std::lock_guard lock(state_->mutex);
    error = state_->error;
  }
  if (error) std::rethrow_exception(error);
}

ErrorContext TaskRecord::context() const {
  const std::lock_guard lock(state_->mutex);
  ErrorContext context;
  context.task = name_.empty() ? id_.to_string() : name_;
  context.task_id = state_->number;
  context.executor = state_->executor_name;
  return context;
}

AnyValue TaskRecord::shared_value() const {
  const std::lock_guard lock(state_->mutex);
  return value_;
}

void throw_result_type(const std::type_info* held, const std::type_info& wanted) {
  throw TaskSignatureError(
      fmt::format("the task's result is {} and not {}", demangle(held->name()), demangle(wanted.name())));
}

void throw_result_taken() {
  throw std::logic_error("bulkhead: the task's result can only be moved, and has been moved out before");
}

}  // namespace bulkhead::detail
