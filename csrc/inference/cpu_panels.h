// Products with a packed weight: its panels of kPanel columns lie one after the other, each K rows
// of kPanel numbers, zeros past the last column.
#pragma once

#include "common/cpu_products.h"
#include "inference/panels.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

// Rows of a panel fetched early: where few rows of A use it, it is used up before memory answers.
inline constexpr int64_t kAhead = 32;
inline constexpr int64_t kPanelDepth = 512;  // rows of a panel: 64 KB, read again from L2

// E: what is multiplied, float or pairs of bfloat16 (see cpu_pairs.h); Out: numbers of C.
template <class E, class Out>
struct PanelProduct {
  const E* a;  // (rows, depth), a_row apart
  int64_t a_row;
  const E* panel;
  const float* bias;  // of the panel's columns, or null
  Out* c;             // (rows, columns), c_row apart
  int64_t c_row;
  int64_t rows, columns, depth;  // columns: a multiple of kPart; depth: K, or its pairs
};

inline void multiply(const PanelProduct<float, float>& p) {
  constexpr int64_t kStep = kLanes<float>;
  alignas(64) static constexpr float kZeros[2 * kStep] = {};
  const int64_t groups = ceil_div(p.rows, kRowsAtOnce);
  for (int64_t k = 0; k < p.depth; k += kPanelDepth)
    for (int64_t n = 0; n < p.columns; n += 2 * kStep)
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t m = p.rows * group / groups, after = p.rows * (group + 1) / groups;
        const float* first = p.bias == nullptr ? kZeros : p.bias + n;
        float* c = p.c + m * p.c_row + n;
        const Rows<float> rows{p.a + m * p.a_row + k,
                               p.a_row,
                               1,
                               p.panel + k * kPanel + n,
                               kPanel,
                               p.depth - k < kPanelDepth ? p.depth - k : kPanelDepth,
                               k == 0 ? first : c,
                               k == 0 ? 0 : p.c_row,
                               c,
                               p.c_row,
                               kAhead};
        if (n + kStep < p.columns)
          add_rows<kRowsAtOnce>(after - m, rows);
        else
          add_rows<kRowsAtOnce, 1>(after - m, rows);
      }
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
