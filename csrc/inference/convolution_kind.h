#pragma once

namespace clipweather {

// What a convolution of a finished network is.
enum class ConvolutionKind : int {
  kSame = 0,  // 3x3, padding 1
  kUp = 1,    // transposed 4x4, stride 2, padding 1
  kDown = 2,  // 3x3, stride 2, padding 1
};

}  // namespace clipweather
