# Each dependency: an installed package first, for people outside a pinned FetchContent.
#
#               Debian                PyPI (build requirement of `pip install`)
#   Threads     libc                  -
#   JSON        nlohmann-json3-dev    nlohmann-json
#   xxHash      libxxhash-dev         none with headers
#   PCRE2       libpcre2-dev          none with headers
#   Eigen       libeigen3-dev         cmeel-eigen
#   pybind11    -                     pybind11 (3.1 or newer; Debian 12 has 2.10)
#   Catch2      catch2                -
#   benchmark   libbenchmark-dev      -
include(FetchContent)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

add_library(modicum_json INTERFACE)
find_path(MODICUM_JSON_INCLUDE nlohmann/json.hpp HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES nlohmann_json/include)
if(NOT MODICUM_JSON_INCLUDE)
  FetchContent_Declare(nlohmann_json SYSTEM
    URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    URL_HASH SHA256=d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
  FetchContent_MakeAvailable(nlohmann_json)
  set(MODICUM_JSON_INCLUDE ${nlohmann_json_SOURCE_DIR}/include)
endif()
target_include_directories(modicum_json SYSTEM INTERFACE ${MODICUM_JSON_INCLUDE})

# Header only (XXH_INLINE_ALL).
add_library(modicum_xxhash INTERFACE)
find_path(MODICUM_XXHASH_INCLUDE xxhash.h)
if(NOT MODICUM_XXHASH_INCLUDE)
  FetchContent_Declare(xxhash SYSTEM SOURCE_SUBDIR none
    URL https://github.com/Cyan4973/xxHash/archive/refs/tags/v0.8.3.tar.gz
    URL_HASH SHA256=aae608dfe8213dfd05d909a57718ef82f30722c392344583d3f39050c7f29a80)
  FetchContent_MakeAvailable(xxhash)
  set(MODICUM_XXHASH_INCLUDE ${xxhash_SOURCE_DIR})
endif()
target_include_directories(modicum_xxhash SYSTEM INTERFACE ${MODICUM_XXHASH_INCLUDE})

include(ModicumEigen)
if(NOT TARGET modicum::eigen)
  FetchContent_Declare(eigen SYSTEM SOURCE_SUBDIR none
    URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.bz2
    URL_HASH SHA256=b4c198460eba6f28d34894e3a5710998818515104d6e74e5cc331ce31e46e626)
  FetchContent_MakeAvailable(eigen)
  set(MODICUM_EIGEN_INCLUDE ${eigen_SOURCE_DIR} CACHE PATH "" FORCE)
  include(ModicumEigen)
endif()

# A PCRE2 that is fetched is also installed beside modicum, where ModicumPcre2.cmake finds it again.
include(ModicumPcre2)
if(NOT TARGET modicum::pcre2)
  set(PCRE2_SUPPORT_JIT ON)
  set(PCRE2_BUILD_PCRE2GREP OFF)
  set(PCRE2_BUILD_TESTS OFF)
  FetchContent_Declare(pcre2 SYSTEM
    URL https://github.com/PCRE2Project/pcre2/releases/download/pcre2-10.44/pcre2-10.44.tar.bz2
    URL_HASH SHA256=d34f02e113cf7193a1ebf2770d3ac527088d485d4e047ed10e5d217c6ef5de96)
  FetchContent_MakeAvailable(pcre2)
  set_target_properties(pcre2-8-static PROPERTIES POSITION_INDEPENDENT_CODE ON)
  add_library(modicum::pcre2 INTERFACE IMPORTED GLOBAL)
  target_link_libraries(modicum::pcre2 INTERFACE pcre2-8-static)
endif()
