// Runs CUDA C++ on a machine without a GPU: the .cu sources compile unchanged as C++ against the
// headers of this folder, and every CUDA thread of a block is a fiber of one host thread.
//
// It proves values, bounds and barriers, not speed: blocks run one after another, fibers switch
// only at barriers and warp collectives, in the order CLIPWEATHER_EMULATION_ORDER names (forward,
// the default, or reverse). A result that changes with the order is a missing barrier.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#define CLIPWEATHER_EMULATION 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// One block runs at a time, so a static is shared by exactly its threads.
#define __shared__ static

#define CLIPWEATHER_SHIM_VECTOR(T, name, align)                      \
  struct alignas(align / 2) name##2 { T x, y; };                     \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(align) name##4 { T x, y, z, w; };                   \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CLIPWEATHER_SHIM_VECTOR(float, float, 16)
CLIPWEATHER_SHIM_VECTOR(int, int, 16)
CLIPWEATHER_SHIM_VECTOR(unsigned, uint, 16)
CLIPWEATHER_SHIM_VECTOR(unsigned short, ushort, 8)
#undef CLIPWEATHER_SHIM_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_shim {

inline constexpr int kWarp = 32;
inline constexpr std::size_t kStackBytes = 128 * 1024;
inline constexpr std::size_t kMaxSharedBytes = 228 * 1024;

enum class Wait { kReady, kBlock, kWarp, kDone };

struct Slot {
  unsigned char bytes[16];
};

struct Fiber {
  ucontext_t context;
  std::vector<unsigned char> stack;
  uint3 thread{};
  Wait wait = Wait::kReady;
  unsigned mask = 0;        // of the warp collective it waits at
  unsigned generation = 0;  // warp collectives passed: picks the half of `slots` in use
  Slot slots[2];
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::size_t threads = 0;
  std::size_t running = 0;
  std::function<void()> body;
  std::vector<unsigned char> shared;
  bool reverse = false;
};

inline Block& block() {
  static Block state;
  return state;
}
inline Fiber& current() { return block().fibers[block().running]; }

}  // namespace cuda_shim

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_shim {

inline void fiber_main() {
  block().body();
  current().wait = Wait::kDone;
  swapcontext(&current().context, &block().scheduler);
}

inline void suspend(Wait wait, unsigned mask) {
  Fiber& fiber = current();
  fiber.wait = wait;
  fiber.mask = mask;
  swapcontext(&fiber.context, &block().scheduler);
  threadIdx = current().thread;
}

// Frees the lanes of one warp whose whole mask has arrived. Exited lanes count as arrived.
inline bool release_warp(std::size_t first) {
  Block& b = block();
  const std::size_t last = first + kWarp < b.threads ? first + kWarp : b.threads;
  bool released = false;
  for (std::size_t i = first; i < last; ++i) {
    if (b.fibers[i].wait != Wait::kWarp) continue;
    const unsigned mask = b.fibers[i].mask;
    if (!((mask >> (i - first)) & 1u)) throw std::logic_error("a lane outside the mask it passed");
    bool complete = true;
    for (std::size_t j = first; j < last; ++j) {
      const Fiber& lane = b.fibers[j];
      if (((mask >> (j - first)) & 1u) == 0 || lane.wait == Wait::kDone) continue;
      complete = complete && lane.wait == Wait::kWarp && lane.mask == mask;
    }
    if (!complete) continue;
    for (std::size_t j = first; j < last; ++j)
      if (((mask >> (j - first)) & 1u) && b.fibers[j].wait == Wait::kWarp)
        b.fibers[j].wait = Wait::kReady;
    released = true;
  }
  return released;
}

inline bool release_block() {
  Block& b = block();
  bool any = false;
  for (std::size_t i = 0; i < b.threads; ++i) {
    if (b.fibers[i].wait == Wait::kDone) continue;
    if (b.fibers[i].wait != Wait::kBlock) return false;
    any = true;
  }
  for (std::size_t i = 0; i < b.threads; ++i)
    if (b.fibers[i].wait == Wait::kBlock) b.fibers[i].wait = Wait::kReady;
  return any;
}

inline void run_block(const std::function<void()>& body) {
  Block& b = block();
  b.threads = static_cast<std::size_t>(blockDim.x) * blockDim.y * blockDim.z;
  if (b.threads == 0 || b.threads > 1024) throw std::logic_error("block of 0 or over 1024 threads");
  if (b.fibers.size() < b.threads) b.fibers.resize(b.threads);
  b.body = body;
  for (std::size_t i = 0; i < b.threads; ++i) {
    Fiber& fiber = b.fibers[i];
    if (fiber.stack.empty()) fiber.stack.resize(kStackBytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    const unsigned t = static_cast<unsigned>(i);
    fiber.thread = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    fiber.wait = Wait::kReady;
    fiber.generation = 0;
  }
  for (;;) {
    bool moved = false;
    for (std::size_t n = 0; n < b.threads; ++n) {
      const std::size_t i = b.reverse ? b.threads - 1 - n : n;
      if (b.fibers[i].wait != Wait::kReady) continue;
      b.running = i;
      threadIdx = b.fibers[i].thread;
      swapcontext(&b.scheduler, &b.fibers[i].context);
      moved = true;
    }
    for (std::size_t first = 0; first < b.threads; first += kWarp)
      moved = release_warp(first) || moved;
    if (moved) continue;
    if (release_block()) continue;
    for (std::size_t i = 0; i < b.threads; ++i)
      if (b.fibers[i].wait != Wait::kDone)
        throw std::logic_error("deadlock: not every thread of the block reaches the same barrier");
    return;
  }
}

// Publishes `value` to the warp and returns once every lane of `mask` has; `lane_value` reads
// another's.
template <class T>
void publish(unsigned mask, const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot), "values of up to 16 bytes");
  Fiber& fiber = current();
  std::memcpy(fiber.slots[fiber.generation & 1u].bytes, &value, sizeof(T));
  ++fiber.generation;
  suspend(Wait::kWarp, mask);
}
template <class T>
T lane_value(int lane) {
  Block& b = block();
  const std::size_t index = b.running / kWarp * kWarp + static_cast<std::size_t>(lane);
  T value;
  const unsigned half = (current().generation - 1u) & 1u;
  std::memcpy(&value, b.fibers[index].slots[half].bytes, sizeof(T));
  return value;
}
inline int lane() { return static_cast<int>(block().running % kWarp); }

inline std::mutex& one_launch_at_a_time() {
  static std::mutex mutex;
  return mutex;
}

inline void* dynamic_shared() { return block().shared.data(); }

}  // namespace cuda_shim

// For csrc/common/cuda_launch.h: dynamic shared memory cannot be a static of unknown size.
#define CLIPWEATHER_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::cuda_shim::dynamic_shared())

// ---- barriers and warp collectives --------------------------------------------------------------

inline void __syncthreads() { cuda_shim::suspend(cuda_shim::Wait::kBlock, 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_shim::publish(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  cuda_shim::publish(mask, value);
  const int lane = cuda_shim::lane();
  return cuda_shim::lane_value<T>(lane / width * width + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  cuda_shim::publish(mask, value);
  const int lane = cuda_shim::lane(), source = lane ^ flip;
  return cuda_shim::lane_value<T>(source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  cuda_shim::publish(mask, value);
  const int lane = cuda_shim::lane(), source = lane + static_cast<int>(delta);
  return cuda_shim::lane_value<T>(source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  cuda_shim::publish(mask, value);
  const int lane = cuda_shim::lane(), source = lane - static_cast<int>(delta);
  return cuda_shim::lane_value<T>(source >= lane / width * width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  cuda_shim::publish(mask, predicate);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (((mask >> lane) & 1u) && cuda_shim::lane_value<int>(lane)) votes |= 1u << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

// ---- arithmetic ---------------------------------------------------------------------------------

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, T value) {
  *p = value;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- runtime ------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
// What Tensor.get_device() says of a CPU tensor.
inline constexpr int kDevice = -1;
inline cudaError_t cudaGetDevice(int* device) {
  *device = kDevice;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == kDevice ? cudaSuccess : cudaErrorInvalidValue;
}
template <class F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int bytes) {
  return static_cast<std::size_t>(bytes) <= cuda_shim::kMaxSharedBytes ? cudaSuccess
                                                                       : cudaErrorInvalidValue;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 9;
  return cudaSuccess;
}

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Given&&... given) {
  const std::lock_guard<std::mutex> lock(cuda_shim::one_launch_at_a_time());
  const dim3 grid = config->gridDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535u ||
      grid.z > 65535u || config->dynamicSmemBytes > cuda_shim::kMaxSharedBytes)
    return cudaErrorInvalidValue;
  const char* order = std::getenv("CLIPWEATHER_EMULATION_ORDER");
  cuda_shim::block().reverse = order != nullptr && std::strcmp(order, "reverse") == 0;
  gridDim = grid;
  blockDim = config->blockDim;
  const std::function<void()> body = [&] { kernel(given...); };
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        // NaN, so that shared memory read before it is written shows.
        cuda_shim::block().shared.assign(config->dynamicSmemBytes + 16, 0xff);
        cuda_shim::run_block(body);
      }
  return cudaSuccess;
}
