// SPDX-License-Identifier: BSL-1.0
#include "background.hpp"

#include "process/fork_server.hpp"

#include <pthread.h>
#include <csignal>
#include <mutex>

namespace bulkhead::detail {

std::shared_ptr<Background> Background::get() {
  // Not destroyed at exit: executors with static storage duration may need them later than that.
  static auto& mutex = *new std::mutex;
  static auto& shared = *new std::weak_ptr<Background>;
  const std::lock_guard lock(mutex);
  auto background = process::is_forked_copy() ? nullptr : shared.lock();
  if (!background) {
    background = std::make_shared<Background>();
    shared = background;
  }
  return background;
}

Background::Background() : context_(1), work_(context_.get_executor()) {
  // The program's signals are for the program's threads.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "bulkhead");
    context_.run();
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Background::~Background() {
  if (process::is_forked_copy()) {
    // The thread exists in the parent only; waiting for it would last for ever.
    thread_.detach();
    return;
  }
  work_.reset();
  context_.stop();
  thread_.join();
}

}  // namespace bulkhead::detail
