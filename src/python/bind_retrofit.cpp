// SPDX-License-Identifier: Apache-2.0
#include <modicum/linalg/dense.hpp>
#include <modicum/retrofit/run.hpp>
#include <modicum/retrofit/survey.hpp>

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

py::dict estimate(const std::filesystem::path& source, const std::string& plan, const Tokens& tokens,
                  std::size_t held_out) {
  const retrofit::RunEstimate e = retrofit::estimate(
      Checkpoint::open(source), retrofit::Plan::from_json(plan), calibration_of(tokens, held_out));
  py::dict d;
  d["memory_bytes"] = e.memory_bytes;
  d["disk_bytes"] = e.disk_bytes;
  d["in_bytes"] = e.in_bytes;
  d["out_bytes"] = e.out_bytes;
  d["pass_operations"] = e.pass_operations;
  d["solve_operations"] = e.solve_operations;
  return d;
}

py::dict by_amount(const std::map<std::size_t, double>& values) {
  py::dict d;
  for (const auto& [amount, value] : values) d[py::str(std::to_string(amount))] = value;
  return d;
}

py::dict survey(const std::filesystem::path& source, const Tokens& tokens, std::size_t held_out,
                std::vector<std::size_t> widths, std::vector<std::size_t> kv_heads,
                std::vector<std::size_t> bits, std::size_t threads, const py::object& progress) {
  const Progress callback = python_progress(progress);
  const retrofit::CalibrationTokens calibration = calibration_of(tokens, held_out);
  retrofit::Survey found;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    found = retrofit::survey(
        Checkpoint::open(source), calibration,
        {.widths = std::move(widths), .kv_heads = std::move(kv_heads), .bits = std::move(bits)}, pool,
        callback);
  }
  py::list layers;
  for (const retrofit::LayerSurvey& layer : found.layers) {
    py::dict kv, d;
    for (const auto& [heads, score] : layer.kv_scores) {
      py::dict errors;
      errors["score"] = score;
      errors["value"] = layer.kv_values.at(heads);
      kv[py::str(std::to_string(heads))] = errors;
    }
    d["layer"] = py::len(layers);
    d["ffn"] = by_amount(layer.ffn);
    d["kv"] = kv;
    d["bits"] = by_amount(layer.bits);
    layers.append(d);
  }
  py::dict d;
  d["layers"] = layers;
  d["angles"] = found.angles;
  return d;
}

}  // namespace

void bind_retrofit(py::module_& m) {
  m.def("retrofit_run", &run, py::arg("source"), py::arg("out"), py::arg("plan"), py::arg("tokens"),
        py::kw_only(), py::arg("held_out"), py::arg("relative"), py::arg("work"), py::arg("threads"),
        py::arg("progress"));
  m.def("retrofit_estimate", &estimate, py::arg("source"), py::arg("plan"), py::arg("tokens"), py::kw_only(),
        py::arg("held_out"));
  m.def("retrofit_survey", &survey, py::arg("source"), py::arg("tokens"), py::kw_only(), py::arg("held_out"),
        py::arg("widths"), py::arg("kv_heads"), py::arg("bits"), py::arg("threads"), py::arg("progress"));
  m.def(
      "tensor_bytes",
      [](const std::filesystem::path& source) {
        const Checkpoint checkpoint = Checkpoint::open(source);
        std::map<std::string, std::uint64_t> bytes;
        for (const std::string& name : checkpoint.names()) bytes[name] = checkpoint.info(name).bytes();
        return bytes;
      },
      py::arg("source"), "Bytes of each tensor of a checkpoint, by name.");
  m.def(
      "retrofit_plan", [](const std::string& json) { return retrofit::Plan::from_json(json).to_json(); },
      py::arg("json"), "A plan with every field, or FormatError that names the one that is wrong.");
  m.def("open_lapack", &linalg::open_lapack, py::arg("path"),
        "Uses the LAPACK in a shared library for solves, unless one is in use already. Returns whether there "
        "is one.");
  m.def("solver", &linalg::backend, "The library that serves solves, and its version.");
}

}  // namespace modicum::python
