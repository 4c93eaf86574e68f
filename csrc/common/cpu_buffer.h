// Scratch memory of a CPU kernel: one aligned block, freed on leaving.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace clipweather {
namespace {  // one copy per translation unit: these are compiled for different instruction sets

template <class E>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<E*>(
            ::aligned_alloc(64, (static_cast<size_t>(count) * sizeof(E) + 127) / 64 * 64))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { ::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  E* get() const { return data_; }
  void zero(int64_t count) { std::memset(data_, 0, static_cast<size_t>(count) * sizeof(E)); }

 private:
  E* data_;
};

}  // namespace
}  // namespace clipweather
