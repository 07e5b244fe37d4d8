// SPDX-License-Identifier: Apache-2.0
#include <pybind11/complex.h>
#include <pybind11/eigen.h>

#include "bindings.hpp"

namespace modicum::python {
namespace {

using retrofit::AttentionWeights;
using retrofit::KvMerge;
using retrofit::KvStatistics;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

linalg::Matrix matrix(const Doubles& array, const char* name) {
  if (array.ndim() != 2) {
    fail({.op = "retrofit.merge_kv",
          .what = name,
          .expected = "a matrix [outputs, inputs]",
          .got = std::to_string(array.ndim()) + " dimensions"});
  }
  return Eigen::Map<const RowMajor>(array.data(), array.shape(0), array.shape(1));
}

linalg::Vector vector(const std::optional<Doubles>& array, const char* name) {
  if (!array) return {};
  if (array->ndim() != 1 || array->size() == 0) {
    fail({.op = "retrofit.merge_kv",
          .what = name,
          .expected = "a vector, or None",
          .got =
              std::to_string(array->ndim()) + " dimensions, " + std::to_string(array->size()) + " numbers"});
  }
  return Eigen::Map<const linalg::Vector>(array->data(), array->size());
}

/// Rows of numpy's order; None for an absent bias.
py::object numpy(const linalg::Matrix& m) {
  return py::cast(RowMajor(m));
}
py::object numpy(const linalg::Vector& v) {
  return v.size() > 0 ? py::cast(v) : py::none();
}

retrofit::KvMergeMethod method_of(const std::string& name) {
  using retrofit::KvMergeMethod;
  for (const auto& [known, method] : {std::pair{"complex_pca", KvMergeMethod::complex_pca},
                                      {"procrustes", KvMergeMethod::procrustes},
                                      {"mean", KvMergeMethod::mean},
                                      {"first", KvMergeMethod::first}}) {
    if (name == known) return method;
  }
  fail({.op = "retrofit.merge_kv",
        .what = "method",
        .expected = "complex_pca, procrustes, mean or first",
        .got = "'" + name + "'"});
}

retrofit::KvGrouping grouping_of(const std::string& name) {
  if (name == "found") return retrofit::KvGrouping::found;
  if (name == "consecutive") return retrofit::KvGrouping::consecutive;
  fail({.op = "retrofit.merge_kv",
        .what = "grouping",
        .expected = "found or consecutive",
        .got = "'" + name + "'"});
}

void check_rows(const char* name, const Floats& rows, py::ssize_t count, std::size_t width) {
  const bool fits =
      rows.ndim() == 2 && rows.shape(0) == count && rows.shape(1) == static_cast<py::ssize_t>(width);
  if (fits) return;
  fail({.op = "retrofit.KvStatistics.update",
        .what = name,
        .expected = "[" + std::to_string(count) + ", " + std::to_string(width) + "]",
        .got = py::str(rows.attr("shape"))});
}

void update(KvStatistics& self, const Floats& q, const Floats& k, const Floats& v, std::size_t threads) {
  const py::ssize_t rows = q.ndim() > 0 ? q.shape(0) : 0;
  const std::size_t kv_width = self.shape().kv_heads * self.shape().head_dim;
  check_rows("q", q, rows, self.shape().heads * self.shape().head_dim);
  check_rows("k", k, rows, kv_width);
  check_rows("v", v, rows, kv_width);
  const py::gil_scoped_release release;
  ThreadPool pool(threads);
  self.update(pool, q.data(), k.data(), v.data(), static_cast<std::size_t>(rows));
}

py::dict as_dict(const KvMerge& merge) {
  const AttentionWeights& w = merge.weights;
  py::dict d;
  d["q"] = numpy(w.q);
  d["k"] = numpy(w.k);
  d["v"] = numpy(w.v);
  d["o"] = numpy(w.o);
  d["q_bias"] = numpy(w.q_bias);
  d["k_bias"] = numpy(w.k_bias);
  d["v_bias"] = numpy(w.v_bias);
  d["groups"] = merge.groups;
  d["query_heads"] = merge.query_heads;
  d["score_error"] = merge.score_error;
  d["value_error"] = merge.value_error;
  return d;
}

py::dict merge_kv(const Doubles& q, const Doubles& k, const Doubles& v, const Doubles& o,
                  const KvStatistics& statistics, std::size_t kv_heads, const std::string& method,
                  const std::string& grouping, const std::optional<Doubles>& q_bias,
                  const std::optional<Doubles>& k_bias, const std::optional<Doubles>& v_bias, bool qk_norm) {
  AttentionWeights weights;
  weights.shape = statistics.shape();
  weights.qk_norm = qk_norm;
  weights.q = matrix(q, "q");
  weights.k = matrix(k, "k");
  weights.v = matrix(v, "v");
  weights.o = matrix(o, "o");
  weights.q_bias = vector(q_bias, "q_bias");
  weights.k_bias = vector(k_bias, "k_bias");
  weights.v_bias = vector(v_bias, "v_bias");
  const retrofit::KvMergeOptions options{
      .kv_heads = kv_heads, .method = method_of(method), .grouping = grouping_of(grouping)};
  KvMerge merge;
  {
    const py::gil_scoped_release release;
    merge = retrofit::merge_kv(weights, statistics, options);
  }
  return as_dict(merge);
}

}  // namespace

void bind_kv_merge(py::module_& m) {
  py::class_<KvStatistics>(m, "KvStatistics",
                           R"(Second moments of one attention layer's queries, keys and values before RoPE.

What :func:`modicum.retrofit.merge_kv` reads. With κ_f = k_f + i k_{f+d/2}, the pair of dimensions that RoPE turns by
frequency f in the half-split layout of Hugging Face checkpoints: E[κ κᴴ] over KV heads, E|ρ|² of every query head,
and E[v vᵀ] of all values. Sums are float64, the same for any number of threads.

Raises InvalidArgument where kv_heads does not divide heads, or head_dim is odd.)")
      .def(py::init([](std::size_t heads, std::size_t kv_heads, std::size_t head_dim) {
             return KvStatistics({.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim});
           }),
           py::kw_only(), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"))
      .def("update", &update, py::arg("q"), py::arg("k"), py::arg("v"), py::kw_only(), py::arg("threads") = 0,
           R"(Adds tokens: float32 q [tokens, heads · head_dim], k and v [tokens, kv_heads · head_dim].

Outputs of q_proj, k_proj and v_proj, biases included, before RoPE. `threads` 0: every processor that this process may
use. Raises InvalidArgument for other shapes.)")
      .def("merge", &KvStatistics::merge, py::arg("other"),
           "Adds those of another text. Raises InvalidArgument where the heads differ.")
      .def_property_readonly("count", &KvStatistics::count, "Tokens.")
      .def("key_gram", &KvStatistics::key_gram, py::arg("frequency"),
           "E[κ κᴴ] of a frequency, complex128 [kv_heads, kv_heads].")
      .def("query_energy", &KvStatistics::query_energy, "E|ρ|², float64 [head_dim / 2, heads].")
      .def("value_gram", &KvStatistics::value_gram,
           "E[v vᵀ], float64 [kv_heads · head_dim, kv_heads · head_dim].");
  m.def("merge_kv", &merge_kv, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("statistics"),
        py::kw_only(), py::arg("kv_heads"), py::arg("method"), py::arg("grouping"), py::arg("q_bias"),
        py::arg("k_bias"), py::arg("v_bias"), py::arg("qk_norm"));
}

}  // namespace modicum::python
