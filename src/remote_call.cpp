// SPDX-License-Identifier: BSL-1.0
#include <bulkhead/detail/remote_call.hpp>

#include <bulkhead/detail/executor_core.hpp>
#include <bulkhead/exceptions.hpp>

#include "process/fork_server.hpp"
#include "process/program_code.hpp"
#include "process/symbols.hpp"

#include <cxxabi.h>

#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>

namespace bulkhead::detail {

KnownFunctions known_functions;

void look_up_function(const void* address) {
  if (address == nullptr) {
    throw FunctionUnavailableError("the function pointer is null", {}, FunctionUnavailableError::Cause::null_pointer);
  }
  // Without it nothing is sent to another process; nor is anything known that must be kept for later.
  const process::ForkServer* server = process::ForkServer::find();
  if (server == nullptr) return;
  server->code().require_function(address);
  known_functions.add(address);
}

std::string function_name(const void* address, const char* fallback_mangled_type) {
  const std::string symbol = process::symbol_name(address);
  return demangle(symbol.empty() ? fallback_mangled_type : symbol.c_str());
}

namespace {

// Given back when there is no memory left to tell of an exception: some times what the largest description takes, with
// its nested causes.
constexpr std::size_t kReserve = std::size_t{64} << 10;
std::atomic<std::byte*> reserve{new std::byte[kReserve]};

void put_exception(const std::exception_ptr& thrown, AnswerSink& sink) {
  sink.put(
      [](Encoder& encoder, const void* value) {
        encoder.write_value(AnswerKind::exception);
        encode_exception(encoder, *static_cast<const std::exception_ptr*>(value));
      },
      &thrown);
}

}  // namespace

void run_encoded(std::span<const std::byte> request, AnswerSink& sink) {
  std::exception_ptr thrown;
  try {
    Decoder decoder(request);
    const auto function = reinterpret_cast<RemoteFunction>(decoder.read_value<std::uint64_t>());
    function(decoder, sink);
    return;
  } catch (const abi::__forced_unwind&) {
    throw;  // pthread_exit or cancellation: not an exception that anybody may swallow
  } catch (const StopRequested&) {
    sink.put([](Encoder& encoder, const void*) { encoder.write_value(AnswerKind::stopped); }, nullptr);
    return;
  } catch (...) {
    thrown = std::current_exception();
  }
  try {
    put_exception(thrown, sink);
    return;
  } catch (const std::bad_alloc&) {
    const std::unique_ptr<std::byte[]> given_back(reserve.exchange(nullptr));
    if (!given_back) throw;
  }
  sink.set_out_of_memory();
  put_exception(thrown, sink);
}

namespace {

ErrorContext context_of_answer(const TaskNode& node) {
  ErrorContext context = node.core->context_of(node);
  if (node.place.worker_pid > 0) context.worker_pid = node.place.worker_pid;
  return context;
}

// With the context that was not known where the error was made.
std::exception_ptr completed(const SerializationError& error, SerializationError::Part part, const TaskNode& node) {
  return std::make_exception_ptr(SerializationError(part, error.type_name(), error.reason(), context_of_answer(node)));
}

}  // namespace

bool decode_short_answer(TaskNode& node, std::span<const std::byte> answer) {
  try {
    Decoder decoder(answer, Decoder::Source::untrusted);
    if (decoder.read_value<AnswerKind>() != AnswerKind::value) return false;
    node.decode_result(decoder);
  } catch (const SerializationError& error) {
    node.error = completed(error, SerializationError::Part::result, node);
  }
  return true;
}

Outcome decode_answer(TaskNode& node, std::span<const std::byte> answer) {
  try {
    Decoder decoder(answer, Decoder::Source::untrusted);
    switch (decoder.read_value<AnswerKind>()) {
      case AnswerKind::value:
        node.decode_result(decoder);
        return Outcome::completed;
      case AnswerKind::exception:
        node.error = decode_exception(decoder, context_of_answer(node));
        decoder.finish();
        break;
      case AnswerKind::stopped:
        node.error = stopped_error(node);
        return Outcome::cancelled;
      default:
        throw SerializationError(SerializationError::Part::result, "",
                                 "the answer is neither a value nor an exception");
    }
  } catch (const SerializationError& error) {
    node.error = completed(error, SerializationError::Part::result, node);
    return Outcome::failed;
  } catch (...) {
    node.error = std::current_exception();  // a codec of the user's
    return Outcome::failed;
  }
  // Where the task ran, its name is not known: what was said there of values gets it here.
  try {
    std::rethrow_exception(node.error);
  } catch (const SerializationError& error) {
    if (error.context().executor.empty()) node.error = completed(error, error.part(), node);
  } catch (...) {
    // Every other error is the task's own and stays as it is.
  }
  return Outcome::failed;
}

std::exception_ptr stopped_error(const TaskNode& node) {
  return std::make_exception_ptr(
      TaskCancelledError(TaskCancelledError::Stage::running, context_of_answer(node), "it stopped as it was asked to"));
}

void rethrow_as(SerializationError::Part part, const SerializationError& error) {
  throw SerializationError(part, error.type_name(), error.reason(), error.context());
}

}  // namespace bulkhead::detail
