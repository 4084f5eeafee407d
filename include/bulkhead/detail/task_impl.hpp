// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <bulkhead/call.hpp>
#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/detail/progress_relay.hpp>
#include <bulkhead/detail/remote_call.hpp>
#include <bulkhead/detail/task_node.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_allocator.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/asio/recycling_allocator.hpp>

#include <exception>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace bulkhead::detail {

// What a handler is called with beside the exception: R, or optional<R> where there is no R to give beside an error.
template <class R>
using handed_t = std::conditional_t<std::is_default_constructible_v<R>, R, std::optional<R>>;

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
  HandlerExecutor(const Handler& handler, const asio::any_io_executor& io) {
    const Executor executor = asio::get_associated_executor(handler, io);
    if (!same(executor, io)) tracked_.emplace(asio::prefer(executor, asio::execution::outstanding_work.tracked));
  }

  bool is_io_executor() const noexcept { return !tracked_; }

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

template <class C, class Handler>
class TaskImpl final : public TaskNode {
  using Result = call_result_t<C>;
  static constexpr bool is_void = std::is_void_v<Result>;
  using HandlerAllocator = asio::associated_allocator_t<Handler, asio::recycling_allocator<void>>;
  using NodeAllocator = typename std::allocator_traits<HandlerAllocator>::template rebind_alloc<TaskImpl>;
  using Stored = std::conditional_t<is_void, std::tuple<>, std::optional<std::conditional_t<is_void, int, Result>>>;

 public:
  template <class H>
  static TaskImpl* create(std::shared_ptr<ExecutorCore>&& core, TaskOptions&& options, C&& call, H&& handler) {
    auto allocator = NodeAllocator(asio::get_associated_allocator(handler, asio::recycling_allocator<void>()));
    auto* memory = std::allocator_traits<decltype(allocator)>::allocate(allocator, 1);
    try {
      return ::new (static_cast<void*>(memory))
          TaskImpl(std::move(core), std::move(options), std::move(call), std::forward<H>(handler));
    } catch (...) {
      std::allocator_traits<decltype(allocator)>::deallocate(allocator, memory, 1);
      throw;
    }
  }

  const Handler& handler() const noexcept { return *handler_; }

  Outcome run() noexcept override {
    try {
      if constexpr (is_void) {
        std::apply(std::move(call_.function), std::move(call_.arguments));
      } else {
        result_.emplace(std::apply(std::move(call_.function), std::move(call_.arguments)));
      }
      return Outcome::completed;
    } catch (const StopRequested&) {
      error = stopped_error(*this);
      return Outcome::cancelled;
    } catch (...) {
      error = std::current_exception();
      return Outcome::failed;
    }
  }

  void encode(Encoder& encoder) override {
    if constexpr (Sendable<C>) {
      Remote<C>::encode(call_, encoder);
    } else {
      throw SerializationError(SerializationError::Part::callable, type_name<typename CallTraits<C>::function>(),
                               "the callable, an argument or the result cannot be carried to another process",
                               core->context_of(*this));
    }
  }

  void decode_result(Decoder& decoder) override {
    if constexpr (Sendable<C>) {
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
    const std::shared_ptr<ExecutorCore> keep = std::move(core);
    const std::shared_ptr<ProgressRelay> relay = std::move(progress_relay);
    free_node();
    hand_over(std::move(handler), std::move(executor), keep->io, std::move(cause), std::move(result), from, relay);
  }

  void deliver_progress(Progress&& progress) override {
    if (!handler_ || !progress_relay || !progress_relay->set(std::move(progress))) return;
    asio::post(asio::get_associated_executor(*handler_, core->io), ProgressRelay::Run(progress_relay));
  }

  bool repeatable() const noexcept override { return Sendable<C>; }

  void deliver_early(std::exception_ptr cause, Delivery from) override {
    if (!handler_) return;
    Handler handler = std::move(*handler_);
    handler_.reset();
    hand_over(std::move(handler), std::move(executor_), core->io, std::move(cause), Stored(), from,
              std::move(progress_relay));
  }

  void drop_handler() noexcept override { handler_.reset(); }
  void destroy() noexcept override { free_node(); }

  std::string default_name() const override {
    using F = typename CallTraits<C>::function;
    if constexpr (is_function_pointer<F> || std::is_member_function_pointer_v<F>) {
      return function_name(code_of(call_.function), typeid(F).name());
    } else {
      return type_name<F>();
    }
  }

 private:
  template <class H>
  TaskImpl(std::shared_ptr<ExecutorCore>&& executor_core, TaskOptions&& task_options, C&& call, H&& handler)
      : TaskNode(std::move(executor_core), std::move(task_options)),
        call_(std::move(call)),
        allocator_(asio::get_associated_allocator(handler, asio::recycling_allocator<void>())),
        executor_(handler, core->io),
        handler_(std::forward<H>(handler)) {
    if (options.on_progress()) progress_relay = std::make_shared<ProgressRelay>(options.on_progress());
    if constexpr (Sendable<C>) {
      library_encoding = Remote<C>::library_encoding;
      library_decoding = Remote<C>::library_decoding;
    }
  }
  ~TaskImpl() = default;

  void free_node() noexcept {
    NodeAllocator allocator(allocator_);
    this->~TaskImpl();
    std::allocator_traits<NodeAllocator>::deallocate(allocator, this, 1);
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

  static void hand_over(Handler&& handler, HandlerExecutor<Handler>&& executor, const asio::any_io_executor& io,
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
    } else if constexpr (std::is_same_v<handed_t<Result>, Result>) {
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
