# Warnings and sanitizers that every target of the project shares.
function(modicum_target_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers
                         $<$<BOOL:${MODICUM_WARNINGS_AS_ERRORS}>:-Werror>)
  # GCC 12 warns of overlapping copies where a string is put behind a literal (GCC bug 105651).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)
  endif()
  if(MODICUM_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${MODICUM_SANITIZE} -fno-omit-frame-pointer
                           -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${MODICUM_SANITIZE})
  endif()
endfunction()

# modicum_sources(FOLDER SOURCES … HEADERS …): adds src/FOLDER's sources and include/modicum/FOLDER's public headers.
function(modicum_sources folder)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;HEADERS")
  list(TRANSFORM arg_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/src/${folder}/)
  list(TRANSFORM arg_HEADERS PREPEND ${PROJECT_SOURCE_DIR}/include/modicum/${folder}/)
  target_sources(modicum PRIVATE ${arg_SOURCES})
  target_sources(modicum PUBLIC FILE_SET HEADERS FILES ${arg_HEADERS})
endfunction()
