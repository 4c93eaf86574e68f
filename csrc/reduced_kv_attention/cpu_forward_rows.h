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

// Sums of a task's queries, by their place among them.
template <class T, class A>
struct ForwardRows {
  static constexpr int64_t kLane = kLanes<A>;

  const AttentionForwardArgs& args;
  const AttentionSizes& size;
  // Scores are kept as products times `before`, which is -1 where the scale is negative, so that
  // the largest weighs most; times `factor` they are powers of 2.
  A before, factor;
  int64_t d_vectors;
  A* row_max;
  A* row_sum;

  explicit ForwardRows(const AttentionForwardArgs& a)
      : args(a), size(a.size), d_vectors(ceil_div(a.size.d, kLane)) {
    const A log2_scale = static_cast<A>(size.scale * 1.4426950408889634074);
    if (sizeof(A) == sizeof(double) || !(log2_scale != A{0})) {
      // In float64 as the backward pass has them, so that their roundings cancel.
      before = log2_scale, factor = A{1};
    } else {
      before = log2_scale < A{0} ? A{-1} : A{1}, factor = before * log2_scale;
    }
  }

  template <class X>
  static X* take(char*& from, int64_t count) {
    X* const start = reinterpret_cast<X*>(from);
    from += round_up(count * static_cast<int64_t>(sizeof(X)), 64);
    return start;
  }

  // The first of an operand's numbers that a head has.
  static const T* of_head(const void* operand, const int64_t (&stride)[3], int64_t n,
                          int64_t head) {
    return static_cast<const T*>(operand) + n * stride[0] + head * stride[2];
  }

  // A row without a finite score yet has no maximum to subtract: its weights are zero, not NaN.
  static CLIPWEATHER_INLINE Vector<A> finite(Vector<A> high) {
    return select(high == -kInfinity<A> - Vector<A>{}, Vector<A>{}, high);
  }

  void finish(int64_t n, int64_t head, int64_t row, int64_t rows, int64_t slot, const A* o) {
    A* lse = static_cast<A*>(args.lse);
    if (lse != nullptr) lse += (n * size.heads + head) * size.queries + row;
    for (int64_t r = 0; r < rows; ++r, o += d_vectors * kLane) {
      const A inverse = A{1} / row_sum[slot + r];
      if (lse != nullptr) {
        // Fused, so that its rounding is not in what the backward pass takes exponents of.
        const double log2_sum =
            __builtin_fma(row_max[slot + r], factor, __builtin_log2(row_sum[slot + r]));
        lse[r] = static_cast<A>(log2_sum * 0.69314718055994530942);
      }
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
