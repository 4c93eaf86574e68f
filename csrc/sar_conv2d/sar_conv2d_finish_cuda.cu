// The end of sar_conv2d's backward pass, and the layout of the workspace its passes share.
//
// One launch: its first blocks add the partial sums of the parameters' gradients in an order that
// the sizes alone fix and undo the folding; the others turn the slabs' dot products into gradients
// of the logits, a thread a pixel. Both are a few per cent of the passes over the image.
#include "common/cuda_launch.h"
#include "common/cuda_vector.h"
#include "common/elementwise.h"
#include "sar_conv2d/sar_conv2d_cuda.h"

namespace clipweather {
namespace {

// Blocks of the pass that sums over pixels: about two rounds on the largest GPUs of today. A
// constant, not the GPU's own count, so that sums are grouped alike everywhere.
constexpr int64_t kSumBlocks = 528;
constexpr int64_t kSlabChannels = 64;
constexpr int64_t kPixelsPerTile = 24;

struct FinishInputs {
  const void* logits;     // (N, K, H, W) T, any strides
  const float* dots;      // (slabs, N, H, W, mixed)
  const float* partials;  // (count, mixed + 1, taps + 1, C)
};

struct FinishOutputs {
  void* grad_logits;          // (N, K, H, W) T, any strides, or null
  float* grad_weight;         // (K, C, k, k) or null
  float* grad_bias;           // (K, C) or null
  float* grad_static_weight;  // (C, k, k) or null
  float* grad_static_bias;    // (C) or null
};

struct FinishSizes {
  int64_t slabs, count;  // of the dot products, of the partial sums
  int64_t grad_logits_stride[4];
  int64_t parameter_blocks;
  int mixed;
  bool folded;
};

// A block: one tap (or the bias) of 32 channels, all kernels.
__device__ void finish_parameters(const FinishInputs& in, const FinishOutputs& out,
                                  const SarConv2dSizes& size, const FinishSizes& finish) {
  __shared__ float scratch[kReduceThreads];
  const int taps = size.kernel_size * size.kernel_size;
  const int row = static_cast<int>(blockIdx.x % (taps + 1));
  const int64_t channel = blockIdx.x / (taps + 1) * int64_t{kWarpSize} + threadIdx.x % kWarpSize;
  const int64_t rows = int64_t{finish.mixed + 1} * (taps + 1);
  const bool is_bias = row == taps;
  float* const weights = is_bias ? out.grad_bias : out.grad_weight;
  float* const shared = is_bias ? out.grad_static_bias : out.grad_static_weight;
  const int64_t offset = is_bias ? channel : channel * taps + row;
  const int64_t stride = is_bias ? size.c : size.c * taps;
  const bool writes = threadIdx.x < kWarpSize && channel < size.c;
  float last = 0.0f;
  for (int n = 0; n <= finish.mixed; ++n) {
    const float total = sum_partials(in.partials, finish.count, rows, size.c,
                                     int64_t{n} * (taps + 1) + row, channel, scratch);
    // The folded static kernel's sum is that over all maps; less the others' it is the last one's.
    last = n == 0 ? total : last - total;
    float* const target = n == 0               ? shared
                          : weights == nullptr ? nullptr
                                               : weights + (n - 1) * stride;
    if (writes && target != nullptr) target[offset] = total;
  }
  if (writes && finish.folded && weights != nullptr) weights[finish.mixed * stride + offset] = last;
}

template <class T>
__device__ void finish_logits(const FinishInputs& in, const FinishOutputs& out,
                              const SarConv2dSizes& size, const FinishSizes& finish) {
  const int64_t pixels = size.n * size.h * size.w;
  const int64_t pixel = (blockIdx.x - finish.parameter_blocks) * kReduceThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const int64_t w = pixel % size.w, h = pixel / size.w % size.h, n = pixel / size.w / size.h;
  const T* const logits = static_cast<const T*>(in.logits) + n * size.logits_stride[0] +
                          h * size.logits_stride[2] + w * size.logits_stride[3];
  float maps[kMaxKernels] = {}, gradients[kMaxKernels] = {};
#pragma unroll
  for (int k = 0; k < kMaxKernels; ++k) {
    if (k < size.kernels) maps[k] = load_one(logits + k * size.logits_stride[1]);
    // Folded dot products are relative to the last map's, which the softmax's gradient ignores.
    if (k >= finish.mixed) continue;
    for (int64_t slab = 0; slab < finish.slabs; ++slab)
      gradients[k] += in.dots[(slab * pixels + pixel) * finish.mixed + k];
  }
  apply_gate(size.gate, size.kernels, maps);
  gate_gradient(size.gate, size.kernels, maps, gradients);
  T* const grad_logits = static_cast<T*>(out.grad_logits) + n * finish.grad_logits_stride[0] +
                         h * finish.grad_logits_stride[2] + w * finish.grad_logits_stride[3];
#pragma unroll
  for (int k = 0; k < kMaxKernels; ++k)
    if (k < size.kernels) store_one(grad_logits + k * finish.grad_logits_stride[1], gradients[k]);
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    sar_conv2d_finish_kernel(const FinishInputs in, const FinishOutputs out,
                             const SarConv2dSizes size, const FinishSizes finish) {
  if (blockIdx.x < finish.parameter_blocks)
    finish_parameters(in, out, size, finish);
  else
    finish_logits<T>(in, out, size, finish);
}

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

SarConv2dWorkspace sar_conv2d_workspace(const SarConv2dSizes& size, bool residual) {
  const SarConv2dPlan plan = plan_sar_conv2d(size, residual);
  const std::size_t pixels = static_cast<std::size_t>(size.n * size.h * size.w);
  const std::size_t taps = static_cast<std::size_t>(size.kernel_size * size.kernel_size);
  const std::size_t channels = static_cast<std::size_t>(size.c);
  const std::size_t mixed = static_cast<std::size_t>(plan.mixed);
  SarConv2dWorkspace layout{};
  layout.slabs = plan.fast ? ceil_div(size.c, kSlabChannels) : 1;
  const int64_t tiles = std::max<int64_t>(1, size.n * size.h * size.w / kPixelsPerTile);
  const int64_t share = plan.fast ? layout.slabs : ceil_div(size.c, kWarpSize);
  layout.blocks = std::min(tiles, std::max<int64_t>(1, kSumBlocks / std::max<int64_t>(1, share)));
  const bool keeps_g = !plan.fast || size.activation != Activation::kNone;
  const std::size_t g_bytes = plan.fast && size.dtype != DType::kFloat32 ? 2 : 4;
  layout.gradient = 0;
  layout.maps = aligned(keeps_g ? pixels * channels * g_bytes : 0);
  layout.dots = layout.maps + aligned(plan.fast ? 0 : pixels * mixed * sizeof(float));
  layout.partials = layout.dots + aligned(static_cast<std::size_t>(layout.slabs) * pixels * mixed *
                                          sizeof(float));
  layout.bytes = layout.partials + aligned(static_cast<std::size_t>(layout.blocks) * (mixed + 1) *
                                           (taps + 1) * channels * sizeof(float));
  return layout;
}

void launch_sar_conv2d_finish(const SarConv2dBackwardCudaArgs& args, const CudaContext& context) {
  const SarConv2dBackwardArgs& base = args.base;
  const SarConv2dSizes& size = base.size;
  const bool residual = base.grad_residual != nullptr;
  const SarConv2dPlan plan = plan_sar_conv2d(size, residual);
  const SarConv2dWorkspace layout = sar_conv2d_workspace(size, residual);
  const DeviceGuard guard(context.device);
  const char* const workspace = static_cast<const char*>(context.workspace);
  const FinishInputs in{base.in.logits, reinterpret_cast<const float*>(workspace + layout.dots),
                        reinterpret_cast<const float*>(workspace + layout.partials)};
  const FinishOutputs out{
      base.size.kernels > 0 ? base.grad_logits : nullptr, static_cast<float*>(base.grad_weight),
      static_cast<float*>(base.grad_bias), static_cast<float*>(base.grad_static_weight),
      static_cast<float*>(base.grad_static_bias)};
  FinishSizes finish{};
  finish.slabs = layout.slabs;
  finish.count = layout.blocks;
  for (int i = 0; i < 4; ++i) finish.grad_logits_stride[i] = args.grad_logits_stride[i];
  finish.parameter_blocks =
      ceil_div(size.c, kWarpSize) * (int64_t{size.kernel_size} * size.kernel_size + 1);
  finish.mixed = plan.mixed;
  finish.folded = plan.folded;
  const int64_t pixel_blocks =
      out.grad_logits == nullptr ? 0 : ceil_div(size.n * size.h * size.w, kReduceThreads);
  for_gpu_dtype(size.dtype, [&](auto element) {
    launch("sar_conv2d_finish", sar_conv2d_finish_kernel<decltype(element)>,
           dim3(grid_of(finish.parameter_blocks + pixel_blocks)), kReduceThreads, 0,
           static_cast<cudaStream_t>(context.stream), in, out, size, finish);
  });
}

}  // namespace clipweather
