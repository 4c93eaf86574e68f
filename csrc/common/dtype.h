// Element types of the tensors that cross the boundary, as codes and as storage structs that host
// and device share. The codes are those of `clipweather_fast/ops/_native.py`.
#pragma once

#include <cstdint>

namespace clipweather {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

// Storage only; arithmetic happens in float.
struct bfloat16_t {
  uint16_t bits;
};
struct float16_t {
  uint16_t bits;
};

// The type sums are formed in: fp32 for every storage type but fp64.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

enum class Gate : int { kNone = 0, kSoftmax = 1, kSigmoid = 2 };
enum class Activation : int { kNone = 0, kGelu = 1 };

}  // namespace clipweather
