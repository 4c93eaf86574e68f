#include "common/bindings.h"
#include "losses/ssim.h"

namespace clipweather {
namespace {

// size: planes, h, w. grad_y: 0 where it is not wanted.
void ssim_of(Address y, Address truth, const std::array<double, kSsimWindow>& window,
             Address values, Address grad_y, const std::array<int64_t, 3>& size, double c1,
             double c2, int dtype, int threads) {
  SsimArgs args{};
  args.y = pointer<void>(y), args.truth = pointer<void>(truth);
  args.values = pointer<double>(values), args.grad_y = pointer<void>(grad_y);
  args.planes = size[0], args.h = size[1], args.w = size[2];
  std::copy(window.begin(), window.end(), args.window);
  args.c1 = c1, args.c2 = c2;
  args.dtype = static_cast<DType>(dtype), args.threads = threads;
  CLIPWEATHER_CPU_CALL(ssim, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(ssim) {
  module.def("ssim_cpu", &clipweather::ssim_of,
             pybind11::call_guard<pybind11::gil_scoped_release>());
}
