// One stretch of a row of logits: the depthwise convolution, its GELU and the sum over the
// channels.
#pragma once

#include "sar_conv2d/cpu_rows.h"
#include "sar_logits/sar_logits.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// The predictor's parameters: the depthwise kernel as the only bank, and the pointwise ones padded
// with zeros to whole vectors, so that lanes beyond the last channel add nothing.
template <class A>
struct Predictor {
  Banks<A> banks;
  Buffer<A> pointwise;  // [block][K][lane]
  const A* pointwise_bias;
  int kernels;

  Predictor(const SarLogitsInputs& in, int64_t c, int kernels_)
      : banks(1, 3, c),
        pointwise(banks.blocks * kernels_ * kLanes<A>),
        pointwise_bias(static_cast<const A*>(in.pointwise_bias)),
        kernels(kernels_) {
    const Kernel<A> depthwise{static_cast<const A*>(in.depthwise_weight),
                              static_cast<const A*>(in.depthwise_bias)};
    banks.set(0, depthwise, A(1), {});
    pointwise.zero(banks.blocks * kernels * kLanes<A>);
    const A* weight = static_cast<const A*>(in.pointwise_weight);
    for (int k = 0; k < kernels; ++k)
      for (int64_t i = 0; i < c; ++i)
        pointwise.get()[(i / kLanes<A> * kernels + k) * kLanes<A> + i % kLanes<A>] =
            weight[k * c + i];
  }

  const A* pointwise_of(int64_t block) const {
    return pointwise.get() + block * kernels * kLanes<A>;
  }
};

template <int kMaps, bool kWhole, class T, class A>
CLIPWEATHER_INLINE void logits_block(const Window<T>& window, const Predictor<A>& predictor,
                                     int64_t c, int64_t live_lanes,
                                     Vector<A> (&sums)[kMaps > 0 ? kMaps : kMaxKernels][kGroup]) {
  const int kernels = kMaps > 0 ? kMaps : predictor.kernels;
  const int64_t live = kWhole ? int64_t{kLanes<A>} : live_lanes;
  Vector<A> acc[1][kGroup];
  convolve<1, 3>(window, predictor.banks, c, live, acc);
  const A* pointwise = predictor.pointwise_of(c / kLanes<A>);
#pragma GCC unroll 4
  for (int p = 0; p < kGroup; ++p) {
    const Vector<A> hidden = gelu<T>(acc[0][p]);
#pragma GCC unroll 8
    for (int k = 0; k < kernels; ++k) sums[k][p] += hidden * load(pointwise + k * kLanes<A>);
  }
}

// Logits of pixels [w0, w0 + count) of row h, to planar[k * padded(count) + i]. kMaps: K, or -1.
template <int kMaps, class T, class A>
void logits_row(const Image<T>& image, const Predictor<A>& predictor, int64_t h, int64_t w0,
                int64_t count, A* planar) {
  const int64_t c = image.c, whole = c / kLanes<A> * kLanes<A>, width = padded<A>(count);
  const int kernels = kMaps > 0 ? kMaps : predictor.kernels;
  for (int64_t first = 0; first < count; first += kGroup) {
    Window<T> window;
    window.set(image, h, w0 + first, 3);
    Vector<A> sums[kMaps > 0 ? kMaps : kMaxKernels][kGroup] = {};
    for (int64_t i = 0; i < whole; i += kLanes<A>) {
      for (int p = 0; p < kGroup; ++p) __builtin_prefetch(window.ahead[p] + i);
      logits_block<kMaps, true>(window, predictor, i, kLanes<A>, sums);
    }
    if (whole < c) logits_block<kMaps, false>(window, predictor, whole, c - whole, sums);
    const int live = count - first < kGroup ? static_cast<int>(count - first) : kGroup;
    for (int k = 0; k < kernels; ++k)
      for (int p = 0; p < live; ++p)
        planar[k * width + first + p] = predictor.pointwise_bias[k] + horizontal_sum<A>(sums[k][p]);
  }
}

// Planar logits to (N, H, W, K); what is kept is what storage can hold, so that a later pass over
// the stored logits sees the same maps.
template <class T, class A>
void write_logits_row(A* planar, int kernels, int64_t count, T* out) {
  const int64_t width = padded<A>(count);
  for (int k = 0; k < kernels; ++k) {
    A* row = planar + k * width;
    for (int64_t i = 0; i < width; i += kLanes<A>) {
      T rounded[kLanes<A>];
      store(rounded, load(row + i));
      store(row + i, load(rounded));
      for (int64_t j = 0; j < kLanes<A> && i + j < count; ++j)
        out[(i + j) * kernels + k] = rounded[j];
    }
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
