# SPDX-License-Identifier: BSL-1.0
# Runs a program that must fail, and must say why:
#   cmake -DSAYING=<text> [-DOR_SAYING=<text>] -P expect_failure.cmake -- <program> [<argument>...]
# Line breaks in what it says count as blanks: how it is wrapped depends on the version of Catch2, and so does whether
# macros in a condition are expanded.
set(command "")
set(is_command OFF)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(number RANGE ${last})
  if(is_command)
    list(APPEND command "${CMAKE_ARGV${number}}")
  elseif(CMAKE_ARGV${number} STREQUAL "--")
    set(is_command ON)
  endif()
endforeach()

execute_process(COMMAND ${command} RESULT_VARIABLE code OUTPUT_VARIABLE said ERROR_VARIABLE said)
message("${said}")
string(REGEX REPLACE "[ \n]+" " " said "${said}")
string(FIND "${said}" "${SAYING}" place)
if(place EQUAL -1 AND OR_SAYING)
  string(FIND "${said}" "${OR_SAYING}" place)
endif()
# One that a signal ended has words in the place of a code.
if(NOT code MATCHES "^[1-9][0-9]*$" OR place EQUAL -1)
  message(FATAL_ERROR "The planted bug must be found with the words \"${SAYING}\"; exit code: ${code}")
endif()
