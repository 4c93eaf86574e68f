// residual_norm on the CPU: a row of tokens stays in registers from the sum to the result, or, if
// it is long, in the first cache. Bound by memory: every tensor passes once. Mean and variance are
// formed in two passes over the row, as exact as the definition.
#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "residual_norm/residual_norm.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kRows = 256;  // of one task
constexpr int64_t kStep = kLanes<float>;

template <class T>
CLIPWEATHER_INLINE Vector<float> load_some(const T* p, int64_t i, int64_t c) {
  return i + kStep <= c ? load(p + i) : load_first(p + i, c - i);
}
template <class T>
CLIPWEATHER_INLINE void store_some(T* p, Vector<float> v, int64_t i, int64_t c) {
  if (i + kStep <= c)
    store(p + i, v);
  else
    store_first(p + i, v, c - i);
}

// ---- short rows
// ----------------------------------------------------------------------------------

constexpr int kShort = 8;  // vectors

template <int V>
CLIPWEATHER_INLINE void normalise(Vector<float>* x, const NormParameters& norm, float share) {
  Vector<float> sum = x[0];
#pragma GCC unroll 8
  for (int i = 1; i < V; ++i) sum += x[i];
  const float mean = horizontal_sum<float>(sum) * share;
  Vector<float> square{};
#pragma GCC unroll 8
  for (int i = 0; i < V; ++i) {
    x[i] -= mean;
    square += x[i] * x[i];
  }
  const float rate = 1.0f / __builtin_sqrtf(horizontal_sum<float>(square) * share + norm.eps);
#pragma GCC unroll 8
  for (int i = 0; i < V; ++i)
    x[i] = x[i] * rate * load(norm.weight + i * kStep) + load(norm.bias + i * kStep);
}

// Rows of V whole vectors. One does not wait for another, so that the processor overlaps them.
template <int V, class In, class Out>
void short_rows(const ResidualNormArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t c = V * kStep;
  const float share = 1.0f / static_cast<float>(c);
  for (int64_t r = begin; r < end; ++r) {
    Vector<float> x[V];
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i)
      x[i] = load(static_cast<const In*>(args.branch) + r * c + i * kStep);
    if (args.before.weight != nullptr) normalise<V>(x, args.before, share);
    if (args.residual != nullptr)
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) x[i] += load(args.residual + r * c + i * kStep);
    if (args.sum != nullptr)
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) store(args.sum + r * c + i * kStep, x[i]);
    if (args.after.weight == nullptr) continue;
    normalise<V>(x, args.after, share);
#pragma GCC unroll 8
    for (int i = 0; i < V; ++i) store(static_cast<Out*>(args.normed) + r * c + i * kStep, x[i]);
  }
}

// ---- rows of any length
// --------------------------------------------------------------------------

// Rows whose sums are formed side by side, because each alone waits for its own additions.
constexpr int64_t kTogether = 4;

// Mean of each row, and one over its deviation. Rows are padded with zeros to whole vectors.
CLIPWEATHER_INLINE void moments(const float* rows, int64_t room, int64_t count, int64_t c,
                                float eps, float* mean, float* rate) {
  const float share = 1.0f / static_cast<float>(c);
  const int64_t whole = c / kStep * kStep;
  for (int64_t r = 0; r < count; ++r) {
    Vector<float> sum{};
    for (int64_t i = 0; i < c; i += kStep) sum += load(rows + r * room + i);
    mean[r] = horizontal_sum<float>(sum) * share;
  }
  for (int64_t r = 0; r < count; ++r) {
    const float* row = rows + r * room;
    Vector<float> square{};
    for (int64_t i = 0; i < whole; i += kStep) {
      const Vector<float> d = load(row + i) - mean[r];
      square += d * d;
    }
    float rest = 0;
    for (int64_t i = whole; i < c; ++i) rest += (row[i] - mean[r]) * (row[i] - mean[r]);
    rate[r] = 1.0f / __builtin_sqrtf((horizontal_sum<float>(square) + rest) * share + eps);
  }
}

CLIPWEATHER_INLINE Vector<float> normed(const float* row, const NormParameters& norm, int64_t i,
                                        int64_t c, float mean, float rate) {
  const Vector<float> scaled = (load(row + i) - mean) * rate;
  return scaled * load_some(norm.weight, i, c) + load_some(norm.bias, i, c);
}

// `count` rows from row `first` on.
template <class In, class Out>
CLIPWEATHER_INLINE void rows_together(const ResidualNormArgs& args, int64_t first, int64_t count,
                                      float* rows, int64_t room) {
  const int64_t c = args.c;
  float mean[kTogether], rate[kTogether];
  const In* branch = static_cast<const In*>(args.branch) + first * c;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < c; i += kStep)
      store(rows + r * room + i, load_some(branch + r * c, i, c));
  if (args.before.weight != nullptr) {
    moments(rows, room, count, c, args.before.eps, mean, rate);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < c; i += kStep)
        store(rows + r * room + i, normed(rows + r * room, args.before, i, c, mean[r], rate[r]));
  }
  if (args.residual != nullptr)
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < c; i += kStep) {
        float* at = rows + r * room + i;
        store(at, load(at) + load_some(args.residual + (first + r) * c, i, c));
      }
  if (args.sum != nullptr)
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < c; i += kStep)
        store_some(args.sum + (first + r) * c, load(rows + r * room + i), i, c);
  if (args.after.weight == nullptr) return;
  moments(rows, room, count, c, args.after.eps, mean, rate);
  Out* to = static_cast<Out*>(args.normed) + first * c;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < c; i += kStep)
      store_some(to + r * c, normed(rows + r * room, args.after, i, c, mean[r], rate[r]), i, c);
}

template <class In, class Out>
void rows_of(const ResidualNormArgs& args, int64_t begin, int64_t end, float* rows, int64_t room) {
  for (int64_t r = begin; r < end; r += kTogether)
    rows_together<In, Out>(args, r, end - r < kTogether ? end - r : kTogether, rows, room);
}

template <class In, class Out, int V = 1>
void run_short(const ResidualNormArgs& args) {
  if constexpr (V < kShort) {
    if (args.c > V * kStep) return run_short<In, Out, V + 1>(args);
  }
  parallel_tasks(ceil_div(args.rows, kRows), args.threads > 0 ? args.threads : 1,
                 [&](int64_t task, int) {
                   const int64_t begin = task * kRows;
                   const int64_t end = begin + kRows < args.rows ? begin + kRows : args.rows;
                   short_rows<V, In, Out>(args, begin, end);
                 });
}

template <class In, class Out>
void run(const ResidualNormArgs& args) {
  if (args.c % kStep == 0 && args.c <= kShort * kStep) return run_short<In, Out>(args);
  const int64_t room = ceil_div(args.c, kStep) * kStep;
  const int threads = args.threads > 0 ? args.threads : 1;
  Buffer<float> rows(threads * kTogether * room);
  parallel_tasks(ceil_div(args.rows, kRows), threads, [&](int64_t task, int thread) {
    const int64_t begin = task * kRows;
    const int64_t end = begin + kRows < args.rows ? begin + kRows : args.rows;
    rows_of<In, Out>(args, begin, end, rows.get() + thread * kTogether * room, room);
  });
}

template <class In>
void run_from(const ResidualNormArgs& args) {
  if (args.normed_type == DType::kBFloat16)
    run<In, bfloat16_t>(args);
  else
    run<In, float>(args);
}

}  // namespace

void residual_norm(const ResidualNormArgs& args) {
  if (args.branch_type == DType::kBFloat16)
    run_from<bfloat16_t>(args);
  else
    run_from<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
