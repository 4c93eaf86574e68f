// How the k = 3 kernels walk an image: strips of rows, groups of columns, slabs of channels; a lane
// holds V channels of one column and slides a window of three rows down its strip. Included by .cu
// files only.
#pragma once

#include "common/cuda_vector.h"

namespace clipweather {

inline constexpr int kTaps = 9;
// Three rows of the window rotate through the same registers, so loops take rows by three. A strip
// is at most this high, which bounds what shared memory holds per row.
inline constexpr int kMaxStrip = 24;
// Blocks enough to fill the GPUs of today several times before strips get higher.
inline constexpr int64_t kWantedBlocks = 1024;
// Rows ahead of the window that are asked into L2.
inline constexpr int kPrefetchRows = 3;

struct ImageSizes {
  int64_t n, c, h, w;
};

struct Tiling {
  int strip_rows;
  int64_t strips, groups, slabs;

  // `columns` and `channels`: what one block covers.
  static Tiling of(const ImageSizes& size, int columns, int channels) {
    Tiling tiling{};
    tiling.slabs = ceil_div(size.c, channels);
    tiling.groups = ceil_div(size.w, columns);
    for (const int rows : {kMaxStrip, kMaxStrip / 2, kMaxStrip / 4}) {
      tiling.strip_rows = rows;
      tiling.strips = ceil_div(size.h, rows);
      if (tiling.tiles(size) * tiling.slabs >= kWantedBlocks) break;
    }
    return tiling;
  }
  int64_t tiles(const ImageSizes& size) const { return size.n * strips * groups; }
};

struct Tile {
  int64_t n, row, column;  // first row and column
  int rows;                // of the strip that lie in the image
  int readable;            // the same and one more where the image goes on below
};

__device__ __forceinline__ Tile tile_at(int64_t index, const Tiling& tiling, int64_t h,
                                        int columns) {
  const int64_t group = index % tiling.groups;
  const int64_t strip = index / tiling.groups % tiling.strips;
  const int64_t row = strip * tiling.strip_rows, left = h - row;
  const int readable = left > tiling.strip_rows ? tiling.strip_rows + 1 : static_cast<int>(left);
  return {index / tiling.groups / tiling.strips, row, group * columns,
          min(readable, tiling.strip_rows), readable};
}

// Where (n, row, column, channel) lies in a dense (N, H, W, C).
__device__ __forceinline__ int64_t offset_of(const ImageSizes& size, int64_t n, int64_t row,
                                             int64_t column, int64_t channel) {
  return ((n * size.h + row) * size.w + column) * size.c + channel;
}

// Three neighbouring pixels of one row, on their way from memory.
template <class T, int V>
struct Columns {
  packed_t<T, V> left, middle, right;
};

// A lane's column: which of the three pixels of a row exist.
struct Column {
  int64_t c;
  bool present, has_left, has_right;

  __device__ __forceinline__ Column(const ImageSizes& size, int64_t column, int64_t channel)
      : c(size.c),
        present(column < size.w && channel < size.c),
        has_left(column > 0),
        has_right(column + 1 < size.w) {}

  template <int V, class T>
  __device__ __forceinline__ Columns<T, V> load(const T* middle, bool row_exists) const {
    const bool inside = present && row_exists;
    return {load_packed<T, V>(middle - c, inside && has_left), load_packed<T, V>(middle, inside),
            load_packed<T, V>(middle + c, inside && has_right)};
  }
};

template <class T, int V>
__device__ __forceinline__ void unpack_columns(const Columns<T, V>& columns, Lanes<V> (&row)[3]) {
  row[0] = unpack<V, T>(columns.left);
  row[1] = unpack<V, T>(columns.middle);
  row[2] = unpack<V, T>(columns.right);
}

}  // namespace clipweather
