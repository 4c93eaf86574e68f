// reduced_kv_attention's forward pass for any sizes: out = softmax(scale * q k^T) v.
//
// A block owns 64 queries of one head (32 where d > 128), stages 64 to 16 keys and values at a time
// in shared memory as floats, and keeps a running maximum and sum of every row (online softmax);
// few keys are one tile, and then nothing is ever rescaled. A thread multiplies 4 queries by 4 to 1
// keys, and sums 4 rows by d / 16 columns; weights pass through shared memory between the threads
// of one half warp.
//
// Predicted, not measured: with 4 x 4 products a step reads 8 vectors for 64 FMA, so FMA issue and
// shared memory bound it about equally, at roughly half the fp32 peak (30 TFLOP/s on an H100), for
// 16-bit types no faster. Tensor cores reach many times that in 16 bits: the Triton kernel should
// win there. At d = 64 a block takes 68 KiB and 128 registers a thread: two blocks a
// multiprocessor.
#include "reduced_kv_attention/reduced_kv_attention_cuda.h"
#include "reduced_kv_attention/reduced_kv_attention_tiles.h"

namespace clipweather {
namespace {

template <int kDim>
struct ForwardTile : AttentionTile<kDim, 64, 32, 4> {};
template <>
struct ForwardTile<64> : AttentionTile<64, 64, 64, 4> {};
template <>
struct ForwardTile<256> : AttentionTile<256, 32, 16, 4> {};

template <class Tile>
inline constexpr int kForwardFloats =
    Tile::kOwnedFloats + 2 * Tile::kStreamedFloats + Tile::kWeightFloats;

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    reduced_kv_attention_forward_kernel(const T* __restrict__ q,  // (N, Lq, heads, d), strided
                                        const T* __restrict__ k,  // (N, Lk, heads, d), strided
                                        const T* __restrict__ v,  // (N, Lk, heads, d), strided
                                        T* __restrict__ out,      // (N, Lq, heads, d)
                                        float* __restrict__ lse,  // (N, heads, Lq)
                                        const AttentionSizes size, const float factor,
                                        const bool wide) {
  CLIPWEATHER_DYNAMIC_SHARED(float, q_tile);
  float* const k_tile = q_tile + Tile::kOwnedFloats;
  float* const v_tile = k_tile + Tile::kStreamedFloats;
  const Seat<Tile> seat;
  const float* const own = q_tile + seat.row * Tile::kStride;
  float* const weights = v_tile + Tile::kStreamedFloats + seat.row * Tile::kWeightStride;
  const int64_t tiles = ceil_div(size.queries, Tile::kOwned);
  const int64_t head = blockIdx.x / tiles, first = blockIdx.x % tiles * Tile::kOwned;
  const int64_t n = head / size.heads, h = head % size.heads;
  const Rows<const T> k_rows(k, size.k_stride, n, h), v_rows(v, size.v_stride, n, h);
  stage<Tile, Tile::kOwned>(Rows<const T>(q, size.q_stride, n, h), first, size.queries - first,
                            size.d, wide, q_tile);
  float sums[Tile::kRows][Tile::kSums] = {};
  float maximum[Tile::kRows], total[Tile::kRows];  // total: of this thread's own columns
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    maximum[i] = -INFINITY;
    total[i] = 0.0f;
  }
  for (int64_t start = 0; start < size.keys; start += Tile::kStreamed) {
    const int count = static_cast<int>(min(size.keys - start, int64_t{Tile::kStreamed}));
    __syncthreads();
    stage<Tile, Tile::kStreamed>(k_rows, start, count, size.d, wide, k_tile);
    stage<Tile, Tile::kStreamed>(v_rows, start, count, size.d, wide, v_tile);
    __syncthreads();
    float scores[Tile::kRows][Tile::kColumns];
    multiply<Tile>(own, k_tile, seat, scores);
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) {
        scores[i][j] = seat.streamed(j) < count ? scores[i][j] * factor : -INFINITY;
        largest = fmaxf(largest, scores[i][j]);
      }
      largest = row_maximum(largest);
      const float shift = finite_shift(largest), kept = exp2f(maximum[i] - shift);
      maximum[i] = largest;
      total[i] *= kept;
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) {
        const float weight = exp2f(scores[i][j] - shift);
        total[i] += weight;
        weights[i * Tile::kWeightStride + seat.streamed(j)] = weight;
      }
#pragma unroll
      for (int c = 0; c < Tile::kSums; ++c) sums[i][c] *= kept;
    }
    __syncwarp();
    add_weighted<Tile>(weights, v_tile, count, seat, sums);
  }
  const Rows<T> out_rows(out, size.queries, size, n, h);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const float whole = row_sum(total[i]);
    const int64_t row = first + seat.row + i;
    if (row >= size.queries) continue;
#pragma unroll
    for (int c = 0; c < Tile::kSums; ++c) sums[i][c] /= whole;
    store_row<Tile>(sums[i], 1.0f, size.d, wide, seat, out_rows.at(row));
    if (seat.across == 0) lse[head * size.queries + row] = (maximum[i] + log2f(whole)) * kLn2;
  }
}

}  // namespace

void launch_reduced_kv_attention_forward(const AttentionCudaForwardArgs& args,
                                         const CudaContext& context) {
  const AttentionSizes& size = args.size;
  const int64_t heads = size.n * size.heads;
  if (heads == 0 || size.queries == 0) return;
  const bool wide = is_wide(args.q, size.q_stride, size, size.queries) &&
                    is_wide(args.k, size.k_stride, size, size.keys) &&
                    is_wide(args.v, size.v_stride, size, size.keys) && is_wide(args.out, size);
  const DeviceGuard guard(context.device);
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    for_padded_dim(size.d, [&](auto dim) {
      using Tile = ForwardTile<dim()>;
      const auto kernel = reduced_kv_attention_forward_kernel<T, Tile>;
      allow_shared<kForwardFloats<Tile>>(kernel, "reduced_kv_attention_forward");
      launch("reduced_kv_attention_forward", kernel,
             dim3(grid_of(heads * ceil_div(size.queries, Tile::kOwned))), Tile::kThreads,
             kForwardFloats<Tile> * sizeof(float), static_cast<cudaStream_t>(context.stream),
             static_cast<const T*>(args.q), static_cast<const T*>(args.k),
             static_cast<const T*>(args.v), static_cast<T*>(args.out), args.lse, size,
             static_cast<float>(size.scale * kLog2E), wide);
    });
  });
}

}  // namespace clipweather
