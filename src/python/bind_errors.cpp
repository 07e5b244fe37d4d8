// SPDX-License-Identifier: Apache-2.0
// One Python exception for each C++ one; each also derives from the builtin that a user would catch.
#include <string_view>

#include "bindings.hpp"

namespace modicum::python {
namespace {

PyObject* error = nullptr;
PyObject* invalid_argument = nullptr;
PyObject* io_error = nullptr;
PyObject* format_error = nullptr;
PyObject* corrupt = nullptr;
PyObject* fingerprint_mismatch = nullptr;
PyObject* context_overflow = nullptr;
PyObject* out_of_memory = nullptr;
PyObject* device_error = nullptr;
PyObject* unsupported = nullptr;
PyObject* cancelled = nullptr;

PyObject* make(py::module_& m, const char* name, const char* doc, PyObject* base, PyObject* builtin) {
  py::tuple bases = py::make_tuple(py::handle(base));
  if (builtin != nullptr) bases = py::make_tuple(py::handle(base), py::handle(builtin));
  const std::string full = std::string("modicum.") + name;
  PyObject* type = PyErr_NewExceptionWithDoc(full.c_str(), doc, bases.ptr(), nullptr);
  if (type == nullptr) throw py::error_already_set();
  m.add_object(name, py::handle(type));
  return type;
}

/// What an error quotes need not be UTF-8.
void raise(PyObject* type, const std::exception& e) {
  const std::string_view text = e.what();
  const auto message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
  if (message) PyErr_SetObject(type, message.ptr());
}

/// The most derived Python type first.
void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const Corrupt& e) {
    raise(corrupt, e);
  } catch (const FormatError& e) {
    raise(format_error, e);
  } catch (const InvalidArgument& e) {
    raise(invalid_argument, e);
  } catch (const IoError& e) {
    raise(io_error, e);
  } catch (const FingerprintMismatch& e) {
    raise(fingerprint_mismatch, e);
  } catch (const ContextOverflow& e) {
    raise(context_overflow, e);
  } catch (const OutOfMemory& e) {
    raise(out_of_memory, e);
  } catch (const DeviceError& e) {
    raise(device_error, e);
  } catch (const Unsupported& e) {
    raise(unsupported, e);
  } catch (const Cancelled& e) {
    raise(cancelled, e);
  } catch (const Error& e) {
    raise(error, e);
  }
}

}  // namespace

void bind_errors(py::module_& m) {
  error = make(m, "Error", "Root of everything that modicum raises.", PyExc_Exception, nullptr);
  invalid_argument =
      make(m, "InvalidArgument", "An argument that no input could make sense of.", error, PyExc_ValueError);
  io_error = make(m, "IoError", "A file or folder that cannot be read or written.", error, PyExc_OSError);
  format_error = make(m, "FormatError", "A file that is not what it says it is.", error, PyExc_ValueError);
  corrupt = make(m, "Corrupt", "A file whose checksum does not match its bytes.", format_error, nullptr);
  fingerprint_mismatch = make(m, "FingerprintMismatch", "A knowledge cache that belongs to another model.",
                              error, PyExc_ValueError);
  context_overflow =
      make(m, "ContextOverflow", "More tokens than the model's context holds.", error, PyExc_ValueError);
  out_of_memory =
      make(m, "OutOfMemory", "No memory, or no more than the bound that was set.", error, PyExc_MemoryError);
  device_error = make(m, "DeviceError", "An accelerator that failed.", error, PyExc_RuntimeError);
  unsupported = make(m, "Unsupported", "A valid input that this version does not handle; names the field.",
                     error, PyExc_NotImplementedError);
  cancelled = make(m, "Cancelled", "A progress callback asked to stop.", error, PyExc_RuntimeError);
  py::register_exception_translator(&translate);
}

}  // namespace modicum::python
