// The forward pass in float32 by the matrix unit, which multiplies every number in parts (see
// cpu_matrix_parts.h). The softmax passes between its products: while a few keys' weights of a tile
// are formed, and taken apart at once, the unit multiplies those of the keys before with their
// values, and finds the scores of the keys behind. So few scores and weights are kept that they
// stay in L1, which has no room for a tile's scores of all keys. A row's maximum is therefore not
// known: subtracted is that of its first keys, and a later one in a tile where a weight would pass
// 2^kMostExponent.
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

struct PartForward : ForwardRows<float> {
  static constexpr int64_t kRows = kPartSide;  // of a tile
  static constexpr int64_t kSquare = kPartSide * kPartSide;
  static constexpr int64_t kMostPanels = kAttentionKeysAtOnce / kPartSide;
  static constexpr float kMost = 0x1p63f;
  static constexpr float kMostExponent = 8;

  int64_t blocks, block_keys, d_steps;
  // Of a group of keys, panels of 32, that are weighed while those before are multiplied. So few,
  // that scores and weights stay in L1; more of wide heads, so that sums are stored less often.
  int64_t group_panels;
  // Packed operands, blocks of parts: [keys / 32][d / 32], [groups][d / 32][group_panels] and
  // [d / 32].
  uint32_t* key_parts;
  uint32_t* value_parts;
  uint32_t* query_parts;
  // Of a group's squares: those that are weighed, and the next.
  float* squares[2];
  uint32_t* weights[2];  // blocks of parts
  float* block_sums;     // of a tile
  float* sums;           // of the task's rows, where there are several blocks of keys
  // Of a tile: a vector for each row, and a number for each row.
  float* row_highest;
  float* weight_sums[2];  // before a group, and with it
  float* shifts;
  float* keep[2];  // of a tile, and of the next

  // What is done between the unit's instructions: rows of a group's scores become weights, square
  // by square.
  struct Rows {
    const float* s;
    uint32_t* to;
    float* before;  // the sums without these
    float* sums;
    int64_t done, count;
    Vector<float> most;  // of the exponents
  };

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
    group_panels = d_steps == 1 ? 1 : kMostPanels;
    const int64_t panels = block_keys / kPartSide, d_padded = d_vectors * kLane;
    key_parts = take<uint32_t>(workspace, panels * d_steps * kPartBlock);
    value_parts = take<uint32_t>(workspace, round_up(panels, group_panels) * d_steps * kPartBlock);
    query_parts = take<uint32_t>(workspace, d_steps * kPartBlock);
    for (auto& group : squares) group = take<float>(workspace, kMostPanels * kSquare);
    for (auto& group : weights) group = take<uint32_t>(workspace, kMostPanels * kPartBlock);
    block_sums = take<float>(workspace, kRows * d_padded);
    sums = take<float>(workspace, blocks > 1 ? kAttentionLongChunk * d_padded : 0);
    row_max = take<float>(workspace, kAttentionLongChunk);
    row_sum = take<float>(workspace, kAttentionLongChunk);
    row_highest = take<float>(workspace, kRows * kLane);
    for (auto& sum : weight_sums) sum = take<float>(workspace, kRows * kLane);
    shifts = take<float>(workspace, kRows);
    for (auto& worth : keep) worth = take<float>(workspace, kRows);
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

  // False where a number is too large; what is written then is to be written again.
  bool task(int64_t n, int64_t head, int64_t begin, int64_t end) {
    const float* const k = of_head<float>(args.k, size.k_stride, n, head);
    const float* const v = of_head<float>(args.v, size.v_stride, n, head);
    const int64_t k_row = size.k_stride[1], v_row = size.v_stride[1];
    for (int64_t key = 0; key < size.keys; key += block_keys) {
      const int64_t keys = smaller(block_keys, size.keys - key);
      if (any_huge(k + key * k_row, k_row, keys, size.d)) return false;
      if (any_huge(v + key * v_row, v_row, keys, size.d)) return false;
      pack_keys(k + key * k_row, keys);
      pack_values(v + key * v_row, keys);
      const bool done = d_steps == 1   ? block<8>(n, head, begin, end, key, keys)
                        : d_steps <= 3 ? block<4>(n, head, begin, end, key, keys)
                                       : block<2>(n, head, begin, end, key, keys);
      if (!done) return false;
    }
    return true;
  }

  // While a group's scores become weights, the scores of the next are found, and the weights before
  // are multiplied with their values. kItems: rows that are weighed between the instructions of
  // a step of k.
  template <int kItems>
  bool block(int64_t n, int64_t head, int64_t begin, int64_t end, int64_t key, int64_t keys) {
    const int64_t q_row = size.q_stride[1], out_row = size.heads * size.d;
    const float* const q = of_head<float>(args.q, size.q_stride, n, head);
    const float* const out =
        static_cast<const float*>(args.out) + (n * size.queries * size.heads + head) * size.d;
    const bool first = key == 0, last = key + keys == size.keys;
    const int64_t group_keys = group_panels * kPartSide, groups = ceil_div(keys, group_keys);
    const auto rows_of = [&](int64_t row) { return smaller(kRows, end - row); };
    const auto panels_of = [&](int64_t g) {
      return ceil_div(smaller(group_keys, keys - g * group_keys), kPartSide);
    };
    const auto finish_tile = [&](int64_t row) {
      const int64_t slot = row - begin, rows = rows_of(row);
      const float* const o = add_block(slot, rows, first, keep[slot / kRows & 1]);
      if (last) finish(n, head, row, rows, slot, o);
    };
    Rows w = nothing();
    int64_t now = 0;  // of both groups
    if (!pack_query(q + begin * q_row, rows_of(begin))) return false;
    score<0>(0, panels_of(0), squares[0], w);
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t next = row + kRows, later = next + kRows, rows = rows_of(row);
      for (int64_t g = 0; g < groups; ++g, now ^= 1) {
        const int64_t panels = panels_of(g);
        finish_scores(squares[now], keys, g, panels);
        if (g == 0) begin_tile(row - begin, rows, first, squares[now], panels, weight_sums[now]);
        w = {squares[now],   weights[now],   weight_sums[now], weight_sums[now ^ 1], 0,
             panels * kRows, Vector<float>{}};
        if (g + 1 < groups) {
          score<kItems>(g + 1, panels_of(g + 1), squares[now ^ 1], w);
        } else if (next < end) {
          if (!pack_query(q + next * q_row, rows_of(next))) return false;
          score<kItems>(0, panels_of(0), squares[now ^ 1], w);
        }
        if (g > 0)
          add_values<kItems>(g - 1, group_panels, weights[now ^ 1], w);
        else if (row > begin)
          add_values<kItems>(groups - 1, panels_of(groups - 1), weights[now ^ 1], w);
        while (w.done < w.count) {
          const Rows one = take_rows(w, 1);
          weigh(one, 0, w.most);
        }
        if (g == 0 && row > begin) finish_tile(row - kRows);
        if (_mm512_cmp_ps_mask((__m512)w.most, _mm512_set1_ps(kMostExponent), _CMP_GT_OQ) != 0)
          weigh_again(w, g > 0, keep[(row - begin) / kRows & 1]);
        const int64_t from = g * kRows / groups, to = (g + 1) * kRows / groups;
        if (later < end) fetch(q + later * q_row, q_row, from, smaller(to, rows_of(later)));
        if (last) fetch(out + row * out_row, out_row, from, smaller(to, rows));
      }
      end_tile(row - begin, rows, first, weight_sums[now]);
    }
    w = nothing();
    add_values<0>(groups - 1, panels_of(groups - 1), weights[now ^ 1], w);
    finish_tile(begin + (end - 1 - begin) / kRows * kRows);
    return true;
  }

  // Rows that are soon needed: a few at a time, while the unit multiplies.
  void fetch(const float* from, int64_t stride, int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < size.d; c += kLane) __builtin_prefetch(from + r * stride + c, 0, 2);
  }

  void pack_keys(const float* k, int64_t keys) const {
    const int64_t stride = size.k_stride[1];
    uint32_t* to = key_parts;
    for (int64_t j = 0; j < keys; j += kPartSide)
      for (int64_t c = 0; c < size.d; c += kPartSide, to += kPartBlock)
        pack_rows({k + j * stride + c, stride, 1, keys - j, size.d - c}, to, true);
  }

  void pack_values(const float* v, int64_t keys) const {
    const int64_t stride = size.v_stride[1], apart = group_panels * kPartBlock;
    for (int64_t j = 0; j < keys; j += kPartSide) {
      const int64_t panel = j / kPartSide;
      pack_columns(
          {v + j * stride, 1, stride, size.d, keys - j},
          value_parts + panel / group_panels * d_steps * apart + panel % group_panels * kPartBlock,
          d_steps, apart);
    }
  }

  // False where a number is too large.
  bool pack_query(const float* q, int64_t rows) const {
    for (int64_t s = 0; s < d_steps; ++s)
      pack_rows({q + s * kPartSide, size.q_stride[1], 1, rows, size.d - s * kPartSide},
                query_parts + s * kPartBlock, false);
    return !any_huge(q, size.q_stride[1], rows, size.d);
  }

  // ---- softmax ----------------------------------------------------------------------------------

  static Rows nothing() { return {nullptr, nullptr, nullptr, nullptr, 0, 0, Vector<float>{}}; }
  // The next rows.
  static CLIPWEATHER_INLINE Rows take_rows(Rows& w, int64_t count) {
    const int64_t done = w.done, row = done % kRows;
    w.done += count;
    return {w.s + done * kPartSide,
            w.to + done / kRows * kPartBlock + row * 16,
            (done < kRows ? w.before : w.sums) + row * kLane,
            w.sums + row * kLane,
            row,
            count,
            Vector<float>{}};
  }

  // Scores of a row become parts of 2^(factor (s - shift)).
  CLIPWEATHER_INLINE void weigh(const Rows& w, int64_t i, Vector<float>& most) const {
    const Vector<float> shift = broadcast(shifts[w.done + i]);
    // Subtracted first: the score that is the shift has weight 1 exactly.
    const auto weight = [&](const float* s) __attribute__((always_inline)) {
      const Vector<float> x = (load(s) - shift) * scale.factor;
      most = max(x, most);
      return exp2_by_parts<false>(x);
    };
    const float* const s = w.s + i * kPartSide;
    const Vector<float> first = weight(s), second = weight(s + kLane);
    store(w.sums + i * kLane, load(w.before + i * kLane) + (first + second));
    pack_weights((__m512)first, (__m512)second, w.to + i * 16);
  }

  // Weights are not negative, and values' parts are rounded, so what their parts' smallest products
  // leave out has either sign: these parts may be cut off, which is less work than rounding.
  static CLIPWEATHER_INLINE void pack_weights(__m512 first, __m512 second, uint32_t* to) {
    const __m512i upper = _mm512_set1_epi32(-0x10000);
    const auto rest = [&](__m512 x) __attribute__((always_inline)) {
      return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), upper)));
    };
    for (int p = 0; p < 3; ++p) {
      _mm512_store_si512(to + p * 2 * kPartRegister,
                         paired(_mm512_castps_si512(first), _mm512_castps_si512(second)));
      first = rest(first), second = rest(second);
    }
  }

  // What `combine` makes of each of 16 vectors, one a row.
  template <class Combine>
  static CLIPWEATHER_INLINE Vector<float> of_rows(const float* rows, const Combine& combine) {
    Vector<float> each[kLane];
    for (int64_t r = 0; r < kLane; ++r) each[r] = load(rows + r * kLane);
    return across<float>(each, combine);
  }

  // The largest of each row of a group's scores, lane by lane.
  void find_highest(const float* s, int64_t panels) const {
    for (int64_t r = 0; r < kRows; ++r) {
      Vector<float> high = broadcast(-kInfinity<float>);
      for (int64_t i = 0; i < panels; ++i) {
        const float* const row = s + i * kSquare + r * kPartSide;
        high = max(load(row + kLane), max(load(row), high));
      }
      store(row_highest + r * kLane, high);
    }
  }
  Vector<float> highest_of_rows(int64_t row) const {
    return of_rows(row_highest + row * kLane,
                   [](Vector<float> a, Vector<float> b) { return max(b, a); });
  }

  // What is subtracted from a tile's scores: the largest of its first keys. Where there is none
  // yet, any other is so much larger that weigh_again takes it.
  void begin_tile(int64_t slot, int64_t rows, bool first, const float* s, int64_t panels,
                  float* sums_before) const {
    if (first) find_highest(s, panels);
    float* const worth = keep[slot / kRows & 1];
    for (int64_t r = 0; r < kRows; r += kLane) {
      const int64_t live = rows > r ? smaller(kLane, rows - r) : 0;
      store(shifts + r, first ? max(highest_of_rows(r), broadcast(-0x1.fffffep127f))
                              : load_first(row_max + slot + r, live));
      store(worth + r, broadcast(1.0f));
    }
    std::memset(sums_before, 0, sizeof(float) * kRows * kLane);
  }

  void end_tile(int64_t slot, int64_t rows, bool first, const float* sums_now) const {
    const float* const worth = keep[slot / kRows & 1];
    for (int64_t r = 0; r < rows; r += kLane) {
      const int64_t live = smaller(kLane, rows - r);
      Vector<float> sum =
          of_rows(sums_now + r * kLane, [](Vector<float> a, Vector<float> b) { return a + b; });
      if (!first) sum += load_first(row_sum + slot + r, live) * load(worth + r);
      store_first(row_sum + slot + r, sum, live);
      store_first(row_max + slot + r, load(shifts + r), live);
    }
  }

  // Where scores are so far above what is subtracted that weights could grow too large: rows that
  // have such subtract their largest from here on. Other rows' weights stay the same bits.
  void weigh_again(Rows w, bool sums_there, float* worth) const {
    find_highest(w.s, w.count / kRows);
    for (int64_t r = 0; r < kRows; r += kLane) {
      const Vector<float> old = load(shifts + r), now = highest_of_rows(r);
      const Vector<float> shift = select((now - old) * scale.factor > kMostExponent, now, old);
      const Vector<float> less = exp2_by_parts<false>((old - shift) * scale.factor);
      store(shifts + r, shift);
      store(worth + r, load(worth + r) * less);
      for (int64_t i = 0; i < kLane; ++i) {
        float* const sum = w.before + (r + i) * kLane;
        store(sum, load(sum) * less[i]);
        float* const o = block_sums + (r + i) * d_vectors * kLane;
        for (int64_t c = 0; sums_there && c < d_vectors; ++c)
          store(o + c * kLane, load(o + c * kLane) * less[i]);
      }
    }
    Vector<float> most{};
    for (w.done = 0; w.done < w.count;) {
      const Rows one = take_rows(w, 1);
      weigh(one, 0, most);
    }
  }

  // ---- products ---------------------------------------------------------------------------------

  // A square's 16 rows. One pair of sums at a time: storing four at once lets the unit stand still.
  template <int kItems, bool kWide>
  CLIPWEATHER_INLINE void multiply_rows(const uint32_t* a, const uint32_t* b, int64_t steps,
                                        const float* from, float* to, int64_t to_row, Rows& w) {
    if (from == nullptr) {
      matrix_clear<0>();
      if constexpr (kWide) matrix_clear<1>();
    } else {
      matrix_load<0>(from, to_row * 4);
      if constexpr (kWide) matrix_load<1>(from + 16, to_row * 4);
    }
    for (; steps > 0; --steps, a += kPartBlock, b += kPartBlock) {
      if (kItems > 0 && w.done < w.count) {
        const Rows some = take_rows(w, kItems);
        constexpr int kApart = kPartPlaces / (kItems > 0 ? kItems : 1);
        multiply_half<kWide>(a, b, [&](int place) __attribute__((always_inline)) {
          if (place % kApart == 0) weigh(some, place / kApart, w.most);
        });
      } else {
        multiply_half<kWide>(a, b, [](int) {});
      }
    }
    matrix_store<0>(to, to_row * 4);
    if constexpr (kWide) matrix_store<1>(to + 16, to_row * 4);
  }

  // The scores of a group's panels.
  template <int kItems>
  CLIPWEATHER_INLINE void score(int64_t group, int64_t panels, float* to, Rows& w) {
    const uint32_t* const k = key_parts + group * group_panels * d_steps * kPartBlock;
    for (int64_t i = 0; i < panels; ++i)
      for (int64_t half = 0; half < 2; ++half) {
        const uint32_t* const q = query_parts + half * kPartRegister;
        const uint32_t* const panel = k + i * d_steps * kPartBlock;
        float* const s = to + i * kSquare + half * 16 * kPartSide;
        multiply_rows<kItems, true>(q, panel, d_steps, nullptr, s, kPartSide, w);
      }
  }

  // Those of keys that are not there are -inf.
  void finish_scores(float* s, int64_t keys, int64_t group, int64_t panels) const {
    for (int64_t i = 0; i < panels; ++i, s += kSquare) {
      const int64_t left = keys - (group * group_panels + i) * kPartSide;
      if (left < kPartSide || scale.before != 1.0f) finish_scores(s, left);
    }
  }

  void finish_scores(float* s, int64_t keys) const {
    const Vector<float> none = broadcast(-kInfinity<float>);
    for (int64_t i = 0; i < kSquare; i += kLane) {
      const __mmask16 there = first_lanes(keys - i % kPartSide);
      const Vector<float> x = load(s + i) * scale.before;
      store(s + i, (Vector<float>)_mm512_mask_blend_ps(there, (__m512)none, (__m512)x));
    }
  }

  // Weights of a group's panels times values.
  template <int kItems>
  CLIPWEATHER_INLINE void add_values(int64_t group, int64_t panels, const uint32_t* p, Rows& w) {
    const int64_t row = d_vectors * kLane;
    const uint32_t* v = value_parts + group * d_steps * group_panels * kPartBlock;
    for (int64_t c = 0; c < size.d; c += kPartSide, v += group_panels * kPartBlock)
      for (int64_t half = 0; half < 2; ++half) {
        const uint32_t* const a = p + half * kPartRegister;
        float* const o = block_sums + half * 16 * row + c;
        const float* const from = group == 0 ? nullptr : o;
        if (size.d - c > 16)
          multiply_rows<kItems, true>(a, v, panels, from, o, row, w);
        else
          multiply_rows<kItems, false>(a, v, panels, from, o, row, w);
      }
  }

  // A tile's sums of all keys so far. Those of a block are summed for themselves, because rounding
  // errors grow with the length of a running sum.
  const float* add_block(int64_t slot, int64_t rows, bool first, const float* worth) const {
    if (blocks == 1) return block_sums;
    float* const to = sums + slot * d_vectors * kLane;
    for (int64_t r = 0, i = 0; r < rows; ++r)
      for (int64_t c = 0; c < d_vectors; ++c, i += kLane) {
        const Vector<float> now = load(block_sums + i);
        store(to + i, first ? now : load(to + i) * worth[r] + now);
      }
    return to;
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
