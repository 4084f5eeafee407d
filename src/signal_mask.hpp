// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <signal.h>
#include <initializer_list>

namespace bulkhead::detail {

/// While it lives, threads that are made block the program's signals: handlers, `signal_set` and `sigwait` are for the
/// program's own threads. A fault is not blocked, since it is the doing of the thread itself: the kernel would end the
/// process without the program's handler. Nor is the signal of profilers.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t blocked;
    ::sigfillset(&blocked);
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF}) {
      ::sigdelset(&blocked, signal);
    }
    ::pthread_sigmask(SIG_BLOCK, &blocked, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace bulkhead::detail
