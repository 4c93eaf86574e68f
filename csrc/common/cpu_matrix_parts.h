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

inline constexpr int64_t kPartSide = 32;   // rows and columns of a square of C, and k of a step
inline constexpr int64_t kPartSteps = 16;  // that are summed at once, at most
// Panels side by side that are packed at once where B's columns lie side by side, and their steps:
// memory gives long pieces faster, 2 KB at twice the rate of 128 bytes.
inline constexpr int64_t kGroupPanels = 16, kGroupSteps = 4;
inline constexpr int64_t kPartBlocks = 96;  // of A, packed at once: 576 KB, which stay in L2
inline constexpr int64_t kGroupRows = 512;  // of C, at most: more go to C and back too often
// From so many numbers on C goes past the caches, if nobody reads it soon: lines that are written
// in them have to be read first.
inline constexpr int64_t kStreamedSums = 1 << 17;
// Of a block, 32 rows or columns deep one step: three parts of two registers each. In a register
// of A are 16 rows of 32 numbers, in one of B 16 columns' pairs of numbers. A pair is k and k + 16.
inline constexpr int64_t kPartRegister = 16 * 16;  // pairs
inline constexpr int64_t kPartBlock = 6 * kPartRegister;

struct Parts {
  __m512i part[3];  // in the upper halves
};

// Rounded, not cut off: parts of one sign would be lost in large sums always to the same side.
// The largest numbers would round to infinity; kLargest: there may be such.
template <bool kLargest = true>
CLIPWEATHER_INLINE Parts parts_of(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(-0x10000);
  const __m512i bits = _mm512_castps_si512(x);
  __m512i sum = _mm512_add_epi32(bits, half);
  if constexpr (kLargest) {
    const __mmask16 rounds = _mm512_cmple_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0x1.fcp127f));
    sum = _mm512_mask_add_epi32(bits, rounds, bits, half);
  }
  const __m512i high = _mm512_and_si512(sum, upper);
  const __m512 rest = _mm512_sub_ps(x, _mm512_castsi512_ps(high));
  const __m512i middle = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(rest), half), upper);
  const __m512 low = _mm512_sub_ps(rest, _mm512_castsi512_ps(middle));
  return {{high, middle, _mm512_castps_si512(low)}};
}

CLIPWEATHER_INLINE __m512i paired(__m512i first, __m512i second) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(first, 16), second);
}

// Rows, or columns, of an operand: number k of row i is at from[i * row + k * column]; one of both
// is 1. Of rows there are `live`, of numbers `depth`.
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

// 16 numbers of a register's row, or column, and those 16 steps of k later, in their parts.
CLIPWEATHER_INLINE void pack_pair(__m512 first, __m512 second, uint32_t* to) {
  const Parts a = parts_of(first), b = parts_of(second);
  for (int p = 0; p < 3; ++p)
    _mm512_store_si512(to + p * 2 * kPartRegister, paired(a.part[p], b.part[p]));
}

// One step of 32 rows: registers (part, half) of 16 x 16 pairs, row by row, or k by k.
inline void pack_rows(const PartSource& s, uint32_t* to, bool by_k) {
  alignas(64) uint32_t room[kPartBlock];
  uint32_t* const packed = by_k ? room : to;
  const __mmask16 low = first_lanes(s.depth), high = first_lanes(s.depth - 16);
  for (int64_t i = 0; i < kPartSide; ++i) {
    uint32_t* const row = packed + i / 16 * kPartRegister + i % 16 * 16;
    if (i >= s.live) {
      for (int p = 0; p < 3; ++p)
        _mm512_store_si512(row + p * 2 * kPartRegister, _mm512_setzero_si512());
      continue;
    }
    const float* from = s.from + i * s.row;
    __builtin_prefetch(from + kPartSide, 0, 2), __builtin_prefetch(from + kPartSide + 16, 0, 2);
    pack_pair(_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + 16), row);
  }
  for (int i = 0; by_k && i < 6; ++i)
    transpose_pairs(room + i * kPartRegister, to + i * kPartRegister);
}

// The same where neighbours in memory have the same k, k by k and of `blocks` blocks side by side,
// which are packed `block` apart.
inline void pack_columns(const PartSource& s, uint32_t* to, int64_t blocks, int64_t block) {
  for (int64_t pair = 0; pair < 16; ++pair)
    for (int64_t side = 0; side < 2 * blocks; ++side) {
      const __mmask16 live = first_lanes(s.live - side * 16);
      const auto numbers = [&](int64_t k) {
        const float* from = s.from + k * s.column + side * 16;
        __builtin_prefetch(from + 8 * s.column, 0, 2);
        return _mm512_maskz_loadu_ps(k < s.depth ? live : __mmask16(0), from);
      };
      pack_pair(numbers(pair), numbers(pair + 16),
                to + side / 2 * block + side % 2 * kPartRegister + pair * 16);
    }
}

CLIPWEATHER_INLINE void pack_step(const PartSource& s, uint32_t* to, bool by_k) {
  if (s.column == 1) {
    pack_rows(s, to, by_k);
  } else if (by_k) {
    pack_columns(s, to, 1, kPartBlock);
  } else {
    alignas(64) uint32_t room[kPartBlock];
    pack_columns(s, room, 1, kPartBlock);
    for (int i = 0; i < 6; ++i) transpose_pairs(room + i * kPartRegister, to + i * kPartRegister);
  }
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

struct NothingBetween {
  CLIPWEATHER_INLINE void operator()() const {}
};

// A square of sums, 16 or 32 on a side: of `steps` steps, added to what is at `before`. Between:
// called six times a step, while the unit multiplies.
template <bool kHigh, bool kWide, class Between = NothingBetween>
inline void multiply_square(const uint32_t* a, const uint32_t* b, int64_t steps,
                            const float* before, int64_t before_row, float* c, int64_t c_row,
                            const Between& between = {}) {
  matrix_load<0>(before, before_row * 4);
  if constexpr (kWide) matrix_load<1>(before + 16, before_row * 4);
  if constexpr (kHigh) matrix_load<2>(before + 16 * before_row, before_row * 4);
  if constexpr (kHigh && kWide) matrix_load<3>(before + 16 * before_row + 16, before_row * 4);
  for (; steps > 0; --steps, a += kPartBlock, b += kPartBlock) {
    // The least products first; from one to the next only one operand changes.
    load_part<4, kHigh>(a, 2), load_part<6, kWide>(b, 0);
    multiply_registers<4, 6, kHigh, kWide>(), between();
    load_part<4, kHigh>(a, 1);
    multiply_registers<4, 6, kHigh, kWide>(), between();
    load_part<6, kWide>(b, 1);
    multiply_registers<4, 6, kHigh, kWide>(), between();
    load_part<4, kHigh>(a, 0);
    multiply_registers<4, 6, kHigh, kWide>(), between();
    load_part<6, kWide>(b, 2);
    multiply_registers<4, 6, kHigh, kWide>(), between();
    load_part<6, kWide>(b, 0);
    multiply_registers<4, 6, kHigh, kWide>(), between();
  }
  matrix_store<0>(c, c_row * 4);
  if constexpr (kWide) matrix_store<1>(c + 16, c_row * 4);
  if constexpr (kHigh) matrix_store<2>(c + 16 * c_row, c_row * 4);
  if constexpr (kHigh && kWide) matrix_store<3>(c + 16 * c_row + 16, c_row * 4);
}

// One step of a square's 16 rows, added to registers 0 and 1 in the same order of products.
// Between: called at so many places while the unit multiplies, with the place's number.
inline constexpr int kPartPlaces = 8;
template <bool kWide, class Between>
CLIPWEATHER_INLINE void multiply_half(const uint32_t* a, const uint32_t* b,
                                      const Between& between) {
  const auto left = [&](int part) { return a + 2 * part * kPartRegister; };
  const auto right = [&](int part) { return b + 2 * part * kPartRegister; };
  matrix_load<5>(left(2), 64);
  load_part<2, kWide>(b, 0);
  matrix_multiply<0, 5, 2>();
  between(0);
  matrix_load<6>(left(1), 64);
  if constexpr (kWide) matrix_multiply<1, 5, 3>();
  matrix_load<4>(right(1), 64);
  matrix_multiply<0, 6, 2>();
  between(1);
  matrix_load<7>(left(0), 64);
  if constexpr (kWide) matrix_multiply<1, 6, 3>();
  between(2);
  matrix_multiply<0, 6, 4>();
  matrix_multiply<0, 7, 4>();
  between(3);
  if constexpr (kWide) {
    matrix_load<4>(right(1) + kPartRegister, 64);
    matrix_multiply<1, 6, 4>();
  }
  between(4);
  if constexpr (kWide) matrix_multiply<1, 7, 4>();
  matrix_load<4>(right(2), 64);
  matrix_multiply<0, 7, 4>();
  between(5);
  if constexpr (kWide) {
    matrix_load<4>(right(2) + kPartRegister, 64);
    matrix_multiply<1, 7, 4>();
  }
  between(6);
  matrix_multiply<0, 7, 2>();
  if constexpr (kWide) matrix_multiply<1, 7, 3>();
  between(7);
}

// How a product is done.
struct PartPlan {
  int64_t steps, panels;  // that are packed at once, at most
  bool swapped;  // squares are columns by rows: B has rows of k, and then is packed as it lies
  bool streams;  // C goes past the caches
};

inline PartPlan plan_of(const Product<float>& p, int threads) {
  const int64_t steps = ceil_div(p.k, kPartSide), panels = ceil_div(p.n, kPartSide);
  const int64_t most = steps < kPartSteps ? steps : kPartSteps;
  if (p.b_transposed) return {most, 1, p.n > p.m, false};
  const bool lines = p.n % 16 == 0 && reinterpret_cast<uintptr_t>(p.c) % 64 == 0;
  const bool streams = p.read_late && lines && steps <= kPartSteps && p.m * p.n >= kStreamedSums;
  // Where A is transposed, C is a weight's gradient, larger than B, which was made just now.
  if (p.a_row == 1 || p.m > kGroupRows) return {most, 1, false, streams};
  const int64_t each = ceil_div(panels, threads < 1 ? 1 : threads);
  return {steps < kGroupSteps ? steps : kGroupSteps, each < kGroupPanels ? each : kGroupPanels,
          false, false};
}

// Where a square goes: `rows` and `columns` of it are C's.
struct PartTarget {
  float* c;
  int64_t c_row, rows, columns;
  const float* first;  // what the sums begin with, of the columns; null: with C
};

// Adds a square whose rows are C's columns.
inline void add_transposed(const float* sums, const PartTarget& t) {
  for (int64_t m = 0; m < t.rows; m += 16)
    for (int64_t n = 0; n < t.columns; n += 16) {
      const __mmask16 live = first_lanes(t.columns - n);
      Vector<float> square[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) square[i] = load(sums + (n + i) * kPartSide + m);
      transpose<float>(square);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (m + i >= t.rows) break;
        float* const c = t.c + (m + i) * t.c_row + n;
        const __m512 before =
            t.first == nullptr ? _mm512_maskz_loadu_ps(live, c) : _mm512_loadu_ps(t.first + n);
        _mm512_mask_storeu_ps(c, live, _mm512_add_ps(before, (__m512)square[i]));
      }
    }
}

// A square of C from a block of A and a panel of B.
inline void multiply_parts(const uint32_t* a, const uint32_t* b, int64_t steps,
                           const PartPlan& plan, const PartTarget& t) {
  alignas(64) float edge[kPartSide * kPartSide];
  alignas(64) static constexpr float kZeros[kPartSide] = {};
  const bool tall = t.rows > 16, broad = t.columns > 16;
  const bool high = plan.swapped ? broad : tall, wide = plan.swapped ? tall : broad;
  const auto multiply = high   ? wide ? multiply_square<true, true> : multiply_square<true, false>
                        : wide ? multiply_square<false, true>
                               : multiply_square<false, false>;
  if (plan.swapped) {
    multiply(b, a, steps, kZeros, 0, edge, kPartSide, {});
    add_transposed(edge, t);
    return;
  }
  const bool full = t.rows == (high ? 32 : 16) && t.columns == (wide ? 32 : 16);
  const bool whole = full && !plan.streams;
  float* const c = whole ? t.c : edge;
  const int64_t c_row = whole ? t.c_row : kPartSide;
  const size_t row_bytes = static_cast<size_t>(t.columns) * sizeof(float);
  if (!whole && t.first == nullptr)
    for (int64_t r = 0; r < t.rows; ++r)
      std::memcpy(edge + r * kPartSide, t.c + r * t.c_row, row_bytes);
  const float* const before = t.first == nullptr ? c : t.first;
  multiply(a, b, steps, before, t.first == nullptr ? c_row : 0, c, c_row, {});
  for (int64_t r = 0; r < t.rows && !whole; ++r) {
    if (full) {
      for (int64_t i = 0; i < t.columns; i += 16)
        _mm512_stream_ps(t.c + r * t.c_row + i, _mm512_load_ps(edge + r * kPartSide + i));
    } else {
      std::memcpy(t.c + r * t.c_row, edge + r * kPartSide, row_bytes);
    }
  }
}

// Whether packing costs less than the products save.
inline bool parts_pay(const Product<float>& p) { return p.m >= 16 && p.n >= 32 && p.k >= 16; }

inline void multiply_in_parts(const Product<float>& p, int threads) {
  const PartPlan plan = plan_of(p, threads);
  const int64_t most_rows = kPartBlocks / plan.steps * kPartSide, width = plan.panels * kPartSide;
  const int64_t b_row = p.b_transposed ? p.b_row : 1, b_column = p.b_transposed ? 1 : p.b_row;
  // Kept: a block of this size would be given back to the system, and come back page by page.
  static thread_local const Buffer<uint32_t> packed_rows(kPartBlocks * kPartBlock);
  uint32_t* const packed = packed_rows.get();
  for (int64_t k0 = 0; k0 < p.k; k0 += plan.steps * kPartSide) {
    const int64_t left = ceil_div(p.k - k0, kPartSide);
    const int64_t steps = left < plan.steps ? left : plan.steps, block = steps * kPartBlock;
    for (int64_t m0 = 0; m0 < p.m; m0 += most_rows) {
      const int64_t rows = p.m - m0 < most_rows ? p.m - m0 : most_rows;
      const int64_t blocks = ceil_div(rows, kPartSide);
      parallel_tasks(blocks, threads, [&](int64_t i, int) {
        const int64_t m = m0 + i * kPartSide;
        for (int64_t s = 0; s < steps; ++s) {
          const int64_t k = k0 + s * kPartSide;
          pack_step({p.a + m * p.a_row + k * p.a_column, p.a_row, p.a_column, p.m - m, p.k - k},
                    packed + i * block + s * kPartBlock, plan.swapped);
        }
      });
      parallel_tasks(ceil_div(p.n, width), threads, [&](int64_t group, int) {
        static_assert(kGroupPanels * kGroupSteps >= kPartSteps);
        static thread_local const Buffer<uint32_t> packed_panels(kGroupPanels * kGroupSteps *
                                                                 kPartBlock);
        alignas(64) float first[kPartSide] = {};
        const int64_t n0 = group * width, live = p.n - n0 < width ? p.n - n0 : width;
        for (int64_t s = 0; s < steps; ++s) {
          const int64_t k = k0 + s * kPartSide;
          const PartSource b{p.b + n0 * b_row + k * b_column, b_row, b_column, live, p.k - k};
          uint32_t* const to = packed_panels.get() + s * kPartBlock;
          if (p.b_transposed)
            pack_rows(b, to, !plan.swapped);
          else
            pack_columns(b, to, ceil_div(live, kPartSide), block);
        }
        const MatrixUnit unit;
        for (int64_t i = 0; i * kPartSide < live; ++i) {
          const int64_t n = n0 + i * kPartSide;
          const int64_t columns = p.n - n < kPartSide ? p.n - n : kPartSide;
          for (int64_t j = 0; p.bias != nullptr && j < columns; ++j) first[j] = p.bias[n + j];
          for (int64_t m = 0; m < rows; m += kPartSide)
            multiply_parts(
                packed + m / kPartSide * block, packed_panels.get() + i * block, steps, plan,
                {p.c + (m0 + m) * p.n + n, p.n, rows - m < kPartSide ? rows - m : kPartSide,
                 columns, k0 == 0 ? first : nullptr});
        }
        if (plan.streams) _mm_sfence();
      });
    }
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
