// ssim: structural similarity of pictures under a Gaussian window of 11 x 11, and its gradient.
//
// Windows lie inside the picture: a plane (H, W) has (H - 10)(W - 10) of them. Under a window with
// weighted means m_y, m_t of the pictures, s of the sum of their squares and p of their product:
// S = (2 m_y m_t + C1)(2 (p - m_y m_t) + C2) / ((m_y^2 + m_t^2 + C1)(s - m_y^2 - m_t^2 + C2)).
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/dtype.h"

namespace clipweather {

inline constexpr int64_t kSsimWindow = 11;

struct SsimArgs {
  const void *y, *truth;  // planes (P, H, W), dense
  double* values;         // (P): the mean of S over the plane
  void* grad_y;           // of that mean, as y; null: not wanted
  int64_t planes, h, w;
  double window[kSsimWindow];  // the Gaussian's weights along one side
  double c1, c2;
  DType dtype;  // float32 or float64
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(ssim, SsimArgs)
