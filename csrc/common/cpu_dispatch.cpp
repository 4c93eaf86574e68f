#include "common/cpu_dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace clipweather {
namespace {

#if defined(CLIPWEATHER_X86)
Isa best_isa() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
}
#else
Isa best_isa() { return Isa::kBaseline; }
#endif

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* forced = std::getenv("CLIPWEATHER_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return best;
  static const char* const kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(forced, kNames[i]) != 0) continue;
    if (i > static_cast<int>(best))
      throw std::runtime_error(std::string("CLIPWEATHER_CPU_ISA=") + forced +
                               " was asked for, but this processor or build goes up to " +
                               kNames[static_cast<int>(best)]);
    return static_cast<Isa>(i);
  }
  throw std::runtime_error(
      std::string("CLIPWEATHER_CPU_ISA must be baseline, avx2, avx512 or avx512_bf16, got ") +
      forced);
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

}  // namespace clipweather
