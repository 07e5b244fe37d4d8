# Defines modicum::pcre2 where an 8-bit PCRE2 is installed. Read by modicum's own build, and by its installed package,
# whose static library needs PCRE2 at link time. The static one first, so that a wheel needs nothing of the system.
find_path(MODICUM_PCRE2_INCLUDE pcre2.h HINTS ${PACKAGE_PREFIX_DIR}/include)
find_library(MODICUM_PCRE2_LIBRARY NAMES libpcre2-8.a pcre2-8 HINTS ${PACKAGE_PREFIX_DIR}/lib)
mark_as_advanced(MODICUM_PCRE2_INCLUDE MODICUM_PCRE2_LIBRARY)
if(MODICUM_PCRE2_INCLUDE AND MODICUM_PCRE2_LIBRARY AND NOT TARGET modicum::pcre2)
  add_library(modicum::pcre2 UNKNOWN IMPORTED GLOBAL)
  set_target_properties(modicum::pcre2 PROPERTIES IMPORTED_LOCATION ${MODICUM_PCRE2_LIBRARY}
                                                  INTERFACE_INCLUDE_DIRECTORIES ${MODICUM_PCRE2_INCLUDE})
endif()
