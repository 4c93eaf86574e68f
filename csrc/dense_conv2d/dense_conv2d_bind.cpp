#include "common/bindings.h"
#include "dense_conv2d/dense_conv2d.h"

namespace clipweather {
namespace {

// size: n, h, w, c, rows, columns, kernel, stride, padding.
void step(int which, Address in, Address bias, Address out, const std::array<int64_t, 9>& size,
          int dtype, int threads) {
  const DenseConv2dArgs args{pointer<void>(in),
                             pointer<void>(bias),
                             pointer<void>(out),
                             {size[0], size[1], size[2], size[3], size[4], size[5], size[6],
                              size[7], size[8], static_cast<DType>(dtype)},
                             static_cast<DenseConv2dStep>(which),
                             threads};
  if (args.step <= DenseConv2dStep::kImageOfWindows)
    CLIPWEATHER_CPU_CALL(dense_conv2d_windows, args);
  else
    CLIPWEATHER_CPU_CALL(dense_conv2d_winograd, args);
}

// size: n, h, w, c, rows, columns, kernel, stride, padding, channels. What is wanted needs no
// address but `out`.
DenseConv2dWholeArgs whole(int wanted, const std::array<Address, 5>& images,
                           const std::array<int64_t, 10>& size, int dtype, int threads) {
  const auto& [coarse, fine, weight, bias, out] = images;
  return {pointer<void>(coarse),
          pointer<void>(fine),
          pointer<void>(weight),
          pointer<void>(bias),
          pointer<void>(out),
          {size[0], size[1], size[2], size[3], size[4], size[5], size[6], size[7], size[8],
           static_cast<DType>(dtype)},
          size[9],
          static_cast<DenseConv2dWanted>(wanted),
          threads};
}

void implicit(int wanted, const std::array<Address, 5>& images, const std::array<int64_t, 10>& size,
              int dtype, int threads) {
  const DenseConv2dWholeArgs args = whole(wanted, images, size, dtype, threads);
  CLIPWEATHER_CPU_CALL(dense_conv2d_implicit, args);
}

void fused_winograd(int wanted, const std::array<Address, 5>& images,
                    const std::array<int64_t, 10>& size, int dtype, int threads) {
  const DenseConv2dWholeArgs args = whole(wanted, images, size, dtype, threads);
  CLIPWEATHER_CPU_CALL(dense_conv2d_fused_winograd, args);
}

// size: count, m, n, k.
void products(Address a, Address b, Address bias, Address c, const std::array<int64_t, 4>& size,
              bool a_transposed, bool b_transposed, int dtype, int threads) {
  const DenseConv2dProductArgs args{
      pointer<void>(a),
      pointer<void>(b),
      pointer<void>(bias),
      pointer<void>(c),
      {size[0], size[1], size[2], size[3], a_transposed, b_transposed},
      static_cast<DType>(dtype),
      threads};
  CLIPWEATHER_CPU_CALL(dense_conv2d_products, args);
}

// size: rows, inputs, outputs. What is 0 of the gradients is not wanted.
void gradients(Address grad_y, Address x, Address weight, Address grad_x, Address grad_weight,
               Address grad_bias, const std::array<int64_t, 3>& size, int dtype, int threads) {
  const DenseConv2dGradientArgs args{pointer<void>(grad_y),
                                     pointer<void>(x),
                                     pointer<void>(weight),
                                     pointer<void>(grad_x),
                                     pointer<void>(grad_weight),
                                     pointer<void>(grad_bias),
                                     size[0],
                                     size[1],
                                     size[2],
                                     static_cast<DType>(dtype),
                                     threads};
  CLIPWEATHER_CPU_CALL(dense_conv2d_gradients, args);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(dense_conv2d) {
  module.def("dense_conv2d_step_cpu", &clipweather::step,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("dense_conv2d_implicit_cpu", &clipweather::implicit,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("dense_conv2d_fused_winograd_cpu", &clipweather::fused_winograd,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("dense_conv2d_products_cpu", &clipweather::products,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("dense_conv2d_gradients_cpu", &clipweather::gradients,
             pybind11::call_guard<pybind11::gil_scoped_release>());
}
