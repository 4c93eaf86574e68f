// AMX, the matrix unit of Intel's servers since Sapphire Rapids: eight registers of 16 rows of 64
// bytes. One instruction adds to a register of 16 x 16 floats the product of 16 rows of 32 bfloat16
// with 16 rows of pairs of them, 16 columns wide.
#pragma once

#if defined(__AMX_BF16__)
#include <cstdint>

#include "common/cpu_vector.h"

namespace clipweather {
namespace CLIPWEATHER_ISA {

inline constexpr int64_t kMatrixRows = 16;

// Rows of a register and their bytes; none: it is not used.
struct MatrixShape {
  int64_t rows = 0, bytes = 0;
};

// While it lives, this thread's registers have their shapes, which clear what they hold. Registers
// belong to the thread, and others use the unit too, so nothing may be left in them.
class MatrixUnit {
 public:
  MatrixUnit() { shape(kMatrixRows, kMatrixRows); }
  explicit MatrixUnit(const MatrixShape (&shapes)[8]) { shape(shapes); }
  ~MatrixUnit() { asm volatile("tilerelease"); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  void shape(const MatrixShape (&shapes)[8]) {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } all = {};
    all.palette = 1;
    for (int i = 0; i < 8; ++i) {
      all.row_bytes[i] = static_cast<uint16_t>(shapes[i].bytes);
      all.rows[i] = static_cast<uint8_t>(shapes[i].rows);
    }
    asm volatile("ldtilecfg %0" : : "m"(all));
  }
  // All 64 bytes wide: 0 and 1 (sums) and 4 have `high` rows, 2 and 3 (sums) and 5 have `low` ones,
  // 6 and 7 are whole.
  void shape(int64_t high, int64_t low) {
    shape(
        {{high, 64}, {high, 64}, {low, 64}, {low, 64}, {high, 64}, {low, 64}, {16, 64}, {16, 64}});
  }
};

// By number: a compiler's own forms of these do not tell it that memory is read.
template <int kRegister>
CLIPWEATHER_INLINE void matrix_clear() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}
template <int kRegister>
CLIPWEATHER_INLINE void matrix_load(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
               :
               : "i"(kRegister), "r"(from), "r"(row_bytes)
               : "memory");
}
template <int kRegister>
CLIPWEATHER_INLINE void matrix_store(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
               :
               : "i"(kRegister), "r"(to), "r"(row_bytes)
               : "memory");
}
// sum += a b
template <int kSum, int kA, int kB>
CLIPWEATHER_INLINE void matrix_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace CLIPWEATHER_ISA
}  // namespace clipweather
#endif
