// The weights of cpu_matrix_tail.h's layers, as the matrix unit takes them.
#pragma once

#include "common/cpu_buffer.h"
#include "common/cpu_matrix_unit.h"
#include "common/cpu_vector.h"
#include "inference/picture_tail.h"

#if defined(__AMX_BF16__)
namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {  // one copy per translation unit, as of what it uses

constexpr int64_t kSide = kMatrixRows;  // pixels and channels of a register
constexpr int64_t kCoarse = 16;         // channels at stride 2, and of the branch
constexpr int64_t kFine = 8;            // channels at stride 1
constexpr int64_t kPictureAt = kFine;   // where the picture's three stand behind them

// Weights as registers take them: rows of pairs of numbers of the neighbourhood, then outputs.
struct MatrixWeights {
  static constexpr int64_t kRoom = 2 * kSide * kSide;  // numbers of a register

  // From weight(pixel, channel, output), of `pixels` of `channels`, an even number.
  template <class Weight>
  static const bfloat16_t* pack(bfloat16_t* to, int64_t pixels, int64_t channels, int64_t outputs,
                                const Weight& weight) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t o = 0; o < outputs; ++o) {
          const int64_t row = (pixel * channels + c) / 2;
          const Vector<float> one = broadcast(weight(pixel, c, o));
          store_first(to + (row * outputs + o) * 2 + c % 2, one, 1);
        }
    return to;
  }
};

// Of all layers, one copy for all tasks.
struct MatrixLayers {
  explicit MatrixLayers(const PictureTailArgs& a) : room((8 + 4 * 6 + 3) * MatrixWeights::kRoom) {
    bfloat16_t* at = room.get();
    const auto take = [&] {
      bfloat16_t* const taken = at;
      at += MatrixWeights::kRoom;
      return taken;
    };
    for (int i = 0; i < 2 && a.dense[0].weight != nullptr; ++i) {
      wide(dense[i], a.dense[i].weight, kCoarse, kCoarse, take);
      once(dense_bias[i], a.dense[i].bias);
    }
    for (int parity = 0; parity < 2; ++parity) {
      // Even pixels look at the one before and here, odd ones here and at the one after.
      const int ky[2][2] = {{1, 3}, {2, 0}}, kx[2][2] = {{3, 1}, {2, 0}};
      for (int row = 0; row < 2; ++row)
        for (int odd = 0; odd < 2; ++odd)
          up[parity][row][odd] = MatrixWeights::pack(
              take(), 2, kCoarse, kFine, [&](int64_t pixel, int64_t c, int64_t o) {
                return a.up.weight[((c * kFine + o) * 4 + ky[parity][row]) * 4 + kx[odd][pixel]];
              });
    }
    twice(up_bias, a.up.bias, kFine);
    if (a.first.weight != nullptr) {
      wide(first, a.first.weight, kFine + 3, kCoarse, take);
      wide(second, a.second.weight, kCoarse, kFine, take);
      once(first_bias, a.first.bias);
      twice(second_bias, a.second.bias, kFine);
    }
    const int64_t outputs = a.adds == Adds::kGated ? 4 : 3;
    for (int ky = 0; ky < 3; ++ky)
      last[ky] = MatrixWeights::pack(take(), 3, kFine, 4, [&](int64_t kx, int64_t c, int64_t o) {
        return o < outputs ? a.last.weight[((o * kFine + c) * 3 + ky) * 3 + kx] : 0.0f;
      });
    for (int64_t i = 0; i < kSide; ++i)
      last_bias[i] = i % 4 < outputs && a.last.bias != nullptr ? a.last.bias[i % 4] : 0.0f;
  }

  Buffer<bfloat16_t> room;
  const bfloat16_t* up[2][2][2];  // by the row's parity, the input's row and the column's parity
  const bfloat16_t *dense[2][3][2], *first[3][2], *second[3][2], *last[3];
  alignas(64) float dense_bias[2][kSide], up_bias[kSide], first_bias[kSide],
      second_bias[kSide], last_bias[kSide];

 private:
  // Of a 3 x 3 convolution over 16 channels: pixels before and here, and the one after.
  template <class Take>
  static void wide(const bfloat16_t* (&to)[3][2], const float* weight, int64_t in, int64_t out,
                   const Take& take) {
    for (int ky = 0; ky < 3; ++ky)
      for (int part = 0; part < 2; ++part)
        to[ky][part] = MatrixWeights::pack(
            take(), part == 0 ? 2 : 1, kCoarse, out, [&](int64_t pixel, int64_t c, int64_t o) {
              const int64_t kx = 2 * part + pixel;
              return c < in ? weight[((o * in + c) * 3 + ky) * 3 + kx] : 0.0f;
            });
  }
  static void once(float (&to)[kSide], const float* bias) {
    for (int64_t o = 0; o < kSide; ++o) to[o] = bias == nullptr ? 0.0f : bias[o];
  }
  // Of two pixels side by side.
  static void twice(float (&to)[kSide], const float* bias, int64_t count) {
    for (int64_t i = 0; i < kSide; ++i) to[i] = bias == nullptr ? 0.0f : bias[i % count];
  }
};

}  // namespace
}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
