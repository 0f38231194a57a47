# Public headers as programs outside the tree see them: <modelbroker/broker.h>, whatever room they come from.
# Written when cmake configures, below <build>/include.
#
#   modelbroker_public_headers(shm/error.h cpp_client/broker.h)
#     Each may include others of the list only.

function(modelbroker_public_headers)
  foreach(header ${ARGN})
    set(source ${PROJECT_SOURCE_DIR}/${header})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    cmake_path(GET header FILENAME name)
    file(READ ${source} text)
    string(REGEX REPLACE "#include \"(shm|cpp_client)/([a-z_]+[.]h)\"" "#include <modelbroker/\\2>" text "${text}")
    if(text MATCHES "#include \"")
      message(FATAL_ERROR "${header} is public and includes what is not")
    endif()
    file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/include/modelbroker/${name} CONTENT "${text}" @ONLY)
  endforeach()
endfunction()
