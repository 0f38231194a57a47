# How a room says what it builds. Sources are listed by hand, relative to the CMakeLists.txt
# that names them; #include lines are written from the repository root ("shm/block.h");
# "modelbroker_version.h" is found from everywhere.
#
#   modelbroker_library(shm
#     SOURCES block.cc error.cc manifest.cc
#     PUBLIC  tl::expected            # what our headers include
#     PRIVATE PkgConfig::xxhash)      # what only our .cc files include
#       A static library, used by others as modelbroker::shm. Headers are not listed.
#
#   modelbroker_executable(modelbroker
#     SOURCES main.cc
#     LIBRARIES modelbroker::cli modelbroker::server)
#       A program, in <build>/bin.
#
#   modelbroker_test(unit/shm_block_test.cc
#     LIBRARIES modelbroker::shm
#     LABELS    threads               # optional: `make tsan` runs the tests with this label
#     TIMEOUT   600)                  # optional: seconds for each test case, 300 if not said
#       Called in tests/CMakeLists.txt. A GoogleTest program named after its file, with a main
#       of GoogleTest's own if the file has none (gmock is linked too). Its label is the folder
#       it lies in (unit, integration, crash, fuzz, gpu). ctest runs every test case as a process
#       of its own, two at a time: a test may use no fixed name, path or port.
#
#   modelbroker_fuzzer(fuzz/wire_frame_fuzz.cc
#     LIBRARIES modelbroker::wire)
#       Called in tests/CMakeLists.txt. With MODELBROKER_FUZZ (preset fuzz) a libFuzzer program named
#       after its file; else one that runs the target on tests/fuzz/corpus/<name>, and a test that does.
#
#   modelbroker_benchmark(load_floor_bench.cc
#     LIBRARIES Threads::Threads)
#       Called in bench/CMakeLists.txt. A program named after its file, with a main of its own.
#
# The third-party targets are listed in cmake/dependencies.cmake.

include(GoogleTest)

# What every target of ours has in common.
function(_modelbroker_defaults target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow)
  target_include_directories(${target}
    PUBLIC ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
endfunction()

# A misspelt keyword would otherwise be taken as one more source or library.
macro(_modelbroker_require_sources name)
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "${name}: no SOURCES given")
  endif()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${name}: not understood: ${arg_UNPARSED_ARGUMENTS}")
  endif()
endmacro()

function(modelbroker_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;PUBLIC;PRIVATE")
  _modelbroker_require_sources(${name})
  add_library(modelbroker_${name} STATIC ${arg_SOURCES})
  if(name MATCHES "^(shm|wire|client)$")  # they end up in a shared library too
    set_target_properties(modelbroker_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  endif()
  add_library(modelbroker::${name} ALIAS modelbroker_${name})
  _modelbroker_defaults(modelbroker_${name})
  target_link_libraries(modelbroker_${name} PUBLIC ${arg_PUBLIC} PRIVATE ${arg_PRIVATE})
endfunction()

function(modelbroker_executable name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBRARIES")
  _modelbroker_require_sources(${name})
  add_executable(${name} ${arg_SOURCES})
  _modelbroker_defaults(${name})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES})
endfunction()

function(modelbroker_test source)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "LIBRARIES;LABELS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "${source}: not understood: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  cmake_path(GET source STEM name)
  cmake_path(ABSOLUTE_PATH source OUTPUT_VARIABLE path)
  cmake_path(RELATIVE_PATH path BASE_DIRECTORY ${PROJECT_SOURCE_DIR}/tests)
  string(REGEX REPLACE "/.*" "" kind ${path})
  if(NOT kind MATCHES "^(unit|integration|crash|fuzz|gpu)$")
    message(FATAL_ERROR "${source}: a test lies in tests/{unit,integration,crash,fuzz,gpu}/")
  endif()

  modelbroker_executable(${name} SOURCES ${source}
    LIBRARIES ${arg_LIBRARIES} GTest::gtest_main GTest::gmock)
  if(MODELBROKER_PRECOMPILE)
    target_precompile_headers(${name} REUSE_FROM modelbroker_test_headers)
  endif()
  if("threads" IN_LIST arg_LABELS)  # all that `make tsan` needs to build
    if(NOT TARGET threads_tests)
      add_custom_target(threads_tests)
    endif()
    add_dependencies(threads_tests ${name})
  endif()
  # PRE_TEST: a sanitizer build is not slowed by running each program to ask for its tests.
  gtest_discover_tests(${name}
    TEST_PREFIX ${kind}/${name}:
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT ${arg_TIMEOUT})
  # gtest_discover_tests() cannot pass on a list of labels: ctest reads this file after the
  # discovery and sets them.
  set(labels_file ${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake)
  file(CONFIGURE OUTPUT ${labels_file} @ONLY CONTENT
    "set_tests_properties(\${@name@_TESTS} PROPERTIES LABELS \"@kind@;@arg_LABELS@\")\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${labels_file})
endfunction()

function(modelbroker_fuzzer source)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LIBRARIES")
  cmake_path(GET source STEM name)
  if(MODELBROKER_FUZZ)
    modelbroker_executable(${name} SOURCES ${source} LIBRARIES ${arg_LIBRARIES})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    return()
  endif()
  modelbroker_executable(${name} SOURCES ${source} support/corpus_main.cc LIBRARIES ${arg_LIBRARIES})
  add_test(NAME fuzz/${name}:corpus
    COMMAND ${name} ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${name})
  set_tests_properties(fuzz/${name}:corpus PROPERTIES LABELS fuzz TIMEOUT 300)
endfunction()

function(modelbroker_benchmark source)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LIBRARIES")
  cmake_path(GET source STEM name)
  modelbroker_executable(${name} SOURCES ${source} LIBRARIES ${arg_LIBRARIES})
endfunction()
