// Backward of sar_logits on the CPU, on the tiles of sar_conv2d/cpu_tiles.h.
//
// With u = DWConv(x) + depthwise_bias recomputed, the gradient of u is
// G = GELU'(u) sum_k grad_logits_k pointwise_k; that of pointwise_k is sum over pixels of
// grad_logits_k GELU(u).
#include "sar_conv2d/cpu_tiles.h"
#include "sar_logits/cpu_logits_row.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int kSide = 3;

template <class A>
struct Wider;
template <>
struct Wider<float> {
  typedef double type;
};
template <>
struct Wider<double> {
  typedef long double type;
};

template <class T>
class Backward {
  using A = typename Accumulate<T>::type;

 public:
  explicit Backward(const SarLogitsBackwardArgs& args)
      : args_(args),
        s_(args.size),
        predictor_(args.in, s_.c, s_.kernels),
        cut_(s_.n, s_.h, s_.w, predictor_.banks.blocks, kSide),
        tiles_(s_.n * cut_.strips * cut_.tiles),
        threads_(args.threads > 0 ? args.threads : 1),
        sums_(tiles_, predictor_.banks.blocks, kTapRows + s_.kernels) {}

  void run() {
    const int64_t x_room = cut_.x_rows() * cut_.x_width * kLanes<A>;
    const int64_t g_room = kSide * cut_.g_width * kLanes<A>;
    Buffer<A> scratch(threads_ * (x_room + g_room));
    parallel_tasks(tiles_ * cut_.chunks, threads_, [&](int64_t task, int thread) {
      A* x = scratch.get() + thread * (x_room + g_room);
      run_tile(task, x, x + x_room);
    });
    sums_.total(threads_);
    parallel_tasks(predictor_.banks.blocks, threads_,
                   [&](int64_t block, int) { write_parameters(block); });
    write_pointwise_bias();
  }

 private:
  static constexpr int kTapRows = kSide * kSide + 1;  // the taps' and the bias's gradients

  void run_tile(int64_t task, A* x, A* g) {
    const Banks<A>& banks = predictor_.banks;
    const Tile tile(cut_, task, s_.h, s_.w, banks.blocks);
    const int64_t plane = s_.h * s_.w * s_.c;
    const Image<T> image{static_cast<const T*>(args_.in.x) + tile.n * plane, s_.h, s_.w, s_.c,
                         nullptr};
    T* grad_x = static_cast<T*>(args_.grad_x) + tile.n * plane;
    const int64_t ring = cut_.g_width * kLanes<A>;
    clear_tile(cut_, x);
    for (int64_t block = tile.block0; block < tile.block1; ++block) {
      const int64_t c = block * kLanes<A>;
      const int64_t live = c + kLanes<A> <= s_.c ? int64_t{kLanes<A>} : s_.c - c;
      fetch_tile(image, cut_, tile, c, live, x);
      sums_.clear(tile.index, block);
      A* slot = sums_.slot(tile.index, block);
      for (int64_t i = 0; i < tile.h1 - tile.h0 + 2; ++i) {
        const int64_t row = tile.h0 - 1 + i;
        A* g_row = g + i % kSide * ring;
        fill_row(tile, block, i, row, x, g_row, slot + kTapRows * kLanes<A>);
        if (row >= tile.h0 && row < tile.h1)
          correlate_row<1, kSide>(g_row + kLanes<A>, cut_.g_width,
                                  x + (i * cut_.x_width + 1) * kLanes<A>, cut_.x_width,
                                  tile.w1 - tile.w0, 1, kSide, slot);
        if (i < 2) continue;
        const auto rows = [&](int kernel_row) { return g + (i - kernel_row) % kSide * ring; };
        gather_row<1, kSide>(rows, cut_.g_width, banks, block, tile.w1 - tile.w0,
                             grad_x + ((row - 1) * s_.w + tile.w0) * s_.c + c, s_.c, s_.w * s_.c,
                             live, args_.accumulate);
      }
    }
  }

  void fill_row(const Tile& tile, int64_t block, int64_t i, int64_t row, const A* x, A* g,
                A* pointwise_sums) const {
    if (row < 0 || row >= s_.h) {
      std::memset(g, 0, static_cast<size_t>(cut_.g_width * kLanes<A>) * sizeof(A));
      return;
    }
    const int kernels = s_.kernels;
    const bool core_row = row >= tile.h0 && row < tile.h1;
    const A* pointwise = predictor_.pointwise_of(block);
    const A* grad_logits = static_cast<const A*>(args_.grad_logits);
    Vector<A> sums[kMaxKernels] = {};
    clear_ends(cut_, tile, 1, g);
    for (int64_t first = tile.first; first < tile.last; first += kGroup) {
      Vector<A> acc[1][kGroup];
      convolve_tile<1, kSide>(x + (i * cut_.x_width + first) * kLanes<A>, cut_.x_width,
                              predictor_.banks, block, acc);
#pragma GCC unroll 4
      for (int p = 0; p < kGroup; ++p) {
        const int64_t column = tile.w0 - 1 + first + p;
        A* out = g + (first + p) * kLanes<A>;
        if (column < 0 || column >= s_.w) {
          store(out, Vector<A>{});
          continue;
        }
        const A* gradient = grad_logits + ((tile.n * s_.h + row) * s_.w + column) * kernels;
        Vector<A> hidden{};
        for (int k = 0; k < kernels; ++k) hidden += load(pointwise + k * kLanes<A>) * gradient[k];
        store(out, hidden * gelu_slope<T>(acc[0][p]));
        if (!core_row || column < tile.w0 || column >= tile.w1) continue;
        const Vector<A> value = gelu<T>(acc[0][p]);
        for (int k = 0; k < kernels; ++k) sums[k] += value * gradient[k];
      }
    }
    for (int k = 0; k < kernels; ++k) {
      A* out = pointwise_sums + k * kLanes<A>;
      store(out, load(out) + sums[k]);
    }
  }

  void write_parameters(int64_t block) const {
    const int64_t c0 = block * kLanes<A>;
    const int64_t live = c0 + kLanes<A> <= s_.c ? int64_t{kLanes<A>} : s_.c - c0;
    const A* sums = sums_.slot(0, block);
    for (int64_t lane = 0; lane < live; ++lane) {
      for (int tap = 0; tap < kSide * kSide; ++tap)
        static_cast<A*>(args_.grad_depthwise_weight)[(c0 + lane) * kSide * kSide + tap] =
            sums[tap * kLanes<A> + lane];
      static_cast<A*>(args_.grad_depthwise_bias)[c0 + lane] =
          sums[kSide * kSide * kLanes<A> + lane];
      for (int k = 0; k < s_.kernels; ++k)
        static_cast<A*>(args_.grad_pointwise_weight)[k * s_.c + c0 + lane] =
            sums[(kTapRows + k) * kLanes<A> + lane];
    }
  }

  // In more digits than the numbers have: of all images, their signs mixed, little is left.
  void write_pointwise_bias() const {
    const A* grad_logits = static_cast<const A*>(args_.grad_logits);
    const int64_t count = s_.n * s_.h * s_.w * s_.kernels;
    for (int k = 0; k < s_.kernels; ++k) {
      typename Wider<A>::type total = 0;
      for (int64_t i = k; i < count; i += s_.kernels) total += grad_logits[i];
      static_cast<A*>(args_.grad_pointwise_bias)[k] = static_cast<A>(total);
    }
  }

  const SarLogitsBackwardArgs& args_;
  const SarLogitsSizes& s_;
  const Predictor<A> predictor_;
  const BackwardCut cut_;
  const int64_t tiles_;
  const int threads_;
  Partials<A> sums_;  // taps and bias, then K pointwise rows
};

}  // namespace

void sar_logits_backward(const SarLogitsBackwardArgs& args) {
  switch (args.size.dtype) {
    case DType::kFloat32:
      return Backward<float>(args).run();
    case DType::kBFloat16:
      return Backward<bfloat16_t>(args).run();
    case DType::kFloat16:
      return Backward<float16_t>(args).run();
    case DType::kFloat64:
      return Backward<double>(args).run();
  }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
