// Convolutions of a finished network in float32 by a matrix unit, as they are defined: without
// Winograd's transforms, which cost more than the products they save where these are so fast.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "inference/convolution_kind.h"

namespace clipweather {

struct DirectArgs {
  const float* x;         // (N, H, W, C)
  const void* weight;     // taken apart: blocks of 16 outputs as csrc/inference/cpu_part_pixels.h
                          // multiplies by them, each of all taps, row by row, of all channels;
                          // kUp: of each phase, row by row
  const float* bias;      // (D) or null
  const float* sums[2];   // as y, added after the ReLU; or null; either may be y
  float* y;               // (N, H, W, D); kUp: (N, 2 H, 2 W, D); kDown: H / 2, W / 2, rounded up
  int64_t n, h, w, c, d;  // C is a multiple of 16
  ConvolutionKind kind;
  bool relu;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(direct, DirectArgs)
