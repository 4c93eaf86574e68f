// One axis of Winograd's transforms, F(m, 3): m outputs of a filter with 3 taps from m + 2 products
// instead of 3 m,
//
//   y = A^T [(G g) * (B^T d)],   d (m + 2) of the input, g 3 taps, y m outputs
//
// by Toom and Cook: polynomials multiplied through their values at m + 1 points and at infinity.
// G is in clipweather_fast/models/_frozen_winograd.py, where weights are made in float64.
//
// m = 2 has the points 0, 1, -1: it rounds as a sum of products does. m = 4 has 0, 5/8, -5/8, 3/2,
// -3/2: of the pairs that were tried they lose least (half the error of the usual 1, -1, 2, -2),
// and all their powers here are exact. A direct convolution, which sums 9 C products one after the
// other, rounds about as much.
//
// A filter with two taps is one with a zero as its last tap, and then the point at infinity gives
// zero (phase 0), or as its first, and then the point 0 does (phase 1). Such are the even and the
// odd outputs of a transposed filter with 4 taps and stride 2. A filter with 3 taps and stride 2 is
// one of phase 0 over the odd inputs and a single tap over the even ones, which has no transform.
#pragma once

#include "common/cpu_vector.h"
#include "inference/winograd.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int kBoth = -1;  // no phase: every point counts

template <int kTile>
struct WinogradAxis;

template <>
struct WinogradAxis<2> {
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&d)[4], V (&t)[4]) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[3] - d[1];
  }
  template <int kPhase, class V>
  static CLIPWEATHER_INLINE void leave(const V (&t)[4], V (&y)[2]) {
    y[0] = t[1] + t[2], y[1] = t[1] - t[2];
    if constexpr (kPhase != 1) y[0] += t[0];
    if constexpr (kPhase != 0) y[1] += t[3];
  }
};

template <>
struct WinogradAxis<4> {
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&d)[6], V (&t)[6]) {
    const V even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    const V even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    t[0] = d[4] - (a2 + b2) * d[2] + a2 * b2 * d[0];
    t[1] = even_a + a * odd_a, t[2] = even_a - a * odd_a;
    t[3] = even_b + b * odd_b, t[4] = even_b - b * odd_b;
    t[5] = d[5] - (a2 + b2) * d[3] + a2 * b2 * d[1];
  }
  template <int kPhase, class V>
  static CLIPWEATHER_INLINE void leave(const V (&t)[6], V (&y)[4]) {
    const V even_a = t[1] + t[2], odd_a = t[1] - t[2];
    const V even_b = t[3] + t[4], odd_b = t[3] - t[4];
    y[0] = even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = a2 * a * odd_a + b2 * b * odd_b;
    if constexpr (kPhase != 1) y[0] += t[0];
    if constexpr (kPhase != 0) y[3] += t[5];
  }
};

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

// A tile's pixels, kLanes channels of them, to points. in(row, column) gives a vector of the input,
// out(row, column, vector) takes one of a point.
template <class Axis, class In, class Out>
CLIPWEATHER_INLINE void enter_tile(const In& in, const Out& out) {
  constexpr int kIn = Axis::kIn, kSide = Axis::kSide;
  Vector<float> rows[kIn][kSide];
#pragma GCC unroll 9
  for (int i = 0; i < kIn; ++i) {
    Vector<float> d[kIn];
#pragma GCC unroll 9
    for (int j = 0; j < kIn; ++j) d[j] = in(i, j);
    Axis::enter(d, rows[i]);
  }
#pragma GCC unroll 9
  for (int j = 0; j < kSide; ++j) {
    Vector<float> d[kIn], t[kSide];
#pragma GCC unroll 9
    for (int i = 0; i < kIn; ++i) d[i] = rows[i][j];
    Axis::enter(d, t);
#pragma GCC unroll 9
    for (int i = 0; i < kSide; ++i) out(i, j, t[i]);
  }
}

// And back to the kTile x kTile outputs of one phase: in(row, column) of the points that belong to
// it.
template <class Axis, int kTile, int kRowPhase, int kColumnPhase, class In, class Out>
CLIPWEATHER_INLINE void leave_tile(const In& in, const Out& out) {
  constexpr int kSide = Axis::kSide;
  constexpr int kFirst = kRowPhase == 1 ? 1 : 0, kLast = kRowPhase == 0 ? kSide - 1 : kSide;
  constexpr int kLeft = kColumnPhase == 1 ? 1 : 0, kRight = kColumnPhase == 0 ? kSide - 1 : kSide;
  Vector<float> rows[kSide][kTile];
#pragma GCC unroll 9
  for (int i = kFirst; i < kLast; ++i) {
    Vector<float> t[kSide];
#pragma GCC unroll 9
    for (int j = kLeft; j < kRight; ++j) t[j] = in(i, j);
    Axis::template leave<kColumnPhase>(t, rows[i]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kTile; ++j) {
    Vector<float> t[kSide], y[kTile];
#pragma GCC unroll 9
    for (int i = kFirst; i < kLast; ++i) t[i] = rows[i][j];
    Axis::template leave<kRowPhase>(t, y);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) out(i, j, y[i]);
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
