// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/task_id.hpp>

#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace bulkhead {

/// Why an executor could not deliver a task's result. Each error class below has one code; a cancelled task has
/// `asio::error::operation_aborted` instead, as every cancelled Asio operation has.
enum class Errc {
  overload = 1,           ///< `max_pending` tasks are in the executor already.
  not_running,            ///< The executor has been shut down, or belongs to another process.
  worker_crashed,         ///< The worker process died while it held the task.
  worker_start_failed,    ///< No worker process could be started.
  timeout,                ///< The task's `timeout` or `queue_timeout` passed.
  abandoned,              ///< An executor dropped the task without an outcome.
  remote_exception,       ///< The function threw a type that cannot be rebuilt here.
  serialization,          ///< An argument, a result or an exception could not be carried.
  function_unavailable,   ///< The callable does not exist where the task should run.
  protocol,               ///< A worker wrote something impossible.
  registry_conflict,      ///< A name is taken by an executor of another type or with other options.
  unknown_executor_type,  ///< No factory is registered under this type.
  retries_failed,         ///< Every run that the task's retry policy allows failed.
  quarantined,            ///< The function or key has crashed too many workers in a row.
  worker_stuck,           ///< A worker that was killed does not die.
  max_instances,          ///< As many tasks of this name or key are in executors as may be.
  unknown_task,           ///< No task is registered under this name.
  duplicate_task,         ///< There is a task of this name, or of this id, already.
  signature_mismatch,     ///< A task was called, or its result taken, with other types than it has.
  result_not_found,       ///< There is no result of this id: unknown, expired, or dropped.
  policy_violation        ///< A task did what its sandbox forbids.
};

/// The category of all codes of `Errc`.
BULKHEAD_EXPORT const boost::system::error_category& error_category() noexcept;

/// Makes `Errc` convertible to an `error_code`.
BULKHEAD_EXPORT boost::system::error_code make_error_code(Errc code) noexcept;

/// Which task, executor and worker an error speaks of. What is unknown is empty.
struct ErrorContext {
  /// The task's name: `TaskOptions::name`, or else the function's type.
  std::string task;
  /// The task's number within its executor; 0 if there is none.
  std::uint64_t task_id = 0;
  /// The executor's name.
  std::string executor;
  /// The worker's process id as the host sees it.
  std::optional<int> worker_pid;
};

/// The base of all errors of this library. `what()` says what happened, to which task, executor and worker, and what
/// can be done about it; `code()` is one of `Errc`, or `asio::error::operation_aborted` for a cancelled task.
class BULKHEAD_EXPORT ExecutorError : public boost::system::system_error {
 public:
  ExecutorError(boost::system::error_code code, const std::string& message, ErrorContext context = {});
  ExecutorError(const ExecutorError&) = default;
  ExecutorError& operator=(const ExecutorError&) = default;
  ~ExecutorError() override;

  const char* what() const noexcept override;
  const ErrorContext& context() const noexcept { return context_; }

 private:
  // Shared, since exceptions are copied where nothing may throw.
  std::shared_ptr<const std::string> what_;
  ErrorContext context_;
};

/// `max_pending` was reached under `OverloadPolicy::reject`, or a task's `queue_timeout` passed while it waited for
/// admission under `OverloadPolicy::wait`. The task never ran; submit it again later, or raise the limit.
class BULKHEAD_EXPORT ExecutorOverloadError : public ExecutorError {
 public:
  ExecutorOverloadError(std::size_t limit, ErrorContext context, const std::string& reason = {});
  ~ExecutorOverloadError() override;
  /// The executor's `max_pending`.
  std::size_t limit() const noexcept { return limit_; }

 private:
  std::size_t limit_;
};

/// A task was submitted after `shutdown`, or in a process that inherited the executor through `fork`.
class BULKHEAD_EXPORT ExecutorNotRunningError : public ExecutorError {
 public:
  explicit ExecutorNotRunningError(ErrorContext context, const std::string& reason = {});
  ~ExecutorNotRunningError() override;
};

/// Whether a task had begun when its worker died.
enum class Started {
  never,    ///< It had not begun; running it elsewhere is safe.
  maybe,    ///< It had begun and may have had effects.
  finished  ///< Its function was over, and the worker died while it wrote the result, which is lost.
};

/// One call on the way to a crash.
struct StackFrame {
  /// An address inside the calling instruction.
  std::uintptr_t address = 0;
  /// The function, demangled, and how far into it the address lies; empty if the program has no name for it.
  std::string function;
  std::uintptr_t offset = 0;
  /// Source file and line, where the program was compiled with debug information (`-g`) that is not compressed (`-gz`);
  /// else empty and 0.
  std::string file;
  unsigned line = 0;
  /// The program or library, and the address in it.
  std::string module;
  std::uintptr_t module_offset = 0;
};

/// The worker process died while it held the task: by a signal, by `exit` or `_exit`, or by a kill from outside.
/// Only this task fails; the worker is replaced. `what()` has all that is known, in several lines.
class BULKHEAD_EXPORT WorkerCrashedError : public ExecutorError {
 public:
  /// How a worker ended.
  struct Ending {
    /// The signal that killed it, or 0.
    int signal = 0;
    /// The code it exited with, if it exited.
    std::optional<int> exit_code;
    /// Whether the task had begun.
    Started started = Started::maybe;
    /// The largest resident size it had, in bytes; 0 if unknown.
    std::size_t peak_memory = 0;
    /// How long the task had run; zero if unknown.
    std::chrono::nanoseconds run_time{0};
    /// What could not be accessed (SIGSEGV, SIGBUS), or the instruction (SIGILL, SIGFPE).
    std::optional<std::uintptr_t> fault_address = {};
    /// The calls that led to the crash or to `exit`, innermost first; empty if it was killed from outside, or by a
    /// stack overflow in a thread that the task had started.
    std::vector<StackFrame> backtrace = {};
    /// The last 4 KiB that the worker wrote to its standard error, also for tasks before this one.
    std::string error_output = {};
    /// What the task had told of its progress.
    std::optional<Progress> progress = {};
    /// Which of several items the task was at, from 0, where `map` gives a worker several at once.
    std::size_t item = 0;
  };

  WorkerCrashedError(Ending ending, ErrorContext context, const std::string& reason = {});
  ~WorkerCrashedError() override;

  /// All of it.
  const Ending& ending() const noexcept { return *ending_; }
  /// The signal that killed the worker (`SIGSEGV`, say), or 0.
  int signal() const noexcept { return ending_->signal; }
  /// The code with which the worker left, if it left by itself.
  std::optional<int> exit_code() const noexcept { return ending_->exit_code; }
  /// Whether the task had begun.
  Started started() const noexcept { return ending_->started; }
  /// The worker's largest resident size in bytes; 0 if unknown.
  std::size_t peak_memory() const noexcept { return ending_->peak_memory; }
  /// How long the task had run; zero if unknown.
  std::chrono::nanoseconds run_time() const noexcept { return ending_->run_time; }

 private:
  // Shared, since exceptions are copied where nothing may throw.
  std::shared_ptr<const Ending> ending_;
};

/// No worker could be started: the fork server or a fork failed, or `preload` or `initializer` threw or crashed.
class BULKHEAD_EXPORT WorkerStartError : public ExecutorError {
 public:
  WorkerStartError(const std::string& reason, unsigned failures_in_a_row, ErrorContext context = {});
  ~WorkerStartError() override;
  /// Why the last attempt failed.
  const std::string& reason() const noexcept { return *reason_; }
  /// How many attempts failed one after the other.
  unsigned failures_in_a_row() const noexcept { return failures_in_a_row_; }

 private:
  std::shared_ptr<const std::string> reason_;
  unsigned failures_in_a_row_;
};

/// A shutdown of several executors has shut every one down, and some of them failed.
class BULKHEAD_EXPORT ShutdownFailedError : public ExecutorError {
 public:
  struct Failure {
    std::string executor;
    std::exception_ptr error;
  };
  explicit ShutdownFailedError(std::vector<Failure> failures);
  ~ShutdownFailedError() override;
  /// Which executors failed, and with what.
  const std::vector<Failure>& failures() const noexcept { return *failures_; }

 private:
  std::shared_ptr<const std::vector<Failure>> failures_;
};

/// A time limit of the task passed.
class BULKHEAD_EXPORT TaskTimeoutError : public ExecutorError {
 public:
  enum class Which {
    run,    ///< `TaskOptions::timeout`: it ran too long; its worker was killed.
    queue,  ///< `TaskOptions::queue_timeout`: it had not begun in time; it never ran.
    cpu,    ///< `TaskOptions::cpu_timeout`: it took too much CPU time; its worker was killed.
    total,  ///< `TaskOptions::total_timeout`: it was not over in time; if it ran, its worker was killed.
    wait    ///< The wait for the result of a spawned task; the task goes on.
  };
  /// `reason`: why it had not begun, if that is known.
  TaskTimeoutError(Which which, std::chrono::nanoseconds limit, ErrorContext context, const std::string& reason = {});
  ~TaskTimeoutError() override;
  Which which() const noexcept { return which_; }
  std::chrono::nanoseconds limit() const noexcept { return limit_; }

 private:
  Which which_;
  std::chrono::nanoseconds limit_;
};

/// A task that its `RetryPolicy` let run again failed for good: its runs are used up, or what the last one failed with
/// is not to be tried again, or the next run was refused. `what()` has all of them.
class BULKHEAD_EXPORT RetryError : public ExecutorError {
 public:
  /// One failed run, or why there was none.
  struct Attempt {
    std::exception_ptr error;
    /// How long it ran; zero if that is unknown.
    std::chrono::nanoseconds run_time{0};
    /// False: it did not begin. Only the last may be so.
    bool begun = true;
  };

  RetryError(std::vector<Attempt> attempts, ErrorContext context);
  ~RetryError() override;
  /// All of them, in order; at least two.
  const std::vector<Attempt>& attempts() const noexcept { return *attempts_; }
  /// What the last one failed with.
  const std::exception_ptr& last() const noexcept { return attempts_->back().error; }
  /// Throws that.
  [[noreturn]] void rethrow_last() const { std::rethrow_exception(last()); }

 private:
  std::shared_ptr<const std::vector<Attempt>> attempts_;
};

/// The task was cancelled. `code()` is `asio::error::operation_aborted`.
class BULKHEAD_EXPORT TaskCancelledError : public ExecutorError {
 public:
  enum class Stage {
    waiting,   ///< It waited for admission. It never ran.
    queued,    ///< It was admitted and had not begun. It never ran.
    retrying,  ///< It had failed, and its next run had not begun.
    running    ///< It ran.
  };
  TaskCancelledError(Stage stage, ErrorContext context, const std::string& reason = {});
  /// `last`, of a task whose runs before had failed.
  TaskCancelledError(const TaskCancelledError& last, std::vector<RetryError::Attempt> failed_runs);
  ~TaskCancelledError() override;
  Stage stage() const noexcept { return stage_; }
  /// The runs that had failed before, in order.
  const std::vector<RetryError::Attempt>& failed_runs() const noexcept { return *failed_runs_; }

 private:
  Stage stage_;
  std::shared_ptr<const std::string> reason_;
  std::shared_ptr<const std::vector<RetryError::Attempt>> failed_runs_;
};

/// The task's key has crashed `LocalExecutorOptions::quarantine_after` workers in a row: tasks with it are refused for
/// a while. The task never ran.
class BULKHEAD_EXPORT TaskQuarantinedError : public ExecutorError {
 public:
  TaskQuarantinedError(std::string key, unsigned crashes, std::chrono::nanoseconds remaining, ErrorContext context);
  ~TaskQuarantinedError() override;
  /// `TaskOptions::quarantine_key`, or the task's name.
  const std::string& key() const noexcept { return *key_; }
  /// How many workers it has crashed in a row.
  unsigned crashes() const noexcept { return crashes_; }
  /// When it may be submitted again, from now.
  std::chrono::nanoseconds remaining() const noexcept { return remaining_; }

 private:
  std::shared_ptr<const std::string> key_;
  unsigned crashes_;
  std::chrono::nanoseconds remaining_;
};

/// `shutdown` has killed these workers, and they do not die: they hang inside the kernel (a frozen cgroup, a device
/// that does not answer). Everything else is over.
class BULKHEAD_EXPORT WorkerStuckError : public ExecutorError {
 public:
  WorkerStuckError(std::vector<int> pids, ErrorContext context);
  ~WorkerStuckError() override;
  /// Their process ids as the host sees them.
  const std::vector<int>& pids() const noexcept { return *pids_; }

 private:
  std::shared_ptr<const std::vector<int>> pids_;
};

/// As many tasks of this name or key are in executors as `TaskOptions::max_instances` allows. The task never ran.
class BULKHEAD_EXPORT MaxInstancesError : public ExecutorError {
 public:
  MaxInstancesError(std::string key, unsigned limit, ErrorContext context);
  ~MaxInstancesError() override;
  /// The key that is counted, or the task's name.
  const std::string& key() const noexcept { return *key_; }
  /// How many there may be.
  unsigned limit() const noexcept { return limit_; }

 private:
  std::shared_ptr<const std::string> key_;
  unsigned limit_;
};

/// No task is registered under this name, or the executor has no TaskRegistry.
class BULKHEAD_EXPORT UnknownTaskError : public ExecutorError {
 public:
  UnknownTaskError(const std::string& name, std::vector<std::string> known, ErrorContext context = {});
  ~UnknownTaskError() override;
  /// The names that are registered, sorted.
  const std::vector<std::string>& known() const noexcept { return *known_; }

 private:
  std::shared_ptr<const std::vector<std::string>> known_;
};

/// `TaskRegistry::add` was given a name that is taken, or `spawn` a `TaskOptions::id` that is.
class BULKHEAD_EXPORT DuplicateTaskError : public ExecutorError {
 public:
  explicit DuplicateTaskError(const std::string& name);
  DuplicateTaskError(const TaskId& id, ErrorContext context);
  ~DuplicateTaskError() override;
};

/// A task was called by its name with arguments of other types than its parameters', or its result was taken as another
/// type than it has.
class BULKHEAD_EXPORT TaskSignatureError : public ExecutorError {
 public:
  explicit TaskSignatureError(const std::string& message, ErrorContext context = {});
  ~TaskSignatureError() override;
};

/// There is no result of this id: no such task was spawned here, or its result has expired or was dropped.
class BULKHEAD_EXPORT ResultNotFoundError : public ExecutorError {
 public:
  ResultNotFoundError(const std::string& id, ErrorContext context);
  ~ResultNotFoundError() override;
};

/// The task was destroyed without an outcome: with its `io_context`, or by an executor that neither ran it, failed it
/// nor sent it anywhere, which is a defect of that executor.
class BULKHEAD_EXPORT TaskAbandonedError : public ExecutorError {
 public:
  explicit TaskAbandonedError(ErrorContext context);
  ~TaskAbandonedError() override;
};

/// What is known of an exception whose type cannot be rebuilt in this process.
struct ExceptionDescription {
  /// The demangled name of its type.
  std::string type;
  /// Its `what()`; empty if it is not a `std::exception`.
  std::string what;
};

/// The function threw an exception whose type cannot be rebuilt in the host. Register the type with
/// `BULKHEAD_REGISTER_EXCEPTION` to get it back as itself. Nested causes follow as `std::nested_exception`, too.
class BULKHEAD_EXPORT RemoteTaskError : public ExecutorError {
 public:
  RemoteTaskError(ExceptionDescription thrown, std::vector<ExceptionDescription> causes, ErrorContext context = {});
  ~RemoteTaskError() override;
  /// The demangled name of the exception's type.
  const std::string& type_name() const noexcept { return chain_->front().type; }
  /// The exception's `what()`, as thrown.
  const std::string& remote_what() const noexcept { return chain_->front().what; }
  /// The nested causes, outermost first.
  std::vector<ExceptionDescription> causes() const { return {chain_->begin() + 1, chain_->end()}; }

 private:
  std::shared_ptr<const std::vector<ExceptionDescription>> chain_;
};

/// A value could not be encoded or decoded, or is over its size limit.
class BULKHEAD_EXPORT SerializationError : public ExecutorError {
 public:
  enum class Part {
    value,     ///< Not part of a task: the codec was called directly.
    callable,  ///< The function itself.
    argument,  ///< An argument of the task.
    result,    ///< What the function returned.
    exception  ///< What the function threw.
  };
  SerializationError(Part part, std::string type, const std::string& reason, ErrorContext context = {});
  ~SerializationError() override;
  /// Which part of the task could not be carried.
  Part part() const noexcept { return part_; }
  /// The demangled name of the type concerned; empty if unknown.
  const std::string& type_name() const noexcept { return *type_; }
  /// Why, without the task's name around it.
  const std::string& reason() const noexcept { return *reason_; }

 private:
  Part part_;
  std::shared_ptr<const std::string> type_;
  std::shared_ptr<const std::string> reason_;
};

/// The callable is not known where the task should run: it is no function at all, or from a library that was loaded
/// after the fork server had started. Nothing was sent.
class BULKHEAD_EXPORT FunctionUnavailableError : public ExecutorError {
 public:
  enum class Cause {
    other,                 ///< None of these; `reason()` says it.
    null_pointer,          ///< The pointer is null.
    not_code,              ///< It points to data, the stack, the heap, code made at run time, or into nothing.
    not_a_function_start,  ///< It points into a function, and not to where that begins.
    module_not_loaded,     ///< Its library was loaded after the fork server had started.
  };

  explicit FunctionUnavailableError(const std::string& reason, ErrorContext context = {}, Cause cause = Cause::other);
  ~FunctionUnavailableError() override;
  /// Which kind of reason it is, for code.
  Cause cause() const noexcept { return cause_; }
  /// Why, without the task's name around it.
  const std::string& reason() const noexcept { return *reason_; }

 private:
  Cause cause_;
  std::shared_ptr<const std::string> reason_;
};

/// A worker wrote something impossible into its response area. It has been killed.
class BULKHEAD_EXPORT ProtocolError : public ExecutorError {
 public:
  explicit ProtocolError(const std::string& violation, ErrorContext context = {});
  ~ProtocolError() override;
  /// What was impossible.
  const std::string& violation() const noexcept { return *violation_; }

 private:
  std::shared_ptr<const std::string> violation_;
};

/// The task did what the sandbox of its worker forbids (SandboxPolicy::system_calls). The worker has ended. No retry
/// policy covers this error: the next run would do the same.
class BULKHEAD_EXPORT PolicyViolationError : public ExecutorError {
 public:
  /// `system_call`: its name, empty if the kernel did not tell.
  explicit PolicyViolationError(const std::string& system_call, ErrorContext context = {}, std::size_t item = 0);
  ~PolicyViolationError() override;
  /// The name of the system call, `"ptrace"` say; empty if it is not known.
  const std::string& system_call() const noexcept { return *system_call_; }
  /// Which of several items the task was at, from 0, where `map` gives a worker several at once.
  std::size_t item() const noexcept { return item_; }

 private:
  std::shared_ptr<const std::string> system_call_;
  std::size_t item_;
};

/// A name of the registry is taken by an executor of another type or with other options.
class BULKHEAD_EXPORT RegistryConflictError : public ExecutorError {
 public:
  RegistryConflictError(const std::string& name, const std::string& existing, const std::string& requested);
  ~RegistryConflictError() override;
  /// What is registered under the name: its type and options.
  const std::string& existing() const noexcept { return *existing_; }
  /// What was asked for.
  const std::string& requested() const noexcept { return *requested_; }

 private:
  std::shared_ptr<const std::string> existing_;
  std::shared_ptr<const std::string> requested_;
};

/// `ExecutorRegistry::get_or_create` was asked for a type that has no factory.
class BULKHEAD_EXPORT UnknownExecutorTypeError : public ExecutorError {
 public:
  UnknownExecutorTypeError(const std::string& type, std::vector<std::string> known, const std::string& executor = {});
  ~UnknownExecutorTypeError() override;
  /// The types that have a factory, sorted.
  const std::vector<std::string>& known() const noexcept { return *known_; }

 private:
  std::shared_ptr<const std::vector<std::string>> known_;
};

}  // namespace bulkhead

template <>
struct boost::system::is_error_code_enum<bulkhead::Errc> : std::true_type {};
