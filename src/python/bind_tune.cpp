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
  m.def("merge_plan", &merge_plan, py::arg("plan"));
  m.def("keep_mask", &keep_mask, py::arg("seed"), py::arg("tensor"), py::arg("model"), py::arg("count"),
        py::arg("density"));
}

}  // namespace modicum::python
