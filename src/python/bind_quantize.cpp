// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {
namespace {

py::dict kind_as_dict(const retrofit::QuantizedKind& kind) {
  py::dict d;
  d["kind"] = kind.kind;
  d["tensors"] = kind.tensors;
  d["bytes_before"] = kind.bytes_before;
  d["bytes_after"] = kind.bytes_after;
  d["mean_square_error"] = kind.mean_square_error;
  d["mean_square"] = kind.mean_square;
  return d;
}

py::dict quantize(const std::filesystem::path& source, const std::filesystem::path& out, std::size_t bits,
                  std::size_t group, std::optional<std::size_t> head_bits, std::size_t threads,
                  const py::object& progress) {
  const Progress callback = python_progress(progress);
  retrofit::QuantizeReport report;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    report = retrofit::quantize(Checkpoint::open(source), out,
                                {.bits = bits, .group = group, .head_bits = head_bits}, pool, callback);
  }
  py::list kinds;
  for (const retrofit::QuantizedKind& kind : report.kinds) kinds.append(kind_as_dict(kind));
  py::dict d;
  d["kinds"] = kinds;
  d["kept"] = report.kept;
  d["bytes_before"] = report.bytes_before;
  d["bytes_after"] = report.bytes_after;
  d["bytes_head_kept"] = report.bytes_head_kept;
  d["bytes_head_int8"] = report.bytes_head_int8;
  d["bytes_head_int4"] = report.bytes_head_int4;
  d["seconds"] = report.seconds;
  return d;
}

}  // namespace

void bind_quantize(py::module_& m) {
  m.def("quantize", &quantize, py::arg("source"), py::arg("out"), py::kw_only(), py::arg("bits"),
        py::arg("group"), py::arg("head_bits"), py::arg("threads"), py::arg("progress"));
}

}  // namespace modicum::python
