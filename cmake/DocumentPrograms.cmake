# SPDX-License-Identifier: BSL-1.0
# Compiles the code of the documents, so that none of it can rot. A block is taken when this line precedes it:
#
#   <!-- compile: name -->
#   ```cpp
#
# A block with a main function becomes the test docs_<name>, which passes when the program exits with 0; any other is
# only compiled.
function(bulkhead_add_document_programs)
  foreach(document IN LISTS ARGN)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${document}")
    file(READ "${document}" rest)
    string(REGEX MATCHALL "<!-- compile:" markers "${rest}")
    list(LENGTH markers expected)
    set(found 0)
    set(line 1)
    while(rest MATCHES "<!-- compile: ([a-z0-9_]+) -->\n```cpp\n")
      set(marker "${CMAKE_MATCH_0}")
      set(name "docs_${CMAKE_MATCH_1}")
      math(EXPR found "${found} + 1")

      string(FIND "${rest}" "${marker}" begin)
      string(LENGTH "${marker}" length)
      math(EXPR begin "${begin} + ${length}")
      string(SUBSTRING "${rest}" 0 ${begin} before)
      string(REGEX REPLACE "[^\n]+" "" newlines "${before}")
      string(LENGTH "${newlines}" count)
      math(EXPR line "${line} + ${count}")

      string(SUBSTRING "${rest}" ${begin} -1 rest)
      string(FIND "${rest}" "\n```" end)
      string(SUBSTRING "${rest}" 0 ${end} code)

      # With #line the compiler's messages point into the document.
      set(source "${PROJECT_BINARY_DIR}/docs/${name}.cpp")
      set(text "#line ${line} \"${document}\"\n${code}\n")
      set(previous "")
      if(EXISTS "${source}")
        file(READ "${source}" previous)
      endif()
      if(NOT text STREQUAL previous)
        file(WRITE "${source}" "${text}")
      endif()

      if(code MATCHES "int main\\(")
        add_executable(${name} "${source}")
        add_test(NAME ${name} COMMAND ${name})
        set_tests_properties(${name} PROPERTIES TIMEOUT 60 LABELS docs)
      else()
        add_library(${name} OBJECT "${source}")
      endif()
      target_link_libraries(${name} PRIVATE bulkhead::bulkhead bulkhead_build_flags)
      # A #line that names the document makes g++ take the program's own types for a header's.
      target_compile_options(${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
    endwhile()
    if(NOT found EQUAL expected)
      message(FATAL_ERROR "${document}: ${expected} compile comments, but only ${found} are followed by a ```cpp block")
    endif()
  endforeach()
endfunction()
