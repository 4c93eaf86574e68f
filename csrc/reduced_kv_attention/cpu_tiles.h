// The CPU kernels' building blocks: operands packed into panels, and the multiplication of a small
// tile of rows with a packed operand, register-tiled.
//
// A packed operand is [panel][step][vectors of the panel][lanes]: one step of the inner product
// reads a panel's vectors contiguously. `M` says how a step multiplies: Plain (one fp32 or fp64
// product) or Pairs (two bf16 products by vdpbf16ps, so its unit is a pair of neighbouring
// elements). cpu_matrix_tiles.h has a third.
#pragma once

#include <type_traits>

#include "common/cpu_products.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// 6 rows by kPanel vectors of sums, one row's broadcast and a step's vectors fill the registers.
inline constexpr int kRowGroup = 6;
#if defined(__AVX512F__)
inline constexpr int kPanel = 4;
#else
inline constexpr int kPanel = 2;
#endif

CLIPWEATHER_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CLIPWEATHER_INLINE int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

// The next `count` of a workspace.
template <class X>
X* take(char*& from, int64_t count) {
  X* const start = reinterpret_cast<X*>(from);
  from += round_up(count * static_cast<int64_t>(sizeof(X)), 64);
  return start;
}

template <class A>
struct Plain {
  using Sum = A;
  using Unit = A;      // what a step takes of each row
  struct Hardware {};  // what a thread holds while it multiplies
  static constexpr int kDepth = 1;
  static constexpr int64_t kRows = kRowGroup;  // rows are computed in whole groups of so many

  CLIPWEATHER_INLINE static int64_t steps(int64_t count) { return count; }

  CLIPWEATHER_INLINE static Vector<A> spread(Unit a) { return a - Vector<A>{}; }
  CLIPWEATHER_INLINE static Vector<A> madd(Vector<A> sum, Vector<A> a, Vector<A> b) {
    return sum + a * b;
  }
  // kLanes<A> units of a row; at most `count` elements may be read, the rest are zero.
  template <class T>
  CLIPWEATHER_INLINE static Vector<A> units(const T* p, int64_t count) {
    return count >= kLanes<A> ? load(p) : load_first(p, count);
  }
  // One step of kLanes<A> columns; `rows` = 1 row is there.
  template <class T>
  CLIPWEATHER_INLINE static Vector<A> step(const T* p, int64_t /*stride*/, int64_t /*rows*/,
                                           int64_t count) {
    return units(p, count);
  }
};

#if defined(__AVX512BF16__)
struct Pairs {
  using Sum = float;
  using Unit = uint32_t;  // two bf16, the first in the low half
  struct Hardware {};
  static constexpr int kDepth = 2;
  static constexpr int64_t kRows = kRowGroup;

  CLIPWEATHER_INLINE static int64_t steps(int64_t count) { return (count + 1) / 2; }

  CLIPWEATHER_INLINE static Vector<float> spread(Unit a) {
    return (Vector<float>)_mm512_set1_epi32(static_cast<int>(a));
  }
  CLIPWEATHER_INLINE static Vector<float> madd(Vector<float> sum, Vector<float> a,
                                               Vector<float> b) {
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
  CLIPWEATHER_INLINE static Vector<float> units(const bfloat16_t* p, int64_t count) {
    const __mmask32 there = count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    return (Vector<float>)_mm512_maskz_loadu_epi16(there, p);
  }
  // Two rows interleaved; the second is absent where rows = 1.
  CLIPWEATHER_INLINE static Vector<float> step(const bfloat16_t* p, int64_t stride, int64_t rows,
                                               int64_t count) {
    const __mmask16 there = count >= 16 ? __mmask16(~0u) : __mmask16((1u << count) - 1u);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, p));
    if (rows == 1) return (Vector<float>)low;
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, p + stride));
    return (Vector<float>)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
  // Two vectors one after the other, rounded to bf16.
  CLIPWEATHER_INLINE static void store_two(bfloat16_t* p, Vector<float> low, Vector<float> high) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
  }
  // Units (first[i], second[i]), rounded to bf16.
  CLIPWEATHER_INLINE static Vector<float> interleave(Vector<float> first, Vector<float> second) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
    return (Vector<float>)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
};
#endif

// What multiplies elements of storage type T.
template <class T>
struct MultiplyOf {
  using type = Plain<typename Accumulate<T>::type>;
};
#if defined(CLIPWEATHER_PAIRS)
template <>
struct MultiplyOf<bfloat16_t> {
  using type = Pairs;
};
#endif

// ---- panels -------------------------------------------------------------------------------------

// `vectors` columns of vectors in as few panels as can be, of nearly equal width.
struct Panels {
  int64_t vectors;
  int64_t count;
  CLIPWEATHER_INLINE explicit Panels(int64_t n) : vectors(n), count((n + kPanel - 1) / kPanel) {}
  CLIPWEATHER_INLINE int64_t begin(int64_t panel) const { return panel * vectors / count; }
};

// Columns are rows of the matrix, steps its columns: (rows, d) becomes [panel of rows][d].
template <class M, class T>
void pack_transposed(const T* matrix, int64_t stride, int64_t rows, int64_t d,
                     typename M::Unit* packed) {
  using A = typename M::Sum;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t steps = M::steps(d);
  const Panels panels((rows + lanes - 1) / lanes);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel), width = panels.begin(panel + 1) - first;
    typename M::Unit* const to = packed + first * steps * lanes;
    for (int64_t v = 0; v < width; ++v) {
      const int64_t row = (first + v) * lanes;
      for (int64_t s = 0; s < steps; s += lanes) {
        Vector<A> r[lanes];
        for (int64_t i = 0; i < lanes; ++i)
          r[i] = row + i < rows
                     ? M::units(matrix + (row + i) * stride + s * M::kDepth, d - s * M::kDepth)
                     : Vector<A>{};
        transpose<A>(r);
        for (int64_t i = 0; i < smaller(lanes, steps - s); ++i)
          std::memcpy(to + ((s + i) * width + v) * lanes, &r[i], sizeof r[i]);
      }
    }
  }
}

// Columns are the matrix's, steps its rows: (rows, d) becomes [panel of d][rows].
template <class M, class T>
void pack_rows(const T* matrix, int64_t stride, int64_t rows, int64_t d, typename M::Unit* packed) {
  using A = typename M::Sum;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t steps = M::steps(rows);
  const Panels panels((d + lanes - 1) / lanes);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel), width = panels.begin(panel + 1) - first;
    typename M::Unit* to = packed + first * steps * lanes;
    for (int64_t s = 0; s < steps; ++s)
      for (int64_t v = 0; v < width; ++v, to += lanes) {
        const int64_t row = s * M::kDepth, column = (first + v) * lanes;
        const Vector<A> step =
            M::step(matrix + row * stride + column, stride, rows - row, d - column);
        std::memcpy(to, &step, sizeof step);
      }
  }
}

// The left operand: (rows, d) as rows of units, zero up to whole units and whole row groups.
template <class M, class T>
void pack_left(const T* matrix, int64_t stride, int64_t rows, int64_t d, int64_t row_units,
               typename M::Unit* packed) {
  using A = typename M::Sum;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t row = 0; row < round_up(rows, M::kRows); ++row)
    for (int64_t u = 0; u < row_units; u += lanes) {
      const int64_t left = d - u * M::kDepth;
      const Vector<A> units = row < rows && left > 0
                                  ? M::units(matrix + row * stride + u * M::kDepth, left)
                                  : Vector<A>{};
      std::memcpy(packed + row * row_units + u, &units, sizeof units);
    }
}

// ---- multiplication -----------------------------------------------------------------------------

// The left operand's units and the result's sums, both addressed by row.
template <class M>
struct Left {
  const typename M::Unit* units;
  int64_t row_stride;
  int64_t step_stride;
};
enum class Into { kSet, kAdd, kKeep };
// sums = product * factor (kSet), sums + product * factor (kAdd), or, with one number for each row,
// sums * keep[row] + product * factor (kKeep).
template <class M>
struct Result {
  typename M::Sum* sums;
  int64_t row_stride;
  Into into;
  typename M::Sum factor;
  const typename M::Sum* keep;
  // Where it is not null: a vector for each row, raised to the largest of the row's results.
  typename M::Sum* highest = nullptr;
};

// Steps summed in registers at a time. Rounding errors grow with the length of a running sum; and
// this much of a panel stays in L1 while all rows pass over it.
inline constexpr int64_t kRunningSteps = 128;

template <class M, int kWidth>
CLIPWEATHER_INLINE void multiply_group(const typename M::Unit* a, const Left<M>& left,
                                       const typename M::Unit* packed, int64_t steps,
                                       typename M::Sum* to, const Result<M>& result, Into into,
                                       const typename M::Sum* keep, typename M::Sum* highest) {
  using A = typename M::Sum;
  constexpr int64_t lanes = kLanes<A>;
  Vector<A> sum[kRowGroup][kWidth] = {};
  for (int64_t s = 0; s < steps; ++s, a += left.step_stride, packed += kWidth * lanes) {
    Vector<A> b[kWidth];
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) std::memcpy(&b[v], packed + v * lanes, sizeof b[v]);
#pragma GCC unroll 6
    for (int r = 0; r < kRowGroup; ++r) {
      const Vector<A> unit = M::spread(a[r * left.row_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < kWidth; ++v) sum[r][v] = M::madd(sum[r][v], unit, b[v]);
    }
  }
  if (result.factor != A{1}) {
#pragma GCC unroll 6
    for (int r = 0; r < kRowGroup; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kWidth; ++v) sum[r][v] *= result.factor;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRowGroup; ++r, to += result.row_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) {
      if (into == Into::kAdd) sum[r][v] += load(to + v * lanes);
      if (into == Into::kKeep) sum[r][v] += load(to + v * lanes) * keep[r];
      store(to + v * lanes, sum[r][v]);
    }
    if (highest == nullptr) continue;
    Vector<A> high = load(highest + r * lanes);
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) high = max(sum[r][v], high);
    store(highest + r * lanes, high);
  }
}

template <class M, int kWidth>
void multiply_panel(const Left<M>& left, const typename M::Unit* packed, int64_t steps,
                    int64_t rows, int64_t column, const Result<M>& result) {
  constexpr int64_t lanes = kLanes<typename M::Sum>;
  for (int64_t s = 0; s < steps; s += kRunningSteps) {
    const bool last = s + kRunningSteps >= steps;
    for (int64_t row = 0; row < rows; row += kRowGroup)
      multiply_group<M, kWidth>(
          left.units + row * left.row_stride + s * left.step_stride, left,
          packed + s * kWidth * lanes, smaller(kRunningSteps, steps - s),
          result.sums + row * result.row_stride + column, result, s == 0 ? result.into : Into::kAdd,
          result.keep + row,
          last && result.highest != nullptr ? result.highest + row * lanes : nullptr);
  }
}

// result (rows, vectors * lanes) from left (rows, steps) and the packed operand. Rows are computed
// in whole groups: left and result must have room for round_up(rows, M::kRows).
template <class M>
void multiply(const Left<M>& left, const typename M::Unit* packed, int64_t steps, int64_t rows,
              int64_t vectors, const Result<M>& result) {
  constexpr int64_t lanes = kLanes<typename M::Sum>;
  const Panels panels(vectors);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.begin(panel), width = panels.begin(panel + 1) - first;
    const typename M::Unit* const b = packed + first * steps * lanes;
    switch (width) {
#if defined(__AVX512F__)
      case 4:
        multiply_panel<M, 4>(left, b, steps, rows, first * lanes, result);
        break;
      case 3:
        multiply_panel<M, 3>(left, b, steps, rows, first * lanes, result);
        break;
#endif
      case 2:
        multiply_panel<M, 2>(left, b, steps, rows, first * lanes, result);
        break;
      default:
        multiply_panel<M, 1>(left, b, steps, rows, first * lanes, result);
    }
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
