// picture_tail by the matrix unit, in bfloat16, for 16 channels at stride 2 and in the branch and 8
// at stride 1, as three of the networks here have them; with the residual block before it, if it is
// given. Rows are of pixels, not of planes: 16 neighbouring pixels are a matrix that lies
// in memory as the unit reads it, each row a pixel's own neighbourhood.
//
// Numbers that are multiplied with zeros would still spread their NaN, so every register takes
// exactly the pixels that its outputs look at.
#pragma once

#include "common/cpu_math.h"
#include "common/cpu_matrix_unit.h"
#include "inference/cpu_planes.h"
#include "inference/cpu_tail_weights.h"
#include "inference/picture_tail.h"

#if defined(__AMX_BF16__)
namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {  // one copy per translation unit, as of what it uses

constexpr int64_t kTailRing = 4;           // rows a layer keeps; three are looked at
constexpr int64_t kTailHalo = 16;          // columns beside a strip, half as many at stride 2
constexpr int64_t kTailSlack = 4 * kSide;  // whole registers may run past the end of a row

bool matrix_tail_suits(const PictureTailArgs& a) {
  return a.x_type == DType::kBFloat16 && a.c == kCoarse && a.d == kFine &&
         (a.first.weight == nullptr || a.e == kCoarse);
}

// One task's rows; see Flow of picture_tail_cpu.cpp, whose counterpart it is.
class MatrixFlow {
 public:
  MatrixFlow(const PictureTailArgs& args, const MatrixLayers& layers, bfloat16_t* memory, int64_t n,
             int64_t top, int64_t bottom, int64_t left, int64_t right)
      : a_(args),
        layers_(layers),
        branch_(args.first.weight != nullptr),
        dense_(args.dense[0].weight != nullptr),
        n_(n),
        left_(left),
        right_(right),
        base_(left - kTailHalo),
        reach_(branch_ ? 3 : 1) {
    const int64_t wide = right - left + 2 * kTailHalo + kTailSlack;
    const int64_t half = (right - left) / 2 + kTailHalo + kTailSlack;
    place(input_, memory, half, kCoarse);
    if (dense_) place(squeezed_, memory, half, kCoarse), place(summed_, memory, half, kCoarse);
    place(features_, memory, wide, branch_ ? kCoarse : kFine);
    if (branch_) {
      place(hidden_, memory, wide, kCoarse);
      place(detailed_, memory, wide, kFine);
    }
    detailed_.next = top - 1;
    hidden_.next = top - 2;
    features_.next = top - reach_;
    summed_.next = (features_.next - 1) >> 1;
    squeezed_.next = summed_.next - 1;
    input_.next = dense_ ? squeezed_.next - 1 : summed_.next;
    for (int64_t y = top; y < bottom; ++y) picture_row(y);
  }

  // Numbers for a strip of so many columns.
  static int64_t memory(int64_t columns) {
    const int64_t half = columns / 2 + kTailHalo + kTailSlack;
    const int64_t wide = columns + 2 * kTailHalo + kTailSlack;
    return kTailRing * (3 * half * kCoarse + wide * (2 * kCoarse + kFine));
  }

 private:
  // Rows of a layer by their number modulo kTailRing; pixels are `channels` numbers.
  struct Ring {
    bfloat16_t* data;
    int64_t wide, channels;
    int64_t next;  // the first row that is not there yet

    bfloat16_t* row(int64_t y) const { return data + (y & (kTailRing - 1)) * wide * channels; }
    void clear(int64_t y) const { clear_from(y, 0); }
    void clear_from(int64_t y, int64_t pixel) const {
      if (pixel < wide)
        std::memset(static_cast<void*>(row(y) + pixel * channels), 0,
                    static_cast<size_t>((wide - pixel) * channels) * sizeof(bfloat16_t));
    }
  };

  static void place(Ring& ring, bfloat16_t*& memory, int64_t wide, int64_t channels) {
    ring = {memory, wide, channels, 0};
    for (int64_t y = 0; y < kTailRing; ++y) ring.clear(y);
    memory += kTailRing * wide * channels;
  }

  int64_t begin(int64_t more) const { return left_ - more > 0 ? left_ - more : 0; }
  int64_t end(int64_t more) const { return right_ + more < a_.w ? right_ + more : a_.w; }
  // The same at stride 2, where the transposed layer begins and ends, and so many more.
  int64_t half_begin(int64_t more) const {
    const int64_t x = begin(reach_) / 2 - more;
    return x > 0 ? x : 0;
  }
  int64_t half_end(int64_t more) const {
    const int64_t x = (end(reach_) + 1) / 2 + more;
    return x < a_.w / 2 ? x : a_.w / 2;
  }
  int64_t half_base() const { return base_ / 2; }

  // Three rows about y, shifted so that pixel x is at x.
  static void about(const Ring& ring, int64_t y, int64_t base, const bfloat16_t* (&rows)[3]) {
    for (int i = 0; i < 3; ++i) rows[i] = ring.row(y - 1 + i) - base * ring.channels;
  }

  // Groups of 16 pixels: products(x), then store(sums) out of the registers, then finish(x, sums),
  // which waits until the next group is being multiplied.
  template <class Products, class Store, class Finish>
  static CLIPWEATHER_INLINE void in_groups(int64_t begin, int64_t end, const Products& products,
                                           const Store& store_sums, const Finish& finish) {
    alignas(64) float sums[2][kSide * kSide];
    int64_t x = begin;
    for (int turn = 0; x < end; x += kSide, turn ^= 1) {
      products(x);
      if (x > begin) finish(x - kSide, sums[turn ^ 1]);
      store_sums(sums[turn]);
      if (x + kSide >= end) finish(x, sums[turn]);
    }
  }

  void input_row(int64_t y) {
    const int64_t wide = a_.w / 2, base = half_base();
    if (y < 0 || y >= a_.h / 2) return input_.clear(y);
    const int64_t from = half_begin(3), past = half_end(3);
    const bfloat16_t* pixels =
        static_cast<const bfloat16_t*>(a_.x) + (n_ * (a_.h / 2) + y) * wide * kCoarse;
    std::memcpy(static_cast<void*>(input_.row(y) + (from - base) * kCoarse),
                pixels + from * kCoarse,
                static_cast<size_t>((past - from) * kCoarse) * sizeof(bfloat16_t));
    if (past == wide) input_.clear_from(y, wide - base);
  }

  void squeezed_row(int64_t y) {
    if (y < 0 || y >= a_.h / 2) return squeezed_.clear(y);
    for (; input_.next <= y + 1; ++input_.next) input_row(input_.next);
    Wide<64> products{{}, layers_.dense[0]};
    about(input_, y, half_base(), products.rows);
    rectified_row(products, squeezed_.row(y) - half_base() * kCoarse, layers_.dense_bias[0],
                  half_begin(2), half_end(2));
    if (half_end(2) == a_.w / 2) squeezed_.clear_from(y, a_.w / 2 - half_base());
  }

  void summed_row(int64_t y) {
    if (y < 0 || y >= a_.h / 2) return summed_.clear(y);
    for (; squeezed_.next <= y + 1; ++squeezed_.next) squeezed_row(squeezed_.next);
    Wide<64> products{{}, layers_.dense[1]};
    about(squeezed_, y, half_base(), products.rows);
    const int64_t base = half_base() * kCoarse;
    bfloat16_t* const to = summed_.row(y) - base;
    const bfloat16_t* const from = input_.row(y) - base;
    const Vector<float> bias = load(layers_.dense_bias[1]);
    const MatrixUnit unit(products.kShapes);
    products.load_weights();
    in_groups(
        half_begin(1), half_end(1), products, [](float* sums) { matrix_store<0>(sums, 64); },
        [&](int64_t x, const float* sums) {
          for (int64_t i = 0; i < kSide; ++i)
            store(to + (x + i) * kCoarse,
                  load(sums + i * kSide) + bias + load(from + (x + i) * kCoarse));
        });
    if (half_end(1) == a_.w / 2) summed_.clear_from(y, a_.w / 2 - half_base());
  }

  void features_row(int64_t y) {
    if (y < 0 || y >= a_.h) return features_.clear(y);
    Ring& source = dense_ ? summed_ : input_;
    // Output rows 2 m look at rows m and m - 1, rows 2 m + 1 at m and m + 1.
    const int64_t m = y >> 1, other = y & 1 ? m + 1 : m - 1;
    for (; source.next <= (other > m ? other : m); ++source.next)
      dense_ ? summed_row(source.next) : input_row(source.next);
    const bfloat16_t* const here = source.row(m) - half_base() * kCoarse;
    const bfloat16_t* const there = source.row(other) - half_base() * kCoarse;
    bfloat16_t* const to = features_.row(y) - base_ * features_.channels;
    const MatrixUnit unit(
        {{kSide, 32}, {kSide, 32}, {kSide, 64}, {}, {16, 32}, {16, 32}, {16, 32}, {16, 32}});
    const auto& weights = layers_.up[y & 1];
    matrix_load<4>(weights[0][0], 32), matrix_load<5>(weights[0][1], 32);
    matrix_load<6>(weights[1][0], 32), matrix_load<7>(weights[1][1], 32);
    const Vector<float> bias = load(layers_.up_bias);
    const int64_t channels = features_.channels;
    in_groups(
        half_begin(0), half_end(0),
        [&](int64_t n) {
          matrix_clear<0>(), matrix_clear<1>();
          matrix_load<2>(here + (n - 1) * kCoarse, kCoarse * 2), matrix_multiply<0, 2, 4>();
          matrix_load<2>(here + n * kCoarse, kCoarse * 2), matrix_multiply<1, 2, 5>();
          matrix_load<2>(there + (n - 1) * kCoarse, kCoarse * 2), matrix_multiply<0, 2, 6>();
          matrix_load<2>(there + n * kCoarse, kCoarse * 2), matrix_multiply<1, 2, 7>();
        },
        [](float* sums) {  // even and odd pixels in turn
          matrix_store<0>(sums, 64), matrix_store<1>(sums + kFine, 64);
        },
        [&](int64_t n, const float* sums) {
          for (int64_t i = 0; i < kSide; ++i) {
            const __m256i two = rounded(load(sums + i * kSide) + bias);
            bfloat16_t* const pixel = to + 2 * (n + i) * channels;
            if (channels == kFine) {
              _mm256_storeu_si256(reinterpret_cast<__m256i*>(pixel), two);
            } else {
              _mm_storeu_si128(reinterpret_cast<__m128i*>(pixel), _mm256_castsi256_si128(two));
              _mm_storeu_si128(reinterpret_cast<__m128i*>(pixel + channels),
                               _mm256_extracti128_si256(two, 1));
            }
          }
        });
    if (end(reach_) == a_.w) features_.clear_from(y, a_.w - base_);
    if (branch_) show_picture(y);
  }

  // The picture's row behind the features, and a zero.
  void show_picture(int64_t y) {
    const float* const pixels = a_.picture + ((n_ * a_.h + y) * a_.w) * 3;
    bfloat16_t* const to = features_.row(y) - base_ * kCoarse + kPictureAt;
    for (int64_t x = begin(reach_); x < end(reach_); x += 4) {
      const int64_t count = end(reach_) - x < 4 ? end(reach_) - x : 4;
      const __m256i four = rounded(four_pixels(pixels + 3 * x, count));
      alignas(32) uint64_t each[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(each), four);
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(static_cast<void*>(to + (x + i) * kCoarse), &each[i], sizeof each[i]);
    }
  }

  // The three colours of each and a zero.
  static CLIPWEATHER_INLINE Vector<float> four_pixels(const float* p, int64_t count) {
    const __mmask16 there = static_cast<__mmask16>(0x7777 & ((1u << (4 * count)) - 1));
    return (Vector<float>)_mm512_maskz_expandloadu_ps(there, p);
  }
  static CLIPWEATHER_INLINE __m256i rounded(Vector<float> v) {
    return (__m256i)_mm512_cvtneps_pbh((__m512)v);
  }

  // A 3 x 3 convolution over 16 channels, of `kBytes` / 4 outputs: register 0 becomes its sums. Of
  // its weights four stay in registers 3 to 6, two go through register 7.
  template <int kBytes>
  struct Wide {
    const bfloat16_t* rows[3];
    const bfloat16_t* const (&weights)[3][2];

    static constexpr MatrixShape kShapes[8] = {{kSide, kBytes}, {kSide, 64},  {kSide, 32},
                                               {16, kBytes},    {16, kBytes}, {16, kBytes},
                                               {8, kBytes},     {8, kBytes}};
    void load_weights() const {
      matrix_load<3>(weights[0][0], kBytes), matrix_load<4>(weights[1][0], kBytes);
      matrix_load<5>(weights[2][0], kBytes), matrix_load<6>(weights[0][1], kBytes);
    }
    CLIPWEATHER_INLINE void operator()(int64_t x) const {
      constexpr int64_t kPixel = kCoarse * 2;
      const int64_t before = (x - 1) * kCoarse, after = (x + 1) * kCoarse;
      matrix_clear<0>();
      matrix_load<1>(rows[0] + before, kPixel), matrix_multiply<0, 1, 3>();
      matrix_load<2>(rows[0] + after, kPixel), matrix_multiply<0, 2, 6>();
      matrix_load<1>(rows[1] + before, kPixel), matrix_multiply<0, 1, 4>();
      matrix_load<2>(rows[1] + after, kPixel);
      matrix_load<7>(weights[1][1], kBytes), matrix_multiply<0, 2, 7>();
      matrix_load<1>(rows[2] + before, kPixel), matrix_multiply<0, 1, 5>();
      matrix_load<2>(rows[2] + after, kPixel);
      matrix_load<7>(weights[2][1], kBytes), matrix_multiply<0, 2, 7>();
    }
  };

  void hidden_row(int64_t y) {
    if (y < 0 || y >= a_.h) return hidden_.clear(y);
    for (; features_.next <= y + 1; ++features_.next) features_row(features_.next);
    Wide<64> products{{}, layers_.first};
    about(features_, y, base_, products.rows);
    rectified_row(products, hidden_.row(y) - base_ * kCoarse, layers_.first_bias, begin(2), end(2));
    if (end(2) == a_.w) hidden_.clear_from(y, a_.w - base_);
  }

  // A row of 16 channels through its ReLU.
  static void rectified_row(const Wide<64>& products, bfloat16_t* to, const float* all_bias,
                            int64_t begin, int64_t end) {
    const Vector<float> bias = load(all_bias);
    const MatrixUnit unit(products.kShapes);
    products.load_weights();
    in_groups(
        begin, end, products, [](float* sums) { matrix_store<0>(sums, 64); },
        [&](int64_t x, const float* sums) {
          for (int64_t i = 0; i < kSide; ++i)  // a NaN stays one
            store(to + (x + i) * kCoarse, max(Vector<float>{}, load(sums + i * kSide) + bias));
        });
  }

  void detailed_row(int64_t y) {
    if (y < 0 || y >= a_.h) return detailed_.clear(y);
    for (; hidden_.next <= y + 1; ++hidden_.next) hidden_row(hidden_.next);
    Wide<32> products{{}, layers_.second};
    about(hidden_, y, base_, products.rows);
    bfloat16_t* const to = detailed_.row(y) - base_ * kFine;
    const bfloat16_t* const from = features_.row(y) - base_ * kCoarse;
    const Vector<float> bias = load(layers_.second_bias);
    const MatrixUnit unit(products.kShapes);
    products.load_weights();
    in_groups(
        begin(1), end(1), products, [](float* sums) { matrix_store<0>(sums, 32); },
        [&](int64_t x, const float* sums) {
          for (int64_t i = 0; i < kSide; i += 2) {
            const bfloat16_t* const pixel = from + (x + i) * kCoarse;
            const __m256i two = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel))),
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel + kCoarse)), 1);
            const Vector<float> features =
                (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(two), 16);
            store(to + (x + i) * kFine, load(sums + i * kFine) + bias + features);
          }
        });
    if (end(1) == a_.w) detailed_.clear_from(y, a_.w - base_);
  }

  void picture_row(int64_t y) {
    Ring& source = branch_ ? detailed_ : features_;
    for (; source.next <= y + 1; ++source.next)
      branch_ ? detailed_row(source.next) : features_row(source.next);
    switch (a_.adds) {
      case Adds::kNothing:
        return last_row<Adds::kNothing>(source, y);
      case Adds::kPicture:
        return last_row<Adds::kPicture>(source, y);
      case Adds::kGated:
        return last_row<Adds::kGated>(source, y);
    }
  }

  template <Adds kAdds>
  void last_row(const Ring& source, int64_t y) {
    const float* const pixels = a_.picture + ((n_ * a_.h + y) * a_.w) * 3;
    float* const to = a_.y + ((n_ * a_.rows + y) * a_.columns) * 3;
    const bfloat16_t* rows[3];
    about(source, y, base_, rows);
    const MatrixUnit unit(
        {{kSide, 16}, {kSide, 48}, {kSide, 48}, {kSide, 48}, {12, 16}, {12, 16}, {12, 16}, {}});
    matrix_load<4>(layers_.last[0], 16), matrix_load<5>(layers_.last[1], 16);
    matrix_load<6>(layers_.last[2], 16);
    const Vector<float> bias = load(layers_.last_bias);
    in_groups(
        left_, right_,
        [&](int64_t x) {
          const int64_t before = (x - 1) * kFine;
          matrix_clear<0>();
          matrix_load<1>(rows[0] + before, kFine * 2), matrix_multiply<0, 1, 4>();
          matrix_load<2>(rows[1] + before, kFine * 2), matrix_multiply<0, 2, 5>();
          matrix_load<3>(rows[2] + before, kFine * 2), matrix_multiply<0, 3, 6>();
        },
        [](float* sums) { matrix_store<0>(sums, 16); },
        [&](int64_t first, const float* sums) {
          for (int64_t i = 0; i < kSide && first + i < right_; i += 4) {
            const int64_t x = first + i, count = right_ - x < 4 ? right_ - x : 4;
            Vector<float> value = tanh(load(sums + 4 * i) + bias);
            if constexpr (kAdds != Adds::kNothing) {
              Vector<float> added = (four_pixels(pixels + 3 * x, count) + 1.0f) * 0.5f;
              if constexpr (kAdds == Adds::kGated)
                added *= 1.0f - (Vector<float>)_mm512_permute_ps((__m512)value, 0xff);
              value += added;
            }
            const __mmask16 there = static_cast<__mmask16>(0x7777 & ((1u << (4 * count)) - 1));
            _mm512_mask_compressstoreu_ps(to + 3 * x, there, (__m512)value);
          }
        });
  }

  const PictureTailArgs& a_;
  const MatrixLayers& layers_;
  const bool branch_, dense_;
  const int64_t n_, left_, right_, base_;
  const int64_t reach_;  // columns and rows of features beyond the strip that the layers look at
  Ring input_{}, squeezed_{}, summed_{}, features_{}, hidden_{}, detailed_{};
};

}  // namespace
}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
