// Images whose pixels lie taken apart (see cpu_matrix_parts.h), as the matrix unit reads them: 16
// neighbours in a row, or every second, are a register, so that nothing is gathered for a
// convolution.
//
// Of 32 channels three parts lie one after the other, 64 bytes each: all its rows multiply a
// register of weights of one part. 16 channels fill a register's rows only with two parts: pairs of
// (second, first), then pairs of (first, third).
#pragma once

#if defined(__AMX_BF16__)
#include <type_traits>

#include "common/cpu_matrix_parts.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// How a pixel of a multiple of 16 channels lies.
struct PartPixel {
  static constexpr int64_t kPart = 64;    // bytes: a row of a register
  static constexpr int64_t kWide = 32;    // channels of three such
  static constexpr int64_t kNarrow = 16;  // of two such
  static constexpr int64_t kWideBytes = 3 * kPart;
  static constexpr int64_t kNarrowBytes = 2 * kPart;
  // Pairs of a weight for 16 or 32 channels by 16 outputs.
  static constexpr int64_t kWeights = 3 * kPartRegister;

  int64_t wide;  // steps of 32 channels
  bool narrow;   // and one of 16

  explicit PartPixel(int64_t channels) : wide(channels / kWide), narrow(channels % kWide != 0) {}
  int64_t bytes() const { return wide * kWideBytes + (narrow ? kNarrowBytes : 0); }
  int64_t steps() const { return wide + (narrow ? 1 : 0); }

  static CLIPWEATHER_INLINE void store_narrow(__m512 v, char* to) {
    const Parts p = parts_of(v);
    _mm512_store_si512(to, paired(p.part[1], p.part[0]));
    _mm512_store_si512(to + kPart, paired(p.part[0], p.part[2]));
  }
  void store(const float* from, char* to) const {
    for (int64_t i = 0; i < wide; ++i, from += kWide, to += kWideBytes) {
      const Parts low = parts_of(_mm512_loadu_ps(from)),
                  high = parts_of(_mm512_loadu_ps(from + 16));
      for (int p = 0; p < 3; ++p)
        _mm512_store_si512(to + p * kPart, paired(low.part[p], high.part[p]));
    }
    if (narrow) store_narrow(_mm512_loadu_ps(from), to);
  }
};

// Registers 0 to kGroups - 1 += 16 pixels each, `pixel` bytes apart from `from`, times a step's
// three registers of weights. Between: called after each group, while the unit multiplies.
template <int kGroups>
class PartSums {
 public:
  PartSums(const char* const* from, int64_t pixel) : from_(from), pixel_(pixel) {}

  CLIPWEATHER_INLINE void clear() const {
    matrix_clear<0>();
    if constexpr (kGroups > 1) matrix_clear<1>();
    if constexpr (kGroups > 2) matrix_clear<2>();
    if constexpr (kGroups > 3) matrix_clear<3>();
  }
  CLIPWEATHER_INLINE void store(float* to) const {
    matrix_store<0>(to, 64);
    if constexpr (kGroups > 1) matrix_store<1>(to + kPartRegister, 64);
    if constexpr (kGroups > 2) matrix_store<2>(to + 2 * kPartRegister, 64);
    if constexpr (kGroups > 3) matrix_store<3>(to + 3 * kPartRegister, 64);
  }
  template <class Between>
  CLIPWEATHER_INLINE void add_wide(int64_t at, const uint32_t* weights, Between& between) const {
    load_weights(weights);
    each([&](auto group, const char* from) {
      constexpr int kSum = decltype(group)::value;
      from += at;
      matrix_load<4>(from + 2 * PartPixel::kPart, pixel_), matrix_multiply<kSum, 4, 5>();
      matrix_load<4>(from + PartPixel::kPart, pixel_), matrix_multiply<kSum, 4, 5>();
      matrix_multiply<kSum, 4, 6>();
      matrix_load<4>(from, pixel_), matrix_multiply<kSum, 4, 7>();
      matrix_multiply<kSum, 4, 6>(), matrix_multiply<kSum, 4, 5>();
      between();
    });
  }
  template <class Between>
  CLIPWEATHER_INLINE void add_narrow(int64_t at, const uint32_t* weights, Between& between) const {
    load_weights(weights);
    each([&](auto group, const char* from) {
      constexpr int kSum = decltype(group)::value;
      from += at;
      matrix_load<4>(from + PartPixel::kPart, pixel_), matrix_multiply<kSum, 4, 5>();
      matrix_load<4>(from, pixel_), matrix_multiply<kSum, 4, 6>();
      matrix_multiply<kSum, 4, 7>();
      between();
    });
  }

 private:
  static CLIPWEATHER_INLINE void load_weights(const uint32_t* weights) {
    matrix_load<5>(weights, 64), matrix_load<6>(weights + kPartRegister, 64);
    matrix_load<7>(weights + 2 * kPartRegister, 64);
  }
  template <class Body>
  CLIPWEATHER_INLINE void each(const Body& body) const {
    body(std::integral_constant<int, 0>{}, from_[0]);
    if constexpr (kGroups > 1) body(std::integral_constant<int, 1>{}, from_[1]);
    if constexpr (kGroups > 2) body(std::integral_constant<int, 2>{}, from_[2]);
    if constexpr (kGroups > 3) body(std::integral_constant<int, 3>{}, from_[3]);
  }

  const char* const* from_;
  int64_t pixel_;
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
