// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/base_executor.hpp>
#include <bulkhead/call.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/sandbox.hpp>
#include <bulkhead/serialization.hpp>
#include <bulkhead/shared_buffer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace bulkhead {

/// Starts the fork server: the small process that forks all workers. Make it the first line of `main`, while the
/// program has one thread. Later calls do nothing. Without it the first LocalExecutor starts it, if there is still only
/// one thread. Workers are copies of the program as it is now: libraries loaded later are unknown to them.
///
/// Errors: `WorkerStartError` if the process has several threads, or cannot fork.
BULKHEAD_EXPORT void start_fork_server();

/// A call that is run once in a template or in each worker: `LocalExecutorOptions::preload`, `initializer`.
/// Made from `call(function, arguments...)` or from a function without parameters. What it returns is ignored; what it
/// throws keeps the worker from starting.
class BULKHEAD_EXPORT WorkerCall {
 public:
  /// Nothing is run.
  WorkerCall() = default;

  template <class F, class... Args>
  WorkerCall(Call<F, Args...> call) {  // NOLINT(google-explicit-constructor): options read as they are meant
    detail::require_sendable<Call<F, Args...>>();
    if constexpr (detail::Sendable<Call<F, Args...>>) {
      encode_ = [call = std::make_shared<const Call<F, Args...>>(std::move(call))](Encoder& encoder) {
        detail::Remote<Call<F, Args...>>::encode(*call, encoder);
      };
    }
  }

  template <class F>
  requires(std::is_invocable_v<F> && !std::same_as<std::remove_cvref_t<F>, WorkerCall>)
      WorkerCall(F&& function)  // NOLINT(google-explicit-constructor)
      : WorkerCall(bulkhead::call(std::forward<F>(function))) {}

  bool empty() const noexcept { return !encode_; }
  /// The call as bytes; throws `SerializationError` or `FunctionUnavailableError`.
  std::vector<std::byte> encoded() const;

 private:
  std::function<void(Encoder&)> encode_;
};

/// Whether workers may spin for the next task before they sleep.
enum class SpinPolicy : std::uint8_t {
  automatic,  ///< For some microseconds after a task, and never more workers than there are spare CPUs.
  never,      ///< They sleep at once.
  always      ///< Every worker, and ten times as long.
};

/// What becomes of what workers print.
enum class CaptureOutput : std::uint8_t {
  inherit,  ///< It appears on the program's own standard output and error, there in whole lines (of 64 KiB at most).
  capture,  ///< It appears nowhere, but for the end of it in a `WorkerCrashedError`.
  discard   ///< It is thrown away.
};

/// Options of a LocalExecutor. They are checked in its constructor.
struct LocalExecutorOptions {
  /// The name in metrics, errors and `ps`. 1 to 200 characters.
  std::string name = "default";
  /// Worker processes; 0: as many as CPUs may be used (affinity mask, cgroup quota). At most 1024.
  unsigned max_workers = 0;
  /// Run in each worker at its start, also in one that replaces another.
  WorkerCall initializer = {};
  /// Run once, in the template that all workers are forked from: they share the memory of what it loads. Must not leave
  /// threads behind.
  WorkerCall preload = {};
  /// The longest time that `preload`, or an `initializer`, may take; then its process is killed, and another is started
  /// after a pause. After three failed starts in a row waiting tasks fail with `WorkerStartError`. More than zero.
  std::chrono::nanoseconds start_timeout = std::chrono::seconds(30);
  /// The most tasks that may be queued or running at once. 1 to 1,000,000,000.
  std::size_t max_pending = 100;
  /// What happens beyond `max_pending`.
  OverloadPolicy overload = OverloadPolicy::reject;
  /// Workers that are kept when there is nothing to do; the others are started when tasks wait, and leave after
  /// `idle_timeout`. 0 to `max_workers`; empty: `max_workers`, which are all started at once.
  std::optional<unsigned> min_workers = std::nullopt;
  /// How long a worker beyond `min_workers` may have nothing to do before it leaves. More than zero.
  std::chrono::nanoseconds idle_timeout = std::chrono::seconds(60);
  /// Workers beyond `max_workers` that stand by, initialized, so that a crash costs the next task not even the start of
  /// a worker. 0 to 64.
  unsigned spare_workers = 0;
  /// A worker is replaced after so many tasks, some up to a tenth sooner, so that not all are replaced at once. The
  /// replacement is started before the old one leaves. 0: never.
  std::uint64_t max_tasks_per_worker = 0;
  /// A worker whose resident memory has grown by more than this since it was forked, in bytes, at the end of a task is
  /// replaced in the same way: leaks end there. What it shares with `preload` does not count. A limit that a fresh
  /// worker exceeds is a `WorkerStartError`. 0: no limit.
  std::size_t max_worker_memory = 0;
  /// The most memory that a worker can get at all, in bytes (its RLIMIT_DATA: heap, stacks and private mappings, used
  /// or not): beyond it allocations fail with `std::bad_alloc`, which its task may throw. 0: no limit.
  std::size_t memory_limit = 0;
  /// How long a running task that was cancelled with `terminal` may go on to end itself (`this_task::stop_requested`),
  /// before its worker is killed. Not negative.
  std::chrono::nanoseconds cancel_grace = std::chrono::milliseconds(100);
  /// A task whose key (`TaskOptions::quarantine_key`, else its name) has crashed so many workers in a row is refused
  /// with `TaskQuarantinedError` for `quarantine_time`. 0: never.
  unsigned quarantine_after = 0;
  /// How long such tasks are refused. More than zero.
  std::chrono::nanoseconds quarantine_time = std::chrono::seconds(60);
  /// What workers may reach: `SandboxPolicy::contained()`, say. An item that is required and cannot be had throws
  /// `WorkerStartError` from the constructor. Where more is asked for than in `trusted`, that waits for a process that
  /// tries it, for a few milliseconds; what that could have every worker has, or it does not start.
  SandboxPolicy sandbox = SandboxPolicy::trusted();
  /// What becomes of what workers print.
  CaptureOutput capture_output = CaptureOutput::inherit;
  /// Run everything in this process, on the Asio executor, with the same checks: for unit tests. The environment
  /// variable BULKHEAD_EXECUTOR_BYPASS (`1`, `true`, `yes`, `on`) does the same for every executor made while it is
  /// set.
  bool bypass = false;
  /// Whether workers may spin before they sleep.
  SpinPolicy spin = SpinPolicy::automatic;
  /// The largest encoded arguments or result, in bytes: 1 KiB to 16 GiB. Address space of this size is reserved twice
  /// per worker; memory is only used as messages need it.
  std::size_t max_message_size = std::size_t{256} << 20;
  /// How much memory large arguments, and large results, may leave with a worker, in bytes. 10 s after the last of them
  /// what results have left beyond that is given back when the worker has nothing to do. What arguments have left is
  /// sealed against that: the worker is replaced then, when its replacement is ready, one worker after the other.
  /// `max_message_size` or more: none is given back.
  std::size_t kept_message_memory = std::size_t{1} << 20;
  /// How much memory `make_buffer` may hand out at once, in bytes, up to 1 TiB. All workers of the executor can reach
  /// it. Address space of this size is reserved in the host and in each worker; memory is only used where something is
  /// written, and given back when no buffer has been there for 10 s. 0: there are no buffers.
  std::size_t max_shared_memory = 0;

  /// As in CommonOptions.
  std::shared_ptr<InstanceGroup> instances = nullptr;
  std::shared_ptr<TaskRegistry> tasks = nullptr;
  std::shared_ptr<ResultStore> results = nullptr;

  /// Whether both describe the same executor.
  BULKHEAD_EXPORT bool operator==(const LocalExecutorOptions& other) const;
};

/// What can be sent to a worker process; anything else is refused by the compiler, in one sentence.
struct SendableCall {
  template <class C>
  static constexpr void require() {
    detail::require_sendable<C>();
  }
  template <class C>
  static constexpr bool accepts = detail::Sendable<C>;
};

/// Runs functions in a pool of worker processes.
///
/// A function that crashes, exits or is killed costs one worker, which is replaced, and fails with
/// `WorkerCrashedError`; every other task goes on. Callables, arguments and results travel through shared memory, see
/// `docs/`.
///
/// Cancellation: a task that has not begun: every type, it never runs. One that runs: partial and terminal ask it to
/// stop (`this_task::stop_requested`), and terminal kills its worker when `cancel_grace` is over; total does nothing.
/// Thread safety: as BaseExecutor. Destruction kills what still runs and completes it with `TaskCancelledError`.
class BULKHEAD_EXPORT LocalExecutor final : public BaseExecutor, public TaskInterface<LocalExecutor, SendableCall> {
 public:
  using Tasks = TaskInterface<LocalExecutor, SendableCall>;
  using Tasks::async_submit;
  using Tasks::map;
  using Tasks::map_stream;
  using Tasks::spawn;
  using Tasks::submit;
  using Tasks::submit_after;
  using Tasks::submit_at;
  using Tasks::submit_every;
  using Tasks::operator();

  /// Starts `max_workers` workers; does not wait for them.
  /// Throws `std::invalid_argument` with the option's name and range, or `WorkerStartError`.
  explicit LocalExecutor(asio::any_io_executor io_executor, LocalExecutorOptions options = {});
  ~LocalExecutor() override;

  /// A buffer of this size in the memory that this executor shares with its workers; its bytes are zero or what an
  /// earlier buffer has left. See SharedBuffer. Throws `ExecutorOverloadError` when `max_shared_memory` has no room for
  /// it, `std::invalid_argument` when it never can have, `ExecutorNotRunningError` in a fork of the process.
  SharedBuffer make_buffer(std::size_t size);
  /// Whether it runs in bypass mode.
  bool bypass() const noexcept;
  /// Process ids of the workers that are alive, as the host sees them: one that has just been started or has just died
  /// may be missing or still there for a moment. Empty in bypass mode.
  std::vector<int> worker_pids() const;
  /// What the policy has in force in a worker. The first call waits for a worker that tries it, for a few milliseconds,
  /// unless the constructor has; it throws `WorkerStartError` if that cannot be. In bypass mode nothing is.
  SandboxReport sandbox_report() const;
  /// The options it was made with; `max_workers` as it was worked out.
  const LocalExecutorOptions& options() const noexcept { return options_; }

 protected:
  void execute(Task task) override;
  void execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) override;
  bool execute_at_once(detail::TaskNode& node) override;
  asio::awaitable<void> stop(ShutdownOptions options) override;
  void nothing_left() override;
  void add_metrics(Metrics& metrics) const override;
  bool cancel_in_flight(detail::TaskNode& node, asio::cancellation_type type) override;
  bool withdraw(detail::TaskNode& node) override;
  bool has_begun(const detail::TaskNode& node) const override;
  std::optional<Progress> progress_of(const detail::TaskNode& node) const override;

 private:
  struct Engine;
  LocalExecutorOptions options_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace bulkhead
