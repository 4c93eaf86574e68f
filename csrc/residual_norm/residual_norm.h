// What lies between two layers of a transformer block: add a branch to the tokens, normalise.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

// A layer normalisation over channels; weight null: there is none.
struct NormParameters {
  const float* weight;  // (C)
  const float* bias;    // (C)
  float eps;
};

// t = residual + before(branch); sum = t; normed = after(t).
struct ResidualNormArgs {
  const void* branch;     // (rows, C) branch_type
  const float* residual;  // (rows, C) or null
  NormParameters before;  // of the branch, or none
  NormParameters after;   // of the sum, or none
  float* sum;             // (rows, C) or null; may be the residual
  void* normed;           // (rows, C) normed_type, where there is a norm `after`
  int64_t rows, c;
  DType branch_type, normed_type;  // float32 or bfloat16
  int threads;
};

// Of normed = after(sum), in float32: the gradients of the sum and of the norm's parameters.
struct ResidualNormBackwardArgs {
  const float* grad_normed;  // (rows, C)
  const float* grad_sum;     // (rows, C), what others who read the sum make of it, or null
  const float* sum;          // (rows, C)
  NormParameters after;      // its bias is not read
  float* grad_x;             // (rows, C): through the norm, plus grad_sum, which it may be; or null
  float *grad_weight, *grad_bias;  // (C), or null
  int64_t rows, c;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(residual_norm, ResidualNormArgs)
CLIPWEATHER_CPU_KERNEL(residual_norm_backward, ResidualNormBackwardArgs)
