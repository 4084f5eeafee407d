// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "background.hpp"
#include "descriptor_watch.hpp"
#include "dispatcher.hpp"
#include "process/channel.hpp"
#include "process/fork_server.hpp"
#include "process/posix.hpp"
#include "process/protocol.hpp"
#include "run_limits.hpp"
#include "shared_buffers.hpp"
#include "wait_list.hpp"
#include "worker_output.hpp"

#include <bulkhead/base_executor.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/local_executor.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/steady_timer.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <memory_resource>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace bulkhead::detail {

/// Performs what the dispatcher decides: tasks go into workers' rings, answers come out, workers are started and
/// buried.
///
/// Two kinds of threads come here. The program's, in `execute` (encoding arguments) and `drain` (decoding answers and
/// calling handlers); and the background thread, which sees to the birth and death of processes and to time limits, and
/// never runs user code. The core's mutex guards everything.
///
/// The path of a task: execute → (enqueue → pump, if it must wait) → place (encode into the ring) → publish → [worker]
/// → collect → take_answer → finish.
class WorkerPool : public std::enable_shared_from_this<WorkerPool> {
 public:
  struct Settings {
    unsigned max_workers = 1;
    std::optional<unsigned> min_workers;
    unsigned spare_workers = 0;
    std::chrono::nanoseconds idle_timeout{0};
    std::uint64_t max_tasks_per_worker = 0;
    std::uint64_t max_worker_memory = 0;
    std::uint64_t memory_limit = 0;
    std::chrono::nanoseconds cancel_grace{0};
    CaptureOutput capture_output = CaptureOutput::inherit;
    unsigned spinning_workers = 0;
    std::uint32_t spin_pauses = 0;
    std::uint32_t host_rounds = 0;
    std::size_t max_message_size = 0;
    std::size_t kept_message_memory = 0;
    std::chrono::nanoseconds start_timeout{0};
    std::shared_ptr<process::SharedArea> shared;  // null: there is none
    std::vector<std::byte> preload;
    std::vector<std::byte> initializer;
    std::vector<std::byte> sandbox;
  };

  WorkerPool(std::shared_ptr<ExecutorCore> core, Settings settings, Background& background);
  ~WorkerPool();

  /// Makes the template and has the workers started.
  void open();
  /// Takes a task over. With the mutex, which is given back.
  void execute(TaskNode* node, ExecutorCore::Lock& lock);
  /// The same for a task without limits, with the mutex: false if that takes more than to write it into a ring.
  bool execute_at_once(TaskNode& node);
  // With the mutex: no task is left, so the event loop may end.
  void nothing_left();
  /// With the mutex: whether a worker has taken the task up.
  bool has_begun(const TaskNode& node) const;
  std::optional<Progress> progress_of(const TaskNode& node) const;
  /// With the mutex: cancels a task in flight, as far as its stage and the type allow.
  void cancel(TaskNode& node, asio::cancellation_type type);
  /// Cancels what has not begun.
  void cancel_pending(const std::string& reason);
  /// Kills what runs, and cancels what does not; their tasks fail with TaskCancelledError.
  void kill_all(const std::string& reason);
  /// The same once the time is over, if tasks are left then.
  void kill_all_after(std::chrono::nanoseconds timeout, const std::string& reason);
  /// Lets the workers go when there is nothing left to do.
  void dismiss_when_idle();
  /// Completes when all workers are gone.
  void wait_gone(asio::any_completion_handler<void(std::exception_ptr, bool)> handler);
  /// Ends everything at once; nothing refers to the executor or to Asio afterwards.
  void close();
  /// The Asio context is being destroyed.
  void context_gone();

  /// Whether this process is a fork of the one that made the pool: then it is not its own to use.
  bool is_forked_copy() const noexcept { return made_here_.is_forked_copy(); }

  /// With the mutex.
  void add_metrics(Metrics& metrics) const;
  std::vector<int> worker_pids() const;

 private:
  // Holds the pool while the mutex is free in the midst of something: its executor may be destroyed then.
  using Keep = std::shared_ptr<WorkerPool>;

  using Lock = ExecutorCore::Lock;
  using Handler = asio::any_completion_handler<void(std::exception_ptr, bool)>;

  // Why a worker was killed by us.
  enum class Killed { no, cancelled, timed_out, protocol, shut_down, start_timeout, leave_timeout, discarded, stopped };

  // One request in a ring.
  struct Entry {
    TaskNode* node = nullptr;  // null: taken back, or its answer is being decoded
    std::size_t block_offset = 0;
    std::size_t block_size = 0;
    // What was passed to the worker, which may touch it until it has answered or is gone.
    std::vector<SharedBuffer> buffers;
    bool filled = false;    // may be published
    bool revoked = false;   // we have tried to take it back
    bool answered = false;  // its answer is read, or there is none

    void reset() {
      node = nullptr;
      if (block_size != 0) block_size = 0;
      if (!buffers.empty()) buffers.clear();
      filled = revoked = answered = false;
    }
  };

  struct Verdict {
    std::exception_ptr error;
    Outcome outcome;
  };

  struct Worker {
    Worker(unsigned number, std::uint64_t generation_, process::ArenaLayout layout)
        : index(number), generation(generation_), channel(layout) {}

    const unsigned index;
    std::uint64_t started_ns = 0;
    const std::uint64_t generation;  // unique among all workers that the executor ever has
    process::HostChannel channel;
    std::array<Entry, process::kSlots> ring;
    std::uint32_t reserved = 0;   // end of the entries in use
    std::uint32_t collected = 0;  // end of the entries whose answer has been seen
    std::uint32_t readable = 0;   // end of the answers that were there at `looked_ns`
    std::uint64_t looked_ns = 0;
    std::uint64_t next_look = 0;  // the round in which to look again
    bool untrusted = false;       // it has written something impossible
    process::FileDescriptor pidfd;
    std::shared_ptr<WorkerOutput> output;  // null: thrown away
    std::unique_ptr<DescriptorWatch> death;
    std::unique_ptr<asio::steady_timer> status_timer;
    std::unique_ptr<asio::steady_timer> limit_timer;  // of its start, its leaving, or its dying
    int pid = -1;
    bool buried = false;
    bool dying = false;
    bool orphaned = false;  // its template is gone, so nobody can tell how it ends
    bool told_to_stop = false;
    unsigned unpublished = 0;             // filled entries that wait to be shown to it
    std::map<TaskNode*, Verdict> doomed;  // tasks in its ring for which it was killed
    std::unique_ptr<asio::steady_timer> tell_timer;
    bool stuck = false;  // was killed, and does not die
    Killed killed = Killed::no;
    std::size_t held_places = 0;  // of `max_pending`: its killed task's, until it is really gone
    std::uint32_t unbegun = 0;    // the request that it was last seen not to have taken up, and since when
    std::uint64_t unbegun_since = 0;
    std::string reason;
    std::optional<process::ExitStatus> status;

    Entry& entry(std::uint32_t sequence) { return ring[sequence % process::kSlots]; }
  };
  using WorkerPtr = std::shared_ptr<Worker>;

  // Whether a worker has taken the request up, or must be taken to have: one that shares its worker with no other
  // compartment is given to one that was ready, and had nothing else to do.
  bool taken_up(const Worker& worker, std::uint32_t sequence) const {
    if (worker.channel.begun(sequence)) return true;
    const TaskNode* const node = worker.ring[sequence % process::kSlots].node;
    return node != nullptr && node->compartment != kSharedCompartment && sequence == worker.collected &&
           static_cast<std::int32_t>(sequence - worker.channel.published()) < 0;
  }

  static Dispatcher::Time time_of(std::uint64_t now) { return Dispatcher::Time(static_cast<std::int64_t>(now)); }
  static Dispatcher::Time time_now() { return time_of(ExecutorCore::now()); }

  // The program's threads.
  void enqueue(TaskNode& node);
  void pump(Lock& lock, Keep& keep);
  Worker* worker_with_room(Compartment compartment);
  void assign_compartment(TaskNode& node);
  void notice_ready_workers();
  bool place(TaskNode& node, Worker& worker, Lock& lock, Keep& keep);
  bool encode_at_once(TaskNode& node, Worker& worker);
  bool encode_short_call(TaskNode& node, Worker& worker, std::uint32_t sequence);
  bool is_short_call(const TaskNode& node) const;
  bool has_room(const Worker& worker) const;
  bool place_at_once(TaskNode& node, Worker& worker);
  void place_next_at_once();
  void expect_answers();
  bool encode_unlocked(TaskNode& node, Worker& worker, Lock& lock, Keep& keep);
  void note_in_ring(TaskNode& node, Worker& worker);
  void show(Worker& worker, std::uint32_t sequence, bool revoked = false);
  void grow(TaskNode& node, WorkerPtr worker, std::size_t offset, std::size_t size);
  void publish(Worker& worker);
  void publish_all();
  void publish_filled(Worker& worker);
  void drain(Lock& lock);
  void collect();
  void collect_from(Worker& worker);
  void collect_all(Worker& worker);
  bool has_answers(Worker& worker);
  bool deliver_next(Lock& lock);
  bool may_deliver_at_once();
  bool is_plain_answer(const Worker& worker, const Entry& entry, const process::Response& response) const;
  Worker* next_to_read();
  void read_answer(Worker& worker);
  void take_next_answer(Worker& worker, const process::Response& response);
  TaskNode* take_answer(Worker& worker, std::uint32_t sequence, const process::Response& response, std::uint64_t now);
  void push_ready(TaskNode& node);
  void consume(Worker& worker);
  void finish(TaskNode* node, Lock& lock);
  void decode(TaskNode& node) const;
  auto posted_drain();
  void schedule_drain();
  void watch_drain();
  void look_at_drain_later(std::shared_ptr<asio::steady_timer> timer, std::uint64_t seen);
  void look_at_drain(std::shared_ptr<asio::steady_timer> timer, std::uint64_t seen);
  void wait_for_answers();
  void clear_doorbells();
  void watch_backlog();
  TaskNode* clear(Entry& entry);
  void free_entry(Worker& worker, Entry& entry);
  bool take_back(Worker& worker, std::uint32_t sequence);
  bool take_back_behind(Worker& worker, std::uint32_t sequence);
  void take_all_back(Worker& worker);
  void count_denial(Worker& worker, TaskNode& node);
  bool overtake(const TaskNode& node);
  void relieve();
  void queue_again(TaskNode& node);
  void decide(TaskNode& node, std::exception_ptr error, Outcome outcome);
  void watch_progress();
  void pass_progress(Worker& worker, TaskNode& node);
  void ask_maintenance();
  void ask_for_workers();
  std::exception_ptr cancelled_error(const TaskNode& node, TaskCancelledError::Stage stage,
                                     const std::string& reason) const;

  // The background thread.
  process::ArenaLayout layout() const;
  void start_template(Lock& lock);
  void watch_template();
  void read_template();
  void template_gone(const std::string& reason = {});
  void end_template();
  void tell_template(process::RecordType type, std::uint64_t generation);
  void limit_start(Worker& worker);
  void expect_answer();
  void await_answer();
  void maintain();
  void start_worker(unsigned index, Lock& lock);
  void start_failed(const std::string& reason);
  void worker_spawned(Worker& worker, process::FileDescriptor pidfd);
  void worker_died(const WorkerPtr& worker);
  void bury(const WorkerPtr& worker);
  void judge(Worker& worker, TaskNode& node, bool begun, bool other_begun);
  template <class MakeError>
  void report_crash(TaskNode& node, MakeError make_error);
  void fail_queue_if_hopeless();
  void dismiss_idle_workers();
  std::uint64_t task_limit(std::uint64_t generation) const;
  process::FileDescriptor open_output(Worker& worker);
  void stop_worker(Worker& worker);
  void assign_spinners();
  void hold_place(TaskNode& node);
  void give_back_places(Worker& worker);

  // Any thread.
  void kill(Worker& worker, Killed why, std::string reason);
  void violated(Worker& worker, const std::string& what);
  void end_run(TaskNode& node, Killed why, std::string reason, std::exception_ptr error, Outcome outcome);
  void tell_doomed(Worker& worker);
  RunLimits limits_of(const TaskNode& node) const;
  RunState state_of(TaskNode& node, std::uint64_t now);
  void watch_limits(TaskNode& node);
  void limit_passed(TaskNode& node, LimitPassed passed, std::uint64_t now);
  void arm_deadline(TaskNode& node, std::uint64_t deadline);
  void disarm_deadline(TaskNode& node);
  void deadlines_passed();
  void watch_heads();
  void watch_shared_memory();
  void look_at_head(Worker& worker, std::uint64_t now);
  void stop_workers();
  void all_gone_if_so();
  Worker* find_worker(std::uint64_t generation);

  template <class F>
  auto in_background(F function);

  const std::shared_ptr<ExecutorCore> core_;
  const Settings settings_;
  asio::io_context& background_;
  asio::io_context& slow_;
  const unsigned cpus_ = process::usable_cpus();

  // Guarded by core_->mutex, all below.
  Dispatcher dispatcher_;
  std::map<std::string, Compartment> keyed_compartments_;
  Compartment last_compartment_ = kFirstOwnCompartment;
  std::vector<WorkerPtr> workers_;
  IntrusiveList<TaskNode, QueuedTask> ready_;  // tasks with an answer or a decided outcome
  std::size_t ready_count_ = 0;
  unsigned reading_ = 0;                           // whose answers are delivered straight from its ring
  std::size_t turn_ = 0;                           // place among the busy ones of the next to be looked at
  std::uint64_t round_ = 0;                        // of `drain`
  std::size_t unmapping_ = 0;                      // dead workers whose memory is being given back
  IntrusiveList<TaskNode, QueuedTask> reporting_;  // whose crash is being described
  std::size_t reporting_count_ = 0;
  IntrusiveList<TaskNode, QueuedTask> growing_;  // which wait for memory to write their arguments into
  std::size_t in_rings_ = 0;                     // requests without an answer
  bool drain_posted_ = false;
  bool drain_watched_ = false;
  bool may_defer_;  // what is deferred lies in a thread's own queue, and what is posted does not
  // Written under the mutex, read by the background thread without it.
  std::atomic<std::uint64_t> last_drain_{0};  // number of the latest that was posted
  std::atomic<bool> drain_deferred_{false};   // and it may lie behind a handler
  bool waiting_ = false;                      // for a doorbell
  bool watching_backlog_ = false;
  bool watching_heads_ = false;
  bool watching_progress_ = false;
  bool maintenance_asked_ = false;
  bool start_pending_ = false;    // the timer for the next start is set
  std::size_t observed_ = 0;      // tasks in rings whose progress somebody wants
  std::size_t freed_places_ = 0;  // of `max_pending`, to be given back
  unsigned fruitless_rounds_ = 0;
  process::AdaptiveSpin looking_;
  bool slept_ = false;  // since the last answer
  bool closed_ = false;
  bool forsaken_ = false;  // the fork server is gone: no worker ever again
  bool stopping_ = false;
  process::MadeHere made_here_;
  std::uint64_t last_generation_ = 0;
  std::uint64_t workers_started_ = 0;
  std::uint64_t workers_crashed_ = 0;
  std::uint64_t workers_recycled_ = 0;
  std::string last_start_error_;
  process::FileDescriptor doorbells_;  // an epoll of all workers' doorbells
  std::unique_ptr<DescriptorWatch> doorbell_wait_;
  std::unique_ptr<asio::steady_timer> backlog_timer_;
  std::shared_ptr<asio::steady_timer> drain_timer_;
  process::FileDescriptor template_socket_;
  std::unique_ptr<DescriptorWatch> template_wait_;
  process::FileDescriptor template_pidfd_;
  std::unique_ptr<asio::steady_timer> start_timer_;
  bool template_ready_ = false;
  std::chrono::steady_clock::time_point template_started_at_;
  std::unique_ptr<asio::steady_timer> answer_timer_;
  std::unique_ptr<asio::steady_timer> stop_timer_;
  std::unique_ptr<asio::steady_timer> dismissal_timer_;
  std::unique_ptr<asio::steady_timer> head_timer_;
  std::unique_ptr<asio::steady_timer> progress_timer_;
  std::unique_ptr<asio::steady_timer> deadline_timer_;
  std::unique_ptr<asio::steady_timer> shared_timer_;
  std::pmr::unsynchronized_pool_resource deadlines_memory_;
  std::pmr::set<std::pair<std::uint64_t, TaskNode*>> deadlines_{&deadlines_memory_};
  std::uint64_t deadline_timer_set_for_ = 0;  // 0: not set
  std::shared_ptr<WaitList> gone_;
  std::string shutdown_reason_;
};

// A timer that is so late tells that the whole program was stopped, and with it, perhaps, those whom the timer watches:
// they get their time anew. A busy machine delays the background thread by milliseconds.
inline bool fired_late(const asio::steady_timer& timer) {
  return std::chrono::steady_clock::now() - timer.expiry() > std::chrono::seconds(1);
}

// A function for the background thread: it holds the pool weakly, gets the lock, and is skipped once the pool is
// closed.
template <class F>
auto WorkerPool::in_background(F function) {
  return [weak = weak_from_this(), function = std::move(function)](auto&&... arguments) {
    const auto self = weak.lock();
    if (!self) return;
    Lock lock(self->core_->mutex);
    if (!self->closed_) function(*self, lock, arguments...);
  };
}

/// What workers and templates call; see process::WorkerHooks.
extern const process::WorkerHooks kWorkerHooks;

}  // namespace bulkhead::detail
