// Entry points of sar_conv2d's CUDA kernels.
#if defined(CLIPWEATHER_WITH_CUDA)

#include <array>

#include "common/bindings.h"
#include "sar_conv2d/sar_conv2d_cuda.h"

namespace clipweather {
namespace {

using Shape = std::array<int64_t, 4>;

SarConv2dSizes sizes(const Shape& nchw, int kernels, int kernel_size, const Shape& logits_stride,
                     int gate, int activation, int dtype) {
  return {nchw[0],
          nchw[1],
          nchw[2],
          nchw[3],
          kernels,
          kernel_size,
          {logits_stride[0], logits_stride[1], logits_stride[2], logits_stride[3]},
          static_cast<Gate>(gate),
          static_cast<Activation>(activation),
          static_cast<DType>(dtype)};
}

// Addresses in the order of SarConv2dInputs.
SarConv2dInputs inputs(const std::array<Address, 6>& in) {
  return {pointer<void>(in[0]), pointer<void>(in[1]), pointer<void>(in[2]),
          pointer<void>(in[3]), pointer<void>(in[4]), pointer<void>(in[5])};
}

void forward(const std::array<Address, 6>& in, Address y, Address residual, const Shape& nchw,
             int kernels, int kernel_size, const Shape& logits_stride, int gate, int activation,
             int dtype, int device, Address stream) {
  const SarConv2dForwardArgs args{
      inputs(in), pointer<void>(y), pointer<void>(residual),
      sizes(nchw, kernels, kernel_size, logits_stride, gate, activation, dtype), 0};
  launch_sar_conv2d_forward(args, {device, pointer<void>(stream), nullptr});
}

std::size_t workspace_bytes(const Shape& nchw, int kernels, int kernel_size, int gate,
                            int activation, int dtype, bool residual) {
  return sar_conv2d_workspace(sizes(nchw, kernels, kernel_size, Shape{}, gate, activation, dtype),
                              residual)
      .bytes;
}

// grads: addresses of grad_x, grad_logits, grad_weight, grad_bias, grad_static_weight,
// grad_static_bias.
void backward(const std::array<Address, 6>& in, Address grad_y, Address grad_residual,
              const std::array<Address, 6>& grads, const Shape& nchw, int kernels, int kernel_size,
              const Shape& logits_stride, const Shape& grad_logits_stride, int gate, int activation,
              int dtype, int device, Address stream, Address workspace) {
  SarConv2dBackwardCudaArgs args{
      {inputs(in), pointer<void>(grad_y), pointer<void>(grad_residual), pointer<void>(grads[0]),
       pointer<void>(grads[1]), pointer<void>(grads[2]), pointer<void>(grads[3]),
       pointer<void>(grads[4]), pointer<void>(grads[5]),
       sizes(nchw, kernels, kernel_size, logits_stride, gate, activation, dtype), 0},
      {}};
  for (int i = 0; i < 4; ++i) args.grad_logits_stride[i] = grad_logits_stride[i];
  launch_sar_conv2d_backward(args, {device, pointer<void>(stream), pointer<void>(workspace)});
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(sar_conv2d_cuda) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("sar_conv2d_forward_cuda", &clipweather::forward, Release());
  module.def("sar_conv2d_backward_cuda", &clipweather::backward, Release());
  module.def("sar_conv2d_workspace_bytes", &clipweather::workspace_bytes);
}

#endif
