#include <stdexcept>

#include "common/bindings.h"
#include "common/kernel_tape.h"

namespace clipweather {

KernelTape*& KernelTape::of_thread() {
  static thread_local KernelTape* tape = nullptr;
  return tape;
}

void KernelTape::run(int64_t first, int64_t after) const {
  if (first < 0 || first > after || after > size())
    throw std::out_of_range("KernelTape: no such calls");
  for (int64_t i = first; i < after; ++i) calls_[static_cast<size_t>(i)]();
}

namespace {

// Exchanges the tape of this thread; null: none.
void record(KernelTape* tape) { KernelTape::of_thread() = tape; }

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(kernel_tape) {
  using clipweather::KernelTape;
  pybind11::class_<KernelTape>(module, "KernelTape")
      .def(pybind11::init<>())
      .def_property_readonly("size", &KernelTape::size)
      .def("run", &KernelTape::run, pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("record_kernels", &clipweather::record);
}
