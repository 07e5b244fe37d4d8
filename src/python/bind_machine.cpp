// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/machine.hpp>

#include "bindings.hpp"

namespace modicum::python {
namespace {

ops::MachineLimits measured_limits(std::size_t threads) {
  ThreadPool pool(threads);
  return ops::machine_limits(pool);
}

double measured_bandwidth(std::size_t threads, std::size_t size) {
  ThreadPool pool(threads);
  return ops::read_bandwidth(pool, size);
}

}  // namespace

void bind_machine(py::module_& m) {
  using ops::MachineLimits;
  py::class_<MachineLimits>(m, "MachineLimits",
                            R"(What a machine can do at most with some threads and the active instruction set.

A multiply-add counts as two operations; its operands are in registers.)")
      .def_readonly("read", &MachineLimits::read, "Bytes/s of reading memory.")
      .def_readonly("f32", &MachineLimits::f32, "Operations/s of f32 multiply-adds.")
      .def_readonly("bf16", &MachineLimits::bf16,
                    "Operations/s of bf16 products with f32 sums; without such instructions as f32.")
      .def_readonly("int8", &MachineLimits::int8,
                    "Operations/s of int8 products with int32 sums; without such instructions as f32.");
  m.def(
      "machine_limits", &measured_limits, py::kw_only(), py::arg("threads") = 0,
      py::call_guard<py::gil_scoped_release>(),
      "Measures, for some tenths of a second, what this machine can do; `threads` 0 means every processor.");
  m.def("read_bandwidth", &measured_bandwidth, py::kw_only(), py::arg("threads") = 0,
        py::arg("size") = std::size_t{256} << 20, py::call_guard<py::gil_scoped_release>(),
        R"(Bytes/s of reading `size` bytes of memory once with `threads` threads, 0: every processor.

Choose the size of what will be read: less may lie in a cache.)");
}

}  // namespace modicum::python
