// SPDX-License-Identifier: Apache-2.0
#include <pybind11/eigen.h>

#include "bindings.hpp"

namespace modicum::python {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

py::tuple low_rank(const linalg::Matrix& weight, const linalg::Matrix& gram, std::size_t rank,
                   double damping) {
  retrofit::LowRank factors;
  {
    const py::gil_scoped_release release;
    factors = retrofit::low_rank(weight, gram, rank, damping);
  }
  return py::make_tuple(RowMajor(factors.u), RowMajor(factors.v), factors.loss);
}

}  // namespace

void bind_low_rank(py::module_& m) {
  m.def("low_rank", &low_rank, py::arg("weight"), py::arg("gram"), py::kw_only(), py::arg("rank"),
        py::arg("damping") = 0.0,
        R"(The two factors of a linear layer that lose least of its output, in closed form.

`weight` W [outputs, inputs] and `gram` G = E[x xᵀ] [inputs, inputs] of the inputs x that it reads, in float64. Returns
(u [outputs, rank], v [rank, inputs], loss): W ≈ u v, where u are the left singular vectors of W G^½ and v = uᵀ W (as
SVD-LLM, Wang et al. 2024, arXiv 2403.07378, without inverting G); `loss` is tr((W − uv) G (W − uv)ᵀ) / tr(W G Wᵀ), the
share of output energy in the singular values that are left out. `damping` adds that share of G's mean diagonal to its
diagonal, for inputs that the text did not have; the loss is without it.

modicum runs such layers (config.json: "modicum": {"low_rank": {"modules": {name or "re:pattern": rank}}}, tensors
NAME.weight_u and NAME.weight_v); transformers does after :func:`modicum.interop.register`.

Raises InvalidArgument for a rank of 0 or above the smaller side, shapes that do not fit, negative damping, and
numbers that are not finite.)");
}

}  // namespace modicum::python
