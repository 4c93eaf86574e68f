// What the forward pass keeps of a task's rows, however it multiplies, and what it makes of them in
// the end.
#pragma once

#include "common/cpu_threads.h"
#include "reduced_kv_attention/cpu_softmax.h"
#include "reduced_kv_attention/reduced_kv_attention.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

template <class A>
inline constexpr A kInfinity = static_cast<A>(__builtin_inf());

// The first of an operand's numbers that a head has.
template <class T>
const T* of_head(const void* operand, const int64_t (&stride)[3], int64_t n, int64_t head) {
  return static_cast<const T*>(operand) + n * stride[0] + head * stride[2];
}

// A row without a finite score yet has no maximum to subtract: its weights are zero, not NaN.
template <class A>
CLIPWEATHER_INLINE Vector<A> finite(Vector<A> high) {
  return select(high == -kInfinity<A> - Vector<A>{}, Vector<A>{}, high);
}

// Scores are kept as products times `before`, which is -1 where the scale is negative, so that the
// largest weighs most; times `factor`, once the largest is subtracted, they are powers of 2.
template <class A>
struct ScoreScale {
  A before, factor;

  explicit ScoreScale(double scale) {
    const A log2_scale = static_cast<A>(scale * 1.4426950408889634074);
    if (sizeof(A) == sizeof(double) || !(log2_scale != A{0}))
      // In float64 as the backward pass has them, so that their roundings cancel.
      before = log2_scale, factor = A{1};
    else
      before = log2_scale < A{0} ? A{-1} : A{1}, factor = before * log2_scale;
  }

  // The logarithm of a row's sum of exponentials, of its largest score and its weights' sum. Fused,
  // so that its rounding is not in what the backward pass takes exponents of.
  A logarithm(A high, A sum) const {
    return static_cast<A>(__builtin_fma(high, factor, __builtin_log2(sum)) *
                          0.69314718055994530942);
  }
};

// Sums of a task's queries, a row each, by their place among them.
template <class T>
struct ForwardRows {
  static constexpr int64_t kLane = kLanes<float>;

  const AttentionForwardArgs& args;
  const AttentionSizes& size;
  const ScoreScale<float> scale;
  int64_t d_vectors;
  float* row_max;
  float* row_sum;

  explicit ForwardRows(const AttentionForwardArgs& a)
      : args(a), size(a.size), scale(size.scale), d_vectors(ceil_div(a.size.d, kLane)) {}

  void finish(int64_t n, int64_t head, int64_t row, int64_t rows, int64_t slot, const float* o) {
    float* lse = static_cast<float*>(args.lse);
    if (lse != nullptr) lse += (n * size.heads + head) * size.queries + row;
    for (int64_t r = 0; r < rows; ++r, o += d_vectors * kLane) {
      const float inverse = 1.0f / row_sum[slot + r];
      if (lse != nullptr) lse[r] = scale.logarithm(row_max[slot + r], row_sum[slot + r]);
      T* const out =
          static_cast<T*>(args.out) + ((n * size.queries + row + r) * size.heads + head) * size.d;
      int64_t c = 0;
      for (; c + kLane <= size.d; c += kLane) store(out + c, load(o + c) * inverse);
      if (c < size.d) store_first(out + c, load(o + c) * inverse, size.d - c);
    }
  }
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
