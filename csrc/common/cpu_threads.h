// Work split into tasks whose number and borders depend on the sizes alone, never on the thread
// count: sums formed per task repeat bit for bit on any number of threads.
#pragma once

#include <omp.h>

#include <cstdint>

namespace clipweather {
namespace {  // one copy per translation unit: these are compiled for different instruction sets

// Calls body(task, thread) for task in [0, tasks), thread in [0, threads). Threads are those of
// torch: the caller passes torch.get_num_threads(), and `import torch` comes first so that both
// share one OpenMP runtime.
template <class Body>
inline void parallel_tasks(int64_t tasks, int threads, const Body& body) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace clipweather
