// Blocks of tiles go through three steps while they are in cache: to points, at each point one
// product with its matrix, back to pixels with all that follows. The products bound it; the weight
// is read once per block.
#include <algorithm>
#include <type_traits>

#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "inference/cpu_pairs.h"
#include "inference/cpu_panel_parts.h"
#include "inference/cpu_panels.h"
#include "inference/cpu_winograd_layers.h"
#include "inference/winograd.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kStep = kLanes<float>;
// Tiles of a block: each reads the whole weight, which comes from L3 or from memory. A matrix unit
// is done with it so fast that reading it again costs more than what then leaves L2.
#if defined(__AMX_BF16__)
constexpr int64_t kBlock = 64;
#else
constexpr int64_t kBlock = 36;
#endif

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
// A stride of so many floats that neighbours at it do not fall into the same set of a cache.
int64_t spread(int64_t floats) { return (round_up(floats, 16) / 16 | 1) * 16; }

struct Pixel {
  int64_t n, row, column;  // of a tile's first output pixel, at the coarse side
};

// T: of the images and of what is multiplied.
template <class T, int kTile, ConvolutionKind kKind>
class Winograd {
 public:
  typedef LayerAxis<kTile, kKind> Axis;
  static constexpr bool kUp = kKind == ConvolutionKind::kUp,
                        kDown = kKind == ConvolutionKind::kDown;
  static constexpr int kIn = Axis::kIn, kSide = Axis::kSide, kPoints = kSide * kSide;

  explicit Winograd(const WinogradArgs& args)
      : args_(args),
        h_(kDown ? (args.h + 1) / 2 : args.h),
        w_(kDown ? (args.w + 1) / 2 : args.w),
        high_(ceil_div(h_, kTile)),
        wide_(ceil_div(w_, kTile)),
        part_(round_up(args.d, kPart)),
        entered_row_(spread(args.c)) {
    constexpr int kWeights = Axis::kWeights;
    int64_t at = 0, starts[kWeights][kWeights];
    for (int i = 0; i < kWeights; ++i)
      for (int j = 0; j < kWeights; ++j) {
        starts[i][j] = at;
        at += args.c * round_up(columns(i, j), kPanel);
      }
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j) {
        columns_[i * kSide + j] = columns(i, j);
        weight_[i * kSide + j] =
            starts[i < kWeights ? i : kWeights - 1][j < kWeights ? j : kWeights - 1];
      }
  }

  void run() const {
    const int64_t tiles = args_.n * high_ * wide_;
    const int threads = args_.threads > 0 ? args_.threads : 1;
    const int64_t blocks = ceil_div(tiles, kBlock);
    if (blocks >= 2 * threads) {  // a thread has its own blocks
      const Room room(*this, ceil_div(tiles, blocks));
      Buffer<float> floats(threads * room.size);
      parallel_tasks(blocks, threads, [&](int64_t task, int thread) {
        const int64_t begin = tiles * task / blocks, end = tiles * (task + 1) / blocks;
        block(room, floats.get() + thread * room.size, begin, end, 1);
      });
      return;
    }
    const int64_t each = ceil_div(tiles, ceil_div(tiles, kBlock * threads));
    const Room room(*this, each);
    Buffer<float> floats(room.size);
    for (int64_t begin = 0; begin < tiles; begin += each)
      block(room, floats.get(), begin, begin + each < tiles ? begin + each : tiles, threads);
  }

 private:
  // Where a block's numbers lie.
  struct Room {
    Room(const Winograd& self, int64_t tiles) {
      entered_point = spread(tiles * self.entered_row_);
      int64_t at = kPoints * entered_point;
      for (int e = 0; e < kPoints; ++e) {
        product[e] = at;
        product_row[e] = spread(round_up(self.columns_[e], kPanel));
        at += spread(tiles * product_row[e]);
      }
      patch = at;
      const int64_t threads = self.args_.threads > 0 ? self.args_.threads : 1;
      size = at + round_up(threads * kIn * kIn * self.args_.c, 16);
    }
    int64_t entered_point;
    int64_t product[kPoints], product_row[kPoints];
    int64_t patch, size;
  };

  static int axis_phases(int i) { return kUp && i != 0 && i != kSide - 1 ? 2 : 1; }
  int64_t columns(int i, int j) const { return axis_phases(i) * axis_phases(j) * part_; }

  Pixel first_of(int64_t tile) const {
    return {tile / (high_ * wide_), tile / wide_ % high_ * kTile, tile % wide_ * kTile};
  }

  void block(const Room& room, float* floats, int64_t begin, int64_t end, int threads) const {
    const int64_t tiles = end - begin;
    parallel_tasks(tiles, threads, [&](int64_t t, int thread) {
      T* patch = reinterpret_cast<T*>(floats + room.patch) + thread * kIn * kIn * args_.c;
      enter(room, reinterpret_cast<T*>(floats) + t * entered_row_, patch, first_of(begin + t));
    });
    multiply_points(room, floats, tiles, threads);
    parallel_tasks(tiles, threads, [&](int64_t t, int) {
      const Pixel at = first_of(begin + t);
      if constexpr (kUp) {
        leave<0, 0>(room, floats, t, at), leave<0, 1>(room, floats, t, at);
        leave<1, 0>(room, floats, t, at), leave<1, 1>(room, floats, t, at);
      } else {
        leave<kBoth, kBoth>(room, floats, t, at);
      }
    });
  }

  // A tile's pixels and those around it; what is beyond the image is zero.
  void enter(const Room& room, T* to, T* patch, const Pixel& at) const {
    constexpr int64_t kScale = kDown ? 2 : 1;
    const int64_t c = args_.c, top = kScale * at.row - 1, left = kScale * at.column - 1;
    const T* from = static_cast<const T*>(args_.x) + ((at.n * args_.h + top) * args_.w + left) * c;
    int64_t from_row = args_.w * c;
    if (top < 0 || left < 0 || top + kIn > args_.h || left + kIn > args_.w) {
      const int64_t first = left < 0 ? 1 : 0;
      const int64_t last = left + kIn > args_.w ? args_.w - left : kIn;
      for (int64_t i = 0; i < kIn; ++i) {
        T* row = patch + i * kIn * c;
        std::memset(row, 0, static_cast<size_t>(kIn * c) * sizeof(T));
        if (top + i >= 0 && top + i < args_.h)
          std::memcpy(row + first * c, from + i * from_row + first * c,
                      static_cast<size_t>((last - first) * c) * sizeof(T));
      }
      from = patch, from_row = kIn * c;
    }
    const int64_t whole = c / kStep * kStep;
    const int64_t point = room.entered_point;
    for (int64_t i = 0; i < whole; i += kStep)
      enter_tile<Axis>(
          [&](int row, int column) { return load(from + row * from_row + column * c + i); },
          [&](int row, int column, Vector<float> v) {
            store(to + (row * kSide + column) * point + i, v);
          });
    if (whole < c)
      enter_tile<Axis>(
          [&](int row, int column) {
            return load_first(from + row * from_row + column * c + whole, c - whole);
          },
          [&](int row, int column, Vector<float> v) {
            store_first(to + (row * kSide + column) * point + whole, v, c - whole);
          });
  }

  void multiply_points(const Room& room, float* floats, int64_t tiles, int threads) const {
    const int64_t panels = ceil_div(columns_[kSide + 1], kPanel);  // most of any point
#if defined(__AMX_BF16__)
    // By what all tiles are, not those of a block, which the number of threads decides.
    const int64_t most = std::min(kBlock, args_.n * high_ * wide_);
    if constexpr (sizeof(T) == sizeof(float))
      if (panel_parts_pay(most, columns_[kSide + 1], args_.c) &&
          args_.c <= PartProducts<>::kDepth) {
        parallel_tasks(threads, threads, [&](int64_t task, int) {
          multiply_in_parts(room, floats, tiles, kPoints * task / threads,
                            kPoints * (task + 1) / threads);
        });
        return;
      }
#endif
    parallel_tasks(kPoints * panels, threads, [&](int64_t task, int) {
      const int e = static_cast<int>(task / panels);
      const int64_t column = task % panels * kPanel;
      if (column < columns_[e]) multiply(product(room, floats, tiles, e, column));
    });
  }

  // What is multiplied: a number, or a pair of them.
  typedef std::conditional_t<sizeof(T) == sizeof(float), float, uint32_t> Unit;

  // Columns [column, column + kPanel) of a point's product.
  PanelProduct<Unit, float> product(const Room& room, float* floats, int64_t tiles, int64_t e,
                                    int64_t column) const {
    constexpr int64_t kEach = sizeof(Unit) / sizeof(T);
    const T* const a = reinterpret_cast<const T*>(floats) + e * room.entered_point;
    const T* const panel = static_cast<const T*>(args_.weight) + weight_[e] + column * args_.c;
    const int64_t live = columns_[e] - column < kPanel ? columns_[e] - column : kPanel;
    return {reinterpret_cast<const Unit*>(a),
            entered_row_ / kEach,
            reinterpret_cast<const Unit*>(panel),
            nullptr,
            floats + room.product[e] + column,
            room.product_row[e],
            tiles,
            live,
            args_.c / kEach};
  }

#if defined(__AMX_BF16__)
  // Of points [begin, end), one after the other: each panel is prepared during the one before.
  void multiply_in_parts(const Room& room, float* floats, int64_t tiles, int64_t begin,
                         int64_t end) const {
    if (begin == end) return;
    const int64_t most = PartProducts<>::most_rows(args_.c);
    const auto at = [&](int64_t e, int64_t column) {
      return product(room, floats, tiles, e, column);
    };
    PartProducts<> products;
    products.take_panel(at(begin, 0).panel, args_.c);
    for (int64_t e = begin; e < end; ++e)
      for (int64_t from = 0; from < tiles; from += most) {
        const int64_t rows = std::min(most, tiles - from);
        const PanelProduct<float, float> first = at(e, 0);
        const bool all = from + rows == tiles;
        products.take_rows(first.a + from * first.a_row, first.a_row, rows, args_.c);
        for (int64_t column = 0; column < columns_[e]; column += kPanel) {
          const float* next = nullptr;
          if (column + kPanel < columns_[e])
            next = at(e, column + kPanel).panel;
          else if (!all || e + 1 < end)
            next = at(all ? e + 1 : e, 0).panel;
          PanelProduct<float, float> p = at(e, column);
          p.a += from * p.a_row, p.c += from * p.c_row, p.rows = rows;
          products.add(p, false, true, next, args_.c);
        }
      }
  }
#endif

  // What a phase's pixels of a tile become.
  template <int kRowPhase, int kColumnPhase>
  void leave(const Room& room, const float* floats, int64_t t, const Pixel& at) const {
    const float* from[kSide][kSide];
    for (int e = 0; e < kPoints; ++e) {
      const int i = e / kSide, j = e % kSide;
      // A point's phases lie by rows, then by columns.
      const int row = kRowPhase == 1 && axis_phases(i) == 2 ? axis_phases(j) : 0;
      const int column = kColumnPhase == 1 && axis_phases(j) == 2 ? 1 : 0;
      from[i][j] = floats + room.product[e] + t * room.product_row[e] + (row + column) * part_;
    }
    constexpr int64_t kScale = kUp ? 2 : 1;
    const int64_t width = kScale * w_, rows = h_ - at.row, columns = w_ - at.column;
    const int64_t top = kScale * at.row + (kRowPhase == 1);
    const int64_t left = kScale * at.column + (kColumnPhase == 1);
    const int64_t first = ((at.n * kScale * h_ + top) * width + left) * args_.d;
    const int64_t row_step = kScale * width * args_.d, column_step = kScale * args_.d;
    for (int64_t c = 0; c < args_.d; c += kStep) {
      const int64_t live = args_.d - c;
      const Vector<float> bias =
          args_.bias == nullptr ? Vector<float>{} : some(args_.bias + c, live);
      leave_tile<Axis, kTile, kRowPhase, kColumnPhase>(
          [&](int i, int j) { return load(from[i][j] + c); },
          [&](int i, int j, Vector<float> v) {
            if (i < rows && j < columns)
              finish(v + bias, first + i * row_step + j * column_step + c, live);
          });
    }
  }

  template <class E>
  static CLIPWEATHER_INLINE Vector<float> some(const E* p, int64_t live) {
    return live >= kStep ? load(p) : load_first(p, live);
  }

  CLIPWEATHER_INLINE void finish(Vector<float> v, int64_t at, int64_t live) const {
    if (args_.relu) v = max(Vector<float>{}, v);  // a NaN stays one
#pragma GCC unroll 2
    for (const void* sum : args_.sums)
      if (sum != nullptr) v += some(static_cast<const T*>(sum) + at, live);
    T* y = static_cast<T*>(args_.y) + at;
    if (live >= kStep)
      store(y, v);
    else
      store_first(y, v, live);
  }

  const WinogradArgs& args_;
  int64_t h_, w_;        // of the coarse image: of y where it is smaller, else of x
  int64_t high_, wide_;  // tiles
  int64_t part_;         // columns of a phase
  int64_t entered_row_;  // from a tile to the next, of one point
  int64_t columns_[kPoints], weight_[kPoints];
};

template <class T>
void run(const WinogradArgs& args) {
  switch (args.kind) {
    case ConvolutionKind::kUp:
      return Winograd<T, 2, ConvolutionKind::kUp>(args).run();
    case ConvolutionKind::kDown:
      return Winograd<T, 2, ConvolutionKind::kDown>(args).run();
    default:
      if constexpr (sizeof(T) == sizeof(float))
        if (args.tile == 4) return Winograd<T, 4, ConvolutionKind::kSame>(args).run();
      return Winograd<T, 2, ConvolutionKind::kSame>(args).run();
  }
}

}  // namespace

void winograd(const WinogradArgs& args) {
  if (args.n * args.h * args.w == 0) return;
  if (args.type == DType::kBFloat16)
    run<bfloat16_t>(args);
  else
    run<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
