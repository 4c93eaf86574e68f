// Entry points of sar_logits' CUDA kernels.
#if defined(CLIPWEATHER_WITH_CUDA)

#include <array>

#include "common/bindings.h"
#include "sar_logits/sar_logits_cuda.h"

namespace clipweather {
namespace {

using Shape = std::array<int64_t, 4>;
// x or its gradient, then the depthwise and the pointwise weight and bias.
using Addresses = std::array<Address, 5>;

SarLogitsCudaSizes sizes(const Shape& nchw, int kernels, const Shape& stride, int dtype) {
  return {nchw[0],
          nchw[1],
          nchw[2],
          nchw[3],
          kernels,
          {stride[0], stride[1], stride[2], stride[3]},
          static_cast<DType>(dtype)};
}

SarLogitsCudaInputs inputs(const Addresses& in) {
  return {pointer<void>(in[0]), pointer<float>(in[1]), pointer<float>(in[2]), pointer<float>(in[3]),
          pointer<float>(in[4])};
}

void forward(const Addresses& in, Address logits, const Shape& nchw, int kernels,
             const Shape& logits_stride, int dtype, int device, Address stream) {
  launch_sar_logits_forward(inputs(in), pointer<void>(logits),
                            sizes(nchw, kernels, logits_stride, dtype),
                            {device, pointer<void>(stream), nullptr});
}

std::size_t workspace_bytes(const Shape& nchw, int kernels, int dtype) {
  return sar_logits_workspace_bytes(sizes(nchw, kernels, Shape{}, dtype));
}

void backward(const Addresses& in, Address grad_logits, const Addresses& out, const Shape& nchw,
              int kernels, const Shape& grad_logits_stride, int dtype, int device, Address stream,
              Address workspace) {
  launch_sar_logits_backward(inputs(in), pointer<void>(grad_logits),
                             {pointer<void>(out[0]), pointer<float>(out[1]), pointer<float>(out[2]),
                              pointer<float>(out[3]), pointer<float>(out[4])},
                             sizes(nchw, kernels, grad_logits_stride, dtype),
                             {device, pointer<void>(stream), pointer<void>(workspace)});
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(sar_logits_cuda) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("sar_logits_forward_cuda", &clipweather::forward, Release());
  module.def("sar_logits_backward_cuda", &clipweather::backward, Release());
  module.def("sar_logits_workspace_bytes", &clipweather::workspace_bytes);
}

#endif
