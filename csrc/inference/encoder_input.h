// What a prior encoder reads: the whole picture resized to a square, clipped and normalised.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"

namespace clipweather {

// Which numbers a resized line's numbers are sums of, along one axis.
struct ResizeTaps {
  const int32_t* first;  // (size)
  const int32_t* count;  // (size), at most `most`
  const float* weight;   // (size, most)
  int64_t most;
};

struct EncoderInputArgs {
  const float*
      picture;  // (N, 3, H, W); along w either pixels, as channels-last, or planes' numbers
  int64_t image, plane, row;  // steps from one image, plane, row to the next; plane 1: pixels
  float* y;                   // (N, size, size, 3)
  ResizeTaps rows, columns;
  float mean[3], deviation[3];
  int64_t n, h, w, size;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(encoder_input, EncoderInputArgs)
