// SPDX-License-Identifier: BSL-1.0
#include "background.hpp"

#include "process/symbols.hpp"

#include <bulkhead/detail/mutex.hpp>

#include <boost/asio/post.hpp>

#include <pthread.h>
#include <csignal>
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

Background::~Background() = default;

Background::Thread::Thread(const char* name) {
  // The program's signals are for the program's threads.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  thread = std::thread([this, name] {
    ::pthread_setname_np(::pthread_self(), name);
    context.run();
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
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
