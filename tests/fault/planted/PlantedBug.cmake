# SPDX-License-Identifier: BSL-1.0
# Tests over the library with a planted bug each, which they must find: else they could not find a real one.
# PlantedBugs.cmake has those for the test programs, BugsForFuzzers.cmake those for the fuzz targets.

# planted_bug(NAME
#             IN <source> RIGHT <text> WRONG <text>   the library with one text of one source replaced by another
#             FOUND_BY <program> [RUN <argument>...]  a test program, called with these arguments,
#             SAYING <text> [OR_SAYING <text>])       fails and says this
function(planted_bug name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "IN;RIGHT;WRONG;FOUND_BY;SAYING;OR_SAYING" "RUN")
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
  if(arg_FOUND_BY MATCHES "^fuzz_")
    target_compile_options(${program} PRIVATE -fsanitize=fuzzer)
    target_link_options(${program} PRIVATE -fsanitize=fuzzer)
  endif()
  add_test(NAME fault_planted_${name}
           COMMAND "${CMAKE_COMMAND}" "-DSAYING=${arg_SAYING}" "-DOR_SAYING=${arg_OR_SAYING}" -P
                   "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/expect_failure.cmake" -- $<TARGET_FILE:${program}> ${arg_RUN})
  set_tests_properties(fault_planted_${name} PROPERTIES TIMEOUT 400 LABELS fault RUN_SERIAL ON)
endfunction()
