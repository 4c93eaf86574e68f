#include "common/bindings.h"
#include "sar_mixer/sar_mixer.h"

namespace clipweather {
namespace {

// in: z, then the predictor's four parameters, then weight, bias, static_weight, static_bias.
void forward(const std::array<Address, 9>& in, Address y, Address residual, Address logits,
             const std::array<int64_t, 4>& nchw, int kernels, int kernel_size, int gate, int dtype,
             int threads) {
  SarMixerForwardArgs args{};
  args.predictor = {pointer<void>(in[0]), pointer<void>(in[1]), pointer<void>(in[2]),
                    pointer<void>(in[3]), pointer<void>(in[4])};
  args.kernels = {pointer<void>(in[0]), nullptr,
                  pointer<void>(in[5]), pointer<void>(in[6]),
                  pointer<void>(in[7]), pointer<void>(in[8])};
  args.y = pointer<void>(y);
  args.residual = pointer<void>(residual);
  args.logits = pointer<void>(logits);
  args.size.n = nchw[0], args.size.c = nchw[1], args.size.h = nchw[2], args.size.w = nchw[3];
  args.size.kernels = kernels;
  args.size.kernel_size = kernel_size;
  args.size.gate = static_cast<Gate>(gate);
  args.size.activation = Activation::kGelu;
  args.size.dtype = static_cast<DType>(dtype);
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(sar_mixer_forward, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(sar_mixer) {
  module.def("sar_mixer_forward_cpu", &clipweather::forward,
             pybind11::call_guard<pybind11::gil_scoped_release>());
}
