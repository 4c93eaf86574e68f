// The two ends of a network: the picture as it was given to what the layers read, and what they
// gave to the picture that is handed out. One pass each, in whatever order the numbers lie.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"

namespace clipweather {

// Steps from one number of an image (N, 3, H, W) to the next along each axis.
struct ImageSteps {
  int64_t n, c, h, w;
};

// y = 2 image - 1, extended to the right and below: mirrored without repeating the edge, or, along
// an axis that is too short for that, with the last row or column repeated.
struct NetworkInputArgs {
  const float* image;  // (N, 3, H, W)
  ImageSteps steps;
  float* y;  // (N, rows, columns, 3)
  int64_t n, h, w, rows, columns;
  int threads;
};

// What a result becomes: numbers in [0, 1], or those times 255, rounded to the nearest.
enum class Levels : int { kFloat = 0, kByte = 1 };

struct PictureOutputArgs {
  const float* x;    // (H, W, 3)
  int64_t row;       // step from one row of x to the next
  void* picture;     // (3, H, W)
  ImageSteps steps;  // of the picture; n is not read
  int64_t h, w;
  Levels levels;
  int32_t* bad;  // one for each thread: set to 1 where a number of x is not finite, else left
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(network_input, NetworkInputArgs)
CLIPWEATHER_CPU_KERNEL(picture_output, PictureOutputArgs)
