// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/local_executor.hpp>

#include "background.hpp"
#include "bypass.hpp"
#include "process/fork_server.hpp"
#include "process/pause.hpp"
#include "process/posix.hpp"
#include "process/sandbox.hpp"
#include "process/shared_area.hpp"
#include "quarantine.hpp"
#include "shared_buffers.hpp"
#include "wait_list.hpp"
#include "worker_pool.hpp"

#include <boost/asio/async_result.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <stdexcept>

namespace bulkhead {
namespace {

// Far more than any machine has CPUs for; beyond it descriptors (two per worker) and ports run out first.
constexpr unsigned kMostWorkers = 1024;
// A spare is for a crash now and then; more than so many at once are no accident.
constexpr unsigned kMostSpareWorkers = 64;
constexpr std::size_t kSmallestMessageLimit = std::size_t{1} << 10;
constexpr std::size_t kLargestMessageLimit = std::size_t{16} << 30;

// Larger than memories are, and smaller by far than a process's address space.
constexpr std::size_t kMostSharedMemory = std::size_t{1} << 40;

// As long as it takes to be woken where that is slow, on a virtual machine whose other CPU has gone to sleep: who
// looks for less long while the other side is being woken goes to sleep itself, and then both do so each time.
constexpr auto kSpinTime = std::chrono::microseconds(50);

// Rounds of its event loop in which the host looks for answers before it sleeps: as long, at some 0.3 µs each. Other
// handlers get their turn between them.
constexpr std::uint32_t kHostRounds = 160;

LocalExecutorOptions checked(LocalExecutorOptions options) {
  if (options.max_workers > kMostWorkers) {
    throw std::invalid_argument(
        fmt::format("option 'max_workers' must be 0 (one per CPU) to {}, not {}", kMostWorkers, options.max_workers));
  }
  if (options.max_shared_memory > kMostSharedMemory) {
    throw std::invalid_argument(fmt::format("option 'max_shared_memory' must be 0 to {} bytes, not {}",
                                            kMostSharedMemory, options.max_shared_memory));
  }
  if (options.max_message_size < kSmallestMessageLimit || options.max_message_size > kLargestMessageLimit) {
    throw std::invalid_argument(fmt::format("option 'max_message_size' must be {} to {} bytes, not {}",
                                            kSmallestMessageLimit, kLargestMessageLimit, options.max_message_size));
  }
  if (options.spin != SpinPolicy::automatic && options.spin != SpinPolicy::never &&
      options.spin != SpinPolicy::always) {
    throw std::invalid_argument("option 'spin' must be SpinPolicy::automatic, never or always");
  }
  const auto require_positive = [](const char* option, std::chrono::nanoseconds value) {
    if (value <= std::chrono::nanoseconds::zero()) {
      throw std::invalid_argument(fmt::format("option '{}' must be more than zero, not {} ns", option, value.count()));
    }
  };
  require_positive("start_timeout", options.start_timeout);
  require_positive("idle_timeout", options.idle_timeout);
  require_positive("quarantine_time", options.quarantine_time);
  if (options.cancel_grace < std::chrono::nanoseconds::zero()) {
    throw std::invalid_argument(
        fmt::format("option 'cancel_grace' must not be negative, and is {} ns", options.cancel_grace.count()));
  }
  if (options.spare_workers > kMostSpareWorkers) {
    throw std::invalid_argument(
        fmt::format("option 'spare_workers' must be 0 to {}, not {}", kMostSpareWorkers, options.spare_workers));
  }
  if (options.capture_output != CaptureOutput::inherit && options.capture_output != CaptureOutput::capture &&
      options.capture_output != CaptureOutput::discard) {
    throw std::invalid_argument("option 'capture_output' must be CaptureOutput::inherit, capture or discard");
  }
  process::Sandbox::compiled(options.sandbox);
  if (options.sandbox.never_reuse_workers && options.max_shared_memory > 0) {
    throw std::invalid_argument(
        "option 'max_shared_memory' must be 0 where SandboxPolicy::never_reuse_workers is set: all workers of an "
        "executor can reach that memory");
  }
  if (options.max_workers == 0) options.max_workers = std::min(process::usable_cpus(), kMostWorkers);
  if (options.min_workers.value_or(0) > options.max_workers) {
    throw std::invalid_argument(fmt::format("option 'min_workers' must be 0 to max_workers = {}, not {}",
                                            options.max_workers, *options.min_workers));
  }
  options.bypass = options.bypass || detail::bypass_by_environment();
  return options;
}

CommonOptions common(const LocalExecutorOptions& options) {
  return {.name = options.name,
          .max_pending = options.max_pending,
          .overload = options.overload,
          .instances = options.instances,
          .tasks = options.tasks,
          .results = options.results};
}

// Workers of all pools of the process that may spin. One CPU is the host's, and nobody gets more than there are: of a
// quota only whole ones, since who spins on the rest has it used up for those that work.
std::atomic<unsigned> spinning_workers{0};

unsigned take_spinning_workers(unsigned wanted) {
  const auto whole = static_cast<unsigned>(process::cpu_share());
  const unsigned spare = whole > 0 ? whole - 1 : 0;
  unsigned taken = spinning_workers.load();
  unsigned granted;
  do {
    granted = taken < spare ? std::min(wanted, spare - taken) : 0;
  } while (!spinning_workers.compare_exchange_weak(taken, taken + granted));
  return granted;
}

// "For ever" as `nanoseconds::max()` could not be added to any time of the clock; a century can.
std::chrono::nanoseconds at_most_a_century(std::chrono::nanoseconds time) {
  return std::min<std::chrono::nanoseconds>(time, std::chrono::hours(24 * 365 * 100));
}

// Then there is nothing that anybody relies on.
bool asks_no_more_than_trusted(SandboxPolicy policy) {
  const SandboxPolicy trusted = SandboxPolicy::trusted();
  policy.profile = trusted.profile;
  policy.never_reuse_workers = trusted.never_reuse_workers;
  return policy == trusted;
}

detail::WorkerPool::Settings pool_settings(const LocalExecutorOptions& options) {
  detail::WorkerPool::Settings settings;
  settings.max_workers = options.max_workers;
  settings.max_message_size = options.max_message_size;
  settings.kept_message_memory = options.kept_message_memory;
  settings.min_workers = options.min_workers;
  settings.spare_workers = options.spare_workers;
  settings.idle_timeout = at_most_a_century(options.idle_timeout);
  settings.max_tasks_per_worker = options.max_tasks_per_worker;
  settings.max_worker_memory = options.max_worker_memory;
  settings.memory_limit = options.memory_limit;
  settings.cancel_grace = at_most_a_century(options.cancel_grace);
  settings.capture_output = options.capture_output;
  settings.start_timeout = at_most_a_century(options.start_timeout);
  settings.preload = options.preload.encoded();
  settings.initializer = options.initializer.encoded();
  settings.sandbox = process::Sandbox::compiled(options.sandbox);
  switch (options.spin) {
    case SpinPolicy::automatic:
      settings.spinning_workers = take_spinning_workers(options.max_workers);
      settings.spin_pauses = process::pauses_within(kSpinTime);
      if (settings.spinning_workers > 0) settings.host_rounds = kHostRounds;
      break;
    case SpinPolicy::never:
      break;
    case SpinPolicy::always:
      settings.spinning_workers = options.max_workers;
      settings.spin_pauses = process::pauses_within(10 * kSpinTime);
      settings.host_rounds = 10 * kHostRounds;
      break;
  }
  return settings;
}

}  // namespace

void start_fork_server() {
  try {
    if (!process::ForkServer::start().gone()) return;
  } catch (const std::exception& error) {
    throw WorkerStartError(error.what(), 1);
  }
  throw WorkerStartError("the fork server has ended; the program must be started anew", 1);
}

std::vector<std::byte> WorkerCall::encoded() const {
  if (!encode_) return {};
  Encoder counting{std::span<std::byte>()};
  encode_(counting);
  std::vector<std::byte> bytes(counting.size());
  Encoder encoder{std::span<std::byte>(bytes)};
  encode_(encoder);
  return bytes;
}

bool LocalExecutorOptions::operator==(const LocalExecutorOptions& other) const {
  return name == other.name && max_workers == other.max_workers && max_pending == other.max_pending &&
         overload == other.overload && bypass == other.bypass && spin == other.spin &&
         max_message_size == other.max_message_size && kept_message_memory == other.kept_message_memory &&
         max_shared_memory == other.max_shared_memory && min_workers == other.min_workers &&
         idle_timeout == other.idle_timeout && spare_workers == other.spare_workers &&
         max_tasks_per_worker == other.max_tasks_per_worker && max_worker_memory == other.max_worker_memory &&
         memory_limit == other.memory_limit && cancel_grace == other.cancel_grace &&
         quarantine_after == other.quarantine_after && quarantine_time == other.quarantine_time &&
         sandbox == other.sandbox && capture_output == other.capture_output && start_timeout == other.start_timeout &&
         instances == other.instances && tasks == other.tasks && results == other.results &&
         initializer.encoded() == other.initializer.encoded() && preload.encoded() == other.preload.encoded();
}

struct LocalExecutor::Engine {
  std::shared_ptr<detail::Background> background;  // outlives the pool's timers
  std::shared_ptr<detail::WorkerPool> pool;        // null in bypass mode
  std::shared_ptr<detail::Bypass> bypass;          // null otherwise
  std::shared_ptr<process::SharedArea> shared;     // null if there are no buffers
  unsigned spinning = 0;                           // of the process's spinning workers, ours
  std::mutex sandbox_mutex;
  std::optional<SandboxReport> sandbox;  // once it is known
  ~Engine() { spinning_workers -= spinning; }
};

LocalExecutor::LocalExecutor(asio::any_io_executor io_executor, LocalExecutorOptions options)
    : BaseExecutor(std::move(io_executor), common(options)),
      options_(checked(std::move(options))),
      engine_(std::make_unique<Engine>()) {
  core()->isolates = true;
  core()->always_isolates = true;
  core()->never_reuses_workers = options_.sandbox.never_reuse_workers;
  if (options_.quarantine_after > 0) {
    core()->quarantine =
        std::make_unique<detail::Quarantine>(options_.quarantine_after, at_most_a_century(options_.quarantine_time));
  }
  try {
    if (options_.max_shared_memory > 0) {
      engine_->shared = std::make_shared<process::SharedArea>(options_.max_shared_memory);
    }
  } catch (const std::system_error& error) {
    throw std::invalid_argument(fmt::format("option 'max_shared_memory' is {} bytes, which cannot be had: {}",
                                            options_.max_shared_memory, error.what()));
  }
  if (options_.bypass) {
    detail::Bypass::Settings settings;
    settings.shared = engine_->shared;
    settings.max_workers = options_.max_workers;
    settings.max_message_size = options_.max_message_size;
    settings.preload = options_.preload.encoded();
    settings.initializer = options_.initializer.encoded();
    engine_->bypass = std::make_shared<detail::Bypass>(core(), std::move(settings));
    return;
  }
  try {
    // Before the background thread: the fork server must be forked while there is one thread.
    process::ForkServer::start();
    engine_->background = detail::Background::get();
    auto settings = pool_settings(options_);
    settings.shared = engine_->shared;
    if (options_.spin == SpinPolicy::automatic) engine_->spinning = settings.spinning_workers;
    if (!asks_no_more_than_trusted(options_.sandbox)) {
      const auto outcomes = process::ForkServer::start().probe(settings.sandbox);
      engine_->sandbox = process::Sandbox::report(options_.sandbox, outcomes);
      settings.sandbox = process::Sandbox::as_tried(std::move(settings.sandbox), outcomes);
    }
    engine_->pool = std::make_shared<detail::WorkerPool>(core(), std::move(settings), *engine_->background);
    {
      const std::lock_guard lock(core()->mutex);
      core()->owner_holds_work = true;
      core()->owner_limits_runs = true;
      core()->on_context_gone = [weak = std::weak_ptr(engine_->pool)] {
        if (const auto pool = weak.lock()) pool->context_gone();
      };
    }
    engine_->pool->open();
  } catch (const ExecutorError&) {
    throw;
  } catch (const std::exception& error) {
    ErrorContext context;
    context.executor = name();
    throw WorkerStartError(error.what(), 1, std::move(context));
  }
}

LocalExecutor::~LocalExecutor() {
  close();
  if (engine_->pool && engine_->pool->is_forked_copy()) {
    // Workers, thread and event loop are the parent's; closing the copy of a descriptor would disturb them.
    static_cast<void>(engine_.release());
    return;
  }
  if (engine_->pool) engine_->pool->close();
  if (engine_->bypass) engine_->bypass->close();
}

namespace {

void require_own(const detail::WorkerPool& pool, const std::string& name) {
  if (!pool.is_forked_copy()) return;
  ErrorContext context;
  context.executor = name;
  throw ExecutorNotRunningError(context, "the executor belongs to the process that made it, and this is a fork of it");
}

}  // namespace

SharedBuffer LocalExecutor::make_buffer(std::size_t size) {
  if (engine_->pool) require_own(*engine_->pool, name());  // the memory is not mapped in a copy
  if (size > options_.max_shared_memory) {
    throw std::invalid_argument(fmt::format(
        "a buffer of {} bytes was asked for, and option 'max_shared_memory' of executor '{}' is {}: raise it", size,
        name(), options_.max_shared_memory));
  }
  if (!engine_->shared) return {};
  const auto block = process::whole_pages(size);
  const auto offset = engine_->shared->allocate(block);
  if (!offset) {
    ErrorContext context;
    context.executor = name();
    throw ExecutorOverloadError(
        options_.max_shared_memory, std::move(context),
        fmt::format("a buffer of {} bytes was asked for, and {} of the {} bytes of max_shared_memory are in use, or no "
                    "such piece of the rest is in one: give buffers back, or raise it",
                    size, engine_->shared->used(), options_.max_shared_memory));
  }
  return detail::SharedBufferAccess::make(std::make_shared<detail::SharedBlock>(engine_->shared, *offset, block),
                                          engine_->shared->data() + *offset, size);
}

SandboxReport LocalExecutor::sandbox_report() const {
  if (!engine_->pool) return process::Sandbox::report(options_.sandbox, {});
  require_own(*engine_->pool, name());
  const std::lock_guard lock(engine_->sandbox_mutex);
  if (!engine_->sandbox) {
    try {
      const auto outcomes = process::ForkServer::start().probe(process::Sandbox::compiled(options_.sandbox));
      engine_->sandbox = process::Sandbox::report(options_.sandbox, outcomes);
    } catch (const std::exception& error) {
      ErrorContext context;
      context.executor = name();
      throw WorkerStartError(error.what(), 1, std::move(context));
    }
  }
  return *engine_->sandbox;
}

bool LocalExecutor::bypass() const noexcept { return engine_->bypass != nullptr; }

std::vector<int> LocalExecutor::worker_pids() const {
  return engine_->pool ? engine_->pool->worker_pids() : std::vector<int>();
}

void LocalExecutor::execute(Task task) {
  detail::TaskNode* const node = TaskAccess::release(task);
  if (engine_->pool) {
    detail::ExecutorCore::Lock lock(core()->mutex);
    engine_->pool->execute(node, lock);
  } else {
    engine_->bypass->execute(node);
  }
}

void LocalExecutor::execute_locked(detail::TaskNode* node, detail::ExecutorCore::Lock& lock) {
  if (engine_->pool) {
    engine_->pool->execute(node, lock);
  } else {
    BaseExecutor::execute_locked(node, lock);
  }
}

bool LocalExecutor::execute_at_once(detail::TaskNode& node) {
  return engine_->pool && engine_->pool->execute_at_once(node);
}

namespace {

asio::awaitable<void> end_pool(std::shared_ptr<detail::ExecutorCore> core, std::shared_ptr<detail::WorkerPool> pool,
                               ShutdownOptions options) {
  require_own(*pool, core->name);
  if (options.cancel_pending) {
    const std::string reason = "the executor was shut down";
    core->cancel_parked(reason);
    pool->cancel_pending(reason);
  }
  // All that follows happens whether or not anybody waits for it.
  pool->dismiss_when_idle();
  if (options.timeout) {
    pool->kill_all_after(*options.timeout, "it had not ended when the time for the shutdown was over");
  }
  if (!options.wait) co_return;
  // Two statements: g++ 12 destroys a capturing lambda inside a `co_await` expression twice (GCC PR 107288).
  auto gone = detail::wait_for([pool](detail::WaitList::Handler handler) { pool->wait_gone(std::move(handler)); });
  co_await std::move(gone);
}

}  // namespace

asio::awaitable<void> LocalExecutor::stop(ShutdownOptions options) {
  return engine_->pool ? end_pool(core(), engine_->pool, options) : BaseExecutor::stop(options);
}

void LocalExecutor::nothing_left() {
  if (engine_->pool) engine_->pool->nothing_left();
}

void LocalExecutor::add_metrics(Metrics& metrics) const {
  if (engine_->pool) {
    engine_->pool->add_metrics(metrics);
  } else {
    metrics.mode = "bypass";
  }
}

bool LocalExecutor::withdraw(detail::TaskNode& node) { return engine_->bypass && engine_->bypass->withdraw(node); }

bool LocalExecutor::has_begun(const detail::TaskNode& node) const {
  return engine_->pool && engine_->pool->has_begun(node);
}

std::optional<Progress> LocalExecutor::progress_of(const detail::TaskNode& node) const {
  return engine_->pool ? engine_->pool->progress_of(node) : std::nullopt;
}

bool LocalExecutor::cancel_in_flight(detail::TaskNode& node, asio::cancellation_type type) {
  if (!engine_->pool) return false;
  engine_->pool->cancel(node, type);
  return true;
}

}  // namespace bulkhead
