// A Linear layer of a finished network in float32.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"

namespace clipweather {

struct LinearArgs {
  const float* x;       // (M, K)
  const float* weight;  // (K, N) in panels
  const float* bias;    // (N) or null
  float* y;             // (M, N); N is a multiple of kPart
  int64_t m, n, k;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(linear, LinearArgs)
