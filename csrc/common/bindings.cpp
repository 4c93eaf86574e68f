#include "common/bindings.h"

namespace clipweather {
namespace {

// A function's static, so that it exists whichever translation unit registers first.
Binding*& head() {
  static Binding* first = nullptr;
  return first;
}

}  // namespace

Binding::Binding(void (*f)(pybind11::module_&)) : function(f), next(head()) { head() = this; }

Binding* first_binding() { return head(); }

}  // namespace clipweather
