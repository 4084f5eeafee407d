# SPDX-License-Identifier: BSL-1.0
# Compiles SOURCE and passes if the compiler refuses it and says every text that a line "// expect: text" at the
# beginning of SOURCE asks for, and makes one error of it: what comes beside the sentence hides it.
file(STRINGS "${SOURCE}" expectations REGEX "^// expect: ")
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE} has no line \"// expect: text\"")
endif()

list(TRANSFORM INCLUDE_DIRECTORIES PREPEND "-I")
execute_process(
  COMMAND "${CMAKE_COMMAND}" -E env LC_ALL=C "${COMPILER}" -std=c++20 -fsyntax-only ${INCLUDE_DIRECTORIES} "${SOURCE}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)

if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles, but should be refused")
endif()
foreach(expectation IN LISTS expectations)
  string(REPLACE "// expect: " "" text "${expectation}")
  string(FIND "${output}" "${text}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "The compiler does not say \"${text}\", but:\n${output}")
  endif()
endforeach()
string(REGEX MATCHALL "error: " errors "${output}")
list(LENGTH errors count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "The compiler reports ${count} errors and not one:\n${output}")
endif()
