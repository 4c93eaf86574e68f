// Sizes of a call as Python passes them, for the CPU and the CUDA entry points.
#pragma once

#include <array>

#include "common/bindings.h"
#include "reduced_kv_attention/reduced_kv_attention.h"

namespace clipweather {

using AttentionStrides = std::array<int64_t, 9>;  // of q, k and v, each (N, L, heads)
using AttentionLengths = std::array<int64_t, 5>;  // N, heads, Lq, Lk, d

inline AttentionSizes attention_sizes(const AttentionLengths& lengths,
                                      const AttentionStrides& strides, double scale, int dtype) {
  AttentionSizes size{};
  size.n = lengths[0];
  size.heads = lengths[1];
  size.queries = lengths[2];
  size.keys = lengths[3];
  size.d = lengths[4];
  for (int i = 0; i < 3; ++i) {
    size.q_stride[i] = strides[i];
    size.k_stride[i] = strides[3 + i];
    size.v_stride[i] = strides[6 + i];
  }
  size.scale = scale;
  size.dtype = static_cast<DType>(dtype);
  return size;
}

}  // namespace clipweather
