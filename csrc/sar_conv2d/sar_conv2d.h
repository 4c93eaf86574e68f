// sar_conv2d: y = activation(DWConv(x, static) + sum_n gate(logits)_n (DWConv(x, weight_n) +
// bias_n)).
//
// The same kernels serve depthwise_conv2d: no mixed kernels (kernels = 0), only the static one.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

inline constexpr int kMaxKernels = 8;
inline constexpr int kMaxKernelSize = 7;

// T: storage type `dtype`. A: float, or double for float64. Images are dense (N, H, W, C).
// Parameters come as A whatever their own dtype; absent ones are null.
struct SarConv2dSizes {
  int64_t n, c, h, w;
  int kernels;               // K, 0 to kMaxKernels
  int kernel_size;           // k: 3, 5 or 7
  int64_t logits_stride[4];  // in elements, for (N, K, H, W)
  Gate gate;
  Activation activation;
  DType dtype;
};

struct SarConv2dInputs {
  const void* x;              // (N, H, W, C) T
  const void* logits;         // (N, K, H, W) T, any strides
  const void* weight;         // (K, C, k, k) A
  const void* bias;           // (K, C) A or null
  const void* static_weight;  // (C, k, k) A or null
  const void* static_bias;    // (C) A or null
};

struct SarConv2dForwardArgs {
  SarConv2dInputs in;
  void* y;         // (N, H, W, C) T
  void* residual;  // (N, H, W, C) T or null
  SarConv2dSizes size;
  int threads;
};

struct SarConv2dBackwardArgs {
  SarConv2dInputs in;
  const void* grad_y;         // (N, H, W, C) T or null
  const void* grad_residual;  // (N, H, W, C) T or null
  void* grad_x;               // (N, H, W, C) T
  void* grad_logits;          // (N, H, W, K) A, dense
  void* grad_weight;          // (K, C, k, k) A
  void* grad_bias;            // (K, C) A or null
  void* grad_static_weight;   // (C, k, k) A or null
  void* grad_static_bias;     // (C) A or null
  SarConv2dSizes size;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(sar_conv2d_forward, SarConv2dForwardArgs)
CLIPWEATHER_CPU_KERNEL(sar_conv2d_backward, SarConv2dBackwardArgs)
