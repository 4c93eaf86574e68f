#include <algorithm>
#include <vector>

#include "common/bindings.h"
#include "inference/picture_ends.h"

namespace clipweather {
namespace {

using Steps = std::array<int64_t, 4>;

ImageSteps steps_of(const Steps& steps) { return {steps[0], steps[1], steps[2], steps[3]}; }

// sizes: N, H, W of the image; rows and columns of the result.
void network_input(Address image, const Steps& steps, Address y,
                   const std::array<int64_t, 5>& sizes, int threads) {
  NetworkInputArgs args{};
  args.image = pointer<const float>(image), args.steps = steps_of(steps);
  args.y = pointer<float>(y);
  args.n = sizes[0], args.h = sizes[1], args.w = sizes[2];
  args.rows = sizes[3], args.columns = sizes[4];
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(network_input, args);
}

// Whether all numbers of x are finite. sizes: H, W; the step from one row of x to the next.
bool picture_output(Address x, Address picture, const Steps& steps, int levels,
                    const std::array<int64_t, 3>& sizes, int threads) {
  std::vector<int32_t> bad(static_cast<size_t>(std::max(threads, 1)), 0);
  PictureOutputArgs args{};
  args.x = pointer<const float>(x), args.row = sizes[2];
  args.picture = pointer<void>(picture), args.steps = steps_of(steps);
  args.h = sizes[0], args.w = sizes[1];
  args.levels = static_cast<Levels>(levels);
  args.bad = bad.data();
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(picture_output, args);
  return std::find(bad.begin(), bad.end(), 1) == bad.end();
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(picture_ends) {
  module.def("network_input_cpu", &clipweather::network_input,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("picture_output_cpu", &clipweather::picture_output,
             pybind11::call_guard<pybind11::gil_scoped_release>());
}
