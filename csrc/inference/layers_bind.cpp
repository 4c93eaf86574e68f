// The layers of a network, found without the interpreter: it asks for them twice for every picture,
// and a thousand look-ups in Python take as long as a kernel on a small one.
#include "common/bindings.h"

namespace clipweather {
namespace {

namespace py = pybind11;

// A value of a layer's dictionary; an error where there is none.
PyObject* state_of(PyObject* state, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(state, name);
  if (value == nullptr) {
    if (PyErr_Occurred() == nullptr) PyErr_SetObject(PyExc_KeyError, name);
    throw py::error_already_set();
  }
  return value;
}

// A dictionary among a layer's state; an error where it is something else.
PyObject* dictionary_of(PyObject* state, PyObject* name) {
  PyObject* const value = state_of(state, name);
  if (!PyDict_Check(value)) throw py::type_error("layers_of: a layer's state is no dictionary");
  return value;
}

bool is_true(int answer) {
  if (answer < 0) throw py::error_already_set();
  return answer != 0;
}

// The layers that are a network's, itself first, and their parameters, of which some may be None;
// or None where one is of no known class, has a `forward` of its own, or something in what is
// watched. A child named `left_out` is passed over.
py::object layers_of(const py::object& network, const py::object& known, const py::tuple& watched,
                     const py::str& left_out) {
  // Interned, as the dictionaries' own names, and never given back: the interpreter may end first.
  static PyObject* const forward = PyUnicode_InternFromString("forward");
  static PyObject* const children = PyUnicode_InternFromString("_modules");
  static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
  py::list layers, weights;
  layers.append(network);
  for (size_t i = 0; i < layers.size(); ++i) {
    const py::object layer = layers[i];
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(layer.ptr()));
    // Before anything else of it is looked at.
    if (!is_true(PySet_Contains(known.ptr(), type))) return py::none();
    const auto state =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(layer.ptr(), nullptr));
    if (!state) throw py::error_already_set();
    if (is_true(PyDict_Contains(state.ptr(), forward))) return py::none();
    for (const py::handle name : watched)
      if (is_true(PyObject_IsTrue(state_of(state.ptr(), name.ptr())))) return py::none();
    PyObject *name, *value;
    Py_ssize_t place = 0;
    PyObject* const below = dictionary_of(state.ptr(), children);
    while (PyDict_Next(below, &place, &name, &value))
      if (value != Py_None && is_true(PyObject_RichCompareBool(name, left_out.ptr(), Py_NE)))
        layers.append(py::handle(value));
    place = 0;
    PyObject* const own = dictionary_of(state.ptr(), parameters);
    while (PyDict_Next(own, &place, &name, &value)) weights.append(py::handle(value));
  }
  return py::make_tuple(layers, weights);
}

}  // namespace
}  // namespace clipweather

CLIPWEATHER_BINDINGS(layers) { module.def("layers_of", &clipweather::layers_of); }
