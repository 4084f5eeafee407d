// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/chunk_planner.hpp>
#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/map_chunk.hpp>
#include <bulkhead/detail/submit.hpp>
#include <bulkhead/errors.hpp>
#include <bulkhead/groups.hpp>
#include <bulkhead/map_options.hpp>
#include <bulkhead/task_options.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace bulkhead::detail {

// Tasks of a map that are under way at once, and how many items are in one.
struct MapLimits {
  std::size_t tasks = 1;
  std::size_t window = 1;
  std::size_t fixed_chunk = 0;
  std::size_t largest_chunk = 1;
};
// Throws std::invalid_argument if the options contradict each other.
BULKHEAD_EXPORT MapLimits map_limits(const MapOptions& options, const TaskOptions& task, bool one_by_one,
                                     std::size_t max_pending);
// Whether a map makes no sense any more after a task failed so: no task can be run.
BULKHEAD_EXPORT bool ends_map(const std::exception_ptr& error) noexcept;
// Whether the executor had no room for a task.
BULKHEAD_EXPORT bool is_overload(const std::exception_ptr& error) noexcept;
// Which of a chunk's items was at work when its worker crashed; empty if the task failed otherwise.
BULKHEAD_EXPORT std::optional<std::size_t> crashed_item(const std::exception_ptr& error) noexcept;
// Whether a chunk's items could not be sent, or their results, at least not together.
BULKHEAD_EXPORT bool is_too_large_together(const std::exception_ptr& error) noexcept;
// What a worker said of an item that failed.
BULKHEAD_EXPORT std::exception_ptr remote_item_error(std::span<const std::byte> bytes, const std::string& task,
                                                     const std::string& executor);
BULKHEAD_EXPORT std::exception_ptr wrong_item_count(std::size_t given, std::size_t answered, const std::string& task,
                                                    const std::string& executor);
BULKHEAD_EXPORT std::exception_ptr item_not_begun(const std::string& task, const std::string& executor);

// What is over of a map and not taken yet, and who waits for it.
template <class R>
class MapState : public std::enable_shared_from_this<MapState<R>> {
 public:
  using Item = typename Completions<R>::Item;

  explicit MapState(MapOrder order) : order_(order) {}
  virtual ~MapState() = default;
  MapState(const MapState&) = delete;
  MapState& operator=(const MapState&) = delete;

  virtual void cancel() = 0;

  // Until there is something to take, or nothing will come any more.
  asio::awaitable<void> wait() {
    auto token = asio::use_awaitable;
    return asio::async_initiate<asio::use_awaitable_t<>, void(std::exception_ptr)>(
        [self = this->shared_from_this()](auto&& handler) {
          auto slot = asio::get_associated_cancellation_slot(handler);
          if (slot.is_connected()) {
            slot.assign([weak = std::weak_ptr(self)](asio::cancellation_type) {
              if (const auto alive = weak.lock()) alive->stop_waiting();
            });
          }
          auto shared = std::make_shared<std::decay_t<decltype(handler)>>(std::forward<decltype(handler)>(handler));
          std::function<void(std::exception_ptr)> complete = [executor = self->executor(),
                                                              shared](std::exception_ptr error) {
            asio::post(executor, asio::append(std::move(*shared), std::move(error)));
          };
          const std::lock_guard lock(self->mutex_);
          const auto waiter = self->waiter_.lock();
          if (self->available() || self->over_ || !waiter) {
            complete(nullptr);
          } else {
            waiter->waiting = std::move(complete);
          }
        },
        token);
  }

  std::optional<Item> take() {
    std::optional<Item> item;
    {
      const std::lock_guard lock(mutex_);
      if (!available()) return std::nullopt;
      item = std::move(ready_.front());
      ready_.pop_front();
      ++given_;
      if (given_ < go_on_at_) return item;
      go_on_at_ = kNever;
    }
    go_on(waiter());
    return item;
  }

 protected:
  // Who waits; called with null, or with why it waits no longer. Held by what is under way, and not by this: when the
  // event loop is destroyed, nothing is left that holds it.
  struct Waiter {
    std::function<void(std::exception_ptr)> waiting;
  };

  virtual asio::any_io_executor executor() const = 0;
  // There is room in the window again.
  virtual void go_on(std::shared_ptr<Waiter> waiter) = 0;

  // For what is about to be under way.
  std::shared_ptr<Waiter> waiter() {
    const std::lock_guard lock(mutex_);
    auto waiter = waiter_.lock();
    if (!waiter) waiter_ = waiter = std::make_shared<Waiter>();
    return waiter;
  }

  void give(Item item, Waiter& waiter) {
    const std::lock_guard lock(mutex_);
    if (order_ == MapOrder::as_completed) {
      ready_.emplace_back(std::move(item));
    } else {
      const std::size_t place = item.index - given_;
      if (place >= ready_.size()) ready_.resize(place + 1);
      ready_[place] = std::move(item);
    }
    if (available() && waiter.waiting) std::exchange(waiter.waiting, nullptr)(nullptr);
  }

  void end(Waiter& waiter) {
    const std::lock_guard lock(mutex_);
    over_ = true;
    if (waiter.waiting) std::exchange(waiter.waiting, nullptr)(nullptr);
  }

  // How many items may be taken from the range, of which so many have been taken. 0: there is less room than wanted,
  // and `go_on` follows when there is that much.
  std::size_t room(std::size_t window, std::size_t taken, std::size_t wanted) {
    const std::lock_guard lock(mutex_);
    const std::size_t room = window - (taken - given_);
    if (room >= wanted) return room;
    go_on_at_ = given_ + (wanted - room);
    return 0;
  }

 private:
  static constexpr std::size_t kNever = static_cast<std::size_t>(-1);

  bool available() const { return !ready_.empty() && ready_.front().has_value(); }

  void stop_waiting() {
    const std::lock_guard lock(mutex_);
    const auto waiter = waiter_.lock();
    if (waiter && waiter->waiting) {
      std::exchange(waiter->waiting,
                    nullptr)(std::make_exception_ptr(boost::system::system_error(asio::error::operation_aborted)));
    }
  }

  const MapOrder order_;
  std::mutex mutex_;
  std::deque<std::optional<Item>> ready_;  // in the order of the range: from the first that has not been taken
  std::size_t given_ = 0;
  std::size_t go_on_at_ = kNever;  // when so many have been given
  bool over_ = false;
  std::weak_ptr<Waiter> waiter_;
};

// Submits chunk after chunk of a range. Everything but what MapState does is done on the strand.
template <class R, class F, class Range>
class MapRun final : public MapState<R> {
  using Base = MapState<R>;
  using typename Base::Item;
  using typename Base::Waiter;
  using T = std::ranges::range_value_t<Range>;
  static constexpr bool one_by_one = is_awaitable<std::decay_t<std::invoke_result_t<F&, T>>>;

 public:
  MapRun(std::shared_ptr<ExecutorCore> core, TaskOptions task, F function, Range range, const MapOptions& options)
      : Base(options.order()),
        core_(std::move(core)),
        task_(core_->with_isolation(std::move(task))),
        function_(std::move(function)),
        range_(std::move(range)),
        limits_(map_limits(options, task_, one_by_one, core_->max_pending)),
        planner_(limits_.fixed_chunk, limits_.largest_chunk),
        strand_(asio::make_strand(core_->io)) {}

  void start() { go_on(this->waiter()); }

  void cancel() override {
    asio::post(strand_, [self = self(), waiter = this->waiter()] {
      self->stopped_ = true;
      // A task that has not begun may be over at once.
      self->cancelling_ = true;
      for (auto chunk = self->under_way_.begin(); chunk != self->under_way_.end();) {
        (chunk++)->signal.emit(asio::cancellation_type::terminal);
      }
      self->cancelling_ = false;
      self->retired_.clear();
      self->pump(waiter);
    });
  }

 private:
  struct Chunk {
    Chunk() { items.shared = std::make_shared<typename MapItems<T>::Shared>(); }

    std::vector<std::size_t> indices;
    std::size_t given = 0;  // so many of them have been given
    MapItems<T> items;
    asio::cancellation_signal signal;
  };
  using Chunks = std::list<Chunk>;

  std::shared_ptr<MapRun> self() { return std::static_pointer_cast<MapRun>(this->shared_from_this()); }
  // Not on the strand: whoever waits goes on there, and is not to keep the tasks waiting.
  asio::any_io_executor executor() const override { return core_->io; }

  void go_on(std::shared_ptr<Waiter> waiter) override {
    asio::post(strand_, [self = self(), waiter = std::move(waiter)] { self->pump(waiter); });
  }

  void pump(const std::shared_ptr<Waiter>& waiter) {
    while (under_way_.size() < most_tasks()) {
      if (stopped_) drop_rest(*waiter);
      if (again_.empty()) take_chunk(*waiter);
      if (again_.empty()) break;
      under_way_.splice(under_way_.end(), again_, again_.begin());
      const auto chunk = std::prev(under_way_.end());
      try {
        submit(chunk, waiter);
      } catch (...) {
        give_error(chunk, std::current_exception(), *waiter);  // a copy of the function's, say
      }
    }
    if (under_way_.empty() && again_.empty() && (stopped_ || exhausted_)) this->end(*waiter);
  }

  std::size_t most_tasks() const { return std::min(limits_.tasks, tasks_with_room_); }

  // Its signal may be about to return from telling it.
  void retire(typename Chunks::iterator chunk) {
    retired_.splice(retired_.end(), under_way_, chunk);
    if (!cancelling_) retired_.clear();
  }

  // Items that were taken and have not begun.
  void drop_rest(Waiter& waiter) {
    for (const Chunk& chunk : again_) {
      for (const std::size_t index : chunk.indices) {
        this->give(Item{index, item_not_begun(name(), core_->name), std::nullopt}, waiter);
      }
    }
    again_.clear();
  }

  // Puts the range's next items into `again_`.
  void take_chunk(Waiter& waiter) {
    if (stopped_ || exhausted_) return;
    // Not a few items as soon as there is room for a few: the next chunk would be as small, and so on. It comes to that
    // much when what is over has been taken.
    const std::size_t wanted = std::min(planner_.next(), std::max<std::size_t>(1, limits_.window / 2));
    const std::size_t room = this->room(limits_.window, taken_, wanted);
    if (room == 0) return;
    const std::size_t size = std::min(room, planner_.next());
    again_.emplace_back();
    Chunk& chunk = again_.back();
    std::vector<T>& values = chunk.items.shared->values;
    try {
      if (!next_) next_.emplace(std::ranges::begin(range_));
      while (chunk.indices.size() < size && !(exhausted_ = *next_ == std::ranges::end(range_))) {
        if constexpr (std::ranges::view<Range>) {
          values.push_back(static_cast<T>(**next_));
        } else {
          values.push_back(static_cast<T>(std::ranges::iter_move(*next_)));  // the range is ours
        }
        chunk.indices.push_back(taken_++);
        ++*next_;
      }
    } catch (...) {
      exhausted_ = true;
      while (values.size() > chunk.indices.size()) values.pop_back();
      this->give(Item{taken_++, std::current_exception(), std::nullopt}, waiter);
    }
    if (chunk.indices.empty()) again_.pop_back();
  }

  void submit(typename Chunks::iterator chunk, const std::shared_ptr<Waiter>& waiter) {
    if constexpr (one_by_one) {
      submit(chunk, waiter, MapOne<F>(function_, task_.retry() != nullptr));
    } else if (limits_.fixed_chunk == 1) {
      submit(chunk, waiter, MapOne<F>(function_, task_.retry() != nullptr));
    } else {
      submit(chunk, waiter, MapChunk<F>(function_, limits_.fixed_chunk != 0));
    }
  }

  template <class Callable>
  void submit(typename Chunks::iterator chunk, const std::shared_ptr<Waiter>& waiter, Callable callable) {
    using C = Call<Callable, MapItems<T>>;
    auto done = [self = self(), chunk, waiter](std::exception_ptr error, auto... result) {
      try {
        self->done(chunk, std::move(error), *waiter, std::move(result)...);
      } catch (...) {
        self->give_error(chunk, std::current_exception(), *waiter);  // the move of a result or of an item
      }
      self->pump(waiter);
    };
    InitiateSubmit submit(core_);
    submit.waits_for_room = true;  // a map waits, which is what its window is for
    chunk->items.shared->began = false;
    C call(std::in_place, std::move(callable), chunk->items);
    TaskOptions task(task_);
    std::move(submit)(asio::bind_cancellation_slot(chunk->signal.slot(), asio::bind_executor(strand_, std::move(done))),
                      std::move(task), std::move(call));
  }

  // A chunk is over.
  void done(typename Chunks::iterator chunk, std::exception_ptr error, Waiter& waiter, ChunkResult<R> result) {
    if (error) return failed(chunk, std::move(error), waiter);
    const std::size_t answered = result.entries.size();
    const std::size_t least = limits_.fixed_chunk != 0 ? chunk->indices.size() : 1;
    if (answered < least || answered > chunk->indices.size()) {
      return give_error(chunk, wrong_item_count(chunk->indices.size(), answered, name(), core_->name), waiter);
    }
    succeeded();
    planner_.ran(answered, result.time);
    for (auto& entry : result.entries) {
      if (!entry.value && !entry.error) entry.error = remote_item_error(entry.remote_error, name(), core_->name);
      this->give(Item{chunk->indices[chunk->given], std::move(entry.error), std::move(entry.value)}, waiter);
      ++chunk->given;
    }
    again_in_chunks(chunk, planner_.next());
    retire(chunk);
  }

  // Those of a chunk that have not been given are to be submitted again, so many together.
  void again_in_chunks(typename Chunks::iterator chunk, std::size_t size) {
    Chunks chunks;
    for (; chunk->given < chunk->indices.size(); ++chunk->given) {
      if (chunks.empty() || chunks.back().indices.size() == size) chunks.emplace_back();
      chunks.back().items.shared->values.push_back(static_cast<T&&>(chunk->items.shared->values[chunk->given]));
      chunks.back().indices.push_back(chunk->indices[chunk->given]);
    }
    again_.splice(again_.begin(), chunks);
  }

  // Where there was too little room, there may be more.
  void succeeded() noexcept {
    if (tasks_with_room_ < limits_.tasks) ++tasks_with_room_;
  }

  // All of the chunk's that has not been given fails with this.
  void give_error(typename Chunks::iterator chunk, const std::exception_ptr& error, Waiter& waiter) {
    for (; chunk->given < chunk->indices.size(); ++chunk->given) {
      this->give(Item{chunk->indices[chunk->given], error, std::nullopt}, waiter);
    }
    retire(chunk);
  }

  // A single item is over.
  template <class... Result>
  void done(typename Chunks::iterator chunk, std::exception_ptr error, Waiter& waiter, Result... result) {
    if (error) return failed(chunk, std::move(error), waiter);
    succeeded();
    Item item{chunk->indices.front(), nullptr, std::nullopt};
    if constexpr (sizeof...(Result) == 0) {
      item.value.emplace();
    } else {
      (set(item, std::move(result)), ...);
    }
    this->give(std::move(item), waiter);
    ++chunk->given;
    retire(chunk);
  }
  static void set(Item& item, value_or_monostate<R> value) { item.value.emplace(std::move(value)); }
  static void set(Item& item, std::optional<value_or_monostate<R>> value) { item.value = std::move(value); }

  // All of a chunk has failed, or one item of it has crashed its worker.
  void failed(typename Chunks::iterator chunk, std::exception_ptr error, Waiter& waiter) {
    // What a function throws that ran here is its own, whatever it says.
    const bool own = chunk->items.shared->began;
    if (!own && !stopped_ && under_way_.size() > 1 && is_overload(error)) {
      // An executor that it was passed on to is full, of other tasks, too: again when one of these is over.
      tasks_with_room_ = under_way_.size() - 1;
      again_.splice(again_.begin(), under_way_, chunk);
      return;
    }
    if (chunk->indices.size() > 1 && is_too_large_together(error)) {
      again_in_chunks(chunk, 1);
      retire(chunk);
      return;
    }
    if (!own && ends_map(error)) stopped_ = true;
    const auto crashed = crashed_item(error);
    if (crashed && chunk->indices.size() > 1) {
      const std::size_t guilty = std::min(*crashed, chunk->indices.size() - 1);
      this->give(Item{chunk->indices[guilty], std::move(error), std::nullopt}, waiter);
      chunk->indices.erase(chunk->indices.begin() + static_cast<std::ptrdiff_t>(guilty));
      std::vector<T>& values = chunk->items.shared->values;
      values.erase(values.begin() + static_cast<std::ptrdiff_t>(guilty));
      again_.splice(again_.begin(), under_way_, chunk);
      return;
    }
    give_error(chunk, error, waiter);
  }

  std::string name() const {
    if (!task_.name().empty()) return task_.name();
    const NameSource source = callable_name(function_);
    return source.make(source.code);
  }

  const std::shared_ptr<ExecutorCore> core_;
  const TaskOptions task_;
  const F function_;
  Range range_;
  const MapLimits limits_;
  ChunkPlanner planner_;
  const asio::any_io_executor strand_;
  std::optional<std::ranges::iterator_t<Range>> next_;
  std::size_t taken_ = 0;
  std::size_t tasks_with_room_ = static_cast<std::size_t>(-1);
  bool exhausted_ = false;
  bool stopped_ = false;
  Chunks under_way_;
  Chunks again_;  // taken, and to be submitted
  Chunks retired_;
  bool cancelling_ = false;
};

template <class R, class F, class Range>
std::shared_ptr<MapState<R>> start_map(std::shared_ptr<ExecutorCore> core, TaskOptions task, F function, Range range,
                                       const MapOptions& options) {
  auto run = std::make_shared<MapRun<R, F, Range>>(std::move(core), std::move(task), std::move(function),
                                                   std::move(range), options);
  run->start();
  return run;
}

}  // namespace bulkhead::detail
