// Backward on the CPU. The weights are recomputed from the saved log-sum-exp; per tile of queries
//   P = 2^(S - lse)   dP = dO V^T   dS = P * (dP - rowsum(dO * O))
//   dV += P^T dO      dQ = scale * dS K      dK += scale * dS^T Q
// A task owns one run of queries of one head, walks the keys in blocks and, inside, its queries in
// tiles. Runs are cut by the sizes alone; where a head has several, each writes fp32 partial sums
// of dK and dV that a second pass adds in the order of the runs, so the bits do not depend on the
// threads.
#include "common/cpu_threads.h"
#include "reduced_kv_attention/cpu_softmax.h"
#include "reduced_kv_attention/cpu_tiles.h"
#include "reduced_kv_attention/reduced_kv_attention.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kRows = kAttentionBackwardRows;
constexpr int64_t kSkew = 16;  // keeps a tile's rows out of one another's cache sets
constexpr double kLog2E = 1.4426950408889634074;

template <class T, class A>
void convert_row(const A* sums, A factor, int64_t count, T* to) {
  int64_t c = 0;
  for (; c + kLanes<A> <= count; c += kLanes<A>) store(to + c, load(sums + c) * factor);
  if (c < count) store_first(to + c, load_first(sums + c, count - c) * factor, count - c);
}

template <class T>
struct Backward {
  using M = typename MultiplyOf<T>::type;
  using A = typename M::Sum;
  using Unit = typename M::Unit;
  static constexpr int64_t kLane = kLanes<A>;

  const AttentionBackwardArgs& args;
  const AttentionSizes& size;
  AttentionRuns runs;
  int64_t d_vectors, d_padded, d_units, block_keys, blocks, stride;
  Unit *key_columns, *value_columns, *key_rows;           // the block's operands
  Unit *query_left, *grad_left, *query_rows, *grad_rows;  // the tile's
  A *scores, *slopes;                                     // S then P; dP then dS
  Unit* slope_rows;                                       // dS as rows of units, where A is no unit
  A *sums_q, *sums_k, *sums_v;

  Backward(const AttentionBackwardArgs& a, char* workspace)
      : args(a), size(a.size), runs(attention_runs(a.size)) {
    d_vectors = ceil_div(size.d, kLane);
    d_padded = d_vectors * kLane;
    d_units = round_up(ceil_div(size.d, M::kDepth), kLane);
    const int64_t most = attention_backward_block(size);
    blocks = ceil_div(size.keys, most);
    block_keys = round_up(ceil_div(size.keys, blocks), kLane);
    stride = block_keys + kSkew;
    key_columns = take<Unit>(workspace, block_keys * d_units);
    value_columns = take<Unit>(workspace, block_keys * d_units);
    key_rows = take<Unit>(workspace, block_keys * d_padded);
    query_left = take<Unit>(workspace, kRows * d_units);
    grad_left = take<Unit>(workspace, kRows * d_units);
    query_rows = take<Unit>(workspace, kRows * d_padded);
    grad_rows = take<Unit>(workspace, kRows * d_padded);
    scores = take<A>(workspace, kRows * stride);
    slopes = take<A>(workspace, kRows * stride);
    slope_rows = take<Unit>(workspace, kRows * stride);
    sums_k = take<A>(workspace, (block_keys + kRowGroup) * d_padded);
    sums_v = take<A>(workspace, (block_keys + kRowGroup) * d_padded);
    sums_q = take<A>(workspace, (blocks > 1 ? runs.length : kRows) * d_padded);
    // The columns between the keys and a whole row group are multiplied, their results never read.
    clear(scores, kRows * stride);
    clear(slopes, kRows * stride);
  }

  static void clear(A* sums, int64_t count) {
    std::memset(sums, 0, sizeof(A) * static_cast<size_t>(count));
  }

  void task(int64_t n, int64_t head, int64_t run) {
    const T* const k =
        static_cast<const T*>(args.k) + n * size.k_stride[0] + head * size.k_stride[2];
    const T* const v =
        static_cast<const T*>(args.v) + n * size.v_stride[0] + head * size.v_stride[2];
    const int64_t begin = run * runs.length, end = smaller(begin + runs.length, size.queries);
    for (int64_t key = 0; key < size.keys; key += block_keys) {
      const int64_t keys = smaller(block_keys, size.keys - key);
      pack_transposed<M>(k + key * size.k_stride[1], size.k_stride[1], keys, size.d, key_columns);
      pack_transposed<M>(v + key * size.v_stride[1], size.v_stride[1], keys, size.d, value_columns);
      pack_rows<M>(k + key * size.k_stride[1], size.k_stride[1], keys, size.d, key_rows);
      clear(sums_k, (block_keys + kRowGroup) * d_padded);
      clear(sums_v, (block_keys + kRowGroup) * d_padded);
      for (int64_t row = begin; row < end; row += kRows)
        tile(n, head, row, smaller(kRows, end - row), row - begin, key, keys);
      finish_keys(n, head, run, key, keys);
    }
  }

  void tile(int64_t n, int64_t head, int64_t row, int64_t rows, int64_t slot, int64_t key,
            int64_t keys) {
    const T* const q = static_cast<const T*>(args.q) + n * size.q_stride[0] +
                       row * size.q_stride[1] + head * size.q_stride[2];
    const int64_t dense = ((n * size.queries + row) * size.heads + head) * size.d;
    const int64_t dense_stride = size.heads * size.d;
    const T* const grad = static_cast<const T*>(args.grad) + dense;
    const int64_t vectors = ceil_div(keys, kLane), d_steps = ceil_div(size.d, M::kDepth);
    pack_left<M>(q, size.q_stride[1], rows, size.d, d_units, query_left);
    pack_left<M>(grad, dense_stride, rows, size.d, d_units, grad_left);
    pack_rows<M>(q, size.q_stride[1], rows, size.d, query_rows);
    pack_rows<M>(grad, dense_stride, rows, size.d, grad_rows);
    multiply<M>({query_left, d_units, 1}, key_columns, d_steps, rows, vectors,
                {scores, stride, Into::kSet, static_cast<A>(size.scale * kLog2E), nullptr});
    multiply<M>({grad_left, d_units, 1}, value_columns, d_steps, rows, vectors,
                {slopes, stride, Into::kSet, A{1}, nullptr});
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = keys; j < vectors * kLane; ++j)
        scores[r * stride + j] = -static_cast<A>(__builtin_inf());
    RowState state[kRows];
    const A* const lse = static_cast<const A*>(args.lse) + (n * size.heads + head) * size.queries;
    for (int64_t r = 0; r < rows; ++r) {
      if (blocks == 1) {
        state[r] = whole_row(scores + r * stride, slopes + r * stride, vectors);
      } else {
        const T* const out = static_cast<const T*>(args.out) + dense + r * dense_stride;
        state[r] = {lse[row + r] * static_cast<A>(kLog2E), dot(grad + r * dense_stride, out), A{1}};
      }
    }
    for (int64_t r = 0; r < rows; r += M::kDepth)
      weigh(r, smaller(M::kDepth, rows - r), vectors, state + r);
    gradients(rows, slot, key == 0, keys);
    if (key + keys == size.keys)
      for (int64_t r = 0; r < rows; ++r)
        convert_row(sums_q + ((blocks > 1 ? slot : 0) + r) * d_padded, static_cast<A>(size.scale),
                    size.d, static_cast<T*>(args.grad_q) + dense + r * dense_stride);
  }

  A dot(const T* a, const T* b) const {
    Vector<A> sum = {};
    int64_t c = 0;
    for (; c + kLane <= size.d; c += kLane) sum += load(a + c) * load(b + c);
    if (c < size.d) sum += load_first(a + c, size.d - c) * load_first(b + c, size.d - c);
    return horizontal_sum<A>(sum);
  }

  // P = factor * 2^(S - shift), dS = P * (dP - delta).
  struct RowState {
    A shift, delta, factor;
  };

  // Where a tile holds all keys of a row, the softmax and delta = sum P * dP are formed anew: then
  // the weights sum to one and dS to zero, which the rounded lse and out only nearly give. S
  // becomes 2^(S - max).
  static RowState whole_row(A* s, const A* g, int64_t vectors) {
    const A high = row_maximum<A>(s, vectors);
    Vector<A> sum = {}, weighted = {};
    for (int64_t c = 0; c < vectors * kLane; c += kLane) {
      const Vector<A> p = exp2_nonpositive<M>(load(s + c) - high);
      sum += p;
      weighted += p * load(g + c);
      store(s + c, p);
    }
    const A total = horizontal_sum<A>(sum);
    return {high, horizontal_sum<A>(weighted) / total, A{1} / total};
  }

  CLIPWEATHER_INLINE Vector<A> weights(const A* s, const RowState& state) const {
    return blocks == 1 ? load(s) * state.factor : exp2_nonpositive<M>(load(s) - state.shift);
  }

  // S and dP of one step's rows become P and dS, as the units the products by key and by row take.
  void weigh(int64_t r, int64_t rows, int64_t vectors, const RowState* state) {
    const A* const s = scores + r * stride;
    const A* const g = slopes + r * stride;
    A* const p_to = scores + r / M::kDepth * stride;
    A* const ds_to = slopes + r / M::kDepth * stride;
    for (int64_t c = 0; c < vectors * kLane; c += kLane) {
      const Vector<A> p = weights(s + c, state[0]);
      const Vector<A> ds = p * (load(g + c) - state[0].delta);
      if constexpr (M::kDepth == 1) {
        store(p_to + c, p);
        store(ds_to + c, ds);
      } else {
        Vector<A> p2 = {}, ds2 = {};
        if (rows > 1) {
          p2 = weights(s + stride + c, state[1]);
          ds2 = p2 * (load(g + stride + c) - state[1].delta);
          store(row_of_slopes(r + 1) + c, ds2);
        }
        store(row_of_slopes(r) + c, ds);
        store(p_to + c, M::interleave(p, p2));
        store(ds_to + c, M::interleave(ds, ds2));
      }
    }
  }
  T* row_of_slopes(int64_t r) const { return reinterpret_cast<T*>(slope_rows) + r * stride; }

  void gradients(int64_t rows, int64_t slot, bool first, int64_t keys) {
    const int64_t row_steps = ceil_div(rows, M::kDepth);
    const auto by_key = [&](const A* tile) {
      return Left<M>{reinterpret_cast<const Unit*>(tile), 1, stride};
    };
    Left<M> by_row{reinterpret_cast<const Unit*>(slopes), stride, 1};
    if (M::kDepth > 1) by_row = {slope_rows, stride / M::kDepth, 1};
    A* const to_q = sums_q + (blocks > 1 ? slot : 0) * d_padded;
    multiply<M>(by_key(scores), grad_rows, row_steps, keys, d_vectors,
                {sums_v, d_padded, Into::kAdd, A{1}, nullptr});
    multiply<M>(by_key(slopes), query_rows, row_steps, keys, d_vectors,
                {sums_k, d_padded, Into::kAdd, A{1}, nullptr});
    multiply<M>(by_row, key_rows, ceil_div(keys, M::kDepth), rows, d_vectors,
                {to_q, d_padded, first ? Into::kSet : Into::kAdd, A{1}, nullptr});
  }

  void finish_keys(int64_t n, int64_t head, int64_t run, int64_t key, int64_t keys) {
    const A scale = static_cast<A>(size.scale);
    for (int64_t j = 0; j < keys; ++j) {
      if (runs.count == 1) {
        const int64_t to = ((n * size.keys + key + j) * size.heads + head) * size.d;
        convert_row(sums_k + j * d_padded, scale, size.d, static_cast<T*>(args.grad_k) + to);
        convert_row(sums_v + j * d_padded, A{1}, size.d, static_cast<T*>(args.grad_v) + to);
      } else {
        const int64_t head_rows = ((n * size.heads + head) * runs.count + run) * size.keys;
        A* const to = static_cast<A*>(args.partials) + (head_rows + key + j) * 2 * size.d;
        convert_row(sums_k + j * d_padded, scale, size.d, to);
        convert_row(sums_v + j * d_padded, A{1}, size.d, to + size.d);
      }
    }
  }
};

// One head's partial sums of dK and dV, added in the order of the runs into the first.
template <class T>
void reduce(const AttentionBackwardArgs& args, int64_t runs, int64_t n, int64_t head) {
  using A = typename Accumulate<T>::type;
  const AttentionSizes& size = args.size;
  const int64_t count = size.keys * 2 * size.d;
  A* const sums = static_cast<A*>(args.partials) + (n * size.heads + head) * runs * count;
  for (int64_t run = 1; run < runs; ++run)
    for (int64_t i = 0; i < count; ++i) sums[i] += sums[run * count + i];
  for (int64_t j = 0; j < size.keys; ++j) {
    const int64_t to = ((n * size.keys + j) * size.heads + head) * size.d;
    convert_row(sums + j * 2 * size.d, A{1}, size.d, static_cast<T*>(args.grad_k) + to);
    convert_row(sums + (j * 2 + 1) * size.d, A{1}, size.d, static_cast<T*>(args.grad_v) + to);
  }
}

template <class T>
void backward(const AttentionBackwardArgs& args) {
  const AttentionSizes& size = args.size;
  const AttentionRuns runs = attention_runs(size);
  parallel_tasks(size.n * size.heads * runs.count, args.threads, [&](int64_t task, int64_t thread) {
    char* const workspace = static_cast<char*>(args.workspace) + thread * args.workspace_bytes;
    const int64_t n = task / runs.count / size.heads, head = task / runs.count % size.heads;
    Backward<T>(args, workspace).task(n, head, task % runs.count);
  });
  if (runs.count == 1) return;
  parallel_tasks(size.n * size.heads, args.threads, [&](int64_t task, int64_t) {
    reduce<T>(args, runs.count, task / size.heads, task % size.heads);
  });
}

}  // namespace

void reduced_kv_attention_backward(const AttentionBackwardArgs& args) {
  switch (args.size.dtype) {
    case DType::kFloat32:
      backward<float>(args);
      break;
    case DType::kBFloat16:
      backward<bfloat16_t>(args);
      break;
    case DType::kFloat16:
      backward<float16_t>(args);
      break;
    case DType::kFloat64:
      backward<double>(args);
      break;
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
