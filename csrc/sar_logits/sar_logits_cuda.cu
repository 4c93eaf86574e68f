// sar_logits: the K maps of every pixel from all its channels, without the C-wide middle ever in
// memory.
//
// Forward: a warp owns a slab of channels of one column and slides down a strip of rows, as in
// sar_conv2d; the K products of each lane wait three rows in shared memory, where a few lanes add
// them up (two shared accesses a value, against five shuffles). A block holds all channels of its
// columns, so the slabs' sums meet in shared memory and no second kernel is needed.
//
// Backward: one pass recomputes the middle, writes the gradient g of the depthwise output and one
// partial sum of each parameter's gradient per block; then sar_conv2d's gather turns g into grad_x,
// and a last kernel adds the partial sums in fixed order. The grids depend on the sizes alone.
#include "common/cuda_launch.h"
#include "common/cuda_rows.h"
#include "common/elementwise.h"
#include "sar_conv2d/sar_conv2d_cuda.h"
#include "sar_logits/sar_logits_cuda.h"

namespace clipweather {
namespace {

constexpr int kMaxMaps = 8;
// V channels a lane, up to kMaps maps. Four channels are one 8- or 16-byte load, and share the cost
// of addresses and of the sum over lanes; one channel a lane serves every C and K.
struct Wide {
  static constexpr int kVector = 4, kMaps = 4, kWarps = 12;
};
struct Narrow {
  static constexpr int kVector = 1, kMaps = kMaxMaps, kWarps = 8;
};
// The backward pass keeps a sum for every parameter: two channels a lane fit.
struct WideSums {
  static constexpr int kVector = 2, kMaps = 4;
};
struct NarrowSums {
  static constexpr int kVector = 1, kMaps = kMaxMaps;
};

constexpr int kRows = 3;
// 32 and four more: sixteen-byte reads at this stride by neighbouring lanes meet different banks.
constexpr int kProductStride = kWarpSize + 4;
constexpr int kSumColumns = 4;
constexpr int kSumThreads = kSumColumns * kWarpSize;
// Blocks of the summing pass: about two rounds on the largest GPUs of today; a constant, so that
// sums are grouped alike on every GPU.
constexpr int64_t kSumBlocks = 1056;
constexpr int64_t kPixelsPerPart = 24;

inline __host__ __device__ ImageSizes image_of(const SarLogitsCudaSizes& size) {
  return {size.n, size.c, size.h, size.w};
}

// One slab's parameters in a lane's registers; absent channels and maps are 0.
template <int V, int kMaps>
struct Parameters {
  Lanes<V> taps[kTaps], bias, maps[kMaps];

  __device__ __forceinline__ Parameters(const SarLogitsCudaInputs& in,
                                        const SarLogitsCudaSizes& size, int64_t channel) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool present = channel + i < size.c;
#pragma unroll
      for (int t = 0; t < kTaps; ++t)
        taps[t].v[i] = present ? in.depthwise_weight[(channel + i) * kTaps + t] : 0.0f;
      bias.v[i] = present ? in.depthwise_bias[channel + i] : 0.0f;
#pragma unroll
      for (int k = 0; k < kMaps; ++k)
        maps[k].v[i] =
            present && k < size.kernels ? in.pointwise_weight[k * size.c + channel + i] : 0.0f;
    }
  }

  __device__ __forceinline__ Lanes<V> convolve(const Lanes<V> (&rows)[3][3], int top) const {
    Lanes<V> sum = bias;
#pragma unroll
    for (int t = 0; t < kTaps; ++t)
#pragma unroll
      for (int i = 0; i < V; ++i)
        sum.v[i] = fmaf(taps[t].v[i], rows[(top + t / 3) % 3][t % 3].v[i], sum.v[i]);
    return sum;
  }
};

// How the warps of a forward block share columns and slabs.
struct Sharing {
  int slab_warps, columns;  // their product is the number of warps
};

// products (kRows * kMaps, kProductStride): adds the rows' sums over the lanes to totals (strip,
// kMaps). Two lanes a pair (row, map), half the lanes' products each.
template <int kMaps>
__device__ __forceinline__ void add_products(const float* products, int lane, int rows,
                                             float* totals) {
  constexpr int kPairs = kRows * kMaps, kAtOnce = kWarpSize / 2;
  __syncwarp();
#pragma unroll
  for (int first = 0; first < kPairs; first += kAtOnce) {
    const int pair = first + lane / 2;
    float sum = 0.0f;
    if (pair < rows * kMaps) {
#pragma unroll
      for (int i = 0; i < kWarpSize / 2; i += 4) {
        const Lanes<4> part =
            load_shared<4>(products + pair * kProductStride + lane % 2 * kWarpSize / 2 + i);
        sum += (part.v[0] + part.v[1]) + (part.v[2] + part.v[3]);
      }
    }
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    if (lane % 2 == 0 && pair < rows * kMaps) totals[pair] += sum;
  }
  __syncwarp();
}

template <class T, class Form>
__global__ void __launch_bounds__(Form::kWarps* kWarpSize, 1)
    sar_logits_forward_kernel(const SarLogitsCudaInputs in,
                              T* __restrict__ logits,  // (N, K, H, W), any strides
                              const SarLogitsCudaSizes size, const Tiling tiling,
                              const Sharing sharing) {
  constexpr int V = Form::kVector, kMaps = Form::kMaps, kSlab = V * kWarpSize;
  __shared__ __align__(16) float products[Form::kWarps][kRows * kMaps * kProductStride];
  __shared__ float totals[Form::kWarps][kMaxStrip * kMaps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  __shared__ Tile tile;  // its twelve words are needed at the ends only: not worth registers
  if (threadIdx.x == 0) tile = tile_at(blockIdx.x, tiling, size.h, sharing.columns);
  for (int i = lane; i < kMaxStrip * kMaps; i += kWarpSize) totals[warp][i] = 0.0f;
  __syncthreads();
  const int strip_rows = tile.rows, readable = tile.readable;
  const int64_t row_stride = size.w * size.c;
  for (int slab = warp % sharing.slab_warps; slab < tiling.slabs; slab += sharing.slab_warps) {
    const int64_t w = tile.column + warp / sharing.slab_warps;
    if (w >= size.w) break;
    const int64_t channel = int64_t{slab} * kSlab + V * lane;
    const Parameters<V, kMaps> parameters(in, size, channel);
    const Column column(image_of(size), w, channel);
    const T* x =
        static_cast<const T*>(in.x) + offset_of(image_of(size), tile.n, tile.row, w, channel);
    Lanes<V> rows[3][3];
    unpack_columns<T, V>(column.load<V>(x - row_stride, tile.row > 0), rows[0]);
    unpack_columns<T, V>(column.load<V>(x, true), rows[1]);
    x += row_stride;
    Columns<T, V> next = column.load<V>(x, readable > 1);
    for (int start = 0; start < strip_rows; start += kRows) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int row = start + j;
        if (row >= strip_rows) break;
        unpack_columns<T, V>(next, rows[(j + 2) % 3]);
        x += row_stride;
        next = column.load<V>(x, row + 2 < readable);
        if (column.present && row + 2 + kPrefetchRows < readable)
          prefetch_l2(x + kPrefetchRows * row_stride);
        Lanes<V> hidden = parameters.convolve(rows, j);
#pragma unroll
        for (int i = 0; i < V; ++i) hidden.v[i] = gelu(hidden.v[i]);
#pragma unroll
        for (int k = 0; k < kMaps; ++k) {
          float product = 0.0f;
#pragma unroll
          for (int i = 0; i < V; ++i) product = fmaf(hidden.v[i], parameters.maps[k].v[i], product);
          products[warp][(j * kMaps + k) * kProductStride + lane] = product;
        }
      }
      add_products<kMaps>(products[warp], lane, min(strip_rows - start, kRows),
                          totals[warp] + start * kMaps);
    }
  }
  __syncthreads();
  const int count = sharing.columns * tile.rows * size.kernels;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += blockDim.x) {
    const int k = i % size.kernels, row = i / size.kernels % tile.rows;
    const int at = i / size.kernels / tile.rows;
    if (tile.column + at >= size.w) continue;
    float sum = in.pointwise_bias[k];
    for (int s = 0; s < sharing.slab_warps; ++s)
      sum += totals[at * sharing.slab_warps + s][row * kMaps + k];
    store_one(logits + tile.n * size.logits_stride[0] + k * size.logits_stride[1] +
                  (tile.row + row) * size.logits_stride[2] +
                  (tile.column + at) * size.logits_stride[3],
              sum);
  }
}

// One block owns a slab of channels and every `parts`-th tile. G is what g is kept in.
template <class T, class Form, class G>
__global__ void __launch_bounds__(kSumThreads, 2) sar_logits_backward_parameters_kernel(
    const SarLogitsCudaInputs in,
    const T* __restrict__ grad_logits,  // (N, K, H, W), strided
    G* __restrict__ g,                  // (N, H, W, C)
    float* __restrict__ partials,       // (parts, 10 + K, C)
    float* __restrict__ bias_partials,  // (parts, kMaxMaps)
    const SarLogitsCudaSizes size, const Tiling tiling, const int64_t tiles) {
  constexpr int V = Form::kVector, kMaps = Form::kMaps, kSlab = V * kWarpSize;
  constexpr int kSums = kTaps + 1 + kMaps;
  __shared__ __align__(16) float gradients[kMaxStrip * kSumColumns * kMaps];
  __shared__ __align__(16) float shared_sums[kSums * kSlab];
  __shared__ float bias_sums[kSumThreads];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t slab = blockIdx.x % tiling.slabs;
  const int64_t part = blockIdx.x / tiling.slabs, parts = gridDim.x / tiling.slabs;
  const int64_t channel = slab * kSlab + V * lane, row_stride = size.w * size.c;
  const Parameters<V, kMaps> parameters(in, size, channel);
  Lanes<V> sums[kSums];
#pragma unroll
  for (int n = 0; n < kSums; ++n) sums[n] = Lanes<V>{};
  // A thread stages gradients of one map only, since kSumThreads is a multiple of kMaps.
  float bias_sum = 0.0f;

  for (int64_t index = part; index < tiles; index += parts) {
    const Tile tile = tile_at(index, tiling, size.h, kSumColumns);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tile.rows * kSumColumns * kMaps;
         i += kSumThreads) {
      const int k = i % kMaps, column = i / kMaps % kSumColumns, row = i / kMaps / kSumColumns;
      const bool present = k < size.kernels && tile.column + column < size.w;
      gradients[i] =
          present ? load_one(grad_logits + tile.n * size.logits_stride[0] +
                             k * size.logits_stride[1] + (tile.row + row) * size.logits_stride[2] +
                             (tile.column + column) * size.logits_stride[3])
                  : 0.0f;
      bias_sum += gradients[i];
    }
    __syncthreads();
    const int64_t w = tile.column + warp;
    if (w >= size.w) continue;
    const Column column(image_of(size), w, channel);
    int64_t offset = offset_of(image_of(size), tile.n, tile.row, w, channel);
    const T* x = static_cast<const T*>(in.x) + offset;
    Lanes<V> rows[3][3];
    unpack_columns<T, V>(column.load<V>(x - row_stride, tile.row > 0), rows[0]);
    unpack_columns<T, V>(column.load<V>(x, true), rows[1]);
    x += row_stride;
    Columns<T, V> next = column.load<V>(x, tile.readable > 1);
    for (int start = 0; start < tile.rows; start += kRows) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int row = start + j;
        if (row >= tile.rows) break;
        unpack_columns<T, V>(next, rows[(j + 2) % 3]);
        x += row_stride;
        next = column.load<V>(x, row + 2 < tile.readable);
        if (column.present && row + 2 + kPrefetchRows < tile.readable)
          prefetch_l2(x + kPrefetchRows * row_stride);
        const Lanes<V> z = parameters.convolve(rows, j);
        const float* const grad = gradients + (row * kSumColumns + warp) * kMaps;
        Lanes<V> dz{};
#pragma unroll
        for (int i = 0; i < V; ++i) {
          float slope;
          const float hidden = gelu_and_gradient(z.v[i], slope);
#pragma unroll
          for (int k = 0; k < kMaps; ++k) {
            dz.v[i] = fmaf(grad[k], parameters.maps[k].v[i], dz.v[i]);
            sums[kTaps + 1 + k].v[i] = fmaf(grad[k], hidden, sums[kTaps + 1 + k].v[i]);
          }
          dz.v[i] *= slope;
          sums[kTaps].v[i] += dz.v[i];
#pragma unroll
          for (int t = 0; t < kTaps; ++t)
            sums[t].v[i] = fmaf(dz.v[i], rows[(j + t / 3) % 3][t % 3].v[i], sums[t].v[i]);
        }
        if (column.present) store<V>(g + offset, dz);
        offset += row_stride;
      }
    }
  }

  bias_sums[threadIdx.x] = bias_sum;
  for (int turn = 0; turn < kSumColumns; ++turn) {
    __syncthreads();
    if (warp != turn) continue;
#pragma unroll
    for (int n = 0; n < kSums; ++n)
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float* const sum = shared_sums + n * kSlab + V * lane + i;
        *sum = turn == 0 ? sums[n].v[i] : *sum + sums[n].v[i];
      }
  }
  __syncthreads();
  const int rows = kTaps + 1 + size.kernels;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kSlab; i += kSumThreads) {
    const int64_t c = slab * kSlab + i % kSlab;
    if (c < size.c) partials[(part * rows + i / kSlab) * size.c + c] = shared_sums[i];
  }
  if (slab == 0 && threadIdx.x < kMaps) {
    float sum = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < kSumThreads; i += kMaps) sum += bias_sums[i];
    bias_partials[part * kMaxMaps + threadIdx.x] = sum;
  }
}

// A block: one row of the partial sums for 32 channels; the last block: the pointwise bias.
__global__ void __launch_bounds__(kReduceThreads)
    sar_logits_finish_kernel(const float* __restrict__ partials,       // (parts, 10 + K, C)
                             const float* __restrict__ bias_partials,  // (parts, kMaxMaps)
                             const SarLogitsCudaGradients out, const int64_t parts, const int64_t c,
                             const int kernels) {
  __shared__ float scratch[kReduceThreads];
  const int rows = kTaps + 1 + kernels;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const bool writes = threadIdx.x < kWarpSize;
  if (blockIdx.x + 1 == gridDim.x) {
    const float sum = sum_partials(bias_partials, parts, 1, kMaxMaps, 0, lane, scratch);
    if (writes && lane < kernels) out.pointwise_bias[lane] = sum;
    return;
  }
  const int row = static_cast<int>(blockIdx.x % rows);
  const int64_t channel = int64_t{blockIdx.x / rows} * kWarpSize + lane;
  const float sum = sum_partials(partials, parts, rows, c, row, channel, scratch);
  if (!writes || channel >= c) return;
  if (row < kTaps)
    out.depthwise_weight[channel * kTaps + row] = sum;
  else if (row == kTaps)
    out.depthwise_bias[channel] = sum;
  else
    out.pointwise_weight[(row - kTaps - 1) * c + channel] = sum;
}

// The forms of both passes, and what the workspace holds.
struct Plan {
  bool wide, wide_sums;
  int64_t parts;
  std::size_t partials, bias_partials, bytes;  // where they begin after g, and the end
};

Plan plan_of(const SarLogitsCudaSizes& size) {
  Plan plan{};
  plan.wide = size.c % Wide::kVector == 0 && size.kernels <= Wide::kMaps;
  plan.wide_sums = size.c % WideSums::kVector == 0 && size.kernels <= WideSums::kMaps;
  const int64_t vector = plan.wide_sums ? WideSums::kVector : NarrowSums::kVector;
  const int64_t slabs = std::max<int64_t>(1, ceil_div(size.c, vector * kWarpSize));
  const int64_t pixels = size.n * size.h * size.w;
  plan.parts = std::min(std::max<int64_t>(1, pixels / kPixelsPerPart),
                        std::max<int64_t>(1, kSumBlocks / slabs));
  const auto aligned = [](int64_t bytes) {
    return static_cast<std::size_t>((bytes + 255) / 256 * 256);
  };
  const int64_t g_bytes = plan.wide_sums && size.dtype != DType::kFloat32 ? 2 : 4;
  plan.partials = aligned(pixels * size.c * g_bytes);
  plan.bias_partials =
      plan.partials + aligned(plan.parts * (kTaps + 1 + size.kernels) * size.c * 4);
  plan.bytes = plan.bias_partials + aligned(plan.parts * kMaxMaps * 4);
  return plan;
}

template <class T, class Form>
void launch_forward(const SarLogitsCudaInputs& in, void* logits, const SarLogitsCudaSizes& size,
                    cudaStream_t stream) {
  constexpr int kSlab = Form::kVector * kWarpSize;
  const int64_t slabs = ceil_div(size.c, kSlab);
  Sharing sharing{};
  // As many warps along the channels as divide the slabs into equal rounds, the rest along the
  // columns.
  sharing.slab_warps = static_cast<int>(ceil_div(slabs, ceil_div(slabs, Form::kWarps)));
  sharing.columns = std::max(1, Form::kWarps / sharing.slab_warps);
  Tiling tiling = Tiling::of(image_of(size), sharing.columns, kSlab * static_cast<int>(slabs));
  const int64_t blocks = tiling.tiles(image_of(size));
  tiling.slabs = slabs;
  launch("sar_logits_forward", sar_logits_forward_kernel<T, Form>, dim3(grid_of(blocks)),
         static_cast<unsigned>(sharing.slab_warps * sharing.columns * kWarpSize), 0, stream, in,
         static_cast<T*>(logits), size, tiling, sharing);
}

template <class T, class Form, class G>
void launch_parameters(const SarLogitsCudaInputs& in, const void* grad_logits, char* workspace,
                       const Plan& plan, const SarLogitsCudaSizes& size, cudaStream_t stream) {
  const Tiling tiling = Tiling::of(image_of(size), kSumColumns, Form::kVector * kWarpSize);
  launch("sar_logits_backward_parameters", sar_logits_backward_parameters_kernel<T, Form, G>,
         dim3(grid_of(plan.parts * tiling.slabs)), kSumThreads, 0, stream, in,
         static_cast<const T*>(grad_logits), reinterpret_cast<G*>(workspace),
         reinterpret_cast<float*>(workspace + plan.partials),
         reinterpret_cast<float*>(workspace + plan.bias_partials), size, tiling,
         tiling.tiles(image_of(size)));
}

bool is_empty(const SarLogitsCudaSizes& size) {
  return size.n == 0 || size.c == 0 || size.h == 0 || size.w == 0;
}

}  // namespace

std::size_t sar_logits_workspace_bytes(const SarLogitsCudaSizes& size) {
  return plan_of(size).bytes;
}

void launch_sar_logits_forward(const SarLogitsCudaInputs& in, void* logits,
                               const SarLogitsCudaSizes& size, const CudaContext& context) {
  if (is_empty(size)) return;
  const DeviceGuard guard(context.device);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    if (plan_of(size).wide)
      launch_forward<T, Wide>(in, logits, size, stream);
    else
      launch_forward<T, Narrow>(in, logits, size, stream);
  });
}

void launch_sar_logits_backward(const SarLogitsCudaInputs& in, const void* grad_logits,
                                const SarLogitsCudaGradients& out, const SarLogitsCudaSizes& size,
                                const CudaContext& context) {
  if (is_empty(size)) return;
  const DeviceGuard guard(context.device);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Plan plan = plan_of(size);
  char* const workspace = static_cast<char*>(context.workspace);
  const DepthwiseSizes depthwise{size.n, size.c, size.h, size.w, size.dtype};
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    if (plan.wide_sums)
      launch_parameters<T, WideSums, T>(in, grad_logits, workspace, plan, size, stream);
    else
      launch_parameters<T, NarrowSums, float>(in, grad_logits, workspace, plan, size, stream);
  });
  if (plan.wide_sums)
    launch_depthwise_grad_x(workspace, in.depthwise_weight, out.x, depthwise, context);
  else
    launch_depthwise_grad_x_any(reinterpret_cast<const float*>(workspace), in.depthwise_weight,
                                out.x, depthwise, context);
  const int64_t blocks = ceil_div(size.c, kWarpSize) * (kTaps + 1 + size.kernels) + 1;
  launch("sar_logits_finish", sar_logits_finish_kernel, dim3(grid_of(blocks)), kReduceThreads, 0,
         stream, reinterpret_cast<const float*>(workspace + plan.partials),
         reinterpret_cast<const float*>(workspace + plan.bias_partials), out, plan.parts, size.c,
         size.kernels);
}

}  // namespace clipweather
