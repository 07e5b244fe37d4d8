// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "bindings.hpp"

namespace modicum::python {
namespace {

using cag::Answer;
using cag::BuildOptions;
using cag::Citation;
using cag::Document;
using cag::Knowledge;
using cag::Session;

py::list documents_of(const cag::Manifest& manifest) {
  py::list documents;
  for (const cag::KnownDocument& document : manifest.documents) {
    py::dict entry;
    entry["name"] = document.name;
    entry["source"] = document.source;
    entry["hash"] = document.hash;
    entry["bytes"] = document.span.text_end - document.span.text_begin;
    entry["tokens"] = document.span.token_end - document.span.token_begin;
    entry["pages"] = document.pages.size();
    entry["converted"] = document.converted;
    entry["volatile"] = document.changes_often;
    documents.append(entry);
  }
  return documents;
}

py::dict certificate_of(const cag::Certificate& certificate) {
  py::list measurements;
  for (const cag::Measurement& m : certificate.measurements) {
    py::dict entry;
    entry["what"] = m.what;
    entry["against"] = m.against;
    entry["kl"] = m.kl;
    entry["perplexity_change"] = m.perplexity_change;
    entry["top1_agreement"] = m.top1_agreement;
    measurements.append(entry);
  }
  py::dict d;
  d["bound"] = certificate.bound;
  d["tokens"] = certificate.tokens;
  d["measurements"] = measurements;
  return d;
}

py::dict describe(const cag::KnowledgeFile& file) {
  const cag::Manifest& manifest = file.manifest();
  py::dict d;
  d["format"] = cag::kFormatName;
  d["version"] = manifest.version;
  d["bytes"] = file.bytes();
  d["tokens"] = manifest.tokens;
  d["layout"] = cag::name_of(manifest.layout);
  d["segments"] = manifest.segments.size();
  d["select"] = manifest.select;
  d["kv"] = cag::name_of(manifest.encoding);
  d["automatic"] = manifest.automatic;
  d["bytes_per_token"] = cag::bytes_per_token(manifest.shape, manifest.kv_heads, manifest.encoding);
  d["model_type"] = manifest.model_type;
  d["weights"] = manifest.fingerprint.weights;
  d["tokenizer"] = manifest.fingerprint.tokenizer;
  d["chat_template"] = manifest.fingerprint.chat_template;
  d["adapter"] = manifest.fingerprint.adapter;
  d["dtype"] = manifest.fingerprint.dtype;
  d["layers"] = manifest.shape.layers;
  d["kv_heads"] = manifest.kv_heads;
  d["head_dim"] = manifest.head_dim();
  d["abstain_below"] = manifest.abstain_below;
  d["certificate"] = certificate_of(manifest.certificate);
  d["documents"] = documents_of(manifest);
  return d;
}

BuildOptions build_options(const std::string& before_documents, const std::string& before_question,
                           const std::string& after_question, const std::string& after_answer,
                           bool add_special_tokens, const std::string& layout, const std::string& kv,
                           double max_kl, const std::string& overflow, std::size_t reserve,
                           std::size_t segment_tokens, std::size_t recompute, double abstain_below) {
  const auto one_of = [](const char* what, const std::string& value, const char* first, const char* second) {
    if (value == first || value == second) return value == second;
    fail({.op = "cag.build",
          .what = what,
          .expected = std::string(first) + " or " + second,
          .got = "'" + value + "'"});
  };
  BuildOptions options{
      .format = {before_documents, before_question, after_question, after_answer, add_special_tokens},
      .layout = one_of("layout", layout, "joint", "blocks") ? cag::Layout::blocks : cag::Layout::joint,
      .kv = std::nullopt,
      .max_kl = max_kl,
      .overflow =
          one_of("overflow", overflow, "error", "select") ? cag::Overflow::select : cag::Overflow::error,
      .reserve = reserve,
      .segment_tokens = segment_tokens,
      .recompute = recompute,
      .abstain_below = abstain_below};
  if (kv != "auto") options.kv = cag::kv_encoding_from_name(kv);
  return options;
}

py::dict plan(const Model& model, const std::vector<Document>& documents, const BuildOptions& options) {
  cag::Plan plan;
  {
    const py::gil_scoped_release release;
    plan = cag::plan(model, documents, options);
  }
  py::list shares;
  for (const cag::Plan::Share& share : plan.documents) {
    py::dict entry;
    entry["name"] = share.name;
    entry["tokens"] = share.tokens;
    shares.append(entry);
  }
  py::dict d;
  d["tokens"] = plan.tokens;
  d["context"] = plan.context;
  d["reserve"] = plan.reserve;
  d["fits"] = plan.fits;
  d["segments"] = plan.segments;
  d["wide_bytes"] = plan.wide_bytes;
  d["int8_bytes"] = plan.int8_bytes;
  d["int4_bytes"] = plan.int4_bytes;
  d["seconds"] = plan.seconds;
  d["documents"] = shares;
  return d;
}

py::dict update(const Model& model, const std::filesystem::path& path, const std::vector<Document>& put,
                const std::vector<std::string>& remove, const py::object& progress, cag::Expected expected) {
  const Progress callback = python_progress(progress);
  cag::Changes changes;
  {
    const py::gil_scoped_release release;
    changes = cag::update(model, path, put, remove, callback, expected);
  }
  py::dict d;
  d["added"] = changes.added;
  d["replaced"] = changes.replaced;
  d["removed"] = changes.removed;
  d["unchanged"] = changes.unchanged;
  d["computed_tokens"] = changes.computed_tokens;
  d["tokens"] = changes.tokens;
  return d;
}

cag::AskOptions ask_options(std::size_t max_new_tokens, double temperature, std::size_t top_k, double top_p,
                            double min_p, double repetition_penalty, std::uint64_t seed,
                            const std::vector<std::string>& stop, bool cite,
                            std::optional<double> abstain_below, std::size_t most_segments, std::size_t beams,
                            double length_penalty) {
  return {
      .max_new_tokens = max_new_tokens,
      .sampling = sampling_options(temperature, top_k, top_p, min_p, repetition_penalty, seed),
      .stop = stop,
      .cite = cite,
      .write = beams == 1 ? TextWriter() : beam_writer({.beams = beams, .length_penalty = length_penalty}),
      .abstain_below = abstain_below,
      .most_segments = most_segments};
}

/// [layers, tokens, kv_heads, head_dim], f32 as float32, f16 as float16, bf16 as its bits in uint16: of a
/// joint cache. Codes are given as the numbers they stand for.
py::tuple arrays(const Knowledge& self) {
  const cag::Manifest& manifest = self.file().manifest();
  if (manifest.layout != cag::Layout::joint) {
    fail<Unsupported>({.op = "cag.arrays",
                       .what = "layout",
                       .expected = "a joint cache",
                       .got = "blocks, whose keys are rotated by other positions",
                       .todo = "build it with layout = joint"});
  }
  const char* const type = manifest.shape.dtype == DType::f32    ? "float32"
                           : manifest.shape.dtype == DType::bf16 ? "uint16"
                                                                 : "float16";
  const std::vector<py::ssize_t> shape{
      static_cast<py::ssize_t>(manifest.shape.layers), static_cast<py::ssize_t>(manifest.tokens),
      static_cast<py::ssize_t>(manifest.kv_heads), static_cast<py::ssize_t>(manifest.head_dim())};
  py::array k(py::dtype(type), shape), v(py::dtype(type), shape);
  auto* const to_k = static_cast<std::byte*>(k.mutable_data());
  auto* const to_v = static_cast<std::byte*>(v.mutable_data());
  {
    const py::gil_scoped_release release;
    self.branch();  // checks the file's bytes
    cag::copy_rows(self.file(), to_k, to_v);
  }
  return py::make_tuple(k, v);
}

Knowledge adopt(const Model& model, const std::vector<Document>& documents, const std::filesystem::path& path,
                const py::array& keys, const py::array& values, const BuildOptions& options) {
  const py::array k = py::array::ensure(keys, py::array::c_style);
  const py::array v = py::array::ensure(values, py::array::c_style);
  const py::buffer_info of_k = k.request(), of_v = v.request();
  const KvShape shape = model.transformer().kv_shape();
  const auto tokens = of_k.ndim == 4 ? static_cast<std::size_t>(of_k.shape[1]) : 0;
  const auto bytes = static_cast<std::size_t>(of_k.size * of_k.itemsize);
  if (of_k.ndim != 4 || of_v.shape != of_k.shape || of_k.itemsize != of_v.itemsize ||
      bytes != tokens * shape.layers * shape.row_bytes()) {
    fail({.op = "cag.adopt",
          .what = "keys and values",
          .expected = "[" + std::to_string(shape.layers) + ", tokens, " +
                      std::to_string(model.config().num_key_value_heads) + ", " +
                      std::to_string(model.config().head_dim) + "] of " + std::string(name_of(shape.dtype)),
          .got = "others"});
  }
  const auto memory = std::make_shared<std::vector<std::byte>>(2 * bytes);
  std::memcpy(memory->data(), of_k.ptr, bytes);
  std::memcpy(memory->data() + bytes, of_v.ptr, bytes);
  auto segment = std::make_shared<KvSegment>();
  segment->k = memory->data();
  segment->v = memory->data() + bytes;
  segment->layer_stride = bytes / shape.layers;
  segment->rows = tokens;
  segment->owner = memory;
  const py::gil_scoped_release release;
  return cag::adopt(model, documents, path, segment, options);
}

void bind_results(py::module_& m) {
  py::class_<Citation>(m, "Citation", "The line of a document that supports an answer.")
      .def_readonly("document", &Citation::document)
      .def_readonly("source", &Citation::source)
      .def_readonly("heading", &Citation::heading, "The nearest heading above the line, or ''.")
      .def_property_readonly(
          "page", [](const Citation& c) { return c.page == 0 ? py::object(py::none()) : py::int_(c.page); },
          "Of the original, counted from 1; None where it has no pages.")
      .def_property_readonly(
          "bytes", [](const Citation& c) { return py::make_tuple(c.bytes.begin, c.bytes.end); },
          "Half-open byte range of the line in the text: of the file itself unless `converted`.")
      .def_readonly("converted", &Citation::converted, "The text was made from a file of another kind.")
      .def_readonly("line", &Citation::line, "Counted from 1.")
      .def_readonly("quote", &Citation::quote, "The line: exactly those bytes.")
      .def_readonly("literal", &Citation::literal, "The line holds the answer word for word.")
      .def_readonly("attention", &Citation::attention,
                    "Share of the documents' attention that lay on the line while answering.")
      .def("__repr__", [](const Citation& c) {
        return "<modicum.Citation " + c.document + ":" + std::to_string(c.line) + ">";
      });
  py::class_<cag::Cost>(m, "Cost", "What an answer took: tokens and seconds.")
      .def_readonly("cached_tokens", &cag::Cost::cached_tokens, "Of the documents, from the file.")
      .def_readonly("computed_tokens", &cag::Cost::computed_tokens,
                    "Of the documents, computed for this question: beginnings of moved segments.")
      .def_readonly("question_tokens", &cag::Cost::question_tokens)
      .def_readonly("new_tokens", &cag::Cost::new_tokens)
      .def_readonly("verify_seconds", &cag::Cost::verify_seconds, "Comparing checksums, once a process.")
      .def_readonly("compose_seconds", &cag::Cost::compose_seconds,
                    "Choosing segments, putting them together.")
      .def_readonly("prefill_seconds", &cag::Cost::prefill_seconds)
      .def_readonly("decode_seconds", &cag::Cost::decode_seconds)
      .def_readonly("cite_seconds", &cag::Cost::cite_seconds, "Finding where the answer stands.");
  py::class_<Answer>(m, "Answer", "An answer with its citations and cost.")
      .def_readonly("text", &Answer::text)
      .def_readonly("citations", &Answer::citations)
      .def_readonly("ids", &Answer::ids)
      .def_readonly("log_probabilities", &Answer::log_probabilities)
      .def_property_readonly("finish_reason", [](const Answer& a) { return name(a.finish_reason); })
      .def_readonly(
          "confidence", &Answer::confidence,
          "0 to 1: the geometric mean of the tokens' probabilities, half of it where the answer is cited by "
          "most of its words only, 0 where no line supports it.")
      .def_readonly("abstained", &Answer::abstained,
                    "The confidence is below the threshold: the documents do not say.")
      .def_readonly("selected", &Answer::selected, "Documents attended to, where not all were.")
      .def_readonly("cost", &Answer::cost)
      .def("__str__", [](const Answer& a) { return a.text; })
      .def("__repr__", [](const Answer& a) {
        return "<modicum.Answer " + py::repr(py::str(a.text)).cast<std::string>() + ">";
      });
}

/// The arguments that `ask` has in both classes.
template <class Class, class Ask>
void def_ask(Class& c, const Ask& ask) {
  c.def(
      "ask",
      [ask](typename Class::type& self, const std::string& question, std::size_t max_new_tokens,
            double temperature, std::size_t top_k, double top_p, double min_p, double repetition_penalty,
            std::uint64_t seed, const std::vector<std::string>& stop, bool cite,
            std::optional<double> abstain_below, std::size_t most_segments, std::size_t beams,
            double length_penalty, const py::object& callback) {
        const TokenCallback on_token = python_token_callback(callback);
        const cag::AskOptions options =
            ask_options(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop,
                        cite, abstain_below, most_segments, beams, length_penalty);
        const py::gil_scoped_release release;
        return ask(self, question, options, on_token);
      },
      py::arg("question"), py::kw_only(), py::arg("max_new_tokens") = 64, py::arg("temperature") = 0.0,
      py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0,
      py::arg("repetition_penalty") = 1.0, py::arg("seed") = 0, py::arg("stop") = std::vector<std::string>{},
      py::arg("cite") = true, py::arg("abstain_below") = py::none(), py::arg("most_segments") = 0,
      py::arg("beams") = 1, py::arg("length_penalty") = 1.0, py::arg("callback") = py::none());
}

void bind_knowledge(py::module_& m) {
  py::class_<Session> session(m, "Session");
  def_ask(session, [](Session& self, const std::string& question, const cag::AskOptions& options,
                      const TokenCallback& callback) { return self.ask(question, options, callback); });
  session.def("reset", &Session::reset)
      .def_property_readonly("turns", &Session::turns)
      .def("__len__", &Session::size);
  py::class_<Knowledge> knowledge(m, "Knowledge");
  def_ask(knowledge, [](Knowledge& self, const std::string& question, const cag::AskOptions& options,
                        const TokenCallback& callback) { return self.ask(question, options, callback); });
  knowledge
      .def_static("open", &Knowledge::open, py::arg("path"), py::arg("model"),
                  py::call_guard<py::gil_scoped_release>())
      .def(
          "ask_many",
          [](const Knowledge& self, const std::vector<std::string>& questions, std::size_t max_new_tokens,
             double temperature, std::uint64_t seed, const std::vector<std::string>& stop, bool cite,
             std::optional<double> abstain_below, std::size_t most_segments, std::size_t beams,
             double length_penalty) {
            const cag::AskOptions options =
                ask_options(max_new_tokens, temperature, 0, 1.0, 0.0, 1.0, seed, stop, cite, abstain_below,
                            most_segments, beams, length_penalty);
            const py::gil_scoped_release release;
            return self.ask_many(questions, options);
          },
          py::arg("questions"), py::kw_only(), py::arg("max_new_tokens") = 64, py::arg("temperature") = 0.0,
          py::arg("seed") = 0, py::arg("stop") = std::vector<std::string>{}, py::arg("cite") = true,
          py::arg("abstain_below") = py::none(), py::arg("most_segments") = 0, py::arg("beams") = 1,
          py::arg("length_penalty") = 1.0)
      .def("session", &Knowledge::session)
      .def(
          "branch", [](const Knowledge& self) { return PyBranch{self.model(), self.tree(), self.branch()}; },
          "The branch at the end of the documents; extend it with `question_ids` or anything else.")
      .def("question_ids", &Knowledge::question_ids, py::arg("question"),
           "The tokens that follow the documents for this question, up to where the answer begins.")
      .def(
          "prompt", [](const Knowledge& self) { return std::string(self.file().prompt()); },
          "The text that was read: instruction, documents, and what comes before a question.")
      .def("documents", [](const Knowledge& self) { return cag::documents_of(self.file()); })
      .def("arrays", &arrays)
      .def("describe", [](const Knowledge& self) { return describe(self.file()); })
      .def("__len__", &Knowledge::size);
}

void bind_files(py::module_& m) {
  py::class_<BuildOptions>(m, "BuildOptions")
      .def(py::init(&build_options), py::kw_only(), py::arg("before_documents"), py::arg("before_question"),
           py::arg("after_question"), py::arg("after_answer"), py::arg("add_special_tokens"),
           py::arg("layout"), py::arg("kv"), py::arg("max_kl"), py::arg("overflow"), py::arg("reserve"),
           py::arg("segment_tokens"), py::arg("recompute"), py::arg("abstain_below"));
  py::enum_<cag::Expected>(m, "Expected", "What the documents of an update are expected to be.")
      .value("anything", cag::Expected::anything)
      .value("new_names", cag::Expected::new_names)
      .value("known_names", cag::Expected::known_names);
  m.def("plan_knowledge", &plan, py::arg("model"), py::arg("documents"), py::arg("options"));
  m.def(
      "build_knowledge",
      [](const Model& model, const std::vector<Document>& documents, const std::filesystem::path& path,
         const BuildOptions& options, const py::object& progress) {
        const Progress callback = python_progress(progress);
        const py::gil_scoped_release release;
        return cag::build(model, documents, path, options, callback);
      },
      py::arg("model"), py::arg("documents"), py::arg("path"), py::arg("options"), py::arg("progress"));
  m.def("update_knowledge", &update, py::arg("model"), py::arg("path"), py::arg("put"), py::arg("remove"),
        py::arg("progress"), py::arg("expected"));
  m.def("adopt_knowledge", &adopt, py::arg("model"), py::arg("documents"), py::arg("path"), py::arg("k"),
        py::arg("v"), py::arg("options"));
  m.def(
      "shared_prompt_ids",
      [](const Model& model, const std::vector<Document>& documents, const BuildOptions& options) {
        return cag::make_shared_prompt(model.tokenizer(), options.format, documents).ids;
      },
      py::arg("model"), py::arg("documents"), py::arg("options"), "The tokens of a joint cache.");
  m.def(
      "inspect_knowledge",
      [](const std::filesystem::path& path) {
        ThreadPool pool;
        const cag::KnowledgeFile file = cag::KnowledgeFile::open(path);
        {
          const py::gil_scoped_release release;
          file.verify_again(pool);
        }
        return describe(file);
      },
      py::arg("path"), "What a knowledge file holds, after checking its seal and checksums.");
  m.def(
      "verify_knowledge",
      [](const Model& model, const std::filesystem::path& path, std::size_t samples,
         const py::object& progress) {
        const Progress callback = python_progress(progress);
        cag::DeepCheck check;
        {
          const py::gil_scoped_release release;
          check = cag::verify_deep(model, path, samples, callback);
        }
        return py::make_tuple(check.positions, check.difference);
      },
      py::arg("model"), py::arg("path"), py::arg("samples"), py::arg("progress"));
}

}  // namespace

void bind_cag(py::module_& m) {
  m.attr("ABSTAIN_BELOW") = cag::kAbstainBelow;
  py::class_<Document>(m, "Document", "A text that questions are asked about.")
      .def(py::init([](std::string name, std::string source, std::string text, std::vector<std::size_t> pages,
                       bool converted, bool changes_often) {
             return Document{std::move(name),  std::move(source), std::move(text),
                             std::move(pages), converted,         changes_often};
           }),
           py::arg("name"), py::arg("source"), py::arg("text"), py::arg("pages"), py::arg("converted"),
           py::arg("volatile"))
      .def_readonly("name", &Document::name)
      .def_readonly("source", &Document::source)
      .def_readonly("text", &Document::text)
      .def_readonly("pages", &Document::pages)
      .def_readonly("converted", &Document::converted)
      .def_readonly("volatile", &Document::changes_often);
  bind_results(m);
  bind_knowledge(m);
  bind_files(m);
}

}  // namespace modicum::python
