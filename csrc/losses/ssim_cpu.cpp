// SSIM on the CPU: a plane's rows pass once. What a row of windows needs of eleven rows above it,
// and a row of the gradient of eleven rows of slopes, stays in cache. Bound by arithmetic: 154
// multiplications a pixel with the gradient.
#include "common/cpu_buffer.h"
#include "common/cpu_threads.h"
#include "common/cpu_vector.h"
#include "losses/ssim.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {
namespace {

constexpr int64_t kReach = kSsimWindow - 1;
constexpr int kMoments = 4;  // y, truth, the sum of their squares, their product
constexpr int kSlopes = 3;   // of S: along the mean of y, the mean of squares, the mean of products

// One thread's memory: rows are `row` long, so that whole vectors may be read and written at their
// ends, and slopes have kReach zeros before them.
template <class A>
class Room {
 public:
  static constexpr int64_t kMargin = kReach + 2 * kVectorBytes / static_cast<int64_t>(sizeof(A));
  static constexpr int64_t kRows = kMoments + kSlopes + kSsimWindow * (kMoments + kSlopes);

  explicit Room(int64_t w) : row_((w + 2 * kMargin + 15) / 16 * 16), memory_(kRows * row_) {
    memory_.zero(kRows * row_);
  }

  A* moments(int which) { return memory_.get() + which * row_; }
  A* slopes(int which) { return memory_.get() + (kMoments + which) * row_ + kReach; }
  // Of the last eleven rows: moments, then slopes, weighted along the row.
  A* moments_of(int64_t row, int which) { return weighted(row, which); }
  A* slopes_of(int64_t row, int which) { return weighted(row, kMoments + which); }

 private:
  A* weighted(int64_t row, int which) {
    constexpr int64_t kFirst = kMoments + kSlopes;
    return memory_.get() + (kFirst + row % kSsimWindow * kFirst + which) * row_;
  }

  int64_t row_;
  Buffer<A> memory_;
};

template <class A>
class Plane {
 public:
  Plane(const SsimArgs& args, Room<A>& room)
      : args_(args), room_(room), high_(args.h - kReach), wide_(args.w - kReach) {
    for (int64_t k = 0; k < kSsimWindow; ++k) weight_[k] = static_cast<A>(args.window[k]);
  }

  void run(int64_t plane) {
    const int64_t first = plane * args_.h * args_.w;
    y_ = static_cast<const A*>(args_.y) + first;
    truth_ = static_cast<const A*>(args_.truth) + first;
    grad_ = args_.grad_y == nullptr ? nullptr : static_cast<A*>(args_.grad_y) + first;
    double sum = 0;
    for (int64_t r = 0; r < args_.h; ++r) {
      weigh_moments(r);
      if (r >= kReach) sum += similarity(r - kReach);
      // Row i of the gradient is whole when row i of the windows has been seen.
      if (grad_ != nullptr && r >= kReach) gradient(r - kReach);
    }
    for (int64_t i = high_; grad_ != nullptr && i < args_.h; ++i) gradient(i);
    args_.values[plane] = sum / static_cast<double>(high_ * wide_);
  }

 private:
  static constexpr int64_t kStep = kLanes<A>;

  // Row r of the pictures: what is averaged, averaged along the row.
  void weigh_moments(int64_t r) {
    const A *y = y_ + r * args_.w, *truth = truth_ + r * args_.w;
    A* rows[kMoments];
    for (int m = 0; m < kMoments; ++m) rows[m] = room_.moments(m);
    for (int64_t j = 0; j < args_.w; j += kStep) {
      const bool whole = j + kStep <= args_.w;
      const Vector<A> a = whole ? load(y + j) : load_first(y + j, args_.w - j);
      const Vector<A> b = whole ? load(truth + j) : load_first(truth + j, args_.w - j);
      store(rows[0] + j, a), store(rows[1] + j, b);
      store(rows[2] + j, a * a + b * b), store(rows[3] + j, a * b);
    }
    for (int m = 0; m < kMoments; ++m) weigh(rows[m], room_.moments_of(r, m), wide_);
  }

  void weigh(const A* from, A* to, int64_t count) const {
    for (int64_t j = 0; j < count; j += kStep) {
      Vector<A> sum = weight_[0] * load(from + j);
#pragma GCC unroll 10
      for (int64_t k = 1; k < kSsimWindow; ++k) sum += weight_[k] * load(from + j + k);
      store(to + j, sum);
    }
  }

  // Row i of the windows: the sum of S over it; where a gradient is wanted, its slopes.
  double similarity(int64_t i) {
    const A c1 = static_cast<A>(args_.c1), c2 = static_cast<A>(args_.c2);
    const A* rows[kSsimWindow][kMoments];
    for (int64_t k = 0; k < kSsimWindow; ++k)
      for (int m = 0; m < kMoments; ++m) rows[k][m] = room_.moments_of(i + k, m);
    Vector<A> sum{};
    for (int64_t j = 0; j < wide_; j += kStep) {
      Vector<A> mean[kMoments] = {};
#pragma GCC unroll 11
      for (int64_t k = 0; k < kSsimWindow; ++k)
#pragma GCC unroll 4
        for (int m = 0; m < kMoments; ++m) mean[m] += weight_[k] * load(rows[k][m] + j);
      const Vector<A> product = mean[0] * mean[1];
      const Vector<A> squares = mean[0] * mean[0] + mean[1] * mean[1];
      const Vector<A> light = 2 * product + c1, likeness = 2 * (mean[3] - product) + c2;
      const Vector<A> of_light = 1 / (squares + c1), of_likeness = 1 / (mean[2] - squares + c2);
      const Vector<A> share = of_light * of_likeness;
      Vector<A> value = light * likeness * share;
      if (j + kStep > wide_) value = first_of(value, wide_ - j);
      sum += value;
      if (grad_ == nullptr) continue;
      Vector<A> slope[kSlopes];
      slope[0] =
          2 * mean[1] * (likeness - light) * share - 2 * mean[0] * value * (of_light - of_likeness);
      slope[1] = -value * of_likeness;
      slope[2] = 2 * light * share;
      for (int s = 0; s < kSlopes; ++s) {
        if (j + kStep > wide_) slope[s] = first_of(slope[s], wide_ - j);
        store(room_.slopes(s) + j, slope[s]);
      }
    }
    for (int s = 0; s < kSlopes && grad_ != nullptr; ++s)
      weigh(room_.slopes(s) - kReach, room_.slopes_of(i, s), args_.w);
    return static_cast<double>(horizontal_sum<A>(sum));
  }

  // Row i of the gradient: of the windows' rows i - 10 to i, as far as they exist.
  void gradient(int64_t i) {
    const int64_t first = i < kReach ? kReach - i : 0;
    const int64_t last = i < high_ ? kReach : kReach - (i - high_ + 1);
    const A scale = static_cast<A>(1.0 / static_cast<double>(high_ * wide_));
    const A *y = y_ + i * args_.w, *truth = truth_ + i * args_.w;
    A* grad = grad_ + i * args_.w;
    const A* rows[kSsimWindow][kSlopes];
    for (int64_t k = first; k <= last; ++k)
      for (int s = 0; s < kSlopes; ++s) rows[k][s] = room_.slopes_of(i - kReach + k, s);
    for (int64_t j = 0; j < args_.w; j += kStep) {
      Vector<A> slope[kSlopes] = {};
      for (int64_t k = first; k <= last; ++k)
#pragma GCC unroll 3
        for (int s = 0; s < kSlopes; ++s) slope[s] += weight_[k] * load(rows[k][s] + j);
      const bool whole = j + kStep <= args_.w;
      const Vector<A> a = whole ? load(y + j) : load_first(y + j, args_.w - j);
      const Vector<A> b = whole ? load(truth + j) : load_first(truth + j, args_.w - j);
      const Vector<A> sum = (slope[0] + 2 * a * slope[1] + b * slope[2]) * scale;
      if (whole)
        store(grad + j, sum);
      else
        store_first(grad + j, sum, args_.w - j);
    }
  }

  static Vector<A> first_of(Vector<A> v, int64_t count) {
    A lanes[kStep];
    store(lanes, v);
    return load_first(lanes, count);
  }

  const SsimArgs& args_;
  Room<A>& room_;
  const int64_t high_, wide_;  // rows and columns of windows
  A weight_[kSsimWindow];
  const A *y_ = nullptr, *truth_ = nullptr;
  A* grad_ = nullptr;
};

template <class A>
void planes(const SsimArgs& args) {
  parallel_tasks(args.planes, args.threads, [&](int64_t plane, int) {
    Room<A> room(args.w);
    Plane<A>(args, room).run(plane);
  });
}

}  // namespace

void ssim(const SsimArgs& args) {
  if (args.dtype == DType::kFloat64)
    planes<double>(args);
  else
    planes<float>(args);
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
