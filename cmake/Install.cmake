# SPDX-License-Identifier: BSL-1.0
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(bulkhead_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/bulkhead")
set(bulkhead_pkgconfig_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(
  TARGETS bulkhead
  EXPORT bulkhead-targets
  FILE_SET HEADERS)
install(
  EXPORT bulkhead-targets
  NAMESPACE bulkhead::
  DESTINATION "${bulkhead_cmake_dir}")

# A static library is linked with what it needs by whoever uses it.
set(bulkhead_links_libseccomp OFF)
if(bulkhead_with_libseccomp AND NOT bulkhead_is_shared)
  set(bulkhead_links_libseccomp ON)
endif()

configure_package_config_file(cmake/bulkhead-config.cmake.in "${PROJECT_BINARY_DIR}/bulkhead-config.cmake"
                              INSTALL_DESTINATION "${bulkhead_cmake_dir}")
# Until 1.0 every minor version may break what used the one before it.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/bulkhead-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/bulkhead-config.cmake" "${PROJECT_BINARY_DIR}/bulkhead-config-version.cmake"
        DESTINATION "${bulkhead_cmake_dir}")

# The .pc file finds its prefix from where it lies, so that an installed tree may be moved.
set(bulkhead_any_prefix "/prefix")
cmake_path(RELATIVE_PATH bulkhead_any_prefix BASE_DIRECTORY "/prefix/${bulkhead_pkgconfig_dir}" OUTPUT_VARIABLE bulkhead_prefix_from_pc)
math(EXPR bulkhead_next_fmt "${fmt_VERSION_MAJOR} + 1")
if(bulkhead_is_shared)
  set(bulkhead_pc_cflags " -DBULKHEAD_SHARED")
  set(bulkhead_pc_libs "")
else()
  set(bulkhead_pc_cflags "")
  set(bulkhead_pc_libs " -ldl")
  if(bulkhead_links_libseccomp)
    string(APPEND bulkhead_pc_libs " -lseccomp")
  endif()
endif()
configure_file(cmake/bulkhead.pc.in "${PROJECT_BINARY_DIR}/bulkhead.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/bulkhead.pc" DESTINATION "${bulkhead_pkgconfig_dir}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
