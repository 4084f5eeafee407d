// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/intrusive_list.hpp>
#include <bulkhead/detail/queued_task.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/progress.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>

#include <time.h>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace bulkhead {
class Encoder;
class Decoder;
}  // namespace bulkhead

namespace bulkhead::detail {

class ExecutorCore;
class ProgressRelay;
class TaskRecord;

enum class Outcome : std::uint8_t { completed, failed, cancelled, timed_out };

// From where a result is handed to the caller.
enum class Delivery : std::uint8_t {
  on_io_executor,  // a handler that runs on the executor's own Asio executor
  elsewhere,       // any thread
  initiating       // inside the initiating function, where no handler may be called
};

// What fits beside a request's head, in the same cache line.
inline constexpr std::size_t kShortCall = 24;
// The same for an answer.
inline constexpr std::size_t kShortAnswer = 24;

// Makes a task's default name. Not yet the name: finding a function's may mean reading the program's symbols.
struct NameSource {
  std::string (*make)(const void* code) = nullptr;
  const void* code = nullptr;
};

// A coroutine that runs as a task, as its executor sees it. Destroyed without `done` if its event loop is.
class CoroutineRun {
 public:
  virtual ~CoroutineRun() = default;
  // It has ended, and its result or error is in the node.
  virtual void done(Outcome outcome) = 0;
};

struct OpenLink : ListLink {};       // among the tasks of an executor that have no outcome
struct AdmissionLink : ListLink {};  // among those that wait for admission, or were admitted and are to be started

// One task, type-erased: callable, arguments, options, outcome, and who waits. Guarded by its executor's mutex, except
// while one party owns it: an executor that runs, encodes or decodes it.
class TaskNode : public OpenLink, public AdmissionLink, public QueuedTask {
 public:
  TaskNode(ExecutorCore& executor, TaskOptions&& task_options) : core(&executor), options(std::move(task_options)) {}
  TaskNode(const TaskNode&) = delete;
  TaskNode& operator=(const TaskNode&) = delete;

  // Runs the call here and keeps its result or, in `error`, what it threw.
  virtual Outcome run() noexcept = 0;
  // Whether the call gives a coroutine, which an event loop has to run.
  virtual bool is_coroutine() const noexcept { return false; }
  // Starts the coroutine on this Asio executor.
  virtual void start_coroutine(const asio::any_io_executor& on, asio::cancellation_slot slot,
                               std::unique_ptr<CoroutineRun> run) = 0;
  // Writes the call for `run_encoded`. Throws SerializationError or FunctionUnavailableError.
  virtual void encode(Encoder& encoder) = 0;
  // The same for who has looked at `short_call`.
  virtual void encode_short(std::span<std::byte, kShortCall> to) { static_cast<void>(to); }
  // How many bytes the encoding of the last call of this type took, if they were too many for a slot: so many are got
  // ready for the next, which then is encoded once. 0: it was none. Null: nobody remembers.
  virtual std::atomic<std::size_t>* large_size() noexcept { return nullptr; }
  // Reads what the call returned.
  virtual void decode_result(Decoder& decoder) = 0;
  // Hands the outcome over and destroys the node. Its caller keeps the core.
  virtual void deliver(Delivery from) = 0;
  // Hands over the value that lies there, on the executor's own Asio executor, and destroys the node. For who has
  // looked at `plain_answer`.
  virtual void deliver_value(const std::byte* value) { static_cast<void>(value); }
  // Posts the outcome, and keeps the node to be destroyed: this may be done with the mutex. False: not this one.
  virtual bool post_outcome() = 0;
  // Has `on_progress` called with this, unless a later one or the outcome overtakes it.
  virtual void deliver_progress(Progress&& progress) = 0;
  // A run of it has begun; for who has set `wants_started`. With the executor's mutex.
  virtual void note_started() noexcept {}
  // Whether the call can be run again.
  virtual bool repeatable() const noexcept = 0;
  // Hands `cause` over and keeps the node, which goes on without anybody waiting.
  virtual void deliver_early(std::exception_ptr cause, Delivery from) = 0;
  // Gives the handler away, which is not to be called any more: it is destroyed without the mutex.
  virtual std::shared_ptr<void> take_handler() = 0;
  // Destroys the node without an outcome.
  virtual void destroy() noexcept = 0;
  // The default name: the function's, or the callable's type.
  virtual NameSource name_source() const noexcept = 0;

  unsigned attempt() const noexcept {
    return earlier_runs + (failed_runs ? static_cast<unsigned>(failed_runs->size()) : 0) + 1;
  }
  // When its `queue_timeout` passes; 0: it has none.
  std::uint64_t must_begin_ns() const noexcept {
    const auto limit = options.queue_timeout();
    if (!limit) return 0;
    return (waits_since_ns != 0 ? waits_since_ns : submitted_ns) + static_cast<std::uint64_t>(limit->count());
  }
  // Whether it may be too late to begin a run of it.
  bool may_begin_too_late() const noexcept { return options.queue_timeout().has_value() || must_end_ns != 0; }
  // Whether a run leaves the call as it was, for another.
  bool may_run_again() const noexcept { return options.has_rare() && options.retry() != nullptr && repeatable(); }
  std::string name() const {
    if (!options.name().empty()) return options.name();
    const NameSource source = name_source();
    return source.make(source.code);
  }

  // In this order since what lies together is zeroed together: what bounds tiny tasks is how much they write.

  // Lives as long as the node does once that is submitted.
  ExecutorCore* core;
  TaskOptions options;
  std::exception_ptr error;
  // The time limit that has passed, while the run goes on that is to be followed by another.
  std::exception_ptr verdict;
  // Where its progress goes, if somebody wants it.
  std::shared_ptr<ProgressRelay> progress_relay;
  // Goes with the node, when the task is over for good, and not before as its outcome may.
  std::shared_ptr<void> held;
  // What the handle of a spawned task sees of it.
  std::shared_ptr<TaskRecord> record;
  // The runs that failed before this one, if the task is retried.
  std::unique_ptr<std::vector<RetryError::Attempt>> failed_runs;
  std::uint64_t id = 0;
  std::uint64_t submitted_ns = 0;
  std::uint64_t waits_since_ns = 0;  // if it has waited elsewhere before; 0: it has not
  std::uint64_t must_end_ns = 0;     // 0: at no certain time
  std::uint64_t began_ns = 0;        // 0: not begun
  std::uint64_t ended_ns = 0;
  // When the next run is due; 0: it does not wait for one.
  std::uint64_t retry_at_ns = 0;
  // The number of its wait for one of `max_instances`; 0: it does not wait for that.
  std::uint64_t instance_wait = 0;
  // Where CPU time is limited: the CPU clock of the thread that runs it, and what it read at the beginning; of a worker
  // process only the reading, when it was first seen to run.
  std::uint64_t cpu_began_ns = 0;
  clockid_t cpu_clock = 0;  // 0, which is the clock of no thread: none
  // What the running task may look at, where it runs in this process.
  std::atomic<std::uint32_t> stop_requested{0};
  // Runs that another executor knows of.
  unsigned earlier_runs = 0;
  Outcome outcome = Outcome::completed;
  bool waiting = false;         // for admission
  bool waited_in_vain = false;  // for admission, until a time limit of its own had passed
  bool admitted = false;        // holds one of `max_pending` slots
  bool settled = false;         // has its outcome; nobody waits any more
  bool last_run = false;        // its caller has asked for its end: it is not run again
  bool runs_here = false;       // is counted in the core's `running`
  bool holds_instance = false;  // is one of `max_instances`
  bool told_started = false;    // this run's beginning has been told
  bool cancel_asked = false;    // before it was submitted
  bool wants_started = false;   // `note_started` is to be called
  bool asks_here = false;       // its retry policy's predicate may be called by this thread
  bool cancellable = false;     // is in the executor's table of tasks with a connected cancellation slot
  bool waits_for_room = false;  // for admission, whatever the executor's policy is
  // Whether `renew` can make it what it was when it was made: it went the way of a short call, and no other.
  bool renewable = false;
  bool altered = false;  // so it never will be
  // Whether encoding the call, or decoding its result, runs library code only, and is quick: it may be done under the
  // mutex.
  bool library_encoding = false;
  bool library_decoding = false;
  // Bytes that `encode_short` writes; 0: it does not.
  std::uint8_t short_call = 0;
  // Bytes of an answer whose value is as it lies in memory; 0: it is to be decoded.
  std::uint8_t plain_answer = 0;

  // Where a task of a worker pool is.
  enum class Stage : std::uint8_t {
    none,      // not in a pool, or in no place of it
    queued,    // in the dispatcher's queue
    encoding,  // its arguments are being written into a ring
    in_ring,   // in a worker's ring, taken up or not
    answered   // among the tasks whose outcome is to be delivered
  };
  struct Place {
    // A large answer, still in the worker's area, and what keeps the area.
    std::shared_ptr<void> area;
    std::span<const std::byte> answer;
    // The shared buffers that were passed to it, of which it may give some back.
    std::shared_ptr<void> buffers;
    // How often a worker that was ready did not take it up, and since when.
    std::uint64_t denied_since_ns = 0;
    std::uint64_t denials = 0;
    std::uint64_t placed_ns = 0;
    // When the host first saw that it had begun; 0: not yet.
    std::uint64_t seen_begun_ns = 0;
    std::uint64_t deadline = 0;
    // The generation of the worker that was killed for it, and may be there longer than it; 0: there is none.
    std::uint64_t outlived_by = 0;
    // When the worker is killed since its caller has cancelled the task; 0: it is not to be.
    std::uint64_t kill_at = 0;
    unsigned restarts = 0;
    // The version of the last progress that was passed on.
    std::uint32_t progress_version = 0;
    int worker_pid = 0;  // 0: not known
    unsigned worker = 0;
    std::uint32_t sequence = 0;
    Stage stage = Stage::none;
    bool cancel_requested = false;
    // Whether `error` and `outcome` hold; else the answer has still to be decoded.
    bool decided = false;
    // Its worker is for it alone.
    bool fresh = false;
    // Whether it had begun when its progress was looked at.
    bool looked_at = false;
    // A copy of a small answer, so that its slot is free at once. As large as a slot's payload.
    std::byte copy[216];
  } place;

 protected:
  ~TaskNode() = default;

  // A renewable node whose task is over becomes another's.
  void renew(ExecutorCore& executor, TaskOptions&& task_options) noexcept {
    core = &executor;
    options = std::move(task_options);
    id = 0;
    order = 0;
    priority = 0;
    admitted = false;
    renewable = false;
    place.worker = 0;
    place.sequence = 0;
    place.stage = Stage::none;
    assert(is_as_made());
  }

 private:
  BULKHEAD_EXPORT bool is_as_made() const noexcept;
};

// What the caller of a task gets that stopped since it was asked to.
BULKHEAD_EXPORT std::exception_ptr stopped_error(const TaskNode& node);

// A coroutine was given to an executor that has no event loop for it.
[[noreturn]] BULKHEAD_EXPORT void throw_needs_event_loop(const TaskNode& node);

// A function that is to give a coroutine gave none, as `return {};` does.
[[noreturn]] BULKHEAD_EXPORT void throw_empty_awaitable();

// Runs the call from its encoding, so that it is there for another run.
BULKHEAD_EXPORT Outcome run_encoded_copy(TaskNode& node) noexcept;

// How a coroutine ended that threw this, or nothing; the error is in the node.
BULKHEAD_EXPORT Outcome coroutine_outcome(TaskNode& node, std::exception_ptr thrown) noexcept;

}  // namespace bulkhead::detail
