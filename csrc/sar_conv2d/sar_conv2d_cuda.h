// CUDA launchers of sar_conv2d, and how a call is split among its kernels. No CUDA header.
//
// Every tensor is dense and 16-byte aligned. Parameters and their gradients are fp32.
#pragma once

#include <cstddef>

#include "common/cuda_context.h"
#include "sar_conv2d/sar_conv2d.h"

namespace clipweather {

// base.grad_logits is (N, K, H, W) T of these strides, and may be null where K = 0.
struct SarConv2dBackwardCudaArgs {
  SarConv2dBackwardArgs base;
  int64_t grad_logits_stride[4];
};

// A softmax's weights sum to one, so one kernel joins the static one and the others become
// differences to it: one convolution fewer. Where R itself, or its own gradient, is asked for, the
// kernels stay apart. K = 1 stays unfolded too: its map must still turn non-finite logits into NaN.
struct SarConv2dPlan {
  bool folded;
  int mixed;  // kernels weighted by a map: K, or K - 1 if folded
  bool fast;  // the k = 3 kernels of sar_conv2d_cuda.cu; else those of sar_conv2d_any_cuda.cu
};

inline constexpr int kMaxMixed = 4;

inline SarConv2dPlan plan_sar_conv2d(const SarConv2dSizes& size, bool residual) {
  const bool folded = size.gate == Gate::kSoftmax && size.kernels >= 2 && !residual;
  const int mixed = folded ? size.kernels - 1 : size.kernels;
  const bool fast = size.kernel_size == 3 && mixed <= kMaxMixed && size.c % 2 == 0;
  if (fast) return {folded, mixed, true};
  return {false, size.kernels, false};
}

// Where the parts of the backward pass's workspace begin, in bytes.
struct SarConv2dWorkspace {
  std::size_t gradient;  // gradient of the pre-activation (N, H, W, C): T, or fp32 if not fast
  std::size_t maps;      // (N, H, W, K) fp32, only if not fast
  std::size_t dots;      // (slabs, N, H, W, mixed) fp32: gradients of the maps by slab of channels
  std::size_t partials;  // (blocks, (mixed + 1) * (k * k + 1), C) fp32
  std::size_t bytes;
  int64_t slabs;
  int64_t blocks;  // partial sums of the parameters' gradients
};

SarConv2dWorkspace sar_conv2d_workspace(const SarConv2dSizes& size, bool residual);

void launch_sar_conv2d_forward(const SarConv2dForwardArgs& args, const CudaContext& context);
void launch_sar_conv2d_backward(const SarConv2dBackwardCudaArgs& args, const CudaContext& context);

// For other operators that end in a depthwise 3x3 convolution: grad_x (N, H, W, C) T alone, from
// grad_y of the same shape, T and even C, or (`_any`) fp32 and any C.
struct DepthwiseSizes {
  int64_t n, c, h, w;
  DType dtype;
};
inline SarConv2dSizes depthwise_sizes(const DepthwiseSizes& sizes) {
  return {sizes.n, sizes.c, sizes.h,     sizes.w,           0,
          3,       {},      Gate::kNone, Activation::kNone, sizes.dtype};
}
void launch_depthwise_grad_x(const void* grad_y, const void* weight, void* grad_x,
                             const DepthwiseSizes& sizes, const CudaContext& context);
void launch_depthwise_grad_x_any(const float* grad_y, const void* weight, void* grad_x,
                                 const DepthwiseSizes& sizes, const CudaContext& context);

// The parts of the backward pass, by file.
void launch_sar_conv2d_backward_fast(const SarConv2dBackwardCudaArgs& args,
                                     const CudaContext& context);
void launch_sar_conv2d_grad_x(const SarConv2dBackwardArgs& args, const void* g,
                              const CudaContext& context);
void launch_sar_conv2d_forward_any(const SarConv2dForwardArgs& args, const CudaContext& context);
void launch_sar_conv2d_backward_any(const SarConv2dBackwardCudaArgs& args,
                                    const CudaContext& context);
void launch_sar_conv2d_finish(const SarConv2dBackwardCudaArgs& args, const CudaContext& context);

}  // namespace clipweather
