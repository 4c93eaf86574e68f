// 2^x by the instructions that AVX-512 has for it.
#pragma once

#include "common/cpu_vector.h"

#if defined(__AVX512F__)
namespace clipweather {
namespace CLIPWEATHER_ISA {

// f is what x has above the whole number below it, in [0, 1); both that and the scaling by it are
// single instructions, and right for infinities. NaN stays NaN. The polynomials are relative
// minimax fits of 2^f with the value 1 at f = 0: to 1e-8, or, where the result is rounded to bf16
// (2e-3) anyway, to 9e-5.
template <bool kRounded>
CLIPWEATHER_INLINE Vector<float> exp2_by_parts(Vector<float> x) {
  const Vector<float> f = (Vector<float>)_mm512_reduce_ps((__m512)x, 1);
  Vector<float> p;
  if constexpr (kRounded) {
    p = f * 0x1.3baaa6p-4f + 0x1.d2378ap-3f;
    p = p * f + 0x1.63e658p-1f;
  } else {
    p = f * 0x1.c54174p-13f + 0x1.46d64ep-10f;
    p = p * f + 0x1.3d0b92p-7f;
    p = p * f + 0x1.c68912p-5f;
    p = p * f + 0x1.ebfd58p-3f;
    p = p * f + 0x1.62e42cp-1f;
  }
  p = p * f + 1.0f;
  return (Vector<float>)_mm512_scalef_ps((__m512)p, (__m512)x);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
