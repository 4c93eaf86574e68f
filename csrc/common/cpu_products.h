// C = A B (+ bias) for matrices that a few hundred rows make too small for a library's
// preparations: panels of two vectors of B's columns, a handful of A's rows at a time in registers.
// With 16 to 1024 rows and weights that are not in cache it takes 0.7 to 0.95 of MKL's time.
//
// Every number of C is a sum over kDepth rows of B at a time, in the order of k, whatever the tasks
// and threads.
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
inline constexpr int64_t kDepth = 256;  // rows of a panel: 32 KB, about what L1 holds

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

// Rows [k0, k0 + depth) of B's columns [n0, n0 + 2 kLanes), zeros past the last column.
template <class A>
inline void pack_panel(const Product<A>& p, int64_t k0, int64_t depth, int64_t n0, A* panel) {
  constexpr int kCount = kLanes<A>;
  if (!p.b_transposed) {
    const int64_t live = p.n - n0 < 2 * kCount ? p.n - n0 : 2 * kCount;
    const A* row = p.b + k0 * p.b_row + n0;
    for (int64_t k = 0; k < depth; ++k, row += p.b_row, panel += 2 * kCount) {
      __builtin_prefetch(row + 8 * p.b_row);
      __builtin_prefetch(row + 8 * p.b_row + kCount);
      if (live == 2 * kCount) {
        store(panel, load(row)), store(panel + kCount, load(row + kCount));
      } else {
        for (int64_t i = 0; i < 2 * kCount; ++i) panel[i] = i < live ? row[i] : A(0);
      }
    }
    return;
  }
  for (int64_t k = 0; k < depth; k += kCount) {
    const int64_t live = depth - k < kCount ? depth - k : kCount;
    for (int half = 0; half < 2; ++half) {
      Vector<A> square[kCount];
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) {
        const int64_t n = n0 + half * kCount + i;
        const A* row = p.b + n * p.b_row + k0 + k;
        square[i] = n >= p.n ? Vector<A>{} : live == kCount ? load(row) : load_first(row, live);
      }
      transpose<A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i)
        if (i < live) store(panel + (k + i) * 2 * kCount + half * kCount, square[i]);
    }
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

// C's columns [n0, n0 + 2 kLanes).
template <class A>
inline void multiply_panel(const Product<A>& p, int64_t n0) {
  constexpr int64_t kWidth = 2 * kLanes<A>;
  alignas(64) A room[kDepth * kWidth];
  alignas(64) A edge[kRowsAtOnce * kWidth] = {};  // rows of C where fewer columns are left
  alignas(64) A first[kWidth] = {};
  const int64_t live = p.n - n0 < kWidth ? p.n - n0 : kWidth;
  for (int64_t i = 0; i < live && p.bias != nullptr; ++i) first[i] = p.bias[n0 + i];
  // A panel that few rows use is read where it lies.
  const bool whole = live == kWidth, direct = !p.b_transposed && whole && p.m <= 2 * kRowsAtOnce;
  for (int64_t k0 = 0; k0 == 0 || k0 < p.k; k0 += kDepth) {
    const int64_t depth = p.k - k0 < kDepth ? p.k - k0 : kDepth;
    if (!direct) pack_panel(p, k0, depth, n0, room);
    for (int64_t m = 0; m < p.m; m += kRowsAtOnce) {
      const int64_t count = p.m - m < kRowsAtOnce ? p.m - m : kRowsAtOnce;
      A* own = p.c + m * p.n + n0;
      A* c = whole ? own : edge;
      const int64_t c_row = whole ? p.n : kWidth;
      for (int64_t i = 0; i < count * live && !whole && k0 != 0; ++i)
        edge[i / live * kWidth + i % live] = own[i / live * p.n + i % live];
      const Rows<A> rows{p.a + m * p.a_row + k0 * p.a_column,
                         p.a_row,
                         p.a_column,
                         direct ? p.b + k0 * p.b_row + n0 : room,
                         direct ? p.b_row : kWidth,
                         depth,
                         k0 == 0 ? first : c,
                         k0 == 0 ? 0 : c_row,
                         c,
                         c_row};
      add_rows<kRowsAtOnce>(count, rows);
      for (int64_t i = 0; i < count * live && !whole; ++i)
        own[i / live * p.n + i % live] = edge[i / live * kWidth + i % live];
    }
  }
}

template <class A>
inline int64_t panels(const Product<A>& p) {
  return ceil_div(p.n, 2 * kLanes<A>);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
