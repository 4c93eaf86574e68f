// 3x3 kernels in bfloat16, two taps to an instruction: a lane is a channel and holds two pixels of
// it, so that five instructions stand for nine multiply-adds. Taps are rounded to bfloat16, sums
// are float32.
//
// The pairs of a bank: rows 0 and 1 of each column, the first two columns of row 2, and its last
// column with nothing.
#pragma once

#include <type_traits>

#include "common/cpu_vector.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int kTapPairs = 5;

#if defined(CLIPWEATHER_PAIRS)
// Whether convolutions of T have their taps in pairs.
template <class T>
inline constexpr bool kPairsTaps = std::is_same_v<T, bfloat16_t>;

struct TapPairs {
  // 16 channels of a pixel, zeros past the last.
  static CLIPWEATHER_INLINE __m256i channels(const bfloat16_t* p, int64_t live) {
    if (live == kLanes<float>) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << live) - 1), p);
  }
  // Lanes of two pixels, the first in the lower half.
  static CLIPWEATHER_INLINE __m512i both(__m256i first, __m256i second) {
    const __m512i places =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(_mm512_castsi256_si512(first), places,
                                     _mm512_castsi256_si512(second));
  }
  static CLIPWEATHER_INLINE __m512i alone(__m256i pixel) { return _mm512_cvtepu16_epi32(pixel); }
  static CLIPWEATHER_INLINE Vector<float> multiply_add(Vector<float> sum, __m512i pixels,
                                                       Vector<float> taps) {
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pixels, (__m512bh)taps);
  }
  // out[pair] of nine taps, each kLanes wide, row by row.
  static void pack(const float* const (&taps)[9], float* out) {
    constexpr int kFirst[kTapPairs] = {0, 1, 2, 6, 8}, kSecond[kTapPairs] = {3, 4, 5, 7, -1};
    for (int pair = 0; pair < kTapPairs; ++pair) {
      const __m256i first = rounded(taps[kFirst[pair]]);
      const __m256i second =
          kSecond[pair] < 0 ? _mm256_setzero_si256() : rounded(taps[kSecond[pair]]);
      store(out + pair * kLanes<float>, (Vector<float>)both(first, second));
    }
  }

 private:
  static __m256i rounded(const float* values) {
    return (__m256i)_mm512_cvtneps_pbh((__m512)load(values));
  }
};
#else
template <class T>
inline constexpr bool kPairsTaps = false;
#endif

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
