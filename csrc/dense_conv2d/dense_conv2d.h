// dense_conv2d: the matrix products that a dense convolution is made of, and what surrounds them.
//
// A convolution relates a fine image (its input; a transposed one's output) to a coarse one. As
// windows: row m of the matrix `windows` (M, k * k * C) holds what coarse pixel m sees of the fine
// image; where both images have multiples of kImplicitChannels it need not be in memory. By
// Winograd's F(2x2, 3x3): tiles of 2x2 output pixels become 16 matrices `tiles` (16, T, C), and the
// kernels 16 matrices (16, C', C); by F(4x2, 3x3) not all of them need be in memory.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

inline constexpr int kTileArea = 16;  // 4 x 4 numbers stand for 2 x 2 output pixels

enum class DenseConv2dStep : int {
  kWindowsOfImage = 0,  // fine image -> windows
  kImageOfWindows = 1,  // windows, bias -> fine image: every pixel sums what windows hold of it
  kTilesOfInput = 2,    // x -> tiles
  kTilesOfOutput = 3,   // grad_y -> tiles
  kOutputOfTiles = 4,   // tiles, bias -> y
  kInputOfTiles = 5,    // tiles -> grad_x
  kTilesOfWeight = 6,   // weight (C', 3, 3, C) -> (16, C', C)
  kWeightOfTiles = 7,   // (16, C', C) -> grad_weight
};

struct DenseConv2dSizes {
  int64_t n, h, w, c;     // the fine image, or the image of Winograd's steps
  int64_t rows, columns;  // the coarse image
  int64_t kernel, stride, padding;
  DType dtype;  // float32 or float64
};

struct DenseConv2dArgs {
  const void* in;
  const void* bias;  // (C) or null
  void* out;
  DenseConv2dSizes size;
  DenseConv2dStep step;
  int threads;
};

// C = A B + bias, dense: A (count, M, K), B (count, K, N), C (count, M, N); `transposed`: stored as
// (count, K, M) or (count, N, K).
struct DenseConv2dProduct {
  int64_t count, m, n, k;
  bool a_transposed, b_transposed;
};

struct DenseConv2dProductArgs {
  const void *a, *b;
  const void* bias;  // (N) or null
  void* c;
  DenseConv2dProduct size;
  DType dtype;
  int threads;
};

// The gradients of y = x W^T + bias for dense rows x (rows, inputs), y (rows, outputs) and W
// (outputs, inputs): what is null is not wanted.
struct DenseConv2dGradientArgs {
  const void *grad_y, *x, *weight;
  void *grad_x, *grad_weight, *grad_bias;
  int64_t rows, inputs, outputs;
  DType dtype;
  int threads;
};

// What a convolution as a whole computes.
enum class DenseConv2dWanted : int {
  kCoarse = 0,  // of fine, weight, bias
  kFine = 1,    // of coarse, weight, bias
  kWeight = 2,  // of coarse, fine
};

// Channels of both images are multiples of it where windows are never in memory.
inline constexpr int64_t kImplicitChannels = 32;
// By Winograd's F(4x4, 3x3) both images have at most so many.
inline constexpr int64_t kFusedChannels = 4096;

// The weight is (channels, k, k, c).
struct DenseConv2dWholeArgs {
  const void *coarse, *fine, *weight;
  const void* bias;  // of the wanted image's channels, or null
  void* out;
  DenseConv2dSizes size;  // c: channels of the fine image
  int64_t channels;       // of the coarse one
  DenseConv2dWanted wanted;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(dense_conv2d_windows, DenseConv2dArgs)
CLIPWEATHER_CPU_KERNEL(dense_conv2d_winograd, DenseConv2dArgs)
CLIPWEATHER_CPU_KERNEL(dense_conv2d_implicit, DenseConv2dWholeArgs)
CLIPWEATHER_CPU_KERNEL(dense_conv2d_fused_winograd, DenseConv2dWholeArgs)
CLIPWEATHER_CPU_KERNEL(dense_conv2d_products, DenseConv2dProductArgs)
CLIPWEATHER_CPU_KERNEL(dense_conv2d_gradients, DenseConv2dGradientArgs)
