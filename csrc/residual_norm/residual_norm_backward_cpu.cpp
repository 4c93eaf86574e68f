// Backward of residual_norm on the CPU. With u = (sum - mean) * rate, the row before weight and
// bias, and g = grad_normed * weight:
//   grad_x = rate * (g - mean(g) - u * mean(g * u)) + grad_sum,
//   grad_weight = sum over rows of grad_normed * u, grad_bias = that of grad_normed.
// Bound by memory: every tensor passes once. Mean and rate are formed again, which costs less than
// to keep them. A row is passed over four times, in the first cache.
#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "residual_norm/residual_norm.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kRows = 256;  // of one task, whose sums over rows are its own
constexpr int64_t kStep = kLanes<float>;

// One row after the other. V: vectors of a row that is nothing but whole ones; 0: any row.
template <int V>
class Rows {
 public:
  Rows(const ResidualNormBackwardArgs& args, float* of_weight, float* of_bias)
      : args_(args),
        of_weight_(of_weight),
        of_bias_(of_bias),
        c_(V > 0 ? V * kStep : args.c),
        share_(1.0f / static_cast<float>(c_)) {
    float ones[kStep];
    for (float& one : ones) one = 1.0f;
    last_ = load_first(ones, c_ - (c_ - 1) / kStep * kStep);
  }

  void run(int64_t row) const {
    const float* x = args_.sum + row * c_;
    const float* grad = args_.grad_normed + row * c_;
    const float mean = mean_of(x);
    const float rate = rate_of(x, mean);
    Vector<float> sum{}, product{};
    for (int64_t i = 0; i < c_; i += kStep) {
      const Vector<float> given = some(grad, i), u = unit(x, i, mean, rate);
      const Vector<float> g = given * some(args_.after.weight, i);
      sum += g;
      product += g * u;
      store(of_weight_ + i, load(of_weight_ + i) + given * u);
      store(of_bias_ + i, load(of_bias_ + i) + given);
    }
    if (args_.grad_x == nullptr) return;
    const float level = horizontal_sum<float>(sum) * share_;
    const float slope = horizontal_sum<float>(product) * share_;
    const float* others = args_.grad_sum == nullptr ? nullptr : args_.grad_sum + row * c_;
    for (int64_t i = 0; i < c_; i += kStep) {
      const Vector<float> g = some(grad, i) * some(args_.after.weight, i);
      Vector<float> y = (g - level - unit(x, i, mean, rate) * slope) * rate;
      if (others != nullptr) y += some(others, i);
      if (V > 0 || i + kStep <= c_)
        store(args_.grad_x + row * c_ + i, y);
      else
        store_first(args_.grad_x + row * c_ + i, y, c_ - i);
    }
  }

 private:
  CLIPWEATHER_INLINE Vector<float> some(const float* p, int64_t i) const {
    return V > 0 || i + kStep <= c_ ? load(p + i) : load_first(p + i, c_ - i);
  }

  // Zero beyond the row.
  CLIPWEATHER_INLINE Vector<float> off(const float* x, int64_t i, float mean) const {
    const Vector<float> d = some(x, i) - mean;
    return V > 0 || i + kStep <= c_ ? d : d * last_;
  }

  CLIPWEATHER_INLINE Vector<float> unit(const float* x, int64_t i, float mean, float rate) const {
    return off(x, i, mean) * rate;
  }

  CLIPWEATHER_INLINE float mean_of(const float* x) const {
    Vector<float> sum{};
    for (int64_t i = 0; i < c_; i += kStep) sum += some(x, i);
    return horizontal_sum<float>(sum) * share_;
  }

  CLIPWEATHER_INLINE float rate_of(const float* x, float mean) const {
    Vector<float> square{};
    for (int64_t i = 0; i < c_; i += kStep) {
      const Vector<float> d = off(x, i, mean);
      square += d * d;
    }
    return 1.0f / __builtin_sqrtf(horizontal_sum<float>(square) * share_ + args_.after.eps);
  }

  const ResidualNormBackwardArgs& args_;
  float *of_weight_, *of_bias_;
  const int64_t c_;
  const float share_;
  Vector<float> last_;  // ones where a row's last vector is inside the row
};

template <int V>
void run(const ResidualNormBackwardArgs& args) {
  const int64_t tasks = ceil_div(args.rows, kRows);
  const int64_t room = ceil_div(args.c, kStep) * kStep;
  Buffer<float> sums(tasks * 2 * room);
  parallel_tasks(tasks, args.threads, [&](int64_t task, int) {
    float* own = sums.get() + task * 2 * room;
    for (int64_t i = 0; i < 2 * room; ++i) own[i] = 0;
    const Rows<V> rows(args, own, own + room);
    const int64_t begin = task * kRows;
    const int64_t end = begin + kRows < args.rows ? begin + kRows : args.rows;
    for (int64_t row = begin; row < end; ++row) rows.run(row);
  });
  float* const to[2] = {args.grad_weight, args.grad_bias};
  for (int which = 0; which < 2; ++which) {
    if (to[which] == nullptr) continue;
    for (int64_t i = 0; i < args.c; ++i) {
      float total = 0;
      for (int64_t task = 0; task < tasks; ++task)
        total += sums.get()[(task * 2 + which) * room + i];
      to[which][i] = total;
    }
  }
}

}  // namespace

void residual_norm_backward(const ResidualNormBackwardArgs& args) {
  if (args.c == 4 * kStep) return run<4>(args);
  if (args.c == 8 * kStep) return run<8>(args);
  run<0>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
