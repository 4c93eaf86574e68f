// What the products C = A B (+ bias) of numbers share: their operands, a handful of A's rows at a
// time in registers beside a panel of two vectors of B's columns.
#pragma once

#include "common/cpu_threads.h"
#include "common/cpu_vector.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// Rows whose sums fit the registers beside two vectors of B and a number of A.
#if defined(__AVX512F__)
inline constexpr int kRowsAtOnce = 12;
#else
inline constexpr int kRowsAtOnce = 6;
#endif

inline constexpr int64_t kLine = 64;
// Results of fewer bytes stay in cache: their reader finds them there.
inline constexpr int64_t kStreamedBytes = 256 << 10;

// A whole line that goes past the caches, and what makes such lines seen by other threads.
template <class A>
CLIPWEATHER_INLINE void store_past(A* p, Vector<A> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#else
  store(p, v);
#endif
}
inline void streams_end() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Number (m, k) of A is a[m * a_row + k * a_column]; B is (K, N), its rows b_row apart, or, where
// it is stored transposed, (N, K); C is (M, N), dense.
template <class A>
struct Product {
  const A *a, *b, *bias;  // bias: (N) or null
  A* c;
  int64_t m, n, k, a_row, a_column, b_row;
  bool b_transposed;
  bool read_late;  // C: it need not stay in cache
};

// Swaps the lanes and vectors of a square, by halves of ever smaller size.
template <class A>
CLIPWEATHER_INLINE void transpose(Vector<A> (&v)[kLanes<A>]) {
  constexpr int kCount = kLanes<A>;
  typedef decltype(Vector<A>{} < Vector<A>{}) Lanes;
#pragma GCC unroll 8
  for (int half = kCount / 2; half >= 1; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      if (i & half) continue;
      const Vector<A> upper = v[i], lower = v[i | half];
#if defined(__clang__)
      for (int lane = 0; lane < kCount; ++lane) {
        v[i][lane] = lane & half ? lower[lane ^ half] : upper[lane];
        v[i | half][lane] = lane & half ? lower[lane] : upper[lane ^ half];
      }
#else
      Lanes first{}, second{};
      for (int lane = 0; lane < kCount; ++lane) {
        first[lane] = lane & half ? kCount + (lane ^ half) : lane;
        second[lane] = lane & half ? kCount + lane : lane ^ half;
      }
      v[i] = __builtin_shuffle(upper, lower, first);
      v[i | half] = __builtin_shuffle(upper, lower, second);
#endif
    }
}

// A few rows of C, two vectors wide or one, and what they are made of.
template <class A>
struct Rows {
  const A* a;
  int64_t a_row, a_column;
  const A* panel;
  int64_t panel_row, depth;
  const A* before;  // what the sums are added to
  int64_t before_row;
  A* c;
  int64_t c_row;
  int64_t ahead = 8;  // rows of the panel that are fetched early
};

template <int kRows, int kVectors, class A>
CLIPWEATHER_INLINE void add_block(const Rows<A>& rows) {
  Vector<A> sum[kRows][kVectors] = {};
  const A *a = rows.a, *panel = rows.panel;
  const int64_t a_row = rows.a_row, a_column = rows.a_column, panel_row = rows.panel_row;
  const int64_t ahead = rows.ahead * panel_row;
  for (int64_t k = rows.depth; k > 0; --k) {
    Vector<A> b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      b[v] = load(panel + v * kLanes<A>);
      __builtin_prefetch(panel + ahead + v * kLanes<A>);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vector<A> x = broadcast(a[r * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] += x * b[v];
    }
    a += a_column, panel += panel_row;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vector<A> before = load(rows.before + r * rows.before_row + v * kLanes<A>);
      store(rows.c + r * rows.c_row + v * kLanes<A>, before + sum[r][v]);
    }
}

// The same for the last rows, fewer than kRowsAtOnce.
template <int kRows, int kVectors = 2, class A>
inline void add_rows(int64_t count, const Rows<A>& rows) {
  if (count == kRows) {
    add_block<kRows, kVectors>(rows);
    return;
  }
  if constexpr (kRows > 1) add_rows<kRows - 1, kVectors>(count, rows);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
