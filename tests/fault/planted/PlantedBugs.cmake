# SPDX-License-Identifier: BSL-1.0
# Bugs that test programs find, in builds without sanitizers.
include("${CMAKE_CURRENT_LIST_DIR}/PlantedBug.cmake")

planted_bug(
  publish_before_write
  IN process/channel.cpp
  RIGHT "  ResponseSlot& slot = response_slot(next_);\n  slot.sequence.store(next_);"
  WRONG "  response().committed.store(next_ + 1, std::memory_order_seq_cst);\n  ResponseSlot& slot = response_slot(next_);\n  slot.sequence.store(next_);"
  FOUND_BY kill_step
  SAYING "its answer was complete, and must arrive"
  OR_SAYING "a plain task has a wrong result")  # where the host looks in that moment
planted_bug(
  no_recheck_before_sleep
  IN process/channel.cpp
  RIGHT "if (!has_request()) futex_wait(request().published, next_, limit)"
  WRONG "futex_wait(request().published, request().published.load(), limit)"
  FOUND_BY kill_step
  SAYING "the worker sleeps on")
planted_bug(
  no_final_drain
  IN worker_pool_deaths.cpp
  RIGHT "  collect_all(*worker);\n  worker->buried = true"
  WRONG "  worker->buried = true"
  FOUND_BY kill_step
  SAYING "its answer was complete, and must arrive")
# No death is seen, and the dead worker keeps its place.
planted_bug(
  no_pidfd
  IN worker_pool_processes.cpp
  RIGHT "    if (!self || error) return;\n    {\n"
  WRONG "    if (!self || !error) return;\n    {\n"
  FOUND_BY kill_step
  SAYING "the pool has 2 workers")
# The size that is used is not the one that was checked. The pauses only make that likely within seconds.
planted_bug(
  double_fetch
  IN process/channel.cpp
  RIGHT "    result.payload = {slot.payload, size};"
  WRONG "    for (int i = 0; i < 200; ++i) pause();\n    result.payload = {slot.payload, slot.size.load()};"
  FOUND_BY process_channel_test
  RUN "garbage all over the area*"
  SAYING "FAILED: CHECK( out_of_bounds == 0 )")
planted_bug(
  no_seal_against_writing
  IN process/channel.cpp
  RIGHT "F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL"
  WRONG "F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL"
  FOUND_BY process_channel_test
  RUN "nobody but the host can map the request area writable"
  SAYING "FAILED: CHECK( ::pwrite(fd, ")
planted_bug(
  no_seal_against_shrinking
  IN process/channel.cpp
  RIGHT "seal(response_fd_, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)"
  WRONG "seal(response_fd_, F_SEAL_GROW | F_SEAL_SEAL)"
  FOUND_BY process_channel_test
  RUN "neither area can be cut short*"
  SAYING "FAILED: CHECK( error_of(::ftruncate(fd, 0)) ==")
planted_bug(
  miscounted
  IN executor_core.cpp
  RIGHT "    case Outcome::failed:\n      ++failed;"
  WRONG "    case Outcome::failed:\n      ++completed;"
  FOUND_BY fault_chaos_test
  SAYING "callers were told of")
planted_bug(
  wrong_signal
  IN worker_pool_deaths.cpp
  RIGHT "    ending.signal = worker.status->signal;"
  WRONG "    ending.signal = worker.status->signal == SIGSEGV ? SIGABRT : worker.status->signal;"
  FOUND_BY fault_chaos_test
  SAYING "has the wrong signal")
