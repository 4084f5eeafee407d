// SPDX-License-Identifier: BSL-1.0
#include "background.hpp"

#include "process/symbols.hpp"
#include "signal_mask.hpp"

#include <bulkhead/detail/mutex.hpp>

#include <boost/asio/post.hpp>

#include <pthread.h>
#include <mutex>

namespace bulkhead::detail {

std::shared_ptr<Background> Background::get() {
  // Not destroyed at exit: executors with static storage duration may need them later than that.
  static auto& mutex = *new std::mutex;
  static auto& shared = *new std::weak_ptr<Background>;
  const std::lock_guard lock(mutex);
  process::mark_first_process();
  auto background = shared.lock();
  if (!background || background->made_here_.is_forked_copy()) {
    background = std::make_shared<Background>();
    shared = background;
  }
  return background;
}

Background::Background() : prompt_("bulkhead"), slow_("bulkhead-report") {
  boost::asio::post(slow_.context, Mutex::allow_bias);
  boost::asio::post(slow_.context, process::prepare_symbols);
}

Background::~Background() {
  if (made_here_.is_forked_copy()) return;
  // Its end may have been noticed a moment ago, and the thread that waits for it not have begun.
  if (const process::ForkServer* server = process::ForkServer::find()) server->reap();
}

Background::Thread::Thread(const char* name) {
  const SignalsBlocked blocked;
  thread = std::thread([this, name] {
    ::pthread_setname_np(::pthread_self(), name);
    context.run();
  });
}

Background::Thread::~Thread() {
  if (made_here.is_forked_copy()) {
    // The thread exists in the parent only; waiting for it would last for ever.
    thread.detach();
    return;
  }
  work.reset();
  context.stop();
  thread.join();
}

}  // namespace bulkhead::detail
