// Forward on the CPU. A task owns up to kChunk queries of one head. It packs a block of keys and
// values once (they stay in L2) and walks its queries in tiles of kRows: S = Q K^T by a
// register-tiled multiplication, softmax of the tile's rows while they lie in L1, O += P V. Beyond
// kKeyBlock keys the next block rescales the rows' sums (online softmax), so memory is bounded
// whatever the key count. Bound by FMA issue: packing costs 1-2 % and the exponential about 10 % of
// 4096 x 256 at d = 64.
#include "common/cpu_threads.h"
#include "reduced_kv_attention/cpu_tiles.h"
#include "reduced_kv_attention/reduced_kv_attention.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kRows = kAttentionRows;          // S (kRows, kKeyBlock) of a tile fits L1
constexpr int64_t kChunk = kAttentionChunk;        // packing K and V is paid once for these queries
constexpr int64_t kKeyBlock = kAttentionKeyBlock;  // packed K and V fit L2 up to d = 256
constexpr int64_t kSkew = 16;  // keeps the rows of S out of one another's cache sets

template <class T>
struct Forward {
  using M = typename MultiplyOf<T>::type;
  using A = typename M::Sum;
  using Unit = typename M::Unit;
  static constexpr int64_t kLane = kLanes<A>;

  const AttentionForwardArgs& args;
  const AttentionSizes& size;
  int64_t d_vectors, d_units, blocks, block_keys;
  // Packed operands, the tile, and the state of the task's rows.
  Unit* key_panels;
  Unit* value_panels;
  Unit* query_rows;
  A* scores;
  A* sums;
  A* row_max;
  A* row_sum;
  A* row_keep;

  Forward(const AttentionForwardArgs& a, char* workspace) : args(a), size(a.size) {
    d_vectors = ceil_div(size.d, kLane);
    d_units = round_up(ceil_div(size.d, M::kDepth), kLane);
    blocks = ceil_div(size.keys, kKeyBlock);
    block_keys = round_up(ceil_div(size.keys, blocks), kLane);
    const int64_t d_padded = d_vectors * kLane;
    key_panels = take<Unit>(workspace, block_keys * d_units);
    value_panels = take<Unit>(workspace, block_keys * d_padded);
    query_rows = take<Unit>(workspace, kRows * d_units);
    scores = take<A>(workspace, kRows * (block_keys + kSkew));
    sums = take<A>(workspace, (blocks > 1 ? kChunk : kRows) * d_padded);
    row_max = take<A>(workspace, kChunk);
    row_sum = take<A>(workspace, kChunk);
    row_keep = take<A>(workspace, kRows);
  }

  template <class X>
  static X* take(char*& from, int64_t count) {
    X* const start = reinterpret_cast<X*>(from);
    from += round_up(count * static_cast<int64_t>(sizeof(X)), 64);
    return start;
  }

  void task(int64_t n, int64_t head, int64_t begin, int64_t end) {
    const T* const k =
        static_cast<const T*>(args.k) + n * size.k_stride[0] + head * size.k_stride[2];
    const T* const v =
        static_cast<const T*>(args.v) + n * size.v_stride[0] + head * size.v_stride[2];
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
    const T* const q = static_cast<const T*>(args.q) + n * size.q_stride[0] +
                       row * size.q_stride[1] + head * size.q_stride[2];
    const int64_t vectors = ceil_div(keys, kLane), stride = block_keys + kSkew;
    const A factor =
        static_cast<A>(size.scale * 1.4426950408889634074);  // the scores in powers of 2
    pack_left<M>(q, size.q_stride[1], rows, size.d, d_units, query_rows);
    multiply<M>({query_rows, d_units, 1}, key_panels, ceil_div(size.d, M::kDepth), rows, vectors,
                {scores, stride, Into::kSet, factor, row_keep});
    A* const o = sums + (blocks > 1 ? slot * d_vectors * kLane : 0);
    for (int64_t r = 0; r < rows; ++r) {
      A* const s = scores + r * stride;
      for (int64_t j = keys; j < vectors * kLane; ++j) s[j] = -static_cast<A>(__builtin_inf());
      softmax_row(s, vectors, first, row_max[slot + r], row_sum[slot + r], row_keep[r]);
    }
    const Left<M> weights{reinterpret_cast<const Unit*>(scores),
                          stride * static_cast<int64_t>(sizeof(A) / sizeof(Unit)), 1};
    multiply<M>(weights, value_panels, ceil_div(keys, M::kDepth), rows, d_vectors,
                {o, d_vectors * kLane, first ? Into::kSet : Into::kKeep, A{1}, row_keep});
    if (last) finish(n, head, row, rows, slot, o);
  }

  // s becomes 2^(s - max), in place, as the units PV multiplies; `keep` is what the sums so far are
  // worth now.
  static CLIPWEATHER_INLINE void softmax_row(A* s, int64_t vectors, bool first, A& row_max,
                                             A& row_sum, A& keep) {
    const A high = row_maximum(s, vectors);
    const A old = row_max;
    const A now = first || high > old ? high : old;
    // A row without a finite score yet has no maximum to subtract: its weights are zero, not NaN.
    const A shift = now == -static_cast<A>(__builtin_inf()) ? A{0} : now;
    Vector<A> sum = {};
    for (int64_t v = 0; v < vectors; ++v) {
      const Vector<A> p = exp2_nonpositive<M>(load(s + v * kLane) - shift);
      sum += p;
      store_weights(s, v, p);
    }
    const A added = horizontal_sum<A>(sum);
    keep = first ? A{0} : exp2_nonpositive<M>(broadcast<A>(old - shift))[0];
    row_sum = first ? added : row_sum * keep + added;
    row_max = now;
  }

  static CLIPWEATHER_INLINE void store_weights(A* s, int64_t v, Vector<A> p) {
    // bf16 weights overwrite scores already read: half as wide, from the row's start.
    if constexpr (M::kDepth == 2)
      store(reinterpret_cast<T*>(s) + v * kLane, p);
    else
      store(s + v * kLane, p);
  }

  void finish(int64_t n, int64_t head, int64_t row, int64_t rows, int64_t slot, const A* o) {
    A* const lse = static_cast<A*>(args.lse) + (n * size.heads + head) * size.queries + row;
    for (int64_t r = 0; r < rows; ++r, o += d_vectors * kLane) {
      const A inverse = A{1} / row_sum[slot + r];
      lse[r] = static_cast<A>((row_max[slot + r] + __builtin_log2(row_sum[slot + r])) *
                              0.69314718055994530942);
      T* const out =
          static_cast<T*>(args.out) + ((n * size.queries + row + r) * size.heads + head) * size.d;
      int64_t c = 0;
      for (; c + kLane <= size.d; c += kLane) store(out + c, load(o + c) * inverse);
      if (c < size.d) store_first(out + c, load(o + c) * inverse, size.d - c);
    }
  }
};

template <class T>
void forward(const AttentionForwardArgs& args) {
  const AttentionSizes& size = args.size;
  const int64_t chunks = ceil_div(size.queries, kChunk);
  // Chunks of nearly equal length, whole tiles each.
  const int64_t chunk = round_up(ceil_div(size.queries, chunks), kRows);
  parallel_tasks(size.n * size.heads * chunks, args.threads, [&](int64_t task, int64_t thread) {
    const int64_t begin = task % chunks * chunk, end = smaller(begin + chunk, size.queries);
    if (begin >= end) return;
    char* const workspace = static_cast<char*>(args.workspace) + thread * args.workspace_bytes;
    const int64_t n = task / chunks / size.heads, head = task / chunks % size.heads;
    Forward<T>(args, workspace).task(n, head, begin, end);
  });
}

}  // namespace

void reduced_kv_attention_forward(const AttentionForwardArgs& args) {
  switch (args.size.dtype) {
    case DType::kFloat32:
      forward<float>(args);
      break;
    case DType::kBFloat16:
      forward<bfloat16_t>(args);
      break;
    case DType::kFloat16:
      forward<float16_t>(args);
      break;
    case DType::kFloat64:
      forward<double>(args);
      break;
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
