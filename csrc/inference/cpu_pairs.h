// The same products in bfloat16, whose instruction multiplies pairs of numbers: of a panel, row k
// holds of every column the numbers 2 k and 2 k + 1. Sums are of float32.
#pragma once

#include "common/cpu_matrix_unit.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "inference/cpu_panels.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

template <class Out>
struct PairProduct {
  const uint32_t* a;  // (rows, K / 2) pairs, a_row apart
  int64_t a_row;
  const uint32_t* panel;
  const float* bias;  // of the panel's columns, or null
  Out* c;             // (rows, columns), c_row apart
  int64_t c_row;
  int64_t rows, columns, pairs;  // columns: a multiple of kPart
};

#if defined(__AMX_BF16__)
// Steps of 16 pairs that are fetched early where a panel comes from memory.
inline constexpr int64_t kStepsAhead = 4;

// Up to 32 rows of two vectors of columns, or of one: 16 pairs at a time, the last of them padded
// with zeros, which neither matrix may be read for beyond its end.
template <int kHigh, int kWide, class Out>
class MatrixSquare {
 public:
  static constexpr int64_t kSide = kMatrixRows;

  // The sums stay in the registers. `rest` is a copy of the panel's last pairs that make no whole
  // step.
  static CLIPWEATHER_INLINE void multiply(const PairProduct<Out>& p, int64_t m, int64_t rows,
                                          const uint32_t* rest, bool fetches) {
    const uint32_t *a = p.a + m * p.a_row, *panel = p.panel;
    const int64_t whole = p.pairs / kSide * kSide;
    matrix_clear<0>();
    if constexpr (kWide > 1) matrix_clear<1>();
    if constexpr (kHigh > 1) matrix_clear<2>();
    if constexpr (kHigh > 1 && kWide > 1) matrix_clear<3>();
    for (int64_t k = 0; k < whole; k += kSide, panel += kSide * kPanel) {
      if (fetches)
        for (int64_t line = 0; line < kSide * kPanel; line += 16)
          __builtin_prefetch(panel + kStepsAhead * kSide * kPanel + line);
      add(a + k, p.a_row, panel);
    }
    if (whole < p.pairs) {
      alignas(64) uint32_t last[2 * kSide * kSide];
      const __mmask16 there = static_cast<__mmask16>((1u << (p.pairs - whole)) - 1);
      for (int64_t r = 0; r < rows; ++r)
        _mm512_store_si512(last + r * kSide,
                           _mm512_maskz_loadu_epi32(there, a + r * p.a_row + whole));
      add(last, kSide, rest);
    }
  }

  static CLIPWEATHER_INLINE void store(float* to, int64_t row) {
    matrix_store<0>(to, row * 4);
    if constexpr (kWide > 1) matrix_store<1>(to + kSide, row * 4);
    if constexpr (kHigh > 1) matrix_store<2>(to + kSide * row, row * 4);
    if constexpr (kHigh > 1 && kWide > 1) matrix_store<3>(to + kSide * row + kSide, row * 4);
  }

 private:
  static CLIPWEATHER_INLINE void add(const uint32_t* a, int64_t a_row, const uint32_t* panel) {
    matrix_load<4>(a, a_row * 4);
    matrix_load<6>(panel, kPanel * 4);
    matrix_multiply<0, 4, 6>();
    if constexpr (kWide > 1) {
      matrix_load<7>(panel + kSide, kPanel * 4);
      matrix_multiply<1, 4, 7>();
    }
    if constexpr (kHigh > 1) {
      matrix_load<5>(a + kSide * a_row, a_row * 4);
      matrix_multiply<2, 5, 6>();
      if constexpr (kWide > 1) matrix_multiply<3, 5, 7>();
    }
  }
};

// Rows of sums as numbers of c.
template <int kWide, class Out>
CLIPWEATHER_INLINE void finish(const PairProduct<Out>& p, int64_t m, int64_t rows,
                               const float* sums) {
  Out* c = p.c + m * p.c_row;
  Vector<float> bias[kWide] = {};
  for (int v = 0; v < kWide && p.bias != nullptr; ++v) bias[v] = load(p.bias + v * kMatrixRows);
  for (int64_t r = 0; r < rows; ++r, c += p.c_row, sums += kPanel)
    for (int v = 0; v < kWide; ++v)
      store(c + v * kMatrixRows, load(sums + v * kMatrixRows) + bias[v]);
}

// A square's sums become numbers of c while the unit multiplies the next square's.
template <int kWide, class Out>
inline void multiply_columns(const PairProduct<Out>& p) {
  constexpr int64_t kSide = kMatrixRows, kAtOnce = 2 * kSide;
  const int64_t rest = p.pairs % kSide;
  alignas(64) uint32_t last[kSide * kPanel] = {};
  if (rest > 0)
    std::memcpy(last, p.panel + (p.pairs - rest) * kPanel,
                static_cast<size_t>(rest * kPanel) * sizeof(uint32_t));
  alignas(64) float sums[2][kAtOnce * kPanel];
  MatrixUnit unit;
  for (int64_t m = 0; m < p.rows; m += kAtOnce) {
    const int64_t rows = p.rows - m < kAtOnce ? p.rows - m : kAtOnce;
    const bool high = rows > kSide;
    if (rows < kAtOnce) unit.shape(high ? kSide : rows, high ? rows - kSide : kSide);
    if (high)
      MatrixSquare<2, kWide, Out>::multiply(p, m, rows, last, m == 0);
    else
      MatrixSquare<1, kWide, Out>::multiply(p, m, rows, last, m == 0);
    const bool as_it_is = sizeof(Out) == sizeof(float) && p.bias == nullptr;
    float* const now = sums[m / kAtOnce % 2];
    if (!as_it_is && m > 0) finish<kWide>(p, m - kAtOnce, kAtOnce, sums[(m / kAtOnce + 1) % 2]);
    float* const to = as_it_is ? reinterpret_cast<float*>(p.c + m * p.c_row) : now;
    const int64_t to_row = as_it_is ? p.c_row : kPanel;
    if (high)
      MatrixSquare<2, kWide, Out>::store(to, to_row);
    else
      MatrixSquare<1, kWide, Out>::store(to, to_row);
    if (!as_it_is && m + kAtOnce >= p.rows) finish<kWide>(p, m, rows, now);
  }
}

template <class Out>
inline void multiply(const PairProduct<Out>& p) {
  if (p.columns > kMatrixRows)
    multiply_columns<2>(p);
  else
    multiply_columns<1>(p);
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
CLIPWEATHER_INLINE void pair_block(const PairProduct<Out>& p, int64_t m, int64_t n) {
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
  for (int64_t k = 0; k < p.pairs; ++k, panel += kPanel) {
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
inline void pair_rows(int64_t count, const PairProduct<Out>& p, int64_t m, int64_t n) {
  if (count == kRows) {
    pair_block<kRows, kVectors>(p, m, n);
    return;
  }
  if constexpr (kRows > 1) pair_rows<kRows - 1, kVectors>(count, p, m, n);
}

template <class Out>
inline void multiply(const PairProduct<Out>& p) {
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
