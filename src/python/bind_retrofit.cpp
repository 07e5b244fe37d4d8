// SPDX-License-Identifier: Apache-2.0
#include <modicum/linalg/dense.hpp>
#include <modicum/retrofit/run.hpp>

#include "bindings.hpp"

namespace modicum::python {
namespace {

using Tokens = py::array_t<TokenId, py::array::c_style | py::array::forcecast>;

retrofit::CalibrationTokens calibration_of(const Tokens& tokens, std::size_t held_out) {
  if (tokens.ndim() != 2) {
    fail({.op = "retrofit",
          .what = "calibration",
          .expected = "int32 [sequences, length]",
          .got = std::to_string(tokens.ndim()) + " dimensions"});
  }
  return {.tokens = {tokens.data(), static_cast<std::size_t>(tokens.size())},
          .length = static_cast<std::size_t>(tokens.shape(1)),
          .held_out = held_out};
}

py::dict error_as_dict(const retrofit::EditError& e) {
  py::dict d;
  d["layer"] = e.layer;
  d["edit"] = e.edit;
  d["module"] = e.module;
  d["before"] = e.before;
  d["after"] = e.after;
  d["held_out_before"] = e.held_out_before;
  d["held_out_after"] = e.held_out_after;
  d["damping"] = e.damping;
  return d;
}

py::dict run(const std::filesystem::path& source, const std::filesystem::path& out, const std::string& plan,
             const Tokens& tokens, std::size_t held_out, bool relative, const std::filesystem::path& work,
             std::size_t threads, const py::object& progress) {
  const Progress callback = python_progress(progress);
  const retrofit::CalibrationTokens calibration = calibration_of(tokens, held_out);
  retrofit::RunReport report;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    report = retrofit::run(Checkpoint::open(source), out, retrofit::Plan::from_json(plan), calibration,
                           {.relative = relative, .work = work}, pool, callback);
  }
  py::list errors;
  for (const retrofit::EditError& error : report.errors) errors.append(error_as_dict(error));
  py::dict d;
  d["errors"] = errors;
  d["bytes_before"] = report.bytes_before;
  d["bytes_after"] = report.bytes_after;
  d["resumed_layers"] = report.resumed_layers;
  d["seconds"] = report.seconds;
  d["solver"] = report.solver;
  return d;
}

}  // namespace

void bind_retrofit(py::module_& m) {
  m.def("retrofit_run", &run, py::arg("source"), py::arg("out"), py::arg("plan"), py::arg("tokens"),
        py::kw_only(), py::arg("held_out"), py::arg("relative"), py::arg("work"), py::arg("threads"),
        py::arg("progress"));
  m.def("open_lapack", &linalg::open_lapack, py::arg("path"),
        "Uses the LAPACK in a shared library for solves, unless one is in use already. Returns whether there "
        "is one.");
  m.def("solver", &linalg::backend, "The library that serves solves, and its version.");
}

}  // namespace modicum::python
