// CUDA launchers of reduced_kv_attention. No CUDA header.
//
// Strides as in AttentionSizes; whatever has none there is dense. float64 is not taken.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda_context.h"
#include "reduced_kv_attention/reduced_kv_attention.h"

namespace clipweather {

struct AttentionCudaForwardArgs {
  const void* q;  // (N, Lq, heads, d) T
  const void* k;  // (N, Lk, heads, d) T
  const void* v;  // (N, Lk, heads, d) T
  void* out;      // (N, Lq, heads, d) T, dense
  float* lse;     // (N, heads, Lq): log sum_j exp(scale * q . k_j)
  AttentionSizes size;
};

struct AttentionCudaBackwardArgs {
  const void* grad;  // (N, Lq, heads, d) T, dense
  const void* q;
  const void* k;
  const void* v;
  const void* out;   // (N, Lq, heads, d) T, dense
  const float* lse;  // (N, heads, Lq)
  void* grad_q;      // (N, Lq, heads, d) T, dense
  void* grad_k;      // (N, Lk, heads, d) T, dense
  void* grad_v;      // (N, Lk, heads, d) T, dense
  AttentionSizes size;
};

void launch_reduced_kv_attention_forward(const AttentionCudaForwardArgs& args,
                                         const CudaContext& context);
void launch_reduced_kv_attention_backward(const AttentionCudaBackwardArgs& args,
                                          const CudaContext& context);
// What the backward pass needs; the forward pass needs nothing.
std::size_t reduced_kv_attention_workspace_bytes(const AttentionSizes& size);

}  // namespace clipweather
