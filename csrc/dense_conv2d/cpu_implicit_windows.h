// Windows of an image as an operand of a product that is never in memory: they are read from the
// image while it is packed.
#pragma once

#include "common/cpu_packed_products.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int64_t kMostTaps = 256;  // kernels of 16 x 16

// Window m = (n, i, j) of a grid over each of the images (N, h, w, c), c a multiple of two vectors:
// its tap t is the pixel (step i + down[t], step j + right[t]), zeros beyond the borders. As the
// row m of a matrix it has taps * c numbers.
template <class A>
struct ImplicitWindows {
  const A* image;
  int64_t h, w, c;
  int64_t rows, columns, step;  // of the grid
  int64_t taps;
  int64_t down[kMostTaps], right[kMostTaps];

  void add_tap(int64_t row, int64_t column) { down[taps] = row, right[taps] = column, ++taps; }

  // Where window m's pixels are counted from.
  struct Origin {
    const A* image;
    int64_t row, column;
  };
  Origin origin(int64_t m) const {
    const int64_t row = m / columns, n = row / rows;
    return {image + n * h * w * c, (row - n * rows) * step, (m - row * columns) * step};
  }
  // m + 1's from m's.
  CLIPWEATHER_INLINE void advance(Origin& at) const {
    at.column += step;
    if (at.column < columns * step) return;
    at.column = 0, at.row += step;
    if (at.row >= rows * step) at.row = 0, at.image += h * w * c;
  }
  // The numbers of a tap; null: they are zeros.
  CLIPWEATHER_INLINE const A* pixel(const Origin& at, int64_t tap) const {
    const int64_t row = at.row + down[tap], column = at.column + right[tap];
    if (row < 0 || row >= h || column < 0 || column >= w) return nullptr;
    return at.image + (row * w + column) * c;
  }

  // Rows of the windows as A, see pack_rows_of_a.
  void pack_as_a(int64_t m0, int64_t rows_of_a, int64_t k0, int64_t depth, A* to) const {
    Origin at = origin(m0);
    for (int64_t r = 0; r < rows_of_a; ++r, advance(at), to += kPackedRow<A>)
      for (int64_t k = 0; k < depth;) {
        const int64_t tap = (k0 + k) / c, first = (k0 + k) % c;
        const int64_t some = c - first < depth - k ? c - first : depth - k;
        const A* const from = pixel(at, tap);
        const size_t bytes = sizeof(A) * static_cast<size_t>(some);
        if (from == nullptr)
          std::memset(to + k, 0, bytes);
        else
          std::memcpy(to + k, from + first, bytes);
        k += some;
      }
  }

  // Rows of the windows as B, see pack_panel: a panel is of one tap.
  void pack_as_b(int64_t m0, int64_t count, int64_t n0, A* panel) const {
    const int64_t tap = n0 / c, channel = n0 % c;
    Origin at = origin(m0);
    for (int64_t m = 0; m < count; ++m, advance(at), panel += 2 * kLanes<A>) {
      const A* const from = pixel(at, tap);
      const bool inside = from != nullptr;
      store(panel, inside ? load(from + channel) : Vector<A>{});
      store(panel + kLanes<A>, inside ? load(from + channel + kLanes<A>) : Vector<A>{});
    }
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
