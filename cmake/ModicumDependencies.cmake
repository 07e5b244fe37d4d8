# Each dependency: an installed package first, for people outside a pinned FetchContent.
include(FetchContent)
find_package(Threads REQUIRED)

# JSON: Debian's and PyPI's packages both bring a CMake config.
add_library(modicum_json INTERFACE)
find_package(nlohmann_json 3.11 QUIET)
if(NOT nlohmann_json_FOUND)
  find_path(MODICUM_JSON_INCLUDE nlohmann/json.hpp)
endif()
if(nlohmann_json_FOUND)
  target_link_libraries(modicum_json INTERFACE nlohmann_json::nlohmann_json)
elseif(MODICUM_JSON_INCLUDE)
  target_include_directories(modicum_json SYSTEM INTERFACE ${MODICUM_JSON_INCLUDE})
else()
  FetchContent_Declare(nlohmann_json SYSTEM EXCLUDE_FROM_ALL
    URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    URL_HASH SHA256=d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
  FetchContent_MakeAvailable(nlohmann_json)
  target_link_libraries(modicum_json INTERFACE nlohmann_json::nlohmann_json)
endif()

# xxHash: header only (XXH_INLINE_ALL).
add_library(modicum_xxhash INTERFACE)
find_path(MODICUM_XXHASH_INCLUDE xxhash.h)
if(NOT MODICUM_XXHASH_INCLUDE)
  FetchContent_Declare(xxhash SYSTEM EXCLUDE_FROM_ALL SOURCE_SUBDIR does-not-exist
    URL https://github.com/Cyan4973/xxHash/archive/refs/tags/v0.8.3.tar.gz)
  FetchContent_MakeAvailable(xxhash)
  set(MODICUM_XXHASH_INCLUDE ${xxhash_SOURCE_DIR} CACHE PATH "" FORCE)
endif()
target_include_directories(modicum_xxhash SYSTEM INTERFACE ${MODICUM_XXHASH_INCLUDE})

# PCRE2, 8 bit; the static library where there is one, so that a wheel needs nothing of the system.
add_library(modicum_pcre2 INTERFACE)
find_path(MODICUM_PCRE2_INCLUDE pcre2.h)
find_library(MODICUM_PCRE2_LIBRARY NAMES libpcre2-8.a pcre2-8)
if(MODICUM_PCRE2_INCLUDE AND MODICUM_PCRE2_LIBRARY)
  target_include_directories(modicum_pcre2 SYSTEM INTERFACE ${MODICUM_PCRE2_INCLUDE})
  target_link_libraries(modicum_pcre2 INTERFACE ${MODICUM_PCRE2_LIBRARY})
else()
  set(PCRE2_BUILD_TESTS OFF)
  set(PCRE2_BUILD_PCRE2GREP OFF)
  set(PCRE2_SUPPORT_JIT ON)
  FetchContent_Declare(pcre2 SYSTEM EXCLUDE_FROM_ALL
    URL https://github.com/PCRE2Project/pcre2/releases/download/pcre2-10.44/pcre2-10.44.tar.bz2)
  FetchContent_MakeAvailable(pcre2)
  target_link_libraries(modicum_pcre2 INTERFACE pcre2-8-static)
endif()
