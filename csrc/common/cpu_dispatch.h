// Chooses, once at load, which instruction set's copy of a CPU kernel runs.
//
// Each csrc/<op>/<op>_cpu.cpp is compiled once per instruction set with CLIPWEATHER_ISA set to
// baseline, avx2, avx512, avx512_bf16 or amx, which is also the namespace its functions live in.
// Declare a kernel for all of them with CLIPWEATHER_CPU_KERNEL and call it with
// CLIPWEATHER_CPU_CALL, in bindings, which also puts the call on a tape (kernel_tape.h).
#pragma once

namespace clipweather {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

// Fastest instruction set of this processor that was built and that the system grants, or the one
// that CLIPWEATHER_CPU_ISA names.
Isa cpu_isa();

}  // namespace clipweather

#define CLIPWEATHER_CPU_KERNEL(function, Args) \
  namespace clipweather {                      \
  namespace baseline {                         \
  void function(const Args&);                  \
  }                                            \
  namespace avx2 {                             \
  void function(const Args&);                  \
  }                                            \
  namespace avx512 {                           \
  void function(const Args&);                  \
  }                                            \
  namespace avx512_bf16 {                      \
  void function(const Args&);                  \
  }                                            \
  namespace amx {                              \
  void function(const Args&);                  \
  }                                            \
  }

#if defined(CLIPWEATHER_X86)
// AMX is left out where the compiler does not know it.
#if defined(CLIPWEATHER_AMX)
#define CLIPWEATHER_AMX_CASE(function, args)                         \
  case ::clipweather::Isa::kAmx:                                     \
    ::clipweather::call_kernel(&::clipweather::amx::function, args); \
    break;
#else
#define CLIPWEATHER_AMX_CASE(function, args)
#endif
#define CLIPWEATHER_CPU_CALL(function, args)                                     \
  do {                                                                           \
    switch (::clipweather::cpu_isa()) {                                          \
      CLIPWEATHER_AMX_CASE(function, args)                                       \
      case ::clipweather::Isa::kAvx512Bf16:                                      \
        ::clipweather::call_kernel(&::clipweather::avx512_bf16::function, args); \
        break;                                                                   \
      case ::clipweather::Isa::kAvx512:                                          \
        ::clipweather::call_kernel(&::clipweather::avx512::function, args);      \
        break;                                                                   \
      case ::clipweather::Isa::kAvx2:                                            \
        ::clipweather::call_kernel(&::clipweather::avx2::function, args);        \
        break;                                                                   \
      default:                                                                   \
        ::clipweather::call_kernel(&::clipweather::baseline::function, args);    \
    }                                                                            \
  } while (false)
#else
#define CLIPWEATHER_CPU_CALL(function, args) \
  ::clipweather::call_kernel(&::clipweather::baseline::function, args)
#endif
