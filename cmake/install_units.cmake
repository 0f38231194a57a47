# Puts the systemd units and the user that they run as below the prefix of this installation, which is known only when
# it happens (cmake --install --prefix). Run by `cmake --install`; MODELBROKER_SOURCE, MODELBROKER_BUILD are set.

set(MODELBROKER_PROGRAM ${CMAKE_INSTALL_PREFIX}/bin/modelbroker)
foreach(kind system user)
  set(unit ${MODELBROKER_BUILD}/units/${kind}/modelbroker.service)
  if(kind STREQUAL system)
    configure_file(${MODELBROKER_SOURCE}/packaging/modelbroker.service.in ${unit} @ONLY)
  else()
    configure_file(${MODELBROKER_SOURCE}/packaging/modelbroker.user.service.in ${unit} @ONLY)
  endif()
  file(INSTALL ${unit} DESTINATION ${CMAKE_INSTALL_PREFIX}/lib/systemd/${kind})
endforeach()
file(INSTALL ${MODELBROKER_SOURCE}/packaging/modelbroker.sysusers.conf
  DESTINATION ${CMAKE_INSTALL_PREFIX}/lib/sysusers.d RENAME modelbroker.conf)
