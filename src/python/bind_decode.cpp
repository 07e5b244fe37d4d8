// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {

void check_room(const Model& model, std::size_t prefix, std::size_t prompt, std::size_t new_tokens,
                const char* op) {
  const std::size_t context = model.config().max_position_embeddings;
  // The last token is chosen but never read.
  if (prefix + prompt + new_tokens > context + 1) {
    fail<ContextOverflow>({.op = op,
                           .what = "context",
                           .expected = "at most " + std::to_string(context) + " tokens",
                           .got = std::to_string(prefix + prompt + new_tokens) + " (prompt " +
                                  std::to_string(prefix + prompt) + ", new " + std::to_string(new_tokens) +
                                  ")",
                           .todo = "shorten the prompt or max_new_tokens"});
  }
}

namespace {

/// A prompt that has been read: its leaf and the logits after it.
struct Start {
  Branch leaf;
  std::vector<float> logits;
};

Start read_prompt(const Transformer& transformer, const KvTree& tree, const Branch& from, const Ids& prompt,
                  const Progress& progress) {
  Start start{from, std::vector<float>(transformer.config().vocab_size)};
  if (!prompt.empty()) {
    const Extension extension{from, prompt};
    start.leaf = transformer.extend(tree, {&extension, 1}, nullptr, progress).front();
  }
  transformer.logits({&start.leaf, 1}, start.logits);
  return start;
}

using PyGenerateResult = GenerateResult<Branch>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

py::array_t<float> warped(const FloatArray& logits, double temperature, std::size_t top_k, double top_p,
                          double min_p) {
  const SamplingOptions options = sampling_options(temperature, top_k, top_p, min_p, 1.0, 0);
  validate(options, "warp");
  if (logits.ndim() != 1) {
    fail({.op = "warp", .what = "logits", .expected = "one dimension", .got = std::to_string(logits.ndim())});
  }
  py::array_t<float> out(logits.size());
  std::copy_n(logits.data(), logits.size(), out.mutable_data());
  warp(std::span(out.mutable_data(), static_cast<std::size_t>(out.size())), options);
  return out;
}

PyGenerateResult generate_from(const PyBranch& from, const Ids& prompt, const GenerateOptions& options,
                               bool with_text, const py::object& callback) {
  const TokenCallback on_token = python_token_callback(callback);
  const Progress progress = python_progress(py::none());
  const py::gil_scoped_release release;
  check_room(from.model, from.branch.size(), prompt.size(), options.max_new_tokens, "generate");
  const Transformer& transformer = from.model.transformer();
  Start start = read_prompt(transformer, from.tree, from.branch, prompt, progress);
  TreeStepModel step_model(transformer, from.tree);
  const Ids seen = start.leaf.tokens();
  return generate(step_model, std::move(start.leaf), start.logits, seen, options,
                  with_text ? &from.model.tokenizer() : nullptr, on_token);
}

}  // namespace

void bind_decode(py::module_& m) {
  py::class_<PyGenerateResult>(m, "GenerateResult")
      .def_readonly("ids", &PyGenerateResult::ids)
      .def_readonly("text", &PyGenerateResult::text)
      .def_readonly("log_probabilities", &PyGenerateResult::log_probabilities)
      .def_property_readonly("finish_reason",
                             [](const PyGenerateResult& r) { return name(r.finish_reason); });

  py::class_<TextStream>(m, "TextStream",
                         "The text of a growing answer, whole characters, up to a stop string.")
      .def(py::init([](const Tokenizer& tokenizer, std::vector<std::string> stop) {
             return TextStream(&tokenizer, std::move(stop));
           }),
           py::arg("tokenizer"), py::arg("stop"))
      .def("push", &TextStream::push, py::arg("id"), "The text that became certain with this token.")
      .def("finish", &TextStream::finish, "The rest, when no token follows.");

  m.def("warp", &warped, py::arg("logits"), py::kw_only(), py::arg("temperature"), py::arg("top_k"),
        py::arg("top_p"), py::arg("min_p"));
  m.def(
      "generate",
      [](const PyBranch& from, const Ids& prompt, std::size_t max_new_tokens, std::size_t min_new_tokens,
         const Ids& stop_ids, const std::vector<std::string>& stop, double temperature, std::size_t top_k,
         double top_p, double min_p, double repetition_penalty, std::uint64_t seed, bool with_text,
         const py::object& callback) {
        const GenerateOptions options{
            .max_new_tokens = max_new_tokens,
            .min_new_tokens = min_new_tokens,
            .stop_ids = stop_ids,
            .stop = stop,
            .sampling = sampling_options(temperature, top_k, top_p, min_p, repetition_penalty, seed)};
        return generate_from(from, prompt, options, with_text, callback);
      },
      py::arg("start"), py::arg("prompt"), py::kw_only(), py::arg("max_new_tokens"),
      py::arg("min_new_tokens"), py::arg("stop_ids"), py::arg("stop"), py::arg("temperature"),
      py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("repetition_penalty"), py::arg("seed"),
      py::arg("with_text"), py::arg("callback"));
}

}  // namespace modicum::python
