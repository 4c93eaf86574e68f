// The forward pass in float32 by the matrix unit, which multiplies every number in parts (see
// cpu_matrix_parts.h). The softmax passes between its products: while a few keys' weights of a tile
// are formed, and taken apart at once, the unit multiplies those of the keys before with their
// values, and finds as many scores of the next tile. So few weights are kept that they stay in L1.
//
// Numbers below 2^-110 lose digits; a task that has numbers of 2^63 or more, or infinite ones, is
// left to products in float32.
#pragma once

#if defined(__AMX_BF16__)
#include "common/cpu_matrix_parts.h"
#include "reduced_kv_attention/cpu_forward_rows.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// Whether taking apart costs less than multiplying so saves.
inline bool attention_parts_pay(const AttentionSizes& size) {
  return size.d > 16 && size.keys >= 64 && size.queries >= 64 && size.keys * size.queries >= 8192;
}

struct PartForward : ForwardRows<float, float> {
  static constexpr int64_t kRows = kPartSide;  // of a tile
  static constexpr int64_t kSquare = kPartSide * kPartSide;
  // Panels of 32 keys that are weighed while those before are multiplied.
  static constexpr int64_t kKeysAtOnce = kAttentionKeysAtOnce, kPanels = kKeysAtOnce / kPartSide;
  static constexpr float kMost = 0x1p63f;
  alignas(64) static constexpr float kZeros[kPartSide] = {};

  int64_t blocks, block_keys, d_steps;
  // Packed operands, blocks of parts: [keys / 32][d / 32], [keys / (32 kPanels)][d / 32][kPanels]
  // and [d / 32].
  uint32_t* key_parts;
  uint32_t* value_parts;
  uint32_t* query_parts;
  // A ring of squares of 32 keys' scores. Those of the next tile go where the tile's were, once
  // they are weighed.
  float* squares;
  int64_t ring, written = 0, raised = 0, read = 0;
  uint32_t* weights[2];  // of kPanels panels each, blocks of parts
  float* block_sums;     // of a tile
  float* sums;           // of the task's rows, where there are several blocks of keys
  // Of a tile: a vector for each row, and a number for each row.
  float* row_highest;
  float* weight_sums;
  float* shifts;
  float* keep;

  // What is left to weigh of some panels' rows, and how many calls share it.
  struct Weighing {
    const float* s = nullptr;
    uint32_t* to = nullptr;
    int64_t row = 0, rows = 0, left = 0, count = 0, calls = 1, due = 0;
  } weighing;

  // Of a task: the more, the less it matters that each packs keys and values, if there remain tasks
  // for many threads.
  static int64_t most_queries(const AttentionSizes& size) {
    const bool many = size.n * size.heads * size.queries >= 16 * kAttentionLongChunk;
    return many ? kAttentionLongChunk : kAttentionChunk;
  }

  PartForward(const AttentionForwardArgs& a, char* workspace) : ForwardRows(a) {
    blocks = ceil_div(size.keys, kAttentionKeyBlock);
    block_keys = round_up(ceil_div(size.keys, blocks), kPartSide);
    d_steps = ceil_div(size.d, kPartSide);
    const int64_t panels = block_keys / kPartSide, d_padded = d_vectors * kLane;
    ring = panels + kPanels;
    key_parts = take<uint32_t>(workspace, panels * d_steps * kPartBlock);
    value_parts = take<uint32_t>(workspace, round_up(panels, kPanels) * d_steps * kPartBlock);
    query_parts = take<uint32_t>(workspace, d_steps * kPartBlock);
    squares = take<float>(workspace, ring * kSquare);
    for (auto& panel : weights) panel = take<uint32_t>(workspace, kPanels * kPartBlock);
    block_sums = take<float>(workspace, kRows * d_padded);
    sums = take<float>(workspace, blocks > 1 ? kAttentionLongChunk * d_padded : 0);
    row_max = take<float>(workspace, kAttentionLongChunk);
    row_sum = take<float>(workspace, kAttentionLongChunk);
    row_highest = take<float>(workspace, kRows * kLane);
    weight_sums = take<float>(workspace, kRows * kLane);
    shifts = take<float>(workspace, kRows);
    keep = take<float>(workspace, kRows);
  }

  // Parts of infinite numbers have sums that are NaN; so have parts of finite ones if the products
  // of a number's parts are infinite with either sign.
  static bool any_huge(const float* from, int64_t stride, int64_t rows, int64_t columns) {
    unsigned found = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; c += kLane) {
        const __m512 x = _mm512_maskz_loadu_ps(first_lanes(columns - c), from + r * stride + c);
        found |= _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(kMost), _CMP_GE_OQ);
      }
    return found != 0;
  }

  // False, and no result is written, where a number is too large.
  bool task(int64_t n, int64_t head, int64_t begin, int64_t end) {
    const float* const k = of_head(args.k, size.k_stride, n, head);
    const float* const v = of_head(args.v, size.v_stride, n, head);
    const float* const q = of_head(args.q, size.q_stride, n, head);
    const int64_t q_row = size.q_stride[1], k_row = size.k_stride[1], v_row = size.v_stride[1];
    if (any_huge(q + begin * q_row, q_row, end - begin, size.d)) return false;
    for (int64_t key = 0; key < size.keys; key += block_keys) {
      const int64_t keys = smaller(block_keys, size.keys - key);
      if (any_huge(k + key * k_row, k_row, keys, size.d)) return false;
      if (any_huge(v + key * v_row, v_row, keys, size.d)) return false;
      pack_keys(k + key * k_row, keys);
      pack_values(v + key * v_row, keys);
      block(n, head, begin, end, key, keys);
    }
    return true;
  }

  void block(int64_t n, int64_t head, int64_t begin, int64_t end, int64_t key, int64_t keys) {
    const int64_t q_row = size.q_stride[1], out_row = size.heads * size.d;
    const float* const q = of_head(args.q, size.q_stride, n, head);
    const float* const out =
        static_cast<const float*>(args.out) + (n * size.queries * size.heads + head) * size.d;
    const bool first = key == 0, last = key + keys == size.keys;
    const auto rows_of = [&](int64_t row) { return smaller(kRows, end - row); };
    const auto panels_at = [&](int64_t j) {
      return j < 0 || j >= keys ? 0 : ceil_div(smaller(kKeysAtOnce, keys - j), kPartSide);
    };
    pack_query(q + begin * q_row, rows_of(begin));
    for (int64_t j = 0; j < keys; j += kPartSide) {
      score(rows_of(begin), j, keys - j);
      raise_highest(keys - j);
    }
    find_shifts(0, rows_of(begin), first);
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t next = row + kRows, later = next + kRows, rows = rows_of(row);
      if (next < end) pack_query(q + next * q_row, rows_of(next));
      for (int64_t j = 0; j < keys + kKeysAtOnce; j += kKeysAtOnce) {
        const int64_t scores = next < end ? panels_at(j) : 0, adds = panels_at(j - kKeysAtOnce);
        begin_weighing(j, rows, panels_at(j), scores + adds);
        for (int64_t i = 0; i < scores; ++i) {
          const int64_t left = keys - j - i * kPartSide;
          score(rows_of(next), j + i * kPartSide, left);
          if (i > 0) raise_highest(left + kPartSide);  // of the square before, which is there
        }
        if (adds > 0) add_values(rows, j - kKeysAtOnce, adds);
        if (scores > 0) raise_highest(keys - j - (scores - 1) * kPartSide);
        weigh(weighing.left);
        const int64_t from = j * kRows / keys, to = (j + kKeysAtOnce) * kRows / keys;
        if (later < end) fetch(q + later * q_row, q_row, from, smaller(to, rows_of(later)));
        if (last) fetch(out + row * out_row, out_row, from, smaller(to, rows));
      }
      const int64_t slot = row - begin;
      add_weights(slot, rows);
      const float* const o = add_block(slot, rows, first);
      if (last) finish(n, head, row, rows, slot, o);
      if (next < end) find_shifts(slot + kRows, rows_of(next), first);
    }
  }

  // Rows that are soon needed: a few at a time, while the unit multiplies.
  void fetch(const float* from, int64_t stride, int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < size.d; c += kLane) __builtin_prefetch(from + r * stride + c, 0, 2);
  }

  int64_t after(int64_t square) const { return square + 1 == ring ? 0 : square + 1; }

  void pack_keys(const float* k, int64_t keys) const {
    const int64_t stride = size.k_stride[1];
    uint32_t* to = key_parts;
    for (int64_t j = 0; j < keys; j += kPartSide)
      for (int64_t c = 0; c < size.d; c += kPartSide, to += kPartBlock)
        pack_rows({k + j * stride + c, stride, 1, keys - j, size.d - c}, to, true);
  }

  void pack_values(const float* v, int64_t keys) const {
    const int64_t stride = size.v_stride[1], apart = kPanels * kPartBlock;
    for (int64_t j = 0; j < keys; j += kPartSide) {
      const int64_t panel = j / kPartSide;
      pack_columns({v + j * stride, 1, stride, size.d, keys - j},
                   value_parts + panel / kPanels * d_steps * apart + panel % kPanels * kPartBlock,
                   d_steps, apart);
    }
  }

  void pack_query(const float* q, int64_t rows) const {
    for (int64_t s = 0; s < d_steps; ++s)
      pack_rows({q + s * kPartSide, size.q_stride[1], 1, rows, size.d - s * kPartSide},
                query_parts + s * kPartBlock, false);
    for (int64_t i = 0; i < kRows; ++i)
      store(row_highest + i * kLane, broadcast(-kInfinity<float>));
  }

  // ---- softmax ----------------------------------------------------------------------------------

  // Of `panels` from a key on, between the squares of `products` panels.
  void begin_weighing(int64_t key, int64_t rows, int64_t panels, int64_t products) {
    const int64_t high = rows > 16 ? 32 : 16, count = panels * high;
    weighing = {squares + read * kSquare,
                weights[key / kKeysAtOnce & 1],
                0,
                high,
                count,
                count,
                6 * d_steps * products,
                0};
  }

  // A call's share.
  CLIPWEATHER_INLINE void weigh_some() {
    weighing.due += weighing.count;
    for (; weighing.due >= weighing.calls; weighing.due -= weighing.calls) weigh(1);
  }

  // Scores become parts of 2^(factor (s - max)).
  CLIPWEATHER_INLINE void weigh(int64_t count) {
    for (; count > 0; --count, --weighing.left) {
      const int64_t row = weighing.row;
      // Subtracted first: the largest has weight 1 exactly.
      const auto weight = [&](const float* s) {
        return exp2_by_parts<false>((load(s) - shifts[row]) * factor);
      };
      const float* const s = weighing.s + row * kPartSide;
      const Vector<float> first = weight(s), second = weight(s + kLane);
      store(weight_sums + row * kLane, load(weight_sums + row * kLane) + (first + second));
      const Parts a = parts_of<false>((__m512)first), b = parts_of<false>((__m512)second);
      uint32_t* const to = weighing.to + row * 16;
      for (int p = 0; p < 3; ++p)
        _mm512_store_si512(to + p * 2 * kPartRegister, paired(a.part[p], b.part[p]));
      if (++weighing.row < weighing.rows) continue;
      read = after(read);
      weighing.row = 0, weighing.s = squares + read * kSquare, weighing.to += kPartBlock;
    }
  }

  // What `combine` makes of each of 16 vectors, one a row.
  template <class Combine>
  static CLIPWEATHER_INLINE Vector<float> of_rows(const float* rows, const Combine& combine) {
    Vector<float> each[kLane];
    for (int64_t r = 0; r < kLane; ++r) each[r] = load(rows + r * kLane);
    return across<float>(each, combine);
  }

  // What is subtracted from a tile's scores, and what its sums so far are worth then.
  void find_shifts(int64_t slot, int64_t rows, bool first) const {
    for (int64_t r = 0; r < rows; r += kLane) {
      const int64_t live = smaller(kLane, rows - r);
      Vector<float> now = of_rows(row_highest + r * kLane,
                                  [](Vector<float> a, Vector<float> b) { return max(b, a); });
      Vector<float> before_now = {};
      if (!first) {
        const Vector<float> old = load_first(row_max + slot + r, live);
        now = max(now, old);
        const Vector<float> worth = exp2_by_parts<false>((old - finite(now)) * factor);
        before_now = load_first(row_sum + slot + r, live) * worth;
        store(keep + r, worth);
      }
      store(shifts + r, finite(now));
      store_first(row_max + slot + r, now, live);
      store_first(row_sum + slot + r, before_now, live);
    }
    std::memset(weight_sums, 0, sizeof(float) * kRows * kLane);
  }

  void add_weights(int64_t slot, int64_t rows) const {
    for (int64_t r = 0; r < rows; r += kLane) {
      const int64_t live = smaller(kLane, rows - r);
      const Vector<float> sum =
          of_rows(weight_sums + r * kLane, [](Vector<float> a, Vector<float> b) { return a + b; });
      store_first(row_sum + slot + r, load_first(row_sum + slot + r, live) + sum, live);
    }
  }

  // ---- products ---------------------------------------------------------------------------------

  CLIPWEATHER_INLINE void multiply(bool high, bool wide, const uint32_t* a, const uint32_t* b,
                                   int64_t steps, const float* from, int64_t from_row, float* to,
                                   int64_t to_row) {
    const auto weighs = [&] { weigh_some(); };
    if (high)
      wide ? multiply_square<true, true>(a, b, steps, from, from_row, to, to_row, weighs)
           : multiply_square<true, false>(a, b, steps, from, from_row, to, to_row, weighs);
    else
      wide ? multiply_square<false, true>(a, b, steps, from, from_row, to, to_row, weighs)
           : multiply_square<false, false>(a, b, steps, from, from_row, to, to_row, weighs);
  }

  // A square of scores.
  void score(int64_t rows, int64_t key, int64_t keys) {
    multiply(rows > 16, keys > 16, query_parts, key_parts + key / kPartSide * d_steps * kPartBlock,
             d_steps, kZeros, 0, squares + written * kSquare, kPartSide);
    written = after(written);
  }

  // The largest of the rows' scores so far; those of keys that are not there are -inf.
  void raise_highest(int64_t keys) {
    float* const s = squares + raised * kSquare;
    raised = after(raised);
    if (keys < kPartSide || before != 1.0f) finish_scores(s, keys);
    for (int64_t r = 0; r < kRows; ++r) {
      const Vector<float> first = load(s + r * kPartSide), second = load(s + r * kPartSide + kLane);
      float* const high = row_highest + r * kLane;
      store(high, max(second, max(first, load(high))));
    }
  }

  void finish_scores(float* s, int64_t keys) const {
    const Vector<float> none = broadcast(-kInfinity<float>);
    for (int64_t i = 0; i < kSquare; i += kLane) {
      const __mmask16 there = first_lanes(keys - i % kPartSide);
      const Vector<float> x = load(s + i) * before;
      store(s + i, (Vector<float>)_mm512_mask_blend_ps(there, (__m512)none, (__m512)x));
    }
  }

  // Weights times values of `steps` panels.
  void add_values(int64_t rows, int64_t key, int64_t steps) {
    const int64_t group = key / kKeysAtOnce, row = d_vectors * kLane;
    const uint32_t* v = value_parts + group * d_steps * kPanels * kPartBlock;
    for (int64_t c = 0; c < size.d; c += kPartSide, v += kPanels * kPartBlock) {
      float* const o = block_sums + c;
      multiply(rows > 16, size.d - c > 16, weights[group & 1], v, steps, key == 0 ? kZeros : o,
               key == 0 ? 0 : row, o, row);
    }
  }

  // A tile's sums of all keys so far. Those of a block are summed for themselves, because rounding
  // errors grow with the length of a running sum.
  const float* add_block(int64_t slot, int64_t rows, bool first) const {
    if (blocks == 1) return block_sums;
    float* const to = sums + slot * d_vectors * kLane;
    for (int64_t r = 0, i = 0; r < rows; ++r)
      for (int64_t c = 0; c < d_vectors; ++c, i += kLane) {
        const Vector<float> now = load(block_sums + i);
        store(to + i, first ? now : load(to + i) * keep[r] + now);
      }
    return to;
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
