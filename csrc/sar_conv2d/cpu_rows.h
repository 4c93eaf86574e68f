// Forward, row by row: a stretch of one image row through all banks.
//
// A group of kGroup neighbouring pixels walks over the channels, kLanes at a time. Pixels are
// contiguous, so memory is read in streams; the banks' taps come from L1 or L2 and each serves
// kGroup pixels. Arithmetic bounds it: (1 + mixed) * 9 + mixed multiply-adds and the GELU per
// element; where two taps of bfloat16 are one instruction (cpu_tap_pairs.h), 5 instead of 9.
#pragma once

#include "sar_conv2d/cpu_banks.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// Pixels whose accumulators fit the register file beside one kernel row of taps.
#if defined(__AVX512F__)
inline constexpr int kGroup = 4;
#else
inline constexpr int kGroup = 2;
#endif
inline constexpr int kAnyBanks = -1;  // number of banks and kernel size known at run time only
inline constexpr int kMaxBanks = 1 + kMaxKernels;

template <class T>
struct Image {
  const T* data;  // (H, W, C) of one picture
  int64_t h, w, c;
  const T* zeros;  // C zeros: what lies beyond the border

  const T* pixel(int64_t row, int64_t column) const {
    if (row < 0 || row >= h || column < 0 || column >= w) return zeros;
    return data + (row * w + column) * c;
  }
};

// The addresses a group of pixels reads: kernel rows x (group + kernel size - 1) columns.
template <class T>
struct Window {
  const T* in[kMaxKernelSize][kGroup + kMaxKernelSize - 1];
  const T* ahead[kGroup];  // two rows below: fetched early, since rows come far apart in memory

  CLIPWEATHER_INLINE void set(const Image<T>& image, int64_t row, int64_t column, int kernel_size) {
    const int64_t half = kernel_size / 2;
    const int columns = kGroup + kernel_size - 1;
    const bool inside =
        row >= half && row + half < image.h && column >= half && column - half + columns <= image.w;
    for (int i = 0; i < kernel_size; ++i)
      for (int j = 0; j < columns; ++j)
        in[i][j] = inside ? image.data + ((row + i - half) * image.w + column + j - half) * image.c
                          : image.pixel(row + i - half, column + j - half);
    const int64_t far = row + half + 1 < image.h ? row + half + 1 : row;
    for (int j = 0; j < kGroup; ++j) {
      const int64_t clamped = column + j < image.w ? column + j : image.w - 1;
      ahead[j] = image.data + (far * image.w + clamped) * image.c;
    }
  }
};

#if defined(CLIPWEATHER_PAIRS)
template <int kCount, int kTaps>
CLIPWEATHER_INLINE void load_pairs(const float* pairs, Vector<float> (&taps)[kCount][kTaps]) {
#pragma GCC unroll 9
  for (int bank = 0; bank < kCount; ++bank)
#pragma GCC unroll 3
    for (int i = 0; i < kTaps; ++i) {
      taps[bank][i] = load(pairs + (bank * kTapPairs + i) * kLanes<float>);
      asm("" : "+v"(taps[bank][i]));  // in a register, as in convolve
    }
}

// What convolve adds, of taps in pairs.
template <int kCount>
CLIPWEATHER_INLINE void convolve_pairs(const Window<bfloat16_t>& window, const float* pairs,
                                       int64_t c, int64_t live,
                                       Vector<float> (&acc)[kCount][kGroup]) {
  const auto channels = [&](int row, int column) {
    return TapPairs::channels(window.in[row][column] + c, live);
  };
  {
    Vector<float> taps[kCount][3];
    load_pairs<kCount, 3>(pairs, taps);
#pragma GCC unroll 6
    for (int column = 0; column < kGroup + 2; ++column) {
      const __m512i x = TapPairs::both(channels(0, column), channels(1, column));
#pragma GCC unroll 4
      for (int pixel = 0; pixel < kGroup; ++pixel)
        if (column >= pixel && column - pixel < 3)
#pragma GCC unroll 9
          for (int bank = 0; bank < kCount; ++bank)
            acc[bank][pixel] =
                TapPairs::multiply_add(acc[bank][pixel], x, taps[bank][column - pixel]);
    }
  }
  Vector<float> taps[kCount][2];
  load_pairs<kCount, 2>(pairs + 3 * kLanes<float>, taps);
#pragma GCC unroll 4
  for (int pixel = 0; pixel < kGroup; ++pixel) {
    const __m512i two = TapPairs::both(channels(2, pixel), channels(2, pixel + 1));
    const __m512i one = TapPairs::alone(channels(2, pixel + 2));
#pragma GCC unroll 9
    for (int bank = 0; bank < kCount; ++bank) {
      acc[bank][pixel] = TapPairs::multiply_add(acc[bank][pixel], two, taps[bank][0]);
      acc[bank][pixel] = TapPairs::multiply_add(acc[bank][pixel], one, taps[bank][1]);
    }
  }
}
#endif

// acc[bank][pixel] = bias + convolution, for kLanes channels from `c` on. kCount and kSize are the
// number of banks and the kernel size, or kAnyBanks.
template <int kCount, int kSize, class T, class A>
CLIPWEATHER_INLINE void convolve(const Window<T>& window, const Banks<A>& banks, int64_t c,
                                 int64_t live,
                                 Vector<A> (&acc)[kCount > 0 ? kCount : kMaxBanks][kGroup]) {
  const int count = kCount > 0 ? kCount : banks.count;
  const int size = kSize > 0 ? kSize : banks.kernel_size;
  const int64_t block = c / kLanes<A>;
  const A* taps = banks.taps_of(block);
  const A* biases = banks.biases_of(block);
#pragma GCC unroll 9
  for (int bank = 0; bank < count; ++bank)
#pragma GCC unroll 4
    for (int p = 0; p < kGroup; ++p) acc[bank][p] = load(biases + bank * kLanes<A>);
#if defined(CLIPWEATHER_PAIRS)
  if constexpr (kPairsTaps<T> && kCount > 0 && kSize == 3)
    return convolve_pairs<kCount>(window, banks.pairs_of(block), c, live, acc);
#endif
#pragma GCC unroll 3
  for (int row = 0; row < size; ++row) {
    const A* row_taps = taps + row * count * size * kLanes<A>;
    if constexpr (kCount > 0 && kSize > 0) {
      // One kernel row of taps in registers: as memory operands they would bind the load ports.
      Vector<A> tap[kCount][kSize];
#pragma GCC unroll 9
      for (int bank = 0; bank < kCount; ++bank)
#pragma GCC unroll 3
        for (int i = 0; i < kSize; ++i) {
          tap[bank][i] = load(row_taps + (bank * kSize + i) * kLanes<A>);
#if defined(__AVX512F__)
          asm("" : "+v"(tap[bank][i]));  // else the compiler folds the load into every multiply-add
#endif
        }
#pragma GCC unroll 6
      for (int column = 0; column < kGroup + kSize - 1; ++column) {
        const T* p = window.in[row][column] + c;
        const Vector<A> x = live == kLanes<A> ? load(p) : load_first(p, live);
#pragma GCC unroll 4
        for (int pixel = 0; pixel < kGroup; ++pixel)
          if (column >= pixel && column - pixel < kSize)
#pragma GCC unroll 9
            for (int bank = 0; bank < kCount; ++bank)
              acc[bank][pixel] += x * tap[bank][column - pixel];
      }
    } else {
      for (int column = 0; column < kGroup + size - 1; ++column) {
        const T* p = window.in[row][column] + c;
        const Vector<A> x = live == kLanes<A> ? load(p) : load_first(p, live);
        for (int pixel = 0; pixel < kGroup; ++pixel) {
          const int i = column - pixel;
          if (i < 0 || i >= size) continue;
          for (int bank = 0; bank < count; ++bank)
            acc[bank][pixel] += x * load(row_taps + (bank * size + i) * kLanes<A>);
        }
      }
    }
  }
}

// Where a group's results go; pixels past the end of the stretch write to a dump.
template <class T>
struct Targets {
  T* y[kGroup];
  T* residual[kGroup];
};

template <int kCount, int kSize, bool kWhole, class T, class A>
CLIPWEATHER_INLINE void mix_block(const Window<T>& window, const Banks<A>& banks,
                                  const A* const (&maps)[kMaxBanks], Activation activation,
                                  bool wants_residual, const Targets<T>& out, int64_t c,
                                  int64_t live_lanes) {
  Vector<A> acc[kCount > 0 ? kCount : kMaxBanks][kGroup];
  const int count = kCount > 0 ? kCount : banks.count;
  const int64_t live = kWhole ? int64_t{kLanes<A>} : live_lanes;
  convolve<kCount, kSize>(window, banks, c, live, acc);
#pragma GCC unroll 4
  for (int p = 0; p < kGroup; ++p) {
    Vector<A> y = acc[0][p];
    if (wants_residual) {
      Vector<A> residual{};
      for (int m = 1; m < count; ++m) residual += acc[m][p] * maps[m - 1][p];
      if (kWhole)
        store(out.residual[p] + c, residual);
      else
        store_first(out.residual[p] + c, residual, live);
      y += residual;
    } else {
#pragma GCC unroll 9
      for (int m = 1; m < count; ++m) y += acc[m][p] * maps[m - 1][p];
    }
    if (activation == Activation::kGelu) y = gelu<T>(y);
    if (kWhole)
      store(out.y[p] + c, y);
    else
      store_first(out.y[p] + c, y, live);
  }
}

// Pixels [w0, w0 + count) of row h. maps: planar, `padded(count)` apart. dump: C elements.
template <int kCount, int kSize, class T, class A>
void mix_row(const Image<T>& image, const Banks<A>& banks, const A* maps, Activation activation,
             T* y, T* residual, int64_t h, int64_t w0, int64_t count, T* dump) {
  const int64_t c = image.c, whole = c / kLanes<A> * kLanes<A>;
  const int size = kSize > 0 ? kSize : banks.kernel_size;
  const int64_t map_stride = padded<A>(count);
  for (int64_t first = 0; first < count; first += kGroup) {
    Window<T> window;
    window.set(image, h, w0 + first, size);
    const A* group_maps[kMaxBanks];
    for (int m = 0; m < banks.count - 1; ++m) group_maps[m] = maps + m * map_stride + first;
    Targets<T> out;
    for (int p = 0; p < kGroup; ++p) {
      const bool live = first + p < count;
      const int64_t offset = (h * image.w + w0 + first + p) * c;
      out.y[p] = live ? y + offset : dump;
      out.residual[p] = live && residual != nullptr ? residual + offset : dump;
    }
    for (int64_t i = 0; i < whole; i += kLanes<A>) {
      for (int p = 0; p < kGroup; ++p) __builtin_prefetch(window.ahead[p] + i);
      mix_block<kCount, kSize, true>(window, banks, group_maps, activation, residual != nullptr,
                                     out, i, kLanes<A>);
    }
    if (whole < c)
      mix_block<kCount, kSize, false>(window, banks, group_maps, activation, residual != nullptr,
                                      out, whole, c - whole);
  }
}

// How an image is cut for the forward pass: strips of rows, tiles of columns whose three rows of
// input stay in L2.
struct ForwardCut {
  int64_t tile, strip, tiles, strips;

  ForwardCut(int64_t h, int64_t w, int64_t c, int64_t element_bytes) {
    constexpr int64_t kRowBytes = 128 << 10;      // of one input row: three fit L2 with room
    constexpr int64_t kTaskElements = 128 << 10;  // enough to hide a task's start
    tile = kRowBytes / (c * element_bytes) / kGroup * kGroup;
    if (tile < 16) tile = 16;
    if (tile > w) tile = w;
    tiles = ceil_div(w, tile);
    tile = ceil_div(ceil_div(w, tiles), kGroup) * kGroup;
    tiles = ceil_div(w, tile);
    strip = kTaskElements / (tile * c);
    if (strip < 4) strip = 4;
    if (strip > h) strip = h;
    strips = ceil_div(h, strip);
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
