#include "common/cpu_dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(CLIPWEATHER_X86)
#include <cpuid.h>
#endif
#if defined(CLIPWEATHER_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace clipweather {
namespace {

#if defined(CLIPWEATHER_AMX)
// Linux keeps the matrix unit's registers of those processes only that have asked for it.
bool amx_granted() {
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;  // of leaf 7
  constexpr long kRequest = 0x1023, kTileData = 18;           // ARCH_REQ_XCOMP_PERM, its data
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kBfloat16) == 0 || (edx & kTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#else
bool amx_granted() { return false; }
#endif

// `amx`: whether that may be asked for, which lasts as long as the process.
#if defined(CLIPWEATHER_X86)
// Intel's processors with float16 arithmetic (Sapphire Rapids and later) multiply pairs of bfloat16
// at half the rate of float32, an instruction in four times the time: they have the matrix unit for
// it, which a virtual machine may hide.
bool pairs_are_slow() {
  constexpr unsigned kFloat16 = 1u << 23;  // of leaf 7
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__builtin_cpu_is("intel") || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  return (edx & kFloat16) != 0;
}

Isa best_isa(bool amx) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512;
  return amx && amx_granted() ? Isa::kAmx : Isa::kAvx512Bf16;
}
#else
bool pairs_are_slow() { return false; }
Isa best_isa(bool) { return Isa::kBaseline; }
#endif

Isa chosen_isa() {
  const char* forced = std::getenv("CLIPWEATHER_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    const Isa best = best_isa(true);
    return best == Isa::kAvx512Bf16 && pairs_are_slow() ? Isa::kAvx512 : best;
  }
  static const char* const kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
  for (int i = 0; i < 5; ++i) {
    if (std::strcmp(forced, kNames[i]) != 0) continue;
    const Isa best = best_isa(i == static_cast<int>(Isa::kAmx));
    if (i > static_cast<int>(best))
      throw std::runtime_error(std::string("CLIPWEATHER_CPU_ISA=") + forced +
                               " was asked for, but this processor, build or system goes up to " +
                               kNames[static_cast<int>(best)]);
    return static_cast<Isa>(i);
  }
  throw std::runtime_error(
      std::string("CLIPWEATHER_CPU_ISA must be baseline, avx2, avx512, avx512_bf16 or amx, got ") +
      forced);
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

}  // namespace clipweather
