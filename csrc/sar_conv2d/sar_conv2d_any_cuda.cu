// sar_conv2d for every size that sar_conv2d_cuda.cu leaves out: k = 5 and 7, up to eight kernels,
// an odd number of channels. A thread computes one channel of one pixel; neighbouring lanes are
// neighbouring channels. Kernels stay unfolded. Values come from L1, so this is several times
// slower than the other file; no shipped network comes here.
#include "common/cuda_launch.h"
#include "common/cuda_vector.h"
#include "common/elementwise.h"
#include "sar_conv2d/sar_conv2d_cuda.h"

namespace clipweather {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// The static kernel and the mixed ones.
constexpr int kMaxBanks = kMaxKernels + 1;

struct Pixel {
  int64_t n, h, w;
};

__device__ __forceinline__ Pixel pixel_at(int64_t index, const SarConv2dSizes& size) {
  return {index / size.w / size.h, index / size.w % size.h, index % size.w};
}

// The pixel `t` taps on; false if it lies in the padding.
__device__ __forceinline__ bool neighbour(const SarConv2dSizes& size, int64_t index, const Pixel& p,
                                          int dh, int dw, int64_t& other) {
  other = index + dh * size.w + dw;
  return p.h + dh >= 0 && p.h + dh < size.h && p.w + dw >= 0 && p.w + dw < size.w;
}

template <class T>
__device__ __forceinline__ void gates_at(const SarConv2dInputs& in, const SarConv2dSizes& size,
                                         const Pixel& p, float (&maps)[kMaxKernels]) {
  const T* const logits = static_cast<const T*>(in.logits) + p.n * size.logits_stride[0] +
                          p.h * size.logits_stride[2] + p.w * size.logits_stride[3];
#pragma unroll
  for (int k = 0; k < kMaxKernels; ++k)
    maps[k] = k < size.kernels ? load_one(logits + k * size.logits_stride[1]) : 0.0f;
  if (size.kernels > 0) apply_gate(size.gate, size.kernels, maps);
}

// Tap `t` of bank n (0: static), or its bias at t = k * k; 0 where absent.
__device__ __forceinline__ float parameter(const SarConv2dInputs& in, const SarConv2dSizes& size,
                                           int n, int64_t channel, int t) {
  const int taps = size.kernel_size * size.kernel_size;
  const bool is_bias = t == taps;
  const void* const base =
      n == 0 ? (is_bias ? in.static_bias : in.static_weight) : (is_bias ? in.bias : in.weight);
  if (base == nullptr) return 0.0f;
  const int64_t bank = n == 0 ? 0 : n - 1;
  const int64_t at = bank * size.c + channel;
  return static_cast<const float*>(base)[is_bias ? at : at * taps + t];
}

// values[n] = bias + convolution with bank n at this pixel and channel. Summed row by row: 49 taps
// in one chain would lose a bit more than PyTorch's own convolution does.
template <class T>
__device__ __forceinline__ void convolve(const SarConv2dInputs& in, const SarConv2dSizes& size,
                                         int64_t index, const Pixel& p, int64_t channel,
                                         float (&values)[kMaxBanks]) {
  const int k = size.kernel_size, half = k / 2;
#pragma unroll
  for (int n = 0; n < kMaxBanks; ++n)
    values[n] = n <= size.kernels ? parameter(in, size, n, channel, k * k) : 0.0f;
  for (int dh = 0; dh < k; ++dh) {
    float rows[kMaxBanks] = {};
    for (int dw = 0; dw < k; ++dw) {
      int64_t other;
      if (!neighbour(size, index, p, dh - half, dw - half, other)) continue;
      const float x = load_one(static_cast<const T*>(in.x) + other * size.c + channel);
#pragma unroll
      for (int n = 0; n < kMaxBanks; ++n)
        if (n <= size.kernels)
          rows[n] = fmaf(parameter(in, size, n, channel, dh * k + dw), x, rows[n]);
    }
#pragma unroll
    for (int n = 0; n < kMaxBanks; ++n) values[n] += rows[n];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sar_conv2d_forward_any_kernel(const SarConv2dInputs in,
                                  T* __restrict__ y,         // (N, H, W, C)
                                  T* __restrict__ residual,  // (N, H, W, C) or null
                                  const SarConv2dSizes size) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size.n * size.h * size.w * size.c) return;
  const int64_t index = i / size.c, channel = i % size.c;
  const Pixel p = pixel_at(index, size);
  float maps[kMaxKernels], values[kMaxBanks];
  gates_at<T>(in, size, p, maps);
  convolve<T>(in, size, index, p, channel, values);
  float mixed = 0.0f;
#pragma unroll
  for (int n = 0; n < kMaxKernels; ++n)
    if (n < size.kernels) mixed = fmaf(maps[n], values[n + 1], mixed);
  const float z = values[0] + mixed;
  store_one(y + i, size.activation == Activation::kGelu ? gelu(z) : z);
  if (residual != nullptr) store_one(residual + i, mixed);
}

// A warp a pixel: the gradient g of the pre-activation, the maps, and the dot products over
// channels.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    sar_conv2d_backward_pixels_any_kernel(const SarConv2dInputs in,
                                          const T* __restrict__ grad_y,  // (N, H, W, C) or null
                                          const T* __restrict__ grad_residual,  // likewise
                                          float* __restrict__ g,                // (N, H, W, C)
                                          float* __restrict__ maps,             // (N, H, W, K)
                                          float* __restrict__ dots,             // (N, H, W, K)
                                          const SarConv2dSizes size) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (index >= size.n * size.h * size.w) return;
  const Pixel p = pixel_at(index, size);
  float weights[kMaxKernels], sums[kMaxKernels] = {};
  gates_at<T>(in, size, p, weights);
  for (int64_t channel = lane; channel < size.c; channel += kWarpSize) {
    const int64_t i = index * size.c + channel;
    float values[kMaxBanks];
    convolve<T>(in, size, index, p, channel, values);
    float z = values[0];
#pragma unroll
    for (int n = 0; n < kMaxKernels; ++n)
      if (n < size.kernels) z = fmaf(weights[n], values[n + 1], z);
    float dz = grad_y != nullptr ? load_one(grad_y + i) : 0.0f;
    if (size.activation == Activation::kGelu) dz *= gelu_gradient(z);
    g[i] = dz;
    const float mixed = dz + (grad_residual != nullptr ? load_one(grad_residual + i) : 0.0f);
#pragma unroll
    for (int n = 0; n < kMaxKernels; ++n) sums[n] = fmaf(mixed, values[n + 1], sums[n]);
  }
#pragma unroll
  for (int n = 0; n < kMaxKernels; ++n) {
    if (n >= size.kernels) break;
    for (int flip = kWarpSize / 2; flip > 0; flip /= 2)
      sums[n] += __shfl_xor_sync(kWholeWarp, sums[n], flip);
    if (lane == 0) {
      dots[index * size.kernels + n] = sums[n];
      maps[index * size.kernels + n] = weights[n];
    }
  }
}

// A block: one tap (or the bias) of one bank, 32 channels, one of `parts` interleaved shares of
// pixels.
template <class T>
__global__ void __launch_bounds__(kThreads) sar_conv2d_backward_taps_any_kernel(
    const SarConv2dInputs in,
    const T* __restrict__ grad_residual,  // (N, H, W, C) or null
    const float* __restrict__ g,          // (N, H, W, C)
    const float* __restrict__ maps,       // (N, H, W, K)
    float* __restrict__ partials,         // (parts, K + 1, k * k + 1, C)
    const SarConv2dSizes size, const int64_t parts) {
  __shared__ float shares[kThreads];
  const int k = size.kernel_size, taps = k * k;
  const int64_t rows = int64_t{size.kernels + 1} * (taps + 1);
  const int64_t row = blockIdx.x % rows, part = blockIdx.x / rows % parts;
  const int n = static_cast<int>(row / (taps + 1)), t = static_cast<int>(row % (taps + 1));
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t channel = blockIdx.x / rows / parts * kWarpSize + lane;
  const int64_t pixels = size.n * size.h * size.w;
  float sum = 0.0f;
  for (int64_t index = part * kWarps + warp; channel < size.c && index < pixels;
       index += parts * kWarps) {
    float gradient = g[index * size.c + channel];
    if (n > 0) {
      if (grad_residual != nullptr) gradient += load_one(grad_residual + index * size.c + channel);
      gradient *= maps[index * size.kernels + n - 1];
    }
    int64_t other;
    if (t == taps)
      sum += gradient;
    else if (neighbour(size, index, pixel_at(index, size), t / k - k / 2, t % k - k / 2, other))
      sum = fmaf(gradient, load_one(static_cast<const T*>(in.x) + other * size.c + channel), sum);
  }
  shares[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || channel >= size.c) return;
  float total = 0.0f;
  for (int i = 0; i < kWarps; ++i) total += shares[i * kWarpSize + lane];
  partials[(part * rows + row) * size.c + channel] = total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sar_conv2d_grad_x_any_kernel(const SarConv2dInputs in,
                                 const T* __restrict__ grad_residual,  // (N, H, W, C) or null
                                 const float* __restrict__ g,          // (N, H, W, C)
                                 const float* __restrict__ maps,       // (N, H, W, K)
                                 T* __restrict__ grad_x,               // (N, H, W, C)
                                 const SarConv2dSizes size) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size.n * size.h * size.w * size.c) return;
  const int64_t index = i / size.c, channel = i % size.c;
  const Pixel p = pixel_at(index, size);
  const int k = size.kernel_size;
  float sum = 0.0f;
  for (int t = 0; t < k * k; ++t) {
    int64_t other;
    if (!neighbour(size, index, p, k / 2 - t / k, k / 2 - t % k, other)) continue;
    const float gradient = g[other * size.c + channel];
    float mixed = gradient;
    if (grad_residual != nullptr) mixed += load_one(grad_residual + other * size.c + channel);
    sum = fmaf(parameter(in, size, 0, channel, t), gradient, sum);
    for (int n = 0; n < size.kernels; ++n)
      sum =
          fmaf(maps[other * size.kernels + n] * parameter(in, size, n + 1, channel, t), mixed, sum);
  }
  store_one(grad_x + i, sum);
}

}  // namespace

void launch_sar_conv2d_forward_any(const SarConv2dForwardArgs& args, const CudaContext& context) {
  const SarConv2dSizes& size = args.size;
  const DeviceGuard guard(context.device);
  const int64_t elements = size.n * size.h * size.w * size.c;
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    launch("sar_conv2d_forward_any", sar_conv2d_forward_any_kernel<T>,
           dim3(grid_of(ceil_div(elements, kThreads))), kThreads, 0,
           static_cast<cudaStream_t>(context.stream), args.in, static_cast<T*>(args.y),
           static_cast<T*>(args.residual), size);
  });
}

void launch_sar_conv2d_backward_any(const SarConv2dBackwardCudaArgs& args,
                                    const CudaContext& context) {
  const SarConv2dBackwardArgs& base = args.base;
  const SarConv2dSizes& size = base.size;
  const SarConv2dWorkspace layout = sar_conv2d_workspace(size, base.grad_residual != nullptr);
  const DeviceGuard guard(context.device);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  char* const workspace = static_cast<char*>(context.workspace);
  float* const g = reinterpret_cast<float*>(workspace + layout.gradient);
  float* const maps = reinterpret_cast<float*>(workspace + layout.maps);
  const int64_t pixels = size.n * size.h * size.w;
  const int64_t rows =
      int64_t{size.kernels + 1} * (int64_t{size.kernel_size} * size.kernel_size + 1);
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const grad_residual = static_cast<const T*>(base.grad_residual);
    launch("sar_conv2d_backward_pixels_any", sar_conv2d_backward_pixels_any_kernel<T>,
           dim3(grid_of(ceil_div(pixels, kWarps))), kThreads, 0, stream, base.in,
           static_cast<const T*>(base.grad_y), grad_residual, g, maps,
           reinterpret_cast<float*>(workspace + layout.dots), size);
    launch("sar_conv2d_backward_taps_any", sar_conv2d_backward_taps_any_kernel<T>,
           dim3(grid_of(rows * layout.blocks * ceil_div(size.c, kWarpSize))), kThreads, 0, stream,
           base.in, grad_residual, g, maps, reinterpret_cast<float*>(workspace + layout.partials),
           size, layout.blocks);
    launch("sar_conv2d_grad_x_any", sar_conv2d_grad_x_any_kernel<T>,
           dim3(grid_of(ceil_div(pixels * size.c, kThreads))), kThreads, 0, stream, base.in,
           grad_residual, g, maps, static_cast<T*>(base.grad_x), size);
  });
}

void launch_depthwise_grad_x_any(const float* grad_y, const void* weight, void* grad_x,
                                 const DepthwiseSizes& sizes, const CudaContext& context) {
  const DeviceGuard guard(context.device);
  SarConv2dInputs in{};
  in.static_weight = weight;
  const SarConv2dSizes size = depthwise_sizes(sizes);
  const int64_t elements = size.n * size.h * size.w * size.c;
  for_gpu_dtype(size.dtype, [&](auto element) {
    using T = decltype(element);
    launch("depthwise_grad_x_any", sar_conv2d_grad_x_any_kernel<T>,
           dim3(grid_of(ceil_div(elements, kThreads))), kThreads, 0,
           static_cast<cudaStream_t>(context.stream), in, static_cast<const T*>(nullptr), grad_y,
           static_cast<const float*>(nullptr), static_cast<T*>(grad_x), size);
  });
}

}  // namespace clipweather
