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

constexpr int64_t kSums = 4;   // rows whose columns are summed together
constexpr int64_t kRows = 16;  // of one task, a multiple of kSums
// A pixel and one number more.
typedef float Pixel __attribute__((vector_size(16)));

CLIPWEATHER_INLINE Pixel pixel_at(const float* p) {
  Pixel v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Sums of `length` numbers of rows that lie `step` apart.
void add_rows(const ResizeTaps& taps, int64_t i, const float* picture, int64_t step, int64_t length,
              float* sum) {
  constexpr int64_t kStep = kLanes<float>;
  const float* weight = taps.weight + i * taps.most;
  const float* first = picture + taps.first[i] * step;
  const int64_t count = taps.count[i];
  for (int64_t at = 0; at < length; at += kStep) {
    Vector<float> v{};
    if (at + kStep <= length)
      for (int64_t t = 0; t < count; ++t) v += load(first + t * step + at) * weight[t];
    else
      for (int64_t t = 0; t < count; ++t)
        v += load_first(first + t * step + at, length - at) * weight[t];
    store(sum + at, v);  // there is room for whole vectors
  }
}

void interleave(const float* __restrict planes, int64_t room, int64_t count,
                float* __restrict row) {
  for (int64_t j = 0; j < count; ++j)
    for (int64_t c = 0; c < 3; ++c) row[3 * j + c] = planes[c * room + j];
}

// One row of the square before its columns are summed, as pixels.
void sum_of_rows(const EncoderInputArgs& args, int64_t n, int64_t i, int64_t room, float* planes,
                 float* row) {
  const float* const picture = args.picture + n * args.image;
  if (args.plane == 1) {
    add_rows(args.rows, i, picture, args.row, 3 * args.w, row);
    return;
  }
  for (int64_t c = 0; c < 3; ++c)
    add_rows(args.rows, i, picture + c * args.plane, args.row, args.w, planes + c * room);
  interleave(planes, room, args.w, row);
}

// kSums rows at once: their sums do not wait for one another.
void add_columns(const EncoderInputArgs& args, const float* rows, int64_t room, float* y) {
  const ResizeTaps& taps = args.columns;
  const Pixel mean = {args.mean[0], args.mean[1], args.mean[2], 0};
  const Pixel deviation = {args.deviation[0], args.deviation[1], args.deviation[2], 1};
  const Pixel zero{}, one = zero + 1.0f;
  for (int64_t j = 0; j < args.size; ++j) {
    const float* weight = taps.weight + j * taps.most;
    const float* first = rows + taps.first[j] * 3;
    Pixel v[kSums]{};
    for (int64_t t = 0; t < taps.count[j]; ++t)
      for (int64_t i = 0; i < kSums; ++i) v[i] += pixel_at(first + i * room + t * 3) * weight[t];
    for (int64_t i = 0; i < kSums; ++i) {
      v[i] = v[i] < zero ? zero : v[i];  // a NaN stays one
      v[i] = v[i] > one ? one : v[i];
      v[i] = (v[i] - mean) / deviation;
      std::memcpy(y + (i * args.size + j) * 3, &v[i], 3 * sizeof(float));
    }
  }
}

}  // namespace

void encoder_input(const EncoderInputArgs& args) {
  // A pixel is read as a vector that is one number longer.
  const int64_t room = (ceil_div(3 * args.w, kLanes<float>) + 1) * kLanes<float>;
  const int64_t square = args.size * args.size * 3, groups = ceil_div(args.size, kRows);
  const int threads = args.threads > 0 ? args.threads : 1;
  const int64_t sums = kSums * room, results = kSums * args.size * 3;
  const int64_t share = sums + 3 * room + results;
  Buffer<float> buffer(threads * share);
  buffer.zero(threads * share);
  parallel_tasks(args.n * groups, threads, [&](int64_t task, int thread) {
    const int64_t n = task / groups, begin = task % groups * kRows;
    const int64_t end = begin + kRows < args.size ? begin + kRows : args.size;
    float* const rows = buffer.get() + thread * share;
    float* const planes = rows + sums;
    for (int64_t i = begin; i < end; i += kSums) {
      const int64_t count = end - i < kSums ? end - i : kSums;
      for (int64_t k = 0; k < count; ++k)
        sum_of_rows(args, n, i + k, room, planes, rows + k * room);
      float* const y = args.y + n * square + i * args.size * 3;
      if (count == kSums) {
        add_columns(args, rows, room, y);
        continue;
      }
      float* const last = planes + 3 * room;  // all kSums rows of it, of which some are wanted
      add_columns(args, rows, room, last);
      std::memcpy(y, last, count * args.size * 3 * sizeof(float));
    }
  });
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
