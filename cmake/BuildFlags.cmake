# SPDX-License-Identifier: BSL-1.0
# Flags for what this project compiles itself. They sit on a target of their own that is linked privately, so that
# nobody who uses the library inherits them.
add_library(bulkhead_build_flags INTERFACE)

if(PROJECT_IS_TOP_LEVEL)
  target_compile_options(
    bulkhead_build_flags
    INTERFACE -Wall
              -Wextra
              -Wpedantic
              -Wshadow
              -Wconversion
              -Woverloaded-virtual
              -Wcast-align
              -Wundef)
endif()

if(BULKHEAD_WERROR)
  target_compile_options(bulkhead_build_flags INTERFACE -Werror)
endif()

if(BULKHEAD_SANITIZE)
  target_compile_options(bulkhead_build_flags INTERFACE -fsanitize=${BULKHEAD_SANITIZE} -fno-sanitize-recover=all
                                                        -fno-omit-frame-pointer)
  target_link_options(bulkhead_build_flags INTERFACE -fsanitize=${BULKHEAD_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # clang 16 keeps the address of a thread-local variable across a suspension of the coroutine, which may go on on
    # another thread: Asio's cache of coroutine frames is the one place where that shows. See docs/coroutine-pitfalls.md.
    target_compile_definitions(bulkhead_build_flags INTERFACE BOOST_ASIO_DISABLE_AWAITABLE_FRAME_RECYCLING)
  endif()
  if(BULKHEAD_SANITIZE STREQUAL "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ warns of each atomic fence in Asio's headers; tsan.supp has the one place where it matters.
    target_compile_options(bulkhead_build_flags INTERFACE -Wno-tsan)
  endif()
endif()
