// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/isa.hpp>

#include "bindings.hpp"

namespace modicum::python {
namespace {

PyBranch extend_one(const PyBranch& self, const Ids& ids, const py::object& progress) {
  const Progress callback = python_progress(progress);
  const py::gil_scoped_release release;
  const Extension extension{self.branch, ids};
  auto leaves = self.model.transformer().extend(self.tree, {&extension, 1}, nullptr, callback);
  return {self.model, self.tree, std::move(leaves.front())};
}

std::vector<PyBranch> extend_many(const std::vector<std::pair<PyBranch, Ids>>& pairs,
                                  const py::object& progress) {
  if (pairs.empty()) return {};
  const Progress callback = python_progress(progress);
  const py::gil_scoped_release release;
  std::vector<Extension> extensions;
  for (const auto& [branch, ids] : pairs) extensions.push_back({branch.branch, ids});
  const PyBranch& first = pairs.front().first;
  std::vector<PyBranch> leaves;
  for (Branch& leaf : first.model.transformer().extend(first.tree, extensions, nullptr, callback)) {
    leaves.push_back({first.model, first.tree, std::move(leaf)});
  }
  return leaves;
}

py::array_t<float> branch_logits(const PyBranch& self) {
  std::vector<float> values(self.model.config().vocab_size);
  {
    const py::gil_scoped_release release;
    self.model.transformer().logits({&self.branch, 1}, values);
  }
  const auto size = static_cast<py::ssize_t>(values.size());
  return to_numpy(std::move(values), 1, static_cast<std::size_t>(size)).reshape({size});
}

py::array_t<float> many_logits(const std::vector<PyBranch>& leaves) {
  if (leaves.empty()) return py::array_t<float>(std::vector<py::ssize_t>{0, 0});
  const Model& model = leaves.front().model;
  const std::size_t vocabulary = model.config().vocab_size;
  std::vector<float> values(leaves.size() * vocabulary);
  {
    const py::gil_scoped_release release;
    std::vector<Branch> branches;
    for (const PyBranch& leaf : leaves) branches.push_back(leaf.branch);
    model.transformer().logits(branches, values);
  }
  return to_numpy(std::move(values), leaves.size(), vocabulary);
}

py::array_t<float> all_logits(const Model& model, const Ids& ids, const py::object& progress) {
  const std::size_t vocabulary = model.config().vocab_size;
  const Progress callback = python_progress(progress);
  std::vector<float> values(ids.size() * vocabulary);
  {
    const py::gil_scoped_release release;
    const KvTree tree = model.transformer().tree();
    const Extension extension{tree.root(), ids};
    Matrix hidden;
    model.transformer().extend(tree, {&extension, 1}, &hidden, callback);
    model.transformer().logits_of(hidden.data(), ids.size(), values.data());
  }
  return to_numpy(std::move(values), ids.size(), vocabulary);
}

Model load(const std::filesystem::path& path, const std::string& dtype, std::size_t threads) {
  LoadOptions options{.threads = threads};
  if (dtype != "auto") options.dtype = dtype_from_name(dtype);
  return Model::load(path, options);
}

/// "int4 by groups of 32" for each scheme, or None.
std::optional<std::string> quantization(const Model& model) {
  const std::optional<QuantizationConfig>& config = model.config().quantization;
  if (!config) return std::nullopt;
  std::string text;
  for (const QuantizationScheme& scheme : config->schemes) {
    if (!text.empty()) text += ", ";
    text += "int" + std::to_string(scheme.bits);
    text += scheme.group == 0 ? std::string(" by rows") : " by groups of " + std::to_string(scheme.group);
  }
  return text;
}

void bind_config(py::module_& m) {
  py::class_<ModelConfig>(m, "ModelConfig", "What config.json says of the model, in transformers' names.")
      .def_static(
          "parse", [](const std::string& text) { return parse_model_config(text); }, py::arg("text"),
          R"(Reads the text of a config.json; what is absent has the default of its kind of model.

Raises
------
FormatError, Unsupported
    Naming the field.)")
      .def_readonly("model_type", &ModelConfig::model_type)
      .def_readonly("hidden_size", &ModelConfig::hidden_size)
      .def_readonly("intermediate_size", &ModelConfig::intermediate_size)
      .def_readonly("num_hidden_layers", &ModelConfig::num_hidden_layers)
      .def_readonly("num_attention_heads", &ModelConfig::num_attention_heads)
      .def_readonly("num_key_value_heads", &ModelConfig::num_key_value_heads)
      .def_readonly("head_dim", &ModelConfig::head_dim)
      .def_readonly("vocab_size", &ModelConfig::vocab_size)
      .def_readonly("max_position_embeddings", &ModelConfig::max_position_embeddings)
      .def_readonly("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readonly("qkv_bias", &ModelConfig::qkv_bias)
      .def_readonly("o_bias", &ModelConfig::o_bias)
      .def_readonly("mlp_bias", &ModelConfig::mlp_bias)
      .def_readonly("qk_norm", &ModelConfig::qk_norm)
      .def_readonly("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def_readonly("sliding_window", &ModelConfig::sliding_window,
                    "Of each layer; 0 or an empty list: all keys.")
      .def_readonly("eos_token_ids", &ModelConfig::eos_token_ids)
      .def_readonly("bos_token_id", &ModelConfig::bos_token_id)
      .def("__repr__", [](const ModelConfig& c) {
        return "<modicum.ModelConfig " + c.model_type + ", " + std::to_string(c.num_hidden_layers) +
               " layers of " + std::to_string(c.hidden_size) + ", vocabulary " +
               std::to_string(c.vocab_size) + ">";
      });
}

}  // namespace

void bind_model(py::module_& m) {
  bind_config(m);
  py::class_<PyBranch>(m, "Branch",
                       R"(A prefix that a model has read: a handle on a node of its tree of keys and values.

Extending shares the prefix, it copies nothing. When the last handle below a node goes, its memory returns at once.)")
      .def("extend", &extend_one, py::arg("ids"), py::kw_only(), py::arg("progress") = py::none(),
           R"(Reads `ids` after this prefix and returns the new leaf.

Raises
------
ContextOverflow
    Before any work, where the path would be longer than the model's context.
InvalidArgument
    For no ids, or one outside the vocabulary.)")
      .def("logits", &branch_logits, "Logits of the token after this prefix: float32 [vocabulary].")
      .def_property_readonly(
          "tokens", [](const PyBranch& self) { return self.branch.tokens(); },
          "The token ids from the root to here.")
      .def("__len__", [](const PyBranch& self) { return self.branch.size(); })
      .def("__repr__", [](const PyBranch& self) {
        return "<modicum.Branch of " + std::to_string(self.branch.size()) + " tokens>";
      });
  m.def("extend", &extend_many, py::arg("extensions"), py::kw_only(), py::arg("progress") = py::none(),
        R"(Reads many branches at once: `extensions` is a list of (branch, ids), all of one tree.

Keys and values that branches share are read from memory once for all of them. Returns the new leaves, in order.)");

  m.def("logits", &many_logits, py::arg("branches"),
        R"(Logits of the token after each of the branches of one model, float32 [branches, vocabulary].

The head's weights are read from memory once for all of them.)");

  py::class_<Model>(m, "Model")
      .def(py::init(&load), py::arg("path"), py::kw_only(), py::arg("dtype") = "auto", py::arg("threads") = 0,
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("config", &Model::config, py::return_value_policy::reference_internal)
      .def_property_readonly("tokenizer", &Model::tokenizer, py::return_value_policy::copy)
      .def_property_readonly("path", [](const Model& self) { return self.checkpoint().directory().string(); })
      .def_property_readonly("dtype", [](const Model& self) { return name_of(self.transformer().dtype()); })
      .def_property_readonly("threads", [](const Model& self) { return self.transformer().pool().size(); })
      .def_property_readonly("weight_bytes",
                             [](const Model& self) {
                               std::uint64_t bytes = 0;
                               for (const auto& name : self.checkpoint().names())
                                 bytes += self.checkpoint().info(name).bytes();
                               return bytes;
                             })
      .def_property_readonly("parameters", [](const Model& self) { return self.checkpoint().parameters(); })
      .def_property_readonly("quantization", &quantization)
      .def_property_readonly(
          "weight_bytes_per_token",
          [](const Model& self) { return self.transformer().weights().token_cost().bytes; })
      .def_property_readonly(
          "multiply_adds_per_token",
          [](const Model& self) { return self.transformer().weights().token_cost().multiply_adds; })
      .def_property_readonly("kv_bytes_per_token",
                             [](const Model& self) { return self.transformer().kv_shape().token_bytes(); })
      .def_property_readonly("fingerprint",
                             [](const Model& self) {
                               const py::gil_scoped_release release;
                               return self.fingerprint().weights;
                             })
      .def("logits", &all_logits, py::arg("ids"), py::kw_only(), py::arg("progress") = py::none())
      .def(
          "tree",
          [](const Model& self, std::size_t max_kv_bytes) {
            const KvTree tree = self.transformer().tree(max_kv_bytes);
            return PyBranch{self, tree, tree.root()};
          },
          py::kw_only(), py::arg("max_kv_bytes") = 0);

  m.def(
      "active_isa", [] { return ops::name_of(ops::active_isa()); },
      "The instruction set whose kernels run: plain, avx2, avx512, avx512vnni, avx512bf16 or amx "
      "(MODICUM_ISA forces "
      "one).");
  m.def("supported_isas", [] {
    std::vector<std::string_view> names;
    for (const auto isa : ops::supported_isas()) names.push_back(ops::name_of(isa));
    return names;
  });
}

}  // namespace modicum::python
