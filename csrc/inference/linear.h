// A Linear layer of a finished network, in float32 or bfloat16.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

struct LinearArgs {
  const void* x;       // (M, K)
  const void* weight;  // (K, N) in panels; of bfloat16, K is even
  const float* bias;   // (N) or null
  void* y;             // (M, N); N is a multiple of kPart
  int64_t m, n, k;
  DType type;  // of x, weight and y
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(linear, LinearArgs)
