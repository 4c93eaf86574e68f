// Calls of CPU kernels with all their arguments, to be made again without Python. Who records
// answers for the memory: addresses must be good, and inputs in place, whenever a tape runs.
//
// Included by bindings alone, which are compiled for every processor.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

namespace clipweather {

class KernelTape {
 public:
  // The tape on which this thread's calls are recorded, or null.
  static KernelTape*& of_thread();

  template <class Args>
  void append(void (*kernel)(const Args&), const Args& args) {
    static_assert(std::is_trivially_copyable_v<Args>);
    calls_.push_back([kernel, args] { kernel(args); });
  }

  int64_t size() const { return static_cast<int64_t>(calls_.size()); }

  // Calls [first, after), in order.
  void run(int64_t first, int64_t after) const;

 private:
  std::vector<std::function<void()>> calls_;
};

template <class Args>
void call_kernel(void (*kernel)(const Args&), const Args& args) {
  kernel(args);
  if (KernelTape* const tape = KernelTape::of_thread()) tape->append(kernel, args);
}

}  // namespace clipweather
