// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/detail/spare_nodes.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_allocator.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/associator.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/asio/recycling_allocator.hpp>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace bulkhead::detail {

// Whether a value can be copied for sure: std::is_copy_constructible is also true of a std::vector<std::unique_ptr>,
// and of everything that has such a member, which then does not compile.
template <class T>
inline constexpr bool is_surely_copyable = std::is_trivially_copyable_v<T>&& std::is_copy_constructible_v<T>;
template <class Char, class Traits, class Allocator>
inline constexpr bool is_surely_copyable<std::basic_string<Char, Traits, Allocator>> = true;
template <class T>
inline constexpr bool is_surely_copyable<std::shared_ptr<T>> = true;
template <class Signature>
inline constexpr bool is_surely_copyable<std::function<Signature>> = true;
template <class T, class Allocator>
inline constexpr bool is_surely_copyable<std::vector<T, Allocator>> = is_surely_copyable<T>;
template <class T>
inline constexpr bool is_surely_copyable<std::optional<T>> = is_surely_copyable<T>;
template <class A, class B>
inline constexpr bool is_surely_copyable<std::pair<A, B>> = is_surely_copyable<A>&& is_surely_copyable<B>;
template <class K, class V, class Compare, class Allocator>
inline constexpr bool is_surely_copyable<std::map<K, V, Compare, Allocator>> =
    is_surely_copyable<K>&& is_surely_copyable<V>;

// Whether a call can be made from a copy, so that it is there for another run.
template <class C>
inline constexpr bool is_copyable_call = false;
template <class F, class... Args>
inline constexpr bool is_copyable_call<Call<F, Args...>> = is_surely_copyable<F> && (is_surely_copyable<Args> && ...);

// What a handler is called with beside the exception: R, or optional<R> where there is no R to give beside an error.
template <class R>
using handed_t = std::conditional_t<std::is_default_constructible_v<R>, R, std::optional<R>>;

// A handler that takes an optional<R> in any case, where a default R could throw and there would be nobody to tell.
template <class Handler>
concept TakesOptional = requires {
  typename Handler::takes_optional;
};
template <class Handler>
struct OptionalHandler {
  using takes_optional = void;
  Handler handler;

  template <class... Values>
  void operator()(Values&&... values) && {
    std::move(handler)(std::forward<Values>(values)...);
  }
};

template <class R>
struct CompletionSignature {
  using type = void(std::exception_ptr, handed_t<R>);
};
template <>
struct CompletionSignature<void> {
  using type = void(std::exception_ptr);
};

// The executor that a handler runs on, kept busy until then. Nothing is kept where that is the executor's own Asio
// executor: the operation under way there does it.
template <class Handler>
class HandlerExecutor {
  using Executor = asio::associated_executor_t<Handler, asio::any_io_executor>;
  using Tracked =
      std::decay_t<typename asio::prefer_result<const Executor&, asio::execution::outstanding_work_t::tracked_t>::type>;

 public:
  HandlerExecutor(const Handler& handler, const asio::any_io_executor& io) { set(handler, io); }

  // Of another handler, where nothing is kept.
  void set(const Handler& handler, const asio::any_io_executor& io) {
    // Often this is `io` itself, since the handler has none: to compare that with itself would take as long as to
    // allocate the task.
    const auto& executor = asio::get_associated_executor(handler, io);
    if (static_cast<const void*>(std::addressof(executor)) == std::addressof(io) || same(executor, io)) return;
    tracked_.emplace(asio::prefer(executor, asio::execution::outstanding_work.tracked));
  }

  // What is moved from keeps nothing at work.
  HandlerExecutor(HandlerExecutor&&) noexcept = default;
  HandlerExecutor& operator=(HandlerExecutor&&) = delete;

  bool is_io_executor() const noexcept { return !tracked_; }
  // The node may outlive the Asio context, and must not hold it at work then.
  void release() noexcept { tracked_.reset(); }

 private:
  static bool same(const Executor& executor, const asio::any_io_executor& io) {
    if constexpr (std::is_same_v<Executor, asio::any_io_executor>) {
      return executor == io;
    } else {
      const auto* target = io.target<Executor>();
      return target != nullptr && *target == executor;
    }
  }

  std::optional<Tracked> tracked_;
};

// See TaskNode::large_size.
template <class C>
inline std::atomic<std::size_t> large_call_size{0};

template <class C, class Handler>
class TaskImpl final : public TaskNode {
  using Result = task_result_t<C>;
  static constexpr bool gives_coroutine = is_awaitable<call_result_t<C>>;
  static constexpr bool is_void = std::is_void_v<Result>;
  using HandlerAllocator = asio::associated_allocator_t<Handler, asio::recycling_allocator<void>>;
  using NodeAllocator = typename std::allocator_traits<HandlerAllocator>::template rebind_alloc<TaskImpl>;
  using Stored = std::conditional_t<is_void, std::tuple<>, std::optional<std::conditional_t<is_void, int, Result>>>;

 public:
  template <class H>
  static TaskImpl* create(ExecutorCore& core, TaskOptions&& options, C&& call, H&& handler) {
    if constexpr (is_kept) {
      return create_kept(core, std::move(options), std::move(call), std::forward<H>(handler));
    } else {
      return allocate(core, std::move(options), std::move(call), std::forward<H>(handler));
    }
  }

 private:
  // Whether nodes of this type are kept for the next task: those of short calls that leave nothing behind, unless the
  // handler has an allocator of its own.
  static constexpr bool is_kept = [] {
    if constexpr (Sendable<C> && !gives_coroutine) {
      return Remote<C>::short_call != 0 && Remote<C>::plain_answer != 0 && std::is_trivially_destructible_v<C> &&
             std::is_nothrow_move_constructible_v<C> && alignof(C) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__ &&
             alignof(Handler) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__ &&
             std::is_same_v<HandlerAllocator, asio::recycling_allocator<void>>;
    }
    return false;
  }();
  // Its address stands for the type. Not constant: those of several types could be merged.
  static inline char kind = 0;

  template <class H>
  static TaskImpl* create_kept(ExecutorCore& core, TaskOptions&& options, C&& call, H&& handler) {
    SpareNodes* const spares = SpareNodes::here();
    if (void* const spare = spares != nullptr ? spares->take(&kind) : nullptr) {
      auto* const node = static_cast<TaskImpl*>(spare);
      try {
        node->executor_.set(handler, core.io);
        node->handler_.emplace(std::forward<H>(handler));
      } catch (...) {
        node->free_node();
        throw;
      }
      std::construct_at(&node->call_, std::move(call));
      node->renew(core, std::move(options));
      return node;
    }
    return allocate(core, std::move(options), std::move(call), std::forward<H>(handler));
  }

  template <class H>
  static TaskImpl* allocate(ExecutorCore& core, TaskOptions&& options, C&& call, H&& handler) {
    auto allocator = NodeAllocator(asio::get_associated_allocator(handler, asio::recycling_allocator<void>()));
    auto* memory = std::allocator_traits<decltype(allocator)>::allocate(allocator, 1);
    try {
      return ::new (static_cast<void*>(memory))
          TaskImpl(core, std::move(options), std::move(call), std::forward<H>(handler));
    } catch (...) {
      std::allocator_traits<decltype(allocator)>::deallocate(allocator, memory, 1);
      throw;
    }
  }

 public:
  const Handler& handler() const noexcept { return *handler_; }

  Outcome run() noexcept override {
    try {
      if constexpr (gives_coroutine) {
        throw_needs_event_loop(*this);
      } else if constexpr (is_copyable_call<C>) {
        if (may_run_again()) {
          // Not on the stack, where g++ 12 warns of a member function's object that it takes for uninitialised.
          const auto copy = std::make_unique<C>(call_);
          run_call(*copy);
          return Outcome::completed;
        }
      } else if constexpr (Sendable<C>) {
        if (may_run_again()) return run_encoded_copy(*this);
      }
      if constexpr (!gives_coroutine) run_call(call_);
      return Outcome::completed;
    } catch (const StopRequested&) {
      error = stopped_error(*this);
      return Outcome::cancelled;
    } catch (...) {
      error = std::current_exception();
      return Outcome::failed;
    }
  }

  bool is_coroutine() const noexcept override { return gives_coroutine; }

  void start_coroutine(const asio::any_io_executor& on, asio::cancellation_slot slot,
                       std::unique_ptr<CoroutineRun> run) override {
    if constexpr (gives_coroutine) {
      // Beside the coroutine, whose parameters and closure may refer to it; until it is over.
      std::shared_ptr<C> call;
      if constexpr (is_copyable_call<C>) {
        if (may_run_again()) call = std::make_shared<C>(call_);
      }
      if (!call) call = std::make_shared<C>(std::move(call_));
      C& called = *call;
      asio::co_spawn(on, run_coroutine(*this, called),
                     asio::bind_cancellation_slot(
                         slot, [this, call = std::move(call), run = std::move(run)](std::exception_ptr thrown) {
                           run->done(coroutine_outcome(*this, std::move(thrown)));
                         }));
    }
  }

  void encode(Encoder& encoder) override {
    if constexpr (gives_coroutine) {
      throw_needs_event_loop(*this);
    } else if constexpr (Sendable<C>) {
      Remote<C>::encode(call_, encoder);
    } else {
      throw SerializationError(SerializationError::Part::callable, type_name<typename CallTraits<C>::function>(),
                               "the callable, an argument or the result cannot be carried to another process",
                               core->context_of(*this));
    }
  }

  void encode_short(std::span<std::byte, kShortCall> to) override {
    if constexpr (Sendable<C> && !gives_coroutine) {
      if constexpr (Remote<C>::short_call != 0) Remote<C>::encode_short(call_, to);
    }
    static_cast<void>(to);
  }

  std::atomic<std::size_t>* large_size() noexcept override { return &large_call_size<C>; }

  void decode_result(Decoder& decoder) override {
    if constexpr (Sendable<C> && !gives_coroutine) {
      if constexpr (!is_void) result_.emplace(bulkhead::decode<Result>(decoder));
      decoder.finish();
    } else {
      static_cast<void>(decoder);
    }
  }

  void deliver(Delivery from) override {
    if (!handler_) {
      free_node();
      return;
    }
    // Everything moves out and the memory goes back first: the handler may start the next task in it.
    Handler handler = std::move(*handler_);
    HandlerExecutor<Handler> executor = std::move(executor_);
    std::exception_ptr cause = std::move(error);
    Stored result = std::move(result_);
    const asio::any_io_executor& io = core->io;
    const std::shared_ptr<ProgressRelay> relay = std::move(progress_relay);
    free_node();
    hand_over(std::move(handler), std::move(executor), io, std::move(cause), std::move(result), from, relay);
  }

  void deliver_value(const std::byte* value) override {
    if constexpr (Sendable<C> && !gives_coroutine) {
      if constexpr (Remote<C>::plain_answer != 0) {
        Stored result;
        if constexpr (!is_void) std::memcpy(&result.emplace(), value, sizeof(Result));
        if (!handler_ || !executor_.is_io_executor()) {
          result_ = std::move(result);
          deliver(Delivery::on_io_executor);
          return;
        }
        Handler handler = std::move(*handler_);
        keep_or_free();
        if constexpr (is_void) {
          std::move(handler)(std::exception_ptr());
        } else if constexpr (TakesOptional<Handler>) {
          std::move(handler)(std::exception_ptr(), std::move(result));
        } else {
          std::move(handler)(std::exception_ptr(), std::move(*result));
        }
      }
    }
  }

  bool post_outcome() override {
    if (!handler_) return true;
    Handler handler = std::move(*handler_);
    handler_.reset();
    hand_over(std::move(handler), std::move(executor_), core->io, std::move(error), std::move(result_),
              Delivery::initiating, std::move(progress_relay));
    return true;
  }

  void deliver_progress(Progress&& progress) override {
    if (!handler_ || !progress_relay || !progress_relay->set(std::move(progress))) return;
    // By way of the executor's own: that of an any_completion_handler cannot be posted to.
    asio::post(core->io, asio::bind_executor(asio::get_associated_executor(*handler_, core->io),
                                             ProgressRelay::Run(progress_relay)));
  }

  bool repeatable() const noexcept override { return is_copyable_call<C> || (Sendable<C> && !gives_coroutine); }

  void deliver_early(std::exception_ptr cause, Delivery from) override {
    if (!handler_) return;
    Handler handler = std::move(*handler_);
    handler_.reset();
    hand_over(std::move(handler), std::move(executor_), core->io, std::move(cause), Stored(), from,
              std::move(progress_relay));
  }

  std::shared_ptr<void> take_handler() override {
    executor_.release();
    if (!handler_) return nullptr;
    auto handler = std::make_shared<Handler>(std::move(*handler_));
    handler_.reset();
    return handler;
  }
  void destroy() noexcept override { free_node(); }

  NameSource name_source() const noexcept override { return callable_name(call_.function); }

 private:
  template <class H>
  TaskImpl(ExecutorCore& executor_core, TaskOptions&& task_options, C&& call, H&& handler)
      : TaskNode(executor_core, std::move(task_options)),
        call_(std::move(call)),
        allocator_(asio::get_associated_allocator(handler, asio::recycling_allocator<void>())),
        executor_(handler, core->io),
        handler_(std::forward<H>(handler)) {
    if (options.has_rare() && options.on_progress())
      progress_relay = std::make_shared<ProgressRelay>(options.on_progress());
    if constexpr (Sendable<C> && !gives_coroutine) {
      library_encoding = Remote<C>::library_encoding;
      short_call = Remote<C>::short_call;
      plain_answer = Remote<C>::plain_answer;
      library_decoding = Remote<C>::library_decoding;
    }
  }
  ~TaskImpl() = default;

  static asio::awaitable<void> run_coroutine(TaskImpl& self, C& call) {
    auto coroutine = std::apply(call.function, std::move(call.arguments));
    if (!coroutine.valid()) throw_empty_awaitable();
    if constexpr (is_void) {
      co_await std::move(coroutine);
    } else {
      self.result_.emplace(co_await std::move(coroutine));
    }
  }

  void run_call(C& call) {
    if constexpr (is_void) {
      std::apply(std::move(call.function), std::move(call.arguments));
    } else {
      result_.emplace(std::apply(std::move(call.function), std::move(call.arguments)));
    }
  }

  void free_node() noexcept {
    NodeAllocator allocator(allocator_);
    this->~TaskImpl();
    std::allocator_traits<NodeAllocator>::deallocate(allocator, this, 1);
  }

  // Where there is nothing left in it but the handler, which has been moved away.
  void keep_or_free() noexcept {
    if constexpr (is_kept) {
      handler_.reset();
      SpareNodes* const spares = renewable && held.use_count() == 0 && !waits_for_room ? SpareNodes::here() : nullptr;
      if (spares != nullptr) {
        spares->keep(&kind, this, sizeof(TaskImpl));
        return;
      }
    }
    free_node();
  }

  // The completion of a task whose progress is on its way, which keeps the handler's executor at work.
  class Completion final : public ProgressRelay::Completion {
   public:
    Completion(Handler&& handler, const asio::any_io_executor& io, std::exception_ptr&& cause, Stored&& result,
               Delivery from)
        : handler_(std::move(handler)), io_(io), cause_(std::move(cause)), result_(std::move(result)), from_(from) {}

    void run() override {
      HandlerExecutor<Handler> executor(handler_, io_);
      hand_over(std::move(handler_), std::move(executor), io_, std::move(cause_), std::move(result_), from_, nullptr);
    }

   private:
    Handler handler_;
    asio::any_io_executor io_;
    std::exception_ptr cause_;
    Stored result_;
    Delivery from_;
  };

  static void hand_over(Handler&& handler, HandlerExecutor<Handler> executor, const asio::any_io_executor& io,
                        std::exception_ptr&& cause, Stored&& result, Delivery from,
                        const std::shared_ptr<ProgressRelay>& relay) {
    if (relay) {
      // It may be called from wherever the last progress is.
      const Delivery later = from == Delivery::initiating ? from : Delivery::elsewhere;
      relay->complete(std::make_unique<Completion>(std::move(handler), io, std::move(cause), std::move(result), later));
      return;
    }
    if constexpr (is_void) {
      finish(std::move(handler), std::move(executor), io, from, std::move(cause));
    } else if constexpr (std::is_same_v<handed_t<Result>, Result> && !TakesOptional<Handler>) {
      if (cause || !result) {
        finish(std::move(handler), std::move(executor), io, from, std::move(cause), Result());
      } else {
        finish(std::move(handler), std::move(executor), io, from, std::move(cause), std::move(*result));
      }
    } else {
      finish(std::move(handler), std::move(executor), io, from, std::move(cause), std::move(result));
    }
  }

  template <class... Values>
  static void finish(Handler&& handler, HandlerExecutor<Handler>&& executor, const asio::any_io_executor& io,
                     Delivery from, Values&&... values) {
    if (from == Delivery::on_io_executor && executor.is_io_executor()) {
      std::move(handler)(std::forward<Values>(values)...);
      return;
    }
    auto bound = asio::append(std::move(handler), std::forward<Values>(values)...);
    if (from == Delivery::initiating) {
      asio::post(io, std::move(bound));
    } else if (executor.is_io_executor()) {
      asio::dispatch(io, std::move(bound));
    } else {
      asio::dispatch(std::move(bound));
    }
  }

  C call_;
  // Beside the handler, since the node may outlive it.
  [[no_unique_address]] HandlerAllocator allocator_;
  HandlerExecutor<Handler> executor_;
  std::optional<Handler> handler_;
  [[no_unique_address]] Stored result_;
};

}  // namespace bulkhead::detail

// What is associated with a handler is associated with it, too.
template <template <typename, typename> class Associator, class Handler, class Default>
struct boost::asio::associator<Associator, bulkhead::detail::OptionalHandler<Handler>, Default>
    : Associator<Handler, Default> {
  static auto get(const bulkhead::detail::OptionalHandler<Handler>& optional) noexcept {
    return Associator<Handler, Default>::get(optional.handler);
  }
  static auto get(const bulkhead::detail::OptionalHandler<Handler>& optional, const Default& otherwise) noexcept {
    return Associator<Handler, Default>::get(optional.handler, otherwise);
  }
};
