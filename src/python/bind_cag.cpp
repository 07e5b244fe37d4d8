// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace modicum::python {
namespace {

using cag::Answer;
using cag::Citation;
using cag::Knowledge;

py::list documents_of(const cag::Manifest& manifest) {
  py::list documents;
  for (const cag::KnownDocument& document : manifest.documents) {
    py::dict entry;
    entry["name"] = document.name;
    entry["source"] = document.source;
    entry["hash"] = document.hash;
    entry["bytes"] = document.span.text_end - document.span.text_begin;
    entry["tokens"] = document.span.token_end - document.span.token_begin;
    documents.append(entry);
  }
  return documents;
}

py::dict describe(const cag::KnowledgeFile& file) {
  const cag::Manifest& manifest = file.manifest();
  py::dict d;
  d["format"] = cag::kFormatName;
  d["version"] = cag::kFormatVersion;
  d["bytes"] = file.bytes();
  d["tokens"] = manifest.tokens;
  d["model_type"] = manifest.model_type;
  d["weights"] = manifest.fingerprint.weights;
  d["tokenizer"] = manifest.fingerprint.tokenizer;
  d["dtype"] = manifest.fingerprint.dtype;
  d["layers"] = manifest.shape.layers;
  d["kv_heads"] = manifest.kv_heads;
  d["head_dim"] = manifest.shape.width / manifest.kv_heads;
  d["bytes_per_token"] = manifest.shape.token_bytes();
  d["documents"] = documents_of(manifest);
  return d;
}

Answer ask(const Knowledge& self, const std::string& question, std::size_t max_new_tokens, double temperature,
           std::size_t top_k, double top_p, double min_p, double repetition_penalty, std::uint64_t seed,
           const std::vector<std::string>& stop, const py::object& callback) {
  const TokenCallback on_token = python_token_callback(callback);
  const cag::AskOptions options{
      .max_new_tokens = max_new_tokens,
      .sampling = sampling_options(temperature, top_k, top_p, min_p, repetition_penalty, seed),
      .stop = stop};
  const py::gil_scoped_release release;
  return self.ask(question, options, on_token);
}

Knowledge build(const Model& model, const std::vector<std::filesystem::path>& sources,
                const std::filesystem::path& path, const std::string& before_documents,
                const std::string& before_question, const std::string& after_question,
                bool add_special_tokens, std::size_t reserve, const py::object& progress) {
  const Progress callback = python_progress(progress);
  const cag::BuildOptions options{
      .format = {before_documents, before_question, after_question, add_special_tokens}, .reserve = reserve};
  const py::gil_scoped_release release;
  return cag::build(model, sources, path, options, callback);
}

}  // namespace

void bind_cag(py::module_& m) {
  py::class_<Citation>(m, "Citation", "The line of a document that holds an answer.")
      .def_readonly("document", &Citation::document)
      .def_readonly("source", &Citation::source)
      .def_property_readonly(
          "bytes", [](const Citation& c) { return py::make_tuple(c.bytes.begin, c.bytes.end); },
          "Half-open byte range of the line in the source file.")
      .def_readonly("line", &Citation::line, "Counted from 1.")
      .def_readonly("quote", &Citation::quote, "The line: exactly those bytes.")
      .def("__repr__", [](const Citation& c) {
        return "<modicum.Citation " + c.document + ":" + std::to_string(c.line) + ">";
      });
  py::class_<cag::Cost>(m, "Cost", "What an answer took.")
      .def_readonly("cached_tokens", &cag::Cost::cached_tokens)
      .def_readonly("question_tokens", &cag::Cost::question_tokens)
      .def_readonly("new_tokens", &cag::Cost::new_tokens)
      .def_readonly("prefill_seconds", &cag::Cost::prefill_seconds)
      .def_readonly("decode_seconds", &cag::Cost::decode_seconds);
  py::class_<Answer>(m, "Answer", "An answer with its citations and cost.")
      .def_readonly("text", &Answer::text)
      .def_readonly("citations", &Answer::citations)
      .def_readonly("ids", &Answer::ids)
      .def_readonly("log_probabilities", &Answer::log_probabilities)
      .def_property_readonly("finish_reason", [](const Answer& a) { return name(a.finish_reason); })
      .def_readonly("cost", &Answer::cost)
      .def("__str__", [](const Answer& a) { return a.text; })
      .def("__repr__", [](const Answer& a) {
        return "<modicum.Answer " + py::repr(py::str(a.text)).cast<std::string>() + ">";
      });
  py::class_<Knowledge>(m, "Knowledge")
      .def_static("open", &Knowledge::open, py::arg("path"), py::arg("model"),
                  py::call_guard<py::gil_scoped_release>())
      .def("ask", &ask, py::arg("question"), py::kw_only(), py::arg("max_new_tokens") = 64,
           py::arg("temperature") = 0.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0,
           py::arg("repetition_penalty") = 1.0, py::arg("seed") = 0,
           py::arg("stop") = std::vector<std::string>{}, py::arg("callback") = py::none())
      .def(
          "branch", [](const Knowledge& self) { return PyBranch{self.model(), self.tree(), self.branch()}; },
          "The branch at the end of the documents; extend it with `question_ids` or anything else.")
      .def("question_ids", &Knowledge::question_ids, py::arg("question"),
           "The tokens that follow the documents for this question, up to where the answer begins.")
      .def(
          "prompt", [](const Knowledge& self) { return std::string(self.file().prompt()); },
          "The text that was read: instruction, documents, and what comes before a question.")
      .def("describe", [](const Knowledge& self) { return describe(self.file()); })
      .def("__len__", [](const Knowledge& self) { return self.branch().size(); });
  m.def("build_knowledge", &build, py::arg("model"), py::arg("sources"), py::arg("path"), py::kw_only(),
        py::arg("before_documents"), py::arg("before_question"), py::arg("after_question"),
        py::arg("add_special_tokens"), py::arg("reserve"), py::arg("progress"));
  m.def(
      "inspect_knowledge",
      [](const std::filesystem::path& path) {
        ThreadPool pool;
        return describe(cag::KnowledgeFile::open(path, pool));
      },
      py::arg("path"), "What a knowledge file holds, after checking its seal and checksums.");
}

}  // namespace modicum::python
