#include "common/bindings.h"
#include "sar_conv2d/sar_conv2d.h"

namespace clipweather {
namespace {

using Shape = std::array<int64_t, 4>;

SarConv2dSizes sizes(const Shape& nchw, int kernels, int kernel_size, const Shape& logits_stride,
                     int gate, int activation, int dtype) {
  SarConv2dSizes s;
  s.n = nchw[0], s.c = nchw[1], s.h = nchw[2], s.w = nchw[3];
  s.kernels = kernels, s.kernel_size = kernel_size;
  for (int i = 0; i < 4; ++i) s.logits_stride[i] = logits_stride[i];
  s.gate = static_cast<Gate>(gate);
  s.activation = static_cast<Activation>(activation);
  s.dtype = static_cast<DType>(dtype);
  return s;
}

// Addresses in the order of SarConv2dInputs.
SarConv2dInputs inputs(const std::array<Address, 6>& in) {
  return {pointer<void>(in[0]), pointer<void>(in[1]), pointer<void>(in[2]),
          pointer<void>(in[3]), pointer<void>(in[4]), pointer<void>(in[5])};
}

void forward(const std::array<Address, 6>& in, Address y, Address residual, const Shape& nchw,
             int kernels, int kernel_size, const Shape& logits_stride, int gate, int activation,
             int dtype, int threads) {
  const SarConv2dForwardArgs args{
      inputs(in), pointer<void>(y), pointer<void>(residual),
      sizes(nchw, kernels, kernel_size, logits_stride, gate, activation, dtype), threads};
  CLIPWEATHER_CPU_CALL(sar_conv2d_forward, args);
}

// grads: addresses of grad_x, grad_logits, grad_weight, grad_bias, grad_static_weight,
// grad_static_bias.
void backward(const std::array<Address, 6>& in, Address grad_y, Address grad_residual,
              const std::array<Address, 6>& grads, const Shape& nchw, int kernels, int kernel_size,
              const Shape& logits_stride, int gate, int activation, int dtype, int threads) {
  const SarConv2dBackwardArgs args{
      inputs(in),
      pointer<void>(grad_y),
      pointer<void>(grad_residual),
      pointer<void>(grads[0]),
      pointer<void>(grads[1]),
      pointer<void>(grads[2]),
      pointer<void>(grads[3]),
      pointer<void>(grads[4]),
      pointer<void>(grads[5]),
      sizes(nchw, kernels, kernel_size, logits_stride, gate, activation, dtype),
      threads};
  CLIPWEATHER_CPU_CALL(sar_conv2d_backward, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(sar_conv2d) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("sar_conv2d_forward_cpu", &clipweather::forward, Release());
  module.def("sar_conv2d_backward_cpu", &clipweather::backward, Release());
}
