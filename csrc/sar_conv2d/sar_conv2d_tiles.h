// What a block of sar_conv2d's k = 3 kernels keeps in shared memory: the kernels of its channels,
// the maps of its pixels. Included by .cu files only.
#pragma once

#include <type_traits>

#include "common/cuda_rows.h"
#include "common/elementwise.h"
#include "sar_conv2d/sar_conv2d_cuda.h"

namespace clipweather {

// A block's columns, a warp each. Eight columns read ten: the two outside ones cost a quarter more
// L1 traffic, L2 takes it.
inline constexpr int kColumns = 8;
inline constexpr int kThreads = kColumns * kWarpSize;
// Two channels a lane: the nine taps of three kernels then fit in registers beside the window.
inline constexpr int kVector = 2;
inline constexpr int kSlab = kVector * kWarpSize;
// 64 channels and two more, so that lanes writing neighbouring taps meet different banks.
inline constexpr int kBankRow = kSlab + 2;
// Nine taps and the bias.
inline constexpr int kBankRows = kTaps + 1;
inline constexpr int kBankFloats = kBankRows * kBankRow;
// Floats from one pixel's maps to the next: a width that one load takes.
template <int M>
inline constexpr int kMapStride = M <= 2 ? M : 4;
// Arrays of M elements, where M may be 0.
template <int M>
inline constexpr int kAtLeastOne = M > 0 ? M : 1;

inline __host__ __device__ ImageSizes image_of(const SarConv2dSizes& size) {
  return {size.n, size.c, size.h, size.w};
}

// banks (M + 1, kBankRows, kBankRow): kernel 0 is the static one (folded: plus the last mixed one),
// the others the mixed ones (folded: minus the last). Differences are formed in fp32. Absent
// channels: 0.
template <int M>
__device__ void stage_banks(const SarConv2dInputs& in, int64_t c, int64_t first_channel,
                            bool folded, float* banks) {
  const float* const weight = static_cast<const float*>(in.weight);
  const float* const bias = static_cast<const float*>(in.bias);
  const float* const static_weight = static_cast<const float*>(in.static_weight);
  const float* const static_bias = static_cast<const float*>(in.static_bias);
  for (int i = static_cast<int>(threadIdx.x); i < kSlab * kBankRows; i += blockDim.x) {
    const bool is_bias = i >= kSlab * kTaps;
    const int channel = is_bias ? i - kSlab * kTaps : i / kTaps;
    const int row = is_bias ? kTaps : i % kTaps;
    const bool present = first_channel + channel < c;
    const int64_t offset = is_bias ? first_channel + channel : first_channel * kTaps + i;
    const int64_t stride = is_bias ? c : c * kTaps;
    const float* const mixed = is_bias ? bias : weight;
    const float* const shared = is_bias ? static_bias : static_weight;
    const float base = present && shared != nullptr ? shared[offset] : 0.0f;
    const bool mixes = present && mixed != nullptr;
    const float last = mixes && folded ? mixed[M * stride + offset] : 0.0f;
    float* const target = banks + row * kBankRow + channel;
    target[0] = base + last;
#pragma unroll
    for (int n = 0; n < M; ++n)
      target[(n + 1) * kBankFloats] = mixes ? mixed[n * stride + offset] - last : 0.0f;
  }
}

// A lane's taps of kernel n: in registers for its whole life, or read from the banks when used.
template <int M, bool kInRegisters>
struct Taps {
  Lanes<kVector> values[M + 1][kTaps];

  __device__ __forceinline__ Taps(const float* banks, int lane) {
#pragma unroll
    for (int n = 0; n <= M; ++n)
#pragma unroll
      for (int t = 0; t < kTaps; ++t)
        values[n][t] =
            load_shared<kVector>(banks + n * kBankFloats + t * kBankRow + kVector * lane);
  }
  __device__ __forceinline__ Lanes<kVector> operator()(int n, int t) const { return values[n][t]; }
};
template <int M>
struct Taps<M, false> {
  const float* banks;

  __device__ __forceinline__ Taps(const float* staged, int lane) : banks(staged + kVector * lane) {}
  __device__ __forceinline__ Lanes<kVector> operator()(int n, int t) const {
    return load_shared<kVector>(banks + n * kBankFloats + t * kBankRow);
  }
};

// maps (rows, columns, kMapStride<M>) of the pixels from (row, column) on; outside the image 0.
template <int M, class T>
__device__ void stage_maps(const T* logits, const SarConv2dSizes& size, int64_t n, int64_t row,
                           int64_t column, int rows, int columns, bool folded, float* maps) {
  if constexpr (M > 0) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += blockDim.x) {
      const int64_t r = row + i / columns, w = column + i % columns;
      float values[M + 1] = {};
      if (r >= 0 && r < size.h && w >= 0 && w < size.w) {
        const int kernels = folded ? M + 1 : M;
        const T* const p = logits + n * size.logits_stride[0] + r * size.logits_stride[2] +
                           w * size.logits_stride[3];
#pragma unroll
        for (int k = 0; k <= M; ++k)
          if (k < kernels) values[k] = load_one(p + k * size.logits_stride[1]);
        apply_gate(size.gate, kernels, values);
      }
#pragma unroll
      for (int k = 0; k < M; ++k) maps[i * kMapStride<M> + k] = values[k];
    }
  }
}

template <int M>
__device__ __forceinline__ void load_maps(const float* maps, int pixel,
                                          float (&values)[kAtLeastOne<M>]) {
  if constexpr (M > 0) {
    const Lanes<kMapStride<M>> all = load_shared<kMapStride<M>>(maps + pixel * kMapStride<M>);
#pragma unroll
    for (int k = 0; k < M; ++k) values[k] = all.v[k];
  }
}

// Calls body(std::integral_constant) with M as a compile-time constant.
template <class Body>
void for_mixed(int mixed, const Body& body) {
  switch (mixed) {
    case 0:
      return body(std::integral_constant<int, 0>{});
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    default:
      return body(std::integral_constant<int, 4>{});
  }
}

}  // namespace clipweather
