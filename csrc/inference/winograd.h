// Convolutions of a finished network by Winograd's algorithm, with what follows them: bias, ReLU,
// sums. Fewer multiplications than a direct convolution: see common/cpu_winograd.h.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"
#include "inference/convolution_kind.h"

namespace clipweather {

// The weight is of each point a matrix of C rows in panels. Its columns are the channels of y,
// padded to a multiple of kPart; of kUp those of each phase that the point belongs to.
struct WinogradArgs {
  const void* x;        // (N, H, W, C)
  const void* weight;   // of bfloat16 in pairs, as cpu_pairs.h has them; C is even then
  const float* bias;    // (D) or null
  const void* sums[2];  // as y, added after the ReLU; or null; either may be y
  void* y;              // (N, H, W, D); kUp: (N, 2 H, 2 W, D); kDown: H / 2, W / 2, rounded up
  int64_t n, h, w, c, d;
  int tile;  // m of F(m x m, 3 x 3): 2, or 4
  ConvolutionKind kind;
  bool relu;
  DType type;  // of x, sums, y and the weight: float32, or bfloat16 with tile 2
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(winograd, WinogradArgs)
