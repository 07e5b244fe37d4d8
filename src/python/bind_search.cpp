// SPDX-License-Identifier: Apache-2.0
#include <modicum/search/constraint.hpp>

#include "bindings.hpp"

namespace modicum::python {

void bind_search(py::module_& m) {
  py::class_<Constraint, std::shared_ptr<Constraint>>(
      m, "Constraint", "Which texts a search may write; made by modicum.search.")
      .def("__repr__", [](const Constraint&) { return "<modicum.search constraint>"; });
}

}  // namespace modicum::python
