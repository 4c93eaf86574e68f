// The forward pass with queries in the vectors' lanes: a tile's scores are kept as (keys, queries)
// and its sums as (d, queries), so that heads of any width fill the vectors, and maxima, sums and
// rescaling are lane by lane. Per score 2 d multiplications, a maximum and an exponential; bound by
// their issue. A tile's scores of a block of keys stay in L1 from product to product; the next
// block rescales the tile's sums (online softmax). Keys and values are read number by number, as
// rows; a block of them is copied once for all queries of a task.
#pragma once

#include "reduced_kv_attention/cpu_forward_rows.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

template <class T>
struct LaneForward {
  using A = typename Accumulate<T>::type;
  using V = Vector<A>;
  using M = Plain<A>;
  using Hardware = typename M::Hardware;
  static constexpr int64_t kLane = kLanes<A>;
  static constexpr int64_t kTile = kPanel * kLane;  // queries
  static constexpr int64_t kRows = kTile;
  static constexpr int64_t kBlock = 64;  // keys: 16 KB of scores
  // Queries change their sign with the scale; scores are scaled as the backward pass does it.
  static constexpr bool kSignsQueries = sizeof(A) == sizeof(float);

  const AttentionForwardArgs& args;
  const AttentionSizes& size;
  const ScoreScale<A> scale;
  // Of a task, [tile][d][kTile]; of a block, [key][d].
  A *queries, *sums, *keys, *values;
  A* scores;            // [key][kTile]
  A *highest, *totals;  // of each query

  LaneForward(const AttentionForwardArgs& a, char* workspace)
      : args(a), size(a.size), scale(size.scale) {
    queries = take<A>(workspace, kAttentionChunk * size.d);
    sums = take<A>(workspace, kAttentionChunk * size.d);
    keys = take<A>(workspace, kBlock * size.d);
    values = take<A>(workspace, kBlock * size.d);
    scores = take<A>(workspace, kBlock * kTile);
    highest = take<A>(workspace, kAttentionChunk);
    totals = take<A>(workspace, kAttentionChunk);
  }

  void task(int64_t n, int64_t head, int64_t begin, int64_t end) {
    const T* const q = of_head<T>(args.q, size.q_stride, n, head);
    const T* const k = of_head<T>(args.k, size.k_stride, n, head);
    const T* const v = of_head<T>(args.v, size.v_stride, n, head);
    for (int64_t tile = 0; begin + tile < end; tile += kTile)
      pack_queries(q + (begin + tile) * size.q_stride[1], smaller(kTile, end - begin - tile), tile);
    const int64_t blocks = ceil_div(size.keys, kBlock);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t key = block * size.keys / blocks;
      const int64_t count = (block + 1) * size.keys / blocks - key;
      copy_rows(k + key * size.k_stride[1], size.k_stride[1], count, keys);
      copy_rows(v + key * size.v_stride[1], size.v_stride[1], count, values);
      for (int64_t tile = 0; begin + tile < end; tile += kTile) {
        switch (ceil_div(smaller(kTile, end - begin - tile), kLane)) {
#if defined(__AVX512F__)
          case 4:
            weigh<4>(tile, count, block == 0);
            break;
          case 3:
            weigh<3>(tile, count, block == 0);
            break;
#endif
          case 2:
            weigh<2>(tile, count, block == 0);
            break;
          default:
            weigh<1>(tile, count, block == 0);
        }
      }
    }
    for (int64_t tile = 0; begin + tile < end; tile += kTile)
      finish(n, head, begin + tile, smaller(kTile, end - begin - tile), tile);
  }

 private:
  void pack_queries(const T* q, int64_t rows, int64_t tile) {
    A* const to = queries + tile * size.d;
    for (int64_t row = 0; row < rows; row += kLane)
      for (int64_t c = 0; c < size.d; c += kLane) {
        const int64_t live = smaller(kLane, size.d - c);
        V square[kLane];
        for (int64_t i = 0; i < kLane; ++i) {
          square[i] = V{};
          if (row + i >= rows) continue;
          const T* const from = q + (row + i) * size.q_stride[1] + c;
          square[i] = live == kLane ? load(from) : load_first(from, live);
          if (kSignsQueries) square[i] *= scale.before;
        }
        transpose<A>(square);
        for (int64_t i = 0; i < live; ++i) store(to + (c + i) * kTile + row, square[i]);
      }
  }

  void copy_rows(const T* from, int64_t stride, int64_t rows, A* to) const {
    for (int64_t row = 0; row < rows; ++row, from += stride, to += size.d) {
      int64_t c = 0;
      for (; c + kLane <= size.d; c += kLane) store(to + c, load(from + c));
      if (c < size.d) store_first(to + c, load_first(from + c, size.d - c), size.d - c);
    }
  }

  // A tile's queries see a block of keys.
  template <int kWidth>
  void weigh(int64_t tile, int64_t count, bool first) {
    V high[kWidth], keep[kWidth], total[kWidth];
    A *const row_high = highest + tile, *const row_total = totals + tile;
    for (int v = 0; v < kWidth; ++v)
      high[v] = first ? -kInfinity<A> - V{} : load(row_high + v * kLane);
    score<kWidth>(queries + tile * size.d, count, high);
    for (int v = 0; v < kWidth; ++v) {
      const V old = first ? V{} : load(row_high + v * kLane);
      store(row_high + v * kLane, high[v]);
      // The largest has weight 1 exactly.
      high[v] = finite<A>(high[v]);
      keep[v] = first ? V{} : exp2_nonpositive<M>((old - high[v]) * scale.factor);
      total[v] = V{};
    }
    // Locals: members would be read again after every store.
    A* at = scores;
    const V factor = broadcast(scale.factor);
    for (int64_t key = 0; key < count; ++key, at += kTile)
#pragma GCC unroll 4
      for (int v = 0; v < kWidth; ++v) {
        const V weight = exp2_nonpositive<M>((load(at + v * kLane) - high[v]) * factor);
        total[v] += weight;
        store(at + v * kLane, weight);
      }
    for (int v = 0; v < kWidth; ++v) {
      if (!first) total[v] += load(row_total + v * kLane) * keep[v];
      store(row_total + v * kLane, total[v]);
    }
    const int64_t groups = ceil_div(size.d, int64_t{kRowGroup});
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t c = group * size.d / groups;
      const auto rows = [&](auto count_of) {
        constexpr int kRows = decltype(count_of)::value;
        V sum[kRows][kWidth] = {};
        multiply_rows<kRows, kWidth>(values + c, 1, size.d, scores, count, sum);
        A* to = sums + tile * size.d + c * kTile;
        for (int r = 0; r < kRows; ++r, to += kTile)
#pragma GCC unroll 4
          for (int v = 0; v < kWidth; ++v) {
            if (!first) sum[r][v] += load(to + v * kLane) * keep[v];
            store(to + v * kLane, sum[r][v]);
          }
      };
      of_count((group + 1) * size.d / groups - c, rows);
    }
  }

  template <int kWidth>
  CLIPWEATHER_INLINE void score(const A* q, int64_t count, V (&high)[kWidth]) {
    const int64_t groups = ceil_div(count, int64_t{kRowGroup});
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t key = group * count / groups;
      const auto rows = [&](auto count_of) {
        constexpr int kRows = decltype(count_of)::value;
        V sum[kRows][kWidth] = {};
        multiply_rows<kRows, kWidth>(keys + key * size.d, size.d, 1, q, size.d, sum);
        A* to = scores + key * kTile;
        for (int r = 0; r < kRows; ++r, to += kTile)
#pragma GCC unroll 4
          for (int v = 0; v < kWidth; ++v) {
            if (!kSignsQueries) sum[r][v] *= scale.before;
            high[v] = max(sum[r][v], high[v]);
            store(to + v * kLane, sum[r][v]);
          }
      };
      of_count((group + 1) * count / groups - key, rows);
    }
  }

  // sum[r] += left[r * row + s * step] * right[s], summed over the steps.
  template <int kRows, int kWidth>
  CLIPWEATHER_INLINE static void multiply_rows(const A* left, int64_t row, int64_t step,
                                               const A* right, int64_t steps,
                                               V (&sum)[kRows][kWidth]) {
    for (int64_t s = 0; s < steps; ++s, left += step, right += kTile) {
      V b[kWidth];
#pragma GCC unroll 4
      for (int v = 0; v < kWidth; ++v) b[v] = load(right + v * kLane);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const V a = broadcast(left[r * row]);
#pragma GCC unroll 4
        for (int v = 0; v < kWidth; ++v) sum[r][v] += a * b[v];
      }
    }
  }

  // Calls body with a constant for up to kRowGroup rows.
  template <class Body>
  CLIPWEATHER_INLINE static void of_count(int64_t rows, const Body& body) {
    switch (rows) {
      case 6:
        return body(std::integral_constant<int, 6>{});
      case 5:
        return body(std::integral_constant<int, 5>{});
      case 4:
        return body(std::integral_constant<int, 4>{});
      case 3:
        return body(std::integral_constant<int, 3>{});
      case 2:
        return body(std::integral_constant<int, 2>{});
      default:
        return body(std::integral_constant<int, 1>{});
    }
  }

  void finish(int64_t n, int64_t head, int64_t row, int64_t rows, int64_t tile) {
    T* out = static_cast<T*>(args.out) + ((n * size.queries + row) * size.heads + head) * size.d;
    const int64_t stride = size.heads * size.d;
    for (int64_t r = 0; r < rows; r += kLane, out += kLane * stride) {
      const V inverse = A{1} / load(totals + tile + r);
      for (int64_t c = 0; c < size.d; c += kLane) {
        const int64_t live = smaller(kLane, size.d - c);
        V square[kLane];
        for (int64_t i = 0; i < kLane; ++i)
          square[i] = i < live ? load(sums + tile * size.d + (c + i) * kTile + r) * inverse : V{};
        transpose<A>(square);
        for (int64_t i = 0; i < smaller(kLane, rows - r); ++i) {
          if (live == kLane)
            store(out + i * stride + c, square[i]);
          else
            store_first(out + i * stride + c, square[i], live);
        }
      }
    }
    if (args.lse == nullptr) return;
    A* const lse = static_cast<A*>(args.lse) + (n * size.heads + head) * size.queries + row;
    for (int64_t r = 0; r < rows; ++r)
      lse[r] = scale.logarithm(highest[tile + r], totals[tile + r]);
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
