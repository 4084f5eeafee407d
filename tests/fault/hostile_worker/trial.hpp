// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/local_executor.hpp>

#include "fault/hostile_worker/attacks.hpp"
#include "support/outcome.hpp"
#include "support/processes.hpp"
#include "support/run.hpp"
#include "support/tasks.hpp"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

/// Tries an attack on the transport over a pool of its own, and sees what has come of it.
namespace bulkhead::test::hostile {

/// How an attacking task may end.
enum class End { value, serialization, protocol, crashed, timed_out, stopped };

inline std::string name_of(End end) {
  switch (end) {
    case End::value:
      return "value";
    case End::serialization:
      return "SerializationError";
    case End::protocol:
      return "ProtocolError";
    case End::crashed:
      return "WorkerCrashedError";
    case End::stopped:
      return "TaskCancelledError";
    case End::timed_out:
      return "TaskTimeoutError";
  }
  return "?";
}

inline std::optional<End> end_of(const std::exception_ptr& error) {
  if (!error) return End::value;
  if (holds<SerializationError>(error)) return End::serialization;
  if (holds<ProtocolError>(error)) return End::protocol;
  if (holds<WorkerCrashedError>(error)) return End::crashed;
  if (holds<TaskTimeoutError>(error)) return End::timed_out;
  // An answer, too: that it stopped since it was asked to.
  if (holds<TaskCancelledError>(error)) return End::stopped;
  return std::nullopt;
}

/// An attacking task on its way.
class Attempt {
 public:
  virtual ~Attempt() = default;
  virtual bool over() const = 0;
  virtual std::exception_ptr error() const = 0;
  /// Whether it returned what the attack says is right.
  virtual bool right() const = 0;
};

template <class R>
class AttemptOf final : public Attempt {
 public:
  using Function = R (*)(std::uint64_t seed);
  AttemptOf(LocalExecutor& pool, TaskOptions options, Function function, std::uint64_t seed,
            const std::optional<R>& expected)
      : expected_(expected) {
    pool.async_submit(std::move(options), call(function, seed), outcome_.handler());
  }
  bool over() const override { return outcome_.calls > 0; }
  std::exception_ptr error() const override { return outcome_.error; }
  bool right() const override {
    if constexpr (std::equality_comparable<R>) {
      return !expected_ || outcome_.error || outcome_.value == *expected_;
    } else {
      return true;
    }
  }

 private:
  Outcome<R> outcome_;
  std::optional<R> expected_;
};

struct Attack {
  std::string name;
  std::function<std::unique_ptr<Attempt>(LocalExecutor&, TaskOptions, std::uint64_t seed)> start;
  std::vector<End> ends;
  /// Whether its worker is to be gone afterwards; one that only gave a bad value stays.
  bool worker_ends = true;
  /// None: the attack ends by itself.
  std::optional<std::chrono::milliseconds> timeout;
};

template <class R>
Attack attack(std::string name, R (*function)(std::uint64_t), std::vector<End> ends,
              std::type_identity_t<std::optional<R>> expected = std::nullopt) {
  Attack result;
  result.name = std::move(name);
  result.start = [function, expected](LocalExecutor& pool, TaskOptions options, std::uint64_t seed) {
    return std::make_unique<AttemptOf<R>>(pool, std::move(options), function, seed, expected);
  };
  // A worker that answers goes on.
  result.worker_ends =
      std::none_of(ends.begin(), ends.end(), [](End end) { return end == End::value || end == End::serialization; });
  result.ends = std::move(ends);
  return result;
}
inline Attack within(std::chrono::milliseconds timeout, Attack attack) {
  attack.timeout = timeout;
  return attack;
}

/// Counts the turns of an event loop in which somebody always wants the next one.
class Turns {
 public:
  explicit Turns(asio::io_context& context) : context_(context), last_(std::chrono::steady_clock::now()) { next(); }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;
  ~Turns() { *alive_ = false; }

  std::uint64_t count() const { return count_; }
  std::chrono::nanoseconds longest_gap() const { return longest_; }

 private:
  void next() {
    asio::post(context_, [this, alive = alive_] {
      if (!*alive) return;
      const auto now = std::chrono::steady_clock::now();
      longest_ = std::max(longest_, std::chrono::nanoseconds(now - last_));
      last_ = now;
      ++count_;
      next();
    });
  }

  asio::io_context& context_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::chrono::steady_clock::time_point last_;
  std::uint64_t count_ = 0;
  std::chrono::nanoseconds longest_{0};
};

/// What was seen of attacks.
struct Findings {
  /// What was not as it should be.
  std::vector<std::string> wrong;
  /// How the event loop fared, one line for each attack.
  std::string turns;

  void expect(bool holds, const std::string& what) {
    if (!holds) wrong.push_back(what);
  }
  std::string text() const {
    std::string all;
    for (const std::string& one : wrong) all += "not so: " + one + "\n";
    return all;
  }
};

/// The fork server, which stays. All else that is below the host belongs to a pool.
inline std::size_t processes_kept() { return 1; }

/// With whom an attacking task shares its worker.
inline constexpr std::array kIsolations{Isolation::Kind::reuse, Isolation::Kind::per_key, Isolation::Kind::fresh};

inline Isolation isolation_of(Isolation::Kind kind) {
  switch (kind) {
    case Isolation::Kind::per_key:
      return Isolation::per_key("attacker");
    case Isolation::Kind::fresh:
      return Isolation::fresh();
    default:
      return Isolation::reuse();
  }
}

inline std::string name_of(Isolation::Kind kind) {
  switch (kind) {
    case Isolation::Kind::per_key:
      return "per_key";
    case Isolation::Kind::fresh:
      return "fresh";
    default:
      return "reuse";
  }
}

/// Runs the attack and sees that the task ends as it may, that its worker is gone, that a bystander on the other worker
/// and tasks afterwards have their results, and that nothing is left.
inline void try_attack(Findings& findings, const Attack& attack, Isolation::Kind kind, std::uint64_t seed = 1) {
  const std::size_t descriptors = open_descriptors();
  const auto expect = [&](bool holds, const std::string& what) {
    findings.expect(holds, attack.name + ", " + name_of(kind) + ": " + what);
    return holds;
  };
  {
    asio::io_context context;
    LocalExecutorOptions options = workers(2);
    options.capture_output = CaptureOutput::capture;
    LocalExecutor pool(context.get_executor(), options);
    if (!expect(run_until(context, [&] { return whole(pool); }), "the pool starts")) return;
    // So that the counters in the areas are not zero.
    for (int i = 0; i < 8; ++i) run(context, pool.submit(twice, i));
    board.worker = 0;
    board.runs = 0;
    std::uint64_t answered = 8;
    Turns turns(context);
    TaskOptions task_options;
    task_options.isolation(isolation_of(kind));
    if (attack.timeout) task_options.timeout(*attack.timeout);
    const auto attempt = attack.start(pool, std::move(task_options), seed);
    run_until(context, [&] { return board.worker != 0 || attempt->over(); });
    const Process attacker(board.worker);
    // One at a time, so that they find the other worker idle.
    Outcome<> bystander;
    int started = 0;
    int hurt = 0;
    bool hurt_by_attacker = false;
    const auto keep_asking = [&] {
      if (bystander.calls == started && bystander.error && hurt == 0) {
        ++hurt;
        const auto error = error_as<ExecutorError>(bystander.error);
        hurt_by_attacker = error && error->context().worker_pid == board.worker;
        return attempt->over();
      }
      if (attempt->over() && bystander.calls == started) return true;
      if (bystander.calls == started && hurt == 0 && started < 1000) {
        pool.async_submit(call(twice, 21), bystander.handler());
        ++started;
      }
      return false;
    };
    const auto begin = std::chrono::steady_clock::now();
    expect(run_until(context, keep_asking), "it and its bystanders are over in time");
    const auto time = std::chrono::steady_clock::now() - begin;
    answered += static_cast<std::uint64_t>(bystander.calls - hurt);
    // On an overloaded machine it may come to the attacker's worker after all, where that is anybody's.
    expect(hurt == 0 || (kind == Isolation::Kind::reuse && hurt_by_attacker),
           "a bystander is not hurt: " + message(bystander.error));
    const double gap = std::chrono::duration<double, std::milli>(turns.longest_gap()).count();
    findings.turns +=
        fmt::format("{:<44} {:<8} {:>8.1f} ms, {} runs, {} turns, longest gap {:.1f} ms\n", attack.name, name_of(kind),
                    std::chrono::duration<double, std::milli>(time).count(), board.runs.load(), turns.count(), gap);
    if (!expect(attempt->over(), "its task ends")) return;
    const auto end = end_of(attempt->error());
    expect(end && std::count(attack.ends.begin(), attack.ends.end(), *end) > 0,
           "its task ends with " + (end ? name_of(*end) : std::string("something else")) + ": " +
               message(attempt->error()));
    expect(attempt->right(), "it returns what is right");
    if (attack.worker_ends) expect(attacker.gone_within(kGone), "its worker is gone");
    for (int i = 0; i < 4; ++i) {
      Outcome<> next;
      pool.async_submit(call(twice, i), next.handler());
      if (!expect(run_until(context, [&] { return next.calls > 0; }), "the next task ends")) return;
      expect(!next.error && next.value == 2 * i, "the next task succeeds: " + message(next.error));
      ++answered;
    }
    expect(run_until(context, [&] { return whole(pool) && pool.metrics().workers_dying == 0; }),
           "the pool is whole again");
    const Metrics metrics = pool.metrics();
    expect(adds_up(metrics) && metrics.running == 0 && metrics.pending == 0, "the metrics add up");
    const bool failure = end && *end != End::value;
    expect(metrics.submitted == answered + 1 + static_cast<std::uint64_t>(hurt) &&
               metrics.completed == answered + (failure ? 0 : 1) &&
               metrics.failed + metrics.timed_out == (failure ? 1 : 0) + static_cast<std::uint64_t>(hurt),
           "each task is counted once: " + to_string(metrics));
  }
  expect(poll_until([&] { return descendants().size() <= processes_kept(); }, kGone), "no process is left");
  expect(poll_until([&] { return open_descriptors() <= descriptors; }, kGone),
         fmt::format("no descriptor is left: {} before, {} now", descriptors, open_descriptors()));
}

}  // namespace bulkhead::test::hostile
