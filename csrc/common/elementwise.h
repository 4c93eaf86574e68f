// Per-element maths of the operators, for host and device: exact GELU, its derivative, the gates.
#pragma once

#include <cmath>

#include "common/dtype.h"

#if defined(__CUDACC__)
#define CLIPWEATHER_HOST_DEVICE __host__ __device__ __forceinline__
#define CLIPWEATHER_UNROLL _Pragma("unroll")
#else
#define CLIPWEATHER_HOST_DEVICE inline
#define CLIPWEATHER_UNROLL
#endif

namespace clipweather {

inline constexpr float kInvSqrt2 = 0.70710678118654752f;
inline constexpr float kInvSqrt2Pi = 0.39894228040143268f;

CLIPWEATHER_HOST_DEVICE float gelu(float z) { return 0.5f * z * (1.0f + erff(z * kInvSqrt2)); }

// d gelu / dz = Phi(z) + z phi(z).
CLIPWEATHER_HOST_DEVICE float gelu_gradient(float z) {
  return 0.5f * (1.0f + erff(z * kInvSqrt2)) + z * kInvSqrt2Pi * expf(-0.5f * z * z);
}

// Both at once: they share erf.
CLIPWEATHER_HOST_DEVICE float gelu_and_gradient(float z, float& gradient) {
  const float phi = 0.5f * (1.0f + erff(z * kInvSqrt2));
  gradient = phi + z * kInvSqrt2Pi * expf(-0.5f * z * z);
  return z * phi;
}

// Turns `kernels` logits into weights in place. A loop over the capacity with a test inside keeps
// the array in registers.
template <int kCapacity>
CLIPWEATHER_HOST_DEVICE void apply_gate(Gate gate, int kernels, float (&values)[kCapacity]) {
  if (gate == Gate::kSoftmax) {
    float largest = values[0];
    CLIPWEATHER_UNROLL
    for (int n = 1; n < kCapacity; ++n)
      if (n < kernels) largest = fmaxf(largest, values[n]);
    float sum = 0.0f;
    CLIPWEATHER_UNROLL
    for (int n = 0; n < kCapacity; ++n) {
      values[n] = n < kernels ? expf(values[n] - largest) : 0.0f;
      sum += values[n];
    }
    const float scale = 1.0f / sum;
    CLIPWEATHER_UNROLL
    for (int n = 0; n < kCapacity; ++n) values[n] *= scale;
  } else if (gate == Gate::kSigmoid) {
    CLIPWEATHER_UNROLL
    for (int n = 0; n < kCapacity; ++n) values[n] = 1.0f / (1.0f + expf(-values[n]));
  }
}

// Turns gradients of the weights into gradients of the logits, in place.
template <int kCapacity>
CLIPWEATHER_HOST_DEVICE void gate_gradient(Gate gate, int kernels, const float (&maps)[kCapacity],
                                           float (&gradients)[kCapacity]) {
  if (gate == Gate::kSoftmax) {
    float dot = 0.0f;
    CLIPWEATHER_UNROLL
    for (int n = 0; n < kCapacity; ++n)
      if (n < kernels) dot += maps[n] * gradients[n];
    CLIPWEATHER_UNROLL
    for (int n = 0; n < kCapacity; ++n) gradients[n] = maps[n] * (gradients[n] - dot);
  } else if (gate == Gate::kSigmoid) {
    CLIPWEATHER_UNROLL
    for (int n = 0; n < kCapacity; ++n) gradients[n] *= maps[n] * (1.0f - maps[n]);
  }
}

}  // namespace clipweather
