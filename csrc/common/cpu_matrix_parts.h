// C = A B (+ bias) in float32 by the matrix unit, which multiplies bfloat16 numbers.
//
// A float32 number of 24 bits is the sum of three bfloat16 numbers of 8, exactly. Of the nine
// products of two numbers' parts six are summed; the others are below 2^-25 of the whole. So it
// rounds as sums of float32 products do, and takes 6/16 of their time at best. Parts below 2^-126
// count as zero; where an operand is infinite, the sum is NaN.
//
// Every number of C is summed over the same steps of k in the same order, whatever the threads.
#pragma once

#include "common/cpu_matrix_unit.h"
#include "common/cpu_products.h"

#if defined(__AMX_BF16__)
#include "common/cpu_buffer.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int64_t kPartSide = 32;    // rows and columns of a square of C, and k of a step
inline constexpr int64_t kPartDepth = 512;  // k that are summed at once, at most
inline constexpr int64_t kPartBlocks = 96;  // of A, packed at once: 576 KB, which stay in L2
// Of a block, 32 rows or columns deep one step: three parts of two registers each. In a register
// of A are 16 rows of 32 numbers, in one of B 16 columns' pairs of numbers.
inline constexpr int64_t kPartRegister = 16 * 16;  // pairs
inline constexpr int64_t kPartBlock = 6 * kPartRegister;

struct Parts {
  __m512i part[3];  // in the upper halves
};

CLIPWEATHER_INLINE Parts parts_of(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(-0x10000);
  // The largest numbers would round to infinity.
  const __mmask16 rounds = _mm512_cmple_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0x1.fcp127f));
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i high = _mm512_and_si512(_mm512_mask_add_epi32(bits, rounds, bits, half), upper);
  const __m512 rest = _mm512_sub_ps(x, _mm512_castsi512_ps(high));
  const __m512i middle = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(rest), half), upper);
  const __m512 low = _mm512_sub_ps(rest, _mm512_castsi512_ps(middle));
  return {{high, middle, _mm512_castps_si512(low)}};
}

// 32 rows, or columns, of an operand: number k of row i is at from[i * row + k * column]; one of
// both is 1. Of rows there are `live`, of numbers `depth`.
struct PartSource {
  const float* from;
  int64_t row, column, live, depth;
};

CLIPWEATHER_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

CLIPWEATHER_INLINE void transpose_pairs(const uint32_t* from, uint32_t* to) {
  Vector<float> square[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) std::memcpy(&square[i], from + i * 16, sizeof square[i]);
  transpose<float>(square);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * 16, &square[i], sizeof square[i]);
}

// One step of 32 rows: registers (part, half) of 16 x 16 pairs, row by row, or k by k.
inline void pack_rows(const PartSource& s, uint32_t* to, bool by_k) {
  alignas(64) uint32_t room[kPartBlock];
  uint32_t* const packed = by_k ? room : to;
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  const __mmask16 low = first_lanes(s.depth), high = first_lanes(s.depth - 16);
  for (int64_t i = 0; i < kPartSide; ++i) {
    uint32_t* const row = packed + i / 16 * kPartRegister + i % 16 * 16;
    if (i >= s.live) {
      for (int p = 0; p < 3; ++p)
        _mm512_store_si512(row + p * 2 * kPartRegister, _mm512_setzero_si512());
      continue;
    }
    const float* from = s.from + i * s.row;
    __builtin_prefetch(from + kPartSide), __builtin_prefetch(from + kPartSide + 16);
    const Parts a = parts_of(_mm512_maskz_loadu_ps(low, from));
    const Parts b = parts_of(_mm512_maskz_loadu_ps(high, from + 16));
    for (int p = 0; p < 3; ++p)
      _mm512_store_si512(row + p * 2 * kPartRegister,
                         _mm512_permutex2var_epi16(a.part[p], upper, b.part[p]));
  }
  for (int i = 0; by_k && i < 6; ++i)
    transpose_pairs(room + i * kPartRegister, to + i * kPartRegister);
}

// The same where neighbours in memory have the same k.
inline void pack_columns(const PartSource& s, uint32_t* to, bool by_k) {
  alignas(64) uint32_t room[kPartBlock];
  uint32_t* const packed = by_k ? to : room;
  for (int64_t pair = 0; pair < 16; ++pair)
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 live = first_lanes(s.live - half * 16);
      const auto parts = [&](int64_t k) {
        const float* from = s.from + k * s.column + half * 16;
        __builtin_prefetch(from + kPartSide * s.column);
        return parts_of(_mm512_maskz_loadu_ps(k < s.depth ? live : __mmask16(0), from));
      };
      const Parts even = parts(2 * pair), odd = parts(2 * pair + 1);
      for (int p = 0; p < 3; ++p)
        _mm512_store_si512(packed + (p * 2 + half) * kPartRegister + pair * 16,
                           (__m512i)((VectorU32)even.part[p] >> 16 | (VectorU32)odd.part[p]));
    }
  for (int i = 0; !by_k && i < 6; ++i)
    transpose_pairs(room + i * kPartRegister, to + i * kPartRegister);
}

CLIPWEATHER_INLINE void pack_step(const PartSource& s, uint32_t* to, bool by_k) {
  if (s.column == 1)
    pack_rows(s, to, by_k);
  else
    pack_columns(s, to, by_k);
}

template <int kA, int kB, bool kHigh, bool kWide>
CLIPWEATHER_INLINE void multiply_registers() {
  matrix_multiply<0, kA, kB>();
  if constexpr (kWide) matrix_multiply<1, kA, kB + 1>();
  if constexpr (kHigh) matrix_multiply<2, kA + 1, kB>();
  if constexpr (kHigh && kWide) matrix_multiply<3, kA + 1, kB + 1>();
}

template <int kFirst, bool kBoth>
CLIPWEATHER_INLINE void load_part(const uint32_t* block, int part) {
  matrix_load<kFirst>(block + 2 * part * kPartRegister, 64);
  if constexpr (kBoth) matrix_load<kFirst + 1>(block + (2 * part + 1) * kPartRegister, 64);
}

// A square of C, 16 or 32 on a side: sums of `steps` steps, added to what is at `before`.
template <bool kHigh, bool kWide>
inline void multiply_square(const uint32_t* a, const uint32_t* b, int64_t steps,
                            const float* before, int64_t before_row, float* c, int64_t c_row) {
  matrix_load<0>(before, before_row * 4);
  if constexpr (kWide) matrix_load<1>(before + 16, before_row * 4);
  if constexpr (kHigh) matrix_load<2>(before + 16 * before_row, before_row * 4);
  if constexpr (kHigh && kWide) matrix_load<3>(before + 16 * before_row + 16, before_row * 4);
  for (; steps > 0; --steps, a += kPartBlock, b += kPartBlock) {
    // The least products first; from one to the next only one operand changes.
    load_part<4, kHigh>(a, 2), load_part<6, kWide>(b, 0);
    multiply_registers<4, 6, kHigh, kWide>();
    load_part<4, kHigh>(a, 1);
    multiply_registers<4, 6, kHigh, kWide>();
    load_part<6, kWide>(b, 1);
    multiply_registers<4, 6, kHigh, kWide>();
    load_part<4, kHigh>(a, 0);
    multiply_registers<4, 6, kHigh, kWide>();
    load_part<6, kWide>(b, 2);
    multiply_registers<4, 6, kHigh, kWide>();
    load_part<6, kWide>(b, 0);
    multiply_registers<4, 6, kHigh, kWide>();
  }
  matrix_store<0>(c, c_row * 4);
  if constexpr (kWide) matrix_store<1>(c + 16, c_row * 4);
  if constexpr (kHigh) matrix_store<2>(c + 16 * c_row, c_row * 4);
  if constexpr (kHigh && kWide) matrix_store<3>(c + 16 * c_row + 16, c_row * 4);
}

// Some rows of A, packed, times a panel of B.
struct PartPanel {
  const uint32_t *a, *b;
  int64_t a_block;  // from one block of rows to the next
  int64_t steps;
  const float* first;  // what the sums begin with, of the panel's columns; null: with C
  float* c;
  int64_t c_row, rows, columns;
};

inline void multiply_panel_parts(const PartPanel& p) {
  alignas(64) float edge[kPartSide * kPartSide];
  for (int64_t m = 0; m < p.rows; m += kPartSide) {
    const int64_t rows = p.rows - m < kPartSide ? p.rows - m : kPartSide;
    const bool high = rows > 16, wide = p.columns > 16;
    const bool whole = rows == (high ? 32 : 16) && p.columns == (wide ? 32 : 16);
    float* const own = p.c + m * p.c_row;
    float* const c = whole ? own : edge;
    const int64_t c_row = whole ? p.c_row : kPartSide;
    const size_t row_bytes = static_cast<size_t>(p.columns) * sizeof(float);
    if (!whole && p.first == nullptr)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(edge + r * kPartSide, own + r * p.c_row, row_bytes);
    const float* const before = p.first == nullptr ? c : p.first;
    const int64_t before_row = p.first == nullptr ? c_row : 0;
    const uint32_t* const a = p.a + m / kPartSide * p.a_block;
    const auto multiply = high   ? wide ? multiply_square<true, true> : multiply_square<true, false>
                          : wide ? multiply_square<false, true>
                                 : multiply_square<false, false>;
    multiply(a, p.b, p.steps, before, before_row, c, c_row);
    if (!whole)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(own + r * p.c_row, edge + r * kPartSide, row_bytes);
  }
}

// Whether packing costs less than the products save.
inline bool parts_pay(const Product<float>& p) { return p.m >= 32 && p.n >= 32 && p.k >= 32; }

inline void multiply_in_parts(const Product<float>& p, int threads) {
  const int64_t panels = ceil_div(p.n, kPartSide);
  const int64_t most_steps = ceil_div(p.k < kPartDepth ? p.k : kPartDepth, kPartSide);
  const int64_t most_rows = kPartBlocks / most_steps * kPartSide;
  // Kept: a block of this size would be given back to the system, and come back page by page.
  static thread_local const Buffer<uint32_t> packed_rows(kPartBlocks * kPartBlock);
  uint32_t* const packed = packed_rows.get();
  for (int64_t k0 = 0; k0 < p.k; k0 += kPartDepth) {
    const int64_t depth = p.k - k0 < kPartDepth ? p.k - k0 : kPartDepth;
    const int64_t steps = ceil_div(depth, kPartSide), a_block = steps * kPartBlock;
    for (int64_t m0 = 0; m0 < p.m; m0 += most_rows) {
      const int64_t rows = p.m - m0 < most_rows ? p.m - m0 : most_rows;
      parallel_tasks(ceil_div(rows, kPartSide), threads, [&](int64_t block, int) {
        const int64_t m = m0 + block * kPartSide;
        for (int64_t s = 0; s < steps; ++s) {
          const int64_t k = k0 + s * kPartSide;
          pack_step({p.a + m * p.a_row + k * p.a_column, p.a_row, p.a_column, p.m - m, p.k - k},
                    packed + block * a_block + s * kPartBlock, false);
        }
      });
      parallel_tasks(panels, threads, [&](int64_t panel, int) {
        alignas(64) uint32_t room[kPartDepth / kPartSide * kPartBlock];
        alignas(64) float first[kPartSide] = {};
        const int64_t n = panel * kPartSide;
        const int64_t columns = p.n - n < kPartSide ? p.n - n : kPartSide;
        for (int64_t i = 0; p.bias != nullptr && i < columns; ++i) first[i] = p.bias[n + i];
        const int64_t row = p.b_transposed ? p.b_row : 1, column = p.b_transposed ? 1 : p.b_row;
        for (int64_t s = 0; s < steps; ++s) {
          const int64_t k = k0 + s * kPartSide;
          pack_step({p.b + n * row + k * column, row, column, columns, p.k - k},
                    room + s * kPartBlock, true);
        }
        const MatrixUnit unit;
        multiply_panel_parts({packed, room, a_block, steps, k0 == 0 ? first : nullptr,
                              p.c + m0 * p.n + n, p.n, rows, columns});
      });
    }
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
