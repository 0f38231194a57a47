// Carries the headers that the tests' programs share: see CMakeLists.txt.
