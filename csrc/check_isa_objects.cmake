# cmake -DNM=nm -DISA=avx512 -DOBJECTS="a.o;b.o" -P check_isa_objects.cmake
#
# Fails if an object compiled for one instruction set defines a function that other objects might
# define as well, such as an inline std:: one: the linker keeps a single copy, and the AVX-512 one
# would crash an older processor. Functions in the instruction set's own namespace are safe.
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} -C --defined-only ${object}
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX REPLACE "[][;]" "_" symbols "${symbols}")  # they would confuse CMake's lists
  string(REGEX MATCHALL "[^\n]* [WT] [^\n]*" functions "${symbols}")
  list(FILTER functions EXCLUDE REGEX "clipweather::${ISA}::")
  if(functions)
    list(JOIN functions "\n  " text)
    message(SEND_ERROR "${object} shares functions with other objects:\n  ${text}")
  endif()
endforeach()
