// sar_mixer: GELU(DWConv(z, static) + sar_conv2d(z, sar_logits(z))), one pass over z.
#pragma once

#include "sar_conv2d/sar_conv2d.h"
#include "sar_logits/sar_logits.h"

namespace clipweather {

struct SarMixerForwardArgs {
  SarLogitsInputs predictor;
  SarConv2dInputs kernels;  // its logits are not read: they come from the predictor
  void* y;                  // (N, H, W, C) T
  void* residual;           // (N, H, W, C) T or null
  void* logits;             // (N, H, W, K) T, kept for backward
  SarConv2dSizes size;
  int threads;
};

}  // namespace clipweather

CLIPWEATHER_CPU_KERNEL(sar_mixer_forward, SarMixerForwardArgs)
