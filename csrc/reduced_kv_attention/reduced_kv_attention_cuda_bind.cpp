// Entry points of reduced_kv_attention's CUDA kernels.
#if defined(CLIPWEATHER_WITH_CUDA)

#include "reduced_kv_attention/reduced_kv_attention_bind.h"
#include "reduced_kv_attention/reduced_kv_attention_cuda.h"

namespace clipweather {
namespace {

// Addresses in the order of AttentionCudaForwardArgs.
void forward(const std::array<Address, 5>& at, const AttentionLengths& lengths,
             const AttentionStrides& strides, double scale, int dtype, int device, Address stream) {
  launch_reduced_kv_attention_forward(
      {pointer<void>(at[0]), pointer<void>(at[1]), pointer<void>(at[2]), pointer<void>(at[3]),
       pointer<float>(at[4]), attention_sizes(lengths, strides, scale, dtype)},
      {device, pointer<void>(stream), nullptr});
}

std::size_t workspace_bytes(const AttentionLengths& lengths, int dtype) {
  return reduced_kv_attention_workspace_bytes(
      attention_sizes(lengths, AttentionStrides{}, 1.0, dtype));
}

// Addresses in the order of AttentionCudaBackwardArgs.
void backward(const std::array<Address, 9>& at, const AttentionLengths& lengths,
              const AttentionStrides& strides, double scale, int dtype, int device, Address stream,
              Address workspace) {
  launch_reduced_kv_attention_backward(
      {pointer<void>(at[0]), pointer<void>(at[1]), pointer<void>(at[2]), pointer<void>(at[3]),
       pointer<void>(at[4]), pointer<float>(at[5]), pointer<void>(at[6]), pointer<void>(at[7]),
       pointer<void>(at[8]), attention_sizes(lengths, strides, scale, dtype)},
      {device, pointer<void>(stream), pointer<void>(workspace)});
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(reduced_kv_attention_cuda) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("reduced_kv_attention_forward_cuda", &clipweather::forward, Release());
  module.def("reduced_kv_attention_backward_cuda", &clipweather::backward, Release());
  module.def("reduced_kv_attention_workspace_bytes", &clipweather::workspace_bytes);
}

#endif
