# SPDX-License-Identifier: BSL-1.0
# Fault 24: a clock that is set must not end a task, or keep it. So nothing that waits or measures may name the system's
# time; the files below tell people when something was, start a task when a calendar says so, or name system calls.
#   cmake -DPROJECT=DIRECTORY -P tests/fault/steady_clock_only.cmake
set(may_name_it
    include/bulkhead/detail/timed_runs.hpp
    include/bulkhead/events.hpp
    include/bulkhead/task_info.hpp
    include/bulkhead/task_interface.hpp
    src/executor_core_events.cpp
    src/process/seccomp_filter.cpp
    src/process/system_call_names.hpp
    src/scheduled_runs.cpp
    src/task_record.cpp)

file(GLOB_RECURSE files RELATIVE "${PROJECT}" "${PROJECT}/include/*" "${PROJECT}/src/*")
list(LENGTH files number)
if(number LESS 50)
  message(FATAL_ERROR "only ${number} files lie in include and src of ${PROJECT}")
endif()
set(name_it "")
foreach(file IN LISTS files)
  file(STRINGS "${PROJECT}/${file}" lines
       REGEX "system_clock|utc_clock|CLOCK_REALTIME|CLOCK_TAI|gettimeofday|timespec_get|[^_a-z]time\\((nullptr|NULL|0|&)")
  if(lines)
    list(APPEND name_it "${file}")
  endif()
endforeach()
set(wrong ${name_it})
list(REMOVE_ITEM wrong ${may_name_it})
if(wrong)
  list(JOIN wrong "\n  " wrong)
  message(FATAL_ERROR "these name the system's time, and must use the steady clock:\n  ${wrong}")
endif()
set(stale ${may_name_it})
if(name_it)
  list(REMOVE_ITEM stale ${name_it})
endif()
if(stale)
  list(JOIN stale "\n  " stale)
  message(FATAL_ERROR "these name it no more, and leave the list in steady_clock_only.cmake:\n  ${stale}")
endif()
