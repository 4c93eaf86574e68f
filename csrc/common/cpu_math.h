// exp, GELU and its slope on vectors. float: branch-free polynomials without exp or division (those
// were 44 % of the fused kernel); double: the C library, lane by lane.
#pragma once

#include <cmath>

#include "common/cpu_gelu_tables.h"
#include "common/cpu_vector.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// How many digits a storage type deserves.
template <class T>
inline constexpr bool kFullPrecision = sizeof(T) >= 4;

template <int kTerms>
CLIPWEATHER_INLINE Vector<float> horner(const float (&c)[kTerms], Vector<float> s) {
  Vector<float> p = broadcast(c[kTerms - 1]);
#pragma GCC unroll 20
  for (int i = kTerms - 2; i >= 0; --i) p = p * s + c[i];
  return p;
}

// Minimax fits of (Phi(u) - 1/2) / u, Phi the normal distribution function, in s = 2 u^2 / X^2 - 1.
// Largest error of u * Phi(u): 6e-7 (rounding included) up to |u| = 7, and 8e-6 for 16-bit storage.
inline constexpr float kCdfRange = 5.4f;
inline constexpr float kCdf[] = {
    1.309281140e-01f,  -6.532798747e-02f, 4.849939010e-02f,  -3.920915725e-02f, 3.212114074e-02f,
    -2.572372969e-02f, 1.960887217e-02f,  -1.405589550e-02f, 9.783400190e-03f,  -6.535026834e-03f,
    3.419173314e-03f,  -1.352658785e-03f, 1.085328370e-03f,  -9.701120880e-04f, 3.217374687e-04f};
inline constexpr float kCdfRange16 = 5.0f;
inline constexpr float kCdf16[] = {1.413643019e-01f,  -7.030051860e-02f, 5.148801100e-02f,
                                   -4.031917057e-02f, 3.174414840e-02f,  -2.421515736e-02f,
                                   1.554791793e-02f,  -8.329832900e-03f, 7.021232871e-03f,
                                   -6.278011065e-03f, 2.277303720e-03f};

// The same for (GELU'(u) - 1/2) / u.
inline constexpr float kSlopeRange = 5.7f;
inline constexpr float kSlope[] = {
    1.241653096e-01f,  -6.292560175e-02f, 5.013947765e-02f,  -4.846972397e-02f, 5.327433024e-02f,
    -6.109899256e-02f, 6.872369100e-02f,  -7.308300893e-02f, 6.737895790e-02f,  -5.222845203e-02f,
    4.591997193e-02f,  -4.537296320e-02f, 2.419231738e-02f,  -9.592305147e-04f, 4.550138701e-03f,
    -1.094435238e-02f, 4.457478854e-03f};
inline constexpr float kSlopeRange16 = 5.2f;
inline constexpr float kSlope16[] = {
    1.364119573e-01f,  -7.085064628e-02f, 6.062659649e-02f,  -6.432364500e-02f, 7.188379020e-02f,
    -7.415981069e-02f, 8.004084392e-02f,  -8.950419923e-02f, 5.984387789e-02f,  -1.221732562e-02f,
    2.058958401e-02f,  -3.979393686e-02f, 1.760834258e-02f};

template <class V, class Function>
CLIPWEATHER_INLINE V by_lane(V v, const Function& function) {
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(v[0])); ++i) v[i] = function(v[i]);
  return v;
}

#if defined(__AVX512F__)
// The segment's polynomial at |u|; kRows coefficients.
template <int kRows>
CLIPWEATHER_INLINE Vector<float> segmented(const float (&table)[kRows][16], Vector<float> a) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer
  const Vector<float> t = min(a * (1 / kSegment) + kRound, broadcast(kRound + 15));
  const __m512i segment = _mm512_castps_si512((__m512)t);  // the permutation reads its low 4 bits
  const Vector<float> d = a - (t - kRound) * kSegment;
  const auto coefficient = [&](int row) {
    return (Vector<float>)_mm512_permutexvar_ps(segment, _mm512_loadu_ps(table[row]));
  };
  Vector<float> p = coefficient(kRows - 1);
#pragma GCC unroll 8
  for (int row = kRows - 2; row >= 0; --row) p = p * d + coefficient(row);
  return p;
}

// GELU(u) = u Phi(u) = u / 2 + (|u| / 2) erf(|u| / sqrt 2). T is the storage type the result is
// rounded to. NaN stays NaN.
template <class T>
CLIPWEATHER_INLINE Vector<float> gelu(Vector<float> u) {
  const Vector<float> a = (Vector<float>)_mm512_abs_ps((__m512)u);
  if constexpr (kFullPrecision<T>)
    return u * 0.5f + segmented(kGeluTable, a);
  else
    return u * 0.5f + segmented(kGelu16Table, a);
}

// d GELU / du.
template <class T>
CLIPWEATHER_INLINE Vector<float> gelu_slope(Vector<float> u) {
  const Vector<float> a = (Vector<float>)_mm512_abs_ps((__m512)u);
  Vector<float> half;
  if constexpr (kFullPrecision<T>)
    half = segmented(kSlopeTable, a);
  else
    half = segmented(kSlope16Table, a);
  // The sign bit of u flips the half; 0x78 is half XOR (u AND sign bit).
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  const __m512i signed_half = _mm512_ternarylogic_epi32(_mm512_castps_si512((__m512)half),
                                                        _mm512_castps_si512((__m512)u), sign, 0x78);
  return (Vector<float>)_mm512_castsi512_ps(signed_half) + 0.5f;
}
#elif defined(__x86_64__) && !defined(__FMA__)
// Without fused multiply-adds the polynomials round too much, and such processors are rare: the C
// library computes.
template <class T>
CLIPWEATHER_INLINE Vector<float> gelu(Vector<float> u) {
  return by_lane(u, [](float v) { return 0.5f * v * ::erfcf(-v * 0.707106781f); });
}
template <class T>
CLIPWEATHER_INLINE Vector<float> gelu_slope(Vector<float> u) {
  return by_lane(u, [](float v) {
    return 0.5f * ::erfcf(-v * 0.707106781f) + v * 0.398942280f * ::expf(-0.5f * v * v);
  });
}
#else
// GELU(u) = u Phi(u). T is the storage type the result is rounded to. NaN stays NaN.
template <class T>
CLIPWEATHER_INLINE Vector<float> gelu(Vector<float> u) {
  constexpr float range = kFullPrecision<T> ? kCdfRange : kCdfRange16;
  const Vector<float> square = min(u * u, broadcast(range * range));
  const Vector<float> s = square * (2 / (range * range)) - 1.0f;
  Vector<float> p;
  if constexpr (kFullPrecision<T>)
    p = horner(kCdf, s);
  else
    p = horner(kCdf16, s);
  const Vector<float> centred = max(min(u * p, broadcast(0.5f)), broadcast(-0.5f));
  return u * centred + u * 0.5f;
}

// d GELU / du.
template <class T>
CLIPWEATHER_INLINE Vector<float> gelu_slope(Vector<float> u) {
  constexpr float range = kFullPrecision<T> ? kSlopeRange : kSlopeRange16;
  // max and min return their second argument where one is NaN, so a NaN survives the clamp.
  const Vector<float> a = max(broadcast(-range), min(broadcast(range), u));
  const Vector<float> s = a * a * (2 / (range * range)) - 1.0f;
  Vector<float> p;
  if constexpr (kFullPrecision<T>)
    p = horner(kSlope, s);
  else
    p = horner(kSlope16, s);
  return a * p + 0.5f;
}
#endif

// e^x to about 1e-7 relative; underflows to 0 below -87, overflows to inf above 88.7. NaN stays
// NaN.
CLIPWEATHER_INLINE Vector<float> exp(Vector<float> x) {
  constexpr float c[] = {1.000000001e+00f, 6.931472057e-01f, 2.402264689e-01f, 5.550328776e-02f,
                         9.618488961e-03f, 1.339993162e-03f, 1.534581195e-04f};
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer below
  const Vector<float> clamped = max(broadcast(-87.3f), min(broadcast(88.8f), x));
  const Vector<float> t = clamped * 1.44269504f;
  const Vector<float> whole = (t + kRound) - kRound;
  // x - whole * ln 2 in two steps keeps the digits that t lost.
  Vector<float> f = clamped - whole * 0.693145752f;
  f = (f - whole * 1.42860677e-6f) * 1.44269504f;
  const Vector<float> p = horner(c, f);
  // 2^whole in two factors, so that 2^128 overflows only in the product.
  const VectorI32 n = __builtin_convertvector(whole, VectorI32);
  const VectorI32 half = n >> 1;
  const VectorI32 first = (half + 127) << 23;
  const VectorI32 second = (n - half + 127) << 23;
  const Vector<float> result = p * (Vector<float>)first * (Vector<float>)second;
  const Vector<float> positive = select(x < -87.3f, Vector<float>{}, result);
  return select(x != x, x, positive);
}

template <class T>
CLIPWEATHER_INLINE Vector<double> gelu(Vector<double> u) {
  return by_lane(u, [](double v) { return 0.5 * v * ::erfc(-v * 0.70710678118654752440); });
}
template <class T>
CLIPWEATHER_INLINE Vector<double> gelu_slope(Vector<double> u) {
  return by_lane(u, [](double v) {
    return 0.5 * ::erfc(-v * 0.70710678118654752440) +
           v * 0.39894228040143267794 * ::exp(-0.5 * v * v);
  });
}
CLIPWEATHER_INLINE Vector<double> exp(Vector<double> x) {
  return by_lane(x, [](double v) { return ::exp(v); });
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
