# SPDX-License-Identifier: BSL-1.0
# Sets bulkhead_with_libseccomp, BULKHEAD_LIBSECCOMP_INCLUDE_DIR and BULKHEAD_LIBSECCOMP_LIBRARY.
set(bulkhead_with_libseccomp OFF)
string(TOUPPER "${BULKHEAD_LIBSECCOMP}" bulkhead_wants_libseccomp)
if(bulkhead_wants_libseccomp STREQUAL "AUTO" OR bulkhead_wants_libseccomp)
  find_path(BULKHEAD_LIBSECCOMP_INCLUDE_DIR seccomp.h)
  find_library(BULKHEAD_LIBSECCOMP_LIBRARY seccomp)
  mark_as_advanced(BULKHEAD_LIBSECCOMP_INCLUDE_DIR BULKHEAD_LIBSECCOMP_LIBRARY)
  if(BULKHEAD_LIBSECCOMP_INCLUDE_DIR AND BULKHEAD_LIBSECCOMP_LIBRARY)
    set(bulkhead_with_libseccomp ON)
  elseif(NOT bulkhead_wants_libseccomp STREQUAL "AUTO")
    message(FATAL_ERROR "BULKHEAD_LIBSECCOMP is ${BULKHEAD_LIBSECCOMP}, and there is no libseccomp here: install "
                        "libseccomp-dev, or set it to AUTO or OFF")
  endif()
endif()
