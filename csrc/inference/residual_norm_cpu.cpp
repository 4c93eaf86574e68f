// residual_norm on the CPU: a row of tokens stays in the first cache from the sum to the result.
// Bound by memory: every tensor passes once. Mean and variance are formed in two passes over the
// row, as exact as the definition.
#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "inference/residual_norm.h"

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

// Mean of the row, and one over its deviation. The row is padded with zeros to whole vectors.
CLIPWEATHER_INLINE void moments(const float* row, int64_t c, float eps, float& mean, float& rate) {
  Vector<float> sum{};
  for (int64_t i = 0; i < c; i += kStep) sum += load(row + i);
  mean = horizontal_sum<float>(sum) / static_cast<float>(c);
  Vector<float> square{};
  const int64_t whole = c / kStep * kStep;
  for (int64_t i = 0; i < whole; i += kStep) {
    const Vector<float> d = load(row + i) - mean;
    square += d * d;
  }
  float rest = 0;
  for (int64_t i = whole; i < c; ++i) rest += (row[i] - mean) * (row[i] - mean);
  const float variance = (horizontal_sum<float>(square) + rest) / static_cast<float>(c);
  rate = 1.0f / __builtin_sqrtf(variance + eps);
}

CLIPWEATHER_INLINE Vector<float> normed(const float* row, const NormParameters& norm, int64_t i,
                                        int64_t c, float mean, float rate) {
  const Vector<float> scaled = (load(row + i) - mean) * rate;
  return scaled * load_some(norm.weight, i, c) + load_some(norm.bias, i, c);
}

template <class In, class Out>
void rows_of(const ResidualNormArgs& args, int64_t begin, int64_t end, float* row) {
  const int64_t c = args.c;
  for (int64_t r = begin; r < end; ++r) {
    const In* branch = static_cast<const In*>(args.branch) + r * c;
    const float* residual = args.residual == nullptr ? nullptr : args.residual + r * c;
    float mean, rate;
    for (int64_t i = 0; i < c; i += kStep) store(row + i, load_some(branch, i, c));
    if (args.before.weight != nullptr) {
      moments(row, c, args.before.eps, mean, rate);
      for (int64_t i = 0; i < c; i += kStep)
        store(row + i, normed(row, args.before, i, c, mean, rate));
    }
    if (residual != nullptr)
      for (int64_t i = 0; i < c; i += kStep)
        store(row + i, load(row + i) + load_some(residual, i, c));
    if (args.sum != nullptr)
      for (int64_t i = 0; i < c; i += kStep) store_some(args.sum + r * c, load(row + i), i, c);
    if (args.after.weight == nullptr) continue;
    moments(row, c, args.after.eps, mean, rate);
    for (int64_t i = 0; i < c; i += kStep)
      store_some(static_cast<Out*>(args.normed) + r * c, normed(row, args.after, i, c, mean, rate),
                 i, c);
  }
}

template <class In, class Out>
void run(const ResidualNormArgs& args) {
  const int64_t room = ceil_div(args.c, kStep) * kStep;
  const int threads = args.threads > 0 ? args.threads : 1;
  Buffer<float> rows(threads * room);
  parallel_tasks(ceil_div(args.rows, kRows), threads, [&](int64_t task, int thread) {
    const int64_t begin = task * kRows;
    const int64_t end = begin + kRows < args.rows ? begin + kRows : args.rows;
    rows_of<In, Out>(args, begin, end, rows.get() + thread * room);
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
