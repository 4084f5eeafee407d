// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/errors.hpp>

#include <boost/asio/error.hpp>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace bulkhead {
namespace {

class Category final : public boost::system::error_category {
 public:
  const char* name() const noexcept override { return "bulkhead"; }

  std::string message(int value) const override {
    switch (static_cast<Errc>(value)) {
      case Errc::overload:
        return "the executor is full";
      case Errc::not_running:
        return "the executor is not running";
      case Errc::worker_crashed:
        return "the worker process died";
      case Errc::worker_start_failed:
        return "no worker process could be started";
      case Errc::timeout:
        return "the task's time limit passed";
      case Errc::abandoned:
        return "the executor dropped the task";
      case Errc::remote_exception:
        return "the function threw an exception";
      case Errc::serialization:
        return "a value could not be carried to or from the task";
      case Errc::function_unavailable:
        return "the function is not known where the task should run";
      case Errc::protocol:
        return "a worker wrote something impossible";
      case Errc::registry_conflict:
        return "the executor's name is taken";
      case Errc::unknown_executor_type:
        return "unknown executor type";
      case Errc::retries_failed:
        return "every run of the task failed";
      case Errc::quarantined:
        return "the task's function has crashed too many workers";
      case Errc::worker_stuck:
        return "a worker that was killed does not die";
      case Errc::max_instances:
        return "too many tasks of this name are in executors";
      case Errc::unknown_task:
        return "no task is registered under this name";
      case Errc::duplicate_task:
        return "a task is registered under this name already";
      case Errc::signature_mismatch:
        return "the task has other types";
      case Errc::result_not_found:
        return "there is no such result";
      case Errc::policy_violation:
        return "a task did what its sandbox forbids";
    }
    return fmt::format("unknown bulkhead error {}", value);
  }
};

std::string subject(const ErrorContext& context) {
  std::string text = context.task.empty() ? "a task" : fmt::format("task '{}'", context.task);
  if (context.task_id != 0) text += fmt::format(" (#{})", context.task_id);
  if (!context.executor.empty()) text += fmt::format(" of executor '{}'", context.executor);
  return text;
}

std::string worker(const ErrorContext& context) {
  return context.worker_pid ? fmt::format("worker process {}", *context.worker_pid) : "the worker process";
}

std::string in_worker(const ErrorContext& context) {
  return context.worker_pid ? fmt::format(" in worker process {}", *context.worker_pid) : "";
}

std::string with_reason(std::string text, const std::string& reason) {
  return reason.empty() ? text : text + ": " + reason;
}

std::string describe(const WorkerCrashedError::Ending& ending) {
  if (ending.signal != 0) {
    const char* abbreviation = ::sigabbrev_np(ending.signal);
    const char* description = ::sigdescr_np(ending.signal);
    return fmt::format("was killed by {}{} ({}{})", abbreviation ? "SIG" : "signal ",
                       abbreviation ? abbreviation : std::to_string(ending.signal).c_str(),
                       description ? description : "unknown signal",
                       ending.fault_address ? fmt::format(", address {:#x}", *ending.fault_address) : "");
  }
  if (ending.exit_code) return fmt::format("left with exit code {}", *ending.exit_code);
  return "died (how is not known)";
}

std::string describe(Started started) {
  switch (started) {
    case Started::never:
      return "the task had not begun: submit it again";
    case Started::maybe:
      return "the task may have had effects: submit it again only if it may run twice";
    case Started::finished:
      return "the task had finished, but its result is lost";
  }
  return {};
}

std::string milliseconds(std::chrono::nanoseconds duration) {
  if (duration < std::chrono::microseconds(1)) return fmt::format("{} ns", duration.count());
  return fmt::format("{:.3f} ms", std::chrono::duration<double, std::milli>(duration).count());
}

std::string say_run_time(const WorkerCrashedError::Ending& ending) {
  return ending.run_time.count() > 0 ? ", it had run for " + milliseconds(ending.run_time) : "";
}

std::string say_peak_memory(const WorkerCrashedError::Ending& ending) {
  return ending.peak_memory > 0 ? fmt::format(", peak memory {} KiB", ending.peak_memory / 1024) : "";
}

std::string say_progress(const WorkerCrashedError::Ending& ending) {
  if (!ending.progress) return {};
  const Progress& last = *ending.progress;
  return fmt::format("\n  its last progress: {}{}{}", last.done,
                     last.total > 0 ? fmt::format(" of {}", last.total) : "",
                     last.text.empty() ? "" : ", " + last.text);
}

std::string say(const StackFrame& frame) {
  std::string text = frame.function.empty() ? fmt::format("{:#x}", frame.address)
                                            : fmt::format("{} +{:#x}", frame.function, frame.offset);
  if (!frame.file.empty()) {
    // Line 0: the compiler made the code for no line of its own.
    text += frame.line > 0 ? fmt::format(" at {}:{}", frame.file, frame.line) : fmt::format(" in {}", frame.file);
  } else if (!frame.module.empty()) {
    text += fmt::format(" in {} +{:#x}", frame.module, frame.module_offset);
  }
  return text;
}

std::string say_backtrace(const WorkerCrashedError::Ending& ending) {
  const auto& calls = ending.backtrace;
  if (calls.empty()) return {};
  std::string text = ending.signal == 0 ? "\n  the calls that led to exit:" : "\n  the calls that led to the crash:";
  for (std::size_t i = 0; i < calls.size();) {
    // An endless recursion is the same call over and over.
    std::size_t end = i + 1;
    while (end < calls.size() && calls[end].address == calls[i].address) ++end;
    text += fmt::format("\n    #{} {}", i, say(calls[i]));
    if (end - i > 1) text += fmt::format(" (and {} times more)", end - i - 1);
    i = end;
  }
  return text;
}

std::string say_error_output(const WorkerCrashedError::Ending& ending) {
  if (ending.error_output.empty()) return {};
  std::string text = "\n  the end of what the worker printed:\n    | ";
  for (const char c : ending.error_output.ends_with('\n')
                          ? std::string_view(ending.error_output).substr(0, ending.error_output.size() - 1)
                          : std::string_view(ending.error_output)) {
    text += c;
    if (c == '\n') text += "    | ";
  }
  return text;
}

std::string say(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& thrown) {
    return thrown.what();
  } catch (...) {
    return "something that is no std::exception";
  }
}

std::string describe(const std::vector<RetryError::Attempt>& attempts) {
  std::string text;
  for (std::size_t i = 0; i < attempts.size(); ++i) {
    if (attempts[i].begun) {
      text += fmt::format("\n  run {}{}: {}", i + 1,
                          attempts[i].run_time.count() > 0 ? " (" + milliseconds(attempts[i].run_time) + ")" : "",
                          say(attempts[i].error));
    } else {
      text += "\n  then it did not run: " + say(attempts[i].error);
    }
  }
  return text;
}

std::string part_name(SerializationError::Part part) {
  switch (part) {
    case SerializationError::Part::value:
      return "a value";
    case SerializationError::Part::callable:
      return "the callable";
    case SerializationError::Part::argument:
      return "an argument";
    case SerializationError::Part::result:
      return "the result";
    case SerializationError::Part::exception:
      return "the exception";
  }
  return {};
}

std::string describe(const std::vector<ExceptionDescription>& chain) {
  std::string text;
  for (const ExceptionDescription& link : chain) {
    if (!text.empty()) text += "; caused by ";
    text += link.type;
    if (!link.what.empty()) text += ": " + link.what;
  }
  return text;
}

std::string describe(const std::vector<ShutdownFailedError::Failure>& failures) {
  std::string text = fmt::format("{} failed to shut down; all others are down: ",
                                 failures.size() == 1 ? "an executor" : fmt::format("{} executors", failures.size()));
  for (const auto& failure : failures) {
    if (&failure != &failures.front()) text += "; ";
    text += failure.executor + ": ";
    try {
      std::rethrow_exception(failure.error);
    } catch (const std::exception& error) {
      text += error.what();
    } catch (...) {
      text += "something that is no std::exception";
    }
  }
  return text;
}

std::vector<ExceptionDescription> chain_of(ExceptionDescription thrown, std::vector<ExceptionDescription> causes) {
  std::vector<ExceptionDescription> chain;
  chain.reserve(causes.size() + 1);
  chain.push_back(std::move(thrown));
  for (ExceptionDescription& cause : causes) chain.push_back(std::move(cause));
  return chain;
}

std::shared_ptr<const std::string> share(std::string text) {
  return std::make_shared<const std::string>(std::move(text));
}

}  // namespace

const boost::system::error_category& error_category() noexcept {
  static const Category category;
  return category;
}

boost::system::error_code make_error_code(Errc code) noexcept { return {static_cast<int>(code), error_category()}; }

ExecutorError::ExecutorError(boost::system::error_code code, const std::string& message, ErrorContext context)
    : system_error(code), what_(share(message)), context_(std::move(context)) {}
ExecutorError::~ExecutorError() = default;
const char* ExecutorError::what() const noexcept { return what_->c_str(); }

ExecutorOverloadError::ExecutorOverloadError(std::size_t limit, ErrorContext context, const std::string& reason)
    : ExecutorError(Errc::overload,
                    reason.empty()
                        ? fmt::format("{} was refused: max_pending = {} tasks are queued or running; submit it later, "
                                      "raise max_pending, or choose OverloadPolicy::wait",
                                      subject(context), limit)
                        : fmt::format("{} was refused: {} (max_pending = {})", subject(context), reason, limit),
                    context),
      limit_(limit) {}
ExecutorOverloadError::~ExecutorOverloadError() = default;

ExecutorNotRunningError::ExecutorNotRunningError(ErrorContext context, const std::string& reason)
    : ExecutorError(Errc::not_running,
                    fmt::format("{} was refused: {}", subject(context),
                                reason.empty() ? "the executor has been shut down; make a new one" : reason),
                    context) {}
ExecutorNotRunningError::~ExecutorNotRunningError() = default;

WorkerCrashedError::WorkerCrashedError(Ending ending, ErrorContext context, const std::string& reason)
    : ExecutorError(
          Errc::worker_crashed,
          with_reason(fmt::format("{} {} while it held {}{}{}; {}", worker(context), describe(ending), subject(context),
                                  say_run_time(ending), say_peak_memory(ending), describe(ending.started)),
                      reason) +
              say_progress(ending) + say_backtrace(ending) + say_error_output(ending),
          context),
      ending_(std::make_shared<const Ending>(std::move(ending))) {}
WorkerCrashedError::~WorkerCrashedError() = default;

WorkerStartError::WorkerStartError(const std::string& reason, unsigned failures_in_a_row, ErrorContext context)
    : ExecutorError(
          Errc::worker_start_failed,
          fmt::format("no worker{} could be started{}: {}",
                      context.executor.empty() ? "" : fmt::format(" of executor '{}'", context.executor),
                      failures_in_a_row > 1 ? fmt::format(" ({} times in a row)", failures_in_a_row) : "", reason),
          context),
      reason_(share(reason)),
      failures_in_a_row_(failures_in_a_row) {}
WorkerStartError::~WorkerStartError() = default;

ShutdownFailedError::ShutdownFailedError(std::vector<Failure> failures)
    : ExecutorError(Errc::not_running, describe(failures)),
      failures_(std::make_shared<const std::vector<Failure>>(std::move(failures))) {}
ShutdownFailedError::~ShutdownFailedError() = default;

namespace {

std::string describe_timeout(TaskTimeoutError::Which which, std::chrono::nanoseconds limit, const ErrorContext& context,
                             const std::string& reason) {
  using Which = TaskTimeoutError::Which;
  switch (which) {
    case Which::queue:
      return fmt::format("{} had not begun within its queue_timeout of {} and never ran: {}", subject(context),
                         milliseconds(limit),
                         reason.empty() ? "the executor is too busy for it; submit it later, or give the executor more "
                                          "workers"
                                        : reason);
    case Which::wait:
      return fmt::format("{} was not over within {}; it goes on, only the wait for its result has ended",
                         subject(context), milliseconds(limit));
    case Which::run:
    case Which::cpu:
    case Which::total:
      break;
  }
  if (which == Which::total && !reason.empty()) {
    return fmt::format("{} was not over within its total_timeout of {}: {}", subject(context), milliseconds(limit),
                       reason);
  }
  return fmt::format("{} {} of {}; {}, the task may have had effects", subject(context),
                     which == Which::run   ? "ran longer than its timeout"
                     : which == Which::cpu ? "took more than its cpu_timeout"
                                           : "was not over within its total_timeout",
                     milliseconds(limit),
                     context.worker_pid ? worker(context) + " was killed" : "its result is thrown away");
}

}  // namespace

TaskTimeoutError::TaskTimeoutError(Which which, std::chrono::nanoseconds limit, ErrorContext context,
                                   const std::string& reason)
    : ExecutorError(Errc::timeout, describe_timeout(which, limit, context, reason), context),
      which_(which),
      limit_(limit) {}
TaskTimeoutError::~TaskTimeoutError() = default;

TaskCancelledError::TaskCancelledError(Stage stage, ErrorContext context, const std::string& reason)
    : ExecutorError(
          boost::system::error_code(asio::error::operation_aborted),
          with_reason(fmt::format("{} was cancelled {}", subject(context),
                                  stage == Stage::waiting  ? "while it waited for admission; it never ran"
                                  : stage == Stage::queued ? "before it began; it never ran"
                                  : stage == Stage::retrying
                                      ? "before its next run began"
                                      : fmt::format("while it ran{}; it may have had effects", in_worker(context))),
                      reason),
          context),
      stage_(stage),
      reason_(share(reason)),
      failed_runs_(std::make_shared<const std::vector<RetryError::Attempt>>()) {}
TaskCancelledError::TaskCancelledError(const TaskCancelledError& last, std::vector<RetryError::Attempt> failed_runs)
    : ExecutorError(boost::system::error_code(asio::error::operation_aborted),
                    with_reason(fmt::format("{} was cancelled {}", subject(last.context()),
                                            last.stage() == Stage::running
                                                ? fmt::format("while it ran{}; it may have had effects",
                                                              in_worker(last.context()))
                                                : "before its next run began"),
                                *last.reason_) +
                        "; before that it failed:" + describe(failed_runs),
                    last.context()),
      stage_(last.stage() == Stage::running ? Stage::running : Stage::retrying),
      reason_(last.reason_),
      failed_runs_(std::make_shared<const std::vector<RetryError::Attempt>>(std::move(failed_runs))) {}
TaskCancelledError::~TaskCancelledError() = default;

RetryError::RetryError(std::vector<Attempt> attempts, ErrorContext context)
    : ExecutorError(Errc::retries_failed,
                    fmt::format("{} ran {} times, and is not run again:{}", subject(context),
                                std::count_if(attempts.begin(), attempts.end(), [](const auto& a) { return a.begun; }),
                                describe(attempts)),
                    context),
      attempts_(std::make_shared<const std::vector<Attempt>>(std::move(attempts))) {}
RetryError::~RetryError() = default;

TaskQuarantinedError::TaskQuarantinedError(std::string key, unsigned crashes, std::chrono::nanoseconds remaining,
                                           ErrorContext context)
    : ExecutorError(Errc::quarantined,
                    fmt::format("{} was refused: '{}' has crashed {} workers in a row, and is let in again in {}",
                                subject(context), key, crashes, milliseconds(remaining)),
                    context),
      key_(share(std::move(key))),
      crashes_(crashes),
      remaining_(remaining) {}
TaskQuarantinedError::~TaskQuarantinedError() = default;

WorkerStuckError::WorkerStuckError(std::vector<int> pids, ErrorContext context)
    : ExecutorError(Errc::worker_stuck,
                    fmt::format("executor '{}' is shut down, but for worker processes that were killed and do not die: "
                                "{}; they hang inside the kernel (frozen cgroup, device that does not answer)",
                                context.executor, fmt::join(pids, ", ")),
                    context),
      pids_(std::make_shared<const std::vector<int>>(std::move(pids))) {}
WorkerStuckError::~WorkerStuckError() = default;

MaxInstancesError::MaxInstancesError(std::string key, unsigned limit, ErrorContext context)
    : ExecutorError(
          Errc::max_instances,
          fmt::format("{} was refused: {} of '{}' are in executors, which is their max_instances; submit it when "
                      "one of them is over, or let it wait (OverloadPolicy::wait)",
                      subject(context), limit, key),
          context),
      key_(share(std::move(key))),
      limit_(limit) {}
MaxInstancesError::~MaxInstancesError() = default;

UnknownTaskError::UnknownTaskError(const std::string& name, std::vector<std::string> known, ErrorContext context)
    : ExecutorError(Errc::unknown_task,
                    fmt::format("there is no task '{}'{}; known tasks: {}. Add it with TaskRegistry::add", name,
                                context.executor.empty() ? "" : " for executor '" + context.executor + "'",
                                known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))),
                    context),
      known_(std::make_shared<const std::vector<std::string>>(std::move(known))) {}
UnknownTaskError::~UnknownTaskError() = default;

DuplicateTaskError::DuplicateTaskError(const std::string& name)
    : ExecutorError(Errc::duplicate_task,
                    fmt::format("a task '{}' is registered already: give it another name, or remove the first", name)) {
}
DuplicateTaskError::DuplicateTaskError(const TaskId& id, ErrorContext context)
    : ExecutorError(Errc::duplicate_task,
                    fmt::format("executor '{}' knows a task of the id {} already: give each its own, or remove the "
                                "first from the ResultStore when it is over",
                                context.executor, id.to_string()),
                    context) {}
DuplicateTaskError::~DuplicateTaskError() = default;

TaskSignatureError::TaskSignatureError(const std::string& message, ErrorContext context)
    : ExecutorError(Errc::signature_mismatch, message, std::move(context)) {}
TaskSignatureError::~TaskSignatureError() = default;

ResultNotFoundError::ResultNotFoundError(const std::string& id, ErrorContext context)
    : ExecutorError(Errc::result_not_found,
                    fmt::format("executor '{}' has no result of task {}: it was not spawned here, or its result has "
                                "expired or was dropped (ResultStoreOptions)",
                                context.executor, id),
                    context) {}
ResultNotFoundError::~ResultNotFoundError() = default;

TaskAbandonedError::TaskAbandonedError(ErrorContext context)
    : ExecutorError(
          Errc::abandoned,
          fmt::format("{} was dropped without an outcome: its io_context was destroyed before it was over, or "
                      "its executor has a defect",
                      subject(context)),
          context) {}
TaskAbandonedError::~TaskAbandonedError() = default;

RemoteTaskError::RemoteTaskError(ExceptionDescription thrown, std::vector<ExceptionDescription> causes,
                                 ErrorContext context)
    : ExecutorError(Errc::remote_exception, "", {}) {
  auto chain = chain_of(std::move(thrown), std::move(causes));
  const std::string message =
      fmt::format("{} threw {}{}; BULKHEAD_REGISTER_EXCEPTION makes a type of exception arrive as itself",
                  subject(context), describe(chain), in_worker(context));
  static_cast<ExecutorError&>(*this) = ExecutorError(Errc::remote_exception, message, std::move(context));
  chain_ = std::make_shared<const std::vector<ExceptionDescription>>(std::move(chain));
}
RemoteTaskError::~RemoteTaskError() = default;

SerializationError::SerializationError(Part part, std::string type, const std::string& reason, ErrorContext context)
    : ExecutorError(
          Errc::serialization,
          fmt::format(
              "{}{} could not be carried{}: {}", part_name(part), type.empty() ? "" : fmt::format(" of type {}", type),
              context.task.empty() && context.executor.empty() ? "" : " for " + subject(context) + in_worker(context),
              reason),
          context),
      part_(part),
      type_(share(std::move(type))),
      reason_(share(reason)) {}
SerializationError::~SerializationError() = default;

FunctionUnavailableError::FunctionUnavailableError(const std::string& reason, ErrorContext context, Cause cause)
    : ExecutorError(Errc::function_unavailable, fmt::format("{} cannot run: {}", subject(context), reason), context),
      cause_(cause),
      reason_(share(reason)) {}
FunctionUnavailableError::~FunctionUnavailableError() = default;

ProtocolError::ProtocolError(const std::string& violation, ErrorContext context)
    : ExecutorError(Errc::protocol,
                    fmt::format("{} wrote something impossible while it held {}, and was killed: {}; its memory was "
                                "damaged, or somebody had taken it over",
                                worker(context), subject(context), violation),
                    context),
      violation_(share(violation)) {}
ProtocolError::~ProtocolError() = default;

PolicyViolationError::PolicyViolationError(const std::string& system_call, ErrorContext context, std::size_t item)
    : ExecutorError(Errc::policy_violation,
                    fmt::format("{} was ended by its sandbox while it held {}: it called {}, which the policy forbids; "
                                "if the task needs that, name it in SandboxPolicy::also_allowed",
                                worker(context), subject(context),
                                system_call.empty() ? std::string("a system call that is not known") : system_call),
                    context),
      system_call_(share(system_call)),
      item_(item) {}
PolicyViolationError::~PolicyViolationError() = default;

RegistryConflictError::RegistryConflictError(const std::string& name, const std::string& existing,
                                             const std::string& requested)
    : ExecutorError(Errc::registry_conflict,
                    fmt::format("the executor name '{}' is taken by {}, but {} was asked for; use another name, or "
                                "remove('{}') first",
                                name, existing, requested, name),
                    ErrorContext{.task = {}, .task_id = 0, .executor = name, .worker_pid = {}}),
      existing_(share(existing)),
      requested_(share(requested)) {}
RegistryConflictError::~RegistryConflictError() = default;

UnknownExecutorTypeError::UnknownExecutorTypeError(const std::string& type, std::vector<std::string> known,
                                                   const std::string& executor)
    : ExecutorError(
          Errc::unknown_executor_type,
          fmt::format("{}there is no executor type '{}'; known types: {}. Add it with register_factory",
                      executor.empty() ? "" : fmt::format("executor '{}': ", executor), type, fmt::join(known, ", ")),
          ErrorContext{.task = {}, .task_id = 0, .executor = executor, .worker_pid = {}}),
      known_(std::make_shared<const std::vector<std::string>>(std::move(known))) {}
UnknownExecutorTypeError::~UnknownExecutorTypeError() = default;

}  // namespace bulkhead
