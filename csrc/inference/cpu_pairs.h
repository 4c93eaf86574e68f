// Products with a packed weight in bfloat16, whose instruction multiplies pairs of numbers: of a
// panel, row k holds of every column the numbers 2 k and 2 k + 1. Sums are of float32. With a
// matrix unit they are those of cpu_matrix_pairs.h.
#pragma once

#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "inference/cpu_matrix_pairs.h"
#include "inference/cpu_panels.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

#if defined(__AMX_BF16__)
template <class Out>
inline void multiply(const PanelProduct<uint32_t, Out>& p) {
  MatrixProducts<Out>().add(p);
}
#else
// sum + a pair of `a` times the pairs of `b`.
CLIPWEATHER_INLINE Vector<float> add_pair(Vector<float> sum, uint32_t a, VectorU32 b) {
#if defined(__AVX512BF16__)
  return (Vector<float>)_mm512_dpbf16_ps(
      (__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)b);
#else
  const VectorU32 low = b << 16, high = b & 0xffff0000u;
  const uint32_t a_low = a << 16, a_high = a & 0xffff0000u;
  Vector<float> b_low, b_high;
  float x_low, x_high;
  std::memcpy(&b_low, &low, sizeof b_low), std::memcpy(&b_high, &high, sizeof b_high);
  std::memcpy(&x_low, &a_low, sizeof x_low), std::memcpy(&x_high, &a_high, sizeof x_high);
  return sum + x_low * b_low + x_high * b_high;
#endif
}

template <int kRows, int kVectors, class Out>
CLIPWEATHER_INLINE void pair_block(const PanelProduct<uint32_t, Out>& p, int64_t m, int64_t n) {
  constexpr int64_t kStep = kLanes<float>;
  Vector<float> sum[kRows][kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const Vector<float> first = p.bias == nullptr ? Vector<float>{} : load(p.bias + n + v * kStep);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sum[r][v] = first;
  }
  const uint32_t *a = p.a + m * p.a_row, *panel = p.panel + n;
  const int64_t a_row = p.a_row;
  for (int64_t k = 0; k < p.depth; ++k, panel += kPanel) {
    VectorU32 b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      std::memcpy(&b[v], panel + v * kStep, sizeof b[v]);
      __builtin_prefetch(panel + kAhead * kPanel + v * kStep);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const uint32_t x = a[r * a_row + k];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = add_pair(sum[r][v], x, b[v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(p.c + (m + r) * p.c_row + n + v * kStep, sum[r][v]);
}

template <int kRows, int kVectors, class Out>
inline void pair_rows(int64_t count, const PanelProduct<uint32_t, Out>& p, int64_t m, int64_t n) {
  if (count == kRows) {
    pair_block<kRows, kVectors>(p, m, n);
    return;
  }
  if constexpr (kRows > 1) pair_rows<kRows - 1, kVectors>(count, p, m, n);
}

template <class Out>
inline void multiply(const PanelProduct<uint32_t, Out>& p) {
  constexpr int64_t kStep = kLanes<float>;
  const int64_t groups = ceil_div(p.rows, kRowsAtOnce);
  for (int64_t n = 0; n < p.columns; n += 2 * kStep)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t m = p.rows * group / groups, count = p.rows * (group + 1) / groups - m;
      if (n + kStep < p.columns)
        pair_rows<kRowsAtOnce, 2>(count, p, m, n);
      else
        pair_rows<kRowsAtOnce, 1>(count, p, m, n);
    }
}
#endif

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
