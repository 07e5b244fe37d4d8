# cmake -DSOURCE=… -DBINARY=… -DMODE=package|subdirectory -P run.cmake: builds and runs a consumer of modicum.
set(work ${BINARY}/tests/install/${MODE})
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()
function(build source name)
  run(${CMAKE_COMMAND} -S ${source} -B ${work}/${name} -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=${COMPILER}
      ${ARGN})
  run(${CMAKE_COMMAND} --build ${work}/${name})
endfunction()

if(MODE STREQUAL "package")
  run(${CMAKE_COMMAND} --install ${BINARY} --prefix ${work}/prefix)
  build(${SOURCE}/tests/install/consumer consumer -DCMAKE_PREFIX_PATH=${work}/prefix)
  build(${SOURCE}/examples/cpp examples -DCMAKE_PREFIX_PATH=${work}/prefix)
else()
  build(${SOURCE}/tests/install/consumer consumer -DMODICUM_SOURCE=${SOURCE})
endif()
run(${work}/consumer/consumer)
