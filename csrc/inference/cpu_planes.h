// Convolutions on rows of planes, 16 pixels to a vector: with 3 to 16 channels, as the decoder has
// at its last strides, vectors of pixels are full where vectors of channels are not.
//
// A plane is a row of 32-bit lanes, one per pixel: a float, or a pair of bfloat16, two channels of
// the pixel. Rows have zeros on both sides of the picture.
#pragma once

#include "common/cpu_math.h"
#include "common/cpu_vector.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

using Lanes = Vector<float>;
inline constexpr int64_t kPixels = kLanes<float>;
// Sums that a block keeps in registers: outputs times vectors.
#if defined(__AVX512F__)
inline constexpr int kOutputs = 8, kUpOutputs = 4, kUpVectors = 2;
#else
inline constexpr int kOutputs = 4, kUpOutputs = 4, kUpVectors = 1;
#endif
inline constexpr int kVectors = 3;

inline constexpr int64_t padded_count(int64_t count, int64_t step) {
  return (count + step - 1) / step * step;
}

// One channel per lane.
struct OneChannel {
  static constexpr int kChannels = 1;
  static CLIPWEATHER_INLINE Lanes multiply_add(Lanes sum, Lanes a, Lanes b) { return sum + a * b; }
  static CLIPWEATHER_INLINE Lanes unpack(Lanes lanes, int) { return lanes; }
  static float lane(const float* values) { return values[0]; }
};

#if defined(CLIPWEATHER_PAIRS)
// Two channels per lane, multiplied and summed by one instruction.
struct TwoChannels {
  static constexpr int kChannels = 2;
  static CLIPWEATHER_INLINE Lanes multiply_add(Lanes sum, Lanes a, Lanes b) {
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
  static CLIPWEATHER_INLINE Lanes packed(Lanes low, Lanes high) {
    const __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
    const __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
    return (Lanes)_mm512_or_si512(first, _mm512_slli_epi32(second, 16));
  }
  static CLIPWEATHER_INLINE Lanes unpack(Lanes lanes, int channel) {
    const __m512i bits = (__m512i)lanes;
    if (channel == 0) return (Lanes)_mm512_slli_epi32(bits, 16);
    return (Lanes)_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  }
  static float lane(const float* values) {
    uint32_t bits[2];
    for (int i = 0; i < 2; ++i) {
      std::memcpy(&bits[i], &values[i], 4);
      bits[i] = (bits[i] + 0x7fffu + ((bits[i] >> 16) & 1u)) >> 16;
    }
    const uint32_t both = bits[0] | bits[1] << 16;
    float result;
    std::memcpy(&result, &both, 4);
    return result;
  }
};
#endif

// sums[o][v] += the 3 x 3 convolution at pixels x + 16 v of the planes in three rows.
// weights: (planes, 3, 3, kOut) lanes.
template <class Channels, int kOut, int kVec>
CLIPWEATHER_INLINE void convolve(const float* const (&rows)[3], int64_t stride, int64_t planes,
                                 const float* weights, int64_t x, Lanes (&sums)[kOut][kVec]) {
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = rows[ky] + plane * stride + x - 1;
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx, weights += kOut) {
        if constexpr (kVec <= kOut) {
          Lanes data[kVec];
#pragma GCC unroll 8
          for (int v = 0; v < kVec; ++v) data[v] = load(row + kx + v * kPixels);
#pragma GCC unroll 8
          for (int o = 0; o < kOut; ++o) {
            const Lanes weight = broadcast(weights[o]);
#pragma GCC unroll 8
            for (int v = 0; v < kVec; ++v)
              sums[o][v] = Channels::multiply_add(sums[o][v], data[v], weight);
          }
        } else {
          Lanes weight[kOut];
#pragma GCC unroll 8
          for (int o = 0; o < kOut; ++o) weight[o] = broadcast(weights[o]);
#pragma GCC unroll 8
          for (int v = 0; v < kVec; ++v) {
            const Lanes data = load(row + kx + v * kPixels);
#pragma GCC unroll 8
            for (int o = 0; o < kOut; ++o)
              sums[o][v] = Channels::multiply_add(sums[o][v], data, weight[o]);
          }
        }
      }
    }
  }
}

// The same over pixels [begin, end), rounded up to whole vectors; finish(x, sums) gets the sums of
// 16 pixels, kOut vectors.
template <class Channels, int kOut, int kVec, class Finish>
CLIPWEATHER_INLINE void convolve_row(const float* const (&rows)[3], int64_t stride, int64_t planes,
                                     const float* weights, const float* bias, int64_t begin,
                                     int64_t end, const Finish& finish) {
  int64_t x = begin;
  for (; x + (kVec - 1) * kPixels < end; x += kVec * kPixels) {
    Lanes sums[kOut][kVec];
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o)
#pragma GCC unroll 8
      for (int v = 0; v < kVec; ++v) sums[o][v] = broadcast(bias[o]);
    convolve<Channels, kOut, kVec>(rows, stride, planes, weights, x, sums);
#pragma GCC unroll 8
    for (int v = 0; v < kVec; ++v) {
      Lanes own[kOut];
#pragma GCC unroll 8
      for (int o = 0; o < kOut; ++o) own[o] = sums[o][v];
      finish(x + v * kPixels, own);
    }
  }
  for (; x < end; x += kPixels) {
    Lanes sums[kOut][1];
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) sums[o][0] = broadcast(bias[o]);
    convolve<Channels, kOut, 1>(rows, stride, planes, weights, x, sums);
    Lanes own[kOut];
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) own[o] = sums[o][0];
    finish(x, own);
  }
}

// even and odd pixels in turn.
CLIPWEATHER_INLINE void store_interleaved(float* to, Lanes even, Lanes odd) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high =
      _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  _mm512_storeu_ps(to, _mm512_permutex2var_ps((__m512)even, low, (__m512)odd));
  _mm512_storeu_ps(to + kPixels, _mm512_permutex2var_ps((__m512)even, high, (__m512)odd));
#else
  for (int i = 0; i < kPixels; ++i) {
    to[2 * i] = even[i];
    to[2 * i + 1] = odd[i];
  }
#endif
}

// One output row of a transposed convolution of kernel 4, stride 2 and padding 1: pixels 2 n and
// 2 n + 1 for n in [begin, end), rounded up to whole vectors. Two rows of the input reach it.
// weights: (planes, 2 rows, 4 taps, kUpOutputs); finish(n, even sums, odd sums) of 16 n.
template <class Channels, int kVec, class Finish>
CLIPWEATHER_INLINE int64_t double_row(const float* const (&rows)[2], int64_t stride, int64_t planes,
                                      const float* weights, const float* bias, int64_t begin,
                                      int64_t end, const Finish& finish) {
  constexpr int kOut = kUpOutputs;
  int64_t n = begin;
  for (; n + (kVec - 1) * kPixels < end; n += kVec * kPixels) {
    Lanes even[kVec][kOut], odd[kVec][kOut];
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o)
#pragma GCC unroll 4
      for (int v = 0; v < kVec; ++v) even[v][o] = odd[v][o] = broadcast(bias[o]);
    const float* tap = weights;
    for (int64_t plane = 0; plane < planes; ++plane) {
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r, tap += 4 * kOut) {
        const float* row = rows[r] + plane * stride + n;
        Lanes before[kVec], here[kVec], after[kVec];
#pragma GCC unroll 4
        for (int v = 0; v < kVec; ++v) {
          before[v] = load(row + v * kPixels - 1);
          here[v] = load(row + v * kPixels);
          after[v] = load(row + v * kPixels + 1);
        }
#pragma GCC unroll 4
        for (int o = 0; o < kOut; ++o) {
#pragma GCC unroll 4
          for (int v = 0; v < kVec; ++v) {
            even[v][o] = Channels::multiply_add(even[v][o], here[v], broadcast(tap[o]));
            even[v][o] = Channels::multiply_add(even[v][o], before[v], broadcast(tap[kOut + o]));
            odd[v][o] = Channels::multiply_add(odd[v][o], after[v], broadcast(tap[2 * kOut + o]));
            odd[v][o] = Channels::multiply_add(odd[v][o], here[v], broadcast(tap[3 * kOut + o]));
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVec; ++v) finish(n + v * kPixels, even[v], odd[v]);
  }
  return n;
}

CLIPWEATHER_INLINE Lanes tanh(Lanes v) { return 1.0f - 2.0f / (exp(v + v) + 1.0f); }

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
