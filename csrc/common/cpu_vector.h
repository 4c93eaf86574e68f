// The vector type of the instruction set this translation unit is compiled for, on GCC/Clang vector
// extensions: one source serves SSE2, AVX2, AVX-512 and processors that are not x86.
//
// Everything lives in the instruction set's own namespace. Kernels use no std:: template here: the
// linker keeps one copy of an inline function, and the AVX-512 one would crash an older processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Whether pairs of bfloat16 are multiplied faster than float32: AMD's processors have twice the
// rate, Intel's with a matrix unit half of it.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define CLIPWEATHER_PAIRS 1
#endif

#if !defined(CLIPWEATHER_ISA)
#error "compile *_cpu.cpp with CLIPWEATHER_ISA, as CMakeLists.txt does"
#endif

namespace clipweather {
namespace CLIPWEATHER_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

// A = float or double: what is computed with. kLanes<A> elements of it.
template <class A>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vector = typename VectorOf<A>::type;

typedef int32_t VectorI32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VectorU32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfVectorU16 __attribute__((vector_size(kVectorBytes / 2)));

#define CLIPWEATHER_INLINE inline __attribute__((always_inline))

template <class A>
CLIPWEATHER_INLINE Vector<A> broadcast(A value) {
  return value - Vector<A>{};  // x - 0 is x for every x, so it folds; 0 + x is not for -0
}

template <class V>
CLIPWEATHER_INLINE V select(decltype(V{} < V{}) mask, V a, V b) {
  return mask ? a : b;
}

template <class V>
CLIPWEATHER_INLINE V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
CLIPWEATHER_INLINE V min(V a, V b) {
  return a < b ? a : b;
}

// ---- loads: storage type T to the type computed with --------------------------------------------

CLIPWEATHER_INLINE Vector<float> load(const float* p) {
  Vector<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
CLIPWEATHER_INLINE Vector<double> load(const double* p) {
  Vector<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
CLIPWEATHER_INLINE Vector<float> load(const bfloat16_t* p) {
  HalfVectorU16 h;
  std::memcpy(&h, p, sizeof h);
  const VectorU32 wide = __builtin_convertvector(h, VectorU32) << 16;
  Vector<float> v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}
CLIPWEATHER_INLINE Vector<float> load(const float16_t* p) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Shift the exponent into place as an integer and rescale by 2^112: exact for normal and
  // subnormal numbers; infinities and NaN get their exponent set afterwards.
  HalfVectorU16 h;
  std::memcpy(&h, p, sizeof h);
  const VectorU32 wide = __builtin_convertvector(h, VectorU32);
  const VectorU32 magnitude = (wide & 0x7fffu) << 13;
  Vector<float> scaled;
  std::memcpy(&scaled, &magnitude, sizeof scaled);
  scaled *= 0x1p112f;
  VectorU32 bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  const VectorU32 special = (VectorU32)(magnitude >= (0x7c00u << 13));
  bits |= (special & 0x7f800000u) | ((wide & 0x8000u) << 16);
  Vector<float> v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
#endif
}

// ---- stores: round to nearest, ties to even; NaN stays NaN --------------------------------------

CLIPWEATHER_INLINE void store(float* p, Vector<float> v) { std::memcpy(p, &v, sizeof v); }
CLIPWEATHER_INLINE void store(double* p, Vector<double> v) { std::memcpy(p, &v, sizeof v); }
CLIPWEATHER_INLINE void store(bfloat16_t* p, Vector<float> v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  VectorU32 bits;
  std::memcpy(&bits, &v, sizeof bits);
  const VectorU32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VectorU32 nan = (VectorU32)(v != v);
  const VectorU32 result = (nan & ((bits >> 16) | 0x40u)) | (~nan & rounded);
  const HalfVectorU16 h = __builtin_convertvector(result, HalfVectorU16);
  std::memcpy(p, &h, sizeof h);
#endif
}
CLIPWEATHER_INLINE void store(float16_t* p, Vector<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  VectorU32 bits;
  std::memcpy(&bits, &v, sizeof bits);
  const VectorU32 sign = bits & 0x80000000u;
  const VectorU32 magnitude = bits ^ sign;
  // Below 2^-14 the result is subnormal: adding 0.5 aligns the last kept bit with the float's own.
  Vector<float> tiny;
  std::memcpy(&tiny, &magnitude, sizeof tiny);
  tiny += 0.5f;
  VectorU32 tiny_bits;
  std::memcpy(&tiny_bits, &tiny, sizeof tiny_bits);
  const VectorU32 subnormal = tiny_bits - 0x3f000000u;
  const VectorU32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const VectorU32 is_subnormal = (VectorU32)(magnitude < (113u << 23));
  const VectorU32 is_overflow = (VectorU32)(magnitude >= (143u << 23));
  const VectorU32 is_nan = (VectorU32)(magnitude > 0x7f800000u);
  VectorU32 result = (is_subnormal & subnormal) | (~is_subnormal & normal);
  result = (is_overflow & 0x7c00u) | (~is_overflow & result);
  result |= (is_nan & 0x200u) | (sign >> 16);
  const HalfVectorU16 h = __builtin_convertvector(result, HalfVectorU16);
  std::memcpy(p, &h, sizeof h);
#endif
}

// ---- the ends of rows that do not fill a vector -------------------------------------------------

// T is a storage type; absent lanes read as zero and are not written.
template <class T>
CLIPWEATHER_INLINE auto load_first(const T* p, int64_t count) -> decltype(load(p)) {
  T buffer[sizeof(decltype(load(p))) / sizeof(typename Accumulate<T>::type)] = {};
  std::memcpy(buffer, p, sizeof(T) * static_cast<size_t>(count));
  return load(buffer);
}
template <class T, class V>
CLIPWEATHER_INLINE void store_first(T* p, V v, int64_t count) {
  T buffer[sizeof(V) / sizeof(typename Accumulate<T>::type)];
  store(buffer, v);
  std::memcpy(p, buffer, sizeof(T) * static_cast<size_t>(count));
}

// Sum of the lanes by halving, in one fixed order.
template <class A, int kBytes, class V>
CLIPWEATHER_INLINE A sum_halves(V v) {
  if constexpr (kBytes == static_cast<int>(sizeof(A))) {
    A value;
    std::memcpy(&value, &v, sizeof value);
    return value;
  } else {
    typedef A Half __attribute__((vector_size(kBytes / 2)));
    Half low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return sum_halves<A, kBytes / 2>(low + high);
  }
}
template <class A, class V>
CLIPWEATHER_INLINE A horizontal_sum(V v) {
  return sum_halves<A, kVectorBytes>(v);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
