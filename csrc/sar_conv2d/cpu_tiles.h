// Backward, tile by tile: what sar_conv2d and sar_logits share.
//
// A task owns a tile of one picture and a chunk of channels. For one block of kLanes channels at a
// time it copies the tile of x, with a halo and zeros beyond the border, to scratch that stays in
// cache; then, row by row, the op computes G, the gradient of each bank's output; from three
// finished rows of G one row of grad_x is gathered (nothing is scattered), and the taps' gradients
// grow in registers. Partial sums of taps go to a workspace, one slot per tile, and are added in
// the order of the tiles: tiles depend on the sizes alone, so results repeat bit for bit on any
// number of threads.
//
// Arithmetic bounds it: about four times the forward pass. Keeping G of the whole image in memory
// instead of recomputing the halo would save 13 % of the recomputation and cost two more passes.
#pragma once

#include "sar_conv2d/cpu_rows.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// Pixels gathered together: their sums and one bank's row of taps fit the registers.
#if defined(__AVX512F__)
inline constexpr int kGather = 8;
#else
inline constexpr int kGather = 4;
#endif

// How an image is cut for the backward pass.
struct BackwardCut {
  int half;
  int64_t strip, tile, strips, tiles, chunk, chunks;  // chunk: in blocks of kLanes channels
  int64_t g_width, x_width;                           // padded widths of a tile's rows in scratch

  BackwardCut(int64_t n, int64_t h, int64_t w, int64_t blocks, int kernel_size)
      : half(kernel_size / 2) {
    constexpr int64_t kSide = 32;   // x and three rows of G: 90 KB + 26 KB at 16 lanes
    constexpr int64_t kEnough = 8;  // tasks that keep a small machine busy
    strips = ceil_div(h, kSide), strip = ceil_div(h, strips), strips = ceil_div(h, strip);
    tiles = ceil_div(w, kSide), tile = ceil_div(w, tiles), tiles = ceil_div(w, tile);
    const int64_t spatial = n * strips * tiles;
    chunks = spatial >= kEnough ? 1 : ceil_div(kEnough, spatial);
    if (chunks > ceil_div(blocks, 2)) chunks = ceil_div(blocks, 2);
    chunk = ceil_div(blocks, chunks), chunks = ceil_div(blocks, chunk);
    g_width = ceil_div(ceil_div(tile, kGather) * kGather + 2 * half, kGroup) * kGroup;
    x_width = g_width + 2 * half;
  }

  int64_t x_rows() const { return strip + 4 * half; }
  int64_t g_rows() const { return strip + 2 * half; }
};

// One task's place in the image. Column i of a row of G is image column w0 - half + i; column i of
// x in scratch is w0 - 2 half + i. Columns of G before `first` and from `last` on are zero: groups
// of pixels begin with the image where a tile is as wide as that.
struct Tile {
  int64_t index, n, h0, h1, w0, w1, block0, block1, first, last;

  Tile(const BackwardCut& cut, int64_t task, int64_t h, int64_t w, int64_t blocks) {
    const int64_t chunk = task % cut.chunks;
    index = task / cut.chunks;
    w0 = index % cut.tiles * cut.tile;
    h0 = index / cut.tiles % cut.strips * cut.strip;
    n = index / (cut.tiles * cut.strips);
    h1 = h0 + cut.strip < h ? h0 + cut.strip : h;
    w1 = w0 + cut.tile < w ? w0 + cut.tile : w;
    block0 = chunk * cut.chunk;
    block1 = block0 + cut.chunk < blocks ? block0 + cut.chunk : blocks;
    const bool whole = w0 == 0 && w1 == w;
    first = whole ? cut.half : 0;
    last = whole ? first + ceil_div(w, kGroup) * kGroup : cut.g_width;
  }
};

// Zeros where a row of G has no groups; banks lie g_width * kLanes apart.
template <class A>
CLIPWEATHER_INLINE void clear_ends(const BackwardCut& cut, const Tile& tile, int count, A* g) {
  const auto zero = [](A* p, int64_t columns) {
    std::memset(p, 0, static_cast<size_t>(columns * kLanes<A>) * sizeof(A));
  };
  if (tile.last - tile.first == cut.g_width) return;
  for (int bank = 0; bank < count; ++bank, g += cut.g_width * kLanes<A>) {
    zero(g, tile.first);
    zero(g + tile.last * kLanes<A>, cut.g_width - tile.last);
  }
}

template <class T, class V>
CLIPWEATHER_INLINE V load_live(const T* p, int64_t live) {
  return live == static_cast<int64_t>(sizeof(V) / sizeof(typename Accumulate<T>::type))
             ? load(p)
             : load_first(p, live);
}

// x of the tile's block, widened to A, with its halo; beyond the image scratch stays as it is.
template <class T, class A>
void fetch_tile(const Image<T>& image, const BackwardCut& cut, const Tile& tile, int64_t c,
                int64_t live, A* scratch) {
  const int64_t top = tile.h0 - 2 * cut.half, left = tile.w0 - 2 * cut.half;
  const int64_t begin = left < 0 ? -left : 0;
  const int64_t end = left + cut.x_width < image.w ? cut.x_width : image.w - left;
  for (int64_t i = 0; i < tile.h1 - tile.h0 + 4 * cut.half; ++i) {
    if (top + i < 0 || top + i >= image.h) continue;
    A* out = scratch + (i * cut.x_width + begin) * kLanes<A>;
    const T* in = image.data + ((top + i) * image.w + left + begin) * image.c + c;
    for (int64_t j = begin; j < end; ++j, out += kLanes<A>, in += image.c) {
      store(out, load_live<T, Vector<A>>(in, live));
      __builtin_prefetch(in + kLanes<A>);  // the next block's turn comes when this one is done
    }
  }
}

// Zeros for what lies beyond the image.
template <class A>
void clear_tile(const BackwardCut& cut, A* scratch) {
  std::memset(scratch, 0, static_cast<size_t>(cut.x_rows() * cut.x_width * kLanes<A>) * sizeof(A));
}

// acc[bank][pixel] for kGroup pixels; x: scratch at the group's first pixel and the kernel's first
// row.
template <int kCount, int kSize, class A>
CLIPWEATHER_INLINE void convolve_tile(const A* x, int64_t x_width, const Banks<A>& banks,
                                      int64_t block,
                                      Vector<A> (&acc)[kCount > 0 ? kCount : kMaxBanks][kGroup]) {
  const int count = kCount > 0 ? kCount : banks.count;
  const int size = kSize > 0 ? kSize : banks.kernel_size;
  const A* taps = banks.taps_of(block);
  const A* biases = banks.biases_of(block);
#pragma GCC unroll 9
  for (int bank = 0; bank < count; ++bank)
#pragma GCC unroll 4
    for (int p = 0; p < kGroup; ++p) acc[bank][p] = load(biases + bank * kLanes<A>);
#pragma GCC unroll 3
  for (int row = 0; row < size; ++row)
#pragma GCC unroll 3
    for (int i = 0; i < size; ++i)
#pragma GCC unroll 4
      for (int p = 0; p < kGroup; ++p) {
        const Vector<A> value = load(x + (row * x_width + p + i) * kLanes<A>);
#pragma GCC unroll 9
        for (int bank = 0; bank < count; ++bank)
          acc[bank][p] += value * load(taps + ((row * count + bank) * size + i) * kLanes<A>);
      }
}

// kPixels pixels of a row of grad_x from the rows of G around it, see gather_row.
template <int kPixels, int kCount, int kSize, class A, class Rows>
CLIPWEATHER_INLINE void gather_pixels(const Rows& g_row, int64_t first, int64_t g_width,
                                      const Banks<A>& banks, const A* taps,
                                      Vector<A> (&acc)[kPixels]) {
  const int count = kCount > 0 ? kCount : banks.count;
  const int size = kSize > 0 ? kSize : banks.kernel_size;
#pragma GCC unroll 3
  for (int row = 0; row < size; ++row) {
    const A* g = g_row(row) + first * kLanes<A>;
#pragma GCC unroll 9
    for (int bank = 0; bank < count; ++bank) {
      const A* bank_taps = taps + (row * count + bank) * size * kLanes<A>;
      const A* bank_g = g + bank * g_width * kLanes<A>;
      if constexpr (kSize > 0) {
        Vector<A> tap[kSize];
#pragma GCC unroll 3
        for (int i = 0; i < kSize; ++i) tap[i] = load(bank_taps + i * kLanes<A>);
        // Each value of G is loaded once and serves every pixel it reaches.
#pragma GCC unroll 10
        for (int column = 0; column < kPixels + kSize - 1; ++column) {
          const Vector<A> value = load(bank_g + column * kLanes<A>);
#pragma GCC unroll 8
          for (int p = 0; p < kPixels; ++p)
            if (p + kSize - 1 >= column && p <= column)
              acc[p] += tap[p + kSize - 1 - column] * value;
        }
      } else {
        for (int i = 0; i < size; ++i) {
          const Vector<A> tap = load(bank_taps + i * kLanes<A>);
          for (int p = 0; p < kPixels; ++p)
            acc[p] += tap * load(bank_g + (p - i + size - 1) * kLanes<A>);
        }
      }
    }
  }
}

// One row of grad_x (pixels w0..w1 of row q) from the rows of G around it. g_row(i) is the row of G
// that meets kernel row i; its banks lie g_width * kLanes apart. grad_x: the row's first pixel,
// with `stride` to the next and `next_row` to the one below, which is fetched: rows come far apart.
template <int kCount, int kSize, class T, class A, class Rows>
CLIPWEATHER_INLINE void gather_row(const Rows& g_row, int64_t g_width, const Banks<A>& banks,
                                   int64_t block, int64_t count_pixels, T* grad_x, int64_t stride,
                                   int64_t next_row, int64_t live, bool accumulate) {
  constexpr int kHalf = kGather / 2;
  const A* taps = banks.taps_of(block);
  const auto write = [&](const Vector<A>* acc, int64_t first, int64_t pixels) {
    for (int64_t p = 0; p < pixels; ++p) {
      T* out = grad_x + (first + p) * stride;
      const Vector<A> sum = accumulate ? acc[p] + load_live<T, Vector<A>>(out, live) : acc[p];
      __builtin_prefetch(out + next_row, 1);
      if (live == kLanes<A>)
        store(out, sum);
      else
        store_first(out, sum, live);
    }
  };
  for (int64_t first = 0; first < count_pixels; first += kGather) {
    const int64_t pixels = count_pixels - first < kGather ? count_pixels - first : kGather;
    if (pixels > kHalf) {
      Vector<A> acc[kGather] = {};
      gather_pixels<kGather, kCount, kSize>(g_row, first, g_width, banks, taps, acc);
      write(acc, first, pixels);
    } else {
      Vector<A> acc[kHalf] = {};
      gather_pixels<kHalf, kCount, kSize>(g_row, first, g_width, banks, taps, acc);
      write(acc, first, pixels);
    }
  }
}

// Adds to the taps' and biases' gradients of one block what one row of G gives: slot as in
// TapGradients. g: the row at its first pixel; x: the same pixel in scratch, at the kernel's first
// row.
template <int kCount, int kSize, class A>
CLIPWEATHER_INLINE void correlate_row(const A* g, int64_t g_width, const A* x, int64_t x_width,
                                      int64_t pixels, int dynamic_count, int dynamic_size,
                                      A* slot) {
  const int count = kCount > 0 ? kCount : dynamic_count;
  const int size = kSize > 0 ? kSize : dynamic_size;
  for (int row = 0; row < size; ++row) {
    if constexpr (kCount > 0 && kSize > 0) {
      Vector<A> acc[kCount][kSize] = {};  // a sum of row sums rounds far less than one long sum
      const A* x_row = x + row * x_width * kLanes<A>;
      for (int64_t p = 0; p < pixels; ++p) {
        Vector<A> value[kSize];
#pragma GCC unroll 3
        for (int i = 0; i < kSize; ++i) value[i] = load(x_row + (p + i) * kLanes<A>);
#pragma GCC unroll 9
        for (int bank = 0; bank < kCount; ++bank) {
          const Vector<A> gradient = load(g + (bank * g_width + p) * kLanes<A>);
#pragma GCC unroll 3
          for (int i = 0; i < kSize; ++i) acc[bank][i] += gradient * value[i];
        }
      }
#pragma GCC unroll 9
      for (int bank = 0; bank < kCount; ++bank)
#pragma GCC unroll 3
        for (int i = 0; i < kSize; ++i) {
          A* out = slot + ((row * kCount + bank) * kSize + i) * kLanes<A>;
          store(out, load(out) + acc[bank][i]);
        }
    } else {
      for (int bank = 0; bank < count; ++bank)
        for (int i = 0; i < size; ++i) {
          A* out = slot + ((row * count + bank) * size + i) * kLanes<A>;
          Vector<A> acc{};
          for (int64_t p = 0; p < pixels; ++p)
            acc += load(g + (bank * g_width + p) * kLanes<A>) *
                   load(x + (row * x_width + p + i) * kLanes<A>);
          store(out, load(out) + acc);
        }
    }
  }
  A* biases = slot + count * size * size * kLanes<A>;
  for (int bank = 0; bank < count; ++bank) {
    Vector<A> acc{};
    for (int64_t p = 0; p < pixels; ++p) acc += load(g + (bank * g_width + p) * kLanes<A>);
    store(biases + bank * kLanes<A>, load(biases + bank * kLanes<A>) + acc);
  }
}

// Partial sums, one slot per tile and block: `rows` vectors of kLanes, and their total over the
// tiles.
template <class A>
struct Partials {
  int64_t tiles, blocks, rows;
  Buffer<A> room;

  Partials(int64_t tiles_, int64_t blocks_, int64_t rows_)
      : tiles(tiles_), blocks(blocks_), rows(rows_), room(tiles_ * blocks_ * rows_ * kLanes<A>) {}

  A* slot(int64_t tile, int64_t block) const {
    return room.get() + (tile * blocks + block) * rows * kLanes<A>;
  }
  void clear(int64_t tile, int64_t block) {
    std::memset(slot(tile, block), 0, static_cast<size_t>(rows * kLanes<A>) * sizeof(A));
  }
  // Adds every tile's slot to the first tile's, in the order of the tiles.
  void total(int threads) {
    parallel_tasks(blocks, threads, [&](int64_t block, int) {
      A* sum = slot(0, block);
      for (int64_t tile = 1; tile < tiles; ++tile) {
        const A* part = slot(tile, block);
        for (int64_t i = 0; i < rows * kLanes<A>; i += kLanes<A>)
          store(sum + i, load(sum + i) + load(part + i));
      }
    });
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
