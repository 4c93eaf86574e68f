// Lets each csrc/<op>/<op>_bind.cpp add its entry points to the module, so that a new op edits no
// shared file: CLIPWEATHER_BINDINGS(sar_conv2d) { module.def(...); }
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/kernel_tape.h"

namespace clipweather {

struct Binding {
  void (*function)(pybind11::module_&);
  Binding* next;
  explicit Binding(void (*f)(pybind11::module_&));
};

Binding* first_binding();

// A tensor's address as Python passes it; 0 stands for an absent optional tensor.
using Address = std::size_t;
template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace clipweather

#define CLIPWEATHER_BINDINGS(op)                                \
  static void bind_##op(pybind11::module_& module);             \
  static const ::clipweather::Binding op##_binding(&bind_##op); \
  static void bind_##op(pybind11::module_& module)
