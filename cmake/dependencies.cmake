# Every library that is not ours is found here and nowhere else.
# The Debian packages that bring them are listed in packaging/apt.txt.

find_package(Threads REQUIRED)             # Threads::Threads
find_package(Boost 1.74 REQUIRED)          # Boost::headers (Interprocess)
find_package(cppzmq REQUIRED)              # cppzmq
find_package(msgpack REQUIRED)             # msgpackc-cxx
find_package(tl-expected REQUIRED)         # tl::expected
find_package(CLI11 REQUIRED)               # CLI11::CLI11
find_package(fmt REQUIRED)                 # fmt::fmt
find_package(spdlog REQUIRED)              # spdlog::spdlog
find_package(tomlplusplus REQUIRED)        # tomlplusplus::tomlplusplus
find_package(nlohmann_json REQUIRED)       # nlohmann_json::nlohmann_json
find_package(SQLiteCpp REQUIRED)           # SQLiteCpp

find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)  # PkgConfig::xxhash
pkg_check_modules(seccomp REQUIRED IMPORTED_TARGET libseccomp)  # PkgConfig::seccomp

if(MODELBROKER_BUILD_TESTS)
  find_package(GTest REQUIRED)             # GTest::gtest_main, GTest::gmock
endif()
