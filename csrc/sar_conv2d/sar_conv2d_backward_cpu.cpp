// Backward of sar_conv2d on the CPU: see cpu_tiles.h for the walk over the image and its bound.
//
// With pre = unit + sum_m maps_m mixed_m the pre-activation, g = grad_y * activation'(pre) and
// r = g + grad_residual, the banks' output gradients are G_0 = g and G_m = maps_m r, and the maps'
// are t_m = sum over the channels of r * mixed_m. Everything is recomputed from x and the logits.
#include "sar_conv2d/cpu_tiles.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

template <int kCount, int kSize, class T>
class Backward {
  using A = typename Accumulate<T>::type;

 public:
  Backward(const SarConv2dBackwardArgs& args, const Folding& folding)
      : args_(args),
        s_(args.size),
        folding_(folding),
        size_(kSize > 0 ? kSize : args.size.kernel_size),
        count_(1 + folding.mixed),
        banks_(count_, size_, s_.c),
        cut_(s_.n, s_.h, s_.w, banks_.blocks, size_),
        tiles_(s_.n * cut_.strips * cut_.tiles),
        threads_(args.threads > 0 ? args.threads : 1),
        taps_(tiles_, banks_.blocks, count_ * (size_ * size_ + 1)),
        slopes_(cut_.chunks * s_.n * s_.h * s_.w * folding.mixed) {
    fill_banks(banks_, args.in, s_, folding);
  }

  void run() {
    const int64_t x_room = cut_.x_rows() * cut_.x_width * kLanes<A>;
    const int64_t g_room = size_ * count_ * cut_.g_width * kLanes<A>;
    const int64_t map_room = cut_.g_rows() * map_row();
    const int64_t t_room = cut_.strip * cut_.tile * folding_.mixed * kLanes<A>;
    const int64_t room = x_room + g_room + t_room + padded<A>(map_room);
    Buffer<A> scratch(threads_ * room);
    parallel_tasks(tiles_ * cut_.chunks, threads_, [&](int64_t task, int thread) {
      A* x = scratch.get() + thread * room;
      A* g = x + x_room;
      A* t = g + g_room;
      run_tile(task, x, g, t, t + t_room);
    });
    taps_.total(threads_);
    parallel_tasks(banks_.blocks, threads_, [&](int64_t block, int) { write_parameters(block); });
    if (s_.kernels > 0 && args_.grad_logits != nullptr)
      parallel_tasks(s_.n * s_.h, threads_, [&](int64_t row, int) { write_logits(row); });
  }

 private:
  // A tile's maps: per row of G, [K][padded width], column i as in G.
  int64_t map_row() const { return s_.kernels * padded<A>(cut_.g_width); }

  void read_maps(const Tile& tile, A* maps) const {
    if (s_.kernels == 0) return;
    const int64_t width = padded<A>(cut_.g_width);
    const int64_t left = tile.w0 - cut_.half > 0 ? tile.w0 - cut_.half : 0;
    const int64_t right = tile.w1 + cut_.half < s_.w ? tile.w1 + cut_.half : s_.w;
    const int64_t skip = left - (tile.w0 - cut_.half);
    for (int64_t i = 0; i < tile.h1 - tile.h0 + 2 * cut_.half; ++i) {
      const int64_t row = tile.h0 - cut_.half + i;
      if (row < 0 || row >= s_.h) continue;
      A* out = maps + i * map_row();
      std::memset(out, 0, static_cast<size_t>(map_row()) * sizeof(A));
      for (int k = 0; k < s_.kernels; ++k) {
        const int64_t* stride = s_.logits_stride;
        const T* p = static_cast<const T*>(args_.in.logits) + tile.n * stride[0] + k * stride[1] +
                     row * stride[2];
        for (int64_t w = left; w < right; ++w)
          out[k * width + skip + w - left] = load_one(p + w * stride[3]);
      }
      apply_gate(s_.gate, s_.kernels, cut_.g_width, out);
    }
  }

  void run_tile(int64_t task, A* x, A* g, A* t, A* maps) {
    const Tile tile(cut_, task, s_.h, s_.w, banks_.blocks);
    const int64_t plane = s_.h * s_.w * s_.c;
    const Image<T> image{static_cast<const T*>(args_.in.x) + tile.n * plane, s_.h, s_.w, s_.c,
                         nullptr};
    T* grad_x = static_cast<T*>(args_.grad_x) + tile.n * plane;
    const int half = cut_.half;
    const int64_t ring = count_ * cut_.g_width * kLanes<A>;  // one row of G
    read_maps(tile, maps);
    clear_tile(cut_, x);
    std::memset(
        t, 0, static_cast<size_t>(cut_.strip * cut_.tile * folding_.mixed * kLanes<A>) * sizeof(A));
    for (int64_t block = tile.block0; block < tile.block1; ++block) {
      const int64_t c = block * kLanes<A>;
      const int64_t live = c + kLanes<A> <= s_.c ? int64_t{kLanes<A>} : s_.c - c;
      fetch_tile(image, cut_, tile, c, live, x);
      taps_.clear(tile.index, block);
      for (int64_t i = 0; i < tile.h1 - tile.h0 + 2 * half; ++i) {
        const int64_t row = tile.h0 - half + i;
        A* g_row = g + i % size_ * ring;
        fill_row(tile, block, c, live, i, row, x, maps + i * map_row(), g_row, t);
        if (row >= tile.h0 && row < tile.h1)
          correlate_row<kCount, kSize>(
              g_row + half * kLanes<A>, cut_.g_width, x + (i * cut_.x_width + half) * kLanes<A>,
              cut_.x_width, tile.w1 - tile.w0, count_, size_, taps_.slot(tile.index, block));
        if (i < 2 * half) continue;
        const auto rows = [&](int kernel_row) { return g + (i - kernel_row) % size_ * ring; };
        gather_row<kCount, kSize>(rows, cut_.g_width, banks_, block, tile.w1 - tile.w0,
                                  grad_x + ((row - half) * s_.w + tile.w0) * s_.c + c, s_.c,
                                  s_.w * s_.c, live, false);
      }
    }
    write_slopes(tile, task % cut_.chunks, t);
  }

  // One row of G for every bank, zero outside the image; t grows at the tile's own pixels.
  void fill_row(const Tile& tile, int64_t block, int64_t c, int64_t live, int64_t i, int64_t row,
                const A* x, const A* maps, A* g, A* t) const {
    const int64_t stride = cut_.g_width * kLanes<A>;  // between banks
    if (row < 0 || row >= s_.h) {
      std::memset(g, 0, static_cast<size_t>(count_ * stride) * sizeof(A));
      return;
    }
    const int64_t plane = s_.h * s_.w * s_.c;
    const bool core_row = row >= tile.h0 && row < tile.h1;
    clear_ends(cut_, tile, count_, g);
    for (int64_t first = tile.first; first < tile.last; first += kGroup) {
      const int64_t column = tile.w0 - cut_.half + first;
      Vector<A> acc[kCount > 0 ? kCount : kMaxBanks][kGroup];
      convolve_tile<kCount, kSize>(x + (i * cut_.x_width + first) * kLanes<A>, cut_.x_width, banks_,
                                   block, acc);
      const Pixels at{
          tile.n * plane + (row * s_.w + column) * s_.c + c, live, maps + first,
          g + first * kLanes<A>,
          t + ((row - tile.h0) * cut_.tile + column - tile.w0) * folding_.mixed * kLanes<A>};
      // Branch-free where every pixel lies in the image and inside (or outside) the tile proper.
      if (column >= 0 && column + kGroup <= s_.w && live == kLanes<A>) {
        if (core_row && column >= tile.w0 && column + kGroup <= tile.w1) {
          fill_pixels<true>(at, acc, [](int) { return true; }, [](int) { return true; });
          continue;
        }
      }
      fill_pixels<false>(
          at, acc, [&](int p) { return column + p >= 0 && column + p < s_.w; },
          [&](int p) { return core_row && column + p >= tile.w0 && column + p < tile.w1; });
    }
  }

  // Where a group of pixels lies: in the image's tensors, in a row of maps, in G and in t.
  struct Pixels {
    int64_t at, live;
    const A* maps;
    A* g;
    A* t;
  };

  template <bool kInside, class InImage, class InTile>
  CLIPWEATHER_INLINE void fill_pixels(const Pixels& px,
                                      Vector<A> (&acc)[kCount > 0 ? kCount : kMaxBanks][kGroup],
                                      const InImage& in_image, const InTile& in_tile) const {
    const T* grad_y = static_cast<const T*>(args_.grad_y);
    const T* grad_residual = static_cast<const T*>(args_.grad_residual);
    const int count = kCount > 0 ? kCount : count_;
    const int64_t map_width = padded<A>(cut_.g_width), stride = cut_.g_width * kLanes<A>;
    const int64_t live = kInside ? int64_t{kLanes<A>} : px.live;
    const int64_t next_row = s_.w * s_.c;  // fetched early: a tile's rows come far apart in memory
    Vector<A> slope[kGroup];
    if (s_.activation == Activation::kGelu) {
#pragma GCC unroll 4
      for (int p = 0; p < kGroup; ++p) {
        Vector<A> pre = acc[0][p];
#pragma GCC unroll 9
        for (int m = 1; m < count; ++m) pre += acc[m][p] * px.maps[(m - 1) * map_width + p];
        slope[p] = gelu_slope<T>(pre);
      }
    } else {
#pragma GCC unroll 4
      for (int p = 0; p < kGroup; ++p) slope[p] = broadcast(A(1));
    }
#pragma GCC unroll 4
    for (int p = 0; p < kGroup; ++p) {
      A* out = px.g + p * kLanes<A>;
      if (!kInside && !in_image(p)) {
        for (int bank = 0; bank < count; ++bank) store(out + bank * stride, Vector<A>{});
        continue;
      }
      const int64_t at = px.at + p * s_.c;
      Vector<A> gradient{};
      if (grad_y != nullptr) {
        gradient = load_live<T, Vector<A>>(grad_y + at, live) * slope[p];
        __builtin_prefetch(grad_y + at + next_row);
      }
      store(out, gradient);
      if (grad_residual != nullptr) {
        gradient += load_live<T, Vector<A>>(grad_residual + at, live);
        __builtin_prefetch(grad_residual + at + next_row);
      }
#pragma GCC unroll 9
      for (int m = 1; m < count; ++m) {
        store(out + m * stride, gradient * px.maps[(m - 1) * map_width + p]);
        if (!kInside && !in_tile(p)) continue;
        A* sum = px.t + (p * (count - 1) + m - 1) * kLanes<A>;
        store(sum, load(sum) + gradient * acc[m][p]);
      }
    }
  }

  // Gradients of the maps over this chunk's channels.
  void write_slopes(const Tile& tile, int64_t chunk, const A* t) {
    const int mixed = folding_.mixed;
    for (int64_t h = tile.h0; h < tile.h1; ++h)
      for (int64_t w = tile.w0; w < tile.w1; ++w)
        for (int m = 0; m < mixed; ++m) {
          const A* sum = t + (((h - tile.h0) * cut_.tile + w - tile.w0) * mixed + m) * kLanes<A>;
          slopes_.get()[(((chunk * s_.n + tile.n) * s_.h + h) * s_.w + w) * mixed + m] =
              horizontal_sum<A>(load(sum));
        }
  }

  void write_logits(int64_t row) const {
    const int64_t n = row / s_.h, h = row % s_.h;
    const int mixed = folding_.mixed;
    Buffer<A> maps(s_.kernels * padded<A>(s_.w));
    read_logits(static_cast<const T*>(args_.in.logits), s_.logits_stride, s_.kernels, n, h, 0, s_.w,
                maps.get());
    apply_gate(s_.gate, s_.kernels, s_.w, maps.get());
    const int64_t width = padded<A>(s_.w);
    for (int64_t w = 0; w < s_.w; ++w) {
      const int64_t pixel = row * s_.w + w;
      A slope[kMaxKernels] = {};  // a folded kernel's stays 0: slopes are relative to it
      A mean = 0;
      for (int m = 0; m < mixed; ++m) {
        for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk)
          slope[m] += slopes_.get()[(chunk * s_.n * s_.h * s_.w + pixel) * mixed + m];
        mean += slope[m] * maps.get()[m * width + w];
      }
      A* out = static_cast<A*>(args_.grad_logits) + pixel * s_.kernels;
      for (int k = 0; k < s_.kernels; ++k) {
        const A map = maps.get()[k * width + w];
        if (s_.gate == Gate::kSoftmax)
          out[k] = map * (slope[k] - mean);
        else
          out[k] = s_.gate == Gate::kSigmoid ? slope[k] * map * (1 - map) : slope[k];
      }
    }
  }

  // Undoes the folding: d static = unit; d weight_m = mixed_m; d weight_{K-1} = unit - sum mixed_m.
  void write_parameters(int64_t block) const {
    const int64_t c0 = block * kLanes<A>;
    const int64_t live = c0 + kLanes<A> <= s_.c ? int64_t{kLanes<A>} : s_.c - c0;
    const A* taps = taps_.slot(0, block);
    const A* biases = taps + count_ * size_ * size_ * kLanes<A>;
    const auto tap = [&](int bank, int row, int column, int64_t lane) {
      return taps[((row * count_ + bank) * size_ + column) * kLanes<A> + lane];
    };
    const auto bias = [&](int bank, int, int, int64_t lane) {
      return biases[bank * kLanes<A> + lane];
    };
    write_banks(tap, size_, c0, live, static_cast<A*>(args_.grad_static_weight),
                static_cast<A*>(args_.grad_weight));
    write_banks(bias, 1, c0, live, static_cast<A*>(args_.grad_static_bias),
                static_cast<A*>(args_.grad_bias));
  }

  template <class Value>
  void write_banks(const Value& value, int size, int64_t c0, int64_t live, A* fixed,
                   A* mixed) const {
    for (int64_t lane = 0; lane < live; ++lane)
      for (int row = 0; row < size; ++row)
        for (int column = 0; column < size; ++column) {
          const int64_t at = ((c0 + lane) * size + row) * size + column;
          const A unit = value(0, row, column, lane);
          A last = unit;
          if (fixed != nullptr) fixed[at] = unit;
          if (mixed == nullptr) continue;
          for (int m = 0; m < folding_.mixed; ++m) {
            const A own = value(m + 1, row, column, lane);
            mixed[m * s_.c * size * size + at] = own;
            last -= own;
          }
          if (folding_.folded) mixed[folding_.mixed * s_.c * size * size + at] = last;
        }
  }

  const SarConv2dBackwardArgs& args_;
  const SarConv2dSizes& s_;
  const Folding folding_;
  const int size_, count_;
  Banks<A> banks_;
  const BackwardCut cut_;
  const int64_t tiles_;
  const int threads_;
  Partials<A> taps_;
  Buffer<A> slopes_;  // [chunk][n][h][w][mixed]
};

template <class T>
void backward_of(const SarConv2dBackwardArgs& args) {
  const Folding folding(args.size, args.grad_residual != nullptr);
  if (args.size.kernel_size == 3 && sizeof(T) <= 4) {
    switch (folding.mixed) {
      case 0:
        return Backward<1, 3, T>(args, folding).run();
      case 1:
        return Backward<2, 3, T>(args, folding).run();
      case 2:
        return Backward<3, 3, T>(args, folding).run();
      case 3:
        return Backward<4, 3, T>(args, folding).run();
      default:
        break;
    }
  }
  Backward<kAnyBanks, kAnyBanks, T>(args, folding).run();
}

}  // namespace

void sar_conv2d_backward(const SarConv2dBackwardArgs& args) {
  switch (args.size.dtype) {
    case DType::kFloat32:
      return backward_of<float>(args);
    case DType::kBFloat16:
      return backward_of<bfloat16_t>(args);
    case DType::kFloat16:
      return backward_of<float16_t>(args);
    case DType::kFloat64:
      return backward_of<double>(args);
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
