// SPDX-License-Identifier: Apache-2.0
#include <modicum/retrofit/ffn_refine.hpp>

#include "bindings.hpp"

namespace modicum::python {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
constexpr const char* kOp = "retrofit.refine_ffn";

/// Throws `InvalidArgument` unless the array has that shape.
void check_shape(const char* name, const Floats& array, const std::vector<std::size_t>& shape) {
  bool fits = static_cast<std::size_t>(array.ndim()) == shape.size();
  for (std::size_t i = 0; i < shape.size() && fits; ++i) {
    fits = static_cast<std::size_t>(array.shape(static_cast<py::ssize_t>(i))) == shape[i];
  }
  if (fits) return;
  std::string expected;
  for (const std::size_t size : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  fail({.op = kOp, .what = name, .expected = "[" + expected + "]", .got = py::str(array.attr("shape"))});
}

std::vector<float> values(const char* name, const Floats& array, const std::vector<std::size_t>& shape) {
  check_shape(name, array, shape);
  return {array.data(), array.data() + array.size()};
}

std::vector<float> bias(const char* name, const std::optional<Floats>& array, std::size_t size) {
  return array ? values(name, *array, {size}) : std::vector<float>();
}

py::dict as_dict(const retrofit::RefineReport& report) {
  py::dict d;
  d["error_before"] = report.error_before;
  d["error_after"] = report.error_after;
  d["held_out_before"] = report.held_out_before;
  d["held_out_after"] = report.held_out_after;
  d["iterations"] = report.iterations;
  return d;
}

py::tuple refine_ffn(const Floats& x, const Floats& targets, const Floats& gate, const Floats& up,
                     const Floats& down, const std::optional<Floats>& factors,
                     const std::optional<Floats>& gate_bias, const std::optional<Floats>& up_bias,
                     const std::optional<Floats>& down_bias, std::size_t held_out, std::size_t rounds,
                     std::size_t iterations, double damping, std::size_t max_rows, const std::string& dtype,
                     std::size_t threads, const py::object& progress) {
  if (x.ndim() != 2 || gate.ndim() != 2) {
    fail({.op = kOp,
          .what = x.ndim() != 2 ? "x" : "gate",
          .expected = "a matrix",
          .got = std::to_string((x.ndim() != 2 ? x : gate).ndim()) + " dimensions"});
  }
  const auto rows = static_cast<std::size_t>(x.shape(0));
  const auto width = static_cast<std::size_t>(x.shape(1));
  const auto inner = static_cast<std::size_t>(gate.shape(0));
  check_shape("targets", targets, {rows, width});
  if (held_out >= rows) {
    fail({.op = kOp,
          .what = "held_out",
          .expected = "1 or more, and fewer than the " + std::to_string(rows) + " rows",
          .got = std::to_string(held_out)});
  }
  retrofit::FfnWeights weights{.width = width, .inner = inner};
  weights.gate = values("gate", gate, {inner, width});
  weights.up = values("up", up, {inner, width});
  weights.down = values("down", down, {width, inner});
  weights.gate_bias = bias("gate_bias", gate_bias, inner);
  weights.up_bias = bias("up_bias", up_bias, inner);
  weights.down_bias = bias("down_bias", down_bias, width);
  const std::vector<float> of_rows = bias("factors", factors, rows);
  const retrofit::FfnRows text{.x = x.data(),
                               .targets = targets.data(),
                               .factors = of_rows,
                               .fitted = rows - held_out,
                               .held_out = held_out};
  const retrofit::RefineOptions options{.rounds = rounds,
                                        .iterations = iterations,
                                        .damping = damping,
                                        .max_rows = max_rows,
                                        .dtype = dtype_from_name(dtype)};
  const Progress callback = python_progress(progress);
  retrofit::RefineReport report;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    report = retrofit::refine_ffn(weights, text, options, pool, callback);
  }
  return py::make_tuple(to_numpy(std::move(weights.gate), inner, width),
                        to_numpy(std::move(weights.up), inner, width),
                        to_numpy(std::move(weights.down), width, inner), as_dict(report));
}

}  // namespace

void bind_refine(py::module_& m) {
  m.def("refine_ffn", &refine_ffn, py::arg("x"), py::arg("targets"), py::arg("gate"), py::arg("up"),
        py::arg("down"), py::kw_only(), py::arg("factors"), py::arg("gate_bias"), py::arg("up_bias"),
        py::arg("down_bias"), py::arg("held_out"), py::arg("rounds"), py::arg("iterations"),
        py::arg("damping"), py::arg("max_rows"), py::arg("dtype"), py::arg("threads"), py::arg("progress"));
}

}  // namespace modicum::python
