// The decoder's last layers, from features at stride 2 to the picture, in one pass over the rows:
// residual block (where it is not computed before), transposed convolution, the branch that shows
// the features the picture (where there is one), the last convolution, tanh and the sum with the
// picture.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

// A convolution's parameters as PyTorch keeps them; weight null: there is no such layer.
struct ConvParameters {
  const float* weight;
  const float* bias;  // or null
};

// y = tanh(l), tanh(l) + p or, with the last layer's fourth output g, tanh(l) + (1 - tanh(g)) p,
// where p = (picture + 1) / 2.
enum class Adds : int { kNothing = 0, kPicture = 1, kGated = 2 };

struct PictureTailArgs {
  const void* x;            // (N, H / 2, W / 2, C) x_type
  const float* picture;     // (N, H, W, 3) in [-1, 1]; null where nothing reads it
  ConvParameters dense[2];  // (C, C, 3, 3): x + second(relu(first(x))) takes the place of x
  ConvParameters up;        // (C, D, 4, 4): stride 2, padding 1
  ConvParameters first;     // (E, D + 3, 3, 3), of the branch
  ConvParameters second;    // (D, E, 3, 3), of the branch
  ConvParameters last;      // (3, D, 3, 3); for kGated (4, D, 3, 3)
  float* y;                 // (N, rows, columns, 3)
  int64_t n, h, w;          // of the picture; h and w are even
  int64_t c, d, e;
  int64_t rows, columns;  // wanted of the picture, from its upper left corner
  Adds adds;
  DType x_type;  // float32, or bfloat16: then the layers multiply in bfloat16
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(picture_tail, PictureTailArgs)
