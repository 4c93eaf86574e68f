// Where a launcher works. No CUDA header, so that bindings need none.
#pragma once

namespace clipweather {

struct CudaContext {
  int device;
  void* stream;     // cudaStream_t
  void* workspace;  // of the size the op's *_workspace function names; may be null where that is 0
};

}  // namespace clipweather
