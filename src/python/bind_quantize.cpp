// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

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

py::tuple round_rows(const py::array_t<float, py::array::c_style | py::array::forcecast>& weights,
                     std::size_t bits, std::size_t group, const std::string& scale_dtype) {
  const bool whole = group != 0 && group % kQuantGroup == 0;
  if (weights.ndim() != 2 || !whole || weights.shape(1) % static_cast<py::ssize_t>(group) != 0) {
    fail({.op = "retrofit.round_rows",
          .what = "weights",
          .expected = "[rows, cols], with cols a multiple of the group and that of 32",
          .got = std::to_string(weights.ndim()) + " dimensions, group " + std::to_string(group)});
  }
  if (bits < 2 || bits > 8) {
    fail({.op = "retrofit.round_rows", .what = "bits", .expected = "2 to 8", .got = std::to_string(bits)});
  }
  if (!std::all_of(weights.data(), weights.data() + weights.size(),
                   [](float w) { return std::isfinite(w); })) {
    fail({.op = "retrofit.round_rows", .what = "weights", .expected = "finite", .got = "NaN or infinity"});
  }
  const DType dtype = dtype_from_name(scale_dtype);
  const auto groups = weights.shape(1) / static_cast<py::ssize_t>(group);
  py::array_t<std::int8_t> integers({weights.shape(0), weights.shape(1)});
  py::array_t<float> scales({weights.shape(0), groups});
  for (py::ssize_t i = 0; i < weights.shape(0) * groups; ++i) {
    const std::size_t begin = static_cast<std::size_t>(i) * group;
    scales.mutable_data()[i] = retrofit::round_group({weights.data() + begin, group}, bits, dtype,
                                                     {integers.mutable_data() + begin, group});
  }
  return py::make_tuple(integers, scales);
}

}  // namespace

void bind_quantize(py::module_& m) {
  m.def("quantize", &quantize, py::arg("source"), py::arg("out"), py::kw_only(), py::arg("bits"),
        py::arg("group"), py::arg("head_bits"), py::arg("threads"), py::arg("progress"));
  m.def("round_rows", &round_rows, py::arg("weights"), py::kw_only(), py::arg("bits"), py::arg("group") = 32,
        py::arg("scale_dtype") = "bf16",
        R"(Rounds float32 weights [rows, cols] as `quantize` does.

Returns (int8 [rows, cols], float32 scales [rows, cols / group]): weights ≈ integers · scales, with a scale for each
`group` columns that `scale_dtype` holds exactly. Weights must be finite.)");
}

}  // namespace modicum::python
