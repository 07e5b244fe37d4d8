// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {
namespace {

py::dict kind_as_dict(const tune::MergedKind& k) {
  py::dict d;
  d["kind"] = k.kind;
  d["tensors"] = k.tensors;
  d["elements"] = k.elements;
  d["changed"] = k.changed;
  d["moved"] = k.moved;
  d["square"] = k.square;
  d["change"] = k.change;
  d["stored_change"] = k.stored_change;
  d["product"] = k.product;
  return d;
}

py::dict merge(const std::string& plan, const std::filesystem::path& out, const std::filesystem::path& work,
               std::uint64_t shard_bytes, std::uint64_t sync_bytes, std::size_t threads,
               const py::object& progress) {
  const Progress callback = python_progress(progress);
  tune::MergeReport report;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    report =
        tune::merge(tune::parse_merge_plan(plan), out,
                    {.work = work, .shard_bytes = shard_bytes, .sync_bytes = sync_bytes}, pool, callback);
  }
  py::list kinds;
  for (const tune::MergedKind& kind : report.kinds) kinds.append(kind_as_dict(kind));
  py::dict d;
  d["kinds"] = kinds;
  d["bytes"] = report.bytes;
  d["tensors"] = report.tensors;
  d["resumed"] = report.resumed;
  d["rows"] = report.rows;
  d["matched"] = report.matched;
  d["unchecked"] = report.unchecked;
  d["partial_tokens"] = report.partial_tokens;
  d["dropped_tokens"] = report.dropped_tokens;
  d["added_tokens"] = report.added_tokens;
  d["seconds"] = report.seconds;
  return d;
}

py::dict write_patch(const std::string& plan, const std::filesystem::path& out, std::size_t rank,
                     double error, const std::string& dtype, bool keep_others, std::size_t threads,
                     const py::object& progress) {
  const Progress callback = python_progress(progress);
  const tune::PatchOptions options{
      .rank = rank,
      .error = error,
      .dtype = dtype_from_name(dtype),
      .others = keep_others ? tune::OtherTensors::save : tune::OtherTensors::drop};
  tune::PatchReport report;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    report = tune::write_patch(tune::parse_merge_plan(plan), out, options, pool, callback);
  }
  py::list modules;
  for (const tune::PatchedModule& module : report.modules) {
    py::dict m;
    m["module"] = module.module;
    m["rank"] = module.rank;
    m["size"] = module.size;
    m["relative"] = module.relative;
    m["errors"] = module.errors;
    modules.append(m);
  }
  py::dict d;
  d["modules"] = modules;
  d["whole"] = report.whole;
  d["dropped"] = report.dropped;
  d["bytes"] = report.bytes;
  d["seconds"] = report.seconds;
  return d;
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

/// A method on arrays of one shape; the plan's models are named "0", "1", … and stand for `arrays`.
py::array_t<float> merge_arrays(const std::string& plan, const std::optional<Floats>& base,
                                const std::vector<Floats>& arrays, const std::string& name,
                                std::size_t threads) {
  const tune::MergePlan parsed = tune::parse_merge_plan(plan);
  tune::check_merge_plan(parsed);
  std::vector<std::span<const float>> spans;
  const Floats& like = base ? *base : arrays.at(0);
  const auto span_of = [&](const Floats& array) {
    const bool same =
        array.ndim() == like.ndim() && std::equal(array.shape(), array.shape() + array.ndim(), like.shape());
    if (!same) fail({.op = "merge_arrays", .what = "arrays", .expected = "one shape", .got = "several"});
    return std::span<const float>(array.data(), static_cast<std::size_t>(array.size()));
  };
  for (const Floats& array : arrays) spans.push_back(span_of(array));
  const std::span<const float> from = base ? span_of(*base) : std::span<const float>();
  py::array_t<float> out(std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
  {
    const std::span<float> values(out.mutable_data(), static_cast<std::size_t>(out.size()));
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    tune::merge_arrays(parsed, name, from, std::move(spans), values, pool);
  }
  return out;
}

py::dict factorize(const Floats& matrix, std::size_t rank) {
  if (matrix.ndim() != 2)
    fail({.op = "factorize", .what = "matrix", .expected = "[rows, cols]", .got = "another shape"});
  tune::Factors factors;
  {
    const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> view(
        matrix.data(), matrix.shape(0), matrix.shape(1));
    const py::gil_scoped_release release;
    factors = tune::factorize(view.cast<double>(), rank);
  }
  const auto array_of = [](const linalg::Matrix& m) {
    const auto rows = static_cast<std::size_t>(m.rows()), cols = static_cast<std::size_t>(m.cols());
    std::vector<float> values(rows * cols);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] =
          static_cast<float>(m(static_cast<Eigen::Index>(i / cols), static_cast<Eigen::Index>(i % cols)));
    }
    return to_numpy(std::move(values), rows, cols);
  };
  py::dict d;
  d["b"] = array_of(factors.b);
  d["a"] = array_of(factors.a);
  d["singular_values"] = std::vector<double>(factors.singular_values.begin(), factors.singular_values.end());
  return d;
}

py::dict project(const std::string& instruct, const std::string& tuned, const std::string& adapter,
                 const py::array_t<TokenId, py::array::c_style | py::array::forcecast>& tokens,
                 const std::vector<std::size_t>& lengths, const std::filesystem::path& out, double energy,
                 bool others, const std::filesystem::path& work, std::uint64_t shard_bytes,
                 std::uint64_t sync_bytes, std::size_t threads, const py::object& progress) {
  const Progress callback = python_progress(progress);
  if (tokens.ndim() != 2)
    fail({.op = "project", .what = "tokens", .expected = "[sequences, length]", .got = "another shape"});
  const tune::ProtectedText text{.tokens = {tokens.data(), static_cast<std::size_t>(tokens.size())},
                                 .length = static_cast<std::size_t>(tokens.shape(1)),
                                 .lengths = lengths};
  tune::ProjectReport report;
  {
    const py::gil_scoped_release release;
    ThreadPool pool(threads);
    report = tune::project(instruct, {.model = tuned, .adapter = adapter}, text, out,
                           {.energy = energy,
                            .others = others,
                            .merge = {.work = work, .shard_bytes = shard_bytes, .sync_bytes = sync_bytes}},
                           pool, callback);
  }
  py::list modules;
  for (const tune::ProjectedModule& module : report.modules) {
    py::dict m;
    m["module"] = module.module;
    m["inputs"] = module.inputs;
    m["directions"] = module.directions;
    m["kept"] = module.kept;
    m["before"] = module.before;
    m["after"] = module.after;
    modules.append(m);
  }
  py::dict d;
  d["modules"] = modules;
  d["tokens"] = report.tokens;
  d["bytes"] = report.bytes;
  d["seconds"] = report.seconds;
  return d;
}

/// The whole of a plan, defaults written out.
std::string merge_plan(const std::string& plan) {
  const tune::MergePlan parsed = tune::parse_merge_plan(plan);
  tune::check_merge_plan(parsed);
  return parsed.to_json();
}

py::array_t<bool> keep_mask(std::uint64_t seed, const std::string& tensor, std::size_t model,
                            std::size_t count, double density) {
  const tune::KeepMask mask(tune::mask_key(seed, tensor, model), density);
  py::array_t<bool> kept(static_cast<py::ssize_t>(count));
  for (std::size_t i = 0; i < count; ++i) kept.mutable_data()[i] = mask(i);
  return kept;
}

}  // namespace

void bind_tune(py::module_& m) {
  m.def("merge", &merge, py::arg("plan"), py::arg("out"), py::kw_only(), py::arg("work"),
        py::arg("shard_bytes"), py::arg("sync_bytes"), py::arg("threads"), py::arg("progress"));
  m.def("write_patch", &write_patch, py::arg("plan"), py::arg("out"), py::kw_only(), py::arg("rank"),
        py::arg("error"), py::arg("dtype"), py::arg("keep_others"), py::arg("threads"), py::arg("progress"));
  m.def("merge_arrays", &merge_arrays, py::arg("plan"), py::arg("base"), py::arg("arrays"), py::kw_only(),
        py::arg("name"), py::arg("threads"));
  m.def("factorize", &factorize, py::arg("matrix"), py::arg("rank"));
  m.def("project", &project, py::arg("instruct"), py::arg("tuned"), py::arg("adapter"), py::arg("tokens"),
        py::arg("lengths"), py::arg("out"), py::kw_only(), py::arg("energy"), py::arg("others"),
        py::arg("work"), py::arg("shard_bytes"), py::arg("sync_bytes"), py::arg("threads"),
        py::arg("progress"));
  m.def("merge_plan", &merge_plan, py::arg("plan"));
  m.def("keep_mask", &keep_mask, py::arg("seed"), py::arg("tensor"), py::arg("model"), py::arg("count"),
        py::arg("density"));
}

}  // namespace modicum::python
