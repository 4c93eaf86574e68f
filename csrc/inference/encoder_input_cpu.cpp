// A row of the square is first a sum of the picture's rows, whole, and then of that sum's pixels.
// Bound by memory: the picture is read once, and each row of it stays in cache for the few rows of
// the square that need it.
#include <cstring>

#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "inference/encoder_input.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kRows = 16;  // of one task
// A pixel and one number more.
typedef float Pixel __attribute__((vector_size(16)));

CLIPWEATHER_INLINE Pixel pixel_at(const float* p) {
  Pixel v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void add_rows(const ResizeTaps& taps, int64_t i, const float* picture, int64_t length, float* sum) {
  constexpr int64_t kStep = kLanes<float>;
  const float* weight = taps.weight + i * taps.most;
  const float* first = picture + taps.first[i] * length;
  const int64_t count = taps.count[i];
  for (int64_t at = 0; at < length; at += kStep) {
    Vector<float> v{};
    if (at + kStep <= length)
      for (int64_t t = 0; t < count; ++t) v += load(first + t * length + at) * weight[t];
    else
      for (int64_t t = 0; t < count; ++t)
        v += load_first(first + t * length + at, length - at) * weight[t];
    store(sum + at, v);  // there is room for whole vectors
  }
}

void add_columns(const EncoderInputArgs& args, const float* row, float* y) {
  const ResizeTaps& taps = args.columns;
  const Pixel mean = {args.mean[0], args.mean[1], args.mean[2], 0};
  const Pixel deviation = {args.deviation[0], args.deviation[1], args.deviation[2], 1};
  const Pixel zero{}, one = zero + 1.0f;
  for (int64_t j = 0; j < args.size; ++j) {
    const float* weight = taps.weight + j * taps.most;
    const float* first = row + taps.first[j] * 3;
    Pixel v{};
    for (int64_t t = 0; t < taps.count[j]; ++t) v += pixel_at(first + t * 3) * weight[t];
    v = v < zero ? zero : v;  // a NaN stays one
    v = v > one ? one : v;
    v = (v - mean) / deviation;
    std::memcpy(y + j * 3, &v, 3 * sizeof(float));
  }
}

}  // namespace

void encoder_input(const EncoderInputArgs& args) {
  const int64_t length = args.w * 3;
  const int64_t room = (ceil_div(length, kLanes<float>) + 1) * kLanes<float>;
  const int64_t groups = ceil_div(args.size, kRows);
  const int threads = args.threads > 0 ? args.threads : 1;
  Buffer<float> rows(threads * room);
  std::memset(rows.get(), 0, sizeof(float) * threads * room);
  parallel_tasks(args.n * groups, threads, [&](int64_t task, int thread) {
    const int64_t n = task / groups, begin = task % groups * kRows;
    const int64_t end = begin + kRows < args.size ? begin + kRows : args.size;
    float* row = rows.get() + thread * room;
    for (int64_t i = begin; i < end; ++i) {
      add_rows(args.rows, i, args.picture + n * args.h * length, length, row);
      add_columns(args, row, args.y + (n * args.size + i) * args.size * 3);
    }
  });
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
