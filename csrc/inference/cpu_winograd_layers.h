// The axes of Winograd's transforms (common/cpu_winograd.h) for the layers of a finished network.
//
// A filter with two taps is one with a zero as its last tap, and then the point at infinity gives
// zero (phase 0), or as its first, and then the point 0 does (phase 1). Such are the even and the
// odd outputs of a transposed filter with 4 taps and stride 2. A filter with 3 taps and stride 2 is
// one of phase 0 over the odd inputs and a single tap over the even ones, which has no transform.
#pragma once

#include "common/cpu_winograd.h"
#include "inference/convolution_kind.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// A layer's axis: kIn pixels to kSide points, of which a phase leaves out the first or the last.
template <int kTile, ConvolutionKind kKind>
struct LayerAxis {
  static constexpr int kIn = kTile + 2, kSide = kTile + 2;
  static constexpr int kWeights = kSide;  // a point's weight: that of the point itself
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&d)[kIn], V (&t)[kSide]) {
    WinogradAxis<kTile>::enter(d, t);
  }
  template <int kPhase, class V>
  static CLIPWEATHER_INLINE void leave(const V (&t)[kSide], V (&y)[kTile]) {
    WinogradAxis<kTile>::template leave<kPhase>(t, y);
  }
};

// kTile + 1 points of the odd inputs, then the kTile even inputs, all with the last weight.
template <int kTile>
struct LayerAxis<kTile, ConvolutionKind::kDown> {
  static constexpr int kIn = 2 * kTile + 1, kSide = 2 * kTile + 1;
  static constexpr int kWeights = kTile + 2;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&d)[kIn], V (&t)[kSide]) {
    V odd[kTile + 2], points[kTile + 2];
#pragma GCC unroll 5
    for (int i = 0; i <= kTile; ++i) odd[i] = d[2 * i];
    odd[kTile + 1] = V{};
    WinogradAxis<kTile>::enter(odd, points);
#pragma GCC unroll 5
    for (int i = 0; i <= kTile; ++i) t[i] = points[i];
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) t[kTile + 1 + i] = d[2 * i + 1];
  }
  template <int kPhase, class V>
  static CLIPWEATHER_INLINE void leave(const V (&t)[kSide], V (&y)[kTile]) {
    V points[kTile + 2];
#pragma GCC unroll 5
    for (int i = 0; i <= kTile; ++i) points[i] = t[i];
    WinogradAxis<kTile>::template leave<0>(points, y);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) y[i] += t[kTile + 1 + i];
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
