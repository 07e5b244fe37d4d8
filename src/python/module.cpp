// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {

Progress python_progress(const py::object& callback) {
  // A handle, not an object: the callback is copied where the interpreter's lock is not held. The caller
  // keeps it alive.
  return [callback = py::handle(callback)](std::string_view stage, std::uint64_t done, std::uint64_t total) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (callback.is_none()) return true;
    const py::object go_on = callback(stage, done, total);
    return go_on.is_none() || go_on.cast<bool>();
  };
}

TokenCallback python_token_callback(const py::object& callback) {
  return [callback = py::handle(callback)](const GeneratedToken& token) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (callback.is_none()) return true;
    const py::object go_on = callback(token.id, token.text, token.log_probability);
    return go_on.is_none() || go_on.cast<bool>();
  };
}

py::array_t<float> to_numpy(std::vector<float>&& values, std::size_t rows, std::size_t cols) {
  auto* owned = new std::vector<float>(std::move(values));
  const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<float>*>(p); });
  return py::array_t<float>({rows, cols}, owned->data(), owner);
}

SamplingOptions sampling_options(double temperature, std::size_t top_k, double top_p, double min_p,
                                 double repetition_penalty, std::uint64_t seed) {
  return {.temperature = temperature,
          .top_k = top_k,
          .top_p = top_p,
          .min_p = min_p,
          .repetition_penalty = repetition_penalty,
          .seed = seed};
}

}  // namespace modicum::python

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled part of modicum; import modicum instead.";
  modicum::python::bind_errors(m);
  modicum::python::bind_text(m);
  modicum::python::bind_machine(m);
  modicum::python::bind_model(m);
  modicum::python::bind_decode(m);
  modicum::python::bind_search(m);
  modicum::python::bind_lexicon(m);
  modicum::python::bind_cag(m);
  modicum::python::bind_quantize(m);
  modicum::python::bind_refine(m);
  modicum::python::bind_retrofit(m);
  modicum::python::bind_kv_merge(m);
  modicum::python::bind_low_rank(m);
  modicum::python::bind_compare(m);
  modicum::python::bind_round(m);
  modicum::python::bind_tune(m);
}
