// CUDA launchers of sar_logits: logits = Conv1x1(GELU(DWConv3x3(x))). No CUDA header.
//
// Every image is dense and 16-byte aligned; parameters and their gradients are fp32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda_context.h"
#include "common/dtype.h"

namespace clipweather {

struct SarLogitsCudaSizes {
  int64_t n, c, h, w;
  int kernels;               // K, 1 to 8
  int64_t logits_stride[4];  // in elements, for (N, K, H, W): of the logits or of their gradient
  DType dtype;
};

struct SarLogitsCudaInputs {
  const void* x;                  // (N, H, W, C) T
  const float* depthwise_weight;  // (C, 3, 3)
  const float* depthwise_bias;    // (C)
  const float* pointwise_weight;  // (K, C)
  const float* pointwise_bias;    // (K)
};

struct SarLogitsCudaGradients {
  void* x;                  // (N, H, W, C) T
  float* depthwise_weight;  // (C, 3, 3)
  float* depthwise_bias;    // (C)
  float* pointwise_weight;  // (K, C)
  float* pointwise_bias;    // (K)
};

void launch_sar_logits_forward(const SarLogitsCudaInputs& in, void* logits,
                               const SarLogitsCudaSizes& size, const CudaContext& context);

// `grad_logits` (N, K, H, W) T of the strides in `size`.
void launch_sar_logits_backward(const SarLogitsCudaInputs& in, const void* grad_logits,
                                const SarLogitsCudaGradients& out, const SarLogitsCudaSizes& size,
                                const CudaContext& context);
std::size_t sar_logits_workspace_bytes(const SarLogitsCudaSizes& size);

}  // namespace clipweather
