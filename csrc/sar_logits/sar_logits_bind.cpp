#include "common/bindings.h"
#include "sar_logits/sar_logits.h"

namespace clipweather {
namespace {

SarLogitsSizes sizes(const std::array<int64_t, 4>& nchw, int kernels, int dtype) {
  return {nchw[0], nchw[1], nchw[2], nchw[3], kernels, static_cast<DType>(dtype)};
}

// Addresses in the order of SarLogitsInputs.
SarLogitsInputs inputs(const std::array<Address, 5>& in) {
  return {pointer<void>(in[0]), pointer<void>(in[1]), pointer<void>(in[2]), pointer<void>(in[3]),
          pointer<void>(in[4])};
}

void forward(const std::array<Address, 5>& in, Address logits, const std::array<int64_t, 4>& nchw,
             int kernels, int dtype, int threads) {
  const SarLogitsForwardArgs args{inputs(in), pointer<void>(logits), sizes(nchw, kernels, dtype),
                                  threads};
  CLIPWEATHER_CPU_CALL(sar_logits_forward, args);
}

// grads: addresses of grad_x and of the four parameters' gradients, in the order of the inputs.
void backward(const std::array<Address, 5>& in, Address grad_logits,
              const std::array<Address, 5>& grads, bool accumulate,
              const std::array<int64_t, 4>& nchw, int kernels, int dtype, int threads) {
  const SarLogitsBackwardArgs args{inputs(in),
                                   pointer<void>(grad_logits),
                                   pointer<void>(grads[0]),
                                   pointer<void>(grads[1]),
                                   pointer<void>(grads[2]),
                                   pointer<void>(grads[3]),
                                   pointer<void>(grads[4]),
                                   accumulate,
                                   sizes(nchw, kernels, dtype),
                                   threads};
  CLIPWEATHER_CPU_CALL(sar_logits_backward, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(sar_logits) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("sar_logits_forward_cpu", &clipweather::forward, Release());
  module.def("sar_logits_backward_cpu", &clipweather::backward, Release());
}
