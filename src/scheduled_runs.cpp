// SPDX-License-Identifier: BSL-1.0
#include "scheduled_runs.hpp"

#include <bulkhead/detail/task_record.hpp>

#include <boost/asio/post.hpp>

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace bulkhead {
namespace detail {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

std::exception_ptr not_begun(const TaskRecord& record, const char* reason) {
  return std::make_exception_ptr(TaskCancelledError(TaskCancelledError::Stage::queued, record.context(), reason));
}

RunTimes::Time time_now() { return std::chrono::steady_clock::now().time_since_epoch(); }

}  // namespace

void ScheduledRuns::note_over() noexcept {
  if (const auto count = std::exchange(count_, nullptr)) --*count;
}

DelayedRun::DelayedRun(const std::shared_ptr<ExecutorCore>& core, std::shared_ptr<TaskRecord> record,
                       std::function<void()> start)
    : ScheduledRuns(core->scheduled),
      core_(core),
      record_(std::move(record)),
      io_(core->io),
      start_(std::move(start)) {}

void DelayedRun::arm(StartTime time) {
  const std::lock_guard lock(mutex_);
  if (!start_) return;  // cancelled already
  const auto due = [self = shared_from_this()](boost::system::error_code error) {
    if (error) return;
    if (const auto start = self->take()) start();
  };
  if (const auto* steady = std::get_if<SteadyTime>(&time)) {
    steady_.emplace(io_, *steady);
    steady_->async_wait(due);
  } else {
    // Asio looks at the wall clock again after five minutes at the latest, so that a change of the time is noticed.
    system_.emplace(io_, std::get<std::chrono::system_clock::time_point>(time));
    system_->async_wait(due);
  }
}

std::function<void()> DelayedRun::take() {
  const std::lock_guard lock(mutex_);
  note_over();
  return std::exchange(start_, nullptr);
}

void DelayedRun::cancel() {
  std::function<void()> dropped;  // the last to go, since the record's end comes with it at the latest
  {
    const std::lock_guard lock(mutex_);
    dropped.swap(start_);
    if (!dropped) return;
    note_over();
    if (steady_) steady_->cancel();
    if (system_) system_->cancel();
  }
  record_->set_status(TaskStatus::cancelled);
  record_->finish(not_begun(*record_, "it waited for its time"), {}, 0);
}

void DelayedRun::context_gone() noexcept {
  std::function<void()> dropped;
  {
    const std::lock_guard lock(mutex_);
    dropped.swap(start_);
    steady_.reset();
    system_.reset();
  }
  record_->abandon();
}

RepeatedRuns::RepeatedRuns(const std::shared_ptr<ExecutorCore>& core, RunTimes times, ScheduleOptions options,
                           StartRun start)
    : ScheduledRuns(core->scheduled),
      io_(core->io),
      on_error_(std::move(options.on_error)),
      times_(times),
      start_(std::move(start)),
      timer_(std::in_place, core->io),
      work_(asio::prefer(core->io, asio::execution::outstanding_work.tracked)) {}

void RepeatedRuns::begin() {
  const std::lock_guard lock(mutex_);
  arm();
}

// With the mutex.
void RepeatedRuns::arm() {
  const auto next = times_.next();
  if (!next || !timer_) return;
  timer_->expires_at(SteadyTime(std::chrono::duration_cast<std::chrono::steady_clock::duration>(*next)));
  timer_->async_wait([self = shared_from_this()](boost::system::error_code error) {
    if (!error) self->look();
  });
}

// Begins what is due.
void RepeatedRuns::look() {
  std::uint64_t number = 0;
  StartRun start;
  {
    const std::lock_guard lock(mutex_);
    if (!timer_) return;
    number = times_.runs_to_begin(time_now());
    start = start_;
    if (times_.over()) {
      timer_.reset();
      work_.reset();
      start_ = nullptr;
      note_over();
    } else {
      arm();
    }
  }
  for (; number > 0; --number) {
    // By the run before, say.
    if (run_cancelled()) continue;
    try {
      start([self = shared_from_this()](const std::exception_ptr& error) { self->told(error); },
            std::shared_ptr<void>(nullptr, [self = shared_from_this()](std::nullptr_t) { self->over(); }));
    } catch (...) {
      // The copy of the function or of an argument threw: the run has failed.
      asio::post(io_, [self = shared_from_this(), error = std::current_exception()] { self->told(error); });
    }
  }
}

bool RepeatedRuns::run_cancelled() {
  const std::lock_guard lock(mutex_);
  if (cancelled_) times_.take_back_run();
  return cancelled_;
}

// A run is over for good: its caller may have been told long before.
void RepeatedRuns::over() {
  const std::lock_guard lock(mutex_);
  times_.run_ended();
  if (timer_ && times_.wait_for_each_other()) asio::post(io_, [self = shared_from_this()] { self->look(); });
}

void RepeatedRuns::told(const std::exception_ptr& error) {
  if (error) {
    const std::lock_guard lock(mutex_);
    ++failures_;
    last_error_ = error;
  }
  // What it throws leaves the event loop's `run`, as from every handler, and the schedule goes on.
  if (error && on_error_) on_error_(error);
}

void RepeatedRuns::cancel() {
  StartRun dropped;
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  timer_.reset();
  work_.reset();
  dropped.swap(start_);
  note_over();
}

void RepeatedRuns::context_gone() noexcept { cancel(); }

bool RepeatedRuns::active() const {
  const std::lock_guard lock(mutex_);
  return timer_.has_value();
}
std::uint64_t RepeatedRuns::runs() const {
  const std::lock_guard lock(mutex_);
  return times_.begun();
}
std::uint64_t RepeatedRuns::missed() {
  const std::lock_guard lock(mutex_);
  if (timer_) times_.look(time_now());
  return times_.missed();
}
std::uint64_t RepeatedRuns::failures() const {
  const std::lock_guard lock(mutex_);
  return failures_;
}
std::exception_ptr RepeatedRuns::last_error() const {
  const std::lock_guard lock(mutex_);
  return last_error_;
}
std::optional<SteadyTime> RepeatedRuns::next() const {
  const std::lock_guard lock(mutex_);
  const auto next = timer_ ? times_.next_due() : std::nullopt;
  if (!next) return std::nullopt;
  return SteadyTime(std::chrono::duration_cast<std::chrono::steady_clock::duration>(*next));
}

void start_at(const std::shared_ptr<ExecutorCore>& core, StartTime time, const std::shared_ptr<TaskRecord>& record,
              std::function<void()> start) {
  const auto run = std::make_shared<DelayedRun>(core, record, std::move(start));
  record->set_cancel([weak = std::weak_ptr(run)] {
    if (const auto alive = weak.lock()) alive->cancel();
  });
  if (core->add_schedule(run)) {
    run->arm(time);
    return;
  }
  record->finish(std::make_exception_ptr(ExecutorNotRunningError(record->context())), {}, 0);
}

Schedule start_every(const std::shared_ptr<ExecutorCore>& core, std::chrono::nanoseconds period,
                     ScheduleOptions options, StartRun start) {
  const auto require = [](bool good, const char* what) {
    if (!good) throw std::invalid_argument(fmt::format("submit_every: {}", what));
  };
  require(period > std::chrono::nanoseconds::zero(), "the period must be more than zero");
  require(!options.first || *options.first >= std::chrono::nanoseconds::zero(), "option 'first' must not be negative");
  require(!options.grace || *options.grace > std::chrono::nanoseconds::zero(), "option 'grace' must be more than zero");
  require(options.most_made_up > 0, "option 'most_made_up' must be at least 1");
  // A century is for ever, and can be added to any time of the clock.
  constexpr std::chrono::nanoseconds kForEver = std::chrono::hours(24 * 365 * 100);
  RunTimes::Rules rules;
  rules.period = std::min(period, kForEver);
  rules.missed = options.missed;
  rules.grace = std::min(options.grace.value_or(rules.period), kForEver);
  rules.overlap = options.overlap;
  rules.max_runs = options.max_runs;
  rules.most_made_up = options.most_made_up;
  const RunTimes times(rules, time_now() + std::min(options.first.value_or(rules.period), kForEver));
  auto runs = std::make_shared<RepeatedRuns>(core, times, std::move(options), std::move(start));
  if (core->add_schedule(runs)) {
    runs->begin();
  } else {
    ErrorContext context;
    context.executor = core->name;
    throw ExecutorNotRunningError(std::move(context));
  }
  return Schedule(std::move(runs));
}

}  // namespace detail

Schedule::Schedule(std::shared_ptr<detail::RepeatedRuns> runs) noexcept : runs_(std::move(runs)) {}
void Schedule::cancel() {
  if (runs_) runs_->cancel();
}
bool Schedule::active() const { return runs_ && runs_->active(); }
std::uint64_t Schedule::runs() const { return runs_ ? runs_->runs() : 0; }
std::uint64_t Schedule::missed() const { return runs_ ? runs_->missed() : 0; }
std::uint64_t Schedule::failures() const { return runs_ ? runs_->failures() : 0; }
std::exception_ptr Schedule::last_error() const { return runs_ ? runs_->last_error() : nullptr; }
std::optional<std::chrono::steady_clock::time_point> Schedule::next() const {
  return runs_ ? runs_->next() : std::nullopt;
}

}  // namespace bulkhead
