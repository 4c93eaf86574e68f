// The pybind11 module `_C`: what was built, and each op's entry points.
//
// Tensors arrive as addresses (size_t), sizes and codes; clipweather_fast/ops/<op>/native.py checks
// and allocates them. Every entry point releases the GIL and keeps no state.
#include <pybind11/pybind11.h>

#include "common/bindings.h"
#include "common/cpu_dispatch.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native core of clipweather_fast: kernels on raw pointers.";
  // Chosen here so that a wrong CLIPWEATHER_CPU_ISA stops the import, not the first kernel.
  module.attr("cpu_isa") = static_cast<int>(clipweather::cpu_isa());
  module.attr("cpu_isas") = CLIPWEATHER_CPU_ISAS;
#if defined(CLIPWEATHER_WITH_CUDA)
  module.attr("cuda_built") = true;
#else
  module.attr("cuda_built") = false;
#endif
  module.attr("cuda_archs") = CLIPWEATHER_CUDA_ARCHS;
  module.attr("cuda_reason") = CLIPWEATHER_CUDA_REASON;
  for (auto bind = clipweather::first_binding(); bind != nullptr; bind = bind->next)
    bind->function(module);
}
