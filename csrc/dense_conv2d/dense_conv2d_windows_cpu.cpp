// Windows of an image as the rows of a matrix, and back. Memory bounds both.
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "dense_conv2d/dense_conv2d.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

// A task is a row of the coarse image. Where a row of a window lies inside the image its pixels
// are neighbours in memory, and are copied at once.
template <class A>
void windows_of_image(const DenseConv2dArgs& args) {
  const DenseConv2dSizes& s = args.size;
  const A* image = static_cast<const A*>(args.in);
  A* windows = static_cast<A*>(args.out);
  const int64_t width = s.kernel * s.c;
  parallel_tasks(s.n * s.rows, args.threads, [&](int64_t task, int) {
    const int64_t n = task / s.rows, top = task % s.rows * s.stride - s.padding;
    A* out = windows + task * s.columns * s.kernel * width;
    for (int64_t j = 0; j < s.columns; ++j) {
      const int64_t left = j * s.stride - s.padding;
      const int64_t first = left < 0 ? -left : 0;
      const int64_t last = left + s.kernel > s.w ? s.w - left : s.kernel;
      for (int64_t a = 0; a < s.kernel; ++a, out += width) {
        const int64_t row = top + a;
        if (row < 0 || row >= s.h || first >= last) {
          std::memset(out, 0, static_cast<size_t>(width) * sizeof(A));
          continue;
        }
        const A* in = image + ((n * s.h + row) * s.w + left) * s.c;
        std::memset(out, 0, static_cast<size_t>(first * s.c) * sizeof(A));
        std::memcpy(out + first * s.c, in + first * s.c,
                    static_cast<size_t>((last - first) * s.c) * sizeof(A));
        std::memset(out + last * s.c, 0, static_cast<size_t>((s.kernel - last) * s.c) * sizeof(A));
      }
    }
  });
}

// The coarse positions whose windows hold a fine position, and where in them: tap[i] of
// position[i].
struct Holders {
  static constexpr int kMost = 16;
  int64_t position[kMost], tap[kMost];
  int count = 0;

  Holders(int64_t fine, int64_t coarse, const DenseConv2dSizes& s) {
    for (int64_t a = (fine + s.padding) % s.stride; a < s.kernel; a += s.stride) {
      const int64_t i = (fine + s.padding - a) / s.stride;
      if (fine + s.padding < a || i >= coarse) continue;
      position[count] = i, tap[count] = a, ++count;
    }
  }
};

// A task is a row of the fine image. Nothing is scattered: a pixel fetches its summands.
template <class A>
void image_of_windows(const DenseConv2dArgs& args) {
  const DenseConv2dSizes& s = args.size;
  const A* windows = static_cast<const A*>(args.in);
  const A* bias = static_cast<const A*>(args.bias);
  A* image = static_cast<A*>(args.out);
  parallel_tasks(s.n * s.h, args.threads, [&](int64_t task, int) {
    const int64_t n = task / s.h;
    const Holders rows(task % s.h, s.rows, s);
    for (int64_t w = 0; w < s.w; ++w) {
      const Holders columns(w, s.columns, s);
      const A* summands[Holders::kMost * Holders::kMost];
      int count = 0;
      for (int i = 0; i < rows.count; ++i)
        for (int j = 0; j < columns.count; ++j) {
          const int64_t window = (n * s.rows + rows.position[i]) * s.columns + columns.position[j];
          const int64_t tap = rows.tap[i] * s.kernel + columns.tap[j];
          summands[count++] = windows + (window * s.kernel * s.kernel + tap) * s.c;
        }
      A* out = image + (task * s.w + w) * s.c;
      for (int64_t c = 0; c < s.c; c += kLanes<A>) {
        const bool whole = c + kLanes<A> <= s.c;
        const auto read = [&](const A* p) {
          return whole ? load(p + c) : load_first(p + c, s.c - c);
        };
        Vector<A> sum{};
        if (bias != nullptr) sum = read(bias);
        for (int i = 0; i < count; ++i) sum += read(summands[i]);
        if (whole)
          store(out + c, sum);
        else
          store_first(out + c, sum, s.c - c);
      }
    }
  });
}

template <class A>
void windows_step(const DenseConv2dArgs& args) {
  if (args.step == DenseConv2dStep::kWindowsOfImage)
    windows_of_image<A>(args);
  else
    image_of_windows<A>(args);
}

}  // namespace

void dense_conv2d_windows(const DenseConv2dArgs& args) {
  if (args.size.dtype == DType::kFloat64)
    windows_step<double>(args);
  else
    windows_step<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
