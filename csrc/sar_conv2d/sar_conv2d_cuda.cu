// sar_conv2d for k = 3, up to four mixed kernels and an even number of channels.
//
// A warp owns 64 channels (two a lane: neighbouring lanes read neighbouring words, one 128-byte
// line for 16-bit types) of one column of pixels and slides down a strip of rows. Of each row it
// loads three pixels, keeps three rows in registers, and holds all taps of its channels in
// registers for the whole strip; a block is several neighbouring columns, so a pixel's three
// readers share the L1 line. The gates are computed once a pixel into shared memory. Nothing is
// exchanged between lanes in the forward pass.
//
// Sixteen-bit types are bound by instruction issue on data-centre GPUs (27 FMA, the erf and the
// conversions against 4 bytes), fp32 by memory; hence the folding of sar_conv2d_cuda.h, and no
// shared memory for x: it would cost a barrier and two more instructions per value.
//
// Backward is two passes over the image (reads x and grad_y, writes the gradient g of the
// pre-activation; sar_conv2d_grad_x_cuda.cu reads g, writes grad_x) and a small third one that adds
// partial sums in fixed order (sar_conv2d_finish_cuda.cu). The grid depends on the sizes alone, so
// results repeat bit for bit.
#include "common/cuda_launch.h"
#include "sar_conv2d/sar_conv2d_tiles.h"

namespace clipweather {
namespace {

// The backward pass keeps a sum for every tap as well, so its blocks are smaller.
constexpr int kSumColumns = 4;
constexpr int kSumThreads = kSumColumns * kWarpSize;
// Rows whose dot products wait in shared memory to be summed over the lanes; a multiple of three.
constexpr int kDotRows = 6;
// 32 and four more: sixteen-byte reads at this stride by neighbouring lanes meet different banks.
constexpr int kDotStride = kWarpSize + 4;
// Taps of more kernels leave no registers for as many sums and stay in shared memory. The
// compiler's schedule for newer architectures needs a few registers more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <class T>
constexpr int kMaxRegisterTaps = 2;
#else
template <class T>
constexpr int kMaxRegisterTaps = sizeof(T) == 2 ? 3 : 2;
#endif

template <int M, class SomeTaps>
__device__ __forceinline__ void convolve(const Lanes<kVector> (&rows)[3][3], int top,
                                         const SomeTaps& taps, Lanes<kVector> (&sums)[M + 1]) {
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    const Lanes<kVector>& x = rows[(top + t / 3) % 3][t % 3];
#pragma unroll
    for (int n = 0; n <= M; ++n) {
      const Lanes<kVector> tap = taps(n, t);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[n].v[i] = fmaf(tap.v[i], x.v[i], sums[n].v[i]);
    }
  }
}

// sums[0] + sum of weights times the others; the mixed part alone goes to `mixed`.
template <int M>
__device__ __forceinline__ Lanes<kVector> mix(const Lanes<kVector> (&sums)[M + 1],
                                              const float (&weights)[kAtLeastOne<M>],
                                              Lanes<kVector>& mixed) {
  Lanes<kVector> total;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    mixed.v[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < M; ++n) mixed.v[i] = fmaf(weights[n], sums[n + 1].v[i], mixed.v[i]);
    total.v[i] = sums[0].v[i] + mixed.v[i];
  }
  return total;
}

template <class T, int M>
__global__ void __launch_bounds__(kThreads, M <= 2 || (M == 3 && sizeof(T) == 2) ? 2 : 1)
    sar_conv2d_forward_kernel(const SarConv2dInputs in,
                              T* __restrict__ y,         // (N, H, W, C)
                              T* __restrict__ residual,  // (N, H, W, C) or null
                              const SarConv2dSizes size, const Tiling tiling, const bool folded) {
  __shared__ __align__(16) float banks[(M + 1) * kBankFloats];
  __shared__ __align__(16) float maps[kMaxStrip * kColumns * kAtLeastOne<kMapStride<M>>];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t block = blockIdx.x;
  const int64_t first_channel = block % tiling.slabs * kSlab;
  const Tile tile = tile_at(block / tiling.slabs, tiling, size.h, kColumns);
  stage_banks<M>(in, size.c, first_channel, folded, banks);
  stage_maps<M>(static_cast<const T*>(in.logits), size, tile.n, tile.row, tile.column,
                tiling.strip_rows, kColumns, folded, maps);
  __syncthreads();

  const int64_t channel = first_channel + kVector * lane;
  const int64_t w = tile.column + warp;
  const Column column(image_of(size), w, channel);
  if (!column.present) return;
  const int64_t row_stride = size.w * size.c;
  int64_t offset = offset_of(image_of(size), tile.n, tile.row, w, channel);
  const T* x = static_cast<const T*>(in.x) + offset;

  const Taps<M, true> taps(banks, lane);
  Lanes<kVector> bias[M + 1], rows[3][3];
#pragma unroll
  for (int n = 0; n <= M; ++n)
    bias[n] = load_shared<kVector>(banks + n * kBankFloats + kTaps * kBankRow + kVector * lane);
  unpack_columns<T, kVector>(column.load<kVector>(x - row_stride, tile.row > 0), rows[0]);
  unpack_columns<T, kVector>(column.load<kVector>(x, true), rows[1]);
  x += row_stride;
  Columns<T, kVector> next = column.load<kVector>(x, tile.readable > 1);

  for (int start = 0; start < tile.rows; start += 3) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int row = start + j;
      if (row >= tile.rows) break;
      unpack_columns<T, kVector>(next, rows[(j + 2) % 3]);
      x += row_stride;
      next = column.load<kVector>(x, row + 2 < tile.readable);
      if (row + 2 + kPrefetchRows < tile.readable) prefetch_l2(x + kPrefetchRows * row_stride);
      float weights[kAtLeastOne<M>];
      load_maps<M>(maps, row * kColumns + warp, weights);
      Lanes<kVector> sums[M + 1], mixed;
#pragma unroll
      for (int n = 0; n <= M; ++n) sums[n] = bias[n];
      convolve<M>(rows, j, taps, sums);
      Lanes<kVector> result = mix<M>(sums, weights, mixed);
      if (size.activation == Activation::kGelu)
#pragma unroll
        for (int i = 0; i < kVector; ++i) result.v[i] = gelu(result.v[i]);
      store<kVector>(y + offset, result);
      if (residual != nullptr) store<kVector>(residual + offset, mixed);
      offset += row_stride;
    }
  }
}

// Sums over the lanes the products that `kDotRows` rows left, each pair (row, map) by one lane.
template <int M>
__device__ __forceinline__ void write_dots(const float* buffer, int lane, int rows,
                                           int64_t first_pixel, int64_t width, float* dots) {
  __syncwarp();
  const int row = lane / kAtLeastOne<M>, n = lane % kAtLeastOne<M>;
  if (row < rows) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarpSize; i += 4) {
      const Lanes<4> part = load_shared<4>(buffer + lane * kDotStride + i);
      sum += (part.v[0] + part.v[1]) + (part.v[2] + part.v[3]);
    }
    dots[(first_pixel + row * width) * M + n] = sum;
  }
  __syncwarp();
}

// One block owns a slab of channels and every `blocks`-th tile: it recomputes the pre-activation,
// writes its gradient g, the slab's share of the gradients of the maps, and at the end one partial
// sum of every parameter's gradient. Few warps fit, but each has plenty of independent sums to
// issue; what they must not do is wait for memory, hence grad_y a row ahead in registers and
// further rows asked into L2.
template <class T, int M>
__global__ void __launch_bounds__(kSumThreads, M == 0 ? 3 : 2)
    sar_conv2d_backward_parameters_kernel(
        const SarConv2dInputs in,
        const T* __restrict__ grad_y,         // (N, H, W, C) or null
        const T* __restrict__ grad_residual,  // (N, H, W, C) or null
        T* __restrict__ g,                    // (N, H, W, C) or null
        float* __restrict__ dots,             // (slabs, N, H, W, M)
        float* __restrict__ partials,         // (blocks, M + 1, 10, C)
        const SarConv2dSizes size, const Tiling tiling, const int64_t tiles, const bool folded) {
  __shared__ __align__(16) float banks[(M + 1) * kBankFloats];
  __shared__ __align__(16) float maps[kMaxStrip * kSumColumns * kAtLeastOne<kMapStride<M>>];
  __shared__ __align__(16) float products[kSumColumns][kDotRows * kAtLeastOne<M> * kDotStride];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t slab = blockIdx.x % tiling.slabs;
  const int64_t part = blockIdx.x / tiling.slabs, parts = gridDim.x / tiling.slabs;
  const int64_t channel = slab * kSlab + kVector * lane, row_stride = size.w * size.c;
  stage_banks<M>(in, size.c, slab * kSlab, folded, banks);
  __syncthreads();

  Lanes<kVector> sums[M + 1][kBankRows];
  const Taps<M, (M <= kMaxRegisterTaps<T>)> taps(banks, lane);
#pragma unroll
  for (int n = 0; n <= M; ++n)
#pragma unroll
    for (int t = 0; t < kBankRows; ++t) sums[n][t] = Lanes<kVector>{};

  for (int64_t index = part; index < tiles; index += parts) {
    const Tile tile = tile_at(index, tiling, size.h, kSumColumns);
    __syncthreads();
    stage_maps<M>(static_cast<const T*>(in.logits), size, tile.n, tile.row, tile.column,
                  tiling.strip_rows, kSumColumns, folded, maps);
    __syncthreads();
    const int64_t w = tile.column + warp;
    if (w >= size.w) continue;
    const Column column(image_of(size), w, channel);
    int64_t offset = offset_of(image_of(size), tile.n, tile.row, w, channel);
    const T* x = static_cast<const T*>(in.x) + offset;
    const bool has_dy = column.present && grad_y != nullptr;
    const bool has_dr = column.present && grad_residual != nullptr;
    Lanes<kVector> rows[3][3];
    unpack_columns<T, kVector>(column.load<kVector>(x - row_stride, tile.row > 0), rows[0]);
    unpack_columns<T, kVector>(column.load<kVector>(x, true), rows[1]);
    x += row_stride;
    Columns<T, kVector> next = column.load<kVector>(x, tile.readable > 1);

    auto next_dy = load_packed<T, kVector>(grad_y + offset, has_dy);

    for (int start = 0; start < tile.rows; start += 3) {
      float* const waiting = products[warp] + start % kDotRows * M * kDotStride + lane;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const int row = start + j;
        if (row >= tile.rows) break;
        unpack_columns<T, kVector>(next, rows[(j + 2) % 3]);
        Lanes<kVector> dz = unpack<kVector, T>(next_dy);
        const auto dr = load_packed<T, kVector>(grad_residual + offset, has_dr);
        x += row_stride;
        next = column.load<kVector>(x, row + 2 < tile.readable);
        next_dy =
            load_packed<T, kVector>(grad_y + offset + row_stride, has_dy && row + 1 < tile.rows);
        if (column.present && row + 2 + kPrefetchRows < tile.readable) {
          prefetch_l2(x + kPrefetchRows * row_stride);
          if (has_dy) prefetch_l2(grad_y + offset + (1 + kPrefetchRows) * row_stride);
          if (has_dr) prefetch_l2(grad_residual + offset + (1 + kPrefetchRows) * row_stride);
        }
        float weights[kAtLeastOne<M>];
        load_maps<M>(maps, row * kSumColumns + warp, weights);
        Lanes<kVector> values[M + 1], mixed;
#pragma unroll
        for (int n = 0; n <= M; ++n)
          values[n] =
              load_shared<kVector>(banks + n * kBankFloats + kTaps * kBankRow + kVector * lane);
        convolve<M>(rows, j, taps, values);
        const Lanes<kVector> z = mix<M>(values, weights, mixed);
        if (size.activation == Activation::kGelu) {
#pragma unroll
          for (int i = 0; i < kVector; ++i) dz.v[i] *= gelu_gradient(z.v[i]);
          if (g != nullptr && column.present) store<kVector>(g + offset, dz);
        }
        offset += row_stride;
        Lanes<kVector> mixed_gradient = unpack<kVector, T>(dr);
#pragma unroll
        for (int i = 0; i < kVector; ++i) mixed_gradient.v[i] += dz.v[i];
#pragma unroll
        for (int n = 0; n <= M; ++n) {
          Lanes<kVector> scaled = dz;
          if (n > 0) {
#pragma unroll
            for (int i = 0; i < kVector; ++i) scaled.v[i] = weights[n - 1] * mixed_gradient.v[i];
            waiting[(j * M + n - 1) * kDotStride] =
                mixed_gradient.v[0] * values[n].v[0] + mixed_gradient.v[1] * values[n].v[1];
          }
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
#pragma unroll
            for (int t = 0; t < kTaps; ++t)
              sums[n][t].v[i] =
                  fmaf(scaled.v[i], rows[(j + t / 3) % 3][t % 3].v[i], sums[n][t].v[i]);
            sums[n][kTaps].v[i] += scaled.v[i];
          }
        }
      }
      if constexpr (M > 0) {
        const int done = min(start + 3, tile.rows), from = start - start % kDotRows;
        if (done == tile.rows || done - from == kDotRows)
          write_dots<M>(products[warp], lane, done - from,
                        (tile.n * size.h + tile.row + from) * size.w + w, size.w,
                        dots + slab * size.n * size.h * size.w * M);
      }
    }
  }

  for (int turn = 0; turn < kSumColumns; ++turn) {
    __syncthreads();
    if (warp != turn) continue;
#pragma unroll
    for (int n = 0; n <= M; ++n)
#pragma unroll
      for (int t = 0; t < kBankRows; ++t)
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          float* const sum = banks + n * kBankFloats + t * kBankRow + kVector * lane + i;
          *sum = turn == 0 ? sums[n][t].v[i] : *sum + sums[n][t].v[i];
        }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < (M + 1) * kBankRows * kSlab; i += kSumThreads) {
    const int row = i / kSlab, offset = i % kSlab;
    if (slab * kSlab + offset < size.c)
      partials[(part * (M + 1) * kBankRows + row) * size.c + slab * kSlab + offset] =
          banks[row * kBankRow + offset];
  }
}

bool is_empty(const SarConv2dSizes& size) {
  return size.n == 0 || size.c == 0 || size.h == 0 || size.w == 0;
}

}  // namespace

void launch_sar_conv2d_forward(const SarConv2dForwardArgs& args, const CudaContext& context) {
  const SarConv2dSizes& size = args.size;
  if (is_empty(size)) return;
  const SarConv2dPlan plan = plan_sar_conv2d(size, args.residual != nullptr);
  if (!plan.fast) return launch_sar_conv2d_forward_any(args, context);
  const DeviceGuard guard(context.device);
  const Tiling tiling = Tiling::of(image_of(size), kColumns, kSlab);
  const unsigned grid = grid_of(tiling.tiles(image_of(size)) * tiling.slabs);
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    for_mixed(plan.mixed, [&](auto mixed) {
      launch("sar_conv2d_forward", sar_conv2d_forward_kernel<T, mixed()>, dim3(grid), kThreads, 0,
             static_cast<cudaStream_t>(context.stream), args.in, static_cast<T*>(args.y),
             static_cast<T*>(args.residual), size, tiling, plan.folded);
    });
  });
}

void launch_sar_conv2d_backward(const SarConv2dBackwardCudaArgs& args, const CudaContext& context) {
  if (is_empty(args.base.size)) return;
  const bool residual = args.base.grad_residual != nullptr;
  if (plan_sar_conv2d(args.base.size, residual).fast)
    launch_sar_conv2d_backward_fast(args, context);
  else
    launch_sar_conv2d_backward_any(args, context);
  launch_sar_conv2d_finish(args, context);
}

void launch_sar_conv2d_backward_fast(const SarConv2dBackwardCudaArgs& args,
                                     const CudaContext& context) {
  const SarConv2dBackwardArgs& base = args.base;
  const SarConv2dSizes& size = base.size;
  const bool residual = base.grad_residual != nullptr;
  const SarConv2dPlan plan = plan_sar_conv2d(size, residual);
  const SarConv2dWorkspace layout = sar_conv2d_workspace(size, residual);
  const DeviceGuard guard(context.device);
  char* const workspace = static_cast<char*>(context.workspace);
  const Tiling tiling = Tiling::of(image_of(size), kSumColumns, kSlab);
  const int64_t tiles = tiling.tiles(image_of(size));
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    // Without an activation the gradient of the pre-activation is grad_y itself.
    const bool keeps_g = size.activation != Activation::kNone && base.grad_y != nullptr;
    T* const g = keeps_g ? reinterpret_cast<T*>(workspace + layout.gradient) : nullptr;
    const T* const grad_y = static_cast<const T*>(base.grad_y);
    const T* const grad_residual = static_cast<const T*>(base.grad_residual);
    for_mixed(plan.mixed, [&](auto mixed) {
      launch("sar_conv2d_backward_parameters", sar_conv2d_backward_parameters_kernel<T, mixed()>,
             dim3(grid_of(layout.blocks * layout.slabs)), kSumThreads, 0,
             static_cast<cudaStream_t>(context.stream), base.in, grad_y, grad_residual, g,
             reinterpret_cast<float*>(workspace + layout.dots),
             reinterpret_cast<float*>(workspace + layout.partials), size, tiling, tiles,
             plan.folded);
    });
    launch_sar_conv2d_grad_x(base, keeps_g ? g : grad_y, context);
  });
}

}  // namespace clipweather
