// sar_logits: logits_k = pointwise_bias_k + sum_c pointwise_kc GELU(DWConv3x3(x)_c +
// depthwise_bias_c).
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

// T: storage type `dtype`. A: float, or double for float64. Parameters come as A.
struct SarLogitsSizes {
  int64_t n, c, h, w;
  int kernels;  // K, 1 to 8
  DType dtype;
};

struct SarLogitsInputs {
  const void* x;                 // (N, H, W, C) T
  const void* depthwise_weight;  // (C, 3, 3) A
  const void* depthwise_bias;    // (C) A
  const void* pointwise_weight;  // (K, C) A
  const void* pointwise_bias;    // (K) A
};

struct SarLogitsForwardArgs {
  SarLogitsInputs in;
  void* logits;  // (N, H, W, K) T
  SarLogitsSizes size;
  int threads;
};

struct SarLogitsBackwardArgs {
  SarLogitsInputs in;
  const void* grad_logits;      // (N, H, W, K) A
  void* grad_x;                 // (N, H, W, C) T
  void* grad_depthwise_weight;  // (C, 3, 3) A
  void* grad_depthwise_bias;    // (C) A
  void* grad_pointwise_weight;  // (K, C) A
  void* grad_pointwise_bias;    // (K) A
  bool accumulate;              // add to grad_x instead of writing it
  SarLogitsSizes size;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(sar_logits_forward, SarLogitsForwardArgs)
CLIPWEATHER_CPU_KERNEL(sar_logits_backward, SarLogitsBackwardArgs)
