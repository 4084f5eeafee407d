# SPDX-License-Identifier: BSL-1.0
# Tests over the library with a planted bug each, which they must find: else they could not find a real one.

# planted_bug(NAME
#             IN <source> RIGHT <text> WRONG <text>   the library with one text of one source replaced by another
#             FOUND_BY <program> [RUN <argument>...]  a test program, called with these arguments,
#             SAYING <text>)                          fails and says this
function(planted_bug name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "IN;RIGHT;WRONG;FOUND_BY;SAYING" "RUN")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/${arg_IN}")
  file(READ "${PROJECT_SOURCE_DIR}/src/${arg_IN}" text)
  string(FIND "${text}" "${arg_RIGHT}" first)
  string(FIND "${text}" "${arg_RIGHT}" last REVERSE)
  if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "planted bug ${name}: src/${arg_IN} does not have this text, or more than once: ${arg_RIGHT}")
  endif()
  string(REPLACE "${arg_RIGHT}" "${arg_WRONG}" planted "${text}")
  set(file "${PROJECT_BINARY_DIR}/planted/${name}.cpp")
  set(before "")
  if(EXISTS "${file}")
    file(READ "${file}" before)
  endif()
  if(NOT before STREQUAL planted)
    file(WRITE "${file}" "${planted}")
  endif()

  # Beside the program's own objects, so that the linker takes it and not the library's.
  set(program ${arg_FOUND_BY}_${name})
  add_executable(${program} $<TARGET_OBJECTS:${arg_FOUND_BY}> "${file}")
  target_link_libraries(${program} PRIVATE $<TARGET_PROPERTY:${arg_FOUND_BY},LINK_LIBRARIES>)
  cmake_path(GET arg_IN PARENT_PATH folder)
  target_include_directories(${program} PRIVATE "${PROJECT_SOURCE_DIR}/src" "${PROJECT_SOURCE_DIR}/src/${folder}")
  add_test(NAME fault_planted_${name}
           COMMAND "${CMAKE_COMMAND}" "-DSAYING=${arg_SAYING}" -P
                   "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/expect_failure.cmake" -- $<TARGET_FILE:${program}> ${arg_RUN})
  set_tests_properties(fault_planted_${name} PROPERTIES TIMEOUT 400 LABELS fault RUN_SERIAL ON)
endfunction()

planted_bug(
  publish_before_write
  IN process/channel.cpp
  RIGHT "  ResponseSlot& slot = response_slot(next_);\n  slot.sequence.store(next_);"
  WRONG "  response().committed.store(next_ + 1, std::memory_order_seq_cst);\n  ResponseSlot& slot = response_slot(next_);\n  slot.sequence.store(next_);"
  FOUND_BY kill_step
  SAYING "its answer was complete, and must arrive")
planted_bug(
  no_recheck_before_sleep
  IN process/channel.cpp
  RIGHT "if (!has_request()) futex_wait(request().published, next_, limit)"
  WRONG "futex_wait(request().published, request().published.load(), limit)"
  FOUND_BY kill_step
  SAYING "the worker sleeps on")
planted_bug(
  no_final_drain
  IN worker_pool_processes.cpp
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
  IN worker_pool_processes.cpp
  RIGHT "    ending.signal = worker.status->signal;"
  WRONG "    ending.signal = worker.status->signal == SIGSEGV ? SIGABRT : worker.status->signal;"
  FOUND_BY fault_chaos_test
  SAYING "has the wrong signal")
