# SPDX-License-Identifier: BSL-1.0
# kill_step over the library as it is, and over the library with a planted bug each, which it must find: else it could
# not find a real one.
function(add_kill_step name)
  add_executable(${name} "${CMAKE_CURRENT_SOURCE_DIR}/fault/kill_step/main.cpp" ${ARGN})
  target_link_libraries(${name} PRIVATE bulkhead::bulkhead bulkhead_build_flags ${CMAKE_DL_LIBS})
  target_include_directories(${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/src")
endfunction()

# planted_bug(NAME SOURCE RIGHT WRONG) is the library with one text of one source replaced by another.
function(planted_bug name source right wrong)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/${source}")
  file(READ "${PROJECT_SOURCE_DIR}/src/${source}" text)
  string(REPLACE "${right}" "${wrong}" planted "${text}")
  if(planted STREQUAL text)
    message(FATAL_ERROR "planted bug ${name}: src/${source} does not have the text that it replaces: ${right}")
  endif()
  # Beside the program's own objects, so that the linker takes it and not the library's.
  set(file "${PROJECT_BINARY_DIR}/planted/${name}.cpp")
  set(before "")
  if(EXISTS "${file}")
    file(READ "${file}" before)
  endif()
  if(NOT before STREQUAL planted)
    file(WRITE "${file}" "${planted}")
  endif()
  cmake_path(GET source PARENT_PATH folder)
  add_kill_step(kill_step_${name} "${file}")
  target_include_directories(kill_step_${name} PRIVATE "${PROJECT_SOURCE_DIR}/src/${folder}")
  add_test(NAME fault_kill_step_${name} COMMAND kill_step_${name} --expect-violation)
  set_tests_properties(fault_kill_step_${name} PROPERTIES TIMEOUT 400 LABELS fault RUN_SERIAL ON)
endfunction()

add_kill_step(kill_step)
add_test(NAME fault_kill_step COMMAND kill_step)
set_tests_properties(fault_kill_step PROPERTIES TIMEOUT 400 LABELS fault RUN_SERIAL ON)

planted_bug(publish_before_write process/channel.cpp "  ResponseSlot& slot = response_slot(next_);\n  slot.sequence = next_;"
            "  response().committed.store(next_ + 1);\n  ResponseSlot& slot = response_slot(next_);\n  slot.sequence = next_;")
planted_bug(no_recheck_before_sleep process/channel.cpp "if (!has_request()) futex_wait(request().published, next_)"
            "futex_wait(request().published, request().published.load())")
planted_bug(no_final_drain worker_pool_processes.cpp "  collect_all(*worker);\n  worker->buried = true"
            "  worker->buried = true")
