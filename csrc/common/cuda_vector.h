// Loads and stores of one, two or four neighbouring channels, storage type on one side and float on
// the other; the dtype switch; the sums of partials. Included by .cu files only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "common/dtype.h"

namespace clipweather {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffu;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// V channels as they lie in memory: what a load that is still under way occupies.
template <class T, int V>
struct Packed;
template <>
struct Packed<float, 1> {
  using type = float;
};
template <>
struct Packed<float, 2> {
  using type = float2;
};
template <>
struct Packed<float, 4> {
  using type = float4;
};
template <>
struct Packed<bfloat16_t, 1> {
  using type = unsigned short;
};
template <>
struct Packed<bfloat16_t, 2> {
  using type = unsigned;
};
template <>
struct Packed<bfloat16_t, 4> {
  using type = uint2;
};
template <int V>
struct Packed<float16_t, V> : Packed<bfloat16_t, V> {};

template <class T, int V>
using packed_t = typename Packed<T, V>::type;

template <int V>
struct Lanes {
  float v[V];
};

// T names the storage type, which the packed bits alone do not tell.
template <class T>
struct Convert;
template <>
struct Convert<float> {
  static __device__ __forceinline__ Lanes<1> unpack(float p) { return {{p}}; }
  static __device__ __forceinline__ Lanes<2> unpack(float2 p) { return {{p.x, p.y}}; }
  static __device__ __forceinline__ Lanes<4> unpack(float4 p) { return {{p.x, p.y, p.z, p.w}}; }
  static __device__ __forceinline__ float pack(Lanes<1> f) { return f.v[0]; }
  static __device__ __forceinline__ float2 pack(Lanes<2> f) { return make_float2(f.v[0], f.v[1]); }
  static __device__ __forceinline__ float4 pack(Lanes<4> f) {
    return make_float4(f.v[0], f.v[1], f.v[2], f.v[3]);
  }
};

// Sixteen-bit types: from a pair's conversion follow one and four.
template <class Pair>
struct ConvertPairs {
  static __device__ __forceinline__ Lanes<1> unpack(unsigned short p) {
    return {{Pair::unpack(p).v[0]}};
  }
  static __device__ __forceinline__ Lanes<2> unpack(unsigned p) { return Pair::unpack(p); }
  static __device__ __forceinline__ Lanes<4> unpack(uint2 p) {
    const Lanes<2> a = Pair::unpack(p.x), b = Pair::unpack(p.y);
    return {{a.v[0], a.v[1], b.v[0], b.v[1]}};
  }
  static __device__ __forceinline__ unsigned short pack(Lanes<1> f) {
    return static_cast<unsigned short>(Pair::pack(f.v[0], 0.0f));
  }
  static __device__ __forceinline__ unsigned pack(Lanes<2> f) { return Pair::pack(f.v[0], f.v[1]); }
  static __device__ __forceinline__ uint2 pack(Lanes<4> f) {
    return make_uint2(Pair::pack(f.v[0], f.v[1]), Pair::pack(f.v[2], f.v[3]));
  }
};

struct BFloat16Pair {
  static __device__ __forceinline__ Lanes<2> unpack(unsigned p) {
    return {{__uint_as_float(p << 16), __uint_as_float(p & 0xffff0000u)}};
  }
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
  }
};
struct Float16Pair {
  static __device__ __forceinline__ Lanes<2> unpack(unsigned p) {
    __half2 pair;
    memcpy(&pair, &p, sizeof p);
    const float2 f = __half22float2(pair);
    return {{f.x, f.y}};
  }
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
  }
};
template <>
struct Convert<bfloat16_t> : ConvertPairs<BFloat16Pair> {};
template <>
struct Convert<float16_t> : ConvertPairs<Float16Pair> {};

// `wanted` false reads nothing and gives zeros: the padding.
template <class T, int V>
__device__ __forceinline__ packed_t<T, V> load_packed(const T* p, bool wanted) {
  return wanted ? __ldg(reinterpret_cast<const packed_t<T, V>*>(p)) : packed_t<T, V>{};
}
template <int V, class T>
__device__ __forceinline__ Lanes<V> unpack(packed_t<T, V> packed) {
  return Convert<T>::unpack(packed);
}
template <int V, class T>
__device__ __forceinline__ Lanes<V> load(const T* p, bool wanted) {
  return Convert<T>::unpack(load_packed<T, V>(p, wanted));
}
template <int V, class T>
__device__ __forceinline__ void store(T* p, const Lanes<V>& values) {
  *reinterpret_cast<packed_t<T, V>*>(p) = Convert<T>::pack(values);
}
template <class T>
__device__ __forceinline__ float load_one(const T* p) {
  return load<1, T>(p, true).v[0];
}
template <class T>
__device__ __forceinline__ void store_one(T* p, float value) {
  store<1, T>(p, Lanes<1>{{value}});
}
// Neighbouring floats of shared memory, one wide access.
template <int V>
__device__ __forceinline__ Lanes<V> load_shared(const float* p) {
  return Convert<float>::unpack(*reinterpret_cast<const packed_t<float, V>*>(p));
}

// Starts fetching a line that a later row will need; costs no register.
__device__ __forceinline__ void prefetch_l2(const void* p) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  (void)p;
#endif
}

// Calls body(T{}) with the storage type of `dtype`.
template <class Body>
void for_gpu_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kBFloat16:
      return body(bfloat16_t{});
    case DType::kFloat16:
      return body(float16_t{});
    default:
      throw std::invalid_argument("the CUDA kernels take float32, bfloat16 or float16");
  }
}

inline constexpr int kReduceGroups = 8;
inline constexpr int kReduceThreads = kReduceGroups * kWarpSize;

// The sum over `count` partials of one row for the block's 32 channels, in an order that the sizes
// alone fix: kReduceGroups interleaved sums, then these in turn. Every thread of the block calls
// it; the first warp gets the result. `partials` is (count, rows, c); `scratch` kReduceThreads
// floats.
__device__ inline float sum_partials(const float* partials, int64_t count, int64_t rows, int64_t c,
                                     int64_t row, int64_t channel, float* scratch) {
  const int group = static_cast<int>(threadIdx.x) / kWarpSize;
  float sum = 0.0f;
  if (channel < c) {
#pragma unroll 4
    for (int64_t p = group; p < count; p += kReduceGroups)
      sum += partials[(p * rows + row) * c + channel];
  }
  __syncthreads();
  scratch[threadIdx.x] = sum;
  __syncthreads();
  float total = 0.0f;
  if (group == 0)
    for (int g = 0; g < kReduceGroups; ++g) total += scratch[g * kWarpSize + threadIdx.x];
  return total;
}

}  // namespace clipweather
