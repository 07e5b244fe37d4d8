# Headers, library and the package that find_package(modicum) reads.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/modicum)

install(TARGETS modicum EXPORT modicumTargets FILE_SET HEADERS)
install(EXPORT modicumTargets NAMESPACE modicum:: DESTINATION ${package_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/modicumConfig.cmake.in modicumConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(modicumConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/modicumConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/modicumConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/ModicumPcre2.cmake ${CMAKE_CURRENT_LIST_DIR}/ModicumEigen.cmake
        DESTINATION ${package_dir})
