#include <cstring>
#include <stdexcept>
#include <vector>

#include "common/bindings.h"
#include "inference/direct.h"
#include "inference/encoder_input.h"
#include "inference/linear.h"
#include "inference/picture_tail.h"
#include "inference/winograd.h"

namespace clipweather {
namespace {

using Layer = std::tuple<Address, Address>;  // weight, bias

ConvParameters layer_of(const Layer& layer) {
  return {pointer<const float>(std::get<0>(layer)), pointer<const float>(std::get<1>(layer))};
}

// layers: both of the residual block, which only a matrix unit takes (cpu_matrix_tail.h); up,
// first, second, last. sizes: N, H, W of the picture; C, D, E of the layers; the rows and columns
// that are wanted.
void picture_tail(Address x, int x_type, Address picture, const std::array<Layer, 6>& layers,
                  int adds, Address y, const std::array<int64_t, 8>& sizes, int threads) {
  PictureTailArgs args{};
  args.x = pointer<const void>(x);
  args.picture = pointer<const float>(picture);
  args.dense[0] = layer_of(layers[0]), args.dense[1] = layer_of(layers[1]);
  args.up = layer_of(layers[2]), args.first = layer_of(layers[3]);
  args.second = layer_of(layers[4]), args.last = layer_of(layers[5]);
  args.y = pointer<float>(y);
  args.n = sizes[0], args.h = sizes[1], args.w = sizes[2];
  args.c = sizes[3], args.d = sizes[4], args.e = sizes[5];
  args.rows = sizes[6], args.columns = sizes[7];
  args.adds = static_cast<Adds>(adds);
  args.x_type = static_cast<DType>(x_type);
  args.threads = threads;
  const bool taken = cpu_isa() == Isa::kAmx && args.x_type == DType::kBFloat16 && args.c == 16 &&
                     args.d == 8 && (args.first.weight == nullptr || args.e == 16);
  if (args.dense[0].weight != nullptr && !taken)
    throw std::runtime_error("picture_tail_cpu: the residual block is not taken here");
  CLIPWEATHER_CPU_CALL(picture_tail, args);
}

// sums: two images or 0. sizes: N, H, W of x; its channels and those of y.
void winograd(Address x, int type, const Layer& layer, const std::array<Address, 2>& sums,
              Address y, const std::array<int64_t, 5>& sizes, int tile, int kind, bool relu,
              int threads) {
  WinogradArgs args{};
  args.x = pointer<const void>(x), args.type = static_cast<DType>(type);
  args.weight = pointer<const void>(std::get<0>(layer));
  args.bias = pointer<const float>(std::get<1>(layer));
  args.sums[0] = pointer<const void>(sums[0]), args.sums[1] = pointer<const void>(sums[1]);
  args.y = pointer<void>(y);
  args.n = sizes[0], args.h = sizes[1], args.w = sizes[2];
  args.c = sizes[3], args.d = sizes[4];
  args.tile = tile, args.kind = static_cast<ConvolutionKind>(kind), args.relu = relu;
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(winograd, args);
}

// sums: two images or 0. sizes: N, H, W of x; its channels and those of y.
void direct(Address x, const Layer& layer, const std::array<Address, 2>& sums, Address y,
            const std::array<int64_t, 5>& sizes, int kind, bool relu, int threads) {
  if (cpu_isa() != Isa::kAmx) throw std::runtime_error("direct_cpu: there is no matrix unit");
  if (sizes[3] <= 0 || sizes[3] % 16 != 0)
    throw std::invalid_argument("direct_cpu: channels must be a multiple of 16");
  DirectArgs args{};
  args.x = pointer<const float>(x);
  args.weight = pointer<const void>(std::get<0>(layer));
  args.bias = pointer<const float>(std::get<1>(layer));
  args.sums[0] = pointer<const float>(sums[0]), args.sums[1] = pointer<const float>(sums[1]);
  args.y = pointer<float>(y);
  args.n = sizes[0], args.h = sizes[1], args.w = sizes[2];
  args.c = sizes[3], args.d = sizes[4];
  args.kind = static_cast<ConvolutionKind>(kind), args.relu = relu;
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(direct, args);
}

// sizes: M, N, K.
void linear(Address x, int type, const Layer& layer, Address y, const std::array<int64_t, 3>& sizes,
            int activation, int threads) {
  LinearArgs args{};
  args.x = pointer<const void>(x), args.y = pointer<void>(y);
  args.weight = pointer<const void>(std::get<0>(layer));
  args.bias = pointer<const float>(std::get<1>(layer));
  args.type = static_cast<DType>(type);
  args.m = sizes[0], args.n = sizes[1], args.k = sizes[2];
  args.activation = static_cast<LinearActivation>(activation);
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(linear, args);
}

using Taps = std::tuple<Address, Address, Address, int64_t>;  // first, count, weight, most

ResizeTaps taps_of(const Taps& taps) {
  return {pointer<const int32_t>(std::get<0>(taps)), pointer<const int32_t>(std::get<1>(taps)),
          pointer<const float>(std::get<2>(taps)), std::get<3>(taps)};
}

// steps: from one image, plane and row of the picture to the next. sizes: N, H, W of the picture;
// side of the square.
void encoder_input(Address picture, const std::array<int64_t, 3>& steps, Address y,
                   const Taps& rows, const Taps& columns, const std::array<float, 3>& mean,
                   const std::array<float, 3>& deviation, const std::array<int64_t, 4>& sizes,
                   int threads) {
  EncoderInputArgs args{};
  args.picture = pointer<const float>(picture);
  args.image = steps[0], args.plane = steps[1], args.row = steps[2];
  args.y = pointer<float>(y);
  args.rows = taps_of(rows), args.columns = taps_of(columns);
  for (int i = 0; i < 3; ++i) args.mean[i] = mean[i], args.deviation[i] = deviation[i];
  args.n = sizes[0], args.h = sizes[1], args.w = sizes[2], args.size = sizes[3];
  args.threads = threads;
  CLIPWEATHER_CPU_CALL(encoder_input, args);
}

// The 32-bit words at `count` addresses, as bytes. Each is a cache miss in a network that has not
// computed just now, and these overlap.
pybind11::bytes words_at(Address addresses, int64_t count) {
  const uint64_t* const places = pointer<const uint64_t>(addresses);
  std::vector<uint32_t> words(static_cast<size_t>(count));
  for (size_t i = 0; i < words.size(); ++i)
    std::memcpy(&words[i], pointer<const void>(places[i]), sizeof(uint32_t));
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t)};
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(inference) {
  module.def("direct_cpu", &clipweather::direct,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("encoder_input_cpu", &clipweather::encoder_input,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("picture_tail_cpu", &clipweather::picture_tail,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("linear_cpu", &clipweather::linear,
             pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("words_at", &clipweather::words_at);
  module.def("winograd_cpu", &clipweather::winograd,
             pybind11::call_guard<pybind11::gil_scoped_release>());
}
