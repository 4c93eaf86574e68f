// How a weight lies that the float32 products of inference multiply with; see cpu_panels.h.
#pragma once

#include <cstdint>

namespace clipweather {

inline constexpr int64_t kPanel = 32;  // columns of a panel
inline constexpr int64_t kPart = 16;   // what columns are padded to a multiple of

}  // namespace clipweather
