// The second pass of sar_conv2d's backward for k = 3: grad_x from the gradient g of the
// pre-activation.
//
// The same walk as the forward pass, over g in the place of x and with the taps mirrored; but the
// maps belong to the neighbours, so a pixel's kernel is mixed tap by tap from maps that slide along
// with g.
#include "common/cuda_launch.h"
#include "sar_conv2d/sar_conv2d_tiles.h"

namespace clipweather {
namespace {

// grad_x gathers: sum over the nine neighbours q of (static + sum of map_n(q) kernel_n)[mirrored
// tap] times g(q). kResidual: the mixed kernels meet g + grad_residual, the static one g alone.
template <class T, int M, bool kResidual>
__global__ void __launch_bounds__(kThreads, M <= 2 && !kResidual ? 2 : 1)
    sar_conv2d_grad_x_kernel(const SarConv2dInputs in,
                             const T* __restrict__ g,              // (N, H, W, C) or null
                             const T* __restrict__ grad_residual,  // (N, H, W, C) or null
                             T* __restrict__ grad_x,               // (N, H, W, C)
                             const SarConv2dSizes size, const Tiling tiling, const bool folded) {
  constexpr int kHalo = kColumns + 2;
  __shared__ __align__(16) float banks[(M + 1) * kBankFloats];
  __shared__ __align__(16) float maps[(kMaxStrip + 2) * kHalo * kAtLeastOne<kMapStride<M>>];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t block = blockIdx.x;
  const int64_t first_channel = block % tiling.slabs * kSlab;
  const Tile tile = tile_at(block / tiling.slabs, tiling, size.h, kColumns);
  stage_banks<M>(in, size.c, first_channel, folded, banks);
  stage_maps<M>(static_cast<const T*>(in.logits), size, tile.n, tile.row - 1, tile.column - 1,
                tiling.strip_rows + 2, kHalo, folded, maps);
  __syncthreads();

  const int64_t channel = first_channel + kVector * lane;
  const int64_t w = tile.column + warp;
  const Column column(image_of(size), w, channel);
  if (!column.present) return;
  const int64_t row_stride = size.w * size.c;
  int64_t offset = offset_of(image_of(size), tile.n, tile.row, w, channel) - row_stride;
  const bool has_g = g != nullptr;
  const Taps<M, true> taps(banks, lane);
  Lanes<kVector> rows[3][3], residuals[3][3];
  float weights[3][3][kAtLeastOne<M>];

  Columns<T, kVector> next{}, next_residual{};
  const auto request = [&](bool exists) {
    next = column.load<kVector>(g + offset, exists && has_g);
    if constexpr (kResidual) next_residual = column.load<kVector>(grad_residual + offset, exists);
    offset += row_stride;
  };
  // Takes the row requested last into the window; the maps' tile begins one row above the strip.
  const auto arrive = [&](int row, int slot) {
    unpack_columns<T, kVector>(next, rows[slot]);
    if constexpr (kResidual) {
      unpack_columns<T, kVector>(next_residual, residuals[slot]);
#pragma unroll
      for (int j = 0; j < 3; ++j)
#pragma unroll
        for (int i = 0; i < kVector; ++i) residuals[slot][j].v[i] += rows[slot][j].v[i];
    }
#pragma unroll
    for (int j = 0; j < 3; ++j) load_maps<M>(maps, (row + 1) * kHalo + warp + j, weights[slot][j]);
  };
  request(tile.row > 0);
  arrive(-1, 0);
  request(true);
  arrive(0, 1);
  request(tile.readable > 1);

  for (int start = 0; start < tile.rows; start += 3) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const int row = start + j;
      if (row >= tile.rows) break;
      arrive(row + 1, (j + 2) % 3);
      request(row + 2 < tile.readable);
      if (row + 2 + kPrefetchRows < tile.readable) {
        if (has_g) prefetch_l2(g + offset + (kPrefetchRows - 1) * row_stride);
        if constexpr (kResidual)
          prefetch_l2(grad_residual + offset + (kPrefetchRows - 1) * row_stride);
      }
      Lanes<kVector> sum{};
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int slot = (j + 2 - t / 3) % 3, side = 2 - t % 3;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          if constexpr (kResidual) {
            float mixed = 0.0f;
#pragma unroll
            for (int n = 0; n < M; ++n)
              mixed = fmaf(weights[slot][side][n], taps(n + 1, t).v[i], mixed);
            sum.v[i] = fmaf(taps(0, t).v[i], rows[slot][side].v[i], sum.v[i]);
            sum.v[i] = fmaf(mixed, residuals[slot][side].v[i], sum.v[i]);
          } else {
            float kernel = taps(0, t).v[i];
#pragma unroll
            for (int n = 0; n < M; ++n)
              kernel = fmaf(weights[slot][side][n], taps(n + 1, t).v[i], kernel);
            sum.v[i] = fmaf(kernel, rows[slot][side].v[i], sum.v[i]);
          }
        }
      }
      store<kVector>(grad_x + (offset - 3 * row_stride), sum);
    }
  }
}

template <class T, int M, bool kResidual>
void launch_grad_x(const SarConv2dInputs& in, const T* g, const T* grad_residual, T* grad_x,
                   const SarConv2dSizes& size, bool folded, cudaStream_t stream) {
  const Tiling tiling = Tiling::of(image_of(size), kColumns, kSlab);
  const int64_t blocks = tiling.tiles(image_of(size)) * tiling.slabs;
  launch("sar_conv2d_grad_x", sar_conv2d_grad_x_kernel<T, M, kResidual>, dim3(grid_of(blocks)),
         kThreads, 0, stream, in, g, grad_residual, grad_x, size, tiling, folded);
}

}  // namespace

void launch_sar_conv2d_grad_x(const SarConv2dBackwardArgs& args, const void* g,
                              const CudaContext& context) {
  const SarConv2dSizes& size = args.size;
  const bool residual = args.grad_residual != nullptr;
  const SarConv2dPlan plan = plan_sar_conv2d(size, residual);
  const DeviceGuard guard(context.device);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const gradient = static_cast<const T*>(g);
    const T* const grad_residual = static_cast<const T*>(args.grad_residual);
    T* const grad_x = static_cast<T*>(args.grad_x);
    for_mixed(plan.mixed, [&](auto mixed) {
      constexpr int M = mixed();
      if (M > 0 && residual)
        launch_grad_x<T, M, (M > 0)>(args.in, gradient, grad_residual, grad_x, size, plan.folded,
                                     stream);
      else
        launch_grad_x<T, M, false>(args.in, gradient, nullptr, grad_x, size, plan.folded, stream);
    });
  });
}

void launch_depthwise_grad_x(const void* grad_y, const void* weight, void* grad_x,
                             const DepthwiseSizes& sizes, const CudaContext& context) {
  const DeviceGuard guard(context.device);
  SarConv2dInputs in{};
  in.static_weight = weight;
  const SarConv2dSizes size = depthwise_sizes(sizes);
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    launch_grad_x<T, 0, false>(in, static_cast<const T*>(grad_y), nullptr, static_cast<T*>(grad_x),
                               size, false, static_cast<cudaStream_t>(context.stream));
  });
}

}  // namespace clipweather
