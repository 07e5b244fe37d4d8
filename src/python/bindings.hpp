// SPDX-License-Identifier: Apache-2.0
// What the parts of the extension share. Python's layer above it (python/modicum) is what users see.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <modicum/modicum.hpp>

namespace modicum::python {

namespace py = pybind11;

void bind_errors(py::module_& m);
void bind_text(py::module_& m);
void bind_machine(py::module_& m);
void bind_model(py::module_& m);
void bind_decode(py::module_& m);
void bind_cag(py::module_& m);
void bind_compare(py::module_& m);
void bind_quantize(py::module_& m);
void bind_refine(py::module_& m);
void bind_retrofit(py::module_& m);
void bind_kv_merge(py::module_& m);
void bind_low_rank(py::module_& m);
void bind_round(py::module_& m);
void bind_search(py::module_& m);
void bind_lexicon(py::module_& m);
void bind_tune(py::module_& m);

using Ids = std::vector<TokenId>;

/// A branch together with the model that extends it and the tree that it is of.
struct PyBranch {
  Model model;
  KvTree tree;
  Branch branch;
};

/// Throws `ContextOverflow` where prefix, prompt and new tokens are more than the model's context holds.
void check_room(const Model& model, std::size_t prefix, std::size_t prompt, std::size_t new_tokens,
                const char* op);

/// A C++ progress callback around a Python one (or None). Without one it still lets Ctrl-C through.
Progress python_progress(const py::object& callback);

/// f32 [rows, cols] as a numpy array that owns it.
py::array_t<float> to_numpy(std::vector<float>&& values, std::size_t rows, std::size_t cols);

SamplingOptions sampling_options(double temperature, std::size_t top_k, double top_p, double min_p,
                                 double repetition_penalty, std::uint64_t seed);

/// A token callback around a Python one (or None): called with (id, text, log_probability), may return False.
TokenCallback python_token_callback(const py::object& callback);

}  // namespace modicum::python
