# Makes modicum::eigen of an installed Eigen (headers only), where there is one.
if(NOT TARGET modicum::eigen)
  find_path(MODICUM_EIGEN_INCLUDE Eigen/Core HINTS ${CMAKE_PREFIX_PATH}
            PATH_SUFFIXES eigen3 include/eigen3 cmeel.prefix/include/eigen3)
  if(MODICUM_EIGEN_INCLUDE)
    add_library(modicum::eigen INTERFACE IMPORTED GLOBAL)
    set_target_properties(modicum::eigen PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${MODICUM_EIGEN_INCLUDE}
                          INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${MODICUM_EIGEN_INCLUDE})
  endif()
endif()
