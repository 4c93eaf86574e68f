// A Linear layer of a finished network, in float32 or bfloat16.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

// Of a result y: none, y Phi(y), or y sigma(y).
enum class LinearActivation : int { kNone = 0, kGelu = 1, kSwish = 2 };

struct LinearArgs {
  const void* x;       // (M, K)
  const void* weight;  // (K, N) in panels; of bfloat16, K is even
  const float* bias;   // (N) or null
  void* y;             // (M, N); N is a multiple of kPart
  int64_t m, n, k;
  DType type;  // of x, weight and y
  LinearActivation activation;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(linear, LinearArgs)
