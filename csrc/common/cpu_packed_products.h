// C = A B (+ bias) for matrices that a few hundred rows make too small for a library's
// preparations: panels of two vectors of B's columns, packed in the order in which they are read,
// and a handful of A's rows at a time in registers, packed without being turned. While panels are
// multiplied, the next ones are fetched: these operands are weights, which are mostly not in cache.
// Operands may also be what is not a matrix in memory, see MatrixOperands.
//
// Every number of C is a sum over depths of B at a time, in the order of k, whatever the tasks and
// threads.
#pragma once

#include "common/cpu_buffer.h"
#include "common/cpu_products.h"
#include "common/cpu_threads.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int64_t kDepth = 192;  // rows of a panel: 24 KB, half of what L1 holds
// Where rows of B are those of C, so many panels are fetched at once: pieces of 2 KB of each row.
// Each is packed just before it is multiplied, into the first cache.
inline constexpr int64_t kGroup = 16;
inline constexpr int64_t kPackedNumbers = 96 << 10;  // of A: for float32 416 KB of the second cache

// Rows [k0, k0 + depth) of B's columns [n0, n0 + 2 kLanes), zeros past the last column.
template <class A>
inline void pack_panel(const Product<A>& p, int64_t k0, int64_t depth, int64_t n0, A* panel) {
  constexpr int kCount = kLanes<A>;
  if (!p.b_transposed) {
    const int64_t live = p.n - n0 < 2 * kCount ? p.n - n0 : 2 * kCount;
    const A* row = p.b + k0 * p.b_row + n0;
    for (int64_t k = 0; k < depth; ++k, row += p.b_row, panel += 2 * kCount) {
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

// Rows of A lie as far apart when packed: neighbours begin in different sets of the first cache.
template <class A>
inline constexpr int64_t kPackedRow = kDepth + kLanes<A>;

// Of A's rows [m0, m0 + rows) the columns [k0, k0 + depth): kRowsAtOnce numbers of each, or, where
// numbers of a row are neighbours, pieces of rows. Turning those would cost as much as 32 columns
// of C; the products then read a number each of kRowsAtOnce lines.
template <class A>
inline void pack_rows_of_a(const Product<A>& p, int64_t m0, int64_t rows, int64_t k0, int64_t depth,
                           A* to) {
  if (p.a_row == 1) {
    const A* from = p.a + m0 + k0 * p.a_column;
    for (int64_t k = 0; k < depth; ++k, from += p.a_column, to += kRowsAtOnce)
      if (rows == kRowsAtOnce) {
        std::memcpy(to, from, sizeof(A) * kRowsAtOnce);
      } else {
        for (int64_t r = 0; r < rows; ++r) to[r] = from[r];
      }
    return;
  }
  const A* from = p.a + m0 * p.a_row + k0;
  for (int64_t r = 0; r < rows; ++r, from += p.a_row, to += kPackedRow<A>)
    std::memcpy(to, from, sizeof(A) * static_cast<size_t>(depth));
}

// What is fetched into the second cache while panels are multiplied, a line in every so many steps:
// more at once would take what the operands need to come from there.
struct Fetched {
  const char* at;     // the next line; null: nothing
  int64_t skipped;    // bytes between a row's last line that is wanted and the next row
  int64_t row_lines;  // that are wanted of a row
  int64_t every;
  int64_t left;      // lines of this row
  int64_t wait = 1;  // steps until the next

  CLIPWEATHER_INLINE void step() {
    if (--wait > 0) return;
    __builtin_prefetch(at, 0, 2);
    at += kLine, wait = every;
    if (--left == 0) at += skipped, left = row_lines;
  }
};

inline Fetched nothing_fetched() { return {nullptr, 0, 1, 1, 1}; }

// A few rows of C, two vectors wide, and what they are made of.
template <class A>
struct PackedRows {
  const A* a;      // packed
  bool by_step;    // kRowsAtOnce numbers for each step, not rows
  const A* panel;  // its rows panel_row apart
  int64_t panel_row, depth;
  const A* before;  // what the sums are added to; null: C
  A* c;
  int64_t c_row;
  const int64_t* places;  // where rows of C begin; null: c_row apart
  bool streams;           // C goes past the caches
  Fetched& fetched;
};

// Not inlined: every kind of operands would have its own copies of all of them.
template <int kRows, bool kFetches, bool kByStep, class A>
[[gnu::noinline]] inline void add_packed_block(const PackedRows<A>& rows) {
  constexpr int kVectors = 2;
  constexpr int64_t kRow = kByStep ? 1 : kPackedRow<A>, kStep = kByStep ? kRowsAtOnce : 1;
  Vector<A> sum[kRows][kVectors] = {};
  const A *a = rows.a, *panel = rows.panel;
  const int64_t panel_row = rows.panel_row;
  Fetched fetched = rows.fetched;
  for (int64_t k = rows.depth; k > 0; --k) {
    Vector<A> b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + v * kLanes<A>);
    if (kFetches) fetched.step();
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vector<A> x = broadcast(a[r * kRow]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] += x * b[v];
    }
    a += kStep, panel += panel_row;
  }
  rows.fetched = fetched;
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    A* const row = rows.c + (rows.places == nullptr ? r * rows.c_row : rows.places[r]);
    const A* const added = rows.before == nullptr ? row : rows.before;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vector<A> before = load(added + v * kLanes<A>);
      A* const to = row + v * kLanes<A>;
      if (rows.streams)
        store_past(to, before + sum[r][v]);
      else
        store(to, before + sum[r][v]);
    }
  }
}

// The same for the last rows, fewer than kRowsAtOnce.
template <int kRows, class A>
inline void add_packed_rows(int64_t count, const PackedRows<A>& rows) {
  if (count == kRows) {
    const bool fetches = rows.fetched.at != nullptr;
    if (rows.by_step)
      fetches ? add_packed_block<kRows, true, true>(rows)
              : add_packed_block<kRows, false, true>(rows);
    else
      fetches ? add_packed_block<kRows, true, false>(rows)
              : add_packed_block<kRows, false, false>(rows);
    return;
  }
  if constexpr (kRows > 1) add_packed_rows<kRows - 1>(count, rows);
}

// How a product is cut: A's rows and k into what is packed at once, k again into depths of panels,
// C's columns into tasks.
struct ProductPlan {
  int64_t rows, steps;  // of A, packed
  int64_t group;        // panels of a task
  bool streams;
};

template <class A>
inline int64_t panels(const Product<A>& p) {
  return ceil_div(p.n, 2 * kLanes<A>);
}

template <class A>
inline ProductPlan packing_plan(const Product<A>& p, int threads) {
  constexpr int64_t kWidth = 2 * kLanes<A>;
  const int64_t fair = threads <= 1 ? panels(p) : panels(p) / (2 * threads);
  ProductPlan plan{};
  plan.group = p.b_transposed || fair < 2 ? 1 : fair < kGroup ? fair : kGroup;
  const int64_t most_rows = kPackedNumbers / kDepth / kRowsAtOnce * kRowsAtOnce;
  const int64_t all_rows = ceil_div(p.m, kRowsAtOnce) * kRowsAtOnce;
  plan.rows = all_rows < most_rows ? all_rows : most_rows;
  plan.steps = kPackedNumbers / plan.rows / kDepth * kDepth;
  if (plan.steps > p.k) plan.steps = p.k < 1 ? 1 : p.k;
  const bool lines = p.n % kWidth == 0 && reinterpret_cast<uintptr_t>(p.c) % kLine == 0;
  const int64_t bytes = p.m * p.n * static_cast<int64_t>(sizeof(A));
  plan.streams = p.read_late && lines && p.k <= kDepth && bytes >= kStreamedBytes;
  return plan;
}

// Where a block of packed rows begins for the steps from k.
template <class A>
inline int64_t packed_block(int64_t k, int64_t block, int64_t blocks) {
  return (k / kDepth * blocks + block) * kRowsAtOnce * kPackedRow<A>;
}

// Part of a product: of A's rows from m0 and of k from k0 what is packed.
template <class A>
struct ProductPart {
  const A* packed;
  int64_t m0, rows, k0, steps;
};

// The panels that are multiplied after those of columns from n0 and k; without columns: none are.
struct NextPanels {
  int64_t n0, columns, k, depth;
};
template <class A>
inline NextPanels next_panels(const Product<A>& p, const ProductPlan& plan,
                              const ProductPart<A>& part, int64_t n0, int64_t k) {
  const int64_t width = plan.group * 2 * kLanes<A>;
  k += kDepth;
  if (k >= part.steps) k = 0, n0 += width;
  const int64_t columns = p.n - n0 < width ? p.n - n0 : width;
  const int64_t depth = part.steps - k < kDepth ? part.steps - k : kDepth;
  return {n0, depth > 0 && columns > 0 ? columns : 0, part.k0 + k, depth};
}

// Rows of so many bytes, `apart` bytes from one to the next, which `steps` steps fetch.
inline Fetched fetch_rows(const void* first, int64_t rows, int64_t bytes, int64_t apart,
                          int64_t steps) {
  const int64_t row_lines = ceil_div(bytes, kLine);
  if (rows * row_lines <= 0) return nothing_fetched();
  const int64_t every = steps / (rows * row_lines);
  return {static_cast<const char*>(first), apart - row_lines * kLine, row_lines,
          every < 1 ? 1 : every, row_lines};
}

// What packs the operands of a product, and where its C lies. This one's are the matrices.
template <class A>
struct MatrixOperands {
  const Product<A>& p;

  void pack_a(int64_t m0, int64_t rows, int64_t k0, int64_t depth, A* to) const {
    pack_rows_of_a(p, m0, rows, k0, depth, to);
  }
  void pack_b(int64_t k0, int64_t depth, int64_t n0, A* panel) const {
    pack_panel(p, k0, depth, n0, panel);
  }
  // Panels that can be read where they lie, p.b_row apart; null: they are packed.
  const A* panels_in_place(int64_t k, int64_t n0, int64_t columns) const {
    return p.b_transposed || n0 + columns > p.n ? nullptr : p.b + k * p.b_row + n0;
  }
  Fetched fetched_after(const ProductPlan& plan, const ProductPart<A>& part, int64_t n0, int64_t k,
                        int64_t steps) const {
    const NextPanels next = next_panels(p, plan, part, n0, k);
    const int64_t apart = p.b_row * static_cast<int64_t>(sizeof(A));
    const A* const first =
        p.b_transposed ? p.b + next.n0 * p.b_row + next.k : p.b + next.k * p.b_row + next.n0;
    if (next.columns == 0) return nothing_fetched();
    return p.b_transposed
               ? fetch_rows(first, next.columns, next.depth * int64_t{sizeof(A)}, apart, steps)
               : fetch_rows(first, next.depth, next.columns * int64_t{sizeof(A)}, apart, steps);
  }
  const int64_t* places(int64_t /*m*/) const { return nullptr; }
};

// Room of a thread, for A and for a panel. Kept: blocks of this size would be given back to the
// system, and come back page by page.
template <class A>
inline A* room_of_a() {
  static thread_local const Buffer<A> room(kPackedNumbers / kDepth * kPackedRow<A>);
  return room.get();
}
template <class A>
inline A* room_of_panel() {
  static thread_local const Buffer<A> room(kDepth * 2 * kLanes<A>);
  return room.get();
}

// C's columns of `count` panels from n0.
template <class A, class Operands>
inline void multiply_panels(const Product<A>& p, const Operands& operands, const ProductPlan& plan,
                            const ProductPart<A>& part, int64_t n0, int64_t count) {
  constexpr int64_t kWidth = 2 * kLanes<A>;
  A* const room = room_of_panel<A>();
  alignas(64) A edge[kRowsAtOnce * kWidth] = {};  // rows of C where fewer columns are left
  alignas(64) A first[kWidth] = {};
  const int64_t blocks = ceil_div(part.rows, kRowsAtOnce);
  for (int64_t k = 0; k == 0 || k < part.steps; k += kDepth) {
    const int64_t depth = part.steps - k < kDepth ? part.steps - k : kDepth;
    const bool begins = part.k0 + k == 0;
    // Panels that few rows use are read where they lie.
    const A* const in_place =
        blocks == 1 ? operands.panels_in_place(part.k0 + k, n0, count * kWidth) : nullptr;
    Fetched fetched = operands.fetched_after(plan, part, n0, k, depth * blocks * count);
    for (int64_t panel = 0; panel < count; ++panel) {
      const int64_t n = n0 + panel * kWidth, live = p.n - n < kWidth ? p.n - n : kWidth;
      const bool whole = live == kWidth;
      if (in_place == nullptr) operands.pack_b(part.k0 + k, depth, n, room);
      for (int64_t i = 0; i < live && begins && p.bias != nullptr; ++i) first[i] = p.bias[n + i];
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t r0 = block * kRowsAtOnce;
        const int64_t left = part.rows - r0, rows = left < kRowsAtOnce ? left : kRowsAtOnce;
        const int64_t* const places = operands.places(part.m0 + r0);
        A* const own = p.c + (places == nullptr ? (part.m0 + r0) * p.n : 0) + n;
        for (int64_t i = 0; i < rows * live && !whole && !begins; ++i)
          edge[i / live * kWidth + i % live] = own[i / live * p.n + i % live];
        add_packed_rows<kRowsAtOnce>(
            rows,
            PackedRows<A>{part.packed + packed_block<A>(k, block, blocks), p.a_row == 1,
                          in_place != nullptr ? in_place + panel * kWidth : room,
                          in_place != nullptr ? p.b_row : kWidth, depth, begins ? first : nullptr,
                          whole ? own : edge, whole ? p.n : kWidth, places, plan.streams, fetched});
        for (int64_t i = 0; i < rows * live && !whole; ++i)
          own[i / live * p.n + i % live] = edge[i / live * kWidth + i % live];
      }
    }
  }
  if (plan.streams) streams_end();
}

template <class A, class Operands>
inline void multiply_packed(const Product<A>& p, const Operands& operands, int threads) {
  constexpr int64_t kWidth = 2 * kLanes<A>;
  A* const packed = room_of_a<A>();
  if (p.m <= 0 || p.n <= 0) return;
  const ProductPlan plan = packing_plan(p, threads);
  for (int64_t m0 = 0; m0 < p.m; m0 += plan.rows)
    for (int64_t k0 = 0; k0 == 0 || k0 < p.k; k0 += plan.steps) {
      const int64_t rows = p.m - m0 < plan.rows ? p.m - m0 : plan.rows;
      const int64_t steps = p.k - k0 < plan.steps ? p.k - k0 : plan.steps;
      const int64_t blocks = ceil_div(rows, kRowsAtOnce);
      parallel_tasks(blocks, threads, [&](int64_t block, int) {
        const int64_t r0 = block * kRowsAtOnce, left = rows - r0;
        for (int64_t k = 0; k < steps; k += kDepth) {
          const int64_t depth = steps - k < kDepth ? steps - k : kDepth;
          operands.pack_a(m0 + r0, left < kRowsAtOnce ? left : kRowsAtOnce, k0 + k, depth,
                          packed + packed_block<A>(k, block, blocks));
        }
      });
      const ProductPart<A> part{packed, m0, rows, k0, steps};
      parallel_tasks(ceil_div(panels(p), plan.group), threads, [&](int64_t task, int) {
        const int64_t first = task * plan.group, left = panels(p) - first;
        multiply_panels(p, operands, plan, part, first * kWidth,
                        left < plan.group ? left : plan.group);
      });
    }
}

template <class A>
inline void multiply_packed(const Product<A>& p, int threads) {
  multiply_packed(p, MatrixOperands<A>{p}, threads);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
