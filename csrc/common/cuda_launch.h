// Device guard, current stream and launch check, in one place. Included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

// Dynamic shared memory of 16-byte alignment; tests/cuda_emulation brings its own.
#if !defined(CLIPWEATHER_DYNAMIC_SHARED)
#define CLIPWEATHER_DYNAMIC_SHARED(T, name)                       \
  extern __shared__ __align__(16) unsigned char name##_storage[]; \
  T* const name = reinterpret_cast<T*>(name##_storage)
#endif

namespace clipweather {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes `device` current for its lifetime; torch's own choice is restored afterwards.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ != device) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    device_ = device;
  }
  ~DeviceGuard() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  int device_ = 0;
};

// A one-dimensional grid; its limit is out of reach of images that fit in memory.
inline unsigned grid_of(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("more than 2^31 - 1 CUDA blocks");
  return static_cast<unsigned>(blocks);
}

// Every kernel starts here: a refused launch is an exception, never a silent wrong result.
template <class... Expected, class... Given>
void launch(const char* name, void (*kernel)(Expected...), dim3 grid, unsigned threads,
            std::size_t shared_bytes, cudaStream_t stream, Given&&... given) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...), name);
}

}  // namespace clipweather
