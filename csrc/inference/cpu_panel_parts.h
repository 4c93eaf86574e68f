// Products with packed weights of float32 by the matrix unit, which multiplies every number in
// parts (see cpu_matrix_parts.h). Rows are taken apart once for all panels. What else there is to
// do goes between the instructions of the unit, which would else stand still: taking the next panel
// apart, and passing the last square's sums through an activation.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>
#include <type_traits>

#include "common/cpu_buffer.h"
#include "common/cpu_matrix_parts.h"
#include "inference/cpu_panels.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// What becomes of sums where there is no activation.
struct AsTheyAre {
  CLIPWEATHER_INLINE Vector<float> operator()(Vector<float> v) const { return v; }
};

// Whether taking apart costs less than multiplying so saves. Few rows wait for the panels' way
// through memory; a panel or two are less than what taking rows apart costs.
inline bool panel_parts_pay(int64_t rows, int64_t columns, int64_t depth) {
  constexpr int64_t kEnough = 1 << 20;
  return rows >= 24 && columns >= 2 * kPanel && depth >= kPartSide &&
         rows * columns * depth >= kEnough;
}

// Where a thread's operands lie that have been taken apart, in blocks: rows, and two panels.
struct PartRoom {
  static constexpr int64_t kRows = 128, kPanel = 32;

  // Kept: a block of this size would be given back to the system, and come back page by page.
  static uint32_t* of_thread() {
    static thread_local const Buffer<uint32_t> all((kRows + 2 * kPanel) * kPartBlock);
    return all.get();
  }
};

// After: of vectors of sums, before they are numbers of c.
template <class After = AsTheyAre>
class PartProducts {
 public:
  static constexpr int64_t kDepth = PartRoom::kPanel * kPartSide;  // at most, at once
  // Rows at once, of so many numbers: 768 KB, which stay in L2.
  static int64_t most_rows(int64_t depth) {
    return kBlocks / ceil_div(depth, kPartSide) * kPartSide;
  }

  PartProducts() : rows_(PartRoom::of_thread()) {
    panels_[0] = rows_ + kBlocks * kPartBlock, panels_[1] = panels_[0] + kSteps * kPartBlock;
  }
  ~PartProducts() { finish(waiting_.rows); }
  PartProducts(const PartProducts&) = delete;
  PartProducts& operator=(const PartProducts&) = delete;

  // The rows that the next panels are multiplied with.
  void take_rows(const float* a, int64_t a_row, int64_t rows, int64_t depth) {
    steps_ = ceil_div(depth, kPartSide);
    for (int64_t m = 0; m < rows; m += kPartSide)
      for (int64_t s = 0; s < steps_; ++s) {
        const int64_t k = s * kPartSide;
        pack_rows({a + m * a_row + k, a_row, 1, rows - m, depth - k},
                  rows_ + (m / kPartSide * steps_ + s) * kPartBlock, false);
      }
  }

  // The first panel; the others are named when the one before is multiplied.
  void take_panel(const float* panel, int64_t depth) {
    begin(panel, depth);
    prepare(next_.pairs);
    now_ ^= 1;
  }

  // The product with the panel taken last. adds: to what c holds. ends: then the sums are whole.
  // next: the panel after it, next_depth numbers of each column, or null.
  void add(const PanelProduct<float, float>& p, bool adds, bool ends, const float* next,
           int64_t next_depth) {
    begin(next, next == nullptr ? 0 : next_depth);
    const int64_t calls = ceil_div(p.rows, kPartSide) * steps_ * kCalls;
    const Part part{adds, ends, ceil_div(next_.pairs, calls)};
    for (int64_t m = 0; m < p.rows; m += kPartSide) {
      const int64_t rows = p.rows - m < kPartSide ? p.rows - m : kPartSide;
      const bool high = rows > kSide, wide = p.columns > kSide;
      if (rows != shaped_) unit_.shape(high ? kSide : rows, high ? rows - kSide : kSide);
      shaped_ = rows;
      if (high)
        wide ? multiply<true, true>(p, m, rows, part) : multiply<true, false>(p, m, rows, part);
      else
        wide ? multiply<false, true>(p, m, rows, part) : multiply<false, false>(p, m, rows, part);
    }
    now_ ^= 1;  // which is whole: the calls were as many as it takes
  }

 private:
  static constexpr int64_t kSide = kMatrixRows, kCalls = 6;
  static constexpr int64_t kBlocks = PartRoom::kRows, kSteps = PartRoom::kPanel;
  static constexpr int64_t kSummed = 24;     // steps; rounding errors grow with the length of a sum
  static constexpr int64_t kRowsAhead = 64;  // of a panel, fetched early
  static constexpr bool kSums = std::is_same_v<After, AsTheyAre>;

  // What a product is of sums, and how many pairs of the next panel's rows a call takes apart.
  struct Part {
    bool adds, ends;
    int64_t pairs;
  };
  // A panel that is being taken apart: of its pairs of rows, k and k + 16, `done` are.
  struct Next {
    const float* from = nullptr;
    uint32_t* to = nullptr;
    int64_t done = 0, pairs = 0, depth = 0;
  };
  // A square whose sums are still to be added to c, or to pass through the activation.
  struct Square {
    const float* sums = nullptr;
    float* c = nullptr;
    int64_t c_row = 0, rows = 0;
    bool wide = false, adds = false, ends = false;
  };

  void begin(const float* from, int64_t depth) {
    next_ = {from, panels_[now_ ^ 1], 0, ceil_div(depth, kPartSide) * kSide, depth};
  }

  template <bool kHigh, bool kWide>
  void multiply(const PanelProduct<float, float>& p, int64_t m, int64_t rows, const Part& part) {
    const int64_t sums = ceil_div(steps_, kSummed);
    for (int64_t i = 0; i < sums; ++i) {
      const int64_t begin = steps_ * i / sums, end = steps_ * (i + 1) / sums;
      sum_steps<kHigh, kWide>(p, m, rows, begin, end - begin,
                              {part.adds || i > 0, part.ends && i + 1 == sums, part.pairs});
    }
  }

  template <bool kHigh, bool kWide>
  void sum_steps(const PanelProduct<float, float>& p, int64_t m, int64_t rows, int64_t begin,
                 int64_t steps, const Part& part) {
    alignas(64) static constexpr float kZeros[kPanel] = {};
    const uint32_t* const a = rows_ + (m / kPartSide * steps_ + begin) * kPartBlock;
    const uint32_t* const b = panels_[now_] + begin * kPartBlock;
    float* const c = p.c + m * p.c_row;
    const float* const first = part.adds || p.bias == nullptr ? kZeros : p.bias;
    if (!part.adds && (kSums || !part.ends)) {
      multiply_square<kHigh, kWide>(a, b, steps, first, 0, c, p.c_row, [&] {
        prepare(part.pairs);
        finish(1);
      });
      finish(waiting_.rows);
      return;
    }
    const int64_t each = ceil_div(waiting_.rows, kCalls * steps);
    float* const sums = sums_[flip_ ^= 1];
    const auto between = [&] {
      prepare(part.pairs);
      finish(each);
    };
    multiply_square<kHigh, kWide>(a, b, steps, first, 0, sums, kPartSide, between);
    finish(waiting_.rows);
    waiting_ = {sums, c, p.c_row, rows, kWide, part.adds, part.ends};
  }

  CLIPWEATHER_INLINE void prepare(int64_t count) {
    for (; count > 0 && next_.done < next_.pairs; --count, ++next_.done) {
      const int64_t step = next_.done / kSide, pair = next_.done % kSide;
      const int64_t k = step * kPartSide + pair;
      uint32_t* const to = next_.to + step * kPartBlock + pair * kSide;
      const __mmask16 first = k < next_.depth ? 0xffff : 0;
      const __mmask16 second = k + kSide < next_.depth ? 0xffff : 0;
      for (int64_t side = 0; side < 2; ++side) {
        const float* const column = next_.from + k * kPanel + side * kSide;
        __builtin_prefetch(column + kRowsAhead * kPanel, 0, 2);
        __builtin_prefetch(column + (kRowsAhead + kSide) * kPanel, 0, 2);
        pack_pair(_mm512_maskz_loadu_ps(first, column),
                  _mm512_maskz_loadu_ps(second, column + kSide * kPanel),
                  to + side * kPartRegister);
      }
    }
  }

  CLIPWEATHER_INLINE void finish(int64_t count) {
    const After after;
    for (int64_t i = std::min(count, waiting_.rows); i > 0; --i) {
      for (int64_t n = 0; n <= (waiting_.wide ? kSide : 0); n += kSide) {
        Vector<float> v = load(waiting_.sums + n);
        if (waiting_.adds) v += load(waiting_.c + n);
        store(waiting_.c + n, waiting_.ends ? after(v) : v);
      }
      waiting_.sums += kPartSide, waiting_.c += waiting_.c_row, --waiting_.rows;
    }
  }

  MatrixUnit unit_;
  int64_t shaped_ = kPartSide, steps_ = 0;
  uint32_t *rows_, *panels_[2];
  int now_ = 0, flip_ = 0;
  Next next_;
  alignas(64) float sums_[2][kPartSide * kPartSide];
  Square waiting_;
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
