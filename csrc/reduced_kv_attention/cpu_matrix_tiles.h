// The same operands and products by the matrix unit. It takes 16 rows, 16 columns and 32 numbers of
// the inner product at a time, whatever there is: operands are padded with zeros.
#pragma once

#include "common/cpu_matrix_unit.h"
#include "reduced_kv_attention/cpu_tiles.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

#if defined(__AMX_BF16__)
struct MatrixPairs : Pairs {
  using Hardware = MatrixUnit;
  static constexpr int64_t kRows = kMatrixRows;

  CLIPWEATHER_INLINE static int64_t steps(int64_t count) {
    return round_up((count + 1) / 2, kMatrixRows);
  }
  CLIPWEATHER_INLINE static Vector<float> step(const bfloat16_t* p, int64_t stride, int64_t rows,
                                               int64_t count) {
    return rows > 0 ? Pairs::step(p, stride, rows, count) : Vector<float>{};
  }
};

// Sums of 16 kHigh rows and 16 kWide columns, in registers 0 to 3; operands in 4 to 7.
template <int kHigh, int kWide>
CLIPWEATHER_INLINE void multiply_pairs(const Left<MatrixPairs>& left, const uint32_t* a,
                                       const uint32_t* b, int64_t b_bytes, int64_t steps, float* to,
                                       int64_t to_row, bool add) {
  constexpr int64_t kSide = kMatrixRows;
  const int64_t to_bytes = to_row * 4, a_bytes = left.row_stride * 4;
  float* const below = to + kSide * to_row;
  if (add) {
    matrix_load<0>(to, to_bytes);
    if constexpr (kWide > 1) matrix_load<1>(to + kSide, to_bytes);
    if constexpr (kHigh > 1) matrix_load<2>(below, to_bytes);
    if constexpr (kHigh > 1 && kWide > 1) matrix_load<3>(below + kSide, to_bytes);
  } else {
    matrix_clear<0>();
    if constexpr (kWide > 1) matrix_clear<1>();
    if constexpr (kHigh > 1) matrix_clear<2>();
    if constexpr (kHigh > 1 && kWide > 1) matrix_clear<3>();
  }
  for (int64_t s = 0; s < steps; s += kSide, a += kSide, b += kSide * (b_bytes / 4)) {
    matrix_load<4>(a, a_bytes);
    matrix_load<6>(b, b_bytes);
    matrix_multiply<0, 4, 6>();
    if constexpr (kWide > 1) {
      matrix_load<7>(b + kSide, b_bytes);
      matrix_multiply<1, 4, 7>();
    }
    if constexpr (kHigh > 1) {
      matrix_load<5>(a + kSide * left.row_stride, a_bytes);
      matrix_multiply<2, 5, 6>();
      if constexpr (kWide > 1) matrix_multiply<3, 5, 7>();
    }
  }
  matrix_store<0>(to, to_bytes);
  if constexpr (kWide > 1) matrix_store<1>(to + kSide, to_bytes);
  if constexpr (kHigh > 1) matrix_store<2>(below, to_bytes);
  if constexpr (kHigh > 1 && kWide > 1) matrix_store<3>(below + kSide, to_bytes);
}

// As multiply of cpu_tiles.h: a row's units of `left` lie one after the other, and the factor is 1
// where products are added. It finds no maxima.
template <>
inline void multiply<MatrixPairs>(const Left<MatrixPairs>& left, const uint32_t* packed,
                                  int64_t steps, int64_t rows, int64_t vectors,
                                  const Result<MatrixPairs>& result) {
  constexpr int64_t kSide = kMatrixRows;
  const Panels panels(vectors);
  const int64_t width = vectors * kSide;
  if (result.into == Into::kKeep)
    for (int64_t r = 0; r < rows; ++r) {
      float* const to = result.sums + r * result.row_stride;
      for (int64_t c = 0; c < width; c += kSide) store(to + c, load(to + c) * result.keep[r]);
    }
  const bool add = result.into != Into::kSet;
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel), wide = panels.begin(panel + 1) - first;
    const uint32_t* const b = packed + first * steps * kSide;
    for (int64_t row = 0; row < rows; row += 2 * kSide) {  // of `left`, while it is in L1
      const uint32_t* const a = left.units + row * left.row_stride;
      float* const to = result.sums + row * result.row_stride + first * kSide;
      const int64_t bytes = wide * 64, to_row = result.row_stride;
      const bool high = row + kSide < rows;
      for (int64_t v = 0; v < wide; v += 2) {
        const uint32_t* const columns = b + v * kSide;
        float* const square = to + v * kSide;
        const bool two = v + 1 < wide;
        if (high && two)
          multiply_pairs<2, 2>(left, a, columns, bytes, steps, square, to_row, add);
        else if (high)
          multiply_pairs<2, 1>(left, a, columns, bytes, steps, square, to_row, add);
        else if (two)
          multiply_pairs<1, 2>(left, a, columns, bytes, steps, square, to_row, add);
        else
          multiply_pairs<1, 1>(left, a, columns, bytes, steps, square, to_row, add);
      }
    }
  }
  if (result.factor != 1.0f)
    for (int64_t r = 0; r < rows; ++r) {
      float* const to = result.sums + r * result.row_stride;
      for (int64_t c = 0; c < width; c += kSide) store(to + c, load(to + c) * result.factor);
    }
}
#endif

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
