// Winograd's F(2x2, 3x3): 16 products instead of 36 for four output pixels.
//
//   y = A^T [(G g G^T) * (B^T d B)] A,   d 4x4 of the input, g 3x3, y 2x2
//
// with * element by element, summed over input channels (the matrix products, which are not here).
// Gradients are the transposed steps: grad_y enters by A grad_y A^T, grad_x leaves by B . B^T and
// grad_g by G^T . G, so that forward and backward share the kernels' and the input's tiles. All
// entries are 0, 1, -1 and 1/2: it rounds about as a sum of products does. Tiles of 4x4 output
// pixels would save more products and lose a digit. Memory bounds these steps.
#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "dense_conv2d/dense_conv2d.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

// Vectors of a grid of numbers, kLanes channels each.
template <class A, int kRows, int kColumns>
struct Grid {
  Vector<A> at[kRows][kColumns];
};

template <class A>
CLIPWEATHER_INLINE Vector<A> read(const A* p, int64_t live) {
  return live >= kLanes<A> ? load(p) : load_first(p, live);
}
template <class A>
CLIPWEATHER_INLINE void write(A* p, Vector<A> v, int64_t live) {
  if (live >= kLanes<A>)
    store(p, v);
  else
    store_first(p, v, live);
}

// One axis of each transform.
struct InputAxis {  // B^T
  static constexpr int kIn = 4, kOut = 4;
  template <class V>
  static CLIPWEATHER_INLINE void apply(const V (&d)[4], V (&t)[4]) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
  }
};
struct GradientAxis {  // A
  static constexpr int kIn = 2, kOut = 4;
  template <class V>
  static CLIPWEATHER_INLINE void apply(const V (&g)[2], V (&t)[4]) {
    t[0] = g[0], t[1] = g[0] + g[1], t[2] = g[0] - g[1], t[3] = -g[1];
  }
};
struct OutputAxis {  // A^T
  static constexpr int kIn = 4, kOut = 2;
  template <class V>
  static CLIPWEATHER_INLINE void apply(const V (&t)[4], V (&y)[2]) {
    y[0] = t[0] + t[1] + t[2], y[1] = t[1] - t[2] - t[3];
  }
};
struct KernelAxis {  // G
  static constexpr int kIn = 3, kOut = 4;
  template <class V>
  static CLIPWEATHER_INLINE void apply(const V (&g)[3], V (&t)[4]) {
    const V ends = (g[0] + g[2]) * 0.5f, middle = g[1] * 0.5f;
    t[0] = g[0], t[1] = ends + middle, t[2] = ends - middle, t[3] = g[2];
  }
};
struct KernelGradientAxis {  // G^T
  static constexpr int kIn = 4, kOut = 3;
  template <class V>
  static CLIPWEATHER_INLINE void apply(const V (&t)[4], V (&g)[3]) {
    const V sum = (t[1] + t[2]) * 0.5f;
    g[0] = t[0] + sum, g[1] = (t[1] - t[2]) * 0.5f, g[2] = sum + t[3];
  }
};

// The transform of both axes.
template <class Axis, class A>
CLIPWEATHER_INLINE Grid<A, Axis::kOut, Axis::kOut> transformed(
    const Grid<A, Axis::kIn, Axis::kIn>& in) {
  Grid<A, Axis::kIn, Axis::kOut> rows;
#pragma GCC unroll 4
  for (int i = 0; i < Axis::kIn; ++i) Axis::apply(in.at[i], rows.at[i]);
  Grid<A, Axis::kOut, Axis::kOut> out;
#pragma GCC unroll 4
  for (int j = 0; j < Axis::kOut; ++j) {
    Vector<A> column[Axis::kIn], result[Axis::kOut];
#pragma GCC unroll 4
    for (int i = 0; i < Axis::kIn; ++i) column[i] = rows.at[i][j];
    Axis::apply(column, result);
#pragma GCC unroll 4
    for (int i = 0; i < Axis::kOut; ++i) out.at[i][j] = result[i];
  }
  return out;
}

// Where the images and their tiles lie. Tile (i, j) stands for output pixels (2i, 2j) to
// (2i + 1, 2j + 1); pixels beyond the image are read as zeros and not written.
template <class A>
struct Tiles {
  explicit Tiles(const DenseConv2dArgs& args)
      : s(args.size),
        high((s.h + 1) / 2),
        wide((s.w + 1) / 2),
        plane(s.n * high * wide * s.c),
        zeros(s.c) {
    zeros.zero(s.c);
  }

  const A* pixel(const A* image, int64_t n, int64_t row, int64_t column) const {
    if (row < 0 || row >= s.h || column < 0 || column >= s.w) return zeros.get();
    return image + ((n * s.h + row) * s.w + column) * s.c;
  }
  int64_t tile(int64_t n, int64_t i, int64_t j) const { return ((n * high + i) * wide + j) * s.c; }
  // Calls body(n, i, j) for every tile, a row of tiles at a time.
  template <class Body>
  void each(int threads, const Body& body) const {
    parallel_tasks(s.n * high, threads, [&](int64_t task, int) {
      for (int64_t j = 0; j < wide; ++j) body(task / high, task % high, j);
    });
  }

  const DenseConv2dSizes& s;
  int64_t high, wide;
  int64_t plane;  // from one of the 16 matrices to the next
  Buffer<A> zeros;
};

// An image's pixels around each tile, transformed: kHalo pixels before the tile's first.
template <class Axis, int kHalo, class A>
void tiles_of_image(const DenseConv2dArgs& args) {
  const Tiles<A> tiles(args);
  const A* image = static_cast<const A*>(args.in);
  A* out = static_cast<A*>(args.out);
  constexpr int kSide = Axis::kIn;
  tiles.each(args.threads, [&](int64_t n, int64_t i, int64_t j) {
    const A* from[kSide][kSide];
    for (int a = 0; a < kSide; ++a)
      for (int b = 0; b < kSide; ++b)
        from[a][b] = tiles.pixel(image, n, 2 * i - kHalo + a, 2 * j - kHalo + b);
    A* to = out + tiles.tile(n, i, j);
    for (int64_t c = 0; c < tiles.s.c; c += kLanes<A>) {
      const int64_t live = tiles.s.c - c;
      Grid<A, kSide, kSide> in;
#pragma GCC unroll 4
      for (int a = 0; a < kSide; ++a)
#pragma GCC unroll 4
        for (int b = 0; b < kSide; ++b) in.at[a][b] = read<A>(from[a][b] + c, live);
      const Grid<A, 4, 4> t = transformed<Axis, A>(in);
#pragma GCC unroll 16
      for (int e = 0; e < kTileArea; ++e)
        write<A>(to + e * tiles.plane + c, t.at[e / 4][e % 4], live);
    }
  });
}

// The pixels of tile (n, i, j) of the image, from 2x2 vectors.
template <class A>
struct Pixels {
  A* to[2][2];
  Pixels(const Tiles<A>& tiles, A* image, int64_t n, int64_t i, int64_t j) {
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 2; ++b) {
        const int64_t row = 2 * i + a, column = 2 * j + b;
        const bool inside = row < tiles.s.h && column < tiles.s.w;
        to[a][b] =
            inside ? image + ((n * tiles.s.h + row) * tiles.s.w + column) * tiles.s.c : nullptr;
      }
  }
  CLIPWEATHER_INLINE void set(int64_t c, const Grid<A, 2, 2>& values, int64_t live) const {
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e)
      if (to[e / 2][e % 2] != nullptr)
        write<A>(to[e / 2][e % 2] + c, values.at[e / 2][e % 2], live);
  }
};

template <class A>
void output_of_tiles(const DenseConv2dArgs& args) {
  const Tiles<A> tiles(args);
  const A* in = static_cast<const A*>(args.in);
  const A* bias = static_cast<const A*>(args.bias);
  tiles.each(args.threads, [&](int64_t n, int64_t i, int64_t j) {
    const A* from = in + tiles.tile(n, i, j);
    const Pixels<A> pixels(tiles, static_cast<A*>(args.out), n, i, j);
    for (int64_t c = 0; c < tiles.s.c; c += kLanes<A>) {
      const int64_t live = tiles.s.c - c;
      Grid<A, 4, 4> t;
#pragma GCC unroll 16
      for (int e = 0; e < kTileArea; ++e)
        t.at[e / 4][e % 4] = read<A>(from + e * tiles.plane + c, live);
      Grid<A, 2, 2> y = transformed<OutputAxis, A>(t);
      if (bias != nullptr) {
        const Vector<A> b = read<A>(bias + c, live);
#pragma GCC unroll 4
        for (int e = 0; e < 4; ++e) y.at[e / 2][e % 2] += b;
      }
      pixels.set(c, y, live);
    }
  });
}

// B P B^T of the tiles around, summed where they overlap: of the neighbours only the nearest row or
// column counts, and that unchanged but for its sign.
template <class A>
void input_of_tiles(const DenseConv2dArgs& args) {
  const Tiles<A> tiles(args);
  const A* in = static_cast<const A*>(args.in);
  tiles.each(args.threads, [&](int64_t n, int64_t i, int64_t j) {
    const A* from[3][3];
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) {
        const int64_t row = i + a - 1, column = j + b - 1;
        const bool inside = row >= 0 && row < tiles.high && column >= 0 && column < tiles.wide;
        from[a][b] = inside ? in + tiles.tile(n, row, column) : nullptr;
      }
    const Pixels<A> pixels(tiles, static_cast<A*>(args.out), n, i, j);
    for (int64_t c = 0; c < tiles.s.c; c += kLanes<A>) {
      const int64_t live = tiles.s.c - c;
      const auto number = [&](int a, int b, int row, int column) {
        const A* p = from[a][b];
        return p == nullptr ? Vector<A>{} : read<A>(p + (row * 4 + column) * tiles.plane + c, live);
      };
      // Both output rows of this column of tiles, before the columns are combined.
      const auto rows = [&](int b, int column, Vector<A>& upper, Vector<A>& lower) {
        const Vector<A> t0 = number(1, b, 0, column), t1 = number(1, b, 1, column);
        const Vector<A> t2 = number(1, b, 2, column), t3 = number(1, b, 3, column);
        upper = t1 - t2 + t3 - number(0, b, 3, column);
        lower = t1 + t2 - t0 + number(2, b, 0, column);
      };
      Vector<A> own[2][4], before[2], after[2];
#pragma GCC unroll 4
      for (int column = 0; column < 4; ++column) rows(1, column, own[0][column], own[1][column]);
      rows(0, 3, before[0], before[1]);
      rows(2, 0, after[0], after[1]);
      Grid<A, 2, 2> sums;
#pragma GCC unroll 2
      for (int a = 0; a < 2; ++a) {
        sums.at[a][0] = own[a][1] - own[a][2] + own[a][3] - before[a];
        sums.at[a][1] = own[a][1] + own[a][2] - own[a][0] + after[a];
      }
      pixels.set(c, sums, live);
    }
  });
}

// Kernels (C', 3, 3, C), here s.n = C', as 16 matrices (C', C), and the gradients' way back.
template <class Axis, class A>
void kernels(const DenseConv2dArgs& args) {
  const DenseConv2dSizes& s = args.size;
  constexpr bool kEnters = Axis::kIn == 3;
  const int64_t plane = s.n * s.c;
  const int64_t in_step = kEnters ? s.c : plane, out_step = kEnters ? plane : s.c;
  constexpr int kIn = Axis::kIn, kOut = Axis::kOut;
  parallel_tasks(s.n, args.threads, [&](int64_t row, int) {
    const A* in = static_cast<const A*>(args.in) + row * s.c * (kEnters ? 9 : 1);
    A* out = static_cast<A*>(args.out) + row * s.c * (kEnters ? 1 : 9);
    for (int64_t c = 0; c < s.c; c += kLanes<A>) {
      const int64_t live = s.c - c;
      Grid<A, kIn, kIn> g;
#pragma GCC unroll 16
      for (int e = 0; e < kIn * kIn; ++e)
        g.at[e / kIn][e % kIn] = read<A>(in + e * in_step + c, live);
      const Grid<A, kOut, kOut> t = transformed<Axis, A>(g);
#pragma GCC unroll 16
      for (int e = 0; e < kOut * kOut; ++e)
        write<A>(out + e * out_step + c, t.at[e / kOut][e % kOut], live);
    }
  });
}

template <class A>
void winograd_step(const DenseConv2dArgs& args) {
  switch (args.step) {
    case DenseConv2dStep::kTilesOfInput:
      return tiles_of_image<InputAxis, 1, A>(args);
    case DenseConv2dStep::kTilesOfOutput:
      return tiles_of_image<GradientAxis, 0, A>(args);
    case DenseConv2dStep::kOutputOfTiles:
      return output_of_tiles<A>(args);
    case DenseConv2dStep::kInputOfTiles:
      return input_of_tiles<A>(args);
    case DenseConv2dStep::kTilesOfWeight:
      return kernels<KernelAxis, A>(args);
    case DenseConv2dStep::kWeightOfTiles:
      return kernels<KernelGradientAxis, A>(args);
    default:
      return;
  }
}

}  // namespace

void dense_conv2d_winograd(const DenseConv2dArgs& args) {
  if (args.size.dtype == DType::kFloat64)
    winograd_step<double>(args);
  else
    winograd_step<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
