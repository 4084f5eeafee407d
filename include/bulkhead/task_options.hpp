// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/common_options.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/retry_policy.hpp>
#include <bulkhead/task_id.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace bulkhead {

/// Which workers may run a task: `Isolation::per_key("tenant-42")`.
class Isolation {
 public:
  /// Any; it may have run other tasks, and will run others.
  static Isolation reuse() { return Isolation(Kind::reuse); }
  /// One that has run nothing, and that runs nothing afterwards: what the task leaves behind is found by nobody, and it
  /// finds nothing.
  static Isolation fresh() { return Isolation(Kind::fresh); }
  /// One that has run no task but those of this key. 1 to 200 characters; throws `std::invalid_argument`.
  BULKHEAD_EXPORT static Isolation per_key(std::string key);

  enum class Kind : std::uint8_t { reuse, fresh, per_key };
  Kind kind() const noexcept { return kind_; }
  /// Empty but for `per_key`.
  const std::string& key() const noexcept { return key_; }
  bool operator==(const Isolation&) const = default;

 private:
  explicit Isolation(Kind kind, std::string key = {}) : kind_(kind), key_(std::move(key)) {}
  Kind kind_;
  std::string key_;
};

/// How one task is to be run: `TaskOptions().name("thumbnail").priority(1).timeout(2s)`.
///
/// A class with chained setters and not an aggregate, since g++ 12 destroys brace-initialised temporaries inside a
/// `co_await` expression twice (GCC PR 107288). Setters check their argument and throw `std::invalid_argument`.
class BULKHEAD_EXPORT TaskOptions {
 public:
  using Duration = std::chrono::nanoseconds;

  // Inline, since every task's options are moved several times on their way.
  TaskOptions() noexcept = default;
  TaskOptions(TaskOptions&&) noexcept = default;
  TaskOptions& operator=(TaskOptions&&) noexcept = default;
  TaskOptions(const TaskOptions& other);
  TaskOptions& operator=(const TaskOptions& other);
  ~TaskOptions() = default;

  /// The name that errors show; by default the function's, as the program's symbols have it, else its type. 1 to 200
  /// characters.
  TaskOptions& name(std::string value) &;
  TaskOptions&& name(std::string value) && { return std::move(name(std::move(value))); }
  /// The lower number runs first, tasks of the same number in the order of their submission. Default 0.
  TaskOptions& priority(int value) & noexcept;
  TaskOptions&& priority(int value) && noexcept { return std::move(priority(value)); }
  /// The longest time that a run of the task may take; then the task fails with `TaskTimeoutError`. A worker process is
  /// killed for that; what runs in the host itself is asked to stop (`this_task::stop_requested`), its caller is told
  /// at once, and it keeps its place until it returns. More than zero. Default: no limit.
  TaskOptions& timeout(Duration value) &;
  TaskOptions&& timeout(Duration value) && { return std::move(timeout(value)); }
  /// The longest time from `submit` to the start of the run; then the task fails without having run:
  /// with `ExecutorOverloadError` while it waits for admission, with `TaskTimeoutError` later. More than zero.
  /// Default: no limit.
  TaskOptions& queue_timeout(Duration value) &;
  TaskOptions&& queue_timeout(Duration value) && { return std::move(queue_timeout(value)); }

  /// The longest time from `submit` to the outcome, over all runs and the pauses between them; then the task ends as by
  /// `queue_timeout` or `timeout`, and is not run again. No run is waited for that could only begin later. More than
  /// zero. Default: no limit.
  TaskOptions& total_timeout(Duration value) &;
  TaskOptions&& total_timeout(Duration value) && { return std::move(total_timeout(value)); }
  /// The most CPU time that the run may take, all threads of its worker together; then its worker is killed and the
  /// task fails with `TaskTimeoutError`. On a busy machine it is the fairer limit. More than zero. Default: no limit.
  TaskOptions& cpu_timeout(Duration value) &;
  TaskOptions&& cpu_timeout(Duration value) && { return std::move(cpu_timeout(value)); }
  /// Runs the task again when it fails, as the policy says. What it was called with is then kept until it is over.
  /// If it fails for good after more than one run, its error is a `RetryError` with all of them. A call that can
  /// neither be copied for sure (trivially, or of strings, containers, shared pointers, `std::function`) nor be carried
  /// to another process is refused with `std::invalid_argument`: its first run would use it up. A `std::function`
  /// around a lambda says that the lambda can be copied.
  TaskOptions& retry(RetryPolicy policy) &;
  TaskOptions&& retry(RetryPolicy policy) && { return std::move(retry(std::move(policy))); }
  /// Called with what the task tells by `this_task::report_progress`: the latest, at most every 50 ms, and the last in
  /// any case before the task completes; never after that. On the completion handler's associated executor.
  TaskOptions& on_progress(std::function<void(const Progress&)> handler) &;
  TaskOptions&& on_progress(std::function<void(const Progress&)> handler) && {
    return std::move(on_progress(std::move(handler)));
  }
  /// The W3C trace context that the task belongs to, for `this_task::trace_parent`:
  /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
  TaskOptions& trace_parent(std::string value) &;
  TaskOptions&& trace_parent(std::string value) && { return std::move(trace_parent(std::move(value))); }
  /// Under which key crashes are counted for `LocalExecutorOptions::quarantine_after`; by default the task's name. Give
  /// what the fault may lie in, an input file's hash, say. 1 to 200 characters.
  TaskOptions& quarantine_key(std::string value) &;
  TaskOptions&& quarantine_key(std::string value) && { return std::move(quarantine_key(std::move(value))); }

  /// Which workers of a LocalExecutor may run the task; other executors refuse anything but `reuse` with
  /// `std::invalid_argument`, as what they run is not isolated. Default: any (`Isolation::reuse`), and `fresh` under a
  /// policy with `SandboxPolicy::never_reuse_workers`, which refuses `reuse`.
  TaskOptions& isolation(Isolation value) &;
  TaskOptions&& isolation(Isolation value) && { return std::move(isolation(std::move(value))); }

  /// For `spawn`, `submit_at` and `submit_after`: the id that the task is to have, which its caller knows from
  /// elsewhere. `DuplicateTaskError` is thrown if the executor's ResultStore knows a task of this id, over or not,
  /// unless that was refused. Not empty. Default: a new one. Elsewhere a task with an id or metadata is refused with
  /// `std::invalid_argument`.
  TaskOptions& id(TaskId value) &;
  TaskOptions&& id(TaskId value) && { return std::move(id(value)); }
  /// For the same: what `TaskInfo::metadata` gives back, whatever the program wants to find there.
  TaskOptions& metadata(std::string value) &;
  TaskOptions&& metadata(std::string value) && { return std::move(metadata(std::move(value))); }

  /// At most so many tasks of this task's name, or of `key`, may be in executors that share a group
  /// (`CommonOptions::instances`) at once. Beyond that the task is refused with `MaxInstancesError`, or waits for its
  /// turn: it then keeps a place among `max_pending`. At least 1; `key`: at most 200 characters. Default: no limit.
  TaskOptions& max_instances(unsigned limit, OverloadPolicy policy = OverloadPolicy::reject, std::string key = {}) &;
  TaskOptions&& max_instances(unsigned limit, OverloadPolicy policy = OverloadPolicy::reject, std::string key = {}) && {
    return std::move(max_instances(limit, policy, std::move(key)));
  }

  /// What `max_instances` was given.
  struct Instances {
    unsigned limit = 1;
    OverloadPolicy policy = OverloadPolicy::reject;
    std::string key;
  };

  /// These options, and `defaults` where none was given. A priority of 0 counts as not given; an id is never taken
  /// over.
  TaskOptions with_defaults(const TaskOptions& defaults) const;

  /// Empty if none was given.
  const std::string& name() const noexcept { return rare().name; }
  int priority() const noexcept { return priority_; }
  std::optional<Duration> timeout() const noexcept { return given(timeout_); }
  std::optional<Duration> queue_timeout() const noexcept { return given(queue_timeout_); }
  std::optional<Duration> total_timeout() const noexcept { return given(rare().total_timeout); }
  std::optional<Duration> cpu_timeout() const noexcept { return given(rare().cpu_timeout); }
  /// Null if none was given.
  const RetryPolicy* retry() const noexcept { return rare().retry ? &*rare().retry : nullptr; }
  const std::function<void(const Progress&)>& on_progress() const noexcept { return rare().on_progress; }
  const std::string& trace_parent() const noexcept { return rare().trace_parent; }
  const std::string& quarantine_key() const noexcept { return rare().quarantine_key; }
  /// Null if none was given.
  const Isolation* isolation() const noexcept { return rare().isolation ? &*rare().isolation : nullptr; }
  /// Null if none was given.
  const Instances* max_instances() const noexcept { return rare().instances ? &*rare().instances : nullptr; }
  /// Empty if none was given.
  TaskId id() const noexcept { return rare().id; }
  const std::string& metadata() const noexcept { return rare().metadata; }
  /// Whether it has what only spawned tasks can have.
  bool only_spawned() const noexcept { return !rare().id.empty() || !rare().metadata.empty(); }
  /// Whether any option beyond priority, timeout and queue_timeout was given.
  bool has_rare() const noexcept { return rare_ != nullptr; }

 private:
  struct Rare {
    std::string name;
    std::string trace_parent;
    std::string quarantine_key;
    std::string metadata;
    TaskId id;
    Duration total_timeout{0};  // 0: none
    Duration cpu_timeout{0};    // 0: none
    std::optional<RetryPolicy> retry;
    std::optional<Instances> instances;
    std::optional<Isolation> isolation;
    std::function<void(const Progress&)> on_progress;
  };

  static std::optional<Duration> given(Duration value) noexcept {
    return value == Duration::zero() ? std::nullopt : std::optional(value);
  }

  const Rare& rare() const noexcept { return rare_ ? *rare_ : none(); }
  Rare& change_rare();
  static const Rare& none() noexcept;

  // Every task's options are moved several times on their way, and most tasks have none of these.
  std::unique_ptr<Rare> rare_;
  Duration timeout_{0};        // 0: none
  Duration queue_timeout_{0};  // 0: none
  int priority_ = 0;
};

}  // namespace bulkhead
