# SPDX-License-Identifier: BSL-1.0
# Bugs that fuzz targets find, from the same corpus as always. They take some seconds; the time is for busy machines.
include("${CMAKE_CURRENT_LIST_DIR}/PlantedBug.cmake")

set(run_response_fuzz -seed=1 -max_total_time=60 "-seed_inputs=@${CMAKE_CURRENT_BINARY_DIR}/fuzz_response_fuzz.corpus"
                      "-artifact_prefix=${PROJECT_BINARY_DIR}/planted/")
# The size that is used is not the one that was checked. The pauses only make that likely within seconds.
planted_bug(
  fuzzed_double_fetch
  IN process/channel.cpp
  RIGHT "    result.payload = {slot.payload, size};"
  WRONG "    for (int i = 0; i < 200; ++i) pause();\n    result.payload = {slot.payload, slot.size.load()};"
  FOUND_BY fuzz_response_fuzz
  RUN ${run_response_fuzz}
  SAYING "an answer was believed that does not lie within its slot or the heap")
planted_bug(
  fuzzed_unchecked_length
  IN process/channel.cpp
  RIGHT "if (size > layout_.heap_size || offset > layout_.heap_size - size) {"
  WRONG "if (offset > layout_.heap_size) {"
  FOUND_BY fuzz_response_fuzz
  RUN ${run_response_fuzz}
  SAYING "an answer was believed that does not lie within its slot or the heap")
