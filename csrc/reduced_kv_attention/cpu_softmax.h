// What a softmax over rows of scores needs: their maxima, of one row or of as many as a vector has
// lanes, and the exponential.
#pragma once

#include "common/cpu_exp2.h"
#include "reduced_kv_attention/cpu_tiles.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

template <class A>
CLIPWEATHER_INLINE A horizontal_maximum(Vector<A> high) {
  constexpr int64_t lanes = kLanes<A>;
  A values[lanes];
  std::memcpy(values, &high, sizeof high);
  for (int64_t width = lanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i)
      values[i] = values[i + width] > values[i] ? values[i + width] : values[i];
  return values[0];
}

// Of every lane, in a row of whole vectors; a NaN behind the first vector does not win.
template <class A>
CLIPWEATHER_INLINE Vector<A> lane_maxima(const A* row, int64_t vectors) {
  constexpr int64_t lanes = kLanes<A>;
  constexpr int64_t kChains = 4;  // each waits for its own last maximum only
  Vector<A> high[kChains];
  for (int64_t i = 0; i < kChains; ++i) high[i] = load(row);
  int64_t v = 1;
  for (; v + kChains <= vectors; v += kChains)
#pragma GCC unroll 4
    for (int64_t i = 0; i < kChains; ++i) high[i] = max(load(row + (v + i) * lanes), high[i]);
  for (; v < vectors; ++v) high[0] = max(load(row + v * lanes), high[0]);
  return max(max(high[0], high[1]), max(high[2], high[3]));
}
template <class A>
CLIPWEATHER_INLINE A row_maximum(const A* row, int64_t vectors) {
  return horizontal_maximum<A>(lane_maxima(row, vectors));
}

// Lane r becomes what `combine` makes of all lanes of rows[r]: as many vectors at once as one has
// lanes, by halves of ever smaller size.
template <class A, class Combine>
CLIPWEATHER_INLINE Vector<A> across(Vector<A> (&rows)[kLanes<A>], const Combine& combine) {
  constexpr int kCount = kLanes<A>;
#pragma GCC unroll 4
  for (int half = kCount / 2; half >= 1; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      const Vector<A> a = rows[i], b = rows[i + half];
      Vector<A> own, other;
#if defined(__clang__)
      for (int lane = 0; lane < kCount; ++lane) {
        own[lane] = lane & half ? b[lane] : a[lane];
        other[lane] = lane & half ? b[lane ^ half] : a[lane ^ half];
      }
#else
      decltype(a < b) first{}, second{};
      for (int lane = 0; lane < kCount; ++lane) {
        first[lane] = lane & half ? kCount + lane : lane;
        second[lane] = (lane & half ? kCount : 0) + (lane ^ half);
      }
      own = __builtin_shuffle(a, b, first);
      other = __builtin_shuffle(a, b, second);
#endif
      rows[i] = combine(own, other);
    }
  return rows[0];
}

// ---- exponential --------------------------------------------------------------------------------

// 2^x for x <= 0; zero far below 2^-126; NaN stays NaN.
#if defined(__AVX512F__)
template <class M>
CLIPWEATHER_INLINE Vector<float> exp2_nonpositive(Vector<float> x) {
  return exp2_by_parts<M::kDepth == 2>(x);
}
#else
// f is what x has beyond the nearest whole number, in [-1/2, 1/2]. The polynomial is a relative
// minimax fit of 2^f with the value 1 at f = 0: 2e-9.
template <class M>
CLIPWEATHER_INLINE Vector<float> exp2_nonpositive(Vector<float> x) {
  x = max(broadcast(-127.0f), x);  // gives the second where one is NaN
  const float kRound = 0x1.8p23f;
  const Vector<float> shifted = x + kRound;
  const Vector<float> whole = shifted - kRound;
  const Vector<float> f = x - whole;
  Vector<float> p = f * 0x1.41d334p-13f + 0x1.5f456ap-10f;
  p = p * f + 0x1.3b2dbcp-7f;
  p = p * f + 0x1.c6aed4p-5f;
  p = p * f + 0x1.ebfbdap-3f;
  p = p * f + 0x1.62e430p-1f;
  p = p * f + 1.0f;
  VectorU32 bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // kRound's own bits leave on the left
  Vector<float> power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}
#endif
template <class M>
CLIPWEATHER_INLINE Vector<double> exp2_nonpositive(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp2(x[i]);
  return x;
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
