// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/detail/config.hpp>
#include <bulkhead/detail/task_node.hpp>
#include <bulkhead/task_handle.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace bulkhead {

/// What a group does when one of its tasks fails.
enum class OnError {
  wait_for_all,  ///< The others go on; the first error is thrown when all are over.
  cancel_rest    ///< The others are cancelled; the first error is thrown when all are over.
};

namespace detail {

// void as a value, so that a tuple may have it.
template <class T>
using value_or_monostate = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

template <class T>
asio::awaitable<T> no_coroutine() {
  throw_empty_awaitable();
  co_await asio::this_coro::executor;  // never: it makes this one
}
template <class T>
asio::awaitable<T> awaitable_of(asio::awaitable<T> task) {
  return task.valid() ? std::move(task) : no_coroutine<T>();
}
// A handle whose waiting is cancelled is cancelled itself; it is over when its task is.
template <class T>
asio::awaitable<T> awaitable_of(TaskHandle<T> handle) {
  co_await asio::this_coro::throw_if_cancelled(false);
  std::exception_ptr error;
  try {
    if constexpr (std::is_void_v<T>) {
      co_await handle.result();
      co_return;
    } else {
      co_return co_await handle.result();
    }
  } catch (...) {
    error = std::current_exception();
  }
  const auto state = co_await asio::this_coro::cancellation_state;
  if (state.cancelled() == asio::cancellation_type::none) std::rethrow_exception(error);
  handle.cancel();
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  co_return co_await handle.result();
}

template <class T>
struct GroupMember;
template <class T>
struct GroupMember<asio::awaitable<T>> {
  using result = T;
};
template <class T>
struct GroupMember<TaskHandle<T>> {
  using result = T;
};
template <class M>
inline constexpr bool is_group_member = requires {
  typename GroupMember<M>::result;
};
template <class M>
using member_result_t = typename GroupMember<std::remove_cvref_t<M>>::result;

// Members that run at the same time, on one strand. Everything of it is used on that strand.
class Group : public std::enable_shared_from_this<Group> {
 public:
  Group(asio::any_io_executor executor, std::size_t size) : strand_(asio::make_strand(std::move(executor))) {
    for (std::size_t i = 0; i < size; ++i) signals_.push_back(std::make_unique<asio::cancellation_signal>());
  }

  const asio::any_io_executor& strand() const noexcept { return strand_; }

  // Runs a member; `ended` is called on the strand.
  template <class T, class Ended>
  void start(std::size_t index, asio::awaitable<T> member, Ended ended) {
    auto slot = signals_[index]->slot();
    if constexpr (std::is_void_v<T>) {
      asio::co_spawn(strand_, std::move(member),
                     asio::bind_cancellation_slot(
                         slot, [self = shared_from_this(), ended = std::move(ended)](std::exception_ptr error) mutable {
                           ended(std::move(error), std::optional<std::monostate>(std::in_place));
                         }));
    } else {
      asio::co_spawn(strand_, boxed(std::move(member)),
                     asio::bind_cancellation_slot(slot, [self = shared_from_this(), ended = std::move(ended)](
                                                            std::exception_ptr error, std::optional<T> value) mutable {
                       ended(std::move(error), std::move(value));
                     }));
    }
  }

  void cancel_all(asio::cancellation_type type) {
    for (const auto& signal : signals_) signal->emit(type);
  }

 private:
  // co_spawn wants results that have a default.
  template <class T>
  static asio::awaitable<std::optional<T>> boxed(asio::awaitable<T> member) {
    co_return std::optional<T>(co_await std::move(member));
  }

  const asio::any_io_executor strand_;
  std::vector<std::unique_ptr<asio::cancellation_signal>> signals_;
};

// A group that is over when all of its members are.
template <class Results>
class JoinedGroup : public Group {
 public:
  JoinedGroup(asio::any_io_executor executor, std::size_t size, OnError policy)
      : Group(std::move(executor), size), left_(size), policy_(policy) {}

  Results results;

  // What completes the wait. Held by the members that have not ended and not by the group, which whoever waits holds:
  // when the event loop is destroyed, nothing is left that holds it.
  using Complete = std::shared_ptr<std::function<void()>>;

  void member_ended(const std::exception_ptr& error, const Complete& complete) {
    if (error && !error_) {
      error_ = error;
      if (policy_ == OnError::cancel_rest) cancel_all(asio::cancellation_type::terminal);
    }
    if (--left_ == 0) (*complete)();
  }

  // Hands the results over when all members are over. A cancellation of the wait cancels them.
  static asio::awaitable<Results> join(std::shared_ptr<JoinedGroup> group, std::function<void(Complete)> start) {
    auto token = asio::use_awaitable;
    auto done = asio::async_initiate<asio::use_awaitable_t<>, void(std::exception_ptr)>(
        [group, start = std::move(start)](auto&& handler) mutable {
          auto slot = asio::get_associated_cancellation_slot(handler);
          if (slot.is_connected()) {
            slot.assign([weak = std::weak_ptr(group)](asio::cancellation_type type) {
              const auto alive = weak.lock();
              if (!alive) return;
              asio::post(alive->strand(), [alive, type] { alive->cancel_all(type); });
            });
          }
          auto shared = std::make_shared<std::decay_t<decltype(handler)>>(std::forward<decltype(handler)>(handler));
          asio::post(group->strand(), [group, start = std::move(start), shared] {
            auto complete = std::make_shared<std::function<void()>>(
                [group = group.get(), shared] { asio::dispatch(asio::append(std::move(*shared), group->error_)); });
            if (group->left_ == 0) {
              (*complete)();
            } else {
              start(std::move(complete));
            }
          });
        },
        token);
    co_await std::move(done);
    co_return std::move(group->results);
  }

 private:
  std::size_t left_;
  const OnError policy_;
  std::exception_ptr error_;
};

}  // namespace detail

/// Runs tasks at the same time and gives all their results, in the order of the arguments:
/// `auto [a, b] = co_await when_all(pool.submit(f, 1), threads.submit(g));`. Takes awaitables and handles; the result
/// of `void` is a `std::monostate`.
///
/// Resumes: on the awaiting coroutine's executor, when all are over; the tasks' own handlers run on a strand of it.
/// Cancellation: goes on to all tasks; one that was given as a handle is cancelled.
/// Errors: the first error, when all are over. `OnError::cancel_rest` cancels the others as soon as one fails.
template <class... Members>
auto when_all(OnError on_error, Members... members)
    -> asio::awaitable<std::tuple<detail::value_or_monostate<detail::member_result_t<Members>>...>> {
  using Results = std::tuple<std::optional<detail::value_or_monostate<detail::member_result_t<Members>>>...>;
  using Joined = detail::JoinedGroup<Results>;
  const auto group = std::make_shared<Joined>(co_await asio::this_coro::executor, sizeof...(Members), on_error);
  auto kept = std::make_shared<std::tuple<Members...>>(std::move(members)...);
  std::function<void(typename Joined::Complete)> start = [group = group.get(),
                                                          kept](typename Joined::Complete complete) {
    const auto start_one = [&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
      group->start(I, detail::awaitable_of(std::move(std::get<I>(*kept))),
                   [group, complete](std::exception_ptr error, auto value) {
                     if (!error) std::get<I>(group->results) = std::move(value);
                     group->member_ended(error, complete);
                   });
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) { (start_one(std::integral_constant<std::size_t, I>()), ...); }
    (std::index_sequence_for<Members...>());
  };
  auto joined = Joined::join(group, std::move(start));
  Results results = co_await std::move(joined);
  co_return std::apply(
      [](auto&... result) {
        return std::tuple<detail::value_or_monostate<detail::member_result_t<Members>>...>(std::move(*result)...);
      },
      results);
}
template <class First, class... Members>
requires(!std::is_same_v<std::remove_cvref_t<First>, OnError>) auto when_all(First first, Members... members) {
  return when_all(OnError::wait_for_all, std::move(first), std::move(members)...);
}

/// The same for any number of tasks of one type. An empty vector gives an empty one.
template <class Member>
auto when_all(OnError on_error, std::vector<Member> members)
    -> asio::awaitable<std::vector<detail::value_or_monostate<detail::member_result_t<Member>>>> {
  using Value = detail::value_or_monostate<detail::member_result_t<Member>>;
  using Results = std::vector<std::optional<Value>>;
  using Joined = detail::JoinedGroup<Results>;
  const auto group = std::make_shared<Joined>(co_await asio::this_coro::executor, members.size(), on_error);
  group->results.resize(members.size());
  auto kept = std::make_shared<std::vector<Member>>(std::move(members));
  std::function<void(typename Joined::Complete)> start = [group = group.get(),
                                                          kept](typename Joined::Complete complete) {
    for (std::size_t i = 0; i < kept->size(); ++i) {
      group->start(i, detail::awaitable_of(std::move((*kept)[i])),
                   [group, i, complete](std::exception_ptr error, auto value) {
                     if (!error) group->results[i] = std::move(value);
                     group->member_ended(error, complete);
                   });
    }
  };
  auto joined = Joined::join(group, std::move(start));
  Results results = co_await std::move(joined);
  std::vector<Value> values;
  values.reserve(results.size());
  for (auto& result : results) values.push_back(std::move(*result));
  co_return values;
}
template <class Member>
auto when_all(std::vector<Member> members) {
  static_assert(detail::is_group_member<Member>,
                "bulkhead: when_all takes awaitables (asio::awaitable) and handles (bulkhead::TaskHandle).");
  return when_all(OnError::wait_for_all, std::move(members));
}
template <class T>
auto when_all(std::vector<asio::awaitable<T>>& members) {
  static_assert(!std::is_same_v<T, T>,
                "bulkhead: awaitables cannot be copied: move the vector, "
                "when_all(std::move(tasks)).");
  return when_all(std::move(members));
}

/// Tasks of one type in the order in which they end: what `as_completed` gives. Move-only; used by one coroutine at a
/// time. Destroying it cancels what has not ended.
template <class R>
class Completions {
 public:
  /// One task that has ended.
  struct Item {
    /// Its place among the arguments.
    std::size_t index;
    /// What it failed with; null if it returned.
    std::exception_ptr error;
    std::optional<detail::value_or_monostate<R>> value;

    /// Its result; throws what it failed with.
    detail::value_or_monostate<R> get() {
      if (error) std::rethrow_exception(error);
      return std::move(*value);
    }
  };

  Completions(Completions&&) noexcept = default;
  Completions& operator=(Completions&&) noexcept = delete;
  ~Completions() {
    if (state_) cancel();
  }

  /// How many have not been given yet.
  std::size_t left() const noexcept { return left_; }

  /// The next task that has ended; empty after the last.
  /// Resumes: on the awaiting coroutine's executor. Cancellation: terminal ends the waiting only.
  asio::awaitable<std::optional<Item>> next() {
    if (left_ == 0) co_return std::nullopt;
    auto wait = wait_for_one(state_);
    co_await std::move(wait);
    --left_;
    co_return take(*state_);
  }

  /// Cancels what has not ended; it is still given by `next`.
  void cancel() {
    asio::post(state_->strand(), [state = state_] { state->cancel_all(asio::cancellation_type::terminal); });
  }

  /// For the library.
  template <class Member>
  static Completions start(asio::any_io_executor executor, OnError on_error, std::vector<Member> members) {
    Completions completions(std::make_shared<State>(std::move(executor), members.size()), members.size());
    auto kept = std::make_shared<std::vector<Member>>(std::move(members));
    const auto waiter = std::make_shared<Waiter>();
    completions.state_->waiter = waiter;
    asio::post(completions.state_->strand(), [state = completions.state_, kept, on_error, waiter] {
      for (std::size_t i = 0; i < kept->size(); ++i) {
        state->start(i, detail::awaitable_of(std::move((*kept)[i])),
                     [state = state.get(), i, on_error, waiter](std::exception_ptr error, auto value) {
                       if (error && on_error == OnError::cancel_rest) {
                         state->cancel_all(asio::cancellation_type::terminal);
                       }
                       const std::lock_guard lock(state->mutex);
                       state->ended.push_back(Item{i, std::move(error), std::move(value)});
                       if (waiter->waiting) std::exchange(waiter->waiting, nullptr)(nullptr);
                     });
      }
    });
    return completions;
  }

 private:
  // Who waits for the next; called with null, or with why it waits no longer. Held by the members that have not ended:
  // when the event loop is destroyed, nothing is left that holds it.
  struct Waiter {
    std::function<void(std::exception_ptr)> waiting;
  };
  struct State : detail::Group {
    using detail::Group::Group;
    std::mutex mutex;
    std::deque<Item> ended;
    std::weak_ptr<Waiter> waiter;
  };

  Completions(std::shared_ptr<State> state, std::size_t size) noexcept : state_(std::move(state)), left_(size) {}

  static Item take(State& state) {
    const std::lock_guard lock(state.mutex);
    Item item = std::move(state.ended.front());
    state.ended.pop_front();
    return item;
  }

  static asio::awaitable<void> wait_for_one(std::shared_ptr<State> state) {
    auto token = asio::use_awaitable;
    return asio::async_initiate<asio::use_awaitable_t<>, void(std::exception_ptr)>(
        [state](auto&& handler) {
          auto slot = asio::get_associated_cancellation_slot(handler);
          if (slot.is_connected()) {
            slot.assign([weak = std::weak_ptr(state)](asio::cancellation_type) {
              const auto alive = weak.lock();
              if (!alive) return;
              const std::lock_guard lock(alive->mutex);
              const auto waiter = alive->waiter.lock();
              if (waiter && waiter->waiting) {
                std::exchange(waiter->waiting, nullptr)(
                    std::make_exception_ptr(boost::system::system_error(asio::error::operation_aborted)));
              }
            });
          }
          auto shared = std::make_shared<std::decay_t<decltype(handler)>>(std::forward<decltype(handler)>(handler));
          const std::lock_guard lock(state->mutex);
          auto complete = [executor = state->strand(), shared](std::exception_ptr error) {
            asio::post(executor, asio::append(std::move(*shared), std::move(error)));
          };
          const auto waiter = state->waiter.lock();
          if (!state->ended.empty() || !waiter) {
            complete(nullptr);
          } else {
            waiter->waiting = std::move(complete);
          }
        },
        token);
  }

  std::shared_ptr<State> state_;
  std::size_t left_;
};

/// Runs tasks at the same time, and gives them in the order in which they end:
///
///     auto done = as_completed(co_await asio::this_coro::executor, std::move(tasks));
///     while (auto item = co_await done.next()) use(item->get());
///
/// `OnError::cancel_rest` cancels the others as soon as one fails; they are given all the same. Throws nothing; the
/// tasks' handlers run on a strand of `executor`, which must not end before them.
template <class Member>
auto as_completed(asio::any_io_executor executor, std::vector<Member> members,
                  OnError on_error = OnError::wait_for_all) {
  return Completions<detail::member_result_t<Member>>::start(std::move(executor), on_error, std::move(members));
}
template <class Member>
auto as_completed(std::vector<Member>, OnError = OnError::wait_for_all) {
  static_assert(!std::is_same_v<Member, Member>,
                "bulkhead: as_completed needs to know where to run: "
                "as_completed(co_await asio::this_coro::executor, std::move(tasks)).");
}

}  // namespace bulkhead
