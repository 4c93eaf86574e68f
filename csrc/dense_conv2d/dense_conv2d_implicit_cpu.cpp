// Convolutions as products with windows that are never in memory ("implicit GEMM"). The weight is a
// matrix (C, k * k * C') of the coarse image's channels C and the fine one's C', and
//
//   coarse = windows(fine) weight^T,   weight = coarse^T windows(fine),   fine = what coarse weight
//
// spreads. The last is a product for each of stride * stride phases of the fine image: pixels of
// one phase are seen by the same taps, whose windows in the coarse image are again an operand.
//
// In memory the windows would be M k k C' numbers, written and read again. Bound by FMA issue.
#include <stdexcept>

#include "dense_conv2d/dense_conv2d.h"

#if defined(__AVX512F__) && !defined(__AMX_BF16__)
#include "dense_conv2d/cpu_implicit_windows.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

// A is windows, B a matrix.
template <class A>
struct WindowsTimesMatrix : MatrixOperands<A> {
  const ImplicitWindows<A>& windows;

  void pack_a(int64_t m0, int64_t rows, int64_t k0, int64_t depth, A* to) const {
    windows.pack_as_a(m0, rows, k0, depth, to);
  }
};

// A is a matrix, B windows: an image of as few pixels is in cache.
template <class A>
struct MatrixTimesWindows : MatrixOperands<A> {
  const ImplicitWindows<A>& windows;

  void pack_b(int64_t k0, int64_t depth, int64_t n0, A* panel) const {
    windows.pack_as_b(k0, depth, n0, panel);
  }
  const A* panels_in_place(int64_t, int64_t, int64_t) const { return nullptr; }
  Fetched fetched_after(const ProductPlan&, const ProductPart<A>&, int64_t, int64_t,
                        int64_t) const {
    return nothing_fetched();
  }
};

// A is windows of the coarse image, B what the weight has of a phase's taps: its row (tap, channel)
// are C' numbers of the weight's row `channel`. C are the phase's pixels.
template <class A>
struct WindowsTimesTaps : WindowsTimesMatrix<A> {
  const int64_t* taps;  // where in a row of the weight each begins
  const int64_t* pixels;

  void pack_b(int64_t k0, int64_t depth, int64_t n0, A* panel) const {
    const int64_t channels = this->windows.c;
    for (int64_t k = 0; k < depth;) {
      const int64_t tap = (k0 + k) / channels, first = (k0 + k) % channels;
      const int64_t some = channels - first < depth - k ? channels - first : depth - k;
      Product<A> part = this->p;
      part.b += taps[tap];
      pack_panel(part, first, some, n0, panel + k * 2 * kLanes<A>);
      k += some;
    }
  }
  const A* panels_in_place(int64_t, int64_t, int64_t) const { return nullptr; }
  Fetched fetched_after(const ProductPlan& plan, const ProductPart<A>& part, int64_t n0, int64_t k,
                        int64_t steps) const {
    const Product<A>& p = this->p;
    const NextPanels next = next_panels(p, plan, part, n0, k);
    if (next.columns == 0) return nothing_fetched();
    const int64_t channels = this->windows.c, channel = next.k % channels;
    const int64_t rows = channels - channel < next.depth ? channels - channel : next.depth;
    return fetch_rows(p.b + taps[next.k / channels] + channel * p.b_row + next.n0, rows,
                      next.columns * int64_t{sizeof(A)}, p.b_row * int64_t{sizeof(A)}, steps);
  }
  const int64_t* places(int64_t m) const { return pixels + m; }
};

template <class A>
Product<A> product(const DenseConv2dWholeArgs& args) {
  static_assert(kImplicitChannels % (2 * kLanes<A>) == 0, "panels end where channels do");
  Product<A> p{};  // a_row stays 0: windows are packed as rows
  p.bias = static_cast<const A*>(args.bias), p.c = static_cast<A*>(args.out);
  p.a_column = 1;
  return p;
}

template <class A>
ImplicitWindows<A> windows_of_fine(const DenseConv2dWholeArgs& args) {
  const DenseConv2dSizes& s = args.size;
  ImplicitWindows<A> windows;
  windows.image = static_cast<const A*>(args.fine);
  windows.h = s.h, windows.w = s.w, windows.c = s.c;
  windows.rows = s.rows, windows.columns = s.columns, windows.step = s.stride, windows.taps = 0;
  for (int64_t a = 0; a < s.kernel; ++a)
    for (int64_t b = 0; b < s.kernel; ++b) windows.add_tap(a - s.padding, b - s.padding);
  return windows;
}

template <class A>
void coarse_of_fine(const DenseConv2dWholeArgs& args) {
  const ImplicitWindows<A> windows = windows_of_fine<A>(args);
  Product<A> p = product<A>(args);
  p.b = static_cast<const A*>(args.weight);
  p.m = args.size.n * args.size.rows * args.size.columns, p.n = args.channels;
  p.k = windows.taps * windows.c, p.b_row = p.k, p.b_transposed = true;
  multiply_packed(p, WindowsTimesMatrix<A>{{p}, windows}, args.threads);
}

template <class A>
void weight_of_both(const DenseConv2dWholeArgs& args) {
  const ImplicitWindows<A> windows = windows_of_fine<A>(args);
  Product<A> p = product<A>(args);
  p.a = static_cast<const A*>(args.coarse), p.a_row = 1, p.a_column = args.channels;
  p.m = args.channels, p.n = windows.taps * windows.c;
  p.k = args.size.n * args.size.rows * args.size.columns;
  p.b_row = p.n, p.read_late = true;
  multiply_packed(p, MatrixTimesWindows<A>{{p}, windows}, args.threads);
}

template <class A>
void fine_of_coarse(const DenseConv2dWholeArgs& args) {
  const DenseConv2dSizes& s = args.size;
  const Buffer<int64_t> pixels(s.n * ceil_div(s.h, s.stride) * ceil_div(s.w, s.stride));
  for (int64_t phase = 0; phase < s.stride * s.stride; ++phase) {
    const int64_t row = phase / s.stride, column = phase % s.stride;
    ImplicitWindows<A> windows;
    windows.image = static_cast<const A*>(args.coarse);
    windows.h = s.rows, windows.w = s.columns, windows.c = args.channels;
    windows.rows = ceil_div(s.h - row, s.stride),
    windows.columns = ceil_div(s.w - column, s.stride);
    windows.step = 1, windows.taps = 0;
    if (windows.rows <= 0 || windows.columns <= 0) continue;
    int64_t taps[kMostTaps];
    // Pixel stride i + row is tap a of the coarse pixel i + (row + padding - a) / stride.
    for (int64_t a = (row + s.padding) % s.stride; a < s.kernel; a += s.stride)
      for (int64_t b = (column + s.padding) % s.stride; b < s.kernel; b += s.stride) {
        taps[windows.taps] = (a * s.kernel + b) * s.c;
        windows.add_tap((row + s.padding - a) / s.stride, (column + s.padding - b) / s.stride);
      }
    int64_t* pixel = pixels.get();
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t i = row; i < s.h; i += s.stride)
        for (int64_t j = column; j < s.w; j += s.stride) *pixel++ = ((n * s.h + i) * s.w + j) * s.c;
    Product<A> p = product<A>(args);
    p.b = static_cast<const A*>(args.weight), p.b_row = s.kernel * s.kernel * s.c;
    p.m = s.n * windows.rows * windows.columns, p.n = s.c, p.k = windows.taps * windows.c;
    multiply_packed(p, WindowsTimesTaps<A>{{{p}, windows}, taps, pixels.get()}, args.threads);
  }
}

template <class A>
void implicit(const DenseConv2dWholeArgs& args) {
  switch (args.wanted) {
    case DenseConv2dWanted::kCoarse:
      return coarse_of_fine<A>(args);
    case DenseConv2dWanted::kFine:
      return fine_of_coarse<A>(args);
    case DenseConv2dWanted::kWeight:
      return weight_of_both<A>(args);
  }
}

}  // namespace

void dense_conv2d_implicit(const DenseConv2dWholeArgs& args) {
  if (args.size.dtype == DType::kFloat64)
    implicit<double>(args);
  else
    implicit<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

#else

// Fewer registers lose by it, and AMX reads its operands in other squares: both take windows that
// are in memory, and nobody waits for a compiler.
namespace clipweather {
namespace CLIPWEATHER_ISA {

void dense_conv2d_implicit(const DenseConv2dWholeArgs&) {
  throw std::logic_error("dense_conv2d_implicit is for AVX-512 without AMX");
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather

#endif
