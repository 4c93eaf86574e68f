// One axis of Winograd's transforms, F(m, 3): m outputs of a filter with 3 taps from m + 2 products
// instead of 3 m,
//
//   y = A^T [(G g) * (B^T d)],   d (m + 2) of the input, g 3 taps, y m outputs
//
// by Toom and Cook: polynomials multiplied through their values at m + 1 points and at infinity.
// Finished networks make their weights in float64, clipweather_fast/models/_frozen_winograd.py.
//
// m = 2 has the points 0, 1, -1: it rounds as a sum of products does. m = 4 has 0, 5/8, -5/8, 3/2,
// -3/2: of the pairs that were tried they lose least (half the error of the usual 1, -1, 2, -2),
// and all their powers here are exact. A direct convolution, which sums 9 C products one after the
// other, rounds about as much.
//
// Gradients are the transposed steps: a tile of grad_y enters by A, and G^T makes a filter's
// gradient of the points' products. grad_x is a convolution of grad_y with the turned filter.
#pragma once

#include "common/cpu_vector.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int kBoth =
    -1;  // of the phases of inference/cpu_winograd_layers.h: every point counts

template <int kTile>
struct WinogradAxis;

template <>
struct WinogradAxis<2> {
  static constexpr int kIn = 4, kSide = 4;
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
  static constexpr int kIn = 6, kSide = 6;
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

// What learns needs the other matrices too, here as axes for enter_tile: of results A^T (and of a
// gradient A), of weights G (and of their gradient G^T). A point's weights are scaled by one over
// the product of its distances to the other points.
template <int kTile>
struct WinogradResultAxis {  // A^T
  static constexpr int kIn = kTile + 2, kSide = kTile;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&t)[kIn], V (&y)[kSide]) {
    WinogradAxis<kTile>::template leave<kBoth>(t, y);
  }
};

template <int kTile>
struct WinogradGradientAxis;  // A
template <int kTile>
struct WinogradWeightAxis;  // G
template <int kTile>
struct WinogradWeightGradientAxis;  // G^T

template <>
struct WinogradGradientAxis<2> {
  static constexpr int kIn = 2, kSide = 4;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&g)[2], V (&t)[4]) {
    t[0] = g[0], t[1] = g[0] + g[1], t[2] = g[0] - g[1], t[3] = g[1];
  }
};
template <>
struct WinogradWeightAxis<2> {
  static constexpr int kIn = 3, kSide = 4;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&g)[3], V (&t)[4]) {
    const V even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
    t[0] = g[0], t[1] = even + odd, t[2] = even - odd, t[3] = g[2];
  }
};
template <>
struct WinogradWeightGradientAxis<2> {
  static constexpr int kIn = 4, kSide = 3;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&t)[4], V (&g)[3]) {
    const V even = (t[1] + t[2]) * 0.5f, odd = (t[1] - t[2]) * 0.5f;
    g[0] = t[0] + even, g[1] = odd, g[2] = even + t[3];
  }
};

struct WinogradScales : WinogradAxis<4> {
  static constexpr float zero = 1 / (a2 * b2), at_a = 1 / (2 * a2 * (a2 - b2)),
                         at_b = 1 / (2 * b2 * (b2 - a2));
};
template <>
struct WinogradGradientAxis<4> : WinogradScales {
  static constexpr int kIn = 4, kSide = 6;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&g)[4], V (&t)[6]) {
    const V even_a = g[0] + a2 * g[2], odd_a = a * g[1] + a2 * a * g[3];
    const V even_b = g[0] + b2 * g[2], odd_b = b * g[1] + b2 * b * g[3];
    t[0] = g[0];
    t[1] = even_a + odd_a, t[2] = even_a - odd_a;
    t[3] = even_b + odd_b, t[4] = even_b - odd_b;
    t[5] = g[3];
  }
};
template <>
struct WinogradWeightAxis<4> : WinogradScales {
  static constexpr int kIn = 3, kSide = 6;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&g)[3], V (&t)[6]) {
    const V even_a = at_a * g[0] + at_a * a2 * g[2], odd_a = at_a * a * g[1];
    const V even_b = at_b * g[0] + at_b * b2 * g[2], odd_b = at_b * b * g[1];
    t[0] = zero * g[0];
    t[1] = even_a + odd_a, t[2] = even_a - odd_a;
    t[3] = even_b + odd_b, t[4] = even_b - odd_b;
    t[5] = g[2];
  }
};
template <>
struct WinogradWeightGradientAxis<4> : WinogradScales {
  static constexpr int kIn = 6, kSide = 3;
  template <class V>
  static CLIPWEATHER_INLINE void enter(const V (&t)[6], V (&g)[3]) {
    const V even_a = at_a * (t[1] + t[2]), odd_a = at_a * a * (t[1] - t[2]);
    const V even_b = at_b * (t[3] + t[4]), odd_b = at_b * b * (t[3] - t[4]);
    g[0] = zero * t[0] + even_a + even_b;
    g[1] = odd_a + odd_b;
    g[2] = a2 * even_a + b2 * even_b + t[5];
  }
};

// A tile's numbers, kLanes channels of them, through the axis of its rows and that of its columns.
// in(row, column) gives a vector of the tile, out(row, column, vector) takes one of the result.
template <class Axis, class ColumnAxis = Axis, class In, class Out>
CLIPWEATHER_INLINE void enter_tile(const In& in, const Out& out) {
  constexpr int kRows = Axis::kIn, kColumns = ColumnAxis::kIn;
  Vector<float> rows[kRows][ColumnAxis::kSide];
#pragma GCC unroll 9
  for (int i = 0; i < kRows; ++i) {
    Vector<float> d[kColumns];
#pragma GCC unroll 9
    for (int j = 0; j < kColumns; ++j) d[j] = in(i, j);
    ColumnAxis::enter(d, rows[i]);
  }
#pragma GCC unroll 9
  for (int j = 0; j < ColumnAxis::kSide; ++j) {
    Vector<float> d[kRows], t[Axis::kSide];
#pragma GCC unroll 9
    for (int i = 0; i < kRows; ++i) d[i] = rows[i][j];
    Axis::enter(d, t);
#pragma GCC unroll 9
    for (int i = 0; i < Axis::kSide; ++i) out(i, j, t[i]);
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
