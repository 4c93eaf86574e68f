// Bound by memory: every number is read once and written once, a row at a time. The loops are such
// that compilers find the shuffles between planes and pixels.
#include <cstring>

#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "inference/picture_ends.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kRows = 16;  // of one task

// The place whose value `place` of an extended axis takes; `padded` places of `length`.
CLIPWEATHER_INLINE int64_t source(int64_t place, int64_t length, int64_t padded) {
  if (place < length) return place;
  return padded - length < length ? 2 * (length - 1) - place : length - 1;
}

// kStep: the step along a row where the compiler should know it, else 0.
template <int kStep>
CLIPWEATHER_INLINE void normalise_row(const float* __restrict image, int64_t plane, int64_t step,
                                      int64_t count, float* __restrict y) {
  const int64_t s = kStep > 0 ? kStep : step;
  const float* const a = image;
  const float* const b = image + plane;
  const float* const c = image + 2 * plane;
  for (int64_t j = 0; j < count; ++j) {
    y[3 * j] = a[j * s] * 2.0f - 1.0f;
    y[3 * j + 1] = b[j * s] * 2.0f - 1.0f;
    y[3 * j + 2] = c[j * s] * 2.0f - 1.0f;
  }
}

void input_row(const NetworkInputArgs& args, const float* image, float* y) {
  const ImageSteps& steps = args.steps;
  if (steps.c == 1 && steps.w == 3)
    for (int64_t j = 0; j < 3 * args.w; ++j) y[j] = image[j] * 2.0f - 1.0f;
  else if (steps.w == 1)
    normalise_row<1>(image, steps.c, 1, args.w, y);
  else
    normalise_row<0>(image, steps.c, steps.w, args.w, y);
  for (int64_t j = args.w; j < args.columns; ++j)
    std::memcpy(y + 3 * j, y + 3 * source(j, args.w, args.columns), 3 * sizeof(float));
}

CLIPWEATHER_INLINE float clamped(float v) {
  v = v < 0.0f ? 0.0f : v;
  return v > 1.0f ? 1.0f : v;
}

CLIPWEATHER_INLINE void put(float v, float* to) { *to = clamped(v); }
CLIPWEATHER_INLINE void put(float v, uint8_t* to) {
  *to = static_cast<uint8_t>(static_cast<int32_t>(__builtin_rintf(clamped(v) * 255.0f)));
}

template <int kStep, class T>
CLIPWEATHER_INLINE void output_row(const float* __restrict x, int64_t plane, int64_t step,
                                   int64_t count, T* __restrict y) {
  const int64_t s = kStep > 0 ? kStep : step;
  T* const a = y;
  T* const b = y + plane;
  T* const c = y + 2 * plane;
  for (int64_t j = 0; j < count; ++j) {
    put(x[3 * j], a + j * s);
    put(x[3 * j + 1], b + j * s);
    put(x[3 * j + 2], c + j * s);
  }
}

bool finite(const float* x, int64_t count) {
  uint32_t largest = 0;  // a number that is not finite has all bits of its exponent set
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7f800000u;
    largest = bits > largest ? bits : largest;
  }
  return largest != 0x7f800000u;
}

template <class T>
void output_rows(const PictureOutputArgs& args, int64_t begin, int64_t end, int thread) {
  const ImageSteps& steps = args.steps;
  for (int64_t i = begin; i < end; ++i) {
    const float* const x = args.x + i * args.row;
    T* const y = static_cast<T*>(args.picture) + i * steps.h;
    if (!finite(x, 3 * args.w)) args.bad[thread] = 1;
    if (steps.c == 1 && steps.w == 3)
      for (int64_t j = 0; j < 3 * args.w; ++j) put(x[j], y + j);
    else if (steps.w == 1)
      output_row<1>(x, steps.c, 1, args.w, y);
    else
      output_row<0>(x, steps.c, steps.w, args.w, y);
  }
}

}  // namespace

void network_input(const NetworkInputArgs& args) {
  const int64_t groups = ceil_div(args.rows, kRows);
  parallel_tasks(args.n * groups, args.threads, [&](int64_t task, int) {
    const int64_t n = task / groups, begin = task % groups * kRows;
    const int64_t end = begin + kRows < args.rows ? begin + kRows : args.rows;
    for (int64_t i = begin; i < end; ++i)
      input_row(args, args.image + n * args.steps.n + source(i, args.h, args.rows) * args.steps.h,
                args.y + (n * args.rows + i) * args.columns * 3);
  });
}

void picture_output(const PictureOutputArgs& args) {
  const int64_t groups = ceil_div(args.h, kRows);
  parallel_tasks(groups, args.threads, [&](int64_t task, int thread) {
    const int64_t begin = task * kRows;
    const int64_t end = begin + kRows < args.h ? begin + kRows : args.h;
    if (args.levels == Levels::kByte)
      output_rows<uint8_t>(args, begin, end, thread);
    else
      output_rows<float>(args, begin, end, thread);
  });
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
