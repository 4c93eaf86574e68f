// reduced_kv_attention's backward pass for any sizes, in the tiles of the forward pass.
//
// With P the weights, dP = grad v^T and dS = P (dP - rowsum(P dP)): grad_q = scale dS k,
// grad_k = scale dS^T q, grad_v = P^T grad. Three kernels, no atomics. The first owns queries and
// walks the keys; it writes grad_q and leaves three numbers of every row for the second, which owns
// keys and walks a run of queries, forming P and dP again. Runs are cut by the sizes alone, so that
// few keys still fill a GPU; the third kernel adds their fp32 partial sums in the order of the
// runs.
//
// Where one tile holds all keys, the softmax and rowsum(P dP) are formed anew: weights then sum to
// one and their gradients to zero as exactly as floats can (one key: exactly). Otherwise P comes
// from the saved log-sum-exp and the row sum is rowsum(grad * out).
//
// Bound like the forward pass, by FMA issue and shared memory; seven products of Lq x Lk x d in
// all.
#include "reduced_kv_attention/reduced_kv_attention_cuda.h"
#include "reduced_kv_attention/reduced_kv_attention_tiles.h"

namespace clipweather {
namespace {

// Two operands are owned and two streamed, and the second kernel keeps two sums: tiles are smaller
// than in the forward pass, and the largest again stay below 99 KiB.
template <int kDim>
struct BackwardTile : AttentionTile<kDim, 32, 32, 4> {};
template <>
struct BackwardTile<64> : AttentionTile<64, 64, 32, 4> {};
template <>
struct BackwardTile<256> : AttentionTile<256, 16, 16, 2> {};

template <class Tile>
inline constexpr int kBackwardFloats =
    2 * Tile::kOwnedFloats + 2 * Tile::kStreamedFloats + Tile::kWeightFloats;

// Blocks that feed the largest GPUs of today about twice; a constant, so that sums are grouped
// alike on every GPU. A run is at least this many tiles of queries long.
constexpr int64_t kWantedBlocks = 528;
constexpr int64_t kLeastTiles = 4;
constexpr int kSumThreads = 256;

// What the first kernel knows of each row of P = exp2(score - shift) * inverse.
struct RowNumbers {
  float* shift;    // (N, heads, Lq)
  float* inverse;  // (N, heads, Lq)
  float* delta;    // (N, heads, Lq): rowsum(P dP)
};

// How the queries of a head are cut for the second kernel.
struct Runs {
  int64_t count, length;
};

template <class Tile>
Runs runs_of(const AttentionSizes& size) {
  const int64_t blocks =
      std::max<int64_t>(1, size.n * size.heads * ceil_div(size.keys, Tile::kOwned));
  const int64_t tiles = std::max<int64_t>(1, ceil_div(size.queries, Tile::kStreamed));
  const int64_t count =
      std::max<int64_t>(1, std::min(ceil_div(kWantedBlocks, blocks), tiles / kLeastTiles));
  const int64_t length = ceil_div(tiles, count) * Tile::kStreamed;
  return {std::max<int64_t>(1, ceil_div(size.queries, length)), length};
}

int64_t row_count(const AttentionSizes& size) { return size.n * size.heads * size.queries; }
int64_t key_elements(const AttentionSizes& size) {
  return size.n * size.keys * size.heads * size.d;
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    reduced_kv_attention_backward_q_kernel(const T* __restrict__ grad,  // (N, Lq, heads, d)
                                           const T* __restrict__ q,    // (N, Lq, heads, d), strided
                                           const T* __restrict__ k,    // (N, Lk, heads, d), strided
                                           const T* __restrict__ v,    // (N, Lk, heads, d), strided
                                           const T* __restrict__ out,  // (N, Lq, heads, d)
                                           const float* __restrict__ lse,  // (N, heads, Lq)
                                           T* __restrict__ grad_q,         // (N, Lq, heads, d)
                                           const RowNumbers numbers, const AttentionSizes size,
                                           const float factor, const bool wide) {
  CLIPWEATHER_DYNAMIC_SHARED(float, q_tile);
  float* const grad_tile = q_tile + Tile::kOwnedFloats;
  float* const k_tile = grad_tile + Tile::kOwnedFloats;
  float* const v_tile = k_tile + Tile::kStreamedFloats;
  const Seat<Tile> seat;
  float* const weights = v_tile + Tile::kStreamedFloats + seat.row * Tile::kWeightStride;
  const int64_t tiles = ceil_div(size.queries, Tile::kOwned);
  const int64_t head = blockIdx.x / tiles, first = blockIdx.x % tiles * Tile::kOwned;
  const int64_t n = head / size.heads, h = head % size.heads, left = size.queries - first;
  const Rows<const T> k_rows(k, size.k_stride, n, h), v_rows(v, size.v_stride, n, h);
  const Rows<const T> grad_rows(grad, size.queries, size, n, h);
  stage<Tile, Tile::kOwned>(Rows<const T>(q, size.q_stride, n, h), first, left, size.d, wide,
                            q_tile);
  stage<Tile, Tile::kOwned>(grad_rows, first, left, size.d, wide, grad_tile);
  const bool anew = size.keys <= Tile::kStreamed;
  float shift[Tile::kRows], inverse[Tile::kRows], delta[Tile::kRows];
  const Rows<const T> out_rows(out, size.queries, size, n, h);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int64_t row = first + seat.row + i;
    const bool present = row < size.queries;
    shift[i] = present ? lse[head * size.queries + row] * static_cast<float>(kLog2E) : 0.0f;
    inverse[i] = 1.0f;
    float sum = 0.0f;
    if (!anew && present)
      for (int64_t c = seat.across; c < size.d; c += kAcross)
        sum = fmaf(load_one(grad_rows.at(row) + c), load_one(out_rows.at(row) + c), sum);
    delta[i] = row_sum(sum);
  }
  float sums[Tile::kRows][Tile::kSums] = {};
  for (int64_t start = 0; start < size.keys; start += Tile::kStreamed) {
    const int count = static_cast<int>(min(size.keys - start, int64_t{Tile::kStreamed}));
    __syncthreads();
    stage<Tile, Tile::kStreamed>(k_rows, start, count, size.d, wide, k_tile);
    stage<Tile, Tile::kStreamed>(v_rows, start, count, size.d, wide, v_tile);
    __syncthreads();
    float scores[Tile::kRows][Tile::kColumns], grad_p[Tile::kRows][Tile::kColumns];
    multiply<Tile>(q_tile + seat.row * Tile::kStride, k_tile, seat, scores);
    multiply<Tile>(grad_tile + seat.row * Tile::kStride, v_tile, seat, grad_p);
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j)
        scores[i][j] = seat.streamed(j) < count ? scores[i][j] * factor : -INFINITY;
      if (anew) {
        float largest = -INFINITY, total = 0.0f, dot = 0.0f;
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j) largest = fmaxf(largest, scores[i][j]);
        shift[i] = finite_shift(row_maximum(largest));
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j) {
          const float weight = exp2f(scores[i][j] - shift[i]);
          total += weight;
          dot = fmaf(weight, grad_p[i][j], dot);
        }
        inverse[i] = 1.0f / row_sum(total);
        delta[i] = row_sum(dot) * inverse[i];
      }
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) {
        const float weight = exp2f(scores[i][j] - shift[i]) * inverse[i];
        weights[i * Tile::kWeightStride + seat.streamed(j)] = weight * (grad_p[i][j] - delta[i]);
      }
    }
    __syncwarp();
    add_weighted<Tile>(weights, k_tile, count, seat, sums);
  }
  const Rows<T> grad_q_rows(grad_q, size.queries, size, n, h);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int64_t row = first + seat.row + i;
    if (row >= size.queries) continue;
    store_row<Tile>(sums[i], static_cast<float>(size.scale), size.d, wide, seat,
                    grad_q_rows.at(row));
    if (seat.across != 0) continue;
    numbers.shift[head * size.queries + row] = shift[i];
    numbers.inverse[head * size.queries + row] = inverse[i];
    numbers.delta[head * size.queries + row] = delta[i];
  }
}

// Block: (key tile, run, head), key tiles fastest: neighbours read the same queries.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    reduced_kv_attention_backward_kv_kernel(
        const T* __restrict__ grad,    // (N, Lq, heads, d)
        const T* __restrict__ q,       // (N, Lq, heads, d), strided
        const T* __restrict__ k,       // (N, Lk, heads, d), strided
        const T* __restrict__ v,       // (N, Lk, heads, d), strided
        T* __restrict__ grad_k,        // (N, Lk, heads, d); written where there is one run
        T* __restrict__ grad_v,        // likewise
        float* __restrict__ partials,  // (2, runs, N, Lk, heads, d) of grad_k, grad_v; else
        const RowNumbers numbers, const AttentionSizes size, const Runs runs, const float factor,
        const bool wide) {
  CLIPWEATHER_DYNAMIC_SHARED(float, k_tile);
  float* const v_tile = k_tile + Tile::kOwnedFloats;
  float* const q_tile = v_tile + Tile::kOwnedFloats;
  float* const grad_tile = q_tile + Tile::kStreamedFloats;
  const Seat<Tile> seat;
  float* const weights = grad_tile + Tile::kStreamedFloats + seat.row * Tile::kWeightStride;
  const int64_t tiles = ceil_div(size.keys, Tile::kOwned);
  const int64_t first = blockIdx.x % tiles * Tile::kOwned, run = blockIdx.x / tiles % runs.count;
  const int64_t head = blockIdx.x / tiles / runs.count;
  const int64_t n = head / size.heads, h = head % size.heads, left = size.keys - first;
  stage<Tile, Tile::kOwned>(Rows<const T>(k, size.k_stride, n, h), first, left, size.d, wide,
                            k_tile);
  stage<Tile, Tile::kOwned>(Rows<const T>(v, size.v_stride, n, h), first, left, size.d, wide,
                            v_tile);
  const Rows<const T> q_rows(q, size.q_stride, n, h), grad_rows(grad, size.queries, size, n, h);
  float k_sums[Tile::kRows][Tile::kSums] = {}, v_sums[Tile::kRows][Tile::kSums] = {};
  const int64_t end = min(size.queries, (run + 1) * runs.length);
  for (int64_t start = run * runs.length; start < end; start += Tile::kStreamed) {
    const int count = static_cast<int>(min(end - start, int64_t{Tile::kStreamed}));
    __syncthreads();
    stage<Tile, Tile::kStreamed>(q_rows, start, count, size.d, wide, q_tile);
    stage<Tile, Tile::kStreamed>(grad_rows, start, count, size.d, wide, grad_tile);
    __syncthreads();
    // Keys by queries: the same sums in the same order as in the first kernel.
    float scores[Tile::kRows][Tile::kColumns], grad_p[Tile::kRows][Tile::kColumns];
    multiply<Tile>(k_tile + seat.row * Tile::kStride, q_tile, seat, scores);
    multiply<Tile>(v_tile + seat.row * Tile::kStride, grad_tile, seat, grad_p);
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      const int column = seat.streamed(j);
      const bool present = column < count;
      const int64_t at = head * size.queries + start + column;
      const float shift = present ? numbers.shift[at] : 0.0f;
      const float inverse = present ? numbers.inverse[at] : 0.0f;
      const float delta = present ? numbers.delta[at] : 0.0f;
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) {
        const float weight = present ? exp2f(scores[i][j] * factor - shift) * inverse : 0.0f;
        weights[i * Tile::kWeightStride + column] = weight;
        scores[i][j] = present ? weight * (grad_p[i][j] - delta) : 0.0f;
      }
    }
    __syncwarp();
    add_weighted<Tile>(weights, grad_tile, count, seat, v_sums);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j)
        weights[i * Tile::kWeightStride + seat.streamed(j)] = scores[i][j];
    __syncwarp();
    add_weighted<Tile>(weights, q_tile, count, seat, k_sums);
  }
  const int64_t elements = size.n * size.keys * size.heads * size.d;
  const float scale = static_cast<float>(size.scale);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int64_t row = first + seat.row + i;
    if (row >= size.keys) continue;
    if (runs.count == 1) {
      store_row<Tile>(k_sums[i], scale, size.d, wide, seat,
                      Rows<T>(grad_k, size.keys, size, n, h).at(row));
      store_row<Tile>(v_sums[i], 1.0f, size.d, wide, seat,
                      Rows<T>(grad_v, size.keys, size, n, h).at(row));
    } else {
      float* const k_part = partials + run * elements;
      float* const v_part = partials + (runs.count + run) * elements;
      store_row<Tile>(k_sums[i], scale, size.d, wide, seat,
                      Rows<float>(k_part, size.keys, size, n, h).at(row));
      store_row<Tile>(v_sums[i], 1.0f, size.d, wide, seat,
                      Rows<float>(v_part, size.keys, size, n, h).at(row));
    }
  }
}

// A thread adds one element of grad_k or, in the second half of the grid, of grad_v.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    reduced_kv_attention_sum_runs_kernel(const float* __restrict__ partials,  // (2, runs, elements)
                                         T* __restrict__ grad_k,              // (elements)
                                         T* __restrict__ grad_v,              // (elements)
                                         const int64_t runs, const int64_t elements) {
  const int64_t index = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (index >= 2 * elements) return;
  const bool is_v = index >= elements;
  const int64_t element = is_v ? index - elements : index;
  const float* const parts = partials + (is_v ? runs * elements : 0) + element;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t run = 0; run < runs; ++run) sum += parts[run * elements];
  store_one((is_v ? grad_v : grad_k) + element, sum);
}

template <class T, class Tile>
void launch_backward(const AttentionCudaBackwardArgs& args, const CudaContext& context) {
  const AttentionSizes& size = args.size;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t heads = size.n * size.heads, rows = row_count(size);
  const float factor = static_cast<float>(size.scale * kLog2E);
  bool wide = is_wide(args.q, size.q_stride, size, size.queries) &&
              is_wide(args.k, size.k_stride, size, size.keys) &&
              is_wide(args.v, size.v_stride, size, size.keys);
  for (const void* const dense :
       {args.grad, static_cast<const void*>(args.grad_q), static_cast<const void*>(args.grad_k),
        static_cast<const void*>(args.grad_v)})
    wide = wide && is_wide(dense, size);
  const T* const grad = static_cast<const T*>(args.grad);
  const T* const q = static_cast<const T*>(args.q);
  const T* const k = static_cast<const T*>(args.k);
  const T* const v = static_cast<const T*>(args.v);
  T* const grad_k = static_cast<T*>(args.grad_k);
  T* const grad_v = static_cast<T*>(args.grad_v);
  // The partial sums come first: they are written four at a time.
  const Runs runs = runs_of<Tile>(size);
  float* const partials = static_cast<float*>(context.workspace);
  float* const first =
      partials + (runs.count > 1 ? 2 * runs.count * key_elements(size) : int64_t{0});
  const RowNumbers numbers{first, first + rows, first + 2 * rows};
  constexpr std::size_t kShared = kBackwardFloats<Tile> * sizeof(float);

  const auto by_queries = reduced_kv_attention_backward_q_kernel<T, Tile>;
  allow_shared<kBackwardFloats<Tile>>(by_queries, "reduced_kv_attention_backward_q");
  launch("reduced_kv_attention_backward_q", by_queries,
         dim3(grid_of(heads * ceil_div(size.queries, Tile::kOwned))), Tile::kThreads, kShared,
         stream, grad, q, k, v, static_cast<const T*>(args.out), args.lse,
         static_cast<T*>(args.grad_q), numbers, size, factor, wide);
  const auto by_keys = reduced_kv_attention_backward_kv_kernel<T, Tile>;
  allow_shared<kBackwardFloats<Tile>>(by_keys, "reduced_kv_attention_backward_kv");
  launch("reduced_kv_attention_backward_kv", by_keys,
         dim3(grid_of(heads * runs.count * ceil_div(size.keys, Tile::kOwned))), Tile::kThreads,
         kShared, stream, grad, q, k, v, grad_k, grad_v, partials, numbers, size, runs, factor,
         wide);
  if (runs.count == 1) return;
  launch("reduced_kv_attention_sum_runs", reduced_kv_attention_sum_runs_kernel<T>,
         dim3(grid_of(ceil_div(2 * key_elements(size), kSumThreads))), kSumThreads, 0, stream,
         partials, grad_k, grad_v, runs.count, key_elements(size));
}

}  // namespace

std::size_t reduced_kv_attention_workspace_bytes(const AttentionSizes& size) {
  int64_t floats = 3 * row_count(size);
  for_padded_dim(size.d, [&](auto dim) {
    const Runs runs = runs_of<BackwardTile<dim()>>(size);
    if (runs.count > 1) floats += 2 * runs.count * key_elements(size);
  });
  return static_cast<std::size_t>(floats) * sizeof(float);
}

void launch_reduced_kv_attention_backward(const AttentionCudaBackwardArgs& args,
                                          const CudaContext& context) {
  if (row_count(args.size) == 0) return;
  const DeviceGuard guard(context.device);
  for_gpu_dtype(args.size.dtype, [&](auto element) {
    using T = decltype(element);
    for_padded_dim(args.size.d,
                   [&](auto dim) { launch_backward<T, BackwardTile<dim()>>(args, context); });
  });
}

}  // namespace clipweather
