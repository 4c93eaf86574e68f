// Products of pairs of bfloat16 by the matrix unit. What a unit's sums become waits until its next
// square: that work goes between the instructions of the unit, which would else stand still.
#pragma once

#if defined(__AMX_BF16__)
#include <cstring>
#include <type_traits>

#include "common/cpu_matrix_unit.h"
#include "common/cpu_threads.h"
#include "inference/cpu_panel_parts.h"
#include "inference/cpu_panels.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// Products of several panels with the same rows, one after the other; what the last square's sums
// become is only there when it ends. After: of vectors of sums, before they are numbers of c.
template <class Out, class After = AsTheyAre>
class MatrixProducts {
 public:
  MatrixProducts() = default;
  ~MatrixProducts() { finish(waiting_.rows); }
  MatrixProducts(const MatrixProducts&) = delete;
  MatrixProducts& operator=(const MatrixProducts&) = delete;

  void add(const PanelProduct<uint32_t, Out>& p) {
    if (p.columns > kSide)
      add_columns<2>(p);
    else
      add_columns<1>(p);
  }

 private:
  static constexpr int64_t kSide = kMatrixRows, kAtOnce = 2 * kSide;
  // Steps of a square from which on there is room between them.
  static constexpr int64_t kManySteps = 8;
  // Steps that are fetched early where few rows use a panel, which comes from memory.
  static constexpr int64_t kStepsAhead = 4;

  // A square whose sums are still to become numbers.
  struct Square {
    const float* sums = nullptr;  // rows of kPanel
    const float* bias = nullptr;
    Out* c = nullptr;
    int64_t c_row = 0, rows = 0;
    bool wide = false;  // two vectors of columns, not one
  };

  template <int kWide>
  void add_columns(const PanelProduct<uint32_t, Out>& p) {
    const int64_t rest = p.depth % kSide;
    // The panel's last pairs that make no whole step: zeros follow.
    alignas(64) uint32_t last[kSide * kPanel];
    if (rest > 0) {
      std::memset(last, 0, sizeof last);
      std::memcpy(last, p.panel + (p.depth - rest) * kPanel,
                  static_cast<size_t>(rest * kPanel) * sizeof(uint32_t));
    }
    constexpr bool kSums = sizeof(Out) == sizeof(float) && std::is_same_v<After, AsTheyAre>;
    for (int64_t m = 0; m < p.rows; m += kAtOnce) {
      const int64_t rows = p.rows - m < kAtOnce ? p.rows - m : kAtOnce;
      shape(rows);
      if (rows > kSide)
        multiply<2, kWide>(p, m, rows, last);
      else
        multiply<1, kWide>(p, m, rows, last);
      if (kSums && p.bias == nullptr) {
        take<kWide>(reinterpret_cast<float*>(p.c + m * p.c_row), p.c_row, rows > kSide);
        continue;
      }
      take<kWide>(sums_, kPanel, rows > kSide);
      waiting_ = {sums_, p.bias, p.c + m * p.c_row, p.c_row, rows, kWide > 1};
    }
  }

  void shape(int64_t rows) {
    if (rows == shaped_) return;
    const bool high = rows > kSide;
    unit_.shape(high ? kSide : rows, high ? rows - kSide : kSide);
    shaped_ = rows;
  }

  // The sums stay in the registers; those that wait are finished meanwhile.
  template <int kHigh, int kWide>
  void multiply(const PanelProduct<uint32_t, Out>& p, int64_t m, int64_t rows,
                const uint32_t* rest) {
    const uint32_t *a = p.a + m * p.a_row, *panel = p.panel;
    const int64_t steps = p.depth / kSide, whole = steps * kSide;
    const bool fetches = p.rows <= kSide;
    const int64_t between = steps < kManySteps ? 0 : ceil_div(waiting_.rows, steps);
    matrix_clear<0>();
    if constexpr (kWide > 1) matrix_clear<1>();
    if constexpr (kHigh > 1) matrix_clear<2>();
    if constexpr (kHigh > 1 && kWide > 1) matrix_clear<3>();
    for (int64_t k = 0; k < whole; k += kSide, panel += kSide * kPanel) {
      if (fetches)
        for (int64_t line = 0; line < kSide * kPanel; line += 16)
          __builtin_prefetch(panel + kStepsAhead * kSide * kPanel + line);
      step<kHigh, kWide>(a + k, p.a_row, panel);
      finish(between);
    }
    if (whole < p.depth) {
      alignas(64) uint32_t last[2 * kSide * kSide];
      const __mmask16 there = static_cast<__mmask16>((1u << (p.depth - whole)) - 1);
      for (int64_t r = 0; r < rows; ++r)
        _mm512_store_si512(last + r * kSide,
                           _mm512_maskz_loadu_epi32(there, a + r * p.a_row + whole));
      step<kHigh, kWide>(last, kSide, rest);
    }
    finish(waiting_.rows);
  }

  template <int kHigh, int kWide>
  static CLIPWEATHER_INLINE void step(const uint32_t* a, int64_t a_row, const uint32_t* panel) {
    matrix_load<4>(a, a_row * 4);
    matrix_load<6>(panel, kPanel * 4);
    matrix_multiply<0, 4, 6>();
    if constexpr (kWide > 1) {
      matrix_load<7>(panel + kSide, kPanel * 4);
      matrix_multiply<1, 4, 7>();
    }
    if constexpr (kHigh > 1) {
      matrix_load<5>(a + kSide * a_row, a_row * 4);
      matrix_multiply<2, 5, 6>();
      if constexpr (kWide > 1) matrix_multiply<3, 5, 7>();
    }
  }

  template <int kWide>
  static CLIPWEATHER_INLINE void take(float* to, int64_t row, bool high) {
    matrix_store<0>(to, row * 4);
    if constexpr (kWide > 1) matrix_store<1>(to + kSide, row * 4);
    if (!high) return;
    matrix_store<2>(to + kSide * row, row * 4);
    if constexpr (kWide > 1) matrix_store<3>(to + kSide * row + kSide, row * 4);
  }

  // Of the rows that wait, the first ones.
  CLIPWEATHER_INLINE void finish(int64_t rows) {
    if (rows > waiting_.rows) rows = waiting_.rows;
    if (rows <= 0) return;
    waiting_.wide ? finish_vectors<2>(rows) : finish_vectors<1>(rows);
  }
  template <int kWide>
  CLIPWEATHER_INLINE void finish_vectors(int64_t rows) {
    const After after;
    const float* sums = waiting_.sums;
    Out* c = waiting_.c;
    const int64_t c_row = waiting_.c_row;
    Vector<float> bias[kWide] = {};
    for (int v = 0; v < kWide && waiting_.bias != nullptr; ++v)
      bias[v] = load(waiting_.bias + v * kSide);
    for (int64_t r = 0; r < rows; ++r, sums += kPanel, c += c_row)
      for (int v = 0; v < kWide; ++v) store(c + v * kSide, after(load(sums + v * kSide) + bias[v]));
    waiting_.sums = sums, waiting_.c = c, waiting_.rows -= rows;
  }

  MatrixUnit unit_;
  int64_t shaped_ = kAtOnce;
  alignas(64) float sums_[kAtOnce * kPanel];
  Square waiting_;
};

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
