// SPDX-License-Identifier: Apache-2.0
#include "../retrofit/packed_linear.hpp"
#include "bindings.hpp"

namespace modicum::python {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Integers = py::array_t<std::int8_t, py::array::c_style | py::array::forcecast>;
using Doubles = py::array_t<double, py::array::f_style | py::array::forcecast>;

void check_dimensions(const char* op, const char* what, const py::array& array, py::ssize_t dimensions) {
  if (array.ndim() == dimensions) return;
  fail({.op = op,
        .what = what,
        .expected = std::to_string(dimensions) + (dimensions == 1 ? " dimension" : " dimensions"),
        .got = std::to_string(array.ndim())});
}

std::span<const float> span_of(const Floats& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

linalg::Matrix matrix_of(const char* op, const Doubles& gram) {
  check_dimensions(op, "gram", gram, 2);
  return Eigen::Map<const linalg::Matrix>(gram.data(), gram.shape(0), gram.shape(1));
}

retrofit::RoundOptions options_of(std::size_t bits, std::size_t group, const std::string& scale_dtype) {
  return {.bits = bits, .group = group, .scale_dtype = dtype_from_name(scale_dtype)};
}

py::tuple as_tuple(const retrofit::RoundedMatrix& rounded) {
  Integers integers({rounded.rows, rounded.cols});
  Floats scales({rounded.rows, rounded.groups()});
  std::copy(rounded.integers.begin(), rounded.integers.end(), integers.mutable_data());
  std::copy(rounded.scales.begin(), rounded.scales.end(), scales.mutable_data());
  return py::make_tuple(integers, scales, rounded.error, rounded.energy);
}

py::tuple round_nearest(const Floats& weights, const std::optional<Doubles>& gram, std::size_t bits,
                        std::size_t group, const std::string& scale_dtype, std::size_t threads) {
  const char* const op = "retrofit.round_nearest";
  check_dimensions(op, "weights", weights, 2);
  const retrofit::RoundOptions options = options_of(bits, group, scale_dtype);
  std::optional<linalg::Matrix> moments;
  if (gram) moments = matrix_of(op, *gram);
  const std::size_t rows = weights.shape(0), cols = weights.shape(1);
  retrofit::RoundedMatrix rounded;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    rounded =
        retrofit::round_nearest(span_of(weights), rows, cols, options, moments ? &*moments : nullptr, pool);
  }
  return as_tuple(rounded);
}

py::tuple gptq(const Floats& weights, const Doubles& gram, std::size_t bits, std::size_t group,
               bool act_order, double damping, const std::string& scale_dtype, std::size_t threads) {
  const char* const op = "retrofit.gptq";
  check_dimensions(op, "weights", weights, 2);
  retrofit::RoundOptions options = options_of(bits, group, scale_dtype);
  options.act_order = act_order;
  options.damping = damping;
  const linalg::Matrix moments = matrix_of(op, gram);
  const std::size_t rows = weights.shape(0), cols = weights.shape(1);
  retrofit::RoundedMatrix rounded;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    rounded = retrofit::round_gptq(span_of(weights), rows, cols, moments, options, pool);
  }
  return as_tuple(rounded);
}

std::vector<retrofit::LinearView> views_of(const char* op, const std::vector<Floats>& matrices) {
  std::vector<retrofit::LinearView> views;
  for (const Floats& matrix : matrices) {
    check_dimensions(op, "weights", matrix, 2);
    views.push_back({span_of(matrix), static_cast<std::size_t>(matrix.shape(0))});
  }
  return views;
}

py::array_t<float> as_array(const std::vector<float>& values) {
  return py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple awq_scales(const std::vector<Floats>& matrices, const Doubles& gram,
                     const std::optional<Floats>& magnitudes, std::size_t bits, std::size_t group,
                     const std::vector<std::size_t>& sources, const std::string& scale_dtype,
                     std::size_t threads) {
  const char* const op = "retrofit.awq_scales";
  const std::vector<retrofit::LinearView> views = views_of(op, matrices);
  if (magnitudes) check_dimensions(op, "magnitudes", *magnitudes, 1);
  const linalg::Matrix moments = matrix_of(op, gram);
  const retrofit::RoundOptions options = options_of(bits, group, scale_dtype);
  retrofit::AwqScales found;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    found = retrofit::awq_scales(views, moments, magnitudes ? span_of(*magnitudes) : std::span<const float>(),
                                 options, pool, sources);
  }
  return py::make_tuple(as_array(found.scales), found.alpha, found.error, found.unscaled_error);
}

py::array_t<float> smooth_scales(const std::vector<Floats>& matrices, const Floats& largest, double alpha,
                                 const std::vector<std::size_t>& sources) {
  const char* const op = "retrofit.smooth_scales";
  check_dimensions(op, "largest", largest, 1);
  const std::vector<retrofit::LinearView> views = views_of(op, matrices);
  return as_array(retrofit::smooth_scales(views, span_of(largest), alpha, sources));
}

/// The bytes of a module's tensors, in the order of their names' suffixes: integers, scales and, packed,
/// shape.
std::vector<py::bytes> pack_linear(const Integers& integers, const Floats& scales, std::size_t bits,
                                   std::size_t group, const std::string& scale_dtype) {
  const char* const op = "retrofit.packed_tensors";
  check_dimensions(op, "integers", integers, 2);
  check_dimensions(op, "scales", scales, 2);
  retrofit::check_layout(op, "the module", bits, group);
  const std::size_t rows = integers.shape(0), cols = integers.shape(1);
  const std::size_t width = group == 0 ? cols : group;
  const bool fits = cols != 0 && cols % width == 0 && cols % kQuantGroup == 0;
  if (!fits || scales.shape(0) != integers.shape(0) ||
      static_cast<std::size_t>(scales.shape(1)) != cols / width) {
    fail({.op = op,
          .what = "scales",
          .expected = "one for each row and group of " + std::to_string(width) + " columns",
          .got = std::to_string(scales.shape(0)) + " × " + std::to_string(scales.shape(1))});
  }
  const int half = 1 << (bits - 1);
  retrofit::RoundedMatrix rounded{.rows = rows, .cols = cols, .bits = bits, .group = group};
  rounded.integers.assign(integers.data(), integers.data() + integers.size());
  rounded.scales.assign(scales.data(), scales.data() + scales.size());
  for (const std::int8_t integer : rounded.integers) {
    if (integer >= -half && integer < half) continue;
    fail({.op = op,
          .what = "an integer of " + std::to_string(bits) + " bits",
          .expected = std::to_string(-half) + " to " + std::to_string(half - 1),
          .got = std::to_string(integer)});
  }
  std::vector<py::bytes> tensors;
  for (const std::vector<std::byte>& bytes : retrofit::pack_linear(rounded, dtype_from_name(scale_dtype))) {
    tensors.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return tensors;
}

using Layout = std::tuple<std::string, std::size_t, std::size_t>;

std::string quantization_json(const std::vector<Layout>& modules, const std::vector<std::string>& ignore) {
  std::vector<retrofit::QuantizedModule> layouts;
  for (const auto& [name, bits, group] : modules) {
    retrofit::check_layout("retrofit.quantization_config", "'" + name + "'", bits, group);
    layouts.push_back({name, bits, group});
  }
  return retrofit::quantization_json(layouts, ignore);
}

}  // namespace

void bind_round(py::module_& m) {
  m.def("round_nearest", &round_nearest, py::arg("weights"), py::arg("gram"), py::kw_only(), py::arg("bits"),
        py::arg("group"), py::arg("scale_dtype"), py::arg("threads"));
  m.def("gptq", &gptq, py::arg("weights"), py::arg("gram"), py::kw_only(), py::arg("bits"), py::arg("group"),
        py::arg("act_order"), py::arg("damping"), py::arg("scale_dtype"), py::arg("threads"));
  m.def("awq_scales", &awq_scales, py::arg("matrices"), py::arg("gram"), py::arg("magnitudes"), py::kw_only(),
        py::arg("bits"), py::arg("group"), py::arg("sources"), py::arg("scale_dtype"), py::arg("threads"));
  m.def("smooth_scales", &smooth_scales, py::arg("matrices"), py::arg("largest"), py::kw_only(),
        py::arg("alpha"), py::arg("sources"));
  m.def("grouped_query_sources", &retrofit::grouped_query_sources, py::arg("query_heads"),
        py::arg("kv_heads"), py::arg("head_dim"));
  m.def("pack_linear", &pack_linear, py::arg("integers"), py::arg("scales"), py::kw_only(), py::arg("bits"),
        py::arg("group"), py::arg("scale_dtype"));
  m.def("quantization_json", &quantization_json, py::arg("modules"), py::arg("ignore"));
}

}  // namespace modicum::python
