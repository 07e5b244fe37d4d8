// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {
namespace {

using Sequences = py::array_t<TokenId, py::array::c_style | py::array::forcecast>;

py::dict as_dict(const Perplexity& p) {
  py::dict d;
  d["sequences"] = p.sequences;
  d["tokens"] = p.tokens;
  d["loss"] = p.loss;
  d["loss_standard_error"] = p.loss_standard_error;
  return d;
}

/// The ids and their length. The array outlives the call that was given it.
std::pair<std::span<const TokenId>, std::size_t> ids_of(const Sequences& sequences) {
  if (sequences.ndim() != 2) {
    fail({.op = "compare",
          .what = "sequences",
          .expected = "[sequences, length]",
          .got = std::to_string(sequences.ndim()) + " dimensions"});
  }
  return {{sequences.data(), static_cast<std::size_t>(sequences.size())},
          static_cast<std::size_t>(sequences.shape(1))};
}

py::dict compare(const Model& teacher, const Model& student, const Sequences& sequences,
                 const py::object& progress) {
  const Progress callback = python_progress(progress);
  const auto [ids, length] = ids_of(sequences);
  Comparison result;
  {
    const py::gil_scoped_release release;
    result = compare(teacher.transformer(), student.transformer(), ids, length, {}, callback);
  }
  py::dict d;
  d["teacher"] = as_dict(result.teacher);
  d["student"] = as_dict(result.student);
  d["loss_change_standard_error"] = result.loss_change_standard_error;
  d["kl"] = result.kl;
  d["kl_standard_error"] = result.kl_standard_error;
  d["kl_95"] = result.kl_95;
  d["kl_max"] = result.kl_max;
  d["top1_agreement"] = result.top1_agreement;
  return d;
}

py::dict perplexity(const Model& model, const Sequences& sequences, const py::object& progress) {
  const Progress callback = python_progress(progress);
  const auto [ids, length] = ids_of(sequences);
  Perplexity result;
  {
    const py::gil_scoped_release release;
    result = perplexity(model.transformer(), ids, length, {}, callback);
  }
  return as_dict(result);
}

}  // namespace

void bind_compare(py::module_& m) {
  m.def("compare", &compare, py::arg("teacher"), py::arg("student"), py::arg("sequences"), py::kw_only(),
        py::arg("progress") = py::none());
  m.def("perplexity", &perplexity, py::arg("model"), py::arg("sequences"), py::kw_only(),
        py::arg("progress") = py::none());
}

}  // namespace modicum::python
