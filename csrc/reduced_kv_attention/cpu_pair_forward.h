// The forward pass in bfloat16 where pairs are multiplied, by vdpbf16ps or the matrix unit: queries
// are rows, keys and channels lie in the vectors' lanes. A task packs a block of keys and values
// once (they stay in L2) and walks its queries in tiles of kRows: S = Q K^T by a register-tiled
// multiplication that, without the matrix unit, also finds the rows' maxima, softmax of the tile's
// rows while they lie in L1, O += P V. Beyond kKeyBlock keys the next block rescales the rows' sums
// (online softmax). Bound by the products' issue; with the matrix unit the exponential is most of
// what is left.
#pragma once

#if defined(__AVX512BF16__)
#include "reduced_kv_attention/cpu_forward_rows.h"
#include "reduced_kv_attention/cpu_matrix_tiles.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

struct PairForward : ForwardRows<bfloat16_t> {
#if defined(__AMX_BF16__)
  using M = MatrixPairs;
#else
  using M = Pairs;
#endif
  using T = bfloat16_t;
  using A = float;
  using Unit = M::Unit;
  using Hardware = M::Hardware;
  // Whether the products find the rows' maxima.
  static constexpr bool kFindsHighest = M::kRows == kRowGroup;
  // S (kRows, kKeyBlock) of a tile fits L1, or the matrix unit's nearly.
  static constexpr int64_t kRows = kFindsHighest ? kAttentionRows / 4 * 3 : kAttentionRows;
  // Packed K and V fit L2 up to d = 256.
  static constexpr int64_t kKeyBlock = kFindsHighest ? 256 : kAttentionKeyBlock;

  static constexpr int64_t kScoreSkew = 16;  // keeps rows of S out of one another's cache sets

  int64_t d_units, blocks, block_keys;
  // Packed operands, and the tile.
  Unit* key_panels;
  Unit* value_panels;
  Unit* query_rows;
  A* scores;
  A* sums;
  A* row_keep;
  A* row_highest;  // a vector for each row of a tile

  PairForward(const AttentionForwardArgs& a, char* workspace) : ForwardRows(a) {
    d_units = round_up(ceil_div(size.d, M::kDepth), kLane);
    blocks = ceil_div(size.keys, kKeyBlock);
    block_keys = round_up(ceil_div(size.keys, blocks), kLane);
    const int64_t d_padded = d_vectors * kLane;
    key_panels = take<Unit>(workspace, block_keys * d_units);
    value_panels = take<Unit>(workspace, block_keys * d_padded);
    query_rows = take<Unit>(workspace, kRows * d_units);
    scores = take<A>(workspace, kRows * (block_keys + kScoreSkew));
    sums = take<A>(workspace, (blocks > 1 ? kAttentionChunk : kRows) * d_padded);
    row_max = take<A>(workspace, kAttentionChunk);
    row_sum = take<A>(workspace, kAttentionChunk);
    row_keep = take<A>(workspace, kAttentionRows);
    row_highest = take<A>(workspace, kRows * kLane);
  }

  void task(int64_t n, int64_t head, int64_t begin, int64_t end) {
    const T* const k = of_head<T>(args.k, size.k_stride, n, head);
    const T* const v = of_head<T>(args.v, size.v_stride, n, head);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t key = block * block_keys, keys = smaller(block_keys, size.keys - key);
      if (keys <= 0) break;
      const bool last = key + keys == size.keys;
      pack_transposed<M>(k + key * size.k_stride[1], size.k_stride[1], keys, size.d, key_panels);
      pack_rows<M>(v + key * size.v_stride[1], size.v_stride[1], keys, size.d, value_panels);
      for (int64_t row = begin; row < end; row += kRows)
        tile(n, head, row, smaller(kRows, end - row), row - begin, keys, block == 0, last);
    }
  }

  void tile(int64_t n, int64_t head, int64_t row, int64_t rows, int64_t slot, int64_t keys,
            bool first, bool last) {
    const T* const q = of_head<T>(args.q, size.q_stride, n, head) + row * size.q_stride[1];
    const int64_t vectors = ceil_div(keys, kLane), stride = block_keys + kScoreSkew;
    const bool whole = kFindsHighest && keys % kLane == 0;
    if (whole)
      for (int64_t i = 0; i < kRows * kLane; ++i) row_highest[i] = -kInfinity<A>;
    pack_left<M>(q, size.q_stride[1], rows, size.d, d_units, query_rows);
    multiply<M>(
        {query_rows, d_units, 1}, key_panels, M::steps(size.d), rows, vectors,
        {scores, stride, Into::kSet, scale.before, row_keep, whole ? row_highest : nullptr});
    A* const o = sums + (blocks > 1 ? slot * d_vectors * kLane : 0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = keys; j < vectors * kLane; ++j) scores[r * stride + j] = -kInfinity<A>;
    for (int64_t r = 0; r < rows; r += kLane)
      softmax_rows(r, smaller(kLane, rows - r), vectors, whole, first, slot + r);
    const Left<M> weights{reinterpret_cast<const Unit*>(scores),
                          stride * static_cast<int64_t>(sizeof(A) / sizeof(Unit)), 1};
    multiply<M>(weights, value_panels, M::steps(keys), rows, d_vectors,
                {o, d_vectors * kLane, first ? Into::kSet : Into::kKeep, 1.0f, row_keep});
    if (last) finish(n, head, row, rows, slot, o);
  }

  // Scores of up to a vector's number of rows become 2^(factor (s - max)), in place, as the units
  // PV multiplies; row_keep is what the sums so far are worth now. A row by itself would wait for
  // its own maximum, sum and exponential, so each of them is formed of all rows at once.
  CLIPWEATHER_INLINE void softmax_rows(int64_t row, int64_t rows, int64_t vectors, bool found,
                                       bool first, int64_t slot) {
    const int64_t stride = block_keys + kScoreSkew;
    A* const s = scores + row * stride;
    Vector<A> each[kLane];
    for (int64_t r = 0; r < kLane; ++r) {
      each[r] = -kInfinity<A> - Vector<A>{};
      if (r < rows)
        each[r] =
            found ? load(row_highest + (row + r) * kLane) : lane_maxima(s + r * stride, vectors);
    }
    Vector<A> now = across<A>(each, [](Vector<A> a, Vector<A> b) { return max(b, a); });
    Vector<A> keep = {};
    alignas(64) A shifts[kLane];
    if (first) {
      store(shifts, finite<A>(now));
    } else {
      const Vector<A> old = load_first(row_max + slot, rows);
      now = max(now, old);
      store(shifts, finite<A>(now));
      keep = exp2_nonpositive<M>((old - finite<A>(now)) * scale.factor);
    }
    for (int64_t r = 0; r < kLane; ++r)
      each[r] = r < rows ? weigh_row(s + r * stride, vectors, shifts[r]) : Vector<A>{};
    const Vector<A> added = across<A>(each, [](Vector<A> a, Vector<A> b) { return a + b; });
    const Vector<A> before_now = first ? Vector<A>{} : load_first(row_sum + slot, rows) * keep;
    store_first(row_sum + slot, before_now + added, rows);
    store_first(row_max + slot, now, rows);
    store(row_keep + row, keep);
  }

  // Lanes' sums. bf16 weights overwrite scores already read: half as wide, from the row's start.
  CLIPWEATHER_INLINE Vector<A> weigh_row(A* s, int64_t vectors, A shift) const {
    Vector<A> sum[2] = {};
    int64_t v = 0;
    const auto next = [&](int64_t i) {
      // Subtracted first: the largest has weight 1 exactly.
      const Vector<A> p = exp2_nonpositive<M>((load(s + (v + i) * kLane) - shift) * scale.factor);
      sum[i] += p;
      return p;
    };
    for (; v + 2 <= vectors; v += 2) {
      const Vector<A> low = next(0), high = next(1);
      M::store_two(reinterpret_cast<T*>(s) + v * kLane, low, high);
    }
    if (v < vectors) {
      const Vector<A> p = next(0);
      store(reinterpret_cast<T*>(s) + v++ * kLane, p);
    }
    // What the values' zeros are multiplied with must be finite.
    for (; v * kLane < M::steps(vectors * kLane) * M::kDepth; ++v)
      store(reinterpret_cast<T*>(s) + v * kLane, Vector<A>{});
    return sum[0] + sum[1];
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
