// Convolutions of 3x3 kernels, stride 1 and padding 1, by Winograd's F(4x2, 3x3), forward and for
// both gradients: 24 products of matrices instead of 72, for 8 pixels. F(4x4) has 18, and more than
// twice the error of plain sums; F(2x2), in dense_conv2d_winograd_cpu.cpp, 32. Neither all points
// of the images nor those of the weight are ever in memory:
//
//   y, grad_x   of a block of tiles: to points; then, panel by panel of the result's channels, the
//               weight's points, products, and back to pixels
//   grad_weight of grad_y: all to points; then, panel by panel of x's channels, blocks of tiles to
//               points, products that are summed, and back to taps
//
// A panel is two vectors of channels, so that blocks and panels stay in the second cache. Bound by
// FMA issue; with few tiles by the weight's transforms and its way from memory.
#include "common/cpu_buffer.h"
#include "common/cpu_products.h"
#include "common/cpu_threads.h"
#include "common/cpu_winograd.h"
#include "dense_conv2d/dense_conv2d.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int kHigh = 4, kWide = 2;  // pixels of a tile
constexpr int kRows = kHigh + 2, kColumns = kWide + 2, kPoints = kRows * kColumns;
constexpr int64_t kLane = kLanes<float>, kWidth = 2 * kLane;  // of a panel
constexpr int64_t kMostTiles = 48;                            // of a block
constexpr int64_t kMostEntered = 264 << 10;                   // numbers of a block at its points
constexpr int64_t kChannels = 128;               // whose weights are at their points at once
constexpr int64_t kRowsAhead = 4;                // of a weight, fetched early
constexpr int64_t kMostRows = 10 * kRowsAtOnce;  // of a weight's gradient at its points

// A stride of so many numbers that neighbours at it do not fall into the same set of a cache.
constexpr int64_t spread(int64_t numbers) { return ((numbers + 15) / 16 | 1) * 16; }

constexpr int64_t kWeightPoint = spread(kChannels * kWidth);
constexpr int64_t kTilesPoint = spread(kMostTiles * kWidth);
constexpr int64_t kGradientPoint = spread(kMostRows * kWidth);

// Room of a thread, and of a call for grad_y at its points. Kept: blocks of this size would be
// given back to the system, and come back page by page, which takes longer than the products.
constexpr int64_t kRoom = kMostEntered + kPoints * (spread(1) + kWeightPoint + kTilesPoint);
constexpr int64_t kMostGiven = 1 << 20;
static_assert(kGradientPoint <= kWeightPoint && kPoints * spread(kFusedChannels) <= kMostEntered);
float* room_of_thread() {
  static thread_local const Buffer<float> room(kRoom);
  return room.get();
}
float* room_of_call() {
  static thread_local const Buffer<float> room(kMostGiven + kPoints * spread(1));
  return room.get();
}

CLIPWEATHER_INLINE Vector<float> read(const float* p, int64_t live) {
  return live >= kLane ? load(p) : load_first(p, live);
}
CLIPWEATHER_INLINE void write(float* p, Vector<float> v, int64_t live) {
  if (live >= kLane)
    store(p, v);
  else
    store_first(p, v, live);
}

// An image (N, H, W, c) as tiles of kHigh x kWide pixels; those beyond its borders are zeros.
struct Tiles {
  Tiles(const DenseConv2dSizes& s, int64_t c)
      : n(s.n), h(s.h), w(s.w), c(c), high(ceil_div(h, kHigh)), wide(ceil_div(w, kWide)), zeros(c) {
    zeros.zero(c);
  }
  int64_t count() const { return n * high * wide; }

  struct Place {
    int64_t n, row, column;  // of the first pixel
  };
  Place place(int64_t tile) const {
    return {tile / (high * wide), tile / wide % high * kHigh, tile % wide * kWide};
  }
  // The pixels of a tile and kHalo around it.
  template <int kHalo>
  struct Pixels {
    const float* at[kHigh + 2 * kHalo][kWide + 2 * kHalo];
  };
  template <int kHalo>
  Pixels<kHalo> pixels(const float* image, int64_t tile) const {
    const Place first = place(tile);
    Pixels<kHalo> p;
    for (int i = 0; i < kHigh + 2 * kHalo; ++i)
      for (int j = 0; j < kWide + 2 * kHalo; ++j) {
        const int64_t row = first.row + i - kHalo, column = first.column + j - kHalo;
        const bool inside = row >= 0 && row < h && column >= 0 && column < w;
        p.at[i][j] = inside ? image + ((first.n * h + row) * w + column) * c : zeros.get();
      }
    return p;
  }

  int64_t n, h, w, c;
  int64_t high, wide;
  Buffer<float> zeros;
};

// Channels [c0, c1) of a tile to points, `point` numbers apart.
template <template <int> class Axis>
void enter(const Tiles& tiles, const float* image, int64_t tile, int64_t c0, int64_t c1, float* to,
           int64_t point) {
  const auto pixels = tiles.pixels<(Axis<kHigh>::kIn - kHigh) / 2>(image, tile);
  for (int64_t c = c0; c < c1; c += kLane)
    enter_tile<Axis<kHigh>, Axis<kWide>>(
        [&](int i, int j) { return read(pixels.at[i][j] + c, c1 - c); },
        [&](int i, int j, Vector<float> v) { store(to + (i * kColumns + j) * point + c - c0, v); });
}

// C (rows, kWidth) = or += A (rows, depth) times a panel: only its first vector, where no more
// columns are left.
void multiply(Rows<float> product, int64_t rows, int64_t columns, bool begins) {
  alignas(64) static constexpr float kZeros[kWidth] = {};
  const float* const a = product.a;
  float* const c = product.c;
  product.panel_row = product.c_row = kWidth;
  product.before_row = begins ? 0 : kWidth;
  const int64_t groups = ceil_div(rows, kRowsAtOnce);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t m = rows * group / groups, after = rows * (group + 1) / groups;
    product.a = a + m * product.a_row, product.c = c + m * kWidth;
    product.before = begins ? kZeros : product.c;
    if (columns > kLane)
      add_rows<kRowsAtOnce>(after - m, product);
    else
      add_rows<kRowsAtOnce, 1>(after - m, product);
  }
}

// y of x, or, kTurned, grad_x of grad_y: the same with the weight's taps turned and its channels
// exchanged.
template <bool kTurned>
class Convolution {
 public:
  explicit Convolution(const DenseConv2dWholeArgs& args)
      : args_(args),
        in_(static_cast<const float*>(kTurned ? args.coarse : args.fine)),
        c_(kTurned ? args.channels : args.size.c),
        d_(kTurned ? args.size.c : args.channels),
        row_(spread(c_)),
        tiles_(args.size, c_) {}

  void run() const {
    const int threads = args_.threads > 0 ? args_.threads : 1;
    const int64_t fit = kMostEntered / (kPoints * row_), panels = ceil_div(d_, kWidth);
    const int64_t most = fit < kMostTiles ? fit : kMostTiles;
    const int64_t blocks = ceil_div(tiles_.count(), most);
    // Few blocks are entered again by every part of the panels, which costs little.
    int64_t parts = ceil_div(threads, blocks);
    if (parts > panels) parts = panels;
    parallel_tasks(blocks * parts, threads, [&](int64_t task, int) {
      const int64_t block = task / parts, part = task % parts;
      run_block(tiles_.count() * block / blocks, tiles_.count() * (block + 1) / blocks,
                panels * part / parts, panels * (part + 1) / parts);
    });
  }

 private:
  // The result's panels [panel, last) of tiles [begin, end).
  void run_block(int64_t begin, int64_t end, int64_t panel, int64_t last) const {
    const int64_t count = end - begin, point = spread(count * row_);
    float* const entered = room_of_thread();
    float* const weight = entered + kPoints * point;
    float* const products = weight + kPoints * kWeightPoint;
    for (int64_t t = 0; t < count; ++t)
      enter<WinogradAxis>(tiles_, in_, begin + t, 0, c_, entered + t * row_, point);
    for (; panel < last; ++panel) {
      const int64_t d0 = panel * kWidth, columns = d_ - d0 < kWidth ? d_ - d0 : kWidth;
      for (int64_t c0 = 0; c0 < c_; c0 += kChannels) {
        const int64_t depth = c_ - c0 < kChannels ? c_ - c0 : kChannels;
        enter_weight(c0, depth, d0, columns, weight);
        for (int e = 0; e < kPoints; ++e)
          multiply({entered + e * point + c0, row_, 1, weight + e * kWeightPoint, 0, depth, nullptr,
                    0, products + e * kTilesPoint, 0},
                   count, columns, c0 == 0);
      }
      for (int64_t t = 0; t < count; ++t)
        leave(products + t * kWidth, tiles_.place(begin + t), d0, columns);
    }
  }

  // Rows [c0, c0 + depth) of the panel of columns from d0, at the points. The next ones are fetched
  // early: they lie in too many places for the processor to see.
  void enter_weight(int64_t c0, int64_t depth, int64_t d0, int64_t columns, float* to) const {
    const float* const weight = static_cast<const float*>(args_.weight);
    const int64_t inputs = args_.size.c;
    for (int64_t d = 0; d < columns; d += kLane)
      if constexpr (kTurned) {
        for (int64_t c = 0; c < depth; ++c) {
          const float* const taps = weight + (c0 + c) * 9 * inputs + d0 + d;
          enter_taps(
              [&](int i, int j) {
                const float* const tap = taps + ((2 - i) * 3 + 2 - j) * inputs;
                __builtin_prefetch(tap + kRowsAhead * 9 * inputs);
                return read(tap, columns - d);
              },
              to + c * kWidth + d);
        }
      } else {
        for (int64_t c = 0; c < depth; c += kLane) {
          const int64_t live = depth - c;
          Vector<float> turned[9][kLane];
          for (int tap = 0; tap < 9; ++tap) {
            const float* const row = weight + ((d0 + d) * 9 + tap) * inputs + c0 + c;
#pragma GCC unroll 16
            for (int i = 0; i < kLane; ++i) {
              turned[tap][i] = d + i < columns ? read(row + i * 9 * inputs, live) : Vector<float>{};
              __builtin_prefetch(row + i * 9 * inputs + kLane);
            }
            transpose<float>(turned[tap]);
          }
          for (int i = 0; i < kLane && i < live; ++i)
            enter_taps([&](int a, int b) { return turned[a * 3 + b][i]; },
                       to + (c + i) * kWidth + d);
        }
      }
  }
  template <class Taps>
  static CLIPWEATHER_INLINE void enter_taps(const Taps& taps, float* to) {
    enter_tile<WinogradWeightAxis<kHigh>, WinogradWeightAxis<kWide>>(
        taps,
        [&](int i, int j, Vector<float> v) { store(to + (i * kColumns + j) * kWeightPoint, v); });
  }

  void leave(const float* from, const Tiles::Place& at, int64_t d0, int64_t columns) const {
    float* const out = static_cast<float*>(args_.out);
    const float* const bias = static_cast<const float*>(args_.bias);
    float* const first = out + ((at.n * tiles_.h + at.row) * tiles_.w + at.column) * d_ + d0;
    for (int64_t d = 0; d < columns; d += kLane) {
      const int64_t live = columns - d;
      const Vector<float> added = bias == nullptr ? Vector<float>{} : read(bias + d0 + d, live);
      enter_tile<WinogradResultAxis<kHigh>, WinogradResultAxis<kWide>>(
          [&](int i, int j) { return load(from + (i * kColumns + j) * kTilesPoint + d); },
          [&](int i, int j, Vector<float> v) {
            if (at.row + i < tiles_.h && at.column + j < tiles_.w)
              write(first + (i * tiles_.w + j) * d_ + d, v + added, live);
          });
    }
  }

  const DenseConv2dWholeArgs& args_;
  const float* const in_;
  const int64_t c_, d_;  // channels of what is read and of the result
  const int64_t row_;    // from a tile to the next, of one point
  const Tiles tiles_;
};

class WeightGradient {
 public:
  explicit WeightGradient(const DenseConv2dWholeArgs& args)
      : args_(args),
        x_(args.size, args.size.c),
        grad_y_(args.size, args.channels),
        row_(spread(args.channels)) {}

  void run() const {
    const int64_t most = kMostGiven / (kPoints * row_);
    for (int64_t begin = 0; begin < x_.count(); begin += most)
      run_tiles(begin, begin + most < x_.count() ? begin + most : x_.count());
  }

 private:
  // What tiles [begin, end) add to the gradient, or, the first ones, make it.
  void run_tiles(int64_t begin, int64_t end) const {
    const int threads = args_.threads > 0 ? args_.threads : 1;
    const Given given{room_of_call(), spread((end - begin) * row_), begin, end};
    parallel_tasks(end - begin, threads, [&](int64_t t, int) {
      enter<WinogradGradientAxis>(grad_y_, static_cast<const float*>(args_.coarse), begin + t, 0,
                                  grad_y_.c, given.numbers + t * row_, given.point);
    });
    const int64_t panels = ceil_div(x_.c, kWidth), groups = ceil_div(grad_y_.c, kRowsAtOnce);
    // Every part enters the tiles of its panel again, which costs little.
    int64_t parts = ceil_div(grad_y_.c, kMostRows), wanted = ceil_div(threads, panels);
    if (wanted > groups) wanted = groups;
    if (parts < wanted) parts = wanted;
    parallel_tasks(panels * parts, threads, [&](int64_t task, int) {
      const int64_t part = task % parts, row = groups * part / parts * kRowsAtOnce;
      const int64_t last = groups * (part + 1) / parts * kRowsAtOnce;
      run_panel(given, task / parts * kWidth, row, last < grad_y_.c ? last : grad_y_.c);
    });
  }

  // grad_y at its points, of tiles [begin, end).
  struct Given {
    float* numbers;
    int64_t point;  // from one to the next
    int64_t begin, end;
  };

  // Of the gradient's rows [row, last) the panel of columns from c0.
  void run_panel(const Given& given, int64_t c0, int64_t row, int64_t last) const {
    float* const entered = room_of_thread();
    float* const sums = entered + kPoints * kTilesPoint;
    const int64_t columns = x_.c - c0 < kWidth ? x_.c - c0 : kWidth;
    for (int64_t t0 = given.begin; t0 < given.end; t0 += kMostTiles) {
      const int64_t left = given.end - t0, count = left < kMostTiles ? left : kMostTiles;
      const float* const rows = given.numbers + (t0 - given.begin) * row_ + row;
      for (int64_t t = 0; t < count; ++t)
        enter<WinogradAxis>(x_, static_cast<const float*>(args_.fine), t0 + t, c0, c0 + columns,
                            entered + t * kWidth, kTilesPoint);
      for (int e = 0; e < kPoints; ++e)
        multiply({rows + e * given.point, 1, row_, entered + e * kTilesPoint, 0, count, nullptr, 0,
                  sums + e * kGradientPoint, 0},
                 last - row, columns, t0 == given.begin);
    }
    // A large gradient goes past the caches: its reader is an optimizer, much later.
    float* const out = static_cast<float*>(args_.out);
    const bool streams = x_.count() == given.end - given.begin && x_.c % kWidth == 0 &&
                         grad_y_.c * 9 * x_.c * int64_t{sizeof(float)} >= kStreamedBytes &&
                         reinterpret_cast<uintptr_t>(out) % kLine == 0;
    for (int64_t m = row; m < last; ++m) {
      const float* const from = sums + (m - row) * kWidth;
      float* const to = out + m * 9 * x_.c + c0;
      for (int64_t c = 0; c < columns; c += kLane)
        enter_tile<WinogradWeightGradientAxis<kHigh>, WinogradWeightGradientAxis<kWide>>(
            [&](int i, int j) { return load(from + (i * kColumns + j) * kGradientPoint + c); },
            [&](int i, int j, Vector<float> v) {
              float* const tap = to + (i * 3 + j) * x_.c + c;
              if (streams)
                store_past(tap, v);
              else
                write(tap, given.begin == 0 ? v : v + read(tap, columns - c), columns - c);
            });
    }
    if (streams) streams_end();
  }

  const DenseConv2dWholeArgs& args_;
  const Tiles x_, grad_y_;
  const int64_t row_;  // from a tile of grad_y to the next, of one point
};

}  // namespace

void dense_conv2d_fused_winograd(const DenseConv2dWholeArgs& args) {
  switch (args.wanted) {
    case DenseConv2dWanted::kCoarse:
      return Convolution<false>(args).run();
    case DenseConv2dWanted::kFine:
      return Convolution<true>(args).run();
    case DenseConv2dWanted::kWeight:
      return WeightGradient(args).run();
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
